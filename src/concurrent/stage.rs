//! [`Stage`]: a machine with two vCPUs, on which scenes are run in *batches* of [`ROUNDS`].
//!
//! A driver in guest code takes its vCPU through all rounds without leaving the guest. In each it waits at a
//! barrier for the other one, waits for a while more, another one in each round, runs the program, notes its
//! registers, waits again, notes the program's slots and puts them back as they were. So the two run at the same
//! time in nearly every round, which threads that meet outside of the guest do not. Each round has words and
//! barriers of its own; the programs lie in several copies, each in a page of its own, since code is first
//! translated, then watched, then checked as it is written more often.
//!
//! Where a program comes to a `hlt`, its thread does what the host is to do there and goes on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Barrier, Mutex, PoisonError};
use std::time::Duration;

use iced_x86::IcedError;
use iced_x86::code_asm::{
    CodeAssembler, dword_ptr, ecx, edx, qword_ptr, r8, r9, r10, r12, r13, r14, r15, rax, rbp, rbx,
    rcx, rdi, rdx, rsi,
};

use super::op::{HostOp, Op, PROGRAM_SLOTS, TABLE, WORDS, Way};
use super::scene::{FIRST_WORDS, Outcome, Scene};
use crate::exec::{Exit, Kick, Machine, MachineError, Vcpu};
use crate::guest::{GuestAddress, GuestRange, PAGE_SIZE, Permissions, State};
use crate::os::pin_to_nth_cpu;

/// Rounds of a batch.
pub(super) const ROUNDS: u64 = 64;
/// Copies of the programs; each is run in as many rounds, one behind the other.
const COPIES: u64 = 8;

const WINDOW_BITS: u32 = 32;
/// Where in a page the first program is, and the second one if it is in the same page.
const PROGRAMS: [u64; 2] = [0x100, 0x900];
/// Bytes of a round's words and barriers.
const CELL: u64 = 192;
/// Where in them the barriers are, away from the words.
const BEFORE: u64 = 64;
const BEHIND: u64 = 128;
/// Bytes that a vCPU has of a round, and what is there: registers; slots; how long it waits, and
/// scans; where its own program and the other's are.
const NOTES_BYTES: u64 = 192;
const SLOTS: u64 = 48;
const DELAY: u64 = SLOTS + 8 * PROGRAM_SLOTS as u64;
const SCAN: u64 = DELAY + 8;
const OWN: u64 = SCAN + 8;
const OTHERS: u64 = OWN + 8;

/// The programs of both vCPUs, copy by copy.
const CODE: u64 = 0x40_0000;
const CODE_BYTES: u64 = 2 * COPIES * PAGE_SIZE;
const DATA: u64 = 0x50_0000;
const DATA_BYTES: u64 = ROUNDS * CELL;
const NOTES: [u64; 2] = [0x51_0000, 0x52_0000];
const DRIVERS: [u64; 2] = [0x60_0000, 0x61_0000];
/// What is scanned: bytes that are no register's lowest.
const SCANNED: u64 = 0x53_0000;
const SCANNED_BYTES: u64 = 1 << 14;
/// The code a second time, and where a page of it is while it is away.
const ALIAS: u64 = 0x70_0000;
const AWAY: u64 = 0x80_0000;

/// How often a driver looks whether the other is there before it leaves the guest, for the two may have to
/// share one CPU; what it says in RDX when it leaves.
const SPINS: u32 = 1 << 20;
const OVER: u32 = 0;
const YIELD: u32 = 1;
const RDX: usize = 2;

/// Time for a batch. Both wait for each other, and others want the processors too.
const LIMIT: Duration = Duration::from_secs(20);

/// What came of a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Round {
    /// Both programs came to their ends.
    Over(Box<Outcome>),
    /// One did not: why.
    Lost(String),
}

/// See the file's head.
pub struct Stage {
    machine: Machine,
    vcpus: [Vcpu; 2],
    /// The CPU that the first vCPU runs on, counting round; the second runs on the next one.
    cpu: usize,
}

/// One of the two, in a batch.
struct Actor<'a> {
    number: usize,
    machine: &'a Machine,
    scene: &'a Scene,
    vcpu: &'a mut Vcpu,
    other: Kick,
    given_up: &'a AtomicBool,
}

fn range(at: u64, bytes: u64) -> GuestRange {
    GuestRange::new(GuestAddress(at), bytes).expect("whole pages")
}

/// Where a program of a copy is.
fn program_at(scene: &Scene, vcpu: usize, copy: u64) -> u64 {
    let page = 2 * copy + if scene.one_page { 0 } else { vcpu as u64 };
    CODE + page * PAGE_SIZE + PROGRAMS[vcpu]
}

