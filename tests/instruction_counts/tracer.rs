//! Counts the instructions of a child process between two marks, by single steps.
//!
//! The child asks to be traced and stops; it is let run to the first mark, the system call `getppid`, and
//! stepped from there to the second. A repeated string instruction counts once. An instruction that
//! faults counts when it is done, those of the signal handler as well.

use std::ffi::c_void;
use std::process::Command;

use nix::sys::personality::{self, Persona};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, raise};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, getppid};
use tregion::os::pin_to_nth_cpu;

use crate::scenarios::Scenario;

/// What glibc's string functions may use is then the same everywhere; they do not repeat instructions.
const TUNABLES: &str = "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW,-AVX2,-ERMS,-FSRM";
/// SYSCALL, and the number of `getppid`, which marks.
const SYSCALL: u64 = 0x050f;
const GETPPID: u64 = 110;
/// PUSHFQ, and what it must not show of the stepping: TF.
const PUSHF: u64 = 0x9c;
const TF: u64 = 0x100;

/// In the child: runs a scenario, marked.
pub(crate) fn run_traced(scenario: &Scenario) {
    ptrace::traceme().unwrap();
    raise(Signal::SIGSTOP).unwrap();
    (scenario.run)(scenario.rounds, &mut || {
        getppid();
    });
}

/// The instructions between the marks of a child that is given `argument`.
pub(crate) fn count(argument: &str) -> u64 {
    // Where it is refused, addresses vary, and counts with them a little.
    let _ = personality::set(personality::get().unwrap() | Persona::ADDR_NO_RANDOMIZE);
    pin_to_nth_cpu(0).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    let mut child = command.arg(argument).env("GLIBC_TUNABLES", TUNABLES).spawn().unwrap();
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    assert_eq!(waitpid(pid, None).unwrap(), WaitStatus::Stopped(pid, Signal::SIGSTOP));
    ptrace::setoptions(pid, Options::PTRACE_O_EXITKILL | Options::PTRACE_O_TRACESYSGOOD).unwrap();
    run_to_mark(pid);
    let count = step_to_mark(pid);
    stop_stepping(pid);
    ptrace::detach(pid, None).unwrap();
    let status = child.wait().unwrap();
    assert!(status.success(), "{argument}: {status}, {count}");
    count
}

/// Until the kernel has done the first mark.
fn run_to_mark(pid: Pid) {
    let mut signal = None;
    let mut entered = false;
    loop {
        ptrace::syscall(pid, signal.take()).unwrap();
        match waitpid(pid, None).unwrap() {
            WaitStatus::PtraceSyscall(_) if entered => return,
            WaitStatus::PtraceSyscall(_) => {
                entered = ptrace::getregs(pid).unwrap().orig_rax == GETPPID
            }
            WaitStatus::Stopped(_, stopped) => signal = Some(stopped),
            status => panic!("the child does not come to the first mark: {status:?}"),
        }
    }
}

/// Until the child is about to do the second mark.
fn step_to_mark(pid: Pid) -> u64 {
    let mut count = 0;
    let mut signal = None;
    let mut before = ptrace::getregs(pid).unwrap();
    loop {
        let bytes = ptrace::read(pid, before.rip as *mut c_void).unwrap() as u64;
        if bytes & 0xffff == SYSCALL && before.rax == GETPPID {
            return count;
        }
        let delivers = signal.is_some();
        ptrace::step(pid, signal.take()).unwrap();
        match waitpid(pid, None).unwrap() {
            WaitStatus::Stopped(_, Signal::SIGTRAP) => {}
            WaitStatus::Stopped(_, stopped) => {
                signal = Some(stopped);
                continue;
            }
            status => panic!("the child does not come to the second mark: {status:?}"),
        }
        let after = ptrace::getregs(pid).unwrap();
        // The step of a delivery ends before the handler's first instruction.
        count += u64::from(!delivers && after.rip != before.rip);
        if !delivers && bytes & 0xff == PUSHF {
            hide_stepping(pid, after.rsp);
        }
        before = after;
    }
}

/// Behind a POPF that it stepped, Linux takes TF for the child's own and leaves it set.
fn stop_stepping(pid: Pid) {
    let mut registers = ptrace::getregs(pid).unwrap();
    registers.eflags &= !TF;
    ptrace::setregs(pid, registers).unwrap();
}

/// Takes TF out of the flags that were pushed.
pub(crate) fn hide_stepping(pid: Pid, stack: u64) {
    let flags = ptrace::read(pid, stack as *mut c_void).unwrap();
    ptrace::write(pid, stack as *mut c_void, flags & !(TF as i64)).unwrap();
}
