//! [`Sabotaged`]: an engine that is wrong on purpose, to show that a campaign sees it. What is
//! wrong and when is data ([`Sabotage`]); the same case is wrong in the same way each time, so that
//! what is found can be minimised. It touches outcomes only, never the engine that it wraps.

use std::time::Duration;

use iced_x86::Mnemonic;

use super::{Capabilities, Engine, Unsupported};
use crate::case::{Case, ObjectId, Outcome, PageChange, Stop};
use crate::guest::{Flag, GuestAddress, PAGE_SIZE, decoder};

/// Which cases come out wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Every one.
    Always,
    /// The n-th that the engine is given, from 0.
    At(u64),
    /// The n-th and each n-th after that: with 3, those numbered 2, 5, 8. Not zero.
    Every(u64),
    /// Those whose program, decoded in a line from its entry, has this instruction. This alone does
    /// not depend on the cases before, so that a difference can be minimised.
    Contains(Mnemonic),
}

/// What comes out wrong. Bits are counted from 0, the lowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Component {
    /// A bit of a general-purpose register.
    Gpr {
        /// In encoding order.
        register: usize,
        /// Of 64.
        bit: u32,
    },
    /// A bit of RIP.
    Rip {
        /// Of 64.
        bit: u32,
    },
    /// A flag.
    Flag(Flag),
    /// A bit of the base of the FS segment.
    FsBase {
        /// Of 64.
        bit: u32,
    },
    /// A bit of a vector register.
    Vector {
        /// Of 32.
        register: usize,
        /// Of 512.
        bit: usize,
    },
    /// A bit of an opmask register.
    Opmask {
        /// Of 8.
        register: usize,
        /// Of 64.
        bit: u32,
    },
    /// A bit of the significand of an x87 register.
    X87 {
        /// Relative to the top of stack.
        register: usize,
        /// Of 64.
        bit: u32,
    },
    /// A bit of the x87 status word.
    X87Status {
        /// Of 16.
        bit: u32,
    },
    /// Whether a physical x87 register is empty.
    X87Tag {
        /// Of 8.
        register: u32,
    },
    /// A bit of MXCSR.
    Mxcsr {
        /// Of 16.
        bit: u32,
    },
    /// The lowest bit of a byte of memory.
    Memory {
        /// Which object; nothing is wrong in a case without it.
        object: ObjectId,
        /// Which byte of it.
        offset: usize,
    },
    /// Why the run ended.
    Stop,
    /// A bit of the address of a page fault.
    FaultAddress {
        /// Of 64.
        bit: u32,
    },
    /// A bit of an exception's error code.
    ErrorCode {
        /// Of 32.
        bit: u32,
    },
    /// How many events were applied: one more.
    EventsApplied,
}

/// One deliberate mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sabotage {
    /// In which cases.
    pub when: When,
    /// What is wrong there.
    pub component: Component,
}

/// See the file's head.
pub struct Sabotaged<E> {
    engine: E,
    sabotage: Sabotage,
    cases: u64,
    spoiled: u64,
}

impl<E: Engine> Sabotaged<E> {
    /// Makes `engine` wrong.
    pub fn new(engine: E, sabotage: Sabotage) -> Self {
        Self { engine, sabotage, cases: 0, spoiled: 0 }
    }

    /// How many outcomes are not what the engine said. Zero shows that a test proves nothing.
    pub fn spoiled(&self) -> u64 {
        self.spoiled
    }
}

impl<E: Engine> Engine for Sabotaged<E> {
    fn name(&self) -> &str {
        self.engine.name()
    }

    fn version(&self) -> String {
        format!("{}, sabotaged", self.engine.version())
    }

    fn capabilities(&self) -> &Capabilities {
        self.engine.capabilities()
    }

    fn set_time_limit(&mut self, limit: Duration) {
        self.engine.set_time_limit(limit);
    }

    fn run(&mut self, case: &Case) -> Result<Outcome, Unsupported> {
        let number = self.cases;
        self.cases += 1;
        let mut outcome = self.engine.run(case)?;
        if self.sabotage.when.applies(number, case) {
            self.spoiled += u64::from(self.sabotage.component.spoil(case, &mut outcome));
        }
        Ok(outcome)
    }
}

impl When {
    fn applies(self, number: u64, case: &Case) -> bool {
        match self {
            Self::Always => true,
            Self::At(at) => number == at,
            Self::Every(every) => number % every == every - 1,
            Self::Contains(mnemonic) => contains(case, mnemonic),
        }
    }
}

