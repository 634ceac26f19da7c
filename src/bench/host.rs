//! [`Host`]: where and when something was measured.

use std::fs::read_to_string;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

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
            date: today(),
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

/// From days by Howard Hinnant's `civil_from_days`.
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
