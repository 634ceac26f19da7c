//! Making every core of this process forget instructions that it has fetched.
#![allow(unsafe_code, reason = "calls membarrier, which no library wraps")]

use std::sync::OnceLock;

/// From linux/membarrier.h.
const PRIVATE_EXPEDITED_SYNC_CORE: libc::c_long = 1 << 5;
const REGISTER_PRIVATE_EXPEDITED_SYNC_CORE: libc::c_long = 1 << 6;

/// When it returns, each core that runs a thread of this process has serialised since the call
/// (membarrier(2), `MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE`). A kernel without the command returns
/// from a system call or an interrupt by an instruction that serialises; nothing more can be had there.
pub(crate) fn serialise_cores() {
    static REGISTERED: OnceLock<bool> = OnceLock::new();
    if *REGISTERED.get_or_init(|| membarrier(REGISTER_PRIVATE_EXPEDITED_SYNC_CORE)) {
        membarrier(PRIVATE_EXPEDITED_SYNC_CORE);
    }
}

/// Whether the kernel did it.
fn membarrier(command: libc::c_long) -> bool {
    // SAFETY: the call takes numbers alone and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}
