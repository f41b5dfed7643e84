//! Questions to the person at the terminal.
//!
//! Questions go to stderr, answers come from stdin. Where nobody can answer, or
//! `--yes` was given, the default is taken; a question without one is an error
//! that names the flag to use.

use std::io::{self, BufRead, IsTerminal, Write};

use crate::command_error::{CommandError, Kind};

/// Somebody who answers, or nobody.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    anybody: bool,
}

impl Ask {
    /// Asks the terminal, unless `yes` says that the defaults are meant.
    pub(crate) fn new(yes: bool) -> Self {
        Self { anybody: !yes && io::stdin().is_terminal() && io::stderr().is_terminal() }
    }

    /// Asks for a text; an empty answer is the default.
    pub(crate) fn text(
        &self,
        question: &str,
        default: Option<&str>,
        flag: &str,
    ) -> Result<String, CommandError> {
        if !self.anybody {
            return match default {
                Some(default) => Ok(default.to_owned()),
                None => Err(CommandError::new(Kind::Usage, format!("{question} is not known."))
                    .hint(format!("Give it with {flag}."))),
            };
        }
        loop {
            let answer = match default {
                Some(default) => ask(&format!("{question} [{default}]: "))?,
                None => ask(&format!("{question}: "))?,
            };
            match (answer.is_empty(), default) {
                (false, _) => return Ok(answer),
                (true, Some(default)) => return Ok(default.to_owned()),
                (true, None) => {}
            }
        }
    }

    /// Asks for a text that may be left out.
    pub(crate) fn optional(&self, question: &str) -> Result<Option<String>, CommandError> {
        if !self.anybody {
            return Ok(None);
        }
        let answer = ask(&format!("{question}: "))?;
        Ok((!answer.is_empty()).then_some(answer))
    }

    /// Asks yes or no.
    pub(crate) fn confirm(&self, question: &str, default: bool) -> Result<bool, CommandError> {
        if !self.anybody {
            return Ok(default);
        }
        let choices = if default { "Y/n" } else { "y/N" };
        loop {
            match ask(&format!("{question} [{choices}] "))?.to_ascii_lowercase().as_str() {
                "" => return Ok(default),
                "y" | "yes" => return Ok(true),
                "n" | "no" => return Ok(false),
                _ => {}
            }
        }
    }
}

fn ask(question: &str) -> Result<String, CommandError> {
    let mut stderr = io::stderr().lock();
    stderr.write_all(question.as_bytes())?;
    stderr.flush()?;
    drop(stderr);
    let mut line = String::new();
    if io::stdin().lock().read_line(&mut line)? == 0 {
        return Err(CommandError::new(Kind::Interrupted, "Nothing was changed."));
    }
    Ok(line.trim().to_owned())
}
