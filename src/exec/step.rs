//! One instruction at a time: those that blocks leave to the run loop, those that a fault stopped,
//! and all of them while TF is set or a budget ends.
//!
//! An instruction that is its own translation is translated alone and run once. If its memory
//! cannot be reached in the window, the operand is fetched into the vCPU's slot, the instruction runs
//! on the slot, and the operand is stored back (the *bounce*). Everything else is executed by
//! `assist`.

use iced_x86::{Code, DecoderError, FlowControl, Instruction, Register};

use super::access::{Access, page_fault};
use super::core::Core;
use super::exit::{Exit, vector};
use super::length::{Extent, MOST_BYTES};
use super::shared::Locked;
use super::vcpu::{ENTRIES_UNTIL_A_LOOK, End, Fault, Stepped, Vcpu, lost};
use crate::guest::{Flag, GuestAddress, PAGE_SIZE, decoder, memory_bytes, with_ignored_bits};
use crate::memory::WriteFault;
use crate::translate::{Class, Extended, Purpose, Stub, class, class_of, is_canonical};

/// Why an instruction is not done.
pub(super) enum Undone {
    /// It is to be executed again.
    Again,
    Exit(Exit),
}

impl From<Exit> for Undone {
    fn from(exit: Exit) -> Self {
        Self::Exit(exit)
    }
}

/// What came of running an instruction by itself.
pub(super) enum Single {
    Done,
    Fault(Fault),
    /// It has no translation of its own.
    None,
}

impl Vcpu {
    /// Executes the instruction at RIP.
    pub(super) fn step(&mut self, core: &mut Locked<'_>) -> Stepped {
        self.falls_to = None;
        let instruction = match self.fetch(core) {
            Ok(instruction) => instruction,
            Err(exit) => return Stepped::Exit(exit),
        };
        let falls = instruction.flow_control() == FlowControl::Next;
        self.falls_to = falls.then(|| GuestAddress(instruction.next_ip()));
        self.shadow = false;
        self.note_site(core, &instruction);
        match self.execute(core, &instruction) {
            Ok(()) => Stepped::Done,
            Err(Undone::Again) => Stepped::Again,
            Err(Undone::Exit(exit)) => Stepped::Exit(exit),
        }
    }

    /// Decodes the instruction at RIP; its bytes stay in `self.bytes`.
    fn fetch(&mut self, core: &Core) -> Result<Instruction, Exit> {
        if !is_canonical(self.pc.0) {
            return Err(Exit::general_protection());
        }
        self.bytes.clear();
        core.memory.fetch(self.pc, MOST_BYTES, &mut self.bytes);
        let available = self.bytes.len();
        let mut decoding = decoder(&self.bytes, self.pc.0);
        let instruction = decoding.decode();
        let truncated = decoding.last_error() == DecoderError::NoMoreBytes;
        if instruction.is_invalid()
            && !(truncated && available < MOST_BYTES)
            && let Some((known, bytes)) = with_ignored_bits(&self.bytes, self.pc.0)
        {
            self.bytes = bytes;
            return Ok(known);
        }
        match Extent::of(&self.bytes, &instruction, truncated) {
            Extent::Within => {}
            Extent::Beyond if available < MOST_BYTES => {
                let missing = self.pc.wrapping_add(available as u64);
                return Err(page_fault(core, missing, Access::Fetch));
            }
            Extent::Beyond => return Err(Exit::general_protection()),
        }
        self.bytes.truncate(instruction.len());
        Ok(instruction)
    }

    fn execute(&mut self, core: &mut Locked<'_>, instruction: &Instruction) -> Result<(), Undone> {
        match class_of(instruction) {
            Class::Plain | Class::RevealsPointers | Class::Lea => {
                self.execute_plain(core, instruction)
            }
            Class::Nop | Class::Hint => {
                self.pass(instruction);
                Ok(())
            }
            _ => self.assist(core, instruction),
        }
    }

