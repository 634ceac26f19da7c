//! Segment registers, far transfers, IRET.

use iced_x86::code_asm::*;
use tregion::case::{Case, Stop};

use crate::common::{CODE, DATA, STACK, case, case_of_bytes};
use crate::pair::with_engines;

/// Selectors of all kinds: null, user data and code with every privilege, the kernel's, those of
/// thread-local storage, of a local table, beyond the table. None of 32-bit code, which is not run.
const SELECTORS: [u16; 17] =
    [0, 1, 3, 4, 7, 0x10, 0x18, 0x1b, 0x28, 0x2b, 0x2a, 0x30, 0x33, 0x31, 0x40, 0x63, 0xffff];

/// `hlt` at the end of the code page, where far transfers go.
fn with_landing(code: &[u8]) -> Case {
    let mut case = case_of_bytes(code);
    case.objects[0].contents[0x800..0x803].copy_from_slice(&[0x90, 0x43, 0xf4]);
    case
}

#[test]
fn selectors_into_segment_registers() {
    with_engines(|pair| {
        let mut loaded = 0;
        for selector in SELECTORS {
            for register in 0..8 {
                // mov sreg, ax; mov rbx, sreg; hlt
                let modrm = 0xc0 | register << 3;
                let code = [0x8e, modrm, 0x48, 0x8c, modrm | 3, 0xf4];
                let mut case = case_of_bytes(&code);
                case.state.gpr[0] = 0xffff_ffff_ffff_0000 | u64::from(selector);
                case.state.gpr[3] = u64::MAX;
                case.state.fs_base = DATA;
                case.state.gs_base = DATA + 0x100;
                let what = format!("mov of {selector:#x} to segment register {register}");
                loaded += usize::from(pair.agree(&what, &case).stop == Stop::Halt);
            }
        }
        assert!(loaded > 30, "{loaded}");
    });
}

#[test]
fn selectors_to_memory_and_registers() {
    with_engines(|pair| {
        for register in 0..8 {
            for prefix in [&[][..], &[0x66], &[0x48], &[0x66, 0x48]] {
                for modrm in [0xc3, 0x07] {
                    let mut code = prefix.to_vec();
                    code.extend_from_slice(&[0x8c, modrm | register << 3, 0xf4]);
                    let mut case = case_of_bytes(&code);
                    case.state.gpr[3] = u64::MAX;
                    case.state.gpr[7] = DATA + 1;
                    case.objects[1].contents[..16].fill(0xaa);
                    pair.agree(&format!("{code:x?}"), &case);
                }
            }
        }
    });
}

#[test]
fn pushed_and_popped_selectors() {
    with_engines(|pair| {
        for selector in SELECTORS {
            for register in [0xa0, 0xa8] {
                for prefix in [&[][..], &[0x66], &[0x48]] {
                    // push of the word, then pop and push of FS or GS
                    let mut code = vec![0x50];
                    code.extend_from_slice(prefix);
                    code.extend_from_slice(&[0x0f, register | 1]);
                    code.extend_from_slice(prefix);
                    code.extend_from_slice(&[0x0f, register, 0xf4]);
                    let mut case = case_of_bytes(&code);
                    case.state.gpr[0] = 0x1234_5678_9abc_0000 | u64::from(selector);
                    case.state.gs_base = DATA;
                    pair.agree(&format!("{selector:#x}: {code:x?}"), &case);
                }
            }
        }
    });
}

#[test]
fn far_pointers() {
    with_engines(|pair| {
        for selector in SELECTORS {
            for opcode in [0xb2, 0xb4, 0xb5] {
                for (prefix, size) in [(&[0x66][..], 2), (&[], 4), (&[0x48], 8)] {
                    for address in [DATA + 0x10, DATA + 0x1ffc, DATA + 0x3000] {
                        let mut code = prefix.to_vec();
                        code.extend_from_slice(&[0x0f, opcode, 0x07, 0xf4]);
                        let mut case = case_of_bytes(&code);
                        case.state.gpr[0] = 0x1111_2222_3333_4444;
                        case.state.gpr[7] = address;
                        case.state.fs_base = DATA;
                        case.objects[1].contents[0x10..0x18].fill(0x99);
                        let place = 0x10 + size;
                        case.objects[1].contents[place..place + 2]
                            .copy_from_slice(&selector.to_le_bytes());
                        let what = format!("far pointer {selector:#x} at {address:#x}: {code:x?}");
                        pair.agree(&what, &case);
                    }
                }
            }
        }
    });
}

/// Offsets that far transfers go to: code, no code, nowhere.
const OFFSETS: [u64; 4] = [CODE + 0x800, DATA, 0x1234_5000, 0x8000_0000_0000_0000];

#[test]
fn far_jumps_and_calls() {
    with_engines(|pair| {
        let mut arrived = 0;
        for selector in SELECTORS {
            for offset in OFFSETS {
                for (prefix, size) in [(&[0x66][..], 2), (&[], 4), (&[0x48], 8)] {
                    for modrm in [0x2f, 0x1f] {
                        let mut code = prefix.to_vec();
                        code.extend_from_slice(&[0xff, modrm, 0xf4]);
                        let mut case = with_landing(&code);
                        case.state.gpr[7] = DATA + 0x21;
                        let place = 0x21 + size;
                        let data = &mut case.objects[1].contents;
                        data[0x21..place].copy_from_slice(&offset.to_le_bytes()[..size]);
                        data[place..place + 2].copy_from_slice(&selector.to_le_bytes());
                        let what = format!("to {selector:#x}:{offset:#x}: {code:x?}");
                        arrived += usize::from(pair.agree(&what, &case).stop == Stop::Halt);
                    }
                }
            }
        }
        // AMD's processors take no offsets of 64 bits.
        assert!(arrived > 5, "{arrived}");
    });
}

