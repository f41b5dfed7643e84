//! What a consumer asks: the arguments that `run` and `job submit` share.

use std::io::{self, IsTerminal, Read};
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::terms::{TermsArgs, seconds};
use crate::command_error::{CommandError, Kind};
use crate::control::rpc::{JobKind, SubmitJob};

/// The most that is read of a prompt from stdin; the control plane's own limit
/// is far lower.
const PROMPT_LIMIT: u64 = 16 * 1024 * 1024;

/// The kinds of work that can be asked for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
pub(crate) enum WorkKind {
    /// Answer a message
    #[default]
    Chat,
    /// Go on with a text
    Completion,
    /// Turn a text into a vector
    Embedding,
    /// Run a container with an input
    Container,
}

impl From<WorkKind> for JobKind {
    fn from(kind: WorkKind) -> Self {
        match kind {
            WorkKind::Chat => Self::Chat,
            WorkKind::Completion => Self::Completion,
            WorkKind::Embedding => Self::Embedding,
            WorkKind::Container => Self::Container,
        }
    }
}

/// What is asked, and within which limits.
#[derive(Debug, clap::Args)]
pub(crate) struct PromptArgs {
    /// The model that answers, or the image that runs
    model: String,
    /// The prompt, text or input; read from stdin when absent or -
    prompt: Option<String>,
    /// Ask for this kind of work
    #[arg(long, value_enum, default_value_t, value_name = "KIND")]
    kind: WorkKind,
    /// Hand this argument to the container's program; may be repeated
    #[arg(long = "arg", value_name = "TEXT", allow_hyphen_values = true)]
    args: Vec<String>,
    /// Let the container run for this long at most, such as 90s, 10m or 2h
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    max_time: Option<Duration>,
    /// Say this to the model before the prompt
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Stop after this many tokens
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
    /// Choose tokens more freely (above 1) or more strictly (0 is the strictest)
    #[arg(long, value_name = "NUMBER")]
    temperature: Option<f64>,
    /// Choose among the likeliest tokens that add up to this probability
    #[arg(long, value_name = "NUMBER")]
    top_p: Option<f64>,
    /// Make the choice of tokens repeatable, as far as the engine can
    #[arg(long, value_name = "N")]
    seed: Option<i64>,
    /// Let its engine use what it remembers of other prompts, and remember this one, for
    /// whoever allows that too: faster, but one may guess from times what others asked
    #[arg(long)]
    share_prefix_cache: bool,
    #[command(flatten)]
    terms: TermsArgs,
}

impl PromptArgs {
    /// Makes the job, with a new id; reads stdin if the prompt is there.
    pub(crate) fn job(&self) -> Result<SubmitJob, CommandError> {
        self.check()?;
        let prompt = self.prompt()?;
        let mut input = match self.kind {
            WorkKind::Chat => {
                let mut messages = Vec::with_capacity(2);
                if let Some(system) = &self.system {
                    messages.push(json!({"role": "system", "content": system}));
                }
                messages.push(json!({"role": "user", "content": prompt}));
                Map::from_iter([("messages".to_owned(), Value::Array(messages))])
            }
            WorkKind::Completion => Map::from_iter([("prompt".to_owned(), json!(prompt))]),
            WorkKind::Embedding => Map::from_iter([("input".to_owned(), json!(prompt))]),
            WorkKind::Container => Map::from_iter([
                ("input".to_owned(), json!(prompt)),
                ("args".to_owned(), json!(self.args)),
            ]),
        };
        if let Some(temperature) = self.temperature {
            input.insert("temperature".to_owned(), json!(temperature));
        }
        if let Some(top_p) = self.top_p {
            input.insert("top_p".to_owned(), json!(top_p));
        }
        if let Some(seed) = self.seed {
            input.insert("seed".to_owned(), json!(seed));
        }
        if self.share_prefix_cache {
            input.insert("share_prefix_cache".to_owned(), json!(true));
        }
        let mut job = SubmitJob::chat(&self.model, Value::Object(input));
        job.max_tokens = self.max_tokens;
        job.terms = self.terms.terms();
        job.kind = self.kind.into();
        job.max_seconds = self.max_time.map(seconds);
        Ok(job)
    }

    /// Refuses options that say nothing to this kind of work.
    fn check(&self) -> Result<(), CommandError> {
        let container = self.kind == WorkKind::Container;
        let text = matches!(self.kind, WorkKind::Chat | WorkKind::Completion);
        let wrong = [
            ("--system", self.system.is_some() && self.kind != WorkKind::Chat),
            ("--max-tokens", self.max_tokens.is_some() && !text),
            ("--temperature", self.temperature.is_some() && !text),
            ("--top-p", self.top_p.is_some() && !text),
            ("--seed", self.seed.is_some() && !text),
            ("--share-prefix-cache", self.share_prefix_cache && !text),
            ("--arg", !self.args.is_empty() && !container),
            ("--max-time", self.max_time.is_some() && !container),
        ]
        .into_iter()
        .find_map(|(option, wrong)| wrong.then_some(option));
        match wrong {
            None => Ok(()),
            Some(option) => Err(CommandError::new(
                Kind::Usage,
                format!(
                    "{option} says nothing to a job of kind {}.",
                    JobKind::from(self.kind).as_str()
                ),
            )),
        }
    }

    fn prompt(&self) -> Result<String, CommandError> {
        match self.prompt.as_deref() {
            Some(prompt) if prompt != "-" => return Ok(prompt.to_owned()),
            None if io::stdin().is_terminal() => {
                return Err(CommandError::new(Kind::Usage, "There is no prompt.")
                    .hint("Write it after the model, or send it to stdin."));
            }
            Some(_) | None => {}
        }
        let mut bytes = Vec::new();
        io::stdin().lock().take(PROMPT_LIMIT + 1).read_to_end(&mut bytes).map_err(|error| {
            CommandError::user(format!("The prompt cannot be read from stdin ({error})."))
        })?;
        if bytes.len() as u64 > PROMPT_LIMIT {
            return Err(CommandError::user("The prompt is larger than 16 MiB.")
                .word("prompt_too_large")
                .hint("Shorten it."));
        }
        let mut prompt = String::from_utf8(bytes)
            .map_err(|_error| CommandError::user("The prompt on stdin is not UTF-8 text."))?;
        // The newline of a shell's pipe is not part of the question.
        prompt.truncate(prompt.trim_end_matches(['\n', '\r']).len());
        Ok(prompt)
    }
}

/// Reads a time such as `90`, `90s`, `10m` or `2h`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("\"{text}\" is not a time; write it as 90s, 10m or 2h");
    let (digits, factor) = match text.trim() {
        text if text.ends_with('s') => (&text[..text.len() - 1], 1),
        text if text.ends_with('m') => (&text[..text.len() - 1], 60),
        text if text.ends_with('h') => (&text[..text.len() - 1], 3600),
        text => (text, 1),
    };
    let count: u64 = digits.parse().map_err(|_error| wrong())?;
    count
        .checked_mul(factor)
        .filter(|seconds| (1..=u64::from(u32::MAX)).contains(seconds))
        .map(Duration::from_secs)
        .ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_unit() {
        assert_eq!(parse_duration("90").unwrap().as_secs(), 90);
        assert_eq!(parse_duration("90s").unwrap().as_secs(), 90);
        assert_eq!(parse_duration("10m").unwrap().as_secs(), 600);
        assert_eq!(parse_duration("2h").unwrap().as_secs(), 7200);
        for wrong in ["", "0", "s", "1d", "-1", "99999999999999999999h"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }
}
