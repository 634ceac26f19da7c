//! What an engine can do, as data: comparisons leave out what one side cannot show, and say so.

use serde::{Deserialize, Serialize};

use crate::guest::{Vendor, Xstate};

/// Which parts of a state an engine can take in and show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Visible {
    /// Vector registers, from 0 on: 16 or 32.
    pub vector_registers: usize,
    /// Bytes of each: 16 (XMM), 32 (YMM) or 64 (ZMM).
    pub vector_bytes: usize,
    /// Opmask registers.
    pub opmask: bool,
    /// Protection key rights.
    pub pkru: bool,
    /// Last opcode, instruction and data address of the x87 unit.
    pub x87_pointers: bool,
    /// Error codes of exceptions other than page faults.
    pub error_codes: bool,
    /// Segment selectors.
    pub selectors: bool,
}

impl Visible {
    /// Everything that [`crate::guest::State`] holds.
    pub const ALL: Self = Self {
        vector_registers: 32,
        vector_bytes: 64,
        opmask: true,
        pkru: true,
        x87_pointers: true,
        error_codes: true,
        selectors: true,
    };

    /// What of a state this host has.
    pub(crate) fn of_host(xstate: &Xstate) -> Self {
        Self {
            vector_registers: xstate.vector_registers(),
            vector_bytes: xstate.vector_bytes(),
            opmask: xstate.has_opmask(),
            pkru: xstate.has_pkru(),
            // AMD's processors save them only while an exception is pending, so that those of an older
            // instruction are gone as soon as the kernel has saved the state (AMD64 Architecture Programmer's
            // Manual volume 5, "FXSAVE").
            x87_pointers: Vendor::of_this_host() == Vendor::Intel,
            ..Self::ALL
        }
    }

    /// What both engines can show.
    #[must_use]
    pub fn common(self, other: Self) -> Self {
        Self {
            vector_registers: self.vector_registers.min(other.vector_registers),
            vector_bytes: self.vector_bytes.min(other.vector_bytes),
            opmask: self.opmask && other.opmask,
            pkru: self.pkru && other.pkru,
            x87_pointers: self.x87_pointers && other.x87_pointers,
            error_codes: self.error_codes && other.error_codes,
            selectors: self.selectors && other.selectors,
        }
    }
}

/// What an engine can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// What of a state it can take in and show.
    pub visible: Visible,
    /// Guest instructions run on the host's own processor, so that results which the manual leaves
    /// undefined are comparable with silicon to the last bit.
    pub runs_on_silicon: bool,
    /// It can stop at an instruction count, at a breakpoint and at a limit.
    pub counts: bool,
    /// What it does not do, one sentence each, for people.
    pub lacks: Vec<String>,
}
