//! Every atomic, lock and thread of the code cache and of the run loop comes from here, so that one
//! file decides which implementation of them the protocols run on.

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
pub(crate) use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
