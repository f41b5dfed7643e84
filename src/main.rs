//! The `infernet` binary: parse, run, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    infernet::commands::main(std::env::args_os())
}
