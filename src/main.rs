//! The `infernet` binary: parse, run, exit code.

fn main() {}
