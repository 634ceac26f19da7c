//! The protocols' own files, not copies of them.
#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "the models are not all that uses these files"
)]

#[path = "../../src/code/chunks.rs"]
pub(crate) mod chunks;
#[path = "../../src/code/gate.rs"]
pub(crate) mod gate;
#[path = "../../src/code/index.rs"]
pub(crate) mod index;
#[path = "../../src/code/limbo.rs"]
pub(crate) mod limbo;
#[path = "../../src/code/sync.rs"]
pub(crate) mod sync;
#[path = "../../src/code/table.rs"]
pub(crate) mod table;