impl Stage {
    /// A machine with its memory, whose vCPUs run on this CPU and the next, of those that the process has,
    /// counting round. Left to the system, threads that only wait for each other come to share one.
    pub fn new(cpu: usize) -> Result<Self, MachineError> {
        let machine = Machine::new(WINDOW_BITS)?;
        machine.map(range(CODE, CODE_BYTES), Permissions::ReadWriteExecute)?;
        machine.map(range(DATA, DATA_BYTES), Permissions::ReadWrite)?;
        for at in NOTES {
            machine.map(range(at, ROUNDS * NOTES_BYTES), Permissions::ReadWrite)?;
        }
        for at in DRIVERS {
            machine.map(range(at, PAGE_SIZE), Permissions::ReadExecute)?;
        }
        machine.map(range(SCANNED, SCANNED_BYTES), Permissions::Read)?;
        let scanned = vec![0xa5; SCANNED_BYTES as usize];
        machine.write(GuestAddress(SCANNED), &scanned).expect("it is mapped");
        machine.alias(range(CODE, CODE_BYTES), GuestAddress(ALIAS))?;
        let vcpus = [machine.vcpu()?, machine.vcpu()?];
        Ok(Self { machine, vcpus, cpu })
    }

    /// Runs one batch; `number` says how the two wait, and whether what is known of the code before is kept.
    /// Rounds that were lost end it, and the stage is of no use any more.
    pub fn run(&mut self, scene: &Scene, number: u64) -> Vec<Round> {
        self.prepare(scene, number);
        let [first, second] = &mut self.vcpus;
        let (given_up, machine) = (AtomicBool::new(false), &self.machine);
        let kicks = [first.kick(), second.kick()];
        let actor = |number: usize, vcpu| Actor {
            number,
            machine,
            scene,
            vcpu,
            other: kicks[1 - number].clone(),
            given_up: &given_up,
        };
        let (mut first, mut second) = (actor(0, first), actor(1, second));
        let (barrier, lost, cpu) = (Barrier::new(2), Mutex::new(None), self.cpu);
        let run = |actor: &mut Actor<'_>| {
            if let Err(error) = pin_to_nth_cpu(cpu + actor.number) {
                tracing::warn!("a vCPU cannot be tied to one CPU: {error}");
            }
            barrier.wait();
            if let Err(why) = actor.run() {
                lost.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
            }
        };
        let (running, ended) = channel::<()>();
        std::thread::scope(|scope| {
            let _running = running;
            let threads = [scope.spawn(|| run(&mut first)), scope.spawn(|| run(&mut second))];
            let (kicks, given_up) = (&kicks, &given_up);
            scope.spawn(move || {
                if ended.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
                    given_up.store(true, Ordering::SeqCst);
                    kicks.iter().for_each(Kick::ask);
                }
            });
            for thread in threads {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            }
        });
        let lost = lost.into_inner().unwrap_or_else(PoisonError::into_inner);
        match lost {
            Some(why) => vec![Round::Lost(why)],
            None => (0..ROUNDS).map(|round| Round::Over(Box::new(self.outcome(round)))).collect(),
        }
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.machine.write(GuestAddress(at), bytes).expect("it is mapped");
    }

    fn words<const COUNT: usize>(&self, at: u64) -> [u64; COUNT] {
        let mut bytes = vec![0; 8 * COUNT];
        self.machine.read(GuestAddress(at), &mut bytes).expect("it is mapped");
        let (words, _) = bytes.as_chunks();
        std::array::from_fn(|index| u64::from_le_bytes(words[index]))
    }

    fn prepare(&mut self, scene: &Scene, number: u64) {
        let mut code = vec![0; CODE_BYTES as usize];
        for vcpu in [0, 1] {
            for copy in 0..COPIES {
                let at = program_at(scene, vcpu, copy);
                let bytes = program_bytes(scene, vcpu, at);
                code[(at - CODE - u64::from(TABLE)) as usize..][..bytes.len()]
                    .copy_from_slice(&bytes);
            }
            let notes = (0..ROUNDS).flat_map(|round| {
                let copy = round / (ROUNDS / COPIES);
                let mut notes = [0; NOTES_BYTES as usize / 8];
                notes[DELAY as usize / 8] = delay(number, round, vcpu as u64);
                notes[SCAN as usize / 8] = delay(!number, round, vcpu as u64) % SCANNED_BYTES;
                notes[OWN as usize / 8] = program_at(scene, vcpu, copy);
                notes[OTHERS as usize / 8] = program_at(scene, 1 - vcpu, copy);
                notes
            });
            self.write_words(NOTES[vcpu], notes);
            let driver = driver(scene, vcpu).expect("the driver is encodable");
            self.write(DRIVERS[vcpu], &driver);
        }
        self.write(CODE, &code);
        let mut cell = FIRST_WORDS.to_vec();
        cell.resize(CELL as usize / 8, 0);
        self.write_words(DATA, cell.repeat(ROUNDS as usize));
        if number.is_multiple_of(2) {
            // Which pages are written often is forgotten too.
            self.machine.flush();
        }
        for (vcpu, at) in self.vcpus.iter_mut().zip(DRIVERS) {
            vcpu.set_state(&State { rip: at, ..State::default() });
        }
    }

    fn write_words(&self, at: u64, words: impl IntoIterator<Item = u64>) {
        let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
        self.write(at, &bytes);
    }

    fn outcome(&self, round: u64) -> Outcome {
        let notes = NOTES.map(|at| at + round * NOTES_BYTES);
        Outcome {
            registers: notes.map(|at| self.words(at)),
            words: self.words::<WORDS>(DATA + round * CELL),
            programs: notes.map(|at| self.words(at + SLOTS)),
        }
    }
}

