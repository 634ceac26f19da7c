//! `tregion exec`: a flat binary or a static ELF as bare code until `hlt`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use serde_json::json;
use tregion::case::image::{self, DEFAULT_STACK_SIZE};
use tregion::case::{Case, Outcome, text};
use tregion::engine::Engine;
use tregion::engine::silicon::Silicon;
use tregion::guest::GuestAddress;

use super::output::print;
use super::{Failure, Found, engines};

/// What `exec` is given.
#[derive(Args)]
pub(super) struct Arguments {
    /// The program: an ELF is known by its first bytes, all else is a flat binary
    #[arg(value_name = "IMAGE")]
    image: PathBuf,
    /// Engine to run it on
    #[arg(long, default_value = "silicon")]
    engine: String,
    /// Address of a flat binary's first byte, which is where it starts
    #[arg(long, default_value = "0x400000", value_parser = number)]
    base: u64,
    /// Take the image for this, whatever its first bytes
    #[arg(long)]
    format: Option<Format>,
    /// Bytes of stack
    #[arg(long, default_value_t = DEFAULT_STACK_SIZE, value_parser = number)]
    stack: u64,
    /// Seconds of processor time that it may take
    #[arg(long, default_value_t = 60)]
    time_limit: u64,
    /// Also count its instructions, by single steps of silicon: about 100,000 a second
    #[arg(long)]
    count: bool,
    /// Also print what the engine has counted of its work: translations, regions, bytes of code memory
    #[arg(long)]
    figures: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Flat,
    Elf,
}

fn number(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(&digits.replace('_', ""), 16),
        None => text.parse(),
    };
    parsed.map_err(|error| format!("`{text}` is not a number: {error}"))
}

pub(super) fn run(arguments: &Arguments) -> Result<Found, Failure> {
    let case = load(arguments)?;
    let limit = Duration::from_secs(arguments.time_limit);
    let mut engine = engines::make(&arguments.engine, 0)?;
    engine.set_time_limit(limit);
    let start = Instant::now();
    let outcome = engine.run(&case)?;
    let seconds = start.elapsed().as_secs_f64();
    let instructions = if arguments.count { Some(count(&case, limit)?) } else { None };
    let figures = if arguments.figures { engine.figures() } else { Vec::new() };
    if arguments.json {
        let value = json!({
            "engine": engine.name(),
            "stop": outcome.stop,
            "stop_text": outcome.stop.to_string(),
            "seconds": seconds,
            "instructions": instructions,
            "changed_pages": outcome.memory.len(),
            "figures": figures.iter().copied().collect::<BTreeMap<_, _>>(),
            "state": outcome.state,
        });
        print(&(serde_json::to_string_pretty(&value)? + "\n"))?;
    } else {
        print(&result_text(engine.name(), &outcome, seconds, instructions))?;
        for (name, value) in figures {
            print(&format!("# {name} = {value}\n"))?;
        }
    }
    Ok(Found::Nothing)
}

fn load(arguments: &Arguments) -> Result<Case, Failure> {
    let name = arguments.image.display();
    let bytes = std::fs::read(&arguments.image).map_err(|error| format!("{name}: {error}"))?;
    let is_elf = match arguments.format {
        Some(format) => matches!(format, Format::Elf),
        None => bytes.starts_with(b"\x7fELF"),
    };
    let case = if is_elf {
        image::elf(&bytes, arguments.stack)
    } else {
        image::flat(&bytes, GuestAddress(arguments.base), arguments.stack)
    };
    case.map_err(|error| Failure(format!("{name}: {error}")))
}

fn count(case: &Case, limit: Duration) -> Result<u64, Failure> {
    let mut silicon = Silicon::new()?;
    silicon.set_time_limit(limit);
    let (outcome, instructions) = silicon.count(case)?;
    if outcome.stop.is_exact() {
        Ok(instructions)
    } else {
        Err(Failure(format!("counting ended at the {}: {instructions} so far", outcome.stop)))
    }
}

fn result_text(engine: &str, outcome: &Outcome, seconds: f64, instructions: Option<u64>) -> String {
    let mut result = format!("# {engine}: {} after {seconds:.6} s\n", outcome.stop);
    if let Some(instructions) = instructions {
        let rate = instructions as f64 / seconds / 1e6;
        result += &format!("# {instructions} instructions, {rate:.1} million/s\n");
    }
    result += &format!("# {} pages of memory changed\n", outcome.memory.len());
    result + &text::print_state(&outcome.state)
}
