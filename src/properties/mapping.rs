//! Operations on the memory of a machine, next to a model of it: after each, what is mapped, with which
//! rights, which pages are the same, every byte, and what was refused and why, are as in the model. Between
//! them a guest reads, writes and executes what is there.
//!
//! The model is a map from page to bytes by name; a snapshot of it is a copy of everything.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::exec::{Exit, Machine, Vcpu};
use crate::guest::{GuestAddress, GuestRange, PAGE_SIZE, Permissions, State};
use crate::memory::{AccessError, Backing, MapError, PageId, Snapshot};

/// Bytes of an operation: what, where, how many or whither, rights or place in the page, a value.
pub(super) const STEP_BYTES: usize = 8;
/// Operations of one input; what lies behind has no effect.
pub(super) const MOST_STEPS: usize = 48;

const WINDOW_BITS: u32 = 32;
/// Pages that are played with, …
const PAGES: u64 = 12;
/// … how many lie in the window, and how many before the gap between its end and the top.
const IN_WINDOW: u64 = 7;
const BEFORE_GAP: u64 = 10;
const BACKING_PAGES: u64 = 6;
const MOST_SNAPSHOTS: usize = 3;
const MOST_EXECUTED: usize = 4;

/// Where the guest's own code is: `mov al, [rdi]; hlt`, and behind it `mov [rdi], al; hlt`.
const ACCESSES: u64 = 0x1_0000;
const ACCESS_CODE: [u8; 6] = [0x8a, 0x07, 0xf4, 0x88, 0x07, 0xf4];
/// Offsets in a page at which functions are put: `mov eax, value; hlt`, the last ones across its end.
const SLOTS: [u64; 8] = [0, 0, 0, 0, 0x800, 0x800, 0xffd, 0xfff];
const FUNCTION_BYTES: u64 = 6;

/// Any bytes as operations.
pub fn mapping(bytes: &[u8]) {
    let mut pair = Pair::new();
    for step in bytes.chunks_exact(STEP_BYTES).take(MOST_STEPS) {
        pair.take(step);
        pair.check();
    }
}

/// The address of page `number`: the first up to the window's end, some above, the last at the top.
fn address_of(number: u64) -> GuestAddress {
    let end = 1_u64 << WINDOW_BITS;
    GuestAddress(match number {
        0..BEFORE_GAP => end - IN_WINDOW * PAGE_SIZE + number * PAGE_SIZE,
        _ => 0_u64.wrapping_sub((PAGES - number) * PAGE_SIZE),
    })
}

/// The page of an address, if it is one of those that are played with.
fn page_of(address: GuestAddress) -> Option<u64> {
    (0..PAGES).find(|&number| address.0 / PAGE_SIZE == address_of(number).0 / PAGE_SIZE)
}

/// The range of `count` pages from page `at` on, if they follow each other.
fn range(at: u64, count: u64) -> Option<GuestRange> {
    let contiguous = at + count <= BEFORE_GAP || (at >= BEFORE_GAP && at + count <= PAGES);
    let range = GuestRange::new(address_of(at), count * PAGE_SIZE).ok()?;
    contiguous.then_some(range)
}

/// A page of bytes: whose (0 and 1 are the shared backings, others each a private mapping), which.
type Name = (u64, u64);

/// Why an operation is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    Overlap,
    Hole(GuestAddress),
    Straddles,
    OutsideBacking,
}

#[derive(Clone, Default)]
struct Model {
    pages: BTreeMap<u64, (Name, Permissions)>,
    bytes: BTreeMap<Name, Vec<u8>>,
}

impl Model {
    fn holes(&self, at: u64, count: u64) -> Option<Refusal> {
        let hole = (at..at + count).find(|page| !self.pages.contains_key(page))?;
        Some(Refusal::Hole(address_of(hole)))
    }

    /// Whether something lies there that is not in `own`.
    fn overlap(&self, at: u64, count: u64, own: std::ops::Range<u64>) -> Option<Refusal> {
        let mut taken = (at..at + count).filter(|page| self.pages.contains_key(page));
        taken.any(|page| !own.contains(&page)).then_some(Refusal::Overlap)
    }

    fn permissions_at(&self, address: GuestAddress) -> Option<Permissions> {
        Some(self.pages.get(&page_of(address)?)?.1)
    }

    fn byte(&self, address: GuestAddress) -> Option<u8> {
        let (name, _) = self.pages.get(&page_of(address)?)?;
        Some(self.bytes[name][(address.0 % PAGE_SIZE) as usize])
    }

    fn set_byte(&mut self, address: GuestAddress, value: u8) {
        let page = page_of(address).and_then(|page| self.pages.get(&page));
        let bytes = page.and_then(|(name, _)| self.bytes.get_mut(name));
        bytes.expect("it is mapped")[(address.0 % PAGE_SIZE) as usize] = value;
    }

