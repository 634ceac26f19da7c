//! Two vCPUs in one memory: what comes out is what some interleaving of their instructions gives.
//!
//! Each has a program of a few *slots*: aligned words of eight bytes with an instruction in the first six and
//! a jump to the next slot in the last two, so that a slot can be exchanged for another one by one store, and
//! who is in the middle of it goes on with the next one in any case. Slots load and exchange and add to words
//! that both share, and exchange slots of either program.
//!
//! All stores are LOCKed, so x86 shows no reordering of them (Intel SDM volume 3A, section 9.2.3.9), and
//! interleaving instructions one by one is all that may happen. Of code that another processor changes the manual
//! says less (section 9.1.3); the machine promises more: old or new, and new once the store is done. A slot is
//! a block of its own, so no other effect of a vCPU lies between the fetch of an instruction and its execution.
//!
//! The outcomes there may be come from a machine on which the two are stepped in every order, by a search
//! that meets each state once.

use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::exec::{Exit, Machine, MachineError, Vcpu};
use crate::guest::{GuestAddress, GuestRange, PAGE_SIZE, Permissions, State};

/// Bytes of the input for one slot. The first two records say how the vCPUs start, the others are slots of
/// the first and of the second in turn.
pub(super) const RECORD_BYTES: usize = 4;
/// Records that say how each vCPU starts.
pub(super) const HEAD_RECORDS: usize = 2;
/// Records of one input; what lies behind has no effect.
pub(super) const MOST_RECORDS: usize = HEAD_RECORDS + 2 * MOST_SLOTS;

const MOST_SLOTS: usize = 5;
const SLOT_BYTES: usize = 8;
/// Slots of a program with the `hlt` behind it.
const PROGRAM_SLOTS: usize = MOST_SLOTS + 1;
const WORDS: usize = 4;
/// How often the two run at the same time.
const ROUNDS: u64 = 12;

const WINDOW_BITS: u32 = 32;
/// The programs, each in a page of its own, or both in one.
const CODE: [u64; 2] = [0x40_0000, 0x40_1000];
const SECOND_IN_ONE_PAGE: u64 = CODE[0] + 0x800;
/// Where the vCPUs wait for each other, and the words.
const BARRIER: u64 = 0x50_0000;
const DATA: u64 = 0x50_0040;
/// Where each waits: `lock inc dword [r10]`, until [r10] is two, then its delay, then a jump to its program.
const WAIT: u64 = 0x60_0000;
const WAIT_CODE: [u8; 20] = [
    0xf0, 0x41, 0xff, 0x02, // lock inc dword [r10]
    0x41, 0x83, 0x3a, 0x02, // cmp dword [r10], 2
    0x75, 0xfa, // jne to the comparison
    0xff, 0xc9, // dec ecx
    0x7f, 0xfc, // jg to the decrement
    0x31, 0xc9, // xor ecx, ecx
    0x41, 0xff, 0xe7, // jmp r15
    0xf4,
];
/// General-purpose registers that slots use as values (RAX, RDX, RBX, RSI), and those that hold slots.
const VALUES: [u8; 4] = [0, 2, 3, 6];
const SLOTS: [usize; 2] = [12, 13];

type Slot = [u8; SLOT_BYTES];

/// Any bytes as two programs: what comes out when they run at the same time is an outcome of some
/// interleaving.
pub fn concurrent(bytes: &[u8]) {
    let scene = Scene::new(bytes);
    let allowed = scene.all_outcomes().expect("the JIT works on this host");
    for outcome in scene.run().expect("the JIT works on this host") {
        assert!(
            allowed.contains(&outcome),
            "no interleaving of\n{scene:?}\ngives\n{outcome:x?}\nbut these do:\n{allowed:x?}"
        );
    }
}

/// What is left when both have halted, or on the way there.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Snapshot {
    /// RIP and the registers that slots change, of each vCPU.
    registers: [Vec<u64>; 2],
    words: [u64; WORDS],
    programs: [[Slot; PROGRAM_SLOTS]; 2],
}

/// Two programs and how they start.
struct Scene {
    programs: [[Slot; PROGRAM_SLOTS]; 2],
    states: [State; 2],
    /// Address of each program.
    places: [u64; 2],
}

