//! What an attempt asks of the engines, made of what the control plane gave.

use serde_json::Value;

use crate::control::rpc::{JobKind, StartedAttempt, Usage};
use crate::engine::{self, ContainerRequest, EngineRequest, RequestKind, Work};

/// Makes the work of an attempt, whose output may have so many bytes; `None` for a
/// kind that this version does not know.
pub(super) fn work(started: &StartedAttempt, output_bytes: usize) -> Option<Work> {
    let Ok(body) = serde_json::from_str::<Value>(started.input.get()) else {
        unreachable!("the input was parsed as JSON when it arrived");
    };
    let kind = match started.kind {
        JobKind::Chat => RequestKind::Chat,
        JobKind::Completion => RequestKind::Completion,
        JobKind::Embedding => RequestKind::Embedding,
        JobKind::Container => {
            return Some(Work::Container(ContainerRequest {
                body,
                max_seconds: started.max_seconds,
                output_bytes,
                attempt: started.attempt.to_string(),
            }));
        }
        JobKind::Unknown => return None,
    };
    Some(Work::Model(EngineRequest {
        kind,
        body,
        max_tokens: started.max_tokens,
        consumer: consumer(&started.topic).map(str::to_owned),
    }))
}

/// Finds who asks in the topic of a stream, `job:CONSUMER:JOB`.
fn consumer(topic: &str) -> Option<&str> {
    topic.split(':').nth(1).filter(|consumer| !consumer.is_empty())
}

/// Translates what the engines counted.
pub(super) fn usage(counted: engine::Usage) -> Usage {
    Usage {
        input_tokens: counted.input_tokens,
        output_tokens: counted.output_tokens,
        seconds: counted.seconds,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(kind: &str) -> StartedAttempt {
        let id = "0192f3a4-5b6c-7d8e-9f00-112233445566";
        serde_json::from_value(serde_json::json!({
            "attempt": id, "job": id, "lease": id, "topic": "job:alice:x", "kind": kind,
            "model": "m", "input": {"input": 1}, "input_sha256": "00", "max_tokens": 16,
            "max_seconds": 7, "deadline_secs": 300, "price_input": "0.1", "price_output": "0.2",
            "price_second": "0.3", "stream_rate": 20,
        }))
        .unwrap()
    }

    #[test]
    fn every_kind_of_job_is_some_work() {
        for (word, kind) in [
            ("chat", RequestKind::Chat),
            ("completion", RequestKind::Completion),
            ("embedding", RequestKind::Embedding),
        ] {
            let Some(Work::Model(request)) = work(&started(word), 9) else { panic!("{word}") };
            assert_eq!((request.kind, request.consumer.as_deref()), (kind, Some("alice")));
        }
        let Some(Work::Container(request)) = work(&started("container"), 9) else { panic!() };
        assert_eq!((request.max_seconds, request.output_bytes), (7, 9));
        assert!(work(&started("dance"), 9).is_none());
    }
}
