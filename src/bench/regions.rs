//! Code that changes under its own feet: what it costs to keep translated code true.
//!
//! Patches in a loop, data beside code, a guest that generates functions, writes by a second address,
//! a page that is swapped for another, a block that a thousand jumps lead to, and a vCPU that patches
//! what another one runs.

use std::thread::{ScopedJoinHandle, scope};
use std::time::{Duration, Instant};

use iced_x86::code_asm::{
    byte_ptr, dword_ptr, eax, ecx, r8, r8d, r9, r9d, r10d, rax, rbx, rcx, rdi, rdx, rsi,
};

use super::program::{ALIAS, CODE, DATA, PAGE, Program, R8, RCX, RDI, RSI, halt, range};
use super::{Contender, Effort, Failure, Race, each};
use crate::exec::{Machine, Vcpu};
use crate::guest::{GuestAddress, Permissions};

/// All of them.
pub fn regions(effort: Effort) -> Result<Vec<Race>, Failure> {
    Ok(vec![
        patching(effort.pick(3_000, 100_000))?,
        alias_writes(effort.pick(3_000, 100_000))?,
        data_beside_code(effort.pick(100_000, 5_000_000))?,
        generating(effort.pick(3_000, 100_000))?,
        remapping(effort.pick(300, 5_000)),
        invalidation(effort.pick(50, 500)),
        crossing(effort.pick(300, 5_000)),
    ])
}

/// A loop that writes the constant of an instruction in it.
fn patching(rounds: u64) -> Result<Race, Failure> {
    race_of_rounds("patch an instruction and run it, in a loop", &patched(rounds, CODE)?)
}

/// The same by another address of the page.
fn alias_writes(rounds: u64) -> Result<Race, Failure> {
    let program = patched(rounds, ALIAS)?.with_alias();
    // Unicorn knows of no aliases: it would run what was there before.
    Ok(Race {
        unicorn: None,
        ..race_of_rounds("patch an instruction by an alias, in a loop", &program)?
    })
}

/// Writes go to where the code is or is shown as well.
fn patched(rounds: u64, code: u64) -> Result<Program, Failure> {
    Program::new(rounds, &[(RDI, code + 3)], |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.mov(dword_ptr(rdi + 1), ecx)?;
        a.mov(eax, 0)?;
        a.add(rdx, rax)?;
        a.dec(rcx)?;
        a.jnz(again)?;
        a.hlt()
    })
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

/// Functions of the guest that generates them, and bytes for each.
const FUNCTIONS: i32 = 1000;
const FUNCTION: i32 = 64;

/// A guest that writes 1,000 functions, and then in each round writes one of them anew and calls it and
/// three more, all at random.
fn generating(rounds: u64) -> Result<Race, Failure> {
    const SEED: u64 = 0x9e37_79b9_7f4a_7c15;
    let functions = (FUNCTIONS * FUNCTION) as u64;
    let program = Program::new(rounds, &[(RDI, CODE + PAGE), (R8, SEED)], |a| {
        let [mut fill, mut again] = [(); 2].map(|()| a.create_label());
        let [mut write, mut choose] = [(); 2].map(|()| a.create_label());
        a.mov(rbx, rdi)?;
        a.mov(r10d, FUNCTIONS)?;
        a.set_label(&mut fill)?;
        a.call(write)?;
        a.add(rbx, FUNCTION)?;
        a.dec(r10d)?;
        a.jnz(fill)?;
        a.set_label(&mut again)?;
        a.call(choose)?;
        a.call(write)?;
        a.call(rbx)?;
        for _ in 0..3 {
            a.call(choose)?;
            a.call(rbx)?;
        }
        a.dec(rcx)?;
        a.jnz(again)?;
        a.hlt()?;
        // mov eax, random bits; add (or one of seven others) rdx, rax; ret
        a.set_label(&mut write)?;
        a.mov(r9, r8)?;
        a.shr(r9, 32)?;
        a.mov(byte_ptr(rbx), 0xb8)?;
        a.mov(dword_ptr(rbx + 1), r9d)?;
        a.and(r9d, 0x3800)?;
        a.add(r9d, 0xc3c2_0148_u32 as i32)?;
        a.mov(dword_ptr(rbx + 5), r9d)?;
        a.ret()?;
        // New random bits (xorshift64) in r8, and rbx at one of the functions.
        a.set_label(&mut choose)?;
        a.mov(rax, r8)?;
        a.shl(rax, 13)?;
        a.xor(r8, rax)?;
        a.mov(rax, r8)?;
        a.shr(rax, 7)?;
        a.xor(r8, rax)?;
        a.mov(rax, r8)?;
        a.shl(rax, 17)?;
        a.xor(r8, rax)?;
        a.mov(eax, r8d)?;
        a.imul_3(rax, rax, FUNCTIONS)?;
        a.shr(rax, 32)?;
        a.shl(rax, FUNCTION.ilog2())?;
        a.lea(rbx, rdi + rax)?;
        a.ret()
    })?;
    race_of_rounds("of 1,000 functions write one anew, call four", &program.with_room(functions))
}

