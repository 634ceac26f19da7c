//! Budgets, breakpoints, requests to leave, threads, several machines.

use std::sync::mpsc::channel;
use std::time::Duration;

use iced_x86::code_asm::{CodeAssembler, dword_ptr, eax, ecx, qword_ptr, r8, rax, rbx, rcx, rdi};
use tregion::exec::{Exit, Machine, MachineError, Vcpu};
use tregion::guest::{GuestAddress, Permissions, RangeError};
use tregion::memory::{Backing, MapError};

use crate::guest::{CODE, DATA, Guest, RAX, RBX, RCX, RDI, RSI, RSP, assemble, guest, range};

/// Calls, returns, counted loops, strings and switches over two pages; some 60,000 instructions.
fn busy(a: &mut CodeAssembler) {
    let (mut outer, mut function, mut inner) =
        (a.create_label(), a.create_label(), a.create_label());
    a.mov(rbx, 300u64).unwrap();
    a.set_label(&mut outer).unwrap();
    a.call(function).unwrap();
    a.mov(rcx, 20u64).unwrap();
    a.mov(rdi, DATA).unwrap();
    a.rep().stosb().unwrap();
    a.cpuid_and_back();
    a.dec(rbx).unwrap();
    a.jnz(outer).unwrap();
    a.hlt().unwrap();
    a.nops_with_size(0x1000).unwrap();
    a.set_label(&mut function).unwrap();
    a.mov(ecx, 40).unwrap();
    a.set_label(&mut inner).unwrap();
    a.lea(rax, iced_x86::code_asm::ptr(rax + rcx)).unwrap();
    a.imul_3(rax, rax, 3).unwrap();
    a.add(r8, rax).unwrap();
    a.dec(ecx).unwrap();
    a.jnz(inner).unwrap();
    a.ret().unwrap();
}

/// An instruction that is the run loop's business.
trait Assisted {
    fn cpuid_and_back(&mut self);
}

impl Assisted for CodeAssembler {
    fn cpuid_and_back(&mut self) {
        self.push(rbx).unwrap();
        self.push(rax).unwrap();
        self.cpuid().unwrap();
        self.pop(rax).unwrap();
        self.pop(rbx).unwrap();
    }
}

#[test]
fn budgets_are_exact() {
    let mut whole = guest(busy);
    assert_eq!(whole.vcpu.run(Some(u64::MAX >> 1)), Exit::Halt);
    let total = whole.vcpu.executed();
    let expected = whole.vcpu.state();
    // 300 times: a call, two moves, a string, five around cpuid, dec, jnz; and a function of
    // 1 + 40 * 5 + 1 instructions.
    assert_eq!(total, 1 + 300 * (11 + 202) + 1);
    for piece in [1, 2, 7, 8, 9, 63, 1000, 12_345, total - 1, total] {
        let mut guest = guest(busy);
        let mut done = 0;
        loop {
            let exit = guest.vcpu.run(Some(piece));
            let ran = guest.vcpu.executed() - done;
            done += ran;
            if exit == Exit::Halt {
                break;
            }
            assert_eq!((exit, ran), (Exit::Budget, piece));
        }
        assert_eq!((done, guest.vcpu.state() == expected), (total, true), "pieces of {piece}");
    }
    assert_eq!(whole.vcpu.run(Some(0)), Exit::Budget);
}

#[test]
fn runs_with_and_without_a_budget_take_turns() {
    let (mut guest, mut other) = (guest(busy), guest(busy));
    let total = 1 + 300 * (11 + 202) + 1;
    for turn in 0..3 {
        guest.run();
        (0..2).for_each(|_| other.run());
        guest.vcpu.set_rip(GuestAddress(CODE));
        // What indirect jumps have learnt leads to code that does not count, and the other way round.
        assert_eq!(guest.vcpu.run(Some(1000)), Exit::Budget);
        assert_eq!(guest.vcpu.executed(), turn * total + 1000);
        assert_eq!(guest.vcpu.run(Some(total - 1000)), Exit::Halt);
        assert_eq!(guest.vcpu.executed(), (turn + 1) * total);
        assert!(guest.vcpu.state() == other.vcpu.state());
    }
}

