//! `tregion exec`: bare code until `hlt`.

use std::path::PathBuf;

use clap::Args;

use super::{Failure, Found};

/// What `exec` is given.
#[derive(Args)]
pub(super) struct Arguments {
    /// A flat binary, or a static ELF
    #[arg(value_name = "IMAGE")]
    image: PathBuf,
}

pub(super) fn run(_arguments: &Arguments) -> Result<Found, Failure> {
    Ok(Found::Nothing)
}
