//! Figures: how fast the JIT is, beside this processor itself and Unicorn.
//!
//! What is compared takes turns, so that what else the host does hits all alike; ratios are medians of
//! the ratios of each turn. [`kernels`] are whole programs, [`services`] what users of the library call
//! often. Times depend on the host and its load: take ratios from a run, not times.

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

mod kernels;
mod services;
#[cfg(feature = "unicorn")]
mod unicorn;

use std::error::Error;
use std::time::{Duration, Instant};

use serde::Serialize;

pub use kernels::{Kernel, kernels};
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

/// One thing that is measured on this processor itself, where that makes sense, on the JIT, and on
/// Unicorn, where it can.
pub struct Race {
    name: String,
    unit: &'static str,
    native: Option<Contender>,
    jit: Contender,
    unicorn: Option<Contender>,
}

/// Median and extremes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Half of the values are not above it.
    pub median: f64,
    /// The lowest.
    pub min: f64,
    /// The highest.
    pub max: f64,
}

/// What came of a race.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// Of what.
    pub name: String,
    /// Of the values; less is better.
    pub unit: &'static str,
    /// On the processor itself.
    pub native: Option<Spread>,
    /// On the JIT.
    pub jit: Spread,
    /// On Unicorn.
    pub unicorn: Option<Spread>,
    /// How many times as long as native the JIT takes.
    pub jit_over_native: Option<Spread>,
    /// How many times as long as the JIT Unicorn takes.
    pub unicorn_over_jit: Option<Spread>,
    /// Why there is no figure of Unicorn where there could be one.
    pub unicorn_failed: Option<String>,
}

impl std::fmt::Debug for Race {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Race").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Race {
    fn of_the_jit(name: &str, unit: &'static str, jit: Contender) -> Self {
        Self { name: name.to_owned(), unit, native: None, jit, unicorn: None }
    }

    /// Of what.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Measures everyone so often, in turns. A Unicorn that fails is out of the race; one that has taken
    /// `patience` in all is out from then on, but what was measured counts.
    pub fn run(mut self, rounds: usize, patience: Duration) -> Result<Figure, Failure> {
        let (mut native, mut jit, mut unicorn) = (Vec::new(), Vec::new(), Vec::new());
        let mut unicorn_failed = None;
        let mut waited = Duration::ZERO;
        for _ in 0..rounds.max(1) {
            if waited > patience {
                self.unicorn = None;
            }
            if let Some(contender) = &mut self.native {
                native.push(contender()?);
            }
            jit.push((self.jit)()?);
            let begun = Instant::now();
            let measured = self.unicorn.as_mut().map(|contender| contender());
            waited += begun.elapsed();
            match measured {
                Some(Ok(value)) => unicorn.push(value),
                Some(Err(error)) => {
                    unicorn_failed = Some(error.to_string());
                    self.unicorn = None;
                    unicorn.clear();
                }
                None => {}
            }
        }
        let Some(of_jit) = Spread::of(&jit) else { return Err("nothing was measured".into()) };
        Ok(Figure {
            name: self.name,
            unit: self.unit,
            native: Spread::of(&native),
            jit: of_jit,
            unicorn: Spread::of(&unicorn),
            jit_over_native: Spread::of(&ratios(&jit, &native)),
            unicorn_over_jit: Spread::of(&ratios(&unicorn, &jit)),
            unicorn_failed,
        })
    }
}

impl Spread {
    fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let median = *sorted.get(sorted.len() / 2)?;
        Some(Self { median, min: *sorted.first()?, max: *sorted.last()? })
    }
}

/// Turn by turn, as long as both were measured.
fn ratios(above: &[f64], below: &[f64]) -> Vec<f64> {
    above.iter().zip(below).map(|(above, below)| above / below).collect()
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

    fn counting(from: f64) -> Contender {
        let mut next = from;
        Box::new(move || {
            next += 1.0;
            Ok(next)
        })
    }

    #[test]
    fn ratios_are_medians_of_turns() {
        let race = Race {
            name: "a".to_owned(),
            unit: "ns",
            native: Some(counting(0.0)),
            jit: counting(10.0),
            unicorn: Some(counting(100.0)),
        };
        let figure = race.run(3, Duration::MAX).unwrap();
        assert_eq!(figure.jit, Spread { median: 12.0, min: 11.0, max: 13.0 });
        assert_eq!(figure.jit_over_native.unwrap().median, 6.0);
        assert_eq!(figure.unicorn_over_jit.unwrap().max, 101.0 / 11.0);
        let mean = geometric_mean(&[figure.clone(), figure], |figure| figure.jit_over_native);
        assert!((mean.unwrap() - 6.0).abs() < 1e-9);
    }

    #[test]
    fn a_unicorn_that_takes_too_long_is_measured_once() {
        let slow = || {
            std::thread::sleep(Duration::from_millis(2));
            Ok(20.0)
        };
        let race =
            Race { unicorn: Some(Box::new(slow)), ..Race::of_the_jit("a", "ns", counting(0.0)) };
        let figure = race.run(3, Duration::from_millis(1)).unwrap();
        assert_eq!(figure.unicorn_over_jit, Some(Spread { median: 20.0, min: 20.0, max: 20.0 }));
        assert_eq!((figure.jit.median, figure.unicorn_failed), (2.0, None));
    }

    #[test]
    fn a_unicorn_that_fails_is_out() {
        let mut left = 1;
        let failing = move || {
            left -= 1;
            if left < 0 { Err("no AVX".into()) } else { Ok(1.0) }
        };
        let race =
            Race { unicorn: Some(Box::new(failing)), ..Race::of_the_jit("a", "ns", counting(0.0)) };
        let figure = race.run(3, Duration::MAX).unwrap();
        assert_eq!((figure.unicorn, figure.unicorn_over_jit), (None, None));
        assert_eq!(figure.unicorn_failed.as_deref(), Some("no AVX"));
    }
}
