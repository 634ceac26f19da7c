//! [`Engine`]: whatever can run a [`Case`] and say all that a guest could see of it.
//!
//! An engine knows no other engine, no generator and no verdict. What it cannot do is
//! [`Unsupported`], a value that campaigns count and show; what it lost in the middle of a case is an
//! [`Outcome`] with [`crate::case::Stop::Lost`].

mod capabilities;
mod case_memory;
pub mod isolated;
pub mod jit;
pub mod sabotaged;
pub mod silicon;
mod turns;
#[cfg(feature = "unicorn")]
pub mod unicorn;
mod watchdog;

pub use capabilities::{Capabilities, Visible};

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use crate::case::{Case, Loss, Outcome, Stop};

/// A case that an engine cannot run, and why. Not an error: a fact to be counted.
#[derive(
    Clone, Debug, PartialEq, Eq, Hash, thiserror::Error, serde::Serialize, serde::Deserialize,
)]
#[error("not supported: {what}")]
pub struct Unsupported {
    /// What the engine lacks, in a few words that are the same for each such case.
    pub what: String,
}

impl Unsupported {
    /// The engine lacks `what`.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into() }
    }
}

/// How a process was lost that ended so.
fn loss(status: ExitStatus) -> Loss {
    match status.signal() {
        Some(signal) => Loss::Killed { signal },
        None => Loss::Exited { status: status.code().unwrap_or_default() },
    }
}

/// Runs cases, one after the other, none of which sees anything of those before it.
pub trait Engine {
    /// The name it has on the command line and in verdicts.
    fn name(&self) -> &str;

    /// Which version of what it is, for reports.
    fn version(&self) -> String;

    /// What it can do and what of a state it can show.
    fn capabilities(&self) -> &Capabilities;

    /// What it has counted of its own work, by name, for people.
    fn figures(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }

    /// Lets a leg take so much processor time before its guest counts as run away.
    fn set_time_limit(&mut self, limit: Duration);

    /// Runs a valid `case` to its end. The same case has the same outcome each time.
    fn run(&mut self, case: &Case) -> Result<Outcome, Unsupported>;

    /// Runs a case that silicon ended so: a guest that came to an end there has not run away, however
    /// long an engine takes that is slower, which may give it more time than [`Self::run`] does.
    fn run_beside(&mut self, case: &Case, _silicon: Stop) -> Result<Outcome, Unsupported> {
        self.run(case)
    }
}
