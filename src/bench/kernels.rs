//! Whole programs, written in C, compiled here: the same binary for everyone.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::program::Agreed;
use super::{Contender, Effort, Failure, Race, process, run_to_halt};
use crate::case::Case;
use crate::case::image::{DEFAULT_STACK_SIZE, elf};
use crate::engine::Engine;
use crate::engine::jit::Jit;
use crate::engine::silicon::Silicon;

/// A program may take so long on any engine of ours.
const TIME_LIMIT: Duration = Duration::from_secs(120);

/// Name, amount of work of a quick race, and whether it is about computing: the others change their own
/// code.
const PROGRAMS: [(&str, u64, bool); 16] = [
    ("alu", 16_000_000, true),
    ("crc32", 250, true),
    ("fib", 31, true),
    ("hash_table", 1_500_000, true),
    ("interpreter", 40_000, true),
    ("jit_guest", 12_000, false),
    ("load_store", 6_000, true),
    ("matrix_avx2", 20, true),
    ("nbody_x87", 40_000, true),
    ("pointer_chase", 2_000_000, true),
    ("quicksort", 6, true),
    ("rep_movs", 25_000, true),
    ("selfmod", 15_000, false),
    ("sha256", 8, true),
    ("string_search", 150, true),
    ("virtual_calls", 8_000, true),
];

/// These take QEMU so long that processes have the work of a quick race, and in one a fifth of it.
const SLOW_UNDER_QEMU: [&str; 4] = ["jit_guest", "matrix_avx2", "nbody_x87", "selfmod"];

/// A program, ready to run.
#[derive(Debug)]
pub struct Kernel {
    name: &'static str,
    computes: bool,
    case: Case,
    /// The same program as an executable of Linux, where there is QEMU to run it.
    process: Option<PathBuf>,
}

/// The `wanted` programs of the folder `sources`, compiled into `output`, on request as processes too.
pub fn kernels(
    sources: &Path,
    output: &Path,
    effort: Effort,
    with_processes: bool,
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<Kernel>, Failure> {
    if !sources.join("common.h").exists() {
        return Err(format!("{}: has no guest programs", sources.display()).into());
    }
    std::fs::create_dir_all(output).map_err(|error| format!("{}: {error}", output.display()))?;
    let mut kernels = Vec::new();
    for (name, quick, computes) in PROGRAMS {
        if !wanted(name) || (name == "matrix_avx2" && !is_x86_feature_detected!("avx2")) {
            continue;
        }
        let work = effort.pick(Some(quick), None);
        let binary = compile(sources, name, work, output, Kind::Bare)?;
        let image = std::fs::read(&binary).map_err(|error| format!("{name}: {error}"))?;
        let case = elf(&image, DEFAULT_STACK_SIZE).map_err(|error| format!("{name}: {error}"))?;
        let slow = SLOW_UNDER_QEMU.contains(&name);
        let work = if slow { Some(effort.pick(quick / 5, quick)) } else { work };
        let process = || compile(sources, name, work, output, Kind::Process);
        let process = with_processes.then(process).transpose()?;
        kernels.push(Kernel { name, computes, case, process });
    }
    Ok(kernels)
}

impl Kernel {
    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &str {
        self.name
    }

    /// Whether it is about computing, not about changing its own code.
    #[must_use]
    pub fn computes(&self) -> bool {
        self.computes
    }

    /// Everyone who is to run it. One race at a time: there is room for one big window in a process.
    pub fn race(&self) -> Result<Race, Failure> {
        let (case, agreed) = (&self.case, Agreed::default());
        Ok(Race {
            name: self.name.to_owned(),
            unit: "ms",
            native: Some(on(Silicon::new()?, case, &agreed)),
            jit: on(Jit::new()?, case, &agreed),
            unicorn: on_unicorn!(super::unicorn::program(case, &agreed)),
            qemu: self.process.as_ref().map(|binary| process::processes(binary)),
        })
    }
}

/// How a program begins and ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// By `hlt`.
    Bare,
    /// As a process of Linux that writes its checksum and exits.
    Process,
}

fn compile(
    sources: &Path,
    name: &str,
    work: Option<u64>,
    output: &Path,
    kind: Kind,
) -> Result<PathBuf, Failure> {
    let is_process = kind == Kind::Process;
    let binary = output.join(if is_process { format!("{name}-process") } else { name.to_owned() });
    let own = format!("{name}.flags");
    let mut compiler = Command::new("cc");
    compiler.current_dir(sources).args(["@flags", "@flags-O2"]);
    compiler.args(sources.join(&own).exists().then(|| format!("@{own}")));
    compiler.args(work.map(|work| format!("-DWORK={work}")));
    compiler.args(is_process.then_some("-DPROCESS"));
    compiler.arg("-o").arg(&binary).arg(format!("{name}.c"));
    let done = compiler.output().map_err(|error| format!("cc: {error}"))?;
    if !done.status.success() {
        return Err(format!("cc: {name}: {}", String::from_utf8_lossy(&done.stderr)).into());
    }
    Ok(binary)
}

/// Runs the program on an engine to its end; milliseconds.
fn on(mut engine: impl Engine + 'static, case: &Case, agreed: &Agreed) -> Contender {
    engine.set_time_limit(TIME_LIMIT);
    let (case, agreed) = (case.clone(), agreed.clone());
    Box::new(move || {
        let (time, outcome) = run_to_halt(&mut engine, &case)?;
        agreed.check(engine.name(), outcome.state.gpr[0])?;
        Ok(time.as_secs_f64() * 1e3)
    })
}
