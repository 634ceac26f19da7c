//! What the generator leaves out (`generate::refused`), since engines may differ in it or a random
//! operand would say nothing: far transfers, segment registers, the XSAVE family, protection keys,
//! the trap flag, interrupts, privileged instructions. Here with operands that matter, the
//! translating engine against silicon.
#![allow(clippy::unwrap_used, reason = "a test fails where its helper does")]

mod common;
#[path = "jit_system/edge.rs"]
mod edge;
#[path = "jit_system/far.rs"]
mod far;
#[path = "jit_system/pair.rs"]
mod pair;
#[path = "jit_system/strings.rs"]
mod strings;
#[path = "jit_system/xsave.rs"]
mod xsave;

use common::{DATA, case, case_of_bytes};
use iced_x86::code_asm::*;
use pair::with_engines;
use tregion::guest::{HostFeatures, Vendor};

/// RFLAGS bits that a user may set, and some that he may not.
const RFLAGS: [u64; 9] =
    [0, 0x8d5, 1 << 8, 1 << 9, 3 << 12, 1 << 14, 1 << 18, 1 << 21, 0x25_4dd5 | 0xf << 60];

#[test]
fn flags_popped_from_the_stack() {
    with_engines(|pair| {
        for rflags in RFLAGS {
            for narrow in [false, true] {
                pair.agree(
                    &format!("popf of {rflags:#x}, narrow: {narrow}"),
                    &case(|a| {
                        a.mov(rax, rflags).unwrap();
                        a.push(rax).unwrap();
                        if narrow { a.popf() } else { a.popfq() }.unwrap();
                        a.inc(rbx).unwrap();
                        a.pushfq().unwrap();
                        a.pop(rcx).unwrap();
                        a.hlt().unwrap();
                    }),
                );
            }
        }
    });
}

#[test]
fn the_trap_flag_over_every_kind_of_instruction() {
    let bodies: &[&[u8]] = &[
        b"\x90",
        b"\x53",
        b"\x9c",
        b"\x9d",
        b"\xeb\x00",
        b"\xe8\x00\x00\x00\x00",
        b"\xcc",
        b"\xf1",
        b"\xcd\x03",
        b"\xcd\x80",
        b"\x0f\x0b",
        b"\x0f\x05",
        b"\xf4",
        b"\xf3\xaa",         // rep stosb
        b"\x8e\xd0",         // mov ss, eax
        b"\x0f\xa2",         // cpuid
        b"\x48\x0f\xae\x07", // fxsave [rdi]
        b"\xf3\x0f\x1e\xfa",
        b"\x0f\x31",
    ];
    with_engines(|pair| {
        for body in bodies {
            // pushfq; or qword [rsp], 0x100; popfq; the body; nops
            let mut code = b"\x9c\x48\x81\x0c\x24\x00\x01\x00\x00\x9d".to_vec();
            code.extend_from_slice(body);
            code.extend_from_slice(b"\x90\x90\xf4");
            let mut case = case_of_bytes(&code);
            case.state.gpr[7] = DATA;
            case.state.gpr[1] = 3;
            case.state.gpr[0] = 0x2b;
            if body[0] == 0x0f && matches!(body[1], 0xa2 | 0x31) {
                // Their results tell engines apart.
                pair.agree_but(&format!("{body:x?} under TF"), &case, &[0, 1, 2, 3]);
            } else {
                pair.agree(&format!("{body:x?} under TF"), &case);
            }
        }
    });
}

#[test]
fn software_interrupts() {
    with_engines(|pair| {
        for number in 0..=255 {
            pair.agree(&format!("int {number:#x}"), &case_of_bytes(&[0x90, 0xcd, number, 0xf4]));
        }
    });
}

