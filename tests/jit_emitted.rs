//! Code that the translator emits, judged by a checker that knows nothing of how it was made: no
//! instruction of it reads or writes memory outside the guest's window and the vCPU's block, or
//! leaves the code cache but by its doors. And the checker sees what is done to it on purpose.
#![allow(clippy::unwrap_used, reason = "a test fails where its helper does")]

#[path = "jit_emitted/accesses.rs"]
mod accesses;
#[path = "jit_emitted/checker.rs"]
mod checker;
#[path = "jit_emitted/fields.rs"]
mod fields;
#[path = "jit_emitted/loops.rs"]
mod loops;
#[path = "jit_emitted/sources.rs"]
mod sources;
#[path = "jit_emitted/strings.rs"]
mod strings;
#[path = "jit_emitted/symbolic.rs"]
mod symbolic;

use std::panic::{AssertUnwindSafe, catch_unwind};

use checker::{Complaint, Figures, check, decode};
use iced_x86::{Code, Decoder, DecoderOptions, OpKind, Register};
use sources::{Source, Sources};
use tregion::guest::GuestAddress;
use tregion::translate::{
    Announced, Class, Exit, Extended, Recorded, Relocation, Request, SideEntry, TraceOf,
    TranslatedBlock, Translator, WordMove, X87Opcode, class, patchable,
};

/// Sources translated, unless the environment says otherwise.
const SOURCES: u64 = 40_000;
/// Most blocks of one source.
const MOST_BLOCKS: usize = 12;

/// A block that lives longer than its translator's next.
#[derive(Clone)]
struct Owned {
    code: Vec<u8>,
    exits: Vec<Exit>,
    relocations: Vec<Relocation>,
    side_table: Vec<SideEntry>,
    x87_opcodes: Vec<X87Opcode>,
    guest_bytes: u32,
    instructions: u16,
    truncated: bool,
    ends_early: bool,
    extended: Extended,
}

impl Owned {
    fn of(block: &TranslatedBlock<'_>) -> Self {
        Self {
            code: block.code.to_vec(),
            exits: block.exits.to_vec(),
            relocations: block.relocations.to_vec(),
            side_table: block.side_table.to_vec(),
            x87_opcodes: block.x87_opcodes.to_vec(),
            guest_bytes: block.guest_bytes,
            instructions: block.instructions,
            truncated: block.truncated,
            ends_early: block.ends_early,
            extended: block.extended,
        }
    }

    fn block(&self) -> TranslatedBlock<'_> {
        TranslatedBlock {
            code: &self.code,
            exits: &self.exits,
            relocations: &self.relocations,
            side_table: &self.side_table,
            x87_opcodes: &self.x87_opcodes,
            guest_bytes: self.guest_bytes,
            instructions: self.instructions,
            truncated: self.truncated,
            ends_early: self.ends_early,
            extended: self.extended,
        }
    }
}

fn sources() -> u64 {
    let given = std::env::var("TREGION_EMITTED_SOURCES").ok();
    given.map_or(SOURCES, |given| given.parse().unwrap())
}

