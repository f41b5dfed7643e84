//! The table, a row a fault, and the same as JSON.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::fault::Fault;
use super::field::LEASE;
use super::round::Round;

/// What the rounds of one fault found.
#[derive(Debug)]
pub(crate) struct Row {
    fault: Fault,
    wanted: usize,
    /// Rounds in which the fault hit a running attempt.
    rounds: usize,
    /// Rounds in which it did not.
    missed: usize,
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
        self.rounds < self.wanted && self.missed <= 2 * self.wanted
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

    /// `ok` only when all rounds hit something and nothing was lost, paid twice, wrong
    /// or left.
    pub(crate) fn verdict(&self) -> &'static str {
        let damage = self.lost + self.paid_twice + self.wrong + self.left + self.faults_in_books;
        if self.broken.is_some() {
            "BROKEN"
        } else if damage > 0 {
            "FAILED"
        } else if self.wanted == 0 || self.rounds < self.wanted {
            "UNTESTED"
        } else {
            "ok"
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
            "verdict": self.verdict(),
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
    let rows: Vec<_> = rows.iter().map(Row::json).collect();
    json!({ "chaos": rows, "seed": seed, "lease_secs": LEASE.as_secs() }).to_string()
}

/// All rows as a table.
pub(crate) fn table(rows: &[Row], seed: u64) -> String {
    let mut text = format!(
        "{:<18} {:>6} {:>5} {:>5} {:>5} {:>6} {:>6} {:>5} {:>13} {:>13}  verdict\n",
        "fault", "rounds", "jobs", "hit", "lost", "twice", "wrong", "left", "recovery s", "back s"
    );
    for row in rows {
        let line = format!(
            "{:<18} {:>6} {:>5} {:>5} {:>5} {:>6} {:>6} {:>5} {:>13} {:>13}  {}",
            row.fault.name(),
            row.rounds,
            row.jobs,
            row.hit,
            row.lost,
            row.paid_twice,
            row.wrong,
            row.left,
            Times::of(&row.delivered).words(),
            Times::of(&row.back).words(),
            row.verdict()
        );
        writeln!(text, "{line}").expect("a string takes everything");
        if let Some(why) = &row.broken {
            writeln!(text, "  {}", why.lines().next().unwrap_or_default())
                .expect("a string takes everything");
        }
    }
    writeln!(
        text,
        "\nLease {} s, seed {seed}. hit: running attempts; twice: jobs paid twice; wrong: answers wrong or\n\
         doubled; left: containers. Times are p50 / max, from the fault until the last job that it hit was\n\
         delivered (recovery) and from the end of its cause until every node took work again (back).",
        LEASE.as_secs()
    )
    .expect("a string takes everything");
    text
}
