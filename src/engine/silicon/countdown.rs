//! The part of the stub that goes on from step to step by itself, so that a leg with a count or a
//! breakpoint costs one signal an instruction and no change of process.
//!
//! The engine starts it with the trap flag set and [`Countdown`] in the shared area. At each trap, in
//! program order:
//!
//! 1. an iteration of a repeated string instruction: take one off the steps, go to 4;
//! 2. count the instruction; note the signal, as any other, at the count and at the breakpoint;
//! 3. look at the next instruction; note the signal if the engine has to step over it: because it
//!    shows or changes the trap flag, or because its bytes may not be readable from here;
//! 4. load all registers from the signal's frame and return to the guest by `iretq`.
//!
//! What is looked at in step 3 lies in the page of the instruction just executed, so it can be read.
//! Whatever ends a leg otherwise (another signal, no steps left) is noted too.

use dynasmrt::{DynasmApi, DynasmLabelApi, VecAssembler, dynasm, x64::X64Relocation};
use iced_x86::{Instruction, Mnemonic};

use super::child::Child;
use super::frame::context;
use super::layout::{control, request};
use super::stub::at;
use crate::guest::is_repeated_string;

/// How far the stub is to go by itself.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Countdown {
    /// Traps after which the engine wants to be asked; zero where the guest runs freely.
    pub(super) steps: u64,
    /// Instructions after which it ends.
    pub(super) count: u64,
    /// Address before which it ends.
    pub(super) breakpoint: Option<u64>,
}

/// How far it went.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counted {
    /// Instructions done.
    pub(super) instructions: u64,
    /// The last trap was behind an iteration of the instruction at RIP.
    pub(super) iterating: bool,
    /// Traps that were left.
    pub(super) steps_left: u64,
}

/// An address that no instruction has.
const NOWHERE: u64 = 1 << 63;

impl Countdown {
    /// Puts it where the stub finds it; the first instruction is at `rip`.
    pub(super) fn store(&self, child: &mut Child, rip: u64, first: Option<&Instruction>) {
        child.write_u64(control::STEPS_LEFT, self.steps);
        if self.steps == 0 {
            return;
        }
        child.write_u64(request::COUNT, self.count);
        child.write_u64(request::BREAKPOINT, self.breakpoint.unwrap_or(NOWHERE));
        child.write_u64(control::COUNTED, 0);
        child.write_u64(control::AT, rip);
        child.write_u64(control::REPEATS, u64::from(first.is_some_and(is_repeated)));
    }
}

impl Counted {
    /// What the stub left behind; `rip` is where the guest is now.
    pub(super) fn load(child: &Child, rip: u64) -> Self {
        let repeats = child.read_u64(control::REPEATS) != 0;
        Self {
            instructions: child.read_u64(control::COUNTED),
            iterating: repeats && child.read_u64(control::AT) == rip,
            steps_left: child.read_u64(control::STEPS_LEFT),
        }
    }
}

/// Whether `instruction` is executed piece by piece, with a trap behind each: the iterations of a
/// string instruction, the elements of a gather or scatter before one that faults.
pub(super) fn is_repeated(instruction: &Instruction) -> bool {
    is_repeated_string(instruction) || instruction.is_vsib()
}

/// Whether the kernel may execute `instruction` for the guest (UMIP), which loses a trap.
pub(super) fn loses_trap(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(instruction.mnemonic(), M::Sldt | M::Str | M::Smsw | M::Sgdt | M::Sidt)
}

/// Whether the engine has to step over `instruction` itself. What the stub finds by its opcode is
/// the same or more.
pub(super) fn needs_engine(instruction: &Instruction) -> bool {
    let pieces = instruction.is_vsib() || loses_trap(instruction);
    pieces
        || matches!(
            instruction.mnemonic(),
            Mnemonic::Pushf
                | Mnemonic::Pushfq
                | Mnemonic::Popf
                | Mnemonic::Popfq
                | Mnemonic::Iret
                | Mnemonic::Iretd
                | Mnemonic::Iretq
                | Mnemonic::Int1
                | Mnemonic::Syscall
                | Mnemonic::Sysenter
        )
}

/// What the first byte behind the prefixes says. The order is that of the numbers in the table.
#[derive(Clone, Copy)]
enum Class {
    Plain,
    Prefix,
    /// F2 or F3.
    Repeat,
    String,
    /// 0F: `syscall`, `sysenter` and what reads descriptor tables follow it.
    Escape,
    /// C4 and 62: gathers and scatters follow them, two and three bytes on.
    Vex,
    Evex,
    /// [`needs_engine`].
    Engine,
}

fn class(byte: u8) -> Class {
    match byte {
        0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x67 | 0xf0 => Class::Prefix,
        0xf2 | 0xf3 => Class::Repeat,
        0x6c..=0x6f | 0xa4..=0xa7 | 0xaa..=0xaf => Class::String,
        0x0f => Class::Escape,
        0xc4 => Class::Vex,
        0x62 => Class::Evex,
        0x9c | 0x9d | 0xcf | 0xf1 => Class::Engine,
        _ => Class::Plain,
    }
}

