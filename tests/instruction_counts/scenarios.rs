//! What is counted: the ways through translation and the run loop that users go most often.

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, byte_ptr, dword_ptr, eax, ebx, ecx, edx, qword_ptr};
use iced_x86::code_asm::{r8, rax, rcx, rdi, rdx, rsi};
use tregion::exec::{Exit, Machine, Vcpu};
use tregion::guest::{GuestAddress, GuestRange, Permissions};

const CODE: u64 = 0x40_0000;
const OTHER: u64 = 0x50_0000;
const AWAY: u64 = 0x60_0000;
const DATA: u64 = 0x70_0000;
/// Numbers of registers.
const RCX: usize = 1;
const RSI: usize = 6;
const RDI: usize = 7;

/// Marks where counting begins, and where it ends.
type Mark<'a> = &'a mut dyn FnMut();

/// See the file's head.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// How many are counted; the figure is for one.
    pub(crate) rounds: u64,
    pub(crate) run: fn(u64, Mark<'_>),
}

/// All of them.
pub(crate) const SCENARIOS: [Scenario; 10] = [
    // A round is a guest instruction here.
    Scenario { name: "translate_cold_code", rounds: 12 * BLOCKS, run: translate_cold_code },
    Scenario { name: "enter_and_exit", rounds: 40, run: enter_and_exit },
    Scenario { name: "new_code", rounds: 12, run: new_code },
    Scenario { name: "patch_in_a_loop", rounds: 12, run: patch_in_a_loop },
    Scenario { name: "rewrite_in_a_loop", rounds: 12, run: rewrite_in_a_loop },
    Scenario { name: "invalidate_and_run", rounds: 16, run: invalidate_and_run },
    Scenario { name: "remap_and_run", rounds: 10, run: remap_and_run },
    Scenario { name: "restore_one_page", rounds: 20, run: restore_one_page },
    Scenario { name: "code_hook", rounds: 40, run: code_hook },
    Scenario { name: "memory_hook", rounds: 40, run: memory_hook },
];

/// The one of that name.
pub(crate) fn named(name: &str) -> &'static Scenario {
    SCENARIOS.iter().find(|scenario| scenario.name == name).expect("only this program asks")
}

fn assembled(write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(64).unwrap();
    write(&mut assembler).unwrap();
    assembler.assemble(CODE).unwrap()
}

fn range(at: u64, bytes: u64) -> GuestRange {
    GuestRange::new(GuestAddress(at), bytes.next_multiple_of(0x1000)).unwrap()
}

/// A machine with code at [`CODE`] and a page of data.
fn machine(code: &[u8], permissions: Permissions) -> (Machine, Vcpu) {
    let machine = Machine::new(32).unwrap();
    machine.map(range(CODE, code.len() as u64), permissions).unwrap();
    machine.map(range(DATA, 1), Permissions::ReadWrite).unwrap();
    machine.write(GuestAddress(CODE), code).unwrap();
    let mut vcpu = machine.vcpu().unwrap();
    vcpu.set_gpr(RSI, DATA);
    (machine, vcpu)
}

fn run(vcpu: &mut Vcpu, entry: u64) {
    vcpu.set_rip(GuestAddress(entry));
    assert_eq!(vcpu.run(None), Exit::Halt, "the guest ends by itself");
}

/// What is counted is what comes behind `warm` rounds.
fn rounds(rounds: u64, mark: Mark<'_>, mut round: impl FnMut(u64)) {
    let warm = 8;
    (0..warm).for_each(&mut round);
    mark();
    (warm..warm + rounds).for_each(&mut round);
    mark();
}

const BLOCKS: u64 = 20;

