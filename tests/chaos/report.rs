//! The table, a row a fault, and the same as JSON.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::fault::Fault;
use super::field::LEASE;
use super::round::Round;

/// What a row shows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    /// As many rounds as wanted hit something, and all was delivered once.
    Ok,
    /// Too few rounds hit something; those that did are fine.
    Untested,
    /// Something was lost, paid twice, wrong or left.
    Failed,
    /// The row could not be played to its end.
    Broken,
}

impl Verdict {
    /// Says whether it is one that the whole run fails for.
    pub(crate) fn is_failure(self) -> bool {
        matches!(self, Self::Failed | Self::Broken)
    }

    /// The word in the table.
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Untested => "UNTESTED",
            Self::Failed => "FAILED",
            Self::Broken => "BROKEN",
        }
    }
}

/// What the rounds of one fault found.
#[derive(Debug)]
pub(crate) struct Row {
    fault: Fault,
    wanted: usize,
    /// Rounds in which the fault hit a running attempt.
    rounds: usize,
    /// Rounds in which it did not.
    missed: usize,
    /// How many had missed when the row was begun again.
    missed_before: usize,
    jobs: usize,
    hit: usize,
    lost: usize,
    paid_twice: usize,
    wrong: usize,
    left: usize,
    faults_in_books: usize,
    delivered: Vec<Duration>,
    back: Vec<Duration>,
    /// Why the row could not be played to its end.
    broken: Option<String>,
}

impl Row {
    /// Makes an empty row that wants so many rounds.
    pub(crate) fn new(fault: Fault, wanted: usize) -> Self {
        Self {
            fault,
            wanted,
            rounds: 0,
            missed: 0,
            missed_before: 0,
            jobs: 0,
            hit: 0,
            lost: 0,
            paid_twice: 0,
            wrong: 0,
            left: 0,
            faults_in_books: 0,
            delivered: Vec::new(),
            back: Vec::new(),
            broken: None,
        }
    }

    /// Says whether more rounds are to be played. Those that hit nothing count for
    /// nothing, and are repeated, but not for ever.
    pub(crate) fn wants_more(&self) -> bool {
        self.rounds < self.wanted && self.missed - self.missed_before <= self.wanted
    }

    /// Begins again, because too many rounds missed. What was found stays.
    pub(crate) fn begin_again(&mut self) {
        self.missed_before = self.missed;
    }

    /// Says in words how often the fault hit something.
    pub(crate) fn hits(&self) -> String {
        format!("hit something in {} of {} rounds", self.rounds, self.rounds + self.missed)
    }

    /// The fault's name.
    pub(crate) fn name(&self) -> &'static str {
        self.fault.name()
    }

    /// Adds a round.
    pub(crate) fn add(&mut self, round: Round) {
        if round.hit > 0 {
            self.rounds += 1;
            self.delivered.extend(round.delivered);
            self.back.push(round.back);
        } else {
            self.missed += 1;
        }
        self.jobs += round.jobs;
        self.hit += round.hit;
        self.lost += round.lost;
        self.paid_twice += round.paid_twice;
        self.wrong += round.wrong;
        self.left += round.left;
        self.faults_in_books += round.faults_in_books;
    }

    /// Adds containers that were there after the agents had ended.
    pub(crate) fn add_left(&mut self, containers: usize) {
        self.left += containers;
    }

    /// Notes why the row ended early.
    pub(crate) fn break_off(&mut self, why: String) {
        self.broken = Some(why);
    }

    /// What the row shows. Only what went wrong is a failure: that the fault did not hit
    /// something often enough says nothing about what it hits.
    pub(crate) fn verdict(&self) -> Verdict {
        let damage = self.lost + self.paid_twice + self.wrong + self.left + self.faults_in_books;
        if self.broken.is_some() {
            Verdict::Broken
        } else if damage > 0 {
            Verdict::Failed
        } else if self.wanted == 0 || self.rounds < self.wanted {
            Verdict::Untested
        } else {
            Verdict::Ok
        }
    }

    fn json(&self) -> Value {
        let [delivered, back] = [&self.delivered, &self.back].map(|times| Times::of(times));
        json!({
            "fault": self.fault.name(),
            "rounds": self.rounds,
            "rounds_that_hit_nothing": self.missed,
            "jobs": self.jobs,
            "hit": self.hit,
            "lost": self.lost,
            "paid_twice": self.paid_twice,
            "wrong": self.wrong,
            "containers_left": self.left,
            "books_not_whole": self.faults_in_books,
            "recovery_p50_secs": delivered.p50,
            "recovery_max_secs": delivered.max,
            "node_back_p50_secs": back.p50,
            "node_back_max_secs": back.max,
            "verdict": self.verdict().word(),
            "broken": self.broken,
        })
    }
}

