//! The rows.

use super::Accepted;

/// Every accepted difference.
pub static ACCEPTED: &[Accepted] = &[];
