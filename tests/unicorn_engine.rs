//! The engine `unicorn`: that it is Unicorn, that what the library says reaches an outcome
//! unchanged, and that nothing of a case is left for the next.
#![cfg(feature = "unicorn")]
#![allow(clippy::unwrap_used, reason = "a test fails where something is not there")]

use tregion::case::{
    Action, Case, Event, ExceptionVector, Mapping, Object, ObjectId, Outcome, Stop, Trigger,
};
use tregion::engine::Engine;
use tregion::engine::unicorn::{Filter, Unicorn};
use tregion::guest::{F80, Flag, GuestAddress, GuestRange, Permissions};

const CODE: u64 = 0x40_0000;
const DATA: u64 = 0x50_0000;
const STACK_TOP: u64 = 0x60_1000;
const RAX: usize = 0;
const RCX: usize = 1;
const RSP: usize = 4;
const RSI: usize = 6;
const RDI: usize = 7;

const HLT: u8 = 0xf4;
const INC_EAX: [u8; 2] = [0xff, 0xc0];

fn pages(start: u64, count: u64) -> GuestRange {
    GuestRange::new(GuestAddress(start), count * 0x1000).unwrap()
}

fn mapping(start: u64, count: u64, object: usize, permissions: Permissions) -> Mapping {
    Mapping { range: pages(start, count), object: ObjectId(object), offset: 0, permissions }
}

/// Two pages of code, one of data, one of stack.
fn program(code: &[u8]) -> Case {
    let mut case = Case {
        objects: vec![
            Object::zeroed("code", 2),
            Object::zeroed("data", 1),
            Object::zeroed("stack", 1),
        ],
        mappings: vec![
            mapping(CODE, 2, 0, Permissions::ReadWriteExecute),
            mapping(DATA, 1, 1, Permissions::ReadWrite),
            mapping(STACK_TOP - 0x1000, 1, 2, Permissions::ReadWrite),
        ],
        ..Case::default()
    };
    case.objects[0].contents[..code.len()].copy_from_slice(code);
    case.state.rip = CODE;
    case.state.gpr[RSP] = STACK_TOP;
    case
}

fn with_events(code: &[u8], events: Vec<(Trigger, Vec<Action>)>) -> Case {
    let event = |(trigger, actions)| Event { trigger, actions };
    Case { events: events.into_iter().map(event).collect(), ..program(code) }
}

fn run(case: &Case) -> Outcome {
    run_on(&mut Unicorn::new().unwrap(), case)
}

fn run_on(engine: &mut Unicorn, case: &Case) -> Outcome {
    case.validate().unwrap();
    engine.run(case).unwrap()
}

fn write(address: u64, bytes: &[u8]) -> Action {
    Action::Write { address: GuestAddress(address), bytes: bytes.to_vec() }
}

fn page_fault(error: u32, address: u64) -> Stop {
    Stop::Exception { vector: ExceptionVector::PF, error: Some(error), address: Some(address) }
}

fn exception(vector: ExceptionVector) -> Stop {
    Stop::Exception { vector, error: None, address: None }
}

fn code(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

#[test]
fn it_is_unicorn() {
    let mut engine = Unicorn::new().unwrap();
    assert_eq!(engine.version().split('.').next(), Some("Unicorn 2"));
    // blsi eax, ecx: Unicorn 2.1 inverts the carry (qemu#1370), which no processor does.
    let mut case = program(&[0xc4, 0xe2, 0x78, 0xf3, 0xd9, HLT]);
    case.state.gpr[RCX] = 12;
    let outcome = run_on(&mut engine, &case);
    assert_eq!((outcome.stop, outcome.state.gpr[RAX]), (Stop::Halt, 4));
    assert_eq!(outcome.state.rflags & Flag::CF.mask(), 0, "silicon sets CF");
    // vpxor xmm0, xmm1, xmm2 runs as pxor xmm0, xmm2.
    let mut case = program(&[0xc5, 0xf1, 0xef, 0xc2, HLT]);
    case.state.vector[0][0] = 0xf0;
    case.state.vector[1][0] = 0x0f;
    case.state.vector[2][0] = 0xff;
    assert_eq!(run_on(&mut engine, &case).state.vector[0][0], 0x0f, "silicon gives 0xf0");
}

/// The library is in this program and not one that the loader found under its name.
#[test]
fn the_library_is_linked_statically() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    assert!(!maps.contains("unicorn.so"));
    let executable = std::env::current_exe().unwrap();
    let address = Unicorn::library_address();
    let line = maps.lines().find(|line| {
        let (start, rest) = line.split_once('-').unwrap();
        let end = rest.split_once(' ').unwrap().0;
        let parse = |text| usize::from_str_radix(text, 16).unwrap();
        (parse(start)..parse(end)).contains(&address)
    });
    assert!(line.unwrap().contains(executable.file_name().unwrap().to_str().unwrap()));
}

