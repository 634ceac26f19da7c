//! How long it takes until a vCPU does what another thread wants: to leave guest code, and not to run
//! what was invalidated. Prints the median, the 99th of a hundred, and the longest, in microseconds.

use std::error::Error;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use iced_x86::code_asm::{CodeAssembler, ecx, r11, rax, rcx, rdi, rsi};
use tregion::exec::{Exit, Machine, Vcpu};
use tregion::guest::{GuestAddress, GuestRange, Permissions};
use tregion::os::pin_to_nth_cpu;

type Failure = Box<dyn Error>;

const CODE: u64 = 0x40_0000;
const DATA: u64 = 0x1000_0000;
const DATA_BYTES: u64 = 64 << 20;
const KICKS: usize = 2000;
const ROUNDS: usize = 300;

fn main() -> Result<(), Failure> {
    println!("from a kick to the exit:");
    kicks("a jump to itself", "", |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        Ok(a.jmp(again)?)
    })?;
    kicks("two pages that jump to each other", "", |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.jmp(CODE + 0x1000)?;
        a.nops_with_size(0x1000 - 5)?;
        Ok(a.jmp(again)?)
    })?;
    kicks("rep movsb of 32 MiB", "", |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.mov(rsi, DATA)?;
        a.mov(rdi, DATA + DATA_BYTES / 2)?;
        a.mov(rcx, DATA_BYTES / 2)?;
        a.rep().movsb()?;
        Ok(a.jmp(again)?)
    })?;
    kicks("rep stosb of 64 MiB", "", |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.mov(rdi, DATA)?;
        a.mov(rcx, DATA_BYTES)?;
        a.rep().stosb()?;
        Ok(a.jmp(again)?)
    })?;
    kicks("entering over and over", "cpuid: ", |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.cpuid()?;
        Ok(a.jmp(again)?)
    })?;
    println!("invalidation of a page:");
    for blocks in [10, 100, 1000] {
        for running in 0..=2 {
            for waits in [true, false] {
                invalidations(blocks, running, waits)?;
            }
        }
    }
    Ok(())
}

fn range(at: u64, bytes: u64) -> Result<GuestRange, Failure> {
    Ok(GuestRange::new(GuestAddress(at), bytes)?)
}

fn machine(
    pages: u64,
    write: impl FnOnce(&mut CodeAssembler) -> Result<(), Failure>,
) -> Result<Machine, Failure> {
    let machine = Machine::new(40)?;
    // Each page is a mapping, and so a region, of its own.
    for page in 0..pages {
        let permissions = [Permissions::ReadExecute, Permissions::ReadWriteExecute];
        machine.map(range(CODE + page * 0x1000, 0x1000)?, permissions[page as usize % 2])?;
    }
    machine.map(range(DATA, DATA_BYTES)?, Permissions::ReadWrite)?;
    let mut assembler = CodeAssembler::new(64)?;
    write(&mut assembler)?;
    machine.write(GuestAddress(CODE), &assembler.assemble(CODE)?)?;
    Ok(machine)
}

fn vcpu(machine: &Machine) -> Result<Vcpu, Failure> {
    let mut vcpu = machine.vcpu()?;
    vcpu.set_rip(GuestAddress(CODE));
    Ok(vcpu)
}

fn print(name: &str, mut times: Vec<u64>) {
    times.sort_unstable();
    let microseconds = |index: usize| times[index] as f64 / 1000.0;
    let last = times.len() - 1;
    let [half, most, all] = [last / 2, last * 99 / 100, last].map(microseconds);
    println!("  {name:<60} {half:>10.1} {most:>10.1} {all:>10.1}");
}

