//! Devices: one call for each access.

use iced_x86::code_asm::{
    CodeAssembler, ax, byte_ptr, cl, dword_ptr, eax, qword_ptr, rax, rbx, rcx, rdi, rsi, st0, xmm0,
    xmm1, xmm2, xmmword_ptr,
};
use tregion::exec::{Exit, Mmio};
use tregion::guest::{GuestAddress, Permissions};
use tregion::memory::MapError;

use crate::guest::{CODE, DATA, Guest, Notes, RAX, RBX, RCX, RDI, RSI, guest, range};

const DEVICE: u64 = 0x100_0000;

/// `r` or `w`, offset, and the bytes.
type Call = (char, u64, Vec<u8>);

/// A device whose bytes count up from its first, with each read, from 1.
fn device(guest: &Guest, at: u64, pages: u64) -> Notes<Call> {
    let notes = Notes::new();
    let noted = notes.clone();
    let mut next = 0;
    guest
        .machine
        .map_mmio(range(at, pages), move |access| match access {
            Mmio::Read { offset, value, .. } => {
                for byte in value.iter_mut() {
                    next += 1;
                    *byte = next;
                }
                noted.note(('r', offset, value.to_vec()));
            }
            Mmio::Write { offset, value, .. } => noted.note(('w', offset, value.to_vec())),
        })
        .unwrap();
    notes
}

fn calls(code: impl FnOnce(&mut CodeAssembler)) -> (Vec<Call>, Guest) {
    let mut guest = guest(|a| {
        code(a);
        a.hlt().unwrap();
    });
    let notes = device(&guest, DEVICE, 2);
    guest.vcpu.set_gpr(RDI, DEVICE);
    guest.vcpu.set_gpr(RBX, DATA);
    guest.run();
    (notes.take(), guest)
}

#[test]
fn one_call_for_each_access() {
    let (seen, guest) = calls(|a| {
        a.mov(rax, qword_ptr(rdi + 8)).unwrap();
        a.mov(dword_ptr(rdi + 4), eax).unwrap();
        // The same value again is a write again.
        a.mov(dword_ptr(rdi + 4), eax).unwrap();
        a.inc(byte_ptr(rdi)).unwrap();
        a.xchg(qword_ptr(rdi), rcx).unwrap();
        a.test(byte_ptr(rdi), 1).unwrap();
        a.movups(xmm0, xmmword_ptr(rdi + 0x10)).unwrap();
        a.movups(xmmword_ptr(rdi + 0x20), xmm0).unwrap();
    });
    let bytes = |from: u8, to: u8| (from..=to).collect::<Vec<u8>>();
    let expected = [
        ('r', 8, bytes(1, 8)),
        ('w', 4, bytes(1, 4)),
        ('w', 4, bytes(1, 4)),
        ('r', 0, vec![9]),
        ('w', 0, vec![10]),
        ('r', 0, bytes(10, 17)),
        ('w', 0, vec![0; 8]),
        ('r', 0, vec![18]),
        ('r', 0x10, bytes(19, 34)),
        ('w', 0x20, bytes(19, 34)),
    ];
    assert_eq!(seen, expected);
    assert_eq!(guest.vcpu.gpr(RAX), 0x0807_0605_0403_0201);
    assert_eq!(guest.vcpu.gpr(RCX), u64::from_le_bytes(std::array::from_fn(|i| 10 + i as u8)));
}

#[test]
fn strings_x87_and_stack() {
    let (seen, guest) = calls(|a| {
        a.mov(rsi, rdi).unwrap();
        a.mov(rdi, rbx).unwrap();
        a.mov(rcx, 3u64).unwrap();
        a.rep().movsw().unwrap();
        a.fld(dword_ptr(rsi)).unwrap();
        a.fstp(st0).unwrap();
        a.push(qword_ptr(rsi)).unwrap();
        a.pop(rax).unwrap();
        a.div(byte_ptr(rsi + 1)).unwrap();
    });
    let kinds: Vec<(char, u64, usize)> = seen.iter().map(|c| (c.0, c.1, c.2.len())).collect();
    let expected = [('r', 0, 2), ('r', 2, 2), ('r', 4, 2), ('r', 6, 4), ('r', 6, 8), ('r', 7, 1)];
    assert_eq!(kinds, expected);
    assert_eq!(guest.word(DATA), 0x0605_0403_0201);
}

