//! What a client asks for, as jobs of the market.
//!
//! A request becomes one job for each choice that it asks for. What OpenAI's API says
//! of the connection or of OpenAI's own housekeeping stays here; every other key goes
//! into the job's input as it is, and the control plane says which it takes. A key
//! that would change the answer is never dropped in silence. What OpenAI's API has no
//! word for is asked for in an object of its own, `infernet`: the [`JobTerms`].

use serde_json::{Map, Value, json};

use super::ProxyOptions;
use super::error::ApiError;
use crate::control::rpc::{JobKind, JobTerms, SubmitJob};

/// The most choices for one prompt.
const CHOICES_LIMIT: u64 = 16;

/// The most jobs of one request.
const JOBS_LIMIT: usize = 64;

/// The most texts of one request for embeddings, as OpenAI has it.
const TEXTS_LIMIT: usize = 2048;

/// The key of what only this market knows.
pub(super) const TERMS_KEY: &str = "infernet";

/// Keys that say nothing to whoever writes the answer.
const DROPPED_KEYS: [&str; 7] = [
    "metadata",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
];

/// Which of the two kinds of text is asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Form {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completion,
}

/// A request for text.
#[derive(Debug)]
pub(super) struct TextRequest {
    pub(super) form: Form,
    pub(super) model: String,
    /// One for each choice, in order.
    pub(super) jobs: Vec<SubmitJob>,
    /// The answer is wanted while it is written.
    pub(super) stream: bool,
    /// The stream is to end with the usage.
    pub(super) include_usage: bool,
    /// The model may call tools.
    pub(super) tools: bool,
}

/// A request for embeddings.
#[derive(Debug)]
pub(super) struct EmbeddingRequest {
    pub(super) model: String,
    pub(super) job: SubmitJob,
    /// How many vectors are expected.
    pub(super) texts: usize,
    /// Vectors are wanted as base64 of their bytes.
    pub(super) base64: bool,
}

/// The keys of a request that are still to be looked at.
struct Keys(Map<String, Value>);

impl Keys {
    fn parse(body: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(mut keys)) => {
                // OpenAI takes null for a key that is not there.
                keys.retain(|_key, value| !value.is_null());
                Ok(Self(keys))
            }
            Ok(_other) => Err(ApiError::invalid("The body must be a JSON object.")),
            Err(error) => Err(ApiError::invalid(format!("The body is not JSON: {error}."))),
        }
    }

    fn model(&mut self) -> Result<String, ApiError> {
        match self.0.remove("model") {
            Some(Value::String(model)) if !model.is_empty() => Ok(model),
            Some(_other) => Err(ApiError::wrong("model", "`model` must be a name.")),
            None => Err(ApiError::wrong("model", "The request names no model.")),
        }
    }

    fn flag(&mut self, key: &str) -> Result<bool, ApiError> {
        match self.0.remove(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(_other) => Err(ApiError::wrong(key, format!("`{key}` must be true or false."))),
        }
    }

    /// Takes a whole number of at least one.
    fn count(&mut self, key: &str, most: u64) -> Result<Option<u64>, ApiError> {
        match self.0.remove(key) {
            None => Ok(None),
            Some(value) => match value.as_u64() {
                Some(count) if (1..=most).contains(&count) => Ok(Some(count)),
                _ => {
                    let message = format!("`{key}` must be a whole number from 1 to {most}.");
                    Err(ApiError::wrong(key, message))
                }
            },
        }
    }

    /// Takes a key that may only have values that change nothing.
    fn without_effect(&mut self, key: &str, harmless: &[Value]) -> Result<(), ApiError> {
        match self.0.remove(key) {
            Some(value) if !harmless.contains(&value) => {
                Err(ApiError::unsupported(key, format!("`{key}` is not supported.")))
            }
            _ => Ok(()),
        }
    }

    /// Takes the terms of the job.
    fn terms(&mut self) -> Result<JobTerms, ApiError> {
        let Some(value) = self.0.remove(TERMS_KEY) else { return Ok(JobTerms::default()) };
        // Reading them would take a list for the values of an object, in order.
        if !value.is_object() || value.get("needs").is_some_and(|needs| !needs.is_object()) {
            let message = "`infernet` must be an object, and its `needs` another one.";
            return Err(ApiError::wrong(TERMS_KEY, message));
        }
        serde_json::from_value(value).map_err(|error| {
            ApiError::wrong(TERMS_KEY, format!("`infernet` cannot be read: {error}."))
        })
    }

    fn drop_housekeeping(&mut self) {
        for key in DROPPED_KEYS {
            self.0.remove(key);
        }
    }

    fn include_usage(&mut self, stream: bool) -> Result<bool, ApiError> {
        match self.0.remove("stream_options") {
            None => Ok(false),
            Some(_options) if !stream => {
                Err(ApiError::wrong("stream_options", "`stream_options` needs `stream`."))
            }
            Some(Value::Object(options)) => {
                Ok(options.get("include_usage").and_then(Value::as_bool).unwrap_or(false))
            }
            Some(_other) => {
                Err(ApiError::wrong("stream_options", "`stream_options` must be an object."))
            }
        }
    }
}

