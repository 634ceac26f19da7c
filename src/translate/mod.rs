//! [`Translator`]: guest code to host code, block by block. Pure: no system calls, no atomics; bytes
//! in, bytes out.
//!
//! Guest and host have the same instruction set, so most instructions are their own translation.
//! What changes: memory operands get the window's segment and a probe (`operand`), transfers of
//! control stay in the code cache (`control`), stack and string instructions, which name their
//! memory without an operand, are spelt out (`stack`, `string`), and a list of others is left to
//! the run loop (`classify`).
//!
//! Rules that keep the guest's state exact at any fault: nothing that is emitted around an
//! instruction touches flags; what it borrows is in the side table; a guest instruction changes its
//! first register after its last access to memory.

mod announced;
mod block;
mod classify;
mod control;
mod emit;
mod extended;
mod known;
mod layout;
mod loans;
mod observed;
mod operand;
mod patched;
mod probed;
mod special;
mod stack;
mod string;
mod vcpu_block;

use iced_x86::{Code, Decoder, DecoderError, Encoder, Instruction, InstructionInfoFactory};
use smallvec::SmallVec;

pub use announced::{Announced, Recorded, TraceOf};
pub use block::{
    CODE_ALIGNMENT, ENTRY, Exit, Leave, POLL_LOAD, Purpose, Recovery, Relocation, SideEntry, Stub,
    TranslatedBlock, X87Opcode,
};
pub use classify::{Class, class, class_of};
pub(crate) use control::{counted_branch, is_canonical};
pub use extended::{Extended, extended};
pub use observed::WordMove;
pub(crate) use operand::is_prefix;
pub use patched::{Patched, PatchedList, patchable, patched};
pub(crate) use vcpu_block::at;
pub use vcpu_block::{GUARD_BYTES, PROBE_REACH, ProbeShape, SLOT_BYTES, VcpuBlock, XSAVE_BYTES};

use self::emit::Emitter;
use self::known::Known;
use self::operand::{NeedsAssist, number};
use self::probed::Writes;
use self::stack::reads_stack_pointer;
use crate::guest::{GuestAddress, decoder};

/// Most instructions of a block.
pub const MOST_INSTRUCTIONS: u16 = 64;

/// What is to be translated.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Address of the first instruction.
    pub pc: GuestAddress,
    /// Executable bytes from there on, as many as there are up to some limit.
    pub code: &'a [u8],
    /// The span that direct jumps may stay in, first and last address. Blocks end at its end, but
    /// their last instruction may go beyond.
    pub span: (GuestAddress, GuestAddress),
    /// Addresses of instructions that access what somebody looks at, in order: blocks end before them, but
    /// for those that just move a word.
    pub observed: &'a [GuestAddress],
    /// Control is known to come to the block again and again, so that it is worth more work.
    pub again: bool,
    /// The block takes its instructions off the budget.
    pub counted: bool,
    /// The block compares its source bytes before it runs and ends after each store.
    pub checked: bool,
    /// What somebody wants to know of.
    pub announced: Announced<'a>,
    /// Immediates that are read when their instructions run and not compared before, of what [`patchable`]
    /// gives; for blocks that are `checked`.
    pub patched: &'a [Patched],
}

/// See the file's head.
pub struct Translator {
    window_bits: u32,
    probe: ProbeShape,
    encoder: Encoder,
    information: InstructionInfoFactory,
    /// By opcode: what it writes, once that is known.
    writes: Vec<Option<Writes>>,
    /// By opcode, without and with a memory operand: whether it stores, once that is known.
    stores: Vec<Option<bool>>,
    /// By opcode: whether it always accesses its memory operand, once that is known.
    accesses: Vec<Option<bool>>,
    known: Known,
    /// Where in the slot the memory operand is, when it is not in the window.
    slot: Option<u32>,
    /// Memory for the next block, and for what it begins with.
    emitter: Emitter,
    head: Emitter,
}

impl std::fmt::Debug for Translator {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Translator").field("window_bits", &self.window_bits).finish()
    }
}

/// A block under way.
struct Work<'a> {
    request: &'a Request<'a>,
    emitter: Emitter,
    /// Guest bytes and instructions done.
    done: u32,
    count: u16,
    /// Conditional branches that the block goes on behind.
    passed: u16,
    /// It ends with one that it would otherwise go on behind.
    ends_early: bool,
    /// A poll was emitted before the instruction before the one in hand.
    polled: bool,
    /// Where the host code of the instruction before the one in hand begins, or this one's if that is the
    /// first or a branch.
    started: u32,
    extended: Extended,
    /// It has announced or noted something.
    announces: bool,
}

