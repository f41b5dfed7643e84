//! Every call of the protocol (`docs/protocol.md`): request and response types,
//! one function each.
//!
//! [`Rpc`] is cheap to clone and shared by all tasks of a process; its calls run
//! over one pooled HTTP client. Requests are built by the `postgrest` crate and
//! sent by [`wire`](super::wire). A call that found the control plane away or busy is
//! repeated a few times with jitter: every call may be repeated, because ids are
//! made by the caller. A token that is no longer believed is renewed once.

mod batch;
mod error;
mod fleet;
mod history;
mod job;
mod node;
mod operator;
mod terms;

use std::sync::Arc;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use reqwest::StatusCode;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use self::batch::{Batch, BatchItem, BatchPage, SubmitBatch, SubmittedBatch};
pub use self::error::{Refusal, RpcError, UnexpectedAnswer};
pub use self::fleet::{
    CommandArgs, CommandKind, GivenCommand, Maintenance, NodeCommand, NodeDetails, OwnedNode, Stop,
    StoppedNode,
};
pub use self::history::{
    Chain, Choice, Explanation, FailedAttempt, FailedJob, SeenOffer, StoryLine, ToldAttempt,
    ToldEntry, ToldWaiting,
};
pub use self::job::{
    AttemptState, Balance, Enrolment, Job, JobAttempt, JobKind, JobState, NodeName, OwnerEarnings,
    Quote, Reason, SubmitJob, SubmittedJob, Usage, Whoami,
};
pub use self::node::{
    Claim, CommandAnswer, CompleteAttempt, Completion, Earnings, FailAttempt, Failure, FailureCode,
    Heartbeat, Inventory, InventoryGpu, Leave, NodeStanding, NodeStatus, Offer, OfferedAttempt,
    OfferedImage, OfferedModel, Offering, Registration, StartedAttempt,
};
pub use self::operator::{
    CreditGrant, Finding, FindingLevel, Health, LedgerProof, Overview, OverviewModel, OverviewNodes,
};
pub use self::terms::{JobTerms, Needs};
use super::ControlPlane;
use super::session::Session;
use super::wire::Wire;

/// How long one try of a call may take. The database gives up after 8 s, so
/// that its own words arrive first.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a call is repeated while the control plane is away or busy.
const REPEATS: usize = 3;

/// The calls of the protocol.
#[derive(Clone)]
pub struct Rpc {
    wire: Arc<Wire>,
    session: Option<Session>,
}

impl std::fmt::Debug for Rpc {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("Rpc").field(self.control()).finish()
    }
}

/// The arguments of a call that takes none: an empty object.
#[derive(Serialize)]
struct NoArguments {}

impl Rpc {
    /// Makes calls as the holder of a session.
    pub fn new(session: Session) -> Self {
        let wire = Arc::new(Wire::new(session.control().clone()));
        Self { wire, session: Some(session) }
    }

    /// Makes calls as anybody: `overview` alone is of use.
    pub fn anonymous(control: ControlPlane) -> Self {
        Self { wire: Arc::new(Wire::new(control)), session: None }
    }

    /// Returns the session that calls are made under.
    pub fn session(&self) -> Option<&Session> {
        self.session.as_ref()
    }

    /// Returns the control plane that is called.
    pub fn control(&self) -> &ControlPlane {
        self.wire.control()
    }

    /// Makes a call, repeating it a few times while the control plane is away.
    async fn call<A, T>(&self, name: &'static str, arguments: &A) -> Result<T, RpcError>
    where
        A: Serialize + Sync,
        T: DeserializeOwned,
    {
        let body = self.encode(name, arguments)?;
        let answer = repeat(|| self.exchange(name, &body)).await?;
        self.decode(name, &answer)
    }

    /// Makes a call and never repeats it, except under a renewed token.
    async fn call_once<A, T>(&self, name: &'static str, arguments: &A) -> Result<T, RpcError>
    where
        A: Serialize + Sync,
        T: DeserializeOwned,
    {
        let body = self.encode(name, arguments)?;
        let answer = self.exchange(name, &body).await?;
        self.decode(name, &answer)
    }

    /// Says that an answer is outside the protocol.
    pub(super) fn unexpected(&self, name: &str, source: UnexpectedAnswer) -> RpcError {
        self.wire.unexpected(name, source)
    }

    fn encode<A: Serialize>(&self, name: &str, arguments: &A) -> Result<String, RpcError> {
        serde_json::to_string(arguments)
            .map_err(|error| self.unexpected(name, UnexpectedAnswer::Request(error.to_string())))
    }

    fn decode<T: DeserializeOwned>(&self, name: &str, answer: &[u8]) -> Result<T, RpcError> {
        serde_json::from_slice(answer)
            .map_err(|error| self.unexpected(name, UnexpectedAnswer::Body(error)))
    }

    /// Sends one request and returns the body of the answer.
    async fn exchange(&self, name: &'static str, body: &str) -> Result<Vec<u8>, RpcError> {
        self.authorised(name, |wire| wire.postgrest().rpc(name, body)).await
    }

    /// Sends what `build` makes under the session's token; if the token is not
    /// believed, signs in anew and sends it once more.
    pub(super) async fn authorised<F>(&self, name: &str, build: F) -> Result<Vec<u8>, RpcError>
    where
        F: Fn(&Wire) -> postgrest::Builder,
    {
        let Some(session) = &self.session else {
            return self.wire.send(name, build(&self.wire), None, CALL_TIMEOUT).await;
        };
        let token = session.token().await.map_err(RpcError::SignIn)?;
        let refusal =
            match self.wire.send(name, build(&self.wire), Some(&token), CALL_TIMEOUT).await {
                Err(RpcError::Refused(refusal)) if refusal.status == StatusCode::UNAUTHORIZED => {
                    refusal
                }
                other => return other,
            };
        tracing::debug!(call = name, code = refusal.code, "token refused");
        let renewed = session.renew(&token).await.map_err(RpcError::SignIn)?;
        if renewed == token {
            return Err(RpcError::Unauthenticated(refusal));
        }
        match self.wire.send(name, build(&self.wire), Some(&renewed), CALL_TIMEOUT).await {
            Err(RpcError::Refused(refusal)) if refusal.status == StatusCode::UNAUTHORIZED => {
                Err(RpcError::Unauthenticated(refusal))
            }
            other => other,
        }
    }
}

/// Repeats what failed because the control plane was away or busy. A try that
/// timed out is not repeated: the caller has waited long enough.
pub(super) async fn repeat<F, Answer, T>(exchange: F) -> Result<T, RpcError>
where
    F: FnMut() -> Answer,
    Answer: Future<Output = Result<T, RpcError>>,
{
    let pauses = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_secs(1))
        .with_factor(3.0)
        .with_jitter()
        .with_max_times(REPEATS);
    exchange
        .retry(pauses)
        .when(|error| error.is_passing() && !matches!(error, RpcError::Timeout { .. }))
        .await
}
