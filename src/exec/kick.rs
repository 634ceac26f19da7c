//! [`Kick`]: asks a vCPU to end its run, from any thread. The protocol is that of
//! [`Gate`](crate::code::gate::Gate); here are its two ends in this engine, the word that polls load
//! their address from and what users hold.

use super::vcpu_memory::PollCell;
use crate::code::gate::{Bell, Gate};
use crate::code::sync::Arc;

impl Bell for PollCell {
    fn ring(&self) {
        self.set_faulting();
    }

    fn rings(&self) -> bool {
        !self.is_quiet()
    }

    fn quiet(&self) {
        self.set_quiet();
    }
}

/// Asks one vCPU to leave guest code. It may outlive the vCPU.
#[derive(Clone, Debug)]
pub struct Kick(pub(super) Arc<Gate<PollCell>>);

impl Kick {
    /// Makes the vCPU's present or next run end with [`super::Exit::Requested`].
    pub fn ask(&self) {
        self.0.request();
        self.0.bell().interrupt();
    }
}

#[cfg(test)]
mod tests {
    use super::super::vcpu_memory::VcpuMemory;
    use super::*;
    use crate::code::gate::Gates;

    #[test]
    fn a_ring_that_comes_late_asks_for_nothing() {
        let memory = VcpuMemory::new().unwrap();
        let gates = Gates::new();
        let gate = gates.add(memory.poll_cell());
        assert!(!gate.settle());
        Kick(Arc::clone(&gate)).ask();
        assert!(gate.settle() && !gate.settle());
        memory.poll_cell().ring();
        assert!(memory.poll_cell().rings());
        assert!(!gate.settle() && !memory.poll_cell().rings(), "polls are quiet again");
    }
}