fn kicks(
    name: &str,
    detail: &str,
    write: impl FnOnce(&mut CodeAssembler) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let machine = machine(2, write)?;
    let mut vcpu = vcpu(&machine)?;
    let kick = vcpu.kick();
    let start = Instant::now();
    // When the last run ended, and how many have.
    let (left, ended) = (AtomicU64::new(0), AtomicU64::new(0));
    let times = std::thread::scope(|scope| {
        scope.spawn(|| {
            // Or the scheduler may leave two busy threads on one processor for long.
            pin_to_nth_cpu(1).expect("threads can be tied to processors");
            for _ in 0..KICKS {
                let exit = vcpu.run(None);
                left.store(start.elapsed().as_nanos() as u64, Ordering::SeqCst);
                assert_eq!(exit, Exit::Requested, "nothing else ends the run");
                ended.fetch_add(1, Ordering::SeqCst);
            }
        });
        let mut times = Vec::new();
        for number in 0..KICKS as u64 {
            let pause = Instant::now() + Duration::from_micros(100 + number % 64);
            while Instant::now() < pause {
                std::hint::spin_loop();
            }
            let asked = start.elapsed().as_nanos() as u64;
            kick.ask();
            while ended.load(Ordering::SeqCst) == number {
                std::hint::spin_loop();
            }
            times.push(left.load(Ordering::SeqCst).saturating_sub(asked));
        }
        times
    });
    print(&format!("{detail}{name}"), times);
    Ok(())
}

/// `blocks` blocks, each of which jumps to the next, the last to the first by a register.
fn ring(a: &mut CodeAssembler, blocks: usize) -> Result<(), Failure> {
    a.mov(ecx, 1)?;
    let start = CODE + 5;
    for _ in 0..blocks - 1 {
        // Two bytes each: a jump to the instruction behind it.
        let mut next = a.create_label();
        a.jmp(next)?;
        a.set_label(&mut next)?;
    }
    a.inc(rax)?;
    a.mov(r11, start)?;
    Ok(a.jmp(r11)?)
}

fn invalidations(blocks: usize, running: usize, waits: bool) -> Result<(), Failure> {
    let machine = machine(1, |a| ring(a, blocks))?;
    let mut vcpus = Vec::new();
    for _ in 0..running {
        vcpus.push(vcpu(&machine)?);
    }
    // Translates the page where no vCPU runs.
    let mut own = vcpu(&machine)?;
    let kicks: Vec<_> = vcpus.iter().map(Vcpu::kick).collect();
    let over = AtomicBool::new(false);
    let page = range(CODE, 0x1000)?;
    let times = std::thread::scope(|scope| {
        let over = &over;
        for (number, vcpu) in vcpus.iter_mut().enumerate() {
            scope.spawn(move || {
                pin_to_nth_cpu(number + 1).expect("threads can be tied to processors");
                while !over.load(Ordering::SeqCst) {
                    assert_eq!(vcpu.run(None), Exit::Requested, "nothing else ends the run");
                }
            });
        }
        // A call that waits ends though vCPUs run on: somebody asks them to leave from time to time.
        let asking = kicks.clone();
        scope.spawn(move || {
            while !over.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(20));
                asking.iter().for_each(tregion::exec::Kick::ask);
            }
        });
        let mut times = Vec::new();
        for _ in 0..ROUNDS {
            if running == 0 {
                own.set_rip(GuestAddress(CODE));
                assert_eq!(own.run(Some(3 * blocks as u64 + 100)), Exit::Budget);
            } else {
                std::thread::sleep(Duration::from_millis(if blocks > 500 { 8 } else { 2 }));
            }
            let begun = Instant::now();
            if waits {
                machine.invalidate(page)
            } else {
                machine.invalidate_soon(page)
            }
            times.push(begun.elapsed().as_nanos() as u64);
        }
        over.store(true, Ordering::SeqCst);
        kicks.iter().for_each(tregion::exec::Kick::ask);
        times
    });
    let call = if waits { "invalidate" } else { "invalidate_soon" };
    print(&format!("{call}, {blocks} blocks, {running} vCPUs run"), times);
    Ok(())
}