impl TextRequest {
    /// Reads the body of a request.
    ///
    /// # Errors
    /// It makes no sense, or asks for what is not offered here.
    pub(super) fn parse(form: Form, body: &[u8], options: &ProxyOptions) -> Result<Self, ApiError> {
        let mut keys = Keys::parse(body)?;
        let model = keys.model()?;
        let stream = keys.flag("stream")?;
        let include_usage = keys.include_usage(stream)?;
        let choices = keys.count("n", CHOICES_LIMIT)?.unwrap_or(1);
        let newer = keys.count("max_completion_tokens", u64::from(u32::MAX))?;
        let older = keys.count("max_tokens", u64::from(u32::MAX))?;
        let max_tokens = newer.or(older).and_then(|tokens| u32::try_from(tokens).ok());
        let terms = keys.terms()?;
        keys.drop_housekeeping();
        keys.without_effect("top_logprobs", &[json!(0)])?;
        let (kind, prompts) = match form {
            Form::Chat => {
                keys.without_effect("logprobs", &[json!(false)])?;
                keys.without_effect("modalities", &[json!(["text"])])?;
                (JobKind::Chat, vec![None])
            }
            Form::Completion => {
                keys.without_effect("logprobs", &[])?;
                keys.without_effect("echo", &[json!(false)])?;
                keys.without_effect("suffix", &[json!("")])?;
                keys.without_effect("best_of", &[json!(1), json!(choices)])?;
                let prompts = texts("prompt", keys.0.remove("prompt"))?;
                (JobKind::Completion, prompts.into_iter().map(Some).collect())
            }
        };
        let tools =
            keys.0.get("tools").and_then(Value::as_array).is_some_and(|all| !all.is_empty());
        let mut jobs = Vec::new();
        for prompt in prompts {
            for choice in 0..choices {
                let mut input = keys.0.clone();
                if let Some(prompt) = &prompt {
                    input.insert("prompt".to_owned(), json!(prompt));
                }
                // Choices of the same seed would all be the same.
                if choice > 0
                    && let Some(seed) = input.get("seed").and_then(Value::as_i64)
                {
                    input.insert("seed".to_owned(), json!(seed.wrapping_add_unsigned(choice)));
                }
                let mut job = options.job(&model, kind, Value::Object(input), &terms);
                job.max_tokens = max_tokens;
                jobs.push(job);
            }
        }
        if jobs.len() > JOBS_LIMIT {
            let message = format!("A request may have at most {JOBS_LIMIT} answers.");
            return Err(ApiError::wrong("n", message));
        }
        Ok(Self { form, model, jobs, stream, include_usage, tools })
    }
}