/// Whether the block goes on.
#[derive(Clone, Copy)]
enum Flow {
    Next,
    End,
}

impl Translator {
    /// A translator for guests in a window of 2^`window_bits` bytes.
    #[must_use]
    pub fn new(window_bits: u32) -> Self {
        Self {
            window_bits,
            probe: ProbeShape::new(window_bits),
            encoder: Encoder::new(64),
            information: InstructionInfoFactory::new(),
            writes: vec![None; Code::values().len()],
            stores: vec![None; 2 * Code::values().len()],
            accesses: vec![None; Code::values().len()],
            known: Known::default(),
            slot: None,
            emitter: Emitter::default(),
            head: Emitter::default(),
        }
    }

    /// Translates the block that starts at `request.pc`. A first instruction that only the run loop
    /// can execute, or that cannot be fetched, makes a block that leaves at once.
    pub fn block(&mut self, request: &Request<'_>) -> TranslatedBlock<'_> {
        let mut emitter = std::mem::take(&mut self.emitter);
        emitter.clear();
        self.known = Known::default();
        let mut work = Work {
            request,
            emitter,
            done: 0,
            count: 0,
            passed: 0,
            ends_early: false,
            polled: false,
            started: 0,
            extended: Extended::Nothing,
            announces: false,
        };
        if !request.checked {
            work.emitter.entry();
        }
        let account = request.counted.then(|| work.emitter.account(self.probe));
        // Behind the account, whose instructions a fault gives back.
        if request.checked {
            work.emitter.count_entry(self.probe);
        }
        work.started = work.emitter.offset();
        let truncated = self.body(&mut work);
        self.side_exits(&mut work);
        if let Some(place) = account {
            work.emitter.set_account(place, work.count);
        }
        if request.checked {
            work.compare_source(&mut self.head);
        }
        let Work { emitter, done, count, extended, ends_early, .. } = work;
        self.emitter = emitter;
        let whole = if request.checked { &self.head } else { &self.emitter };
        TranslatedBlock { truncated, ends_early, extended, ..whole.finish(done, count) }
    }

    /// Translates one instruction of class `Plain`, `RevealsPointers` or `Lea`, to be run
    /// once. If `slot` is given, its memory operand is there in the vCPU's slot.
    pub fn single(
        &mut self,
        pc: GuestAddress,
        instruction: &Instruction,
        bytes: &[u8],
        slot: Option<u32>,
    ) -> Option<TranslatedBlock<'_>> {
        self.slot = slot;
        self.known = Known::default();
        let mut emitter = std::mem::take(&mut self.emitter);
        emitter.clear();
        let result = if class(instruction.code()) == Class::Lea {
            self.load_address(&mut emitter, instruction, bytes);
            Ok(())
        } else {
            self.moved(&mut emitter, instruction, bytes)
        };
        self.slot = None;
        let target = pc.wrapping_add(bytes.len() as u64);
        emitter.leave(Stub::Next, Leave::Next { target });
        self.emitter = emitter;
        let extended = extended(instruction.code());
        let block = self.emitter.finish(bytes.len() as u32, 1);
        result.ok().map(|()| TranslatedBlock { extended, ..block })
    }

    /// Translates the instructions; whether they end in the middle of one.
    fn body(&mut self, work: &mut Work<'_>) -> bool {
        let request = work.request;
        let mut decoder = decoder(request.code, request.pc.0);
        let mut instruction = Instruction::default();
        loop {
            let pc = work.pc();
            let stop = work.done > 0 && (pc < request.span.0 || pc > request.span.1);
            let stop = stop || work.count == MOST_INSTRUCTIONS;
            if stop {
                self.fall_through(work, pc);
                return false;
            }
            work.seek(&mut decoder);
            decoder.decode_out(&mut instruction);
            // What may never be executed is not to have all of the state loaded.
            if work.passed > 0 && extended(instruction.code()) > work.extended {
                self.fall_through(work, pc);
                return false;
            }
            let observed = request.observed.binary_search(&pc).is_ok();
            let word = if observed { WordMove::of(&instruction) } else { None };
            let truncated = decoder.last_error() == DecoderError::NoMoreBytes;
            if truncated || observed && word.is_none() {
                if work.done > 0 {
                    self.fall_through(work, pc);
                } else {
                    work.assist();
                }
                return truncated;
            }
            if let Some(word) = word {
                self.observed(work, &instruction, word);
            } else if let Flow::End = self.instruction(work, &instruction) {
                return false;
            }
            if request.checked && self.stores(&instruction) {
                let pc = work.pc();
                self.fall_through(work, pc);
                return false;
            }
        }
    }

