//! `tregion merge`.

use std::path::PathBuf;

use clap::Args;
use tregion::campaign::merge::merge;

use super::output::print;
use super::{Failure, Found};

/// What `merge` is given.
#[derive(Args)]
pub(super) struct Arguments {
    /// Folders of campaigns
    #[arg(required = true, value_name = "DIR")]
    folders: Vec<PathBuf>,
    /// Where the whole goes
    #[arg(short, long, value_name = "DIR")]
    out: PathBuf,
}

pub(super) fn run(arguments: &Arguments) -> Result<Found, Failure> {
    let summary = merge(&arguments.folders, &arguments.out)?;
    print(&summary.text())?;
    Ok(if summary.differences > 0 { Found::Differences } else { Found::Nothing })
}
