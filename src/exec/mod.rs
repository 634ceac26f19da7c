//! Execution: [`Machine`] is guest memory with its translated code, [`Vcpu`] a processor that runs it,
//! [`Exit`] why it stopped.
//!
//! The run loop finds or translates the block at RIP and enters the code cache (`trampoline`). Blocks
//! follow each other there until something needs the run loop: a jump not seen before, an instruction
//! that only it executes (`assist`), or a fault, which the signal handler (`signals`) turns into an
//! ordinary way out. `step` executes a single instruction, by whatever means that takes.

mod access;
mod announce;
mod assist;
mod bounce;
mod code_pages;
mod core;
mod cpuid;
mod exit;
mod hook_context;
mod hooks;
mod kick;
mod leave;
mod length;
mod machine;
mod mmio;
mod registers;
mod rules;
mod shared;
mod signals;
mod step;
mod trace;
mod trampoline;
mod trapped;
mod vcpu;
mod vcpu_memory;

pub use crate::code::Figures;
pub use crate::translate::TraceOf;
pub use cpuid::CpuidModel;
pub use exit::Exit;
pub use hook_context::{HookContext, MemoryAccess};
pub use hooks::{HookError, HookId};
pub use kick::Kick;
pub use machine::{Machine, MachineError};
pub use mmio::Mmio;
pub use trace::Traced;
pub use vcpu::Vcpu;
