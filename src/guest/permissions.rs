//! What a guest may do with a page. Only what x86 page tables can express: a page that may be
//! written or executed may be read (Intel SDM volume 3A, section 5.6 "Access Rights").

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Access rights of a page, written `---`, `r--`, `rw-`, `r-x` or `rwx`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Permissions {
    /// Mapped, but not accessible: to the guest as good as not mapped.
    None,
    /// Readable.
    Read,
    /// Readable and writable.
    ReadWrite,
    /// Readable and executable.
    ReadExecute,
    /// Readable, writable and executable.
    ReadWriteExecute,
}

impl Permissions {
    /// Every value, in order of power.
    pub const ALL: [Self; 5] =
        [Self::None, Self::Read, Self::ReadWrite, Self::ReadExecute, Self::ReadWriteExecute];

    /// Whether the page may be read.
    #[must_use]
    pub fn read(self) -> bool {
        self != Self::None
    }

    /// Whether the page may be written.
    #[must_use]
    pub fn write(self) -> bool {
        matches!(self, Self::ReadWrite | Self::ReadWriteExecute)
    }

    /// Whether the page may be executed.
    #[must_use]
    pub fn execute(self) -> bool {
        matches!(self, Self::ReadExecute | Self::ReadWriteExecute)
    }

    fn text(self) -> &'static str {
        match self {
            Self::None => "---",
            Self::Read => "r--",
            Self::ReadWrite => "rw-",
            Self::ReadExecute => "r-x",
            Self::ReadWriteExecute => "rwx",
        }
    }
}

impl fmt::Display for Permissions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.text())
    }
}

/// A text that is not one of the five permissions.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown permissions `{0}`, expected `---`, `r--`, `rw-`, `r-x` or `rwx`")]
pub struct UnknownPermissions(String);

impl FromStr for Permissions {
    type Err = UnknownPermissions;

    fn from_str(text: &str) -> Result<Self, UnknownPermissions> {
        Self::ALL
            .into_iter()
            .find(|permissions| permissions.text() == text)
            .ok_or_else(|| UnknownPermissions(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trip() {
        for permissions in Permissions::ALL {
            assert_eq!(permissions.to_string().parse(), Ok(permissions));
        }
        assert!("-w-".parse::<Permissions>().is_err());
    }
}
