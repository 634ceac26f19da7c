//! Faults of translated code. The handler of SIGSEGV, SIGBUS, SIGFPE, SIGILL and SIGTRAP asks one
//! question, whether the instruction that faulted lies in a code cache. If so, it notes the fault in
//! the vCPU's block and lets the thread go on at the cache's fault stub; all else happens outside
//! of the signal. If not, the fault goes to whoever handled the signal before.
//!
//! SIGURG, which nothing minds by default, interrupts a repeated string instruction of a code cache in
//! the same way, between two iterations. A poll stands before each; a thread that has loaded the poll's
//! address already is made to fault there. Anywhere else it does nothing. It may come at any rate, so
//! it waits while one of these handlers runs: they would fill the stack.
//!
//! The handler runs in any thread at any time, so it takes no lock, allocates nothing, and reads
//! only the list of code caches, whose entries are never freed. What runs before it clears AC: the
//! guest may have set it, and Rust code is not aligned for it.
#![allow(unsafe_code, reason = "installs signal handlers and edits the interrupted context")]

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;

use super::exit::vector;
use super::vcpu_memory::FAULTING;
use crate::code::sync::{AtomicU64, AtomicUsize, Ordering};
use crate::translate::{POLL_LOAD, VcpuBlock};

/// Sent to a thread that a vCPU runs in.
pub(super) const INTERRUPT: i32 = libc::SIGURG;

const SIGNALS: [i32; 6] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP, INTERRUPT];

/// A code cache that faults may come from. Entries live as long as the process and are used again.
#[derive(Debug)]
struct Entry {
    /// Executable addresses: the first, 0 while the entry is not in use …
    start: AtomicU64,
    /// … and the one behind the last.
    end: AtomicU64,
    /// Where a faulting thread goes on.
    stub: AtomicU64,
    /// Address of the next entry, or 0.
    next: AtomicUsize,
}

static FIRST: AtomicUsize = AtomicUsize::new(0);

/// A code cache is in the list as long as this lives.
#[derive(Debug)]
pub(super) struct Registration(&'static Entry);

impl Registration {
    /// From now on faults in `range` of executable addresses go on at `stub`.
    pub(super) fn new(range: (u64, u64), stub: u64) -> io::Result<Self> {
        install()?;
        let entry = free_entry().unwrap_or_else(new_entry);
        entry.stub.store(stub, Ordering::Release);
        entry.end.store(range.1, Ordering::Release);
        // Last: whoever sees the start sees the rest.
        entry.start.store(range.0, Ordering::Release);
        Ok(Self(entry))
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.0.start.store(0, Ordering::Release);
    }
}

/// An entry that nobody uses, claimed.
fn free_entry() -> Option<&'static Entry> {
    entries().find(|entry| {
        // 1 is no address of a code cache: the entry is claimed and matches nothing yet.
        entry.end.load(Ordering::Acquire) != 1
            && entry.start.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    })
}

fn new_entry() -> &'static Entry {
    let entry = Box::leak(Box::new(Entry {
        start: AtomicU64::new(1),
        end: AtomicU64::new(0),
        stub: AtomicU64::new(0),
        next: AtomicUsize::new(0),
    }));
    let mut first = FIRST.load(Ordering::Acquire);
    loop {
        entry.next.store(first, Ordering::Relaxed);
        let address = ptr::from_ref::<Entry>(entry) as usize;
        match FIRST.compare_exchange(first, address, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return entry,
            Err(now) => first = now,
        }
    }
}

fn entries() -> impl Iterator<Item = &'static Entry> {
    let mut next = FIRST.load(Ordering::Acquire);
    std::iter::from_fn(move || {
        // SAFETY: entries are leaked, so an address once published stays valid.
        let entry: &'static Entry = unsafe { (next as *const Entry).as_ref()? };
        next = entry.next.load(Ordering::Acquire);
        Some(entry)
    })
}

/// Whom a signal goes to that is not ours, by the index of the signal.
static PREVIOUS: [OnceLock<libc::sigaction>; SIGNALS.len()] =
    [const { OnceLock::new() }; SIGNALS.len()];

/// Installs the handlers, once.
fn install() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let result = INSTALLED.get_or_init(|| {
        for (index, signal) in SIGNALS.into_iter().enumerate() {
            let mut action = MaybeUninit::<libc::sigaction>::zeroed();
            let mut previous = MaybeUninit::<libc::sigaction>::zeroed();
            // SAFETY: zeroed memory is a valid sigaction; the handler has the signature that
            // SA_SIGINFO asks for; both pointers are valid.
            let result = unsafe {
                let action = action.assume_init_mut();
                action.sa_sigaction = entry_point as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
                libc::sigaddset(&raw mut action.sa_mask, INTERRUPT);
                if signal != INTERRUPT {
                    // A handler that one of these is passed on to may fault itself.
                    action.sa_flags |= libc::SA_NODEFER;
                }
                libc::sigaction(signal, ptr::null(), previous.as_mut_ptr());
                // Known before the handler can run.
                let _ = PREVIOUS[index].set(previous.assume_init());
                libc::sigaction(signal, action, ptr::null_mut())
            };
            if result != 0 {
                return Err(io::Error::last_os_error().raw_os_error().unwrap_or(0));
            }
        }
        Ok(())
    });
    result.map_err(io::Error::from_raw_os_error)
}

/// What the kernel calls: clears AC, then goes to [`handle`].
#[unsafe(naked)]
unsafe extern "C" fn entry_point(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    std::arch::naked_asm!(
        "pushfq",
        "and qword ptr [rsp], ~0x40000",
        "popfq",
        "jmp {handle}",
        handle = sym handle,
    )
}

