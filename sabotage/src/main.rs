//! `make sabotage`: builds the command line once for each patch of `tests/mutants/engine` and has a
//! campaign, or the test that the patch names, find the bug.
//!
//! With words, the bugs that have one of them in their name; what is known of the others from earlier
//! runs stays. With `--document` nothing is run: `docs/sabotage.md` is made of what is known. The exit
//! status is 1 if a bug is not found, or if the sources without a bug differ from silicon, 2 if it could not be
//! looked for.

mod bug;
mod hunt;
mod report;
mod workshop;

use std::process::ExitCode;

use bug::Bug;
use hunt::{Hunt, Outcome};
use report::Report;
use workshop::Workshop;

struct Options {
    document: bool,
    words: Vec<String>,
}

impl Options {
    fn parse() -> Result<Self, String> {
        let mut options = Self { document: false, words: Vec::new() };
        for argument in std::env::args().skip(1) {
            if argument == "--document" {
                options.document = true;
            } else if argument.starts_with('-') {
                return Err(format!(
                    "usage: tregion-sabotage [--document] [WORD…], not {argument}"
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
            eprintln!("sabotage: {message}");
            ExitCode::from(2)
        }
    }
}

/// Whether all is as it should be.
fn run(options: &Options) -> Result<bool, String> {
    let workshop = Workshop::new()?;
    let bugs = Bug::all(&workshop.root)?;
    let mut report = Report::read(&workshop.target, &bugs)?;
    if options.document {
        report.write_document(&workshop.root)?;
        return Ok(true);
    }
    let processor = ["vendor_id", "flags"].map(report::of_processor).join(" ");
    let wanted = bugs.iter().filter(|bug| options.wants(bug.name()));
    let (wanted, elsewhere): (Vec<&Bug>, Vec<&Bug>) = wanted.partition(|bug| bug.is_of(&processor));
    let names = |word: &String| bugs.iter().any(|bug| bug.name().contains(word));
    if let Some(word) = options.words.iter().find(|word| !names(word)) {
        return Err(format!("no bug has `{word}` in its name"));
    }
    report::print_head();
    let sound = options.words.is_empty().then(|| control(&workshop)).transpose()?;
    let mut outcomes = Vec::new();
    for bug in wanted {
        let outcome = hunt(&workshop, bug);
        report::print_line(bug, &outcome);
        report.note(bug, &outcome);
        report.write(&workshop.target)?;
        outcomes.push(outcome);
    }
    let found = outcomes.iter().filter(|outcome| outcome.is_found()).count();
    if !elsewhere.is_empty() {
        let names: Vec<&str> = elsewhere.iter().map(|bug| bug.name()).collect();
        println!("not on this processor: {}", names.join(", "));
    }
    println!("{}", report::last_line(&outcomes));
    Ok(found == outcomes.len() && sound.unwrap_or(true))
}

/// Whether a campaign finds nothing in the sources as they are.
fn control(workshop: &Workshop) -> Result<bool, String> {
    workshop.restore()?;
    let program = workshop.build()?;
    let outcome = Hunt::new(workshop, "none").campaign(&program);
    println!(
        "{:<44} {}",
        "(no bug)",
        if outcome.is_found() { &outcome.what } else { "no difference" }
    );
    Ok(!outcome.is_found() && outcome.cases > 0)
}

/// What comes of one bug. One that does not apply or does not build is not found.
fn hunt(workshop: &Workshop, bug: &Bug) -> Outcome {
    let outcome = workshop.restore().and_then(|()| workshop.apply(&bug.patch)).and_then(|()| {
        let hunt = Hunt::new(workshop, bug.name());
        match bug.test() {
            Some(test) => workshop.build_test(&test).map(|program| hunt.test(&program, &test)),
            None => workshop.build().map(|program| hunt.campaign(&program)),
        }
    });
    outcome.unwrap_or_else(Outcome::failed)
}
