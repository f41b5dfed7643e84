//! The report of a benchmark: a table for people, a line of JSON for each measure
//! with `--json`, and the raw run under `bench/runs/`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use serde_json::{Value, json};

/// What a measure must reach.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Floor {
    /// At most this much.
    AtMost(f64),
    /// At least this much.
    AtLeast(f64),
    /// More than this.
    MoreThan(f64),
}

impl Floor {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
            Self::MoreThan(limit) => value > limit,
        }
    }

    /// Words the limit and whether the value keeps it.
    fn verdict(self, value: f64) -> String {
        let words = match self {
            Self::AtMost(limit) => format!("at most {limit}"),
            Self::AtLeast(limit) => format!("at least {limit}"),
            Self::MoreThan(limit) => format!("more than {limit}"),
        };
        format!("{words}: {}", if self.holds(value) { "reached" } else { "MISSED" })
    }
}

/// One measure of a benchmark.
struct Measure {
    name: &'static str,
    value: f64,
    unit: &'static str,
    floor: Option<Floor>,
    goal: Option<Floor>,
}

/// Collects measures and raw samples, then prints and keeps them.
pub(crate) struct Report {
    bench: &'static str,
    as_json: bool,
    keep: bool,
    check: bool,
    measures: Vec<Measure>,
    samples: Vec<Value>,
}

impl Report {
    /// Makes an empty report, reading `--json`, `--check` and `--no-save` from the
    /// command line.
    pub(crate) fn from_arguments(bench: &'static str) -> Self {
        let has = |name: &str| std::env::args().skip(1).any(|argument| argument == name);
        Self {
            bench,
            as_json: has("--json"),
            keep: !has("--no-save"),
            check: has("--check"),
            measures: Vec::new(),
            samples: Vec::new(),
        }
    }

    /// Adds a measure without a floor.
    pub(crate) fn add(&mut self, name: &'static str, value: f64, unit: &'static str) {
        self.measures.push(Measure { name, value, unit, floor: None, goal: None });
    }

    /// Adds a measure that must reach a floor.
    pub(crate) fn add_with_floor(
        &mut self,
        name: &'static str,
        value: f64,
        unit: &'static str,
        floor: Floor,
    ) {
        self.measures.push(Measure { name, value, unit, floor: Some(floor), goal: None });
    }

    /// Adds a measure with a goal, and maybe a floor. Only a missed floor fails a
    /// benchmark.
    pub(crate) fn add_with_goal(
        &mut self,
        name: &'static str,
        value: f64,
        unit: &'static str,
        floor: Option<Floor>,
        goal: Floor,
    ) {
        self.measures.push(Measure { name, value, unit, floor, goal: Some(goal) });
    }

    /// Writes no raw run, because this one is not the whole.
    pub(crate) fn keep_nothing(&mut self) {
        self.keep = false;
    }

    /// Keeps one raw sample for the run's file.
    pub(crate) fn sample(&mut self, sample: Value) {
        self.samples.push(sample);
    }

    /// Prints the report and writes the raw run. Returns whether the process
    /// should end well: with `--check`, only when every floor is reached.
    ///
    /// # Errors
    /// The raw run cannot be written.
    #[allow(clippy::print_stdout, reason = "a benchmark's report is its standard output")]
    fn finish(self) -> std::io::Result<bool> {
        print!("{}", if self.as_json { self.lines() } else { self.table() });
        if self.keep {
            let path = self.write_run()?;
            eprintln!("The raw run is in {}.", path.display());
        }
        let reached =
            self.measures.iter().all(|m| m.floor.is_none_or(|floor| floor.holds(m.value)));
        Ok(reached || !self.check)
    }

