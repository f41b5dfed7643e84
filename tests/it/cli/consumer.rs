//! What a consumer and an owner do at the command line, against a real control
//! plane, and the words that they get.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use infernet::control::rpc::{FailAttempt, FailureCode, Inventory, Usage};
use infernet::identity::Keys;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::support::test_market::{
    LIMIT, Said, TestMarket, TestNode, consumer_home, infernet, run,
};

const MODEL: &str = "consumer-test";

fn usage(output_tokens: u64) -> Usage {
    Usage { input_tokens: 5, output_tokens, seconds: None }
}

/// Writes an answer to the job that comes next.
async fn answer(node: &TestNode, output: &str) {
    let attempt = node.take().await;
    let channel = node.join(&attempt).await;
    let mut offset = 0;
    for piece in output.split_inclusive(' ') {
        let delta = json!({"attempt": attempt.attempt, "offset": offset, "text": piece});
        channel.send("delta", &delta).unwrap();
        offset += piece.len();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let end = json!({"attempt": attempt.attempt, "length": offset, "finish": "stop"});
    channel.send("end", &end).unwrap();
    let done = node.complete(&attempt, output, "stop", usage(3)).await;
    assert!(done.accepted, "{done:?}");
}

fn lines(said: &Said) -> Vec<Value> {
    said.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_is_answered_paid_for_and_found_again() {
    let market = TestMarket::open().await;
    let home = consumer_home(&market, "1").await;
    let node = market.node("attic", MODEL, 1).await;
    let asking = async {
        let arguments = ["run", MODEL, "hi", "--max-cost", "0.01", "--max-tokens", "16"];
        run(home.path(), &arguments).await
    };
    let (said, ()) = tokio::join!(asking, answer(&node, "one two three"));
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(said.stdout, "one two three\n");
    for part in ["attic", "5 tokens in, 3 out", "first after", "cost $0.00000"] {
        assert!(said.stderr.contains(part), "{part} in {}", said.stderr);
    }

    let list = run(home.path(), &["job", "ls", "--json"]).await;
    let jobs = lines(&list);
    assert_eq!(jobs.len(), 1, "{list:?}");
    assert_eq!(jobs[0]["state"], "completed");
    let id = jobs[0]["id"].as_str().unwrap();
    let list = run(home.path(), &["job", "ls"]).await;
    assert!(list.stdout.contains(id) && list.stdout.contains("completed"), "{list:?}");

    let shown = run(home.path(), &["job", "show", id]).await;
    assert_eq!(shown.code, Some(0), "{shown:?}");
    for part in ["completed", "attic", "hold", "capture", "one two three"] {
        assert!(shown.stdout.contains(part), "{part} in {}", shown.stdout);
    }
    let output = run(home.path(), &["job", "show", id, "--output"]).await;
    assert_eq!(output.stdout, "one two three\n");

    let cancelled = run(home.path(), &["job", "cancel", id]).await;
    assert_eq!(cancelled.code, Some(0));
    assert!(cancelled.stdout.contains("had ended before"), "{cancelled:?}");

    let verified = run(home.path(), &["verify", "--job", id]).await;
    assert_eq!(verified.code, Some(0), "{verified:?}");
    assert!(verified.stdout.contains(MODEL), "{}", verified.stdout);

    let balance = run(home.path(), &["balance", "--statement"]).await;
    assert!(balance.stdout.starts_with("available\t$0.99999"), "{balance:?}");
    assert!(balance.stdout.contains("grant"), "{}", balance.stdout);
    market.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_tells_each_event_on_a_line() {
    let market = TestMarket::open().await;
    let home = consumer_home(&market, "1").await;
    let node = market.node("attic", MODEL, 1).await;
    let asking =
        async { run(home.path(), &["run", MODEL, "hi", "--max-cost", "1", "--json"]).await };
    let (said, ()) = tokio::join!(asking, answer(&node, "one two"));
    assert_eq!(said.code, Some(0), "{said:?}");
    let events = lines(&said);
    assert_eq!(events[0]["event"], "state");
    let text: String = events
        .iter()
        .filter(|event| event["event"] == "text")
        .map(|event| event["text"].as_str().unwrap())
        .collect();
    assert_eq!(text, "one two");
    let end = events.last().unwrap();
    assert_eq!(end["event"], "end");
    assert_eq!(end["job"]["state"], "completed");
    assert!(end["measure"]["ended_ms"].as_f64().unwrap() > 0.0);
    market.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_jobs_are_refused_in_words() {
    let market = TestMarket::open().await;
    let home = consumer_home(&market, "0.001").await;
    let node = market.node("attic", MODEL, 1).await;
    let big = "x".repeat(300_000);
    for (arguments, code, word, parts) in [
        (&["run", "no-such-model", "hi"][..], 1, "unknown_model", &["no-such-model"][..]),
        (&["run", MODEL, ""], 1, "empty_prompt", &["prompt"]),
        (&["run", MODEL, "hi", "--max-cost", "0"], 1, "cap_below_offers", &["lowest is"]),
        (&["run", MODEL, "hi", "--max-cost", "5"], 1, "insufficient_funds", &["5"]),
        (
            &["job", "show", "0192f3a4-5b6c-7d8e-9f00-112233445566"],
            1,
            "unknown_job",
            &["infernet job ls"],
        ),
    ] {
        let said = run(home.path(), arguments).await;
        assert_eq!(said.code, Some(code), "{arguments:?}: {said:?}");
        assert_eq!(said.stdout, "");
        for part in parts {
            assert!(said.stderr.contains(part), "{arguments:?}: {part} in {}", said.stderr);
        }
        let json: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
        let said = run(home.path(), &json).await;
        let error: Value = serde_json::from_str(said.stderr.trim()).unwrap();
        assert_eq!(error["error"]["code"], word, "{arguments:?}: {said:?}");
    }
    let said = from_stdin(home.path(), &["run", MODEL], &big).await;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains("262144"), "{}", said.stderr);
    drop(node);
    market.close().await;
}

async fn from_stdin(home: &Path, arguments: &[&str], text: &str) -> Said {
    use tokio::io::AsyncWriteExt as _;
    let mut child = infernet(home, arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(text.as_bytes()).await.unwrap();
    drop(stdin);
    tokio::time::timeout(LIMIT, child.wait_with_output()).await.unwrap().unwrap().into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_nobody_takes_waits_is_told_why_and_expires() {
    let market = TestMarket::open().await;
    let home = consumer_home(&market, "1").await;
    let node = market.node("attic", MODEL, 1).await;
    node.rpc.leave().await.unwrap();
    let said = run(home.path(), &["run", MODEL, "hi", "--deadline", "2s"]).await;
    assert_eq!(said.code, Some(5), "{said:?}");
    assert!(
        said.stderr.contains(&format!("Queued: No node that serves {MODEL} is online.")),
        "{}",
        said.stderr
    );
    assert!(said.stderr.contains("The job expired."), "{}", said.stderr);
    let balance = run(home.path(), &["balance"]).await;
    assert!(balance.stdout.starts_with("available\t$1.00"), "{balance:?}");
    market.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_dies_fails_the_job_with_its_reason() {
    let market = TestMarket::open().await;
    let home = consumer_home(&market, "1").await;
    let node = market.node("attic", MODEL, 1).await;
    let asking = async { run(home.path(), &["run", MODEL, "hi"]).await };
    let failing = async {
        let attempt = node.take().await;
        let failure = FailAttempt {
            attempt: attempt.attempt,
            lease: attempt.lease,
            code: FailureCode::EngineFailed,
            message: "The engine died in the middle of an answer.".into(),
            retry: false,
        };
        assert!(node.rpc.fail_attempt(&failure).await.unwrap().accepted);
    };
    let (said, ()) = tokio::join!(asking, failing);
    assert_eq!(said.code, Some(5), "{said:?}");
    assert!(said.stderr.contains("The engine died in the middle of an answer."), "{said:?}");
    assert!(said.stderr.contains("infernet job show"), "{}", said.stderr);
    market.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ctrl_c_cancels_and_says_what_was_charged() {
    let market = TestMarket::open().await;
    let home = consumer_home(&market, "1").await;
    let node = market.node("attic", MODEL, 1).await;
    let mut child = infernet(home.path(), &["run", MODEL, "hi"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let attempt = node.take().await;
    let channel = node.join(&attempt).await;
    let delta = json!({"attempt": attempt.attempt, "offset": 0, "text": "one two\n"});
    channel.send("delta", &delta).unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = tokio::time::timeout(LIMIT, stdout.next_line()).await.unwrap().unwrap();
    assert_eq!(line.as_deref(), Some("one two"));
    kill(Pid::from_raw(child.id().unwrap().cast_signed()), Signal::SIGINT).unwrap();
    let cancelled = tokio::time::timeout(LIMIT, async {
        loop {
            let work = node.rpc.heartbeat(&[attempt.attempt], true, false).await.unwrap();
            if !work.cancel.is_empty() {
                return work.cancel;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert_eq!(cancelled.await.unwrap(), [attempt.attempt]);
    assert!(node.complete(&attempt, "one two\n", "cancelled", usage(2)).await.accepted);
    let output = tokio::time::timeout(LIMIT, child.wait_with_output()).await.unwrap().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("Cancelled. 2 tokens were delivered and $0.0000"), "{stderr}");
    market.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_joins_with_one_command_and_is_approved() {
    let market = TestMarket::open().await;
    market.operator.set_setting("node_approval", &json!("manual")).await.unwrap();
    let home = tempfile::tempdir().unwrap();
    let model = home.path().join("small.gguf");
    std::fs::write(&model, "weights").unwrap();
    let arguments = [
        "init",
        "--yes",
        "--url",
        market.plane.url(),
        "--name",
        "attic",
        "--path",
        model.to_str().unwrap(),
        "--json",
    ];
    let said = run(home.path(), &arguments).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    let made: Value = serde_json::from_str(&said.stdout).unwrap();
    let node = made["node"]["node"]["id"].as_str().unwrap().to_owned();
    assert_eq!(made["node"]["node"]["approval"], "pending");
    assert_eq!(made["node"]["node"]["status"], "offline", "no agent runs yet");
    assert_eq!(made["node"]["enrolled"], true);

    // The operator's key is the one that the control plane made.
    let operator = tempfile::tempdir().unwrap();
    let key = operator.path().join("operator.key");
    market.plane.operator().store(&key).unwrap();
    let approve = [
        "operator",
        "approve",
        &node,
        "--key-file",
        key.to_str().unwrap(),
        "--url",
        market.plane.url(),
    ];
    let said = run(operator.path(), &approve).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(said.stdout, format!("Node {node} is approved.\n"));

    let again = run(home.path(), &["login"]).await;
    assert_eq!(again.code, Some(0), "{again:?}");
    assert!(
        again.stdout.contains(&format!("Node: {node} (attic, provider, approved)")),
        "{again:?}"
    );
    let registered = run(home.path(), &["register"]).await;
    assert!(registered.stdout.contains("small"), "{registered:?}");

    // Anybody sees the offer; only operators may approve.
    let listed = run(home.path(), &["model", "ls"]).await;
    assert!(listed.stdout.contains("small"), "{listed:?}");
    let refused = run(home.path(), &["operator", "approve", &node, "suspended"]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("Only an operator may do this."), "{}", refused.stderr);
    assert!(refused.stderr.contains("--key-file"), "{}", refused.stderr);

    // A second machine of the same owner, whose key is not on it.
    let code = run(home.path(), &["owner", "enrol", "-q"]).await.stdout.trim().to_owned();
    let second = tempfile::tempdir().unwrap();
    let arguments =
        ["init", "--yes", "--url", market.plane.url(), "--name", "cellar", "--enrolment", &code];
    let said = run(second.path(), &arguments).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(!second.path().join("config/owner.key").exists());
    let third = tempfile::tempdir().unwrap();
    let said = run(third.path(), &arguments).await;
    assert_eq!(said.code, Some(4), "{said:?}");
    assert!(said.stderr.contains("This enrolment code has been used."), "{}", said.stderr);

    // A suspended node is told so.
    let suspend = [
        "operator",
        "approve",
        &node,
        "suspended",
        "--key-file",
        key.to_str().unwrap(),
        "--url",
        market.plane.url(),
    ];
    assert_eq!(run(operator.path(), &suspend).await.code, Some(0));
    let said = run(home.path(), &["register"]).await;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains("suspended"), "{}", said.stderr);
    market.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_are_not_believed_are_told_why() {
    let market = TestMarket::open().await;
    let home = consumer_home(&market, "0").await;
    let text = format!("[control]\nurl = \"{}\"\n[node]\nname = \"attic\"\n", market.plane.url());
    std::fs::write(home.path().join("config/config.toml"), text).unwrap();

    // A node that nobody enrolled, and whose owner is not here.
    let stranger = tempfile::tempdir().unwrap();
    Keys::generate().store(&stranger.path().join("config/node.key")).unwrap();
    std::fs::copy(
        home.path().join("config/config.toml"),
        stranger.path().join("config/config.toml"),
    )
    .unwrap();
    let said = run(stranger.path(), &["login"]).await;
    assert_eq!(said.code, Some(4), "{said:?}");
    assert!(said.stderr.contains("This node is not enrolled here."), "{}", said.stderr);
    assert!(said.stderr.contains("infernet owner enrol"), "{}", said.stderr);

    // A code that nobody made.
    let said = run(stranger.path(), &["login", "--enrolment", "enrol-0"]).await;
    assert_eq!(said.code, Some(4), "{said:?}");
    assert!(said.stderr.contains("This enrolment code is not known here."), "{}", said.stderr);

    // A user who was suspended.
    let keys = Keys::load(&home.path().join("config/owner.key")).unwrap();
    market.operator.set_user_status(&keys.public_hex(), "suspended").await.unwrap();
    let said = run(home.path(), &["balance"]).await;
    assert_eq!(said.code, Some(4), "{said:?}");
    assert!(said.stderr.contains("This account is suspended."), "{}", said.stderr);
    market.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_gives_credit_once() {
    let market = TestMarket::open().await;
    let home = consumer_home(&market, "0").await;
    let operator = tempfile::tempdir().unwrap();
    let key = operator.path().join("operator.key");
    market.plane.operator().store(&key).unwrap();
    let user = Keys::load(&home.path().join("config/owner.key")).unwrap().npub();
    let id = "0192f3a4-5b6c-7d8e-9f00-112233445566";
    let arguments = [
        "operator",
        "credit",
        &user,
        "2.5",
        "--id",
        id,
        "--memo",
        "hello",
        "--key-file",
        key.to_str().unwrap(),
        "--url",
        market.plane.url(),
    ];
    let said = run(operator.path(), &arguments).await;
    assert!(said.stdout.starts_with("$2.50 granted; $2.50 can be spent now"), "{said:?}");
    let said = run(operator.path(), &arguments).await;
    assert!(said.stdout.starts_with("$2.50 was granted before; $2.50"), "{said:?}");
    let proof = run(
        operator.path(),
        &["operator", "ledger", "--key-file", key.to_str().unwrap(), "--url", market.plane.url()],
    )
    .await;
    assert_eq!(proof.code, Some(0), "{proof:?}");
    assert!(proof.stderr.contains("The ledger is sound."), "{proof:?}");
    market.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_goes_where_its_terms_say() {
    let market = TestMarket::open().await;
    let home = consumer_home(&market, "1").await;
    let attic = market.node("attic", MODEL, 4).await;
    let attic_id = attic.rpc.whoami().await.unwrap().id.to_string();
    let told = async |job: &str| run(home.path(), &["job", "explain", job]).await.stdout;
    let submit = async |terms: &[&str]| {
        let arguments = [&["job", "submit", MODEL, "hi", "--max-cost", "0.01"], terms].concat();
        let said = run(home.path(), &arguments).await;
        assert_eq!(said.code, Some(0), "{terms:?}: {said:?}");
        said.stdout.trim().to_owned()
    };

    // What no node fits waits, and says why.
    for (terms, reason) in [
        (&["--exclude", &attic_id][..], "excluded"),
        (&["--label", "ssd"], "without the labels"),
        (&["--region", "eu-west"], "in another region"),
        (&["--vram-gb", "24"], "too little memory"),
    ] {
        let id = submit(terms).await;
        let told = told(&id).await;
        assert!(told.contains("It waits: "), "{terms:?}: {told}");
        assert!(told.contains(&format!("attic\t\t{reason}")), "{terms:?}: {told}");
        let cancelled = run(home.path(), &["job", "cancel", &id]).await;
        assert_eq!(cancelled.code, Some(0), "{cancelled:?}");
    }
    let id = submit(&["--delay", "1h"]).await;
    let delayed = told(&id).await;
    assert!(delayed.contains("at the earliest"), "{delayed}");

    // A node that has it is found among those that have it not, and one may be preferred.
    let inventory = Inventory {
        platform: "test".into(),
        cpus: 1,
        labels: vec!["ecc".into(), "ssd".into()],
        region: Some("eu-west".into()),
        ..Inventory::default()
    };
    let cellar = market.node_on(&market.consumer, "cellar", MODEL, 8, &inventory).await;
    let cellar_id = cellar.rpc.whoami().await.unwrap().id.to_string();
    let both = ["--label", "ssd", "--label", "ecc", "--region", "eu-west", "--prefer", &attic_id];
    let labelled = told(&submit(&both).await).await;
    assert!(labelled.contains("Given to node cellar"), "{labelled}");
    for (id, name) in [(&attic_id, "attic"), (&cellar_id, "cellar")] {
        let job = submit(&["--prefer", id]).await;
        let preferred = told(&job).await;
        assert!(preferred.contains(&format!("Given to node {name}")), "{preferred}");
        // Where the ids of nodes are read.
        let preferred = run(home.path(), &["job", "explain", &job, "--json"]).await;
        assert_eq!(lines(&preferred)[0]["attempts"][0]["node"]["id"], *id, "{preferred:?}");
    }

    let id = submit(&["--priority", "-3", "--title", "later"]).await;
    let database = market.plane.connect("postgres").await;
    let row = "select priority, title from public.jobs where id::text = $1";
    let row = database.query_one(row, &[&id]).await.unwrap();
    assert_eq!((row.get::<_, i16>(0), row.get(1)), (-3, "later"));

    for (terms, code, part) in [
        (["--priority", "1"], 1, "priority may be -9 to 0"),
        (["--priority", "10"], 2, "10 is not in -9..=9"),
        (["--vram-gb", "0"], 2, "0 is not in 1..="),
        (["--vram-gb", "much"], 2, "invalid digit"),
        (["--exclude", "attic"], 2, "\"attic\" is not the whole id of a node"),
        (["--prefer", &attic_id[..13]], 2, "is not the whole id of a node"),
        (["--label", ""], 2, "a value is required"),
        (["--delay", "soon"], 2, "\"soon\" is not a time"),
    ] {
        let arguments = [&["job", "submit", MODEL, "hi"][..], &terms].concat();
        let said = run(home.path(), &arguments).await;
        assert_eq!(said.code, Some(code), "{terms:?}: {said:?}");
        assert!(said.stderr.contains(part), "{terms:?}: {said:?}");
    }

    // A batch's terms are those of each of its items.
    let file = home.path().join("items.jsonl");
    std::fs::write(&file, "\"one\"\n\"two\"\n").unwrap();
    let arguments =
        ["batch", "submit", MODEL, file.to_str().unwrap(), "--label", "ssd", "--priority=-2"];
    let said = run(home.path(), &arguments).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    let rows = "select priority, labels from public.jobs where batch_id::text = $1";
    let rows = database.query(rows, &[&said.stdout.trim()]).await.unwrap();
    let rows: Vec<(i16, Vec<String>)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(rows, vec![(-2, vec!["ssd".to_owned()]); 2]);
    drop(database);
    market.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_explained_retried_discarded_and_forgotten() {
    let market = TestMarket::open().await;
    let home = consumer_home(&market, "1").await;
    let node = market.node("attic", MODEL, 1).await;
    let submit = ["job", "submit", MODEL, "a secret word", "--max-cost", "0.01", "--title", "mine"];
    let said = run(home.path(), &submit).await;
    let id = said.stdout.trim();
    fail(&node, "The engine read: a secret word").await;

    let failed = run(home.path(), &["job", "failed"]).await;
    for part in [id, MODEL, "engine_failed", "mine"] {
        assert!(failed.stdout.contains(part), "{part} in {}", failed.stdout);
    }
    let failed = run(home.path(), &["job", "failed", "--json"]).await;
    assert_eq!(lines(&failed)[0]["attempts"][0]["node"], "attic", "{failed:?}");

    let retried = run(home.path(), &["job", "retry", id]).await;
    assert_eq!(retried.code, Some(0), "{retried:?}");
    assert!(retried.stdout.contains("is held for it"), "{}", retried.stdout);
    let explained = run(home.path(), &["job", "explain", id]).await;
    for part in [
        "Submitted: consumer-test, for at most 0.01 USD.",
        "Given to node attic",
        "failed (engine_failed): The engine read: a secret word.",
        "Its consumer let it try again",
        "attempt\t2 on attic",
        "hold",
        "Its history is as it was written",
    ] {
        assert!(explained.stdout.contains(part), "{part} in {}", explained.stdout);
    }
    let early = run(home.path(), &["job", "forget", id]).await;
    assert_eq!(early.code, Some(1), "{early:?}");
    assert!(early.stderr.contains("infernet job cancel"), "{}", early.stderr);
    fail(&node, "The engine read: a secret word").await;

    let discarded = run(home.path(), &["job", "discard", id]).await;
    assert!(discarded.stdout.contains("off the list"), "{discarded:?}");
    let failed = run(home.path(), &["job", "failed"]).await;
    assert_eq!((failed.code, failed.stdout.as_str()), (Some(0), ""), "{failed:?}");
    let again = run(home.path(), &["job", "retry", id]).await;
    assert_eq!(again.code, Some(1), "{again:?}");

    let forgotten = run(home.path(), &["job", "forget", id]).await;
    assert_eq!(forgotten.code, Some(0), "{forgotten:?}");
    for verb in ["explain", "show"] {
        let told = run(home.path(), &["job", verb, id, "--json"]).await;
        assert_eq!(told.code, Some(0), "{told:?}");
        assert!(!told.stdout.contains("secret") && !told.stdout.contains("mine"), "{told:?}");
        assert!(told.stdout.contains("engine_failed"), "{told:?}");
    }
    let told = run(home.path(), &["job", "explain", id, "--json"]).await;
    assert_eq!(lines(&told)[0]["chain"]["ok"], true, "{told:?}");
    let stranger = consumer_home(&market, "1").await;
    let told = run(stranger.path(), &["job", "explain", id]).await;
    assert_eq!(told.code, Some(1), "{told:?}");
    market.close().await;
}

/// Fails the job that comes next, for good.
async fn fail(node: &TestNode, message: &str) {
    let attempt = node.take().await;
    let failure = FailAttempt {
        attempt: attempt.attempt,
        lease: attempt.lease,
        code: FailureCode::EngineFailed,
        message: message.into(),
        retry: false,
    };
    assert!(node.rpc.fail_attempt(&failure).await.unwrap().accepted);
}
