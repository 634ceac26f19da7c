//! All outcomes that a scene may have, by a search that meets each state once. The rules:
//!
//! * *Data* is as in x86-TSO (Owens, Sarkar, Sewell, "A better x86 memory model: x86-TSO"; Intel SDM volume 3A,
//!   section 9.2.3): plain stores go through a buffer of their vCPU, first in, first out, which its own loads
//!   look into; a LOCKed instruction waits until the buffer is empty and takes effect at once.
//! * *Own code*: what a vCPU stores into its own program it executes at its next instruction.
//! * *Code that the other changes*: the manual promises little without serialisation (section 9.1.3). The machine
//!   promises old or new, each instruction whole, and new from the next indirect transfer on that begins behind
//!   the store; a vCPU that is in old code goes on in it as long as jumps are direct and go forward
//!   (`docs/regions.md`, "A region's life", 4). So when a store changes a program, its vCPU may have the program as
//!   it was before, all of it (`stale`), and may lose that copy at any instruction; at an indirect jump, when
//!   it leaves the guest, and when it changes its own code it does.
//! * *What the host changes*: the call returns when no vCPU has code of before. The host's accesses are under a
//!   lock, so they are LOCKed.

use std::collections::HashSet;

use super::op::{HostOp, Op, PROGRAM_SLOTS, Register, WORDS};
use super::scene::{FIRST_WORDS, Outcome, Scene};

/// States after which a search is given up.
const MOST_STATES: usize = 200_000;

/// The search has met too many states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a scene has more than {MOST_STATES} states")]
pub struct TooMany;

type Slots = [Op; PROGRAM_SLOTS];

/// A plain store on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Store {
    Word(u8, u64),
    /// Of a slot of a program.
    Slot(u8, u8, Op),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Vcpu {
    at: u8,
    values: [u64; 4],
    slots: [Op; 2],
    buffer: Vec<Store>,
    /// Its program as it was, if that is what it executes.
    stale: Option<Slots>,
    /// Its host has changed code, and has not come back yet.
    in_host: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    vcpus: [Vcpu; 2],
    words: [u64; WORDS],
    programs: [Slots; 2],
}

/// Every outcome that the rules allow.
pub fn outcomes(scene: &Scene) -> Result<HashSet<Outcome>, TooMany> {
    let (mut met, mut outcomes) = (HashSet::new(), HashSet::new());
    let mut open = vec![State::new(scene)];
    let mut next = Vec::new();
    while let Some(state) = open.pop() {
        if met.contains(&state) {
            continue;
        }
        if met.len() == MOST_STATES {
            return Err(TooMany);
        }
        (0..2).for_each(|vcpu| state.successors(scene, vcpu, &mut next));
        if next.is_empty() {
            outcomes.insert(state.outcome(scene.joined));
        }
        open.append(&mut next);
        met.insert(state);
    }
    Ok(outcomes)
}

/// What comes out when one vCPU runs when the other has come to its end, for both orders.
pub(super) fn one_behind_the_other(scene: &Scene) -> [Outcome; 2] {
    [[0, 1], [1, 0]].map(|order| {
        let (mut state, mut next) = (State::new(scene), Vec::new());
        for vcpu in order {
            loop {
                state.successors(scene, vcpu, &mut next);
                // The first is the one in which nobody has old code.
                let Some(first) = next.drain(..).next() else { break };
                state = first;
            }
        }
        state.outcome(scene.joined)
    })
}

impl State {
    fn new(scene: &Scene) -> Self {
        let vcpu = |number: usize| Vcpu {
            at: 0,
            values: scene.vcpus[number].values.map(u64::from),
            slots: scene.vcpus[number].slots,
            buffer: Vec::new(),
            stale: None,
            in_host: false,
        };
        Self {
            vcpus: [vcpu(0), vcpu(1)],
            words: FIRST_WORDS,
            programs: [scene.slots(0), scene.slots(1)],
        }
    }

    fn outcome(&self, joined: bool) -> Outcome {
        let registers = [0, 1].map(|number| {
            let Vcpu { values: [a, b, c, d], slots, .. } = self.vcpus[number];
            let [e, f] = slots.map(|op| op.encode(0, joined));
            [a, b, c, d, e, f]
        });
        let code = |slots: Slots| std::array::from_fn(|place| slots[place].encode(place, joined));
        Outcome { registers, words: self.words, programs: self.programs.map(code) }
    }

    /// The program that a vCPU has if it has no old one.
    fn own_program(&self, vcpu: usize) -> Slots {
        let mut slots = self.programs[vcpu];
        for store in &self.vcpus[vcpu].buffer {
            if let Store::Slot(program, place, op) = *store
                && usize::from(program) == vcpu
            {
                slots[usize::from(place)] = op;
            }
        }
        slots
    }

    /// Adds what may come next by something that one vCPU does.
    fn successors(&self, scene: &Scene, vcpu: usize, next: &mut Vec<Self>) {
        if !self.vcpus[vcpu].buffer.is_empty() {
            let mut drained = self.clone();
            let store = drained.vcpus[vcpu].buffer.remove(0);
            match store {
                Store::Word(word, value) => {
                    drained.words[usize::from(word)] = value;
                    next.push(drained);
                }
                Store::Slot(program, place, op) => drained.put(vcpu, program, place, op, next),
            }
        }
        if self.vcpus[vcpu].in_host {
            if self.vcpus[1 - vcpu].stale.is_none() {
                let mut back = self.clone();
                back.vcpus[vcpu].in_host = false;
                back.vcpus[vcpu].at += 1;
                next.push(back);
            }
            // It also drops old code without doing anything.
            return;
        }
        let fresh = self.own_program(vcpu);
        self.execute(scene, vcpu, fresh, None, next);
        if let Some(stale) = self.vcpus[vcpu].stale {
            self.execute(scene, vcpu, stale, Some(stale), next);
        }
    }

