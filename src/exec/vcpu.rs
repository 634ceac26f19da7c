//! [`Vcpu`]: one processor's registers, and the run loop.
//!
//! ```text
//! loop
//!   act on a request to leave; stop at a breakpoint, or when the budget is used up
//!   if only one instruction may run: step (see `step`)
//!   else find or translate the block at RIP and enter it
//!   interpret how the code cache was left: chain, resolve an indirect jump, a fault, …
//! ```

use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::io;

use iced_x86::Register;

use super::core::Core;
use super::exit::{Exit, vector};
use super::kick::Kick;
use super::vcpu_memory::VcpuMemory;
use crate::code::Key;
use crate::code::sync::{Arc, Mutex, PoisonError};
use crate::guest::{Flag, GuestAddress, PKRU_DEFAULT, RFLAGS_ALWAYS_ONE, RFLAGS_USER, Selectors, State, Xstate};
use crate::translate::{Leave, Purpose, Recovery, Stub, VcpuBlock, X87Opcode, is_canonical};

/// Budgets below this are stepped: they may end inside of any block.
const STEPPED: u64 = 8;

/// Bits of RFLAGS that user code can read but not change: the one that is always set, and IF.
const FIXED: u64 = RFLAGS_ALWAYS_ONE | Flag::IF.mask();

/// What a vCPU shares with the machine it belongs to.
pub(super) type SharedCore = Arc<Mutex<Core>>;

/// One processor of a machine. It may move between threads; guest code runs in the thread that
/// calls [`Vcpu::run`].
#[derive(Debug)]
pub struct Vcpu {
    core: SharedCore,
    pub(super) memory: VcpuMemory,
    xstate: Xstate,
    kick: Kick,
    pub(super) pc: GuestAddress,
    /// TF of the guest, which the host's RFLAGS never has.
    pub(super) trap: bool,
    pub(super) selectors: Selectors,
    pub(super) pkru: u32,
    /// Entries of the jump cache that are in use …
    filled: Vec<u16>,
    /// … and the core's epoch when they were known to be right.
    epoch: u64,
    /// Instructions executed since the vCPU was made, as far as they were counted.
    executed: u64,
    pub(super) bytes: Vec<u8>,
    /// The x87 unit notes addresses of operands only of instructions with an unmasked exception.
    notes_exceptions_only: bool,
}

/// How a piece of a run ended.
pub(super) enum End {
    /// The guest goes on at `pc`.
    Go,
    /// The instruction at `pc` is to be stepped.
    Step,
    Exit(Exit),
}

/// A fault of translated code, with the guest's registers in place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fault {
    pub(super) purpose: Purpose,
    pub(super) vector: u8,
    pub(super) error: u32,
    /// CR2.
    pub(super) address: u64,
}

impl Vcpu {
    pub(super) fn new(core: SharedCore, window: u64) -> io::Result<Self> {
        let xstate = Xstate::of_this_host();
        let mut memory = VcpuMemory::new()?;
        let quiet = memory.quiet_address();
        let block = memory.block_mut();
        block.window = window;
        block.minus_window = window.wrapping_neg();
        block.components = xstate.components() & !Xstate::PKRU_COMPONENT;
        block.poll = quiet;
        let kick = Kick::new(&memory);
        let mut vcpu = Self {
            core,
            memory,
            xstate,
            kick,
            pc: GuestAddress(0),
            trap: false,
            selectors: Selectors::default(),
            pkru: PKRU_DEFAULT,
            filled: Vec::new(),
            epoch: 0,
            executed: 0,
            bytes: Vec::new(),
            notes_exceptions_only: notes_exceptions_only(),
        };
        vcpu.reset_jump_cache();
        vcpu.set_state(&State::default());
        Ok(vcpu)
    }

    /// All registers.
    #[must_use]
    pub fn state(&self) -> State {
        let block = self.memory.block();
        let mut state = State {
            gpr: block.gpr,
            rip: self.pc.0,
            rflags: self.rflags(),
            fs_base: block.fs_base,
            gs_base: block.gs_base,
            selectors: self.selectors,
            ..State::default()
        };
        self.xstate.load(&block.xsave.0, &mut state);
        state.pkru = self.pkru;
        state
    }

