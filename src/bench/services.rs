//! What users of the library do often: entering, new code, machines, snapshots, hooks, several vCPUs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::scope;
use std::time::{Duration, Instant};

use iced_x86::code_asm::{
    CodeAssembler, byte_ptr, eax, ebx, edx, qword_ptr, r8, rax, rbx, rcx, rdi, rdx, rsi,
};

use super::program::{CODE, DATA, PAGE, Program, RCX, RDX, RSI, halt, range};
use super::regions::joined;
use super::{Contender, Effort, Failure, Race, each, run_to_halt};
use crate::case::Case;
use crate::engine::Engine;
use crate::engine::silicon::Silicon;
use crate::exec::{Machine, TraceOf, Traced, Vcpu};
use crate::guest::{GuestAddress, Permissions};

/// All of them.
pub fn services(effort: Effort) -> Result<Vec<Race>, Failure> {
    let times = effort.pick(2_000, 20_000);
    Ok(vec![
        entering(times)?,
        new_code(times),
        creating(effort.pick(50, 500))?,
        translation(effort.pick(1_000, 10_000))?,
        host_bytes(effort.pick(1_000, 10_000))?,
        snapshots("restore with 1 changed page", 1, effort.pick(200, 2_000)),
        snapshots("restore with 100 changed pages", 100, effort.pick(50, 200)),
        hooked(Hooked::Code, effort.pick(30_000, 200_000))?,
        hooked(Hooked::Block, effort.pick(30_000, 200_000))?,
        hooked(Hooked::Memory, effort.pick(30_000, 200_000))?,
        hooked(Hooked::TracedCode, effort.pick(100_000, 10_000_000))?,
        hooked(Hooked::TracedBlock, effort.pick(100_000, 10_000_000))?,
        scaling(effort.pick(10_000_000, 200_000_000))?,
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

/// `mov register, number; nop; hlt`, nine bytes that differ each time, and in more than their constant from what
/// was there lately.
fn fresh(number: u64) -> Vec<u8> {
    let register = (number & 15) as u8;
    let (rex, modrm) = (0x48 | register >> 3, 0xc0 | register & 7);
    vec![rex, 0xc7, modrm, (number >> 4) as u8, (number >> 12) as u8, 0, 0, 0x90, 0xf4]
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

/// Code of `blocks` blocks that runs once.
fn cold_code(blocks: u64) -> Result<Program, Failure> {
    Program::new(11 * blocks + 1, &[], |a| {
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
    })
}

/// For each instruction.
fn translation(blocks: u64) -> Result<Race, Failure> {
    let program = cold_code(blocks)?;
    let jit = program.translated(Permissions::ReadExecute);
    let unicorn = on_unicorn!(super::unicorn::rounds(&program));
    Ok(Race {
        unicorn,
        ..Race::of_the_jit("translate and run cold code, an instruction", "ns", jit)
    })
}

/// What the same code becomes; the same each time.
fn host_bytes(blocks: u64) -> Result<Race, Failure> {
    let program = cold_code(blocks)?;
    let jit: Contender = Box::new(move || {
        let (machine, mut vcpu) = program.machine(Permissions::ReadExecute)?;
        halt(&mut vcpu)?;
        let figures = machine.figures();
        Ok(figures.host_bytes as f64 / figures.guest_bytes as f64)
    });
    Ok(Race::of_the_jit("host bytes for a byte of cold code", "B", jit))
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
    /// No call, but what is noted instead of one.
    TracedCode,
    TracedBlock,
}

/// A loop of one block, which has one event of the kind in a round; its other costs are in the figure.
fn hooked(kind: Hooked, rounds: u64) -> Result<Race, Failure> {
    let program = Program::new(rounds, &[], |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        match kind {
            Hooked::Memory => a.mov(rax, qword_ptr(rsi))?,
            _ => a.nop()?,
        }
        a.dec(rcx)?;
        a.jnz(again)?;
        a.hlt()
    })?;
    let jit = counted(&program, kind);
    let unicorn = on_unicorn!({
        // Its code hooks are called for each of the loop's three instructions.
        let events = if matches!(kind, Hooked::Code | Hooked::TracedCode) { 3 } else { 1 };
        let program = Program { rounds: program.rounds * events, ..program };
        super::unicorn::rounds_hooked(&program, kind)
    });
    let name = match kind {
        Hooked::Code => "code hook, a call",
        Hooked::Block => "block hook, a call",
        Hooked::Memory => "memory hook, a call",
        Hooked::TracedCode => "trace of instructions, an address",
        Hooked::TracedBlock => "trace of blocks, an address",
    };
    Ok(Race { unicorn, ..Race::of_the_jit(name, "ns", jit) })
}

/// Runs it in a new machine with a hook that counts, once a round.
fn counted(program: &Program, kind: Hooked) -> Contender {
    let program = program.clone();
    Box::new(move || {
        let (machine, mut vcpu) = program.machine(Permissions::ReadExecute)?;
        let calls = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&calls);
        let count = move |events| counted.store(counted.load(Relaxed) + events, Relaxed);
        let counting = count.clone();
        let count_traced = move |traced: Traced<'_>| {
            let events = traced.addresses().filter(|address| address.0 == CODE).count();
            counting(events as u64);
        };
        let code = GuestAddress(CODE)..=GuestAddress(CODE);
        let data = GuestAddress(DATA)..GuestAddress(DATA + 8);
        match kind {
            Hooked::Code => machine.hook_code(code, move |_| count(1))?,
            Hooked::Block => machine.hook_blocks(code, move |_| count(1))?,
            Hooked::Memory => machine.hook_memory(data, move |_| count(1))?,
            Hooked::TracedCode => machine.trace(TraceOf::Instructions, code, count_traced)?,
            Hooked::TracedBlock => machine.trace(TraceOf::Blocks, code, count_traced)?,
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

/// How long two do at the same time what one does alone: 1 if they do not disturb each other, 2 if they
/// take turns. Each has its own code and data; native, a process of its own.
fn scaling(rounds: u64) -> Result<Race, Failure> {
    let program = Program::new(rounds, &[], |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.add(rdx, qword_ptr(rsi))?;
        a.mov(qword_ptr(rsi + 8), rdx)?;
        a.lea(rdx, qword_ptr(rdx + rcx * 4))?;
        a.dec(rcx)?;
        a.jnz(again)?;
        a.hlt()
    })?;
    let case = program.case()?;
    let mut engines = [Silicon::new()?, Silicon::new()?];
    for engine in &mut engines {
        engine.set_time_limit(Duration::from_secs(60));
    }
    let native = |engine: &mut Silicon, case: &Case| run_to_halt(engine, case).map(drop);
    let native: Contender =
        Box::new(move || at_once_over_alone(&mut engines, |engine| native(engine, &case)));
    let jit: Contender = Box::new(move || {
        let (_machine, mut vcpus) = disjoint(&program)?;
        let value = at_once_over_alone(&mut vcpus, |vcpu| {
            vcpu.set_gpr(RCX, program.rounds);
            vcpu.set_rip(GuestAddress(vcpu.gpr(RSI) - DATA + CODE));
            halt(vcpu)
        })?;
        if vcpus[0].gpr(RDX) == vcpus[1].gpr(RDX) {
            return Ok(value);
        }
        Err("jit: two vCPUs come to different ends".into())
    });
    let name = "two vCPUs at once, of the time of one";
    Ok(Race { native: Some(native), ..Race::of_the_jit(name, "x", jit) })
}

/// A machine with two vCPUs, pages of code and of data for each.
fn disjoint(program: &Program) -> Result<(Machine, [Vcpu; 2]), Failure> {
    let (machine, first) = program.machine(Permissions::ReadExecute)?;
    let mut second = machine.vcpu()?;
    machine.map(range(CODE + PAGE, 1)?, Permissions::ReadExecute)?;
    machine.map(range(DATA + PAGE, 1)?, Permissions::ReadWrite)?;
    machine.write(GuestAddress(CODE + PAGE), &program.code)?;
    second.set_gpr(RSI, DATA + PAGE);
    Ok((machine, [first, second]))
}

/// Everyone's work at the same time, by what it takes one of them alone.
fn at_once_over_alone<W: Send>(
    workers: &mut [W; 2],
    work: impl Fn(&mut W) -> Result<(), Failure> + Sync,
) -> Result<f64, Failure> {
    let begun = Instant::now();
    workers.iter_mut().try_for_each(&work)?;
    let alone = begun.elapsed() / 2;
    let begun = Instant::now();
    let [first, second] = workers;
    scope(|scope| {
        let other = scope.spawn(|| work(second));
        let own = work(first);
        joined(other).and(own)
    })?;
    Ok(begun.elapsed().as_secs_f64() / alone.as_secs_f64())
}
