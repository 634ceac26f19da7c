//! A machine with code at [`CODE`], data at [`DATA`], a stack below [`STACK`], and a vCPU.

use std::sync::{Arc, Mutex};

use iced_x86::code_asm::{CodeAssembler, eax, ecx, rax};
use tregion::exec::{Exit, Machine, Vcpu};
use tregion::guest::{GuestAddress, GuestRange, Permissions};

pub(crate) const CODE: u64 = 0x40_0000;
pub(crate) const DATA: u64 = 0x50_0000;
pub(crate) const STACK: u64 = 0x60_1000;
/// Numbers of registers.
pub(crate) const RAX: usize = 0;
pub(crate) const RCX: usize = 1;
pub(crate) const RDX: usize = 2;
pub(crate) const RBX: usize = 3;
pub(crate) const RSP: usize = 4;
pub(crate) const RSI: usize = 6;
pub(crate) const RDI: usize = 7;

pub(crate) struct Guest {
    pub(crate) machine: Machine,
    pub(crate) vcpu: Vcpu,
    /// Where what was assembled ends.
    pub(crate) end: u64,
}

pub(crate) fn range(at: u64, pages: u64) -> GuestRange {
    GuestRange::new(GuestAddress(at), pages * 0x1000).unwrap()
}

/// Two pages of code that may be written, four of data.
pub(crate) fn guest(write: impl FnOnce(&mut CodeAssembler)) -> Guest {
    with_permissions(Permissions::ReadWriteExecute, write)
}

/// `mov ecx, n; again: inc rax; nop; dec ecx; jnz again; hlt`, at 0, 5, 8, 9, 11 and 13.
pub(crate) fn counter(times: u32) -> Guest {
    guest(|a| {
        let mut again = a.create_label();
        a.mov(ecx, times).unwrap();
        a.set_label(&mut again).unwrap();
        a.inc(rax).unwrap();
        a.nop().unwrap();
        a.dec(ecx).unwrap();
        a.jnz(again).unwrap();
        a.hlt().unwrap();
    })
}

/// Two pages of code without a branch, a few instructions of which the run loop executes.
pub(crate) fn long() -> Guest {
    let long = guest(|a| {
        for number in 0..3000 {
            if number % 500 == 250 { a.cpuid().unwrap() } else { a.inc(eax).unwrap() }
        }
        a.hlt().unwrap();
    });
    assert!(long.end > CODE + 0x1000, "two pages of code");
    long
}

pub(crate) fn with_permissions(code: Permissions, write: impl FnOnce(&mut CodeAssembler)) -> Guest {
    let machine = Machine::new(40).unwrap();
    machine.map(range(CODE, 2), code).unwrap();
    machine.map(range(DATA, 4), Permissions::ReadWrite).unwrap();
    machine.map(range(STACK - 0x1000, 1), Permissions::ReadWrite).unwrap();
    let bytes = assemble(CODE, write);
    machine.write(GuestAddress(CODE), &bytes).unwrap();
    let mut vcpu = machine.vcpu().unwrap();
    vcpu.set_rip(GuestAddress(CODE));
    vcpu.set_gpr(RSP, STACK - 0x100);
    Guest { machine, vcpu, end: CODE + bytes.len() as u64 }
}

pub(crate) fn assemble(at: u64, write: impl FnOnce(&mut CodeAssembler)) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(64).unwrap();
    write(&mut assembler);
    assembler.assemble(at).unwrap()
}

impl Guest {
    /// Runs from the first instruction to `hlt`.
    pub(crate) fn run(&mut self) {
        self.vcpu.set_rip(GuestAddress(CODE));
        assert_eq!(self.vcpu.run(None), Exit::Halt, "at {}", self.vcpu.rip());
    }

    pub(crate) fn word(&self, address: u64) -> u64 {
        let mut bytes = [0; 8];
        self.machine.read(GuestAddress(address), &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    pub(crate) fn set_word(&self, address: u64, word: u64) {
        self.machine.write(GuestAddress(address), &word.to_le_bytes()).unwrap();
    }
}

/// What hooks and devices note, for the test to look at.
#[derive(Debug)]
pub(crate) struct Notes<T>(Arc<Mutex<Vec<T>>>);

impl<T> Clone for Notes<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Notes<T> {
    pub(crate) fn new() -> Self {
        Self(Arc::default())
    }

    pub(crate) fn note(&self, what: T) {
        self.0.lock().unwrap().push(what);
    }

    /// All that was noted since the last time.
    pub(crate) fn take(&self) -> Vec<T> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}
