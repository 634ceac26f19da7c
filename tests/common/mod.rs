//! Small cases for tests: code at [`CODE`], two data pages at [`DATA`], a stack at [`STACK`].
#![allow(dead_code, reason = "each test binary uses its own part")]

use iced_x86::code_asm::CodeAssembler;
use tregion::case::{Case, Mapping, Object, ObjectId};
use tregion::guest::{GuestAddress, GuestRange, Permissions};

pub(crate) const CODE: u64 = 0x40_0000;
pub(crate) const DATA: u64 = 0x50_0000;
pub(crate) const STACK: u64 = 0x60_0000;

pub(crate) fn range(at: u64, pages: u64) -> GuestRange {
    GuestRange::new(GuestAddress(at), pages * 0x1000).unwrap()
}

pub(crate) fn mapping(at: u64, pages: u64, object: usize, permissions: Permissions) -> Mapping {
    Mapping { range: range(at, pages), object: ObjectId(object), offset: 0, permissions }
}

/// A case that runs `code`, which may be written.
pub(crate) fn case_of_bytes(code: &[u8]) -> Case {
    let mut text = Object::zeroed("code", 1);
    text.contents[..code.len()].copy_from_slice(code);
    let mut case = Case {
        objects: vec![text, Object::zeroed("data", 2), Object::zeroed("stack", 1)],
        mappings: vec![
            mapping(CODE, 1, 0, Permissions::ReadWriteExecute),
            mapping(DATA, 2, 1, Permissions::ReadWrite),
            mapping(STACK, 1, 2, Permissions::ReadWrite),
        ],
        ..Case::default()
    };
    case.state.rip = CODE;
    case.state.gpr[4] = STACK + 0x800;
    case.validate().unwrap();
    case
}

/// A case that runs what `write` assembles.
pub(crate) fn case(write: impl FnOnce(&mut CodeAssembler)) -> Case {
    let mut assembler = CodeAssembler::new(64).unwrap();
    write(&mut assembler);
    case_of_bytes(&assembler.assemble(CODE).unwrap())
}
