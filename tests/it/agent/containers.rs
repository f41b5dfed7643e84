//! Jobs that are no chats, from the command line to the container and back.

use std::io::Write as _;

use infernet::control::rpc::{CommandKind, JobKind, JobState, SubmitJob};
use infernet::id::JobId;
use infernet::identity::{Receipt, sha256_hex};
use serde_json::{Value, json};
use tokio_postgres::NoTls;

use super::daemon::wait_for;
use crate::agent::commands::command;
use crate::support::agent_gate::Gate;
use crate::support::agent_world::{World, run, talk};
use crate::support::engine_image::{MODEL, engine_image};

#[tokio::test(flavor = "multi_thread")]
async fn containers_and_completions_run_from_end_to_end() {
    let image = tokio::task::spawn_blocking(engine_image).await.unwrap();
    let world = World::start().await;
    let program = "import sys, time; print(sys.stdin.read().upper(), sys.argv[1:])";
    let offers = format!(
        "[[container]]\nname = \"tools/upper:1\"\nimage = \"{}\"\nargs = true\n\
         command = [\"/usr/bin/python3\", \"-IS\", \"-c\", \"{program}\"]\nprice_second = \"0.01\"\n\n\
         [[model]]\nname = \"{MODEL}\"\nengine = \"llama.cpp\"\npath = \"{}\"\nthreads = 1\n\
         context_length = 512\nprice_input = \"1\"\nprice_output = \"100\"\n\n\
         [[model]]\nname = \"vectors\"\nengine = \"llama.cpp-embedding\"\npath = \"{}\"\nthreads = 1\n\
         context_length = 512\nprice_input = \"1\"\nprice_output = \"1\"\n",
        image.image_id,
        image.model_path.display(),
        image.model_path.display(),
    );
    let node = world.enrol_with("attic", &offers).await;
    let mut agent = node.start().await;
    for name in [MODEL, "tools/upper:1"] {
        let pulled = command(&world, &node, CommandKind::PullModel, Some(name)).await;
        assert_eq!(pulled.state, "done", "{pulled:?}");
        assert_eq!(pulled.result.unwrap()["fetched"], false);
    }
    // The operator is a consumer here, and pays with its own credit.
    let key = world.control_folder().join("operator.key");
    let key = key.to_str().unwrap();
    let operator = world.operator.session().unwrap().keys().public_hex();
    let amount = "100".parse().unwrap();
    let transfer = infernet::id::TransferId::generate();
    world.operator.grant_credit(transfer, &operator, amount, None).await.unwrap();
    let infernet = async |arguments: &[&str]| {
        let asked = [arguments, &["--key-file", key, "--max-cost", "10"][..]].concat();
        let output = run(&node.folder, &asked).await;
        (
            output.status.code().unwrap(),
            String::from_utf8(output.stdout.clone()).unwrap(),
            talk(&output),
        )
    };

    let kind = ["--kind", "container"];
    let asked = ["run", "tools/upper:1", "grüße", "--arg", "-v", "--max-time", "30s"];
    let (code, said, told) = infernet(&[&asked[..], &kind].concat()).await;
    assert_eq!((code, said.as_str()), (0, "GRÜSSE ['-v']\n"), "{told}");
    assert!(told.contains(" second"), "{told}");
    let id: JobId = told.split("job ").last().unwrap().trim().parse().unwrap();
    let job = world.operator.get_job(id).await.unwrap();
    assert_eq!((job.state, job.kind), (JobState::Completed, JobKind::Container));
    let seconds = job.usage.unwrap().seconds.unwrap();
    let cost = job.cost.unwrap();
    let wanted = rust_decimal(seconds) * rust_decimal(1) / rust_decimal(100);
    assert_eq!(cost.as_decimal(), wanted, "{seconds} s at 0.01");
    let receipt = Receipt::verify(job.receipt.as_ref().unwrap()).unwrap().receipt;
    assert_eq!(receipt.seconds, Some(seconds));

    // A program that fails fails the job at once, with its own words.
    let bad = ["run", "tools/upper:1", "x", "--kind", "container", "--temperature", "1"];
    let (code, _, told) = infernet(&bad).await;
    assert!(code == 2 && told.contains("--temperature says nothing"), "{told}");

    let (code, said, told) = infernet(&[
        "run",
        MODEL,
        "One, two, three,",
        "--kind",
        "completion",
        "--max-tokens",
        "4",
        "--share-prefix-cache",
    ])
    .await;
    assert!(code == 0 && !said.trim().is_empty(), "{said} {told}");

    let (code, said, told) = infernet(&["run", "vectors", "A cat.", "--kind", "embedding"]).await;
    assert_eq!(code, 0, "{told}");
    let vectors: Vec<Vec<f64>> = serde_json::from_str(&said).unwrap();
    assert_eq!((vectors.len(), vectors[0].len()), (1, 576));

    let output = run(&node.folder, &["model", "ps", "--json"]).await;
    assert!(output.status.success(), "{}", talk(&output));
    let mut warm: Vec<String> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["model"].to_string())
        .collect();
    warm.sort();
    assert_eq!(warm, [format!("\"{MODEL}\""), "\"vectors\"".to_owned()]);

    // Both wait for their slot in turn, and nothing is left when the agent ends.
    let body = |text: &str| json!({"input": text, "args": []});
    let mut jobs = Vec::new();
    for text in ["a", "b", "c"] {
        let mut job = SubmitJob::chat("tools/upper:1", body(text));
        (job.kind, job.max_seconds) = (JobKind::Container, Some(20));
        jobs.push(world.operator.submit_job(&job).await.unwrap().job.id);
    }
    for (id, text) in jobs.into_iter().zip(["A", "B", "C"]) {
        let limit = std::time::Instant::now() + crate::support::agent_world::PATIENCE;
        let job = loop {
            let job = world.operator.get_job(id).await.unwrap();
            if job.state.has_ended() {
                break job;
            }
            assert!(std::time::Instant::now() < limit, "{job:?}");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        };
        assert_eq!(job.output, Some(format!("{text} []\n")), "{:?}", job.error);
    }
    assert!(agent.stop().await.success());
    let left = std::fs::read_dir(node.folder.join("run/engines")).map(|d| d.count());
    assert_eq!(left.unwrap_or_default(), 0);
    world.prove_ledger().await;
    let _: Value = job.receipt.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_whose_receipt_was_lost_on_the_way_counts_once() {
    let image = tokio::task::spawn_blocking(engine_image).await.unwrap();
    let world = World::start_behind(Gate::Listening).await;
    world.gate.as_ref().unwrap().lose_answers(1);
    let offer = format!(
        "[[container]]\nname = \"tools/hello:1\"\nimage = \"{}\"\n\
         command = [\"/usr/bin/python3\", \"-IS\", \"-c\", \"print('hello')\"]\nprice_second = \"0.01\"\n",
        image.image_id,
    );
    let node = world.enrol_with("attic", &offer).await;
    let mut agent = node.start().await;
    let consumer = world.consumer().await;
    let mut job = SubmitJob::chat("tools/hello:1", json!({"input": "", "args": []}));
    (job.kind, job.max_seconds) = (JobKind::Container, Some(20));
    consumer.rpc.submit_job(&job).await.unwrap();
    let done = consumer.ended(job.id).await;
    assert_eq!(done.state, JobState::Completed, "{:?}", done.error);
    let snapshot = wait_for(&node, "done", |seen| seen.counters.ended == 1).await;
    let log = agent.log();
    assert_eq!((snapshot.counters.completed, snapshot.counters.failed), (1, 0), "{log}");
    assert!(log.contains("reason=\"repeated\""), "the answer was not lost:\n{log}");
    assert_eq!(Some(snapshot.counters.earned), Some(node.status().await.earnings.total), "{log}");
    assert!(agent.stop().await.success());
    world.prove_ledger().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_changes_a_price_leaves_the_digest_that_the_agent_read() {
    let image = tokio::task::spawn_blocking(engine_image).await.unwrap();
    let world = World::start().await;
    let copy = world.control_folder().with_file_name("model.gguf");
    std::fs::copy(&image.model_path, &copy).unwrap();
    let offer = |price| {
        format!(
            "[[model]]\nname = \"{MODEL}\"\nengine = \"llama.cpp\"\npath = \"{}\"\nthreads = 1\n\
             context_length = 512\nprice_input = \"1\"\nprice_output = \"{price}\"\n",
            copy.display(),
        )
    };
    let node = world.enrol_with("attic", &offer(100)).await;
    let offered = async || {
        let (client, connection) =
            tokio_postgres::connect(&world.database_url, NoTls).await.unwrap();
        tokio::spawn(connection);
        let row = client
            .query_one("select model_digest, price_output::int::text from public.offers", &[])
            .await
            .unwrap();
        (row.get::<_, Option<String>>(0), row.get::<_, String>(1))
    };
    let served = || Some(sha256_hex(&std::fs::read(&copy).unwrap()));
    let mut agent = node.start().await;
    assert_eq!(offered().await, (served(), "100".to_owned()));

    let config = node.folder.join("config/config.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace(&offer(100), &offer(200))).unwrap();
    let registered = run(&node.folder, &["register"]).await;
    assert!(registered.status.success(), "{}", talk(&registered));
    assert_eq!(offered().await, (served(), "200".to_owned()));

    // Another file under the same name is another digest once an agent serves it.
    assert!(agent.stop().await.success());
    std::fs::OpenOptions::new().append(true).open(&copy).unwrap().write_all(b"more").unwrap();
    let mut agent = node.start().await;
    assert_eq!(offered().await, (served(), "200".to_owned()));
    assert!(agent.stop().await.success());
}

fn rust_decimal(number: u64) -> rust_decimal::Decimal {
    number.into()
}
