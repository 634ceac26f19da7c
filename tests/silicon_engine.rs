//! The silicon engine: what it reports for each kind of stop, what it carries in and out, and what it
//! survives.
#![allow(clippy::unwrap_used, reason = "a test fails where its helper does")]

mod common;

use common::{CODE, DATA, STACK, case, case_of_bytes, mapping, range};
use iced_x86::code_asm::*;
use tregion::case::{
    Action, Case, Event, ExceptionVector, Loss, Object, Outcome, PageChange, Stop, Trigger,
};
use tregion::engine::Engine;
use tregion::engine::silicon::Silicon;
use tregion::guest::{
    F80, Flag, GuestAddress, HostFeatures, Permissions, RFLAGS_USER, State, Vendor, X87,
};

fn run(case: &Case) -> Outcome {
    Silicon::new().unwrap().run(case).unwrap()
}

fn exception(vector: ExceptionVector, error: u32) -> Stop {
    Stop::Exception { vector, error: Some(error), address: None }
}

fn page_fault(error: u32, address: u64) -> Stop {
    Stop::Exception { vector: ExceptionVector::PF, error: Some(error), address: Some(address) }
}

fn halting() -> Case {
    case(|a| a.hlt().unwrap())
}

fn endless() -> Case {
    case_of_bytes(&[0xeb, 0xfe])
}

#[test]
fn halt_is_behind_the_instruction_and_memory_is_seen() {
    let outcome = run(&case(|a| {
        a.inc(rax).unwrap();
        a.push(rax).unwrap();
        a.hlt().unwrap();
    }));
    assert_eq!((outcome.stop, outcome.state.rip), (Stop::Halt, CODE + 5));
    assert_eq!(outcome.state.gpr[4], STACK + 0x7f8);
    let [PageChange { object, page: 0, contents }] = &outcome.memory[..] else {
        panic!("one page changed: {:?}", outcome.memory.len())
    };
    assert_eq!((object.0, contents[0x7f8]), (2, 1));
}

#[test]
fn the_whole_state_goes_in_and_comes_out() {
    let mut engine = Silicon::new().unwrap();
    let visible = engine.capabilities().visible;
    let mut start = halting();
    let state = &mut start.state;
    state.gpr = std::array::from_fn(|index| 0x1111_1111_1111_1111 * index as u64 + 5);
    state.rflags |= RFLAGS_USER & !Flag::TF.mask();
    (state.fs_base, state.gs_base) = (0x7fff_1234_5000, 0xffff_8000_0000_0000);
    state.mxcsr = 0x1fa5;
    for vector in &mut state.vector[..visible.vector_registers] {
        vector[..visible.vector_bytes / 8].fill(0x0123_4567_89ab_cdef);
    }
    if visible.opmask {
        state.opmask = std::array::from_fn(|index| u64::MAX >> index);
    }
    state.x87 = X87 {
        control: 0x0c7f,
        status: 0x3800,
        tag: 0x83,
        opcode: 0x123,
        instruction_pointer: 0x40_1234,
        data_pointer: 0x50_0008,
        st: std::array::from_fn(|index| F80 {
            significand: 1 << 63 | index as u64,
            sign_exponent: 0xc000,
        }),
    };
    let outcome = engine.run(&start).unwrap();
    assert_eq!(outcome.stop, Stop::Halt);
    let mut expected = State { rip: CODE + 1, ..start.state.clone() };
    if HostFeatures::detect().vendor() == Vendor::Amd {
        // Saved only while an exception is pending.
        let lost = X87 { opcode: 0, instruction_pointer: 0, data_pointer: 0, ..expected.x87 };
        expected.x87 = lost;
    }
    assert_eq!(outcome.state, expected);
    // And nothing of it stays behind.
    assert_eq!(engine.run(&halting()).unwrap().state, State { rip: CODE + 1, ..halting().state });
}

