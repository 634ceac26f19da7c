//! RFLAGS as user code sees it (Intel SDM volume 1, section 3.4.3 "EFLAGS Register").

use std::fmt;

use serde::{Deserialize, Serialize};

/// Bit 1 of RFLAGS, which always reads as one.
pub const RFLAGS_ALWAYS_ONE: u64 = 1 << 1;

/// RFLAGS at the start of a case: interrupts on, as under any operating system, and nothing else.
pub const RFLAGS_DEFAULT: u64 = RFLAGS_ALWAYS_ONE | 1 << 9;

/// The bits that user code can change: CF PF AF ZF SF TF DF OF NT AC ID.
pub const RFLAGS_USER: u64 = {
    let mut mask = 0;
    let mut index = 0;
    while index < Flag::ALL.len() {
        mask |= Flag::ALL[index].mask();
        index += 1;
    }
    mask & !Flag::IF.mask()
};

/// The status flags, which arithmetic sets: CF PF AF ZF SF OF.
pub const RFLAGS_STATUS: u64 = Flag::CF.mask()
    | Flag::PF.mask()
    | Flag::AF.mask()
    | Flag::ZF.mask()
    | Flag::SF.mask()
    | Flag::OF.mask();

/// One bit of RFLAGS that user code can see. It can change all of them but IF.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the manual's own")]
pub enum Flag {
    CF = 0,
    PF = 2,
    AF = 4,
    ZF = 6,
    SF = 7,
    TF = 8,
    IF = 9,
    DF = 10,
    OF = 11,
    NT = 14,
    AC = 18,
    ID = 21,
}

impl Flag {
    /// Every flag, from the lowest bit up.
    pub const ALL: [Self; 12] = [
        Self::CF,
        Self::PF,
        Self::AF,
        Self::ZF,
        Self::SF,
        Self::TF,
        Self::IF,
        Self::DF,
        Self::OF,
        Self::NT,
        Self::AC,
        Self::ID,
    ];

    /// Its bit in RFLAGS.
    #[must_use]
    pub const fn mask(self) -> u64 {
        1 << self as u32
    }
}

impl fmt::Display for Flag {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, formatter)
    }
}
