//! [`Arena`]: a machine with the pages that all tests here use, and what runs and stops its vCPUs.
//!
//! Guest code talks to the test by words of the page at [`WORDS`]. Threads are not scoped: a test that
//! fails leaves its runners behind rather than wait for them.

use std::env;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use iced_x86::code_asm::{CodeAssembler, r11, rax};
use tregion::exec::{Exit, Machine, Vcpu};
use tregion::guest::{GuestAddress, GuestRange, Permissions};

pub(crate) const CODE: u64 = 0x40_0000;
pub(crate) const CODE_PAGES: u64 = 8;
pub(crate) const WORDS: u64 = 0x50_0000;
pub(crate) const STACKS: u64 = 0x70_0000;
/// Where code for a vCPU that stores one word lies.
const STORE: u64 = CODE + (CODE_PAGES - 1) * 0x1000;

/// Numbers of registers.
pub(crate) const RAX: usize = 0;
pub(crate) const RBX: usize = 3;
pub(crate) const RSP: usize = 4;
pub(crate) const R8: usize = 8;
pub(crate) const R9: usize = 9;
pub(crate) const R11: usize = 11;
pub(crate) const R15: usize = 15;

/// How long anything may take that must happen at all.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

/// How long one test runs, `share` of the whole of it.
pub(crate) fn time(share: f64) -> Duration {
    let seconds = env::var("TREGION_STRESS_SECONDS").ok();
    let seconds = seconds.map_or(1.0, |seconds| seconds.parse().expect("a number of seconds"));
    Duration::from_secs_f64(seconds * share)
}

/// A test that has the processors for itself, and not for ever: what hangs ends all tests.
pub(crate) struct Alone {
    _guard: MutexGuard<'static, ()>,
    over: Arc<AtomicBool>,
}

impl Drop for Alone {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
    }
}

/// These tests want all processors for themselves: one runs at a time.
pub(crate) fn alone() -> Alone {
    static ALONE: Mutex<()> = Mutex::new(());
    let guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let over = Arc::new(AtomicBool::new(false));
    let (ends, name) = (Arc::clone(&over), std::thread::current().name().map(str::to_owned));
    let until = Instant::now() + 2 * PATIENCE + time(8.0);
    std::thread::spawn(move || {
        while !ends.load(Ordering::SeqCst) {
            if Instant::now() > until {
                eprintln!("{} hangs", name.unwrap_or_default());
                std::process::abort();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    Alone { _guard: guard, over }
}

pub(crate) fn range(at: u64, pages: u64) -> GuestRange {
    GuestRange::new(GuestAddress(at), pages * 0x1000).unwrap()
}

pub(crate) fn assemble(at: u64, write: impl FnOnce(&mut CodeAssembler)) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(64).unwrap();
    write(&mut assembler);
    assembler.assemble(at).unwrap()
}

/// See the file's head.
#[derive(Clone, Debug)]
pub(crate) struct Arena {
    pub(crate) machine: Machine,
    /// Bytes of code memory in use before anything ran.
    pub(crate) used: u64,
}

impl Arena {
    /// Code that cannot be written, four pages of words, eight stacks.
    pub(crate) fn new() -> Self {
        Self::with_window(40)
    }

    pub(crate) fn with_window(bits: u32) -> Self {
        let machine = Machine::new(bits).unwrap();
        let used = machine.figures().used_bytes;
        machine.map(range(CODE, CODE_PAGES), Permissions::ReadExecute).unwrap();
        machine.map(range(WORDS, 4), Permissions::ReadWrite).unwrap();
        machine.map(range(STACKS, 8), Permissions::ReadWrite).unwrap();
        let arena = Self { machine, used };
        arena.code(STORE, |a| {
            a.mov(iced_x86::code_asm::qword_ptr(r11), rax).unwrap();
            a.hlt().unwrap();
        });
        arena
    }

    pub(crate) fn code(&self, at: u64, write: impl FnOnce(&mut CodeAssembler)) {
        self.machine.write(GuestAddress(at), &assemble(at, write)).unwrap();
    }

    pub(crate) fn map(&self, at: u64, pages: u64, permissions: Permissions) {
        self.machine.map(range(at, pages), permissions).unwrap();
    }

    /// A vCPU at `at` with the stack of this number.
    pub(crate) fn vcpu(&self, number: usize, at: u64) -> Vcpu {
        let mut vcpu = self.machine.vcpu().unwrap();
        vcpu.set_rip(GuestAddress(at));
        vcpu.set_gpr(RSP, stack(number));
        vcpu
    }

    pub(crate) fn word(&self, address: u64) -> u64 {
        let mut bytes = [0; 8];
        self.machine.read(GuestAddress(address), &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    pub(crate) fn storer(&self) -> Storer {
        Storer(self.machine.vcpu().unwrap())
    }

    /// With all vCPUs stopped: everything retired goes, and then everything.
    pub(crate) fn check_emptied(&self) {
        let until = Instant::now() + PATIENCE;
        while self.machine.reclaim() > 0 {
            assert!(Instant::now() < until, "retired regions are never given back");
        }
        self.machine.flush();
        while self.machine.reclaim() > 0 {
            assert!(Instant::now() < until, "retired regions are never given back");
        }
        let figures = self.machine.figures();
        assert_eq!((figures.used_bytes, figures.retired_bytes), (self.used, 0), "{figures:?}");
    }
}

pub(crate) fn stack(number: usize) -> u64 {
    STACKS + number as u64 * 0x1000 + 0xf00
}

/// A vCPU that stores words, one at a time, as another processor of the guest would.
pub(crate) struct Storer(Vcpu);

impl Storer {
    pub(crate) fn store(&mut self, address: u64, word: u64) {
        self.0.set_rip(GuestAddress(STORE));
        self.0.set_gpr(RAX, word);
        self.0.set_gpr(R11, address);
        assert_eq!(self.0.run(None), Exit::Halt, "a store of {word:#x} to {address:#x}");
    }
}

/// The result of a thread, which must come.
pub(crate) fn join<T>(what: &str, thread: JoinHandle<T>) -> T {
    let until = Instant::now() + PATIENCE;
    while !thread.is_finished() {
        assert!(Instant::now() < until, "{what} never ends");
        std::thread::sleep(Duration::from_millis(1));
    }
    thread.join().unwrap_or_else(|_| panic!("{what} panicked"))
}
