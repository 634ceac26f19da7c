//! Coherent code: a change of code, however it is made, is seen by the next instruction.

use iced_x86::code_asm::{
    CodeAssembler, al, bl, byte_ptr, dword_ptr, eax, ebx, ecx, edx, qword_ptr, rax, rbx, rcx, rdi,
    rdx, rsi,
};
use tregion::exec::{Exit, Machine};
use tregion::guest::{GuestAddress, Permissions};

use crate::guest::{CODE, Guest, RAX, RBX, RCX, RDI, RDX, RSI, assemble, guest, range};

/// A loop that counts in EDX how often an instruction gave in EAX what was just stored in it, from
/// `between` instructions before.
fn patched_in_a_loop(times: u32, between: u32) -> impl FnOnce(&mut CodeAssembler) {
    move |a| {
        let (mut again, mut patched) = (a.create_label(), a.create_label());
        a.mov(ecx, times).unwrap();
        a.set_label(&mut again).unwrap();
        a.mov(dword_ptr(rdi + 1), ecx).unwrap();
        (0..between).for_each(|_| a.nop().unwrap());
        a.set_label(&mut patched).unwrap();
        a.mov(eax, 0).unwrap();
        a.xor(ebx, ebx).unwrap();
        a.cmp(eax, ecx).unwrap();
        a.sete(bl).unwrap();
        a.add(edx, ebx).unwrap();
        a.dec(ecx).unwrap();
        a.jnz(again).unwrap();
        a.hlt().unwrap();
    }
}

/// Where the patched instruction of such a loop is.
fn patched(between: u32) -> u64 {
    CODE + 5 + 3 + u64::from(between)
}

#[test]
fn the_next_instruction_and_the_same_block_ten_thousand_times() {
    for between in [0, 1, 5, 40, 70] {
        let mut guest = guest(patched_in_a_loop(10_000, between));
        guest.vcpu.set_gpr(RDI, patched(between));
        guest.run();
        assert_eq!(guest.vcpu.gpr(RDX), 10_000, "{between} instructions between");
        // And stepped, and in pieces.
        guest.machine.write(GuestAddress(CODE + 1), &500_u32.to_le_bytes()).unwrap();
        for budget in [1, 5, 50] {
            guest.vcpu.set_gpr(RDX, 0);
            guest.vcpu.set_rip(GuestAddress(CODE));
            while guest.vcpu.run(Some(budget)) == Exit::Budget {}
            assert_eq!(guest.vcpu.gpr(RDX), 500, "{between} between, {budget} a run");
        }
    }
}

#[test]
fn through_an_alias() {
    let mut guest = guest(patched_in_a_loop(10_000, 3));
    let alias = 0x7000_0000;
    guest.machine.alias(range(CODE, 2), GuestAddress(alias)).unwrap();
    guest.machine.protect(range(CODE, 2), Permissions::ReadExecute).unwrap();
    guest.vcpu.set_gpr(RDI, alias + (patched(3) - CODE));
    guest.run();
    assert_eq!(guest.vcpu.gpr(RDX), 10_000);
}

#[test]
fn an_instruction_that_straddles_pages() {
    // mov eax, imm32 with the constant on the next page, by 1 to 4 of its bytes.
    for on_next in 1..=4_u64 {
        let place = CODE + 0x1000 + on_next - 5;
        let mut guest = guest(|a| {
            let mut again = a.create_label();
            a.mov(ecx, 1000).unwrap();
            a.set_label(&mut again).unwrap();
            a.mov(dword_ptr(rdi + 1), ecx).unwrap();
            a.jmp(place).unwrap();
            a.nops_with_size((place - CODE) as usize - 5 - 3 - 5).unwrap();
            a.mov(eax, 0).unwrap();
            a.add(rbx, rax).unwrap();
            a.dec(ecx).unwrap();
            a.jnz(again).unwrap();
            a.hlt().unwrap();
        });
        guest.vcpu.set_gpr(RDI, place);
        guest.run();
        assert_eq!(guest.vcpu.gpr(RBX), 1000 * 1001 / 2, "{on_next} bytes on the next page");
        // One byte on either page, from the host.
        for offset in [1, 4] {
            guest
                .machine
                .write(
                    GuestAddress(CODE),
                    &assemble(CODE, |a| {
                        a.nop().unwrap();
                        a.jmp(place).unwrap();
                    }),
                )
                .unwrap();
            guest.machine.write(GuestAddress(place + 5), &[0xf4]).unwrap();
            guest.machine.write(GuestAddress(place + 1), &[0; 4]).unwrap();
            guest.run();
            assert_eq!(guest.vcpu.gpr(RAX), 0);
            guest.machine.write(GuestAddress(place + offset), &[1]).unwrap();
            guest.run();
            assert_eq!(guest.vcpu.gpr(RAX), 1 << (8 * (offset - 1)));
        }
    }
}

