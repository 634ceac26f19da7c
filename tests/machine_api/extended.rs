//! Vectors and x87: only what code needs of them is loaded and saved, and nobody notices.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};

use iced_x86::code_asm::*;
use tregion::exec::{Exit, Vcpu};
use tregion::guest::{F80, GuestAddress, HostFeatures, State};

use crate::guest::{CODE, DATA, Guest, RAX, RBX, RDI, assemble, guest};

/// Code beside the first, at the start of the second page.
const OTHER: u64 = CODE + 0x1000;

/// Another value in each register.
fn filled(vcpu: &Vcpu) -> State {
    let mut state = vcpu.state();
    for (number, vector) in state.vector[..16].iter_mut().enumerate() {
        let words = if is_x86_feature_detected!("avx") { 4 } else { 2 };
        vector[..words].fill(0x0101_0101_0101_0101 * (number as u64 + 1));
    }
    state.x87.st[0] = F80 { significand: 1 << 63, sign_exponent: 0x3fff };
    state.x87.tag = 1;
    state.mxcsr = 0x5f80;
    state
}

/// Runs `code`, which ends with `hlt`, from a page of its own.
fn run(guest: &mut Guest, code: &[u8]) {
    guest.machine.write(GuestAddress(OTHER), code).unwrap();
    guest.vcpu.set_rip(GuestAddress(OTHER));
    assert_eq!(guest.vcpu.run(None), Exit::Halt, "at {}", guest.vcpu.rip());
}

fn bytes(write: impl FnOnce(&mut CodeAssembler)) -> Vec<u8> {
    assemble(OTHER, |a| {
        write(a);
        a.hlt().unwrap();
    })
}

#[test]
fn everything_stays_where_code_comes_to_need_more() {
    let mut guest = guest(|a| a.hlt().unwrap());
    let start = filled(&guest.vcpu);
    guest.vcpu.set_state(&start);
    let expect = |guest: &Guest, change: &dyn Fn(&mut State)| {
        let mut expected = start.clone();
        change(&mut expected);
        let state = guest.vcpu.state();
        assert_eq!(state.vector, expected.vector);
        assert_eq!((state.mxcsr, state.x87.st), (expected.mxcsr, expected.x87.st));
    };
    run(&mut guest, &bytes(|a| a.inc(rax).unwrap()));
    expect(&guest, &|_| ());
    // Each register of SSE once.
    run(
        &mut guest,
        &bytes(|a| {
            for xmm in [xmm0, xmm1, xmm2, xmm3, xmm4, xmm5, xmm6, xmm7] {
                a.paddb(xmm, xmm).unwrap();
            }
            for xmm in [xmm8, xmm9, xmm10, xmm11, xmm12, xmm13, xmm14, xmm15] {
                a.paddb(xmm, xmm).unwrap();
            }
            a.stmxcsr(dword_ptr(DATA)).unwrap();
        }),
    );
    let doubled = |state: &mut State| {
        for vector in &mut state.vector[..16] {
            vector[..2].iter_mut().for_each(|word| *word *= 2);
        }
    };
    expect(&guest, &doubled);
    assert_eq!(guest.word(DATA) as u32, 0x5f80);
    run(
        &mut guest,
        &bytes(|a| {
            a.fld1().unwrap();
            a.faddp(st1, st0).unwrap();
        }),
    );
    let added = |state: &mut State| {
        doubled(state);
        state.x87.st[0] = F80 { significand: 1 << 63, sign_exponent: 0x4000 };
        // What is empty holds what was there.
        state.x87.st[7] = F80 { significand: 1 << 63, sign_exponent: 0x3fff };
    };
    expect(&guest, &added);
    if is_x86_feature_detected!("avx2") {
        run(&mut guest, &bytes(|a| a.vpaddb(ymm3, ymm3, ymm3).unwrap()));
        expect(&guest, &|state| {
            added(state);
            state.vector[3][..4].iter_mut().for_each(|word| *word = word.wrapping_mul(2));
        });
    }
}

