//! The word from one part of the stack to another that something was committed.
//!
//! The REST part and the clock give it, Realtime takes it and looks for messages.
//! It is only a hint: what nobody tells of is found a little later.

use std::sync::Arc;

use tokio::sync::Notify;

/// Clones share the word. Any number of tellings before it is taken are one.
#[derive(Clone, Debug, Default)]
pub struct Commits(Arc<Notify>);

impl Commits {
    /// Says that a transaction was committed just now.
    pub fn tell(&self) {
        self.0.notify_one();
    }

    /// Waits until one was committed since this last returned. For one task only.
    pub async fn told(&self) {
        self.0.notified().await;
    }
}
