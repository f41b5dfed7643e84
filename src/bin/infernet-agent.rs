//! The `infernet-agent` binary: `infernet start --foreground`, for service
//! managers.

use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    let start = ["infernet", "start", "--foreground"].map(OsString::from);
    infernet::commands::main(start.into_iter().chain(std::env::args_os().skip(1)))
}
