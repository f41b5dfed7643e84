//! A round of the retention beside calls: it passes by what they hold, and they
//! do not wait for what it holds.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::frozen_market::{BEGINNING, FrozenMarket, FrozenServer, completion};

/// Forty days, in milliseconds.
const LONG: i64 = 40 * 86_400 * 1000;

const ROUND: &str = "select infernet.retain(infernet.clock(), infernet.settings_now())";

async fn set(market: &FrozenMarket, key: &str, value: u32) {
    let update = format!("update public.settings set value = '{value}' where key = '{key}'");
    market.execute(&update).await;
}

/// Lets a job live from its submission to its result.
async fn live(market: &FrozenMarket, consumer: Uuid, node: Uuid) -> Uuid {
    let job = Uuid::now_v7();
    let submit =
        format!(r#"public.submit_job('{job}', 'm', '{{"prompt":"x"}}', 'completion', 5, 0.01)"#);
    let submitted = market.act(consumer, &submit).await;
    let attempt = submitted["attempt"]["id"].as_str().unwrap();
    let start = format!("public.start_attempt('{attempt}', '{}')", Uuid::new_v4());
    let begun = market.act(node, &start).await;
    let arguments = completion("attic", &begun, "done", "stop", (9, 4));
    let done = market.act(node, &format!("public.complete_attempt({arguments})")).await;
    assert_eq!(done["accepted"], true, "{done}");
    job
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_round_waits_for_nobody_and_nobody_waits_for_it() {
    let server = FrozenServer::start().await;
    let mut market = server.original().await;
    let consumer = market.person("ada", "10").await;
    let owner = market.person("ben", "1").await;
    let node = market.node("attic", owner).await;
    let offer = r#"[{"model": "m", "slots": 2, "price_input": "1", "price_output": "1"}]"#;
    let register = format!("public.register_node('{{}}', '{offer}', 'test')");
    market.act(node, &register).await;
    market.tick().await;
    let held = live(&market, consumer, node).await;
    for _ in 0..2 {
        live(&market, consumer, node).await;
    }

    let mut round = server.original().await;
    let holder = server.original().await;
    for connection in [&mut market, &mut round] {
        connection.set_clock(BEGINNING + LONG).await;
        connection.execute("set lock_timeout = '2s'").await;
    }
    // The heartbeat runs a tick, which leaves the work to the rounds below.
    set(&market, "retention_jobs", 0).await;
    market.act(node, "public.heartbeat()").await;
    set(&market, "retention_jobs", 200).await;
    set(&market, "record_days", 1).await;

    // One job is held by somebody, and the round is open while the market lives on.
    let hold = format!("begin; select from public.jobs where id = '{held}' for update");
    holder.execute(&hold).await;
    round.execute("begin").await;
    let done: Value = round.read(ROUND).await;
    assert_eq!(done, json!({"forgotten": 2, "deleted": 2}));
    live(&market, consumer, node).await;
    let ticked = market.tick().await;
    assert_eq!(ticked["retention"], json!({"forgotten": 0, "deleted": 0}), "{ticked}");
    round.execute("commit").await;

    // What was passed by has its turn.
    holder.execute("rollback").await;
    let ticked = market.tick().await;
    assert_eq!(ticked["retention"], json!({"forgotten": 1, "deleted": 1}), "{ticked}");
    let jobs: i64 = market.read("select count(*) from public.jobs").await;
    assert_eq!(jobs, 1);
    assert_eq!(market.fault_in_books().await, None);
    drop((market, round, holder));
    server.stop().await;
}
