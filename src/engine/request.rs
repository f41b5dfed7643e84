//! Requests to an engine, in OpenAI's protocol.
//!
//! [`shape`] makes the body of a request from what the consumer sent: listed keys only,
//! the rest set here.

use std::collections::BTreeSet;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::engine::catalogue::{EngineEntry, PrefixCache};
use crate::engine::error::EngineError;
use crate::engine::slots::{Asker, TakenSlot};

/// Keys that every engine knows, besides the messages or the prompt.
const COMMON_KEYS: [&str; 8] = [
    "frequency_penalty",
    "logit_bias",
    "presence_penalty",
    "response_format",
    "seed",
    "stop",
    "temperature",
    "top_p",
];

/// Keys of a conversation that may call tools.
const TOOL_KEYS: [&str; 3] = ["parallel_tool_calls", "tool_choice", "tools"];

/// Keys that OpenAI's clients send and that say nothing to an engine, or that are set
/// here in any case.
const SET_OR_DROPPED_KEYS: [&str; 11] = [
    "encoding_format",
    "max_completion_tokens",
    "max_tokens",
    "metadata",
    "model",
    "n",
    SHARE_KEY,
    "store",
    "stream",
    "stream_options",
    "user",
];

/// The key by which a consumer allows that others who allow it, too, share what the
/// engine remembers of prompts.
const SHARE_KEY: &str = "share_prefix_cache";

/// The most texts of one request for vectors.
const TEXTS_LIMIT: usize = 2048;

/// The kinds of request that a model's server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestKind {
    /// A conversation: `messages`.
    Chat,
    /// A text to go on with: `prompt`.
    Completion,
    /// Texts to turn into vectors: `input`.
    Embedding,
}

impl RequestKind {
    /// Returns the path that such requests are made to.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completion => "/v1/completions",
            Self::Embedding => "/v1/embeddings",
        }
    }

    /// Returns the key of what is asked.
    fn content_key(self) -> &'static str {
        match self {
            Self::Chat => "messages",
            Self::Completion => "prompt",
            Self::Embedding => "input",
        }
    }
}

/// A request as the agent has it.
#[derive(Debug, Clone)]
pub struct EngineRequest {
    /// What it asks for.
    pub kind: RequestKind,
    /// The consumer's own request: `messages`, `prompt` or `input`, and options.
    pub body: Value,
    /// The most tokens to produce; what the body says of that is not looked at.
    pub max_tokens: u32,
    /// Who asks, where that is known: what an engine remembers of a prompt is used for
    /// the same consumer only.
    pub consumer: Option<String>,
}

impl EngineRequest {
    /// Returns who asks, and whether they share what engines remember.
    pub(super) fn asker(&self) -> Asker {
        let shares = self.body.get(SHARE_KEY).and_then(Value::as_bool).unwrap_or(false);
        Asker { consumer: self.consumer.clone(), shares }
    }
}

/// Makes the body of a request to an engine. `model` is the name that the engine knows.
///
/// # Errors
/// [`EngineError::BadRequest`] for what no engine would take: no messages, a key that
/// is not on the list, more than one choice.
pub(super) fn shape(
    request: &EngineRequest,
    model: &str,
    entry: Option<&EngineEntry>,
    slot: Option<&TakenSlot>,
) -> Result<Bytes, EngineError> {
    let bad = |message: String| EngineError::BadRequest { message };
    let Value::Object(given) = &request.body else {
        return Err(bad("The request must be a JSON object.".to_owned()));
    };
    let content_key = request.kind.content_key();
    let content =
        given.get(content_key).ok_or_else(|| bad(format!("The request needs `{content_key}`.")))?;
    check_content(request.kind, content).map_err(bad)?;
    if given.get("n").is_some_and(|n| !n.is_null() && n != 1) {
        return Err(bad("Only one choice can be asked for: `n` must be 1.".to_owned()));
    }
    let none = BTreeSet::new();
    let own_keys = entry.map_or(&none, |entry| &entry.request_keys);
    let mut body = Map::new();
    body.insert(content_key.to_owned(), content.clone());
    for (key, value) in given {
        let for_tools = request.kind == RequestKind::Chat && TOOL_KEYS.contains(&key.as_str());
        if for_tools || COMMON_KEYS.contains(&key.as_str()) || own_keys.contains(key) {
            body.insert(key.clone(), value.clone());
        } else if key != content_key && !SET_OR_DROPPED_KEYS.contains(&key.as_str()) {
            return Err(bad(format!("The request's key `{key}` is not supported.")));
        }
    }
    if let Some(entry) = entry {
        body.extend(entry.request.clone());
    }
    body.insert("model".to_owned(), json!(model));
    if request.kind == RequestKind::Embedding {
        body.retain(|key, _| key == content_key || key == "model" || key == "dimensions");
        body.insert("encoding_format".to_owned(), json!("float"));
        return to_bytes(&body);
    }
    body.insert("max_tokens".to_owned(), json!(request.max_tokens));
    body.insert("stream".to_owned(), json!(true));
    body.insert("stream_options".to_owned(), json!({ "include_usage": true }));
    if let Some(entry) = entry {
        match (entry.prefix_cache, slot) {
            (PrefixCache::Slots, Some(slot)) => {
                body.insert("id_slot".to_owned(), json!(slot.index));
                body.insert("cache_prompt".to_owned(), json!(slot.may_reuse));
            }
            // A server that somebody else started, with slots that are not ours to count.
            (PrefixCache::Slots, None) => {
                body.insert("cache_prompt".to_owned(), json!(false));
            }
            (PrefixCache::Salt, _) => {
                body.insert("cache_salt".to_owned(), json!(salt(&request.asker())));
            }
            (PrefixCache::Off | PrefixCache::Shared, _) => {}
        }
    }
    to_bytes(&body)
}

