//! [`Guest`]: a machine with a few pages, its vCPU, and canaries around its window.

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::SeedableRng;
use tregion::exec::{Exit, Machine, Vcpu};
use tregion::guest::{GuestAddress, GuestRange, Permissions, State};
use tregion::memory::Backing;

use crate::canaries::Canaries;
use crate::host;
use crate::program::Dice;

pub(crate) const CODE: u64 = 0x40_0000;
const DATA: u64 = 0x50_0000;
const CONSTANTS: u64 = 0x60_0000;
const STACK: u64 = 0x70_0000;

const PAGE: usize = 4096;
/// Pages of the backing, the code's being the first.
const PAGES: usize = 9;
/// Bytes without access on either side of the window.
const GUARD: u64 = 32 << 30;
const NAME: &str = "tregion-hostile";

/// See the file's head.
pub(crate) struct Guest {
    pub(crate) machine: Machine,
    pub(crate) vcpu: Vcpu,
    pub(crate) canaries: Canaries,
    backing: Backing,
    /// Host address of guest address 0.
    pub(crate) window: u64,
    window_end: u64,
    /// Host addresses to aim at.
    pub(crate) targets: Vec<u64>,
    mapped: Vec<u64>,
}

impl Guest {
    /// A guest in a window of 2^`bits` bytes, with canaries of this word.
    pub(crate) fn new(bits: u32, word: u64) -> Self {
        let mut canaries = Canaries::new(word);
        let machine = Machine::new(bits).unwrap();
        let vcpu = machine.vcpu().unwrap();
        let backing = Backing::new(NAME, (PAGES * PAGE) as u64).unwrap();
        let window_end = 1 << bits;
        let last = window_end - PAGE as u64;
        use Permissions as P;
        let places = [
            (CODE, 1, P::ReadWriteExecute),
            (DATA, 2, P::ReadWrite),
            (CONSTANTS, 1, P::Read),
            (STACK, 1, P::ReadWrite),
            (0, 1, P::ReadWrite),
            (last, 1, P::ReadWriteExecute),
            (window_end + 0x5000, 1, P::ReadWrite),
            (0u64.wrapping_sub(PAGE as u64), 1, P::ReadWriteExecute),
        ];
        let (mut offset, mut mapped) = (0, Vec::new());
        for (at, pages, permissions) in places {
            let range = GuestRange::new(GuestAddress(at), pages * PAGE as u64).unwrap();
            machine.map_shared(range, &backing, offset, permissions).unwrap();
            offset += range.size();
            mapped.push(at);
        }
        assert_eq!(offset, backing.size());
        let window = host::window_start(NAME, CONSTANTS);
        canaries.surround(window - GUARD, window + window_end + GUARD);
        let mut targets = host::targets();
        for _ in 0..8 {
            targets.extend(canaries.addresses());
        }
        Self { machine, vcpu, canaries, backing, window, window_end, targets, mapped }
    }

    /// Whether canaries begin where the guards end, below and above.
    pub(crate) fn is_surrounded(&self) -> (bool, bool) {
        let addresses = self.canaries.addresses();
        let (start, end) = (self.window - GUARD, self.window + self.window_end + GUARD);
        (addresses.contains(&(start - (256 << 10))), addresses.contains(&end))
    }

    /// A value that makes a bad address.
    pub(crate) fn value(&self, dice: &mut Dice) -> u64 {
        let little = dice.below(128) as u64;
        match dice.below(16) {
            0 => little,
            1..6 => dice.of(&self.mapped).wrapping_add(dice.below(PAGE) as u64 & !7),
            6 => self.window_end.wrapping_add(little).wrapping_sub(64),
            7 => 0u64.wrapping_sub(little),
            8 => dice
                .of(&[i64::MIN as u64, i64::MAX as u64, 1 << 63 | 8, 0x8000_0000, 0xffff_ffff])
                .wrapping_add(little),
            9 => dice.of(&[(1 << 47) - 8, 1 << 47, 1 << 46, 1 << 45, 0xffff_8000_0000_0000]),
            10..13 => dice.of(&self.targets).wrapping_sub(self.window).wrapping_add(little),
            13 => dice.of(&self.targets).wrapping_add(little),
            // Right in the bits that a check looks at, wrong in those above.
            14 => (dice.word() << dice.of(&[46, 48, 53, 56])) | dice.of(&self.mapped),
            _ => dice.word() >> dice.below(64),
        }
    }