#[test]
fn the_host_keeps_its_rounding() {
    let third = || black_box(1.0_f64) / black_box(3.0);
    let nearest = third();
    // Upwards, then what a lone SSE instruction makes of it.
    let mut guest = guest(|a| {
        a.mov(dword_ptr(DATA), 0x5f80).unwrap();
        a.ldmxcsr(dword_ptr(DATA)).unwrap();
        a.cvtsi2sd(xmm0, rax).unwrap();
        a.cvtsi2sd(xmm1, rbx).unwrap();
        a.divsd(xmm0, xmm1).unwrap();
        a.movq(rax, xmm0).unwrap();
        a.hlt().unwrap();
    });
    guest.vcpu.set_gpr(RAX, 1);
    guest.vcpu.set_gpr(RBX, 3);
    guest.run();
    assert_eq!(third(), nearest, "the host rounds as before");
    assert_eq!(guest.vcpu.gpr(RAX), nearest.to_bits() + 1, "the guest does not");
}

/// One vCPU turns in code without vectors, and another brings code with vectors into the machine, to which
/// the first one's code then jumps.
#[test]
fn vcpus_come_to_need_more_together() {
    for round in 0..20 {
        let mut first = guest(|a| {
            let mut again = a.create_label();
            a.set_label(&mut again).unwrap();
            a.cmp(dword_ptr(rdi), 0).unwrap();
            a.je(again).unwrap();
            a.jmp(OTHER).unwrap();
        });
        let sse = bytes(|a| a.paddb(xmm9, xmm9).unwrap());
        first.machine.write(GuestAddress(OTHER), &sse).unwrap();
        let mut second = first.machine.vcpu().unwrap();
        for vcpu in [&mut first.vcpu, &mut second] {
            let state = filled(vcpu);
            vcpu.set_state(&state);
            vcpu.set_gpr(RDI, DATA);
            vcpu.set_rip(GuestAddress(CODE));
        }
        let doubled = [0x0a0a_0a0a_0a0a_0a0a * 2; 2];
        let inside = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let turning = scope.spawn(|| {
                inside.store(true, Ordering::Release);
                let exit = first.vcpu.run(None);
                (exit, first.vcpu.state().vector[9])
            });
            while !inside.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            second.set_rip(GuestAddress(OTHER));
            assert_eq!(second.run(None), Exit::Halt);
            assert_eq!(second.state().vector[9][..2], doubled, "the second, round {round}");
            first.machine.write(GuestAddress(DATA), &[1]).unwrap();
            let (exit, vector) = turning.join().unwrap();
            assert_eq!(
                (exit, &vector[..2]),
                (Exit::Halt, &doubled[..]),
                "the first, round {round}"
            );
        });
    }
}

/// Processors need not tell each time that a component is in its initial state: an interrupt of the host's at the
/// wrong place, and one of the two has it in use (volume 1, section 13.6). So they have to agree in one round of many.
#[test]
fn xgetbv_tells_the_same_whether_or_not_vectors_were_loaded() {
    if !HostFeatures::detect().has(iced_x86::CpuidFeature::XSAVEC) {
        return;
    }
    let rounds: Vec<_> = (0..32).map(|_| [in_use_early(), in_use_late()]).collect();
    assert!(rounds.iter().any(|[early, late]| early == late), "{rounds:x?}");
}

fn ask(a: &mut CodeAssembler) {
    a.mov(ecx, 1).unwrap();
    a.xgetbv().unwrap();
    a.mov(dword_ptr(DATA), eax).unwrap();
}

/// What is in use where nothing came before that needs anything, stepped.
fn in_use_early() -> u64 {
    let mut early = guest(|a| a.hlt().unwrap());
    early.machine.write(GuestAddress(OTHER), &bytes(ask)).unwrap();
    early.vcpu.set_rip(GuestAddress(OTHER));
    for _ in 0..3 {
        assert_eq!(early.vcpu.run(Some(1)), Exit::Budget);
    }
    early.word(DATA)
}

