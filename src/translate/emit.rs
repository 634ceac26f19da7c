//! [`Emitter`]: host code, byte by byte, with its side table. Everything here leaves flags alone but
//! what says otherwise.
//!
//! Host registers are numbers 0–15 in encoding order. RSP is the vCPU's block, R15 the guest's RSP,
//! and R14 is free between guest instructions.
#![allow(clippy::useless_conversion, reason = "`dynasm!` converts numbers of registers")]

use dynasmrt::{DynasmApi, SimpleAssembler, dynasm};
use iced_x86::Register;

use super::block::{
    ENTRY, Exit, Leave, POLL_LOAD, Purpose, Recovery, Relocation, SideEntry, Stub, TranslatedBlock,
    X87Opcode,
};
use super::control::SideExit;
use super::extended::Extended;
use super::vcpu_block::{ProbeShape, at};

/// Host register that holds the guest's RSP.
pub(super) const GUEST_RSP: u8 = 15;
/// Host register that is free between guest instructions.
pub(super) const FREE: u8 = 14;
/// RCX, which JRCXZ tests.
pub(super) const RCX: u8 = 1;

/// See the file's head.
pub(super) struct Emitter {
    pub(super) ops: SimpleAssembler,
    pub(super) exits: Vec<Exit>,
    pub(super) relocations: Vec<Relocation>,
    pub(super) side_table: Vec<SideEntry>,
    pub(super) x87_opcodes: Vec<X87Opcode>,
    /// Branches that leave the block before its end.
    pub(super) side_exits: Vec<SideExit>,
    /// Offset and number of the guest instruction in hand.
    guest: u32,
    index: u16,
    /// How its state is recovered from here on.
    recovery: Recovery,
    /// How far the guest's RSP is ahead of R15: PUSH and POP do not move it one by one.
    pub(super) rsp_ahead: i16,
}

/// How far it may be: displacements of one byte reach as far.
const MOST_AHEAD: i32 = 96;

impl Default for Emitter {
    /// An empty one, for which no memory is taken yet.
    fn default() -> Self {
        Self {
            ops: SimpleAssembler { ops: Vec::new() },
            exits: Vec::new(),
            relocations: Vec::new(),
            side_table: Vec::new(),
            x87_opcodes: Vec::new(),
            side_exits: Vec::new(),
            guest: 0,
            index: 0,
            recovery: Recovery::PLAIN,
            rsp_ahead: 0,
        }
    }
}

impl Emitter {
    /// Makes it empty, for another block.
    pub(super) fn clear(&mut self) {
        self.ops.ops.clear();
        self.exits.clear();
        self.relocations.clear();
        self.side_table.clear();
        self.x87_opcodes.clear();
        self.side_exits.clear();
        self.rsp_ahead = 0;
        self.begin(0, 0);
    }

    /// Emits what a block begins with.
    pub(super) fn entry(&mut self) {
        self.bytes(&ENTRY);
    }

    /// Code from here on works for the guest instruction at offset `guest`, the `index`-th.
    pub(super) fn begin(&mut self, guest: u32, index: u16) {
        self.guest = guest;
        self.index = index;
        self.recover(Recovery { rsp_ahead: self.rsp_ahead, ..Recovery::PLAIN });
    }

    /// Where the guest's RSP and so many bytes more are, from R15.
    pub(super) fn at_stack(&self, offset: i32) -> i32 {
        i32::from(self.rsp_ahead) + offset
    }

    /// The guest's RSP moves, R15 later.
    pub(super) fn move_stack(&mut self, distance: i32) {
        let ahead = self.at_stack(distance);
        if ahead.abs() > MOST_AHEAD {
            return self.settle_stack_with(distance);
        }
        self.rsp_ahead = ahead as i16;
    }

    /// R15 is the guest's RSP from here on.
    pub(super) fn settle_stack(&mut self) {
        if self.rsp_ahead != 0 {
            self.settle_stack_with(0);
        }
    }

    /// The same, and that moves.
    pub(super) fn settle_stack_with(&mut self, distance: i32) {
        let ahead = self.at_stack(distance);
        dynasm!(self.ops; .arch x64; lea r15, [r15 + ahead]);
        self.forget_stack();
    }

    /// R15 has got the guest's RSP.
    pub(super) fn forget_stack(&mut self) {
        self.rsp_ahead = 0;
        self.recover(Recovery { rsp_ahead: 0, ..self.recovery });
    }

