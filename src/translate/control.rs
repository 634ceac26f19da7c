//! Transfers of control. A direct jump inside the region is a jump whose displacement is pointed at
//! its target once that is translated; every other one looks the target up in the vCPU's jump cache,
//! inline. Backward and indirect ones poll first, so that a request to leave is seen.
//!
//! A block to which control comes again and again goes on behind a few conditional branches forward, which
//! leave it from the side, and where a jump a little forward leads: what it knows of its registers is still
//! true there, and a loop may be one block though it has such branches in it. (For others that would be twice
//! the work where branches are taken.) Bytes that such a jump passes count as the block's.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use super::block::{Leave, Stub};
use super::classify::{Class, class};
use super::emit::{FREE, GUEST_RSP, RCX};
use super::loans::Loans;
use super::operand::{NeedsAssist, number};
use super::vcpu_block::at;
use super::{Flow, Translator, Work};
use crate::guest::{GuestAddress, Vendor, decoder};

/// Most branches that leave a block before its end.
const MOST_SIDE_EXITS: u16 = 4;
/// Most bytes that a jump passes behind which a block goes on.
const MOST_PASSED: u64 = 64;

/// A conditional branch that leaves a block whose end is further on.
pub(super) struct SideExit {
    /// Of its displacement.
    place: u32,
    target: GuestAddress,
    /// Guest bytes and instructions of the block up to it, itself included.
    guest: u32,
    index: u16,
}

impl Translator {
    /// Translates a branch; whether the block goes on behind it.
    pub(super) fn control(
        &mut self,
        work: &mut Work<'_>,
        instruction: &Instruction,
    ) -> Result<Flow, NeedsAssist> {
        let end = match class(instruction.code()) {
            Class::Conditional => return self.conditional(work, instruction),
            Class::Jump => return self.jump(work, instruction),
            Class::CountedBranch => self.counted_branch(work, instruction),
            Class::Call => self.call(work, instruction),
            Class::JumpIndirect => self.jump_indirect(work, instruction),
            Class::CallIndirect => self.call_indirect(work, instruction),
            _ => self.ret(work, instruction),
        };
        end.map(|()| Flow::End)
    }

    /// Goes on at `target`, everything before it being done.
    pub(super) fn go_on(&mut self, work: &mut Work<'_>, target: GuestAddress) {
        if !work.is_inside(target) {
            return self.cross(work, target);
        }
        let emitter = &mut work.emitter;
        emitter.align_end(5);
        emitter.bytes(&[0xe9, 0, 0, 0, 0]);
        let patch = emitter.offset() - 4;
        emitter.leave(Stub::Direct, Leave::Direct { target, patch });
    }

    /// Goes on at `target` in another region.
    fn cross(&mut self, work: &mut Work<'_>, target: GuestAddress) {
        work.emitter.constant(FREE, target.0);
        work.emitter.find_target(target);
        work.emitter.restore(0);
        work.emitter.jump_to_target();
    }

    fn jump(
        &mut self,
        work: &mut Work<'_>,
        instruction: &Instruction,
    ) -> Result<Flow, NeedsAssist> {
        let target = self.constant_target(work, instruction)?;
        let passed = work.may_follow(instruction, target);
        work.ends_early = passed.is_some() && !work.request.again;
        if let Some(passed) = passed.filter(|_| work.request.again) {
            work.done += passed;
            return Ok(Flow::Next);
        }
        work.pass(instruction);
        self.go_on(work, target);
        Ok(Flow::End)
    }

    fn conditional(
        &mut self,
        work: &mut Work<'_>,
        instruction: &Instruction,
    ) -> Result<Flow, NeedsAssist> {
        let target = self.constant_target(work, instruction)?;
        let passes = work.may_pass(target);
        work.ends_early = passes && !work.request.again;
        if passes && work.request.again {
            let place = work.branch(instruction);
            let guest = work.done + instruction.len() as u32;
            let exit = SideExit { place, target, guest, index: work.count + 1 };
            work.emitter.side_exits.push(exit);
            work.passed += 1;
            return Ok(Flow::Next);
        }
        work.pass(instruction);
        let place = self.last_branch(work, instruction);
        if target == work.request.pc && work.may_repeat() {
            self.repeat(work, instruction, place);
        } else {
            self.taken(work, place, target);
        }
        Ok(Flow::End)
    }

    /// Emits where the branch at `place` goes to.
    fn taken(&mut self, work: &mut Work<'_>, place: u32, target: GuestAddress) {
        work.emitter.land(place);
        if work.is_inside(target) {
            work.emitter.leave(Stub::Direct, Leave::Direct { target, patch: place });
        } else {
            self.cross(work, target);
        }
    }

