//! Engines by name.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use clap::Args;
use tregion::engine::Engine;
use tregion::engine::isolated::{self, Isolated};
use tregion::engine::jit::{Hooked, Jit};
use tregion::engine::silicon::Silicon;
#[cfg(feature = "unicorn")]
use tregion::engine::unicorn::{Filter, Unicorn};
use tregion::oracle::Judge;

use super::output::print;
use super::{Failure, Found};

/// What `worker` is given.
#[derive(Args)]
pub(super) struct WorkerArguments {
    /// Name of the engine to serve
    #[arg(long)]
    engine: String,
}

/// The names that [`make`] knows besides `silicon` and [`JITS`], for messages.
const OTHERS: &str = if cfg!(feature = "unicorn") {
    "unicorn, unicorn:unfiltered, unicorn:in-process, isolated:silicon, isolated:jit"
} else {
    "isolated:silicon, isolated:jit (this build has no Unicorn)"
};

/// Unicorn, given all cases.
const UNFILTERED: &str = "unicorn:unfiltered";

/// The JIT's names, and what is hooked in each.
const JITS: [(&str, Hooked); 8] = [
    ("jit", Hooked::Nothing),
    ("jit:memory-hooks", Hooked::Memory),
    ("jit:code-hooks", Hooked::Code),
    ("jit:block-hooks", Hooked::Blocks),
    ("jit:code-trace", Hooked::TracedCode),
    ("jit:block-trace", Hooked::TracedBlocks),
    ("jit:turns", Hooked::Turns),
    ("jit:restless", Hooked::Restless),
];

/// What is hooked in the JIT of this name, if it is one.
fn hooked(name: &str) -> Option<Hooked> {
    JITS.iter().find(|(known, _)| *known == name).map(|(_, hooked)| *hooked)
}

/// What the engine that [`make`] makes of these two is called.
pub(super) fn title(name: &str, number: usize) -> String {
    if name == "silicon" && number > 0 {
        format!("silicon#{}", number + 1)
    } else {
        name.to_owned()
    }
}

/// An engine by its name. `number` tells engines of one kind apart. Unicorn gets a process of its
/// own, since guests can crash it.
pub(super) fn make(name: &str, number: usize) -> io::Result<Box<dyn Engine>> {
    match name {
        "silicon" => Ok(Box::new(Silicon::named(&title(name, number))?)),
        _ if hooked(name).is_some() => in_process(name),
        // What Unicorn lacks is found before it is sent to a process that would only say so.
        #[cfg(feature = "unicorn")]
        "unicorn" => {
            Ok(Box::new(isolated(name, UNFILTERED)?.refusing(|case| Filter::Lacking.refuses(case))))
        }
        UNFILTERED => Ok(Box::new(isolated(name, name)?)),
        "unicorn:in-process" => in_process("unicorn:in-process"),
        _ => match name.strip_prefix("isolated:") {
            Some(inner) => Ok(Box::new(isolated(name, inner)?)),
            None => Err(unknown(name)),
        },
    }
}

/// The engine `served`, in a process of its own, which runs this very program even if its file has
/// been replaced.
fn isolated(name: &str, served: &str) -> io::Result<Isolated> {
    let arguments = ["worker", "--engine", served].map(str::to_owned).to_vec();
    Isolated::new("/proc/self/exe".into(), arguments, name)
}

/// An engine in this process.
fn in_process(name: &str) -> io::Result<Box<dyn Engine>> {
    match name {
        "silicon" => Ok(Box::new(Silicon::new()?)),
        #[cfg(feature = "unicorn")]
        "unicorn:in-process" => Ok(Box::new(Unicorn::new()?)),
        #[cfg(feature = "unicorn")]
        UNFILTERED => Ok(Box::new(Unicorn::new()?.with_filter(Filter::Nothing))),
        _ => {
            let hooked = hooked(name).ok_or_else(|| unknown(name))?;
            Ok(Box::new(Jit::hooked(name, hooked).map_err(io::Error::other)?))
        }
    }
}

fn unknown(name: &str) -> io::Error {
    let jits = JITS.map(|(name, _)| name).join(", ");
    io::Error::other(format!("unknown engine `{name}`, expected one of: silicon, {jits}, {OTHERS}"))
}

/// The names of a list of engines, the judge left out: silicon is always the judge and has to be
/// among them.
pub(super) fn judged(names: &[String]) -> Result<Vec<String>, Failure> {
    let mut names = names.to_vec();
    let Some(judge) = names.iter().position(|name| name == "silicon") else {
        return Err(Failure("`silicon` judges and has to be among the engines".to_owned()));
    };
    names.remove(judge);
    if names.is_empty() {
        return Err(Failure("there is no engine to compare with `silicon`".to_owned()));
    }
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
    let names: &[&str] = if cfg!(feature = "unicorn") {
        &["silicon", "jit", "unicorn"]
    } else {
        &["silicon", "jit"]
    };
    for name in names {
        let text = match make(name, 0) {
            Ok(engine) => {
                let lacks = &engine.capabilities().lacks;
                let lacks: String = lacks.iter().map(|lack| format!("  lacks {lack}\n")).collect();
                format!("{name}: {}\n{lacks}", engine.version())
            }
            Err(error) => format!("{name}: cannot be had here: {error}\n"),
        };
        print(&text)?;
    }
    Ok(Found::Nothing)
}

/// `tregion worker`: serves an engine to the process that started this one.
pub(super) fn work(arguments: &WorkerArguments) -> Result<Found, Failure> {
    isolated::end_with_parent()?;
    let mut engine = match in_process(&arguments.engine) {
        Ok(engine) => engine,
        Err(error) => {
            isolated::refuse(&error.to_string(), io::stdout().lock())?;
            return Ok(Found::Nothing);
        }
    };
    // Not by way of `Stdout`, which writes line by line.
    let output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    isolated::serve(engine.as_mut(), io::stdin().lock(), output)?;
    Ok(Found::Nothing)
}
