//! [`Model`]: one test of the crate, as its source describes it and as it runs.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tregion_mutants::run_within;

/// A test in `loom/src/models`.
#[derive(Debug)]
pub(crate) struct Model {
    /// `file::function`.
    pub(crate) name: String,
    /// The invariants that its comment names.
    pub(crate) invariants: String,
    /// It shows that the model beside it sees a fault; ignored by `cargo test`.
    pub(crate) must_fail: bool,
}

/// How a test went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Passed,
    /// By a panic or a crash.
    Failed,
    TooLate,
    /// There is no such test, or it could not be started.
    NotRun,
}

/// See [`Ended`].
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) ended: Ended,
    pub(crate) executions: Option<u64>,
    /// Not all interleavings were explored in the time given.
    pub(crate) open: bool,
    pub(crate) seconds: f64,
    pub(crate) output: String,
}

/// All models, by file.
pub(crate) fn all(root: &Path) -> Result<Vec<Model>, String> {
    let folder = root.join("loom/src/models");
    let entries = fs::read_dir(&folder).map_err(|error| format!("{folder:?}: {error}"))?;
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    let mut models = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).map_err(|error| format!("{file:?}: {error}"))?;
        let module = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        models.extend(in_file(&module, &text));
    }
    if models.is_empty() { Err(format!("no models in {folder:?}")) } else { Ok(models) }
}

fn in_file(module: &str, text: &str) -> Vec<Model> {
    let (mut models, mut comment) = (Vec::new(), String::new());
    let (mut test, mut must_fail) = (false, false);
    for line in text.lines() {
        if let Some(more) = line.strip_prefix("///") {
            comment.push_str(more);
        } else if line.starts_with("#[") {
            test |= line == "#[test]";
            must_fail |= line.starts_with("#[ignore");
        } else {
            if let (true, Some(rest)) = (test, line.strip_prefix("fn ")) {
                let function = rest.split('(').next().unwrap_or_default();
                models.push(Model {
                    name: format!("{module}::{function}"),
                    invariants: invariants(&comment),
                    must_fail,
                });
            }
            comment.clear();
            (test, must_fail) = (false, false);
        }
    }
    models
}

/// The words `I1` … `I9` of a comment.
fn invariants(comment: &str) -> String {
    let mut found: Vec<&str> = comment
        .split(|character: char| !character.is_alphanumeric())
        .filter(|word| word.len() == 2 && word.starts_with('I') && word.ends_with(char::is_numeric))
        .collect();
    found.sort_unstable();
    found.dedup();
    found.join(" ")
}

impl Model {
    /// Runs it in the test binary `test`.
    pub(crate) fn run(&self, test: &Path, deep: Option<u64>, limit: Duration) -> Run {
        run(test, &self.name, self.must_fail, deep, limit)
    }
}

/// Runs a model by its name.
pub(crate) fn run(
    test: &Path,
    name: &str,
    ignored: bool,
    deep: Option<u64>,
    limit: Duration,
) -> Run {
    let log = test.with_extension(format!("{}.log", name.replace("::", "-")));
    let mut command = Command::new(test);
    command.args([&format!("models::{name}"), "--exact", "--nocapture", "--test-threads=1"]);
    command.args(ignored.then_some("--ignored"));
    command.env("RUST_BACKTRACE", "0").env_remove("TREGION_LOOM_DEEP");
    if let Some(seconds) = deep {
        command.env("TREGION_LOOM_DEEP", seconds.to_string());
    }
    let run = run_within(&mut command, limit, &log);
    let output = String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()).into_owned();
    let explored: Option<Vec<&str>> = output
        .lines()
        .find(|line| line.starts_with("explored "))
        .map(|line| line.split(' ').collect());
    let status = run.as_ref().map(|run| run.status);
    let ended = match status {
        Err(_) => Ended::NotRun,
        Ok(None) => Ended::TooLate,
        Ok(Some(status)) if status.success() && explored.is_some() => Ended::Passed,
        // 101 is a test that failed; no code at all is a signal, which a panic while unwinding ends in.
        Ok(Some(status)) if matches!(status.code(), Some(101) | None) => Ended::Failed,
        Ok(Some(_)) => Ended::NotRun,
    };
    Run {
        ended,
        executions: explored.as_ref().and_then(|words| words.get(1)?.parse().ok()),
        open: explored.is_some_and(|words| words.last() == Some(&"open")),
        seconds: run.map_or(0.0, |run| run.seconds),
        output,
    }
}
