//! Interrupts, system calls, `hlt`, CPUID, protection keys, transactions, privileged instructions.

use std::arch::x86_64::__cpuid_count;

use iced_x86::{Instruction, Mnemonic, Register};

use crate::exec::exit::{Exit, vector};
use crate::exec::shared::Locked;
use crate::exec::step::Undone;
use crate::exec::vcpu::Vcpu;
use crate::guest::{Flag, GuestAddress};
use crate::translate::is_canonical;

impl Vcpu {
    pub(super) fn system(
        &mut self,
        core: &mut Locked<'_>,
        instruction: &Instruction,
    ) -> Result<(), Undone> {
        use Mnemonic as M;
        match instruction.mnemonic() {
            M::Int3 => Err(self.trap_behind(instruction, vector::BP)),
            M::Int1 => Err(self.trap_behind(instruction, vector::DB)),
            M::Int => Err(self.interrupt(instruction)),
            M::Syscall => {
                self.pass(instruction);
                self.note_system_call();
                Err(Exit::SystemCall.into())
            }
            M::Hlt => {
                self.pass(instruction);
                Err(Exit::Halt.into())
            }
            M::Cpuid => {
                self.cpuid(core);
                self.pass(instruction);
                Ok(())
            }
            M::Rdpkru | M::Wrpkru => self.protection_keys(instruction),
            M::Xbegin | M::Xend | M::Xabort | M::Xtest => self.transaction(instruction),
            // Undefined outside of kernels, of virtual machine monitors, of management mode.
            M::Clac
            | M::Stac
            | M::Rsm
            | M::Vmread
            | M::Vmwrite
            | M::Vmptrld
            | M::Vmptrst
            | M::Vmclear
            | M::Vmlaunch
            | M::Vmresume
            | M::Vmxoff
            | M::Vmxon
            | M::Vmcall
            | M::Vmfunc
            | M::Encls
            | M::Enclv
            | M::Invept
            | M::Invvpid => Err(Exit::exception(vector::UD).into()),
            M::Rdpmc | M::Sysret | M::Sysretq | M::Sysexit | M::Sysexitq => {
                Err(Exit::general_protection().into())
            }
            _ if instruction.is_privileged() => Err(Exit::general_protection().into()),
            M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd => {
                Err(Exit::general_protection().into())
            }
            _ => Err(Exit::Unsupported { what: "an instruction without a rule" }.into()),
        }
    }

    /// What SYSCALL, which is done, leaves in registers.
    pub(in crate::exec) fn note_system_call(&mut self) {
        let rflags = self.rflags();
        self.set_gpr(1, self.pc.0);
        self.set_gpr(11, rflags);
    }

    fn trap_behind(&mut self, instruction: &Instruction, vector: u8) -> Undone {
        self.pass(instruction);
        Exit::exception(vector).into()
    }

    /// Software interrupts: only those gates that Linux gives to user code, #BP, #OF and 0x80.
    fn interrupt(&mut self, instruction: &Instruction) -> Undone {
        let number = instruction.immediate8();
        match number {
            vector::BP | vector::OF => self.trap_behind(instruction, number),
            0x80 => {
                self.pass(instruction);
                Exit::LegacySystemCall.into()
            }
            // The error code names the gate in the IDT (Intel SDM volume 3A, section 6.13).
            _ => Exit::Exception {
                vector: vector::GP,
                error: u32::from(number) << 3 | 2,
                address: None,
            }
            .into(),
        }
    }

    fn cpuid(&mut self, core: &Locked<'_>) {
        let (leaf, subleaf) = (self.gpr(0) as u32, self.gpr(1) as u32);
        let result = core.cpuid.answer(leaf, subleaf, &|| __cpuid_count(leaf, subleaf));
        for (register, value) in [0, 3, 1, 2].into_iter().zip(result) {
            self.set_gpr(register, u64::from(value));
        }
    }

    /// Protection keys are kept but guard nothing: all guest memory has key 0.
    fn protection_keys(&mut self, instruction: &Instruction) -> Result<(), Undone> {
        if !self.xstate().has_pkru() {
            return Err(Exit::exception(vector::UD).into());
        }
        let writes = instruction.mnemonic() == Mnemonic::Wrpkru;
        if self.gpr(1) as u32 != 0 || (writes && self.gpr(2) as u32 != 0) {
            return Err(Exit::general_protection().into());
        }
        if writes {
            let value = self.gpr(0) as u32;
            if value & 3 != 0 {
                return Err(Exit::Unsupported { what: "no access by protection key 0" }.into());
            }
            self.pkru = value;
        } else {
            self.set_gpr(0, u64::from(self.pkru));
            self.set_gpr(2, 0);
        }
        self.pass(instruction);
        Ok(())
    }

    /// Every transaction aborts at once, for no reason that would call for a retry.
    fn transaction(&mut self, instruction: &Instruction) -> Result<(), Undone> {
        match instruction.mnemonic() {
            Mnemonic::Xbegin => {
                let target = instruction.near_branch_target();
                if !is_canonical(target) {
                    return Err(Exit::general_protection().into());
                }
                self.set_register(Register::EAX, 0);
                self.pc = GuestAddress(target);
                return Ok(());
            }
            Mnemonic::Xend => return Err(Exit::general_protection().into()),
            Mnemonic::Xtest => {
                let cleared = [Flag::CF, Flag::OF, Flag::SF, Flag::PF, Flag::AF];
                let mask = cleared.into_iter().fold(0, |mask, flag| mask | flag.mask());
                self.set_rflags(self.rflags() & !mask | Flag::ZF.mask());
            }
            _ => {}
        }
        self.pass(instruction);
        Ok(())
    }
}