#[test]
fn faults_are_not_taken_off_the_budget() {
    // A return to an address that is not canonical, and one to nowhere; 20 instructions before.
    for target in [0x8000_0000_0000_0000, 0x1000_u64] {
        let mut guest = guest(|a| {
            (0..18).for_each(|_| a.inc(rbx).unwrap());
            a.mov(rax, target).unwrap();
            a.push(rax).unwrap();
            a.ret().unwrap();
        });
        assert!(matches!(guest.vcpu.run(Some(1000)), Exit::Exception { .. }));
        let canonical = target < 1 << 47;
        assert_eq!(guest.vcpu.executed(), 20 + u64::from(canonical), "{target:#x}");
        assert_eq!(guest.vcpu.rip().0, if canonical { target } else { CODE + 54 + 10 + 1 });
    }
    // A load of what is not there, with as many instructions behind it.
    let mut guest = guest(|a| {
        (0..18).for_each(|_| a.inc(rbx).unwrap());
        a.mov(eax, 0x1000).unwrap();
        a.mov(rax, qword_ptr(rax)).unwrap();
        (0..18).for_each(|_| a.inc(rbx).unwrap());
    });
    assert!(matches!(guest.vcpu.run(Some(1000)), Exit::Exception { .. }));
    assert_eq!((guest.vcpu.executed(), guest.vcpu.rip().0), (19, CODE + 54 + 5));
}

#[test]
fn breakpoints_stop_before_their_instruction_and_are_passed_at_the_start() {
    let mut guest = guest(|a| {
        let mut again = a.create_label();
        a.mov(ecx, 3).unwrap();
        a.set_label(&mut again).unwrap();
        a.inc(rax).unwrap();
        a.dec(ecx).unwrap();
        a.jnz(again).unwrap();
        a.hlt().unwrap();
    });
    guest.run();
    let again = GuestAddress(CODE + 5);
    guest.machine.set_breakpoint(again);
    guest.machine.set_breakpoint(again);
    guest.vcpu.set_rip(GuestAddress(CODE));
    for pass in 0..3 {
        assert_eq!(guest.vcpu.run(None), Exit::Breakpoint);
        assert_eq!((guest.vcpu.rip(), guest.vcpu.gpr(RAX)), (again, 3 + pass));
    }
    assert_eq!(guest.vcpu.run(None), Exit::Halt);
    assert!(guest.machine.clear_breakpoint(again));
    assert!(!guest.machine.clear_breakpoint(again));
    guest.run();
}

#[test]
fn a_breakpoint_at_a_jump_to_itself_and_at_a_long_string_instruction() {
    let mut guest = guest(|a| {
        a.rep().lodsb().unwrap();
        a.hlt().unwrap();
    });
    guest.machine.set_breakpoint(GuestAddress(CODE));
    guest.machine.hook_memory(GuestAddress(DATA).., |_| {}).unwrap();
    guest.vcpu.set_gpr(RSI, DATA);
    guest.vcpu.set_gpr(RCX, 0x4000);
    guest.run();
    assert_eq!(guest.vcpu.gpr(RCX), 0);
    let here = GuestAddress(CODE);
    guest.machine.write(here, &[0xeb, 0xfe]).unwrap();
    guest.vcpu.set_rip(here);
    for _ in 0..3 {
        assert_eq!((guest.vcpu.run(None), guest.vcpu.rip()), (Exit::Breakpoint, here));
    }
}

/// Asks a vCPU in an endless loop to leave, again and again. One that does not leave fails the test by an
/// abort: nothing else ends its thread.
fn kicked(mut guest: Guest, times: u32) -> Guest {
    guest.vcpu.set_rip(GuestAddress(CODE));
    for round in 0..times {
        let kick = guest.vcpu.kick();
        let (left, has_left) = channel();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(Duration::from_micros(u64::from(round % 7) * 100));
                kick.ask();
                if has_left.recv_timeout(Duration::from_secs(5)).is_err() {
                    eprintln!("round {round}: the guest runs on after a request to leave");
                    std::process::abort();
                }
            });
            let exit = guest.vcpu.run(None);
            left.send(()).unwrap();
            assert_eq!(exit, Exit::Requested);
        });
    }
    guest
}

