//! XSAVE, XRSTOR and their variants, with every mask of components and with areas of all kinds.

use tregion::case::{Case, Mapping, Object, ObjectId, Stop};
use tregion::guest::Permissions;

use crate::common::{DATA, case_of_bytes, range};
use crate::pair::with_engines;

/// Where XSTATE_BV, XCOMP_BV and the reserved rest of the header are.
const HEADER: usize = 512;
/// 64-byte aligned.
const AREA: u64 = DATA + 0x40;
/// Instructions by their bytes, with the area at RDI: with REX.W and without.
const SAVES: [(&str, &[u8]); 3] =
    [("xsave", b"\x0f\xae\x27"), ("xsaveopt", b"\x0f\xae\x37"), ("xsavec", b"\x0f\xc7\x27")];
const RESTORE: &[u8] = b"\x0f\xae\x2f";
/// x87, SSE, AVX, opmasks, upper halves, ZMM16–31, PKRU, and two that do not exist.
const MASKS: [u64; 12] =
    [0, 1, 2, 3, 4, 7, 0xe0, 0xe7, 0x200, 0x2e7, 0xffff_ffff_fff9_ffff, 1 << 63];

/// A state in which no component is as it is after a reset.
fn full(case: &mut Case) {
    let state = &mut case.state;
    for (number, vector) in state.vector.iter_mut().enumerate() {
        for (part, word) in vector.iter_mut().enumerate() {
            *word = 0x0101_0101_0101_0101 * (number as u64 + 1) + part as u64;
        }
    }
    for (number, mask) in state.opmask.iter_mut().enumerate() {
        *mask = 0xf00d << number;
    }
    state.mxcsr = 0x1fa0;
    state.x87.control = 0x27f;
    state.pkru = 0x5555_5550;
}

/// Four data pages, so that an area fits.
fn roomy(code: &[u8]) -> Case {
    let mut case = case_of_bytes(code);
    case.objects.push(Object::zeroed("area", 4));
    case.mappings[1] = Mapping {
        range: range(DATA, 4),
        object: ObjectId(3),
        offset: 0,
        permissions: Permissions::ReadWrite,
    };
    case.state.gpr[7] = AREA;
    full(&mut case);
    case
}

fn ask(case: &mut Case, mask: u64) {
    case.state.gpr[0] = mask & 0xffff_ffff;
    case.state.gpr[2] = mask >> 32;
}

fn wide(code: &[u8], wide: bool) -> Vec<u8> {
    let mut bytes = if wide { vec![0x48] } else { Vec::new() };
    bytes.extend_from_slice(code);
    bytes
}

#[test]
fn components_saved() {
    with_engines(|pair| {
        for (name, code) in SAVES {
            for rex in [false, true] {
                for mask in MASKS {
                    let mut case = roomy(&[&wide(code, rex)[..], &[0xf4]].concat());
                    ask(&mut case, mask);
                    // What the area held before shows what is written.
                    case.objects[3].contents.fill(0xcc);
                    case.objects[3].contents[0x40 + HEADER..][..64].fill(0);
                    let outcome = pair.agree(&format!("{name} of {mask:#x}, wide: {rex}"), &case);
                    assert_eq!(outcome.stop, Stop::Halt);
                }
            }
        }
    });
}

#[test]
fn areas_that_cannot_be_used() {
    with_engines(|pair| {
        let codes = SAVES.iter().map(|(name, code)| (*name, *code)).chain([("xrstor", RESTORE)]);
        for (name, code) in codes {
            for address in
                [AREA + 1, AREA + 8, AREA + 0x10, DATA + 0x3f80, DATA + 0x4000, 0x40, 1 << 63]
            {
                let mut case = roomy(&[code, &[0xf4]].concat());
                ask(&mut case, 0xe7);
                case.state.gpr[7] = address;
                pair.agree(&format!("{name} at {address:#x}"), &case);
            }
        }
    });
}

