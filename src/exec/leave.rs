//! How the code cache is left: a block that is done, an indirect jump whose target is not in the jump
//! cache, an instruction that is the run loop's business, a fault. Also the jump cache itself, which
//! belongs to the vCPU alone, and what the x87 unit notes of host addresses.

use iced_x86::Register;

use super::core::Core;
use super::shared::Shared;
use super::vcpu::{End, Fault, Handled, Vcpu, Way, lost};
use crate::code::{CodeCache, Key, Pinned};
use crate::guest::GuestAddress;
use crate::translate::{
    ENTRY, Exit, Leave, Purpose, Recovery, Stub, TranslatedBlock, X87Opcode, is_canonical,
};

/// Entries of the jump cache that are emptied before its memory is given back: it has a page for each 512 of them, and
/// to touch a page again costs as much as some ten ways out for an entry.
const EMPTIED_UNTIL_GIVEN_BACK: usize = 1024;

impl Vcpu {
    /// Interprets a call of a stub.
    pub(super) fn left(&mut self, core: &mut Core, counted: bool) -> Handled {
        let address = self.memory.block().exit_address;
        let Some(located) = core.cache.locate(address - 1) else {
            return Handled::End(End::Exit(lost("a way out of the code cache is not known")));
        };
        let (host, pc) = (core.cache.arena().address(located.block.offset), located.block.key.pc);
        let translated = located.translated();
        let Some(exit) = translated.exit(located.offset + 1).copied() else {
            return Handled::End(End::Exit(lost("a way out of a block is not known")));
        };
        match exit.leave {
            Leave::Next { target } => {
                self.pc = target;
                self.place.inside(target, pc);
                Handled::End(End::Go)
            }
            Leave::Assist { at } => {
                self.leave_within(at, (pc, translated), exit.offset - 1, counted);
                Handled::End(End::Step)
            }
            Leave::Announce { .. } | Leave::Observed { .. } => {
                Handled::End(self.back_out(core, counted))
            }
            Leave::Changed => {
                let key = located.block.key;
                // At its entry it was invalidated already, and may be valid again by now. A jump may
                // have led to one that compares its bytes and was translated anew long ago.
                let compared = exit.offset as usize != ENTRY.len();
                if compared && core.cache.find(key) == Some(host) {
                    core.forget_block(key);
                }
                self.pc = pc;
                // Others were executed before one that a jump has led to.
                if host != self.first || self.has_struck() {
                    self.place.elsewhere();
                }
                let wanted = !self.gate.is_requested() && !self.on_code;
                match wanted.then(|| core.find_to_jump(key, false)).flatten() {
                    Some(next) => {
                        self.memory.block_mut().entry = next;
                        Handled::Enter(Way::Start)
                    }
                    None => Handled::End(End::Go),
                }
            }
            Leave::Direct { target, patch } => {
                let back = translated.leads_back(pc, &exit);
                self.pc = target;
                self.place.elsewhere();
                if self.gate.is_requested() {
                    return Handled::End(End::Go);
                }
                let key = Key { pc: target, counted };
                let found = core.find_to_jump(key, back);
                let Some(next) = found else {
                    return Handled::End(End::Go);
                };
                core.cache.chain(host, patch, next);
                if back {
                    self.renew_target(target.0, next);
                }
                self.memory.block_mut().entry = next;
                Handled::Enter(Way::Start)
            }
            Leave::Indirect { .. } => {
                let target = self.memory.block().target;
                let key = Key { pc: GuestAddress(target), counted };
                let stop = !is_canonical(target) || self.gate.is_requested();
                let found = if stop { None } else { core.find_to_jump(key, false) };
                // The branch itself can only fault.
                if !is_canonical(target) {
                    return Handled::End(self.back_out(core, counted));
                }
                let host = found.unwrap_or_else(|| core.cache.stub(Stub::Target));
                self.resume_with(target, host);
                Handled::Enter(Way::Resume)
            }
        }
    }

    /// The block that was left at an indirect branch, or where it has announced an instruction, does not go on:
    /// that is still to be done.
    pub(super) fn back_out(&mut self, core: &Core, counted: bool) -> End {
        let address = self.memory.block().exit_address;
        let located = core.cache.locate(address - 1);
        let exit = located.and_then(|located| {
            let exit = located.translated().exit(located.offset + 1).copied()?;
            Some((located, exit))
        });
        let (located, branch, offset) = match exit {
            Some((
                located,
                Exit {
                    leave:
                        Leave::Indirect { branch: at } | Leave::Announce { at } | Leave::Observed { at },
                    offset,
                },
            )) => (located, at, offset),
            _ => return End::Exit(lost("a block is left at no branch")),
        };
        let (pc, translated) = (located.block.key.pc, located.translated());
        // A block that just goes on elsewhere has nothing left to do.
        let entry = translated.side_entry(offset - 1);
        let own = entry.filter(|entry| branch == pc.wrapping_add(u64::from(entry.guest)));
        if own.is_some() {
            self.leave_within(branch, (pc, translated), offset - 1, counted);
        } else {
            self.pc = branch;
            self.place.elsewhere();
        }
        End::Step
    }

