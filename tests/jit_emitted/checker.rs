//! [`check`]: an abstract interpreter of emitted code, which knows nothing of the translator but
//! the vCPU's block. It follows values through a block and complains of every instruction that
//! could read or write host memory outside the window and the block, leave the code cache by another way
//! than a stub or the jump cache, or give the guest an address of the host's.

use std::collections::BTreeMap;

use iced_x86::{
    Code, CpuidFeature, Decoder, DecoderOptions, EncodingKind, FlowControl, Instruction,
    InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register,
};
use tregion::translate::{
    Class, Extended, GUARD_BYTES, Leave, ProbeShape, Stub, TranslatedBlock, class,
};

use crate::accesses::{is_end_of_note, is_note};
use crate::fields;
use crate::strings::{is_relocation, is_repeated};
use crate::symbolic::{Form, Origin, State, Symbols};

/// Bytes between an access and the window, at most: what the guards have room for.
pub(crate) const MOST_DISTANCE: u64 = GUARD_BYTES - 4096;

/// What is wrong with an instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Complaint {
    pub(crate) offset: u32,
    pub(crate) what: String,
}

/// What was checked.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) instructions: u64,
    pub(crate) window_accesses: u64,
    pub(crate) block_accesses: u64,
    pub(crate) probes: u64,
    pub(crate) strings: u64,
    pub(crate) exits: u64,
    pub(crate) announcements: u64,
    pub(crate) observed: u64,
    pub(crate) notes: u64,
    pub(crate) loops: u64,
    /// What is known of registers at the start of each pass.
    pub(crate) facts_of_loops: u64,
}

impl Figures {
    pub(crate) fn add(&mut self, other: &Self) {
        self.instructions += other.instructions;
        self.window_accesses += other.window_accesses;
        self.block_accesses += other.block_accesses;
        self.probes += other.probes;
        self.strings += other.strings;
        self.exits += other.exits;
        self.announcements += other.announcements;
        self.observed += other.observed;
        self.notes += other.notes;
        self.loops += other.loops;
        self.facts_of_loops += other.facts_of_loops;
    }
}

pub(crate) const R14: usize = 14;

/// See [`check`].
pub(crate) struct Checker<'a> {
    pub(crate) block: &'a TranslatedBlock<'a>,
    pub(crate) window_bits: u32,
    pub(crate) shape: ProbeShape,
    pub(crate) code: Vec<Instruction>,
    pub(crate) symbols: Symbols,
    pub(crate) state: State,
    pub(crate) information: InstructionInfoFactory,
    /// States that jumps bring to offsets further on.
    pub(crate) arriving: BTreeMap<u32, State>,
    /// Offset of the first instruction of the loop in hand, and the states that come back to it.
    pub(crate) head: Option<u64>,
    pub(crate) returning: Vec<State>,
    /// Where a note is being made for a trace, and how much of it was.
    pub(crate) noted: Option<(Form, u64)>,
    pub(crate) figures: Figures,
    pub(crate) complaints: Vec<Complaint>,
}

/// Everything that is wrong with a block translated for a window of 2^`window_bits` bytes.
pub(crate) fn check(block: &TranslatedBlock<'_>, window_bits: u32) -> (Vec<Complaint>, Figures) {
    let code = decode(block.code);
    let mut symbols = Symbols::default();
    let state = State::new(&mut symbols);
    let mut checker = Checker {
        block,
        window_bits,
        shape: ProbeShape::new(window_bits),
        code,
        symbols,
        state,
        information: InstructionInfoFactory::new(),
        arriving: BTreeMap::new(),
        head: None,
        returning: Vec::new(),
        noted: None,
        figures: Figures::default(),
        complaints: Vec::new(),
    };
    checker.run();
    (checker.complaints, checker.figures)
}

/// Host code, an instruction after the other.
pub(crate) fn decode(code: &[u8]) -> Vec<Instruction> {
    Decoder::with_ip(64, code, 0, DecoderOptions::NONE).iter().collect()
}