#[test]
fn state_goes_in_and_comes_out() {
    let mut case = program(&[HLT]);
    let state = &mut case.state;
    for (index, register) in state.gpr.iter_mut().enumerate() {
        *register = 0x1111_0000_0000_0000 * index as u64 + 7;
    }
    state.rflags |= Flag::CF.mask() | Flag::DF.mask() | Flag::ID.mask() | Flag::AC.mask();
    state.fs_base = 0x7fff_1234_5000;
    state.gs_base = 0xffff_8000_0000_0000;
    state.mxcsr = 0x9fc0;
    state.x87.control = 0x0f7f;
    state.x87.status = 5 << 11 | 0x4700;
    state.x87.tag = 0b0110_0001;
    for (index, register) in state.x87.st.iter_mut().enumerate() {
        *register = F80 { significand: index as u64 | 1 << 63, sign_exponent: 0x3fff };
    }
    for (index, vector) in state.vector.iter_mut().enumerate() {
        *vector = [index as u64; 8];
    }
    let outcome = run(&case);
    let mut expected = case.state.clone();
    expected.rip = CODE + 1;
    assert_eq!(outcome.stop, Stop::Halt);
    assert_eq!(outcome.state, expected);
    assert_eq!(outcome.memory, []);
}

#[test]
fn the_guest_sees_x87_registers_relative_to_the_top() {
    // fxch st(1); fstp qword [rdi]
    let mut case = program(&[0xd9, 0xc9, 0xdd, 0x1f, HLT]);
    case.state.gpr[RDI] = DATA;
    case.state.x87.status = 6 << 11;
    case.state.x87.tag = 0b1100_0000;
    case.state.x87.st[0] = F80 { significand: 1 << 63, sign_exponent: 0x3fff };
    case.state.x87.st[1] = F80 { significand: 1 << 63, sign_exponent: 0x4000 };
    let outcome = run(&case);
    assert_eq!(outcome.memory[0].contents[..8], 2.0_f64.to_le_bytes());
    assert_eq!(outcome.state.x87.top(), 7);
    assert_eq!(outcome.state.x87.tag, 0b1000_0000);
    assert_eq!(outcome.state.x87.st[0].sign_exponent, 0x3fff);
}

#[test]
fn guests_run_in_user_mode() {
    for privileged in [&[0xfa_u8][..], &[0x0f, 0x20, 0xd8], &[0x0f, 0x30]] {
        let outcome = run(&program(privileged));
        assert_eq!(outcome.stop, exception(ExceptionVector::GP), "{privileged:x?}");
        assert_eq!(outcome.state.rip, CODE);
    }
    // mov eax, cs; mov ecx, ss; popfq with IF and IOPL clear keeps IF.
    let outcome = run(&program(&[0x8c, 0xc8, 0x8c, 0xd1, 0x6a, 0x02, 0x9d, HLT]));
    assert_eq!((outcome.state.gpr[RAX], outcome.state.gpr[RCX]), (0x33, 0x2b));
    assert_eq!(outcome.state.rflags, 0x202);
}

