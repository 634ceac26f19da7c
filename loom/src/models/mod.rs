//! One file of models a protocol, each with the name of the protocol's file; then `tag` and `page`,
//! how single blocks and written pages are invalidated, and `whole`, a machine of all parts. A model's comment says what it shows, and its threads; the mutants that it
//! must find name it (`tests/mutants/loom`).
//!
//! What makes a model able to fail: the code that a vCPU runs is a cell of loom's, so that touching
//! it too late is a race even where the value read is right; memory is reclaimed inside the model,
//! not after it; each thread has pinned the epoch once before, since a thread's first pin collects,
//! which orders more than later ones do.
//!
//! What loom does not see: it takes accesses that are `SeqCst` for `AcqRel`, and never lets a load
//! see a store that comes later in program order. Guest code, its polls and the core's own fetching
//! are written down here as ordinary code.

mod support;

mod chunks;
mod gate;
mod index;
mod limbo;
mod page;
mod table;
mod tag;
mod whole;
