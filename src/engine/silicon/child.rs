//! The child process: started, set up, handed requests, replaced when lost.
//!
//! Set-up, each step a command that the stub carries out: die with the parent; drop everything that
//! the program loader mapped, so that the address space is the guest's but for the stub's span; make
//! the request pages read-only; signal stack; one handler for every signal a guest can cause; the
//! seccomp filter. From then on a system call passes only from the stub's gate and only if it is one
//! of those in [`ALLOWED`]; any other raises SIGSYS, which ends the leg like every signal.
#![allow(unsafe_code, reason = "reads and writes memory shared with the child")]

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child as Process, Command, Stdio};
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use memmap2::{MmapOptions, MmapRaw};

use super::layout::{
    PAGE, SHARED, SHARED_SIZE, SIGNAL_STACK, SIGNAL_STACK_SIZE, SPAN, control, request,
};
use super::stub::Stub;
use crate::case::Loss;
use crate::engine::loss;
use crate::os::{WaitWord, memfd, pin_like_caller, spawn};

/// First address that user code cannot have.
pub(super) const USER_END: u64 = 0x7fff_ffff_f000;

/// System calls that the stub makes once it is set up.
const ALLOWED: [libc::c_long; 3] = [libc::SYS_futex, libc::SYS_mmap, libc::SYS_munmap];

/// Signals that a guest can cause.
const SIGNALS: [libc::c_int; 6] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGSYS];

/// How often the processor time is looked at.
const LEG_CHECK: Duration = Duration::from_millis(20);
/// Time on the clock after which a child that uses no processor time is given up; processor time
/// after which one is that carries out commands and runs no guest. A virtual machine's processor
/// that its host takes away for a while seems to be used meanwhile, so this is long.
const PATIENCE: Duration = Duration::from_secs(20);

/// A system call for the stub to make.
#[derive(Clone, Copy, Debug)]
pub(super) struct SystemCall {
    pub(super) number: libc::c_long,
    pub(super) arguments: [u64; 6],
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// All commands were carried out and the leg, if there was one, ended by a signal.
    Done,
    /// A command failed with this error number.
    Failed(i32),
    /// The guest ran on. The child is gone.
    RanOn,
    /// The child is gone or no longer what it was.
    Lost(Loss),
}

/// A running child.
#[derive(Debug)]
pub(super) struct Child {
    process: Process,
    shared: MmapRaw,
    base: u64,
    sequence: u32,
    /// Processor time after which a leg is a run-away.
    leg_time: Duration,
}

impl Child {
    /// Starts a child whose span begins at `base`, with `memory` as what guests will be mapped from;
    /// legs that use more processor time than `leg_time` are ended.
    pub(super) fn start(base: u64, memory: &File, leg_time: Duration) -> io::Result<Self> {
        let stub = Stub::assemble(base)?;
        let mut program = memfd("tregion-stub")?;
        program.write_all(&stub.program)?;
        // A file that is open for writing cannot be executed: this reopens it for reading alone.
        let path = format!("/proc/{}/fd/{}", std::process::id(), program.as_raw_fd());
        let program = {
            let readable = File::open(&path)?;
            drop(program);
            readable
        };
        let path = format!("/proc/{}/fd/{}", std::process::id(), program.as_raw_fd());
        let area = memfd("tregion-port")?;
        area.set_len(SHARED_SIZE as u64)?;
        let shared = MmapOptions::new().len(SHARED_SIZE).map_raw(&area)?;
        let mut command = Command::new(path);
        command.env_clear().stdin(area).stdout(memory.try_clone()?).stderr(Stdio::null());
        // Ctrl-C at a terminal is for this process alone.
        command.process_group(0);
        let process = spawn(command).map_err(step("cannot be started"))?;
        let mut child = Self { process, shared, base, sequence: 0, leg_time };
        if let Err(error) = pin_like_caller(child.process.id()) {
            tracing::warn!("the silicon child does not share its engine's CPU: {error}");
        }
        child.set_up(&stub).map_err(step("cannot be set up"))?;
        Ok(child)
    }

