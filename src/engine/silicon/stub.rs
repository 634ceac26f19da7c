//! The code that lives in the child, and the little program file it is started from.
//!
//! The stub does two things. It carries out *commands*, which are system calls whose numbers and
//! arguments lie in the request pages; and it runs a *leg*: loads a complete guest state, jumps, and
//! when a signal ends the guest notes where the kernel put its frame. In program order:
//!
//! 1. wait until GO differs from the request done last;
//! 2. for each command: make the system call; at the first that fails note it, go to 5;
//! 3. without RUN go to 5; else load selectors, bases, vector and x87 state, general registers, and
//!    `iretq` to the guest. `iretq` serialises: code bytes written by the engine are seen;
//! 4. (the guest runs; any signal enters `handler`) if the guest is stepped, go on in [`countdown`];
//!    note signal, frame, selectors, bases;
//! 5. store the request's number in DONE, wake the engine, go to 1.
//!
//! There is exactly one `syscall` instruction once the child is set up, and the seccomp filter lets
//! system calls from its address alone pass ([`super::child`]).

use std::io;

use dynasmrt::{DynasmApi, DynasmLabelApi, VecAssembler, dynasm, x64::X64Relocation};

use super::countdown;
use super::layout::{PAGE, SHARED, SHARED_SIZE, control, request};

/// The assembled stub for one base address.
#[derive(Debug)]
pub(super) struct Stub {
    /// The program file: an ELF header and the code, one page.
    pub(super) program: Vec<u8>,
    /// Address behind the `syscall` instruction that is let through.
    pub(super) gate: u64,
    /// Address of the signal handler.
    pub(super) handler: u64,
}

/// Offset of a shared field from the child's base, as the displacement of a memory operand.
pub(super) const fn at(offset: usize) -> i32 {
    (SHARED + offset) as i32
}

impl Stub {
    /// Assembles the stub for a child whose span begins at `base`.
    pub(super) fn assemble(base: u64) -> io::Result<Self> {
        let code_start = base + HEADER_SIZE as u64;
        let mut code = VecAssembler::<X64Relocation>::new(code_start as usize);
        emit_start(&mut code, base);
        emit_wait(&mut code);
        emit_commands(&mut code);
        let gate = code_start + emit_gate(&mut code) as u64;
        emit_enter(&mut code);
        let handler = code_start + code.offset().0 as u64;
        emit_handler(&mut code, base);
        countdown::emit_trap(&mut code);
        countdown::emit_resume(&mut code);
        let code = code.finalize().map_err(io::Error::other)?;
        Ok(Self { program: program_file(base, &code), gate, handler })
    }
}

/// Entry of the program: maps the shared area, which is standard input, behind the code.
fn emit_start(code: &mut VecAssembler<X64Relocation>, base: u64) {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_SHARED | libc::MAP_FIXED;
    dynasm!(code
        ; .arch x64
        ; mov rbx, QWORD base as i64
        ; mov eax, libc::SYS_mmap as i32
        ; lea rdi, [rbx + at(0)]
        ; mov esi, SHARED_SIZE as i32
        ; mov edx, protection
        ; mov r10d, flags
        ; xor r8d, r8d
        ; xor r9d, r9d
        ; syscall
        ; xor r12d, r12d
        ; jmp ->wait
    );
}

/// Steps 5 and 1. R12D is the number of the request in hand.
fn emit_wait(code: &mut VecAssembler<X64Relocation>) {
    dynasm!(code
        ; .arch x64
        ; ->done:
        ; mov [rbx + at(control::DONE)], r12d
        ; mov eax, libc::SYS_futex as i32
        ; lea rdi, [rbx + at(control::DONE)]
        ; mov esi, libc::FUTEX_WAKE
        ; mov edx, 1
        ; xor r10d, r10d
        ; lea r13, [->wait]
        ; jmp ->gate
        ; ->wait:
        ; mov edx, [rbx + at(control::GO)]
        ; cmp edx, r12d
        ; jne ->take
        ; mov eax, libc::SYS_futex as i32
        ; lea rdi, [rbx + at(control::GO)]
        ; mov esi, libc::FUTEX_WAIT
        ; xor r10d, r10d
        ; lea r13, [->wait]
        ; jmp ->gate
        ; ->take:
        ; mov r12d, edx
    );
}

/// Step 2. R14D counts the commands left, RBP points at the next.
fn emit_commands(code: &mut VecAssembler<X64Relocation>) {
    dynasm!(code
        ; .arch x64
        ; mov r14d, [rbx + at(request::COMMAND_COUNT)]
        ; lea rbp, [rbx + at(request::COMMANDS)]
        ; ->next_command:
        ; test r14d, r14d
        ; jz ->commands_done
        ; mov [rbx + at(control::COMMAND)], rbp
        ; mov rax, [rbp]
        ; mov rdi, [rbp + 0x08]
        ; mov rsi, [rbp + 0x10]
        ; mov rdx, [rbp + 0x18]
        ; mov r10, [rbp + 0x20]
        ; mov r8, [rbp + 0x28]
        ; mov r9, [rbp + 0x30]
        ; lea r13, [->command_done]
        ; jmp ->gate
        ; ->command_done:
        ; mov [rbx + at(control::RESULT)], rax
        ; cmp rax, -4095
        ; jae ->command_failed
        ; add rbp, 56
        ; dec r14d
        ; jmp ->next_command
        ; ->command_failed:
        ; mov DWORD [rbx + at(control::FAILED)], 1
        ; jmp ->done
    );
}

