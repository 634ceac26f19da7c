//! Host bytes for each block and region, and what its last chunk leaves unused.

use serde_json::{Value, json};

use crate::Failure;
use crate::guests::{DATA, Program, RSI, chain, machine, run, work};

const BLOCKS: [u64; 4] = [1, 10, 100, 1000];

pub(crate) fn memory() -> Result<Value, Failure> {
    let mut rows = Vec::new();
    for blocks in BLOCKS {
        // The last block of each halts.
        rows.push(row("a jump", blocks, &chain(blocks - 1))?);
        rows.push(row("seven instructions", blocks, &work(blocks - 1)?)?);
    }
    Ok(rows.into())
}

fn row(kind: &str, blocks: u64, program: &Program) -> Result<Value, Failure> {
    let machine = machine(program)?;
    let before = machine.figures();
    let mut vcpu = machine.vcpu()?;
    vcpu.set_gpr(RSI, DATA);
    run(&mut vcpu, program.entries[0]);
    let after = machine.figures();
    let held = after.used_bytes - before.used_bytes;
    assert_eq!(after.translations, blocks, "each block is translated once");
    println!(
        "{kind}, {blocks} blocks: {} bytes of guest code, {} of host code, {held} held",
        after.guest_bytes, after.host_bytes
    );
    Ok(json!({
        "kind": kind, "blocks": blocks, "guest_bytes": after.guest_bytes,
        "host_bytes": after.host_bytes, "held_bytes": held,
    }))
}
