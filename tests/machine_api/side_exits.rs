//! Blocks that go on behind branches and jumps: made for jumps back, and not for runs that are counted.

use iced_x86::code_asm::{CodeAssembler, byte_ptr, ecx, rax, rbx, rdx};
use tregion::exec::Exit;
use tregion::guest::{GuestAddress, Permissions};

use crate::guest::{CODE, RBX, RCX, RDX, guest, range};

/// 100 passes, each of which skips another part of what comes behind its branches.
fn skips(a: &mut CodeAssembler) {
    let mut pass = a.create_label();
    a.mov(ecx, 100_u32).unwrap();
    a.set_label(&mut pass).unwrap();
    for bit in 0..4 {
        let mut over = a.create_label();
        a.test(ecx, 1_u32 << bit).unwrap();
        a.jz(over).unwrap();
        (0..3).for_each(|_| a.inc(rbx).unwrap());
        a.set_label(&mut over).unwrap();
        a.inc(rdx).unwrap();
    }
    a.dec(ecx).unwrap();
    a.jnz(pass).unwrap();
    a.hlt().unwrap();
}

/// How many bits are set among the low four of the numbers of all passes.
fn bits() -> u64 {
    (1..=100_u64).map(|pass| u64::from((pass & 15).count_ones())).sum()
}

#[test]
fn budgets_are_exact_where_branches_skip() {
    let total = 1 + 100 * (4 * 3 + 2) + 3 * bits() + 1;
    for piece in [9, 10, 11, 16, 23, 64, 65, 1000, total] {
        let mut guest = guest(skips);
        let mut pieces = 0;
        while guest.vcpu.run(Some(piece)) == Exit::Budget {
            pieces += 1;
            assert_eq!(guest.vcpu.executed(), pieces * piece);
        }
        assert_eq!(guest.vcpu.executed(), total, "pieces of {piece}");
        assert_eq!((guest.vcpu.gpr(RBX), guest.vcpu.gpr(RDX)), (3 * bits(), 400));
    }
}

#[test]
fn a_jump_back_makes_a_block_longer_once() {
    let mut first = guest(skips);
    first.run();
    assert_eq!(first.vcpu.gpr(RBX), 3 * bits());
    let before = first.machine.figures();
    // What the loop begins with was translated for it alone, and is as long as it gets.
    first.vcpu.set_rip(GuestAddress(CODE));
    first.run();
    assert_eq!(first.vcpu.gpr(RBX), 6 * bits());
    assert_eq!(first.machine.figures().translations, before.translations);
    assert_eq!(before.blocks_invalidated, 0);
    // Entered from outside first, then by its own jump.
    let mut entered = guest(skips);
    entered.vcpu.set_rip(GuestAddress(CODE + 5));
    entered.vcpu.set_gpr(RCX, 100);
    assert_eq!(entered.vcpu.run(None), Exit::Halt);
    assert_eq!(entered.vcpu.gpr(RBX), 3 * bits());
    assert_eq!(entered.machine.figures().blocks_invalidated, 1);
}

#[test]
fn a_branch_leaves_the_region() {
    let mut guest = guest(|a| {
        let (mut pass, mut far, mut back) = (a.create_label(), a.create_label(), a.create_label());
        a.mov(ecx, 10_u32).unwrap();
        a.set_label(&mut pass).unwrap();
        a.test(ecx, 1).unwrap();
        a.jnz(far).unwrap();
        a.set_label(&mut back).unwrap();
        a.inc(rbx).unwrap();
        a.dec(ecx).unwrap();
        a.jnz(pass).unwrap();
        a.hlt().unwrap();
        a.nops_with_size(0x1000).unwrap();
        a.set_label(&mut far).unwrap();
        a.inc(rdx).unwrap();
        a.jmp(back).unwrap();
    });
    // Pages that can be written are regions of their own.
    guest.machine.protect(range(CODE, 2), Permissions::ReadWriteExecute).unwrap();
    guest.run();
    assert_eq!((guest.vcpu.gpr(RBX), guest.vcpu.gpr(RDX)), (10, 5));
}

/// 100 passes over a jump forward, behind which bytes of the code are read.
fn jumps(a: &mut CodeAssembler) {
    let (mut pass, mut over) = (a.create_label(), a.create_label());
    let (mut data, mut enter) = (a.create_label(), a.create_label());
    a.mov(ecx, 100_u32).unwrap();
    a.jmp(enter).unwrap();
    a.set_label(&mut pass).unwrap();
    a.inc(rdx).unwrap();
    a.jmp(over).unwrap();
    a.set_label(&mut data).unwrap();
    // It would be the beginning of a long instruction.
    a.db(&[0x48, 0xb8, 3]).unwrap();
    a.set_label(&mut over).unwrap();
    a.lea(rax, byte_ptr(data)).unwrap();
    a.movzx(rax, byte_ptr(rax + 2)).unwrap();
    a.set_label(&mut enter).unwrap();
    a.add(rbx, rax).unwrap();
    a.dec(ecx).unwrap();
    a.jnz(pass).unwrap();
    a.hlt().unwrap();
}

/// Where the byte lies that they read: behind MOV, a jump, INC, another jump, and two bytes.
const READ: GuestAddress = GuestAddress(CODE + 5 + 2 + 3 + 2 + 2);

#[test]
fn a_block_goes_on_where_a_jump_leads() {
    let mut guest = guest(jumps);
    guest.machine.protect(range(CODE, 1), Permissions::ReadWriteExecute).unwrap();
    guest.run();
    assert_eq!((guest.vcpu.gpr(RBX), guest.vcpu.gpr(RDX)), (99 * 3, 99));
    // The loop is one block, entered at its end first.
    assert_eq!(guest.machine.figures().translations, 3 + 1);
    // What is passed is the block's too: it is read anew, and so is the code behind it.
    for byte in [5, 7] {
        guest.machine.write(READ, &[byte]).unwrap();
        guest.vcpu.set_state(&tregion::guest::State::default());
        guest.vcpu.set_rip(GuestAddress(CODE));
        guest.run();
        assert_eq!(guest.vcpu.gpr(RBX), 99 * u64::from(byte));
    }
}

#[test]
fn runs_that_count_do_not_come_to_longer_blocks() {
    let total = 1 + 100 * (4 * 3 + 2) + 3 * bits() + 1;
    let mut guest = guest(skips);
    // The last run's blocks are counted ones again, chained in the first; the loop was made longer in between.
    for (start, budget) in [(CODE, Some(total)), (CODE + 5, None), (CODE, Some(total))] {
        guest.vcpu.set_state(&tregion::guest::State::default());
        guest.vcpu.set_rip(GuestAddress(start));
        guest.vcpu.set_gpr(RCX, 100);
        let before = guest.vcpu.executed();
        assert_eq!(guest.vcpu.run(budget), Exit::Halt);
        assert_eq!(guest.vcpu.executed() - before, budget.unwrap_or(0));
        assert_eq!((guest.vcpu.gpr(RBX), guest.vcpu.gpr(RDX)), (3 * bits(), 400));
    }
    assert_eq!(guest.machine.figures().blocks_invalidated, 1);
}
