//! Figures: how fast the JIT is, beside this processor itself, Unicorn and `qemu-x86_64`.
//!
//! What is compared takes turns, so that what else the host does hits all alike; ratios are medians of
//! the ratios of each turn. [`kernels`] are whole programs, [`regions`] what keeps translated code true
//! while code changes, [`services`] what users of the library call often. Times depend on the host and
//! its load: take ratios from a run, not times.

/// A contender on Unicorn, in a build that has it.
macro_rules! on_unicorn {
    ($contender:expr) => {{
        #[cfg(feature = "unicorn")]
        let contender = Some($contender);
        #[cfg(not(feature = "unicorn"))]
        let contender = None;
        contender
    }};
}

mod host;
mod kernels;
mod large;
mod process;
mod program;
mod race;
mod regions;
mod services;
#[cfg(feature = "unicorn")]
mod unicorn;

use std::error::Error;
use std::time::{Duration, Instant};

pub use host::Host;
pub use kernels::{Kernel, kernels};
pub use large::walks;
pub use process::qemu;
pub use race::{Figure, Race, Spread};
pub use regions::regions;
pub use services::services;

use crate::case::{Case, Outcome, Stop};
use crate::engine::Engine;

/// Whatever keeps something from being measured.
pub type Failure = Box<dyn Error + Send + Sync>;

/// Takes one measurement, in the unit of its race.
type Contender = Box<dyn FnMut() -> Result<f64, Failure>>;

/// Nanoseconds that `work` takes, one of `times`.
fn each(times: u64, mut work: impl FnMut(u64) -> Result<(), Failure>) -> Result<f64, Failure> {
    let begun = Instant::now();
    (0..times).try_for_each(&mut work)?;
    Ok(begun.elapsed().as_secs_f64() * 1e9 / times as f64)
}

/// Runs a case to its `hlt`; how long that took, and what came out.
fn run_to_halt(engine: &mut impl Engine, case: &Case) -> Result<(Duration, Outcome), Failure> {
    let begun = Instant::now();
    let outcome = engine.run(case)?;
    let time = begun.elapsed();
    if outcome.stop != Stop::Halt {
        return Err(format!("{}: the program ends by {}", engine.name(), outcome.stop).into());
    }
    Ok((time, outcome))
}

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// Under a minute in all.
    Quick,
    /// Some minutes.
    Full,
}

impl Effort {
    /// `quick` or `full`.
    fn pick<T>(self, quick: T, full: T) -> T {
        match self {
            Self::Quick => quick,
            Self::Full => full,
        }
    }
}

/// The geometric mean of the medians, of figures that have one.
#[must_use]
pub fn geometric_mean(figures: &[Figure], of: fn(&Figure) -> Option<Spread>) -> Option<f64> {
    let logarithms: Vec<f64> =
        figures.iter().filter_map(of).map(|spread| spread.median.ln()).collect();
    let sum: f64 = logarithms.iter().sum();
    (!logarithms.is_empty()).then(|| (sum / logarithms.len() as f64).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_can_be_measured() {
        let effort = Effort::Quick;
        let races = [regions(effort), walks(effort), services(effort)];
        for race in races.into_iter().flat_map(Result::unwrap) {
            let name = race.name().to_owned();
            let figure =
                race.run(1, Duration::MAX).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(figure.jit.median > 0.0 && figure.unicorn_failed.is_none(), "{figure:?}");
        }
    }
}
