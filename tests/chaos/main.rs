//! Chaos: real faults at random moments, while real jobs run. `scripts/chaos` runs it.
//!
//! Each row has a field of its own: a control plane with its PostgreSQL, one or two
//! agents, a Docker daemon and engines in containers. In each round several jobs are
//! asked for and the row's fault strikes; a round whose fault hit no running attempt
//! counts as nothing, and a row with too many of those is begun again with another
//! seed. Needs root.
//!
//! Each round has a seed of its own: the first one that of the run, the next one more
//! than the one before. Seeds that ever failed are in the file `seeds`, and are played
//! in addition unless a seed is given.
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
use report::{Row, Verdict};
use round::Round;

/// How often a row is begun at most.
const TRIES: usize = 3;

/// Seeds of a run are below this, so that people can type them.
const SEEDS: u64 = 1_000_000;

/// The seeds that are always played.
const KEPT_SEEDS: &str = include_str!("seeds");

/// What is asked for.
struct Arguments {
    rounds: usize,
    seed: u64,
    /// Seeds that failed before, with their faults.
    kept: Vec<(Fault, u64)>,
    faults: Vec<Fault>,
    lanes: usize,
    json: bool,
}

impl Arguments {
    fn read(mut given: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut arguments = Self {
            rounds: 1,
            seed: fastrand::u64(..SEEDS),
            kept: kept_seeds(KEPT_SEEDS)?,
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
                    arguments.kept.clear();
                }
                "--fault" => arguments.faults.push(Fault::named(&value)?),
                _ => return Err(format!("{name} is unknown.")),
            }
        }
        if arguments.faults.is_empty() {
            arguments.faults = Fault::ALL.to_vec();
        }
        Ok(arguments)
    }
}

/// Reads the file of seeds: a line each, the fault and the seed; `#` begins a comment.
fn kept_seeds(text: &str) -> Result<Vec<(Fault, u64)>, String> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines
        .filter(|line| !line.is_empty())
        .map(|line| {
            let (name, seed) = line.split_once(' ').unwrap_or((line, ""));
            let seed = seed.trim().parse();
            let seed = seed.map_err(|_error| format!("There is no seed in the line {line}."))?;
            Ok((Fault::named(name)?, seed))
        })
        .collect()
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
    if rows.iter().any(|row| row.verdict().is_failure()) {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
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
    let kept: Arc<[_]> = arguments.kept.into();
    let (done, mut results) = mpsc::channel(1);
    let mut lanes = JoinSet::new();
    for _ in 0..arguments.lanes.max(1) {
        let (order, layer, done) = (Arc::clone(&order), Arc::clone(&layer), done.clone());
        let kept = Arc::clone(&kept);
        lanes.spawn(async move {
            let next = || order.lock().unwrap().pop();
            while let Some((place, fault)) = next() {
                let kept = kept.iter().filter(|(of, _)| *of == fault).map(|(_, seed)| *seed);
                let (rounds, seed) = (arguments.rounds, arguments.seed);
                let row = play(fault, rounds, seed, kept.collect(), &layer).await;
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

/// Plays the rounds of one row and the kept seeds of its fault. Where too many rounds
/// hit nothing, the row is begun again with another seed.
async fn play(fault: Fault, rounds: usize, seed: u64, kept: Vec<u64>, layer: &Path) -> Row {
    let mut row = Row::new(fault, rounds);
    play_once(fault, &mut row, seed, &kept, layer).await;
    for _ in 1..TRIES {
        if row.verdict() != Verdict::Untested || rounds == 0 {
            break;
        }
        let seed = fastrand::u64(..SEEDS);
        eprintln!("{:<18} {}; it is begun again with the seed {seed}", row.name(), row.hits());
        row.begin_again();
        play_once(fault, &mut row, seed, &[], layer).await;
    }
    row
}

/// Plays rounds in one field. A panic ends the row, not the others.
async fn play_once(fault: Fault, row: &mut Row, seed: u64, kept: &[u64], layer: &Path) {
    let mut field = match unbroken(Box::pin(Field::start(fault, layer))).await {
        Ok(field) => field,
        Err(why) => return row.break_off(why),
    };
    let logs = Path::new(env!("CARGO_TARGET_TMPDIR")).join("chaos").join(fault.name());
    let mut fresh = seed..;
    let mut kept = kept.iter().copied();
    loop {
        let next = if row.wants_more() { fresh.next() } else { kept.next() };
        let Some(seed) = next else { break };
        let mut rng = fastrand::Rng::with_seed(seed ^ (fault as u64) << 32);
        let began = Instant::now();
        let round = unbroken(Box::pin(Round::play(fault, &mut field, &mut rng))).await;
        if let Ok(round) = &round {
            tell(fault, seed, round, began);
        }
        field.keep_logs(&logs);
        if !round.as_ref().is_ok_and(Round::is_clean) {
            eprintln!("  The logs are in {}.", logs.display());
            eprintln!("  To play this round in every run, add to tests/chaos/seeds:");
            eprintln!("  {} {seed}", fault.name());
        }
        match round {
            Ok(round) => row.add(round),
            Err(why) => return row.break_off(format!("the round with seed {seed}: {why}")),
        }
    }
    match unbroken(Box::pin(field.stop())).await {
        Ok(left) => row.add_left(left),
        Err(why) => row.break_off(why),
    }
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
fn tell(fault: Fault, seed: u64, round: &Round, began: Instant) {
    eprintln!(
        "{:<18} seed {seed:>6}: {} hit, back after {:.1} s, {:.1} s in all{}",
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
