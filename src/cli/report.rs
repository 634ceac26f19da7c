//! `tregion report`.

use std::path::PathBuf;

use clap::Args;
use tregion::report::page;

use super::output::write_or_print;
use super::{Failure, Found, engines};

/// What `report` is given.
#[derive(Args)]
pub(super) struct Arguments {
    /// Folder of a campaign
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Where the page goes; standard output if not given
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> Result<Found, Failure> {
    // Cases are kept that an engine is known not to survive or to have, so none is filtered.
    let make = |name: &str| match name {
        "unicorn" => engines::make("unicorn:unfiltered", 1),
        name => engines::make(name, 1),
    };
    let page = page(&arguments.folder, &make)?;
    write_or_print(arguments.out.as_deref(), page)?;
    Ok(Found::Nothing)
}
