//! [`VcpuMemory`]: the pages of a [`VcpuBlock`], with a stack for signals below and the reach of
//! probes above; and the one call into translated code.
#![allow(unsafe_code, reason = "owns mapped pages that translated code uses, and calls that code")]

use std::io;
use std::mem::offset_of;
use std::ptr::NonNull;

use super::signals::INTERRUPT;
use crate::code::sync::{Arc, AtomicU64, Ordering};
use crate::guest::Permissions;
use crate::translate::{PROBE_REACH, SLOT_BYTES, VcpuBlock};

/// Bytes below the block for signal handlers of the host process, which may run while guest code
/// does: the kernel's frame alone takes up to 11 KiB.
const STACK_BYTES: usize = 256 << 10;
/// Bytes below that, which fault.
const GUARD_BYTES: usize = 64 << 10;
const ACCESSIBLE: i32 = libc::PROT_READ | libc::PROT_WRITE;
const SLOT_PAGE: usize = SLOT_BYTES / 2;
const BLOCK_AT: usize = GUARD_BYTES + STACK_BYTES;
/// Addresses that can be noted before somebody has to look at them.
const RECORDS: usize = 4096;
const RECORDS_AT: usize = BLOCK_AT + size_of::<VcpuBlock>() + PROBE_REACH;
const RECORD_BYTES: usize = RECORDS * size_of::<u64>();
/// With a page behind the notes, which faults.
const TOTAL: usize = RECORDS_AT + RECORD_BYTES + SLOT_PAGE;

/// No page can be mapped here.
pub(super) const FAULTING: u64 = 8;

/// How translated code is entered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Door {
    /// Host address of the prelude's entry.
    pub(super) enter: u64,
    /// Host addresses that are executed, first and behind the last.
    pub(super) range: (u64, u64),
}

/// The kernel's number of this thread.
fn thread_id() -> u64 {
    thread_local!(static ID: u64 = rustix::thread::gettid().as_raw_nonzero().get() as u64);
    ID.with(|id| *id)
}

impl Door {
    /// Whether a host address is one of code.
    pub(super) fn leads_to(&self, address: u64) -> bool {
        (self.range.0..self.range.1).contains(&address)
    }
}

/// The GS base that this thread had, which it has again when this is dropped. In between it may be a guest's,
/// whose window it costs as much to change to as all registers together; a host that uses none does not notice.
#[derive(Debug)]
pub(super) struct HostBase(u64);

impl HostBase {
    /// Notes it, for those who enter guest code by `memory` too.
    pub(super) fn note(memory: &mut VcpuMemory) -> Self {
        let base = gs_base();
        memory.block_mut().host_gs_base = base;
        Self(base)
    }
}

impl Drop for HostBase {
    fn drop(&mut self) {
        if gs_base() != self.0 {
            // SAFETY: nothing of this program is reached by way of GS but guest memory, in translated code,
            // which sets it; and this is what whoever else uses it had there.
            unsafe { std::arch::asm!("wrgsbase {}", in(reg) self.0, options(nostack, nomem)) };
        }
    }
}

fn gs_base() -> u64 {
    let base;
    // SAFETY: reads a register; machines are not made where user code may not.
    unsafe { std::arch::asm!("rdgsbase {}", out(reg) base, options(nostack, nomem)) };
    base
}

/// The pages themselves.
#[derive(Debug)]
struct Pages {
    start: NonNull<u8>,
}

// SAFETY: what is in the pages is reached through `VcpuMemory`, which borrows it properly, and the
// poll word, which other threads set, through an atomic.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

/// See the file's head.
#[derive(Debug)]
pub(super) struct VcpuMemory {
    pages: Arc<Pages>,
    /// How the two pages of the slot are protected.
    slot: [i32; 2],
}

/// The word that a vCPU's polls load their address from, for other threads to set.
#[derive(Clone, Debug)]
pub(super) struct PollCell {
    pages: Arc<Pages>,
}

impl Pages {
    fn new() -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at a place that the kernel chooses.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), TOTAL, libc::PROT_NONE, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let pages = Self { start };
        let size = STACK_BYTES + size_of::<VcpuBlock>();
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: inside the mapping just made, which nobody else knows.
        let result =
            unsafe { libc::mprotect(start.as_ptr().add(GUARD_BYTES).cast(), size, access) };
        if result != 0 { Err(io::Error::last_os_error()) } else { Ok(pages) }
    }

    fn block(&self) -> *mut VcpuBlock {
        // SAFETY: inside the mapping; its start is page-aligned and BLOCK_AT a multiple of a page.
        unsafe { self.start.as_ptr().add(BLOCK_AT).cast() }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and nothing borrows it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), TOTAL) };
    }
}