/// A repeated instruction that takes long is left between two iterations, and goes on from there.
#[test]
fn a_request_ends_repeated_instructions() {
    const BIG: u64 = 0x1000_0000;
    const PAGES: u64 = 0x1_0000;
    let bytes = PAGES * 0x1000;
    let mut guest = guest(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again).unwrap();
        a.mov(rdi, BIG).unwrap();
        a.mov(rcx, bytes).unwrap();
        a.rep().stosb().unwrap();
        a.jmp(again).unwrap();
    });
    guest.machine.map(range(BIG, PAGES), Permissions::ReadWrite).unwrap();
    let mut in_the_middle = 0;
    for round in 0..20 {
        guest.vcpu.set_gpr(RAX, round);
        let kick = guest.vcpu.kick();
        let asker = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(5));
            kick.ask();
        });
        assert_eq!(guest.vcpu.run(None), Exit::Requested);
        asker.join().unwrap();
        let (left, at) = (guest.vcpu.gpr(RCX), guest.vcpu.gpr(RDI));
        if left != 0 && left != bytes {
            in_the_middle += 1;
            assert_eq!(at, BIG + bytes - left);
            let mut around = [0; 2];
            guest.machine.read(GuestAddress(at - 1), &mut around).unwrap();
            assert_eq!(u64::from(around[0]), round, "the iteration before it is done");
        }
    }
    assert!(in_the_middle > 0, "repeated instructions are left at their end only");
}

#[test]
fn a_request_ends_endless_loops() {
    kicked(guest(|a| a.jmp(CODE).unwrap()), 300);
    let counter = kicked(
        guest(|a| {
            a.inc(rax).unwrap();
            a.jmp(CODE).unwrap();
        }),
        50,
    );
    assert!(counter.vcpu.gpr(RAX) > 0);
    // A block that is a loop of its own.
    kicked(
        guest(|a| {
            a.inc(rax).unwrap();
            a.test(rax, rax).unwrap();
            a.jnz(CODE).unwrap();
        }),
        50,
    );
    kicked(
        guest(|a| {
            let (mut one, mut two) = (a.create_label(), a.create_label());
            a.set_label(&mut one).unwrap();
            a.jmp(two).unwrap();
            a.nops_with_size(100).unwrap();
            a.set_label(&mut two).unwrap();
            a.jmp(one).unwrap();
        }),
        50,
    );
    kicked(
        guest(|a| {
            a.mov(rax, CODE).unwrap();
            a.jmp(rax).unwrap();
        }),
        50,
    );
    kicked(
        guest(|a| {
            a.call(CODE + 8).unwrap();
            a.nops_with_size(3).unwrap();
            a.add(iced_x86::code_asm::rsp, 8).unwrap();
            a.jmp(CODE).unwrap();
        }),
        50,
    );
}

#[test]
fn a_request_ends_a_loop_across_pages_and_one_that_is_single_stepped() {
    let mut far = guest(|a| a.jmp(CODE + 0x1000).unwrap());
    far.machine
        .write(
            GuestAddress(CODE + 0x1000),
            &assemble(CODE + 0x1000, |a| {
                a.jmp(CODE).unwrap();
            }),
        )
        .unwrap();
    far = kicked(far, 50);
    far.machine.hook_code(.., |_| {}).unwrap();
    kicked(far, 10);
}

