//! The reading side of a job: its text while it is written, then the job.
//!
//! [`JobStream`] joins the job's private topic, then submits, so that nothing is
//! missed; it asks the node to send again what got lost, and asks the control
//! plane which attempt is the current one. Messages are hints: with Realtime
//! refused, full or silent, the job is polled and its text comes whole at the
//! end.

mod assembly;

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use url::Url;

pub use self::assembly::Delta;
use self::assembly::{Assembly, Piece, Verdict};
use super::realtime::{
    Channel, ChannelEvent, EndpointError, JoinOptions, Realtime, RealtimeEndpoint, SocketState,
};
use super::rpc::{AttemptState, Job, JobState, Rpc, RpcError, SubmitJob};
use super::session::Session;
use crate::id::{AttemptId, JobId, UserId};

/// How long a reader waits for what. The defaults suit production; tests shorten
/// them.
#[derive(Clone, Copy, Debug)]
pub struct StreamTiming {
    /// The longest wait for the join before the job is submitted anyway.
    pub join: Duration,
    /// The first and the longest pause between two looks at the job while the
    /// topic is joined.
    pub look: (Duration, Duration),
    /// The same while it is not.
    pub look_alone: (Duration, Duration),
    /// The same after the node said that nothing follows.
    pub look_at_end: (Duration, Duration),
    /// The first and the longest pause between two requests to send again.
    pub resend: (Duration, Duration),
    /// How long the control plane may be away before the reader gives up.
    pub patience: Duration,
}

impl Default for StreamTiming {
    fn default() -> Self {
        Self {
            join: Duration::from_millis(1500),
            look: (Duration::from_secs(1), Duration::from_secs(5)),
            look_alone: (Duration::from_millis(200), Duration::from_secs(2)),
            look_at_end: (Duration::from_millis(100), Duration::from_secs(2)),
            resend: (Duration::from_millis(150), Duration::from_secs(1)),
            patience: Duration::from_secs(300),
        }
    }
}

/// What happens to a job.
#[derive(Clone, Debug)]
pub enum JobEvent {
    /// Output that follows what was given out before.
    Text(String),
    /// What was given out before is void, because a later attempt writes
    /// something else. This is the output so far.
    Instead(String),
    /// The job stands differently than before: another state, another attempt,
    /// or another reason to wait.
    Changed(Box<Job>),
    /// The control plane does not answer; the reader keeps trying.
    Away(String),
    /// The job has ended, and all its output was given out.
    Ended(Box<Job>),
}

/// When what happened, seen from here.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct StreamMeasure {
    /// Milliseconds from the request to the answer of `submit_job`.
    pub submit_ms: f64,
    /// Milliseconds from the request to the first text.
    pub first_text_ms: Option<f64>,
    /// Milliseconds from the request to the last text.
    pub last_text_ms: Option<f64>,
    /// Milliseconds from the request until the job was seen to have ended.
    pub ended_ms: Option<f64>,
    /// Whether text came as it was written, rather than from the job's row.
    pub streamed: bool,
}

impl StreamMeasure {
    /// Tokens a second between the first and the last text.
    pub fn tokens_per_second(&self, output_tokens: u64) -> Option<f64> {
        let seconds = (self.last_text_ms? - self.first_text_ms?) / 1000.0;
        // The first token came before the time that is measured began.
        (self.streamed && seconds > 0.0 && output_tokens > 1)
            .then(|| (output_tokens - 1) as f64 / seconds)
    }
}

/// A job that is read.
#[derive(Debug)]
pub struct JobStream {
    rpc: Rpc,
    channel: Option<Channel>,
    timing: StreamTiming,
    job: Job,
    assembly: Assembly,
    events: VecDeque<JobEvent>,
    look: Pause,
    resend: Pause,
    /// Since when the control plane has not answered.
    away_since: Option<Instant>,
    /// The job was to be looked at because of a message.
    look_now: bool,
    requested: Instant,
    submitted: Instant,
    first_text: Option<Instant>,
    last_text: Option<Instant>,
    ended: Option<Instant>,
    streamed: bool,
    finished: bool,
}

/// A pause that grows, with jitter, until it is reset.
#[derive(Debug)]
struct Pause {
    next: Duration,
    most: Duration,
    due: Option<Instant>,
}

impl Pause {
    fn new((first, most): (Duration, Duration)) -> Self {
        let mut pause = Self { next: first, most, due: None };
        pause.grow();
        pause
    }

    fn idle((first, most): (Duration, Duration)) -> Self {
        Self { next: first, most, due: None }
    }

