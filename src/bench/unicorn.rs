//! Unicorn as its users use it: memory mapped, `uc_emu_start`, no hooks but those that are measured.

use std::time::{Duration, Instant};

use unicorn_engine::{Arch, HookType, MemType, Mode, Prot, RegisterX86, Unicorn, uc_error};

use super::program::{Agreed, CODE, DATA, Program};
use super::regions::entry;
use super::services::Hooked;
use super::{Contender, Failure, each};
use crate::case::Case;
use crate::engine::unicorn::{GPR, protection};

fn machine() -> Result<Unicorn<'static, u64>, Failure> {
    Unicorn::new_with_data(Arch::X86, Mode::MODE_64, 0).map_err(told)
}

/// Runs a whole program; milliseconds.
pub(super) fn program(case: &Case, agreed: &Agreed) -> Contender {
    let (case, agreed) = (case.clone(), agreed.clone());
    Box::new(move || {
        let mut unicorn = machine()?;
        for mapping in &case.mappings {
            let (start, size) = (mapping.range.start().0, mapping.range.size());
            unicorn.mem_map(start, size, protection(mapping.permissions)).map_err(told)?;
            let contents = &case.objects[mapping.object.0].contents[mapping.offset as usize..];
            unicorn.mem_write(start, &contents[..size as usize]).map_err(told)?;
        }
        for (register, value) in GPR.iter().zip(case.state.gpr) {
            unicorn.reg_write(*register, value).map_err(told)?;
        }
        let begun = Instant::now();
        unicorn.emu_start(case.state.rip, 0, 0, 0).map_err(told)?;
        let milliseconds = begun.elapsed().as_secs_f64() * 1e3;
        agreed.check("Unicorn", unicorn.reg_read(RegisterX86::RAX).map_err(told)?)?;
        Ok(milliseconds)
    })
}

/// Runs one of the small programs once; nanoseconds for each of its rounds.
pub(super) fn rounds(program: &Program) -> Contender {
    hooked(program, |_| Ok(()))
}

/// The same with a hook that counts.
pub(super) fn rounds_hooked(program: &Program, hook: Hooked) -> Contender {
    hooked(program, move |unicorn| {
        let counted = match hook {
            // It has no traces: what its users have in their place.
            Hooked::Code | Hooked::TracedCode => {
                unicorn.add_code_hook(1, 0, |unicorn, _, _| *unicorn.get_data_mut() += 1)
            }
            Hooked::Block | Hooked::TracedBlock => {
                unicorn.add_block_hook(1, 0, |unicorn, _, _| *unicorn.get_data_mut() += 1)
            }
            Hooked::Memory => {
                let call = |unicorn: &mut Unicorn<'_, u64>, _: MemType, _, _, _| {
                    *unicorn.get_data_mut() += 1;
                    true
                };
                unicorn.add_mem_hook(HookType::MEM_READ | HookType::MEM_WRITE, 1, 0, call)
            }
        };
        counted.map(drop).map_err(told)
    })
}

fn hooked(
    program: &Program,
    hook: impl Fn(&mut Unicorn<'static, u64>) -> Result<(), Failure> + 'static,
) -> Contender {
    let program = program.clone();
    Box::new(move || {
        let mut unicorn = machine()?;
        small(&mut unicorn, &program)?;
        hook(&mut unicorn)?;
        let begun = Instant::now();
        unicorn.emu_start(CODE, 0, 0, 0).map_err(told)?;
        let nanoseconds = begun.elapsed().as_secs_f64() * 1e9;
        program.agreed.check("Unicorn", unicorn.reg_read(RegisterX86::RDX).map_err(told)?)?;
        Ok(nanoseconds / program.rounds as f64)
    })
}

/// Runs one of the small programs for one round, and then for all; nanoseconds for a round of those.
pub(super) fn warm_rounds(program: &Program) -> Contender {
    let program = program.clone();
    Box::new(move || {
        let mut unicorn = machine()?;
        small(&mut unicorn, &program)?;
        unicorn.reg_write(RegisterX86::RCX, 1).map_err(told)?;
        unicorn.emu_start(CODE, 0, 0, 0).map_err(told)?;
        unicorn.reg_write(RegisterX86::RCX, program.rounds).map_err(told)?;
        let begun = Instant::now();
        unicorn.emu_start(CODE, 0, 0, 0).map_err(told)?;
        Ok(begun.elapsed().as_secs_f64() * 1e9 / program.rounds as f64)
    })
}

/// Has all jumps of a star chained, and drops the block that they lead to; nanoseconds of that.
pub(super) fn invalidation(star: fn(u64) -> Vec<u8>, jumps: u64, times: u64) -> Contender {
    Box::new(move || {
        let mut unicorn = machine()?;
        unicorn.mem_map(CODE, 0x1000, Prot::ALL).map_err(told)?;
        unicorn.mem_write(CODE, &star(jumps)).map_err(told)?;
        let mut spent = Duration::ZERO;
        for _ in 0..times {
            for number in 0..jumps {
                unicorn.emu_start(entry(number), 0, 0, 0).map_err(told)?;
            }
            let begun = Instant::now();
            unicorn.ctl_remove_cache(CODE, CODE + 1).map_err(told)?;
            spent += begun.elapsed();
        }
        Ok(spent.as_secs_f64() * 1e9 / times as f64)
    })
}

/// Enters a warm program over and over; nanoseconds.
pub(super) fn entering(program: &Program, times: u64) -> Contender {
    let program = program.clone();
    Box::new(move || {
        let mut unicorn = machine()?;
        small(&mut unicorn, &program)?;
        each(times, |_| unicorn.emu_start(CODE, 0, 0, 0).map_err(told))
    })
}

/// Writes new code and runs it, over and over; nanoseconds.
pub(super) fn new_code(code: fn(u64) -> Vec<u8>, times: u64) -> Contender {
    Box::new(move || {
        let mut unicorn = machine()?;
        unicorn.mem_map(CODE, 0x1000, Prot::ALL).map_err(told)?;
        each(times, |number| {
            unicorn.mem_write(CODE, &code(number)).map_err(told)?;
            // It does not notice that the host has written.
            unicorn.ctl_remove_cache(CODE, CODE + 0x1000).map_err(told)?;
            unicorn.emu_start(CODE, 0, 0, 0).map_err(told)
        })
    })
}

/// Makes a machine, runs a program and drops the machine; nanoseconds.
pub(super) fn creating(program: &Program, times: u64) -> Contender {
    let program = program.clone();
    Box::new(move || {
        each(times, |_| {
            let mut unicorn = machine()?;
            small(&mut unicorn, &program)?;
            unicorn.emu_start(CODE, 0, 0, 0).map_err(told)
        })
    })
}

fn small(unicorn: &mut Unicorn<'static, u64>, program: &Program) -> Result<(), Failure> {
    unicorn.mem_map(CODE, program.pages() * 0x1000, Prot::ALL).map_err(told)?;
    unicorn.mem_write(CODE, &program.code).map_err(told)?;
    unicorn.mem_map(DATA, 0x1000, Prot::READ | Prot::WRITE).map_err(told)?;
    for (number, value) in &program.registers {
        unicorn.reg_write(GPR[*number], *value).map_err(told)?;
    }
    Ok(())
}

fn told(error: uc_error) -> Failure {
    format!("{error:?}").into()
}
