//! How a node comes to belong to an owner.
//!
//! A node's key is enrolled once, with a one-time code: one that its owner made
//! elsewhere, or one that is made here at once when the owner's key is on the
//! same machine.

use super::rpc::{Enrolment as Code, Rpc, RpcError};
use super::session::{Enrolment, Session, SessionError};

/// How long a code may live that is made and used at once, in seconds.
const CODE_SECS: u32 = 120;

/// Where the right to join comes from.
#[derive(Clone)]
pub enum Sponsor {
    /// A code that the owner made.
    Code(String),
    /// The owner, signed in on this machine.
    Owner(Rpc),
    /// Nobody; the node must be enrolled already.
    Nobody,
}

/// Why a node could not join.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// The node could not sign in.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The owner could not make a code.
    #[error(transparent)]
    Owner(#[from] RpcError),
}

/// Signs a node in, enrolling it first if the control plane does not know its
/// key. Says whether it was enrolled now.
///
/// # Errors
/// When the control plane refuses the node, its owner or the code.
pub async fn join(
    node: &Session,
    sponsor: &Sponsor,
    role: &str,
    name: &str,
) -> Result<bool, MembershipError> {
    match node.login().await {
        Ok(_signed_in) => return Ok(false),
        Err(error) if error.code() == Some("not_enrolled") => match sponsor {
            Sponsor::Nobody => return Err(error.into()),
            Sponsor::Code(_) | Sponsor::Owner(_) => {}
        },
        Err(error) => return Err(error.into()),
    }
    let code = match sponsor {
        Sponsor::Code(code) => code.clone(),
        Sponsor::Owner(owner) => {
            let Code { code, .. } = owner.make_enrolment(role, Some(CODE_SECS)).await?;
            code
        }
        Sponsor::Nobody => return Ok(false),
    };
    let enrolment = Enrolment { role: role.to_owned(), code, name: Some(name.to_owned()) };
    node.enrol(&enrolment).await?;
    Ok(true)
}
