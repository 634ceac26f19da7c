//! Words that blocks leave to the run loop to move, since somebody looks at them: the same as if each instruction
//! were stepped.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use iced_x86::code_asm::{
    CodeAssembler, ah, ax, bl, bx, byte_ptr, dword_ptr, dx, eax, ebx, ecx, edi, edx, qword_ptr, r8,
    r8w, r9d, r13, r14, r14d, r15, r15b, rax, rbx, rcx, rdi, rdx, rsi, rsp, sil, word_ptr,
};
use iced_x86::{Code, Instruction, MemoryOperand, Register};
use tregion::exec::{Exit, Machine};
use tregion::guest::{Flag, GuestAddress, Permissions, State};

use crate::guest::{
    CODE, DATA, Guest, Notes, RAX, RBX, RCX, RDI, RDX, RSI, assemble, guest, range,
};

/// Offset from [`DATA`], address of the instruction, size, and what is written.
type Access = (u64, u64, usize, Option<Vec<u8>>);

const TIMES: u64 = 6;

/// A loop of moves of every kind, each of which meets the hook in each round, and of one addition.
fn moves(a: &mut CodeAssembler) {
    let mut again = a.create_label();
    a.set_label(&mut again).unwrap();
    a.mov(rax, qword_ptr(rdi)).unwrap();
    a.mov(ebx, dword_ptr(rdi + 3)).unwrap();
    a.mov(bx, word_ptr(rdi + 9)).unwrap();
    a.mov(bl, byte_ptr(rdi + 5)).unwrap();
    a.mov(ah, byte_ptr(rdi + 6)).unwrap();
    a.mov(r15b, byte_ptr(rdi + 7)).unwrap();
    a.movzx(edx, byte_ptr(rdi + rsi * 2)).unwrap();
    a.movzx(dx, byte_ptr(rdi + 0x81)).unwrap();
    a.movzx(r8, word_ptr(rdi + 0x83)).unwrap();
    a.movsx(r9d, byte_ptr(rdi + 0x85)).unwrap();
    a.movsx(r8w, byte_ptr(rdi + 0x87)).unwrap();
    a.movsx(r14, word_ptr(rdi + 0x89)).unwrap();
    a.movsxd(r15, dword_ptr(rdi + 0x8c)).unwrap();
    let short = MemoryOperand::with_base_displ(Register::RDI, 0x8c);
    a.add_instruction(Instruction::with2(Code::Movsxd_r16_rm16, Register::R13W, short).unwrap())
        .unwrap();
    a.mov(r14d, dword_ptr(edi + 0x90)).unwrap();
    a.mov(rsp, qword_ptr(rdi + 0x98)).unwrap();
    a.mov(rax, qword_ptr(rsp + 0x10)).unwrap();
    a.mov(rdx, qword_ptr(0x40).gs()).unwrap();
    a.mov(eax, dword_ptr(DATA + 0x20)).unwrap();
    a.mov(qword_ptr(rdi + 0x100), rax).unwrap();
    a.mov(dword_ptr(rdi + 0x108), r14d).unwrap();
    a.mov(word_ptr(rdi + 0x10c), dx).unwrap();
    a.mov(byte_ptr(rdi + 0x10e), ah).unwrap();
    a.mov(byte_ptr(rdi + 0x10f), sil).unwrap();
    a.mov(qword_ptr(rdi + 0x110), rsp).unwrap();
    a.mov(qword_ptr(rdi + r13 + 0x118), r15).unwrap();
    a.mov(qword_ptr(rdi + 0x120), -2_i32).unwrap();
    a.mov(byte_ptr(rdi + 0x128), 0x7f_i32).unwrap();
    a.mov(dword_ptr(rsi).gs(), ecx).unwrap();
    a.mov(qword_ptr(rdi + 0xffd), rcx).unwrap();
    a.mov(ax, word_ptr(rdi + 0xfff)).unwrap();
    a.add(dword_ptr(rdi + 0x20), ecx).unwrap();
    a.dec(rcx).unwrap();
    a.jnz(again).unwrap();
    a.hlt().unwrap();
}

/// A guest about to run [`moves`], and what a hook on all of its data notes.
fn hooked() -> (Guest, Notes<Access>) {
    let mut guest = guest(moves);
    let bytes: Vec<u8> = (0..0x2000).map(|index| (index + 1) as u8).collect();
    guest.machine.write(GuestAddress(DATA), &bytes).unwrap();
    guest.machine.write(GuestAddress(DATA + 0x8c), &8_u32.to_le_bytes()).unwrap();
    guest.set_word(DATA + 0x98, DATA + 0x300);
    let notes = Notes::new();
    let noted = notes.clone();
    let all = GuestAddress(DATA)..GuestAddress(DATA + 0x2000);
    let note = move |access: &tregion::exec::MemoryAccess<'_>| {
        let (at, rip) = (access.address().0 - DATA, access.rip().0 - CODE);
        noted.note((at, rip, access.size(), access.written().map(<[u8]>::to_vec)));
    };
    guest.machine.hook_memory(all, note).unwrap();
    let mut state = State { gs_base: DATA + 0x200, rip: CODE, ..State::default() };
    (state.gpr[RCX], state.gpr[RDI], state.gpr[RSI]) = (TIMES, DATA, 0x40);
    guest.vcpu.set_state(&state);
    (guest, notes)
}

