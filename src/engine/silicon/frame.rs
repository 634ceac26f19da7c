//! The signal frame that ends a leg, read where the kernel wrote it: `struct ucontext` and behind it
//! the XSAVE image (Linux `arch/x86/include/uapi/asm/sigcontext.h`).

use super::child::Child;
use super::layout::{SIGNAL_STACK, SIGNAL_STACK_SIZE, control};
use crate::case::ExceptionVector;
use crate::guest::{Selectors, State, Xstate};

/// Offsets in `struct ucontext`: what follows flags, link and stack is `struct sigcontext`.
pub(super) mod context {
    const MACHINE: usize = 40;
    /// r8–r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, in this order.
    pub(crate) const REGISTERS: usize = MACHINE;
    pub(crate) const RIP: usize = MACHINE + 128;
    pub(crate) const RFLAGS: usize = MACHINE + 136;
    /// cs, gs, fs, ss: 16 bits each.
    pub(crate) const SELECTORS: usize = MACHINE + 144;
    pub(crate) const ERROR: usize = MACHINE + 152;
    pub(crate) const TRAP: usize = MACHINE + 160;
    pub(crate) const CR2: usize = MACHINE + 176;
    pub(crate) const XSAVE: usize = MACHINE + 184;
    /// Behind it all are the mask of signals, in 8 bytes, and `siginfo_t`.
    pub(crate) const SIGNAL_CODE: usize = MACHINE + 256 + 8 + 8;
    pub(crate) const SIZE: usize = SIGNAL_CODE + 4;
}

/// RF: set in the image of every fault, and not visible to user code.
const RESUME_FLAG: u64 = 1 << 16;

/// Where `struct sigcontext` keeps each register of [`State::gpr`].
const ORDER: [usize; 16] = [13, 14, 12, 11, 15, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7];

/// How a leg ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    pub(super) signal: i32,
    /// What the kernel says of it, in `si_code`.
    pub(super) signal_code: i32,
    /// Exception vector, as the kernel noted it.
    pub(super) trap: u64,
    pub(super) error: u64,
    pub(super) cr2: u64,
    /// Offset in the shared area below which the kernel wrote nothing.
    pub(super) start: usize,
}

impl Frame {
    /// Whether the leg ended behind an instruction, by the trap flag (or by `int1`).
    pub(super) fn is_single_step(&self) -> bool {
        self.signal == libc::SIGTRAP && self.trap == u64::from(ExceptionVector::DB.0)
    }

    /// Reads the frame of the leg that just ended, and the guest's state from it into `state`; nothing
    /// if there is none where it must be.
    pub(super) fn read(child: &Child, xstate: &Xstate, state: &mut State) -> Option<Self> {
        let inside = |address: u64, size: usize| {
            let offset = child.shared_offset(address)?;
            let end = SIGNAL_STACK + SIGNAL_STACK_SIZE;
            (offset >= SIGNAL_STACK && offset + size <= end).then_some(offset)
        };
        let place = inside(child.read_u64(control::CONTEXT), context::SIZE)?;
        let word = |offset: usize| child.read_u64(place + offset);
        let image = inside(word(context::XSAVE), xstate.size())?;
        let rip = word(context::RIP);
        if child.owns(rip) {
            // The stub itself was interrupted: what is here is not the guest's.
            return None;
        }
        state.gpr = std::array::from_fn(|index| word(context::REGISTERS + ORDER[index] * 8));
        state.rip = rip;
        state.rflags = word(context::RFLAGS) & !RESUME_FLAG;
        state.fs_base = child.read_u64(control::BASES);
        state.gs_base = child.read_u64(control::BASES + 8);
        state.selectors = selectors(child, word(context::SELECTORS));
        xstate.load(child.bytes(image, xstate.size()), state);
        Some(Self {
            signal: child.read_u64(control::SIGNAL) as i32,
            signal_code: word(context::SIGNAL_CODE) as i32,
            trap: word(context::TRAP),
            error: word(context::ERROR),
            cr2: word(context::CR2),
            start: place - size_of::<u64>(),
        })
    }
}

/// ES, DS, FS and GS as the stub noted them; CS and SS as the kernel did.
fn selectors(child: &Child, packed: u64) -> Selectors {
    let noted = |index: usize| child.read_u64(control::SELECTORS + index * 8) as u16;
    let (cs, ss) = (packed as u16, (packed >> 48) as u16);
    Selectors([noted(0), cs, ss, noted(1), noted(2), noted(3)])
}
