//! Code that is larger than what a loop touches: 10,000 functions, each called in turn, cold and warm.

use std::time::Instant;

use iced_x86::code_asm::{CodeLabel, dword_ptr, eax, ecx, edi, qword_ptr, rax, rcx, rdi, rdx, rsi};

use super::program::{CODE, Program, RCX, RDX, halt};
use super::{Contender, Effort, Failure, Race};
use crate::guest::{GuestAddress, Permissions};

/// How many, and in what steps they are called, which meets each once.
const FUNCTIONS: usize = 10_000;
const STEP: usize = 3_571;

/// All of them, once with everything to be translated and then again and again.
pub fn walks(effort: Effort) -> Result<Vec<Race>, Failure> {
    Ok(vec![cold()?, warm(effort.pick(20, 300))?])
}

fn cold() -> Result<Race, Failure> {
    let program = walk(1)?;
    let jit = of_a_call(program.translated(Permissions::ReadExecute));
    let unicorn = on_unicorn!(of_a_call(super::unicorn::rounds(&program)));
    Ok(Race { unicorn, ..Race::of_the_jit("walk 10,000 functions, cold, a call", "ns", jit) })
}

fn warm(rounds: u64) -> Result<Race, Failure> {
    let program = walk(rounds)?;
    let native = of_a_call(program.native()?);
    let unicorn = on_unicorn!(of_a_call(super::unicorn::warm_rounds(&program)));
    let jit: Contender = Box::new(move || {
        let (_machine, mut vcpu) = program.machine(Permissions::ReadExecute)?;
        vcpu.set_gpr(RCX, 1);
        halt(&mut vcpu)?;
        vcpu.set_gpr(RCX, program.rounds);
        vcpu.set_gpr(RDX, 0);
        vcpu.set_rip(GuestAddress(CODE));
        let begun = Instant::now();
        halt(&mut vcpu)?;
        let nanoseconds = begun.elapsed().as_secs_f64() * 1e9;
        program.agreed.check("jit", vcpu.gpr(RDX))?;
        Ok(nanoseconds / program.rounds as f64)
    });
    let name = "walk 10,000 functions, warm, a call";
    Ok(Race { native: Some(native), unicorn, ..Race::of_the_jit(name, "ns", of_a_call(jit)) })
}

/// Of a round's time, what each call takes.
fn of_a_call(mut round: Contender) -> Contender {
    Box::new(move || Ok(round()? / FUNCTIONS as f64))
}

/// A round calls every function, none near the one before.
fn walk(rounds: u64) -> Result<Program, Failure> {
    Program::new(rounds, &[], |a| {
        let mut functions: Vec<CodeLabel> = (0..FUNCTIONS).map(|_| a.create_label()).collect();
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        for turn in 0..FUNCTIONS {
            a.call(functions[turn * STEP % FUNCTIONS])?;
        }
        a.dec(rcx)?;
        a.jnz(again)?;
        a.hlt()?;
        for (number, function) in functions.iter_mut().enumerate() {
            let mut even = a.create_label();
            a.set_label(function)?;
            a.mov(edi, ecx)?;
            a.imul_3(edi, edi, number as i32)?;
            a.mov(eax, dword_ptr(rsi + number % 64 * 8))?;
            a.test(edi, 1)?;
            a.jz(even)?;
            a.lea(rdi, qword_ptr(rdi + rax * 2))?;
            a.set_label(&mut even)?;
            a.add(rdx, rdi)?;
            a.mov(dword_ptr(rsi + number % 64 * 8), edi)?;
            a.ret()?;
        }
        Ok(())
    })
}
