//! The guest's vocabulary: addresses, pages, permissions and the architectural state of one x86-64
//! processor as user code sees it. Pure data: no system calls, no atomics, no engine.

mod address;
mod decoder;
mod flags;
mod host_features;
mod permissions;
mod state;
mod xstate;

pub use address::{GuestAddress, GuestRange, PAGE_SIZE, RangeError};
pub use decoder::decoder;
pub(crate) use decoder::{
    decoder_of, is_repeated_string, locks_register_bit, memory_bytes, unchecked_decoder,
    with_ignored_bits,
};
pub use flags::{Flag, RFLAGS_ALWAYS_ONE, RFLAGS_DEFAULT, RFLAGS_STATUS, RFLAGS_USER};
pub(crate) use host_features::mxcsr_mask;
pub use host_features::{HostFeatures, Vendor};
pub use permissions::Permissions;
pub use state::{
    F80, GPR_NAMES, MXCSR_DEFAULT, OPMASK_COUNT, PKRU_DEFAULT, SELECTOR_NAMES, Selectors, State,
    VECTOR_COUNT, Vector, X87, X87_CONTROL_DEFAULT,
};
pub(crate) use xstate::Xstate;
