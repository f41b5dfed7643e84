//! The `infernet-agent` binary: `infernet start --foreground`.

fn main() {}
