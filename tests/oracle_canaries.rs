//! The oracle is tested before it is believed: what differs must be seen, in every component; a
//! sabotaged engine must be caught, blamed at the right instruction, and its case made small.
#![allow(clippy::unwrap_used, reason = "a test fails where its helper does")]

mod common;

use common::{DATA, case};
use iced_x86::Mnemonic;
use iced_x86::code_asm::*;
use tregion::campaign::{self, MINIMISE_TIME, Plan, Progress, minimise_finding};
use tregion::case::{Case, ExceptionVector, Loss, ObjectId, Outcome, PageChange, Stop, text};
use tregion::engine::sabotaged::{self, Sabotage, Sabotaged, When};
use tregion::engine::silicon::Silicon;
use tregion::engine::{Engine, Visible};
use tregion::guest::{Flag, State};
use tregion::oracle::judge::{EngineVerdict, Judge, Verdict};
use tregion::oracle::{Component, ComponentClass, Value, compare};

fn outcome(stop: Stop) -> Outcome {
    Outcome { stop, events_applied: 0, state: State::default(), memory: Vec::new() }
}

fn fault(vector: u8, error: u32, address: Option<u64>) -> Stop {
    Stop::Exception { vector: ExceptionVector(vector), error: Some(error), address }
}

/// A way to make a halted outcome another one, and the component that must tell.
type Change = (Component, Box<dyn Fn(&mut State)>);

fn changes() -> Vec<Change> {
    let mut list: Vec<Change> = vec![
        (Component::Rip, Box::new(|state| state.rip ^= 1)),
        (Component::OtherFlags, Box::new(|state| state.rflags ^= 1 << 12)),
        (Component::FsBase, Box::new(|state| state.fs_base ^= 1)),
        (Component::GsBase, Box::new(|state| state.gs_base ^= 1)),
        (Component::Pkru, Box::new(|state| state.pkru ^= 1)),
        (Component::X87Control, Box::new(|state| state.x87.control ^= 1)),
        (Component::X87Status, Box::new(|state| state.x87.status ^= 1)),
        (Component::X87Tag, Box::new(|state| state.x87.tag ^= 1)),
        (Component::X87Opcode, Box::new(|state| state.x87.opcode ^= 1)),
        (Component::X87InstructionPointer, Box::new(|state| state.x87.instruction_pointer ^= 1)),
        (Component::X87DataPointer, Box::new(|state| state.x87.data_pointer ^= 1)),
        (Component::Mxcsr, Box::new(|state| state.mxcsr ^= 1)),
    ];
    for index in 0..16 {
        list.push((
            Component::Gpr(index),
            Box::new(move |state| state.gpr[usize::from(index)] ^= 1 << 63),
        ));
    }
    for flag in Flag::ALL {
        list.push((Component::Flag(flag), Box::new(move |state| state.rflags ^= flag.mask())));
    }
    for index in 0..6 {
        list.push((
            Component::Selector(index),
            Box::new(move |state| state.selectors.0[usize::from(index)] ^= 1),
        ));
    }
    for index in 0..8 {
        list.push((
            Component::X87Register(index),
            Box::new(move |state| state.x87.st[usize::from(index)].sign_exponent ^= 0x8000),
        ));
        list.push((
            Component::X87Register(index),
            Box::new(move |state| state.x87.st[usize::from(index)].significand ^= 1),
        ));
        list.push((
            Component::Opmask(index),
            Box::new(move |state| state.opmask[usize::from(index)] ^= 1),
        ));
    }
    for register in 0..32 {
        for word in 0..8 {
            list.push((
                Component::Vector { register, lane: word / 2 },
                Box::new(move |state| state.vector[usize::from(register)][usize::from(word)] ^= 1),
            ));
        }
    }
    list
}

#[test]
fn every_register_is_compared() {
    let case = Case::default();
    let right = outcome(Stop::Halt);
    for (component, change) in changes() {
        let mut wrong = right.clone();
        change(&mut wrong.state);
        let differences = compare(&case, &right, &wrong, Visible::ALL);
        assert_eq!(differences.len(), 1, "{component}");
        assert_eq!(differences[0].component, component);
        assert_ne!(differences[0].left, differences[0].right);
    }
}