    /// Goes on at `pc`, where control would have come without a block's end. That is no arrival for whoever
    /// has heard of the block's own, so that the run loop has to see to it.
    fn fall_through(&mut self, work: &mut Work<'_>, pc: GuestAddress) {
        work.emitter.settle_stack();
        if work.request.announced.continues(work.request.pc, pc) {
            return work.emitter.leave(Stub::Next, Leave::Next { target: pc });
        }
        self.go_on(work, pc);
    }

    fn instruction(&mut self, work: &mut Work<'_>, instruction: &Instruction) -> Flow {
        let started = work.emitter.offset();
        let start = work.done as usize;
        let bytes = &work.request.code[start..start + instruction.len()];
        work.emitter.begin(work.done, work.count);
        let class = class_of(instruction);
        work.extended = work.extended.max(extended(instruction.code()));
        // Between an instruction that sets flags and its branch, a poll would keep them from being
        // executed as one.
        let poll = class == Class::Plain && work.is_backward_branch(start + instruction.len());
        let mark = work.emitter.mark();
        if work.emitter.rsp_ahead != 0 && !work.leaves_stack_behind(instruction, class) {
            work.emitter.settle_stack();
        }
        work.record();
        if work.announce() {
            // Whoever is told may change registers.
            self.known = Known::default();
        }
        if poll {
            work.emitter.poll();
        }
        let mut flow = Flow::Next;
        let result = match class {
            Class::Plain => self.plain(work, instruction, bytes),
            Class::Lea => self.address(work, instruction, bytes),
            Class::Nop => Ok(()),
            Class::Hint => self.hint(work, instruction, bytes),
            Class::Absolute => self.absolute(work, instruction),
            Class::BitString => self.bit_string(work, instruction, bytes),
            Class::Table => self.table(work, instruction),
            Class::MaskMove => self.mask_move(work, instruction),
            Class::String => self.string(work, instruction),
            Class::Push => self.push(work, instruction),
            Class::Pop => self.pop(work, instruction),
            Class::PushFlags => self.push_flags(work),
            Class::PopFlags => self.pop_flags(work),
            Class::Leave => self.leave_frame(work),
            Class::ReadBase => self.read_base(work, instruction),
            Class::Jump
            | Class::Conditional
            | Class::CountedBranch
            | Class::Call
            | Class::JumpIndirect
            | Class::CallIndirect
            | Class::Return => self.control(work, instruction).map(|after| flow = after),
            Class::NarrowBranch
            | Class::RevealsPointers
            | Class::Assist
            | Class::Undefined
            | Class::Unsupported => Err(NeedsAssist),
        };
        work.polled = poll;
        // What may be patched stays where it is.
        let branch = class == Class::Conditional;
        work.started = if branch { work.emitter.offset() } else { started };
        match (result, flow) {
            (Ok(()), Flow::Next) => work.pass(instruction),
            (Ok(()), Flow::End) => {}
            (Err(NeedsAssist), _) => {
                // What was emitted before that was known may have borrowed registers. The run loop announces
                // and notes what it executes.
                work.emitter.rewind(&mark);
                work.assist_to(instruction);
                work.done += instruction.len() as u32;
                flow = Flow::End;
            }
        }
        flow
    }

    fn plain(
        &mut self,
        work: &mut Work<'_>,
        instruction: &Instruction,
        bytes: &[u8],
    ) -> Result<(), NeedsAssist> {
        if let Some(immediate) = work.patched_immediate() {
            return self.read_patched(work, instruction, immediate);
        }
        self.moved(&mut work.emitter, instruction, bytes)?;
        self.note_access(instruction);
        self.note_writes(instruction);
        Ok(())
    }

    fn address(
        &mut self,
        work: &mut Work<'_>,
        instruction: &Instruction,
        bytes: &[u8],
    ) -> Result<(), NeedsAssist> {
        self.load_address(&mut work.emitter, instruction, bytes);
        self.note_writes(instruction);
        Ok(())
    }
}