    /// Fills all pages with bad addresses, and the code's with code.
    pub(crate) fn load(&mut self, dice: &mut Dice, code: &[u8]) {
        let mut filler = vec![0; PAGES * PAGE];
        let some: [u64; 64] = std::array::from_fn(|_| self.value(dice));
        for (index, word) in filler.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&some[index * 7 % 64].to_le_bytes());
        }
        if dice.one_in(2) {
            filler[..code.len()].copy_from_slice(code);
            self.backing.write(0, &filler);
            self.machine.flush();
        } else {
            self.backing.write(PAGE as u64, &filler[PAGE..]);
            self.machine.write(GuestAddress(CODE), code).unwrap();
        }
    }

    /// Registers full of bad addresses.
    pub(crate) fn state(&self, dice: &mut Dice) -> State {
        let mut state = State { rip: CODE, ..State::default() };
        // Some guests get further than others.
        let calm = dice.one_in(2);
        for register in &mut state.gpr {
            let good = dice.of(&self.mapped[..5]).wrapping_add(dice.below(PAGE) as u64 & !15);
            *register = if calm && !dice.one_in(4) { good } else { self.value(dice) };
        }
        if dice.one_in(2) {
            state.gpr[4] = STACK + 0x800;
        }
        if dice.one_in(2) {
            // Counts that end.
            state.gpr[1] = dice.below(64) as u64;
        }
        state.fs_base = self.value(dice);
        state.gs_base = self.value(dice);
        let trap = if dice.one_in(64) { 0x100 } else { 0 };
        state.rflags = dice.word() & 0x0024_4cd5 | trap;
        if !dice.one_in(4) {
            // No alignment checks.
            state.rflags &= !(1 << 18);
        }
        state.mxcsr = if dice.one_in(4) { dice.word() as u32 & 0xffff } else { 0x1f80 };
        for register in &mut state.vector {
            *register = std::array::from_fn(|_| self.value(dice));
        }
        state.opmask = std::array::from_fn(|_| dice.word());
        state
    }

    /// Whether the guest holds anything of a canary.
    pub(crate) fn has_seen(&self) -> Option<String> {
        let state = self.vcpu.state();
        if let Some(number) = state.gpr.iter().position(|it| self.canaries.is_seen_in(*it)) {
            return Some(format!("general-purpose register {number}"));
        }
        let vectors = state.vector.iter().flatten().any(|it| self.canaries.is_seen_in(*it));
        let x87 = state.x87.st.iter().any(|it| self.canaries.is_seen_in(it.significand));
        let pointers = [state.fs_base, state.gs_base, state.rip, state.x87.data_pointer];
        if vectors || x87 || pointers.iter().any(|it| self.canaries.is_seen_in(*it)) {
            return Some("another register".to_owned());
        }
        let mut bytes = vec![0; PAGES * PAGE];
        self.backing.read(0, &mut bytes);
        self.canaries.is_seen_in_bytes(&bytes).then(|| "memory".to_owned())
    }
}

/// Choices of case number `index`.
pub(crate) fn dice(index: u64) -> Dice {
    Dice(Xoshiro256PlusPlus::seed_from_u64(index.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

/// A name for each way out.
pub(crate) fn kind(exit: &Exit) -> String {
    match exit {
        Exit::Exception { vector, .. } => format!("exception {vector}"),
        Exit::Unsupported { .. } => "unsupported".to_owned(),
        other => format!("{other}"),
    }
}
