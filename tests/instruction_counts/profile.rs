//! What the programs of `corpora/programs` execute on the JIT: some hundred thousand instructions from the
//! middle of each run, stepped one by one and told apart by what they are. `make profile` prints the table
//! that `docs/performance.md` has.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, Register};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::tracer::hide_stepping;

/// Instructions stepped of each program, …
const STEPS: u64 = 200_000;
/// … after so long, when its code is translated.
const WARM_UP: Duration = Duration::from_millis(500);
/// What of the code cache has the ways in and out, which come first.
const PRELUDE: u64 = 0x1000;

/// Programs, and so much work that none of them ends meanwhile.
const PROGRAMS: [(&str, u64); 16] = [
    ("alu", 2_000_000_000),
    ("load_store", 9_000_000),
    ("pointer_chase", 2_000_000_000),
    ("fib", 50),
    ("quicksort", 40_000),
    ("sha256", 90_000),
    ("crc32", 900_000),
    ("matrix_avx2", 90_000),
    ("nbody_x87", 400_000_000),
    ("rep_movs", 2_000_000_000),
    ("string_search", 900_000),
    ("hash_table", 2_000_000_000),
    ("interpreter", 300_000_000),
    ("virtual_calls", 50_000_000),
    ("selfmod", 300_000_000),
    ("jit_guest", 100_000_000),
];

/// What an instruction of the host is there for.
#[derive(Clone, Copy)]
enum Purpose {
    /// It is one of the guest's, with operands moved.
    Guest,
    /// It computes an address and loads from the table that denies what is outside of the window.
    Probe,
    /// It loads the word at which a vCPU is rung out.
    Poll,
    /// It moves state between registers and the vCPU's block.
    State,
    /// It leads from block to block, or fills space.
    Link,
    /// It goes into or out of the code cache.
    Way,
    /// It is no translated code: the run loop, the kernel's entry.
    RunLoop,
}

/// How many there are.
const PURPOSES: usize = Purpose::RunLoop as usize + 1;

/// Prints the table.
pub(crate) fn print_all() {
    println!("| program | probes | polls | state | links | ways in and out | run loop |");
    println!("|---|---|---|---|---|---|---|");
    let folder = std::env::temp_dir().join(format!("tregion-profile-{}", std::process::id()));
    for (name, work) in PROGRAMS {
        let counts = profile(&build(name, work, &folder));
        let guest = counts[Purpose::Guest as usize].max(1) as f64;
        let shares =
            counts[1..].iter().map(|&count| format!(" {:.0} |", 100.0 * count as f64 / guest));
        println!("| `{name}` |{}", shares.collect::<String>());
    }
    fs::remove_dir_all(folder).unwrap();
}

fn build(name: &str, work: u64, folder: &Path) -> String {
    let program = format!("{}/{name}-O2", folder.display());
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpora/programs");
    let mut make = Command::new("make");
    make.arg("-s").arg("-C").arg(sources).arg(format!("OUT={}", folder.display()));
    let done = make.arg(format!("WORK={work}")).arg(&program).status().unwrap();
    assert!(done.success(), "{name} does not build");
    program
}

