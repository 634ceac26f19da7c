//! Guest memory as the run loop accesses it for the guest: by permission, with page faults.

use super::core::Core;
use super::exit::{Exit, vector};
use super::shared::Locked;
use super::step::room;
use super::vcpu::Vcpu;
use crate::guest::{GuestAddress, Permissions};
use crate::translate::is_canonical;

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
    Fetch,
}

/// The page fault of an access at privilege level 3 (Intel SDM volume 3A, section 4.7).
pub(super) fn page_fault(core: &Core, address: GuestAddress, access: Access) -> Exit {
    let mapped = core.memory.permissions_at(address);
    let present = mapped.is_some_and(|permissions| permissions != Permissions::None);
    let kind = match access {
        Access::Read => 0,
        Access::Write => 1 << 1,
        Access::Fetch => 1 << 4,
    };
    let error = u32::from(present) | kind | 1 << 2;
    Exit::Exception { vector: vector::PF, error, address: Some(address.0) }
}

impl Vcpu {
    /// Whether all of an access is allowed.
    pub(super) fn check(
        &self,
        core: &Core,
        address: GuestAddress,
        size: usize,
        access: Access,
    ) -> Result<(), Exit> {
        let last = address.wrapping_add(size as u64 - 1);
        if !is_canonical(address.0) || !is_canonical(last.0) {
            return Err(Exit::general_protection());
        }
        let mut done = 0;
        while done < size {
            let next = address.wrapping_add(done as u64);
            let allowed =
                core.memory.permissions_at(next).is_some_and(|permissions| match access {
                    Access::Read => permissions.read(),
                    Access::Write => permissions.write(),
                    Access::Fetch => permissions.execute(),
                });
            if !allowed {
                return Err(page_fault(core, next, access));
            }
            done += room(next);
        }
        Ok(())
    }

    /// Reads bytes for the guest.
    pub(super) fn load(
        &self,
        core: &mut Locked<'_>,
        address: GuestAddress,
        bytes: &mut [u8],
    ) -> Result<(), Exit> {
        self.check(core, address, bytes.len(), Access::Read)?;
        self.read_guest(core, address, bytes)
    }

    /// Writes bytes for the guest: all or none.
    pub(super) fn store(
        &self,
        core: &mut Locked<'_>,
        address: GuestAddress,
        bytes: &[u8],
    ) -> Result<(), Exit> {
        self.check(core, address, bytes.len(), Access::Write)?;
        self.write_guest(core, address, bytes)
    }

    /// Reads a little-endian word of up to eight bytes.
    pub(super) fn load_word(
        &self,
        core: &mut Locked<'_>,
        address: GuestAddress,
        size: usize,
    ) -> Result<u64, Exit> {
        let mut bytes = [0; 8];
        self.check_alignment(address, size)?;
        self.load(core, address, &mut bytes[..size])?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Writes the low `size` bytes of a word.
    pub(super) fn store_word(
        &self,
        core: &mut Locked<'_>,
        address: GuestAddress,
        value: u64,
        size: usize,
    ) -> Result<(), Exit> {
        self.check_alignment(address, size)?;
        self.store(core, address, &value.to_le_bytes()[..size])
    }

    /// Reads a word and writes what `new` makes of it, in one step for other vCPUs if it is `locked`.
    /// Gives the old word.
    pub(super) fn update_word(
        &self,
        core: &mut Locked<'_>,
        (address, size): (GuestAddress, usize),
        locked: bool,
        new: impl Fn(u64) -> u64,
    ) -> Result<u64, Exit> {
        self.check_alignment(address, size)?;
        self.check(core, address, size, Access::Write)?;
        loop {
            let old = self.load_word(core, address, size)?;
            let (before, after) = (old.to_le_bytes(), new(old).to_le_bytes());
            let expected = locked.then_some(&before[..size]);
            if self.write_expecting(core, address, &after[..size], expected)? {
                return Ok(old);
            }
        }
    }

    /// An alignment-check exception, if the guest asks for one.
    pub(super) fn check_alignment(&self, address: GuestAddress, size: usize) -> Result<(), Exit> {
        let aligned = address.0.is_multiple_of(size as u64);
        if aligned || !self.checks_alignment() || !is_canonical(address.0) {
            return Ok(());
        }
        Err(Exit::exception(vector::AC))
    }
}