#[test]
fn from_the_host() {
    let mut guest = guest(|a| {
        a.mov(eax, 0).unwrap();
        a.hlt().unwrap();
    });
    for value in 0..1000_u32 {
        guest.machine.write(GuestAddress(CODE + 1), &value.to_le_bytes()).unwrap();
        guest.run();
        assert_eq!(guest.vcpu.gpr(RAX), u64::from(value));
    }
}

#[test]
fn execution_forbidden_and_allowed_again() {
    let mut guest = guest(|a| {
        a.inc(rax).unwrap();
        a.jmp(CODE + 0x1000).unwrap();
    });
    guest.machine.write(GuestAddress(CODE + 0x1000), &[0xf4]).unwrap();
    guest.run();
    for turn in 0..10 {
        guest.machine.protect(range(CODE + 0x1000, 1), Permissions::ReadWrite).unwrap();
        guest.vcpu.set_rip(GuestAddress(CODE));
        let expected = Exit::Exception { vector: 14, error: 0x15, address: Some(CODE + 0x1000) };
        assert_eq!((guest.vcpu.run(None), guest.vcpu.rip().0), (expected, CODE + 0x1000));
        guest.machine.protect(range(CODE + 0x1000, 1), Permissions::ReadExecute).unwrap();
        assert_eq!(guest.vcpu.run(None), Exit::Halt);
        assert_eq!(guest.vcpu.gpr(RAX), 2 + turn);
    }
}

#[test]
fn the_executing_page_is_remapped() {
    let body = |value: u32| {
        move |a: &mut CodeAssembler| {
            let mut again = a.create_label();
            a.set_label(&mut again).unwrap();
            a.mov(eax, value).unwrap();
            a.dec(rcx).unwrap();
            a.jnz(again).unwrap();
            a.hlt().unwrap();
        }
    };
    let mut guest = guest(body(1));
    let other = 0x7000_0000;
    guest.machine.map(range(other, 2), Permissions::ReadWriteExecute).unwrap();
    guest.machine.write(GuestAddress(other), &assemble(CODE, body(2))).unwrap();
    guest.vcpu.set_gpr(RCX, 100_000);
    for turn in 0..20 {
        // In the middle of the loop, the pages swap places.
        assert_eq!(guest.vcpu.run(Some(1000)), Exit::Budget);
        assert_eq!(guest.vcpu.gpr(RAX), 1 + turn % 2);
        let away = GuestAddress(0x7100_0000);
        guest.machine.remap(range(CODE, 2), away).unwrap();
        guest.machine.remap(range(other, 2), GuestAddress(CODE)).unwrap();
        guest.machine.remap(range(0x7100_0000, 2), GuestAddress(other)).unwrap();
    }
    guest.machine.unmap(range(CODE, 2)).unwrap();
    let exit = guest.vcpu.run(None);
    assert!(matches!(exit, Exit::Exception { vector: 14, error: 0x14, .. }), "{exit}");
}

#[test]
fn a_page_of_code_and_data() {
    let counter = CODE + 0x800;
    let mut guest = guest(|a| {
        let (mut again, mut skip) = (a.create_label(), a.create_label());
        a.mov(rcx, 100_000u64).unwrap();
        a.set_label(&mut again).unwrap();
        a.inc(qword_ptr(rsi)).unwrap();
        a.mov(rax, qword_ptr(rsi)).unwrap();
        a.test(al, 1).unwrap();
        a.jz(skip).unwrap();
        a.add(rbx, rax).unwrap();
        a.set_label(&mut skip).unwrap();
        a.dec(rcx).unwrap();
        a.jnz(again).unwrap();
        a.hlt().unwrap();
    });
    guest.vcpu.set_gpr(RSI, counter);
    guest.run();
    assert_eq!((guest.word(counter), guest.vcpu.gpr(RBX)), (100_000, 50_000 * 50_000));
    let figures = guest.machine.figures();
    assert!(figures.translations < 1000, "data beside code costs little: {figures:?}");
    // The code of such a page is still watched over.
    guest.machine.write(GuestAddress(CODE), &[0xf4]).unwrap();
    guest.run();
    assert_eq!(guest.word(counter), 100_000);
}

