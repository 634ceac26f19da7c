//! [`Layout`]: where the memory of a case lies. Most cases have the standard one, so that engines
//! that keep their mappings have nothing to change; the others differ from it in one way each.

use super::choices::Choices;
use crate::case::{Mapping, Object, ObjectId};
use crate::guest::{GuestAddress, GuestRange, PAGE_SIZE, Permissions};

/// How a layout differs from the standard one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayoutKind {
    /// Code, two pages of data, constants, stack, with holes around each.
    Standard,
    /// Below 2 GiB, where 32-bit and absolute addresses reach.
    Low,
    /// At the end of the user half of the address space.
    High,
    /// The data have a second address.
    Alias,
    /// Two pages of code; the program lies across their border.
    Straddle,
    /// The page behind the data is mapped but gives no access.
    Guard,
}

/// Where the memory of a case lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub kind: LayoutKind,
    pub code: u64,
    pub code_writable: bool,
    /// The code has a second address, at which it can be written and not executed.
    pub code_aliased: bool,
}

pub(super) const CODE: ObjectId = ObjectId(0);
pub(super) const DATA: ObjectId = ObjectId(1);
pub(super) const CONSTANTS: ObjectId = ObjectId(2);
pub(super) const STACK: ObjectId = ObjectId(3);
/// Bytes of data.
pub(super) const DATA_BYTES: u64 = 2 * PAGE_SIZE;

const DATA_DISTANCE: u64 = 0x4_0000;
const CONSTANTS_DISTANCE: u64 = 0x6_0000;
const STACK_DISTANCE: u64 = 0x8_0000;
const ALIAS_DISTANCE: u64 = 0x10_0000;
/// Where the code gets its second address, seen from the first.
pub(super) const CODE_ALIAS_DISTANCE: u64 = 0x20_0000;

impl Layout {
    pub(super) fn draw(choices: &mut Choices) -> Self {
        let kind = match choices.byte() {
            0..=206 => LayoutKind::Standard,
            207..=219 => LayoutKind::Low,
            220..=229 => LayoutKind::High,
            230..=239 => LayoutKind::Alias,
            240..=247 => LayoutKind::Straddle,
            248.. => LayoutKind::Guard,
        };
        let code = match kind {
            LayoutKind::Low => 0x0040_0000,
            LayoutKind::High => 0x7fff_ffe0_0000,
            _ => 0x1_4000_0000,
        };
        Self { kind, code, code_writable: choices.chance(6), code_aliased: false }
    }

    pub(super) fn data(&self) -> u64 {
        match self.kind {
            // The last page that user code can have ends here.
            LayoutKind::High => 0x7fff_ffff_f000 - DATA_BYTES,
            _ => self.code + DATA_DISTANCE,
        }
    }

    pub(super) fn constants(&self) -> u64 {
        self.code + CONSTANTS_DISTANCE
    }

    pub(super) fn stack(&self) -> u64 {
        self.code + STACK_DISTANCE
    }

    /// The second address of the data; nothing is there in other kinds of layout.
    pub(super) fn alias(&self) -> u64 {
        self.code + ALIAS_DISTANCE
    }

    /// Whether every address fits into 31 bits.
    pub(super) fn is_low(&self) -> bool {
        self.kind == LayoutKind::Low
    }

    pub(super) fn code_pages(&self) -> usize {
        if self.kind == LayoutKind::Straddle { 2 } else { 1 }
    }

    pub(super) fn code_permissions(&self) -> Permissions {
        if self.code_writable { Permissions::ReadWriteExecute } else { Permissions::ReadExecute }
    }

    /// The objects: code with nothing in it but `filler`, the others with what `contents` gives for
    /// their size.
    pub(super) fn objects(
        &self,
        filler: u8,
        mut contents: impl FnMut(usize) -> Vec<u8>,
    ) -> Vec<Object> {
        let page = PAGE_SIZE as usize;
        let object = |name: &str, contents| Object { name: name.to_owned(), contents };
        vec![
            object("code", vec![filler; self.code_pages() * page]),
            object("data", contents(DATA_BYTES as usize)),
            object("constants", contents(page)),
            object("stack", contents(page)),
        ]
    }

    pub(super) fn mappings(&self) -> Vec<Mapping> {
        let pages = self.code_pages() as u64;
        let mut mappings = vec![
            mapping(CODE, self.code, pages, self.code_permissions()),
            mapping(DATA, self.data(), 2, Permissions::ReadWrite),
            mapping(CONSTANTS, self.constants(), 1, Permissions::Read),
            mapping(STACK, self.stack(), 1, Permissions::ReadWrite),
        ];
        if self.code_aliased {
            let alias = self.code + CODE_ALIAS_DISTANCE;
            mappings.push(mapping(CODE, alias, pages, Permissions::ReadWrite));
        }
        match self.kind {
            LayoutKind::Alias => {
                mappings.push(mapping(DATA, self.alias(), 2, Permissions::ReadWrite));
            }
            LayoutKind::Guard => {
                let behind = self.data() + DATA_BYTES;
                mappings.push(mapping(CONSTANTS, behind, 1, Permissions::None));
            }
            _ => {}
        }
        mappings
    }
}

/// `pages` pages from the start of an object.
pub(super) fn mapping(
    object: ObjectId,
    address: u64,
    pages: u64,
    permissions: Permissions,
) -> Mapping {
    Mapping { range: range(address, pages), object, offset: 0, permissions }
}

/// `pages` pages from `address`, both of the generator's own choice.
pub(super) fn range(address: u64, pages: u64) -> GuestRange {
    GuestRange::new(GuestAddress(address), pages * PAGE_SIZE)
        .expect("a layout's addresses are whole pages far from the end of the address space")
}
