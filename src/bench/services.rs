//! What users of the library do often: entering, new code, patching, hooks, machines, snapshots.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use iced_x86::IcedError;
use iced_x86::code_asm::{
    CodeAssembler, byte_ptr, dword_ptr, eax, ebx, ecx, edx, qword_ptr, r8, rax, rbx, rcx, rdi, rdx,
    rsi,
};

use super::{Contender, Effort, Failure, Race, each, run_to_halt};
use crate::case::image::flat;
use crate::engine::Engine;
use crate::engine::silicon::Silicon;
use crate::exec::{Exit, Machine, Vcpu};
use crate::guest::{GuestAddress, GuestRange, Permissions};

/// Where the code of small programs is, and their data.
pub(super) const CODE: u64 = 0x40_0000;
pub(super) const DATA: u64 = 0x900_0000;
const PAGE: u64 = 0x1000;
/// Numbers of registers.
const RCX: usize = 1;
const RSI: usize = 6;
const RDI: usize = 7;

/// Code at [`CODE`] that goes through `rounds` rounds and halts.
#[derive(Clone, Debug)]
pub(super) struct Program {
    pub(super) code: Vec<u8>,
    /// By number.
    pub(super) registers: Vec<(usize, u64)>,
    pub(super) rounds: u64,
}