impl Work<'_> {
    /// The address of the next instruction.
    fn pc(&self) -> GuestAddress {
        self.request.pc.wrapping_add(u64::from(self.done))
    }

    /// Has the next instruction decoded, which a jump may have led to.
    fn seek(&self, decoder: &mut Decoder<'_>) {
        let done = self.done as usize;
        if decoder.position() != done {
            decoder.set_position(done).expect("a block goes on inside of its source");
            decoder.set_ip(self.pc().0);
        }
    }

    /// The instruction is translated.
    fn pass(&mut self, instruction: &Instruction) {
        self.done += instruction.len() as u32;
        self.count += 1;
    }

    /// Leaves the instruction in hand to the run loop.
    fn assist(&mut self) {
        let at = self.pc();
        self.emitter.begin(self.done, self.count);
        self.emitter.settle_stack();
        self.emitter.leave(Stub::Next, Leave::Assist { at });
    }

    /// The same for one that is known.
    fn assist_to(&mut self, instruction: &Instruction) {
        let stub = match instruction.code() {
            Code::Hlt => Stub::Halt,
            Code::Syscall => Stub::SystemCall,
            _ => return self.assist(),
        };
        let at = self.pc();
        self.emitter.begin(self.done, self.count);
        self.emitter.settle_stack();
        self.emitter.constant(emit::FREE, instruction.next_ip());
        self.emitter.store(at::TARGET, emit::FREE);
        self.emitter.leave(stub, Leave::Assist { at });
    }

    /// Whether direct jumps may go to `target` without the jump cache.
    fn is_inside(&self, target: GuestAddress) -> bool {
        (self.request.span.0..=self.request.span.1).contains(&target)
    }

    /// Whether R15 may be behind the guest's RSP in the code of an instruction. Not between one that sets flags
    /// and a branch, where it would have to be settled: the two are executed as one.
    fn leaves_stack_behind(&self, instruction: &Instruction, class: Class) -> bool {
        let knows = match class {
            Class::Push | Class::Pop | Class::Call | Class::Return | Class::Nop => true,
            Class::Plain | Class::Lea => !reads_stack_pointer(instruction),
            _ => false,
        };
        let next = self.done as usize + instruction.len();
        knows && self.request.announced.is_empty() && !self.is_branch(next)
    }

    /// Whether the bytes at an offset are a conditional branch.
    fn is_branch(&self, offset: usize) -> bool {
        let code = self.request.code.get(offset..);
        matches!(code, Some([0x70..=0x7f, ..] | [0x0f, 0x80..=0x8f, ..]))
    }

    /// Whether the bytes at an offset are a conditional branch backwards.
    fn is_backward_branch(&self, offset: usize) -> bool {
        match self.request.code.get(offset..) {
            Some([0x70..=0x7f, distance, ..]) => *distance >= 0x80,
            Some([0x0f, 0x80..=0x8f, _, _, _, distance, ..]) => *distance >= 0x80,
            _ => false,
        }
    }

    /// Whether the block's body may be emitted once more, as a loop.
    fn may_repeat(&self) -> bool {
        !self.request.counted && !self.request.checked && !self.announces && self.count > 1
    }

    /// Puts what was emitted behind an entry that leaves with [`Stub::Changed`] unless the source bytes
    /// are still what they were.
    fn compare_source(&self, whole: &mut Emitter) {
        let bytes = &self.request.code[..self.done as usize];
        let pc = self.request.pc.0;
        whole.clear();
        whole.entry();
        if bytes.is_empty() {
            whole.align();
            return whole.append(&self.emitter);
        }
        whole.spill(0, emit::RCX);
        let mut changed = SmallVec::<[u32; 16]>::new();
        let mut offset = 0;
        while offset < bytes.len() {
            let (skipped, left) = self.next_compared(offset, bytes.len());
            offset += skipped;
            if left == 0 {
                continue;
            }
            // Aligned, since the guest may have asked for alignment checks.
            let fits =
                |size: &usize| *size <= left && (pc + offset as u64).is_multiple_of(*size as u64);
            let size = [8, 4, 2, 1].into_iter().find(fits).expect("one byte always fits");
            let mut word = [0; 8];
            word[..size].copy_from_slice(&bytes[offset..offset + size]);
            let word = u64::from_le_bytes(word);
            changed.push(whole.compare_guest(pc + offset as u64, size as u8, word));
            offset += size;
        }
        whole.restore(0);
        whole.align();
        whole.append(&self.emitter);
        changed.iter().for_each(|place| whole.land(*place));
        whole.leave_changed();
    }
}

#[cfg(test)]
mod tests;