    /// From here on, the state is recovered so.
    fn recover(&mut self, recovery: Recovery) {
        self.recovery = recovery;
        let host = self.offset();
        let entry = SideEntry { host, guest: self.guest, index: self.index, recovery };
        match self.side_table.last_mut() {
            Some(last) if last.host == host => *last = entry,
            Some(last)
                if (last.guest, last.index, last.recovery)
                    == (self.guest, self.index, recovery) => {}
            _ => self.side_table.push(entry),
        }
    }

    /// Emits what `body` emits for another purpose than the instruction's own.
    fn with_purpose(&mut self, purpose: Purpose, body: impl FnOnce(&mut Self)) {
        let before = self.recovery;
        self.recover(Recovery { purpose, ..before });
        body(self);
        self.recover(before);
    }

    /// Has `body` find host addresses in these registers, in place of the guest's. Uses R14.
    pub(super) fn relocated(&mut self, registers: &[u8], body: impl FnOnce(&mut Self)) {
        self.move_addresses(registers, at::WINDOW);
        body(self);
        self.move_addresses(registers, at::MINUS_WINDOW);
    }

    /// Adds the distance in a slot to addresses of the guest's in registers, which are the host's then, or back.
    fn move_addresses(&mut self, registers: &[u8], distance: i32) {
        if registers.is_empty() {
            return;
        }
        self.load(FREE, distance);
        for &register in registers {
            self.add(register, register, FREE);
            let relocated = self.recovery.relocated ^ 1 << register;
            self.recover(Recovery { relocated, ..self.recovery });
        }
    }

    /// Puts a host register away, to be used for something else.
    pub(super) fn spill(&mut self, slot: usize, register: u8) {
        self.store(at::spill(slot), register);
        let mut recovery = self.recovery;
        recovery.spilled[slot] = Some(register);
        self.recover(recovery);
    }

    /// Puts it back.
    pub(super) fn restore(&mut self, slot: usize) {
        if let Some(register) = self.recovery.spilled[slot] {
            self.load(register, at::spill(slot));
            let mut recovery = self.recovery;
            recovery.spilled[slot] = None;
            self.recover(recovery);
        }
    }

    /// The x87 instruction in hand, of which these are the guest's bytes, was emitted from `start` on
    /// with another encoding, and with the base of `segment` in its operand's address.
    pub(super) fn note_x87(&mut self, bytes: &[u8], start: u32, segment: Option<Register>) {
        let emitted = &self.ops.ops[start as usize..];
        if let (Some(guest), Some(host)) = (X87Opcode::of(bytes), X87Opcode::of(emitted))
            && (guest != host || segment.is_some())
        {
            self.x87_opcodes.push(X87Opcode { at: self.guest, guest, host, segment });
        }
    }

    pub(super) fn offset(&self) -> u32 {
        self.ops.ops.len() as u32
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.ops.ops.extend_from_slice(bytes);
    }

    /// `register ← block[offset]`
    pub(super) fn load(&mut self, register: u8, offset: i32) {
        dynasm!(self.ops; .arch x64; mov Rq(register), [rsp + offset]);
    }

    /// `block[offset] ← register`
    pub(super) fn store(&mut self, offset: i32, register: u8) {
        dynasm!(self.ops; .arch x64; mov [rsp + offset], Rq(register));
    }

    /// `to ← from`
    pub(super) fn copy(&mut self, to: u8, from: u8) {
        dynasm!(self.ops; .arch x64; mov Rq(to), Rq(from));
    }

    /// `to ← base + offset`
    pub(super) fn lea(&mut self, to: u8, base: u8, offset: i32) {
        dynasm!(self.ops; .arch x64; lea Rq(to), [Rq(base) + offset]);
    }

    /// `to ← base + index`
    pub(super) fn add(&mut self, to: u8, base: u8, index: u8) {
        dynasm!(self.ops; .arch x64; lea Rq(to), [Rq(base) + Rq(index)]);
    }

    /// `register ← value`, by the shortest encoding.
    pub(super) fn constant(&mut self, register: u8, value: u64) {
        if u32::try_from(value).is_ok() {
            dynasm!(self.ops; .arch x64; mov Rd(register), value as i32);
        } else if i32::try_from(value as i64).is_ok() {
            dynasm!(self.ops; .arch x64; mov Rq(register), value as i32);
        } else {
            dynasm!(self.ops; .arch x64; mov Rq(register), QWORD value as i64);
        }
    }

    /// `register ←` its low half.
    pub(super) fn zero_extend(&mut self, register: u8) {
        dynasm!(self.ops; .arch x64; mov Rd(register), Rd(register));
    }

    /// Rotates right by so many bits.
    pub(super) fn rotate_right(&mut self, register: u8, bits: u8) {
        if bits != 0 {
            dynasm!(self.ops; .arch x64; rorx Rq(register), Rq(register), bits as i8);
        }
    }

