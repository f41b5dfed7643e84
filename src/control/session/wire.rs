//! What crosses the wire at a login, for both ends: the client beside this file
//! and the server in `stack::auth`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What signs in: a person or a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LoginKind {
    /// An owner, a consumer or an operator.
    User,
    /// A machine that belongs to an owner.
    Node,
}

impl LoginKind {
    /// Returns the word of the protocol.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Node => "node",
        }
    }
}

impl fmt::Display for LoginKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// The body of a login. What the words in it mean is decided in SQL.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoginRequest {
    /// What signs in.
    pub kind: LoginKind,
    /// The role of a node that is being enrolled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// The one-time code that the owner made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enrolment: Option<String>,
    /// The name of a node that is being enrolled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl LoginRequest {
    /// A login of somebody whom the control plane knows, or of a new user.
    pub fn plain(kind: LoginKind) -> Self {
        Self { kind, role: None, enrolment: None, name: None }
    }
}

impl fmt::Debug for LoginRequest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("LoginRequest")
            .field("kind", &self.kind)
            .field("role", &self.role)
            .field("enrolment", &self.enrolment.as_ref().map(|_| "…"))
            .field("name", &self.name)
            .finish()
    }
}

/// The answer to a login that is accepted.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoginAnswer {
    /// The JWT that later calls carry.
    pub access_token: String,
    /// Always `bearer`.
    pub token_type: String,
    /// When the token ends, in seconds since 1970 by the server's clock.
    pub expires_at: u64,
    /// The id of the user or node.
    pub sub: uuid::Uuid,
    /// What signed in.
    pub kind: LoginKind,
}

impl fmt::Debug for LoginAnswer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("LoginAnswer")
            .field("expires_at", &self.expires_at)
            .field("sub", &self.sub)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

/// The answer to a login that is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusalAnswer {
    /// A stable word, such as `clock_skew`.
    pub code: String,
    /// A sentence for people.
    pub message: String,
    /// What to do next.
    #[serde(default)]
    pub hint: Option<String>,
}
