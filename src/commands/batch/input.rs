//! The file of a batch: a line an item.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::command_error::{CommandError, Kind};

/// The most that is read of a file; the control plane's own limits are lower.
const FILE_LIMIT: u64 = 64 * 1024 * 1024;

/// Reads the items of a file, or of stdin for `-`.
pub(super) fn read(
    path: &Path,
    plain: bool,
    system: Option<&str>,
) -> Result<Vec<Value>, CommandError> {
    let name = path.display().to_string();
    let mut text = String::new();
    let read = if path.as_os_str() == "-" {
        io::stdin().lock().take(FILE_LIMIT + 1).read_to_string(&mut text)
    } else {
        File::open(path).and_then(|file| file.take(FILE_LIMIT + 1).read_to_string(&mut text))
    };
    let length = read.map_err(|error| {
        CommandError::user(format!("The file {name} cannot be read ({error})."))
    })?;
    if length as u64 > FILE_LIMIT {
        return Err(CommandError::user(format!("The file {name} is larger than 64 MiB."))
            .hint("Split it into several batches."));
    }
    items(&text, plain, system).map_err(|(line, wrong)| {
        CommandError::new(Kind::User, format!("Line {line} of {name} is no item: {wrong}"))
            .word("bad_line")
            .hint(
                "A line is a prompt as a JSON string, or an object with \"prompt\" or \
                 \"messages\". With --plain, each line is a prompt as it is.",
            )
    })
}

/// Makes the items; an error is a line's number and what is wrong with it.
fn items(text: &str, plain: bool, system: Option<&str>) -> Result<Vec<Value>, (usize, String)> {
    text.lines()
        .enumerate()
        .filter(|(_at, line)| !line.trim().is_empty())
        .map(|(at, line)| {
            if plain {
                return Ok(chat(line, Map::new(), system));
            }
            item(line, system).map_err(|wrong| (at + 1, wrong))
        })
        .collect()
}

fn item(line: &str, system: Option<&str>) -> Result<Value, String> {
    let value: Value = serde_json::from_str(line).map_err(|error| format!("{error}."))?;
    match value {
        Value::String(prompt) => Ok(chat(&prompt, Map::new(), system)),
        Value::Object(mut input) => match input.remove("prompt") {
            Some(Value::String(prompt)) if !input.contains_key("messages") => {
                Ok(chat(&prompt, input, system))
            }
            None if input.get("messages").is_some_and(Value::is_array) => Ok(Value::Object(input)),
            _ => Err("it needs either \"prompt\", a text, or \"messages\", a list.".to_owned()),
        },
        _ => Err("it is neither a text nor an object.".to_owned()),
    }
}

/// Makes the input of a chat from a prompt and the other keys of a request.
fn chat(prompt: &str, mut input: Map<String, Value>, system: Option<&str>) -> Value {
    let mut messages = Vec::with_capacity(2);
    if let Some(system) = system {
        messages.push(json!({"role": "system", "content": system}));
    }
    messages.push(json!({"role": "user", "content": prompt}));
    input.insert("messages".to_owned(), Value::Array(messages));
    Value::Object(input)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_text_or_an_object() {
        let text = "\"one\"\n\n{\"prompt\":\"two\",\"temperature\":0}\n{\"messages\":[]}\n";
        let read = items(text, false, Some("be brief")).unwrap();
        assert_eq!(read[0]["messages"][0]["content"], "be brief");
        assert_eq!(read[0]["messages"][1], json!({"role": "user", "content": "one"}));
        assert_eq!(read[1]["messages"][1]["content"], "two");
        assert_eq!(read[1]["temperature"], 0);
        assert_eq!(read[2], json!({"messages": []}));
        let plain = items("{not json}\nb\n", true, None).unwrap();
        assert_eq!(plain[0]["messages"][0]["content"], "{not json}");
        assert_eq!(plain.len(), 2);
    }

    #[test]
    fn a_wrong_line_is_named() {
        for (text, line) in [
            ("\"a\"\nb\n", 2),
            ("3\n", 1),
            ("\n\n{\"text\":\"x\"}\n", 3),
            ("{\"prompt\":1}", 1),
            ("{\"prompt\":\"a\",\"messages\":[]}", 1),
        ] {
            assert_eq!(items(text, false, None).unwrap_err().0, line, "{text}");
        }
    }
}
