//! Scenes in which memory changes under the guest: the host writes code and data, protects, unmaps,
//! aliases and moves pages at events, or the guest rewrites its own code.

use iced_x86::{Code, Instruction, MemoryOperand, Register};

use super::choices::Choices;
use super::form::OperandForm;
use super::layout::{CODE_ALIAS_DISTANCE, CONSTANTS, DATA, Layout, LayoutKind, mapping, range};
use super::values;
use super::writer::Writer;
use crate::case::{Action, Event, Mapping, Trigger};
use crate::guest::{GuestAddress, GuestRange, PAGE_SIZE, Permissions};

impl Writer<'_, '_> {
    /// One scene with host events.
    pub(super) fn scene(&mut self, events: &mut Vec<Event>) {
        if self.over {
            return;
        }
        match self.choices.byte() {
            0..=13 => self.halt(events, vec![Action::ExitRequest]),
            14..=16 => self.forbidden_code(events),
            17..=19 => self.moved_code(events),
            20..=54 => {
                let write = self.data_write();
                self.halt(events, vec![write]);
            }
            55..=139 => self.rewritten_loop(events),
            140..=164 => self.protected(events),
            165..=189 => self.replaced_page(events),
            190..=204 => self.aliased_data(events),
            205..=219 => self.moved_page(events),
            220..=234 => self.aliased_code(events),
            _ => self.breakpoint(events),
        }
    }

    /// `hlt`, at which the host does `actions`.
    pub(super) fn halt(&mut self, events: &mut Vec<Event>, actions: Vec<Action>) {
        self.emit(&Instruction::with(Code::Hlt));
        events.push(Event { trigger: Trigger::Halt, actions });
    }

    pub(super) fn data_write(&mut self) -> Action {
        let address = self.layout.data() + 0x200 + self.choices.below(0x200) as u64;
        let count = 1 + self.choices.below(24);
        let bytes = (0..count).map(|_| self.choices.byte()).collect();
        Action::Write { address: GuestAddress(address), bytes }
    }

    /// An event after some instructions, before any other: the count is below what is certain.
    pub(super) fn counted(&mut self, events: &mut Vec<Event>, instructions: usize) {
        let count = 1 + self.choices.below(instructions.clamp(1, 60)) as u64;
        let action = if self.choices.chance(128) { self.data_write() } else { Action::ExitRequest };
        events.insert(0, Event { trigger: Trigger::Count(count), actions: vec![action] });
    }

    pub(super) fn breakpoint(&mut self, events: &mut Vec<Event>) {
        // The first instruction of a leg does not stop at a breakpoint.
        self.patchable();
        let address = GuestAddress(self.address());
        let actions = vec![match self.choices.chance(100) {
            true => self.data_write(),
            false => Action::ExitRequest,
        }];
        if !self.relocated {
            events.push(Event { trigger: Trigger::Breakpoint(address), actions });
        }
        self.patchable();
    }

    /// Where the program runs.
    pub(super) fn running_code(&self) -> GuestRange {
        let distance = if self.relocated { CODE_ALIAS_DISTANCE } else { 0 };
        range(self.layout.code + distance, self.layout.code_pages() as u64)
    }

    /// The code under the program may not be executed any more, which is its end.
    pub(super) fn forbidden_code(&mut self, events: &mut Vec<Event>) {
        let permissions = self.choices.pick(&[Permissions::Read, Permissions::ReadWrite]);
        let forbid = Action::Protect { range: self.running_code(), permissions };
        self.last_loop(events, forbid);
    }

    /// The code under the program goes elsewhere, which is its end.
    pub(super) fn moved_code(&mut self, events: &mut Vec<Event>) {
        let destination = GuestAddress(self.layout.code + 2 * CODE_ALIAS_DISTANCE);
        let go = Action::Remap { source: self.running_code(), destination };
        self.last_loop(events, go);
    }