    /// `register ←` its low bytes, sign-extended.
    pub(super) fn sign_extend(&mut self, register: u8, bytes: usize) {
        match bytes {
            1 => dynasm!(self.ops; .arch x64; movsx Rq(register), Rb(register)),
            4 => dynasm!(self.ops; .arch x64; movsxd Rq(register), Rd(register)),
            _ => {}
        }
    }

    /// Jumps unless `size` bytes of guest memory at `address`, a constant in the window, are `word`; the
    /// place of the jump's displacement. Uses R14 and RCX.
    pub(super) fn compare_guest(&mut self, address: u64, size: u8, word: u64) -> u32 {
        self.constant(FREE, address);
        self.bytes(&[0x65]);
        match size {
            8 => dynasm!(self.ops; .arch x64; mov r14, [r14]),
            4 => dynasm!(self.ops; .arch x64; mov r14d, [r14]),
            2 => dynasm!(self.ops; .arch x64; movzx r14d, WORD [r14]),
            _ => dynasm!(self.ops; .arch x64; movzx r14d, BYTE [r14]),
        }
        self.constant(RCX, word.wrapping_neg());
        self.add(RCX, RCX, FREE);
        const JUMP: [u8; 5] = [0xe9, 0, 0, 0, 0];
        self.bytes(&[0xe3, JUMP.len() as u8]);
        self.bytes(&JUMP);
        self.offset() - 4
    }

    /// Leaves, with RCX in spill slot 0, with [`Stub::Changed`].
    pub(super) fn leave_changed(&mut self) {
        self.begin(0, 0);
        let mut recovery = self.recovery;
        recovery.spilled[0] = Some(RCX);
        self.recover(recovery);
        self.load(RCX, at::spill(0));
        self.leave(Stub::Changed, Leave::Changed);
    }

    /// Faults unless the address in `register` lies in the window, or itself faults when used.
    /// `scratch` may be the same register, which is then lost.
    pub(super) fn probe(&mut self, shape: ProbeShape, register: u8, scratch: u8) {
        let shift = shape.shift as i8;
        self.with_purpose(Purpose::Probe, |emitter| {
            dynasm!(emitter.ops
                ; .arch x64
                ; rorx Rq(scratch), Rq(register), shift
                ; movzx Rd(scratch), Rw(scratch)
                ; mov Rd(scratch), [rsp + Rq(scratch) * 8 + shape.base]
            );
        });
    }

    /// Faults if the vCPU is asked to leave. Uses R14.
    pub(super) fn poll(&mut self) {
        self.with_purpose(Purpose::Poll, |emitter| {
            dynasm!(emitter.ops; .arch x64; mov r14, [rsp + at::POLL]);
            emitter.bytes(&POLL_LOAD);
        });
    }

    /// Notes an address in the trace; faults where there is no room. Uses R14.
    pub(super) fn record(&mut self, address: u64) {
        self.with_purpose(Purpose::Record, |emitter| {
            dynasm!(emitter.ops; .arch x64; mov r14, [rsp + at::RECORD]);
            if let Ok(short) = i32::try_from(address as i64) {
                dynasm!(emitter.ops; .arch x64; mov QWORD [r14], short);
            } else {
                let (low, high) = (address as i32, (address >> 32) as i32);
                dynasm!(emitter.ops; .arch x64; mov DWORD [r14], low; mov DWORD [r14 + 4], high);
            }
            dynasm!(emitter.ops
                ; .arch x64
                ; lea r14, [r14 + 8]
                ; mov [rsp + at::RECORD], r14
            );
        });
    }

    /// Takes the block's instructions off the budget; faults where that makes it negative. Uses R14.
    /// Gives the place of their number, for [`Self::set_account`].
    pub(super) fn account(&mut self, shape: ProbeShape) -> u32 {
        self.count_down(shape, Purpose::Budget, at::BUDGET, 0)
    }

    /// Counts an entry of a block that checks itself; faults where there were enough. Uses R14.
    pub(super) fn count_entry(&mut self, shape: ProbeShape) {
        self.count_down(shape, Purpose::Calm, at::CALM, 1);
    }

    /// Takes `number` from a slot; faults where that makes it negative. Gives the place of the number.
    fn count_down(&mut self, shape: ProbeShape, purpose: Purpose, slot: i32, number: i32) -> u32 {
        let (mut place, change) = (0, -number);
        self.with_purpose(purpose, |emitter| {
            dynasm!(emitter.ops
                ; .arch x64
                ; mov r14, [rsp + slot]
                ; lea r14, [r14 + change]
            );
            place = emitter.offset() - 4;
            dynasm!(emitter.ops
                ; .arch x64
                ; mov [rsp + slot], r14
                ; rorx r14, r14, 48
                ; movzx r14d, r14w
                ; mov r14d, [rsp + r14 * 8 + shape.base]
            );
        });
        place
    }

