//! [`Kick`]: asks a vCPU to leave guest code.
//!
//! The asker sets the request, then points the vCPU's polls at an address that faults. The vCPU, out
//! of guest code, points them back and *then* looks at the request. Either it sees the request, or
//! the asker's second store comes after its own and the next poll faults: no request is lost.

use super::vcpu_memory::{PollCell, VcpuMemory};
use crate::code::sync::{Arc, AtomicBool, Ordering};

/// No page can be mapped here.
const FAULTING: u64 = 8;

/// Asks one vCPU to leave guest code. It may outlive the vCPU.
#[derive(Clone, Debug)]
pub struct Kick {
    requested: Arc<AtomicBool>,
    poll: PollCell,
}

impl Kick {
    pub(super) fn new(memory: &VcpuMemory) -> Self {
        Self { requested: Arc::new(AtomicBool::new(false)), poll: memory.poll_cell() }
    }

    /// Makes the vCPU's present or next run end with [`super::Exit::Requested`].
    pub fn ask(&self) {
        // Pairs with the swap in `taken`.
        self.requested.store(true, Ordering::SeqCst);
        self.poll.set(FAULTING);
    }

    pub(super) fn is_pending(&self) -> bool {
        self.requested.load(Ordering::SeqCst)
    }

    /// Whether a request was made, which is then granted. Called by the vCPU outside of guest code.
    pub(super) fn taken(&self, memory: &mut VcpuMemory) -> bool {
        // The second store of a request that is granted already may come late.
        let quiet = memory.quiet_address();
        if !self.is_pending() && self.poll.get() == quiet {
            return false;
        }
        self.poll.set(quiet);
        self.requested.swap(false, Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_store_that_comes_late_asks_for_nothing() {
        let mut memory = VcpuMemory::new().unwrap();
        let kick = Kick::new(&memory);
        kick.poll.set(memory.quiet_address());
        assert!(!kick.taken(&mut memory));
        // `ask`, with all that `taken` does between its two stores.
        kick.requested.store(true, Ordering::SeqCst);
        assert!(kick.taken(&mut memory));
        kick.poll.set(FAULTING);
        assert!(!kick.taken(&mut memory));
        assert_eq!(kick.poll.get(), memory.quiet_address(), "polls are quiet again");
        kick.ask();
        assert!(kick.is_pending() && kick.taken(&mut memory) && !kick.taken(&mut memory));
    }
}