#[test]
fn page_faults() {
    let load = [0x8b, 0x06]; // mov eax, [rsi]
    let store = [0x89, 0x06]; // mov [rsi], eax
    let jump = [0xff, 0xe6]; // jmp rsi
    let cases: [(&[u8], Permissions, u32); 6] = [
        (&load, Permissions::None, 0b100),
        (&store, Permissions::None, 0b110),
        (&jump, Permissions::None, 0b1_0100),
        (&store, Permissions::Read, 0b111),
        (&store, Permissions::ReadExecute, 0b111),
        (&jump, Permissions::ReadWrite, 0b1_0101),
    ];
    for (instruction, permissions, error) in cases {
        let mut case = program(instruction);
        case.mappings[1].permissions = permissions;
        case.state.gpr[RSI] = DATA + 8;
        let outcome = run(&case);
        assert_eq!(outcome.stop, page_fault(error, DATA + 8), "{instruction:x?} {permissions}");
        let fetch = instruction == jump;
        assert_eq!(outcome.state.rip, if fetch { DATA + 8 } else { CODE });
    }
    for address in [0x1000_u64, 0x10_0000_0050_0000, 0xffff_8000_0050_0000] {
        let mut case = program(&load);
        case.state.gpr[RSI] = address;
        assert_eq!(run(&case).stop, page_fault(0b100, address));
    }
}

/// Unicorn reports such a fault before it runs the block that leads there.
#[test]
fn running_off_a_page_is_a_fault_behind_its_last_instruction() {
    let end = CODE + 0x2000;
    let fault = page_fault(0b1_0100, end);
    for increments in [1, 2, 7, 8, 20, 300] {
        // The last may be whole, or cut off: the first bytes of a `mov eax, imm32`.
        for (cut, rip) in [(&[][..], end), (&[0xb8], end - 1), (&[0xb8, 1, 2, 3], end - 4)] {
            let mut case = program(&[]);
            let start = 0x2000 - 2 * increments - cut.len();
            let text = code(&[&INC_EAX.repeat(increments), cut]);
            case.objects[0].contents[start..].copy_from_slice(&text);
            case.state.rip = CODE + start as u64;
            for limit in [None, Some(10_000)] {
                let outcome = run(&Case { limit, ..case.clone() });
                assert_eq!((outcome.stop, outcome.state.rip), (fault, rip));
                assert_eq!(outcome.state.gpr[RAX], increments as u64);
            }
            let outcome = run(&Case { limit: Some(increments as u64), ..case.clone() });
            assert_eq!((outcome.stop, outcome.state.rip), (Stop::Limit, rip));
            case.events
                .push(Event { trigger: Trigger::Breakpoint(GuestAddress(rip)), actions: vec![] });
            assert_eq!(run(&case).events_applied, 1);
        }
    }
}

#[test]
fn exceptions_and_system_calls() {
    let ud = run(&program(&[0x0f, 0x0b]));
    assert_eq!((ud.stop, ud.state.rip), (exception(ExceptionVector::UD), CODE));
    let de = run(&program(&[0x90, 0xf7, 0xf0]));
    assert_eq!((de.stop, de.state.rip), (exception(ExceptionVector::DE), CODE + 1));
    let bp = run(&program(&[0xcc]));
    assert_eq!((bp.stop, bp.state.rip), (exception(ExceptionVector::BP), CODE + 1));
    let legacy = run(&program(&[0xcd, 0x80]));
    assert_eq!((legacy.stop, legacy.state.rip), (Stop::LegacySystemCall, CODE + 2));
    let call = run(&program(&[0x31, 0xc0, 0x0f, 0x05, HLT])); // xor eax, eax; syscall
    assert_eq!((call.stop, call.state.rip), (Stop::SystemCall, CODE + 4));
    assert_eq!(call.state.gpr[RCX], CODE + 4);
    assert_eq!(call.state.gpr[11], 0x246);
    let mut stepping = program(&[0x90, 0x90, HLT]);
    stepping.state.rflags |= Flag::TF.mask();
    let db = run(&stepping);
    assert_eq!((db.stop, db.state.rip), (exception(ExceptionVector::DB), CODE + 1));
}

#[test]
fn a_halt_with_prefixes_is_a_halt() {
    let outcome = run(&program(&[0x66, 0x48, HLT]));
    assert_eq!((outcome.stop, outcome.state.rip), (Stop::Halt, CODE + 3));
}

