//! What the heap of the process gives back to the system.
#![allow(unsafe_code, reason = "calls mallopt, which no library wraps")]

/// Bytes of a block that is a mapping of its own.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 128 << 10;

/// Has large blocks given back when they are freed, whatever was allocated since. Left to itself, glibc takes them
/// from its arenas once one was freed (mallopt(3), `M_MMAP_THRESHOLD`), where small blocks above keep
/// them: a campaign's longest trace would cost its memory for good. To be called before there are threads.
pub fn give_back_large_blocks() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes numbers alone, and the allocator is whole before and after it.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
    }
}
