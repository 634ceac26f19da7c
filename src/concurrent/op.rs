//! [`Op`]: what a *slot* of a program does, and its bytes.
//!
//! A slot is an aligned word of eight bytes: an instruction of exactly six bytes, made long enough by prefixes
//! without effect, and two bytes that lead to the next slot: a jump, so that each slot is a block of its own, or a
//! no-operation, so that slots are joined in one. So a slot can be exchanged for another one by one store, and who
//! is in the middle of it goes on with the next one in any case.
//!
//! R8 points to the words, R14 to the vCPU's own program, R9 to the other's, R12 and R13 hold slots to be
//! written over others.

use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};
use serde::{Deserialize, Serialize};

/// Words that both programs share.
pub(super) const WORDS: usize = 4;
/// Slots of a program with the one behind it that ends it.
pub(super) const PROGRAM_SLOTS: usize = 13;
/// Bytes before the start of a program in which the addresses of its slots are, for jumps.
pub(super) const TABLE: u8 = 128;

/// A register that holds a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Register {
    /// RAX, which `cmpxchg` compares with.
    Rax,
    /// RDX.
    Rdx,
    /// RBX.
    Rbx,
    /// RSI.
    Rsi,
}

impl Register {
    /// Every one, in the order of a program's values.
    pub const ALL: [Self; 4] = [Self::Rax, Self::Rdx, Self::Rbx, Self::Rsi];

    /// Its number in encodings.
    pub(super) fn number(self) -> u8 {
        [0, 2, 3, 6][self as usize]
    }
}

/// How the host changes a slot while guests run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// It writes.
    Write,
    /// It writes at a second address of the page.
    Alias,
    /// It forbids all access, writes, and allows it again.
    Protect,
    /// It moves the page away, writes there, and moves it back.
    Remap,
}

impl Way {
    /// Every one.
    pub const ALL: [Self; 4] = [Self::Write, Self::Alias, Self::Protect, Self::Remap];
}

/// What the host does when a program comes to a `hlt`, before it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostOp {
    /// Nothing.
    Nothing,
    /// Writes a word.
    Word {
        /// Which.
        word: u8,
        /// What.
        value: u32,
    },
    /// Writes what the vCPU had in R12 or R13 at the start over a slot.
    Patch {
        /// Of its own program, or of the other's.
        own: bool,
        /// Which slot.
        place: u8,
        /// 0 for R12, 1 for R13.
        with: u8,
        /// How.
        way: Way,
    },
}

/// What a slot does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Op {
    /// Nothing.
    Nothing,
    /// Waits a little.
    Pause,
    /// Waits for microseconds, in one instruction: the first time; it looks through memory that nobody writes.
    Scan,
    /// Sets a register.
    Constant {
        /// Which.
        register: Register,
        /// To what.
        value: u32,
    },
    /// `to += from`.
    Add {
        /// Destination.
        to: Register,
        /// Source.
        from: Register,
    },
    /// `to *= from`.
    Multiply {
        /// Destination.
        to: Register,
        /// Source.
        from: Register,
    },
    /// Loads a word.
    Load {
        /// Destination.
        register: Register,
        /// Source.
        word: u8,
    },
    /// Stores a word, without LOCK.
    Store {
        /// Destination.
        word: u8,
        /// Source.
        register: Register,
    },
    /// Exchanges a register and a word.
    Exchange {
        /// Which word.
        word: u8,
        /// Which register.
        register: Register,
    },
    /// `lock xadd`.
    ExchangeAdd {
        /// Which word.
        word: u8,
        /// Which register.
        register: Register,
    },
    /// `lock add` of a constant.
    AddTo {
        /// Which word.
        word: u8,
        /// How much.
        value: i8,
    },
    /// `lock cmpxchg`, which compares with RAX.
    CompareExchange {
        /// Which word.
        word: u8,
        /// What is stored if it is equal.
        register: Register,
    },
    /// Exchanges R12 or R13 and a slot, or stores it over the slot without LOCK.
    Patch {
        /// Of its own program, or of the other's.
        own: bool,
        /// Which slot.
        place: u8,
        /// 0 for R12, 1 for R13.
        with: u8,
        /// Whether it only stores.
        plain: bool,
    },
    /// Jumps to the next slot, indirectly.
    Jump,
    /// Leaves the guest for the host to do something.
    Host(HostOp),
    /// The end of the program.
    End,
}

