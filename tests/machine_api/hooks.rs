//! Code hooks and block hooks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use iced_x86::code_asm::{eax, ecx, ptr, qword_ptr, rax, rbx, rcx, rdi};
use tregion::exec::{Exit, HookContext, HookError, Machine};
use tregion::guest::{GuestAddress, Permissions};

use crate::guest::{
    CODE, DATA, Guest, Notes, RAX, RBX, RCX, RDI, assemble, counter, guest, long, range,
};

fn notes_of_code(guest: &Guest) -> Notes<u64> {
    let notes = Notes::new();
    let noted = notes.clone();
    guest.machine.hook_code(.., move |context| noted.note(context.rip().0 - CODE)).unwrap();
    notes
}

fn notes_of_blocks(guest: &Guest, from: u64, to: u64) -> Notes<u64> {
    let notes = Notes::new();
    let noted = notes.clone();
    let (from, to) = (GuestAddress(from), GuestAddress(to));
    guest.machine.hook_blocks(from..to, move |context| noted.note(context.rip().0 - CODE)).unwrap();
    notes
}

#[test]
fn a_code_hook_sees_each_instruction_of_its_range_once() {
    let mut guest = counter(3);
    let all = notes_of_code(&guest);
    guest.run();
    let pass = [5, 8, 9, 11];
    let expected: Vec<u64> =
        [0].into_iter().chain(pass).chain(pass).chain(pass).chain([13]).collect();
    assert_eq!(all.take(), expected);
    // Some of them are stepped.
    for budget in [1, 2, 3, 8, 9, 10, 13] {
        guest.vcpu.set_rip(GuestAddress(CODE));
        while guest.vcpu.run(Some(budget)) == Exit::Budget {}
        assert_eq!(all.take(), expected, "in pieces of {budget}");
    }
}

#[test]
fn a_hook_is_added_to_code_that_was_translated_and_taken_away_again() {
    let mut guest = counter(1000);
    guest.run();
    let notes = Notes::new();
    let noted = notes.clone();
    let one = GuestAddress(CODE + 8)..GuestAddress(CODE + 9);
    let id = guest.machine.hook_code(one, move |context| noted.note(context.gpr(RAX))).unwrap();
    guest.run();
    assert_eq!(notes.take(), (1001..=2000).collect::<Vec<u64>>());
    assert!(guest.machine.remove_hook(id));
    assert!(!guest.machine.remove_hook(id));
    guest.run();
    assert_eq!((notes.take().len(), guest.vcpu.gpr(RAX)), (0, 3000));
}

#[test]
fn a_hook_that_stops_does_so_once_at_its_instruction() {
    let mut guest = counter(3);
    let machine = &guest.machine;
    let place = GuestAddress(CODE + 9);
    machine.hook_code(place..=place, |context| context.stop()).unwrap();
    let others = notes_of_code(&guest);
    guest.vcpu.set_rip(GuestAddress(CODE));
    for pass in 1..=3 {
        assert_eq!(guest.vcpu.run(None), Exit::Stopped);
        assert_eq!((guest.vcpu.rip(), guest.vcpu.gpr(RAX)), (place, pass));
        assert_eq!(others.take().last(), Some(&9), "the other hooks there were called as well");
    }
    assert_eq!(guest.vcpu.run(None), Exit::Halt);
    assert_eq!(others.take(), [11, 13]);
}

#[test]
fn what_a_stop_leaves_is_not_taken_off_the_budget() {
    let mut guest = counter(3);
    let place = GuestAddress(CODE + 9);
    guest.machine.hook_code(place..=place, |context| context.stop()).unwrap();
    guest.vcpu.set_rip(GuestAddress(CODE));
    for executed in [3, 7, 11] {
        assert_eq!(guest.vcpu.run(Some(1000)), Exit::Stopped);
        assert_eq!(guest.vcpu.executed(), executed);
    }
    assert_eq!((guest.vcpu.run(Some(1000)), guest.vcpu.executed()), (Exit::Halt, 14));
}