/// How many instructions of each purpose a program comes to.
fn profile(program: &str) -> [u64; PURPOSES] {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tregion"));
    command.args(["exec", "--engine", "jit", program]).stdout(Stdio::null());
    let mut child = command.spawn().unwrap();
    std::thread::sleep(WARM_UP);
    let thread = busiest(&child);
    ptrace::attach(thread).unwrap();
    wait(thread);
    let mut code = Code::of(&child);
    let mut counts = [0; PURPOSES];
    let mut signal = None;
    for _ in 0..STEPS {
        let rip = ptrace::getregs(thread).unwrap().rip;
        let (purpose, pushes_flags) = code.purpose(rip);
        counts[purpose as usize] += 1;
        ptrace::step(thread, signal.take()).unwrap();
        signal = Some(wait(thread)).filter(|&stopped| stopped != Signal::SIGTRAP);
        if pushes_flags && signal.is_none() {
            hide_stepping(thread, ptrace::getregs(thread).unwrap().rsp);
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    counts
}

/// The thread that runs the guest.
fn busiest(child: &Child) -> Pid {
    let ticks = |thread: &i32| {
        let file = format!("/proc/{}/task/{thread}/stat", child.id());
        let text = fs::read_to_string(file).unwrap();
        // Behind the thread's name, which may hold spaces.
        let behind = text.rsplit_once(')').unwrap().1;
        behind.split_whitespace().nth(11).unwrap().parse::<u64>().unwrap()
    };
    let threads = fs::read_dir(format!("/proc/{}/task", child.id())).unwrap();
    let threads =
        threads.map(|entry| entry.unwrap().file_name().to_string_lossy().parse().unwrap());
    Pid::from_raw(threads.max_by_key(ticks).unwrap())
}

fn wait(thread: Pid) -> Signal {
    match waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap() {
        WaitStatus::Stopped(_, signal) => signal,
        status => panic!("the program ends: {status:?}"),
    }
}

/// The code cache of another process.
struct Code {
    memory: File,
    range: Range<u64>,
}

impl Code {
    fn of(child: &Child) -> Self {
        let maps = fs::read_to_string(format!("/proc/{}/maps", child.id())).unwrap();
        let line = maps.lines().find(|line| line.contains("tregion-code") && line.contains("r-x"));
        let (start, end) = line.unwrap().split(' ').next().unwrap().split_once('-').unwrap();
        let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).unwrap());
        let memory = File::open(format!("/proc/{}/mem", child.id())).unwrap();
        Self { memory, range: start..end }
    }

    /// What the instruction at `rip` is for, and whether it pushes the flags.
    fn purpose(&mut self, rip: u64) -> (Purpose, bool) {
        if !self.range.contains(&rip) {
            return (Purpose::RunLoop, false);
        }
        let mut bytes = [0; 32];
        self.memory.read_exact_at(&mut bytes, rip).unwrap();
        let mut decoder = Decoder::with_ip(64, &bytes, rip, DecoderOptions::NONE);
        let (instruction, next) = (decoder.decode(), decoder.decode());
        let pushes_flags = matches!(instruction.mnemonic(), Mnemonic::Pushf | Mnemonic::Pushfq);
        let purpose = match rip - self.range.start < PRELUDE {
            true => Purpose::Way,
            false => purpose(&instruction, &next),
        };
        (purpose, pushes_flags)
    }
}

/// Translated code has nothing of the guest's in R14, reaches the guest's memory by GS, and its own block by RSP.
fn purpose(instruction: &Instruction, next: &Instruction) -> Purpose {
    use Mnemonic as M;
    let in_block = |one: &Instruction| {
        one.memory_base() == Register::RSP && one.memory_segment() != Register::GS
    };
    let polls = |one: &Instruction| {
        one.memory_base() == Register::R14 && one.memory_segment() != Register::GS
    };
    let scratch = instruction.op0_register().full_register() == Register::R14;
    match instruction.mnemonic() {
        M::Nop | M::Jmp | M::Call => Purpose::Link,
        M::Lea if scratch => Purpose::Probe,
        _ if instruction.memory_index() == Register::R14 && in_block(instruction) => Purpose::Probe,
        M::Rorx | M::Movzx if scratch && instruction.op_count() > 1 && !has_memory(instruction) => {
            Purpose::Probe
        }
        _ if polls(instruction) => Purpose::Poll,
        M::Mov if scratch && in_block(instruction) && polls(next) => Purpose::Poll,
        _ if in_block(instruction) && has_memory(instruction) => Purpose::State,
        _ => Purpose::Guest,
    }
}

fn has_memory(instruction: &Instruction) -> bool {
    instruction.op_kinds().any(|kind| kind == iced_x86::OpKind::Memory)
}
