//! LOCKed instructions are atomic, by whatever way they are executed: as themselves, by the run loop,
//! on a copy of their operand; in a page beside code, above the window, across two pages, in pages that
//! a hook looks at, in pages that come and go. What one vCPU adds to a word, others must not undo.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use iced_x86::code_asm::{
    AsmMemoryOperand, CodeAssembler, dword_ptr, eax, ecx, qword_ptr, r11, r12, rax, rbx, rcx, rdx,
    xmm0, xmm1, xmmword_ptr,
};
use tregion::exec::{Exit, MemoryAccess};
use tregion::guest::{GuestAddress, Permissions};

use crate::guest::{Arena, CODE, PATIENCE, alone, join, range, stack, time};

const COUNTER: u64 = 0x80_0000;
const TIMES: u64 = 20_000;
/// Hosts make whoever locks across two lines wait for milliseconds.
const SPLIT_TIMES: u64 = 20;

/// Adds 1 to the qword at R12 atomically.
type Add = fn(&mut CodeAssembler);

fn word() -> AsmMemoryOperand {
    qword_ptr(r12)
}

fn increment(a: &mut CodeAssembler) {
    a.lock().inc(word()).unwrap();
}

fn exchange_add(a: &mut CodeAssembler) {
    a.mov(rax, 1_u64).unwrap();
    a.lock().xadd(word(), rax).unwrap();
}

fn compare_exchange(a: &mut CodeAssembler) {
    let mut again = a.create_label();
    a.mov(rax, word()).unwrap();
    a.set_label(&mut again).unwrap();
    a.lea(rdx, qword_ptr(rax + 1)).unwrap();
    a.lock().cmpxchg(word(), rdx).unwrap();
    a.jne(again).unwrap();
}

fn compare_exchange_8b(a: &mut CodeAssembler) {
    let mut again = a.create_label();
    a.push(rbx).unwrap();
    a.push(rcx).unwrap();
    a.mov(eax, dword_ptr(r12)).unwrap();
    a.mov(iced_x86::code_asm::edx, dword_ptr(r12 + 4)).unwrap();
    a.set_label(&mut again).unwrap();
    a.mov(iced_x86::code_asm::ebx, eax).unwrap();
    a.mov(ecx, iced_x86::code_asm::edx).unwrap();
    a.add(iced_x86::code_asm::ebx, 1).unwrap();
    a.adc(ecx, 0).unwrap();
    a.lock().cmpxchg8b(word()).unwrap();
    a.jne(again).unwrap();
    a.pop(rcx).unwrap();
    a.pop(rbx).unwrap();
}

/// Sets a bit that was clear, by a bit number in a register, which reaches beyond the operand. Others
/// count in the upper half.
fn bit(a: &mut CodeAssembler) {
    let mut again = a.create_label();
    // A lock, taken and given back.
    a.mov(rax, 0_u64).unwrap();
    a.set_label(&mut again).unwrap();
    a.pause().unwrap();
    a.lock().bts(qword_ptr(r12 + 64), rax).unwrap();
    a.jc(again).unwrap();
    a.inc(word()).unwrap();
    a.lock().btr(qword_ptr(r12 + 64), rax).unwrap();
}

/// Changes the counter's neighbour bits by register while others add: bit 63 is flipped twice.
fn flip(a: &mut CodeAssembler) {
    a.mov(rax, 62_u64).unwrap();
    a.lock().btc(word(), rax).unwrap();
    a.lock().btc(word(), rax).unwrap();
    a.lock().inc(word()).unwrap();
}

/// Stores eight bytes behind the counter, by a mask that leaves the counter alone.
fn masked(a: &mut CodeAssembler) {
    a.vpcmpeqd(xmm0, xmm0, xmm0).unwrap();
    a.vpslldq(xmm0, xmm0, 8).unwrap();
    a.vmovq(xmm1, rcx).unwrap();
    a.vpslldq(xmm1, xmm1, 8).unwrap();
    a.vmaskmovps(xmmword_ptr(r12), xmm0, xmm1).unwrap();
    a.lock().inc(word()).unwrap();
}

