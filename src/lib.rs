//! tregion: a correctness oracle for x86-64 engines, judged by the processor itself.
//!
//! A [`case::Case`] is a program with all it needs to run the same way anywhere. An [`engine::Engine`]
//! turns it into an [`case::Outcome`]; [`engine::silicon::Silicon`] does so on the host's own processor
//! and is the judge. [`oracle::Judge`] says who differs from silicon and at which instruction,
//! [`generate::Generator`] makes programs, and [`campaign::run`] does all of that until time is up.
//!
//! ```
//! use tregion::case::text;
//! use tregion::engine::{Engine, silicon::Silicon};
//!
//! let case = text::parse(r#"
//!     format = 1
//!     mode = 64
//!     [registers]
//!     rip = 0x400000
//!     rbx = 41
//!     [[object]]
//!     name = "code"
//!     size = 0x1000
//!     bytes = ["0x0: 48 8d 43 01 f4"] # lea rax,[rbx+1]; hlt
//!     [[map]]
//!     at = 0x400000
//!     size = 0x1000
//!     object = "code"
//!     offset = 0
//!     permissions = "r-x"
//! "#)?;
//! let outcome = Silicon::new()?.run(&case)?;
//! assert_eq!(outcome.state.gpr[0], 42);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod bench;
pub mod campaign;
pub mod case;
pub mod code;
pub mod concurrent;
pub mod engine;
pub mod exec;
pub mod generate;
pub mod guest;
pub mod memory;
pub mod oracle;
pub mod os;
pub mod properties;
#[cfg(feature = "cli")]
pub mod report;
pub mod translate;