/// The addresses of a program's slots, and the program.
fn program_bytes(scene: &Scene, vcpu: usize, at: u64) -> Vec<u8> {
    let mut words: Vec<u64> = (0..PROGRAM_SLOTS as u64).map(|place| at + 8 * place).collect();
    words.resize(usize::from(TABLE) / 8, 0);
    words.extend(
        scene.slots(vcpu).iter().enumerate().map(|(place, op)| op.encode(place, scene.joined)),
    );
    words.into_iter().flat_map(u64::to_le_bytes).collect()
}

/// How long a vCPU waits in a round before it begins: mostly hardly at all, as the other one is about as fast,
/// and now and then as long as a host takes, or a vCPU whose code was changed.
fn delay(number: u64, round: u64, vcpu: u64) -> u64 {
    let mut mixed = ((number << 16) ^ (round << 1) ^ vcpu).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^= mixed >> 29;
    mixed = mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 16;
    let most = if mixed.is_multiple_of(2) { mixed / 2 % 7 } else { mixed / 2 % 14 };
    (mixed >> 8) % (1 << most)
}

/// What takes a vCPU through all rounds: RBP of them are left, R10 points to the notes.
fn driver(scene: &Scene, vcpu: usize) -> Result<Vec<u8>, IcedError> {
    let program = &scene.vcpus[vcpu];
    let mut a = CodeAssembler::new(64)?;
    let [mut round, mut delay, mut back] = [(); 3].map(|()| a.create_label());
    a.mov(rbp, ROUNDS)?;
    a.mov(r8, DATA)?;
    a.mov(r10, NOTES[vcpu])?;
    a.lea(r15, qword_ptr(back))?;
    a.set_label(&mut round)?;
    a.mov(r14, qword_ptr(r10 + OWN as i32))?;
    a.mov(r9, qword_ptr(r10 + OTHERS as i32))?;
    for (register, op) in [r12, r13].into_iter().zip(program.slots) {
        a.mov(register, op.encode(0, scene.joined))?;
    }
    wait_for_other(&mut a, BEFORE)?;
    for (register, value) in [rax, rdx, rbx, rsi].into_iter().zip(program.values) {
        a.mov(register, u64::from(value))?;
    }
    a.mov(rcx, qword_ptr(r10 + DELAY as i32))?;
    a.set_label(&mut delay)?;
    a.dec(rcx)?;
    a.jg(delay)?;
    a.mov(rdi, SCANNED)?;
    a.mov(rcx, qword_ptr(r10 + SCAN as i32))?;
    a.jmp(r14)?;
    a.set_label(&mut back)?;
    for (number, register) in [rax, rdx, rbx, rsi, r12, r13].into_iter().enumerate() {
        a.mov(qword_ptr(r10 + 8 * number as i32), register)?;
    }
    wait_for_other(&mut a, BEHIND)?;
    for (place, op) in scene.slots(vcpu).into_iter().enumerate() {
        a.mov(rcx, qword_ptr(r14 + 8 * place as i32))?;
        a.mov(qword_ptr(r10 + (SLOTS as i32 + 8 * place as i32)), rcx)?;
        if scene.is_written_over(vcpu, place) {
            a.mov(rcx, op.encode(place, scene.joined))?;
            a.mov(qword_ptr(r14 + 8 * place as i32), rcx)?;
        }
    }
    a.add(r8, CELL as i32)?;
    a.add(r10, NOTES_BYTES as i32)?;
    a.dec(rbp)?;
    a.jnz(round)?;
    a.mov(edx, OVER)?;
    a.syscall()?;
    a.assemble(DRIVERS[vcpu])
}

