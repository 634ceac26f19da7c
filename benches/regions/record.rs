//! [`Record`]: what was measured, where and when, as JSON. [`Samples`]: times in nanoseconds.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use serde_json::{Map, Value, json};
use tregion::bench::Host;

use crate::Failure;

/// See the file's head.
pub(crate) struct Record {
    all: Map<String, Value>,
    date: String,
}

impl Record {
    pub(crate) fn new() -> Self {
        let Host { date, processor, cores, load, unicorn } = Host::here();
        let mut all = Map::new();
        all.insert("date".into(), json!(date));
        all.insert("processor".into(), json!(processor));
        all.insert("cores".into(), json!(cores));
        all.insert("load".into(), json!(load));
        all.insert("unicorn".into(), json!(unicorn));
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