impl Checker<'_> {
    fn run(&mut self) {
        self.check_exits();
        self.check_extended();
        let mut alive = true;
        let mut index = 0;
        while index < self.code.len() {
            self.arrive(index, alive);
            (index, alive) = match self.end_of_loop(index) {
                Some(end) => (end + 1, self.follow_loop(index, end)),
                None => (index + 1, self.instruction(index)),
            };
        }
        if alive {
            self.complaints.push(Complaint {
                offset: self.block.code.len() as u32,
                what: "execution runs off the end".to_owned(),
            });
        }
    }

    /// Joins what jumps bring to an instruction with what comes from the one before it.
    pub(crate) fn arrive(&mut self, index: usize, alive: bool) {
        let instruction = self.code[index];
        match (self.arriving.remove(&(instruction.ip() as u32)), alive) {
            (Some(arriving), true) => self.state = self.state.join(&arriving, &mut self.symbols),
            (Some(arriving), false) => self.state = arriving,
            (None, true) => {}
            (None, false) => {
                self.complain(&instruction, "nothing leads here");
                self.state = State::new(&mut self.symbols);
            }
        }
    }

    pub(crate) fn complain(&mut self, instruction: &Instruction, what: impl Into<String>) {
        let what = format!("{instruction}: {}", what.into());
        self.complaints.push(Complaint { offset: instruction.ip() as u32, what });
    }

    /// Checks one instruction and follows it; whether execution goes on behind it.
    pub(crate) fn instruction(&mut self, index: usize) -> bool {
        let instruction = &self.code[index].clone();
        self.figures.instructions += 1;
        if let Some(what) = forbidden(instruction) {
            self.complain(instruction, what);
        }
        if matches!(instruction.flow_control(), FlowControl::Next) {
            self.stack_pointer(index, instruction);
            self.memory(index, instruction);
            self.host_values(index, instruction);
            self.follow(instruction);
            return true;
        }
        self.transfer(index, instruction)
    }

    /// Transfers of control.
    fn transfer(&mut self, index: usize, instruction: &Instruction) -> bool {
        if let Some(stub) = self.stub(instruction) {
            return self.leave(index, instruction, stub);
        }
        match instruction.flow_control() {
            FlowControl::UnconditionalBranch => {
                self.jump(instruction);
                false
            }
            FlowControl::ConditionalBranch => {
                self.follow(instruction);
                self.jump(instruction);
                true
            }
            FlowControl::IndirectBranch => {
                let scaled = instruction.memory_base() == Register::RSP
                    && instruction.memory_index() == Register::R14
                    && instruction.memory_index_scale() == 8
                    && instruction.memory_displacement64() == fields::JUMP_HOSTS as u64
                    && !instruction.has_segment_prefix();
                let low = matches!(
                    self.symbols.origin_of(&self.state.registers[R14]),
                    Some(Origin::Low16(_))
                );
                if instruction.code() != Code::Jmp_rm64 || !scaled || !low {
                    self.complain(instruction, "an indirect jump past the jump cache");
                }
                false
            }
            _ => {
                self.complain(instruction, "a transfer of control that no block has");
                false
            }
        }
    }

    /// The stub that an instruction leads to.
    fn stub(&self, instruction: &Instruction) -> Option<Stub> {
        let displacement = u32::try_from(instruction.next_ip()).ok()?.checked_sub(4)?;
        let mut relocations = self.block.relocations.iter();
        relocations.find(|it| it.offset == displacement).map(|relocation| relocation.stub)
    }

    /// A stub is reached; whether execution goes on behind it.
    fn leave(&mut self, index: usize, instruction: &Instruction, stub: Stub) -> bool {
        self.figures.exits += 1;
        let fits = match stub.is_called() {
            true => instruction.code() == Code::Call_rel32_64,
            false => self.is_told_its_place(index),
        };
        if !fits {
            self.complain(instruction, "a stub does not get to know where it is left to");
        }
        match stub {
            Stub::Indirect => self.come_back(),
            Stub::Observed => {
                // A word may have been loaded to any register.
                self.state = State::new(&mut self.symbols);
                self.figures.observed += 1;
                true
            }
            Stub::Arrival | Stub::Instruction => {
                // Whoever was told may have changed any register.
                self.state = State::new(&mut self.symbols);
                self.figures.announcements += 1;
                true
            }
            _ => false,
        }
    }

    /// Whether there is a jump to a stub, and the address behind it is in R14.
    fn is_told_its_place(&self, index: usize) -> bool {
        let before = index.checked_sub(1).and_then(|index| self.code.get(index));
        let (Some(before), Some(jump)) = (before, self.code.get(index)) else { return false };
        jump.code() == Code::Jmp_rel32_64
            && self.stub(jump).is_some()
            && takes_own_address(before)
            && before.op0_register() == Register::R14
            && before.memory_displacement64() == jump.next_ip()
    }

    /// The run loop puts everything back but R14, and RCX into the first spill slot.
    fn come_back(&mut self) -> bool {
        self.state.registers[R14] = self.symbols.unknown();
        self.state.slots.insert(fields::FIRST_SPILL, self.state.registers[1].clone());
        true
    }

    fn jump(&mut self, instruction: &Instruction) {
        let target = instruction.near_branch_target();
        if self.head == Some(target) {
            return self.returning.push(self.state.clone());
        }
        let boundary = self.code.binary_search_by_key(&target, Instruction::ip).is_ok();
        if !boundary || target < instruction.next_ip() {
            return self.complain(instruction, "a jump to no instruction further on in the block");
        }
        let target = target as u32;
        let joined = match self.arriving.remove(&target) {
            Some(other) => self.state.join(&other, &mut self.symbols),
            None => self.state.clone(),
        };
        self.arriving.insert(target, joined);
    }

    /// The block says what it needs of the registers that are loaded only where they are needed.
    fn check_extended(&mut self) {
        for instruction in &self.code {
            let used = self.information.info(instruction).used_registers();
            let registers = used.iter().map(|used| match used.register() {
                xmm if xmm.is_xmm() && xmm.number() < 16 => Extended::Sse,
                other if other.is_vector_register() || other.is_k() => Extended::All,
                other if other.is_mm() || other.is_st() => Extended::All,
                _ => Extended::Nothing,
            });
            let features = instruction.cpuid_features();
            let vex = instruction.encoding() != EncodingKind::Legacy;
            let vectors = registers.clone().any(|needed| needed != Extended::Nothing);
            let all = features.contains(&CpuidFeature::FPU) || vex && vectors;
            let needed = if all { Extended::All } else { registers.max().unwrap_or_default() };
            if needed > self.block.extended {
                let what = format!("{instruction} needs {needed:?}");
                self.complaints.push(Complaint { offset: instruction.ip() as u32, what });
            }
        }
    }

    /// Every exit leads to a stub and points behind that, and what may be patched is a jump to its call.
    fn check_exits(&mut self) {
        let mut wrong = Vec::new();
        for exit in self.block.exits {
            let leaves = self.code.iter().find(|it| it.next_ip() == u64::from(exit.offset));
            if leaves.is_none_or(|leaves| self.stub(leaves).is_none()) {
                wrong.push((exit.offset, "an exit that leads to no stub"));
            }
            let Leave::Direct { patch, .. } = exit.leave else { continue };
            let jump = self.code.iter().find(|it| it.next_ip() == u64::from(patch) + 4);
            let fits = jump.is_some_and(|jump| {
                (jump.code() == Code::Jmp_rel32_64 || jump.is_jcc_near())
                    && jump.near_branch_target() == u64::from(exit.offset) - 5
            });
            if !fits || patch % 16 > 12 {
                wrong.push((exit.offset, "a patch that is no jump to its exit"));
            }
        }
        let complaints =
            wrong.into_iter().map(|(offset, what)| Complaint { offset, what: what.to_owned() });
        self.complaints.extend(complaints);
    }

    /// RSP changes in pairs only, and is no operand.
    fn stack_pointer(&mut self, index: usize, instruction: &Instruction) {
        let next = self.code.get(index + 1);
        let before = index.checked_sub(1).map(|index| &self.code[index]);
        let is = |other: Option<&Instruction>, code, register| {
            other.is_some_and(|other| {
                other.code() == code
                    && (register == Register::None || other.op0_register() == register)
            })
        };
        let paired = match instruction.code() {
            Code::Pushfq => is(next, Code::Pop_r64, Register::R14),
            Code::Pop_r64 => {
                instruction.op0_register() == Register::R14
                    && is(before, Code::Pushfq, Register::None)
            }
            Code::Push_r64 => {
                instruction.op0_register() == Register::R14 && is(next, Code::Popfq, Register::None)
            }
            Code::Popfq => is(before, Code::Push_r64, Register::R14),
            _ => false,
        };
        let is_sp = |register: Register| register.full_register() == Register::RSP;
        let named = (0..instruction.op_count()).any(|operand| {
            instruction.op_kind(operand) == OpKind::Register
                && is_sp(instruction.op_register(operand))
        });
        let address = instruction.mnemonic() == Mnemonic::Lea
            && (is_sp(instruction.memory_base()) || is_sp(instruction.memory_index()));
        let used = self.information.info(instruction).used_registers();
        let written = used.iter().any(|used| is_sp(used.register()) && writes(used.access()));
        if !paired && (written || named || address) {
            self.complain(instruction, "RSP is the block's");
        }
    }

    /// Addresses of the host's stay in R14, or in RSI and RDI for one string instruction.
    fn host_values(&mut self, index: usize, instruction: &Instruction) {
        let relocates = is_relocation(instruction);
        if is_repeated(instruction) && !self.is_behind_a_poll(index) {
            self.complain(instruction, "repeats without a poll right before it");
        }
        let polls =
            instruction.code() == Code::Mov_r32_rm32 && instruction.memory_base() == Register::R14;
        let notes = is_note(instruction)
            || is_end_of_note(self.code.get(index + 1))
            || is_end_of_note(Some(instruction));
        let used = self.information.info(instruction).used_registers().to_vec();
        for used in used.iter().filter(|used| used.register().is_gpr()) {
            let number = used.register().full_register().number();
            let reads = !matches!(
                used.access(),
                OpAccess::Write | OpAccess::CondWrite | OpAccess::None | OpAccess::NoMemAccess
            );
            let allowed = relocates || polls || notes || self.is_relocated(index, number);
            if reads && number != 4 && self.is_host(&self.state.registers[number]) && !allowed {
                self.complain(instruction, "reads an address of the host's");
            }
        }
        if takes_own_address(instruction) && !self.is_told_its_place(index + 1) {
            self.complain(instruction, "takes an address of the host's code");
        }
        let loads = self.loaded_slot(instruction).is_some_and(fields::is_host_address);
        if loads && instruction.op0_register() != Register::R14 {
            self.complain(instruction, "an address of the host's goes to a guest's register");
        }
    }

    pub(crate) fn is_host(&self, form: &Form) -> bool {
        form.symbols().any(|symbol| match self.symbols.origin(symbol) {
            Origin::Slot(offset) => fields::is_host_address(*offset),
            Origin::Relocated(_) => true,
            _ => false,
        })
    }

    fn is_behind_a_poll(&self, index: usize) -> bool {
        let Some(first) = index.checked_sub(2) else { return false };
        let [load, poll] = [self.code[first], self.code[first + 1]];
        self.loaded_slot(&load) == Some(fields::POLL)
            && load.op0_register() == Register::R14
            && poll.code() == Code::Mov_r32_rm32
            && poll.op0_register() == Register::R14D
            && poll.memory_base() == Register::R14
    }

    /// Which word of the block a 64-bit load takes.
    pub(crate) fn loaded_slot(&self, instruction: &Instruction) -> Option<i32> {
        let load = instruction.code() == Code::Mov_r64_rm64 && is_plain_slot(instruction);
        load.then(|| instruction.memory_displacement64() as i32)
    }
}