#[test]
fn page_faults_tell_access_presence_and_address() {
    let read = run(&case(|a| a.mov(eax, dword_ptr(0x70_0010)).unwrap()));
    assert_eq!((read.stop, read.state.rip), (page_fault(4, 0x70_0010), CODE));
    let write = run(&case(|a| a.mov(dword_ptr(0x70_0010), eax).unwrap()));
    assert_eq!(write.stop, page_fault(6, 0x70_0010));
    let mut protected = case(|a| a.mov(dword_ptr(DATA), eax).unwrap());
    protected.mappings[1].permissions = Permissions::Read;
    assert_eq!(run(&protected).stop, page_fault(7, DATA));
    protected.mappings[1].permissions = Permissions::None;
    assert_eq!(run(&protected).stop, page_fault(6, DATA));
    let fetch = run(&case(|a| a.jmp(DATA).unwrap()));
    assert_eq!((fetch.stop, fetch.state.rip), (page_fault(0x15, DATA), DATA));
    let crossing = run(&case(|a| a.mov(rax, qword_ptr(DATA + 0x1ffc)).unwrap()));
    assert_eq!(crossing.stop, page_fault(4, DATA + 0x2000));
}

#[test]
fn other_exceptions() {
    let stop_of = |code: &[u8]| run(&case_of_bytes(code));
    let divide = stop_of(&[0xf7, 0xf1]);
    assert_eq!((divide.stop, divide.state.rip), (exception(ExceptionVector::DE, 0), CODE));
    assert_eq!(stop_of(&[0x0f, 0x0b]).stop, exception(ExceptionVector::UD, 0));
    let breakpoint = stop_of(&[0xcc]);
    assert_eq!(
        (breakpoint.stop, breakpoint.state.rip),
        (exception(ExceptionVector::BP, 0), CODE + 1)
    );
    assert_eq!(stop_of(&[0xf1]).stop, exception(ExceptionVector::DB, 0));
    // int 33: not a gate for user code.
    assert_eq!(stop_of(&[0xcd, 0x21]).stop, exception(ExceptionVector::GP, 0x21 * 8 + 2));
    let mut wild = case(|a| a.mov(rax, qword_ptr(rbx)).unwrap());
    wild.state.gpr[3] = 1 << 63;
    assert_eq!(run(&wild).stop, exception(ExceptionVector::GP, 0));
    let mut wild = case(|a| a.mov(rax, qword_ptr(rbp)).unwrap());
    wild.state.gpr[5] = 1 << 63;
    assert_eq!(run(&wild).stop, exception(ExceptionVector::SS, 0));
    let mut misaligned = case(|a| a.mov(eax, dword_ptr(DATA + 1)).unwrap());
    misaligned.state.rflags |= Flag::AC.mask();
    assert_eq!(run(&misaligned).stop, exception(ExceptionVector::AC, 0));
    let mut unmasked = case(|a| a.divss(xmm0, xmm1).unwrap());
    unmasked.state.mxcsr = 0;
    assert_eq!(run(&unmasked).stop, exception(ExceptionVector::XM, 0));
    let mut trapped = case(|a| {
        a.nop().unwrap();
        a.hlt().unwrap();
    });
    trapped.state.rflags |= Flag::TF.mask();
    let outcome = run(&trapped);
    assert_eq!((outcome.stop, outcome.state.rip), (exception(ExceptionVector::DB, 0), CODE + 1));
    assert_ne!(outcome.state.rflags & Flag::TF.mask(), 0);
}

#[test]
fn system_calls_do_not_reach_the_kernel() {
    let mut exit = case(|a| {
        a.mov(eax, libc::SYS_exit_group as u32).unwrap();
        a.syscall().unwrap();
    });
    exit.state.rflags |= Flag::CF.mask();
    let outcome = run(&exit);
    assert_eq!((outcome.stop, outcome.state.rip), (Stop::SystemCall, CODE + 7));
    assert_eq!(outcome.state.gpr[0], libc::SYS_exit_group as u64);
    assert_eq!(outcome.state.gpr[1], CODE + 7);
    assert_eq!(outcome.state.gpr[11], outcome.state.rflags);
    // Those that the stub itself may make are no exception.
    let unmap = run(&case(|a| {
        a.mov(eax, libc::SYS_munmap as u32).unwrap();
        a.syscall().unwrap();
    }));
    assert_eq!(unmap.stop, Stop::SystemCall);
    assert_eq!(run(&case_of_bytes(&[0xcd, 0x80])).stop, Stop::LegacySystemCall);
}

#[test]
fn a_runaway_is_stopped_and_the_next_case_runs() {
    let mut engine = Silicon::new().unwrap();
    assert_eq!(engine.run(&endless()).unwrap(), Outcome::inexact(Stop::TimeLimit, 0));
    assert_eq!(engine.run(&halting()).unwrap().stop, Stop::Halt);
}

