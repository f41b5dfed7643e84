//! The help of every command, as it was reviewed: one snapshot each, in
//! `snapshots/help`.
//!
//! A new command fails here until `INSTA_UPDATE=always cargo test --lib help`
//! has written its snapshot and somebody has read it; a snapshot without a
//! command fails too.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use clap::CommandFactory;

use super::Cli;

/// Every command below one, each by its path of words.
fn commands(command: &mut clap::Command, path: &str, found: &mut Vec<(String, String)>) {
    found.push((path.to_owned(), help(command, path)));
    let names: Vec<String> = command
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
        .map(|command| command.get_name().to_owned())
        .collect();
    for name in names.into_iter().filter(|name| name != "help") {
        let below = command.find_subcommand_mut(&name).expect("a name that was just listed");
        commands(below, &format!("{path} {name}"), found);
    }
}

/// The long help of a command; the global options are in that of `infernet` alone.
fn help(command: &mut clap::Command, path: &str) -> String {
    let whole = command.render_long_help().to_string();
    match whole.find("\nGlobal options:\n") {
        Some(start) if path != "infernet" => {
            let rest = &whole[start + 1..];
            let after = rest
                .match_indices("\n\n")
                .map(|(at, _)| &rest[at + 2..])
                .find(|after| !after.starts_with([' ', '\n']))
                .unwrap_or_default();
            format!("{}\n{after}", &whole[..start])
        }
        _ => whole,
    }
}

fn every_command() -> Vec<(String, String)> {
    let mut command = Cli::command().term_width(100);
    command.build();
    let mut found = Vec::new();
    commands(&mut command, "infernet", &mut found);
    found
}

#[test]
fn the_help_of_every_command_is_as_reviewed() {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("snapshots/help");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| {
        for (path, text) in every_command() {
            insta::assert_snapshot!(path.replace(' ', "_"), text);
        }
    });
}

#[test]
fn every_command_has_its_snapshot_and_every_snapshot_its_command() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/commands/snapshots/help");
    let files: BTreeSet<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let expected: BTreeSet<String> = every_command()
        .iter()
        .map(|(path, _)| format!("{}.snap", path.replace(' ', "_")))
        .collect();
    assert_eq!(files, expected);
}

#[test]
fn every_command_and_every_argument_is_explained() {
    fn check(command: &clap::Command, path: &str, silent: &mut Vec<String>) {
        if command.get_about().is_none() {
            silent.push(path.to_owned());
        }
        for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
            if argument.get_help().is_none() {
                silent.push(format!("{path}: {}", argument.get_id()));
            }
        }
        for below in command
            .get_subcommands()
            .filter(|below| below.get_name() != "help" && !below.is_hide_set())
        {
            check(below, &format!("{path} {}", below.get_name()), silent);
        }
    }
    let mut command = Cli::command();
    command.build();
    let mut silent = Vec::new();
    check(&command, "infernet", &mut silent);
    assert!(silent.is_empty(), "without words: {silent:?}");
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}
