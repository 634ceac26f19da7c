//! Makes a case small while it stays the same finding.
//!
//! Passes, each of which keeps what it can take away: events; instructions, by putting `nop`s in
//! their place so that all addresses stay (code may be data); registers, whole and then byte by byte;
//! memory, in halves down to bytes; mappings and objects; the limit. They are repeated until none of
//! them helps or the budget of runs is spent. The predicate says whether a candidate still is what is
//! looked for; only valid cases are offered to it.

use iced_x86::Mnemonic;

use crate::case::{Action, Case, Event, ObjectId};
use crate::guest::{F80, Flag, GuestAddress, PAGE_SIZE, State, decoder};

/// The instruction.
const HLT: u8 = 0xf4;

/// How far a minimisation came.
#[derive(Clone, Debug)]
pub struct Minimised {
    /// The smallest case found.
    pub case: Case,
    /// How often the predicate was asked.
    pub runs: usize,
}

/// Makes `case` small, asking `holds` at most `budget` times. `holds(case)` is taken for granted.
pub fn minimise(case: &Case, budget: usize, holds: &mut dyn FnMut(&Case) -> bool) -> Minimised {
    let mut reducer = Reducer { best: case.clone(), runs: 0, budget, holds };
    loop {
        let before = reducer.best.clone();
        reducer.events();
        if !reducer.one_instruction() {
            reducer.filling();
        }
        reducer.instructions();
        reducer.state();
        reducer.memory();
        reducer.mappings();
        reducer.objects();
        if reducer.best == before || reducer.is_spent() {
            return Minimised { case: reducer.best, runs: reducer.runs };
        }
    }
}

struct Reducer<'a> {
    best: Case,
    runs: usize,
    budget: usize,
    holds: &'a mut dyn FnMut(&Case) -> bool,
}