impl fmt::Debug for Scene {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (program, state)) in self.programs.iter().zip(&self.states).enumerate() {
            writeln!(formatter, "vCPU {number} at {:#x}, {:x?}:", self.places[number], state.gpr)?;
            program.iter().try_for_each(|slot| writeln!(formatter, "  {slot:02x?}"))?;
        }
        Ok(())
    }
}

impl Scene {
    fn new(bytes: &[u8]) -> Self {
        let mut records = bytes.chunks_exact(RECORD_BYTES).take(MOST_RECORDS);
        let mut next = || records.next().map_or([0; 4], |record| [0, 1, 2, 3].map(|at| record[at]));
        let heads = [next(), next()];
        let one_page = heads[0][0] % 2 == 1;
        let places = if one_page { [CODE[0], SECOND_IN_ONE_PAGE] } else { CODE };
        let mut programs = [[halt(); PROGRAM_SLOTS]; 2];
        for (number, record) in records.enumerate() {
            programs[number % 2][number / 2] = slot(record);
        }
        let states = [0, 1].map(|number| {
            let mut state = State { rip: places[number], ..State::default() };
            for (value, register) in (1..).zip(VALUES) {
                state.gpr[usize::from(register)] = 0x10 * (number as u64 + 1) + value;
            }
            let head = heads[number];
            // What is written over slots: constants, additions, loads.
            state.gpr[SLOTS[0]] = u64::from_le_bytes(slot(&[head[1] % 4, head[1] >> 2, 7, 9]));
            state.gpr[SLOTS[1]] = u64::from_le_bytes(slot(&[head[2], head[2] >> 3, 5, 3]));
            // The delay, which is over when a program begins, …
            state.gpr[1] = 0;
            state.gpr[11] = u64::from(head[3] % 64);
            // … and the words, the other's program and its own.
            state.gpr[8] = DATA;
            state.gpr[9] = places[1 - number];
            state.gpr[14] = places[number];
            state.gpr[10] = BARRIER;
            state.gpr[15] = places[number];
            state
        });
        Self { programs, states, places }
    }

    fn machine(&self) -> Result<(Machine, [Vcpu; 2]), MachineError> {
        let machine = Machine::new(WINDOW_BITS)?;
        let rwx = Permissions::ReadWriteExecute;
        for (at, permissions) in [
            (CODE[0], rwx),
            (CODE[1], rwx),
            (BARRIER, Permissions::ReadWrite),
            (WAIT, Permissions::ReadExecute),
        ] {
            let range = GuestRange::new(GuestAddress(at), PAGE_SIZE).expect("it is a page");
            machine.map(range, permissions)?;
        }
        machine.write(GuestAddress(WAIT), &WAIT_CODE).expect("it is mapped");
        let vcpus = [machine.vcpu()?, machine.vcpu()?];
        Ok((machine, vcpus))
    }

    fn start(&self) -> Snapshot {
        Snapshot {
            registers: [0, 1].map(|number| registers(&self.states[number])),
            words: [1, 2, 3, 4],
            programs: self.programs,
        }
    }

    /// What every order of the two programs' instructions gives.
    fn all_outcomes(&self) -> Result<HashSet<Snapshot>, MachineError> {
        let (machine, mut vcpus) = self.machine()?;
        let (mut met, mut outcomes) = (HashSet::new(), HashSet::new());
        let mut open = vec![self.start()];
        while let Some(state) = open.pop() {
            if !met.insert(state.clone()) {
                continue;
            }
            let running = [0, 1].map(|number| !self.is_over(number, &state));
            if running == [false; 2] {
                outcomes.insert(state);
                continue;
            }
            for number in [0, 1].into_iter().filter(|number| running[*number]) {
                self.store_memory(&machine, &state);
                let vcpu = &mut vcpus[number];
                vcpu.set_state(&self.loaded(number, &state.registers[number]));
                // An instruction, and the jump behind it.
                match vcpu.run(Some(2)) {
                    Exit::Budget | Exit::Halt => {}
                    exit => panic!("{exit} in\n{self:?}"),
                }
                let mut next = self.load_memory(&machine);
                next.registers.clone_from(&state.registers);
                next.registers[number] = registers(&vcpu.state());
                open.push(next);
            }
        }
        Ok(outcomes)
    }