    /// What a guest's access that needs `allowed` ends in, if that is a page fault. `kind` are the bits of
    /// its error code beside P (Intel SDM volume 3A, section 4.7).
    fn fault(
        &self,
        address: GuestAddress,
        kind: u32,
        allowed: fn(Permissions) -> bool,
    ) -> Option<Exit> {
        let permissions = self.permissions_at(address);
        if permissions.is_some_and(allowed) {
            return None;
        }
        let present = permissions.is_some_and(|permissions| permissions != Permissions::None);
        let error = kind | u32::from(present);
        Some(Exit::Exception { vector: 14, error, address: Some(address.0) })
    }
}

fn straddles(at: u64, count: u64) -> Option<Refusal> {
    (at < IN_WINDOW && at + count > IN_WINDOW).then_some(Refusal::Straddles)
}

fn zeros() -> Vec<u8> {
    vec![0; PAGE_SIZE as usize]
}

/// A machine and its model.
struct Pair {
    machine: Machine,
    vcpu: Vcpu,
    model: Model,
    backings: [Backing; 2],
    snapshots: Vec<(Snapshot, Model)>,
    next_name: u64,
    /// Where functions were executed last; they are once more after each step.
    executed: VecDeque<GuestAddress>,
}

impl Pair {
    fn new() -> Self {
        let shared = (0..2).flat_map(|backing| (0..BACKING_PAGES).map(move |page| (backing, page)));
        let bytes = shared.map(|name| (name, zeros())).collect();
        let backing = || Backing::new("tregion-mapping", BACKING_PAGES * PAGE_SIZE);
        let machine = Machine::new(WINDOW_BITS).expect("the JIT works on this host");
        let own = GuestRange::new(GuestAddress(ACCESSES), PAGE_SIZE).expect("it is a page");
        machine.map(own, Permissions::ReadExecute).expect("nothing is mapped yet");
        machine.write(own.start(), &ACCESS_CODE).expect("it is mapped");
        Self {
            vcpu: machine.vcpu().expect("the host has room for a vCPU"),
            machine,
            model: Model { bytes, ..Model::default() },
            backings: [(); 2].map(|()| backing().expect("the host has room for some pages")),
            snapshots: Vec::new(),
            next_name: 2,
            executed: VecDeque::new(),
        }
    }

    fn take(&mut self, step: &[u8]) {
        // Most happens where the window ends.
        let page = |byte: u8| match byte {
            0..=127 => IN_WINDOW - 3 + u64::from(byte) % 4,
            _ => u64::from(byte) % PAGES,
        };
        let at = page(step[1]);
        let count = [1, 1, 1, 2, 2, 3, 1, 4][usize::from(step[2] & 7)];
        let permissions = Permissions::ALL[usize::from(step[3]) % Permissions::ALL.len()];
        let place = address_of(at).0.checked_add(SLOTS[usize::from(step[3] >> 4) % SLOTS.len()]);
        let place = place.filter(|place| place.checked_add(FUNCTION_BYTES).is_some());
        let value = u32::from_le_bytes([step[4], step[5], step[6], step[7]]);
        match (step[0] % 32, range(at, count), place) {
            (0..=2, Some(range), _) => self.map(at, range, permissions),
            (3..=5, Some(range), _) => self.map_shared(at, range, value, permissions),
            (6..=7, Some(range), _) => self.unmap(at, range),
            (8..=10, Some(range), _) => self.protect(at, range, permissions),
            (11..=12, Some(range), _) => self.place(at, range, page(step[4]), true),
            (13..=14, Some(range), _) => self.place(at, range, page(step[4]), false),
            (15..=17, _, Some(place)) => {
                self.write_function(GuestAddress(place), value);
                self.note_execution(GuestAddress(place));
            }
            (18..=20, _, Some(place)) => {
                let inside = 1 + u64::from(step[2] & 3);
                self.guest_write(GuestAddress(place + inside), value as u8);
            }
            (21..=22, _, Some(place)) => self.guest_read(GuestAddress(place + 1)),
            (23..=27, _, Some(place)) => self.note_execution(GuestAddress(place)),
            (28, ..) => self.snapshot(),
            (29..=30, ..) => self.restore(usize::from(step[1])),
            (31, ..) if step[1] < 128 => self.machine.flush(),
            (31, ..) => drop(self.machine.reclaim()),
            _ => {}
        }
        for place in self.executed.clone() {
            self.execute(place, value.is_multiple_of(3));
        }
    }

    fn note_execution(&mut self, place: GuestAddress) {
        self.executed.retain(|known| *known != place);
        self.executed.push_front(place);
        self.executed.truncate(MOST_EXECUTED);
    }