    /// Finishes the report as the end of a program.
    pub(crate) fn end(self) -> ExitCode {
        match self.finish() {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("Error: The raw run cannot be written: {error}.");
                ExitCode::FAILURE
            }
        }
    }

    fn lines(&self) -> String {
        let mut text = String::new();
        for measure in &self.measures {
            let line = self.measure_json(measure);
            writeln!(text, "{line}").expect("a string takes everything");
        }
        text
    }

    fn measure_json(&self, measure: &Measure) -> Value {
        let mut line = json!({
            "bench": self.bench,
            "measure": measure.name,
            "value": (measure.value * 1000.0).round() / 1000.0,
            "unit": measure.unit,
        });
        for (name, limit) in [("floor", measure.floor), ("goal", measure.goal)] {
            if let Some(limit) = limit {
                line[name] = limit.verdict(measure.value).into();
            }
        }
        line
    }

    fn table(&self) -> String {
        let width = self.measures.iter().map(|m| m.name.len()).max().unwrap_or(0);
        let verdicts: Vec<[String; 2]> = self
            .measures
            .iter()
            .map(|m| {
                [m.floor, m.goal]
                    .map(|limit| limit.map_or(String::new(), |limit| limit.verdict(m.value)))
            })
            .collect();
        let floors = verdicts.iter().map(|[floor, _]| floor.len()).max().unwrap_or(0);
        let any_goal = self.measures.iter().any(|m| m.goal.is_some());
        let heading = if any_goal { "goal" } else { "" };
        let first = format!(
            "{:<width$} {:>10} {:<9} {:<floors$}  {heading}",
            "measure", "value", "unit", "floor"
        );
        let mut text = format!("{}\n", first.trim_end());
        for (measure, [floor, goal]) in self.measures.iter().zip(&verdicts) {
            let line = format!(
                "{:<width$} {:>10.3} {:<9} {floor:<floors$}  {goal}",
                measure.name, measure.value, measure.unit
            );
            writeln!(text, "{}", line.trim_end()).expect("a string takes everything");
        }
        text
    }

    /// Writes `bench/runs/<date>-<host>/<bench>.jsonl`: the machine, every sample,
    /// every measure, an object a line.
    fn write_run(&self) -> std::io::Result<PathBuf> {
        let now = jiff::Timestamp::now();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/runs").join(format!(
            "{}-{}",
            now.strftime("%Y-%m-%d"),
            host()
        ));
        std::fs::create_dir_all(&folder)?;
        let path = folder.join(format!("{}.jsonl", self.bench));
        let mut text = format!("{}\n", json!({ "run": machine(self.bench, now) }));
        for sample in &self.samples {
            writeln!(text, "{}", json!({ "sample": sample })).expect("a string takes everything");
        }
        for measure in &self.measures {
            let line = self.measure_json(measure);
            writeln!(text, "{line}").expect("a string takes everything");
        }
        std::fs::write(&path, text)?;
        Ok(path)
    }
}

/// The name of this machine, safe for a path.
fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String =
        name.trim().chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
    if name.is_empty() { "unknown".to_owned() } else { name }
}

/// Describes what was measured and on what.
fn machine(bench: &str, now: jiff::Timestamp) -> Value {
    let processor = std::fs::read_to_string("/proc/cpuinfo")
        .unwrap_or_default()
        .lines()
        .find_map(|line| line.strip_prefix("model name").map(str::to_owned))
        .map(|rest| rest.trim_start_matches([' ', '\t', ':']).to_owned());
    let memory_gb = std::fs::read_to_string("/proc/meminfo")
        .unwrap_or_default()
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok())
        .map(|kilobytes: f64| (kilobytes / 1e6).round());
    let load = std::fs::read_to_string("/proc/loadavg")
        .ok()
        .and_then(|text| text.split_whitespace().next().map(str::to_owned));
    json!({
        "bench": bench,
        "time": now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        "version": env!("CARGO_PKG_VERSION"),
        "commit": output_of("git", &["describe", "--always", "--dirty"]),
        "kernel": output_of("uname", &["-sr"]),
        "postgres": output_of("psql", &["--version"]),
        "processor": processor,
        "cores": std::thread::available_parallelism().map(usize::from).ok(),
        "memory_gb": memory_gb,
        "load_1m": load,
    })
}

/// The first line that a program prints, if it can be run.
fn output_of(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).lines().next()?.trim().to_owned())
}