fn to_bytes(body: &Map<String, Value>) -> Result<Bytes, EngineError> {
    serde_json::to_vec(body)
        .map(Bytes::from)
        .map_err(|error| EngineError::BadRequest { message: error.to_string() })
}

/// Returns the word under which an engine remembers a prompt: one for all who share,
/// else the consumer's own, else one that is never used again.
fn salt(asker: &Asker) -> String {
    match asker {
        Asker { shares: true, .. } => "shared".to_owned(),
        Asker { consumer: Some(consumer), .. } => format!("consumer:{consumer}"),
        Asker { consumer: None, .. } => format!("once:{:016x}", fastrand::u64(..)),
    }
}

/// Says what is wrong with the messages or the prompt. Only text is taken: anything
/// else would be fetched or decoded by the engine.
fn check_content(kind: RequestKind, content: &Value) -> Result<(), String> {
    if kind == RequestKind::Embedding {
        let is_text = |text: &Value| text.as_str().is_some_and(|text| !text.is_empty());
        return match content {
            text if is_text(text) => Ok(()),
            Value::Array(texts)
                if (1..=TEXTS_LIMIT).contains(&texts.len()) && texts.iter().all(is_text) =>
            {
                Ok(())
            }
            _ => Err(format!(
                "`input` must be a text that is not empty, or a list of at most {TEXTS_LIMIT}."
            )),
        };
    }
    if kind == RequestKind::Completion {
        return match content {
            Value::String(prompt) if !prompt.is_empty() => Ok(()),
            _ => Err("`prompt` must be a text that is not empty.".to_owned()),
        };
    }
    let Some(messages) = content.as_array().filter(|messages| !messages.is_empty()) else {
        return Err("`messages` must be a list that is not empty.".to_owned());
    };
    for message in messages {
        let role = message.get("role").and_then(Value::as_str);
        if !matches!(role, Some("system" | "developer" | "user" | "assistant" | "tool")) {
            let words = "The `role` of a message must be system, user, assistant or tool.";
            return Err(words.to_owned());
        }
        // A model that called tools may have said nothing else.
        let called = role == Some("assistant") && message.get("tool_calls").is_some();
        let is_text = match message.get("content") {
            Some(Value::String(_)) => true,
            Some(Value::Array(parts)) => {
                parts.iter().all(|part| part.get("type").is_some_and(|kind| kind == "text"))
            }
            None | Some(Value::Null) => called,
            _ => false,
        };
        if !is_text {
            return Err("The `content` of a message must be text.".to_owned());
        }
    }
    Ok(())
}