#[test]
fn a_copied_program_and_a_shared_function() {
    // Copies a function over another, calls it, byte by byte.
    let (source, target) = (CODE + 0x400, CODE + 0x1400);
    let mut guest = guest(|a| {
        let mut again = a.create_label();
        a.mov(rbx, 256u64).unwrap();
        a.set_label(&mut again).unwrap();
        a.mov(byte_ptr(source + 2), bl).unwrap();
        a.mov(rsi, source).unwrap();
        a.mov(rdi, target).unwrap();
        a.mov(ecx, 5).unwrap();
        a.rep().movsb().unwrap();
        a.xor(eax, eax).unwrap();
        a.call(target).unwrap();
        a.add(rdx, rax).unwrap();
        a.dec(rbx).unwrap();
        a.jnz(again).unwrap();
        a.hlt().unwrap();
    });
    // add eax, imm8 (sign-extended), with a prefix; ret
    guest.machine.write(GuestAddress(source), &[0x83, 0xc0, 0x00, 0x90, 0xc3]).unwrap();
    guest.run();
    let expected: u64 = (1..=256_u32).map(|value| u64::from(value as u8 as i8 as i32 as u32)).sum();
    assert_eq!(guest.vcpu.gpr(RDX), expected);
}

#[test]
fn a_snapshot_of_code_that_only_the_host_writes() {
    let mut guest = guest(|a| {
        a.mov(eax, 1).unwrap();
        a.hlt().unwrap();
    });
    let snapshot = guest.machine.snapshot().unwrap();
    for value in 2..9 {
        guest.machine.write(GuestAddress(CODE + 1), &[value]).unwrap();
        guest.run();
        assert_eq!(guest.vcpu.gpr(RAX), u64::from(value));
        guest.machine.restore(&snapshot).unwrap();
        guest.run();
        assert_eq!(guest.vcpu.gpr(RAX), 1);
    }
}

