//! Memory hooks: each access, by whatever instruction.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use iced_x86::code_asm::{
    CodeAssembler, al, byte_ptr, dword_ptr, eax, k1, ptr, qword_ptr, rax, rbx, rcx, rdi, rdx, rsi,
    rsp, word_ptr, xmm0, xmmword_ptr, ymm0, ymm1, ymm2, ymmword_ptr, zmm0, zmmword_ptr,
};
use tregion::exec::{Exit, HookId, MemoryAccess};
use tregion::guest::{GuestAddress, Permissions};

use crate::guest::{CODE, DATA, Guest, Notes, RAX, RBX, RCX, RDI, RSI, RSP, STACK, guest, range};

/// Offset from [`DATA`], size, and what is written.
type Access = (u64, usize, Option<Vec<u8>>);

fn hook(guest: &Guest, from: u64, to: u64) -> (Notes<Access>, HookId) {
    let notes = Notes::new();
    let noted = notes.clone();
    let (from, to) = (GuestAddress(from), GuestAddress(to));
    let id = guest.machine.hook_memory(from..to, move |access| {
        let offset = access.address().0.wrapping_sub(DATA);
        noted.note((offset, access.size(), access.written().map(<[u8]>::to_vec)));
    });
    (notes, id.unwrap())
}

fn read(offset: u64, size: usize) -> Access {
    (offset, size, None)
}

fn write(offset: u64, bytes: &[u8]) -> Access {
    (offset, bytes.len(), Some(bytes.to_vec()))
}

/// Runs code with RDI at [`DATA`], all of whose pages are hooked, with 1, 2, 3 … in them.
fn accesses(code: impl FnOnce(&mut CodeAssembler)) -> (Vec<Access>, Guest) {
    let mut guest = guest(|a| {
        code(a);
        a.hlt().unwrap();
    });
    let bytes: Vec<u8> = (0..0x2000).map(|index| (index + 1) as u8).collect();
    guest.machine.write(GuestAddress(DATA), &bytes).unwrap();
    let (notes, _) = hook(&guest, DATA, DATA + 0x4000);
    guest.vcpu.set_gpr(RDI, DATA);
    guest.run();
    (notes.take(), guest)
}

#[test]
fn plain_operands() {
    let (seen, guest) = accesses(|a| {
        a.mov(rax, qword_ptr(rdi)).unwrap();
        a.mov(word_ptr(rdi + 2), 0x1234).unwrap();
        a.add(dword_ptr(rdi + 4), eax).unwrap();
        a.cmp(byte_ptr(rdi + 9), 1).unwrap();
        a.lock().xadd(qword_ptr(rdi + 16), rax).unwrap();
        a.movups(xmmword_ptr(rdi + 0xff8), xmm0).unwrap();
    });
    let expected = [
        read(0, 8),
        write(2, &[0x34, 0x12]),
        read(4, 4),
        write(4, &[6, 8, 10, 12]),
        read(9, 1),
        read(16, 8),
        write(16, &[0x12, 0x14, 0x16, 0x18, 0x1a, 0x1c, 0x1e, 0x20]),
        write(0xff8, &[0; 16]),
    ];
    assert_eq!(seen, expected);
    assert_eq!(guest.word(DATA + 4), 0x0c0b_0a09_0c0a_0806);
}

#[test]
fn stack_strings_and_other_implicit_operands() {
    let (seen, guest) = accesses(|a| {
        a.lea(rsp, qword_ptr(rdi + 64)).unwrap();
        a.push(7).unwrap();
        a.pop(qword_ptr(rdi)).unwrap();
        a.mov(rsi, rdi).unwrap();
        a.add(rdi, 32).unwrap();
        a.mov(rcx, 2u64).unwrap();
        a.rep().movsd().unwrap();
        a.lea(rbx, qword_ptr(rdi)).unwrap();
        a.mov(eax, 3).unwrap();
        a.xlatb().unwrap();
        a.bts(qword_ptr(rbx), rdx).unwrap();
    });
    let expected = [
        write(56, &[7, 0, 0, 0, 0, 0, 0, 0]),
        read(56, 8),
        write(0, &[7, 0, 0, 0, 0, 0, 0, 0]),
        read(0, 4),
        write(32, &[7, 0, 0, 0]),
        read(4, 4),
        write(36, &[0; 4]),
        read(43, 1),
        read(40, 8),
        write(40, &[41, 42, 43, 44, 45, 46, 47, 48]),
    ];
    assert_eq!(seen, expected);
    assert_eq!(guest.vcpu.gpr(RAX), 44);
}

