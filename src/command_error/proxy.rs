//! What the proxy fails with, for the user.

use super::{CommandError, Kind};
use crate::proxy::{ApiKeyError, ProxyError};

impl From<ProxyError> for CommandError {
    fn from(error: ProxyError) -> Self {
        match error {
            ProxyError::Listen { .. } => Self::new(Kind::User, error)
                .hint("Choose another port with --port; 0 takes a free one."),
            ProxyError::ApiKey(ApiKeyError::File(error)) => error.into(),
            ProxyError::ApiKey(_) => Self::new(Kind::Config, error),
        }
    }
}