#[test]
fn stops_and_their_details_are_compared() {
    let case = Case::default();
    let component = |left, right| {
        let differences = compare(&case, &outcome(left), &outcome(right), Visible::ALL);
        differences.first().map(|difference| difference.component)
    };
    let stops = [
        Stop::Halt,
        Stop::SystemCall,
        Stop::LegacySystemCall,
        Stop::Limit,
        Stop::TimeLimit,
        Stop::Lost(Loss::Hung),
        Stop::Lost(Loss::Killed { signal: 9 }),
        fault(13, 0, None),
        fault(14, 4, Some(0)),
    ];
    for left in stops {
        for right in stops {
            let expected = (left != right).then_some(Component::Stop);
            assert_eq!(component(left, right), expected, "{left} against {right}");
        }
    }
    let error = component(fault(14, 4, Some(0)), fault(14, 6, Some(0)));
    assert_eq!(error, Some(Component::ErrorCode));
    let address = component(fault(14, 4, Some(0)), fault(14, 4, Some(8)));
    assert_eq!(address, Some(Component::FaultAddress));
    let late = Outcome { events_applied: 1, ..outcome(Stop::Halt) };
    let differences = compare(&case, &outcome(Stop::Halt), &late, Visible::ALL);
    assert_eq!(differences[0].component, Component::EventsApplied);
}

#[test]
fn every_byte_of_memory_is_compared() {
    let case = case(|a| a.hlt().unwrap());
    let right = outcome(Stop::Halt);
    for offset in [0, 1, 0xfff, 0x1000, 0x1fff] {
        let mut contents = vec![0; 0x1000];
        contents[offset % 0x1000] = 1;
        let object = ObjectId(1);
        let change = PageChange { object, page: offset / 0x1000, contents };
        let wrong = Outcome { memory: vec![change], ..right.clone() };
        for (left, right) in [(&right, &wrong), (&wrong, &right)] {
            let differences = compare(&case, left, right, Visible::ALL);
            let [only] = &differences[..] else { panic!("one byte differs") };
            assert_eq!(only.component, Component::Memory { object, offset: offset as u64 });
            assert!([only.left, only.right].contains(&Value::Bits(1)));
        }
    }
}

fn sabotaged(when: When, component: sabotaged::Component) -> Box<dyn Engine> {
    Box::new(Sabotaged::new(Silicon::new().unwrap(), Sabotage { when, component }))
}

/// A program of some length in the middle of which there is a `bswap`.
fn program() -> Case {
    case(|a| {
        a.mov(ecx, 3).unwrap();
        let mut top = a.create_label();
        a.set_label(&mut top).unwrap();
        a.add(rax, rcx).unwrap();
        a.mov(qword_ptr(DATA), rax).unwrap();
        a.bswap(rdx).unwrap();
        a.adc(rbx, rdx).unwrap();
        a.dec(ecx).unwrap();
        a.jne(top).unwrap();
        a.hlt().unwrap();
    })
}

#[test]
fn each_sabotage_is_seen() {
    use sabotaged::Component as C;
    let all = [
        C::Gpr { register: 3, bit: 17 },
        C::Flag(Flag::AF),
        C::FsBase { bit: 3 },
        C::Vector { register: 2, bit: 5 },
        C::X87 { register: 0, bit: 9 },
        C::X87Status { bit: 0 },
        C::X87Tag { register: 1 },
        C::Mxcsr { bit: 0 },
        C::Memory { object: ObjectId(1), offset: 0x777 },
        C::Stop,
        C::EventsApplied,
        C::Rip { bit: 2 },
    ];
    let case = program();
    for component in all {
        let engine = sabotaged(When::Always, component);
        let mut judge = Judge::new(Silicon::new().unwrap(), vec![engine]);
        let Verdict::Judged { engines, .. } = judge.judge(&case) else { panic!("silicon runs it") };
        assert!(matches!(engines[0], EngineVerdict::Differs { .. }), "{component:?}");
    }
}

