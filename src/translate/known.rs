//! [`Known`]: what a block knows of the values that addresses are made of, so that not every access has
//! to be probed.
//!
//! Two kinds of facts. A register is *small* if its value, taken as signed, is no further from zero than
//! 2^32: 32-bit results are. A *sum* of registers is *near* if that sum and some constant, its *center*,
//! was probed or accessed in this block, and so lies in the window; constants added to its registers since
//! have moved the center. An address needs no probe if what it can be differs from an address in the
//! window, or from zero, by less than the guards are wide ([`GUARD_BYTES`]): then it lies in the window or
//! in a guard, where it faults. The bits above the 47th, which probes do not see, make an address
//! fault by not being canonical, and nothing that is added here reaches them.

use super::vcpu_block::GUARD_BYTES;

/// How far constants may move a small value from its 2^32, or an address from a center.
const MOST_MOVED: i64 = 1 << 30;
/// Sums of two registers, or of one that is scaled, that are kept: the last ones.
const SUMS: usize = 4;

/// Base, eight times an index, displacement, and bytes of an operand.
const FURTHEST: u64 = (1 << 32) + 8 * (1 << 32) + 9 * MOST_MOVED as u64 + (1 << 31) + (1 << 16);
const _: () = assert!(FURTHEST < GUARD_BYTES, "what is not probed lies in the window or a guard");
/// A gather's or scatter's base and displacement, and 2^31 times eight.
const FURTHEST_GATHERED: u64 = (1 << 32) + MOST_MOVED as u64 + (1 << 31) + 8 * (1 << 31) + 64;
const _: () = assert!(FURTHEST_GATHERED < GUARD_BYTES);

/// A memory operand's address, of 64-bit registers by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) base: Option<u8>,
    /// With its scale.
    pub(super) index: Option<(u8, u8)>,
    pub(super) displacement: i64,
}

/// What is to be probed before an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// It is known to be harmless.
    Nothing,
    /// This register.
    Register(u8),
    /// The whole address.
    Address,
}

/// A sum of registers that is near.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sum {
    base: Option<u8>,
    index: (u8, u8),
    center: i64,
}

/// A number for some of the registers.
#[derive(Clone, Copy, Debug, Default)]
struct Facts {
    /// Of which there is one.
    of: u16,
    values: [i64; 16],
}

/// See the file's head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// How far constants have moved each register that was small.
    small: Facts,
    /// The center of each register that is near by itself.
    near: Facts,
    sums: [Option<Sum>; SUMS],
    /// The sum to be forgotten for the next.
    oldest: u8,
}

impl Sum {
    /// By a bit each.
    fn registers(self) -> u16 {
        self.base.map_or(0, |base| 1 << base) | 1 << self.index.0
    }
}

impl Address {
    /// A register, and nothing added.
    pub(super) fn of(register: u8) -> Self {
        Self { base: Some(register), index: None, displacement: 0 }
    }

    /// With registers that can take each other's place in one order.
    fn ordered(self) -> Self {
        match (self.base, self.index) {
            (None, Some((index, 1))) => Self { base: Some(index), index: None, ..self },
            (Some(base), Some((index, 1))) if index < base => {
                Self { base: Some(index), index: Some((base, 1)), ..self }
            }
            _ => self,
        }
    }
}

impl Facts {
    fn get(&self, register: u8) -> Option<i64> {
        (self.of >> register & 1 != 0).then(|| self.values[usize::from(register)])
    }

    fn set(&mut self, register: u8, value: Option<i64>) {
        self.of &= !(1 << register);
        if let Some(value) = value {
            self.of |= 1 << register;
            self.values[usize::from(register)] = value;
        }
    }

    /// What `others` have too.
    fn kept_by(&self, others: &Self) -> Self {
        let differ = |register: &u8| self.get(*register) != others.get(*register);
        let lost = (0..16).filter(differ).fold(0, |mask, register| mask | 1 << register);
        Self { of: self.of & !lost, ..*self }
    }
}

impl PartialEq for Facts {
    fn eq(&self, other: &Self) -> bool {
        (0..16).all(|register| self.get(register) == other.get(register))
    }
}

impl Eq for Facts {}