/// Two vCPUs add by `adds` at the two addresses, which are the same memory, while the test does
/// `meanwhile`. Faults that `meanwhile` brings are passed by trying again.
fn add_up(name: &str, arena: &Arena, at: [u64; 2], adds: [Add; 2], mut meanwhile: impl FnMut(u64)) {
    let over = Arc::new(AtomicBool::new(false));
    let times = if at[0] % 64 > 56 { SPLIT_TIMES } else { TIMES };
    let threads: Vec<_> = (0..2)
        .map(|number| {
            let start = CODE + number as u64 * 0x1000;
            arena.code(start, |a| {
                let mut again = a.create_label();
                a.mov(rcx, times).unwrap();
                a.set_label(&mut again).unwrap();
                adds[number](a);
                a.dec(rcx).unwrap();
                a.jnz(again).unwrap();
                a.syscall().unwrap();
            });
            let mut vcpu = arena.vcpu(number, start);
            vcpu.set_gpr(12, at[number]);
            let over = Arc::clone(&over);
            std::thread::spawn(move || {
                let mut rounds = 0;
                while !over.load(Ordering::SeqCst) {
                    vcpu.set_rip(GuestAddress(start));
                    vcpu.set_gpr(4, stack(number));
                    loop {
                        match vcpu.run(None) {
                            Exit::SystemCall => break,
                            Exit::Exception { vector: 14, .. } => {}
                            exit => panic!("{exit} at {}", vcpu.rip()),
                        }
                    }
                    rounds += 1;
                }
                rounds
            })
        })
        .collect();
    let until = Instant::now() + time(0.2);
    let mut round = 0;
    while Instant::now() < until && threads.iter().all(|thread| !thread.is_finished()) {
        meanwhile(round);
        round += 1;
    }
    over.store(true, Ordering::SeqCst);
    assert!(until.elapsed() < PATIENCE);
    let rounds: u64 = threads.into_iter().map(|thread| join(name, thread)).sum();
    let (sum, expected) = (arena.word(at[0]), rounds * times);
    println!("{name}: {sum} of {expected}, {round} changes meanwhile");
    assert_eq!(sum, expected, "{name}: additions were lost");
}

fn wait(_: u64) {
    std::thread::sleep(std::time::Duration::from_millis(1));
}

fn arena(permissions: Permissions) -> Arena {
    let arena = Arena::with_window(33);
    arena.map(COUNTER, 2, permissions);
    arena
}

/// An arena whose counter is at `alias` too, above the window or in it.
fn with_alias(alias: u64) -> (Arena, u64) {
    let arena = arena(Permissions::ReadWrite);
    arena.machine.alias(range(COUNTER, 2), GuestAddress(alias)).unwrap();
    (arena, alias)
}

#[test]
fn all_forms() {
    let _alone = alone();
    let forms: [(&str, Add); 4] = [
        ("inc", increment),
        ("xadd", exchange_add),
        ("cmpxchg", compare_exchange),
        ("cmpxchg8b", compare_exchange_8b),
    ];
    for (name, form) in forms {
        let arena = arena(Permissions::ReadWrite);
        add_up(name, &arena, [COUNTER; 2], [form, increment], wait);
    }
}

#[test]
fn bits_by_register() {
    let _alone = alone();
    add_up("lock of bits", &arena(Permissions::ReadWrite), [COUNTER; 2], [bit, bit], wait);
}

#[test]
fn bits_by_register_beside_a_counter() {
    let _alone = alone();
    add_up("flipped bits", &arena(Permissions::ReadWrite), [COUNTER; 2], [flip, increment], wait);
}

/// Where the run loop executes them.
#[test]
fn bits_by_register_above_the_window_and_a_counter_below() {
    let _alone = alone();
    let (arena, above) = with_alias(1 << 40);
    add_up("flipped bits above", &arena, [above, COUNTER], [flip, increment], wait);
}

#[test]
fn masked_stores_above_the_window() {
    if !is_x86_feature_detected!("avx") {
        return;
    }
    let _alone = alone();
    let (arena, above) = with_alias(1 << 40);
    add_up("masked stores", &arena, [above, COUNTER], [masked, increment], wait);
}