#[test]
fn the_culprit_is_found_and_the_case_made_small() {
    let component = sabotaged::Component::Gpr { register: 11, bit: 4 };
    let mut engine = sabotaged(When::Contains(Mnemonic::Bswap), component);
    let mut silicon = Silicon::new().unwrap();
    let case = program();
    let reference = silicon.run(&case).unwrap();
    let outcome = engine.run(&case).unwrap();
    let verdict = tregion::oracle::judge::judge_outcome(
        &mut silicon,
        engine.as_mut(),
        &case,
        &reference,
        outcome,
    );
    let EngineVerdict::Differs { findings, .. } = verdict else { panic!("it differs") };
    let finding = findings.first().expect("it is found");
    assert_eq!(finding.key.component, ComponentClass::Gpr);
    assert!(finding.accepted.is_none());
    let small = minimise_finding(&mut silicon, engine.as_mut(), finding, MINIMISE_TIME);
    let code = &small.objects[0].contents;
    let used = code.iter().filter(|&&byte| byte != 0 && byte != 0x90).count();
    assert!(used <= 4, "{}", text::print(&small));
    assert_ne!(engine.run(&small).unwrap(), silicon.run(&small).unwrap());
}

#[test]
fn a_campaign_catches_a_sabotaged_engine_and_writes_its_case() {
    let folder = tempfile::tempdir().unwrap();
    let plan = Plan {
        engines: vec!["sabotaged".to_owned()],
        seed: 11,
        shard: (1, 1),
        time: None,
        cases: Some(3000),
        workers: 2,
        out: Some(folder.path().to_owned()),
        save_every: Plan::SAVE_EVERY,
        stop_at_first: false,
    };
    let component = sabotaged::Component::Flag(Flag::CF);
    let make = || {
        let engine = sabotaged(When::Contains(Mnemonic::Bswap), component);
        Ok(Judge::new(Silicon::new()?, vec![engine]))
    };
    let summary = campaign::run(&plan, &make, &Progress::default()).unwrap();
    assert_eq!(summary.cases, 3000);
    assert!(summary.unexplained > 0, "{}", summary.text());
    let cluster = summary.clusters.iter().find(|cluster| cluster.mnemonic.ends_with("bswap"));
    let cluster = cluster.unwrap_or_else(|| panic!("{}", summary.text()));
    let hash = cluster.case.as_ref().expect("a campaign that has ended has a case of each");
    let file = folder.path().join(format!("{hash}.case"));
    let written = std::fs::read_to_string(file).unwrap();
    assert!(written.contains("replay: tregion replay"), "{written}");
    let small = text::parse(&written).unwrap();
    let mut wrong = sabotaged(When::Contains(Mnemonic::Bswap), component);
    assert_ne!(wrong.run(&small).unwrap(), Silicon::new().unwrap().run(&small).unwrap());
}

#[test]
fn a_campaign_can_end_with_its_first_difference() {
    let plan = Plan {
        engines: vec!["sabotaged".to_owned()],
        seed: 11,
        shard: (1, 1),
        time: None,
        cases: Some(30_000),
        workers: 1,
        out: None,
        save_every: Plan::SAVE_EVERY,
        stop_at_first: true,
    };
    let component = sabotaged::Component::Flag(Flag::CF);
    let make = || {
        let engine = sabotaged(When::Contains(Mnemonic::Bswap), component);
        Ok(Judge::new(Silicon::new()?, vec![engine]))
    };
    let summary = campaign::run(&plan, &make, &Progress::default()).unwrap();
    let first = summary.clusters.first().expect("it is found");
    assert_eq!(summary.cases, first.first_case + 1);
    assert!(first.first_seconds > 0.0 && first.first_seconds < summary.seconds);
    assert_eq!(first.instructions, 1);
}

#[test]
fn the_same_seed_makes_the_same_campaign() {
    let run = |workers, shard| {
        let plan = Plan {
            engines: vec!["silicon#2".to_owned()],
            seed: 5,
            shard,
            time: None,
            cases: Some(600),
            workers,
            out: None,
            save_every: Plan::SAVE_EVERY,
            stop_at_first: false,
        };
        let make = || {
            let second: Box<dyn Engine> = Box::new(Silicon::named("silicon#2")?);
            Ok(Judge::new(Silicon::new()?, vec![second]))
        };
        campaign::run(&plan, &make, &Progress::default()).unwrap()
    };
    let (one, two) = (run(1, (1, 1)), run(2, (1, 1)));
    assert_eq!(one.differences, 0, "{}", one.text());
    assert_eq!((one.form_counts.clone(), one.stops.clone()), (two.form_counts, two.stops));
    assert_ne!(run(1, (2, 2)).form_counts, one.form_counts);
}
