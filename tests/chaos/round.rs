//! One round: jobs are asked for, a fault strikes at a random moment, and when all is
//! over everything is looked at: each job, its money, its answer as it was streamed
//! and as it is kept, the books, the containers.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use infernet::agent::admin::Counters;
use infernet::control::job_stream::{JobStream, StreamTiming};
use infernet::control::rpc::{Explanation, JobKind, JobState, RpcError, SubmitJob, Usage};
use infernet::id::JobId;
use serde_json::json;
use tokio::task::JoinSet;

use super::engine::{JOB, MODEL, PAUSE_MS, answer};
use super::fault::{Fault, Strike};
use super::field::{Asker, Field, LEASE};

/// Jobs before the fault, and jobs that are asked for while it lasts.
const JOBS_BEFORE: usize = 10;
const JOBS_DURING: usize = 2;

/// The same where each is a container of its own, which takes a while to start.
const CONTAINERS_BEFORE: usize = 4;
const CONTAINERS_DURING: usize = 1;

/// The most words of an answer.
const WORDS: u32 = 60;

/// After so long a job is lost.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a refused or failed call is repeated after.
const AGAIN: Duration = Duration::from_millis(100);

/// What a round found.
#[derive(Debug, Default)]
pub(crate) struct Round {
    /// Jobs that were asked for.
    pub(crate) jobs: usize,
    /// Attempts that were running where the fault struck.
    pub(crate) hit: usize,
    /// Jobs that were not completed.
    pub(crate) lost: usize,
    /// Jobs whose price was taken more than once.
    pub(crate) paid_twice: usize,
    /// Answers with a byte too many, too few or another.
    pub(crate) wrong: usize,
    /// Containers that nobody needs any more.
    pub(crate) left: usize,
    /// What the proof of the ledger says against it.
    pub(crate) faults_in_books: usize,
    /// From the fault until the last job that it hit was delivered.
    pub(crate) delivered: Option<Duration>,
    /// From the end of the fault's cause until every node took work again.
    pub(crate) back: Duration,
    /// What is wrong, for people.
    pub(crate) complaints: Vec<String>,
}

/// A job and what became of it.
struct Asked {
    id: JobId,
    message: String,
    tokens: u32,
    /// What was streamed, and when the job was seen to have ended.
    ended: Result<(String, Instant), String>,
}

impl Round {
    /// Plays a round.
    pub(crate) async fn play(fault: Fault, field: &mut Field, rng: &mut fastrand::Rng) -> Self {
        let mut asking = JoinSet::new();
        let answer_time = Duration::from_millis(PAUSE_MS) * WORDS;
        let (before, during) = if fault.has_containers() {
            (CONTAINERS_BEFORE, CONTAINERS_DURING)
        } else {
            (JOBS_BEFORE, JOBS_DURING)
        };
        // The agent counts from its start; where it is killed, nobody compares.
        let counted = match fault {
            Fault::AnswerLost => Some(field.counters(0).await),
            _ => None,
        };
        for index in 0..before + during {
            let delay = if index < before {
                answer_time.mul_f64(rng.f64() / 2.0)
            } else {
                answer_time + LEASE.mul_f64(rng.f64())
            };
            let message = format!("Say {:016x}.", rng.u64(..));
            asking.spawn(ask(field.asker.clone(), fault, delay, message, rng.u32(1..=WORDS)));
        }
        tokio::time::sleep(Duration::from_millis(100) + answer_time.mul_f64(rng.f64())).await;
        field.wait_for_work(answer_time).await;
        let strike = fault.strike(field, rng).await;
        let returned = async {
            field.wait_until_back(strike.at).await;
            strike.over.elapsed()
        };
        let (asked, back) = tokio::join!(asking.join_all(), returned);
        let mut round = Self { jobs: asked.len(), back, ..Self::default() };
        round.judge(fault, field, &strike, asked).await;
        if let Some(before) = counted {
            round.compare(&before, field).await;
        }
        round
    }

    /// Looks at what the agent counts: every job is one that it has done, none failed.
    async fn compare(&mut self, before: &Counters, field: &Field) {
        let jobs = self.jobs as u64;
        let now = field.counters(before.ended + jobs).await;
        let done = now.completed - before.completed;
        if (done, now.ended - before.ended) != (jobs, jobs) {
            self.wrong += 1;
            self.complaints.push(format!(
                "of {jobs} jobs the agent counts {done} as done and {} as failed, {} as lost, {} as \
                 not handed in",
                now.failed - before.failed,
                now.lost - before.lost,
                now.undelivered - before.undelivered
            ));
        }
    }

    /// Says whether everything that was asked was delivered once, as it should be.
    pub(crate) fn is_clean(&self) -> bool {
        self.lost + self.paid_twice + self.wrong + self.left + self.faults_in_books == 0
    }