/// Faults in a row within one case: Unicorn keeps the one in flight and would make a double fault.
#[test]
fn legs_do_not_see_the_faults_before() {
    let halts = code(&[&[HLT; 4], &[0xf7, 0xf1]]);
    let events = vec![(Trigger::Halt, vec![]); 4];
    let outcome = run(&with_events(&halts, events));
    assert_eq!((outcome.stop, outcome.events_applied), (exception(ExceptionVector::DE), 4));
}

#[test]
fn counts_breakpoints_and_limits() {
    let count = |number| (Trigger::Count(number), vec![Action::ExitRequest]);
    let increments = code(&[&INC_EAX, &INC_EAX, &INC_EAX, &INC_EAX, &[HLT]]);
    let outcome = run(&with_events(&increments, vec![count(2), count(5)]));
    assert_eq!((outcome.stop, outcome.events_applied), (Stop::Halt, 1));
    let limited = Case { limit: Some(3), ..with_events(&increments, vec![count(2), count(5)]) };
    let outcome = run(&limited);
    assert_eq!((outcome.stop, outcome.events_applied), (Stop::Limit, 1));
    assert_eq!((outcome.state.gpr[RAX], outcome.state.rip), (3, CODE + 6));
    let tied = Case { limit: Some(2), ..with_events(&increments, vec![count(2)]) };
    let outcome = run(&tied);
    assert_eq!((outcome.stop, outcome.events_applied), (Stop::Limit, 1));
    // A count that is full when the next instruction cannot be fetched.
    let to_nowhere = with_events(&[0xff, 0xe6], vec![count(1)]);
    let outcome = run(&to_nowhere);
    assert_eq!((outcome.stop, outcome.events_applied), (page_fault(0b1_0100, 0), 1));
    // inc eax; jmp -4, broken at its start, where each leg begins.
    let spin = code(&[&INC_EAX, &[0xeb, 0xfc]]);
    let here = (Trigger::Breakpoint(GuestAddress(CODE)), vec![]);
    let outcome = run(&Case { limit: Some(10), ..with_events(&spin, vec![here; 3]) });
    assert_eq!((outcome.stop, outcome.events_applied), (Stop::Limit, 3));
    assert_eq!(outcome.state.gpr[RAX], 5);
}

#[test]
fn a_repeated_string_instruction_counts_once() {
    for iterations in [0, 1, 7, 4096] {
        // rep stosb; inc eax; inc eax
        let mut case = program(&[0xf3, 0xaa, 0xff, 0xc0, 0xff, 0xc0]);
        case.state.gpr[RDI] = DATA;
        case.state.gpr[RCX] = iterations;
        case.limit = Some(2);
        let outcome = run(&case);
        assert_eq!((outcome.stop, outcome.state.rip), (Stop::Limit, CODE + 4));
        assert_eq!((outcome.state.gpr[RCX], outcome.state.gpr[RDI]), (0, DATA + iterations));
    }
}

#[test]
fn host_writes_to_code_are_seen() {
    let loops = code(&[&INC_EAX, &[HLT, 0xeb, 0xfb]]); // inc eax; hlt; jmp to the start
    let dec = write(CODE, &[0xff, 0xc8]);
    let case = with_events(&loops, vec![(Trigger::Halt, vec![]), (Trigger::Halt, vec![dec])]);
    let outcome = run(&case);
    assert_eq!((outcome.stop, outcome.state.gpr[RAX]), (Stop::Halt, 1));
    assert_eq!(outcome.memory.len(), 1);
}

#[test]
fn map_changes_move_code_and_data() {
    let elsewhere = 0x7fff_0000_0000_u64;
    let actions = vec![
        Action::Remap { source: pages(DATA, 1), destination: GuestAddress(elsewhere) },
        Action::Protect { range: pages(elsewhere, 1), permissions: Permissions::Read },
        Action::Alias { source: pages(CODE, 1), destination: GuestAddress(DATA) },
    ];
    // hlt; mov eax, [rsi]; jmp rdi; (at 5) mov [rsi], eax
    let text = [HLT, 0x8b, 0x06, 0xff, 0xe7, 0x89, 0x06];
    let mut case = with_events(&text, vec![(Trigger::Halt, actions)]);
    case.objects[1].contents[8] = 77;
    case.state.gpr[RSI] = elsewhere + 8;
    case.state.gpr[RDI] = DATA + 5;
    let outcome = run(&case);
    assert_eq!(outcome.stop, page_fault(0b111, elsewhere + 8));
    assert_eq!((outcome.state.rip, outcome.state.gpr[RAX]), (DATA + 5, 77));
}