/// Two pages of code that take turns at one address.
fn remapping(times: u64) -> Race {
    let jit: Contender = Box::new(move || {
        const OTHER: u64 = CODE + 0x10_0000;
        const AWAY: u64 = CODE + 0x20_0000;
        let machine = Machine::new(40)?;
        for (at, number) in [(CODE, 1), (OTHER, 2)] {
            machine.map(range(at, 1)?, Permissions::ReadExecute)?;
            // mov eax, number; hlt
            machine.write(GuestAddress(at), &[0xb8, number, 0, 0, 0, 0xf4])?;
        }
        let mut vcpu = machine.vcpu()?;
        let nanoseconds = each(times, |number| {
            machine.remap(range(CODE, 1)?, GuestAddress(AWAY))?;
            machine.remap(range(OTHER, 1)?, GuestAddress(CODE))?;
            machine.remap(range(AWAY, 1)?, GuestAddress(OTHER))?;
            vcpu.set_rip(GuestAddress(CODE));
            halt(&mut vcpu)?;
            let expected = 2 - number % 2;
            if vcpu.gpr(0) == expected { Ok(()) } else { Err("jit: it runs the other page".into()) }
        })?;
        Ok(nanoseconds / 3.0)
    });
    Race::of_the_jit("remap a page, a third of three and a run", "ns", jit)
}

/// `hlt`, and behind it `jumps` jumps to it.
fn star(jumps: u64) -> Vec<u8> {
    let mut code = vec![0xf4];
    for number in 0..jumps {
        code.push(0xe9);
        code.extend((-(1 + JUMP * (number as i32 + 1))).to_le_bytes());
    }
    code
}

/// Bytes of a jump.
const JUMP: i32 = 5;

/// Where jump `number` of a star is.
pub(super) fn entry(number: u64) -> u64 {
    CODE + 1 + JUMP as u64 * number
}

/// A block that a thousand others are chained to; the time of the invalidation alone. Unicorn chains
/// inside of a page only, where there is room for 800.
fn invalidation(times: u64) -> Race {
    const JUMPS: u64 = 1000;
    let jit: Contender = Box::new(move || {
        let machine = Machine::new(40)?;
        machine.map(range(CODE, 2)?, Permissions::ReadExecute)?;
        machine.write(GuestAddress(CODE), &star(JUMPS))?;
        let mut vcpu = machine.vcpu()?;
        let mut enter = |number| {
            vcpu.set_rip(GuestAddress(entry(number)));
            halt(&mut vcpu)
        };
        (0..JUMPS).try_for_each(&mut enter)?;
        if machine.figures().chained < JUMPS {
            return Err("jit: not every jump is chained".into());
        }
        let mut spent = Duration::ZERO;
        for number in 0..times {
            let begun = Instant::now();
            let struck = machine.invalidate_block(GuestAddress(CODE));
            spent += begun.elapsed();
            if !struck {
                return Err("jit: there was no block to invalidate".into());
            }
            enter(number % JUMPS)?;
        }
        Ok(spent.as_secs_f64() * 1e9 / times as f64)
    });
    let unicorn = on_unicorn!(super::unicorn::invalidation(star, 800, times));
    Race { unicorn, ..Race::of_the_jit("invalidate a block that 1,000 jumps lead to", "ns", jit) }
}

/// One vCPU writes a number into an instruction of another's loop, waits until that has run it, and
/// writes the next one.
fn crossing(rounds: u64) -> Race {
    let jit: Contender = Box::new(move || {
        let (_machine, mut writer, mut runner) = crossing_vcpus(rounds)?;
        let (stop_writer, stop_runner) = (writer.kick(), runner.kick());
        let begun = Instant::now();
        scope(|scope| {
            // Whoever fails takes the other one along, which would wait for ever.
            let runner = scope.spawn(|| halt(&mut runner).inspect_err(|_| stop_writer.ask()));
            let written = halt(&mut writer).inspect_err(|_| stop_runner.ask());
            joined(runner).and(written)
        })?;
        Ok(begun.elapsed().as_secs_f64() * 1e9 / rounds as f64)
    });
    Race::of_the_jit("patch another vCPU's loop until it runs that", "ns", jit)
}

fn crossing_vcpus(rounds: u64) -> Result<(Machine, Vcpu, Vcpu), Failure> {
    /// So that the number in the instruction is aligned, and written as one.
    const RUNNER: u64 = CODE + PAGE + 3;
    let write = Program::new(rounds, &[(RDI, RUNNER + 1)], |a| {
        let [mut again, mut wait, mut seen] = [(); 3].map(|()| a.create_label());
        a.set_label(&mut again)?;
        a.mov(dword_ptr(rdi), ecx)?;
        a.set_label(&mut wait)?;
        a.cmp(dword_ptr(rsi), ecx)?;
        a.je(seen)?;
        a.pause()?;
        a.jmp(wait)?;
        a.set_label(&mut seen)?;
        a.dec(rcx)?;
        a.jnz(again)?;
        a.mov(dword_ptr(rdi), 0)?;
        a.hlt()
    })?;
    let run = Program::new(1, &[], |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.mov(eax, u32::MAX)?;
        a.mov(dword_ptr(rsi), eax)?;
        a.test(eax, eax)?;
        a.jnz(again)?;
        a.hlt()
    })?;
    let (machine, writer) = write.with_room(PAGE).machine(Permissions::ReadWriteExecute)?;
    machine.write(GuestAddress(RUNNER), &run.code)?;
    let mut runner = machine.vcpu()?;
    runner.set_gpr(RSI, DATA);
    runner.set_gpr(RCX, rounds);
    runner.set_rip(GuestAddress(RUNNER));
    Ok((machine, writer, runner))
}

/// What a thread came to; its panic goes on here.
pub(super) fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
