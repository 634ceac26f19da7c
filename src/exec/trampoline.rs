//! The prelude of a code cache: how a vCPU gets in and how it gets out.
//!
//! `enter(block)` is called from Rust. It saves what the ABI asks a callee to save, loads the guest's
//! state from the block, points RSP at it and jumps to `block.entry`. A stub is called from translated
//! code with the guest's state in the host's registers; it stores the state in the block, loads the
//! host's and returns from `enter`.
//!
//! Of the guest's extended state as much is loaded and saved as its code needs ([`Extended`]); of the host's
//! nothing but the control words, since the ABI lets a callee lose the rest. PKRU stays the host's. GS has the
//! guest's base until the run ends, unless the host has one of its own ([`HostBase`]).
//!
//! [`HostBase`]: super::vcpu_memory::HostBase
#![allow(clippy::useless_conversion, reason = "`dynasm!` converts numbers of registers")]

use dynasmrt::x64::X64Relocation;
use dynasmrt::{DynasmApi, DynasmLabelApi, VecAssembler, dynasm};

use crate::guest::{Flag, RFLAGS_STATUS, Xstate};
use crate::translate::{Extended, Stub, at};

/// Code of the prelude and what lies where in it.
#[derive(Debug)]
pub(super) struct Prelude {
    pub(super) code: Vec<u8>,
    /// Offset of `enter`.
    pub(super) enter: usize,
    /// Offsets of the stubs.
    pub(super) stubs: [u32; Stub::ALL.len()],
}

/// RFLAGS of the host between guests: nothing but the bit that is always set and interrupts.
const HOST_RFLAGS: i32 = 0x202;
/// What else there is in RFLAGS but the status flags. Where none of it is set, POPF is dear.
const UNUSUAL: i32 = !(HOST_RFLAGS | RFLAGS_STATUS as i32);

/// Guest registers that are in the host register of their number.
const IN_PLACE: [u8; 13] = [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13];

/// Places in the XSAVE area (Intel SDM volume 1, sections 10.5.1 and 13.4), and the bit that says that XMM0 to
/// XMM15 are there.
const MXCSR: i32 = 24;
const XMM: i32 = 160;
const XSTATE_BV: i32 = 512;
const SSE_BIT: i8 = 1 << 1;

fn xmm(register: u8) -> i32 {
    at::XSAVE + XMM + i32::from(register) * 16
}

type Code = VecAssembler<X64Relocation>;

impl Prelude {
    /// The prelude for a host with XSAVEOPT and AVX, or without.
    pub(super) fn new() -> Self {
        let mut code = Code::new(0);
        let enter = emit_enter(&mut code);
        let stubs = Stub::ALL.map(|stub| emit_stub(&mut code, stub));
        emit_exit(&mut code);
        let code = code.finalize().expect("all labels are defined here");
        Self { code, enter, stubs }
    }
}

/// `extern "sysv64" fn(block: *mut VcpuBlock)`
fn emit_enter(code: &mut Code) -> usize {
    let offset = code.offset().0;
    dynasm!(code
        ; .arch x64
        ; push rbx
        ; push rbp
        ; push r12
        ; push r13
        ; push r14
        ; push r15
        ; mov [rdi + at::HOST_RSP], rsp
        ; mov rsp, rdi
        ; mov rax, [rsp + at::WINDOW]
        ; rdgsbase rcx
        ; cmp rax, rcx
        ; je ->based
        ; wrgsbase rax
        ; ->based:
        ; cmp BYTE [rsp + at::EXTENDED], Extended::Sse as i8
        ; jb ->loaded
        ; stmxcsr [rsp + at::HOST_CONTROLS]
        ; ja ->load_all
        ; ldmxcsr [rsp + at::XSAVE + MXCSR]
        ; test BYTE [rsp + at::XSAVE + XSTATE_BV], SSE_BIT
        ; jz ->clear
    );
    for register in 0..16 {
        dynasm!(code; .arch x64; movaps Rx(register), [rsp + xmm(register)]);
    }
    dynasm!(code
        ; .arch x64
        ; jmp ->loaded
        ; ->clear:
    );
    for register in 0..16 {
        dynasm!(code; .arch x64; xorps Rx(register), Rx(register));
    }
    dynasm!(code
        ; .arch x64
        ; jmp ->loaded
        ; ->load_all:
        ; fnstcw [rsp + at::HOST_CONTROLS + 4]
        ; mov eax, [rsp + at::COMPONENTS]
        ; mov edx, [rsp + at::COMPONENTS + 4]
        ; xrstor64 [rsp + at::XSAVE]
        ; ->loaded:
        ; mov eax, [rsp + at::RFLAGS]
        ; test eax, UNUSUAL
        ; jnz ->unusual
        // OF by a sum, the others by SAHF.
        ; mov ecx, eax
        ; shr ecx, Flag::OF as i8
        ; add cl, 0x7f
        ; mov ah, al
        ; sahf
        ; ->flagged:
    );
    for register in IN_PLACE {
        dynasm!(code; .arch x64; mov Rq(register), [rsp + at::gpr(register)]);
    }
    dynasm!(code
        ; .arch x64
        ; mov r15, [rsp + at::gpr(4)]
        ; mov r14, [rsp + at::TARGET]
        ; jmp QWORD [rsp + at::ENTRY]
        ; ->unusual:
        ; push QWORD [rsp + at::RFLAGS]
        ; popfq
        ; jmp ->flagged
    );
    offset
}