/// Counts the vCPU in at a barrier of the round and waits for the other one.
fn wait_for_other(a: &mut CodeAssembler, barrier: u64) -> Result<(), IcedError> {
    let [mut patient, mut wait, mut both] = [(); 3].map(|()| a.create_label());
    let barrier = dword_ptr(r8 + barrier as i32);
    a.lock().inc(barrier)?;
    a.set_label(&mut patient)?;
    a.mov(ecx, SPINS)?;
    a.set_label(&mut wait)?;
    a.cmp(barrier, 2)?;
    a.jae(both)?;
    a.dec(ecx)?;
    a.jnz(wait)?;
    a.mov(edx, YIELD)?;
    a.syscall()?;
    a.jmp(patient)?;
    a.set_label(&mut both)?;
    a.zero_bytes()
}

impl Actor<'_> {
    /// Runs through all rounds; says why if that does not succeed, and then the other one ends too.
    fn run(&mut self) -> Result<(), String> {
        let result = self.run_to_end();
        if result.is_err() {
            self.given_up.store(true, Ordering::SeqCst);
            self.other.ask();
        }
        result
    }

    fn run_to_end(&mut self) -> Result<(), String> {
        let may_fault = self.scene.takes_pages_away();
        loop {
            match self.vcpu.run(None) {
                Exit::SystemCall if self.vcpu.gpr(RDX) == u64::from(OVER) => return Ok(()),
                Exit::SystemCall => std::thread::yield_now(),
                Exit::Halt => self.be_the_host()?,
                // Until the page is back.
                Exit::Exception { vector: 14, .. }
                    if may_fault && !self.given_up.load(Ordering::SeqCst) =>
                {
                    std::thread::yield_now();
                }
                exit => return Err(format!("vCPU {}: {exit}", self.number)),
            }
        }
    }

    /// Does what is to be done at the `hlt` that was executed and at those right behind it, and lets the vCPU go
    /// on in the next slot.
    fn be_the_host(&mut self) -> Result<(), String> {
        let halt = self.vcpu.rip().0 - 1;
        let first = halt.wrapping_sub(self.vcpu.gpr(14)) / 8;
        let code = &self.scene.vcpus[self.number].code;
        let rest = usize::try_from(first).ok().and_then(|first| code.get(first..));
        let mut done = 0;
        for op in rest.into_iter().flatten() {
            let Op::Host(op) = *op else { break };
            self.act(op)?;
            done += 1;
        }
        if done == 0 {
            return Err(format!("vCPU {}: a halt at {halt:#x}, where none is", self.number));
        }
        self.vcpu.set_rip(GuestAddress(halt + 8 * done));
        Ok(())
    }

    fn act(&self, op: HostOp) -> Result<(), String> {
        match op {
            HostOp::Nothing => Ok(()),
            HostOp::Word { word, value } => {
                let at = self.vcpu.gpr(8) + 8 * u64::from(word);
                self.write(at, &u64::from(value).to_le_bytes())
            }
            HostOp::Patch { own, place, with, way } => {
                let program = self.vcpu.gpr(if own { 14 } else { 9 });
                let new = self.scene.vcpus[self.number].slots[usize::from(with)];
                let new = new.encode(0, self.scene.joined);
                self.patch(program + 8 * u64::from(place), &new.to_le_bytes(), way)
            }
        }
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), String> {
        self.machine.write(GuestAddress(at), bytes).map_err(|error| error.to_string())
    }

    fn patch(&self, at: u64, bytes: &[u8], way: Way) -> Result<(), String> {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let page = range(at / PAGE_SIZE * PAGE_SIZE, PAGE_SIZE);
        let machine = self.machine;
        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        match way {
            Way::Write => self.write(at, bytes)?,
            Way::Alias => self.write(at - CODE + ALIAS, bytes)?,
            Way::Protect => {
                let protect = |permissions| {
                    machine.protect(page, permissions).map_err(|error| error.to_string())
                };
                protect(Permissions::None)?;
                self.write(at, bytes)?;
                protect(Permissions::ReadWriteExecute)?;
            }
            Way::Remap => {
                let remap = |from, to| machine.remap(from, to).map_err(|error| error.to_string());
                remap(page, GuestAddress(AWAY))?;
                self.write(AWAY + at % PAGE_SIZE, bytes)?;
                remap(range(AWAY, PAGE_SIZE), page.start())?;
            }
        }
        Ok(())
    }
}