/// Translates the whole of a source, block by block, in the way that `variant` says. What the
/// translator panics at goes to `refused`.
fn blocks(
    translator: &mut Translator,
    source: &Source,
    (variant, bits): (u64, u32),
    refused: &mut Vec<String>,
) -> Vec<Owned> {
    let mut blocks = Vec::new();
    let mut done = 0;
    while done < source.code.len() && blocks.len() < MOST_BLOCKS {
        let pc = GuestAddress(source.pc).wrapping_add(done as u64);
        let page = pc.page_start();
        // Whatever is there, and every second instruction or so that moves a word.
        let decoder = Decoder::with_ip(64, &source.code[done..], pc.0, DecoderOptions::NONE);
        let moves = decoder.into_iter().take(64).filter(|it| WordMove::of(it).is_some());
        let moves = moves.map(|it| GuestAddress(it.ip())).filter(|at| at.0 % 32 >= 16);
        let mut observed: Vec<_> = moves.chain([pc.wrapping_add(20)]).collect();
        observed.sort_unstable();
        let checked = variant & 2 != 0 && pc.0 < 1 << bits;
        let part = [(pc.wrapping_add(pc.0 % 16), pc.wrapping_add(40))];
        let patched = patchable(&source.code[done..], pc);
        let of = if variant & 128 != 0 { TraceOf::Blocks } else { TraceOf::Instructions };
        let traced = Some(Recorded { of, span: part[0] });
        let request = Request {
            pc,
            code: &source.code[done..],
            span: (page, page.wrapping_add(4095)),
            observed: if variant & 4 != 0 { &observed } else { &[] },
            counted: variant & 1 != 0,
            again: variant & 256 == 0,
            checked,
            announced: Announced {
                instructions: if variant & 48 == 16 { &part } else { &[] },
                arrivals: if variant & 48 == 32 { &part } else { &[] },
                recorded: traced.filter(|_| variant & 64 != 0),
            },
            patched: if checked && variant & 8 != 0 { &patched } else { &[] },
        };
        let block = match catch_unwind(AssertUnwindSafe(|| Owned::of(&translator.block(&request))))
        {
            Ok(block) => block,
            Err(_) => {
                *translator = Translator::new(bits);
                refused.push(format!("\n  the translator panics at{}", text(request.code, pc.0)));
                return blocks;
            }
        };
        done += (block.guest_bytes as usize).max(1);
        blocks.push(block);
    }
    blocks
}

fn text(code: &[u8], at: u64) -> String {
    let decoder = Decoder::with_ip(64, code, at, DecoderOptions::NONE);
    let lines = decoder.into_iter().take(70);
    lines.map(|instruction| format!("\n    {:x} {instruction}", instruction.ip())).collect()
}

fn report(
    complaints: &[Complaint],
    block: &TranslatedBlock<'_>,
    source: &Source,
    bits: u32,
) -> String {
    let complaints: String =
        complaints.iter().map(|it| format!("\n  {:x} {}", it.offset, it.what)).collect();
    let guest = text(&source.code, source.pc);
    let host = text(block.code, 0);
    format!("{complaints}\n  window of 2^{bits}; guest{guest}\n  host{host}")
}

#[test]
fn nothing_reaches_beyond_the_window_and_the_block() {
    let bits = [46, 46, 41, 32];
    let mut translators = bits.map(Translator::new);
    let mut sources_of = Sources::new(1);
    let (mut figures, mut number, mut bad) = (Figures::default(), 0, Vec::new());
    // Who wants a report wants all of it.
    let wanted = std::env::var("TREGION_EMITTED_REPORT").ok();
    for index in 0..sources() {
        if !bad.is_empty() && wanted.is_none() {
            break;
        }
        let source = sources_of.next(index);
        let variant = sources_of.below(512);
        let which = sources_of.below(4) as usize;
        let translator = &mut translators[which];
        for block in blocks(translator, &source, (variant, bits[which]), &mut bad) {
            let (complaints, of_block) = check(&block.block(), bits[which]);
            figures.add(&of_block);
            number += 1;
            if !complaints.is_empty() {
                bad.push(report(&complaints, &block.block(), &source, bits[which]));
            }
        }
    }
    println!("{number} blocks, {figures:?}");
    if let Some(file) = wanted {
        std::fs::write(file, bad.join("\n")).unwrap();
    }
    assert!(bad.is_empty(), "{} of {number} blocks are bad, first:{}", bad.len(), bad[0]);
    assert!(figures.probes * 2 < figures.window_accesses * 3, "addresses are known now and then");
    assert!(figures.strings > 0 && figures.exits > number, "everything is among them");
    assert!(figures.announcements > number / 10, "blocks with hooks too");
    assert!(figures.observed > 1000, "words that somebody looks at too");
    assert!(figures.notes > number / 10, "blocks with a trace too");
    assert!(figures.loops > 100 && figures.facts_of_loops > 100, "loops without probes too");
}