    /// Whether a vCPU is behind its `hlt`.
    fn is_over(&self, number: usize, state: &Snapshot) -> bool {
        state.registers[number][0] % SLOT_BYTES as u64 == 1
    }

    fn loaded(&self, number: usize, registers: &[u64]) -> State {
        let mut state = self.states[number].clone();
        state.rip = registers[0];
        for (register, value) in changing_registers().zip(&registers[1..]) {
            state.gpr[register] = *value;
        }
        state
    }

    fn store_memory(&self, machine: &Machine, state: &Snapshot) {
        let words = state.words.map(u64::to_le_bytes).concat();
        let mut writes = vec![(BARRIER, vec![0; 8]), (DATA, words)];
        writes.extend([0, 1].map(|number| (self.places[number], state.programs[number].concat())));
        for (address, bytes) in writes {
            machine.write(GuestAddress(address), &bytes).expect("it is mapped");
        }
    }

    /// Memory as it is now; no registers.
    fn load_memory(&self, machine: &Machine) -> Snapshot {
        let word = |address| {
            let mut bytes = [0; SLOT_BYTES];
            machine.read(GuestAddress(address), &mut bytes).expect("it is mapped");
            bytes
        };
        Snapshot {
            registers: Default::default(),
            words: std::array::from_fn(|index| u64::from_le_bytes(word(DATA + 8 * index as u64))),
            programs: self
                .places
                .map(|place| std::array::from_fn(|index| word(place + 8 * index as u64))),
        }
    }

    /// What came out when both ran at the same time, each round anew.
    fn run(&self) -> Result<Vec<Snapshot>, MachineError> {
        let (machine, [mut first, mut second]) = self.machine()?;
        let round = AtomicU64::new(0);
        let done = AtomicU64::new(0);
        let second_registers = AtomicResults::default();
        let mut outcomes = Vec::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 1..=ROUNDS {
                    wait_until(&round, number);
                    second_registers.put(&self.run_one(1, &mut second, number));
                    done.store(number, Ordering::Release);
                }
            });
            for number in 1..=ROUNDS {
                self.store_memory(&machine, &self.start());
                round.store(number, Ordering::Release);
                let registers = self.run_one(0, &mut first, number);
                wait_until(&done, number);
                let mut outcome = self.load_memory(&machine);
                outcome.registers = [registers, second_registers.get()];
                outcomes.push(outcome);
            }
        });
        Ok(outcomes)
    }

    /// Registers at the end of one vCPU's program, from the wait on.
    fn run_one(&self, number: usize, vcpu: &mut Vcpu, round: u64) -> Vec<u64> {
        let mut state = self.states[number].clone();
        state.rip = WAIT;
        // Delays shift against each other from round to round.
        state.gpr[1] = state.gpr[11] + round * number as u64;
        vcpu.set_state(&state);
        match vcpu.run(None) {
            Exit::Halt => registers(&vcpu.state()),
            exit => {
                // The other one may wait for ever for what this one should have done.
                eprintln!("vCPU {number}: {exit} in\n{self:?}");
                std::process::abort()
            }
        }
    }
}

fn changing_registers() -> impl Iterator<Item = usize> {
    VALUES.into_iter().map(usize::from).chain(SLOTS)
}

fn registers(state: &State) -> Vec<u64> {
    let values = changing_registers().map(|register| state.gpr[register]);
    std::iter::once(state.rip).chain(values).collect()
}

fn wait_until(word: &AtomicU64, value: u64) {
    let mut spins = 0_u32;
    while word.load(Ordering::Acquire) < value {
        spins += 1;
        if spins > 1000 {
            std::thread::yield_now();
        }
        std::hint::spin_loop();
    }
}

/// Registers on their way from one thread to the other, which waits for them in another word.
#[derive(Default)]
struct AtomicResults([AtomicU64; 1 + VALUES.len() + SLOTS.len()]);

impl AtomicResults {
    fn put(&self, values: &[u64]) {
        self.0.iter().zip(values).for_each(|(word, value)| word.store(*value, Ordering::Relaxed));
    }

