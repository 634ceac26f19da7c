//! [`Record`]: what was measured, where and when, as JSON. [`Samples`]: times in nanoseconds.

use std::fs;
use std::path::PathBuf;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use crate::Failure;

/// See the file's head.
pub(crate) struct Record {
    all: Map<String, Value>,
    date: String,
}

impl Record {
    pub(crate) fn new() -> Self {
        let date = today();
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let mut all = Map::new();
        all.insert("date".into(), json!(date));
        all.insert("processor".into(), json!(processor()));
        all.insert("cores".into(), json!(cores));
        all.insert("load".into(), json!(load()));
        all.insert("unicorn".into(), json!(cfg!(feature = "unicorn")));
        Self { all, date }
    }

    pub(crate) fn note(&mut self, name: &str, value: Value) {
        self.all.insert(name.into(), value);
    }

    /// Writes it into the repository; where.
    pub(crate) fn write(self) -> Result<PathBuf, Failure> {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches/record");
        fs::create_dir_all(&folder)?;
        let path = folder.join(format!("regions-{}.json", self.date));
        let text = serde_json::to_string_pretty(&Value::Object(self.all))?;
        fs::write(&path, text + "\n")?;
        Ok(path)
    }
}

/// Times of one thing, in nanoseconds.
#[derive(Debug, Default)]
pub(crate) struct Samples(Vec<u64>);

impl Samples {
    /// Times `work`.
    pub(crate) fn time<T>(&mut self, work: impl FnOnce() -> T) -> T {
        // What reads the clock is in the caches then.
        std::hint::black_box(Instant::now());
        let begun = Instant::now();
        let result = work();
        self.add(begun);
        result
    }

    /// The time since `begun`.
    pub(crate) fn add(&mut self, begun: Instant) {
        self.0.push(begun.elapsed().as_nanos() as u64);
    }

    /// Median and spread: the extremes, and between which half of the samples lie.
    pub(crate) fn summary(mut self) -> Value {
        self.0.sort_unstable();
        let last = self.0.len() - 1;
        let [lower, median, upper] = [last / 4, last / 2, last * 3 / 4].map(|at| self.0[at]);
        json!({
            "count": self.0.len(), "median": median, "min": self.0[0], "max": self.0[last],
            "lower_quartile": lower, "upper_quartile": upper,
        })
    }
}

/// A line for people.
pub(crate) fn show(name: &str, summary: &Value) {
    let number = |key: &str| summary[key].as_u64().unwrap_or(0);
    let (median, min, max) = (number("median"), number("min"), number("max"));
    println!("{name:<56} {median:>9} ns   {min:>9} to {max:>9}");
}

fn processor() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|line| line.starts_with("model name")).unwrap_or_default();
    line.split(':').nth(1).unwrap_or("unknown").trim().to_owned()
}

/// What else runs: the average of the last minute, at the start.
fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(f64::NAN)
}

/// The date in UTC, from days by Howard Hinnant's `civil_from_days`.
fn today() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let days = seconds as i64 / 86_400 + 719_468;
    let era = days / 146_097;
    let of_era = days % 146_097;
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}