/// Single instructions, in the window and in the slot.
#[test]
fn nor_do_single_instructions() {
    let mut translator = Translator::new(46);
    let mut sources_of = Sources::new(2);
    let mut bad = Vec::new();
    let (mut number, mut in_slot) = (0, 0);
    for index in 0..sources() / 4 {
        let source = sources_of.next(index);
        let mut decoder = Decoder::with_ip(64, &source.code, source.pc, DecoderOptions::NONE);
        let start = source.pc;
        for instruction in (&mut decoder).into_iter().take(64) {
            let kind = class(instruction.code());
            if !matches!(kind, Class::Plain | Class::RevealsPointers | Class::Lea) {
                continue;
            }
            let memory = instruction.op_kinds().any(|kind| kind == OpKind::Memory);
            let place = (memory && kind != Class::Lea && index % 2 == 0)
                .then(|| sources_of.below(4096) as u32);
            let offset = instruction.ip().wrapping_sub(start) as usize;
            let bytes = &source.code[offset..offset + instruction.len()];
            let pc = GuestAddress(instruction.ip());
            let Some(block) = translator.single(pc, &instruction, bytes, place) else { continue };
            let (complaints, _) = check(&block, 46);
            number += 1;
            in_slot += u64::from(place.is_some());
            if !complaints.is_empty() {
                let own = Source { pc: pc.0, code: bytes.to_vec() };
                bad.push(report(&complaints, &block, &own, 46));
            }
        }
    }
    println!("{number} single instructions, {in_slot} of them with their operand in the slot");
    assert!(bad.is_empty(), "{} of {number} are bad, first:{}", bad.len(), bad[0]);
}

