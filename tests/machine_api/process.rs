//! The process around a machine: signals of others, and that everything is freed. Each test runs in a
//! process of its own, since signal handlers, mappings and descriptors are the process's.
#![allow(unsafe_code, reason = "installs signal handlers and makes a wild access")]

use std::os::unix::thread::JoinHandleExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use iced_x86::code_asm::{ecx, qword_ptr, r8, rax, rcx, rdi, xmm0, xmm1};
use tregion::exec::{Exit, Machine, Mmio};
use tregion::guest::{GuestAddress, Permissions};

use crate::guest::{CODE, DATA, Guest, RCX, RDI, guest, range};

/// Runs the ignored test `name` in a process of its own.
fn alone(name: &str) {
    let own = std::env::current_exe().unwrap();
    let name = format!("process::{name}");
    let output =
        Command::new(own).args(["--exact", &name, "--ignored", "--nocapture"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{errors}");
}

fn install(signal: i32, handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void)) {
    // SAFETY: the action is valid, and the handlers below call only what a handler may.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(libc::sigaction(signal, &raw const action, std::ptr::null_mut()), 0);
    }
}

static FAULTS: AtomicU64 = AtomicU64::new(0);
static WAKES: AtomicU64 = AtomicU64::new(0);

/// Handles a fault of the test's own wild load: skips it, which is two bytes long.
extern "C" fn skip_load(_: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes valid pointers.
    unsafe {
        assert_eq!((*info).si_addr() as usize, WILD);
        let context = &mut *context.cast::<libc::ucontext_t>();
        context.uc_mcontext.gregs[libc::REG_RIP as usize] += 2;
    }
    FAULTS.fetch_add(1, Ordering::SeqCst);
}

extern "C" fn count(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // Uses vector registers and a good deal of stack, as handlers may.
    let room = std::hint::black_box([1.5_f64; 512]);
    let sum = std::hint::black_box(room.iter().sum::<f64>());
    WAKES.fetch_add(u64::from(sum > 0.0), Ordering::SeqCst);
}

const WILD: usize = 0x10;

fn wild_load() {
    // SAFETY: the fault is handled by `skip_load`; `mov al, [rdi]` has two bytes.
    unsafe {
        std::arch::asm!("mov al, byte ptr [rdi]", in("rdi") WILD, out("al") _);
    }
}

/// Faults all the time: reads across the end of memory that is mapped piece by piece, and writes to
/// code.
fn faulting_guest() -> Guest {
    let mut guest = guest(|a| {
        let mut again = a.create_label();
        a.mov(ecx, 50).unwrap();
        a.set_label(&mut again).unwrap();
        a.mov(qword_ptr(rdi), rcx).unwrap();
        a.add(rax, qword_ptr(rdi)).unwrap();
        a.dec(ecx).unwrap();
        a.jnz(again).unwrap();
        a.hlt().unwrap();
    });
    guest.vcpu.set_gpr(RDI, CODE + 0x800);
    guest
}

#[test]
fn faults_of_others_go_where_they_went_before() {
    alone("faults_of_others");
}

#[test]
#[ignore = "in a process of its own"]
fn faults_of_others() {
    install(libc::SIGSEGV, skip_load);
    let mut guest = faulting_guest();
    for turn in 1..=100 {
        guest.run();
        wild_load();
        assert_eq!(FAULTS.load(Ordering::SeqCst), turn);
    }
    let mut second = faulting_guest();
    drop(guest);
    second.run();
    wild_load();
    drop(second);
    wild_load();
    assert_eq!(FAULTS.load(Ordering::SeqCst), 102);
}

#[test]
fn a_handler_installed_later_that_passes_on_what_is_not_its_own() {
    alone("a_later_handler");
}

static BEFORE: AtomicU64 = AtomicU64::new(0);

extern "C" fn skip_or_pass_on(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes valid pointers, and the handler before has the same signature.
    unsafe {
        if (*info).si_addr() as usize == WILD {
            return skip_load(signal, info, context);
        }
        let before: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) =
            std::mem::transmute(BEFORE.load(Ordering::SeqCst) as usize);
        before(signal, info, context);
    }
}

#[test]
#[ignore = "in a process of its own"]
fn a_later_handler() {
    let mut guest = faulting_guest();
    guest.run();
    // SAFETY: asks for the present action only.
    let before = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGSEGV, std::ptr::null(), &raw mut action);
        action.sa_sigaction
    };
    BEFORE.store(before as u64, Ordering::SeqCst);
    install(libc::SIGSEGV, skip_or_pass_on);
    for _ in 0..50 {
        guest.run();
        wild_load();
    }
    assert_eq!(FAULTS.load(Ordering::SeqCst), 50);
}

#[test]
fn signals_arrive_while_guest_code_runs() {
    alone("signals_while_running");
}