#[test]
fn an_access_that_faults_is_no_access() {
    // Above the window nothing but the bounce is between the instruction and the device.
    for (device_at, instruction) in [DEVICE, 0xffff_8000_0000_0000].into_iter().flat_map(|at| {
        // movaps xmm0, [rdi + 1] and back; inc byte [rsi], where that may only be read.
        let load = &[0x0f, 0x28, 0x47, 0x01][..];
        [load, &[0x0f, 0x29, 0x47, 0x01], &[0xfe, 0x06]].map(|instruction| (at, instruction))
    }) {
        let mut guest = guest(|a| a.db(instruction).unwrap());
        let notes = device(&guest, device_at, 2);
        guest.machine.protect(range(device_at + 0x1000, 1), Permissions::Read).unwrap();
        guest.vcpu.set_gpr(RDI, device_at);
        guest.vcpu.set_gpr(RSI, device_at + 0x1000);
        let exit = guest.vcpu.run(None);
        assert!(matches!(exit, Exit::Exception { vector: 13 | 14, .. }), "{exit}");
        assert_eq!(notes.take(), [], "{instruction:x?}");
    }
}

#[test]
fn an_access_that_is_masked_out_is_no_access() {
    if !std::arch::is_x86_feature_detected!("avx2") {
        return;
    }
    for device_at in [DEVICE, 0xffff_8000_0000_0000] {
        let mut guest = guest(|a| {
            a.vpxor(xmm1, xmm1, xmm1).unwrap();
            a.vpmaskmovd(xmm2, xmm1, xmmword_ptr(rdi)).unwrap();
            a.vpmaskmovd(xmmword_ptr(rdi), xmm1, xmm2).unwrap();
            a.hlt().unwrap();
        });
        let notes = device(&guest, device_at, 1);
        guest.vcpu.set_gpr(RDI, device_at);
        guest.run();
        assert_eq!(notes.take(), []);
    }
}

#[test]
fn an_access_that_crosses_into_a_device_reaches_both() {
    let mut guest = guest(|a| {
        a.mov(rax, qword_ptr(rdi)).unwrap();
        a.mov(qword_ptr(rdi), rbx).unwrap();
        a.hlt().unwrap();
    });
    let notes = device(&guest, DATA + 0x4000, 1);
    guest.set_word(DATA + 0x3ff8, 0xaabb_ccdd_0000_0000);
    guest.vcpu.set_gpr(RDI, DATA + 0x3ffc);
    guest.vcpu.set_gpr(RBX, 0x1111_2222_3333_4444);
    guest.run();
    let expected = [('r', 0, vec![1, 2, 3, 4]), ('w', 0, vec![0x22, 0x22, 0x11, 0x11])];
    assert_eq!(notes.take(), expected);
    assert_eq!(guest.vcpu.gpr(RAX), 0x0403_0201_aabb_ccdd);
    assert_eq!(guest.word(DATA + 0x3ff8), 0x3333_4444_0000_0000);
}

#[test]
fn large_operands_come_in_parts() {
    let mut guest = guest(|a| {
        a.fxsave64(iced_x86::code_asm::ptr(rdi)).unwrap();
        a.hlt().unwrap();
    });
    let notes = device(&guest, DEVICE, 1);
    guest.vcpu.set_gpr(RDI, DEVICE + 0x100);
    guest.run();
    let seen = notes.take();
    assert!(seen.iter().all(|call| call.0 == 'w' && call.2.len() <= 64), "{seen:?}");
    // The end of the area is left alone: reserved bytes, and 48 for software.
    let bytes = seen.iter().map(|call| call.2.len()).sum::<usize>();
    assert!((416..=464).contains(&bytes), "{bytes}");
}

