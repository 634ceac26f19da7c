//! [`Samples`]: how many cases were done after how many seconds, in bounded space.

use serde::{Deserialize, Serialize};

/// Samples that are kept at most: more than a plot has columns to show.
const MOST: usize = 512;

/// Clocks are not even: samples that are nearer by so many seconds than they should be are as good.
const TOLERANCE: f64 = 0.5;

/// One point of time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Since the campaign's start, while it was at work.
    pub seconds: f64,
    /// Cases done until then.
    pub cases: u64,
}

/// Points of time, in order. When there are too many, every second one is dropped.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Samples(Vec<Sample>);

impl Samples {
    /// Adds one, unless it is nearer to the last one than the first is to the start. So they stay
    /// evenly apart although every second one is dropped again and again.
    pub(super) fn push(&mut self, sample: Sample) {
        if let (Some(first), Some(last)) = (self.0.first(), self.0.last())
            && sample.seconds - last.seconds + TOLERANCE < first.seconds
        {
            return;
        }
        self.0.push(sample);
        if self.0.len() > MOST {
            let mut odd = false;
            self.0.retain(|_| {
                odd = !odd;
                !odd
            });
        }
    }

    /// Adds those of a campaign that began when this one had come to `end`.
    pub(super) fn append(&mut self, end: Sample, later: &Self) {
        for sample in &later.0 {
            self.push(Sample {
                seconds: end.seconds + sample.seconds,
                cases: end.cases + sample.cases,
            });
        }
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> &[Sample] {
        &self.0
    }

    /// Cases a second between each sample and the one before it, which at first is the start.
    pub fn rates(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        let before =
            std::iter::once(Sample { seconds: 0.0, cases: 0 }).chain(self.0.iter().copied());
        before.zip(&self.0).filter(|(before, after)| after.seconds > before.seconds).map(
            |(before, after)| {
                let cases = after.cases.saturating_sub(before.cases) as f64;
                (after.seconds, cases / (after.seconds - before.seconds))
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_long_it_takes_there_are_few() {
        let mut samples = Samples::default();
        for second in 1..=100_000_u32 {
            samples.push(Sample { seconds: second.into(), cases: u64::from(second) * 10 });
        }
        assert!((MOST / 2..=MOST).contains(&samples.all().len()));
        let seconds: Vec<f64> = samples.all().iter().map(|sample| sample.seconds).collect();
        assert!(seconds.windows(2).all(|pair| pair[1] - pair[0] == seconds[0]), "{seconds:?}");
        assert!(samples.rates().all(|(_, rate)| rate == 10.0));
    }

    #[test]
    fn what_goes_on_is_counted_from_where_it_was() {
        let mut first = Samples(vec![Sample { seconds: 5.0, cases: 50 }]);
        first.append(Sample { seconds: 6.0, cases: 60 }, &first.clone());
        assert_eq!(first.0[1], Sample { seconds: 11.0, cases: 110 });
    }
}
