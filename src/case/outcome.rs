//! [`Outcome`]: everything that could be seen of a run, by value.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::ObjectId;
use crate::guest::State;

/// Number of an x86 exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ExceptionVector(pub u8);

impl ExceptionVector {
    /// Divide error.
    pub const DE: Self = Self(0);
    /// Debug exception.
    pub const DB: Self = Self(1);
    /// Breakpoint (`int3`).
    pub const BP: Self = Self(3);
    /// Overflow (`int 4`).
    pub const OF: Self = Self(4);
    /// Invalid opcode.
    pub const UD: Self = Self(6);
    /// Stack-segment fault.
    pub const SS: Self = Self(12);
    /// General protection.
    pub const GP: Self = Self(13);
    /// Page fault.
    pub const PF: Self = Self(14);
    /// x87 floating-point error.
    pub const MF: Self = Self(16);
    /// Alignment check.
    pub const AC: Self = Self(17);
    /// SIMD floating-point exception.
    pub const XM: Self = Self(19);
}

impl fmt::Display for ExceptionVector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match *self {
            Self::DE => "#DE",
            Self::DB => "#DB",
            Self::BP => "#BP",
            Self::OF => "#OF",
            Self::UD => "#UD",
            Self::SS => "#SS",
            Self::GP => "#GP",
            Self::PF => "#PF",
            Self::MF => "#MF",
            Self::AC => "#AC",
            Self::XM => "#XM",
            Self(other) => return write!(formatter, "#{other}"),
        };
        formatter.write_str(name)
    }
}

/// How an engine was lost in the middle of a case. The engine replaces itself and goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Loss {
    /// The engine's process was ended by this signal, of its own doing or from outside.
    Killed {
        /// Signal number.
        signal: i32,
    },
    /// The engine's process ended by itself.
    Exited {
        /// Exit status.
        status: i32,
    },
    /// The engine's process did not answer in time and could not be stopped.
    Hung,
    /// The guest wrote over the engine's own memory.
    Overwritten,
    /// The engine executed more instructions than its budget.
    Overran,
}

impl fmt::Display for Loss {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Killed { signal } => write!(formatter, "engine killed by signal {signal}"),
            Self::Exited { status } => write!(formatter, "engine exited with status {status}"),
            Self::Hung => formatter.write_str("engine hung"),
            Self::Overwritten => formatter.write_str("engine overwritten by the guest"),
            Self::Overran => formatter.write_str("engine overran its budget"),
        }
    }
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Stop {
    /// `hlt`, with no event left that waits for it. RIP is behind it.
    Halt,
    /// An exception. RIP is where the processor reports it: the instruction for a fault, the next
    /// one for a trap.
    Exception {
        /// Which.
        vector: ExceptionVector,
        /// Its error code; zero where the vector has none, absent where an engine does not tell.
        error: Option<u32>,
        /// CR2 of a page fault; absent with other vectors.
        address: Option<u64>,
    },
    /// `syscall`. RIP is behind it, RCX and R11 are as `syscall` leaves them.
    SystemCall,
    /// `int 0x80`, which reaches the kernel of a Linux host. RIP is behind it.
    LegacySystemCall,
    /// [`super::Case::limit`] instructions were executed.
    Limit,
    /// The guest ran on past the engine's time limit. Where it was then is chance: state and memory
    /// are not part of the outcome.
    TimeLimit,
    /// The engine did not survive the case. State and memory are not part of the outcome.
    Lost(Loss),
}

impl Stop {
    /// Its name without numbers: of two page faults it is the same.
    #[must_use]
    pub fn kind(self) -> String {
        match self {
            Self::Exception { vector, .. } => vector.to_string(),
            other => other.to_string(),
        }
    }

    /// Whether state and memory mean anything.
    #[must_use]
    pub fn is_exact(self) -> bool {
        !matches!(self, Self::TimeLimit | Self::Lost(_))
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Halt => formatter.write_str("hlt"),
            Self::Exception { vector, error, address } => {
                write!(formatter, "{vector}")?;
                match error {
                    Some(0) if *vector != ExceptionVector::PF => {}
                    Some(error) => write!(formatter, "({error:#x})")?,
                    None => formatter.write_str("(?)")?,
                }
                address.map_or(Ok(()), |address| write!(formatter, " at {address:#x}"))
            }
            Self::SystemCall => formatter.write_str("syscall"),
            Self::LegacySystemCall => formatter.write_str("int 0x80"),
            Self::Limit => formatter.write_str("instruction limit"),
            Self::TimeLimit => formatter.write_str("time limit"),
            Self::Lost(loss) => write!(formatter, "{loss}"),
        }
    }
}

/// A page of an object that is not as it was at the start.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PageChange {
    /// Which object.
    pub object: ObjectId,
    /// Which of its pages, from 0.
    pub page: usize,
    /// What the whole page holds now: [`crate::guest::PAGE_SIZE`] bytes.
    #[serde(with = "serde_bytes")]
    pub contents: Vec<u8>,
}

/// All that a guest could see of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Why the run ended.
    pub stop: Stop,
    /// How many events were applied before.
    pub events_applied: usize,
    /// Registers at the end.
    pub state: State,
    /// Exactly those pages whose contents are not those at the start, in order of object and page,
    /// so that equal memory is an equal list.
    pub memory: Vec<PageChange>,
}

impl Outcome {
    /// An outcome that has no state: the guest ran on, or the engine was lost.
    #[must_use]
    pub fn inexact(stop: Stop, events_applied: usize) -> Self {
        Self { stop, events_applied, state: State::default(), memory: Vec::new() }
    }
}