impl EmbeddingRequest {
    /// Reads the body of a request.
    ///
    /// # Errors
    /// It makes no sense, or asks for what is not offered here.
    pub(super) fn parse(body: &[u8], options: &ProxyOptions) -> Result<Self, ApiError> {
        let mut keys = Keys::parse(body)?;
        let model = keys.model()?;
        let terms = keys.terms()?;
        keys.drop_housekeeping();
        let base64 = match keys.0.remove("encoding_format") {
            None => false,
            Some(Value::String(format)) if format == "float" => false,
            Some(Value::String(format)) if format == "base64" => true,
            Some(_other) => {
                let message = "`encoding_format` must be float or base64.";
                return Err(ApiError::wrong("encoding_format", message));
            }
        };
        let texts = texts("input", keys.0.remove("input"))?;
        let count = texts.len();
        let mut input = keys.0;
        input.insert("input".to_owned(), json!(texts));
        let job = options.job(&model, JobKind::Embedding, Value::Object(input), &terms);
        Ok(Self { model, job, texts: count, base64 })
    }
}

/// Reads one text or several.
fn texts(key: &str, value: Option<Value>) -> Result<Vec<String>, ApiError> {
    let wrong = || ApiError::wrong(key, format!("`{key}` must be a text or a list of texts."));
    match value {
        Some(Value::String(text)) => Ok(vec![text]),
        Some(Value::Array(items)) if items.iter().any(Value::is_number) => {
            let message = format!("`{key}` must be text: tokens are not taken here.");
            Err(ApiError::unsupported(key, message))
        }
        Some(Value::Array(items)) if (1..=TEXTS_LIMIT).contains(&items.len()) => items
            .into_iter()
            .map(|item| match item {
                Value::String(text) => Ok(text),
                _ => Err(wrong()),
            })
            .collect(),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(form: Form, body: &Value) -> Result<TextRequest, Value> {
        TextRequest::parse(form, body.to_string().as_bytes(), &ProxyOptions::default())
            .map_err(|error| error.body()["error"].clone())
    }

    #[test]
    fn what_concerns_the_answer_goes_into_the_job_and_nothing_else() {
        let request = parse(
            Form::Chat,
            &json!({
                "model": "m", "messages": [{"role": "user", "content": "x"}], "stream": true,
                "stream_options": {"include_usage": true}, "n": 2, "seed": 7, "stop": ["a"],
                "temperature": 0.5, "max_tokens": 3, "max_completion_tokens": 4, "user": "u",
                "response_format": {"type": "json_object"}, "logprobs": false, "top_p": null,
                "tools": [{"type": "function", "function": {"name": "f"}}],
            }),
        )
        .unwrap();
        assert!(request.stream && request.include_usage && request.tools);
        assert_eq!(request.jobs.len(), 2);
        assert_ne!(request.jobs[0].id, request.jobs[1].id);
        assert_eq!(request.jobs[0].max_tokens, Some(4));
        assert_eq!(
            request.jobs[1].input,
            json!({
                "messages": [{"role": "user", "content": "x"}], "seed": 8, "stop": ["a"],
                "temperature": 0.5, "response_format": {"type": "json_object"},
                "tools": [{"type": "function", "function": {"name": "f"}}],
            })
        );
    }

    #[test]
    fn prompts_are_asked_one_by_one() {
        let body = json!({"model": "m", "prompt": ["a", "b"], "n": 2, "best_of": 2, "echo": false});
        let request = parse(Form::Completion, &body).unwrap();
        let prompts: Vec<_> = request.jobs.iter().map(|job| job.input["prompt"].clone()).collect();
        assert_eq!(prompts, ["a", "a", "b", "b"]);
        assert_eq!(request.jobs[0].kind, JobKind::Completion);
    }

    #[test]
    fn terms_of_the_market_are_of_each_job_and_not_of_its_input() {
        let options = ProxyOptions { max_cost: "0.01".parse().ok(), deadline_secs: Some(60) };
        let terms = |infernet: Value| {
            let body = json!({"model": "m", "messages": [], "n": 2, "infernet": infernet});
            let request =
                TextRequest::parse(Form::Chat, body.to_string().as_bytes(), &options).unwrap();
            assert_eq!(request.jobs[0].input, json!({"messages": []}));
            assert_eq!(request.jobs[0].terms, request.jobs[1].terms);
            request.jobs[0].terms.clone()
        };
        let node = "0192f3a4-5b6c-7d8e-9f00-112233445566";
        let asked = terms(json!({
            "needs": {"vram_gb": 24, "labels": ["ssd"], "exclude": [node]}, "priority": -1,
            "deadline_secs": 90, "max_cost": "0.002",
        }));
        assert_eq!(asked.needs.vram_gb, Some(24));
        assert_eq!(asked.needs.labels, ["ssd"]);
        assert_eq!(asked.needs.exclude, [node.parse().unwrap()]);
        assert_eq!((asked.priority, asked.deadline_secs), (Some(-1), Some(90)));
        assert_eq!(asked.max_cost, "0.002".parse().ok());
        // A client cannot spend more than the proxy allows.
        assert_eq!(terms(json!({"max_cost": 5})).max_cost, options.max_cost);
        for nothing in [json!({}), Value::Null] {
            let untouched = JobTerms {
                max_cost: options.max_cost,
                deadline_secs: Some(60),
                ..JobTerms::default()
            };
            assert_eq!(terms(nothing), untouched);
        }

        let body = json!({"model": "m", "input": "x", "infernet": {"needs": {"region": "eu"}}});
        let request = EmbeddingRequest::parse(body.to_string().as_bytes(), &options).unwrap();
        assert_eq!(request.job.terms.needs.region.as_deref(), Some("eu"));
        assert_eq!(request.job.input, json!({"input": ["x"]}));
    }

    #[test]
    fn terms_that_cannot_be_read_are_refused() {
        for (wrong, part) in [
            (json!("fast"), "must be an object"),
            (json!([]), "must be an object"),
            (json!({"needs": [24]}), "must be an object"),
            (json!({"prio": 1}), "unknown field `prio`"),
            (json!({"p_priority": 1}), "unknown field `p_priority`"),
            (json!({"needs": {"gpu": "H200"}}), "unknown field `gpu`"),
            (json!({"needs": {"vram_gb": -1}}), "`-1`"),
            (json!({"needs": {"exclude": ["attic"]}}), "UUID"),
            (json!({"deadline_secs": "1h"}), "\"1h\""),
        ] {
            let body = json!({"model": "m", "messages": [], "infernet": wrong});
            let error = parse(Form::Chat, &body).unwrap_err();
            assert_eq!(error["type"], "invalid_request_error", "{body}");
            assert_eq!(error["param"], "infernet", "{body}");
            assert!(error["message"].as_str().unwrap().contains(part), "{error}");
        }
    }

    #[test]
    fn what_would_be_silently_different_is_refused_by_name() {
        for (form, key, value) in [
            (Form::Chat, "logprobs", json!(true)),
            (Form::Chat, "modalities", json!(["text", "audio"])),
            (Form::Chat, "n", json!(0)),
            (Form::Chat, "n", json!(17)),
            (Form::Chat, "stream", json!("yes")),
            (Form::Chat, "max_tokens", json!(-1)),
            (Form::Chat, "model", json!(3)),
            (Form::Chat, "stream_options", json!({"include_usage": true})),
            (Form::Completion, "echo", json!(true)),
            (Form::Completion, "best_of", json!(5)),
            (Form::Completion, "prompt", json!([1, 2])),
            (Form::Completion, "prompt", json!([])),
        ] {
            let mut body = json!({"model": "m", "messages": [], "prompt": "x"});
            body[key] = value;
            assert_eq!(parse(form, &body).unwrap_err()["param"], key, "{body}");
        }
        for text in ["", "[]", "{", "\"x\""] {
            assert!(
                TextRequest::parse(Form::Chat, text.as_bytes(), &ProxyOptions::default()).is_err()
            );
        }
    }
}
