//! A key that is signed in, and stays so.
//!
//! [`Session`] logs in with a signed event, hands out tokens that are good for
//! a while, and logs in again before they end ([`Session::run_refresh`], a loop
//! that its owner spawns) or when a server refuses one. However many tasks ask
//! at once, one login is made. Realtime channels follow the newest token
//! through [`Session::newest_token`].

mod wire;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use backon::{BackoffBuilder as _, ExponentialBuilder};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use wire::{LoginAnswer, LoginKind, LoginRequest, RefusalAnswer};

use super::{ControlError, ControlPlane, read_limited};
use crate::identity::{Keys, LoginEvent};

/// A token that is handed out is good for at least this long, or for half its
/// life where that is less.
const MIN_REMAINING: Duration = Duration::from_secs(60);

/// The most time for one attempt to log in.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a login is tried again when the network or the server fails.
const LOGIN_RETRIES: usize = 2;

/// The longest `Retry-After` that is waited for within one login.
const RETRY_AFTER_LIMIT: Duration = Duration::from_secs(5);

/// A refused token that is younger than this is not replaced: the refusal then
/// has another reason than its age.
const REFUSED_TOKEN_AGE: Duration = Duration::from_secs(5);

/// The longest sleep of the refresh loop. A machine that was suspended finds
/// out within this time that its token has ended.
const REFRESH_NAP: Duration = Duration::from_secs(30);

/// The longest pause between failed refreshes.
const REFRESH_PAUSE_LIMIT: Duration = Duration::from_secs(60);

/// The largest answer to a login that is read, in bytes.
const ANSWER_LIMIT: usize = 64 * 1024;

/// A signed-in key at one control plane. Cloning is cheap and shares the token.
#[derive(Clone)]
pub struct Session {
    inner: Arc<Inner>,
}

/// What all clones share.
struct Inner {
    /// Where to log in.
    control: ControlPlane,
    /// The key that signs.
    keys: Keys,
    /// What the key is.
    kind: LoginKind,
    /// Held during a login, so that there is only one.
    login: tokio::sync::Mutex<()>,
    /// The newest token and the newest failure.
    state: Mutex<State>,
    /// The newest token for those who follow it; empty before the first login.
    newest: watch::Sender<String>,
}

/// What a session knows.
#[derive(Default)]
struct State {
    /// The newest token.
    token: Option<Token>,
    /// The newest failed login, for those who waited for it.
    failure: Option<(Instant, SessionError)>,
}

/// A token and when it ends, by this machine's clocks.
#[derive(Clone)]
struct Token {
    /// The JWT.
    text: String,
    /// Who is signed in.
    signed_in: SignedIn,
    /// When it came, by the monotonic clock.
    since: Instant,
    /// When it came, by the wall clock.
    since_wall: SystemTime,
    /// How long it is good for.
    lifetime: Duration,
    /// How much life is left when the refresh is due; random, so that nodes
    /// that signed in together do not refresh together.
    refresh_margin: Duration,
}

/// Who is signed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignedIn {
    /// The id of the user or node: the `sub` of its tokens.
    pub subject: uuid::Uuid,
    /// What it is.
    pub kind: LoginKind,
    /// When the token ends, in seconds since 1970 by the server's clock.
    pub expires_at: u64,
}

/// What makes an unknown key a node: the owner's one-time code.
#[derive(Clone, PartialEq, Eq)]
pub struct Enrolment {
    /// `provider`, `aggregator` or `client`.
    pub role: String,
    /// The code.
    pub code: String,
    /// The node's name, for people.
    pub name: Option<String>,
}