    fn execute_plain(
        &mut self,
        core: &mut Locked<'_>,
        instruction: &Instruction,
    ) -> Result<(), Undone> {
        if self.meets_trap(core, instruction) {
            return if self.move_word(core, instruction)? {
                Ok(())
            } else {
                self.bounce(core, instruction)
            };
        }
        loop {
            return match self.run_single(core, instruction, None) {
                Single::Done => Ok(()),
                Single::None => self.bounce(core, instruction),
                Single::Fault(fault) => {
                    let before = core.code_writes;
                    match self.interpret(core, fault) {
                        End::Go => continue,
                        // The page can be written now, and nobody watches it again meanwhile.
                        End::Step if core.code_writes != before => continue,
                        End::Step => self.bounce(core, instruction),
                        End::Exit(exit) => Err(exit.into()),
                    }
                }
            };
        }
    }

    /// Runs an instruction that is its own translation, once.
    pub(super) fn run_single(
        &mut self,
        core: &mut Core,
        instruction: &Instruction,
        slot: Option<u32>,
    ) -> Single {
        let block = core.translator.single(self.pc, instruction, &self.bytes, slot);
        let Some(block) = block else { return Single::None };
        let start = core.cache.place_once(core.scratch, &block);
        self.memory.block_mut().need(block.extended);
        self.memory.block_mut().entry = start;
        self.memory.enter(core.door);
        self.fix_instruction_pointer(&core.cache);
        if core.cache.arena().offset(self.x87_instruction_pointer()).is_some() {
            self.set_x87_instruction(self.pc, block.x87_opcode(0));
        }
        if self.memory.block().exit_kind != Stub::Fault as u64 {
            self.pass(instruction);
            return Single::Done;
        }
        let offset = self.memory.block().fault_pc.wrapping_sub(start) as u32;
        let purpose = block.side_entry(offset).map_or(Purpose::Instruction, |entry| {
            self.recover(entry.recovery);
            entry.recovery.purpose
        });
        Single::Fault(self.fault(purpose))
    }

    /// Has the whole extended state been in the processor, which alone knows what of it is in use.
    pub(super) fn load_all(&mut self, core: &mut Core) {
        if self.memory.block().extended == Extended::All as u64 {
            return;
        }
        self.memory.block_mut().need(Extended::All);
        let nothing = Instruction::with(Code::Nopd);
        if let Some(block) = core.translator.single(self.pc, &nothing, &[0x90], None) {
            self.memory.block_mut().entry = core.cache.place_once(core.scratch, &block);
            self.memory.enter(core.door);
        }
    }

    /// The instruction is done and RIP goes on behind it.
    pub(super) fn pass(&mut self, instruction: &Instruction) {
        self.pc = GuestAddress(instruction.next_ip());
    }

    /// Says what a fault of the instruction at RIP means; registers are in place. `Go`: it may run
    /// again; `Step`: its memory is not where translated code can reach it.
    pub(super) fn interpret(&mut self, core: &mut Core, fault: Fault) -> End {
        match fault.purpose {
            // Whoever traces is told before anything goes on.
            Purpose::Poll | Purpose::Record => return End::Go,
            Purpose::Calm => {
                self.memory.block_mut().calm = ENTRIES_UNTIL_A_LOOK;
                core.look_for_calm(self.pc);
                return End::Go;
            }
            Purpose::Budget | Purpose::Probe => return End::Step,
            Purpose::Instruction => {}
        }
        match fault.vector {
            vector::INTERRUPTED => End::Go,
            vector::PF => self.interpret_page_fault(core, fault),
            // The instruction's own doing, or an address that is not canonical.
            vector::GP | vector::SS => self.interpret_protection(core, fault),
            vector => End::Exit(Exit::Exception { vector, error: fault.error, address: None }),
        }
    }