    async fn judge(&mut self, fault: Fault, field: &Field, strike: &Strike, asked: Vec<Asked>) {
        for asked in asked {
            let life = patiently(|| field.asker.rpc.explain_job(asked.id)).await;
            let job = patiently(|| field.asker.rpc.get_job(asked.id)).await;
            let hit = hit(fault, &life, strike);
            let before = self.complaints.len();
            if job.state != JobState::Completed {
                self.lost += 1;
                self.complaints.push(format!("it is {:?}, not completed", job.state));
            }
            let captures: BTreeSet<_> = life
                .ledger
                .iter()
                .filter(|entry| entry.kind == "capture")
                .map(|entry| entry.transfer)
                .collect();
            if captures.len() > 1 {
                self.paid_twice += 1;
                self.complaints.push(format!("it was paid {} times", captures.len()));
            } else if job.state == JobState::Completed && captures.is_empty() {
                self.lost += 1;
                self.complaints.push("it was not paid".to_owned());
            }
            let right = answer(&asked.message, asked.tokens);
            let used = job.usage.is_some_and(|usage| is_right(fault, &usage, asked.tokens));
            match &asked.ended {
                Ok((streamed, at)) => {
                    if job.output.as_deref() != Some(&right) || *streamed != right || !used {
                        self.wrong += 1;
                        self.complaints.push(format!(
                            "its answer, for which it used {:?}, is {:?}, streamed {streamed:?}, not \
                             {right:?}",
                            job.usage, job.output
                        ));
                    }
                    if hit > 0 {
                        let took = at.saturating_duration_since(strike.began);
                        self.delivered = self.delivered.max(Some(took));
                    }
                }
                Err(error) => {
                    if job.state == JobState::Completed {
                        self.lost += 1;
                    }
                    self.complaints.push(format!("its reader says: {error}"));
                }
            }
            self.hit += hit;
            if self.complaints.len() > before {
                self.complaints.push(format!("job {}: {}", asked.id, story(&life)));
            }
        }
        if !strike.took {
            self.hit = 0;
        }
        self.left = field.containers_left().await;
        if self.left > 0 {
            self.complaints.push(format!("{} containers are left", self.left));
        }
        let proof = patiently(|| field.world.operator.prove_ledger()).await;
        if !proof.ok {
            self.faults_in_books = 1;
            self.complaints.push(format!("the books are not whole: {proof:?}"));
        }
    }
}

/// Says whether a job used what such an answer takes.
fn is_right(fault: Fault, usage: &Usage, tokens: u32) -> bool {
    if fault.has_containers() {
        // A second that has begun counts, and so does the start of the container.
        let least = Duration::from_millis(PAUSE_MS * u64::from(tokens)).as_secs();
        return usage.seconds.is_some_and(|seconds| seconds > least) && usage.output_tokens == 0;
    }
    usage.output_tokens == u64::from(tokens) && usage.seconds.is_none()
}

/// Asks for an answer and reads it, again and again while the control plane is away.
async fn ask(asker: Asker, fault: Fault, delay: Duration, message: String, tokens: u32) -> Asked {
    tokio::time::sleep(delay).await;
    let mut request = if fault.has_containers() {
        let mut request = SubmitJob::chat(JOB, json!({"input": format!("{tokens} {message}")}));
        (request.kind, request.max_seconds) = (JobKind::Container, Some(60));
        request
    } else {
        let mut request = SubmitJob::chat(
            MODEL,
            json!({"messages": [{"role": "user", "content": message}], "temperature": 0}),
        );
        request.max_tokens = Some(tokens);
        request
    };
    request.terms.max_cost = Some("0.1".parse().unwrap());
    let ended = tokio::time::timeout(PATIENCE, read(&asker, &request)).await;
    let ended = ended.unwrap_or_else(|_slow| Err("it did not end in time".to_owned()));
    Asked { id: request.id, message, tokens, ended }
}

async fn read(asker: &Asker, request: &SubmitJob) -> Result<(String, Instant), String> {
    let timing = StreamTiming { patience: PATIENCE, ..StreamTiming::default() };
    let mut stream = loop {
        match JobStream::submit(&asker.rpc, Some(&asker.realtime), request, timing).await {
            Ok(stream) => break stream,
            Err(error) if error.is_passing() => tokio::time::sleep(AGAIN).await,
            Err(error) => return Err(error.to_string()),
        }
    };
    stream.finish().await.map_err(|error| error.to_string())?;
    Ok((stream.text().to_owned(), Instant::now()))
}

/// Counts the attempts of a job that the fault hit: those that were running, where no
/// more is known.
fn hit(fault: Fault, life: &Explanation, strike: &Strike) -> usize {
    if let Some(hit) = &strike.attempts {
        let ids = life.attempts.iter().map(|attempt| attempt.id.to_string());
        return ids.filter(|id| hit.contains(id)).count();
    }
    let target = fault.nodes()[0];
    life.attempts
        .iter()
        .filter(|attempt| {
            attempt.node.name == target
                && attempt.started_at.is_some_and(|started| started <= strike.at)
                && attempt.ended_at.is_none_or(|ended| ended > strike.at)
        })
        .count()
}

/// Tells the life of a job in a few lines.
fn story(life: &Explanation) -> String {
    life.story.iter().map(|line| format!("\n      {} {}", line.at, line.what)).collect()
}

/// Makes a call until it is answered.
async fn patiently<T, F>(call: impl Fn() -> F) -> T
where
    F: Future<Output = Result<T, RpcError>>,
{
    let limit = Instant::now() + PATIENCE;
    loop {
        match call().await {
            Ok(answer) => return answer,
            Err(error) => assert!(Instant::now() < limit, "the control plane is gone: {error}"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}
