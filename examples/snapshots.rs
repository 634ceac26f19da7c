//! What a fuzzer does: run, go back to a snapshot, run again.

use std::time::Instant;

use iced_x86::code_asm::{CodeAssembler, ecx, qword_ptr, rax, rdi};
use tregion::exec::{Exit, Machine};
use tregion::guest::{GuestAddress, GuestRange, PAGE_SIZE, Permissions};

const ROUNDS: u32 = 1000;
/// Pages that each round writes to, of as many thousands.
const WRITTEN: u64 = 10;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (code, data) = (GuestAddress(0x40_0000), GuestAddress(0x1000_0000));
    let machine = Machine::new(32)?;
    machine.map(GuestRange::new(code, PAGE_SIZE)?, Permissions::ReadExecute)?;
    machine.map(GuestRange::new(data, 1000 * WRITTEN * PAGE_SIZE)?, Permissions::ReadWrite)?;

    // Adds to a counter in each of some pages, and sums the counters up.
    let mut assembler = CodeAssembler::new(64)?;
    let mut again = assembler.create_label();
    assembler.mov(ecx, WRITTEN as u32)?;
    assembler.set_label(&mut again)?;
    assembler.inc(qword_ptr(rdi))?;
    assembler.add(rax, qword_ptr(rdi))?;
    assembler.add(rdi, PAGE_SIZE as i32)?;
    assembler.dec(ecx)?;
    assembler.jnz(again)?;
    assembler.hlt()?;
    machine.write(code, &assembler.assemble(code.0)?)?;

    let mut vcpu = machine.vcpu()?;
    vcpu.set_rip(code);
    vcpu.set_gpr(7, data.0);
    let (snapshot, state) = (machine.snapshot()?, vcpu.state());
    let start = Instant::now();
    for _ in 0..ROUNDS {
        assert_eq!(vcpu.run(None), Exit::Halt);
        assert_eq!(vcpu.gpr(0), WRITTEN, "each round finds counters at zero");
        machine.restore(&snapshot)?;
        vcpu.set_state(&state);
    }
    let micros = start.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS);
    println!("{micros:.1} µs a round of {WRITTEN} pages");
    Ok(())
}
