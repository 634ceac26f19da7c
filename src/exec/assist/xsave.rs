//! XSAVE, XRSTOR and their variants. The host's own instruction runs on a copy of the area in the
//! vCPU's slot, for the components that are the guest's in the host's registers. PKRU is not one of
//! them: it is the host's while guest code runs, and the guest's is put in and taken out by hand.
//! Tile registers are not the guest's at all; XGETBV says so.

use std::arch::x86_64::__cpuid_count;

use iced_x86::{Instruction, Mnemonic};

use crate::exec::core::Core;
use crate::exec::exit::Exit;
use crate::exec::shared::Locked;
use crate::exec::step::{Undone, not_canonical};
use crate::exec::vcpu::Vcpu;
use crate::guest::Xstate;
use crate::translate::is_canonical;

/// Place of XSTATE_BV and XCOMP_BV in an area.
const XSTATE_BV: usize = 512;
const XCOMP_BV: usize = 520;
/// Where compacted components begin.
const EXTENDED: usize = 576;
/// In XCOMP_BV: the area is compacted.
const COMPACTED: u64 = 1 << 63;
/// Tile configuration and tile data.
const TILES: u64 = 3 << 17;
const PKRU: u32 = 9;

const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;

impl Vcpu {
    pub(super) fn xsave(
        &mut self,
        core: &mut Locked<'_>,
        instruction: &Instruction,
    ) -> Result<(), Undone> {
        let asked = self.asked_components();
        let in_use = self.pkru != 0;
        let compacts = matches!(instruction.mnemonic(), Mnemonic::Xsavec | Mnemonic::Xsavec64);
        let xstate = *self.xstate();
        let pkru = self.pkru;
        let keys = asked & xstate.enabled() & Xstate::PKRU_COMPONENT != 0;
        self.on_area(core, instruction, |area| {
            let mut bits = word(area, XSTATE_BV) & !TILES;
            if !keys {
                return;
            }
            bits &= !Xstate::PKRU_COMPONENT;
            if in_use {
                bits |= Xstate::PKRU_COMPONENT;
            }
            set_word(area, XSTATE_BV, bits);
            let mut place = xstate.pkru_offset();
            if compacts {
                let format = word(area, XCOMP_BV) | Xstate::PKRU_COMPONENT;
                set_word(area, XCOMP_BV, format);
                place = Some(compacted_offset(format, PKRU));
            }
            if let Some(place) = place.filter(|_| in_use || !compacts)
                && let Some(bytes) = area.get_mut(place..place + 4)
            {
                bytes.copy_from_slice(&pkru.to_le_bytes());
            }
        })
    }

    pub(super) fn xrstor(
        &mut self,
        core: &mut Locked<'_>,
        instruction: &Instruction,
    ) -> Result<(), Undone> {
        let keys = self.asked_components() & self.xstate().enabled() & Xstate::PKRU_COMPONENT != 0;
        let standard = self.xstate().pkru_offset();
        let mut pkru = None;
        self.on_area(core, instruction, |area| {
            let format = word(area, XCOMP_BV);
            let present = word(area, XSTATE_BV) & Xstate::PKRU_COMPONENT != 0;
            let compacted = format & COMPACTED != 0;
            let place = if compacted { Some(compacted_offset(format, PKRU)) } else { standard };
            pkru = place.map(|place| if present { word(area, place) as u32 } else { 0 });
        })?;
        match pkru.filter(|_| keys) {
            Some(value) if value & 3 != 0 => {
                Err(Exit::Unsupported { what: "no access by protection key 0" }.into())
            }
            Some(value) => {
                self.pkru = value;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// XGETBV: XCR0, or what of it is in use, without tiles.
    pub(super) fn extended_control(
        &mut self,
        core: &mut Core,
        instruction: &Instruction,
    ) -> Result<(), Undone> {
        self.load_all(core);
        let value = match self.gpr(RCX) as u32 {
            0 => self.xstate().enabled(),
            1 if __cpuid_count(0xd, 1).eax >> 2 & 1 != 0 => {
                let keys = if self.pkru != 0 { Xstate::PKRU_COMPONENT } else { 0 };
                word(&self.memory.block().xsave.0, XSTATE_BV) & !Xstate::PKRU_COMPONENT | keys
            }
            _ => return Err(Exit::general_protection().into()),
        };
        self.set_gpr(RAX, value & 0xffff_ffff);
        self.set_gpr(RDX, value >> 32);
        self.pass(instruction);
        Ok(())
    }

    fn asked_components(&self) -> u64 {
        self.gpr(RDX) << 32 | self.gpr(RAX) & 0xffff_ffff
    }

    /// Runs the instruction on a copy of its area with the components that are in the host's
    /// registers, then `finish` on the copy, and stores what has changed.
    fn on_area(
        &mut self,
        core: &mut Locked<'_>,
        instruction: &Instruction,
        finish: impl FnMut(&mut [u8]),
    ) -> Result<(), Undone> {
        let address = self.operand_address(instruction).unwrap_or_default();
        if !is_canonical(address) {
            return Err(not_canonical(instruction).into());
        }
        let asked = (self.gpr(RAX), self.gpr(RDX));
        let own = self.asked_components() & !Xstate::PKRU_COMPONENT & !TILES;
        self.set_gpr(RAX, own & 0xffff_ffff);
        self.set_gpr(RDX, own >> 32);
        let size = self.xstate().size();
        let result = self.bounce_with(core, instruction, size, finish);
        self.set_gpr(RAX, asked.0);
        self.set_gpr(RDX, asked.1);
        result
    }
}

/// Where a component lies in a compacted area of this format (Intel SDM volume 1, section 13.4.3).
fn compacted_offset(format: u64, component: u32) -> usize {
    let mut offset = EXTENDED;
    for other in 2..component {
        if format >> other & 1 != 0 {
            let layout = __cpuid_count(0xd, other);
            if layout.ecx >> 1 & 1 != 0 {
                offset = offset.next_multiple_of(64);
            }
            offset += layout.eax as usize;
        }
    }
    offset
}

fn word(area: &[u8], place: usize) -> u64 {
    let bytes = area.get(place..place + 8).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u64::from_le_bytes)
}

fn set_word(area: &mut [u8], place: usize, value: u64) {
    if let Some(bytes) = area.get_mut(place..place + 8) {
        bytes.copy_from_slice(&value.to_le_bytes());
    }
}