    /// Emits where all side exits of a block go to, behind its end.
    pub(super) fn side_exits(&mut self, work: &mut Work<'_>) {
        let mut exits = std::mem::take(&mut work.emitter.side_exits);
        for exit in exits.drain(..) {
            work.emitter.begin(exit.guest, exit.index);
            self.taken(work, exit.place, exit.target);
        }
        work.emitter.side_exits = exits;
    }

    /// Emits the conditional branch that ends a block, and how that goes on if it is not taken. Gives the
    /// place of its displacement.
    fn last_branch(&mut self, work: &mut Work<'_>, instruction: &Instruction) -> u32 {
        let place = work.branch(instruction);
        let next = work.pc();
        self.go_on(work, next);
        place
    }

    /// The block is a loop of its own: emits its body once more, for all passes but the first.
    ///
    /// An access that did not fault has shown that its base is in the window, so where a pass moves a
    /// base by constants only, the next pass need not probe it: its access lies in the window or in
    /// the guards, and in the guards it faults. What a pass may assume is what every pass leaves
    /// true, which is found by trying.
    fn repeat(&mut self, work: &mut Work<'_>, instruction: &Instruction, first: u32) {
        let mark = work.emitter.mark();
        let mut assumed = self.known;
        loop {
            self.known = assumed;
            let start = work.emitter.offset();
            work.started = start;
            self.body_again(work);
            if !work.polled {
                work.emitter.poll();
            }
            work.emitter.settle_stack();
            let again = self.last_branch(work, instruction);
            work.emitter.aim(again, start);
            let kept = assumed.kept_by(&self.known);
            if kept == assumed {
                work.emitter.aim(first, start);
                return;
            }
            assumed = kept;
            work.emitter.rewind(&mark);
        }
    }

    /// Translates once more all instructions of the block but the last, which is a branch.
    fn body_again(&mut self, work: &mut Work<'_>) {
        let (done, count) = (work.done, work.count);
        let code = work.request.code;
        let mut decoder = decoder(code, work.request.pc.0);
        let mut instruction = Instruction::default();
        (work.done, work.count, work.passed) = (0, 0, 0);
        while work.count + 1 < count {
            work.seek(&mut decoder);
            decoder.decode_out(&mut instruction);
            self.instruction(work, &instruction);
        }
        work.emitter.begin(work.done, work.count);
        (work.done, work.count) = (done, count);
    }

    /// LOOP and JRCXZ test RCX, which is the host's: the instruction decides by itself.
    fn counted_branch(
        &mut self,
        work: &mut Work<'_>,
        instruction: &Instruction,
    ) -> Result<(), NeedsAssist> {
        let target = self.constant_target(work, instruction)?;
        work.pass(instruction);
        let opcode = match counted_branch(instruction) {
            Mnemonic::Loopne => 0xe0,
            Mnemonic::Loope => 0xe1,
            Mnemonic::Loop => 0xe2,
            _ => 0xe3,
        };
        if instruction.code().op_code().address_size() == 32 {
            work.emitter.bytes(&[0x67]);
        }
        work.emitter.bytes(&[opcode, 0]);
        let taken = work.emitter.offset() - 1;
        let next = work.pc();
        self.go_on(work, next);
        work.emitter.land_short(taken);
        self.go_on(work, target);
        Ok(())
    }

    fn call(&mut self, work: &mut Work<'_>, instruction: &Instruction) -> Result<(), NeedsAssist> {
        let target = self.constant_target(work, instruction)?;
        self.probe_stack(work);
        let back = instruction.next_ip();
        let emitter = &mut work.emitter;
        let offset = emitter.at_stack(-8);
        match i32::try_from(back as i64) {
            Ok(back) => emitter.guest_store_constant(GUEST_RSP, offset, back, 8),
            Err(_) => {
                emitter.constant(FREE, back);
                emitter.guest_store(GUEST_RSP, offset, FREE, 8);
            }
        }
        emitter.settle_stack_with(-8);
        work.pass(instruction);
        self.go_on(work, target);
        Ok(())
    }

    fn jump_indirect(
        &mut self,
        work: &mut Work<'_>,
        instruction: &Instruction,
    ) -> Result<(), NeedsAssist> {
        work.emitter.poll();
        self.target_to_free(work, instruction)?;
        let branch = work.pc();
        work.pass(instruction);
        work.emitter.find_target(branch);
        work.emitter.restore(0);
        work.emitter.jump_to_target();
        Ok(())
    }