/// An area made by XSAVE or XSAVEC in the guest, then changed by hand, then restored.
fn restore_after(save: &[u8], mask: u64, change: &[(usize, &[u8])], restored: u64) -> Case {
    // The state is saved, the area is patched by moves of constants, all registers are cleared, and the
    // area is restored.
    let mut code = save.to_vec();
    for (place, bytes) in change {
        for (offset, byte) in bytes.iter().enumerate() {
            // mov byte [rdi+place], byte
            code.extend_from_slice(&[0xc6, 0x87]);
            code.extend_from_slice(&((place + offset) as u32).to_le_bytes());
            code.push(*byte);
        }
    }
    // vzeroall; kxorq k1,k1,k1; fninit
    code.extend_from_slice(b"\xc5\xfc\x77\xc4\xe1\xf4\x47\xc9\xdb\xe3");
    // mov eax, mask; mov edx, mask >> 32
    code.push(0xb8);
    code.extend_from_slice(&(restored as u32).to_le_bytes());
    code.push(0xba);
    code.extend_from_slice(&((restored >> 32) as u32).to_le_bytes());
    code.extend_from_slice(RESTORE);
    code.push(0xf4);
    let mut case = roomy(&code);
    ask(&mut case, mask);
    case
}

#[test]
fn components_restored() {
    with_engines(|pair| {
        for (name, code) in SAVES {
            for saved in [0xe7, 0x2e7, 3, 4] {
                for restored in MASKS {
                    let case = restore_after(code, saved, &[], restored);
                    let what = format!("{name} of {saved:#x}, then xrstor of {restored:#x}");
                    let outcome = pair.agree(&what, &case);
                    assert_eq!(outcome.stop, Stop::Halt, "{what}");
                }
            }
        }
    });
}

#[test]
fn areas_with_hostile_headers() {
    let byte = |place: usize, bytes: &'static [u8]| (place, bytes);
    let changes: &[&[(usize, &[u8])]] = &[
        // XSTATE_BV: less than was saved, more than exists, components of the kernel.
        &[byte(HEADER, &[0])],
        &[byte(HEADER, &[1])],
        &[byte(HEADER, &[4])],
        &[byte(HEADER, &[0xff])],
        &[byte(HEADER + 1, &[1])],
        &[byte(HEADER + 1, &[8])],
        &[byte(HEADER + 7, &[0x80])],
        &[byte(HEADER + 7, &[0x40])],
        // XCOMP_BV: not compacted with bits set, compacted with too few or unknown components.
        &[byte(HEADER + 8, &[1])],
        &[byte(HEADER + 15, &[0x80])],
        &[byte(HEADER + 8, &[0xe7, 2, 0, 0, 0, 0, 0, 0x80])],
        &[byte(HEADER + 8, &[0xff, 2, 0, 0, 0, 0, 0, 0x80])],
        &[byte(HEADER + 8, &[0xe7, 0x0a, 0, 0, 0, 0, 0, 0x80])],
        // The reserved rest.
        &[byte(HEADER + 16, &[1])],
        &[byte(HEADER + 24, &[1])],
        &[byte(HEADER + 63, &[1])],
        // MXCSR with reserved bits; its mask; x87 words.
        &[byte(26, &[0xff])],
        &[byte(24, &[0xbf, 0xff])],
        &[byte(0, &[0xff, 0xff, 0xff, 0xff, 0xff])],
        &[byte(8, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff])],
    ];
    with_engines(|pair| {
        for (name, code) in [SAVES[0], SAVES[2]] {
            for change in changes {
                for restored in [0xe7, 3, 1, 2, 4, 0x200] {
                    let case = restore_after(code, 0xe7, change, restored);
                    let what = format!("{name}, changes {change:x?}, xrstor of {restored:#x}");
                    pair.agree(&what, &case);
                }
            }
        }
    });
}