/// Notes which stub it is and where the code was left.
fn emit_stub(code: &mut Code, stub: Stub) -> u32 {
    let offset = code.offset().0 as u32;
    match stub {
        // Jumped to by a jump cache, by the signal handler.
        Stub::Target | Stub::Fault => {}
        _ if stub.is_called() => dynasm!(code; .arch x64; pop QWORD [rsp + at::EXIT_ADDRESS]),
        _ => dynasm!(code; .arch x64; mov [rsp + at::EXIT_ADDRESS], r14),
    }
    dynasm!(code
        ; .arch x64
        ; mov DWORD [rsp + at::EXIT_KIND], stub as i32
        ; jmp ->exit
    );
    offset
}

fn emit_exit(code: &mut Code) {
    dynasm!(code; .arch x64; ->exit:);
    for register in IN_PLACE {
        dynasm!(code; .arch x64; mov [rsp + at::gpr(register)], Rq(register));
    }
    let optimised = std::arch::is_x86_feature_detected!("xsaveopt");
    dynasm!(code
        ; .arch x64
        ; mov [rsp + at::gpr(4)], r15
        ; pushfq
        ; pop rax
        ; mov [rsp + at::RFLAGS], rax
        ; test eax, UNUSUAL
        ; jz ->host_flags
        ; push HOST_RFLAGS
        ; popfq
        ; ->host_flags:
        ; cmp BYTE [rsp + at::EXTENDED], Extended::Sse as i8
        ; jb ->saved
        ; ja ->save_all
    );
    for register in 0..16 {
        dynasm!(code; .arch x64; movaps [rsp + xmm(register)], Rx(register));
    }
    dynasm!(code
        ; .arch x64
        ; stmxcsr [rsp + at::XSAVE + MXCSR]
        ; or BYTE [rsp + at::XSAVE + XSTATE_BV], SSE_BIT
        ; ldmxcsr [rsp + at::HOST_CONTROLS]
        ; jmp ->saved
        ; ->save_all:
        ; mov eax, [rsp + at::COMPONENTS]
        ; mov edx, [rsp + at::COMPONENTS + 4]
    );
    if optimised {
        dynasm!(code; .arch x64; xsaveopt64 [rsp + at::XSAVE]);
        forget_stale_halves(code);
    } else {
        dynasm!(code; .arch x64; xsave64 [rsp + at::XSAVE]);
    }
    if std::arch::is_x86_feature_detected!("avx") {
        dynasm!(code; .arch x64; vzeroupper);
    }
    dynasm!(code
        ; .arch x64
        ; fninit
        ; fldcw [rsp + at::HOST_CONTROLS + 4]
        ; ldmxcsr [rsp + at::HOST_CONTROLS]
        ; ->saved:
        ; mov rax, [rsp + at::HOST_GS_BASE]
        ; test rax, rax
        ; jz ->unbased
        ; wrgsbase rax
        ; ->unbased:
        ; mov rsp, [rsp + at::HOST_RSP]
        ; pop r15
        ; pop r14
        ; pop r13
        ; pop r12
        ; pop rbp
        ; pop rbx
        ; ret
    );
}

/// Where XSAVEOPT has left out the upper halves of YMM registers, since they are zero, and has not left out those of
/// ZMM registers, AMD's processors take the former for in use and not modified when an SSE instruction follows the
/// next XRSTOR, and then XSAVEOPT does not store them either (measured on Zen 4): so they are to be zero here too.
fn forget_stale_halves(code: &mut Code) {
    let Some(halves) = Xstate::of_this_host().avx_beside_zmm() else { return };
    const AVX_AND_ZMM: i32 = 1 << 2 | 1 << 6;
    const ZMM: i32 = 1 << 6;
    dynasm!(code
        ; .arch x64
        ; mov eax, [rsp + at::XSAVE + XSTATE_BV]
        ; and eax, AVX_AND_ZMM
        ; cmp eax, ZMM
        ; jne ->whole
        ; vxorps xmm0, xmm0, xmm0
    );
    for half in 0..8 {
        dynasm!(code; .arch x64; vmovups [rsp + at::XSAVE + halves as i32 + half * 32], ymm0);
    }
    dynasm!(code; .arch x64; ->whole:);
}