#[test]
fn a_device_can_be_above_the_window_moved_and_aliased() {
    let mut guest = guest(|a| {
        a.mov(ax, iced_x86::code_asm::word_ptr(rdi + 2)).unwrap();
        a.mov(byte_ptr(rdi + 1), cl).unwrap();
        a.hlt().unwrap();
    });
    let top = 0xffff_ffff_ffff_e000;
    let notes = device(&guest, top, 2);
    guest.machine.alias(range(top + 0x1000, 1), GuestAddress(DEVICE)).unwrap();
    guest.machine.remap(range(top, 2), GuestAddress(DEVICE + 0x10_0000)).unwrap();
    for (place, offset) in [(DEVICE, 0x1000), (DEVICE + 0x10_0000, 0)] {
        guest.vcpu.set_gpr(RDI, place);
        guest.run();
        let seen = notes.take();
        assert_eq!((seen[0].1, seen[1].1, seen.len()), (offset + 2, offset + 1, 2));
    }
}

#[test]
fn there_is_no_code_in_a_device_and_nothing_else_where_one_is() {
    let mut guest = guest(|a| a.jmp(rdi).unwrap());
    let notes = device(&guest, DEVICE, 1);
    guest.vcpu.set_gpr(RDI, DEVICE);
    for permissions in [Permissions::ReadWrite, Permissions::ReadWriteExecute] {
        guest.machine.protect(range(DEVICE, 1), permissions).unwrap();
        guest.vcpu.set_rip(GuestAddress(CODE));
        let exit = guest.vcpu.run(None);
        let expected = Exit::Exception { vector: 14, error: 0x15, address: Some(DEVICE) };
        assert_eq!((exit, guest.vcpu.rip().0), (expected, DEVICE));
    }
    assert_eq!(notes.take(), []);
    let error = guest.machine.map_mmio(range(DEVICE - 0x1000, 2), |_| {}).unwrap_err();
    assert!(matches!(error, MapError::Overlap { .. }), "{error}");
    let error = guest.machine.map(range(DEVICE, 1), Permissions::Read).unwrap_err();
    assert!(matches!(error, MapError::Overlap { .. }), "{error}");
}

#[test]
fn a_device_lives_as_long_as_it_is_mapped_or_in_a_snapshot() {
    struct OnDrop(Notes<&'static str>);
    impl Drop for OnDrop {
        fn drop(&mut self) {
            self.0.note("dropped");
        }
    }
    let mut guest = guest(|a| {
        a.mov(rax, qword_ptr(rdi)).unwrap();
        a.hlt().unwrap();
    });
    guest.vcpu.set_gpr(RDI, DEVICE);
    let notes = Notes::new();
    let on_drop = OnDrop(notes.clone());
    guest
        .machine
        .map_mmio(range(DEVICE, 1), move |access| {
            on_drop.0.note("called");
            if let Mmio::Read { value, .. } = access {
                value[0] = 9;
            }
        })
        .unwrap();
    let snapshot = guest.machine.snapshot().unwrap();
    guest.machine.unmap(range(DEVICE, 1)).unwrap();
    assert_eq!(notes.take(), [""; 0]);
    guest.machine.map(range(DEVICE, 1), Permissions::ReadWrite).unwrap();
    guest.run();
    assert_eq!(guest.vcpu.gpr(RAX), 0, "plain memory");
    guest.machine.restore(&snapshot).unwrap();
    guest.run();
    assert_eq!((guest.vcpu.gpr(RAX), notes.take()), (9, vec!["called"]));
    drop(snapshot);
    guest.machine.unmap(range(DEVICE, 1)).unwrap();
    assert_eq!(notes.take(), ["dropped"]);
}

#[test]
fn a_panic_in_a_device_hurts_nobody_else() {
    let mut guest = guest(|a| {
        a.mov(rax, qword_ptr(rdi)).unwrap();
        a.hlt().unwrap();
    });
    let mut broken = true;
    guest
        .machine
        .map_mmio(range(DEVICE, 1), move |_| {
            assert!(!std::mem::replace(&mut broken, false), "as wanted");
        })
        .unwrap();
    guest.vcpu.set_gpr(RDI, DEVICE);
    let run = std::panic::AssertUnwindSafe(|| guest.vcpu.run(None));
    assert!(std::panic::catch_unwind(run).is_err());
    assert_eq!(guest.vcpu.rip().0, CODE);
    guest.run();
}
