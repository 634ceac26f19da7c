//! [`TranslatedBlock`]: what translation gives: host code that does not depend on its place, where
//! it leaves the code cache, and a side table from host code back to the guest.

use iced_x86::Register;

use super::extended::Extended;
use crate::guest::GuestAddress;

/// A place that code leaves to, which is told where it was left (see [`Stub::is_called`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Stub {
    /// A direct jump whose target is not known yet: [`Leave::Direct`].
    Direct,
    /// An indirect jump whose target, in the block's slot, is not in the jump cache. Goes on behind
    /// the call once it is: [`Leave::Indirect`].
    Indirect,
    /// Everything done: goes on at the guest address in [`Leave::Next`] or [`Leave::Assist`], …
    Next,
    /// … and here at the one in the block's slot for targets. No block calls it; jump caches may
    /// hold it.
    Target,
    /// A host exception: reached by the signal handler alone.
    Fault,
    /// The source bytes are not those that were translated: [`Leave::Changed`].
    Changed,
    /// Like [`Self::Next`] for an assist to HLT, …
    Halt,
    /// … or to SYSCALL, with the address behind it in the block's slot for targets, so that it can be
    /// done without a look at it.
    SystemCall,
    /// Control has arrived at the block's first instruction, whose address is in the slot for targets, and
    /// goes on behind the call once that was told: [`Leave::Announce`].
    Arrival,
    /// The same for any instruction.
    Instruction,
    /// An instruction that moves a word, which the run loop does before it goes on behind the call:
    /// [`Leave::Observed`].
    Observed,
}

impl Stub {
    /// All of them, in order of their numbers.
    pub const ALL: [Self; 11] = [
        Self::Direct,
        Self::Indirect,
        Self::Next,
        Self::Target,
        Self::Fault,
        Self::Changed,
        Self::Halt,
        Self::SystemCall,
        Self::Arrival,
        Self::Instruction,
        Self::Observed,
    ];

    /// Whether blocks call it, which tells it where they were left. Those that blocks come to again and again are
    /// jumped to, with that place in R14: a processor that has seen a call expects a return to it, and mispredicts
    /// one return for it, and then all others up to whoever runs the vCPU.
    #[must_use]
    pub fn is_called(self) -> bool {
        matches!(self, Self::Direct | Self::Next | Self::Changed)
    }
}

/// What leaving by a stub means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// The block is done and goes on at `target`; the rel32 at offset `patch` of its code may be
    /// pointed at the target's translation.
    Direct {
        /// Where the guest goes on.
        target: GuestAddress,
        /// Offset of the four bytes, which lie in one block of sixteen.
        patch: u32,
    },
    /// See [`Stub::Indirect`]. The branch itself has no effect yet.
    Indirect {
        /// The branch.
        branch: GuestAddress,
    },
    /// The block is done and goes on at `target`, by the run loop alone.
    Next {
        /// Where the guest goes on.
        target: GuestAddress,
    },
    /// The instruction at `at` is the run loop's business.
    Assist {
        /// Its address.
        at: GuestAddress,
    },
    /// The instruction at `at` comes next, and somebody wants to know.
    Announce {
        /// Its address.
        at: GuestAddress,
    },
    /// The instruction at `at` comes next, which moves a word to or from memory that somebody may look at.
    Observed {
        /// Its address.
        at: GuestAddress,
    },
    /// Nothing was executed: the block must be translated anew.
    Changed,
}

/// One way out of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Offset of the byte behind the `call`.
    pub offset: u32,
    /// What it means.
    pub leave: Leave,
}

impl Exit {
    /// The same in a block whose code begins `by` bytes earlier.
    pub(super) fn moved(self, by: u32) -> Self {
        let leave = match self.leave {
            Leave::Direct { target, patch } => Leave::Direct { target, patch: patch + by },
            other => other,
        };
        Self { offset: self.offset + by, leave }
    }
}

/// A four-byte displacement that depends on where the code lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relocation {
    /// Offset of the displacement.
    pub offset: u32,
    /// Where it leads.
    pub stub: Stub,
}

/// Whose work a host instruction does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// The guest instruction's own.
    Instruction,
    /// A probe: a fault means that an address of the guest instruction may lie outside the window.
    Probe,
    /// A poll: a fault means that the vCPU is asked to leave, before the guest instruction.
    Poll,
    /// Counts entries of blocks that check themselves: a fault means that there were many. Nothing of the
    /// block was executed.
    Calm,
    /// Notes the guest instruction's address in a trace: a fault means that there is no room. Nothing of the
    /// instruction was executed.
    Record,
    /// The block's account: a fault means that the budget does not cover the block, of which
    /// nothing was executed.
    Budget,
}

/// How the guest's registers are found while a piece of host code runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Recovery {
    /// By spill slot: the host register whose guest value is there.
    pub spilled: [Option<u8>; 4],
    /// Registers that hold host addresses, by a bit each.
    pub relocated: u16,
    /// How far the guest's RSP is ahead of the register that it is in.
    pub rsp_ahead: i16,
    /// Whose work it is.
    pub purpose: Purpose,
}

impl Recovery {
    /// Every register is where it belongs.
    pub const PLAIN: Self =
        Self { spilled: [None; 4], relocated: 0, rsp_ahead: 0, purpose: Purpose::Instruction };
}

