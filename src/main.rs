//! The `fencegate` command.

fn main() {}
