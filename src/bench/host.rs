//! [`Host`]: where and when something was measured.

use std::fs::read_to_string;

use serde::Serialize;
use time::OffsetDateTime;

/// See the file's head.
#[derive(Clone, Debug, Serialize)]
pub struct Host {
    /// The day in UTC, as in 2026-01-31.
    pub date: String,
    /// What the processor calls itself.
    pub processor: String,
    /// How many processors this process may use.
    pub cores: usize,
    /// What else runs: the average of the last minute.
    pub load: Option<f64>,
    /// Whether this build has Unicorn.
    pub unicorn: bool,
}

impl Host {
    /// This one, now.
    #[must_use]
    pub fn here() -> Self {
        Self {
            date: OffsetDateTime::now_utc().date().to_string(),
            processor: processor(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            load: load(),
            unicorn: cfg!(feature = "unicorn"),
        }
    }
}

fn processor() -> String {
    let information = read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = information.lines().find(|line| line.starts_with("model name")).unwrap_or_default();
    line.split(':').nth(1).unwrap_or("unknown").trim().to_owned()
}

fn load() -> Option<f64> {
    read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}