impl Program {
    fn new(
        rounds: u64,
        registers: &[(usize, u64)],
        write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Result<Self, Failure> {
        let mut assembler = CodeAssembler::new(64)?;
        write(&mut assembler)?;
        let code = assembler.assemble(CODE)?;
        let registers = [&[(RCX, rounds), (RSI, DATA)], registers].concat();
        Ok(Self { code, registers, rounds })
    }

    pub(super) fn pages(&self) -> u64 {
        (self.code.len() as u64).div_ceil(PAGE)
    }

    /// A machine with it, and a vCPU about to run it.
    fn machine(&self, permissions: Permissions) -> Result<(Machine, Vcpu), Failure> {
        let machine = Machine::new(40)?;
        machine.map(range(CODE, self.pages())?, permissions)?;
        machine.map(range(DATA, 1)?, Permissions::ReadWrite)?;
        machine.write(GuestAddress(CODE), &self.code)?;
        let mut vcpu = machine.vcpu()?;
        for (register, value) in &self.registers {
            vcpu.set_gpr(*register, *value);
        }
        vcpu.set_rip(GuestAddress(CODE));
        Ok((machine, vcpu))
    }

    /// Runs it on the processor itself; nanoseconds for a round.
    fn native(&self) -> Result<Contender, Failure> {
        let mut silicon = Silicon::new()?;
        silicon.set_time_limit(Duration::from_secs(20));
        let mut case = flat(&self.code, GuestAddress(CODE), PAGE)?;
        for (register, value) in &self.registers {
            case.state.gpr[*register] = *value;
        }
        let rounds = self.rounds as f64;
        Ok(Box::new(move || {
            let (time, _) = run_to_halt(&mut silicon, &case)?;
            Ok(time.as_secs_f64() * 1e9 / rounds)
        }))
    }

    /// Runs it in a new machine; nanoseconds for a round.
    fn translated(&self, permissions: Permissions) -> Contender {
        let program = self.clone();
        Box::new(move || {
            let (_machine, mut vcpu) = program.machine(permissions)?;
            let begun = Instant::now();
            halt(&mut vcpu)?;
            Ok(begun.elapsed().as_secs_f64() * 1e9 / program.rounds as f64)
        })
    }

    /// The same with a hook that counts, once a round.
    fn translated_hooked(&self, kind: Hooked) -> Contender {
        let program = self.clone();
        Box::new(move || {
            let (machine, mut vcpu) = program.machine(Permissions::ReadExecute)?;
            let calls = Arc::new(AtomicU64::new(0));
            let counted = Arc::clone(&calls);
            let count = move || counted.store(counted.load(Relaxed) + 1, Relaxed);
            let code = GuestAddress(CODE)..=GuestAddress(CODE);
            let data = GuestAddress(DATA)..GuestAddress(DATA + 8);
            match kind {
                Hooked::Code => machine.hook_code(code, move |_| count())?,
                Hooked::Block => machine.hook_blocks(code, move |_| count())?,
                Hooked::Memory => machine.hook_memory(data, move |_| count())?,
            };
            let begun = Instant::now();
            halt(&mut vcpu)?;
            let nanoseconds = begun.elapsed().as_secs_f64() * 1e9;
            let calls = calls.load(Relaxed);
            if calls != program.rounds {
                return Err(format!("jit: {calls} calls in {} rounds", program.rounds).into());
            }
            Ok(nanoseconds / calls as f64)
        })
    }
}

fn range(at: u64, pages: u64) -> Result<GuestRange, Failure> {
    Ok(GuestRange::new(GuestAddress(at), pages * PAGE)?)
}

fn halt(vcpu: &mut Vcpu) -> Result<(), Failure> {
    match vcpu.run(None) {
        Exit::Halt => Ok(()),
        exit => Err(format!("jit: the program ends by {exit}").into()),
    }
}

/// All of them.
pub fn services(effort: Effort) -> Result<Vec<Race>, Failure> {
    let times = effort.pick(2_000, 20_000);
    Ok(vec![
        entering(times)?,
        new_code(times),
        creating(effort.pick(50, 500))?,
        translation(effort.pick(1_000, 10_000))?,
        patching(effort.pick(3_000, 100_000))?,
        data_beside_code(effort.pick(100_000, 5_000_000))?,
        remapping(effort.pick(300, 5_000)),
        snapshots("restore with 1 changed page", 1, effort.pick(200, 2_000)),
        snapshots("restore with 100 changed pages", 100, effort.pick(50, 200)),
        hooked(Hooked::Code, effort.pick(3_000, 200_000))?,
        hooked(Hooked::Block, effort.pick(3_000, 200_000))?,
        hooked(Hooked::Memory, effort.pick(3_000, 200_000))?,
    ])
}

/// Three instructions and `hlt`, entered again and again.
fn entering(times: u64) -> Result<Race, Failure> {
    let program = Program::new(1, &[], |a| {
        a.mov(eax, 1)?;
        a.add(rbx, rax)?;
        a.xor(edx, edx)?;
        a.hlt()
    })?;
    let unicorn = on_unicorn!(super::unicorn::entering(&program, times));
    let jit: Contender = Box::new(move || {
        let (_machine, mut vcpu) = program.machine(Permissions::ReadExecute)?;
        halt(&mut vcpu)?;
        each(times, |_| {
            vcpu.set_rip(GuestAddress(CODE));
            halt(&mut vcpu)
        })
    });
    Ok(Race { unicorn, ..Race::of_the_jit("enter, 3 warm instructions, exit", "ns", jit) })
}

/// `mov rax, number; nop; hlt`, nine bytes that differ each time.
fn fresh(number: u64) -> Vec<u8> {
    vec![0x48, 0xc7, 0xc0, number as u8, (number >> 8) as u8, 0, 0, 0x90, 0xf4]
}

fn new_code(times: u64) -> Race {
    let jit: Contender = Box::new(move || {
        let machine = Machine::new(40)?;
        machine.map(range(CODE, 1)?, Permissions::ReadWriteExecute)?;
        let mut vcpu = machine.vcpu()?;
        each(times, |number| {
            machine.write(GuestAddress(CODE), &fresh(number))?;
            vcpu.set_rip(GuestAddress(CODE));
            halt(&mut vcpu)
        })
    });
    let unicorn = on_unicorn!(super::unicorn::new_code(fresh, times));
    Race { unicorn, ..Race::of_the_jit("the host writes 9 bytes of code and runs them", "ns", jit) }
}

/// With a page of code and one of data, and one run: before it, Unicorn makes hardly anything.
fn creating(times: u64) -> Result<Race, Failure> {
    let program = Program::new(1, &[], CodeAssembler::hlt)?;
    let unicorn = on_unicorn!(super::unicorn::creating(&program, times));
    let jit: Contender = Box::new(move || {
        each(times, |_| {
            let (_machine, mut vcpu) = program.machine(Permissions::ReadExecute)?;
            halt(&mut vcpu)
        })
    });
    Ok(Race { unicorn, ..Race::of_the_jit("make a machine, run hlt, drop it", "ns", jit) })
}

/// Code that runs once, for each instruction.
fn translation(blocks: u64) -> Result<Race, Failure> {
    let program = Program::new(11 * blocks + 1, &[], |a| {
        for number in 0..blocks {
            let mut next = a.create_label();
            a.mov(rax, qword_ptr(rsi + 8))?;
            a.add(rax, rcx)?;
            a.mov(qword_ptr(rsi + 16), rax)?;
            a.lea(rdx, qword_ptr(rax + rcx * 4))?;
            a.xor(ebx, edx)?;
            a.imul_3(r8, rdx, number as i32)?;
            a.movzx(eax, byte_ptr(rsi + 3))?;
            a.shl(rdx, 3)?;
            a.test(ebx, ebx)?;
            a.jz(next)?;
            a.inc(rdi)?;
            a.set_label(&mut next)?;
            a.zero_bytes()?;
        }
        a.hlt()
    })?;
    let jit = program.translated(Permissions::ReadExecute);
    let unicorn = on_unicorn!(super::unicorn::rounds(&program));
    Ok(Race {
        unicorn,
        ..Race::of_the_jit("translate and run cold code, an instruction", "ns", jit)
    })
}

/// A loop that writes the constant of an instruction in it.
fn patching(rounds: u64) -> Result<Race, Failure> {
    let program = Program::new(rounds, &[(RDI, CODE + 3)], |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.mov(dword_ptr(rdi + 1), ecx)?;
        a.mov(eax, 0)?;
        a.add(rdx, rax)?;
        a.dec(rcx)?;
        a.jnz(again)?;
        a.hlt()
    })?;
    race_of_rounds("patch an instruction and run it, in a loop", &program)
}