/// Not `vmcall`, which reaches a hypervisor if there is one.
#[test]
fn privileged_and_undefined_instructions() {
    let codes: &[&[u8]] = &[
        b"\xfa",
        b"\xfb",
        b"\xe4\x80",
        b"\xe5\x80",
        b"\xe6\x80",
        b"\xe7\x80",
        b"\xec",
        b"\xed",
        b"\xee",
        b"\xef",
        b"\x6c",
        b"\x6d",
        b"\x6e",
        b"\x6f",
        b"\xf3\x6c",
        b"\xf3\x6f",
        b"\x0f\x20\xc0",
        b"\x0f\x22\xc0",
        b"\x0f\x20\xc8",
        b"\x0f\x21\xc0",
        b"\x0f\x23\xc0",
        b"\x0f\x06",
        b"\x0f\x08",
        b"\x0f\x09",
        b"\x0f\x30",
        b"\x0f\x32",
        b"\x0f\x33",
        b"\x0f\x07",
        b"\x48\x0f\x07",
        b"\x0f\x35",
        b"\x0f\x01\xf8",
        b"\x0f\x01\xd1",
        b"\x0f\x01\x17",
        b"\x0f\x01\x1f",
        b"\x0f\x01\x3f",
        b"\x0f\x01\x37",
        b"\x0f\x00\x17",
        b"\x0f\x00\x1f",
        b"\x0f\x00\xd0",
        b"\x0f\x00\xd8",
        b"\x0f\x01\xf0",
        b"\x0f\x01\xca",
        b"\x0f\x01\xcb",
        b"\x0f\x01\xd4",
        b"\x0f\x01\xd5",
        b"\x0f\x01\xd6",
        b"\x0f\x78\xc0",
        b"\x0f\x79\xc0",
        b"\x0f\xc7\x37",
        b"\x66\x0f\xc7\x37",
        b"\xf3\x0f\xc7\x37",
        b"\x0f\xaa",
        b"\x0f\x0b",
        b"\x0f\xb9\xc0",
        b"\x0f\xff\xc0",
        b"\x06",
        b"\x07",
        b"\x0e",
        b"\x16",
        b"\x17",
        b"\x1e",
        b"\x1f",
        b"\x27",
        b"\x2f",
        b"\x37",
        b"\x3f",
        b"\x60",
        b"\x61",
        b"\x82\xc0\x00",
        b"\x9a\x00\x00\x00\x00\x33\x00",
        b"\xce",
        b"\xd4\x0a",
        b"\xd5\x0a",
        b"\xd6",
        b"\xea\x00\x00\x00\x00\x33\x00",
        b"\xf0\x90",
        b"\xf0\x01\xc0",
        b"\x0f\x01\xdf",
        b"\x0f\x01\xfb",
        b"\x66\x0f\x38\x80\x07",
        b"\x66\x0f\x38\x82\x07",
        b"\x0f\x04",
        b"\x0f\x0a",
        b"\x0f\x0c",
        b"\x0f\x24\xc0",
        b"\x0f\x26\xc0",
        b"\x0f\xa6\xc0",
        b"\x0f\xa7\xc0",
        b"\xf1",
        b"\xcc",
        b"\x62\xf1\x7c\x48\x58\x3f\x62",
        b"\x8f\xe8\x78\xc0\xc0\x01",
        b"\x0f\x01\xcf",
        b"\x0f\x01\xc4",
        b"\x0f\x01\xc2",
        b"\x0f\x01\xc3",
    ];
    with_engines(|pair| {
        let amd = HostFeatures::of_this_host().vendor() == Vendor::Amd;
        for code in codes {
            // Hypervisors hide MWAITX, and cannot keep guests from it.
            if amd && *code == b"\x0f\x01\xfb" {
                continue;
            }
            let mut bytes = vec![0x90];
            bytes.extend_from_slice(code);
            bytes.push(0xf4);
            let mut case = case_of_bytes(&bytes);
            case.state.gpr[7] = DATA;
            case.state.gpr[6] = DATA + 0x100;
            case.state.gpr[1] = 1;
            pair.agree(&format!("{code:x?}"), &case);
        }
    });
}