    /// Sets when it is due, and makes the next one longer.
    fn grow(&mut self) {
        self.due = Some(Instant::now() + self.next.mul_f64(0.8 + 0.4 * fastrand::f64()));
        self.next = self.next.mul_f64(1.5).min(self.most);
    }
}

#[derive(Deserialize)]
struct End {
    attempt: AttemptId,
    length: u64,
}

#[derive(Deserialize)]
struct StateHint {
    state: JobState,
    #[serde(default)]
    attempt: Option<AttemptId>,
}

#[derive(Serialize)]
struct Resend {
    attempt: AttemptId,
    from: u64,
}

/// Opens the socket over which the holder of a session reads its jobs. It closes
/// with the last handle, or when `shutdown` is cancelled.
pub fn open_realtime(
    session: &Session,
    shutdown: CancellationToken,
) -> Result<Realtime, EndpointError> {
    let control = session.control();
    // A base URL was a URL before it was checked.
    let base = Url::parse(&control.base_url().to_string()).map_err(|_error| EndpointError::Host)?;
    let endpoint = RealtimeEndpoint::new(&base, control.publishable_key())?;
    Ok(Realtime::spawn(endpoint, session.newest_token(), shutdown))
}

/// Returns the private topic of a job's stream.
pub fn job_topic(user: UserId, job: JobId) -> String {
    format!("job:{user}:{job}")
}

impl JobStream {
    /// Joins the topic of a new job, then submits it. Without `realtime`, or if
    /// the join takes too long, the job is submitted anyway.
    ///
    /// # Errors
    /// When the job is refused or the control plane cannot be reached.
    pub async fn submit(
        rpc: &Rpc,
        realtime: Option<&Realtime>,
        request: &SubmitJob,
        timing: StreamTiming,
    ) -> Result<Self, RpcError> {
        let channel = Self::join(rpc, realtime, request.id, timing).await?;
        let requested = Instant::now();
        let submitted = rpc.submit_job(request).await?;
        Ok(Self::new(rpc, channel, timing, submitted.job, requested))
    }

    /// Reads a job that was submitted before.
    ///
    /// # Errors
    /// When there is no such job, or the control plane cannot be reached.
    pub async fn attach(
        rpc: &Rpc,
        realtime: Option<&Realtime>,
        job: JobId,
        timing: StreamTiming,
    ) -> Result<Self, RpcError> {
        let channel = Self::join(rpc, realtime, job, timing).await?;
        let requested = Instant::now();
        let job = rpc.get_job(job).await?;
        let mut stream = Self::new(rpc, channel, timing, job, requested);
        // What was written before is with the node.
        stream.ask_resend();
        Ok(stream)
    }

    /// Joins the topic of a job and waits for the answer, but not for long, and
    /// not when there is no socket. The channel keeps trying meanwhile.
    async fn join(
        rpc: &Rpc,
        realtime: Option<&Realtime>,
        job: JobId,
        timing: StreamTiming,
    ) -> Result<Option<Channel>, RpcError> {
        let (Some(realtime), Some(session)) = (realtime, rpc.session()) else {
            return Ok(None);
        };
        // The topic has the user's id in it, which the login tells.
        session.token().await.map_err(RpcError::SignIn)?;
        let Some(signed_in) = session.signed_in() else {
            return Ok(None);
        };
        let topic = job_topic(UserId::from_uuid(signed_in.subject), job);
        let mut channel = realtime.join(&topic, JoinOptions::default());
        let mut socket = realtime.state();
        let no_socket = socket.wait_for(|state| {
            matches!(
                state,
                SocketState::Waiting { .. } | SocketState::Refused { .. } | SocketState::Closed
            )
        });
        tokio::select! {
            biased;
            () = answer_to_join(&mut channel) => {}
            _ = no_socket => tracing::debug!("no realtime, the job is polled meanwhile"),
            () = tokio::time::sleep(timing.join) => {
                tracing::debug!("the job's topic is not joined yet, going on meanwhile");
            }
        }
        Ok(Some(channel))
    }

    fn new(
        rpc: &Rpc,
        channel: Option<Channel>,
        timing: StreamTiming,
        job: Job,
        requested: Instant,
    ) -> Self {
        let joined = channel.as_ref().is_some_and(Channel::is_joined);
        let mut stream = Self {
            rpc: rpc.clone(),
            channel,
            timing,
            job: job.clone(),
            assembly: Assembly::default(),
            events: VecDeque::new(),
            look: Pause::new(if joined { timing.look } else { timing.look_alone }),
            resend: Pause::idle(timing.resend),
            away_since: None,
            look_now: false,
            requested,
            submitted: Instant::now(),
            first_text: None,
            last_text: None,
            ended: None,
            streamed: false,
            finished: false,
        };
        stream.events.push_back(JobEvent::Changed(Box::new(job.clone())));
        stream.believe(job);
        stream
    }

