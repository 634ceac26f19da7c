//! [`Exit`]: why a vCPU stopped running guest code.

use std::fmt;

/// Why [`super::Vcpu::run`] returned. The guest's state is that of an instruction boundary, or of an
/// iteration boundary of a repeated string instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// `hlt`. RIP is behind it.
    Halt,
    /// `syscall`. RIP is behind it, RCX and R11 are as the instruction leaves them.
    SystemCall,
    /// `int 0x80`. RIP is behind it.
    LegacySystemCall,
    /// An exception. RIP is the instruction for a fault, the next one for a trap.
    Exception {
        /// Its number.
        vector: u8,
        /// Its error code, zero where it has none.
        error: u32,
        /// CR2 of a page fault.
        address: Option<u64>,
    },
    /// The budget is used up.
    Budget,
    /// A breakpoint is at RIP, which is not executed yet.
    Breakpoint,
    /// A hook asked for it.
    Stopped,
    /// Another thread asked for it.
    Requested,
    /// The instruction at RIP is one that this engine does not execute.
    Unsupported {
        /// Which, and why.
        what: &'static str,
    },
    /// The host failed.
    Host {
        /// In what.
        what: String,
    },
}

impl Exit {
    /// An exception without an error code.
    pub(super) fn exception(vector: u8) -> Self {
        Self::Exception { vector, error: 0, address: None }
    }

    /// A general-protection fault with error code 0.
    pub(super) fn general_protection() -> Self {
        Self::exception(vector::GP)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Halt => formatter.write_str("hlt"),
            Self::SystemCall => formatter.write_str("syscall"),
            Self::LegacySystemCall => formatter.write_str("int 0x80"),
            Self::Exception { vector, error, address } => {
                write!(formatter, "exception {vector} (error code {error:#x})")?;
                address.map_or(Ok(()), |address| write!(formatter, " at {address:#x}"))
            }
            Self::Budget => formatter.write_str("budget used up"),
            Self::Breakpoint => formatter.write_str("breakpoint"),
            Self::Stopped => formatter.write_str("stopped by a hook"),
            Self::Requested => formatter.write_str("exit requested"),
            Self::Unsupported { what } => write!(formatter, "not supported: {what}"),
            Self::Host { what } => write!(formatter, "the host failed: {what}"),
        }
    }
}

/// Numbers of exceptions (Intel SDM volume 3A, table 6-1).
pub(super) mod vector {
    pub(crate) const DB: u8 = 1;
    pub(crate) const BP: u8 = 3;
    pub(crate) const OF: u8 = 4;
    pub(crate) const UD: u8 = 6;
    pub(crate) const SS: u8 = 12;
    pub(crate) const GP: u8 = 13;
    pub(crate) const PF: u8 = 14;
    pub(crate) const MF: u8 = 16;
    pub(crate) const AC: u8 = 17;
    /// No vector of the processor: a repeated string instruction was interrupted between two iterations.
    pub(crate) const INTERRUPTED: u8 = 255;
}
