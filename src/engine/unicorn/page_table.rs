//! [`PageTable`]: what of the case's memory the guest finds where. Unicorn asks it whenever its TLB
//! misses.

use crate::case::{MapModel, Mapping};
use crate::engine::case_memory::CaseMemory;
use crate::guest::{GuestAddress, GuestRange, Permissions};

/// A mapping of some of [`CaseMemory`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    range: GuestRange,
    /// Where in the memfd it begins.
    position: u64,
    permissions: Permissions,
}

/// See the file's head. Pages without access are left out: to the guest they are as good as not
/// mapped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PageTable {
    /// In order of address.
    entries: Vec<Entry>,
}

impl PageTable {
    pub(super) fn new(memory: &CaseMemory, map: &MapModel) -> Self {
        let accessible = |mapping: &&Mapping| mapping.permissions != Permissions::None;
        let entry = |mapping: &Mapping| Entry {
            range: mapping.range,
            position: memory.position(mapping.object, mapping.offset),
            permissions: mapping.permissions,
        };
        Self { entries: map.mappings().iter().filter(accessible).map(entry).collect() }
    }

    /// The position in the memfd of the byte at `address`, and what the guest may do there.
    pub(super) fn find(&self, address: u64) -> Option<(u64, Permissions)> {
        let address = GuestAddress(address);
        let after = self.entries.partition_point(|entry| entry.range.start() <= address);
        let entry = self.entries[..after].last().filter(|entry| entry.range.contains(address))?;
        Some((entry.position + (address.0 - entry.range.start().0), entry.permissions))
    }

    /// The executable ranges, each of which is one run of the memfd.
    pub(super) fn executable(&self) -> impl Iterator<Item = GuestRange> {
        let executable = self.entries.iter().filter(|entry| entry.permissions.execute());
        executable.map(|entry| entry.range)
    }
}
