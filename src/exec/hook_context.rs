//! What hooks work with: [`HookContext`] and [`MemoryAccess`].

use std::fmt;

use super::shared::Shared;
use super::vcpu::Vcpu;
use crate::guest::{GuestAddress, State};
use crate::memory::AccessError;

/// What a code or block hook works with: the vCPU before the instruction at RIP, and its memory.
pub struct HookContext<'a> {
    pub(super) vcpu: &'a mut Vcpu,
    pub(super) shared: &'a Shared,
    pub(super) stop: bool,
}

impl HookContext<'_> {
    /// The address of the instruction.
    #[must_use]
    pub fn rip(&self) -> GuestAddress {
        self.vcpu.rip()
    }

    /// Lets the guest go on elsewhere.
    pub fn set_rip(&mut self, rip: GuestAddress) {
        self.vcpu.set_rip(rip);
    }

    /// A general-purpose register, by its encoding number, 0 to 15.
    #[must_use]
    pub fn gpr(&self, number: usize) -> u64 {
        self.vcpu.gpr(number)
    }

    /// Sets a general-purpose register.
    pub fn set_gpr(&mut self, number: usize, value: u64) {
        self.vcpu.set_gpr(number, value);
    }

    /// RFLAGS.
    #[must_use]
    pub fn rflags(&self) -> u64 {
        self.vcpu.rflags()
    }

    /// Sets the bits of RFLAGS that user code can change.
    pub fn set_rflags(&mut self, rflags: u64) {
        self.vcpu.set_rflags(rflags);
    }

    /// All registers.
    #[must_use]
    pub fn state(&self) -> State {
        self.vcpu.state()
    }

    /// Sets all registers.
    pub fn set_state(&mut self, state: &State) {
        self.vcpu.set_state(state);
    }

    /// Reads guest memory like [`Machine::read`](super::Machine::read).
    pub fn read(&self, address: GuestAddress, bytes: &mut [u8]) -> Result<(), AccessError> {
        self.shared.lock().memory.read(address, bytes)
    }

    /// Writes guest memory like [`Machine::write`](super::Machine::write); the instruction at RIP
    /// included.
    pub fn write(&mut self, address: GuestAddress, bytes: &[u8]) -> Result<(), AccessError> {
        self.shared.change(|core| core.write(address, bytes))
    }

    /// Ends the run with [`Exit::Stopped`](super::Exit::Stopped) before the instruction at RIP, once all of its hooks have
    /// been called.
    pub fn stop(&mut self) {
        self.stop = true;
    }
}

impl fmt::Debug for HookContext<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("HookContext").field("rip", &self.rip()).finish_non_exhaustive()
    }
}

/// An access that the guest may make and is about to, for a memory hook.
pub struct MemoryAccess<'a> {
    pub(super) vcpu: &'a Vcpu,
    pub(super) shared: &'a Shared,
    pub(super) address: GuestAddress,
    pub(super) size: usize,
    pub(super) written: Option<&'a [u8]>,
}

impl MemoryAccess<'_> {
    /// Its first byte, which may lie before the hooked range.
    #[must_use]
    pub fn address(&self) -> GuestAddress {
        self.address
    }

    /// Its number of bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// The bytes to be written; nothing if it reads. An instruction that does both makes two accesses.
    #[must_use]
    pub fn written(&self) -> Option<&[u8]> {
        self.written
    }

    /// The address of the instruction.
    #[must_use]
    pub fn rip(&self) -> GuestAddress {
        self.vcpu.rip()
    }

    /// A general-purpose register, by its encoding number, 0 to 15.
    #[must_use]
    pub fn gpr(&self, number: usize) -> u64 {
        self.vcpu.gpr(number)
    }

    /// Reads guest memory, which is as it was before the access.
    pub fn read(&self, address: GuestAddress, bytes: &mut [u8]) -> Result<(), AccessError> {
        self.shared.lock().memory.read(address, bytes)
    }

    /// Ends the run with [`Exit::Stopped`](super::Exit::Stopped) behind the instruction, or, if it is a repeated string
    /// instruction, at one of its iterations.
    pub fn stop(&self) {
        self.vcpu.stop_asked.set(true);
    }
}

impl fmt::Debug for MemoryAccess<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("MemoryAccess")
            .field("address", &self.address)
            .field("size", &self.size)
            .field("written", &self.written)
            .finish_non_exhaustive()
    }
}
