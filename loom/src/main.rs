//! `make loom`: runs each model, then each mutant of `tests/mutants/loom` with the model that must find it.
//!
//! With `--deep SECONDS` the models that hold alone, with no bound on preemptions, as long as said each. With
//! words, what has one of them in its name. The exit status is 1 if a model fails, a mutant survives
//! or does not apply, or a model that must fail passes.

mod runner {
    pub(super) mod model;
    pub(super) mod mutant;
    pub(super) mod workshop;
}

use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use runner::model::{self, Ended, Model, Run};
use runner::mutant::Mutant;
use runner::workshop::Workshop;

/// How long a model may take, and one with a mutant to be found.
const LIMIT: Duration = Duration::from_secs(120);
const LIMIT_MUTANT: Duration = Duration::from_secs(120);
/// More than a deep model's own limit: it looks at the time now and then.
const SLACK: Duration = Duration::from_secs(120);
const PARALLEL: usize = 2;

struct Options {
    deep: Option<u64>,
    words: Vec<String>,
}

impl Options {
    fn parse() -> Result<Self, String> {
        let mut options = Self { deep: None, words: Vec::new() };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            if argument == "--deep" {
                let seconds = arguments.next().and_then(|seconds| seconds.parse().ok());
                options.deep = Some(seconds.ok_or("--deep needs a number of seconds")?);
            } else if argument.starts_with('-') {
                return Err(format!(
                    "usage: tregion-loom [--deep SECONDS] [WORD…], not {argument}"
                ));
            } else {
                options.words.push(argument);
            }
        }
        Ok(options)
    }

    fn wants(&self, name: &str) -> bool {
        self.words.is_empty() || self.words.iter().any(|word| name.contains(word))
    }
}

fn main() -> ExitCode {
    match Options::parse().and_then(|options| run(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("loom: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all is as it should be.
fn run(options: &Options) -> Result<bool, String> {
    let workshop = Workshop::new()?;
    let test = workshop.build_real()?;
    let models = model::all(&workshop.root)?;
    // How soon one fails that must, says nothing.
    let wanted: Vec<&Model> = models
        .iter()
        .filter(|model| options.wants(&model.name) && !(model.must_fail && options.deep.is_some()))
        .collect();
    println!("{:<52} {:<10} {:>11} {:>8}", "model", "invariant", "executions", "seconds");
    let failed_models = each(&wanted, |model| {
        let limit = options.deep.map_or(LIMIT, |seconds| Duration::from_secs(seconds) + SLACK);
        report_model(model, &model.run(&test, options.deep, limit))
    });
    if options.deep.is_some() {
        println!("loom: {} models, {failed_models} failed", wanted.len());
        return Ok(failed_models == 0);
    }

    let mutants = Mutant::all(&workshop.root, &models)?;
    let wanted_mutants: Vec<&Mutant> = mutants
        .iter()
        .filter(|mutant| options.wants(mutant.name()) || options.wants(&mutant.caught_by))
        .collect();
    println!("\n{:<44} {:<52} {:>8} {:>8}", "mutant", "model", "", "seconds");
    let survived = each(&wanted_mutants, |mutant| {
        let run = workshop.build_mutant(mutant).map(|test| mutant.run(&test, LIMIT_MUTANT));
        report_mutant(mutant, run)
    });
    let counted = wanted.iter().filter(|model| !model.must_fail).count();
    let (all, caught) = (wanted_mutants.len(), wanted_mutants.len() - survived);
    println!("loom: {counted} models, {all} mutants, {caught} caught");
    Ok(failed_models == 0 && survived == 0)
}

/// Does the work for all of them, some at a time, and counts for how many it says no.
fn each<T: Sync>(all: &[T], work: impl Fn(&T) -> bool + Sync) -> usize {
    let state = Mutex::new((all.iter(), 0));
    let lock = || state.lock().unwrap_or_else(PoisonError::into_inner);
    std::thread::scope(|scope| {
        for _ in 0..PARALLEL {
            scope.spawn(|| {
                loop {
                    let Some(next) = lock().0.next() else { return };
                    if !work(next) {
                        lock().1 += 1;
                    }
                }
            });
        }
    });
    lock().1
}

fn report_model(model: &Model, run: &Run) -> bool {
    let fine = match run.ended {
        Ended::Passed => !model.must_fail,
        Ended::Failed => model.must_fail,
        Ended::TooLate | Ended::NotRun => false,
    };
    let verdict = match (run.ended, model.must_fail) {
        (Ended::Passed, false) if run.open => "did not end",
        (Ended::Passed, false) => "",
        (Ended::Passed, true) => "PASSED, but must fail",
        (Ended::Failed, true) => "failed, as it must",
        (Ended::Failed, false) => "FAILED",
        (Ended::TooLate, _) => "TOOK TOO LONG",
        (Ended::NotRun, _) => "WAS NOT RUN",
    };
    let executions = run.executions.map_or_else(String::new, |count| count.to_string());
    let (name, invariants, seconds) = (&model.name, &model.invariants, run.seconds);
    let line = format!("{name:<52} {invariants:<10} {executions:>11} {seconds:>8.1}  {verdict}");
    println!("{}", line.trim_end());
    if !fine {
        println!("{}", run.output);
    }
    fine
}

fn report_mutant(mutant: &Mutant, run: Result<Run, String>) -> bool {
    let (verdict, seconds, details) = match run {
        Ok(run) if run.ended == Ended::Failed => ("caught", run.seconds, None),
        Ok(run) => ("SURVIVED", run.seconds, None),
        Err(message) => ("BROKEN", 0.0, Some(message)),
    };
    let (name, model) = (mutant.name(), &mutant.caught_by);
    println!("{name:<44} {model:<52} {verdict:>8} {seconds:>8.1}");
    if let Some(details) = details {
        println!("{details}");
    }
    verdict == "caught"
}