    /// Executes the slot at which a vCPU is, of `program`, and leaves it with `stale`.
    fn execute(
        &self,
        scene: &Scene,
        vcpu: usize,
        program: Slots,
        stale: Option<Slots>,
        next: &mut Vec<Self>,
    ) {
        let place = usize::from(self.vcpus[vcpu].at);
        let op = program[place];
        if op == Op::End {
            // Nothing is left to do but to forget the old code, which others may wait for.
            if stale.is_none() && self.vcpus[vcpu].stale.is_some() {
                let mut over = self.clone();
                over.vcpus[vcpu].stale = None;
                next.push(over);
            }
            return;
        }
        let mut state = self.clone();
        state.vcpus[vcpu].stale = stale;
        state.vcpus[vcpu].at += 1;
        if state.vcpus[vcpu].buffer.is_empty() {
            state.execute_locked(scene, vcpu, op, next);
        }
        if let Some(state) = state.execute_plain(vcpu, op) {
            next.push(state);
        }
    }

    /// What needs no empty buffer.
    fn execute_plain(mut self, vcpu: usize, op: Op) -> Option<Self> {
        let index = |register: Register| register as usize;
        let Vcpu { values, slots, buffer, stale, .. } = &mut self.vcpus[vcpu];
        match op {
            Op::Nothing | Op::Pause | Op::Scan => {}
            Op::Constant { register, value } => values[index(register)] = u64::from(value),
            Op::Add { to, from } => {
                values[index(to)] = values[index(to)].wrapping_add(values[index(from)]);
            }
            Op::Multiply { to, from } => {
                values[index(to)] = values[index(to)].wrapping_mul(values[index(from)]);
            }
            Op::Load { register, word } => {
                let own = buffer.iter().rev().find_map(|store| match store {
                    Store::Word(stored, value) if *stored == word => Some(*value),
                    _ => None,
                });
                values[index(register)] = own.unwrap_or(self.words[usize::from(word)]);
            }
            Op::Store { word, register } => {
                buffer.push(Store::Word(word, values[index(register)]));
            }
            Op::Patch { own, place, with, plain: true } => {
                let program = if own { vcpu } else { 1 - vcpu };
                if own {
                    *stale = None;
                }
                buffer.push(Store::Slot(program as u8, place, slots[usize::from(with)]));
            }
            Op::Jump => *stale = None,
            _ => return None,
        }
        Some(self)
    }

    /// What waits for an empty buffer.
    fn execute_locked(&self, scene: &Scene, vcpu: usize, op: Op, next: &mut Vec<Self>) {
        let mut state = self.clone();
        let own = &mut state.vcpus[vcpu];
        let target = |own: bool| if own { vcpu } else { 1 - vcpu };
        let values = &mut own.values;
        match op {
            Op::Exchange { word, register } => {
                let word = &mut state.words[usize::from(word)];
                std::mem::swap(word, &mut values[register as usize]);
            }
            Op::ExchangeAdd { word, register } => {
                let (word, value) =
                    (&mut state.words[usize::from(word)], &mut values[register as usize]);
                (*word, *value) = (word.wrapping_add(*value), *word);
            }
            Op::AddTo { word, value } => {
                let word = &mut state.words[usize::from(word)];
                *word = word.wrapping_add(i64::from(value) as u64);
            }
            Op::CompareExchange { word, register } => {
                let word = &mut state.words[usize::from(word)];
                if *word == values[0] {
                    *word = values[register as usize];
                } else {
                    values[0] = *word;
                }
            }
            Op::Patch { own: to_own, place, with, plain: false } => {
                let program = target(to_own);
                let old = state.programs[program][usize::from(place)];
                let new = std::mem::replace(&mut own.slots[usize::from(with)], old);
                if to_own {
                    own.stale = None;
                }
                return state.put(vcpu, program as u8, place, new, next);
            }
            Op::Host(host) => {
                own.stale = None;
                match host {
                    HostOp::Nothing => {}
                    HostOp::Word { word, value } => {
                        state.words[usize::from(word)] = u64::from(value);
                    }
                    HostOp::Patch { own: to_own, place, with, .. } => {
                        own.in_host = true;
                        own.at -= 1;
                        let new = scene.vcpus[vcpu].slots[usize::from(with)];
                        return state.put(vcpu, target(to_own) as u8, place, new, next);
                    }
                }
            }
            _ => return,
        }
        next.push(state);
    }

    /// Changes a slot of a program for all to see: the other vCPU, if it is its program, may have the old
    /// one, or one that is older still.
    fn put(mut self, writer: usize, program: u8, place: u8, op: Op, next: &mut Vec<Self>) {
        let runner = usize::from(program);
        let before = self.own_program(runner);
        self.programs[runner][usize::from(place)] = op;
        let vcpu = &self.vcpus[runner];
        // Who is with its host is not in any code.
        let may_have_old = runner != writer && !vcpu.in_host && vcpu.at <= place;
        let olds =
            if !may_have_old { vec![vcpu.stale] } else { vec![None, vcpu.stale, Some(before)] };
        for (number, old) in olds.iter().enumerate() {
            if olds[..number].contains(old) {
                continue;
            }
            let mut state = self.clone();
            state.vcpus[runner].stale = *old;
            next.push(state);
        }
    }
}