#[test]
#[ignore = "in a process of its own"]
fn signals_while_running() {
    // One handler is installed before the first machine.
    install(libc::SIGUSR1, count);
    static STARTED: AtomicBool = AtomicBool::new(false);
    let thread = std::thread::spawn(|| {
        install(libc::SIGALRM, count);
        STARTED.store(true, Ordering::SeqCst);
        while WAKES.load(Ordering::SeqCst) < 5000 {
            assert_eq!(sums(), (SUM, SUM, [ONES, ONES, 0, 0, 0, 0, 0, 0]));
        }
    });
    while !STARTED.load(Ordering::SeqCst) {
        std::thread::yield_now();
    }
    for signal in [libc::SIGUSR1, libc::SIGALRM].into_iter().cycle() {
        let wakes = WAKES.load(Ordering::SeqCst);
        // SAFETY: the thread has not been joined.
        unsafe { libc::pthread_kill(thread.as_pthread_t(), signal) };
        while WAKES.load(Ordering::SeqCst) == wakes && !thread.is_finished() {
            std::thread::yield_now();
        }
        if thread.is_finished() {
            break;
        }
    }
    thread.join().unwrap();
    assert!(WAKES.load(Ordering::SeqCst) >= 5000);
}

const PASSES: u64 = 3_000_000;
const SUM: u64 = PASSES * (PASSES + 1) / 2;
const ONES: u64 = PASSES << 32 | PASSES;

/// Sums up, in RAX, on the stack, and the number of passes in XMM1.
fn sums() -> (u64, u64, [u64; 8]) {
    let mut guest = guest(|a| {
        let mut again = a.create_label();
        a.mov(rcx, PASSES).unwrap();
        a.pcmpeqd(xmm0, xmm0).unwrap();
        a.pxor(xmm1, xmm1).unwrap();
        a.set_label(&mut again).unwrap();
        a.add(rax, rcx).unwrap();
        a.push(rax).unwrap();
        a.psubd(xmm1, xmm0).unwrap();
        a.pop(r8).unwrap();
        a.dec(rcx).unwrap();
        a.jnz(again).unwrap();
        a.hlt().unwrap();
    });
    guest.run();
    (guest.vcpu.gpr(0), guest.vcpu.gpr(8), guest.vcpu.state().vector[1])
}

/// Each kick is a signal; however many come, their frames do not fill the stack.
#[test]
fn kicks_at_any_rate() {
    let mut spinning = guest(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again).unwrap();
        a.jmp(again).unwrap();
    });
    let kick = spinning.vcpu.kick();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    kick.ask();
                }
            });
        }
        for _ in 0..3000 {
            assert_eq!(spinning.vcpu.run(None), Exit::Requested);
        }
        over.store(true, Ordering::SeqCst);
    });
}

/// A guest that spins in one machine does not keep another's code memory from coming back.
#[test]
fn machines_reclaim_by_themselves() {
    let mut spinning = guest(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again).unwrap();
        a.jmp(again).unwrap();
    });
    let mut other = guest(|a| a.hlt().unwrap());
    let kick = spinning.vcpu.kick();
    let turns = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            assert_eq!(spinning.vcpu.run(Some(100)), Exit::Budget);
            turns.store(true, Ordering::SeqCst);
            assert_eq!(spinning.vcpu.run(None), Exit::Requested);
        });
        while !turns.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert_eq!(other.vcpu.run(None), Exit::Halt);
        other.machine.flush();
        let waiting = (0..100).map(|_| other.machine.reclaim()).min();
        kick.ask();
        assert_eq!(waiting, Some(0));
    });
}

#[test]
fn dropping_everything_frees_everything() {
    alone("create_and_drop");
}

/// Lines of `/proc/self/maps` that are ours or nameless, and descriptors.
fn usage() -> (usize, usize) {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let lines = maps.lines().filter(|line| {
        let name = line.split_whitespace().nth(5).unwrap_or_default();
        name.is_empty() || name.contains("tregion")
    });
    (lines.count(), std::fs::read_dir("/proc/self/fd").unwrap().count())
}

fn one_of_everything(round: u64) {
    let mut guest = faulting_guest();
    let machine: &Machine = &guest.machine;
    machine
        .map_mmio(range(0x7000_0000, 1), |access| {
            if let Mmio::Read { value, .. } = access {
                value.fill(1);
            }
        })
        .unwrap();
    machine.hook_memory(GuestAddress(DATA).., |_| {}).unwrap();
    machine.hook_blocks(.., |_| {}).unwrap();
    machine.map(range(1 << 40, 1), Permissions::Read).unwrap();
    let snapshot = machine.snapshot().unwrap();
    let second = machine.vcpu().unwrap();
    guest.run();
    guest.machine.restore(&snapshot).unwrap();
    guest.vcpu.set_gpr(RCX, round);
    guest.run();
    // In another order each time.
    let Guest { machine, vcpu, .. } = guest;
    match round % 3 {
        0 => drop((machine, vcpu, second, snapshot)),
        1 => drop((second, snapshot, vcpu, machine)),
        _ => drop((snapshot, vcpu.kick(), machine, second, vcpu)),
    }
}

#[test]
#[ignore = "in a process of its own"]
fn create_and_drop() {
    (0..10).for_each(one_of_everything);
    let before = usage();
    (0..200).for_each(one_of_everything);
    let after = usage();
    assert_eq!(before.1, after.1, "descriptors");
    assert!(after.0 <= before.0 + 2, "mappings: {before:?} {after:?}");
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    assert!(!maps.contains("tregion-"), "{maps}");
    let exit = faulting_guest().vcpu.run(None);
    assert_eq!(exit, Exit::Halt);
}