/// Runs to `hlt`, so many instructions at a time; what there is in the end.
fn outcome(budget: Option<u64>) -> (Vec<Access>, State, Vec<u8>, u64) {
    let (mut guest, notes) = hooked();
    loop {
        match guest.vcpu.run(budget) {
            Exit::Budget => {}
            Exit::Halt => break,
            other => panic!("{other:?} at {}", guest.vcpu.rip()),
        }
    }
    let mut memory = vec![0; 0x2000];
    guest.machine.read(GuestAddress(DATA), &mut memory).unwrap();
    (notes.take(), guest.vcpu.state(), memory, guest.vcpu.executed())
}

#[test]
fn moves_are_seen_and_done_as_if_they_were_stepped() {
    let stepped = outcome(Some(1));
    assert_eq!(stepped.0.len() as u64, TIMES * 33, "all of them are seen");
    for budget in [9, 10, 31, 32, 33, 34, 35, 50, 1000] {
        assert_eq!(outcome(Some(budget)), stepped, "{budget} at a time");
    }
    let at_once = outcome(None);
    assert_eq!((&at_once.0, &at_once.1, &at_once.2), (&stepped.0, &stepped.1, &stepped.2));
}

/// `again: mov rax, [rdi]; mov [rdi + 8], rax; inc rbx; dec rcx; jnz again; hlt`, at 0, 3, 7, 10, 13 and 15, for whom
/// the moves are known to meet a hook, which calls `call`.
fn noted(call: impl FnMut(&tregion::exec::MemoryAccess<'_>) + Send + 'static) -> Guest {
    let mut guest = guest(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again).unwrap();
        a.mov(rax, qword_ptr(rdi)).unwrap();
        a.mov(qword_ptr(rdi + 8), rax).unwrap();
        a.inc(rbx).unwrap();
        a.dec(rcx).unwrap();
        a.jnz(again).unwrap();
        a.hlt().unwrap();
    });
    let id = guest.machine.hook_memory(.., |_| {}).unwrap();
    guest.vcpu.set_gpr(RDI, DATA);
    guest.vcpu.set_gpr(RCX, 10);
    guest.run();
    guest.machine.hook_memory(GuestAddress(DATA)..GuestAddress(DATA + 0x1000), call).unwrap();
    assert!(guest.machine.remove_hook(id));
    guest.vcpu.set_gpr(RCX, 10);
    guest.vcpu.set_rip(GuestAddress(CODE));
    guest
}

#[test]
fn a_hook_ends_the_run_behind_the_move() {
    for budget in [None, Some(1000)] {
        let mut guest = noted(|access| access.stop());
        let before = guest.vcpu.executed();
        for behind in [3, 7].repeat(10) {
            assert_eq!(guest.vcpu.run(budget), Exit::Stopped);
            assert_eq!(guest.vcpu.rip().0 - CODE, behind);
        }
        assert_eq!(guest.vcpu.run(budget), Exit::Halt);
        assert_eq!(guest.vcpu.executed() - before, if budget.is_some() { 51 } else { 0 });
    }
}

#[test]
fn what_a_hook_changes_holds_at_once() {
    // The machine that the hook is to change.
    let machine: Arc<std::sync::Mutex<Option<Machine>>> = Arc::default();
    let (calls, slot) = (Arc::new(AtomicU64::new(0)), Arc::clone(&machine));
    let counted = Arc::clone(&calls);
    let mut guest = noted(move |_| {
        let guard = slot.lock().unwrap();
        let Some(machine) = guard.as_ref() else { return };
        match counted.fetch_add(1, Relaxed) {
            // At the load of the second round: what follows the store is to add ten.
            2 => {
                let code = assemble(CODE + 7, |a| a.add(bl, 10).unwrap());
                machine.write(GuestAddress(CODE + 7), &code).unwrap();
            }
            // At the store of the third: it may not be done.
            5 => machine.protect(range(DATA, 1), Permissions::Read).unwrap(),
            // At the store when it is tried again: nothing is there any more.
            6 => machine.unmap(range(DATA, 1)).unwrap(),
            _ => {}
        }
    });
    *machine.lock().unwrap() = Some(guest.machine.clone());
    guest.vcpu.set_gpr(RBX, 0);
    guest.set_word(DATA, 77);
    let fault = |error| Exit::Exception { vector: 14, error, address: Some(DATA + 8) };
    assert_eq!(guest.vcpu.run(None), fault(7));
    assert_eq!((guest.vcpu.rip().0 - CODE, guest.vcpu.gpr(RBX), guest.vcpu.gpr(RAX)), (3, 11, 77));
    assert_eq!(calls.load(Relaxed), 6);
    guest.machine.protect(range(DATA, 1), Permissions::ReadWrite).unwrap();
    assert_eq!(guest.vcpu.run(None), fault(6));
    assert_eq!((guest.vcpu.rip().0 - CODE, guest.vcpu.gpr(RBX), calls.load(Relaxed)), (3, 11, 7));
    *machine.lock().unwrap() = None;
}

