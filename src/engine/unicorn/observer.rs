//! [`Observer`]: what a machine's hooks note down while the guest runs, and when they ask it to stop.
//! It knows neither the library nor a case.
//!
//! Instructions are counted when they are *done*: the hook comes before each, so it tells of the one
//! before. Unicorn calls it again for each iteration of a repeated string instruction, always with
//! the same address; those count once.

use crate::guest::GuestRange;

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
    /// Code was written under another of its addresses, so that translations are out of date.
    StaleCode,
}

/// See the file's head.
#[derive(Debug, Default)]
pub(super) struct Observer {
    /// Stop when this many instructions of the leg are done.
    pub(super) count: Option<u64>,
    /// Stop before this instruction, unless it is the first of the leg.
    pub(super) breakpoint: Option<u64>,
    /// Stores here change code that is executable elsewhere.
    pub(super) code_aliases: Vec<GuestRange>,
    /// Instructions of the leg that are done.
    pub(super) done: u64,
    /// The instruction that is under way.
    current: Option<u64>,
    /// Whether `current` is a repeated string instruction, once that was asked.
    current_repeats: Option<bool>,
    stale: bool,
    pub(super) pause: Option<Pause>,
    pub(super) interrupt: Option<u32>,
    pub(super) fault: Option<(Access, u64)>,
    pub(super) system_call: bool,
}

impl Observer {
    /// Forgets the leg before; `code_aliases` stay.
    pub(super) fn begin_leg(&mut self, count: Option<u64>, breakpoint: Option<u64>) {
        let code_aliases = std::mem::take(&mut self.code_aliases);
        *self = Self { count, breakpoint, code_aliases, ..Self::default() };
    }

    /// Goes on in the same leg after a [`Pause::StaleCode`].
    pub(super) fn resume(&mut self) {
        self.stale = false;
        self.pause = None;
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

    /// Before a store of `size` bytes.
    pub(super) fn store(&mut self, address: u64, size: u32) {
        let last = address.wrapping_add(u64::from(size).saturating_sub(1));
        self.stale |= self
            .code_aliases
            .iter()
            .any(|range| address <= range.last().0 && range.start().0 <= last);
    }

    /// Before the instruction at `address`, whose bytes `read` reads; whether to stop.
    pub(super) fn instruction(
        &mut self,
        address: u64,
        read: impl Fn() -> [u8; 15],
    ) -> bool {
        if self.is_next_iteration(address, read) {
            return false;
        }
        self.pause = self.arrive(address);
        if self.pause.is_none() {
            self.current = Some(address);
            self.current_repeats = None;
        }
        self.pause.is_some()
    }

    /// The guest could not fetch the instruction at `address`, so there was no hook for it.
    pub(super) fn fetch_failed(&mut self, address: u64) {
        if self.current != Some(address) {
            self.pause = self.arrive(address);
        }
    }

    /// The instruction under way is done, the one at `address` is next.
    fn arrive(&mut self, address: u64) -> Option<Pause> {
        // Taken, so that it is not counted twice when the guest goes on after a pause.
        self.current.take()?;
        self.done += 1;
        if self.count == Some(self.done) {
            return Some(Pause::Count);
        }
        if self.breakpoint == Some(address) {
            return Some(Pause::Breakpoint);
        }
        self.stale.then_some(Pause::StaleCode)
    }

    fn is_next_iteration(&mut self, address: u64, read: impl Fn() -> [u8; 15]) -> bool {
        self.current == Some(address)
            && *self.current_repeats.get_or_insert_with(|| is_repeated_string(read()))
    }
}

/// Whether `bytes` begin with a repeated string instruction.
fn is_repeated_string(bytes: [u8; 15]) -> bool {
    let mut repeated = false;
    for byte in bytes {
        match byte {
            0xf2 | 0xf3 => repeated = true,
            0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0x40..=0x4f => {}
            0x6c..=0x6f | 0xa4..=0xa7 | 0xaa..=0xaf => return repeated,
            _ => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::GuestAddress;

    fn bytes(code: &[u8]) -> impl Fn() -> [u8; 15] {
        let mut bytes = [0; 15];
        bytes[..code.len()].copy_from_slice(code);
        move || bytes
    }

    #[test]
    fn a_repeated_instruction_counts_once_and_a_loop_each_time() {
        let mut observer = Observer::default();
        observer.begin_leg(Some(3), None);
        for _ in 0..100 {
            assert!(!observer.instruction(8, bytes(&[0xf3, 0x48, 0xa4])));
        }
        assert!(!observer.instruction(16, bytes(&[0xeb, 0xfe])));
        assert!(!observer.instruction(16, bytes(&[0xeb, 0xfe])));
        assert!(observer.instruction(16, bytes(&[0xeb, 0xfe])));
        assert_eq!((observer.pause, observer.done), (Some(Pause::Count), 3));
    }

    #[test]
    fn the_first_instruction_of_a_leg_is_no_breakpoint() {
        let mut observer = Observer::default();
        observer.begin_leg(None, Some(8));
        assert!(!observer.instruction(8, bytes(&[0x90])));
        assert!(observer.instruction(8, bytes(&[0x90])));
        assert_eq!(observer.pause, Some(Pause::Breakpoint));
    }

    #[test]
    fn a_failed_fetch_ends_the_instruction_before() {
        let mut observer = Observer::default();
        observer.begin_leg(Some(1), None);
        observer.fetch_failed(8);
        assert_eq!(observer.pause, None, "nothing was done yet");
        assert!(!observer.instruction(8, bytes(&[0x90])));
        observer.fetch_failed(9);
        assert_eq!(observer.pause, Some(Pause::Count));
    }

    #[test]
    fn stores_to_code_stop_before_the_next_instruction_and_count_it_once() {
        let mut observer = Observer::default();
        let page = GuestRange::new(GuestAddress(0x1000), 0x1000).unwrap();
        observer.code_aliases = vec![page];
        observer.begin_leg(Some(2), None);
        assert!(!observer.instruction(8, bytes(&[0x90])));
        observer.store(0x0ffd, 3);
        assert!(!observer.stale);
        observer.store(0x0ffd, 4);
        assert!(observer.instruction(9, bytes(&[0x90])));
        assert_eq!((observer.pause, observer.done), (Some(Pause::StaleCode), 1));
        observer.resume();
        assert!(!observer.instruction(9, bytes(&[0x90])));
        assert!(observer.instruction(10, bytes(&[0x90])));
        assert_eq!(observer.done, 2);
    }

    #[test]
    fn repeated_strings() {
        assert!(is_repeated_string(bytes(&[0xf3, 0xaa])()));
        assert!(is_repeated_string(bytes(&[0x66, 0xf2, 0x48, 0xaf])()));
        assert!(!is_repeated_string(bytes(&[0xaa])()));
        assert!(!is_repeated_string(bytes(&[0xf3, 0x90])()));
    }
}
