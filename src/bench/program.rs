//! [`Program`]: a small guest program, and everyone who can run it. [`Agreed`]: what it comes to, the
//! same for everyone, or nobody's figure counts.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;

use super::{Contender, Failure, run_to_halt};
use crate::case::{Case, Mapping, Object, ObjectId};
use crate::engine::Engine;
use crate::engine::silicon::Silicon;
use crate::exec::{Exit, Machine, Vcpu};
use crate::guest::{GuestAddress, GuestRange, Permissions};

/// Where the code of small programs is, their page of data, which is their stack too, and the second
/// address of the code of those that have one.
pub(super) const CODE: u64 = 0x40_0000;
pub(super) const DATA: u64 = 0x900_0000;
pub(super) const ALIAS: u64 = 0xa00_0000;
pub(super) const PAGE: u64 = 0x1000;
/// Numbers of registers: RCX counts rounds, RDX has the checksum, RSI points to the data.
pub(super) const RCX: usize = 1;
pub(super) const RDX: usize = 2;
const RSP: usize = 4;
pub(super) const RSI: usize = 6;
pub(super) const RDI: usize = 7;
pub(super) const R8: usize = 8;

/// Code at [`CODE`] that goes through `rounds` rounds and halts.
#[derive(Clone)]
pub(super) struct Program {
    pub(super) code: Vec<u8>,
    /// By number.
    pub(super) registers: Vec<(usize, u64)>,
    pub(super) rounds: u64,
    pub(super) agreed: Agreed,
    /// Whether the same code is at [`ALIAS`] too.
    pub(super) has_alias: bool,
}

impl Program {
    pub(super) fn new(
        rounds: u64,
        registers: &[(usize, u64)],
        write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Result<Self, Failure> {
        let mut assembler = CodeAssembler::new(64)?;
        write(&mut assembler)?;
        let code = assembler.assemble(CODE)?;
        let own = [(RCX, rounds), (RSI, DATA), (RSP, DATA + PAGE)];
        let registers = [&own, registers].concat();
        Ok(Self { code, registers, rounds, agreed: Agreed::default(), has_alias: false })
    }

    /// With so much memory behind the code, which is code as well.
    pub(super) fn with_room(mut self, bytes: u64) -> Self {
        self.code.resize((self.pages() * PAGE + bytes) as usize, 0);
        self
    }

    /// With the same code at [`ALIAS`].
    pub(super) fn with_alias(self) -> Self {
        Self { has_alias: true, ..self }
    }

    pub(super) fn pages(&self) -> u64 {
        (self.code.len() as u64).div_ceil(PAGE)
    }

    /// A machine with it, and a vCPU about to run it.
    pub(super) fn machine(&self, permissions: Permissions) -> Result<(Machine, Vcpu), Failure> {
        let machine = Machine::new(40)?;
        let code = range(CODE, self.pages())?;
        machine.map(code, permissions)?;
        machine.map(range(DATA, 1)?, Permissions::ReadWrite)?;
        machine.write(GuestAddress(CODE), &self.code)?;
        if self.has_alias {
            machine.alias(code, GuestAddress(ALIAS))?;
        }
        let mut vcpu = machine.vcpu()?;
        for (register, value) in &self.registers {
            vcpu.set_gpr(*register, *value);
        }
        vcpu.set_rip(GuestAddress(CODE));
        Ok((machine, vcpu))
    }

    /// It as a case.
    pub(super) fn case(&self) -> Result<Case, Failure> {
        let mut code = Object::zeroed("code", self.pages() as usize);
        code.contents[..self.code.len()].copy_from_slice(&self.code);
        let mapping = |at, pages, object, permissions| -> Result<Mapping, Failure> {
            Ok(Mapping {
                range: range(at, pages)?,
                object: ObjectId(object),
                offset: 0,
                permissions,
            })
        };
        let all = Permissions::ReadWriteExecute;
        let mut case = Case {
            mappings: vec![
                mapping(CODE, self.pages(), 0, all)?,
                mapping(DATA, 1, 1, Permissions::ReadWrite)?,
            ],
            objects: vec![code, Object::zeroed("data", 1)],
            ..Case::default()
        };
        if self.has_alias {
            case.mappings.push(mapping(ALIAS, self.pages(), 0, all)?);
        }
        for (register, value) in &self.registers {
            case.state.gpr[*register] = *value;
        }
        case.state.rip = CODE;
        Ok(case)
    }

    /// Runs it on the processor itself; nanoseconds for a round.
    pub(super) fn native(&self) -> Result<Contender, Failure> {
        let mut silicon = Silicon::new()?;
        silicon.set_time_limit(Duration::from_secs(20));
        let (case, agreed, rounds) = (self.case()?, self.agreed.clone(), self.rounds as f64);
        Ok(Box::new(move || {
            let (time, outcome) = run_to_halt(&mut silicon, &case)?;
            agreed.check("silicon", outcome.state.gpr[RDX])?;
            Ok(time.as_secs_f64() * 1e9 / rounds)
        }))
    }

    /// Runs it in a new machine; nanoseconds for a round.
    pub(super) fn translated(&self, permissions: Permissions) -> Contender {
        let program = self.clone();
        Box::new(move || {
            let (_machine, mut vcpu) = program.machine(permissions)?;
            let begun = Instant::now();
            halt(&mut vcpu)?;
            let nanoseconds = begun.elapsed().as_secs_f64() * 1e9;
            program.agreed.check("jit", vcpu.gpr(RDX))?;
            Ok(nanoseconds / program.rounds as f64)
        })
    }
}

/// The checksum that a program ends with, the same for everyone.
#[derive(Clone, Default)]
pub(super) struct Agreed(Rc<Cell<Option<u64>>>);

impl Agreed {
    /// An error if somebody else came to another.
    pub(super) fn check(&self, who: &str, checksum: u64) -> Result<(), Failure> {
        let agreed = self.0.get().unwrap_or(checksum);
        self.0.set(Some(agreed));
        if agreed == checksum {
            return Ok(());
        }
        Err(format!("{who}: the program comes to {checksum:#x}, not to {agreed:#x}").into())
    }
}

pub(super) fn range(at: u64, pages: u64) -> Result<GuestRange, Failure> {
    Ok(GuestRange::new(GuestAddress(at), pages * PAGE)?)
}

pub(super) fn halt(vcpu: &mut Vcpu) -> Result<(), Failure> {
    match vcpu.run(None) {
        Exit::Halt => Ok(()),
        exit => Err(format!("jit: the program ends by {exit}").into()),
    }
}