    fn call_indirect(
        &mut self,
        work: &mut Work<'_>,
        instruction: &Instruction,
    ) -> Result<(), NeedsAssist> {
        work.emitter.poll();
        self.probe_stack(work);
        self.target_to_free(work, instruction)?;
        let emitter = &mut work.emitter;
        emitter.find_target(GuestAddress(instruction.ip()));
        emitter.constant(RCX, instruction.next_ip());
        emitter.guest_store(GUEST_RSP, -8, RCX, 8);
        emitter.restore(0);
        emitter.lea(GUEST_RSP, GUEST_RSP, -8);
        emitter.jump_to_target();
        work.pass(instruction);
        Ok(())
    }

    fn ret(&mut self, work: &mut Work<'_>, instruction: &Instruction) -> Result<(), NeedsAssist> {
        work.emitter.poll();
        self.probe_stack(work);
        let popped = match instruction.code() {
            Code::Retnq_imm16 => 8 + i32::from(instruction.immediate16()),
            _ => 8,
        };
        let emitter = &mut work.emitter;
        emitter.guest_load(FREE, GUEST_RSP, emitter.at_stack(0), 8);
        emitter.find_target(GuestAddress(instruction.ip()));
        emitter.restore(0);
        emitter.settle_stack_with(popped);
        emitter.jump_to_target();
        work.pass(instruction);
        Ok(())
    }

    /// The target of a direct branch, polled for if it is backward.
    fn constant_target(
        &mut self,
        work: &mut Work<'_>,
        instruction: &Instruction,
    ) -> Result<GuestAddress, NeedsAssist> {
        let target = instruction.near_branch_target();
        if !is_canonical(target) {
            return Err(NeedsAssist);
        }
        if target <= instruction.ip() && !work.polled {
            work.emitter.poll();
        }
        Ok(GuestAddress(target))
    }

    /// R14 ← the operand of an indirect branch.
    fn target_to_free(
        &mut self,
        work: &mut Work<'_>,
        instruction: &Instruction,
    ) -> Result<(), NeedsAssist> {
        if instruction.op0_kind() == OpKind::Register {
            match number(instruction.op0_register()) {
                4 => work.emitter.copy(FREE, GUEST_RSP),
                register @ (14 | 15) => work.emitter.load(FREE, at::gpr(register)),
                register => work.emitter.copy(FREE, register),
            }
            return Ok(());
        }
        let loans = Loans::new(super::operand::address_registers(instruction), false);
        self.operand_to_free(&mut work.emitter, instruction, Code::Mov_r64_rm64, loans)
    }
}

impl Work<'_> {
    /// Whether the block may go on behind a conditional branch to `target`. One that is counted does all of it or
    /// nothing, one that compares its source would compare what it may not come to, and to go on is no arrival
    /// that could be announced. Backward branches are mostly taken.
    fn may_pass(&self, target: GuestAddress) -> bool {
        target > self.pc() && self.may_go_on() && self.passed < MOST_SIDE_EXITS
    }

    /// How many bytes a jump to `target` passes if the block may go on there.
    fn may_follow(&self, jump: &Instruction, target: GuestAddress) -> Option<u32> {
        let passed =
            target.0.checked_sub(jump.next_ip()).filter(|passed| *passed <= MOST_PASSED)?;
        let offset = self.done as usize + jump.len() + passed as usize;
        let there = self.is_inside(target) && offset < self.request.code.len();
        (there && self.may_go_on()).then_some(passed as u32)
    }

    fn may_go_on(&self) -> bool {
        let whole = self.request.counted || self.request.checked;
        !whole && self.request.announced.is_empty()
    }

    /// Emits a conditional branch; the place of its displacement.
    fn branch(&mut self, instruction: &Instruction) -> u32 {
        // iced-x86 numbers conditions like the opcodes, from 1 on.
        let condition = instruction.condition_code() as u8 - 1;
        self.emitter.align_end_before(self.started, 6);
        self.emitter.bytes(&[0x0f, 0x80 | condition, 0, 0, 0, 0]);
        self.emitter.offset() - 4
    }
}

/// What a counted branch does: AMD's processors take LOOPE with the prefix F2 for LOOPNE, and LOOPNE with F3
/// for LOOPE (measured; the manuals do not tell).
pub(crate) fn counted_branch(instruction: &Instruction) -> Mnemonic {
    match instruction.mnemonic() {
        other if Vendor::of_this_host() == Vendor::Intel => other,
        Mnemonic::Loope if instruction.has_repne_prefix() => Mnemonic::Loopne,
        Mnemonic::Loopne if instruction.has_repe_prefix() => Mnemonic::Loope,
        other => other,
    }
}

/// Whether bits 63–47 of an address are all alike.
pub(crate) fn is_canonical(address: u64) -> bool {
    let high = address as i64 >> 47;
    high == 0 || high == -1
}
