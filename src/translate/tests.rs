//! What the translator emits, read back.
#![allow(clippy::unwrap_used, reason = "a test fails where its helper does")]

use iced_x86::code_asm::*;
use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, IntelFormatter};

use super::{Announced, Patched, Request, Translator, patchable, patched};
use crate::guest::GuestAddress;

const PC: GuestAddress = GuestAddress(0x40_1000);

/// The host code of what is translated.
fn translate(write: impl Fn(&mut CodeAssembler)) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(64).unwrap();
    write(&mut assembler);
    translate_bytes(&assembler.assemble(PC.0).unwrap())
}

fn translate_bytes(code: &[u8]) -> Vec<u8> {
    translate_patched(code, &[])
}

fn translate_patched(code: &[u8], patched: &[Patched]) -> Vec<u8> {
    let request = Request {
        pc: PC,
        code,
        span: (GuestAddress(0x40_1000), GuestAddress(0x40_1fff)),
        observed: &[],
        again: true,
        counted: false,
        checked: !patched.is_empty(),
        announced: Announced::default(),
        patched,
    };
    Translator::new(46).block(&request).code.to_vec()
}

/// The emitted instructions as text.
fn listing(block: &[u8]) -> Vec<String> {
    let mut decoder = Decoder::with_ip(64, block, 0, DecoderOptions::NONE);
    let mut formatter = IntelFormatter::new();
    let mut lines = Vec::new();
    while decoder.can_decode() {
        let instruction: Instruction = decoder.decode();
        let mut line = String::new();
        formatter.format(&instruction, &mut line);
        lines.push(format!("{:x} {line}", instruction.ip()));
    }
    lines
}

fn probes(block: &[u8]) -> usize {
    listing(block).iter().filter(|line| line.contains("rorx")).count()
}

#[test]
fn a_loop_of_its_own_probes_only_in_its_first_pass() {
    let block = translate(|code| {
        let mut again = code.create_label();
        code.set_label(&mut again).unwrap();
        code.mov(rax, ptr(rdx)).unwrap();
        code.add(rax, rcx).unwrap();
        code.mov(ptr(rdx), rax).unwrap();
        code.add(rdx, 8).unwrap();
        code.cmp(rdx, 0x40_a080).unwrap();
        code.jne(again).unwrap();
        code.hlt().unwrap();
    });
    println!("{}", listing(&block).join("\n"));
    assert_eq!(probes(&block), 1);
}

#[test]
fn what_is_known_before_a_jump_is_known_where_it_leads() {
    let block = translate(|code| {
        let mut over = code.create_label();
        code.mov(rax, ptr(rdx)).unwrap();
        code.jmp(over).unwrap();
        code.db(&[0xcc; 40]).unwrap();
        code.set_label(&mut over).unwrap();
        code.add(rax, ptr(rdx + 8)).unwrap();
        code.lea(rcx, qword_ptr(over)).unwrap();
        code.hlt().unwrap();
    });
    let listing = listing(&block);
    println!("{}", listing.join("\n"));
    assert_eq!(probes(&block), 1);
    // Three bytes of MOV, two of the jump.
    assert!(listing.iter().any(|line| line.ends_with("mov rcx,40102Dh")));
}

#[test]
fn pushes_and_pops_move_the_stack_pointer_once() {
    let block = translate(|code| {
        for register in [rbx, rbp, r12, r14] {
            code.push(register).unwrap();
        }
        code.mov(rbx, rdi).unwrap();
        code.lea(rdi, ptr(rsp + 8)).unwrap();
        for register in [r14, r12, rbp, rbx] {
            code.pop(register).unwrap();
        }
        code.ret().unwrap();
    });
    let listing = listing(&block);
    println!("{}", listing.join("\n"));
    let moves = listing.iter().filter(|line| line.contains("lea r15,")).count();
    // Before it is read, and by the return.
    assert_eq!(moves, 2);
    assert_eq!(probes(&block), 1);
}

/// Between the load of a poll's address and the first iteration, a request comes by a signal, which
/// knows these two instructions.
#[test]
fn a_repeated_instruction_follows_a_poll_at_once() {
    let block = translate(|code| {
        code.mov(rax, rcx).unwrap();
        code.rep().movsb().unwrap();
        code.rep().lodsb().unwrap();
        code.repne().scasb().unwrap();
        code.stosb().unwrap();
        code.hlt().unwrap();
    });
    let lines = listing(&block);
    println!("{}", lines.join("\n"));
    let repeated = |line: &&[String]| line[1].contains("rep");
    let pairs: Vec<_> = lines.windows(2).filter(repeated).collect();
    assert_eq!(pairs.len(), 3);
    assert!(pairs.iter().all(|pair| pair[0].ends_with(" mov r14d,[r14]")), "{pairs:?}");
}

/// The most registers that are borrowed at once: the value, both registers of the address, and two for the
/// segment's base.
#[test]
fn an_address_of_fs_in_moved_registers_has_room() {
    // pop and push qword ptr fs:[r14+r15*2+8]
    for bytes in [[0x64, 0x43, 0x8f, 0x44, 0x7e, 0x08], [0x64, 0x43, 0xff, 0x74, 0x7e, 0x08]] {
        let code = translate_bytes(&bytes);
        assert!(listing(&code).iter().any(|line| line.contains("rorx")), "its address is probed");
    }
}

const DATA: i32 = 0x1000;

/// `add dword ptr [rip+distance], constant`
fn add_constant(distance: i32, constant: u32) -> Vec<u8> {
    [[0x81, 0x05].as_slice(), &distance.to_le_bytes(), &constant.to_le_bytes()].concat()
}

#[test]
fn a_constant_is_read_if_two_versions_differ_in_nothing_else() {
    let versions = [1, 2, 3].map(|constant| add_constant(DATA, constant));
    let earlier = |from: &[usize]| {
        let of = from.iter().map(|&index| versions[index].as_slice()).collect::<Vec<_>>();
        patched(&versions[2], PC, of.into_iter())
    };
    assert_eq!(earlier(&[0, 1]), patchable(&versions[2], PC));
    assert_eq!(earlier(&[0, 1])[0].bytes, 6..10);
    assert!(earlier(&[0]).is_empty());
    // Another displacement is another instruction.
    let other = add_constant(DATA + 4, 1);
    assert!(patched(&versions[2], PC, [&*other, &*versions[0]].into_iter()).is_empty());
}

#[test]
fn a_constant_whose_instruction_reaches_as_far_as_can_be_is_left_to_the_run_loop() {
    for distance in [DATA, i32::MAX] {
        let code = add_constant(distance, 7);
        let emitted = translate_patched(&code, &patchable(&code, PC));
        let reads =
            listing(&emitted).iter().any(|line| line.contains("add") && line.contains("eax"));
        assert_eq!(reads, distance == DATA, "{distance:#x}");
    }
}
