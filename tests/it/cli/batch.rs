//! Batches, and what owners see, at the command line.

use infernet::control::rpc::{FailAttempt, FailureCode, Usage};
use infernet::control::session::LoginKind;
use infernet::identity::Keys;
use serde_json::Value;

use crate::support::test_market::{Said, TestMarket, TestNode, consumer_home, rpc, run};

const MODEL: &str = "batch-test";

/// Takes so many attempts and answers each with its prompt; one that asks to
/// fail, fails.
async fn work(node: &TestNode, count: usize) {
    for _ in 0..count {
        let attempt = node.take().await;
        let input: Value = serde_json::from_str(attempt.input.get()).unwrap();
        let prompt = input["messages"].as_array().unwrap().last().unwrap()["content"].clone();
        let prompt = prompt.as_str().unwrap();
        if prompt == "fail" {
            let failure = FailAttempt {
                attempt: attempt.attempt,
                lease: attempt.lease,
                code: FailureCode::BadRequest,
                message: "The engine cannot read this.".into(),
                retry: false,
            };
            assert!(node.rpc.fail_attempt(&failure).await.unwrap().accepted);
        } else {
            let usage = Usage { input_tokens: 5, output_tokens: 3, seconds: None };
            let output = format!("answer to {prompt}");
            assert!(node.complete(&attempt, &output, "stop", usage).await.accepted);
        }
    }
}

fn lines(said: &Said) -> Vec<Value> {
    said.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_becomes_answers_line_by_line() {
    let market = TestMarket::open().await;
    let home = consumer_home(&market, "1").await;
    let node = market.node("attic", MODEL, 1).await;
    let file = home.path().join("items.jsonl");
    std::fs::write(&file, "\"one\"\n{\"prompt\":\"two\"}\n\n\"fail\"\n").unwrap();
    let file = file.to_str().unwrap();

    let submitted = run(home.path(), &["batch", "submit", MODEL, file, "--title", "survey"]).await;
    assert_eq!(submitted.code, Some(0), "{submitted:?}");
    let id = submitted.stdout.trim().to_owned();
    assert!(submitted.stderr.contains("3 items; $"), "{submitted:?}");

    // What is there already is read while the rest is in work.
    work(&node, 1).await;
    let partial = run(home.path(), &["batch", "show", &id[..13], "--results"]).await;
    let results = lines(&partial);
    assert_eq!(results.len(), 1, "{partial:?}");
    assert_eq!((&results[0]["item"], &results[0]["output"]), (&1.into(), &"answer to one".into()));
    let shown = run(home.path(), &["batch", "show", &id]).await;
    assert!(shown.stdout.contains("items\t1 of 3 have ended\n"), "{shown:?}");

    let waiting = async {
        run(home.path(), &["batch", "show", &id, "--wait", "--results", "--after", "1"]).await
    };
    let (said, ()) = tokio::join!(waiting, work(&node, 2));
    assert_eq!(said.code, Some(5), "one item failed: {said:?}");
    assert!(
        said.stderr.contains("Not every item was answered: 2 completed, 1 failed."),
        "{said:?}"
    );
    let results = lines(&said);
    assert_eq!(results.len(), 2, "{said:?}");
    assert_eq!(results[0]["output"], "answer to two");
    assert_eq!(results[1]["error"]["message"], "The engine cannot read this.");

    let list = run(home.path(), &["batch", "ls"]).await;
    assert!(list.stdout.starts_with(&format!("{id}\t{MODEL}\t3\t3\t1\t$0.0000")), "{list:?}");
    assert!(list.stdout.ends_with("\tsurvey\n"), "{list:?}");
    let list = run(home.path(), &["batch", "ls", "--json"]).await;
    assert_eq!(lines(&list)[0]["states"]["completed"], 2, "{list:?}");
    market.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_waited_for_cancelled_and_refused() {
    let market = TestMarket::open().await;
    let home = consumer_home(&market, "1").await;
    let node = market.node("attic", MODEL, 1).await;
    let file = home.path().join("lines.txt");
    std::fs::write(&file, "one\n{two\n").unwrap();
    let file = file.to_str().unwrap();

    let wrong = run(home.path(), &["batch", "submit", MODEL, file]).await;
    assert_eq!(wrong.code, Some(1), "{wrong:?}");
    assert!(wrong.stderr.contains(&format!("Line 1 of {file} is no item")), "{wrong:?}");
    assert!(wrong.stderr.contains("--plain"), "{wrong:?}");
    let none = run(home.path(), &["batch", "submit", MODEL, "/nowhere"]).await;
    assert!(none.stderr.contains("The file /nowhere cannot be read"), "{none:?}");
    let refused = run(home.path(), &["batch", "submit", "nobodys", file, "--plain"]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let poor =
        run(home.path(), &["batch", "submit", MODEL, file, "--plain", "--max-cost", "5", "--json"])
            .await;
    let error: Value = serde_json::from_str(poor.stderr.trim()).unwrap();
    assert_eq!(error["error"]["code"], "insufficient_funds", "{poor:?}");
    let unknown = run(home.path(), &["batch", "show", "0192abcd"]).await;
    assert!(unknown.stderr.contains("There is no batch 0192abcd… of yours."), "{unknown:?}");

    let arguments = ["batch", "submit", MODEL, file, "--plain", "--wait"];
    let (said, ()) = tokio::join!(run(home.path(), &arguments), work(&node, 2));
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(lines(&said)[1]["output"], "answer to {two", "{said:?}");

    node.rpc.leave().await.unwrap();
    let submitted = run(home.path(), &["batch", "submit", MODEL, file, "--plain"]).await;
    let id = submitted.stdout.trim();
    let cancelled = run(home.path(), &["batch", "cancel", id]).await;
    assert_eq!(cancelled.stdout, "The batch is over: 2 cancelled.\n", "{cancelled:?}");
    market.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_sees_what_nodes_earned() {
    let market = TestMarket::open().await;
    let home = consumer_home(&market, "1").await;
    let keys = Keys::load(&home.path().join("config/owner.key")).unwrap();
    let owner = rpc(&market.plane, &keys, LoginKind::User);
    let node = market.node_of(&owner, "attic", MODEL, 1).await;
    let nothing = run(home.path(), &["owner", "show", "--json"]).await;
    assert_eq!(lines(&nothing)[0]["earnings"]["pending"], "0.000000000000", "{nothing:?}");
    let (_said, ()) =
        tokio::join!(run(home.path(), &["run", MODEL, "hi", "--max-cost", "0.01"]), work(&node, 1));
    let told = run(home.path(), &["owner", "show", "--json"]).await;
    let told = &lines(&told)[0];
    for when in ["today", "days30", "pending"] {
        assert_ne!(told["earnings"][when], "0.000000000000", "{told}");
        assert_eq!(told["earnings"][when], told["balance"]["earned"], "{told}");
    }
    let shown = run(home.path(), &["owner", "show"]).await;
    assert!(shown.stdout.contains(&format!("public key\t{}\n", keys.public_hex())), "{shown:?}");
    assert!(shown.stdout.contains("\tattic\tonline\tapproved\t0\n"), "{shown:?}");
    let code = run(home.path(), &["owner", "enrol", "--quiet"]).await;
    assert!(code.stdout.starts_with("enrol-") && code.stderr.is_empty(), "{code:?}");
    let stranger = tempfile::tempdir().unwrap();
    let refused = run(stranger.path(), &["owner", "show", "--url", market.plane.url()]).await;
    assert_eq!(refused.code, Some(4), "{refused:?}");
    market.close().await;
}