/// What is in use where a state was loaded after x87 instructions.
fn in_use_late() -> u64 {
    let mut late = guest(|a| a.hlt().unwrap());
    let uses = bytes(|a| {
        a.fld1().unwrap();
        a.fstp(st0).unwrap();
    });
    run(&mut late, &uses);
    late.vcpu.set_state(&State::default());
    run(&mut late, &bytes(ask));
    late.word(DATA)
}

/// AMD's processors say that the upper halves of YMM are in use where those of ZMM are.
#[test]
fn upper_halves_that_are_zero_are_not_what_was_there_before() {
    if !HostFeatures::detect().has(iced_x86::CpuidFeature::AVX512F) {
        return;
    }
    let mut guest = guest(|a| a.hlt().unwrap());
    let code = bytes(|a| {
        a.vpaddb(zmm9, zmm9, zmm9).unwrap();
        a.addps(xmm0, xmm0).unwrap();
    });
    for number in 0..16 {
        let full = filled(&guest.vcpu);
        guest.vcpu.set_state(&full);
        run(&mut guest, &code);
        let mut sparse = State::default();
        sparse.vector[number][6] = 1;
        guest.vcpu.set_state(&sparse);
        run(&mut guest, &bytes(|a| a.addps(xmm0, xmm0).unwrap()));
        assert_eq!(guest.vcpu.state().vector, sparse.vector, "{number}");
    }
}

/// What XSAVEOPT leaves out is not what the guest had before. Here the upper halves of YMM are zero and those of ZMM
/// are not when the first run ends, and an SSE instruction follows.
#[test]
fn upper_halves_that_became_zero_stay_zero() {
    if !HostFeatures::detect().has(iced_x86::CpuidFeature::AVX512F) {
        return;
    }
    let mut guest = guest(|a| a.hlt().unwrap());
    let zeroing = bytes(|a| {
        a.vzeroupper().unwrap();
        a.vshufi32x4(zmm4, zmm0, zmm3, 0).unwrap();
        a.vpxord(xmm5, xmm5, xmm5).unwrap();
    });
    let sse = bytes(|a| a.pslld(xmm9, xmm9).unwrap());
    let mut state = State::default();
    state.vector[3][1] = 1;
    state.vector[15][3] = 1;
    guest.vcpu.set_state(&state);
    for code in [&zeroing, &sse, &sse] {
        run(&mut guest, code);
        assert_eq!(guest.vcpu.state().vector[15], [0; 8]);
        assert_eq!(guest.vcpu.state().vector[4], [0, 0, 0, 0, 0, 1, 0, 1]);
    }
}

/// AMD's processors have a bit of MXCSR that lets operands of SSE instructions be misaligned.
#[test]
fn all_bits_of_mxcsr_that_there_are_can_be_set() {
    const MISALIGNED: u32 = 1 << 17;
    let mut guest = guest(|a| a.hlt().unwrap());
    let mut state = State { mxcsr: 0xffff_dfbf | MISALIGNED, ..State::default() };
    guest.vcpu.set_state(&state);
    let kept = guest.vcpu.state().mxcsr;
    assert_eq!(kept & !MISALIGNED, 0xdfbf);
    run(&mut guest, &bytes(|a| a.addps(xmm0, xmm0).unwrap()));
    assert_eq!(guest.vcpu.state().mxcsr, kept);
    state.gpr[RDI] = DATA + 1;
    guest.vcpu.set_state(&state);
    let code = bytes(|a| a.addps(xmm0, xmmword_ptr(rdi)).unwrap());
    guest.machine.write(GuestAddress(OTHER), &code).unwrap();
    guest.vcpu.set_rip(GuestAddress(OTHER));
    assert_eq!(guest.vcpu.run(None) == Exit::Halt, kept & MISALIGNED != 0);
}
