//! The beginnings of ids at the command line: wherever an id is taken, enough of
//! its beginning is.

use infernet::control::rpc::SubmitJob;
use infernet::control::session::LoginKind;
use infernet::id::JobId;
use infernet::identity::Keys;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::test_market::{TestMarket, consumer_home, rpc, run};

const MODEL: &str = "ids-test";

/// A job's id that begins with eight digits and ends with a number.
fn id(begin: u32, end: u128) -> JobId {
    JobId::from_uuid(Uuid::from_u128(u128::from(begin) << 96 | 0x7000_8000 << 48 | end))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_beginning_of_an_id_is_enough_where_it_is_of_one_alone() {
    let market = TestMarket::open().await;
    let home = consumer_home(&market, "1").await;
    let keys = Keys::load(&home.path().join("config/owner.key")).unwrap();
    let consumer = rpc(&market.plane, &keys, LoginKind::User);
    let _node = market.node("attic", MODEL, 1).await;
    let submit = async |rpc: &infernet::control::rpc::Rpc, id: JobId| {
        let mut job =
            SubmitJob::chat(MODEL, json!({"messages": [{"role": "user", "content": "hi"}]}));
        job.id = id;
        job.terms.title = Some("with\ttabs\nand \u{1b}[2Jtricks".to_owned());
        rpc.submit_job(&job).await.unwrap();
    };
    let (first, second, others) = (id(0x0192_aaaa, 1), id(0x0192_aabb, 2), id(0x0192_cccc, 3));
    submit(&consumer, first).await;
    submit(&consumer, second).await;
    // Somebody else's job is not found, and makes nothing ambiguous.
    submit(&market.consumer, others).await;
    submit(&market.consumer, id(0x0192_aaaa, 4)).await;

    for (verb, part) in [
        ("show", "0192aaaa"),
        ("explain", "0192aaaa-0000-7000"),
        ("logs", "0192AAAA"),
        ("cancel", "0192aaa"),
        ("forget", "0192aaaa"),
    ] {
        // The job is cancelled on the way, so that reading it to its end ends.
        if verb == "logs" {
            consumer.cancel_job(first).await.unwrap();
        }
        let said = run(home.path(), &["job", verb, part, "--json"]).await;
        assert!(said.stdout.contains(&first.to_string()), "{verb}: {said:?}");
    }
    let said = run(home.path(), &["verify", "--job", "0192aaaa"]).await;
    assert!(said.stderr.contains("cancelled and has no receipt"), "{said:?}");

    let said = run(home.path(), &["job", "show", "0192aa"]).await;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains("More than one job begins with 0192aa."), "{said:?}");
    assert!(said.stderr.contains(&first.to_string()), "{said:?}");
    assert!(said.stderr.contains(&second.to_string()), "{said:?}");

    let said = run(home.path(), &["job", "cancel", "0192cccc", "--json"]).await;
    assert_eq!(said.code, Some(1), "{said:?}");
    let error: Value = serde_json::from_str(said.stderr.trim()).unwrap();
    assert_eq!(error["error"]["code"], "unknown_job");
    assert_eq!(error["error"]["hints"][0], "See: infernet job ls");

    let said = run(home.path(), &["job", "show", "019"]).await;
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(said.stderr.contains("at least 4 digits"), "{said:?}");

    // A program gets a line a job, its cells joined by tabs, whatever a title has.
    let said = run(home.path(), &["job", "ls"]).await;
    let lines: Vec<&str> = said.stdout.lines().collect();
    assert_eq!(lines.len(), 2, "{said:?}");
    assert!(lines.iter().all(|line| line.split('\t').count() == 7), "{said:?}");
    assert!(lines[0].ends_with("with tabs and  [2Jtricks"), "{said:?}");
    market.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_and_their_commands_are_found_by_name_and_by_beginning() {
    let market = TestMarket::open().await;
    let home = tempfile::tempdir().unwrap();
    let keys = Keys::generate();
    keys.store(&home.path().join("config/owner.key")).unwrap();
    let url = market.plane.url();
    std::fs::write(home.path().join("config/config.toml"), format!("[control]\nurl = \"{url}\"\n"))
        .unwrap();
    let owner = rpc(&market.plane, &keys, LoginKind::User);
    let node = market.node_of(&owner, "attic", MODEL, 1).await;
    let id = node.rpc.whoami().await.unwrap().id.to_string();

    for name in ["attic", &id, &id[..13]] {
        let said = run(home.path(), &["node", "show", name, "--json"]).await;
        assert_eq!(said.code, Some(0), "{name}: {said:?}");
        assert!(said.stdout.contains(&id), "{name}: {said:?}");
    }
    let said = run(home.path(), &["node", "show", "cellar"]).await;
    assert_eq!(said.code, Some(1), "{said:?}");
    let given = run(home.path(), &["node", "command", &id[..8], "drain"]).await;
    assert_eq!(given.code, Some(0), "{given:?}");
    let command = given.stdout.trim();
    let taken = run(home.path(), &["node", "cancel", &command[..13]]).await;
    assert_eq!(taken.stdout, format!("Command {command} is cancelled.\n"), "{taken:?}");
    let said = run(home.path(), &["node", "ls"]).await;
    assert!(said.stdout.starts_with(&format!("{id}\tattic\tonline\tapproved\t0\t")), "{said:?}");
    market.close().await;
}