impl Op {
    /// Whether it stays where it is: no slot like this is ever written over or moved.
    #[must_use]
    pub fn is_fixed(self) -> bool {
        matches!(self, Self::Jump | Self::Host(_) | Self::End)
    }

    /// The program, own or the other's, and the slot in it that this writes over.
    pub(super) fn target(self) -> Option<(bool, u8)> {
        match self {
            Self::Patch { own, place, .. } | Self::Host(HostOp::Patch { own, place, .. }) => {
                Some((own, place))
            }
            _ => None,
        }
    }

    /// Whether everything in it is in range, wherever it stands.
    pub(super) fn is_in_range(self) -> bool {
        let word = match self {
            Self::Load { word, .. }
            | Self::Store { word, .. }
            | Self::Exchange { word, .. }
            | Self::ExchangeAdd { word, .. }
            | Self::AddTo { word, .. }
            | Self::CompareExchange { word, .. }
            | Self::Host(HostOp::Word { word, .. }) => word,
            _ => 0,
        };
        let with = match self {
            Self::Patch { with, .. } | Self::Host(HostOp::Patch { with, .. }) => with,
            _ => 0,
        };
        let place = self.target().map_or(0, |(_, place)| place);
        usize::from(word) < WORDS && with < 2 && usize::from(place) < PROGRAM_SLOTS
    }

    /// The bytes of a slot at `place` of a program whose slots are joined, or are not.
    pub(super) fn encode(self, place: usize, joined: bool) -> u64 {
        let memory = |register: Register| 0x40 | register.number() << 3;
        let pair = |reg: Register, rm: Register| 0xc0 | reg.number() << 3 | rm.number();
        let code: [u8; 6] = match self {
            Self::Nothing => [0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x90],
            Self::Pause => [0x3e, 0x3e, 0x3e, 0x3e, 0xf3, 0x90],
            Self::Scan => [0x3e, 0x3e, 0x3e, 0x3e, 0xf2, 0xae],
            Self::Constant { register, value } => {
                let [a, b, c, d] = value.to_le_bytes();
                [0xc7, 0xc0 | register.number(), a, b, c, d]
            }
            Self::Add { to, from } => [0x3e, 0x3e, 0x3e, 0x48, 0x01, pair(from, to)],
            Self::Multiply { to, from } => [0x3e, 0x3e, 0x48, 0x0f, 0xaf, pair(to, from)],
            Self::Load { register, word } => [0x3e, 0x3e, 0x49, 0x8b, memory(register), 8 * word],
            Self::Store { word, register } => [0x3e, 0x3e, 0x49, 0x89, memory(register), 8 * word],
            Self::Exchange { word, register } => {
                [0x3e, 0x3e, 0x49, 0x87, memory(register), 8 * word]
            }
            Self::ExchangeAdd { word, register } => {
                [0xf0, 0x49, 0x0f, 0xc1, memory(register), 8 * word]
            }
            Self::AddTo { word, value } => [0xf0, 0x49, 0x83, 0x40, 8 * word, value as u8],
            Self::CompareExchange { word, register } => {
                [0xf0, 0x49, 0x0f, 0xb1, memory(register), 8 * word]
            }
            Self::Patch { own, place, with, plain } => {
                let opcode = if plain { 0x89 } else { 0x87 };
                // R12 or R13, [r14 + …] or [r9 + …].
                let operands = 0x60 | with << 3 | if own { 6 } else { 1 };
                [0x3e, 0x3e, 0x4d, opcode, operands, 8 * place]
            }
            Self::Jump => [0x3e, 0x3e, 0x41, 0xff, 0x66, TABLE + 8 * (place as u8 + 1)], // a negative displacement,
            Self::Host(_) => [0xf4, 0x90, 0x90, 0x90, 0x90, 0x90],
            Self::End => [0x41, 0xff, 0xe7, 0x90, 0x90, 0x90], // jmp r15
        };
        let [a, b, c, d, e, f] = code;
        let [g, h] = if joined { [0x66, 0x90] } else { [0xeb, 0x00] };
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }

    /// What the processor reads, for people.
    pub(super) fn disassembly(self, place: usize) -> String {
        let bytes = self.encode(place, false).to_le_bytes();
        let instruction = Decoder::with_ip(64, &bytes, 0, DecoderOptions::NONE).decode();
        let mut text = String::new();
        IntelFormatter::new().format(&instruction, &mut text);
        text
    }
}