/// From here to the next entry, host code works for one guest instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SideEntry {
    /// Offset of the host code.
    pub host: u32,
    /// Offset of the guest instruction from the block's first.
    pub guest: u32,
    /// How many instructions of the block come before it.
    pub index: u16,
    /// How the state is recovered.
    pub recovery: Recovery,
}

/// What the x87 unit notes of an instruction whose encoding is not the guest's. Of opcodes it notes
/// the low three bits and the byte behind them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct X87Opcode {
    /// Offset of the guest instruction.
    pub at: u32,
    /// The guest's opcode.
    pub guest: u16,
    /// The host's.
    pub host: u16,
    /// The address that it notes has the base of this segment in it: FS or GS.
    pub segment: Option<Register>,
}

impl X87Opcode {
    /// The opcode that the unit notes for an instruction with these bytes.
    pub(super) fn of(bytes: &[u8]) -> Option<u16> {
        let place = bytes.iter().position(|byte| (0xd8..=0xdf).contains(byte))?;
        let operand = bytes.get(place + 1)?;
        Some(u16::from(bytes[place] & 7) << 8 | u16::from(*operand))
    }
}

/// See the file's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TranslatedBlock<'a> {
    /// Host code, to be put at a multiple of [`CODE_ALIGNMENT`].
    pub code: &'a [u8],
    /// Ways out, by offset.
    pub exits: &'a [Exit],
    /// To be resolved when the code is put in place.
    pub relocations: &'a [Relocation],
    /// By offset of host code.
    pub side_table: &'a [SideEntry],
    /// x87 instructions whose encoding is not the guest's: the unit notes the opcode of its last
    /// instruction with an unmasked exception.
    pub x87_opcodes: &'a [X87Opcode],
    /// Bytes of guest code that it was made from, from the block's address on.
    pub guest_bytes: u32,
    /// Guest instructions in it, the one that it leaves to an assist apart.
    pub instructions: u16,
    /// It ends where its source does, in the middle of an instruction.
    pub truncated: bool,
    /// It ends with a branch that it would go on behind if control came to it again and again.
    pub ends_early: bool,
    /// What its instructions need, the one that it leaves to an assist included.
    pub extended: Extended,
}

/// Alignment of a block's host code, in bytes.
pub const CODE_ALIGNMENT: usize = 16;

/// What every block begins with: one instruction that does nothing. It lies in one aligned word, so one
/// store puts a `call` of [`Stub::Changed`] or a jump to another block in its place, whoever executes
/// it meanwhile.
pub const ENTRY: [u8; 5] = [0x0f, 0x1f, 0x44, 0x00, 0x00];

/// `mov r14d, [r14]`: the load of a poll, which no other translated code has. R14 is the address that
/// the vCPU's block gave for it.
pub const POLL_LOAD: [u8; 3] = [0x45, 0x8b, 0x36];

impl<'a> TranslatedBlock<'a> {
    /// The side table's entry for an offset of the host code.
    #[must_use]
    pub fn side_entry(&self, offset: u32) -> Option<&'a SideEntry> {
        let after = self.side_table.partition_point(|entry| entry.host <= offset);
        self.side_table.get(after.checked_sub(1)?)
    }

    /// The opcodes of the guest instruction at an offset, if it is an x87 instruction with another
    /// encoding.
    #[must_use]
    pub fn x87_opcode(&self, guest: u32) -> Option<X87Opcode> {
        self.x87_opcodes.iter().find(|opcode| opcode.at == guest).copied()
    }

    /// Whether a direct way out of a block at `pc` leads to where the block has been, or before it.
    #[must_use]
    pub fn leads_back(&self, pc: GuestAddress, exit: &Exit) -> bool {
        let Leave::Direct { target, .. } = exit.leave else { return false };
        let from = self.side_entry(exit.offset - 1).map_or(0, |entry| entry.guest);
        target < pc.wrapping_add(u64::from(from))
    }

    /// Whether the instruction at `at` was announced before the code at this offset.
    #[must_use]
    pub fn is_announced(&self, at: GuestAddress, offset: u32) -> bool {
        let before = self.exits.iter().take_while(|exit| exit.offset <= offset);
        before.clone().any(|exit| exit.leave == Leave::Announce { at })
    }

    /// Whether the instruction in hand at an offset was noted in a trace before it.
    #[must_use]
    pub fn is_recorded(&self, offset: u32) -> bool {
        let after = self.side_table.partition_point(|entry| entry.host <= offset);
        let Some((here, before)) = self.side_table[..after].split_last() else { return false };
        let own = before.iter().rev().take_while(|entry| entry.index == here.index);
        own.into_iter().any(|entry| entry.recovery.purpose == Purpose::Record)
    }

    /// The way out whose `call` returns to this offset.
    #[must_use]
    pub fn exit(&self, offset: u32) -> Option<&'a Exit> {
        const CHANGED: Exit = Exit { offset: ENTRY.len() as u32, leave: Leave::Changed };
        match self.exits.binary_search_by_key(&offset, |exit| exit.offset) {
            Ok(index) => self.exits.get(index),
            // The call that was put in the place of the entry.
            Err(_) => {
                (offset == CHANGED.offset && self.code.starts_with(&ENTRY)).then_some(&CHANGED)
            }
        }
    }
}