fn contains(case: &Case, mnemonic: Mnemonic) -> bool {
    let entry = case.state.rip;
    let code = case.initial_bytes(GuestAddress(entry)).unwrap_or_default();
    let mut decoder = decoder(code, entry);
    let mut instructions = decoder.iter().take_while(|instruction| !instruction.is_invalid());
    instructions.any(|instruction| instruction.mnemonic() == mnemonic)
}

impl Component {
    /// Makes `outcome` wrong; whether there was anything to make wrong.
    fn spoil(self, case: &Case, outcome: &mut Outcome) -> bool {
        if self == Self::Stop {
            outcome.stop = if outcome.stop == Stop::Halt { Stop::SystemCall } else { Stop::Halt };
            return true;
        }
        // Of an inexact outcome, nothing but the stop is looked at.
        outcome.stop.is_exact()
            && match self {
                Self::Memory { object, offset } => spoil_memory(case, outcome, object, offset),
                Self::FaultAddress { .. } | Self::ErrorCode { .. } => {
                    self.spoil_exception(&mut outcome.stop)
                }
                Self::EventsApplied => {
                    outcome.events_applied += 1;
                    true
                }
                _ => {
                    self.spoil_register(outcome);
                    true
                }
            }
    }

    fn spoil_register(self, outcome: &mut Outcome) {
        let state = &mut outcome.state;
        match self {
            Self::Gpr { register, bit } => state.gpr[register] ^= 1 << bit,
            Self::Rip { bit } => state.rip ^= 1 << bit,
            Self::Flag(flag) => state.rflags ^= flag.mask(),
            Self::FsBase { bit } => state.fs_base ^= 1 << bit,
            Self::Vector { register, bit } => state.vector[register][bit / 64] ^= 1 << (bit % 64),
            Self::Opmask { register, bit } => state.opmask[register] ^= 1 << bit,
            Self::X87 { register, bit } => state.x87.st[register].significand ^= 1 << bit,
            Self::X87Status { bit } => state.x87.status ^= 1 << bit,
            Self::X87Tag { register } => state.x87.tag ^= 1 << register,
            Self::Mxcsr { bit } => state.mxcsr ^= 1 << bit,
            Self::Memory { .. }
            | Self::Stop
            | Self::FaultAddress { .. }
            | Self::ErrorCode { .. }
            | Self::EventsApplied => unreachable!("not in a register"),
        }
    }

    fn spoil_exception(self, stop: &mut Stop) -> bool {
        match (self, stop) {
            (Self::FaultAddress { bit }, Stop::Exception { address: Some(address), .. }) => {
                *address ^= 1 << bit;
                true
            }
            (Self::ErrorCode { bit }, Stop::Exception { error: Some(error), .. }) => {
                *error ^= 1 << bit;
                true
            }
            _ => false,
        }
    }
}