/// Steps 1 to 3. RBX is the child's base, EDI the signal, RDX its context; both are kept on the way
/// to the label `note`.
pub(super) fn emit_trap(code: &mut VecAssembler<X64Relocation>) {
    const DEBUG_EXCEPTION: i32 = 1;
    dynasm!(code
        ; .arch x64
        ; ->stepping:
        ; cmp edi, libc::SIGTRAP
        ; jne ->note
        ; cmp DWORD [rdx + context::TRAP as i32], DEBUG_EXCEPTION
        ; jne ->note
        ; mov rax, [rdx + context::RIP as i32]
        ; mov rcx, [rbx + at(control::AT)]
        ; cmp rax, rcx
        ; jne ->executed
        ; cmp DWORD [rbx + at(control::REPEATS)], 0
        ; je ->executed
        ; dec QWORD [rbx + at(control::STEPS_LEFT)]
        ; jz ->note
        ; jmp ->resume
        ; ->executed:
        ; mov rsi, [rbx + at(control::COUNTED)]
        ; inc rsi
        ; mov [rbx + at(control::COUNTED)], rsi
        ; cmp rsi, [rbx + at(request::COUNT)]
        ; je ->note
        ; cmp rax, [rbx + at(request::BREAKPOINT)]
        ; je ->note
        ; dec QWORD [rbx + at(control::STEPS_LEFT)]
        ; jz ->note
    );
    emit_look(code);
}

/// Step 3. RAX is the address of the next instruction, RCX that of the one just executed.
fn emit_look(code: &mut VecAssembler<X64Relocation>) {
    dynasm!(code
        ; .arch x64
        ; xor rcx, rax
        ; shr rcx, 12
        ; jnz ->note
        ; mov ecx, eax
        ; and ecx, 0xfff
        ; cmp ecx, 0xff0
        ; ja ->note
        ; lea r9, [->classes]
        ; lea r8, [rax + 15]
        ; mov rsi, rax
        ; xor ecx, ecx
        ; ->next_byte:
        ; cmp rsi, r8
        ; je ->note
        ; movzx r10d, BYTE [rsi]
        ; movzx r10d, BYTE [r9 + r10]
        ; inc rsi
        ; cmp r10d, Class::Prefix as i32
        ; je ->next_byte
        ; cmp r10d, Class::Engine as i32
        ; je ->note
        ; cmp r10d, Class::Repeat as i32
        ; jne ->opcode
        ; mov ecx, 1
        ; jmp ->next_byte
        ; ->opcode:
        ; cmp r10d, Class::String as i32
        ; je ->looked
        ; xor ecx, ecx
        ; cmp r10d, Class::Vex as i32
        ; je ->vex
        ; cmp r10d, Class::Evex as i32
        ; je ->evex
        ; cmp r10d, Class::Escape as i32
        ; jne ->looked
        ; cmp BYTE [rsi], 0x05
        ; je ->note
        ; cmp BYTE [rsi], 0x34
        ; je ->note
        ; cmp BYTE [rsi], 0x01
        ; jbe ->note
        ; jmp ->looked
        ; ->evex:
        ; inc rsi
        ; ->vex:
        // 90 to 93 gather, A0 to A3 scatter; some others come along.
        ; mov r10b, [rsi + 2]
        ; and r10b, 0xccu8 as i8
        ; cmp r10b, 0x80u8 as i8
        ; je ->note
        ; ->looked:
        ; mov [rbx + at(control::REPEATS)], rcx
        ; mov [rbx + at(control::AT)], rax
    );
}

/// Step 4. RBX is the child's base, RDX the context.
pub(super) fn emit_resume(code: &mut VecAssembler<X64Relocation>) {
    let register = |index: usize| (context::REGISTERS + index * 8) as i32;
    dynasm!(code
        ; .arch x64
        ; ->resume:
        ; mov rbp, rdx
        ; mov rcx, [rbp + context::XSAVE as i32]
        ; mov eax, [rbx + at(request::COMPONENTS)]
        ; mov edx, [rbx + at(request::COMPONENTS + 4)]
        ; xrstor64 [rcx]
        ; movzx eax, WORD [rbp + context::SELECTORS as i32 + 6]
        ; push rax
        ; push QWORD [rbp + register(15)]
        ; push QWORD [rbp + context::RFLAGS as i32]
        ; movzx eax, WORD [rbp + context::SELECTORS as i32]
        ; push rax
        ; push QWORD [rbp + context::RIP as i32]
        ; mov r8, [rbp + register(0)]
        ; mov r9, [rbp + register(1)]
        ; mov r10, [rbp + register(2)]
        ; mov r11, [rbp + register(3)]
        ; mov r12, [rbp + register(4)]
        ; mov r13, [rbp + register(5)]
        ; mov r14, [rbp + register(6)]
        ; mov r15, [rbp + register(7)]
        ; mov rdi, [rbp + register(8)]
        ; mov rsi, [rbp + register(9)]
        ; mov rbx, [rbp + register(11)]
        ; mov rdx, [rbp + register(12)]
        ; mov rax, [rbp + register(13)]
        ; mov rcx, [rbp + register(14)]
        ; mov rbp, [rbp + register(10)]
        ; iretq
        ; ->classes:
    );
    let classes: Vec<u8> = (0..=255).map(|byte| class(byte) as u8).collect();
    code.extend(&classes);
}
