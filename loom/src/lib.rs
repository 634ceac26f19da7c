//! Loom models of the protocols in `src/code`: the real files, compiled against loom's atomics, and
//! what must hold in each interleaving of two or three threads that use them. Empty unless built with
//! `--cfg loom`; `make loom` does that, and shows that each model can fail.

#[cfg(all(loom, test))]
mod code;
#[cfg(all(loom, test))]
mod models;
#[cfg(all(loom, test))]
mod poison;