    /// Says how many instructions an account takes.
    pub(super) fn set_account(&mut self, place: u32, count: u16) {
        let bytes = (-i32::from(count)).to_le_bytes();
        self.ops.ops[place as usize..place as usize + 4].copy_from_slice(&bytes);
    }

    /// `register ← guest memory[base + offset]`: 8 bytes, 4 that are zero-extended, or the low 2.
    pub(super) fn guest_load(&mut self, register: u8, base: u8, offset: i32, bytes: u8) {
        dynasm!(self.ops; .arch x64; .u8 0x65);
        match bytes {
            2 => dynasm!(self.ops; .arch x64; mov Rw(register), [Rq(base) + offset]),
            4 => dynasm!(self.ops; .arch x64; mov Rd(register), [Rq(base) + offset]),
            _ => dynasm!(self.ops; .arch x64; mov Rq(register), [Rq(base) + offset]),
        }
    }

    /// `guest memory[base + offset] ← register`, 8 bytes or the low 2.
    pub(super) fn guest_store(&mut self, base: u8, offset: i32, register: u8, bytes: u8) {
        dynasm!(self.ops; .arch x64; .u8 0x65);
        if bytes == 2 {
            dynasm!(self.ops; .arch x64; mov [Rq(base) + offset], Rw(register));
        } else {
            dynasm!(self.ops; .arch x64; mov [Rq(base) + offset], Rq(register));
        }
    }

    /// `guest memory[base + offset] ← value`, sign-extended to 8 bytes or cut to 2.
    pub(super) fn guest_store_constant(&mut self, base: u8, offset: i32, value: i32, bytes: u8) {
        dynasm!(self.ops; .arch x64; .u8 0x65);
        if bytes == 2 {
            dynasm!(self.ops; .arch x64; mov WORD [Rq(base) + offset], value as i16);
        } else {
            dynasm!(self.ops; .arch x64; mov QWORD [Rq(base) + offset], value);
        }
    }

    /// Leaves by a stub, which means `leave`. Uses R14 if the stub is not called.
    pub(super) fn leave(&mut self, stub: Stub, leave: Leave) {
        if stub.is_called() {
            self.bytes(&[0xe8]);
        } else {
            dynasm!(self.ops; .arch x64; lea r14, [rip + 5]);
            self.bytes(&[0xe9]);
        }
        self.relocations.push(Relocation { offset: self.offset(), stub });
        self.bytes(&[0; 4]);
        self.exits.push(Exit { offset: self.offset(), leave });
    }

    /// R14 is the target of an indirect branch at `branch`: falls through with R14 and RCX lost,
    /// RCX's value in spill slot 0, once the target is in the jump cache.
    pub(super) fn find_target(&mut self, branch: crate::guest::GuestAddress) {
        self.spill(0, RCX);
        dynasm!(self.ops
            ; .arch x64
            ; movzx ecx, r14w
            ; mov rcx, [rsp + rcx * 8 + at::JUMP_TAGS]
            ; lea rcx, [rcx + r14]
            ; .u8 0xe3; .u8 0
        );
        let hit = self.offset() - 1;
        dynasm!(self.ops; .arch x64; mov rcx, [rsp + at::spill(0)]; mov [rsp + at::TARGET], r14);
        self.leave(Stub::Indirect, Leave::Indirect { branch });
        self.land_short(hit);
    }

    /// Ends [`Self::find_target`]: goes to the translation of the target, which is still in R14.
    pub(super) fn jump_to_target(&mut self) {
        dynasm!(self.ops; .arch x64; movzx r14d, r14w; jmp QWORD [rsp + r14 * 8 + at::JUMP_HOSTS]);
    }

    /// What was emitted, in no more memory than it needs.
    pub(super) fn finish(&self, guest_bytes: u32, instructions: u16) -> TranslatedBlock<'_> {
        TranslatedBlock {
            code: &self.ops.ops,
            exits: &self.exits,
            relocations: &self.relocations,
            side_table: &self.side_table,
            x87_opcodes: &self.x87_opcodes,
            guest_bytes,
            instructions,
            truncated: false,
            ends_early: false,
            extended: Extended::All,
        }
    }
}

/// Raw access for the few sequences that have one user each.
impl Emitter {
    /// The assembler, for `dynasm!`.
    pub(super) fn assembler(&mut self) -> &mut SimpleAssembler {
        &mut self.ops
    }
}