impl std::fmt::Debug for Enrolment {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Enrolment")
            .field("role", &self.role)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Why nobody is signed in.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SessionError {
    /// The control plane cannot be talked to.
    #[error(transparent)]
    Control(#[from] Arc<ControlError>),
    /// The control plane refuses the login. The words are its own.
    #[error("{message}")]
    Refused {
        /// A stable word of the protocol, such as `clock_skew`.
        code: String,
        /// A sentence for people.
        message: String,
        /// What to do next.
        hint: Option<String>,
        /// The HTTP status.
        status: u16,
        /// How long to wait before the next attempt.
        retry_after: Option<Duration>,
    },
    /// The answer is not that of a control plane.
    #[error(
        "{url} answered the login with status {status} and not as a control plane does. Check the URL, and what stands between."
    )]
    BadAnswer {
        /// The base URL.
        url: String,
        /// The HTTP status.
        status: u16,
    },
}

impl SessionError {
    /// Returns the word of the protocol for a refusal.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { code, .. } => Some(code),
            Self::Control(_) | Self::BadAnswer { .. } => None,
        }
    }

    /// Tells whether the same login may succeed a moment later.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Control(error) => {
                matches!(**error, ControlError::Unreachable { .. } | ControlError::NotReady { .. })
            }
            Self::Refused { status, .. } => *status == 429 || *status >= 500,
            Self::BadAnswer { status, .. } => *status >= 500,
        }
    }
}

impl Session {
    /// Makes a session for a key; nothing is sent yet.
    pub fn new(control: ControlPlane, keys: Keys, kind: LoginKind) -> Self {
        Self {
            inner: Arc::new(Inner {
                control,
                keys,
                kind,
                login: tokio::sync::Mutex::new(()),
                state: Mutex::default(),
                newest: watch::Sender::new(String::new()),
            }),
        }
    }

    /// Returns the control plane.
    pub fn control(&self) -> &ControlPlane {
        &self.inner.control
    }

    /// Returns the key, for receipts.
    pub fn keys(&self) -> &Keys {
        &self.inner.keys
    }

    /// Returns who is signed in, from the newest token.
    pub fn signed_in(&self) -> Option<SignedIn> {
        self.state().token.as_ref().map(|token| token.signed_in)
    }

    /// Follows the newest token; empty until the first login. Realtime sends
    /// each new one to its channels.
    pub fn newest_token(&self) -> watch::Receiver<String> {
        self.inner.newest.subscribe()
    }

    /// Logs in, whatever token there is.
    ///
    /// # Errors
    ///
    /// [`SessionError`]; temporary failures have been retried a few times.
    pub async fn login(&self) -> Result<SignedIn, SessionError> {
        let asked = Instant::now();
        let token = self.log_in_once(asked, |token| token.since >= asked).await?;
        Ok(token.signed_in)
    }

    /// Logs in a node for the first time, with its owner's code.
    ///
    /// # Errors
    ///
    /// [`SessionError`], such as a refusal `bad_enrolment`.
    pub async fn enrol(&self, enrolment: &Enrolment) -> Result<SignedIn, SessionError> {
        let request = LoginRequest {
            kind: LoginKind::Node,
            role: Some(enrolment.role.clone()),
            enrolment: Some(enrolment.code.clone()),
            name: enrolment.name.clone(),
        };
        let _alone = self.inner.login.lock().await;
        let token = match self.log_in_with_retries(&request).await {
            // The answer to the first attempt may have been lost after the code
            // was used; then the key is a node already.
            Err(error) if error.code() == Some("bad_enrolment") => self
                .log_in_with_retries(&LoginRequest::plain(LoginKind::Node))
                .await
                .map_err(|_| error)?,
            other => other?,
        };
        Ok(token.signed_in)
    }

    /// Returns a token that is good for at least a minute, logging in if there
    /// is none.
    ///
    /// # Errors
    ///
    /// [`SessionError`] when a login is needed and fails.
    pub async fn token(&self) -> Result<String, SessionError> {
        if let Some(token) = &self.state().token
            && token.is_good()
        {
            return Ok(token.text.clone());
        }
        let token = self.log_in_once(Instant::now(), Token::is_good).await?;
        Ok(token.text)
    }

