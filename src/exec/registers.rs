//! A vCPU's registers, as its host reads and sets them between runs and in hooks.

use super::vcpu::Vcpu;
use crate::guest::{Flag, GuestAddress, RFLAGS_ALWAYS_ONE, RFLAGS_USER, State, mxcsr_mask};

/// Bits of RFLAGS that user code can read but not change: the one that is always set, and IF.
const FIXED: u64 = RFLAGS_ALWAYS_ONE | Flag::IF.mask();

impl Vcpu {
    /// All registers.
    #[must_use]
    pub fn state(&self) -> State {
        let block = self.memory.block();
        let mut state = State {
            gpr: block.gpr,
            rip: self.pc.0,
            rflags: self.rflags(),
            fs_base: block.fs_base,
            gs_base: block.gs_base,
            selectors: self.selectors,
            ..State::default()
        };
        self.xstate().load(&block.xsave.0, &mut state);
        state.pkru = self.pkru;
        state
    }

    /// Sets all registers. Bits of RFLAGS that user code cannot change and bits of MXCSR that the
    /// processor does not have are left out.
    pub fn set_state(&mut self, state: &State) {
        self.pc = GuestAddress(state.rip);
        self.selectors = state.selectors;
        self.pkru = state.pkru;
        let xstate = *self.xstate();
        let block = self.memory.block_mut();
        block.gpr = state.gpr;
        block.fs_base = state.fs_base;
        block.gs_base = state.gs_base;
        xstate.store(state, &mut block.xsave.0);
        let mxcsr = state.mxcsr & mxcsr_mask();
        block.xsave.0[24..28].copy_from_slice(&mxcsr.to_le_bytes());
        self.set_rflags(state.rflags);
    }

    /// A general-purpose register, by its encoding number, 0 to 15.
    #[must_use]
    pub fn gpr(&self, number: usize) -> u64 {
        self.memory.block().gpr[number]
    }

    /// Sets a general-purpose register.
    pub fn set_gpr(&mut self, number: usize, value: u64) {
        self.memory.block_mut().gpr[number] = value;
    }

    /// The address of the next instruction.
    #[must_use]
    pub fn rip(&self) -> GuestAddress {
        self.pc
    }

    /// Sets the address of the next instruction.
    pub fn set_rip(&mut self, rip: GuestAddress) {
        self.pc = rip;
    }

    /// RFLAGS.
    #[must_use]
    pub fn rflags(&self) -> u64 {
        let trap = if self.trap { Flag::TF.mask() } else { 0 };
        self.memory.block().rflags & RFLAGS_USER | FIXED | trap
    }

    /// Sets the bits of RFLAGS that user code can change.
    pub fn set_rflags(&mut self, rflags: u64) {
        self.trap = rflags & Flag::TF.mask() != 0;
        self.memory.block_mut().rflags = rflags & RFLAGS_USER & !Flag::TF.mask() | FIXED;
    }
}