/// A stack of words of a size.
fn stack_of(case: &mut Case, size: usize, words: &[u64]) {
    let mut at = 0x800;
    for word in words {
        case.objects[2].contents[at..at + size].copy_from_slice(&word.to_le_bytes()[..size]);
        at += size;
    }
}

#[test]
fn far_returns() {
    with_engines(|pair| {
        let mut arrived = 0;
        for selector in SELECTORS {
            for offset in OFFSETS {
                for (prefix, size) in [(&[0x66][..], 2), (&[], 4), (&[0x48], 8)] {
                    for tail in [&[0xcb][..], &[0xca, 0x18, 0x00]] {
                        let code = [prefix, tail].concat();
                        let mut case = with_landing(&code);
                        // Returns to less privilege take a new stack too.
                        let frame = [offset, u64::from(selector), STACK + 0x100, 0x2b];
                        stack_of(&mut case, size, &frame);
                        let what = format!("return to {selector:#x}:{offset:#x}: {code:x?}");
                        arrived += usize::from(pair.agree(&what, &case).stop == Stop::Halt);
                    }
                }
            }
        }
        assert!(arrived > 3, "{arrived}");
    });
}

#[test]
fn interrupt_returns() {
    with_engines(|pair| {
        let mut arrived = 0;
        for (prefix, size) in [(&[0x66][..], 2), (&[], 4), (&[0x48], 8)] {
            let mut run =
                |offset: u64, code_selector: u16, rflags: u64, stack: u64, stack_selector: u16| {
                    let code = [prefix, &[0xcf, 0xf4]].concat();
                    let mut case = with_landing(&code);
                    let selector = u64::from(code_selector);
                    stack_of(
                        &mut case,
                        size,
                        &[offset, selector, rflags, stack, u64::from(stack_selector)],
                    );
                    case.state.rflags |= 0x8d5;
                    let what = format!(
                        "iret of {size} bytes: {code_selector:#x}:{offset:#x}, flags {rflags:#x}, \
                     stack {stack_selector:#x}:{stack:#x}"
                    );
                    arrived += usize::from(pair.agree(&what, &case).stop == Stop::Halt);
                };
            let (landing, stack) = (CODE + 0x800, STACK + 0x123);
            for selector in SELECTORS {
                run(landing, selector, 0x202, stack, 0x2b);
                run(landing, 0x33, 0x202, stack, selector);
            }
            for offset in OFFSETS {
                run(offset, 0x33, 0x202, stack, 0x2b);
            }
            for rflags in crate::RFLAGS {
                run(landing, 0x33, rflags, stack, 0x2b);
            }
            run(landing, 0x33, 0x202, 0x8000_0000_0000_0000, 0x2b);
        }
        assert!(arrived > 20, "{arrived}");
    });
}

/// Frames of which a part cannot be read, and stacks that cannot be used.
#[test]
fn far_transfers_that_fault_on_the_stack() {
    with_engines(|pair| {
        for (code, size) in [(&[0x48, 0xcb][..], 8), (&[0x48, 0xcf], 8), (&[0xcb], 4), (&[0xcf], 4)]
        {
            for selector in [0x33, 0] {
                let offsets = (-0x28..=8).flat_map(|offset| [offset, 0x1000 + offset]);
                for top in offsets {
                    let mut case = with_landing(code);
                    case.state.gpr[4] = STACK.wrapping_add_signed(top);
                    let frame = [CODE + 0x800, selector, 0x202, STACK + 0x100, 0x2b];
                    let bytes = frame.iter().flat_map(|word| word.to_le_bytes()[..size].to_vec());
                    for (byte, place) in bytes.zip(top..) {
                        if let Ok(place @ ..0x1000) = usize::try_from(place) {
                            case.objects[2].contents[place] = byte;
                        }
                    }
                    let what = format!("{code:x?} of {selector:#x} with the frame at {top:#x}");
                    pair.agree(&what, &case);
                }
            }
            let mut case = with_landing(code);
            case.state.gpr[4] = 0x8000_0000_0000_0000;
            pair.agree(&format!("{code:x?} with a stack nowhere"), &case);
        }
        for top in [STACK + 8, STACK, STACK + 4, 0x8000_0000_0000_0000] {
            let mut case = with_landing(&[0x48, 0xff, 0x1f]);
            case.state.gpr[4] = top;
            case.state.gpr[7] = DATA;
            case.objects[1].contents[..8].copy_from_slice(&(CODE + 0x800).to_le_bytes());
            case.objects[1].contents[8] = 0x33;
            pair.agree(&format!("far call with RSP {top:#x}"), &case);
        }
    });
}

#[test]
fn a_base_stays_until_its_selector_is_loaded() {
    with_engines(|pair| {
        let outcome = pair.agree(
            "bases",
            &case(|a| {
                a.mov(rax, DATA).unwrap();
                a.wrfsbase(rax).unwrap();
                a.mov(byte_ptr(0x10).fs(), 5).unwrap();
                a.mov(ecx, ds).unwrap();
                a.mov(fs, ecx).unwrap();
                a.rdfsbase(rbx).unwrap();
                a.hlt().unwrap();
            }),
        );
        assert_eq!(outcome.stop, Stop::Halt);
    });
}