/// `lea register, [rip + constant]`
fn takes_own_address(instruction: &Instruction) -> bool {
    instruction.mnemonic() == Mnemonic::Lea && instruction.is_ip_rel_memory_operand()
}

/// `[rsp + constant]`
pub(crate) fn is_plain_slot(instruction: &Instruction) -> bool {
    instruction.op_kinds().any(|kind| kind == OpKind::Memory)
        && instruction.memory_base() == Register::RSP
        && instruction.memory_index() == Register::None
        && !matches!(instruction.memory_segment(), Register::FS | Register::GS)
}

pub(crate) fn writes(access: OpAccess) -> bool {
    !matches!(access, OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess)
}

/// Why an instruction may not be in emitted code, whatever its operands.
fn forbidden(instruction: &Instruction) -> Option<&'static str> {
    use Mnemonic as M;
    if instruction.is_invalid() {
        return Some("no instruction");
    }
    if instruction.is_privileged() {
        return Some("privileged");
    }
    let segment = (0..instruction.op_count()).any(|operand| {
        instruction.op_kind(operand) == OpKind::Register
            && instruction.op_register(operand).is_segment_register()
    });
    let system = matches!(
        instruction.mnemonic(),
        M::Syscall
            | M::Sysenter
            | M::Int
            | M::Int1
            | M::Int3
            | M::Hlt
            | M::Cpuid
            | M::Xbegin
            | M::Wrfsbase
            | M::Wrgsbase
            | M::Rdfsbase
            | M::Rdgsbase
            | M::Swapgs
            | M::Wrpkru
            | M::Rdpkru
            | M::Xsave
            | M::Xsave64
            | M::Xsavec
            | M::Xsavec64
            | M::Xsaveopt
            | M::Xsaveopt64
            | M::Xrstor
            | M::Xrstor64
            | M::Lss
            | M::Lfs
            | M::Lgs
            | M::Enter
            | M::Leave
            | M::Iret
            | M::Iretd
            | M::Iretq
            | M::Retf
            | M::Monitor
            | M::Umonitor
            | M::Enqcmd
            | M::Movdir64b
            | M::Clzero
            | M::Rdpmc
            | M::Xsetbv
    );
    let known = class(instruction.code()) != Class::Unsupported;
    match (system || segment, instruction.is_vsib(), known) {
        (true, ..) => Some("a system instruction"),
        (_, true, _) => Some("many addresses at once"),
        (.., false) => Some("outside the whitelist"),
        _ => None,
    }
}
