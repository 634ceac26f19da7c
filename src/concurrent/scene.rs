//! [`Scene`]: two programs and how they start; [`Outcome`]: what is left when both have come to their ends.

use serde::{Deserialize, Serialize};

use super::op::{HostOp, Op, PROGRAM_SLOTS, Register, WORDS, Way};

/// What the words are at the start.
pub(super) const FIRST_WORDS: [u64; WORDS] = [1, 2, 3, 4];

/// Bytes of an input for one slot. The first two records say how the vCPUs start, the others are slots of
/// the first and of the second in turn.
pub const RECORD_BYTES: usize = 4;
/// Records that say how each vCPU starts.
pub const HEAD_RECORDS: usize = 2;
/// Records of one input; what lies behind has no effect.
pub const MOST_RECORDS: usize = HEAD_RECORDS + 2 * ANY_SLOTS;
/// Slots of a program, its end left out.
pub(super) const MOST_SLOTS: usize = PROGRAM_SLOTS - 1;
/// Slots of a program that may do anything: more would have too many outcomes.
pub(super) const ANY_SLOTS: usize = 6;

/// One vCPU's program.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// RAX, RDX, RBX, RSI at the start.
    pub values: [u32; 4],
    /// R12 and R13 at the start: what slots are written over with.
    pub slots: [Op; 2],
    /// Slot by slot.
    pub code: Vec<Op>,
}

/// Two programs in one memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Scene {
    /// The form of the text; 1.
    pub(super) two_vcpus: u32,
    /// Both programs lie in the same pages.
    pub one_page: bool,
    /// Slots are joined in blocks: only jumps and what leaves the guest end one.
    pub joined: bool,
    /// The programs.
    #[serde(rename = "vcpu")]
    pub vcpus: [Program; 2],
}

/// What is left when both programs have come to their ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Outcome {
    /// RAX, RDX, RBX, RSI, R12, R13 of each vCPU.
    pub registers: [[u64; 6]; 2],
    /// The words.
    pub words: [u64; WORDS],
    /// The slots of both programs.
    pub programs: [[u64; PROGRAM_SLOTS]; 2],
}

impl Scene {
    /// The scene of two programs.
    #[must_use]
    pub fn new(one_page: bool, joined: bool, vcpus: [Program; 2]) -> Self {
        Self { two_vcpus: 1, one_page, joined, vcpus }
    }

    /// Any bytes as a scene, in records of [`RECORD_BYTES`].
    #[must_use]
    pub fn from_records(bytes: &[u8]) -> Self {
        let mut records = bytes.chunks_exact(RECORD_BYTES).take(MOST_RECORDS);
        let mut next = || records.next().map_or([0; 4], |record| [0, 1, 2, 3].map(|at| record[at]));
        let heads: [[u8; 4]; HEAD_RECORDS] = [next(), next()];
        let mut vcpus = [0, 1].map(|number| {
            let [_, first, second, _] = heads[number];
            let slots =
                [movable([first % 4, first >> 2, 7, 9]), movable([second, second >> 3, 5, 3])];
            Program { values: first_values(number), slots, code: Vec::new() }
        });
        for (number, record) in records.enumerate() {
            vcpus[number % 2].code.push(op([0, 1, 2, 3].map(|at| record[at])));
        }
        Self::new(heads[0][0] % 2 == 1, heads[0][0] / 2 % 2 == 1, vcpus).without_unsound()
    }

    /// The slots of a program, with the ends behind it.
    pub(super) fn slots(&self, vcpu: usize) -> [Op; PROGRAM_SLOTS] {
        let code = &self.vcpus[vcpu].code;
        std::array::from_fn(|place| code.get(place).copied().unwrap_or(Op::End))
    }

    /// Whether a slot can be written over.
    fn is_movable(&self, vcpu: usize, place: u8) -> bool {
        !self.slots(vcpu)[usize::from(place)].is_fixed()
    }

    /// Whether something may write over a slot of a program.
    pub(super) fn is_written_over(&self, vcpu: usize, place: usize) -> bool {
        let writes = |op: &Op, by: usize, anywhere: bool| {
            op.target().is_some_and(|(own, target)| {
                usize::from(target) == place && (anywhere || own == (by == vcpu))
            })
        };
        self.vcpus.iter().enumerate().any(|(by, program)| {
            // What moves may be executed by either.
            program.slots.iter().any(|op| writes(op, by, true))
                || program.code.iter().any(|op| writes(op, by, !op.is_fixed()))
        })
    }