    /// A loop in whose second pass the host does `last`, after which code is to be executed that was
    /// executed before.
    fn last_loop(&mut self, events: &mut Vec<Event>, last: Action) {
        let counter = self.counter();
        self.load(counter, 2);
        let pinned = self.pinned;
        self.pinned |= 1 << counter;
        let top = self.address();
        self.quiet_unit();
        self.halt(events, vec![Action::ExitRequest]);
        events.push(Event { trigger: Trigger::Halt, actions: vec![last] });
        self.over = true;
        self.count_down(counter, top);
        self.pinned = pinned;
    }

    /// An instruction of which another of the same length can be made.
    pub(super) fn patchable(&mut self) -> Patchable {
        let register = self.free_destination();
        let kind = match self.choices.byte() {
            0..=79 => PatchableKind::Operation,
            80..=159 => PatchableKind::Move,
            160..=223 => PatchableKind::Constant,
            _ if self.relocated => PatchableKind::Move,
            _ => PatchableKind::Store,
        };
        let address = self.address();
        let value = values::integer(&mut self.choices);
        let place = self.layout.data() + 0x200 + self.choices.below(0x40) as u64 * 4;
        self.uncertain(|writer| match kind {
            PatchableKind::Operation => {
                let register = Register::RAX + register;
                let value = i32::from(value as i8);
                writer.emit_made(Instruction::with2(Code::Add_rm64_imm8, register, value));
            }
            PatchableKind::Move => {
                let register = Register::EAX + register;
                writer.emit_made(Instruction::with2(Code::Mov_r32_imm32, register, value as u32));
            }
            PatchableKind::Constant => writer.constant_operation(register, place, value),
            PatchableKind::Store => writer.store(place, value as u32),
        });
        let bytes = self.address() - address;
        Patchable { address, kind, register, bytes }
    }

    /// An instruction of one of many kinds whose last four bytes are a constant, with a register or data.
    fn constant_operation(&mut self, register: u32, place: u64, value: u64) {
        let (is_wide, value) = (self.choices.chance(128), value as i32);
        let (narrow, wide) = self.choices.pick(&CONSTANT_OPERATIONS);
        let code = if is_wide { wide } else { narrow };
        let first = if is_wide { Register::RAX } else { Register::EAX };
        if narrow == Code::Imul_r32_rm32_imm32 {
            let register = first + register;
            self.emit_made(Instruction::with3(code, register, register, value));
        } else if self.relocated || self.choices.chance(160) {
            self.emit_made(Instruction::with2(code, first + register, value));
        } else {
            let operand = MemoryOperand::with_base_displ_size(Register::RIP, place as i64, 8);
            self.emit_made(Instruction::with2(code, operand, value));
        }
    }

    pub(super) fn free_destination(&mut self) -> u32 {
        let mut number = self.choices.below(16) as u32;
        while self.pinned >> number & 1 != 0 {
            number = (number + 1) % 16;
        }
        number
    }

    /// What to write where, to make another instruction of a patchable one.
    pub(super) fn replacement(&mut self, patchable: Patchable) -> (u64, Vec<u8>) {
        // The constant is the last four bytes.
        let before = match patchable.kind {
            PatchableKind::Operation => None,
            PatchableKind::Move => Some(if patchable.register < 8 { 1 } else { 2 }),
            PatchableKind::Constant | PatchableKind::Store => Some(patchable.bytes - 4),
        };
        if let Some(before) = before {
            let bytes = self.choices.double_word().to_le_bytes().to_vec();
            return (patchable.address + before, bytes);
        }
        let rex = 0x48 | u8::from(patchable.register >= 8);
        let operation = self.choices.byte() & 7;
        let register = (patchable.register & 7) as u8;
        let bytes = vec![rex, 0x83, 0xc0 | operation << 3 | register, self.choices.byte()];
        (patchable.address, bytes)
    }