impl Known {
    /// What has to be probed before an access to `address`.
    pub(super) fn wants(&self, address: Address) -> Wanted {
        let address = address.ordered();
        let displacement = address.displacement;
        let whole = |near| if near { Wanted::Nothing } else { Wanted::Address };
        match (address.base, address.index) {
            (base, Some((index, _))) if self.is_small(index) => {
                base.map_or(Wanted::Nothing, |base| self.wants_base(base, displacement))
            }
            (Some(small), Some((base, 1))) if self.is_small(small) => {
                self.wants_base(base, displacement)
            }
            (base, Some(index)) => whole(self.is_near_sum(base, index, displacement)),
            (Some(base), None) => self.wants_base(base, displacement),
            (None, None) => Wanted::Address,
        }
    }

    /// The same if all that is not known to be small is `base`. By itself it is likely to be used again.
    fn wants_base(&self, base: u8, displacement: i64) -> Wanted {
        if self.is_small(base) || self.is_near(base, displacement) {
            Wanted::Nothing
        } else if displacement.abs() <= 1 << 16 {
            Wanted::Register(base)
        } else {
            Wanted::Address
        }
    }

    fn is_small(&self, register: u8) -> bool {
        self.small.get(register).is_some()
    }

    fn is_near(&self, register: u8, displacement: i64) -> bool {
        self.near.get(register).is_some_and(|center| is_at(center, displacement))
    }

    fn is_near_sum(&self, base: Option<u8>, index: (u8, u8), displacement: i64) -> bool {
        self.sums
            .iter()
            .flatten()
            .any(|sum| (sum.base, sum.index) == (base, index) && is_at(sum.center, displacement))
    }

    /// `address` was probed, or accessed without a fault.
    pub(super) fn note(&mut self, address: Address) {
        let Address { base, index, displacement: center } = address.ordered();
        match (base, index) {
            (Some(base), None) => self.near.set(base, Some(center)),
            (base, Some(index)) => self.note_sum(Sum { base, index, center }),
            (None, None) => {}
        }
    }

    fn note_sum(&mut self, sum: Sum) {
        let same = |known: &Option<Sum>| {
            known.is_some_and(|known| (known.base, known.index) == (sum.base, sum.index))
        };
        let place = self.sums.iter().position(same).unwrap_or_else(|| {
            let oldest = usize::from(self.oldest);
            self.oldest = (self.oldest + 1) % SUMS as u8;
            oldest
        });
        self.sums[place] = Some(sum);
    }

    /// `register` was given a value of which nothing is known.
    pub(super) fn forget(&mut self, register: u8) {
        self.forget_all(1 << register);
    }

    pub(super) fn forget_all(&mut self, registers: u16) {
        self.small.of &= !registers;
        self.near.of &= !registers;
        self.forget_sums(registers);
    }

    fn forget_sums(&mut self, registers: u16) {
        for sum in &mut self.sums {
            if sum.is_some_and(|sum| sum.registers() & registers != 0) {
                *sum = None;
            }
        }
    }

    /// `register` was given a small value.
    pub(super) fn note_small(&mut self, register: u8) {
        self.forget(register);
        self.small.set(register, Some(0));
    }

    /// `to` was given the value of `from` and `distance`.
    pub(super) fn moved(&mut self, to: u8, from: u8, distance: i64) {
        let small = self.small.get(from).map(|moved| moved + distance);
        self.small.set(to, small.filter(|moved| moved.abs() <= MOST_MOVED));
        self.near.set(to, self.near.get(from).map(|center| center - distance));
        if to != from {
            return self.forget_sums(1 << to);
        }
        for sum in self.sums.iter_mut().flatten() {
            if sum.base == Some(to) {
                sum.center -= distance;
            }
            if sum.index.0 == to {
                sum.center -= distance * i64::from(sum.index.1);
            }
        }
    }

    /// What of this is still true after code that leaves `after` true.
    pub(super) fn kept_by(&self, after: &Self) -> Self {
        Self {
            small: self.small.kept_by(&after.small),
            near: self.near.kept_by(&after.near),
            sums: self.sums.map(|sum| sum.filter(|sum| after.sums.contains(&Some(*sum)))),
            oldest: self.oldest,
        }
    }
}