extern "C" fn handle(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid context to a handler with SA_SIGINFO.
    let context_of = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    let registers = &mut context_of.uc_mcontext.gregs;
    let pc = registers[libc::REG_RIP as usize] as u64;
    let ours = entries().find(|entry| {
        let start = entry.start.load(Ordering::Acquire);
        start > 1 && pc >= start && pc < entry.end.load(Ordering::Acquire)
    });
    let Some(entry) = ours else { return pass_on(signal, info, context) };
    if signal == INTERRUPT && !is_repeated_string(pc) {
        if begins_with(pc, &POLL_LOAD) {
            registers[libc::REG_R14 as usize] = FAULTING as i64;
        }
        // A poll comes soon.
        return;
    }
    // Translated code has RSP at its block, or some bytes below for an instruction or two.
    let rsp = registers[libc::REG_RSP as usize] as u64;
    let block = rsp.next_multiple_of(align_of::<VcpuBlock>() as u64);
    // SAFETY: `pc` lies in a code cache, all of whose code runs with RSP at a block that its thread
    // alone uses.
    let block_of = unsafe { &mut *(block as *mut VcpuBlock) };
    block_of.fault_vector = match signal {
        INTERRUPT => u64::from(vector::INTERRUPTED),
        _ => registers[libc::REG_TRAPNO as usize] as u64,
    };
    block_of.fault_error = registers[libc::REG_ERR as usize] as u64;
    block_of.fault_address = registers[libc::REG_CR2 as usize] as u64;
    block_of.fault_pc = pc;
    registers[libc::REG_RSP as usize] = block as i64;
    registers[libc::REG_RIP as usize] = entry.stub.load(Ordering::Acquire) as i64;
}

/// Whether the instruction at an address of a code cache is a repeated string instruction.
fn is_repeated_string(pc: u64) -> bool {
    let mut repeats = false;
    for offset in 0..8 {
        // SAFETY: an instruction that a thread is executing; it has an opcode behind its prefixes.
        match unsafe { *((pc + offset) as *const u8) } {
            0xf2 | 0xf3 => repeats = true,
            0x40..=0x4f | 0x65..=0x67 => {}
            opcode => return repeats && matches!(opcode, 0xa4..=0xa7 | 0xaa..=0xaf),
        }
    }
    false
}

/// Whether the code at an address of a code cache begins with these bytes.
fn begins_with(pc: u64, code: &[u8]) -> bool {
    // SAFETY: an instruction that a thread is executing; one that differs from `code` does so in a byte
    // of its own.
    (pc..).zip(code).all(|(address, byte)| unsafe { *(address as *const u8) == *byte })
}

/// Does what would have happened without this handler.
fn pass_on(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let index = SIGNALS.iter().position(|ours| *ours == signal);
    let previous = index.and_then(|index| PREVIOUS[index].get());
    let Some(previous) = previous else { return };
    match previous.sa_sigaction {
        libc::SIG_IGN => {}
        // Which is to ignore it.
        libc::SIG_DFL if signal == INTERRUPT => {}
        libc::SIG_DFL => {
            // The instruction faults again and the default action is taken.
            // SAFETY: `previous` came from sigaction.
            unsafe { libc::sigaction(signal, previous, ptr::null_mut()) };
        }
        handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: whoever installed it promised this signature by SA_SIGINFO.
            let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: a handler without SA_SIGINFO takes the signal's number alone.
            let handler: extern "C" fn(i32) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::vcpu_memory::VcpuMemory;
    use super::*;

    /// The context of a thread at `code`, with RSP at the block, after the handler has run in it.
    fn interrupted(code: &'static [u8; 16], memory: &VcpuMemory) -> libc::ucontext_t {
        let start = code.as_ptr() as u64;
        let _registration = Registration::new((start, start + 16), 0x5ab).unwrap();
        // SAFETY: zeroed memory is a valid context.
        let mut context = unsafe { MaybeUninit::<libc::ucontext_t>::zeroed().assume_init() };
        let registers = &mut context.uc_mcontext.gregs;
        registers[libc::REG_RIP as usize] = start as i64;
        registers[libc::REG_RSP as usize] = ptr::from_ref(memory.block()) as i64;
        handle(INTERRUPT, ptr::null_mut(), (&raw mut context).cast());
        context
    }

    #[test]
    fn an_interrupt_ends_a_repetition_and_makes_a_poll_fault() {
        static REPETITION: [u8; 16] = *b"\xf3\x65\x48\xa5............";
        static POLL: [u8; 16] = *b"\x45\x8b\x36.............";
        static STRING: [u8; 16] = *b"\x65\x48\xa5.............";
        let memory = VcpuMemory::new().unwrap();
        let register = |context: &libc::ucontext_t, number: i32| {
            context.uc_mcontext.gregs[number as usize] as u64
        };
        let place = |code: &'static [u8; 16]| code.as_ptr() as u64;
        let context = interrupted(&REPETITION, &memory);
        assert_eq!(register(&context, libc::REG_RIP), 0x5ab);
        assert_eq!(memory.block().fault_pc, place(&REPETITION));
        assert_eq!(memory.block().fault_vector, u64::from(vector::INTERRUPTED));
        let context = interrupted(&POLL, &memory);
        assert_eq!(register(&context, libc::REG_RIP), place(&POLL));
        assert_eq!(register(&context, libc::REG_R14), FAULTING);
        let context = interrupted(&STRING, &memory);
        assert_eq!(register(&context, libc::REG_RIP), place(&STRING));
        assert_eq!(register(&context, libc::REG_R14), 0);
    }
}