/// Up to 17 bytes by prefixes in front, of instructions that exist and that do not.
#[test]
fn lengths_of_instructions() {
    let instructions: &[&[u8]] = &[
        b"\x90",
        b"\x48\x01\xd8",
        b"\x48\x81\x87\x10\x00\x00\x00\x01\x00\x00\x00",
        b"\xc5\xfc\x58\xc1",
        b"\xc4\xe3\x7d\x18\x87\x10\x00\x00\x00\x01",
        b"\x62\xf1\x7c\x48\x58\x87\x40\x00\x00\x00",
        b"\x62\x91\x00\x00\x00\xa4\xf4\x10\x00\x00\x00",
        b"\xc4\xe3\x00\xff\x87\x10\x00\x00\x00\x01",
        b"\x0f\x0b",
        b"\x0f\x04",
        b"\x06",
    ];
    with_engines(|pair| {
        for instruction in instructions {
            for prefix in [0x2e, 0x66, 0x67, 0xf2, 0x40] {
                for count in 0..=17_usize.saturating_sub(instruction.len()) {
                    let mut code = vec![prefix; count];
                    code.extend_from_slice(instruction);
                    code.extend_from_slice(b"\x90\x90\x90\xf4");
                    let mut case = case_of_bytes(&code);
                    case.state.gpr[7] = DATA;
                    pair.agree(&format!("{code:x?}"), &case);
                }
            }
        }
    });
}

#[test]
fn protection_keys() {
    with_engines(|pair| {
        for (eax_value, ecx_value, edx_value) in
            [(0x5555_5554, 0, 0), (0, 0, 0), (0xffff_fffc, 1, 0), (4, 0, 1), (4, 0, 0)]
        {
            let text = format!("wrpkru of {eax_value:#x}, {ecx_value}, {edx_value}");
            pair.agree(
                &text,
                &case(|a| {
                    a.mov(rax, 0x1234_5678_0000_0000_u64 | eax_value).unwrap();
                    a.mov(ecx, ecx_value).unwrap();
                    a.mov(edx, edx_value).unwrap();
                    a.wrpkru().unwrap();
                    a.mov(rax, -1_i64).unwrap();
                    a.mov(rdx, -1_i64).unwrap();
                    a.rdpkru().unwrap();
                    a.hlt().unwrap();
                }),
            );
        }
        for ecx_value in [0, 1, 0x100, -1] {
            pair.agree(
                &format!("rdpkru of {ecx_value}"),
                &case(|a| {
                    a.mov(rcx, 0x7_0000_0000_u64 | u64::from(ecx_value as u32)).unwrap();
                    a.mov(rdx, -1_i64).unwrap();
                    a.rdpkru().unwrap();
                    a.hlt().unwrap();
                }),
            );
        }
    });
}

#[test]
fn control_registers_that_users_read() {
    with_engines(|pair| {
        for ecx_value in [2_u32, 3, 0x7fff_ffff, u32::MAX] {
            pair.agree(
                &format!("xgetbv {ecx_value:#x}"),
                &case(|a| {
                    a.mov(ecx, ecx_value).unwrap();
                    a.xgetbv().unwrap();
                    a.hlt().unwrap();
                }),
            );
        }
        // XCR0 without tiles, which guests do not get.
        pair.agree(
            "xgetbv 0",
            &case(|a| {
                a.mov(rax, -1_i64).unwrap();
                a.mov(rdx, -1_i64).unwrap();
                a.xgetbv().unwrap();
                a.and(eax, !0x6_0000).unwrap();
                a.hlt().unwrap();
            }),
        );
    });
}

/// The leaves whose answers are the same on every core and that no mask touches.
#[test]
fn processor_identification() {
    with_engines(|pair| {
        for leaf in [0, 2, 0x8000_0000_u32, 0x8000_0002, 0x8000_0003, 0x8000_0004, 0x8000_0008] {
            pair.agree(
                &format!("cpuid {leaf:#x}"),
                &case(|a| {
                    a.mov(rax, 0xffff_ffff_0000_0000_u64 | u64::from(leaf)).unwrap();
                    a.mov(rbx, -1_i64).unwrap();
                    a.mov(rcx, 0xffff_ffff_0000_0000_u64).unwrap();
                    a.mov(rdx, -1_i64).unwrap();
                    a.cpuid().unwrap();
                    a.hlt().unwrap();
                }),
            );
        }
    });
}