#[test]
fn a_request_ends_a_long_string_instruction_at_one_of_its_iterations() {
    let mut guest = guest(|a| {
        // With 32-bit addresses.
        a.db(&[0x67, 0xf3, 0xac]).unwrap();
        a.hlt().unwrap();
    });
    guest.machine.map(range(0x1000_0000, 0x1_0000), Permissions::ReadWrite).unwrap();
    guest.vcpu.set_gpr(RSI, 0x1000_0000);
    guest.vcpu.set_gpr(RCX, 0x1000_0000);
    let guest = kicked(guest, 3);
    let done = guest.vcpu.gpr(RSI) - 0x1000_0000;
    assert_eq!((guest.vcpu.gpr(RCX), guest.vcpu.rip().0), (0x1000_0000 - done, CODE));
    assert!(done > 0);
}

#[test]
fn a_request_ends_a_loop_whose_code_checks_itself() {
    let guest = guest(|a| {
        let mut patched = a.create_label();
        a.lea(rdi, dword_ptr(patched)).unwrap();
        let mut again = a.create_label();
        a.set_label(&mut again).unwrap();
        a.inc(ecx).unwrap();
        a.mov(dword_ptr(rdi + 1), ecx).unwrap();
        a.set_label(&mut patched).unwrap();
        a.mov(eax, 0).unwrap();
        a.jmp(again).unwrap();
    });
    let guest = kicked(guest, 50);
    assert!(guest.vcpu.gpr(RCX) > 10);
}

#[test]
fn a_request_made_before_a_run_ends_it_and_only_it() {
    let mut guest = guest(|a| a.hlt().unwrap());
    let kick = guest.vcpu.kick();
    kick.ask();
    kick.ask();
    assert_eq!(guest.vcpu.run(None), Exit::Requested);
    assert_eq!(guest.vcpu.run(None), Exit::Halt);
    drop(guest);
    kick.ask();
}

#[test]
fn requests_are_neither_lost_nor_left_over() {
    let mut guest = guest(|a| {
        let mut again = a.create_label();
        a.jmp(CODE).unwrap();
        a.mov(ecx, 3).unwrap();
        a.set_label(&mut again).unwrap();
        a.dec(ecx).unwrap();
        a.jnz(again).unwrap();
        a.hlt().unwrap();
    });
    // Stepped, the endless loop looks for requests all the time: half of one is seen now and then.
    guest.machine.hook_code(GuestAddress(CODE)..GuestAddress(CODE + 2), |_| {}).unwrap();
    let kick = guest.vcpu.kick();
    let (ask, asked) = std::sync::mpsc::channel::<u32>();
    let (done, granted) = std::sync::mpsc::channel();
    let asker = std::thread::spawn(move || {
        // A vCPU that makes nothing of a request is asked once more, and the test fails.
        while let Ok(round) = asked.recv_timeout(Duration::from_secs(30)) {
            (0..round % 40 * 20).for_each(|_| std::hint::spin_loop());
            kick.ask();
            done.send(()).unwrap();
        }
        kick.ask();
    });
    for round in 0..5000 {
        ask.send(round).unwrap();
        guest.vcpu.set_rip(GuestAddress(CODE));
        assert_eq!(guest.vcpu.run(None), Exit::Requested);
        granted.recv().unwrap();
        guest.vcpu.set_rip(GuestAddress(CODE + 2));
        assert_eq!(guest.vcpu.run(None), Exit::Halt, "nothing is left of the request");
    }
    drop(ask);
    asker.join().unwrap();
}

#[test]
fn two_machines_take_turns_in_one_thread() {
    let mut pair = [guest(busy), guest(busy)];
    let mut alone = guest(busy);
    alone.vcpu.set_gpr(RAX, 5);
    alone.run();
    pair[1].vcpu.set_gpr(RAX, 5);
    let mut exits = [Exit::Budget, Exit::Budget];
    while exits.contains(&Exit::Budget) {
        for (guest, exit) in pair.iter_mut().zip(&mut exits) {
            if *exit == Exit::Budget {
                *exit = guest.vcpu.run(Some(777));
            }
        }
    }
    assert_eq!(exits, [Exit::Halt, Exit::Halt]);
    assert_eq!(pair[1].vcpu.state(), alone.vcpu.state());
    assert_ne!(pair[0].vcpu.state().gpr[8], alone.vcpu.state().gpr[8]);
}