    fn map(&mut self, at: u64, range: GuestRange, permissions: Permissions) {
        let count = range.size() / PAGE_SIZE;
        let reasons = [straddles(at, count), self.model.overlap(at, count, 0..0)];
        if !agree(self.machine.map(range, permissions), &reasons) {
            return;
        }
        for number in 0..count {
            let name = (self.next_name, number);
            self.model.pages.insert(at + number, (name, permissions));
            self.model.bytes.insert(name, zeros());
        }
        self.next_name += 1;
    }

    fn map_shared(&mut self, at: u64, range: GuestRange, value: u32, permissions: Permissions) {
        let count = range.size() / PAGE_SIZE;
        let (backing, first) = (value as usize & 1, u64::from(value >> 1) % BACKING_PAGES);
        let outside = (first + count > BACKING_PAGES).then_some(Refusal::OutsideBacking);
        let reasons = [straddles(at, count), self.model.overlap(at, count, 0..0), outside];
        let backing_of = &self.backings[backing];
        let done = self.machine.map_shared(range, backing_of, first * PAGE_SIZE, permissions);
        if agree(done, &reasons) {
            let pages = (0..count).map(|page| (backing as u64, first + page));
            self.model.pages.extend((at..).zip(pages.map(|name| (name, permissions))));
        }
    }

    fn unmap(&mut self, at: u64, range: GuestRange) {
        let count = range.size() / PAGE_SIZE;
        if agree(self.machine.unmap(range), &[self.model.holes(at, count)]) {
            self.model.pages.retain(|page, _| !(at..at + count).contains(page));
        }
    }

    fn protect(&mut self, at: u64, range: GuestRange, permissions: Permissions) {
        let count = range.size() / PAGE_SIZE;
        if agree(self.machine.protect(range, permissions), &[self.model.holes(at, count)]) {
            let touched = self.model.pages.range_mut(at..at + count);
            touched.for_each(|(_, page)| page.1 = permissions);
        }
    }

    /// Moves pages, or gives them a second address.
    fn place(&mut self, at: u64, source: GuestRange, to: u64, is_move: bool) {
        let count = source.size() / PAGE_SIZE;
        if range(to, count).is_none() {
            return;
        }
        let own = if is_move { at..at + count } else { 0..0 };
        let overlap = self.model.overlap(to, count, own);
        let reasons = [straddles(to, count), self.model.holes(at, count), overlap];
        let done = if is_move {
            self.machine.remap(source, address_of(to))
        } else {
            self.machine.alias(source, address_of(to))
        };
        if agree(done, &reasons) {
            let pages: Vec<_> = (at..at + count).map(|page| self.model.pages[&page]).collect();
            self.model.pages.retain(|page, _| !is_move || !(at..at + count).contains(page));
            self.model.pages.extend((to..).zip(pages));
        }
    }

    /// The host writes `mov eax, value; hlt`.
    fn write_function(&mut self, place: GuestAddress, value: u32) {
        let mut bytes = vec![0xb8];
        bytes.extend(value.to_le_bytes());
        bytes.push(0xf4);
        let addresses = (0..FUNCTION_BYTES).map(|offset| place.wrapping_add(offset));
        let hole = addresses.clone().find(|address| self.model.byte(*address).is_none());
        let expected = hole.map_or(Ok(()), |address| Err(AccessError { address }));
        assert_eq!(self.machine.write(place, &bytes), expected);
        if hole.is_none() {
            addresses.zip(bytes).for_each(|(address, byte)| self.model.set_byte(address, byte));
        }
    }

    fn guest_write(&mut self, address: GuestAddress, value: u8) {
        let (exit, _) = self.run(ACCESSES + 3, address, u64::from(value), false);
        let fault = self.model.fault(address, 1 << 2 | 1 << 1, Permissions::write);
        if fault.is_none() {
            self.model.set_byte(address, value);
        }
        assert_eq!(exit, fault.unwrap_or(Exit::Halt), "a write to {address}");
    }

    fn guest_read(&mut self, address: GuestAddress) {
        let (exit, value) = self.run(ACCESSES, address, 0, false);
        let fault = self.model.fault(address, 1 << 2, Permissions::read);
        if fault.is_none() {
            assert_eq!(Some(value as u8), self.model.byte(address), "what was read at {address}");
        }
        assert_eq!(exit, fault.unwrap_or(Exit::Halt), "a read at {address}");
    }

