//! Engines by name.

use std::io;

use clap::Args;
use tregion::engine::Engine;
use tregion::engine::isolated::{self, Isolated};
use tregion::engine::silicon::Silicon;
#[cfg(feature = "unicorn")]
use tregion::engine::unicorn::Unicorn;
use tregion::oracle::Judge;

use super::{Failure, Found};

/// What `worker` is given.
#[derive(Args)]
pub(super) struct WorkerArguments {
    /// Name of the engine to serve
    #[arg(long)]
    engine: String,
}

/// The names that [`make`] knows, for messages.
pub(super) const KNOWN: &str = "silicon, unicorn, isolated:NAME";

/// An engine by its name. `number` tells engines of one kind apart.
pub(super) fn make(name: &str, number: usize) -> io::Result<Box<dyn Engine>> {
    if let Some(inner) = name.strip_prefix("isolated:") {
        let arguments = ["worker", "--engine", inner].map(str::to_owned).to_vec();
        let program = std::env::current_exe()?;
        return Ok(Box::new(Isolated::new(program, arguments, name)?));
    }
    match name {
        "silicon" if number == 0 => Ok(Box::new(Silicon::new()?)),
        "silicon" => Ok(Box::new(Silicon::named(&format!("silicon#{}", number + 1))?)),
        #[cfg(feature = "unicorn")]
        "unicorn" => Ok(Box::new(Unicorn::new()?)),
        #[cfg(feature = "unicorn")]
        "unicorn:unfiltered" => Ok(Box::new(Unicorn::new()?.unfiltered())),
        _ => Err(io::Error::other(format!("unknown engine `{name}`, expected one of: {KNOWN}"))),
    }
}

/// The names of a list of engines, the judge left out: silicon is always the judge and has to be
/// among them.
pub(super) fn judged(names: &[String]) -> Result<Vec<String>, Failure> {
    let mut names = names.to_vec();
    let Some(judge) = names.iter().position(|name| name == "silicon") else {
        return Err(Failure("`silicon` judges and has to be among the engines".to_owned()));
    };
    names.remove(judge);
    Ok(names)
}

/// A judge with the engines of these names.
pub(super) fn judge(names: &[String]) -> io::Result<Judge> {
    let engines = names
        .iter()
        .enumerate()
        .map(|(index, name)| make(name, index + 1))
        .collect::<io::Result<_>>()?;
    Ok(Judge::new(Silicon::new()?, engines))
}

/// `tregion engines`.
pub(super) fn list() -> Result<Found, Failure> {
    let names: &[&str] =
        if cfg!(feature = "unicorn") { &["silicon", "unicorn"] } else { &["silicon"] };
    for name in names {
        match make(name, 0) {
            Ok(engine) => {
                println!("{name}: {}", engine.version());
                for lack in &engine.capabilities().lacks {
                    println!("  lacks {lack}");
                }
            }
            Err(error) => println!("{name}: cannot be had here: {error}"),
        }
    }
    Ok(Found::Nothing)
}

/// `tregion worker`: serves an engine to the process that started this one.
pub(super) fn work(arguments: &WorkerArguments) -> Result<Found, Failure> {
    let mut engine = make(&arguments.engine, 0)?;
    isolated::serve(engine.as_mut(), io::stdin().lock(), io::stdout().lock())?;
    Ok(Found::Nothing)
}
