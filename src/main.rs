//! The command line: `tregion fuzz`, `replay`, `minimize`, `merge`, `engines`, `exec`.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
