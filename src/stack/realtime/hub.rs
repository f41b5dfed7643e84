//! Who listens to what. A public and a private channel of one name are two
//! buses.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use super::message::Message;
use super::outbox::{Outbox, Outgoing};
use crate::control::realtime::frame::ProtocolVersion;

/// A joined channel, as the hub sees it.
struct Listener {
    channel: u64,
    version: ProtocolVersion,
    outbox: Arc<Outbox>,
}

type Topics = HashMap<String, Vec<Listener>>;

/// All joined channels.
#[derive(Default)]
pub(super) struct Hub {
    public: RwLock<Topics>,
    private: RwLock<Topics>,
}

impl Hub {
    fn bus(&self, private: bool) -> &RwLock<Topics> {
        if private { &self.private } else { &self.public }
    }

    /// Adds a channel to a topic, given without the prefix.
    pub(super) fn listen(
        &self,
        private: bool,
        topic: &str,
        channel: u64,
        version: ProtocolVersion,
        outbox: Arc<Outbox>,
    ) {
        let mut topics = self.bus(private).write().unwrap_or_else(PoisonError::into_inner);
        topics.entry(topic.to_owned()).or_default().push(Listener { channel, version, outbox });
    }

    /// Says whether nobody listens to anything.
    pub(super) fn is_empty(&self) -> bool {
        [&self.public, &self.private]
            .iter()
            .all(|bus| bus.read().unwrap_or_else(PoisonError::into_inner).is_empty())
    }

    /// Takes a channel off a topic. Nothing reaches it through the hub from
    /// then on.
    pub(super) fn forget(&self, private: bool, topic: &str, channel: u64) {
        let mut topics = self.bus(private).write().unwrap_or_else(PoisonError::into_inner);
        if let Some(listeners) = topics.get_mut(topic) {
            listeners.retain(|listener| listener.channel != channel);
            if listeners.is_empty() {
                topics.remove(topic);
            }
        }
    }

    /// Queues a message for everybody on its topic but `except`, and returns
    /// for how many. Each form is made at most once.
    pub(super) fn publish(&self, private: bool, message: &Message, except: Option<u64>) -> usize {
        let topics = self.bus(private).read().unwrap_or_else(PoisonError::into_inner);
        let Some(listeners) = topics.get(&message.topic) else { return 0 };
        let mut forms: [Option<Option<Outgoing>>; 2] = [None, None];
        let mut reached = 0;
        for listener in listeners {
            if Some(listener.channel) == except {
                continue;
            }
            let form = match listener.version {
                ProtocolVersion::V1 => &mut forms[0],
                ProtocolVersion::V2 => &mut forms[1],
            };
            if let Some(frame) = form.get_or_insert_with(|| message.form(listener.version)) {
                listener.outbox.push(frame.clone());
                reached += 1;
            }
        }
        reached
    }
}
