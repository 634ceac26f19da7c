//! The set is right where it is known by heart, alone on a vCPU an instruction does what the set says, and
//! what is not in a set is told.

use std::collections::BTreeSet;

use arbitrary::Unstructured;

use super::op::PROGRAM_SLOTS;
use super::scene::first_values;
use super::*;

/// Choices, the same on every host: this folder knows no generator.
fn drawn(number: u64) -> Scene {
    let mut word = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let bytes: Vec<u8> = (0..256)
        .map(|_| {
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            (word >> 32) as u8
        })
        .collect();
    Scene::draw(&mut Unstructured::new(&bytes))
}

fn scene(first: &[Op], second: &[Op]) -> Scene {
    let slots = [Op::Constant { register: Register::Rax, value: 0x77 }, Op::Nothing];
    let program =
        |number, code: &[Op]| Program { values: first_values(number), slots, code: code.to_vec() };
    let scene = Scene::new(false, false, [program(0, first), program(1, second)]);
    assert_eq!(scene.unsound(), None);
    scene
}

/// What two registers may hold at the end: (vCPU, register).
fn pairs(scene: &Scene, places: [(usize, Register); 2]) -> BTreeSet<(u64, u64)> {
    let outcomes = outcomes(scene).unwrap();
    let of = |outcome: &Outcome, (vcpu, register): (usize, Register)| {
        outcome.registers[vcpu][register as usize]
    };
    outcomes.iter().map(|outcome| (of(outcome, places[0]), of(outcome, places[1]))).collect()
}

use Register::{Rax, Rdx};

const X: u8 = 0;
const Y: u8 = 1;

fn store(word: u8) -> Op {
    Op::Store { word, register: Rax }
}

fn load(register: Register, word: u8) -> Op {
    Op::Load { register, word }
}

/// Words are 1 and 2 before; the first vCPU stores 0x11, the second 0x21.
#[test]
fn the_set_of_message_passing() {
    let scene = scene(&[store(X), store(Y)], &[load(Rax, Y), load(Rdx, X)]);
    let seen = pairs(&scene, [(1, Rax), (1, Rdx)]);
    assert_eq!(seen, [(2, 1), (2, 0x11), (0x11, 0x11)].into());
}

#[test]
fn the_set_of_store_buffering() {
    let plain = scene(&[store(X), load(Rdx, Y)], &[store(Y), load(Rdx, X)]);
    let seen = pairs(&plain, [(0, Rdx), (1, Rdx)]);
    assert_eq!(seen, [(2, 1), (2, 0x11), (0x21, 1), (0x21, 0x11)].into(), "both old is allowed");
    let exchange = |word| Op::Exchange { word, register: Rax };
    let locked = scene(&[exchange(X), load(Rdx, Y)], &[exchange(Y), load(Rdx, X)]);
    let seen = pairs(&locked, [(0, Rdx), (1, Rdx)]);
    assert_eq!(seen, [(2, 0x11), (0x21, 1), (0x21, 0x11)].into());
}

/// A changed slot behind a load that has seen the change announced. `jump`: by way of an indirect jump.
fn announced(change: Op, announce: Op, jump: bool) -> BTreeSet<(u64, u64)> {
    let slot = Op::Constant { register: Rax, value: 0x55 };
    let runner = if jump {
        vec![load(Rdx, X), Op::Jump, Op::Nothing, slot]
    } else {
        vec![load(Rdx, X), Op::Nothing, Op::Nothing, slot]
    };
    pairs(&scene(&[change, announce], &runner), [(1, Rdx), (1, Rax)])
}

#[test]
fn the_sets_of_changed_code() {
    let guest = Op::Patch { own: false, place: 3, with: 0, plain: false };
    let way = Way::Write;
    let host = Op::Host(HostOp::Patch { own: false, place: 3, with: 0, way });
    let before_or_after = BTreeSet::from([(1, 0x55), (1, 0x77), (0x11, 0x77)]);
    assert_eq!(announced(host, store(X), false), before_or_after);
    assert_eq!(announced(host, store(X), true), before_or_after);
    assert_eq!(announced(guest, store(X), true), before_or_after);
    let mut any = before_or_after;
    any.insert((0x11, 0x55));
    assert_eq!(announced(guest, store(X), false), any, "old code may go on to the next jump");
}

