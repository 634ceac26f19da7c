//! Two machines that show the same memory at different addresses: what one guest writes, the other
//! reads.

use iced_x86::code_asm::{CodeAssembler, qword_ptr, rax};
use tregion::exec::{Exit, Machine, Vcpu};
use tregion::guest::{GuestAddress, GuestRange, PAGE_SIZE, Permissions};
use tregion::memory::Backing;

const CODE: GuestAddress = GuestAddress(0x40_0000);

/// A machine with `backing` at `shared` and code.
fn machine(
    backing: &Backing,
    shared: u64,
    code: &[u8],
) -> Result<(Machine, Vcpu), Box<dyn std::error::Error>> {
    let machine = Machine::new(40)?;
    machine.map(GuestRange::new(CODE, PAGE_SIZE)?, Permissions::ReadExecute)?;
    let range = GuestRange::new(GuestAddress(shared), PAGE_SIZE)?;
    machine.map_shared(range, backing, 0, Permissions::ReadWrite)?;
    machine.write(CODE, code)?;
    let mut vcpu = machine.vcpu()?;
    vcpu.set_rip(CODE);
    Ok((machine, vcpu))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let backing = Backing::new("shared", PAGE_SIZE)?;

    // mov [shared], rax; hlt
    let mut writer = CodeAssembler::new(64)?;
    writer.mov(qword_ptr(0x10_0000), rax)?;
    writer.hlt()?;
    let (_machine, mut one) = machine(&backing, 0x10_0000, &writer.assemble(CODE.0)?)?;

    // mov rax, [shared]; hlt
    let mut reader = CodeAssembler::new(64)?;
    reader.mov(rax, qword_ptr(0x7777_0000))?;
    reader.hlt()?;
    let (_machine, mut two) = machine(&backing, 0x7777_0000, &reader.assemble(CODE.0)?)?;

    one.set_gpr(0, 0x1234_5678_9abc_def0);
    assert_eq!(one.run(None), Exit::Halt);
    assert_eq!(two.run(None), Exit::Halt);
    assert_eq!(two.gpr(0), 0x1234_5678_9abc_def0);
    println!("{:#x} came across", two.gpr(0));
    Ok(())
}
