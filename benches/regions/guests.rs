//! Guests whose blocks and jumps are known: a chain, a star, and a spinner.

use iced_x86::code_asm::{CodeAssembler, ebx, edx, qword_ptr, rax, rcx, rdx, rsi};
use tregion::exec::{Exit, Machine, Vcpu};
use tregion::guest::{GuestAddress, GuestRange, Permissions};

use crate::Failure;

pub(crate) const CODE: u64 = 0x40_0000;
pub(crate) const NEIGHBOUR: u64 = 0x48_0000;
pub(crate) const SPIN: u64 = 0x80_0000;
pub(crate) const HALT: u64 = 0x88_0000;
pub(crate) const DATA: u64 = 0x90_0000;
/// The number of RSI, which points at data.
pub(crate) const RSI: usize = 6;
/// Bytes of a jump of a chain, and of one of a star.
const SHORT: u64 = 2;
const LONG: u64 = 5;

/// Code of guest bytes for [`CODE`], and where to enter it.
pub(crate) struct Program {
    pub(crate) bytes: Vec<u8>,
    pub(crate) entries: Vec<u64>,
    /// The block that all entries come to.
    pub(crate) last: u64,
}

/// `jumps` blocks, each of which jumps to the next, and a last one that halts.
pub(crate) fn chain(jumps: u64) -> Program {
    let mut bytes = [0xeb, 0x00].repeat(jumps as usize);
    bytes.push(0xf4);
    Program { bytes, entries: vec![CODE], last: CODE + SHORT * jumps }
}

/// `jumps` blocks, all of which jump to the last one, which halts. It comes first in memory.
pub(crate) fn star(jumps: u64) -> Program {
    let mut bytes = vec![0xf4];
    let entries: Vec<u64> = (0..jumps).map(|number| CODE + 1 + LONG * number).collect();
    for entry in &entries {
        let back = CODE as i64 - (entry + LONG) as i64;
        bytes.push(0xe9);
        bytes.extend((back as i32).to_le_bytes());
    }
    Program { bytes, entries, last: CODE }
}

/// `blocks` blocks of seven instructions, two of which access memory; the last one halts besides.
pub(crate) fn work(blocks: u64) -> Result<Program, Failure> {
    let mut a = CodeAssembler::new(64)?;
    for _ in 0..blocks {
        let mut next = a.create_label();
        a.mov(rax, qword_ptr(rsi + 8))?;
        a.add(rax, rcx)?;
        a.mov(qword_ptr(rsi + 16), rax)?;
        a.lea(rdx, qword_ptr(rax + rcx * 4))?;
        a.xor(ebx, edx)?;
        a.test(ebx, ebx)?;
        a.jmp(next)?;
        a.set_label(&mut next)?;
        a.zero_bytes()?;
    }
    a.hlt()?;
    let bytes = a.assemble(CODE)?;
    let last = CODE + bytes.len() as u64 - 1;
    Ok(Program { bytes, entries: vec![CODE], last })
}

pub(crate) fn range(at: u64, bytes: u64) -> Result<GuestRange, Failure> {
    Ok(GuestRange::new(GuestAddress(at), bytes.next_multiple_of(0x1000))?)
}

/// A machine with a program in one mapping, which is one region, a spinner, a halt, and data.
pub(crate) fn machine(program: &Program) -> Result<Machine, Failure> {
    let machine = Machine::new(40)?;
    add(&machine, CODE, &program.bytes)?;
    add(&machine, SPIN, &[0xeb, 0xfe])?;
    add(&machine, HALT, &[0xf4])?;
    machine.map(range(DATA, 1)?, Permissions::ReadWrite)?;
    Ok(machine)
}

/// Maps code.
pub(crate) fn add(machine: &Machine, at: u64, code: &[u8]) -> Result<(), Failure> {
    machine.map(range(at, code.len() as u64)?, Permissions::ReadExecute)?;
    machine.write(GuestAddress(at), code)?;
    Ok(())
}

/// Runs from `entry` until the guest halts.
pub(crate) fn run(vcpu: &mut Vcpu, entry: u64) {
    vcpu.set_rip(GuestAddress(entry));
    let exit = vcpu.run(None);
    assert_eq!(exit, Exit::Halt, "the guest ends by itself");
}