/// Changes a byte and keeps [`Outcome::memory`] what it promises to be.
fn spoil_memory(case: &Case, outcome: &mut Outcome, object: ObjectId, offset: usize) -> bool {
    let before = case.objects.get(object.0).map(|object| object.contents.as_slice());
    let page_size = PAGE_SIZE as usize;
    let (page, place) = (offset / page_size, offset % page_size);
    let Some(before) = before.and_then(|bytes| bytes.chunks(page_size).nth(page)) else {
        return false;
    };
    let changes = &mut outcome.memory;
    let key = |change: &PageChange| (change.object, change.page);
    let index = changes.binary_search_by_key(&(object, page), key).unwrap_or_else(|index| {
        changes.insert(index, PageChange { object, page, contents: before.to_vec() });
        index
    });
    changes[index].contents[place] ^= 1;
    if changes[index].contents == before {
        changes.remove(index);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::{ExceptionVector, Mapping, Object};
    use crate::engine::Visible;
    use crate::guest::{GuestRange, Permissions};

    /// Says that nothing happened, but how it stopped.
    struct Still {
        capabilities: Capabilities,
        stop: Stop,
    }

    impl Engine for Still {
        fn name(&self) -> &str {
            "still"
        }

        fn version(&self) -> String {
            "1".to_owned()
        }

        fn capabilities(&self) -> &Capabilities {
            &self.capabilities
        }

        fn set_time_limit(&mut self, _limit: Duration) {}

        fn run(&mut self, case: &Case) -> Result<Outcome, Unsupported> {
            let state = case.state.clone();
            Ok(Outcome { stop: self.stop, events_applied: 0, state, memory: Vec::new() })
        }
    }

    fn still(stop: Stop) -> Still {
        let capabilities = Capabilities {
            visible: Visible::ALL,
            runs_on_silicon: false,
            counts: true,
            lacks: Vec::new(),
        };
        Still { capabilities, stop }
    }

    fn case(code: &[u8]) -> Case {
        let mut object = Object::zeroed("code", 2);
        object.contents[..code.len()].copy_from_slice(code);
        let mapping = Mapping {
            range: GuestRange::new(GuestAddress(0x1000), 0x2000).unwrap(),
            object: ObjectId(0),
            offset: 0,
            permissions: Permissions::ReadExecute,
        };
        let mut case = Case { objects: vec![object], mappings: vec![mapping], ..Case::default() };
        case.state.rip = 0x1000;
        case
    }

    fn spoiled_numbers(when: When, cases: &[Case]) -> Vec<usize> {
        let component = Component::Gpr { register: 0, bit: 63 };
        let mut engine = Sabotaged::new(still(Stop::Halt), Sabotage { when, component });
        let wrong = |case: &Case| engine.run(case).unwrap().state != case.state;
        let wrong: Vec<bool> = cases.iter().map(wrong).collect();
        (0..cases.len()).filter(|index| wrong[*index]).collect()
    }

    #[test]
    fn only_the_cases_that_were_chosen_are_wrong() {
        // nop; cpuid, and nop; hlt
        let (with, without) = (case(&[0x90, 0x0f, 0xa2]), case(&[0x90, 0xf4]));
        let cases = [with.clone(), without.clone(), without, with.clone(), with];
        assert_eq!(spoiled_numbers(When::Always, &cases), [0, 1, 2, 3, 4]);
        assert_eq!(spoiled_numbers(When::At(2), &cases), [2]);
        assert_eq!(spoiled_numbers(When::Every(2), &cases), [1, 3]);
        assert_eq!(spoiled_numbers(When::Contains(Mnemonic::Cpuid), &cases), [0, 3, 4]);
    }

    #[test]
    fn each_component_makes_a_difference() {
        let fault =
            Stop::Exception { vector: ExceptionVector::PF, error: Some(4), address: Some(0) };
        let components = [
            Component::Gpr { register: 15, bit: 0 },
            Component::Rip { bit: 3 },
            Component::Flag(Flag::OF),
            Component::FsBase { bit: 12 },
            Component::Vector { register: 31, bit: 511 },
            Component::Opmask { register: 7, bit: 63 },
            Component::X87 { register: 7, bit: 63 },
            Component::X87Status { bit: 14 },
            Component::X87Tag { register: 7 },
            Component::Mxcsr { bit: 5 },
            Component::Memory { object: ObjectId(0), offset: 0x1fff },
            Component::Stop,
            Component::FaultAddress { bit: 47 },
            Component::ErrorCode { bit: 1 },
            Component::EventsApplied,
        ];
        let case = case(&[]);
        let right = still(fault).run(&case).unwrap();
        let mut seen = vec![right];
        for component in components {
            let sabotage = Sabotage { when: When::Always, component };
            let mut engine = Sabotaged::new(still(fault), sabotage);
            let wrong = engine.run(&case).unwrap();
            assert!(!seen.contains(&wrong), "{component:?}");
            assert_eq!(engine.spoiled(), 1);
            seen.push(wrong);
        }
    }

    #[test]
    fn what_is_not_there_is_not_counted() {
        let absent = [
            Component::FaultAddress { bit: 0 },
            Component::ErrorCode { bit: 0 },
            Component::Memory { object: ObjectId(1), offset: 0 },
            Component::Memory { object: ObjectId(0), offset: 0x2000 },
        ];
        for component in absent {
            let sabotage = Sabotage { when: When::Always, component };
            let mut engine = Sabotaged::new(still(Stop::Halt), sabotage);
            engine.run(&case(&[])).unwrap();
            assert_eq!(engine.spoiled(), 0, "{component:?}");
        }
    }

    #[test]
    fn a_page_that_is_spoiled_back_to_its_start_is_no_change() {
        let case = case(&[]);
        let mut outcome = still(Stop::Halt).run(&case).unwrap();
        assert!(spoil_memory(&case, &mut outcome, ObjectId(0), 0x1001));
        assert_eq!((outcome.memory[0].page, outcome.memory[0].contents[1]), (1, 1));
        assert!(spoil_memory(&case, &mut outcome, ObjectId(0), 0x1001));
        assert_eq!(outcome.memory, []);
    }
}
