//! A fuzzer's view of a guest: which blocks an input reaches that none before it has.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use iced_x86::code_asm::{CodeAssembler, ah, al, rax};
use tregion::exec::{Exit, Machine, TraceOf};
use tregion::guest::{GuestAddress, GuestRange, PAGE_SIZE, Permissions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let code = GuestAddress(0x40_0000);
    let machine = Machine::new(32)?;
    machine.map(GuestRange::new(code, PAGE_SIZE)?, Permissions::ReadExecute)?;
    machine.write(code, &guest()?.assemble(code.0)?)?;

    let reached = Arc::new(Mutex::new(BTreeSet::new()));
    let reaching = Arc::clone(&reached);
    machine.trace(TraceOf::Blocks, .., move |traced| {
        reaching.lock().expect("nobody panics").extend(traced.addresses());
    })?;

    let mut vcpu = machine.vcpu()?;
    let mut grown = Vec::new();
    for input in [0, 1, u64::from(b'o'), 2, u64::from_le_bytes(*b"ok\0\0\0\0\0\0")] {
        let before = reached.lock().expect("nobody panics").len();
        vcpu.set_gpr(0, input);
        vcpu.set_rip(code);
        assert_eq!(vcpu.run(None), Exit::Halt);
        let now = reached.lock().expect("nobody panics").len();
        println!("{input:#06x}: {} new blocks", now - before);
        grown.push(now - before);
    }
    // The second and the fourth are as good as the first; the third passes one test, the last both.
    assert_eq!(grown, [2, 0, 1, 0, 1]);
    Ok(())
}

/// Whether the first two bytes of RAX are "ok".
fn guest() -> Result<CodeAssembler, Box<dyn std::error::Error>> {
    let mut a = CodeAssembler::new(64)?;
    let mut no = a.create_label();
    a.cmp(al, u32::from(b'o'))?;
    a.jne(no)?;
    a.cmp(ah, u32::from(b'k'))?;
    a.jne(no)?;
    a.mov(rax, 1u64)?;
    a.set_label(&mut no)?;
    a.hlt()?;
    Ok(a)
}