/// Blocks of eleven or twelve instructions, each of which runs once.
fn translate_cold_code(_: u64, mark: Mark<'_>) {
    let code = assembled(|a| {
        for number in 0..BLOCKS + 1 {
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
    });
    let (_machine, mut vcpu) = machine(&code, Permissions::ReadExecute);
    // The last block, which is like the others, has been there.
    run(&mut vcpu, CODE + (code.len() as u64 - 1) / (BLOCKS + 1) * BLOCKS);
    mark();
    run(&mut vcpu, CODE);
    mark();
}

fn enter_and_exit(times: u64, mark: Mark<'_>) {
    let code = assembled(|a| {
        a.mov(eax, 1)?;
        a.add(rdx, rax)?;
        a.xor(ebx, ebx)?;
        a.hlt()
    });
    let (_machine, mut vcpu) = machine(&code, Permissions::ReadExecute);
    rounds(times, mark, |_| run(&mut vcpu, CODE));
}

/// The host writes code and runs it.
fn new_code(times: u64, mark: Mark<'_>) {
    let (machine, mut vcpu) = machine(&[0xf4], Permissions::ReadWriteExecute);
    rounds(times, mark, |number| {
        // mov register, number; hlt. Code that is another in its constants alone is no new code.
        let register = (number & 15) as u8;
        let (rex, modrm) = (0x48 | register >> 3, 0xc0 | register & 7);
        let code = [rex, 0xc7, modrm, number as u8, 0, 0, 0, 0xf4];
        machine.write(GuestAddress(CODE), &code).unwrap();
        run(&mut vcpu, CODE);
        assert_eq!(vcpu.gpr(usize::from(register)), number);
    });
}

/// The guest patches a constant in its loop, with faults before it is counted: the same code reads it.
fn patch_in_a_loop(times: u64, mark: Mark<'_>) {
    change_in_a_loop(times, mark, |a| {
        a.mov(dword_ptr(rdi + 1), ecx)?;
        a.nop()?;
        a.mov(eax, 0)
    });
}

/// The guest makes another instruction of one in its loop: of a displacement nothing is known.
fn rewrite_in_a_loop(times: u64, mark: Mark<'_>) {
    change_in_a_loop(times, mark, |a| {
        a.add(byte_ptr(rdi + 4), 1)?;
        a.lea(rax, qword_ptr(rax + rdx + 1))
    });
}

/// A loop that begins with an instruction that changes a later one; RDI points behind its four bytes.
fn change_in_a_loop(
    times: u64,
    mark: Mark<'_>,
    change: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>,
) {
    let code = assembled(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        change(a)?;
        a.add(rdx, rax)?;
        a.dec(rcx)?;
        a.jnz(again)?;
        a.hlt()
    });
    let (_machine, mut vcpu) = machine(&code, Permissions::ReadWriteExecute);
    vcpu.set_gpr(RDI, CODE + 4);
    run_loop(&mut vcpu, (12, times), mark);
}

/// Runs a loop that counts RCX down so many times to get warm, and so many times marked.
fn run_loop(vcpu: &mut Vcpu, (warm, times): (u64, u64), mark: Mark<'_>) {
    let mut run_for = |rounds| {
        vcpu.set_gpr(RCX, rounds);
        run(vcpu, CODE);
    };
    run_for(warm);
    mark();
    run_for(times);
    mark();
}

/// The same code is found again: nothing is translated.
fn invalidate_and_run(times: u64, mark: Mark<'_>) {
    let code = assembled(|a| {
        a.inc(rax)?;
        a.hlt()
    });
    let (machine, mut vcpu) = machine(&code, Permissions::ReadExecute);
    rounds(times, mark, |_| {
        machine.invalidate(range(CODE, 1));
        run(&mut vcpu, CODE);
    });
}

/// Two pages of code take turns at one address.
fn remap_and_run(times: u64, mark: Mark<'_>) {
    // mov eax, number; hlt
    let code = |number| [0xb8, number, 0, 0, 0, 0xf4];
    let (machine, mut vcpu) = machine(&code(1), Permissions::ReadExecute);
    machine.map(range(OTHER, 1), Permissions::ReadExecute).unwrap();
    machine.write(GuestAddress(OTHER), &code(0)).unwrap();
    rounds(times, mark, |number| {
        machine.remap(range(CODE, 1), GuestAddress(AWAY)).unwrap();
        machine.remap(range(OTHER, 1), GuestAddress(CODE)).unwrap();
        machine.remap(range(AWAY, 1), GuestAddress(OTHER)).unwrap();
        run(&mut vcpu, CODE);
        assert_eq!(vcpu.gpr(0), number % 2);
    });
}

fn restore_one_page(times: u64, mark: Mark<'_>) {
    let (machine, _vcpu) = machine(&[0xf4], Permissions::ReadExecute);
    let snapshot = machine.snapshot().unwrap();
    rounds(times, mark, |number| {
        machine.write(GuestAddress(DATA), &(number + 1).to_le_bytes()).unwrap();
        machine.restore(&snapshot).unwrap();
    });
}

/// A loop with a hook at one of its instructions.
fn code_hook(times: u64, mark: Mark<'_>) {
    let code = assembled(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.nop()?;
        a.dec(rcx)?;
        a.jnz(again)?;
        a.hlt()
    });
    let (machine, mut vcpu) = machine(&code, Permissions::ReadExecute);
    machine.hook_code(GuestAddress(CODE)..=GuestAddress(CODE), |_| ()).unwrap();
    run_loop(&mut vcpu, (8, times), mark);
}

/// A loop with a load of a word that is hooked.
fn memory_hook(times: u64, mark: Mark<'_>) {
    let code = assembled(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.mov(rax, qword_ptr(rsi + 8))?;
        a.dec(rcx)?;
        a.jnz(again)?;
        a.hlt()
    });
    let (machine, mut vcpu) = machine(&code, Permissions::ReadExecute);
    machine.hook_memory(GuestAddress(DATA)..GuestAddress(DATA + 0x1000), |_| ()).unwrap();
    run_loop(&mut vcpu, (8, times), mark);
}
