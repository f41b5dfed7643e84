//! Calls of tools in the text of an answer.
//!
//! A job's output is one text. Where a model calls tools, the calls follow its text
//! behind a mark, as the JSON list that OpenAI's API has in `tool_calls`. The mark
//! never stands in the text itself: it is taken out of what a model writes when it may
//! call tools.

use serde::Deserialize;
use serde_json::{Value, json};

/// Stands between the text of an answer and its calls: the record separator of
/// RFC 7464.
pub const TOOL_CALLS_MARK: char = '\u{1e}';

/// The most calls of one answer.
const CALLS_LIMIT: usize = 128;

/// The most bytes that the calls of one answer may have.
const BYTES_LIMIT: usize = 1 << 20;

/// A piece of a call, as engines stream it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct CallDelta {
    index: usize,
    id: Option<String>,
    function: FunctionDelta,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct FunctionDelta {
    name: Option<String>,
    arguments: Option<String>,
}

/// The calls of an answer while they are written.
#[derive(Debug, Default)]
pub(super) struct ToolCalls {
    calls: Vec<Call>,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Call {
    id: String,
    name: String,
    arguments: String,
}

impl ToolCalls {
    /// Adds pieces. Answers false when there is more than an answer may have.
    pub(super) fn add(&mut self, deltas: Vec<CallDelta>) -> bool {
        for delta in deltas {
            if delta.index >= CALLS_LIMIT {
                return false;
            }
            if self.calls.len() <= delta.index {
                self.calls.resize_with(delta.index + 1, Call::default);
            }
            let call = &mut self.calls[delta.index];
            let pieces = [
                (&mut call.id, delta.id),
                (&mut call.name, delta.function.name),
                (&mut call.arguments, delta.function.arguments),
            ];
            for (whole, piece) in pieces {
                let piece = piece.unwrap_or_default();
                self.bytes += piece.len();
                whole.push_str(&piece);
            }
            if self.bytes > BYTES_LIMIT {
                return false;
            }
        }
        true
    }

    /// Takes the calls as the end of an answer's text; `None` when there are none.
    pub(super) fn take(&mut self) -> Option<String> {
        let calls: Vec<Value> = std::mem::take(&mut self.calls)
            .into_iter()
            .enumerate()
            .filter(|(_number, call)| !call.name.is_empty())
            .map(|(number, call)| {
                let id = if call.id.is_empty() { format!("call_{number}") } else { call.id };
                json!({
                    "id": id, "type": "function",
                    "function": { "name": call.name, "arguments": call.arguments },
                })
            })
            .collect();
        (!calls.is_empty()).then(|| format!("{TOOL_CALLS_MARK}{}", json!(calls)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deltas(value: Value) -> Vec<CallDelta> {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn pieces_of_calls_become_one_text() {
        let mut calls = ToolCalls::default();
        assert_eq!(calls.take(), None);
        assert!(calls.add(deltas(json!([
            {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{\"x\""}},
        ]))));
        assert!(calls.add(deltas(json!([
            {"index": 0, "function": {"arguments": ":1}"}},
            {"index": 1, "function": {"name": "g", "arguments": "{}"}},
        ]))));
        let text = calls.take().unwrap();
        let value: Value =
            serde_json::from_str(text.strip_prefix(TOOL_CALLS_MARK).unwrap()).unwrap();
        assert_eq!(
            value,
            json!([
                {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{\"x\":1}"}},
                {"id": "call_1", "type": "function", "function": {"name": "g", "arguments": "{}"}},
            ])
        );
        assert_eq!(calls.take(), None);
    }

    #[test]
    fn an_engine_cannot_fill_the_memory_with_calls() {
        let mut calls = ToolCalls::default();
        assert!(!calls.add(deltas(json!([{"index": 1_000_000_000}]))));
        let long = "x".repeat(BYTES_LIMIT + 1);
        assert!(!calls.add(deltas(json!([{"index": 0, "function": {"arguments": long}}]))));
    }
}