/// Ways to spoil code. Each gives the spoilt block, if there is a place for it.
type Spoiler = (&'static str, fn(&Owned) -> Option<Owned>);

const SPOILERS: [Spoiler; 9] = [
    ("a probe is left out", |block| {
        replace(
            block,
            |it| it.code() == Code::Mov_r32_rm32 && in_block(it) && indexed(it),
            |bytes| {
                bytes.fill(0x90);
            },
        )
    }),
    ("a probe tests other bits", |block| {
        replace(
            block,
            |it| it.code() == Code::VEX_Rorx_r64_rm64_imm8,
            |bytes| {
                *bytes.last_mut().unwrap() ^= 8;
            },
        )
    }),
    ("a probe looks at another register", |block| {
        replace(block, |it| it.code() == Code::VEX_Rorx_r64_rm64_imm8, |bytes| bytes[4] ^= 1)
    }),
    ("a segment is another", |block| {
        replace(
            block,
            |it| it.has_segment_prefix() && it.memory_base().is_gpr64(),
            |bytes| {
                let prefix = bytes.iter_mut().find(|byte| **byte == 0x65).unwrap();
                *prefix = 0x64;
            },
        )
    }),
    ("a segment is none", |block| {
        replace(
            block,
            |it| it.has_segment_prefix() && it.memory_base().is_gpr64(),
            |bytes| {
                let prefix = bytes.iter_mut().find(|byte| **byte == 0x65).unwrap();
                *prefix = 0x3e;
            },
        )
    }),
    ("a slot lies outside the block", |block| {
        replace(
            block,
            |it| in_block(it) && it.memory_displ_size() == 8 && it.len() >= 7,
            |bytes| {
                *bytes.last_mut().unwrap() ^= 0x40;
            },
        )
    }),
    ("an exit has no stub", |block| {
        let (_, kept) = block.relocations.split_last()?;
        Some(Owned { relocations: kept.into(), ..block.clone() })
    }),
    ("an exit tells another's place", |block| {
        replace(
            block,
            |it| it.is_ip_rel_memory_operand(),
            |bytes| {
                bytes[3] += 1;
            },
        )
    }),
    ("the jump cache is missed", |block| {
        replace(
            block,
            |it| it.code() == Code::Jmp_rm64,
            |bytes| {
                // The index becomes R13.
                let sib = bytes.iter().position(|byte| *byte == 0xf4).unwrap();
                bytes[sib] = 0xec;
            },
        )
    }),
];

fn in_block(instruction: &iced_x86::Instruction) -> bool {
    instruction.memory_base() == Register::RSP && instruction.code() != Code::Jmp_rm64
}

fn indexed(instruction: &iced_x86::Instruction) -> bool {
    instruction.memory_index() != Register::None
}

/// The block with the last instruction that `wanted` takes changed by `change`.
fn replace(
    block: &Owned,
    wanted: impl Fn(&iced_x86::Instruction) -> bool,
    change: impl Fn(&mut [u8]),
) -> Option<Owned> {
    let code = decode(&block.code);
    let found = code.iter().rev().find(|instruction| wanted(instruction))?;
    let mut spoilt = block.clone();
    let range = found.ip() as usize..found.next_ip() as usize;
    change(&mut spoilt.code[range]);
    Some(spoilt)
}

/// Each spoiler is seen, wherever the change matters.
#[test]
fn spoilt_code_is_seen() {
    let mut translator = Translator::new(46);
    for (name, spoil) in SPOILERS {
        let mut sources_of = Sources::new(3);
        let (mut spoilt, mut seen) = (0, 0);
        for index in 0..2_000 {
            let source = sources_of.next(index);
            for block in blocks(&mut translator, &source, (0, 46), &mut Vec::new()) {
                if !check(&block.block(), 46).0.is_empty() {
                    continue;
                }
                let Some(block) = spoil(&block) else { continue };
                spoilt += 1;
                seen += u64::from(!check(&block.block(), 46).0.is_empty());
            }
        }
        println!("{name}: {seen} of {spoilt}");
        assert!(spoilt > 20, "{name}: there are places for it");
        // An address may lie near another that was probed, and its access may be a hint.
        assert!(seen * 4 >= spoilt * 3, "{name}: {seen} of {spoilt} are seen");
    }
}

fn translate(bytes: &[u8]) -> Owned {
    let source = Source { pc: 0x40_0000, code: bytes.to_vec() };
    blocks(&mut Translator::new(46), &source, (0, 46), &mut Vec::new()).swap_remove(0)
}

/// REX in front of another prefix counts for nothing, and the last segment prefix counts.
#[test]
fn ignored_prefixes_do_not_hide_a_segment() {
    let block = translate(&[0x40, 0x64, 0x8b, 0x03, 0xf4]);
    assert_eq!(check(&block.block(), 46).0, []);
}

/// An x87 store whose exception is not masked does not access its operand and does not fault,
/// so that its base may be anywhere after a few passes.
#[test]
fn a_store_that_may_not_take_place_shows_nothing() {
    // fldcw [rsi]; fst qword [rbx]; fnclex; add rsi,2; add rbx,3FFFFF00h; dec rcx; jnz
    let code = [
        0xd9, 0x2e, 0xdd, 0x13, 0xdb, 0xe2, 0x48, 0x83, 0xc6, 0x02, 0x48, 0x81, 0xc3, 0x00, 0xff,
        0xff, 0x3f, 0x48, 0xff, 0xc9, 0x75, 0xea, 0xf4,
    ];
    assert_eq!(check(&translate(&code).block(), 46).0, []);
}

/// A store under a mask shows nothing either, so that its index may lead anywhere after a few passes.
#[test]
fn a_masked_store_in_a_loop_shows_nothing() {
    // vmaskmovps [rbx+rcx*8],ymm0,ymm1; add rcx,7FFFFFFh; dec rdx; jnz
    let code = [
        0xc4, 0xe2, 0x7d, 0x2e, 0x0c, 0xcb, 0x48, 0x81, 0xc1, 0xff, 0xff, 0xff, 0x07, 0x48, 0xff,
        0xca, 0x75, 0xee, 0xf4,
    ];
    assert_eq!(check(&translate(&code).block(), 46).0, []);
}

/// What an opcode writes besides its operands is the same whatever they were the first time.
#[test]
fn what_is_written_besides_operands_is_forgotten() {
    // cmpxchg rax,rax; mov ecx,[rax]; cmpxchg [rbx],rdx; mov ecx,[rax]
    let compare = [0x48, 0x0f, 0xb1, 0xc0, 0x8b, 0x08, 0x48, 0x0f, 0xb1, 0x13, 0x8b, 0x08, 0xf4];
    assert_eq!(check(&translate(&compare).block(), 46).0, []);
    // mul rdx; mov ecx,[rdx]; mul rbx; mov ecx,[rdx]
    let multiply = [0x48, 0xf7, 0xe2, 0x8b, 0x0a, 0x48, 0xf7, 0xe3, 0x8b, 0x0a, 0xf4];
    assert_eq!(check(&translate(&multiply).block(), 46).0, []);
}
