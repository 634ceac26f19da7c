//! Repeated string instructions with 32-bit addresses, whose registers have upper halves: what is
//! left of those when the count is zero, when an iteration faults, when it ends.

use crate::common::{DATA, case_of_bytes};
use crate::pair::with_engines;

const OPCODES: [u8; 14] =
    [0xa4, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf, 0xa5, 0xa7, 0xab, 0xaf];

#[test]
fn upper_halves_of_narrow_addresses() {
    with_engines(|pair| {
        // Mapped, the last word before the end, not mapped.
        let places = [DATA + 0x100, DATA + 0x1ffc, DATA + 0x1ffe, 0x10];
        for (number, opcode) in OPCODES.into_iter().enumerate() {
            for prefix in [&[0x67][..], &[0x67, 0xf3], &[0x67, 0xf2], &[0x67, 0x66, 0xf3]] {
                for count in [0, 1, 3] {
                    for source in places {
                        for destination in places {
                            let mut code = prefix.to_vec();
                            // The last four with REX.W.
                            code.extend((number > 9).then_some(0x48));
                            code.extend([opcode, 0xf4]);
                            let mut case = case_of_bytes(&code);
                            case.state.gpr[1] = 0x11_0000_0000 | count;
                            case.state.gpr[6] = 0x22_0000_0000 | source;
                            case.state.gpr[7] = 0x33_0000_0000 | destination;
                            pair.agree(
                                &format!("{code:x?}, {count} from {source:#x} to {destination:#x}"),
                                &case,
                            );
                        }
                    }
                }
            }
        }
    });
}