    /// Returns the job as it was last seen.
    pub fn job(&self) -> &Job {
        &self.job
    }

    /// Returns the output that was given out.
    pub fn text(&self) -> &str {
        self.assembly.shown()
    }

    /// Says when what happened.
    pub fn measure(&self) -> StreamMeasure {
        let since = |at: Instant| at.duration_since(self.requested).as_secs_f64() * 1000.0;
        StreamMeasure {
            submit_ms: since(self.submitted),
            first_text_ms: self.first_text.map(since),
            last_text_ms: self.last_text.map(since),
            ended_ms: self.ended.map(since),
            streamed: self.streamed,
        }
    }

    /// Cancels the job; [`JobStream::next`] goes on until it is settled.
    ///
    /// # Errors
    /// When the control plane cannot be reached.
    pub async fn cancel(&mut self) -> Result<(), RpcError> {
        let job = self.rpc.cancel_job(self.job.id).await?;
        self.look = Pause::new(self.timing.look_at_end);
        self.believe(job);
        Ok(())
    }

    /// Waits for what happens next. After [`JobEvent::Ended`] comes nothing
    /// more. Safe to cancel.
    ///
    /// # Errors
    /// When the control plane refuses to tell about the job, or is away for
    /// longer than the reader's patience.
    pub async fn next(&mut self) -> Result<Option<JobEvent>, RpcError> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            if self.finished {
                return Ok(None);
            }
            if self.look_now {
                self.look_at_job().await?;
                continue;
            }
            tokio::select! {
                biased;
                message = receive(&mut self.channel) => match message {
                    Some(event) => self.take_in(event),
                    // The socket is over; the timer remains.
                    None => self.channel = None,
                },
                () = at(self.resend.due) => self.ask_resend(),
                () = at(self.look.due) => self.look_now = true,
            }
        }
    }

    /// Reads to the end and returns the job.
    ///
    /// # Errors
    /// As [`JobStream::next`].
    pub async fn finish(&mut self) -> Result<Job, RpcError> {
        while let Some(event) = self.next().await? {
            if let JobEvent::Ended(job) = event {
                return Ok(*job);
            }
        }
        Ok(self.job.clone())
    }

    /// Asks the control plane how the job stands. Safe to cancel: it is asked
    /// again.
    async fn look_at_job(&mut self) -> Result<(), RpcError> {
        match self.rpc.get_job(self.job.id).await {
            Ok(job) => {
                self.look_now = false;
                self.away_since = None;
                self.look.grow();
                self.believe(job);
                Ok(())
            }
            Err(error) if error.is_passing() => {
                self.look_now = false;
                self.look.grow();
                let since = match self.away_since {
                    Some(since) => since,
                    None => {
                        self.events.push_back(JobEvent::Away(error.to_string()));
                        *self.away_since.insert(Instant::now())
                    }
                };
                if since.elapsed() > self.timing.patience { Err(error) } else { Ok(()) }
            }
            Err(error) => Err(error),
        }
    }

    /// Takes a call's word for how the job stands.
    fn believe(&mut self, job: Job) {
        let current = match (&job.attempt, job.state) {
            (Some(attempt), _) => match attempt.state {
                AttemptState::Offered | AttemptState::Running | AttemptState::Completed => {
                    Some(attempt.id)
                }
                // What a node writes after its attempt is over is not read.
                AttemptState::Failed
                | AttemptState::Lost
                | AttemptState::Cancelled
                | AttemptState::Unknown => {
                    self.assembly.bury(attempt.id);
                    None
                }
            },
            (None, _) => None,
        };
        let pieces = self.assembly.set_current(current);
        self.give_out(pieces, true);
        if !self.assembly.has_gap() {
            self.resend = Pause::idle(self.timing.resend);
        }
        if differs(&self.job, &job) {
            let joined = self.channel.as_ref().is_some_and(Channel::is_joined);
            self.look = Pause::new(if joined { self.timing.look } else { self.timing.look_alone });
            if !job.state.has_ended() {
                self.events.push_back(JobEvent::Changed(Box::new(job.clone())));
            }
        }
        self.job = job;
        if self.job.state.has_ended() && !self.finished {
            if let Some(output) = &self.job.output {
                let rest = self.assembly.finish(output);
                self.give_out(rest.into_iter().collect(), false);
            }
            self.ended = Some(Instant::now());
            self.finished = true;
            self.channel = None;
            self.events.push_back(JobEvent::Ended(Box::new(self.job.clone())));
        }
    }

    fn give_out(&mut self, pieces: Vec<Piece>, streamed: bool) {
        for piece in pieces {
            let now = Instant::now();
            self.first_text.get_or_insert(now);
            self.last_text = Some(now);
            self.streamed |= streamed;
            self.events.push_back(match piece {
                Piece::Text(text) => JobEvent::Text(text),
                Piece::Instead(text) => JobEvent::Instead(text),
            });
        }
    }

    /// Takes a message in. Whatever is not of the protocol is dropped: anybody
    /// who may write to the topic may write nonsense.
    fn take_in(&mut self, event: ChannelEvent) {
        match event {
            ChannelEvent::Broadcast { event, payload, .. } => match event.as_str() {
                "delta" => self.take_delta(payload),
                "end" => self.take_end(payload),
                "state" => self.take_hint(payload),
                _ => {}
            },
            ChannelEvent::Joined => {
                // Something may have been missed while the topic was not joined.
                self.look = Pause::new(self.timing.look);
                self.ask_resend();
                self.look_now = true;
            }
            ChannelEvent::Lost | ChannelEvent::Refused { .. } => {
                self.look = Pause::new(self.timing.look_alone);
            }
        }
    }

    fn take_delta(&mut self, payload: Value) {
        let Ok(delta) = serde_json::from_value::<Delta>(payload) else { return };
        let mut pieces = Vec::new();
        let verdict = self.assembly.delta(delta, &mut pieces);
        if !pieces.is_empty() {
            // What arrives shows that the next request would be the first again.
            self.resend = Pause::idle(self.timing.resend);
        }
        self.give_out(pieces, true);
        match verdict {
            Verdict::Taken => {}
            Verdict::Gap => self.mind_gap(),
            Verdict::Unknown => self.look_now = true,
        }
    }

    fn take_end(&mut self, payload: Value) {
        let Ok(end) = serde_json::from_value::<End>(payload) else { return };
        self.assembly.end(end.attempt, end.length);
        if Some(end.attempt) == self.assembly.current() {
            self.look = Pause::new(self.timing.look_at_end);
            if self.assembly.has_gap() {
                self.mind_gap();
            }
        }
    }

    fn take_hint(&mut self, payload: Value) {
        let Ok(hint) = serde_json::from_value::<StateHint>(payload) else { return };
        let same_attempt = hint.attempt.is_none() || hint.attempt == self.assembly.current();
        // That the known attempt went from offered to running changes nothing
        // for a reader, and is not worth a call.
        let started = same_attempt
            && self.assembly.current().is_some()
            && matches!(hint.state, JobState::Assigned | JobState::Running);
        if !started {
            self.look_now = true;
        }
    }

    /// Has the node asked for what is missing: at once when it is the first
    /// gap, else when the last request had its time.
    fn mind_gap(&mut self) {
        if self.resend.due.is_none() {
            self.ask_resend();
        }
    }

    fn ask_resend(&mut self) {
        self.resend.due = None;
        let (Some(attempt), Some(channel)) = (self.assembly.current(), &self.channel) else {
            return;
        };
        if self.assembly.is_whole() {
            return;
        }
        let request = Resend { attempt, from: self.assembly.received() };
        // A request that is not sent, or lost, is made again below; and the job's
        // row has it all in the end.
        drop(channel.send("resend", &request));
        if self.assembly.has_gap() {
            self.resend.grow();
        }
    }
}

/// Says whether two looks at a job tell a reader different things.
fn differs(before: &Job, after: &Job) -> bool {
    let attempt = |job: &Job| job.attempt.as_ref().map(|attempt| (attempt.id, attempt.state));
    let waiting = |job: &Job| job.waiting.as_ref().map(|reason| reason.code.clone());
    before.state != after.state
        || attempt(before) != attempt(after)
        || waiting(before) != waiting(after)
}

/// Waits until the server has answered the join, whichever way.
async fn answer_to_join(channel: &mut Channel) {
    loop {
        match channel.recv().await {
            Some(ChannelEvent::Joined | ChannelEvent::Refused { .. }) | None => return,
            Some(ChannelEvent::Broadcast { .. } | ChannelEvent::Lost) => {}
        }
    }
}

/// Waits for a message; for ever without a channel.
async fn receive(channel: &mut Option<Channel>) -> Option<ChannelEvent> {
    match channel {
        Some(channel) => channel.recv().await,
        None => std::future::pending().await,
    }
}

/// Waits until a time; for ever without one.
async fn at(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