    /// What is wrong with it, if anything is: where, and why.
    pub(super) fn unsound(&self) -> Option<(usize, usize, &'static str)> {
        for (number, program) in self.vcpus.iter().enumerate() {
            if program.slots.iter().any(|op| op.is_fixed() || !op.is_in_range()) {
                return Some((number, 0, "its `slots` cannot be written over others"));
            }
            if program.code.len() > MOST_SLOTS {
                return Some((number, MOST_SLOTS, "too many slots"));
            }
            for op in &program.slots {
                if !self.targets_well(number, *op, true) {
                    return Some((number, 0, "its `slots` write over what stays where it is"));
                }
            }
            for (place, op) in program.code.iter().enumerate() {
                if *op == Op::End || !op.is_in_range() {
                    return Some((number, place, "a number is out of range"));
                }
                if !self.targets_well(number, *op, self.is_written_over(number, place)) {
                    return Some((number, place, "it writes over what stays where it is"));
                }
            }
        }
        None
    }

    /// Whether what `op` writes over, executed by this vCPU, can be written over; if it `moves`, executed by
    /// either.
    fn targets_well(&self, vcpu: usize, op: Op, moves: bool) -> bool {
        let Some((own, place)) = op.target() else { return true };
        let executed_by = |vcpu: usize| self.is_movable(if own { vcpu } else { 1 - vcpu }, place);
        executed_by(vcpu) && (!moves || executed_by(1 - vcpu))
    }

    /// The same without what cannot be.
    pub(super) fn without_unsound(mut self) -> Self {
        for number in [0, 1] {
            self.vcpus[number].code.truncate(MOST_SLOTS);
            for place in 0..self.vcpus[number].code.len() {
                let op = self.vcpus[number].code[place];
                let moves = self.is_written_over(number, place);
                if !op.is_in_range() || op == Op::End || !self.targets_well(number, op, moves) {
                    self.vcpus[number].code[place] = Op::Nothing;
                }
            }
            for index in [0, 1] {
                let op = self.vcpus[number].slots[index];
                if op.is_fixed() || !op.is_in_range() || !self.targets_well(number, op, true) {
                    self.vcpus[number].slots[index] = Op::Nothing;
                }
            }
        }
        self
    }

    /// Whether a program's code is changed by the other vCPU or, while it runs, by the host.
    #[must_use]
    pub fn changes_code(&self) -> bool {
        let changes = |op: &Op| op.target().is_some_and(|(own, _)| !own);
        self.vcpus.iter().any(|program| program.code.iter().any(changes))
    }

    /// Whether a page of code is not there at times.
    pub(super) fn takes_pages_away(&self) -> bool {
        let takes =
            |op: &Op| matches!(op, Op::Host(HostOp::Patch { way: Way::Protect | Way::Remap, .. }));
        self.vcpus.iter().any(|program| program.code.iter().any(takes))
    }
}

/// Values that tell the vCPUs apart.
pub(super) fn first_values(number: usize) -> [u32; 4] {
    [1, 2, 3, 4].map(|value| 0x10 * (number as u32 + 1) + value)
}

/// The slot that a record stands for, if it is one that can be written over others.
fn movable(record: [u8; 4]) -> Op {
    let op = op(record);
    if op.is_fixed() { Op::Constant { register: Register::Rax, value: 7 } } else { op }
}

/// The slot that a record stands for.
fn op([kind, first, second, third]: [u8; 4]) -> Op {
    let register = |byte: u8| Register::ALL[usize::from(byte % 4)];
    let (one, other, word) = (register(first), register(second), third % WORDS as u8);
    let (place, with) = (second % ANY_SLOTS as u8, third % 2);
    match kind % 20 {
        0 | 8 => {
            let value = u32::from(second) | u32::from(third) << 8;
            Op::Constant { register: one, value }
        }
        1 => Op::Add { to: other, from: one },
        2 | 9 => Op::Load { register: one, word },
        3 => Op::Exchange { word, register: one },
        4 => Op::ExchangeAdd { word, register: one },
        5 => Op::AddTo { word, value: second as i8 },
        6 | 10 => Op::Patch { own: false, place, with: 0, plain: false },
        7 => Op::Patch { own: false, place, with: 1, plain: false },
        11 => Op::Patch { own: true, place, with: 0, plain: false },
        12 | 13 => Op::Store { word, register: one },
        14 => Op::CompareExchange { word, register: one },
        15 => Op::Patch { own: first % 4 == 0, place, with, plain: true },
        16 => Op::Jump,
        17 => {
            Op::Host(HostOp::Patch { own: false, place, with, way: Way::ALL[first as usize % 4] })
        }
        18 => Op::Host(match first % 2 {
            0 => HostOp::Word { word, value: u32::from(second) },
            _ => HostOp::Nothing,
        }),
        _ if first % 2 == 0 => Op::Pause,
        _ => Op::Multiply { to: one, from: other },
    }
}