    /// Runs the function at `place`, if what is there is one as far as it can be fetched.
    fn execute(&mut self, place: GuestAddress, counted: bool) {
        let addresses = (0..FUNCTION_BYTES).map(|offset| place.wrapping_add(offset));
        let fault = |address| self.model.fault(address, 1 << 2 | 1 << 4, Permissions::execute);
        let end = addresses.clone().find_map(fault);
        let fetched: Vec<u8> = addresses
            .take_while(|address| fault(*address).is_none())
            .filter_map(|address| self.model.byte(address))
            .collect();
        let is_function = fetched.first().is_none_or(|first| *first == 0xb8)
            && fetched.get(5).is_none_or(|last| *last == 0xf4);
        if !is_function {
            return;
        }
        let before = 0x1234_5678_9abc;
        let (exit, value) = self.run(place.0, GuestAddress(0), before, counted);
        assert_eq!(exit, end.unwrap_or(Exit::Halt), "the function at {place}");
        let constant = fetched.get(1..5).and_then(|bytes| bytes.try_into().ok());
        let expected = constant.map_or(before, |bytes| u64::from(u32::from_le_bytes(bytes)));
        assert_eq!(value, expected, "what the function at {place} gives");
    }

    /// Runs until `hlt` or a fault; RAX then.
    fn run(&mut self, rip: u64, rdi: GuestAddress, rax: u64, counted: bool) -> (Exit, u64) {
        let mut state = State { rip, ..State::default() };
        (state.gpr[7], state.gpr[0]) = (rdi.0, rax);
        self.vcpu.set_state(&state);
        let exit = self.vcpu.run(counted.then_some(1000));
        (exit, self.vcpu.gpr(0))
    }

    fn snapshot(&mut self) {
        if self.snapshots.len() < MOST_SNAPSHOTS {
            let snapshot = self.machine.snapshot().expect("the host has room for a snapshot");
            self.snapshots.push((snapshot, self.model.clone()));
        }
    }

    /// Goes back to a snapshot, or forgets it.
    fn restore(&mut self, which: usize) {
        let Some(number) = (which / 4).checked_rem(self.snapshots.len()) else { return };
        if which.is_multiple_of(4) {
            self.snapshots.remove(number);
            return;
        }
        let (snapshot, then) = &self.snapshots[number];
        self.machine.restore(snapshot).expect("its own snapshot can be restored");
        // Pages that only newer snapshots have keep what they were restored to when mapped again.
        let mut bytes = std::mem::take(&mut self.model.bytes);
        bytes.extend(then.bytes.clone());
        self.model = Model { bytes, ..then.clone() };
    }

    fn check(&self) {
        let regions = self.machine.regions();
        let mut names: BTreeMap<PageId, Name> = BTreeMap::new();
        for number in 0..PAGES {
            let address = address_of(number);
            let found = regions.iter().find(|mapping| mapping.range.contains(address));
            let expected = self.model.pages.get(&number);
            assert_eq!(found.is_some(), expected.is_some(), "page {number} is mapped");
            let mut bytes = zeros();
            let read = self.machine.read(address, &mut bytes);
            let (Some(found), Some((name, permissions))) = (found, expected) else {
                assert_eq!(read, Err(AccessError { address }), "page {number}");
                continue;
            };
            assert_eq!(found.permissions, *permissions, "page {number}");
            let known = *names.entry(found.page_at(address)).or_insert(*name);
            assert_eq!(known, *name, "page {number} is another");
            assert!(read.is_ok() && bytes == self.model.bytes[name], "the bytes of page {number}");
        }
        let distinct: BTreeSet<Name> = names.values().copied().collect();
        assert_eq!(distinct.len(), names.len(), "a page has one identity");
        let total: u64 = regions.iter().map(|mapping| mapping.range.size()).sum();
        assert_eq!(total, (self.model.pages.len() as u64 + 1) * PAGE_SIZE);
    }
}

/// Whether a change was made. It was if there is no reason against it, and else was refused for one of
/// them.
fn agree(done: Result<(), MapError>, reasons: &[Option<Refusal>]) -> bool {
    let reasons: Vec<Refusal> = reasons.iter().flatten().copied().collect();
    let refusal = match &done {
        Ok(()) => None,
        Err(MapError::Overlap { .. }) => Some(Refusal::Overlap),
        Err(MapError::NotMapped { at, .. }) => Some(Refusal::Hole(*at)),
        Err(MapError::StraddlesWindow { .. }) => Some(Refusal::Straddles),
        Err(MapError::OutsideBacking { .. }) => Some(Refusal::OutsideBacking),
        Err(error) => panic!("{error}"),
    };
    match refusal {
        None => assert!(reasons.is_empty(), "what is done should be refused: {reasons:?}"),
        Some(refusal) => assert!(reasons.contains(&refusal), "{refusal:?}, not {reasons:?}"),
    }
    done.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::choices;

    #[test]
    fn seeded_operations() {
        let mut bytes = Vec::new();
        for number in 0..400 {
            choices(0x3a9, number, &mut bytes);
            mapping(&bytes);
        }
    }
}
