//! Operands that begin below the end of the lower half of the address space and end behind it: a page
//! fault or #GP, by the instruction and by what a mask leaves of it.

use crate::common::case_of_bytes;
use crate::pair::with_engines;

/// Instructions with their operand at RDI and, if they have one, mask K1.
const INSTRUCTIONS: &[(&str, &[u8])] = &[
    ("fnsave", b"\xdd\x37"),
    ("frstor", b"\xdd\x27"),
    ("fnstenv", b"\xd9\x37"),
    ("fldenv", b"\xd9\x27"),
    ("fnstenv, narrow", b"\x66\xd9\x37"),
    ("fnsave, narrow", b"\x66\xdd\x37"),
    ("frstor, narrow", b"\x66\xdd\x27"),
    ("fxsave", b"\x0f\xae\x07"),
    ("fxrstor", b"\x0f\xae\x0f"),
    ("fld m80", b"\xdb\x2f"),
    ("fstp m80", b"\xdb\x3f"),
    ("fbld", b"\xdf\x27"),
    ("fbstp", b"\xdf\x37"),
    ("fld m64", b"\xdd\x07"),
    ("fstp m64", b"\xdd\x1f"),
    ("mov load", b"\x48\x8b\x07"),
    ("mov store", b"\x48\x89\x07"),
    ("xchg", b"\x48\x87\x07"),
    ("add to memory", b"\x48\x01\x07"),
    ("movups load", b"\x0f\x10\x07"),
    ("movups store", b"\x0f\x11\x07"),
    ("vmovups zmm load", b"\x62\xf1\x7c\x48\x10\x07"),
    ("vmovups zmm store", b"\x62\xf1\x7c\x48\x11\x07"),
    ("vmovups zmm{k1} load", b"\x62\xf1\x7c\x49\x10\x07"),
    ("vmovups zmm{k1} store", b"\x62\xf1\x7c\x49\x11\x07"),
    ("vmovdqu8 zmm{k1} load", b"\x62\xf1\x7f\x49\x6f\x07"),
    ("vmovdqu8 zmm{k1} store", b"\x62\xf1\x7f\x49\x7f\x07"),
    ("vaddps zmm{k1}", b"\x62\xf1\x74\x49\x58\x07"),
    ("vaddps zmm{k1}, broadcast", b"\x62\xf1\x74\x59\x58\x07"),
    ("vcvtps2pd zmm{k1}", b"\x62\xf1\x7c\x49\x5a\x07"),
    ("vpermw zmm{k1}", b"\x62\xf2\xf5\x49\x8d\x07"),
    ("vexpandps zmm{k1}", b"\x62\xf2\x7d\x49\x88\x07"),
    ("vcompressps zmm{k1} store", b"\x62\xf2\x7d\x49\x8a\x07"),
    ("vmaskmovps load", b"\xc4\xe2\x75\x2c\x07"),
    ("vmaskmovps store", b"\xc4\xe2\x75\x2e\x07"),
    ("vpmovdb zmm{k1} store", b"\x62\xf2\x7e\x49\x31\x07"),
    ("sgdt-like lea", b"\x48\x8d\x07"),
];

#[test]
fn operands_across_the_end_of_the_lower_half() {
    with_engines(|pair| {
        for (name, code) in INSTRUCTIONS {
            for below in [1, 2, 4, 8, 9, 16, 28, 32, 60, 64, 100, 512] {
                for mask in [0, 1, 2, 0x80, 0xff, 0xff00, 0x8000, 0x8000_0000, u64::MAX, 1 << 63] {
                    let mut case = case_of_bytes(&[code, &b"\xf4"[..]].concat());
                    case.state.gpr[7] = (1 << 47) - below;
                    case.state.opmask[1] = mask;
                    for (lane, word) in case.state.vector[1].iter_mut().enumerate() {
                        let pair = mask >> (2 * lane);
                        *word = (pair & 1) << 31 | (pair >> 1 & 1) << 63;
                    }
                    pair.agree(&format!("{name}, {below} bytes below, mask {mask:#x}"), &case);
                    if !name.contains("k1") && !name.contains("mask") {
                        break;
                    }
                }
            }
        }
    });
}