    /// Sets all registers. Bits of RFLAGS that user code cannot change and bits of MXCSR that the
    /// processor does not have are left out.
    pub fn set_state(&mut self, state: &State) {
        self.pc = GuestAddress(state.rip);
        self.selectors = state.selectors;
        self.pkru = state.pkru;
        let xstate = self.xstate;
        let block = self.memory.block_mut();
        block.gpr = state.gpr;
        block.fs_base = state.fs_base;
        block.gs_base = state.gs_base;
        xstate.store(state, &mut block.xsave.0);
        let mxcsr = state.mxcsr & 0xffff;
        block.xsave.0[24..28].copy_from_slice(&mxcsr.to_le_bytes());
        self.set_rflags(state.rflags);
    }

    /// A general-purpose register, by its encoding number, 0 to 15.
    #[must_use]
    pub fn gpr(&self, number: usize) -> u64 {
        self.memory.block().gpr[number]
    }

    /// Sets a general-purpose register.
    pub fn set_gpr(&mut self, number: usize, value: u64) {
        self.memory.block_mut().gpr[number] = value;
    }

    /// The address of the next instruction.
    #[must_use]
    pub fn rip(&self) -> GuestAddress {
        self.pc
    }

    /// Sets the address of the next instruction.
    pub fn set_rip(&mut self, rip: GuestAddress) {
        self.pc = rip;
    }

    /// RFLAGS.
    #[must_use]
    pub fn rflags(&self) -> u64 {
        let trap = if self.trap { Flag::TF.mask() } else { 0 };
        self.memory.block().rflags & RFLAGS_USER | FIXED | trap
    }

    /// Sets the bits of RFLAGS that user code can change.
    pub fn set_rflags(&mut self, rflags: u64) {
        self.trap = rflags & Flag::TF.mask() != 0;
        self.memory.block_mut().rflags = rflags & RFLAGS_USER & !Flag::TF.mask() | FIXED;
    }

    pub(super) fn xstate(&self) -> &Xstate {
        &self.xstate
    }

    /// Something that makes this vCPU leave guest code, from any thread.
    #[must_use]
    pub fn kick(&self) -> Kick {
        self.kick.clone()
    }

    /// Instructions executed by runs with a budget.
    #[must_use]
    pub fn executed(&self) -> u64 {
        self.executed
    }

    /// Runs guest code until it exits, at most `budget` instructions if one is given. A repeated
    /// string instruction counts once, when it is done. A breakpoint at the first instruction is
    /// passed.
    pub fn run(&mut self, budget: Option<u64>) -> Exit {
        let shared = Arc::clone(&self.core);
        let mut core = shared.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left = budget;
        let mut first = true;
        let mut step = false;
        loop {
            if self.kick.taken(&mut self.memory) {
                return Exit::Requested;
            }
            if left == Some(0) {
                return Exit::Budget;
            }
            let stop = !core.stops.is_empty() && core.stops.binary_search(&self.pc).is_ok();
            if stop && !first {
                return Exit::Breakpoint;
            }
            let single = step || stop || self.trap || left.is_some_and(|left| left < STEPPED);
            first = false;
            let end = if single {
                self.step_counted(&mut core, &mut left)
            } else {
                self.run_blocks(&mut core, &mut left)
            };
            step = match end {
                End::Go => false,
                End::Step => true,
                End::Exit(exit) => return exit,
            };
        }
    }

    fn step_counted(&mut self, core: &mut Core, left: &mut Option<u64>) -> End {
        let trap = self.trap;
        let end = self.step(core);
        let done = match &end {
            Stepped::Done => true,
            Stepped::Again => false,
            Stepped::Exit(exit) => is_counted(exit),
        };
        if let Some(left) = left.as_mut().filter(|_| done) {
            *left -= 1;
            self.executed += 1;
        }
        match end {
            Stepped::Exit(exit) => End::Exit(exit),
            Stepped::Done | Stepped::Again if trap => End::Exit(Exit::exception(vector::DB)),
            Stepped::Done => End::Go,
            Stepped::Again => End::Step,
        }
    }