    /// The child's span, which no case may use.
    pub(super) fn base(&self) -> u64 {
        self.base
    }

    /// Whether an address lies in the child's span.
    pub(super) fn owns(&self, address: u64) -> bool {
        address.wrapping_sub(self.base) < SPAN as u64
    }

    /// Its process number.
    pub(super) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Sets the processor time after which a leg is ended.
    pub(super) fn set_leg_time(&mut self, leg_time: Duration) {
        self.leg_time = leg_time;
    }

    /// Hands `commands`, and the state in the request pages if `run`, to the child and waits.
    pub(super) fn request(&mut self, commands: &[SystemCall], run: bool) -> Answer {
        let mut chunks = commands.chunks(request::MAX_COMMANDS).peekable();
        loop {
            let chunk = chunks.next().unwrap_or(&[]);
            let last = chunks.peek().is_none();
            match self.hand_over(chunk, run && last) {
                Answer::Done if !last => {}
                answer => return answer,
            }
        }
    }

    fn hand_over(&mut self, commands: &[SystemCall], run: bool) -> Answer {
        for (index, command) in commands.iter().enumerate() {
            let place = request::COMMANDS + index * 56;
            self.write_u64(place, command.number as u64);
            for (argument, value) in command.arguments.iter().enumerate() {
                self.write_u64(place + 8 + argument * 8, *value);
            }
        }
        self.write_u64(request::COMMAND_COUNT, commands.len() as u64);
        self.write_u64(request::RUN, u64::from(run));
        self.write_u64(control::FAILED, 0);
        self.write_u64(control::SIGNAL, 0);
        self.sequence = self.sequence.wrapping_add(1);
        self.word(control::GO).set(self.sequence);
        match self.wait(if run { self.leg_time } else { PATIENCE }) {
            Answer::RanOn if !run => Answer::Lost(Loss::Hung),
            Answer::Done if self.read_u64(control::FAILED) != 0 => {
                Answer::Failed(-(self.read_u64(control::RESULT) as i64) as i32)
            }
            Answer::Done if run != (self.read_u64(control::SIGNAL) != 0) => {
                Answer::Lost(Loss::Overwritten)
            }
            answer => answer,
        }
    }

    /// Waits until the request is carried out, or has used `limit` of processor time.
    fn wait(&mut self, limit: Duration) -> Answer {
        // Nearly every request is done by the first look: until then nobody asks for the time.
        let (mut still_since, mut used_at_first, mut used_before) = (None, None, Duration::ZERO);
        loop {
            if self.word(control::DONE).wait_for(self.sequence, LEG_CHECK) {
                return Answer::Done;
            }
            match self.process.try_wait() {
                Ok(Some(status)) => return Answer::Lost(loss(status)),
                Ok(None) => {}
                Err(_) => return Answer::Lost(Loss::Hung),
            }
            let used = self.processor_time().unwrap_or_default();
            if used > used_before {
                (used_before, still_since) = (used, None);
            }
            if used.saturating_sub(*used_at_first.get_or_insert(used)) >= limit {
                self.kill();
                return Answer::RanOn;
            }
            if still_since.get_or_insert_with(Instant::now).elapsed() >= PATIENCE {
                self.kill();
                return Answer::Lost(Loss::Hung);
            }
        }
    }

    /// Processor time that the child has used.
    fn processor_time(&self) -> Option<Duration> {
        let path = format!("/proc/{}/schedstat", self.process.id());
        let text = std::fs::read_to_string(path).ok()?;
        text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
    }

