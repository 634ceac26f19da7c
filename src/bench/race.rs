//! [`Race`]: one thing, measured on everyone in turns; [`Figure`]: what came of it.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::{Contender, Failure};

/// One thing that is measured on this processor itself, where that makes sense, on the JIT, and on
/// others, where they can.
pub struct Race {
    pub(super) name: String,
    pub(super) unit: &'static str,
    pub(super) native: Option<Contender>,
    pub(super) jit: Contender,
    pub(super) unicorn: Option<Contender>,
    pub(super) qemu: Option<Processes>,
}

/// The same program as a process of its own, started and waited for: on the processor itself, and under
/// `qemu-x86_64`.
pub(super) struct Processes {
    pub(super) native: Contender,
    pub(super) qemu: Contender,
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
    /// On the processor itself, as a process of its own, its start included.
    pub process: Option<Spread>,
    /// The same process under `qemu-x86_64`.
    pub qemu: Option<Spread>,
    /// How many times as long as that process on the processor itself it takes.
    pub qemu_over_process: Option<Spread>,
    /// Why there is no figure of QEMU where there could be one.
    pub qemu_failed: Option<String>,
}

impl std::fmt::Debug for Race {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Race").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Race {
    pub(super) fn of_the_jit(name: &str, unit: &'static str, jit: Contender) -> Self {
        Self { name: name.to_owned(), unit, native: None, jit, unicorn: None, qemu: None }
    }

    /// Of what.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Measures everyone so often, in turns. Unicorn or QEMU is out of the race if it fails; when it has
    /// taken `patience` in all it is out from then on, but what was measured counts.
    pub fn run(mut self, rounds: usize, patience: Duration) -> Result<Figure, Failure> {
        let (mut native, mut jit, mut process) = (Vec::new(), Vec::new(), Vec::new());
        let (mut of_process, of_qemu) = self.qemu.map(|both| (both.native, both.qemu)).unzip();
        let (mut unicorn, mut qemu) = (Guest::new(self.unicorn), Guest::new(of_qemu));
        for _ in 0..rounds.max(1) {
            if let Some(contender) = &mut self.native {
                native.push(contender()?);
            }
            jit.push((self.jit)()?);
            unicorn.turn(patience);
            if let Some(contender) = of_process.as_mut().filter(|_| qemu.is_in(patience)) {
                process.push(contender()?);
            }
            qemu.turn(patience);
        }
        let Some(of_jit) = Spread::of(&jit) else { return Err("nothing was measured".into()) };
        Ok(Figure {
            name: self.name,
            unit: self.unit,
            native: Spread::of(&native),
            jit: of_jit,
            unicorn: Spread::of(&unicorn.values),
            jit_over_native: Spread::of(&ratios(&jit, &native)),
            unicorn_over_jit: Spread::of(&ratios(&unicorn.values, &jit)),
            unicorn_failed: unicorn.failed,
            process: Spread::of(&process),
            qemu: Spread::of(&qemu.values),
            qemu_over_process: Spread::of(&ratios(&qemu.values, &process)),
            qemu_failed: qemu.failed,
        })
    }
}

/// A contender that may fail, and that is waited for only so long.
struct Guest {
    contender: Option<Contender>,
    values: Vec<f64>,
    waited: Duration,
    failed: Option<String>,
}

impl Guest {
    fn new(contender: Option<Contender>) -> Self {
        Self { contender, values: Vec::new(), waited: Duration::ZERO, failed: None }
    }

    fn is_in(&self, patience: Duration) -> bool {
        self.contender.is_some() && self.waited <= patience
    }

    fn turn(&mut self, patience: Duration) {
        if !self.is_in(patience) {
            return;
        }
        let begun = Instant::now();
        match self.contender.as_mut().map(|contender| contender()) {
            Some(Ok(value)) => self.values.push(value),
            Some(Err(error)) => {
                self.failed = Some(error.to_string());
                self.contender = None;
                self.values.clear();
            }
            None => {}
        }
        self.waited += begun.elapsed();
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

#[cfg(test)]
mod tests {
    use super::super::geometric_mean;
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
            native: Some(counting(0.0)),
            unicorn: Some(counting(100.0)),
            qemu: Some(Processes { native: counting(1.0), qemu: counting(10.0) }),
            ..Race::of_the_jit("a", "ns", counting(10.0))
        };
        let figure = race.run(3, Duration::MAX).unwrap();
        assert_eq!(figure.jit, Spread { median: 12.0, min: 11.0, max: 13.0 });
        assert_eq!(figure.jit_over_native.unwrap().median, 6.0);
        assert_eq!(figure.unicorn_over_jit.unwrap().max, 101.0 / 11.0);
        assert_eq!(figure.qemu_over_process.unwrap().max, 11.0 / 2.0);
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
    fn whoever_fails_is_out() {
        let failing = || {
            let mut left = 1;
            move || {
                left -= 1;
                if left < 0 { Err("no AVX".into()) } else { Ok(1.0) }
            }
        };
        let race = Race {
            unicorn: Some(Box::new(failing())),
            qemu: Some(Processes { native: counting(0.0), qemu: Box::new(failing()) }),
            ..Race::of_the_jit("a", "ns", counting(0.0))
        };
        let figure = race.run(3, Duration::MAX).unwrap();
        assert_eq!((figure.unicorn, figure.unicorn_over_jit), (None, None));
        assert_eq!(figure.unicorn_failed.as_deref(), Some("no AVX"));
        assert_eq!((figure.qemu, figure.qemu_over_process), (None, None));
        assert_eq!(figure.qemu_failed.as_deref(), Some("no AVX"));
    }
}
