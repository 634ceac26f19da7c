//! System calls, each under a name that says what it is for. Knows no guest.

mod affinity;
mod heap;
mod membarrier;
mod memfd;
mod nursery;
mod punch;
mod thread_clock;
mod wait_word;

pub(crate) use affinity::pin_like_caller;
pub use affinity::pin_to_nth_cpu;
pub use heap::give_back_large_blocks;
pub(crate) use membarrier::serialise_cores;
pub(crate) use memfd::memfd;
pub(crate) use nursery::spawn;
pub(crate) use punch::punch_hole;
pub(crate) use thread_clock::ThreadClock;
pub(crate) use wait_word::WaitWord;