#[test]
fn calls_and_returns_on_a_hooked_stack() {
    let mut guest = guest(|a| {
        let mut callee = a.create_label();
        a.call(callee).unwrap();
        a.hlt().unwrap();
        a.set_label(&mut callee).unwrap();
        a.ret().unwrap();
    });
    let (notes, _) = hook(&guest, STACK - 0x200, STACK);
    guest.run();
    let back = (CODE + 5).to_le_bytes();
    let place = (STACK - 0x108).wrapping_sub(DATA);
    assert_eq!(notes.take(), [write(place, &back), read(place, 8)]);
    assert_eq!(guest.vcpu.gpr(RSP), STACK - 0x100);
}

#[test]
fn masked_accesses() {
    if !std::arch::is_x86_feature_detected!("avx2") {
        return;
    }
    let (seen, _) = accesses(|a| {
        // Elements 1, 2 and 5.
        a.mov(rax, 0x8000_0000_8000_0000_u64).unwrap();
        a.vpxor(ymm1, ymm1, ymm1).unwrap();
        a.mov(qword_ptr(rsp - 32), rax).unwrap();
        a.shr(rax, 32).unwrap();
        a.mov(dword_ptr(rsp - 32), 0).unwrap();
        a.mov(qword_ptr(rsp - 24), rax).unwrap();
        a.shl(rax, 32).unwrap();
        a.mov(qword_ptr(rsp - 16), 0).unwrap();
        a.mov(dword_ptr(rsp - 12), 0x8000_0000_u32 as i32).unwrap();
        a.mov(qword_ptr(rsp - 8), 0).unwrap();
        a.vmovdqu(ymm1, ymmword_ptr(rsp - 32)).unwrap();
        a.vmovdqu(ymm0, ymmword_ptr(rdi)).unwrap();
        a.vpmaskmovd(ymmword_ptr(rdi + 64), ymm1, ymm0).unwrap();
        // Nothing.
        a.vpxor(ymm1, ymm1, ymm1).unwrap();
        a.vpmaskmovd(ymm2, ymm1, ymmword_ptr(rdi)).unwrap();
        a.vpmaskmovd(ymmword_ptr(rdi), ymm1, ymm0).unwrap();
    });
    let expected =
        [read(0, 32), write(68, &[5, 6, 7, 8, 9, 10, 11, 12]), write(84, &[21, 22, 23, 24])];
    assert_eq!(seen, expected);
}

#[test]
fn opmasks() {
    if !std::arch::is_x86_feature_detected!("avx512f") {
        return;
    }
    let (seen, guest) = accesses(|a| {
        a.vmovdqu64(zmm0, zmmword_ptr(rdi)).unwrap();
        a.mov(eax, 0b1000_0011).unwrap();
        a.kmovw(k1, eax).unwrap();
        a.vmovdqu64(zmmword_ptr(rdi + 0xfe8).k1(), zmm0).unwrap();
    });
    let words: Vec<u8> = (1..=16).collect();
    let last: Vec<u8> = (57..=64).collect();
    assert_eq!(seen, [read(0, 64), write(0xfe8, &words), write(0x1020, &last)]);
    assert_eq!(guest.word(DATA + 0x1020).to_le_bytes(), last[..]);
}

#[test]
fn gathers() {
    if !std::arch::is_x86_feature_detected!("avx2") {
        return;
    }
    let (seen, _) = accesses(|a| {
        a.vmovdqu(ymm1, ymmword_ptr(rsp - 64)).unwrap();
        a.vpcmpeqd(ymm2, ymm2, ymm2).unwrap();
        a.vpxor(ymm1, ymm1, ymm1).unwrap();
        a.vpgatherdq_3(ymm0, qword_ptr(rdi + iced_x86::code_asm::xmm1 * 8 + 8), ymm2).unwrap();
    });
    assert_eq!(seen, vec![read(8, 8); 4]);
}

#[test]
fn only_accesses_to_the_range_count_and_the_rest_of_the_page_works() {
    let mut guest = guest(|a| {
        let mut again = a.create_label();
        a.mov(rcx, 100u64).unwrap();
        a.set_label(&mut again).unwrap();
        a.inc(qword_ptr(rdi)).unwrap();
        a.add(qword_ptr(rdi + 16), 2).unwrap();
        a.dec(rcx).unwrap();
        a.jnz(again).unwrap();
        a.mov(rax, qword_ptr(rdi + 5)).unwrap();
        a.hlt().unwrap();
    });
    guest.vcpu.set_gpr(RDI, DATA);
    guest.run();
    let (notes, id) = hook(&guest, DATA + 8, DATA + 16);
    guest.run();
    assert_eq!(notes.take(), [read(5, 8)]);
    assert_eq!((guest.word(DATA), guest.word(DATA + 16)), (200, 400));
    assert!(guest.machine.remove_hook(id));
    guest.run();
    assert_eq!((notes.take().len(), guest.word(DATA)), (0, 300));
}

