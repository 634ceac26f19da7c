//! A serial port: what the guest writes to its data register is printed. The guest first waits until
//! the status register says that there is room, as drivers do.

use std::sync::{Arc, Mutex};

use iced_x86::code_asm::{CodeAssembler, al, byte_ptr, rbx};
use tregion::exec::{Exit, Machine, Mmio};
use tregion::guest::{GuestAddress, GuestRange, PAGE_SIZE, Permissions};

const DATA: u64 = 0;
const STATUS: u64 = 5;
const ROOM: u8 = 0x20;
const TEXT: &[u8] = b"hello from the guest\n\0";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (code, uart) = (GuestAddress(0x40_0000), GuestAddress(0xfe00_0000));
    let machine = Machine::new(33)?;
    machine.map(GuestRange::new(code, PAGE_SIZE)?, Permissions::ReadExecute)?;

    let printed = Arc::new(Mutex::new(String::new()));
    let sink = Arc::clone(&printed);
    let mut polls = 0;
    machine.map_mmio(GuestRange::new(uart, PAGE_SIZE)?, move |access| match access {
        Mmio::Read { offset: STATUS, value, .. } => {
            polls += 1;
            // Busy every other time.
            value[0] = if polls % 2 == 0 { ROOM } else { 0 };
        }
        Mmio::Write { offset: DATA, value, .. } => {
            sink.lock().expect("no device panics").push(char::from(value[0]));
        }
        other => panic!("a register that is not there: {other:?}"),
    })?;

    let mut assembler = CodeAssembler::new(64)?;
    let (mut next, mut wait, mut done) =
        (assembler.create_label(), assembler.create_label(), assembler.create_label());
    assembler.set_label(&mut next)?;
    assembler.lodsb()?;
    assembler.test(al, al)?;
    assembler.jz(done)?;
    assembler.set_label(&mut wait)?;
    assembler.test(byte_ptr(rbx + STATUS), u32::from(ROOM))?;
    assembler.jz(wait)?;
    assembler.mov(byte_ptr(rbx + DATA), al)?;
    assembler.jmp(next)?;
    assembler.set_label(&mut done)?;
    assembler.hlt()?;
    machine.write(code, &assembler.assemble(code.0)?)?;
    machine.write(code.wrapping_add(0x800), TEXT)?;

    let mut vcpu = machine.vcpu()?;
    vcpu.set_gpr(6, code.0 + 0x800);
    vcpu.set_gpr(3, uart.0);
    vcpu.set_rip(code);
    assert_eq!(vcpu.run(None), Exit::Halt);
    print!("{}", printed.lock().expect("no device panics"));
    assert_eq!(printed.lock().expect("no device panics").as_bytes(), &TEXT[..TEXT.len() - 1]);
    Ok(())
}