/// Whether an address with this displacement is near one with that of a center. Centers move by less
/// than 2^36 for each of a block's instructions, so differences do not overflow.
fn is_at(center: i64, displacement: i64) -> bool {
    (displacement - center).abs() <= MOST_MOVED
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAX: u8 = 0;
    const RCX: u8 = 1;
    const RDX: u8 = 2;

    fn address(base: Option<u8>, index: Option<(u8, u8)>, displacement: i64) -> Address {
        Address { base, index, displacement }
    }

    #[test]
    fn a_probed_base_is_near_until_it_is_written() {
        let mut known = Known::default();
        let operand = address(Some(RAX), None, 8);
        assert_eq!(known.wants(operand), Wanted::Register(RAX));
        known.note(Address::of(RAX));
        assert_eq!(known.wants(operand), Wanted::Nothing);
        assert_eq!(known.wants(address(Some(RAX), None, i64::from(i32::MAX))), Wanted::Address);
        known.moved(RAX, RAX, MOST_MOVED);
        assert_eq!(known.wants(Address::of(RAX)), Wanted::Nothing);
        known.moved(RAX, RAX, 1);
        assert_ne!(known.wants(Address::of(RAX)), Wanted::Nothing);
        known.note(Address::of(RAX));
        known.forget(RAX);
        assert_ne!(known.wants(Address::of(RAX)), Wanted::Nothing);
    }

    #[test]
    fn a_sum_moves_with_both_of_its_registers() {
        let mut known = Known::default();
        let operand = address(Some(RAX), Some((RCX, 8)), 0);
        assert_eq!(known.wants(operand), Wanted::Address);
        known.note(operand);
        known.moved(RCX, RCX, MOST_MOVED / 8);
        assert_eq!(known.wants(operand), Wanted::Nothing);
        known.moved(RAX, RAX, 1);
        assert_eq!(known.wants(operand), Wanted::Address);
        known.moved(RAX, RAX, -1);
        assert_eq!(known.wants(operand), Wanted::Nothing);
        // Another scale or order is another sum, but for a scale of one.
        assert_eq!(known.wants(address(Some(RAX), Some((RCX, 4)), 0)), Wanted::Address);
        assert_eq!(known.wants(address(Some(RCX), Some((RAX, 8)), 0)), Wanted::Address);
        known.note(address(Some(RAX), Some((RDX, 1)), 0));
        assert_eq!(known.wants(address(Some(RDX), Some((RAX, 1)), 0)), Wanted::Nothing);
        known.forget(RAX);
        assert_eq!(known, Known { oldest: known.oldest, ..Known::default() });
    }

    #[test]
    fn what_is_small_needs_no_probe_and_moves_away() {
        let mut known = Known::default();
        known.note_small(RCX);
        assert_eq!(known.wants(address(None, Some((RCX, 8)), 1 << 30)), Wanted::Nothing);
        assert_eq!(known.wants(address(Some(RCX), None, -8)), Wanted::Nothing);
        // The other register is what is probed.
        assert_eq!(known.wants(address(Some(RAX), Some((RCX, 8)), 0)), Wanted::Register(RAX));
        assert_eq!(known.wants(address(Some(RCX), Some((RAX, 1)), 0)), Wanted::Register(RAX));
        assert_eq!(known.wants(address(Some(RCX), Some((RAX, 2)), 0)), Wanted::Address);
        known.moved(RDX, RCX, MOST_MOVED + 1);
        assert_ne!(known.wants(Address::of(RDX)), Wanted::Nothing);
    }

    #[test]
    fn a_copy_is_where_its_source_is_and_forgets_what_was_there() {
        let mut known = Known::default();
        known.note(Address::of(RAX));
        known.note(address(Some(RDX), Some((RCX, 2)), 0));
        known.moved(RDX, RAX, 0x1000);
        assert_eq!(known.wants(Address::of(RDX)), Wanted::Nothing);
        assert_eq!(known.wants(address(Some(RDX), Some((RCX, 2)), 0)), Wanted::Address);
        known.moved(RAX, RCX, 0);
        assert_eq!(known.wants(Address::of(RAX)), Wanted::Register(RAX));
        assert_eq!(known.wants(Address::of(RDX)), Wanted::Nothing);
    }

    #[test]
    fn a_loop_keeps_what_each_pass_restores() {
        let mut first = Known::default();
        let operand = address(Some(RAX), Some((RCX, 4)), 0);
        let pass = |known: &mut Known| {
            known.note(operand);
            known.note(Address::of(RDX));
            known.moved(RCX, RCX, 1);
            known.forget(RDX);
        };
        pass(&mut first);
        let mut second = first;
        pass(&mut second);
        let kept = first.kept_by(&second);
        assert_eq!(kept.wants(operand), Wanted::Nothing);
        assert_eq!(kept.wants(Address::of(RDX)), Wanted::Register(RDX));
        // A pass that accesses nothing moves away.
        second.moved(RCX, RCX, 1);
        assert_eq!(first.kept_by(&second).wants(operand), Wanted::Address);
    }
}