#[test]
fn a_killed_child_is_told_and_replaced() {
    let mut engine = Silicon::new().unwrap();
    let child = engine.child_id().unwrap();
    let status =
        std::process::Command::new("kill").args(["-9", &child.to_string()]).status().unwrap();
    assert!(status.success());
    let lost = Outcome::inexact(Stop::Lost(Loss::Killed { signal: libc::SIGKILL }), 0);
    assert_eq!(engine.run(&halting()).unwrap(), lost);
    assert_eq!(engine.run(&halting()).unwrap().stop, Stop::Halt);
    assert_ne!(engine.child_id().unwrap(), child);
}

#[test]
fn writes_to_the_stub_are_told() {
    let mut engine = Silicon::new().unwrap();
    let span = engine.base().unwrap();
    let mut told = 0;
    for page in 0..span.size() / 0x1000 {
        let mut wild = case(|a| {
            a.mov(qword_ptr(rbx), rax).unwrap();
            a.hlt().unwrap();
        });
        wild.state.gpr[0] = 0x1234;
        wild.state.gpr[3] = engine.base().unwrap_or(span).start().0 + page * 0x1000 + 0x400;
        match engine.run(&wild).unwrap().stop {
            Stop::Lost(_) => told += 1,
            Stop::Exception { vector: ExceptionVector::PF, .. } => {}
            // Where the kernel then wrote its frame nothing can be told from the guest's write.
            Stop::Halt if page + 1 == span.size() / 0x1000 => {}
            stop => panic!("a write into page {page} of the stub ended with {stop}"),
        }
        assert_eq!(engine.run(&halting()).unwrap().stop, Stop::Halt);
    }
    // The control page and the pages of the signal stack that no frame reaches, which has all registers in it.
    assert!((2..=3).contains(&told), "{told} writes were told");
}

#[test]
fn the_stub_moves_out_of_the_way() {
    let mut engine = Silicon::new().unwrap();
    let start = engine.base().unwrap().start().0;
    let mut conflict = case(|a| {
        a.mov(qword_ptr(rbx), rax).unwrap();
        a.hlt().unwrap();
    });
    conflict.objects.push(Object::zeroed("there", 1));
    conflict.mappings.push(mapping(start + 0x1000, 1, 3, Permissions::ReadWrite));
    (conflict.state.gpr[0], conflict.state.gpr[3]) = (7, start + 0x1008);
    let outcome = engine.run(&conflict).unwrap();
    assert_eq!((outcome.stop, outcome.memory.len()), (Stop::Halt, 1));
    assert_ne!(engine.base().unwrap().start().0, start);
}

#[test]
fn pages_at_the_ends_of_the_address_space() {
    let mut top = case(|a| a.hlt().unwrap());
    top.mappings[1].range = range(0x7fff_ffff_d000, 2);
    assert_eq!(run(&top).stop, Stop::Halt);
    top.mappings[1].range = range(0x7fff_ffff_e000, 2);
    assert!(Silicon::new().unwrap().run(&top).is_err());
}

#[test]
fn events_between_legs() {
    let mut eventful = case(|a| {
        a.mov(eax, dword_ptr(DATA)).unwrap();
        a.hlt().unwrap();
        a.mov(ebx, dword_ptr(DATA)).unwrap();
        a.hlt().unwrap();
        a.mov(ecx, dword_ptr(0x70_0000)).unwrap();
        a.mov(dword_ptr(DATA), 9).unwrap();
        a.mov(edx, dword_ptr(0x70_0000)).unwrap();
        a.hlt().unwrap();
        a.mov(esi, dword_ptr(DATA)).unwrap();
        a.hlt().unwrap();
    });
    let at_halt = |actions| Event { trigger: Trigger::Halt, actions };
    let write = |value| Action::Write { address: GuestAddress(DATA), bytes: vec![value, 0, 0, 0] };
    let destination = GuestAddress(0x70_0000);
    eventful.events = vec![
        at_halt(vec![write(5)]),
        at_halt(vec![Action::Alias { source: range(DATA, 2), destination }, write(6)]),
        at_halt(vec![Action::Unmap(range(DATA, 2)), Action::ExitRequest]),
    ];
    eventful.validate().unwrap();
    let outcome = run(&eventful);
    assert_eq!(outcome.events_applied, 3);
    // RAX, RCX, RDX, RBX.
    assert_eq!(outcome.state.gpr[..4], [0, 6, 9, 5]);
    let Stop::Exception { address, .. } = outcome.stop else { panic!("{}", outcome.stop) };
    assert_eq!(address, Some(DATA));
}