    fn interpret_page_fault(&mut self, core: &mut Core, fault: Fault) -> End {
        const WRITE: u32 = 1 << 1;
        let guest = GuestAddress(fault.address.wrapping_sub(self.memory.block().window));
        if guest.0 >= core.memory.window_end() {
            return End::Step;
        }
        if fault.error & WRITE == 0 {
            return match core.memory.permissions_at(guest) {
                Some(permissions) if permissions.read() => {
                    if core.memory.is_trapped(guest) {
                        End::Step
                    } else {
                        self.retry(guest)
                    }
                }
                _ => End::Exit(page_fault(core, guest, Access::Read)),
            };
        }
        match core.memory.write_fault(guest) {
            Ok(WriteFault::Retry) => self.retry(guest),
            Ok(WriteFault::Trapped) => End::Step,
            Ok(WriteFault::Watched(page)) => {
                core.code_written(page);
                // By itself, or its own page would be watched again before it has written.
                End::Step
            }
            Ok(WriteFault::Denied) => End::Exit(page_fault(core, guest, Access::Write)),
            Err(error) => End::Exit(Exit::Host { what: error.to_string() }),
        }
    }

    /// An allowed access has faulted at an address: something else has come first, and it is tried again.
    /// If that does not help, it goes another way: kernels that emulate an instruction (UMIP) report its
    /// operand's first byte, whichever could not be written.
    fn retry(&mut self, address: GuestAddress) -> End {
        let access = Some((self.pc, address));
        if std::mem::replace(&mut self.retried, access) == access {
            self.retried = None;
            return End::Step;
        }
        End::Go
    }

    fn interpret_protection(&mut self, core: &Core, fault: Fault) -> End {
        let Ok(instruction) = self.fetch(core) else {
            return End::Exit(lost("an instruction that ran is gone"));
        };
        // An address that is not canonical makes the host say #GP where the guest may have to see #SS.
        let plain = class(instruction.code()) == Class::Plain;
        let address = self.operand_address(&instruction).unwrap_or_default();
        let size = memory_bytes(&instruction) as u64;
        if !plain || !is_canonical(address) || !is_canonical(address.wrapping_add(size)) {
            return End::Step;
        }
        End::Exit(Exit::Exception { vector: vector::GP, error: fault.error, address: None })
    }

    /// Linear address of the explicit memory operand.
    pub(super) fn operand_address(&self, instruction: &Instruction) -> Option<u64> {
        let operand = (0..instruction.op_count())
            .find(|&operand| instruction.op_kind(operand) == iced_x86::OpKind::Memory)?;
        instruction.try_virtual_address(operand, 0, |register, _, _| self.register_value(register))
    }

    /// A register as address arithmetic wants it: a general-purpose register, or a segment's base.
    pub(super) fn register_value(&self, register: Register) -> Option<u64> {
        let block = self.memory.block();
        match register {
            Register::FS => Some(block.fs_base),
            Register::GS => Some(block.gs_base),
            Register::ES | Register::CS | Register::SS | Register::DS => Some(0),
            _ if register.is_gpr() => {
                let value = block.gpr[register.full_register().number()];
                Some(match register.size() {
                    8 => value,
                    4 => value & 0xffff_ffff,
                    2 => value & 0xffff,
                    _ if (Register::AH..=Register::BH).contains(&register) => value >> 8 & 0xff,
                    _ => value & 0xff,
                })
            }
            _ => None,
        }
    }

    /// Whether the guest asks for alignment checks.
    pub(super) fn checks_alignment(&self) -> bool {
        self.memory.block().rflags & Flag::AC.mask() != 0
    }
}

/// The exception of an address that is not canonical: #SS for operands in the stack segment, which
/// are those based on RSP or RBP; other segments' prefixes but FS and GS are ignored (Intel SDM
/// volume 1, section 3.4.2.1).
pub(super) fn not_canonical(instruction: &Instruction) -> Exit {
    let based = matches!(instruction.memory_segment(), Register::FS | Register::GS);
    let stack = matches!(instruction.memory_base(), Register::RSP | Register::RBP);
    Exit::exception(if stack && !based { vector::SS } else { vector::GP })
}

/// Bytes from an address to the end of its page.
pub(super) fn room(address: GuestAddress) -> usize {
    (PAGE_SIZE - address.0 % PAGE_SIZE) as usize
}