    /// A loop in which the host rewrites an instruction that has been executed and will be again.
    pub(super) fn rewritten_loop(&mut self, events: &mut Vec<Event>) {
        let counter = self.counter();
        let times = 2 + self.choices.below(2);
        self.load(counter, times as u64);
        let pinned = self.pinned;
        self.pinned |= 1 << counter;
        let top = self.address();
        let patchable = self.patchable();
        self.quiet_unit();
        for _ in 0..times {
            let (address, bytes) = self.replacement(patchable);
            let write = Action::Write { address: GuestAddress(address), bytes };
            events.push(Event { trigger: Trigger::Halt, actions: vec![write] });
        }
        self.emit(&Instruction::with(Code::Hlt));
        self.count_down(counter, top);
        self.pinned = pinned;
    }

    /// An instruction without control flow, so that the next `hlt` is reached.
    pub(super) fn quiet_unit(&mut self) {
        let depth = std::mem::replace(&mut self.depth, 2);
        self.unit();
        self.depth = depth;
    }

    pub(super) fn second_page(&self) -> u64 {
        self.layout.data() + PAGE_SIZE
    }

    /// The second page of data loses rights for a while.
    pub(super) fn protected(&mut self, events: &mut Vec<Event>) {
        let page = range(self.second_page(), 1);
        let permissions = self.choices.pick(&[Permissions::Read, Permissions::None]);
        let take = Action::Protect { range: page, permissions };
        self.halt(events, vec![take]);
        self.quiet_unit();
        let give = Action::Protect { range: page, permissions: Permissions::ReadWrite };
        self.halt(events, vec![give]);
    }

    /// Other contents at the address of the second page of data, for a while.
    pub(super) fn replaced_page(&mut self, events: &mut Vec<Event>) {
        let place = self.second_page();
        let out = Action::Unmap(range(place, 1));
        let other = Action::Map(mapping(CONSTANTS, place, 1, Permissions::Read));
        self.halt(events, vec![out.clone(), other]);
        self.read_at(place + 0x100);
        self.quiet_unit();
        let own = Action::Map(Mapping {
            offset: PAGE_SIZE,
            ..mapping(DATA, place, 1, Permissions::ReadWrite)
        });
        self.halt(events, vec![out, own]);
        self.read_at(place + 0x108);
    }

    /// `mov r64, [address]`.
    pub(super) fn read_at(&mut self, address: u64) {
        if let Some(template) = self.table.template(Code::Mov_r64_rm64, OperandForm::Memory) {
            let read = self.with_target(template, address);
            self.emit(&read);
        }
    }

    pub(super) fn aliased_data(&mut self, events: &mut Vec<Event>) {
        if self.alias_live {
            return self.halt(events, vec![Action::ExitRequest]);
        }
        let source = range(self.layout.data(), 2);
        let destination = GuestAddress(self.layout.alias());
        self.halt(events, vec![Action::Alias { source, destination }]);
        self.alias_live = true;
        self.read_at(self.layout.alias() + 0x300);
    }

    /// The second page of data is elsewhere for a while.
    pub(super) fn moved_page(&mut self, events: &mut Vec<Event>) {
        let (here, there) = (self.second_page(), self.layout.alias() + 16 * PAGE_SIZE);
        let go = Action::Remap { source: range(here, 1), destination: GuestAddress(there) };
        self.halt(events, vec![go]);
        let offset = self.choices.below(64) as u64 * 8;
        self.read_at(there + offset);
        let back = Action::Remap { source: range(there, 1), destination: GuestAddress(here) };
        self.halt(events, vec![back]);
        self.read_at(here + 0x100);
    }