impl PollCell {
    /// Lets polls fault. An exchange: whoever quiets two rings acquires what was stored before both.
    pub(super) fn set_faulting(&self) {
        self.word().swap(FAULTING, Ordering::AcqRel);
    }

    /// Lets polls pass.
    pub(super) fn set_quiet(&self) {
        self.word().swap(self.quiet_address(), Ordering::AcqRel);
    }

    /// Whether polls pass.
    pub(super) fn is_quiet(&self) -> bool {
        self.word().load(Ordering::Relaxed) == self.quiet_address()
    }

    /// Interrupts a repeated string instruction, which has no poll in it.
    pub(super) fn interrupt(&self) {
        // SAFETY: as in `word`.
        let thread = unsafe { AtomicU64::from_ptr(&raw mut (*self.pages.block()).thread) };
        let thread = thread.load(Ordering::Relaxed);
        if thread != 0 {
            // SAFETY: takes numbers alone. If the thread is gone by now nothing happens; if it is
            // elsewhere, the handler does nothing.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, INTERRUPT) };
        }
    }

    fn quiet_address(&self) -> u64 {
        // SAFETY: inside the pages, which live as long as `self`; only the address is taken.
        unsafe { &raw const (*self.pages.block()).quiet as u64 }
    }

    fn word(&self) -> &AtomicU64 {
        // SAFETY: an aligned word of pages that live as long as `self`; the vCPU's thread accesses
        // it by single loads of translated code and through this function alone.
        unsafe { AtomicU64::from_ptr(&raw mut (*self.pages.block()).poll) }
    }
}