/// Estimates the tokens of a prompt from its bytes, for answers that were cut before
/// the engine counted them.
pub(super) fn estimate_input_tokens(request: &EngineRequest) -> u64 {
    fn text_bytes(value: &Value) -> usize {
        match value {
            Value::String(text) => text.len(),
            Value::Array(items) => items.iter().map(text_bytes).sum(),
            Value::Object(map) => {
                ["content", "text"].iter().filter_map(|&key| map.get(key)).map(text_bytes).sum()
            }
            _ => 0,
        }
    }
    let bytes = request.body.get(request.kind.content_key()).map_or(0, text_bytes);
    u64::try_from(bytes.div_ceil(4)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::engine::catalogue::Catalogue;

    fn chat(body: Value) -> EngineRequest {
        EngineRequest { kind: RequestKind::Chat, body, max_tokens: 7, consumer: None }
    }

    #[test]
    fn requests_carry_listed_keys_and_ours() {
        let catalogue = Catalogue::built_in();
        let request = chat(json!({
            "messages": [{"role": "user", "content": "hi"}],
            "model": "other", "max_tokens": 9999, "stream": false, "user": "x",
            "temperature": 0.5, "top_k": 3,
        }));
        let body = shape(&request, "smollm2:135m", catalogue.get("llama.cpp"), None).unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["model"], "smollm2:135m");
        assert_eq!(body["max_tokens"], 7);
        assert_eq!(body["stream"], true);
        assert_eq!(body["stream_options"], json!({"include_usage": true}));
        assert_eq!(body["temperature"], 0.5);
        assert_eq!(body["top_k"], 3);
        assert_eq!(body["timings_per_token"], true);
        assert!(body.get("user").is_none());
    }

    #[test]
    fn requests_that_no_engine_would_take_are_the_consumers_fault() {
        let hello = json!([{"role": "user", "content": "hi"}]);
        for (body, wanted) in [
            (json!([]), "must be a JSON object"),
            (json!({}), "needs `messages`"),
            (json!({"messages": []}), "list that is not empty"),
            (json!({"messages": [{"role": "function", "content": "x"}]}), "`role`"),
            (json!({"messages": [{"role": "user", "content": null}]}), "text"),
            (json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}), "text"),
            (json!({"messages": hello, "n": 2}), "`n` must be 1"),
            (json!({"messages": hello, "id_slot": 1}), "`id_slot` is not supported"),
            (json!({"messages": hello, "cache_prompt": true}), "`cache_prompt` is not supported"),
            (json!({"messages": hello, "cache_salt": "x"}), "`cache_salt` is not supported"),
            (json!({"messages": hello, "top_k": 1}), "`top_k` is not supported"),
        ] {
            let error = shape(&chat(body), "m", None, None).unwrap_err();
            assert_eq!(error.attempt_code(), "bad_request");
            assert!(error.to_string().contains(wanted), "{error}");
        }
    }

    #[test]
    fn vectors_are_asked_for_alone() {
        let catalogue = Catalogue::built_in();
        let ask = |input: Value| EngineRequest {
            kind: RequestKind::Embedding,
            body: json!({"input": input, "temperature": 1, "model": "x"}),
            max_tokens: 0,
            consumer: None,
        };
        let entry = catalogue.get("llama.cpp-embedding");
        let body = shape(&ask(json!(["a", "b"])), "m", entry, None).unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        let wanted = json!({"input": ["a", "b"], "model": "m", "encoding_format": "float"});
        assert_eq!(body, wanted);
        for bad in
            [json!(""), json!([]), json!([""]), json!([1]), json!({}), json!(vec!["x"; 2049])]
        {
            let error = shape(&ask(bad), "m", entry, None).unwrap_err();
            assert!(error.to_string().contains("`input`"), "{error}");
        }
    }

    #[test]
    fn engines_are_told_whose_prompts_they_may_remember() {
        let catalogue = Catalogue::built_in();
        let asked = |consumer: Option<&str>, shares: bool, engine: &str| -> Value {
            let mut request = chat(json!({"messages": [{"role": "user", "content": "hi"}]}));
            request.consumer = consumer.map(str::to_owned);
            request.body["share_prefix_cache"] = json!(shares);
            let body = shape(&request, "m", catalogue.get(engine), None).unwrap();
            let body: Value = serde_json::from_slice(&body).unwrap();
            assert!(body.get("share_prefix_cache").is_none());
            body
        };
        assert_eq!(asked(Some("a"), true, "llama.cpp")["cache_prompt"], false);
        let salt = |consumer, shares| asked(consumer, shares, "vllm")["cache_salt"].clone();
        assert_eq!(salt(Some("a"), false), salt(Some("a"), false));
        assert_ne!(salt(Some("a"), false), salt(Some("b"), false));
        assert_ne!(salt(Some("a"), false), salt(Some("a"), true));
        assert_eq!(salt(Some("a"), true), salt(Some("b"), true));
        assert_ne!(salt(None, false), salt(None, false));
        assert!(asked(Some("a"), false, "sglang").get("cache_salt").is_none());
    }

    #[test]
    fn prompts_are_estimated_from_their_text() {
        let request = chat(json!({"messages": [{"role": "user", "content": "12345678"}]}));
        assert_eq!(estimate_input_tokens(&request), 2);
    }
}