/// Silicon snoops by physical address, so the change is seen by the very next instruction.
#[test]
fn code_written_under_another_address_runs_as_written() {
    // mov byte [rsi+3], 0xc8; inc eax (becomes dec eax); hlt
    let text = code(&[&[0xc6, 0x46, 0x05, 0xc8], &INC_EAX, &[HLT]]);
    let mut case = program(&text);
    case.mappings[0].permissions = Permissions::ReadExecute;
    case.mappings.push(mapping(0x70_0000, 2, 0, Permissions::ReadWrite));
    case.state.gpr[RSI] = 0x70_0000;
    let outcome = run(&case);
    assert_eq!((outcome.stop, outcome.state.gpr[RAX]), (Stop::Halt, u64::from(u32::MAX)));
    // And with a block that has run before: the loop's second pass sees the change of its first.
    // inc eax; mov byte [rsi+1], 0xc8; dec ecx; jnz to the start; hlt
    let text = [0xff, 0xc0, 0xc6, 0x46, 0x01, 0xc8, 0xff, 0xc9, 0x75, 0xf6, HLT];
    let mut case = Case { objects: program(&text).objects, ..case };
    case.state.gpr[RCX] = 3;
    assert_eq!(run(&case).state.gpr[RAX], u64::from(u32::MAX));
    case.limit = Some(9);
    let outcome = run(&case);
    assert_eq!((outcome.stop, outcome.state.rip), (Stop::Limit, CODE + 2));
}

/// Unicorn begins such a store anew, in a block of its own; that is one instruction all the same.
#[test]
fn a_store_to_its_own_block_counts_once() {
    // mov byte [rsi+5], 0xc8; inc eax (becomes dec eax); nop; nop; hlt
    let text = code(&[&[0xc6, 0x46, 0x05, 0xc8], &INC_EAX, &[0x90, 0x90, HLT]]);
    for (limit, rip) in [(1, CODE + 4), (2, CODE + 6), (3, CODE + 7)] {
        let mut case = Case { limit: Some(limit), ..program(&text) };
        case.state.gpr[RSI] = CODE;
        let outcome = run(&case);
        assert_eq!((outcome.stop, outcome.state.rip), (Stop::Limit, rip));
        let expected = if limit == 1 { 0 } else { u64::from(u32::MAX) };
        assert_eq!(outcome.state.gpr[RAX], expected);
    }
}

#[test]
fn a_guest_that_runs_on_is_stopped_and_the_next_is_not() {
    let mut engine = Unicorn::new().unwrap();
    let spin = program(&[0xeb, 0xfe]);
    engine.set_time_limit(std::time::Duration::from_millis(30));
    let good = program(&code(&[&INC_EAX, &[HLT]]));
    for limit in [None, Some(u64::MAX)] {
        let outcome = run_on(&mut engine, &Case { limit, ..spin.clone() });
        assert_eq!(outcome, Outcome::inexact(Stop::TimeLimit, 0));
        for _ in 0..100 {
            assert_eq!(run_on(&mut engine, &good).stop, Stop::Halt);
        }
    }
}

#[test]
fn what_it_lacks_is_refused_unless_asked_for() {
    let wide = program(&[0xc5, 0xfc, 0x58, 0xc1, HLT]); // vaddps ymm0, ymm0, ymm1
    let refusal = Unicorn::new().unwrap().run(&wide).unwrap_err();
    assert_eq!(refusal.what, "256-bit VEX");
    let outcome = run_on(&mut Unicorn::new().unwrap().with_filter(Filter::Nothing), &wide);
    assert_eq!(outcome.stop, exception(ExceptionVector::UD));
    let event = (Trigger::Halt, vec![write(CODE + 1, &[0x62, 0xf1, 0x7c, 0x48, 0x58, 0xc1])]);
    assert!(Unicorn::new().unwrap().run(&with_events(&[HLT], vec![event])).is_err());
}