#[test]
fn a_remapped_code_page_runs_its_new_contents() {
    let mut swapped = case(|a| {
        a.mov(eax, 1).unwrap();
        a.hlt().unwrap();
        a.jmp(CODE).unwrap();
    });
    let mut other = Object::zeroed("other", 1);
    other.contents[..6].copy_from_slice(&[0xb8, 2, 0, 0, 0, 0xf4]);
    swapped.objects.push(other);
    swapped.events = vec![Event {
        trigger: Trigger::Halt,
        actions: vec![
            Action::Unmap(range(CODE, 1)),
            Action::Map(mapping(CODE, 1, 3, Permissions::ReadExecute)),
            Action::Write { address: GuestAddress(CODE + 6), bytes: vec![0xeb, 0xf8] },
        ],
    }];
    swapped.validate().unwrap();
    let outcome = run(&swapped);
    assert_eq!((outcome.stop, outcome.state.gpr[0]), (Stop::Halt, 2));
}

#[test]
fn counts_breakpoints_and_limits() {
    let nops = || {
        case(|a| {
            for _ in 0..8 {
                a.inc(rax).unwrap();
            }
            a.hlt().unwrap();
        })
    };
    let after = |trigger| {
        let mut case = nops();
        case.events = vec![Event {
            trigger,
            actions: vec![Action::Write { address: GuestAddress(DATA), bytes: vec![1] }],
        }];
        case
    };
    let mut limited = nops();
    limited.limit = Some(3);
    let outcome = run(&limited);
    assert_eq!((outcome.stop, outcome.state.gpr[0]), (Stop::Limit, 3));
    assert_eq!(outcome.state.rflags & Flag::TF.mask(), 0);
    let mut counted = after(Trigger::Count(3));
    counted.limit = Some(5);
    let outcome = run(&counted);
    assert_eq!((outcome.stop, outcome.state.gpr[0], outcome.events_applied), (Stop::Limit, 5, 1));
    let mut stopped = after(Trigger::Breakpoint(GuestAddress(CODE + 6)));
    stopped.limit = Some(2);
    assert_eq!(run(&stopped).events_applied, 1);
    // A breakpoint on the first instruction is met only when it comes round again.
    let first = after(Trigger::Breakpoint(GuestAddress(CODE)));
    assert_eq!(run(&first).events_applied, 0);
}

#[test]
fn steps_leave_no_trace_and_repeated_strings_count_once() {
    let mut plain = case(|a| {
        a.pushfq().unwrap();
        a.mov(ecx, 5).unwrap();
        a.rep().stosb().unwrap();
        a.push(0x8d5).unwrap();
        a.popfq().unwrap();
        a.pushfq().unwrap();
        a.mov(eax, 1).unwrap();
        a.syscall().unwrap();
    });
    plain.state.gpr[7] = DATA;
    plain.state.gpr[0] = 0xaa;
    let mut engine = Silicon::new().unwrap();
    let whole = engine.run(&plain).unwrap();
    let trace = engine.trace(&plain, 100).unwrap();
    assert_eq!(trace.outcome, whole);
    assert_eq!(trace.steps.len(), 8);
    assert!(trace.steps.iter().all(|step| step.state.rflags & Flag::TF.mask() == 0));
    assert_eq!(engine.count(&plain).unwrap().0, whole);
}

#[test]
fn a_guest_that_sets_the_trap_flag_is_trapped_while_stepped() {
    let popf = case(|a| {
        a.push(0x302).unwrap();
        a.popfq().unwrap();
        a.nop().unwrap();
        a.hlt().unwrap();
    });
    let mut engine = Silicon::new().unwrap();
    let whole = engine.run(&popf).unwrap();
    assert_eq!(whole.stop, exception(ExceptionVector::DB, 0));
    assert_eq!(engine.trace(&popf, 100).unwrap().outcome, whole);
}

#[test]
fn many_mappings() {
    let mut many = halting();
    let extra =
        (0..300).map(|index| mapping(0x1_0000_0000 + index * 0x2000, 1, 1, Permissions::Read));
    many.mappings.extend(extra);
    many.validate().unwrap();
    let mut engine = Silicon::new().unwrap();
    assert_eq!(engine.run(&many).unwrap().stop, Stop::Halt);
    assert_eq!(engine.run(&halting()).unwrap().stop, Stop::Halt);
}