    /// Returns another token than one that a server refused with 401. When that
    /// one is brand new, or no longer the newest, there is no login.
    ///
    /// # Errors
    ///
    /// [`SessionError`] when a login is needed and fails.
    pub async fn renew(&self, refused: &str) -> Result<String, SessionError> {
        let suffices =
            |token: &Token| token.text != refused || token.since.elapsed() < REFUSED_TOKEN_AGE;
        let token = self.log_in_once(Instant::now(), suffices).await?;
        Ok(token.text)
    }

    /// Keeps the token fresh until `shutdown`. Failures are retried for ever,
    /// at most once a minute; the session's users see them only if the token
    /// ends meanwhile.
    pub async fn run_refresh(&self, shutdown: CancellationToken) {
        let mut pauses = refresh_pauses();
        loop {
            let wait = self.state().token.as_ref().map_or(Duration::ZERO, Token::until_refresh);
            if !wait.is_zero() {
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep(wait.min(REFRESH_NAP)) => continue,
                }
            }
            let refreshed = tokio::select! {
                () = shutdown.cancelled() => return,
                refreshed = self.log_in_once(Instant::now(), |token| {
                    !token.until_refresh().is_zero()
                }) => refreshed,
            };
            match refreshed {
                Ok(_) => pauses = refresh_pauses(),
                Err(error) => {
                    let pause = pauses.next().unwrap_or(REFRESH_PAUSE_LIMIT);
                    tracing::warn!(error = %error, pause_ms = pause.as_millis(), "token not refreshed");
                    tokio::select! {
                        () = shutdown.cancelled() => return,
                        () = tokio::time::sleep(pause) => {}
                    }
                }
            }
        }
    }

    /// Logs in unless a token that suffices is there by the time that it is
    /// this caller's turn. Whoever waited for a login that failed gets its
    /// failure instead of making another one.
    async fn log_in_once(
        &self,
        asked: Instant,
        suffices: impl Fn(&Token) -> bool,
    ) -> Result<Token, SessionError> {
        let _alone = self.inner.login.lock().await;
        {
            let state = self.state();
            if let Some(token) = &state.token
                && suffices(token)
            {
                return Ok(token.clone());
            }
            if let Some((when, error)) = &state.failure
                && *when >= asked
            {
                return Err(error.clone());
            }
        }
        self.log_in_with_retries(&LoginRequest::plain(self.inner.kind)).await
    }

    /// Logs in, trying again a few times, and keeps the outcome. The caller
    /// holds the lock `login`.
    async fn log_in_with_retries(&self, request: &LoginRequest) -> Result<Token, SessionError> {
        let mut pauses = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(250))
            .with_max_times(LOGIN_RETRIES)
            .with_jitter()
            .build();
        let outcome = loop {
            let error = match self.log_in(request).await {
                Ok(token) => break Ok(token),
                Err(error) => error,
            };
            let Some(pause) = pauses.next().filter(|_| error.is_temporary()) else {
                break Err(error);
            };
            let asked_pause = match &error {
                SessionError::Refused { retry_after, .. } => retry_after.unwrap_or_default(),
                SessionError::Control(_) | SessionError::BadAnswer { .. } => Duration::ZERO,
            };
            if asked_pause > RETRY_AFTER_LIMIT {
                break Err(error);
            }
            tokio::time::sleep(pause.max(asked_pause)).await;
        };
        let mut state = self.state();
        match &outcome {
            Ok(token) => {
                state.token = Some(token.clone());
                state.failure = None;
                drop(state);
                self.inner.newest.send_replace(token.text.clone());
            }
            Err(error) => state.failure = Some((Instant::now(), error.clone())),
        }
        outcome
    }

    /// Makes one login.
    async fn log_in(&self, request: &LoginRequest) -> Result<Token, SessionError> {
        let control = &self.inner.control;
        let url = control.function_url("auth");
        let body = serde_json::to_vec(request).expect("a login is made of strings");
        let event = LoginEvent::make(&self.inner.keys, &url, &body, unix_now());
        let unreachable = |error| SessionError::from(Arc::new(control.unreachable(error)));
        let (since, since_wall) = (Instant::now(), SystemTime::now());
        let response = control
            .http()
            .post(url)
            .timeout(LOGIN_TIMEOUT)
            .header("apikey", control.publishable_key())
            .header(reqwest::header::AUTHORIZATION, event.header())
            .header(reqwest::header::CONTENT_TYPE, "application/json")
            .body(body)
            .send()
            .await
            .map_err(unreachable)?;
        let status = response.status();
        let retry_after = response
            .headers()
            .get(reqwest::header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .map(Duration::from_secs);
        let answer = read_limited(response, ANSWER_LIMIT).await.map_err(unreachable)?;
        let answer = answer.unwrap_or_default();
        let bad_answer = || SessionError::BadAnswer {
            url: control.base_url().to_string(),
            status: status.as_u16(),
        };
        if status.is_success() {
            let answer: LoginAnswer = serde_json::from_slice(&answer).map_err(|_| bad_answer())?;
            return Token::new(answer, since, since_wall).ok_or_else(bad_answer);
        }
        let refusal: RefusalAnswer = serde_json::from_slice(&answer).map_err(|_| bad_answer())?;
        Err(SessionError::Refused {
            code: refusal.code,
            message: refusal.message,
            hint: refusal.hint,
            status: status.as_u16(),
            retry_after,
        })
    }

    /// Locks the state. It is whole at every moment, so a panic elsewhere does
    /// not spoil it.
    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Session")
            .field("control", &self.inner.control)
            .field("keys", &self.inner.keys)
            .field("kind", &self.inner.kind)
            .finish_non_exhaustive()
    }
}