#[test]
fn snapshots_of_code() {
    let value = |guest: &mut Guest| {
        guest.run();
        guest.vcpu.gpr(RAX)
    };
    let mut guest = guest(|a| {
        a.mov(eax, 1).unwrap();
        // The guest changes its own constant for the next time.
        a.inc(byte_ptr(CODE + 1)).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(value(&mut guest), 1);
    let second = guest.machine.snapshot().unwrap();
    assert_eq!((value(&mut guest), value(&mut guest)), (2, 3));
    let fourth = guest.machine.snapshot().unwrap();
    for _ in 0..20 {
        assert_eq!((value(&mut guest), value(&mut guest)), (4, 5));
        guest.machine.restore(&second).unwrap();
        assert_eq!((value(&mut guest), value(&mut guest)), (2, 3));
        guest.machine.restore(&fourth).unwrap();
    }
    guest.machine.write(GuestAddress(CODE + 1), &[99]).unwrap();
    assert_eq!(value(&mut guest), 99);
    guest.machine.restore(&second).unwrap();
    assert_eq!(value(&mut guest), 2);
    guest.machine.remap(range(CODE, 2), GuestAddress(0x7000_0000)).unwrap();
    guest.machine.map(range(CODE, 1), Permissions::ReadExecute).unwrap();
    guest
        .machine
        .write(
            GuestAddress(CODE),
            &assemble(CODE, |a| {
                a.mov(eax, 77).unwrap();
                a.hlt().unwrap();
            }),
        )
        .unwrap();
    assert_eq!(value(&mut guest), 77);
    guest.machine.restore(&fourth).unwrap();
    assert_eq!(value(&mut guest), 4);
}

/// A function whose constant is patched: returns it in EAX.
const FUNCTION: u64 = CODE + 0x800;

fn patch_and_call(guest: &mut Guest, at: u64, value: u32) {
    let call = |guest: &mut Guest| {
        guest.vcpu.set_rip(GuestAddress(at));
        assert_eq!(guest.vcpu.run(None), Exit::Halt);
        guest.vcpu.gpr(RAX) as u32
    };
    // By the guest's own store, in this window.
    guest.vcpu.set_gpr(RDI, FUNCTION + 1);
    guest.vcpu.set_gpr(RCX, u64::from(value));
    guest.vcpu.set_rip(GuestAddress(CODE));
    assert_eq!(guest.vcpu.run(None), Exit::Halt);
    assert_eq!(call(guest), value);
}

fn patching_guest() -> Guest {
    let guest = guest(|a| {
        a.mov(dword_ptr(rdi), ecx).unwrap();
        a.hlt().unwrap();
    });
    let function = assemble(FUNCTION, |a| {
        a.mov(eax, 0).unwrap();
        a.hlt().unwrap();
    });
    guest.machine.write(GuestAddress(FUNCTION), &function).unwrap();
    guest
}

#[test]
fn code_that_is_patched_often_is_seen_above_the_window_too() {
    let mut guest = patching_guest();
    let high = 1 << 41;
    guest.machine.alias(range(CODE, 2), GuestAddress(high)).unwrap();
    for value in 1..100 {
        let at = if value % 3 == 0 { FUNCTION } else { high + FUNCTION - CODE };
        patch_and_call(&mut guest, at, value);
    }
    assert_eq!(guest.machine.figures().checked_pages, 1);
}

#[test]
fn a_page_that_is_patched_often_and_then_no_more_is_watched_again() {
    let mut guest = patching_guest();
    for round in 0..3 {
        for value in 1..40 {
            patch_and_call(&mut guest, FUNCTION, 1000 * round + value);
        }
        assert_eq!(guest.machine.figures().checked_pages, 1, "round {round}");
        // A loop in the same page, which is not changed meanwhile.
        let again = assemble(CODE + 0x100, |a| {
            let mut again = a.create_label();
            a.set_label(&mut again).unwrap();
            a.dec(ecx).unwrap();
            a.jnz(again).unwrap();
            a.hlt().unwrap();
        });
        guest.machine.write(GuestAddress(CODE + 0x100), &again).unwrap();
        guest.vcpu.set_rip(GuestAddress(CODE + 0x100));
        guest.vcpu.set_gpr(RCX, 20_000_000);
        assert_eq!(guest.vcpu.run(None), Exit::Halt);
        assert_eq!(guest.machine.figures().checked_pages, 0, "round {round}");
    }
}

/// Pages of one mapping make one region, until one of them is written.
#[test]
fn a_written_page_gets_a_region_of_its_own() {
    let far = 0x80_0000;
    let guest = guest(|a| a.hlt().unwrap());
    let machine = &guest.machine;
    machine.map(range(far, 4), Permissions::ReadExecute).unwrap();
    let value = |page: u64, value: u32| {
        let at = far + page * 0x1000;
        let code = assemble(at, |a| {
            a.mov(eax, value).unwrap();
            a.hlt().unwrap();
        });
        machine.write(GuestAddress(at), &code).unwrap();
    };
    let mut vcpu = machine.vcpu().unwrap();
    let mut run = |page: u64| {
        vcpu.set_rip(GuestAddress(far + page * 0x1000));
        assert_eq!(vcpu.run(None), Exit::Halt);
        vcpu.gpr(RAX)
    };
    (0..4).for_each(|page| value(page, 10 + page as u32));
    (0..4).for_each(|page| assert_eq!(run(page), 10 + page));
    // Blocks made anew, or taken over: of all pages at first …
    let made = || {
        let figures = machine.figures();
        (figures.translations, figures.blocks_adopted, figures.regions_retired)
    };
    let before = made();
    value(1, 21);
    (0..4).for_each(|page| assert_eq!(run(page), if page == 1 { 21 } else { 10 + page }));
    let after = made();
    assert_eq!(after.2 - before.2, 1);
    assert_eq!((after.0 - before.0) + (after.1 - before.1), 4);
    // … then of this one alone.
    let before = made();
    value(1, 31);
    (0..4).for_each(|page| assert_eq!(run(page), if page == 1 { 31 } else { 10 + page }));
    let after = made();
    assert_eq!((after.0 - before.0, after.1 - before.1, after.2 - before.2), (1, 0, 1));
}

#[test]
fn full_code_memory_keeps_what_is_in_use() {
    const PAGES: u64 = 400;
    const ROUNDS: u64 = 3;
    let (first, hot) = (CODE + 0x1000, CODE);
    let machine = Machine::with_code_memory(40, 1 << 20).unwrap();
    machine.map(range(CODE, PAGES + 1), Permissions::ReadWriteExecute).unwrap();
    let page = |number: u64| first + number * 0x1000;
    for number in 0..PAGES {
        let code = assemble(page(number), |a| {
            a.add(rax, number as i32).unwrap();
            a.jmp(hot).unwrap();
        });
        machine.write(GuestAddress(page(number)), &code).unwrap();
    }
    let code = assemble(hot, |a| {
        a.inc(rbx).unwrap();
        a.hlt().unwrap();
    });
    machine.write(GuestAddress(hot), &code).unwrap();
    let mut vcpu = machine.vcpu().unwrap();
    for number in (0..ROUNDS).flat_map(|_| 0..PAGES) {
        vcpu.set_rip(GuestAddress(page(number)));
        assert_eq!(vcpu.run(None), Exit::Halt);
    }
    assert_eq!(vcpu.gpr(RAX), ROUNDS * PAGES * (PAGES - 1) / 2);
    assert_eq!(vcpu.gpr(RBX), ROUNDS * PAGES);
    let figures = machine.figures();
    let made = figures.translations + figures.blocks_adopted;
    // A chunk of 16 KiB a page: none of the other pages' blocks lasts a round.
    let of_the_others = ROUNDS * PAGES;
    assert!((of_the_others + 1..of_the_others + 8).contains(&made), "{figures:?}");
    assert!(figures.used_bytes <= 1 << 20);
}

#[test]
fn code_memory_has_bounds() {
    for bytes in [0, (1 << 20) - 1, (1 << 30) + 1, usize::MAX] {
        let error = Machine::with_code_memory(40, bytes).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("{bytes} bytes of code memory: it can have 1 MiB to 1 GiB")
        );
    }
    assert!(Machine::with_code_memory(40, 1 << 30).is_ok());
}