    /// Enters the block at `pc` and follows chained blocks until something is left to do.
    fn run_blocks(&mut self, core: &mut Core, left: &mut Option<u64>) -> End {
        if self.epoch != core.epoch {
            self.reset_jump_cache();
            self.epoch = core.epoch;
        }
        let counted = left.is_some();
        let Some(host) = core.find_or_translate(Key { pc: self.pc, counted }) else {
            return End::Step;
        };
        if self.epoch != core.epoch {
            return End::Go;
        }
        let block = self.memory.block_mut();
        block.entry = host;
        block.budget = left.unwrap_or(0) as i64;
        let end = loop {
            self.enter(core);
            let block = self.memory.block();
            let kind = Stub::ALL[block.exit_kind as usize];
            break match kind {
                Stub::Fault => self.faulted(core),
                Stub::Target => {
                    self.pc = GuestAddress(block.target);
                    self.drop_target(block.target);
                    End::Go
                }
                Stub::Direct | Stub::Indirect | Stub::Next | Stub::Changed => {
                    match self.left(core, counted) {
                        None => continue,
                        Some(end) => end,
                    }
                }
            };
        };
        if let Some(left) = left {
            let now = self.memory.block().budget as u64;
            self.executed += *left - now;
            *left = now;
        }
        end
    }

    /// Interprets a call of a stub. Nothing to report if `block.entry` is where to go on.
    fn left(&mut self, core: &mut Core, counted: bool) -> Option<End> {
        let address = self.memory.block().exit_address;
        let Some(located) = core.cache.locate(address - 1) else {
            return Some(End::Exit(lost("a way out of the code cache is not known")));
        };
        let (host, pc) = (core.cache.arena().address(located.block.offset), located.block.key.pc);
        let translated = &located.block.translated;
        let Some(exit) = translated.exit(located.offset + 1).copied() else {
            return Some(End::Exit(lost("a way out of a block is not known")));
        };
        match exit.leave {
            Leave::Next { target } => {
                self.pc = target;
                Some(End::Go)
            }
            Leave::Assist { at } => {
                let done = translated.side_entry(exit.offset - 1).map_or(0, |entry| entry.index);
                let refund = i64::from(translated.instructions - done);
                if counted {
                    self.memory.block_mut().budget += refund;
                }
                self.pc = at;
                Some(End::Step)
            }
            Leave::Changed => {
                core.forget_block(located.block.key);
                self.pc = pc;
                Some(End::Go)
            }
            Leave::Direct { target, patch } => {
                self.pc = target;
                if self.kick.is_pending() {
                    return Some(End::Go);
                }
                let epoch = core.epoch;
                let Some(next) = core.find_or_translate(Key { pc: target, counted }) else {
                    return Some(End::Go);
                };
                if core.epoch != epoch {
                    return Some(End::Go);
                }
                core.cache.chain(host, patch, next);
                self.memory.block_mut().entry = next;
                None
            }
            Leave::Indirect { branch } => self.resolve(core, branch, counted),
        }
    }

    /// Puts the target of an indirect branch into the jump cache and goes on behind the lookup.
    fn resolve(&mut self, core: &mut Core, branch: GuestAddress, counted: bool) -> Option<End> {
        let block = self.memory.block();
        let (target, resume) = (block.target, block.exit_address);
        if !is_canonical(target) {
            self.pc = branch;
            return Some(End::Step);
        }
        let epoch = core.epoch;
        let key = Key { pc: GuestAddress(target), counted };
        let stop = core.stops.binary_search(&key.pc).is_ok() || self.kick.is_pending();
        let found = if stop { None } else { core.find_or_translate(key) };
        if core.epoch != epoch {
            // The branch itself may be gone.
            self.pc = branch;
            return Some(End::Step);
        }
        let host = found.unwrap_or_else(|| core.cache.stub(Stub::Target));
        self.fill_target(target, host);
        let block = self.memory.block_mut();
        block.entry = resume;
        block.spill[0] = block.gpr[1];
        None
    }