    /// Leaves a block, which begins at the address beside it, at an offset of its code, where the instruction at `at`
    /// is not done.
    fn leave_within(
        &mut self,
        at: GuestAddress,
        (pc, block): (GuestAddress, TranslatedBlock<'_>),
        offset: u32,
        counted: bool,
    ) {
        let entry = block.side_entry(offset);
        let done = entry.map_or(0, |entry| entry.index);
        self.move_rsp(entry.map_or(0, |entry| entry.recovery.rsp_ahead));
        self.pc = at;
        // Before the first instruction nothing has changed.
        if done > 0 {
            self.place.inside(at, pc);
        }
        if counted {
            self.memory.block_mut().budget += i64::from(block.instructions - done);
        }
        self.take_back_at(block, offset);
        if block.is_announced(at, offset + 1) {
            self.place.tell(at);
        }
    }

    /// Takes the target of an indirect branch from the lookups that need no lock, if nothing else is to
    /// be done; whether it did.
    pub(super) fn resolve_at_once(
        &mut self,
        shared: &Shared,
        pinned: &Pinned<'_>,
        counted: bool,
    ) -> bool {
        let target = self.memory.block().target;
        if !is_canonical(target) || self.gate.is_requested() {
            return false;
        }
        let key = Key { pc: GuestAddress(target), counted };
        let found = shared.lookups.find(key, pinned);
        if let Some(host) = found {
            self.resume_with(target, host);
        }
        found.is_some()
    }

    /// Passes the HLT or SYSCALL that the code cache was left for, if the run ends by it and by nothing
    /// else before; whether it did.
    pub(super) fn passes_at_once(&mut self, counted: bool) -> bool {
        let block = self.memory.block_mut();
        if self.on_code || self.gate.is_requested() || counted && block.budget == 0 {
            return false;
        }
        block.budget -= i64::from(counted);
        self.pc = GuestAddress(block.target);
        true
    }

    /// Puts the target of an indirect branch into the jump cache, to go on behind the lookup.
    fn resume_with(&mut self, target: u64, host: u64) {
        self.fill_target(target, host);
        let block = self.memory.block_mut();
        block.entry = block.exit_address;
        block.spill[0] = block.gpr[1];
    }

    fn fill_target(&mut self, target: u64, host: u64) {
        let index = target as u16;
        let block = self.memory.block_mut();
        let tag = &mut block.jump_tags[usize::from(index)];
        // An entry is noted once, or targets that take each other's would be noted for ever. Fresh
        // ones are zero, but for the first.
        if *tag == no_target(index) || *tag == 0 && index != 0 {
            self.filled.push(index);
        }
        *tag = target.wrapping_neg();
        block.jump_hosts[usize::from(index)] = host;
    }

    /// If the jump cache knows the target, a longer block may have come in the place of the one that it has.
    fn renew_target(&mut self, target: u64, host: u64) {
        let index = usize::from(target as u16);
        let block = self.memory.block_mut();
        if block.jump_tags[index] == target.wrapping_neg() {
            block.jump_hosts[index] = host;
        }
    }

    pub(super) fn drop_target(&mut self, target: u64) {
        let index = target as u16;
        // It stays noted.
        self.memory.block_mut().jump_tags[usize::from(index)] = dropped_target(index);
    }

    /// Empties the jump cache. Which of its pages are touched changes from guest to guest: they are given
    /// back now and then.
    pub(super) fn reset_jump_cache(&mut self) {
        self.emptied += self.filled.len();
        let tags = &mut self.memory.block_mut().jump_tags;
        for index in self.filled.drain(..) {
            tags[usize::from(index)] = no_target(index);
        }
        if self.emptied > EMPTIED_UNTIL_GIVEN_BACK {
            self.memory.give_back_jump_cache();
            self.emptied = 0;
        }
        // The zeroed entry for addresses whose low bits are zero would match address 0.
        self.memory.block_mut().jump_tags[0] = no_target(0);
    }

    /// The x87 unit notes the address of its last instruction, which is the host's: makes it the
    /// guest's.
    pub(super) fn fix_instruction_pointer(&mut self, cache: &CodeCache) {
        let host = self.x87_instruction_pointer();
        if cache.arena().offset(host).is_none() {
            return;
        }
        // Code that is executed once is not in the table: `step` knows what it was.
        let Some(located) = cache.locate(host) else { return };
        let translated = located.translated();
        let guest = translated.side_entry(located.offset).map_or(0, |entry| entry.guest);
        let pc = located.block.key.pc.wrapping_add(u64::from(guest));
        let opcode = translated.x87_opcode(guest);
        self.set_x87_instruction(pc, opcode);
    }

    /// Sets what the x87 unit has noted of its last instruction. It notes opcodes only of those with
    /// an unmasked exception.
    pub(super) fn set_x87_instruction(&mut self, pc: GuestAddress, opcode: Option<X87Opcode>) {
        const PENDING: u8 = 1 << 7;
        let block = self.memory.block_mut();
        let image = &mut block.xsave.0;
        image[8..16].copy_from_slice(&pc.0.to_le_bytes());
        let Some(opcode) = opcode else { return };
        let noted = u16::from_le_bytes([image[6], image[7]]);
        let pending = image[2] & PENDING != 0;
        // An exception that the guest has cleared by now has left its opcode too.
        if opcode.host == noted {
            image[6..8].copy_from_slice(&opcode.guest.to_le_bytes());
        }
        if !pending && self.notes_exceptions_only {
            return;
        }
        let base = match opcode.segment {
            Some(Register::FS) => block.fs_base,
            Some(_) => block.gs_base,
            None => return,
        };
        let linear = block.xsave_data_pointer();
        block.set_xsave_data_pointer(linear.wrapping_sub(base));
    }

    /// The address that the x87 unit has noted of its last instruction.
    pub(super) fn x87_instruction_pointer(&self) -> u64 {
        let image = &self.memory.block().xsave.0;
        u64::from_le_bytes(image[8..16].try_into().expect("eight bytes"))
    }

    /// A fault of a block: puts the guest's registers in place and interprets it.
    pub(super) fn faulted(&mut self, core: &mut Core) -> End {
        let host = self.memory.block().fault_pc;
        let Some(located) = core.cache.locate(host) else {
            return End::Exit(lost("a fault is not in a block"));
        };
        let translated = located.translated();
        let Some(entry) = translated.side_entry(located.offset).copied() else {
            return End::Exit(lost("a fault is not in the side table"));
        };
        let refund = translated.instructions - entry.index;
        let Key { pc: block, counted } = located.block.key;
        self.pc = block.wrapping_add(u64::from(entry.guest));
        if entry.index > 0 {
            self.place.inside(self.pc, block);
        }
        let purpose = entry.recovery.purpose;
        self.take_back_at(translated, located.offset);
        let before = matches!(purpose, Purpose::Budget | Purpose::Calm | Purpose::Record);
        if !before && translated.is_announced(self.pc, located.offset) {
            self.place.tell(self.pc);
        }
        self.recover(entry.recovery);
        if counted {
            self.memory.block_mut().budget += i64::from(refund);
        }
        let fault = self.fault(entry.recovery.purpose);
        let end = self.interpret(core, fault);
        if matches!(end, End::Step) && self.is_trap(core, fault) {
            core.note_trap(self.pc, block);
        }
        end
    }

    fn move_rsp(&mut self, distance: i16) {
        let rsp = &mut self.memory.block_mut().gpr[4];
        *rsp = rsp.wrapping_add_signed(i64::from(distance));
    }

    /// Puts registers that were borrowed or left behind in place.
    pub(super) fn recover(&mut self, recovery: Recovery) {
        self.move_rsp(recovery.rsp_ahead);
        let block = self.memory.block_mut();
        for (slot, register) in recovery.spilled.into_iter().enumerate() {
            if let Some(register) = register {
                block.gpr[usize::from(register)] = block.spill[slot];
            }
        }
        let window = block.window;
        for (register, value) in block.gpr.iter_mut().enumerate() {
            if recovery.relocated >> register & 1 != 0 {
                *value = value.wrapping_sub(window);
            }
        }
    }

    pub(super) fn fault(&self, purpose: Purpose) -> Fault {
        let block = self.memory.block();
        Fault {
            purpose,
            vector: block.fault_vector as u8,
            error: block.fault_error as u32,
            address: block.fault_address,
        }
    }
}

/// The tag of an entry of the jump cache that has no target: no address has this tag and this index,
/// since the negative of the tag has other low bits.
fn no_target(index: u16) -> u64 {
    (u64::from(index) ^ 1).wrapping_neg()
}

/// The same for one that is noted to be cleared.
fn dropped_target(index: u16) -> u64 {
    (u64::from(index) ^ 2).wrapping_neg()
}