/// The block goes, and its memory comes to be used again, while hooks of its instructions are called.
#[test]
fn no_call_is_lost_or_made_twice_while_code_is_retired() {
    const TIMES: u32 = 20_000;
    for budget in [None, Some(1_000_000)] {
        let mut guest = counter(TIMES);
        let calls = Arc::new(AtomicU64::new(0));
        let counting = Arc::clone(&calls);
        let two = GuestAddress(CODE + 5)..GuestAddress(CODE + 9);
        let call = move |_: &mut HookContext<'_>| {
            if counting.fetch_add(1, Ordering::Relaxed).is_multiple_of(16) {
                std::thread::yield_now();
            }
        };
        guest.machine.hook_code(two, call).unwrap();
        let (machine, over) = (guest.machine.clone(), AtomicBool::new(false));
        guest.vcpu.set_rip(GuestAddress(CODE));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Acquire) {
                    machine.invalidate(range(CODE, 1));
                    machine.reclaim();
                }
            });
            assert_eq!(guest.vcpu.run(budget), Exit::Halt);
            over.store(true, Ordering::Release);
        });
        assert_eq!(guest.vcpu.gpr(RAX), u64::from(TIMES));
        assert_eq!(calls.load(Ordering::Relaxed), 2 * u64::from(TIMES));
        let executed = budget.map_or(0, |_| 4 * u64::from(TIMES) + 2);
        assert_eq!(guest.vcpu.executed(), executed);
    }
}

#[test]
fn a_hook_that_moves_a_pointer_out_of_reach_moves_no_access_there() {
    let mut guest = guest(|a| {
        a.mov(rax, ptr(rbx)).unwrap();
        a.nop().unwrap();
        a.mov(rcx, ptr(rbx + 8)).unwrap();
        a.hlt().unwrap();
    });
    let place = GuestAddress(CODE + 3);
    for far in [1 << 41, 1 << 45, 1 << 62, u64::MAX] {
        let hook = guest.machine.hook_code(place..=place, move |context| context.set_gpr(RBX, far));
        guest.vcpu.set_gpr(RBX, DATA);
        guest.vcpu.set_rip(GuestAddress(CODE));
        let exit = guest.vcpu.run(None);
        assert!(matches!(exit, Exit::Exception { vector: 13 | 14, .. }), "{far:#x}: {exit:?}");
        assert_eq!(guest.vcpu.rip(), GuestAddress(CODE + 4), "{far:#x}");
        assert!(guest.machine.remove_hook(hook.unwrap()));
    }
}

#[test]
fn a_host_that_goes_elsewhere_after_a_stop_meets_the_hook_again() {
    let mut guest = counter(3);
    let place = GuestAddress(CODE + 9);
    guest.machine.hook_code(place..=place, |context| context.stop()).unwrap();
    for round in 1..=3 {
        guest.vcpu.set_rip(GuestAddress(CODE));
        assert_eq!((guest.vcpu.run(None), guest.vcpu.rip()), (Exit::Stopped, place));
        assert_eq!(guest.vcpu.gpr(RAX), round);
    }
}

#[test]
fn a_hook_changes_registers_memory_and_the_instruction_itself() {
    let mut guest = guest(|a| {
        a.mov(rax, rbx).unwrap();
        a.mov(ptr(rdi), rax).unwrap();
        a.ud2().unwrap();
        a.hlt().unwrap();
    });
    guest.vcpu.set_gpr(RDI, DATA);
    let at = |offset: u64| GuestAddress(CODE + offset)..=GuestAddress(CODE + offset);
    guest.machine.hook_code(at(0), |context| context.set_gpr(RBX, 7)).unwrap();
    let hook = guest.machine.hook_code(at(3), |context| {
        // mov [rdi], rax becomes mov [rdi], rdi.
        context.write(GuestAddress(CODE + 3), &[0x48, 0x89, 0x3f]).unwrap();
    });
    let skip = |context: &mut tregion::exec::HookContext<'_>| {
        let mut bytes = [0; 2];
        context.read(context.rip(), &mut bytes).unwrap();
        assert_eq!(bytes, [0x0f, 0x0b]);
        let rip = context.rip();
        context.set_rip(GuestAddress(rip.0 + 2));
    };
    guest.machine.hook_code(at(6), skip).unwrap();
    guest.run();
    assert_eq!((guest.vcpu.gpr(RAX), guest.word(DATA)), (7, DATA));
    guest.machine.remove_hook(hook.unwrap());
    guest.run();
}