    /// The code gets a second address, at which the program goes on.
    pub(super) fn aliased_code(&mut self, events: &mut Vec<Event>) {
        if self.relocated {
            return self.halt(events, vec![Action::ExitRequest]);
        }
        let source = range(self.layout.code, self.layout.code_pages() as u64);
        let destination = GuestAddress(self.layout.code + CODE_ALIAS_DISTANCE);
        self.halt(events, vec![Action::Alias { source, destination }]);
        let register = self.free_destination();
        // The move has ten bytes or five, the jump two or three.
        self.relocated = true;
        let place = self.layout.code + CODE_ALIAS_DISTANCE;
        let load = self.address();
        let wide = Register::RAX + register;
        self.emit_made(Instruction::with2(Code::Mov_r64_imm64, wide, u64::MAX));
        self.emit_made(Instruction::with1(Code::Jmp_rm64, wide));
        let goal = place + (self.address() - self.layout.code);
        self.patch(load + 2, 8, goal);
    }

    /// The guest rewrites an instruction behind it or ahead of it in a loop, or the very next one.
    pub(super) fn rewrites_itself(&mut self) {
        if self.choices.chance(96) {
            return self.rewrites_ahead();
        }
        if self.choices.chance(32) {
            return self.rewrites_often();
        }
        let counter = self.counter();
        let times = 2 + self.choices.below(6) as u64;
        self.load(counter, times);
        let pinned = self.pinned;
        self.pinned |= 1 << counter;
        let ahead = self.choices.chance(112);
        let top = self.address();
        self.come_to_the_border(ahead);
        if ahead {
            self.rewrites_ahead();
        } else {
            let patchable = self.patchable();
            self.quiet_unit();
            let code = self.rewriting_code();
            let (address, value) = self.rewriting(patchable, code);
            self.change(code, address, value);
        }
        self.count_down(counter, top);
        self.pinned = pinned;
    }

    /// Emits no-operations, if a few are enough, so that what is to be rewritten, the next instruction or
    /// the one behind a store, begins at the border between two pages of code or lies on both sides.
    pub(super) fn come_to_the_border(&mut self, ahead: bool) {
        let behind = if ahead { STORE_BYTES } else { 0 };
        let border = self.layout.code + PAGE_SIZE;
        let before = self.choices.pick(&[2, 3, 0, 0]);
        let missing = border.wrapping_sub(self.address() + behind + before);
        if self.layout.code_pages() > 1 && missing <= 100 {
            (0..missing).for_each(|_| self.emit(&Instruction::with(Code::Nopd)));
        }
    }

    /// Where the guest writes what it executes at `address`.
    fn as_written(&mut self, address: u64) -> u64 {
        let aliased = self.layout.code_aliased && self.choices.chance(160);
        if aliased { address + CODE_ALIAS_DISTANCE } else { address }
    }

    fn store(&mut self, address: u64, value: u32) {
        self.change(Code::Mov_rm32_imm32, address, value);
    }

    /// `code dword [address], value`, in [`STORE_BYTES`] bytes.
    pub(super) fn change(&mut self, code: Code, address: u64, value: u32) {
        let operand = MemoryOperand::with_base_displ_size(Register::RIP, address as i64, 8);
        self.emit_made(Instruction::with2(code, operand, value));
    }

    /// The guest rewrites an instruction in a loop until an engine may have got used to it, then another one
    /// near it, and does all that again.
    fn rewrites_often(&mut self) {
        let pinned = self.pinned;
        let [outer, inner] = [(); 2].map(|()| {
            let counter = self.counter();
            self.pinned |= 1 << counter;
            counter
        });
        self.load(outer, 2);
        let again = self.address();
        let times = 9 + self.choices.below(12) as u64;
        self.load(inner, times);
        let top = self.address();
        let [first, second] = [(); 2].map(|()| self.patchable());
        let often = if self.choices.chance(128) { (first, second) } else { (second, first) };
        let code = self.choices.pick(&[Code::Add_rm32_imm32, Code::Xor_rm32_imm32]);
        let (address, value) = self.rewriting(often.0, code);
        self.change(code, address, value);
        self.count_down(inner, top);
        let (address, value) = self.rewriting(often.1, Code::Mov_rm32_imm32);
        self.change(Code::Mov_rm32_imm32, address, value);
        self.count_down(outer, again);
        self.pinned = pinned;
    }