/// A loop that writes to a word in the page it lies in.
fn data_beside_code(rounds: u64) -> Result<Race, Failure> {
    let program = Program::new(rounds, &[(RDI, CODE + 0x800)], |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.mov(dword_ptr(rdi), ecx)?;
        a.dec(rcx)?;
        a.jnz(again)?;
        a.hlt()
    })?;
    race_of_rounds("write to data in the page of the code, in a loop", &program)
}

fn race_of_rounds(name: &str, program: &Program) -> Result<Race, Failure> {
    let unicorn = on_unicorn!(super::unicorn::rounds(program));
    Ok(Race {
        native: Some(program.native()?),
        unicorn,
        ..Race::of_the_jit(name, "ns", program.translated(Permissions::ReadWriteExecute))
    })
}

/// Two pages of code that take turns at one address.
fn remapping(times: u64) -> Race {
    let jit: Contender = Box::new(move || {
        const OTHER: u64 = CODE + 0x10_0000;
        const AWAY: u64 = CODE + 0x20_0000;
        let machine = Machine::new(40)?;
        for (at, number) in [(CODE, 1), (OTHER, 2)] {
            machine.map(range(at, 1)?, Permissions::ReadExecute)?;
            machine.write(GuestAddress(at), &fresh(number))?;
        }
        let mut vcpu = machine.vcpu()?;
        let nanoseconds = each(times, |_| {
            machine.remap(range(CODE, 1)?, GuestAddress(AWAY))?;
            machine.remap(range(OTHER, 1)?, GuestAddress(CODE))?;
            machine.remap(range(AWAY, 1)?, GuestAddress(OTHER))?;
            vcpu.set_rip(GuestAddress(CODE));
            halt(&mut vcpu)
        })?;
        Ok(nanoseconds / 3.0)
    });
    Race::of_the_jit("remap a page, a third of three and a run", "ns", jit)
}

fn snapshots(name: &str, pages: u64, times: u64) -> Race {
    let jit: Contender = Box::new(move || {
        let machine = Machine::new(40)?;
        machine.map(range(DATA, 1000)?, Permissions::ReadWrite)?;
        let snapshot = machine.snapshot()?;
        let mut spent = Duration::ZERO;
        for number in 0..times {
            for page in 0..pages {
                let at = GuestAddress(DATA + (number + page) % 1000 * PAGE);
                machine.write(at, &(number + 1).to_le_bytes())?;
            }
            let begun = Instant::now();
            machine.restore(&snapshot)?;
            spent += begun.elapsed();
        }
        Ok(spent.as_secs_f64() * 1e9 / times as f64)
    });
    Race::of_the_jit(name, "ns", jit)
}

/// What is called.
#[derive(Clone, Copy, Debug)]
pub(super) enum Hooked {
    Code,
    Block,
    Memory,
}

/// A loop of one block, which has one event of the kind in a round; its other costs are in the figure.
fn hooked(kind: Hooked, rounds: u64) -> Result<Race, Failure> {
    let program = Program::new(rounds, &[], |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        match kind {
            Hooked::Memory => a.mov(rax, qword_ptr(rsi))?,
            Hooked::Code | Hooked::Block => a.nop()?,
        }
        a.dec(rcx)?;
        a.jnz(again)?;
        a.hlt()
    })?;
    let jit = program.translated_hooked(kind);
    let unicorn = on_unicorn!({
        // Its code hooks are called for each of the loop's three instructions.
        let events = if matches!(kind, Hooked::Code) { 3 } else { 1 };
        let program = Program { rounds: program.rounds * events, ..program };
        super::unicorn::rounds_hooked(&program, kind)
    });
    let name = match kind {
        Hooked::Code => "code hook, a call",
        Hooked::Block => "block hook, a call",
        Hooked::Memory => "memory hook, a call",
    };
    Ok(Race { unicorn, ..Race::of_the_jit(name, "ns", jit) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_service_can_be_measured() {
        for race in services(Effort::Quick).unwrap() {
            let name = race.name().to_owned();
            let figure =
                race.run(1, Duration::MAX).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(figure.jit.median > 0.0 && figure.unicorn_failed.is_none(), "{figure:?}");
        }
    }
}