#[test]
fn a_move_may_change_what_is_behind_it_in_its_block() {
    let mut guest = guest(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again).unwrap();
        a.cmp(rcx, 3).unwrap();
        a.cmove(rdi, rsi).unwrap();
        a.mov(dword_ptr(rdi), edx).unwrap();
        a.inc(rbx).unwrap();
        a.dec(rcx).unwrap();
        a.jnz(again).unwrap();
        a.hlt().unwrap();
    });
    // `inc rbx` becomes `add bl, 10`, both of which have three bytes; the fourth is that of `dec`.
    const INCREMENT: u64 = CODE + 10;
    let mut code = [0; 4];
    guest.machine.read(GuestAddress(INCREMENT), &mut code).unwrap();
    assert_eq!(code, [0x48, 0xff, 0xc3, 0x48]);
    code[..3].copy_from_slice(&assemble(INCREMENT, |a| a.add(bl, 10).unwrap()));
    guest.machine.hook_memory(.., |_| {}).unwrap();
    for (register, value) in [
        (RCX, 10),
        (RDI, DATA),
        (RSI, INCREMENT),
        (RDX, u64::from(u32::from_le_bytes(code))),
        (RBX, 0),
    ] {
        guest.vcpu.set_gpr(register, value);
    }
    guest.run();
    assert_eq!(guest.vcpu.gpr(RBX), 7 + 3 * 10);
}

#[test]
fn a_move_may_change_what_is_behind_it_again_and_again() {
    let mut guest = guest(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again).unwrap();
        // The constant of the addition.
        a.mov(dword_ptr(rdi), ecx).unwrap();
        a.add(rbx, 0x1234_5678).unwrap();
        a.dec(rcx).unwrap();
        a.jnz(again).unwrap();
        a.hlt().unwrap();
    });
    const CONSTANT: u64 = CODE + 5;
    let mut constant = [0; 4];
    guest.machine.read(GuestAddress(CONSTANT), &mut constant).unwrap();
    assert_eq!(u32::from_le_bytes(constant), 0x1234_5678);
    // By an alias, so that the code is not hooked itself, and its blocks can compare their source.
    const ALIAS: u64 = 0x70_0000;
    guest.machine.alias(range(CODE, 2), GuestAddress(ALIAS)).unwrap();
    guest.machine.hook_memory(GuestAddress(ALIAS)..GuestAddress(ALIAS + 1), |_| {}).unwrap();
    for (register, value) in [(RCX, 300), (RDI, CONSTANT - CODE + ALIAS), (RBX, 0)] {
        guest.vcpu.set_gpr(register, value);
    }
    guest.run();
    assert_eq!(guest.vcpu.gpr(RBX), 300 * 301 / 2);
    assert!(guest.machine.figures().checked_pages > 0, "blocks compare their source");
}

#[test]
fn alignment_is_checked_where_the_guest_asks_for_it() {
    let mut guest = noted(|_| {});
    guest.vcpu.set_gpr(RDI, DATA + 1);
    let mut state = guest.vcpu.state();
    state.rflags |= Flag::AC.mask();
    guest.vcpu.set_state(&state);
    assert_eq!(guest.vcpu.run(None), Exit::Exception { vector: 17, error: 0, address: None });
    assert_eq!(guest.vcpu.rip().0, CODE);
}

#[test]
fn wild_addresses_fault_as_everywhere() {
    for (address, vector) in [(1 << 63, 13), ((1 << 47) - 4, 13), (0x1234_5000, 14)] {
        let calls = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&calls);
        let mut guest = noted(move |_| {
            counted.fetch_add(1, Relaxed);
        });
        guest.vcpu.set_gpr(RDI, address);
        let exit = guest.vcpu.run(None);
        assert!(
            matches!(exit, Exit::Exception { vector: found, .. } if found == vector),
            "{exit:?}"
        );
        assert_eq!((guest.vcpu.rip().0, calls.load(Relaxed)), (CODE, 0));
    }
}

#[test]
fn a_kick_ends_a_loop_of_moves() {
    let mut guest = noted(|_| {});
    guest.vcpu.set_gpr(RCX, 1 << 62);
    let kick = guest.vcpu.kick();
    let kicker = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(30));
        kick.ask();
    });
    assert_eq!(guest.vcpu.run(None), Exit::Requested);
    kicker.join().unwrap();
}

#[test]
fn what_nobody_looks_at_any_more_is_done_by_the_block_again() {
    let calls = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&calls);
    let mut guest = noted(move |_| {
        counted.fetch_add(1, Relaxed);
    });
    // Another page, which nobody looks at, and then the first one again.
    for (data, seen) in [(DATA + 0x1000, 0), (DATA, 2000)] {
        guest.vcpu.set_gpr(RDI, data);
        guest.vcpu.set_gpr(RCX, 1000);
        guest.run();
        assert_eq!(calls.swap(0, Relaxed), seen);
    }
}
