//! `tregion convert`: inputs of fuzz targets, such as crash files, as cases, and back.

use std::path::PathBuf;

use clap::Args;
use tregion::case::text;
use tregion::properties::Target;

use super::output::write_or_print;
use super::{Failure, Found};

/// What `convert` is given.
#[derive(Args)]
pub(super) struct Arguments {
    /// An input of the target, such as a crash file; the text of a case is one too
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Whose input it is: case_text, differential, smc_remap or raw_bytes
    #[arg(long)]
    target: Target,
    /// Where the result goes; standard output if not given
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The other way: FILE is a case, the result an input that makes it, bytes where the target's bytes
    /// can, else the case's text
    #[arg(long)]
    to_input: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<Found, Failure> {
    let name = arguments.file.display();
    let fail = |error: &dyn std::fmt::Display| Failure(format!("{name}: {error}"));
    let bytes = std::fs::read(&arguments.file).map_err(|error| fail(&error))?;
    let result = if arguments.to_input {
        let case = Target::CaseText.case_of(&bytes).map_err(|error| fail(&error))?;
        arguments.target.input_of(&case).map_err(|error| fail(&error))?
    } else {
        let case = arguments.target.case_of(&bytes).map_err(|error| fail(&error))?;
        text::print(&case).into_bytes()
    };
    write_or_print(arguments.out.as_deref(), result)?;
    Ok(Found::Nothing)
}