    /// What rewrites: an addition writes something else each time, XOR what was there before.
    fn rewriting_code(&mut self) -> Code {
        self.choices.pick(&[Code::Mov_rm32_imm32, Code::Add_rm32_imm32, Code::Xor_rm32_imm32])
    }

    /// Where and with what an instruction of this opcode makes another of a patchable one.
    fn rewriting(&mut self, patchable: Patchable, code: Code) -> (u64, u32) {
        let (address, bytes) = self.replacement(patchable);
        let value = bytes.try_into().map_or(0, u32::from_le_bytes);
        let only_last =
            code != Code::Mov_rm32_imm32 && matches!(patchable.kind, PatchableKind::Operation);
        (self.as_written(address), if only_last { value & 0xff00_0000 } else { value })
    }

    fn rewrites_ahead(&mut self) {
        let here = self.address();
        let code = self.rewriting_code();
        self.change(code, here, 0);
        let end = self.address();
        debug_assert_eq!(end - here, STORE_BYTES);
        if self.choices.chance(128) {
            self.quiet_unit();
        }
        let patchable = self.patchable();
        let (address, value) = self.rewriting(patchable, code);
        // It ends with its displacement and its constant.
        self.patch(end - 8, 4, address.wrapping_sub(end));
        self.patch(end - 4, 4, u64::from(value));
    }
}

/// Bytes of `mov dword [rip + displacement], immediate`, and of `add` and `xor`.
const STORE_BYTES: u64 = 10;

/// Instructions with four bytes of constant, of 32 and 64 bits.
const CONSTANT_OPERATIONS: [(Code, Code); 11] = [
    (Code::Add_rm32_imm32, Code::Add_rm64_imm32),
    (Code::Or_rm32_imm32, Code::Or_rm64_imm32),
    (Code::Adc_rm32_imm32, Code::Adc_rm64_imm32),
    (Code::Sbb_rm32_imm32, Code::Sbb_rm64_imm32),
    (Code::And_rm32_imm32, Code::And_rm64_imm32),
    (Code::Sub_rm32_imm32, Code::Sub_rm64_imm32),
    (Code::Xor_rm32_imm32, Code::Xor_rm64_imm32),
    (Code::Cmp_rm32_imm32, Code::Cmp_rm64_imm32),
    (Code::Test_rm32_imm32, Code::Test_rm64_imm32),
    (Code::Mov_rm32_imm32, Code::Mov_rm64_imm32),
    (Code::Imul_r32_rm32_imm32, Code::Imul_r64_rm64_imm32),
];

/// What can be made another instruction.
#[derive(Clone, Copy, Debug)]
enum PatchableKind {
    /// `op r64, imm8`.
    Operation,
    /// `mov r32, imm32`.
    Move,
    /// Any with four bytes of constant.
    Constant,
    /// `mov dword [rip + displacement], imm32`.
    Store,
}

/// An instruction of which another of the same length can be made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patchable {
    pub address: u64,
    kind: PatchableKind,
    register: u32,
    bytes: u64,
}

/// The layout of a case with events: one in which every destination is free.
pub(super) fn eventful_layout(layout: Layout) -> Layout {
    Layout { kind: LayoutKind::Standard, code: 0x1_4000_0000, ..layout }
}

/// The layout of a case that writes its own code: at times through another address, at times across
/// pages.
pub(super) fn self_modifying_layout(choices: &mut Choices, layout: Layout) -> Layout {
    let layout = Layout { code_writable: true, ..layout };
    match choices.byte() {
        0..=159 => layout,
        160..=207 => Layout { kind: LayoutKind::Straddle, code: 0x1_4000_0000, ..layout },
        208.. => Layout { code_aliased: layout.kind != LayoutKind::High, ..layout },
    }
}