#[test]
fn other_code_at_the_same_address_is_run_each_time() {
    let mut engine = Unicorn::new().unwrap();
    for value in 0..2000_u32 {
        // mov eax, value: the entry is the same, what follows is not.
        let first = code(&[&[0x90, 0xb8], &value.to_le_bytes(), &[HLT]]);
        // The same on the second page, and straddling the two.
        let second = code(&[&[0xb8], &(!value).to_le_bytes(), &[HLT]]);
        for offset in [0x1000 - 3, 0x1800] {
            let mut case = program(&first);
            let jump = (offset as i32 - 11).to_le_bytes();
            case.objects[0].contents[6..11].copy_from_slice(&code(&[&[0xe9], &jump]));
            case.objects[0].contents[offset..offset + 6].copy_from_slice(&second);
            let outcome = run_on(&mut engine, &case);
            assert_eq!(outcome.state.gpr[RAX], u64::from(!value));
        }
        assert_eq!(run_on(&mut engine, &program(&first)).state.gpr[RAX], u64::from(value));
    }
}

/// Cases that leave an engine in every bad state that is known.
fn nasty_cases() -> Vec<Case> {
    let halt = |actions| vec![(Trigger::Halt, actions)];
    let mut cases: Vec<Case> = [
        &[0xf7_u8, 0xf1][..],                              // #DE
        &[0x0f, 0x0b],                                     // #UD
        &[0xfa],                                           // #GP
        &[0x8b, 0x04, 0x25, 0, 0, 0, 0],                   // #PF
        &[0xc3],                                           // ret to 0
        &[0xcd, 0x0d],                                     // int 13
        &[0xcd, 0x80],                                     // int 0x80
        &[0xcc],                                           // int3
        &[0x0f, 0x05],                                     // syscall
        &[0xfd, 0xd9, 0xe8, 0xd9, 0xe8, 0xdb, 0xe3, HLT],  // std; fld1; fld1; fninit
        &[0x9c, 0x80, 0x4c, 0x24, 0x01, 0x01, 0x9d, 0x90], // single step
        &[0x9b, 0xd9, 0xee, 0xd8, 0xf0, 0x9b, HLT],        // fldz; fdiv st0: with #Z unmasked
        &[0x0f, 0x77, 0x66, 0x0f, 0xef, 0xc0, HLT],        // emms; pxor xmm0, xmm0
        &[0xc5, 0xf8, 0x77, HLT],                          // vzeroupper
        &[0xf3, 0x48, 0x0f, 0xae, 0xd0, HLT],              // wrfsbase rax
        &[0x48, 0xcf],                                     // iretq
        &[0x8e, 0xd8, HLT],                                // mov ds, eax
    ]
    .into_iter()
    .map(program)
    .collect();
    cases[11].state.x87.control = 0x0340;
    let loops = code(&[&INC_EAX, &[HLT, 0xeb, 0xfb]]);
    let dec = write(CODE, &[0xff, 0xc8]);
    cases.push(with_events(&loops, halt(vec![dec])));
    cases.push(with_events(&loops, halt(vec![Action::Unmap(pages(CODE, 2))])));
    let no_code = Action::Protect { range: pages(CODE, 1), permissions: Permissions::ReadWrite };
    cases.push(with_events(&loops, halt(vec![no_code])));
    let alias = Action::Alias { source: pages(CODE, 2), destination: GuestAddress(0x70_0000) };
    cases.push(with_events(&loops, halt(vec![alias])));
    cases.push(Case { limit: Some(3), ..program(&[0xff, 0xc0, 0xeb, 0xfc]) });
    let mut moved = program(&INC_EAX);
    moved.mappings[0].offset = 0x1000;
    moved.mappings[0].range = pages(CODE, 1);
    cases.push(moved);
    cases
}

#[test]
fn nothing_lasts_from_case_to_case() {
    let cases = nasty_cases();
    let alone: Vec<Outcome> = cases.iter().map(run).collect();
    let mut engine = Unicorn::new().unwrap();
    let mut random = 1_u64;
    let mut before = 0;
    for _ in 0..3000 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let index = (random >> 33) as usize % cases.len();
        assert_eq!(run_on(&mut engine, &cases[index]), alone[index], "{index} after {before}");
        before = index;
    }
}