    fn get(&self) -> Vec<u64> {
        self.0.iter().map(|word| word.load(Ordering::Relaxed)).collect()
    }
}

fn halt() -> Slot {
    [0xf4, 0x90, 0x90, 0x90, 0x90, 0x90, 0xeb, 0x00]
}

/// The slot that a record stands for.
fn slot(record: &[u8]) -> Slot {
    let (first, second) = (record[1] % 4, record[2] % 4);
    let (one, other) = (VALUES[usize::from(first)], VALUES[usize::from(second)]);
    let word = (record[3] % WORDS as u8) * 8;
    let place = (record[2] % MOST_SLOTS as u8) * 8;
    let code: [u8; 6] = match record[0] % 12 {
        // mov one, constant; add other, one; mov one, [r8 + word]
        0 | 8 => [0xc7, 0xc0 | one, record[2], record[3], 0, 0],
        1 => [0x3e, 0x3e, 0x3e, 0x48, 0x01, 0xc0 | one << 3 | other],
        2 | 9 => [0x3e, 0x3e, 0x49, 0x8b, 0x40 | one << 3, word],
        // xchg [r8 + word], one; lock xadd [r8 + word], one; lock add qword [r8 + word], constant
        3 => [0x3e, 0x3e, 0x49, 0x87, 0x40 | one << 3, word],
        4 => [0xf0, 0x49, 0x0f, 0xc1, 0x40 | one << 3, word],
        5 => [0xf0, 0x49, 0x83, 0x40, word, record[2]],
        // xchg [r9 + place], r12 and r13: of the other program, and [r14 + place] of this one
        6 | 10 => [0x3e, 0x3e, 0x4d, 0x87, 0x61, place],
        7 => [0x3e, 0x3e, 0x4d, 0x87, 0x69, place],
        _ => [0x3e, 0x3e, 0x4d, 0x87, 0x66, place],
    };
    let mut slot = [0, 0, 0, 0, 0, 0, 0xeb, 0x00];
    slot[..6].copy_from_slice(&code);
    slot
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::choices;

    fn input(number: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        choices(0xc0c0, number, &mut bytes);
        bytes.truncate(RECORD_BYTES * (6 + number as usize % 7));
        bytes
    }

    #[test]
    fn seeded_pairs_of_programs() {
        (0..60).for_each(|number| concurrent(&input(number)));
    }

    #[test]
    fn there_is_more_than_one_outcome() {
        let (mut several, mut most) = (0, 0);
        for number in 0..100 {
            let outcomes = Scene::new(&input(number)).all_outcomes().unwrap().len();
            several += usize::from(outcomes > 1);
            most = most.max(outcomes);
        }
        println!("{several} of 100 have several outcomes, one has {most}");
        assert!(several > 30 && most > 5);
    }

    /// One stores to two words, the other loads them the other way round.
    #[test]
    fn message_passing() {
        let mut bytes = vec![0; RECORD_BYTES * HEAD_RECORDS];
        for record in [[3, 0, 0, 0], [2, 0, 0, 1], [3, 1, 0, 1], [2, 1, 0, 0]] {
            bytes.extend(record);
        }
        let outcomes = Scene::new(&bytes).all_outcomes().unwrap();
        // RAX and RDX of the second: words 1 and 0, which were 2 and 1 and become 0x12 and 0x11.
        let mut loaded: Vec<_> =
            outcomes.iter().map(|it| (it.registers[1][1], it.registers[1][2])).collect();
        loaded.sort_unstable();
        assert_eq!(loaded, [(2, 1), (2, 0x11), (0x12, 0x11)]);
        concurrent(&bytes);
    }

    /// One exchanges an instruction of the other, which runs the old one or the new one.
    #[test]
    fn an_exchanged_instruction() {
        let mut bytes = vec![0; RECORD_BYTES * HEAD_RECORDS];
        bytes[1] = 0;
        for record in [[6, 0, 1, 0], [2, 1, 0, 0], [2, 1, 0, 0], [0, 0, 0x55, 0]] {
            bytes.extend(record);
        }
        let outcomes = Scene::new(&bytes).all_outcomes().unwrap();
        assert_eq!(outcomes.len(), 2, "{outcomes:x?}");
        concurrent(&bytes);
    }
}