impl VcpuMemory {
    /// A zeroed block.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { pages: Arc::new(Pages::new()?), slot: [ACCESSIBLE; 2] })
    }

    pub(super) fn block(&self) -> &VcpuBlock {
        // SAFETY: mapped, zeroed at first, any bit pattern is valid, and guest code, which alone
        // writes to it from elsewhere, runs only inside `enter`.
        unsafe { &*self.pages.block() }
    }

    pub(super) fn block_mut(&mut self) -> &mut VcpuBlock {
        // SAFETY: as in `block`, and `self` is borrowed exclusively.
        unsafe { &mut *self.pages.block() }
    }

    pub(super) fn poll_cell(&self) -> PollCell {
        PollCell { pages: Arc::clone(&self.pages) }
    }

    /// Host address of the slot.
    pub(super) fn slot_address(&self) -> u64 {
        &raw const self.block().slot as u64
    }

    /// Protects the two pages of the slot like guest pages. While they are not accessible, nothing
    /// but translated code may touch them.
    pub(super) fn protect_slot(&mut self, rights: [Permissions; 2]) -> io::Result<()> {
        self.set_slot(rights.map(|rights| match (rights.read(), rights.write()) {
            (_, true) => ACCESSIBLE,
            (true, false) => libc::PROT_READ,
            (false, false) => libc::PROT_NONE,
        }))
    }

    /// Makes some of the two pages accessible and leaves the others as they are.
    pub(super) fn open_slot(&mut self, pages: [bool; 2]) -> io::Result<()> {
        self.set_slot([0, 1].map(|page| if pages[page] { ACCESSIBLE } else { self.slot[page] }))
    }

    fn set_slot(&mut self, wanted: [i32; 2]) -> io::Result<()> {
        for (page, wanted) in wanted.into_iter().enumerate() {
            if self.slot[page] == wanted {
                continue;
            }
            let start = self.slot_address() as usize + page * SLOT_PAGE;
            // SAFETY: a page of the slot, in our own mapping.
            if unsafe { libc::mprotect(start as *mut libc::c_void, SLOT_PAGE, wanted) } != 0 {
                return Err(io::Error::last_os_error());
            }
            self.slot[page] = wanted;
        }
        Ok(())
    }

    /// Makes room for what translated code notes.
    pub(super) fn open_records(&mut self) -> io::Result<()> {
        if self.block().record != 0 {
            return Ok(());
        }
        let start = self.records_start();
        // SAFETY: pages of our own mapping, which nobody uses yet.
        if unsafe { libc::mprotect(start.cast(), RECORD_BYTES, ACCESSIBLE) } != 0 {
            return Err(io::Error::last_os_error());
        }
        self.block_mut().record = start as u64;
        Ok(())
    }

    /// Gives the memory of the jump cache back, all of whose entries are zero then. Where the host does not take it,
    /// they are as they were.
    pub(super) fn give_back_jump_cache(&mut self) {
        const START: usize = offset_of!(VcpuBlock, jump_tags);
        const SIZE: usize = offset_of!(VcpuBlock, probe) - START;
        const { assert!(START.is_multiple_of(SLOT_PAGE) && SIZE.is_multiple_of(SLOT_PAGE)) };
        // SAFETY: whole pages of our own mapping with nothing but the two arrays of words, which may be zero; nobody
        // else uses them, since `self` is borrowed.
        unsafe {
            let start = self.pages.start.as_ptr().add(BLOCK_AT + START);
            libc::madvise(start.cast(), SIZE, libc::MADV_DONTNEED);
        }
    }

    fn records_start(&self) -> *mut u64 {
        // SAFETY: inside the mapping; page-aligned, since it begins and all its parts are.
        unsafe { self.pages.start.as_ptr().add(RECORDS_AT).cast() }
    }

    /// What was noted and not given to anybody yet.
    pub(super) fn records(&self) -> &[u64] {
        let Some(bytes) = self.block().record.checked_sub(self.records_start() as u64) else {
            return &[];
        };
        let count = (bytes as usize / size_of::<u64>()).min(RECORDS);
        // SAFETY: readable pages once `record` is set, any bit pattern is valid, and guest code, which alone
        // writes to them from elsewhere, runs only inside `enter`.
        unsafe { std::slice::from_raw_parts(self.records_start(), count) }
    }

    pub(super) fn records_are_full(&self) -> bool {
        self.records().len() == RECORDS
    }

    /// Notes one more; there has to be room.
    pub(super) fn push_record(&mut self, word: u64) {
        let count = self.records().len();
        assert!(self.block().record != 0 && count < RECORDS, "room for notes was made before");
        // SAFETY: inside the notes' pages, as was just asserted, and nothing borrows them.
        unsafe { self.records_start().add(count).write(word) };
        self.block_mut().record += size_of::<u64>() as u64;
    }

    /// Takes the `index`-th out.
    pub(super) fn remove_record(&mut self, index: usize) {
        let count = self.records().len();
        assert!(index < count, "there is no such note");
        let place = self.records_start();
        // SAFETY: both are inside of what was noted, and nothing borrows it.
        unsafe { std::ptr::copy(place.add(index + 1), place.add(index), count - index - 1) };
        self.block_mut().record -= size_of::<u64>() as u64;
    }

    pub(super) fn remove_last_record(&mut self) {
        if let Some(last) = self.records().len().checked_sub(1) {
            self.remove_record(last);
        }
    }

    pub(super) fn clear_records(&mut self) {
        if self.block().record != 0 {
            self.block_mut().record = self.records_start() as u64;
        }
    }

    /// Runs translated code from `block.entry` until it leaves.
    pub(super) fn enter(&mut self, door: Door) {
        assert!(door.leads_to(self.block().entry), "only code of the cache is entered");
        self.block_mut().thread = thread_id();
        // SAFETY: `door.enter` is the prelude's entry, which has this signature and keeps to the ABI;
        // the code at `entry` was put there by the core of the same machine, for the window that it
        // owns and this block was made for; the machine lives as long as its vCPUs, and faults of its
        // code are caught as long as it lives.
        unsafe {
            let function: extern "sysv64" fn(*mut VcpuBlock) =
                std::mem::transmute(door.enter as *const ());
            function(self.pages.block());
        }
        self.block_mut().thread = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_cache_that_is_given_back_is_zero_and_nothing_else_is() {
        let mut memory = VcpuMemory::new().unwrap();
        let block = memory.block_mut();
        block.jump_tags.fill(1);
        block.jump_hosts.fill(2);
        block.slot.0.fill(3);
        memory.give_back_jump_cache();
        let block = memory.block();
        assert!(block.jump_tags.iter().chain(&block.jump_hosts).all(|&word| word == 0));
        assert!(block.slot.0.iter().all(|&byte| byte == 3));
    }
}