#[test]
fn alone_each_instruction_does_what_the_set_says() {
    let mut watcher = Watcher::new(0).unwrap();
    let mut instructions = BTreeSet::new();
    for number in 0..60 {
        let mut alone = drawn(number);
        let other = number as usize % 2;
        alone.vcpus[other].code.clear();
        let alone = alone.without_unsound();
        let code = alone.vcpus[1 - other].code.iter();
        instructions.extend(code.map(|op| op.disassembly(0).split(' ').next().map(str::to_owned)));
        assert_eq!(outcomes(&alone).unwrap().len(), 1, "{}", print(&alone));
        let difference = watcher.check(&alone, 1).unwrap();
        assert_eq!(difference, None, "{}", print(&alone));
    }
    assert!(instructions.len() >= 8, "{instructions:?}");
}

#[test]
fn seeded_scenes() {
    let mut watcher = Watcher::new(0).unwrap();
    for number in 0..24 {
        let scene = drawn(number);
        if let Some(difference) = watcher.check(&scene, 2).unwrap() {
            panic!("{}\n{}", print(&scene), difference.lines().join("\n"));
        }
    }
    println!("{:?}", watcher.counts);
    let Counts { scenes, too_large, changing_rounds, overlapping_rounds, .. } = watcher.counts;
    assert!(scenes >= 23 && too_large <= 1);
    assert!(changing_rounds > 500 && overlapping_rounds > 0, "they never ran at the same time");
}

/// The check itself: with an outcome missing in the set, what shows it is told and made small.
#[test]
fn what_is_not_in_the_set_is_told() {
    let mut watcher = Watcher::new(0).unwrap();
    let add = Op::AddTo { word: X, value: 1 };
    let scene = scene(&[add, Op::Pause], &[add]);
    let mut allowed = outcomes(&scene).unwrap();
    assert_eq!(watcher.check_against(&scene, &allowed, 1).unwrap(), None);
    let outcome = *allowed.iter().next().unwrap();
    allowed.clear();
    allowed.insert(Outcome { words: [9; 4], ..outcome });
    let difference = watcher.check_against(&scene, &allowed, 1).unwrap().unwrap();
    assert_eq!(difference.round, Round::Over(Box::new(outcome)));
    let lines = difference.lines().join("\n");
    assert!(lines.contains("word 0") && !lines.contains("rax of"), "{lines}");
}

#[test]
fn scenes_survive_their_text_form() {
    for number in 0..300 {
        let scene = drawn(number);
        let text = print(&scene);
        assert_eq!(parse(&text), Ok(scene), "{text}");
        assert!(is_scene(&text) && is_scene(&format!("# a word\n\n{text}")));
    }
    assert!(!is_scene("# tregion case\nformat = 1\n"));
}

#[test]
fn what_cannot_be_is_refused_with_a_reason() {
    let patch = Op::Patch { own: false, place: 0, with: 0, plain: false };
    let text = print(&scene(&[patch], &[Op::Nothing, Op::Pause]));
    for (from, to, why) in [
        ("place = 0", "place = 2", "writes over what stays"),
        ("place = 0", "place = 99", "out of range"),
        ("with = 0", "with = 2", "out of range"),
        ("plain = false", "plain = false, more = 1", "unexpected key"),
        ("two-vcpus = 1", "two-vcpus = 2", "unknown form 2"),
        ("\"pause\"", "\"end\"", "out of range"),
        ("\"nothing\"", "\"jump\"", "cannot be written over"),
    ] {
        assert!(text.contains(from), "{text}");
        let error = parse(&text.replacen(from, to, 1)).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
    let long = vec![Op::Nothing; PROGRAM_SLOTS];
    let mut scene = scene(&[], &[]);
    scene.vcpus[0].code = long;
    assert!(parse(&print(&scene)).unwrap_err().contains("too many"));
}
