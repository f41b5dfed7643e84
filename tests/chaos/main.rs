//! Chaos: real faults at random moments, while real jobs run. `scripts/chaos` runs it.
//!
//! Each row has a field of its own: a control plane with its PostgreSQL, one or two
//! agents, a Docker daemon and engines in containers. In each round several jobs are
//! asked for and the row's fault strikes; a round whose fault hit no running attempt
//! counts as nothing. Needs root.
//!
//! Arguments: `--rounds N` (1), `--seed N`, `--fault NAME` (again and again), `--json`,
//! `--lanes N` (3): rows at a time.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails with the place and the value")]

mod docker;
mod engine;
mod fault;
mod field;
mod report;
mod round;
mod support;
mod wire;

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use futures_util::FutureExt as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use fault::Fault;
use field::Field;
use report::Row;
use round::Round;

/// What is asked for.
struct Arguments {
    rounds: usize,
    seed: u64,
    faults: Vec<Fault>,
    lanes: usize,
    json: bool,
}

impl Arguments {
    fn read(mut given: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut arguments = Self {
            rounds: 1,
            seed: fastrand::u64(..1_000_000),
            faults: Vec::new(),
            lanes: 3,
            json: false,
        };
        while let Some(name) = given.next() {
            if name == "--json" {
                arguments.json = true;
                continue;
            }
            let value = given.next().ok_or(format!("{name} is unknown, or needs a value."))?;
            let number = || value.parse().map_err(|_error| format!("{name} needs a number."));
            match name.as_str() {
                "--rounds" => arguments.rounds = number()?,
                "--lanes" => arguments.lanes = number()?,
                "--seed" => {
                    arguments.seed = value.parse().map_err(|_| "--seed needs a number.")?;
                }
                "--fault" => {
                    let found = Fault::ALL.into_iter().find(|fault| fault.name() == value);
                    arguments.faults.push(found.ok_or_else(|| {
                        let names = Fault::ALL.map(Fault::name).join(", ");
                        format!("There is no fault {value}. The faults are {names}.")
                    })?);
                }
                _ => return Err(format!("{name} is unknown.")),
            }
        }
        if arguments.faults.is_empty() {
            arguments.faults = Fault::ALL.to_vec();
        }
        Ok(arguments)
    }
}

#[allow(clippy::print_stdout, reason = "the table is what this program is for")]
fn main() -> ExitCode {
    // What runs the other tests asks for their names; these rows are none of them.
    if std::env::args().any(|argument| argument == "--list") {
        return ExitCode::SUCCESS;
    }
    let arguments = match Arguments::read(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("Error: {error}");
            return ExitCode::from(2);
        }
    };
    if !nix::unistd::geteuid().is_root() {
        eprintln!("Error: Daemons, mounts and network namespaces need root.");
        return ExitCode::FAILURE;
    }
    // Some threads more than processors, because what is asked of Docker blocks one.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(12)
        .enable_all()
        .build()
        .unwrap();
    let (seed, json) = (arguments.seed, arguments.json);
    eprintln!("The seed is {seed}.");
    let Some(rows) = runtime.block_on(run(arguments)) else {
        eprintln!("Error: Told to stop.");
        return ExitCode::FAILURE;
    };
    if json {
        println!("{}", report::json(&rows, seed));
    } else {
        print!("{}", report::table(&rows, seed));
    }
    if rows.iter().all(|row| row.verdict() == "ok") { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Plays all rows; none when told to stop.
async fn run(arguments: Arguments) -> Option<Vec<Row>> {
    let mut interrupt = signal(SignalKind::interrupt()).unwrap();
    let mut terminate = signal(SignalKind::terminate()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let layer: Arc<Path> = engine::build_layer(folder.path()).into();
    let mut rows: Vec<Option<Row>> = arguments.faults.iter().map(|_| None).collect();
    let mut order: Vec<_> = arguments.faults.iter().copied().enumerate().collect();
    // Those that take longest are at the end, and begin first.
    order.sort_by_key(|(_, fault)| fault.length());
    let order = Arc::new(Mutex::new(order));
    let (done, mut results) = mpsc::channel(1);
    let mut lanes = JoinSet::new();
    for _ in 0..arguments.lanes.max(1) {
        let (order, layer, done) = (Arc::clone(&order), Arc::clone(&layer), done.clone());
        lanes.spawn(async move {
            let next = || order.lock().unwrap().pop();
            while let Some((place, fault)) = next() {
                let rng = fastrand::Rng::with_seed(arguments.seed ^ (fault as u64) << 32);
                let row = play(fault, arguments.rounds, rng, &layer).await;
                if done.send((place, row)).await.is_err() {
                    return;
                }
            }
        });
    }
    drop(done);
    loop {
        tokio::select! {
            row = results.recv() => match row {
                Some((place, row)) => rows[place] = Some(row),
                None => return rows.into_iter().collect(),
            },
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
        }
    }
    // What was started ends with the tasks that own it.
    lanes.shutdown().await;
    None
}

/// Plays the rounds of one row. A panic ends the row, not the others.
async fn play(fault: Fault, rounds: usize, mut rng: fastrand::Rng, layer: &Path) -> Row {
    let mut row = Row::new(fault, rounds);
    let mut field = match unbroken(Box::pin(Field::start(fault, layer))).await {
        Ok(field) => field,
        Err(why) => {
            row.break_off(why);
            return row;
        }
    };
    let logs = Path::new(env!("CARGO_TARGET_TMPDIR")).join("chaos").join(fault.name());
    let mut number = 0;
    while row.wants_more() {
        number += 1;
        let began = Instant::now();
        let round = unbroken(Box::pin(Round::play(fault, &mut field, &mut rng))).await;
        if let Ok(round) = &round {
            tell(fault, number, round, began);
        }
        field.keep_logs(&logs);
        if !round.as_ref().is_ok_and(Round::is_clean) {
            eprintln!("  The logs are in {}.", logs.display());
        }
        match round {
            Ok(round) => row.add(round),
            Err(why) => {
                row.break_off(format!("round {number}: {why}"));
                return row;
            }
        }
    }
    match unbroken(Box::pin(field.stop())).await {
        Ok(left) => row.add_left(left),
        Err(why) => row.break_off(why),
    }
    row
}

/// Runs something to its end, or tells what it panicked with.
async fn unbroken<T>(work: impl Future<Output = T>) -> Result<T, String> {
    AssertUnwindSafe(work).catch_unwind().await.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "an unknown reason".to_owned())
    })
}

/// Says what a round was, for those who wait.
fn tell(fault: Fault, number: usize, round: &Round, began: Instant) {
    eprintln!(
        "{:<18} round {number:>2}: {} hit, back after {:.1} s, {:.1} s in all{}",
        fault.name(),
        round.hit,
        round.back.as_secs_f64(),
        began.elapsed().as_secs_f64(),
        if round.is_clean() { "" } else { ", NOT CLEAN" }
    );
    for complaint in &round.complaints {
        eprintln!("  {complaint}");
    }
}