#[test]
fn a_vcpu_moves_between_threads() {
    fn is_send<T: Send>() {}
    fn is_shared<T: Send + Sync + Clone>() {}
    is_send::<Vcpu>();
    is_shared::<Machine>();
    let mut alone = guest(busy);
    alone.run();
    let Guest { machine, mut vcpu, .. } = guest(busy);
    let mut exit = Exit::Budget;
    while exit == Exit::Budget {
        let thread = std::thread::spawn(move || {
            let exit = vcpu.run(Some(3333));
            (exit, vcpu)
        });
        (exit, vcpu) = thread.join().unwrap();
    }
    assert_eq!((exit, vcpu.state() == alone.vcpu.state()), (Exit::Halt, true));
    drop(machine);
}

#[test]
fn machines_run_side_by_side_and_a_machines_vcpus_wait_for_each_other() {
    let mut alone = guest(busy);
    alone.run();
    let expected = alone.vcpu.state();
    let shared = guest(busy);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut own = guest(busy);
                own.run();
                assert_eq!(own.vcpu.state(), expected);
            });
        }
        for number in 0..2 {
            let mut vcpu = shared.machine.vcpu().unwrap();
            let (mut start, mut expected) = (shared.vcpu.state(), expected.clone());
            // To each its own stack.
            start.gpr[RSP] -= 0x400 * number;
            expected.gpr[RSP] -= 0x400 * number;
            scope.spawn(move || {
                vcpu.set_state(&start);
                while vcpu.run(Some(5000 + number)) == Exit::Budget {}
                assert_eq!(vcpu.state(), expected);
            });
        }
    });
}

#[test]
fn bad_use_is_refused_with_range_and_reason() {
    let guest = guest(|a| a.hlt().unwrap());
    let machine = &guest.machine;
    assert!(matches!(Machine::new(31), Err(MachineError::Memory(MapError::WindowBits(31)))));
    let code = range(CODE, 1);
    let error = machine.map(code, Permissions::Read).unwrap_err();
    assert!(
        matches!(error, MapError::Overlap { range, with } if range == code && with.covers(code))
    );
    let beyond = range(CODE + 0x1000, 2);
    for error in [
        machine.unmap(beyond).unwrap_err(),
        machine.protect(beyond, Permissions::Read).unwrap_err(),
        machine.alias(beyond, GuestAddress(0)).unwrap_err(),
        machine.remap(beyond, GuestAddress(0)).unwrap_err(),
    ] {
        let hole = GuestAddress(CODE + 0x2000);
        assert!(
            matches!(error, MapError::NotMapped { range, at } if range == beyond && at == hole),
            "{error}"
        );
        assert!(error.to_string().contains("0x402000"), "{error}");
    }
    let error = machine.alias(code, GuestAddress(5)).unwrap_err();
    assert!(matches!(error, MapError::Range(RangeError::StartUnaligned(GuestAddress(5)))));
    let window_end = 1 << 40;
    let error = machine.map(range(window_end - 0x1000, 2), Permissions::Read).unwrap_err();
    assert!(matches!(error, MapError::StraddlesWindow { end, .. } if end == window_end));
    let backing = Backing::new("test", 0x1000).unwrap();
    let error = machine.map_shared(range(0, 1), &backing, 0x1000, Permissions::Read).unwrap_err();
    assert!(matches!(error, MapError::OutsideBacking { .. }));
    let error = machine.read(GuestAddress(DATA + 0x3fff), &mut [0; 2]).unwrap_err();
    assert_eq!(error.address, GuestAddress(DATA + 0x4000));
    assert!(machine.write(GuestAddress(CODE - 1), &[0; 2]).is_err());
    let foreign = Machine::new(32).unwrap().snapshot().unwrap();
    assert!(matches!(machine.restore(&foreign), Err(MapError::ForeignSnapshot)));
    assert_eq!(guest.vcpu.gpr(RBX) + guest.vcpu.gpr(RDI), 0);
}