#[test]
fn a_code_hook_is_called_once_for_a_repeated_instruction() {
    let mut guest = guest(|a| {
        a.rep().stosb().unwrap();
        a.hlt().unwrap();
    });
    let notes = notes_of_code(&guest);
    guest.vcpu.set_gpr(RCX, 0x4000);
    guest.vcpu.set_gpr(RDI, DATA);
    guest.run();
    assert_eq!(notes.take(), [0, 2]);
}

#[test]
fn a_fault_that_the_host_repairs_does_not_call_a_hook_again() {
    let mut guest = guest(|a| {
        a.mov(rax, ptr(rdi)).unwrap();
        a.hlt().unwrap();
    });
    let notes = notes_of_code(&guest);
    guest.vcpu.set_gpr(RDI, 0x90_0000);
    assert!(matches!(guest.vcpu.run(None), Exit::Exception { vector: 14, .. }));
    guest.machine.map(range(0x90_0000, 1), Permissions::Read).unwrap();
    assert_eq!(guest.vcpu.run(None), Exit::Halt);
    assert_eq!(notes.take(), [0, 3]);
}

#[test]
fn block_hooks_see_branches_taken_and_not_taken() {
    let mut guest = counter(3);
    let blocks = notes_of_blocks(&guest, CODE, CODE + 0x1000);
    guest.run();
    assert_eq!(blocks.take(), [0, 5, 5, 13]);
    for budget in [1, 2, 3, 9, 10, 11] {
        guest.vcpu.set_rip(GuestAddress(CODE));
        while guest.vcpu.run(Some(budget)) == Exit::Budget {}
        assert_eq!(blocks.take(), [0, 5, 5, 13], "in pieces of {budget}");
    }
}

#[test]
fn block_hooks_see_who_falls_into_their_range() {
    let mut guest = counter(2);
    // Control falls from 5 to 8 in each pass, which is no new block but to who looks from there on.
    let inside = notes_of_blocks(&guest, CODE + 8, CODE + 0x1000);
    let whole = notes_of_blocks(&guest, CODE, CODE + 0x1000);
    // No instruction starts at 6; the first one behind it does not start a block for `whole`.
    let straddled = notes_of_blocks(&guest, CODE + 6, CODE + 9);
    for _ in 0..3 {
        guest.run();
        assert_eq!(whole.take(), [0, 5, 13]);
        assert_eq!(inside.take(), [8, 8, 13]);
        assert_eq!(straddled.take(), [8, 8]);
    }
}

#[test]
fn blocks_begin_behind_branches_taken_or_not() {
    let mut guest = guest(|a| {
        let (mut pass, mut over, mut under) =
            (a.create_label(), a.create_label(), a.create_label());
        a.set_label(&mut pass).unwrap();
        a.xor(eax, eax).unwrap();
        a.jnz(over).unwrap();
        // 4
        a.lea(rbx, ptr(rbx + 1)).unwrap();
        a.set_label(&mut over).unwrap();
        a.jz(under).unwrap();
        a.lea(rbx, ptr(rbx + 1)).unwrap();
        a.set_label(&mut under).unwrap();
        // 14
        a.dec(ecx).unwrap();
        a.jnz(pass).unwrap();
        // 18
        a.hlt().unwrap();
    });
    let run = |guest: &mut Guest| {
        guest.vcpu.set_gpr(RCX, 3);
        guest.run();
    };
    run(&mut guest);
    // Code that was translated when there was no hook is another then.
    let blocks = notes_of_blocks(&guest, CODE, CODE + 0x1000);
    for _ in 0..2 {
        guest.vcpu.set_rip(GuestAddress(CODE));
        run(&mut guest);
        assert_eq!(blocks.take(), [0, 4, 14, 0, 4, 14, 0, 4, 14, 18]);
    }
}

