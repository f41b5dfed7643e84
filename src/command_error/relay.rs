//! A failure on its way from one process of ours to another: the background
//! agent tells the `infernet start` that waits for it why it cannot run.

use std::error::Error;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{CommandError, Kind, causes};

/// A failure in a form that can be sent and taken up again, with the same
/// words, hints and exit code.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct RelayedError {
    /// The word of the kind.
    kind: String,
    /// The error and what caused it, outermost first.
    chain: Vec<String>,
    word: Option<String>,
    hints: Vec<String>,
}

/// One link of a chain that was sent.
#[derive(Debug)]
struct Link {
    words: String,
    cause: Option<Box<Link>>,
}

impl fmt::Display for Link {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.words)
    }
}

impl Error for Link {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as &(dyn Error + 'static))
    }
}

impl From<&CommandError> for RelayedError {
    fn from(failure: &CommandError) -> Self {
        let mut chain = vec![failure.error.to_string()];
        chain.extend(causes(&*failure.error));
        Self {
            kind: failure.kind.as_str().to_owned(),
            chain,
            word: failure.word.clone(),
            hints: failure.hints.clone(),
        }
    }
}

impl From<RelayedError> for CommandError {
    fn from(relayed: RelayedError) -> Self {
        let kind = Kind::ALL
            .into_iter()
            .find(|kind| kind.as_str() == relayed.kind)
            .unwrap_or(Kind::Internal);
        let error = relayed
            .chain
            .into_iter()
            .rev()
            .fold(None, |cause, words| Some(Box::new(Link { words, cause })))
            .unwrap_or_else(|| Box::new(Link { words: "It failed.".to_owned(), cause: None }));
        Self { kind, error, word: relayed.word, hints: relayed.hints }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_arrives_as_it_was_sent() {
        let inner = std::io::Error::other("Inner.");
        let failure = CommandError::new(Kind::Unavailable, Outer(inner)).word("away").hint("Wait.");
        let sent = serde_json::to_string(&RelayedError::from(&failure)).unwrap();
        let relayed: RelayedError = serde_json::from_str(&sent).unwrap();
        let arrived = CommandError::from(relayed);
        assert_eq!(arrived.kind(), failure.kind());
        assert_eq!(arrived.words(), "Error: Outer.\n  because: Inner.\nHint: Wait.");
        assert_eq!(arrived.words(), failure.words());
        assert_eq!(arrived.json(), failure.json());
    }

    #[derive(Debug, thiserror::Error)]
    #[error("Outer.")]
    struct Outer(#[source] std::io::Error);
}