#[test]
fn a_hook_sees_memory_before_the_access_and_ends_the_run_behind_the_instruction() {
    let mut guest = guest(|a| {
        a.add(qword_ptr(rdi), rbx).unwrap();
        a.mov(al, byte_ptr(rdi)).unwrap();
        a.hlt().unwrap();
    });
    guest.set_word(DATA, 5);
    guest.vcpu.set_gpr(RDI, DATA);
    guest.vcpu.set_gpr(RBX, 4);
    let notes = Notes::new();
    let noted = notes.clone();
    let all = GuestAddress(DATA)..GuestAddress(DATA + 8);
    guest
        .machine
        .hook_memory(all, move |access| {
            let mut now = [0; 8];
            access.read(access.address(), &mut now).unwrap();
            noted.note((access.rip().0 - CODE, now[0], access.gpr(RBX)));
            if access.written().is_some() {
                access.stop();
            }
        })
        .unwrap();
    guest.vcpu.set_rip(GuestAddress(CODE));
    assert_eq!(guest.vcpu.run(None), Exit::Stopped);
    assert_eq!((guest.vcpu.rip().0 - CODE, guest.word(DATA)), (3, 9));
    assert_eq!(guest.vcpu.run(None), Exit::Halt);
    assert_eq!(notes.take(), [(0, 5, 4), (0, 5, 4), (3, 9, 4)]);
}

#[test]
fn faulting_accesses_are_none() {
    let mut guest = guest(|a| {
        a.mov(qword_ptr(rdi), rax).unwrap();
        a.hlt().unwrap();
    });
    let (notes, _) = hook(&guest, 0, 1 << 40);
    guest.vcpu.set_gpr(RDI, DATA + 0x3ffc);
    let exit = guest.vcpu.run(None);
    let fault = Some(DATA + 0x4000);
    assert!(matches!(exit, Exit::Exception { vector: 14, address, .. } if address == fault));
    assert!(notes.take().is_empty());
    assert_eq!(guest.word(DATA + 0x3ff8), 0);
}

#[test]
fn a_hook_on_all_memory_sees_code_that_is_read_and_not_what_is_fetched() {
    let mut guest = guest(|a| {
        a.mov(rax, ptr(rsi)).unwrap();
        a.mov(byte_ptr(rsi + 3), 0xf4 - 0x100).unwrap();
        a.hlt().unwrap();
    });
    guest.vcpu.set_gpr(RSI, CODE + 0x800);
    guest.vcpu.set_gpr(RCX, 1);
    let (notes, _) = hook(&guest, 0, u64::MAX);
    guest.run();
    let offset = (CODE + 0x800).wrapping_sub(DATA);
    assert_eq!(notes.take(), [read(offset, 8), write(offset.wrapping_add(3), &[0xf4])]);
}

#[test]
fn above_the_window_too() {
    let top = 0xffff_8000_0000_0000_u64;
    let mut guest = guest(|a| {
        a.add(qword_ptr(rdi), 1).unwrap();
        a.movsq().unwrap();
        a.hlt().unwrap();
    });
    let kernel = crate::guest::range(top, 1);
    guest.machine.map(kernel, tregion::guest::Permissions::ReadWrite).unwrap();
    let (notes, _) = hook(&guest, top, top + 8);
    guest.vcpu.set_gpr(RDI, top);
    guest.vcpu.set_gpr(RSI, DATA);
    guest.run();
    let offset = top.wrapping_sub(DATA);
    let one = 1_u64.to_le_bytes();
    assert_eq!(notes.take(), [read(offset, 8), write(offset, &one), write(offset, &[0; 8])]);
}