impl Reducer<'_> {
    fn is_spent(&self) -> bool {
        self.runs >= self.budget
    }

    /// Keeps the best case as `change` makes it, if that is valid and still holds.
    fn attempt(&mut self, change: impl FnOnce(&mut Case)) -> bool {
        let mut candidate = self.best.clone();
        change(&mut candidate);
        if self.is_spent() || candidate == self.best || candidate.validate().is_err() {
            return false;
        }
        self.runs += 1;
        let holds = (self.holds)(&candidate);
        if holds {
            self.best = candidate;
        }
        holds
    }

    /// Whether the best case is as `change` makes it.
    fn is_so(&self, change: impl FnOnce(&mut Case)) -> bool {
        let mut candidate = self.best.clone();
        change(&mut candidate);
        candidate == self.best
    }

    fn events(&mut self) {
        self.attempt(|case| case.events.clear());
        for index in (0..self.best.events.len()).rev() {
            if self.attempt(|case| drop(case.events.remove(index))) {
                continue;
            }
            for action in (0..self.best.events[index].actions.len()).rev() {
                self.attempt(|case| drop(case.events[index].actions.remove(action)));
            }
        }
    }

    /// Leaves one instruction and zeros around it, if that is enough; a `hlt` behind it if it can be, since some
    /// engines translate all that follows, zeros too. Whether it is.
    fn one_instruction(&mut self) -> bool {
        let Some(first) = self.decode().first().copied() else { return false };
        let limit = self.best.limit;
        let mut alone = |behind: u8, limit: Option<u64>| {
            let change = |case: &mut Case| {
                let contents = &mut case.objects[first.object.0].contents;
                let end = first.offset + first.length;
                contents[..first.offset].fill(0);
                contents[end..].fill(0);
                if let Some(next) = contents.get_mut(end) {
                    *next = behind;
                }
                case.limit = limit;
            };
            self.is_so(change) || self.attempt(change)
        };
        alone(HLT, None) || alone(HLT, limit) || alone(0, limit)
    }

    /// Makes zeros of the long runs of one byte with which programs are filled up, which are no
    /// instructions to try one by one.
    fn filling(&mut self) {
        self.attempt(|case| {
            for object in &mut case.objects {
                for run in object.contents.chunk_by_mut(|left, right| left == right) {
                    if run.len() >= 8 {
                        run.fill(0);
                    }
                }
            }
        });
    }

    /// Puts `nop` in the place of instructions but `hlt`, decoding linearly from RIP: first runs of them,
    /// then each by itself. Then tries to begin later.
    fn instructions(&mut self) {
        let mut code = self.decode();
        code.retain(|place| !place.is_halt);
        let mut size = code.len().next_power_of_two().max(1);
        while size >= 1 {
            for chunk in code.chunks(size).rev() {
                self.attempt(|case| chunk.iter().for_each(|place| place.fill(case, 0x90)));
            }
            size /= 2;
        }
        for place in code.iter().rev() {
            self.attempt(|case| case.state.rip = place.address);
        }
    }

    fn decode(&self) -> Vec<Place> {
        let Some(mapping) = self.best.mappings.iter().find(|mapping| {
            mapping.permissions.execute()
                && mapping.range.contains(GuestAddress(self.best.state.rip))
        }) else {
            return Vec::new();
        };
        let rip = self.best.state.rip;
        let bytes = self.best.initial_bytes(GuestAddress(rip)).unwrap_or_default();
        let used = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        let base = mapping.offset + (rip - mapping.range.start().0);
        let mut decoder = decoder(&bytes[..used], rip);
        let mut places = Vec::new();
        while decoder.can_decode() {
            let offset = base + decoder.position() as u64;
            let instruction = decoder.decode();
            places.push(Place {
                object: mapping.object,
                offset: offset as usize,
                length: instruction.len(),
                address: instruction.ip(),
                is_halt: instruction.mnemonic() == Mnemonic::Hlt && instruction.len() == 1,
            });
        }
        places
    }

    fn state(&mut self) {
        let plain = State::default();
        let keep_rip = |case: &Case| State { rip: case.state.rip, ..State::default() };
        if self.attempt(|case| case.state = keep_rip(case)) {
            return;
        }
        self.attempt(|case| case.state.x87 = plain.x87);
        self.attempt(|case| case.state.vector = plain.vector);
        self.attempt(|case| case.state.opmask = plain.opmask);
        self.attempt(|case| case.state.mxcsr = plain.mxcsr);
        self.attempt(|case| case.state.fs_base = 0);
        self.attempt(|case| case.state.gs_base = 0);
        for flag in Flag::ALL {
            self.attempt(|case| {
                case.state.rflags = case.state.rflags & !flag.mask() | plain.rflags & flag.mask();
            });
        }
        for register in 0..16 {
            self.word(|case| &mut case.state.gpr[register]);
        }
        for register in 0..8 {
            self.word(|case| &mut case.state.opmask[register]);
            self.x87_register(register);
        }
        for register in 0..self.best.state.vector.len() {
            self.vector(register);
        }
        self.attempt(|case| case.state.x87.status = 0);
        self.attempt(|case| case.state.x87.control = plain.x87.control);
        self.attempt(|case| {
            case.state.x87.opcode = 0;
            case.state.x87.instruction_pointer = 0;
            case.state.x87.data_pointer = 0;
        });
    }

    /// Makes a word zero, or as many of its bytes as can be.
    fn word(&mut self, place: impl Fn(&mut Case) -> &mut u64) {
        if *place(&mut self.best) == 0 || self.attempt(|case| *place(case) = 0) {
            return;
        }
        if self.attempt(|case| *place(case) = 1) {
            return;
        }
        for byte in 0..8 {
            self.attempt(|case| *place(case) &= !(0xff << (byte * 8)));
        }
    }

    fn x87_register(&mut self, register: usize) {
        self.attempt(|case| case.state.x87.st[register] = F80::default());
        self.attempt(|case| case.state.x87.tag &= !(1 << register));
    }

    fn vector(&mut self, register: usize) {
        if self.best.state.vector[register] == [0; 8]
            || self.attempt(|case| case.state.vector[register] = [0; 8])
        {
            return;
        }
        for lane in 0..8 {
            self.word(|case| &mut case.state.vector[register][lane]);
        }
    }

    /// Makes bytes zero, in halves, but the first `hlt`.
    fn memory(&mut self) {
        let halt = self.decode().into_iter().find(|place| place.is_halt);
        for object in 0..self.best.objects.len() {
            let length = self.best.objects[object].contents.len();
            self.zero(object, 0, length, halt);
        }
    }

    fn zero(&mut self, object: usize, start: usize, length: usize, halt: Option<Place>) {
        let clear = |case: &mut Case| {
            case.objects[object].contents[start..start + length].fill(0);
            halt.iter().for_each(|place| place.fill(case, HLT));
        };
        if self.is_spent()
            || self.best.objects[object].contents[start..start + length]
                .iter()
                .all(|&byte| byte == 0)
            || self.attempt(clear)
            || length == 1
        {
            return;
        }
        let half = length / 2;
        self.zero(object, start, half, halt);
        self.zero(object, start + half, length - half, halt);
    }

    fn mappings(&mut self) {
        for index in (0..self.best.mappings.len()).rev() {
            self.attempt(|case| {
                case.mappings.remove(index);
            });
        }
    }

    /// Drops objects that nothing maps, and pages behind the last that is mapped.
    fn objects(&mut self) {
        for index in (0..self.best.objects.len()).rev() {
            let used = self.best.mappings.iter().chain(event_mappings(&self.best.events));
            let end = used
                .filter(|mapping| mapping.object.0 == index)
                .map(|mapping| mapping.offset + mapping.range.size())
                .max();
            match end {
                None => drop(self.attempt(|case| remove_object(case, index))),
                Some(end) => drop(self.attempt(|case| {
                    case.objects[index].contents.truncate(end.next_multiple_of(PAGE_SIZE) as usize);
                })),
            }
        }
    }
}

/// Where an instruction lies.
#[derive(Clone, Copy, Debug)]
struct Place {
    object: ObjectId,
    offset: usize,
    length: usize,
    address: u64,
    /// Whether it is the one byte of `hlt`, without which what lies behind would be executed.
    is_halt: bool,
}

impl Place {
    fn fill(&self, case: &mut Case, byte: u8) {
        case.objects[self.object.0].contents[self.offset..self.offset + self.length].fill(byte);
    }
}

fn event_mappings(events: &[Event]) -> impl Iterator<Item = &crate::case::Mapping> {
    events.iter().flat_map(|event| &event.actions).filter_map(|action| match action {
        Action::Map(mapping) => Some(mapping),
        _ => None,
    })
}

fn remove_object(case: &mut Case, index: usize) {
    case.objects.remove(index);
    let lower = |object: &mut ObjectId| {
        if object.0 > index {
            object.0 -= 1;
        }
    };
    case.mappings.iter_mut().for_each(|mapping| lower(&mut mapping.object));
    for action in case.events.iter_mut().flat_map(|event| &mut event.actions) {
        if let Action::Map(mapping) = action {
            lower(&mut mapping.object);
        }
    }
}
