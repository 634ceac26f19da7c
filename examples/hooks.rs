//! Watches a loop: counts its instructions and blocks, and lists what it writes.

use std::sync::{Arc, Mutex};

use iced_x86::code_asm::{CodeAssembler, ecx, ptr, rax, rcx};
use tregion::exec::{Exit, Machine};
use tregion::guest::{GuestAddress, GuestRange, PAGE_SIZE, Permissions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (code, data) = (GuestAddress(0x40_0000), GuestAddress(0x50_0000));
    let machine = Machine::new(32)?;
    machine.map(GuestRange::new(code, PAGE_SIZE)?, Permissions::ReadExecute)?;
    machine.map(GuestRange::new(data, PAGE_SIZE)?, Permissions::ReadWrite)?;

    let mut assembler = CodeAssembler::new(64)?;
    let mut again = assembler.create_label();
    assembler.mov(ecx, 3)?;
    assembler.set_label(&mut again)?;
    assembler.mov(ptr(rax + rcx * 8), rcx)?;
    assembler.dec(ecx)?;
    assembler.jnz(again)?;
    assembler.hlt()?;
    machine.write(code, &assembler.assemble(code.0)?)?;

    let counts = Arc::new(Mutex::new((0, 0)));
    let (instructions, blocks) = (Arc::clone(&counts), Arc::clone(&counts));
    machine.hook_code(.., move |_| instructions.lock().expect("no hook panics").0 += 1)?;
    machine.hook_blocks(.., move |_| blocks.lock().expect("no hook panics").1 += 1)?;

    let written = Arc::new(Mutex::new(Vec::new()));
    let list = Arc::clone(&written);
    let end = data.wrapping_add(PAGE_SIZE);
    let hook = machine.hook_memory(data..end, move |access| {
        println!("{}: {access:?}", access.rip());
        list.lock().expect("no hook panics").push(access.address().0 - data.0);
    })?;

    let mut vcpu = machine.vcpu()?;
    vcpu.set_gpr(0, data.0);
    vcpu.set_rip(code);
    assert_eq!(vcpu.run(None), Exit::Halt);
    assert_eq!(
        *counts.lock().expect("no hook panics"),
        (11, 4),
        "hlt is an instruction; it starts the last block"
    );
    assert_eq!(*written.lock().expect("no hook panics"), [24, 16, 8]);

    // Without the hook the page is as fast as any other.
    assert!(machine.remove_hook(hook));
    vcpu.set_rip(code);
    assert_eq!(vcpu.run(None), Exit::Halt);
    assert_eq!(written.lock().expect("no hook panics").len(), 3);
    Ok(())
}