    fn kill(&mut self) {
        // Both fail only if the child is gone already, which is what is wanted.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Whether the guest of the leg that just ended has left the child's own memory alone: all that
    /// neither the stub nor the kernel writes must still be zero.
    pub(super) fn is_untouched(&self, frame_start: usize) -> bool {
        // Comparing with zeros is ten times as fast as looking at each byte.
        static ZEROS: [u8; SIGNAL_STACK_SIZE] = [0; SIGNAL_STACK_SIZE];
        let zero = |from: usize, to: usize| self.bytes(from, to - from) == &ZEROS[..to - from];
        zero(control::WRITTEN, PAGE - control::SCRATCH_SIZE) && zero(SIGNAL_STACK, frame_start)
    }

    /// Bytes of the shared area, while no leg runs.
    pub(super) fn bytes(&self, offset: usize, length: usize) -> &[u8] {
        assert!(offset + length <= SHARED_SIZE, "inside the shared area");
        // SAFETY: in bounds; the child writes there only between GO and DONE, and `hand_over`, which
        // spans that time, borrows `self` exclusively.
        unsafe { std::slice::from_raw_parts(self.shared.as_ptr().add(offset), length) }
    }

    /// The same to be written.
    pub(super) fn bytes_mut(&mut self, offset: usize, length: usize) -> &mut [u8] {
        assert!(offset + length <= SHARED_SIZE, "inside the shared area");
        // SAFETY: as in `bytes`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.shared.as_mut_ptr().add(offset), length) }
    }

    pub(super) fn read_u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.bytes(offset, 8).try_into().expect("eight bytes were asked for"))
    }

    pub(super) fn write_u64(&mut self, offset: usize, value: u64) {
        self.bytes_mut(offset, 8).copy_from_slice(&value.to_le_bytes());
    }

    /// Offset in the shared area of an address of the child, if it lies there.
    pub(super) fn shared_offset(&self, address: u64) -> Option<usize> {
        let offset = address.wrapping_sub(self.base + SHARED as u64);
        (offset < SHARED_SIZE as u64).then_some(offset as usize)
    }

    fn word(&self, offset: usize) -> WaitWord<'_> {
        assert!(offset + 4 <= SHARED_SIZE && offset.is_multiple_of(4), "a word of the shared area");
        // SAFETY: in bounds and aligned, mapped as long as `self`; both sides access it atomically.
        WaitWord(unsafe { &*self.shared.as_ptr().add(offset).cast::<AtomicU32>() })
    }

    fn set_up(&mut self, stub: &Stub) -> io::Result<()> {
        let mut commands = vec![
            call(libc::SYS_prctl, &[libc::PR_SET_PDEATHSIG as u64, libc::SIGKILL as u64]),
            call(libc::SYS_munmap, &[0, self.base]),
            call(libc::SYS_munmap, &[self.base + SPAN as u64, USER_END - self.base - SPAN as u64]),
        ];
        let action = self.stage(0, &handler_action(stub.handler));
        for signal in SIGNALS {
            commands.push(call(libc::SYS_rt_sigaction, &[signal as u64, action, 0, 8]));
        }
        let stack = [self.address(SIGNAL_STACK), 0, SIGNAL_STACK_SIZE as u64];
        let stack = self.stage(64, &stack);
        commands.push(call(libc::SYS_sigaltstack, &[stack, 0]));
        let requests = self.address(PAGE);
        let read = libc::PROT_READ as u64;
        let size = (request::PAGES * PAGE) as u64;
        commands.push(call(libc::SYS_mprotect, &[requests, size, read]));
        commands.push(call(libc::SYS_prctl, &[libc::PR_SET_NO_NEW_PRIVS as u64, 1, 0, 0, 0]));
        let filter = filter_program(stub.gate);
        let filter_address = self.stage(128, &filter);
        let program = self.stage(96, &[filter.len() as u64, filter_address]);
        let mode = u64::from(libc::SECCOMP_SET_MODE_FILTER);
        commands.push(call(libc::SYS_seccomp, &[mode, 0, program]));
        match self.request(&commands, false) {
            Answer::Done => Ok(()),
            Answer::Failed(errno) => Err(io::Error::from_raw_os_error(errno)),
            Answer::RanOn | Answer::Lost(Loss::Hung) => {
                Err(io::Error::other("the silicon child does not answer"))
            }
            Answer::Lost(loss) => Err(io::Error::other(format!("the silicon child: {loss}"))),
        }
    }

    /// Puts `words` into the page of the XSAVE image, which is not in use during set-up; returns
    /// their address in the child.
    fn stage(&mut self, offset: usize, words: &[u64]) -> u64 {
        for (index, word) in words.iter().enumerate() {
            self.write_u64(request::XSAVE + offset + index * 8, *word);
        }
        self.address(request::XSAVE + offset)
    }

    fn address(&self, offset: usize) -> u64 {
        self.base + (SHARED + offset) as u64
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A system call; arguments that are left out are zero.
pub(super) fn call(number: libc::c_long, arguments: &[u64]) -> SystemCall {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    SystemCall { number, arguments: all }
}

/// Adds to an error what was being done.
fn step(what: &'static str) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("the silicon engine's child {what}: {error}"))
}

/// The kernel's `struct sigaction`: handler, flags, restorer, mask. The handler never returns, so the
/// restorer is never run.
fn handler_action(handler: u64) -> [u64; 4] {
    const SA_RESTORER: u64 = 0x0400_0000;
    let flags = (libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER) as u64;
    [handler, flags | SA_RESTORER, handler, 0]
}

/// Offsets in the kernel's `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ADDRESS_LOW: u32 = 8;
const ADDRESS_HIGH: u32 = 12;
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;

/// The seccomp filter, each BPF instruction as one word.
fn filter_program(gate: u64) -> Vec<u64> {
    let conditions = [
        (ARCHITECTURE, AUDIT_ARCH_X86_64),
        (ADDRESS_LOW, gate as u32),
        (ADDRESS_HIGH, (gate >> 32) as u32),
    ];
    let load = |offset| bpf(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset);
    let equal = |value, yes, no| bpf(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, yes, no, value);
    let finish = |action| bpf(libc::BPF_RET | libc::BPF_K, 0, 0, action);
    let numbers = ALLOWED.len();
    let mut program = Vec::new();
    for (index, (offset, value)) in conditions.into_iter().enumerate() {
        // What is behind: the other conditions, the load of the number, the numbers; then the trap.
        let behind = 2 * (conditions.len() - 1 - index) + 1 + numbers;
        program.extend([load(offset), equal(value, 0, behind as u8)]);
    }
    program.push(load(NUMBER));
    for (index, number) in ALLOWED.into_iter().enumerate() {
        program.push(equal(number as u32, (numbers - index) as u8, 0));
    }
    program.extend([finish(libc::SECCOMP_RET_TRAP), finish(libc::SECCOMP_RET_ALLOW)]);
    program
}

/// One `struct sock_filter`.
fn bpf(code: u32, if_true: u8, if_false: u8, value: u32) -> u64 {
    u64::from(code) | u64::from(if_true) << 16 | u64::from(if_false) << 24 | u64::from(value) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The limit is the guest's: what the stub does for it may take as long as it takes.
    #[test]
    fn commands_are_not_held_to_the_time_of_a_leg() {
        const SIZE: u64 = 512 << 20;
        let memory = memfd("tregion-test").unwrap();
        let base = 0x10_0000_0000;
        let mut child = Child::start(base, &memory, Duration::ZERO).unwrap();
        let access = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let kind = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE) as u64;
        let arguments = [2 * base, SIZE, access, kind, u64::MAX, 0];
        // Longer than it is between two looks at the processor time, many times over.
        for _ in 0..4 {
            assert_eq!(child.request(&[call(libc::SYS_mmap, &arguments)], false), Answer::Done);
            let unmap = call(libc::SYS_munmap, &arguments[..2]);
            assert_eq!(child.request(&[unmap], false), Answer::Done);
        }
    }
}
