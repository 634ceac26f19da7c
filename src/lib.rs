//! tregion: a correctness oracle for x86-64 engines, judged by the processor itself.

pub mod campaign;
pub mod case;
pub mod engine;
pub mod generate;
pub mod guest;
pub mod oracle;
pub mod os;