/// The one system call. Returns the offset behind it, which is what seccomp sees as its address.
fn emit_gate(code: &mut VecAssembler<X64Relocation>) -> usize {
    dynasm!(code ; .arch x64 ; ->gate: ; syscall);
    let behind = code.offset().0;
    dynasm!(code ; .arch x64 ; jmp r13);
    behind
}

/// `mov ds, ax` and so on, by hand: dynasm 5.1 has the opcode of the other direction for them.
const MOV_TO_DS_ES_FS_GS: [[u8; 2]; 4] = [[0x8e, 0xd8], [0x8e, 0xc0], [0x8e, 0xe0], [0x8e, 0xe8]];

/// Step 3.
fn emit_enter(code: &mut VecAssembler<X64Relocation>) {
    dynasm!(code
        ; .arch x64
        ; ->commands_done:
        ; cmp DWORD [rbx + at(request::RUN)], 0
        ; je ->done
        ; xor eax, eax
    );
    for load in MOV_TO_DS_ES_FS_GS {
        code.extend(load);
    }
    dynasm!(code
        ; .arch x64
        ; mov rax, [rbx + at(request::BASES)]
        ; wrfsbase rax
        ; mov rax, [rbx + at(request::BASES + 8)]
        ; wrgsbase rax
        ; mov eax, [rbx + at(request::COMPONENTS)]
        ; mov edx, [rbx + at(request::COMPONENTS + 4)]
        ; xrstor64 [rbx + at(request::XSAVE)]
        ; lea rsp, [rbx + at(request::RETURN_FRAME)]
        ; mov rax, [rbx + at(request::GPR)]
        ; mov rcx, [rbx + at(request::GPR + 0x08)]
        ; mov rdx, [rbx + at(request::GPR + 0x10)]
        ; mov rbp, [rbx + at(request::GPR + 0x28)]
        ; mov rsi, [rbx + at(request::GPR + 0x30)]
        ; mov rdi, [rbx + at(request::GPR + 0x38)]
        ; mov r8, [rbx + at(request::GPR + 0x40)]
        ; mov r9, [rbx + at(request::GPR + 0x48)]
        ; mov r10, [rbx + at(request::GPR + 0x50)]
        ; mov r11, [rbx + at(request::GPR + 0x58)]
        ; mov r12, [rbx + at(request::GPR + 0x60)]
        ; mov r13, [rbx + at(request::GPR + 0x68)]
        ; mov r14, [rbx + at(request::GPR + 0x70)]
        ; mov r15, [rbx + at(request::GPR + 0x78)]
        ; mov rbx, [rbx + at(request::GPR + 0x18)]
        ; iretq
    );
}

/// Step 4. The kernel calls it on the signal stack with the signal in EDI and the context in RDX.
/// NT and AC are still the guest's: with NT the next `iretq` would fault.
fn emit_handler(code: &mut VecAssembler<X64Relocation>, base: u64) {
    dynasm!(code
        ; .arch x64
        ; mov rbx, QWORD base as i64
        ; lea rsp, [rbx + at(control::SCRATCH_TOP)]
        ; push 2
        ; popfq
        ; cmp QWORD [rbx + at(control::STEPS_LEFT)], 0
        ; jne ->stepping
        ; ->note:
        ; mov [rbx + at(control::SIGNAL)], rdi
        ; mov [rbx + at(control::CONTEXT)], rdx
        ; xor eax, eax
        ; mov ax, es
        ; mov [rbx + at(control::SELECTORS)], rax
        ; mov ax, ds
        ; mov [rbx + at(control::SELECTORS + 0x08)], rax
        ; mov ax, fs
        ; mov [rbx + at(control::SELECTORS + 0x10)], rax
        ; mov ax, gs
        ; mov [rbx + at(control::SELECTORS + 0x18)], rax
        ; rdfsbase rax
        ; mov [rbx + at(control::BASES)], rax
        ; rdgsbase rax
        ; mov [rbx + at(control::BASES + 0x08)], rax
        ; mov r12d, [rbx + at(control::GO)]
        ; jmp ->done
    );
}

const HEADER_SIZE: usize = 64 + 56;

/// An ELF program of one page, loaded readable and executable at `base` (System V ABI, AMD64
/// supplement; the fields are e_ident … e_shstrndx, then one program header).
fn program_file(base: u64, code: &[u8]) -> Vec<u8> {
    const ET_EXEC: u16 = 2;
    const EM_X86_64: u16 = 62;
    const PT_LOAD: u32 = 1;
    const READ_EXECUTE: u32 = 4 | 1;
    assert!(HEADER_SIZE + code.len() <= PAGE, "the stub fits into a page");
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend(ET_EXEC.to_le_bytes());
    file.extend(EM_X86_64.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    file.extend((base + HEADER_SIZE as u64).to_le_bytes());
    file.extend(64u64.to_le_bytes());
    file.extend([0; 12]);
    for half in [64u16, 56, 1, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    file.extend(PT_LOAD.to_le_bytes());
    file.extend(READ_EXECUTE.to_le_bytes());
    for word in [0, base, base, PAGE as u64, PAGE as u64, PAGE as u64] {
        file.extend(word.to_le_bytes());
    }
    assert_eq!(file.len(), HEADER_SIZE, "the headers have their sizes");
    file.extend(code);
    file.resize(PAGE, 0xcc);
    file
}