/// Operands from the last bytes of the address space on to the first ones. An atomic instruction that is
/// never sure of its operand would not end, nor could it be kicked.
#[test]
fn around_the_end_of_the_address_space() {
    let mut guest = guest(|a| {
        a.lock().bts(qword_ptr(rdi), rax).unwrap();
        a.lock().add(qword_ptr(rdi), rax).unwrap();
        a.hlt().unwrap();
    });
    for page in [0, 0xffff_ffff_ffff_f000] {
        let page = range(page, 1);
        guest.machine.map(page, Permissions::ReadWrite).unwrap();
    }
    guest.vcpu.set_gpr(RDI, 3_u64.wrapping_neg());
    guest.vcpu.set_gpr(RAX, 0x21);
    let machine = guest.machine.clone();
    let run = |hooked: bool| {
        if hooked {
            machine.hook_memory(.., |_| {}).unwrap();
        }
        guest.vcpu.set_rip(GuestAddress(CODE));
        assert_eq!(guest.vcpu.run(None), Exit::Halt);
    };
    let (done, ended) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            [false, true].into_iter().for_each(run);
            done.send(()).unwrap();
        });
        let time = std::time::Duration::from_secs(20);
        if ended.recv_timeout(time).is_err() {
            eprintln!("it does not end");
            std::process::exit(1);
        }
    });
    let mut bytes = [0; 8];
    machine.read(GuestAddress(3_u64.wrapping_neg()), &mut bytes[..3]).unwrap();
    machine.read(GuestAddress(0), &mut bytes[3..]).unwrap();
    // The bit that is set stays, and is added to each time.
    let once = |word: u64| (word | 1 << 0x21) + 0x21;
    assert_eq!(u64::from_le_bytes(bytes), once(once(0)));
}

#[test]
fn a_long_string_instruction_keeps_nobody_from_the_machine() {
    const BYTES: u64 = 16 << 20;
    const PLACE: u64 = 0x1000_0000;
    let mut guest = guest(|a| {
        a.rep().stosb().unwrap();
        a.hlt().unwrap();
    });
    let machine = guest.machine.clone();
    machine.map(range(PLACE, BYTES / 0x1000), Permissions::ReadWrite).unwrap();
    let calls = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&calls);
    let place = GuestAddress(PLACE)..GuestAddress(PLACE + BYTES);
    let count = move |_: &MemoryAccess<'_>| {
        counted.fetch_add(1, Relaxed);
    };
    machine.hook_memory(place, count).unwrap();
    guest.vcpu.set_gpr(RDI, PLACE);
    guest.vcpu.set_gpr(RCX, BYTES);
    let kick = guest.vcpu.kick();
    std::thread::scope(|scope| {
        let run = scope.spawn(|| guest.vcpu.run(None));
        while calls.load(Relaxed) < 10 {
            std::thread::yield_now();
        }
        machine.write(GuestAddress(DATA), b"there").unwrap();
        let called = calls.load(Relaxed);
        kick.ask();
        assert_eq!(run.join().unwrap(), Exit::Requested);
        assert!(called < BYTES, "the instruction was done before others had their turn");
    });
}

/// vCPUs know the hooks by themselves: what comes and goes beside another hook, they are told.
#[test]
fn one_of_two_hooks_comes_and_goes() {
    let mut guest = guest(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again).unwrap();
        a.mov(rax, qword_ptr(rdi)).unwrap();
        a.dec(rcx).unwrap();
        a.jnz(again).unwrap();
        a.hlt().unwrap();
    });
    guest.vcpu.set_gpr(RDI, DATA);
    let seen = |guest: &mut Guest, hooks: &[&Notes<Access>]| {
        guest.vcpu.set_gpr(RCX, 10);
        guest.run();
        hooks.iter().map(|notes| notes.take().len()).collect::<Vec<_>>()
    };
    let (stays, _) = hook(&guest, DATA, DATA + 8);
    assert_eq!(seen(&mut guest, &[&stays]), [10]);
    let (goes, id) = hook(&guest, DATA, DATA + 8);
    assert_eq!(seen(&mut guest, &[&stays, &goes]), [10, 10]);
    assert!(guest.machine.remove_hook(id));
    assert_eq!(seen(&mut guest, &[&stays, &goes]), [10, 0]);
}

#[test]
fn a_removed_hook_is_dropped_once_its_vcpus_have_run() {
    let mut guest = guest(|a| {
        a.mov(rax, qword_ptr(rdi)).unwrap();
        a.hlt().unwrap();
    });
    guest.vcpu.set_gpr(RDI, DATA);
    let held = Arc::new(());
    let [of_code, of_blocks, of_memory] = [0, 1, 2].map(|_| Arc::clone(&held));
    let machine = &guest.machine;
    let all = GuestAddress(0)..GuestAddress(1 << 40);
    let hooks = [
        machine.hook_code(all.clone(), move |_| drop(Arc::clone(&of_code))).unwrap(),
        machine.hook_blocks(all.clone(), move |_| drop(Arc::clone(&of_blocks))).unwrap(),
        machine.hook_memory(all, move |_| drop(Arc::clone(&of_memory))).unwrap(),
    ];
    for (left, id) in [3, 2, 1].into_iter().zip(hooks) {
        guest.run();
        assert_eq!(Arc::strong_count(&held), left + 1);
        assert!(guest.machine.remove_hook(id));
    }
    guest.run();
    assert_eq!(Arc::strong_count(&held), 1);
}