#[test]
fn across_pages() {
    let _alone = alone();
    let at = COUNTER + 0xffc;
    add_up("across pages", &arena(Permissions::ReadWrite), [at; 2], [increment; 2], wait);
}

#[test]
fn above_the_window() {
    let _alone = alone();
    let (arena, above) = with_alias(1 << 40);
    add_up("above", &arena, [above; 2], [increment; 2], wait);
}

#[test]
fn above_the_window_and_below() {
    let _alone = alone();
    let (arena, above) = with_alias(1 << 40);
    add_up("above and below", &arena, [above, COUNTER], [increment; 2], wait);
}

/// A page that a memory hook looks at, and an alias that none looks at.
#[test]
fn where_a_hook_looks() {
    let _alone = alone();
    let (arena, alias) = with_alias(0x90_0000);
    let hooked = GuestAddress(COUNTER)..GuestAddress(COUNTER + 0x1000);
    // It takes its time, so that the other vCPU gets between the announced store and the store. On a busy host
    // that is much, so it stops to when the vCPUs are to end.
    let until = Instant::now() + time(0.4);
    let hook = move |_: &MemoryAccess<'_>| {
        if Instant::now() < until {
            std::thread::yield_now();
        }
    };
    arena.machine.hook_memory(hooked, hook).unwrap();
    add_up("hooked alias", &arena, [COUNTER, alias], [increment; 2], wait);
    add_up("bits of a hooked alias", &arena, [COUNTER + 8, alias + 8], [flip, increment], wait);
}

#[test]
fn where_a_hook_comes_and_goes() {
    let _alone = alone();
    let arena = arena(Permissions::ReadWrite);
    let machine = arena.machine.clone();
    add_up("hook comes and goes", &arena, [COUNTER; 2], [increment; 2], |_| {
        let hooked = GuestAddress(COUNTER)..GuestAddress(COUNTER + 0x1000);
        let id = machine.hook_memory(hooked, |_| {}).unwrap();
        std::thread::yield_now();
        assert!(machine.remove_hook(id));
    });
}

#[test]
fn where_permissions_change() {
    let _alone = alone();
    let arena = arena(Permissions::ReadWrite);
    let machine = arena.machine.clone();
    add_up("protect", &arena, [COUNTER; 2], [increment, exchange_add], |round| {
        let permissions = [Permissions::Read, Permissions::None][round as usize % 2];
        machine.protect(range(COUNTER, 1), permissions).unwrap();
        let before = arena.word(COUNTER);
        std::thread::yield_now();
        assert_eq!(arena.word(COUNTER), before, "written where nobody may write");
        machine.protect(range(COUNTER, 1), Permissions::ReadWrite).unwrap();
    });
}

/// A snapshot makes pages not writable until they are written.
#[test]
fn where_snapshots_are_taken() {
    let _alone = alone();
    let arena = arena(Permissions::ReadWrite);
    let machine = arena.machine.clone();
    add_up("snapshots", &arena, [COUNTER; 2], [increment, exchange_add], |_| {
        drop(machine.snapshot().unwrap());
    });
}

/// The counter lies in a page whose code a third vCPU executes, over and over.
#[test]
fn beside_code_that_runs() {
    let _alone = alone();
    let arena = arena(Permissions::ReadWriteExecute);
    let code = COUNTER + 0x100;
    arena.code(code, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again).unwrap();
        a.mov(r11, code + 0x40).unwrap();
        a.jmp(r11).unwrap();
    });
    arena.code(code + 0x40, |a| {
        a.mov(r11, code).unwrap();
        a.jmp(r11).unwrap();
    });
    let mut vcpu = arena.vcpu(3, code);
    let kick = vcpu.kick();
    let thread = std::thread::spawn(move || vcpu.run(None));
    let machine = arena.machine.clone();
    add_up("beside code", &arena, [COUNTER; 2], [increment, exchange_add], |_| machine.flush());
    kick.ask();
    assert_eq!(join("the third", thread), Exit::Requested);
    arena.check_emptied();
}
