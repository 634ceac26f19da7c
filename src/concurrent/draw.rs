//! Scenes from choices: half of them any slots, the others shapes in which code is changed and a word says so,
//! with other slots between.

use arbitrary::Unstructured;

use super::op::{HostOp, Op, Register, WORDS, Way};
use super::scene::{ANY_SLOTS, Program, Scene, first_values};

/// Draws slots; zeros when the choices have run out.
struct Choices<'a, 'bytes>(&'a mut Unstructured<'bytes>);

impl Choices<'_, '_> {
    fn below(&mut self, end: usize) -> usize {
        self.0.int_in_range(0..=end - 1).unwrap_or_default()
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == count - 1
    }

    fn register(&mut self) -> Register {
        Register::ALL[self.below(4)]
    }

    fn word(&mut self) -> u8 {
        self.below(WORDS) as u8
    }

    /// What computes, loads or stores.
    fn data(&mut self) -> Op {
        let (register, word) = (self.register(), self.word());
        match self.below(12) {
            0 => Op::Constant { register, value: self.below(256) as u32 },
            1 => Op::Add { to: register, from: self.register() },
            2 => Op::Multiply { to: register, from: self.register() },
            3..=5 => Op::Load { register, word },
            6..=7 => Op::Store { word, register },
            8 => Op::Exchange { word, register },
            9 => Op::ExchangeAdd { word, register },
            10 => Op::CompareExchange { word, register },
            _ => Op::AddTo { word, value: self.below(256) as u8 as i8 },
        }
    }

    /// What may stand between others.
    fn filling(&mut self) -> Op {
        match self.below(6) {
            0..=2 => Op::Pause,
            3 => Op::Jump,
            _ => self.data(),
        }
    }

    fn any(&mut self) -> Op {
        let (place, with) = (self.below(ANY_SLOTS) as u8, self.below(2) as u8);
        match self.below(16) {
            0..=8 => self.data(),
            9 => Op::Pause,
            10 => Op::Jump,
            11 => Op::Host(self.host(place, with)),
            12..=13 => Op::Patch { own: false, place, with, plain: false },
            14 => Op::Patch { own: true, place, with, plain: self.one_in(2) },
            _ => Op::Patch { own: false, place, with, plain: true },
        }
    }

    fn host(&mut self, place: u8, with: u8) -> HostOp {
        match self.below(4) {
            0 => HostOp::Nothing,
            1 => HostOp::Word { word: self.word(), value: self.below(256) as u32 },
            _ => HostOp::Patch { own: self.one_in(4), place, with, way: self.way() },
        }
    }

    fn way(&mut self) -> Way {
        Way::ALL[self.below(4)]
    }

    fn program(&mut self, number: usize, code: Vec<Op>) -> Program {
        let constant = Op::Constant { register: self.register(), value: 0x77 };
        let slots = if self.one_in(4) { [self.any(), constant] } else { [constant, self.data()] };
        let slots = slots.map(|op| if op.is_fixed() { constant } else { op });
        Program { values: first_values(number), slots, code }
    }
}

impl Scene {
    /// The scene of these choices.
    pub fn draw(choices: &mut Unstructured<'_>) -> Self {
        let mut choices = Choices(choices);
        let mut codes = match choices.below(4) {
            0 => told_by_guest(&mut choices),
            1 => told_by_host(&mut choices),
            _ => [0, 1].map(|_| {
                let count = 1 + choices.below(ANY_SLOTS);
                (0..count).map(|_| choices.any()).collect()
            }),
        };
        if choices.one_in(2) {
            codes.reverse();
        }
        let [first, second] = codes;
        let vcpus = [choices.program(0, first), choices.program(1, second)];
        Self::new(choices.one_in(2), choices.one_in(2), vcpus).without_unsound()
    }
}

/// The first program changes a slot of the other's, and then says so in a word; the other looks at the word, and
/// then jumps to where it executes the slot.
fn told_by_guest(choices: &mut Choices<'_, '_>) -> [Vec<Op>; 2] {
    let word = choices.word();
    let mut runner = vec![choices.filling(), Op::Load { register: Register::Rdx, word }];
    runner.extend([Op::Jump, choices.data(), choices.data()]);
    if choices.one_in(2) {
        let filling = choices.filling();
        runner.insert(choices.below(3), filling);
    }
    let (place, with) = (runner.len() as u8 - 1, choices.below(2) as u8);
    let says = match choices.one_in(2) {
        true => Op::Store { word, register: choices.register() },
        false => Op::Exchange { word, register: choices.register() },
    };
    let mut changer = vec![Op::Patch { own: false, place, with, plain: choices.one_in(3) }, says];
    while changer.len() < ANY_SLOTS && choices.one_in(2) {
        let filling = choices.filling();
        changer.insert(choices.below(changer.len() + 1), filling);
    }
    [changer, runner]
}

/// The same with a host that changes the slot: when it says so, nobody has the old one, so no jump is needed. The
/// other takes its time, so that the host comes back while it is on the way.
fn told_by_host(choices: &mut Choices<'_, '_>) -> [Vec<Op>; 2] {
    let (word, with, way) = (choices.word(), choices.below(2) as u8, choices.way());
    let mut runner = vec![Op::Scan, Op::Load { register: Register::Rdx, word }];
    while runner.len() < ANY_SLOTS - 1 && choices.one_in(3) {
        runner.push(choices.data());
    }
    runner.push(Op::Constant { register: Register::Rbx, value: 0x55 });
    let place = runner.len() as u8 - 1;
    let mut changer = vec![Op::Host(HostOp::Patch { own: false, place, with, way })];
    changer.push(match choices.one_in(4) {
        true => Op::AddTo { word, value: 9 },
        false => Op::Host(HostOp::Word { word, value: 0x99 }),
    });
    while changer.len() < ANY_SLOTS && choices.one_in(2) {
        let filling = choices.filling();
        if choices.one_in(2) { changer.push(filling) } else { changer.insert(0, filling) }
    }
    [changer, runner]
}