impl Token {
    /// Keeps the token of an answer; `None` when it cannot be sent in a header.
    ///
    /// The times are those of sending the request: the token was made later, so
    /// that it is never thought good for longer than it is.
    fn new(answer: LoginAnswer, since: Instant, since_wall: SystemTime) -> Option<Self> {
        let text = answer.access_token;
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return None;
        }
        let lifetime = lifetime_by_server(&text, answer.expires_at)
            .unwrap_or_else(|| Duration::from_secs(answer.expires_at.saturating_sub(unix_now())));
        let refresh_margin = lifetime.mul_f64(0.15 + 0.10 * fastrand::f64());
        let signed_in =
            SignedIn { subject: answer.sub, kind: answer.kind, expires_at: answer.expires_at };
        Some(Self { text, signed_in, since, since_wall, lifetime, refresh_margin })
    }

    /// Returns how long the token is still good for. Both clocks count: the
    /// monotonic one stands still while a machine sleeps, the other may be set
    /// back.
    fn remaining(&self) -> Duration {
        let by_wall = self.since_wall.elapsed().unwrap_or_default();
        self.lifetime.saturating_sub(self.since.elapsed().max(by_wall))
    }

    /// Tells whether the token may be handed out.
    fn is_good(&self) -> bool {
        self.remaining() >= MIN_REMAINING.min(self.lifetime / 2) && !self.remaining().is_zero()
    }

    /// Returns how long it is until the token should be refreshed.
    fn until_refresh(&self) -> Duration {
        self.remaining().saturating_sub(self.refresh_margin)
    }
}

/// Returns a token's lifetime by its own claims, so that this machine's clock
/// plays no part.
fn lifetime_by_server(token: &str, expires_at: u64) -> Option<Duration> {
    #[derive(Deserialize)]
    struct Claims {
        iat: u64,
    }
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: Claims = serde_json::from_slice(&claims).ok()?;
    expires_at.checked_sub(claims.iat).map(Duration::from_secs)
}

/// Returns the pauses between failed refreshes: growing to a minute, with
/// jitter.
fn refresh_pauses() -> backon::ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_secs(1))
        .with_max_delay(REFRESH_PAUSE_LIMIT)
        .without_max_times()
        .with_jitter()
        .build()
}

/// Returns this machine's clock in seconds since 1970.
fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