/// The middle and the longest of some times, in seconds.
struct Times {
    p50: Option<f64>,
    max: Option<f64>,
}

impl Times {
    fn of(times: &[Duration]) -> Self {
        let mut sorted = times.to_vec();
        sorted.sort_unstable();
        let seconds = |time: &Duration| (time.as_secs_f64() * 1000.0).round() / 1000.0;
        Self { p50: sorted.get(sorted.len() / 2).map(seconds), max: sorted.last().map(seconds) }
    }

    fn words(&self) -> String {
        let word = |time: Option<f64>| time.map_or("-".to_owned(), |time| format!("{time:.1}"));
        format!("{} / {}", word(self.p50), word(self.max))
    }
}

/// All rows as one line of JSON.
pub(crate) fn json(rows: &[Row], seed: u64) -> String {
    let untested = untested(rows);
    let rows: Vec<_> = rows.iter().map(Row::json).collect();
    json!({
        "chaos": rows,
        "untested": untested,
        "seed": seed,
        "lease_secs": LEASE.as_secs_f64(),
    })
    .to_string()
}

/// The faults that did not hit something often enough.
fn untested(rows: &[Row]) -> Vec<&'static str> {
    rows.iter().filter(|row| row.verdict() == Verdict::Untested).map(Row::name).collect()
}

/// All rows as a table.
pub(crate) fn table(rows: &[Row], seed: u64) -> String {
    let mut text = format!(
        "{:<18} {:>6} {:>6} {:>5} {:>5} {:>5} {:>6} {:>6} {:>5} {:>13} {:>13}  verdict\n",
        "fault",
        "rounds",
        "missed",
        "jobs",
        "hit",
        "lost",
        "twice",
        "wrong",
        "left",
        "recovery s",
        "back s"
    );
    for row in rows {
        let line = format!(
            "{:<18} {:>6} {:>6} {:>5} {:>5} {:>5} {:>6} {:>6} {:>5} {:>13} {:>13}  {}",
            row.name(),
            row.rounds,
            row.missed,
            row.jobs,
            row.hit,
            row.lost,
            row.paid_twice,
            row.wrong,
            row.left,
            Times::of(&row.delivered).words(),
            Times::of(&row.back).words(),
            row.verdict().word()
        );
        writeln!(text, "{line}").expect("a string takes everything");
        if let Some(why) = &row.broken {
            writeln!(text, "  {}", why.lines().next().unwrap_or_default())
                .expect("a string takes everything");
        }
    }
    writeln!(
        text,
        "\nLease {} s, seed {seed}. rounds: those that hit running attempts; missed: those that hit none;\n\
         hit: attempts; twice: jobs paid twice; wrong: answers wrong or doubled; left: containers. Times are\n\
         p50 / max, from the fault until the last job that it hit was delivered (recovery) and from the end\n\
         of its cause until every node took work again (back).",
        LEASE.as_secs_f64()
    )
    .expect("a string takes everything");
    let untested = untested(rows);
    if !untested.is_empty() {
        writeln!(text, "untested: {}", untested.join(", ")).expect("a string takes everything");
    }
    text
}
