//! Runs a few instructions: `cargo run --example snippet`.

use tregion::exec::{Exit, Machine};
use tregion::guest::{GuestAddress, GuestRange, PAGE_SIZE, Permissions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let code = GuestAddress(0x40_0000);
    let machine = Machine::new(32)?;
    machine.map(GuestRange::new(code, PAGE_SIZE)?, Permissions::ReadExecute)?;
    // lea rax, [rbx + 1]; hlt
    machine.write(code, &[0x48, 0x8d, 0x43, 0x01, 0xf4])?;
    let mut vcpu = machine.vcpu()?;
    vcpu.set_rip(code);
    vcpu.set_gpr(3, 41);
    assert_eq!(vcpu.run(None), Exit::Halt);
    assert_eq!(vcpu.gpr(0), 42);
    println!("rax = {}", vcpu.gpr(0));
    Ok(())
}
