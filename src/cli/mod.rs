//! Front door: arguments in, text out, exit status. Status 0: nothing found; 1: differences found;
//! 2: could not do what was asked, with one sentence on standard error.

mod bench;
mod bench_plot;
mod convert;
mod engines;
mod exec;
mod fuzz;
mod merge;
mod output;
mod replay;
mod report;

use std::fmt;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A correctness oracle for x86-64 engines, judged by the processor itself.
#[derive(Parser)]
#[command(name = "tregion", version, about, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a campaign: random programs on several engines, differences minimised and clustered
    Fuzz(fuzz::Arguments),
    /// Run case files on engines and show who differs from silicon
    Replay(replay::ReplayArguments),
    /// Make the case of a file as small as it gets while its first difference stays
    Minimize(replay::MinimizeArguments),
    /// Join the folders of several campaigns
    Merge(merge::Arguments),
    /// Make a page of a campaign's folder, to be read in a browser
    Report(report::Arguments),
    /// Make a case of an input of a fuzz target, such as a crash file, or an input of a case
    Convert(convert::Arguments),
    /// List the engines, their versions and what they lack
    Engines,
    /// Run a flat binary or a static ELF as bare code until `hlt`
    Exec(exec::Arguments),
    /// Measure the JIT beside this processor itself and Unicorn
    Bench(bench::Arguments),
    /// Serve an engine over standard input and output
    #[command(hide = true)]
    Worker(engines::WorkerArguments),
}

/// One sentence that says why a command could not be carried out.
struct Failure(String);

impl<E: fmt::Display> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

/// What a command found.
enum Found {
    Nothing,
    Differences,
}

/// Runs the command line.
pub(crate) fn main() -> ExitCode {
    tregion::os::give_back_large_blocks();
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let result = match Arguments::parse().command {
        Command::Fuzz(arguments) => fuzz::run(&arguments),
        Command::Replay(arguments) => replay::replay(&arguments),
        Command::Minimize(arguments) => replay::minimize(&arguments),
        Command::Merge(arguments) => merge::run(&arguments),
        Command::Report(arguments) => report::run(&arguments),
        Command::Convert(arguments) => convert::run(&arguments),
        Command::Engines => engines::list(),
        Command::Exec(arguments) => exec::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Worker(arguments) => engines::work(&arguments),
    };
    match result {
        Ok(Found::Nothing) => ExitCode::SUCCESS,
        Ok(Found::Differences) => ExitCode::from(1),
        Err(Failure(reason)) => {
            eprintln!("tregion: {reason}");
            ExitCode::from(2)
        }
    }
}