    fn fill_target(&mut self, target: u64, host: u64) {
        let index = target as u16;
        let block = self.memory.block_mut();
        block.jump_tags[usize::from(index)] = target.wrapping_neg();
        block.jump_hosts[usize::from(index)] = host;
        self.filled.push(index);
    }

    fn drop_target(&mut self, target: u64) {
        clear_entry(self.memory.block_mut(), target as u16);
    }

    /// Empties the jump cache.
    fn reset_jump_cache(&mut self) {
        let block = self.memory.block_mut();
        for index in self.filled.drain(..) {
            clear_entry(block, index);
        }
        // The zeroed entry for addresses whose low bits are zero would match address 0.
        clear_entry(block, 0);
    }

    /// Enters translated code at `block.entry`.
    pub(super) fn enter(&mut self, core: &mut Core) {
        self.memory.enter(core);
        self.fix_instruction_pointer(core);
    }

    /// The x87 unit notes the address of its last instruction, which is the host's: makes it the
    /// guest's.
    fn fix_instruction_pointer(&mut self, core: &Core) {
        let host = self.x87_instruction_pointer();
        if core.cache.arena().offset(host).is_none() {
            return;
        }
        // Code that is executed once is not in the table: `step` knows what it was.
        let Some(located) = core.cache.locate(host) else { return };
        let translated = &located.block.translated;
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
        if pending && opcode.host == noted {
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
    fn faulted(&mut self, core: &mut Core) -> End {
        let host = self.memory.block().fault_pc;
        let Some(located) = core.cache.locate(host) else {
            return End::Exit(lost("a fault is not in a block"));
        };
        let translated = &located.block.translated;
        let Some(entry) = translated.side_entry(located.offset).copied() else {
            return End::Exit(lost("a fault is not in the side table"));
        };
        let refund = translated.instructions - entry.index;
        let counted = located.block.key.counted;
        self.pc = located.block.key.pc.wrapping_add(u64::from(entry.guest));
        self.recover(entry.recovery);
        if counted {
            self.memory.block_mut().budget += i64::from(refund);
        }
        let fault = self.fault(entry.recovery.purpose);
        self.interpret(core, fault)
    }

    /// Puts registers that were borrowed back in place.
    pub(super) fn recover(&mut self, recovery: Recovery) {
        let block = self.memory.block_mut();
        for (slot, register) in recovery.spilled.into_iter().enumerate() {
            if let Some(register) = register {
                block.gpr[usize::from(register)] = block.spill[slot];
            }
        }
        if recovery.rdi_relocated {
            block.gpr[7] = block.gpr[7].wrapping_sub(block.window);
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

/// How a single step ended.
pub(super) enum Stepped {
    /// The instruction is done.
    Done,
    /// It is not, and is to be stepped again: an iteration of it is done, or what was in its way is
    /// gone.
    Again,
    Exit(Exit),
}

/// Whether the instruction that ended so counts as executed.
fn is_counted(exit: &Exit) -> bool {
    matches!(exit, Exit::Halt | Exit::SystemCall | Exit::LegacySystemCall)
}

/// CPUID leaf 7, FDP_EXCPTN_ONLY (Intel SDM volume 1, section 8.1.8).
fn notes_exceptions_only() -> bool {
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).ebx >> 6 & 1 != 0
}

fn clear_entry(block: &mut VcpuBlock, index: u16) {
    let entry = &mut block.jump_tags[usize::from(index)];
    // No address has this tag and this index: the negative of the tag has other low bits.
    *entry = (u64::from(index) ^ 1).wrapping_neg();
}

/// A state that cannot be: an error of this engine.
pub(super) fn lost(what: &str) -> Exit {
    Exit::Host { what: what.to_owned() }
}
