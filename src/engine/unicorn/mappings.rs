//! [`GuestMemory`]: what of the case's memory is mapped into a machine now, and how to get from there
//! to what a case wants with as few changes as possible: mapping a page costs more than running a
//! short case.

use super::library::{Error, Machine};
use crate::case::{MapModel, Mapping};
use crate::engine::case_memory::CaseMemory;
use crate::guest::{GuestRange, Permissions};

/// A mapping of some of [`CaseMemory`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Present {
    range: GuestRange,
    /// Where in the memfd it begins.
    position: u64,
    permissions: Permissions,
}

/// See the file's head. In order of address, pages without access left out: to the guest they are as
/// good as not mapped.
#[derive(Debug, Default)]
pub(super) struct GuestMemory {
    present: Vec<Present>,
}

impl GuestMemory {
    /// Maps into `machine` what `wanted` says; whether anything changed.
    pub(super) fn synchronize(
        &mut self,
        machine: &mut Machine,
        memory: &CaseMemory,
        wanted: &MapModel,
    ) -> Result<bool, Error> {
        let wanted = accessible(memory, wanted);
        if wanted == self.present {
            return Ok(false);
        }
        for old in self.present.iter().filter(|old| !wanted.iter().any(|new| new.is_at(old))) {
            machine.unmap(old.range)?;
        }
        for new in &wanted {
            match self.present.iter().find(|old| old.is_at(new)) {
                None => machine.map(new.range, new.permissions, new.position)?,
                Some(old) if old.permissions != new.permissions => {
                    machine.protect(new.range, new.permissions)?;
                }
                Some(_) => {}
            }
        }
        self.present = wanted;
        Ok(true)
    }

    /// The executable ranges, each in one mapping.
    pub(super) fn executable(&self) -> impl Iterator<Item = GuestRange> {
        let executable = self.present.iter().filter(|present| present.permissions.execute());
        executable.map(|present| present.range)
    }

    /// The writable ranges that share bytes with executable ones elsewhere. Unicorn takes two mappings
    /// of the same host memory for two memories, so it does not see such a write to code.
    pub(super) fn code_aliases(&self) -> Vec<GuestRange> {
        let writable = self.present.iter().filter(|present| present.permissions.write());
        let is_code = |present: &&Present| {
            self.present.iter().any(|other| {
                other.permissions.execute() && other.shares_bytes_elsewhere(present)
            })
        };
        writable.filter(is_code).map(|present| present.range).collect()
    }
}

impl Present {
    fn is_at(&self, other: &Self) -> bool {
        (self.range, self.position) == (other.range, other.position)
    }

    fn shares_bytes_elsewhere(&self, other: &Self) -> bool {
        self.range != other.range
            && self.position < other.position + other.range.size()
            && other.position < self.position + self.range.size()
    }
}

fn accessible(memory: &CaseMemory, map: &MapModel) -> Vec<Present> {
    let accessible = |mapping: &&Mapping| mapping.permissions != Permissions::None;
    let present = |mapping: &Mapping| Present {
        range: mapping.range,
        position: memory.position(mapping.object, mapping.offset),
        permissions: mapping.permissions,
    };
    map.mappings().iter().filter(accessible).map(present).collect()
}

/// Whether `map` has code that can be written under another of its addresses.
pub(super) fn has_code_aliases(memory: &CaseMemory, map: &MapModel) -> bool {
    let present = accessible(memory, map);
    !GuestMemory { present }.code_aliases().is_empty()
}
