//! [`Observer`]: what a machine's hooks note down while the guest runs, and when they ask it to
//! stop. It knows neither the library nor a case.
//!
//! Instructions are counted when they are *done*: the hook comes before each, so it tells of the
//! one before. Unicorn calls it again with the same address for each iteration of a repeated string
//! instruction, and for a store that changes the block it is in, which Unicorn begins anew. So an
//! instruction that is no branch, but comes twice in a row, is still the same.

use iced_x86::FlowControl;

use super::page_table::PageTable;
use crate::guest::{PAGE_SIZE, decoder};

/// What a guest wanted of memory that it did not get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
    Fetch,
}

/// Why the observer asked the guest to stop before an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pause {
    /// The wanted number of instructions is done.
    Count,
    /// The breakpoint is reached.
    Breakpoint,
}

/// See the file's head.
#[derive(Debug, Default)]
pub(super) struct Observer {
    /// What the guest finds where.
    pub(super) pages: PageTable,
    /// Stop when this many instructions of the leg are done.
    count: Option<u64>,
    /// Stop before this instruction, unless it is the first of the leg.
    breakpoint: Option<u64>,
    /// Instructions of the leg that are done.
    pub(super) done: u64,
    /// The instruction that is under way.
    current: Option<u64>,
    /// Whether `current` can be its own successor, once that was asked.
    current_is_branch: Option<bool>,
    pub(super) pause: Option<Pause>,
    pub(super) interrupt: Option<u32>,
    pub(super) fault: Option<(Access, u64)>,
    pub(super) system_call: bool,
}

impl Observer {
    /// Forgets the leg before, but for the page table.
    pub(super) fn begin_leg(&mut self, count: Option<u64>, breakpoint: Option<u64>) {
        let pages = std::mem::take(&mut self.pages);
        *self = Self { pages, count, breakpoint, ..Self::default() };
    }

    pub(super) fn interrupt(&mut self, vector: u32) {
        self.interrupt = Some(vector);
    }

    pub(super) fn fault(&mut self, access: Access, address: u64) {
        self.fault = Some((access, address));
    }

    pub(super) fn system_call(&mut self) {
        self.system_call = true;
    }

    /// Whether the guest had a reason to stop that it told.
    pub(super) fn is_stopped(&self) -> bool {
        let (paused, interrupted) = (self.pause.is_some(), self.interrupt.is_some());
        paused || interrupted || self.fault.is_some() || self.system_call
    }

    /// Before the instruction at `address`; whether to stop. `read` reads the memfd.
    pub(super) fn instruction(&mut self, address: u64, read: impl Fn(u64, &mut [u8])) -> bool {
        if self.is_still_current(address, read) {
            return false;
        }
        self.pause = self.arrive(address);
        self.current = Some(address);
        self.current_is_branch = None;
        self.pause.is_some()
    }

    /// The guest could not fetch the instruction at `address`, so there was no hook for it.
    pub(super) fn fetch_failed(&mut self, address: u64) {
        if self.current != Some(address) {
            self.pause = self.arrive(address);
        }
    }

    /// The guest stands before the instruction at `address`, which was not told of: whether it is to pause there. If
    /// not, it will be told.
    pub(super) fn stop_before(&mut self, address: u64) -> bool {
        let last = self.count == Some(self.done + 1) || self.breakpoint == Some(address);
        let pauses = self.current.is_some() && last;
        if pauses {
            self.pause = self.arrive(address);
        }
        pauses
    }

    /// The instruction under way is done, the one at `address` is next.
    fn arrive(&mut self, address: u64) -> Option<Pause> {
        self.current?;
        self.done += 1;
        if self.count == Some(self.done) {
            return Some(Pause::Count);
        }
        (self.breakpoint == Some(address)).then_some(Pause::Breakpoint)
    }

    fn is_still_current(&mut self, address: u64, read: impl Fn(u64, &mut [u8])) -> bool {
        if self.current != Some(address) {
            return false;
        }
        let pages = &self.pages;
        !*self.current_is_branch.get_or_insert_with(|| is_branch(pages, address, read))
    }
}

fn is_branch(pages: &PageTable, address: u64, read: impl Fn(u64, &mut [u8])) -> bool {
    let mut code = [0; 15];
    let to_page_end = (PAGE_SIZE - address % PAGE_SIZE) as usize;
    let (first, second) = code.split_at_mut(to_page_end.min(15));
    for (place, start) in [(first, address), (second, address.wrapping_add(to_page_end as u64))] {
        if let Some((position, _)) = pages.find(start) {
            read(position, place);
        }
    }
    let instruction = decoder(&code, address).decode();
    instruction.flow_control() != FlowControl::Next
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::{Case, MapModel, Mapping, Object, ObjectId};
    use crate::engine::case_memory::CaseMemory;
    use crate::guest::{GuestAddress, GuestRange, Permissions};

    /// An observer of a guest with two pages of code from 0x1000 on.
    fn observer(count: Option<u64>, breakpoint: Option<u64>) -> Observer {
        let mut case = Case { objects: vec![Object::zeroed("code", 2)], ..Case::default() };
        case.mappings.push(Mapping {
            range: GuestRange::new(GuestAddress(0x1000), 0x2000).unwrap(),
            object: ObjectId(0),
            offset: 0,
            permissions: Permissions::ReadExecute,
        });
        let mut memory = CaseMemory::new().unwrap();
        memory.load(&case);
        let pages = PageTable::new(&memory, &MapModel::initial(&case));
        let mut observer = Observer { pages, ..Observer::default() };
        observer.begin_leg(count, breakpoint);
        observer
    }

    /// Reads `code`, which lies at `start`.
    fn at(start: u64, code: &[u8]) -> impl Fn(u64, &mut [u8]) {
        let mut memory = [0x90; 0x2000];
        memory[start as usize - 0x1000..][..code.len()].copy_from_slice(code);
        move |position, place| place.copy_from_slice(&memory[position as usize..][..place.len()])
    }

    #[test]
    fn a_repeated_instruction_counts_once_and_a_loop_each_time() {
        let mut observer = observer(Some(3), None);
        // Across the boundary of the pages.
        for _ in 0..100 {
            assert!(!observer.instruction(0x1fff, at(0x1fff, &[0xf3, 0x48, 0xa4])));
        }
        let spin = at(0x2002, &[0xeb, 0xfe]);
        assert!(!observer.instruction(0x2002, &spin));
        assert!(!observer.instruction(0x2002, &spin));
        assert!(observer.instruction(0x2002, &spin));
        assert_eq!((observer.pause, observer.done), (Some(Pause::Count), 3));
    }

    #[test]
    fn the_first_instruction_of_a_leg_is_no_breakpoint() {
        let mut observer = observer(None, Some(0x1008));
        assert!(!observer.instruction(0x1008, at(0x1008, &[0x90])));
        assert!(!observer.instruction(0x1009, at(0x1009, &[0xeb, 0xfd])));
        assert!(observer.instruction(0x1008, at(0x1008, &[0x90])));
        assert_eq!(observer.pause, Some(Pause::Breakpoint));
    }

    #[test]
    fn a_failed_fetch_ends_the_instruction_before() {
        let mut observer = observer(Some(1), None);
        observer.fetch_failed(0x1000);
        assert_eq!(observer.pause, None, "nothing was done yet");
        assert!(!observer.instruction(0x1000, at(0x1000, &[0x90])));
        observer.fetch_failed(0x1001);
        assert_eq!(observer.pause, Some(Pause::Count));
    }
}
