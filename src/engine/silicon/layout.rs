//! Where things lie in the memory that the engine shares with its child.
//!
//! The child owns one short span of its address space, `base .. base + SPAN`: a page of code, which
//! is not shared, and behind it the shared area, whose offsets are named here. The engine sees the
//! same area somewhere else. Everything is little-endian and naturally aligned.
//!
//! | pages | child may | what |
//! |---|---|---|
//! | code | read, execute | the stub ([`super::stub`]) |
//! | control | read, write | hand-over words and what the stub notes down |
//! | request | read | commands, registers to load |
//! | signal stack | read, write | where the kernel puts the frame that ends a leg |

/// Bytes in a page of the host.
pub(super) const PAGE: usize = 4096;

/// Where the shared area begins, from the child's base.
pub(super) const SHARED: usize = PAGE;

/// Offsets in the shared area: the control page.
pub(super) mod control {
    /// u32: the engine counts up to hand a request over.
    pub(crate) const GO: usize = 0x000;
    /// u32: the stub stores the number of the request it has finished.
    pub(crate) const DONE: usize = 0x040;
    /// u64: 1 if a command failed, else 0.
    pub(crate) const FAILED: usize = 0x080;
    /// i64: what the last command's system call returned.
    pub(crate) const RESULT: usize = 0x088;
    /// u64: the child's address of the last command carried out.
    pub(crate) const COMMAND: usize = 0x090;
    /// u64: number of the signal that ended the leg, 0 if there was no leg.
    pub(crate) const SIGNAL: usize = 0x098;
    /// u64: the child's address of that signal's `ucontext`.
    pub(crate) const CONTEXT: usize = 0x0a0;
    /// u64 each: ES, DS, FS, GS selectors at the end of the leg.
    pub(crate) const SELECTORS: usize = 0x0a8;
    /// u64 each: FS and GS base at the end of the leg.
    pub(crate) const BASES: usize = 0x0c8;
    /// u64: traps that the stub may take by itself; zero where the guest runs freely.
    pub(crate) const STEPS_LEFT: usize = 0x0d8;
    /// u64: instructions that it has counted.
    pub(crate) const COUNTED: usize = 0x0e0;
    /// u64: address of the instruction under way.
    pub(crate) const AT: usize = 0x0e8;
    /// u64: 1 if that is a repeated string instruction.
    pub(crate) const REPEATS: usize = 0x0f0;
    /// Everything up to here is written by the stub; behind it the page stays zero, …
    pub(crate) const WRITTEN: usize = 0x0f8;
    /// … but for this slot at its end, which is all the stack that the stub has.
    pub(crate) const SCRATCH_TOP: usize = super::PAGE;
    /// Bytes of that slot.
    pub(crate) const SCRATCH_SIZE: usize = 64;
}

/// Offsets in the shared area: the request pages.
pub(super) mod request {
    use super::PAGE;

    /// u64: how many commands there are.
    pub(crate) const COMMAND_COUNT: usize = PAGE;
    /// u64: 1 if a leg follows the commands.
    pub(crate) const RUN: usize = PAGE + 0x08;
    /// u64: components that XRSTOR loads.
    pub(crate) const COMPONENTS: usize = PAGE + 0x10;
    /// u64 each: FS and GS base.
    pub(crate) const BASES: usize = PAGE + 0x18;
    /// u64: instructions after which the stub ends a leg that it steps.
    pub(crate) const COUNT: usize = PAGE + 0x28;
    /// u64: address before which it ends one.
    pub(crate) const BREAKPOINT: usize = PAGE + 0x30;
    /// u64 × 5: RIP, CS, RFLAGS, RSP, SS as IRETQ pops them.
    pub(crate) const RETURN_FRAME: usize = PAGE + 0x40;
    /// u64 × 16: general-purpose registers in encoding order; RSP's place is not read.
    pub(crate) const GPR: usize = PAGE + 0x80;
    /// Seven u64 a command: the system call's number, then its six arguments.
    pub(crate) const COMMANDS: usize = PAGE + 0x100;
    /// How many commands fit.
    pub(crate) const MAX_COMMANDS: usize = (2 * PAGE - 0x100) / (7 * 8);
    /// The image that XRSTOR loads.
    pub(crate) const XSAVE: usize = 3 * PAGE;
    /// Pages in all.
    pub(crate) const PAGES: usize = 3;
}

/// Offset in the shared area of the signal stack.
pub(super) const SIGNAL_STACK: usize = PAGE + request::PAGES * PAGE;
/// Its size: a frame with AVX-512 is 3.4 KiB, and a guest cannot ask for AMX.
pub(super) const SIGNAL_STACK_SIZE: usize = 2 * PAGE;
/// Bytes shared.
pub(super) const SHARED_SIZE: usize = SIGNAL_STACK + SIGNAL_STACK_SIZE;
/// Bytes of the child's address space that are not the guest's.
pub(super) const SPAN: usize = SHARED + SHARED_SIZE;

const _: () = {
    assert!(request::COMMANDS + request::MAX_COMMANDS * 56 <= request::XSAVE);
    assert!(request::XSAVE.is_multiple_of(64) && control::WRITTEN + control::SCRATCH_SIZE <= PAGE);
};
