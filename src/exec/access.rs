//! Guest memory as the run loop accesses it for the guest: by permission, with page faults.

use std::ops::Range;

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::core::Core;
use super::exit::{Exit, vector};
use super::step::{Undone, room};
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
            let allowed = core.memory.permissions_at(next).is_some_and(|permissions| match access {
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
        core: &Core,
        address: GuestAddress,
        bytes: &mut [u8],
    ) -> Result<(), Exit> {
        self.check(core, address, bytes.len(), Access::Read)?;
        let read = core.memory.read(address, bytes);
        read.map_err(|error| page_fault(core, error.address, Access::Read))
    }

    /// Writes bytes for the guest: all or none.
    pub(super) fn store(
        &self,
        core: &mut Core,
        address: GuestAddress,
        bytes: &[u8],
    ) -> Result<(), Exit> {
        self.check(core, address, bytes.len(), Access::Write)?;
        let written = core.write(address, bytes);
        written.map_err(|error| page_fault(core, error.address, Access::Write))
    }

    /// Reads a little-endian word of up to eight bytes.
    pub(super) fn load_word(
        &self,
        core: &Core,
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
        core: &mut Core,
        address: GuestAddress,
        value: u64,
        size: usize,
    ) -> Result<(), Exit> {
        self.check_alignment(address, size)?;
        self.store(core, address, &value.to_le_bytes()[..size])
    }

    fn check_alignment(&self, address: GuestAddress, size: usize) -> Result<(), Exit> {
        let aligned = address.0.is_multiple_of(size as u64);
        if aligned || !self.checks_alignment() || !is_canonical(address.0) {
            return Ok(());
        }
        Err(Exit::exception(vector::AC))
    }

    /// The parts of an operand that an instruction accesses: all of it, but for vectors under a mask.
    pub(super) fn active_bytes(&self, instruction: &Instruction, size: usize) -> Vec<Range<usize>> {
        let all = |size| vec![0..size];
        let Some((mask, element)) = self.access_mask(instruction) else { return all(size) };
        let count = size / element;
        let lanes = (0..count).filter(|lane| mask >> lane & 1 != 0);
        if is_packed(instruction) {
            let active = lanes.count() * element;
            return if active == 0 { Vec::new() } else { all(active) };
        }
        lanes.map(|lane| lane * element..(lane + 1) * element).collect()
    }

    /// The mask of a masked access by element, and an element's size.
    fn access_mask(&self, instruction: &Instruction) -> Option<(u64, usize)> {
        use Mnemonic as M;
        let memory = instruction.memory_size();
        if instruction.has_op_mask() && !instruction.is_broadcast() {
            let index = instruction.op_mask().number();
            let element = memory.element_size().max(1);
            return Some((self.opmask(index), element));
        }
        let by_sign = matches!(
            instruction.mnemonic(),
            M::Vmaskmovps | M::Vmaskmovpd | M::Vpmaskmovd | M::Vpmaskmovq
        );
        if !by_sign {
            return None;
        }
        // The mask is the second operand, in either direction.
        debug_assert_eq!(instruction.op_kind(1), OpKind::Register);
        let element = memory.element_size();
        let vector = self.vector(instruction.op1_register().number());
        let bits = element * 8;
        let lanes = memory.size() / element;
        let sign = |lane: usize| {
            let bit = (lane + 1) * bits - 1;
            vector[bit / 64] >> (bit % 64) & 1
        };
        Some(((0..lanes).fold(0, |mask, lane| mask | sign(lane) << lane), element))
    }

    /// Whether every part of an operand may be accessed.
    pub(super) fn check_parts(
        &self,
        core: &Core,
        address: GuestAddress,
        parts: &[Range<usize>],
        access: Access,
    ) -> Result<(), Exit> {
        parts.iter().try_for_each(|part| {
            self.check(core, address.wrapping_add(part.start as u64), part.len(), access)
        })
    }

    pub(super) fn load_parts(
        &self,
        core: &Core,
        address: GuestAddress,
        parts: &[Range<usize>],
        operand: &mut [u8],
    ) -> Result<(), Exit> {
        parts.iter().try_for_each(|part| {
            let place = address.wrapping_add(part.start as u64);
            self.load(core, place, &mut operand[part.clone()])
        })
    }

    pub(super) fn store_parts(
        &self,
        core: &mut Core,
        address: GuestAddress,
        parts: &[Range<usize>],
        operand: &[u8],
    ) -> Result<(), Undone> {
        parts.iter().try_for_each(|part| {
            let place = address.wrapping_add(part.start as u64);
            Ok(self.store(core, place, &operand[part.clone()])?)
        })
    }
}

/// Whether the elements of a masked access lie one behind the other in memory.
fn is_packed(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(
        instruction.mnemonic(),
        M::Vexpandps
            | M::Vexpandpd
            | M::Vpexpandb
            | M::Vpexpandw
            | M::Vpexpandd
            | M::Vpexpandq
            | M::Vcompressps
            | M::Vcompresspd
            | M::Vpcompressb
            | M::Vpcompressw
            | M::Vpcompressd
            | M::Vpcompressq
    )
}