#[test]
fn long_blocks_assists_and_page_ends_are_no_block_entries() {
    let mut guest = long();
    let blocks = notes_of_blocks(&guest, CODE, CODE + 0x2000);
    for budget in [None, Some(7), Some(100)] {
        guest.vcpu.set_rip(GuestAddress(CODE));
        while guest.vcpu.run(budget) == Exit::Budget {}
        assert_eq!(blocks.take(), [0], "in pieces of {budget:?}");
    }
}

#[test]
fn calls_and_returns_enter_blocks_across_pages() {
    let mut guest = guest(|a| {
        a.call(CODE + 0x1000).unwrap();
        a.call(CODE + 0x1000).unwrap();
        a.hlt().unwrap();
    });
    guest
        .machine
        .write(
            GuestAddress(CODE + 0x1000),
            &assemble(CODE + 0x1000, |a| {
                a.inc(rcx).unwrap();
                a.ret().unwrap();
            }),
        )
        .unwrap();
    // Once without a hook, so that jump caches are warm.
    guest.run();
    let caller = notes_of_blocks(&guest, CODE, CODE + 0x1000);
    guest.run();
    assert_eq!(caller.take(), [0, 5, 10]);
    let callee = notes_of_blocks(&guest, CODE + 0x1000, CODE + 0x2000);
    guest.run();
    assert_eq!((caller.take(), callee.take()), (vec![0, 5, 10], vec![0x1000, 0x1000]));
    assert_eq!(guest.vcpu.gpr(RCX), 6);
}

#[test]
fn a_block_hook_can_stop_and_goes_on_behind() {
    let mut guest = counter(2);
    guest.machine.hook_blocks(.., |context| context.stop()).unwrap();
    guest.vcpu.set_rip(GuestAddress(CODE));
    for place in [0, 5, 13] {
        assert_eq!(guest.vcpu.run(None), Exit::Stopped);
        assert_eq!(guest.vcpu.rip().0 - CODE, place);
    }
    assert_eq!(guest.vcpu.run(None), Exit::Halt);
}

#[test]
fn empty_ranges_are_refused() {
    let guest = counter(1);
    let address = GuestAddress(CODE);
    let error = guest.machine.hook_code(address..address, |_| {}).unwrap_err();
    assert!(matches!(error, HookError::EmptyRange));
    let backwards = GuestAddress(CODE + 1)..=address;
    assert!(matches!(guest.machine.hook_memory(backwards, |_| {}), Err(HookError::EmptyRange)));
}

#[test]
fn a_panic_in_a_hook_hurts_nobody_else() {
    let mut guest = counter(3);
    let id = guest.machine.hook_code(.., |context| {
        assert!(context.gpr(RAX) < 2, "as wanted");
    });
    let run = std::panic::AssertUnwindSafe(|| guest.vcpu.run(None));
    assert!(std::panic::catch_unwind(run).is_err());
    assert_eq!((guest.vcpu.gpr(RAX), guest.vcpu.rip().0), (2, CODE + 8));
    assert!(guest.machine.remove_hook(id.unwrap()));
    assert_eq!(guest.vcpu.run(None), Exit::Halt);
    assert_eq!(guest.vcpu.gpr(RAX), 3);
}

#[test]
fn a_memory_hook_may_change_what_the_instruction_is_about_to_meet() {
    let mut guest = guest(|code| {
        code.mov(rax, ptr(DATA)).unwrap();
        code.lock().inc(qword_ptr(DATA)).unwrap();
        code.mov(qword_ptr(DATA), 0).unwrap();
        code.hlt().unwrap();
    });
    let machine = guest.machine.clone();
    let (noted, mut calls) = (Notes::new(), 0);
    let seen = noted.clone();
    let page = range(DATA, 1);
    let word = GuestAddress(DATA)..GuestAddress(DATA + 8);
    guest
        .machine
        .hook_memory(word, move |access| {
            let set = |value: u64| machine.write(access.address(), &value.to_le_bytes()).unwrap();
            seen.note((access.rip().0 - CODE, access.written().map(|bytes| bytes[0])));
            calls += 1;
            match calls {
                1 => set(5),
                // Which the LOCKed instruction notices.
                3 => set(100),
                6 => machine.protect(page, Permissions::Read).unwrap(),
                _ => {}
            }
        })
        .unwrap();
    let exit = guest.vcpu.run(None);
    let fault = Exit::Exception { vector: 14, error: 7, address: Some(DATA) };
    assert_eq!((exit, guest.vcpu.gpr(RAX)), (fault, 5));
    let mut word = [0; 8];
    guest.machine.read(GuestAddress(DATA), &mut word).unwrap();
    assert_eq!(u64::from_le_bytes(word), 101);
    let (load, increment, store) = (0, 10, 19);
    let expected = [
        (load, None),
        (increment, None),
        (increment, Some(6)),
        (increment, None),
        (increment, Some(101)),
        (store, Some(0)),
    ];
    assert_eq!(noted.take(), expected);
}

