//! A guest that rewrites the instruction behind the one it is at, a hundred thousand times.

use iced_x86::code_asm::{CodeAssembler, bl, dword_ptr, eax, ebx, ecx, edx, rdi};
use tregion::exec::{Exit, Machine};
use tregion::guest::{GuestAddress, GuestRange, PAGE_SIZE, Permissions};

const TIMES: u32 = 100_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let code = GuestAddress(0x40_0000);
    let machine = Machine::new(32)?;
    machine.map(GuestRange::new(code, PAGE_SIZE)?, Permissions::ReadWriteExecute)?;

    let mut assembler = CodeAssembler::new(64)?;
    let (mut again, mut patched) = (assembler.create_label(), assembler.create_label());
    assembler.lea(rdi, dword_ptr(patched))?;
    assembler.mov(ecx, TIMES)?;
    assembler.set_label(&mut again)?;
    // The constant of the next instruction, behind its opcode byte, becomes ECX.
    assembler.mov(dword_ptr(rdi + 1), ecx)?;
    assembler.set_label(&mut patched)?;
    assembler.mov(eax, 0)?;
    assembler.cmp(eax, ecx)?;
    assembler.sete(bl)?;
    assembler.add(edx, ebx)?;
    assembler.dec(ecx)?;
    assembler.jnz(again)?;
    assembler.hlt()?;
    machine.write(code, &assembler.assemble(code.0)?)?;

    let mut vcpu = machine.vcpu()?;
    vcpu.set_rip(code);
    assert_eq!(vcpu.run(None), Exit::Halt);
    assert_eq!(vcpu.gpr(2), u64::from(TIMES), "each store was seen by the very next instruction");
    let figures = machine.figures();
    println!("{TIMES} times exact; {} translations", figures.translations);
    Ok(())
}