#[test]
fn a_code_hook_may_call_its_machine() {
    let mut guest = counter(3);
    let machine = guest.machine.clone();
    let first = GuestAddress(CODE)..GuestAddress(CODE + 1);
    let code = guest.machine.regions()[0].range;
    guest
        .machine
        .hook_code(first, move |_| {
            machine.set_breakpoint(GuestAddress(CODE + 8));
            machine.invalidate(code);
        })
        .unwrap();
    assert_eq!(guest.vcpu.run(None), Exit::Breakpoint);
    assert_eq!(guest.vcpu.rip().0, CODE + 8);
}

type Sleep = Box<dyn FnMut() + Send>;

/// Puts a vCPU to sleep in what `attach` attaches, and looks whether the machine's others notice.
fn sleep_in(attach: fn(&Machine, Sleep)) {
    let mut guest = guest(|a| {
        a.mov(rax, ptr(DATA)).unwrap();
        a.hlt().unwrap();
    });
    let machine = guest.machine.clone();
    let (asleep, hears) = std::sync::mpsc::channel();
    let (wakes, sleeper) = std::sync::mpsc::channel::<()>();
    let sleep = move || {
        asleep.send(()).unwrap();
        sleeper.recv().unwrap();
    };
    attach(&machine, Box::new(sleep));
    let runs = GuestAddress(CODE + 0x800);
    machine.write(runs, &[0xf4]).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| guest.run());
        hears.recv().unwrap();
        // Another vCPU runs, code is invalidated, and its memory comes back.
        let mut other = machine.vcpu().unwrap();
        other.set_rip(runs);
        assert_eq!(other.run(Some(100)), Exit::Halt);
        let before = machine.figures();
        machine.invalidate(machine.regions()[0].range);
        for _ in 0..100 {
            if machine.reclaim() == 0 {
                break;
            }
            std::thread::yield_now();
        }
        let after = machine.figures();
        assert!(after.regions_reclaimed > before.regions_reclaimed, "{after:?}");
        wakes.send(()).unwrap();
    });
}

#[test]
fn a_vcpu_asleep_in_a_code_hook_keeps_nobody_waiting() {
    sleep_in(|machine, mut sleep| {
        let first = GuestAddress(CODE)..GuestAddress(CODE + 1);
        machine.hook_code(first, move |_| sleep()).unwrap();
    });
}

#[test]
fn a_vcpu_asleep_in_a_memory_hook_keeps_nobody_waiting() {
    sleep_in(|machine, mut sleep| {
        let first = GuestAddress(DATA)..GuestAddress(DATA + 1);
        machine.hook_memory(first, move |_| sleep()).unwrap();
    });
}

#[test]
fn a_vcpu_asleep_in_a_device_keeps_nobody_waiting() {
    sleep_in(|machine, mut sleep| {
        machine.unmap(range(DATA, 1)).unwrap();
        machine.map_mmio(range(DATA, 1), move |_| sleep()).unwrap();
    });
}

#[test]
fn a_hook_may_run_another_machine() {
    let mut guest = counter(2);
    let mut inner = counter(5);
    let results = Notes::new();
    let noted = results.clone();
    let first = GuestAddress(CODE)..GuestAddress(CODE + 1);
    guest
        .machine
        .hook_code(first, move |_| {
            inner.run();
            noted.note(inner.vcpu.gpr(RAX));
        })
        .unwrap();
    guest.run();
    assert_eq!((results.take(), guest.vcpu.gpr(RAX)), (vec![5], 2));
}
