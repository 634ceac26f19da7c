//! Static ELF executables, position-independent or not (System V ABI, chapters 4 and 5; x86-64
//! supplement, section 4.4).
//!
//! A position-independent one is loaded at [`PIE_BASE`] and its relative relocations are applied,
//! so that it need not do so itself (it may: the result is the same). IRELATIVE ones call functions
//! and are left to the program, as in any static executable.

use object::LittleEndian;
use object::elf::{self, FileHeader64, ProgramHeader64};
use object::pod::bytes_of_slice;
use object::read::elf::{FileHeader, ProgramHeader};

use super::ImageError;
use super::layout::{Memory, Segment, permissions};
use crate::case::Case;
use crate::guest::GuestAddress;

/// Where position-independent executables are loaded.
const PIE_BASE: u64 = 0x40_0000;

/// The size of an entry in a table of relocations with addends, and of one in the dynamic section.
const RELOCATION_SIZE: u64 = 24;
const DYNAMIC_SIZE: u64 = 16;

type Program = ProgramHeader64<LittleEndian>;

/// The case that runs the static executable `file`. `stack_size` is in bytes and rounded up to
/// whole pages.
pub fn elf(file: &[u8], stack_size: u64) -> Result<Case, ImageError> {
    check_identity(file)?;
    // The headers are read in place, where they have to be aligned.
    let words: Vec<u64> = file.chunks(8).map(word).collect();
    let file = &bytes_of_slice(&words)[..file.len()];
    let header = FileHeader64::<LittleEndian>::parse(file).map_err(malformed)?;
    let bias = load_bias(header)?;
    let programs = header.program_headers(LittleEndian, file).map_err(malformed)?;
    if programs.iter().any(|program| program.p_type(LittleEndian) == elf::PT_INTERP) {
        return Err(ImageError::Dynamic);
    }
    let loaded = programs.iter().filter(|program| program.p_type(LittleEndian) == elf::PT_LOAD);
    let segments = loaded.map(|program| segment(program, file, bias)).collect::<Result<_, _>>()?;
    let mut memory = Memory::new(segments)?;
    let dynamic = programs.iter().find(|it| it.p_type(LittleEndian) == elf::PT_DYNAMIC);
    if let Some(dynamic) = dynamic {
        relocate(&mut memory, dynamic, bias)?;
    }
    let entry = GuestAddress(header.e_entry(LittleEndian)).wrapping_add(bias);
    memory.into_case(entry, stack_size)
}

fn malformed(error: impl ToString) -> ImageError {
    ImageError::Malformed(error.to_string())
}

fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_ne_bytes(word)
}

fn check_identity(file: &[u8]) -> Result<(), ImageError> {
    match file {
        [0x7f, b'E', b'L', b'F', 2, 1, ..] => Ok(()),
        [0x7f, b'E', b'L', b'F', _, _, ..] => Err(ImageError::WrongClass),
        _ => Err(ImageError::NotElf),
    }
}

/// What is added to all addresses in the file.
fn load_bias(header: &FileHeader64<LittleEndian>) -> Result<u64, ImageError> {
    let machine = header.e_machine(LittleEndian);
    if machine != elf::EM_X86_64 {
        return Err(ImageError::WrongMachine(machine.0));
    }
    match header.e_type(LittleEndian) {
        elf::ET_EXEC => Ok(0),
        elf::ET_DYN => Ok(PIE_BASE),
        other => Err(ImageError::WrongType(other.0)),
    }
}

fn segment<'f>(program: &Program, file: &'f [u8], bias: u64) -> Result<Segment<'f>, ImageError> {
    let virtual_address = program.p_vaddr(LittleEndian);
    let start = virtual_address
        .checked_add(bias)
        .ok_or(ImageError::Wraps(GuestAddress(virtual_address)))?;
    let bytes = program
        .data(LittleEndian, file)
        .map_err(|()| malformed("a segment goes past the end of the file"))?;
    let flags = program.p_flags(LittleEndian).0;
    let has = |flag| flags & flag != 0;
    let permissions = permissions(has(elf::PF_R.0), has(elf::PF_W.0), has(elf::PF_X.0))
        .ok_or(ImageError::Unreadable(GuestAddress(start)))?;
    Ok(Segment { start, size: program.p_memsz(LittleEndian), bytes, permissions })
}

/// Reads the dynamic section and applies the relocations that it names.
fn relocate(memory: &mut Memory, dynamic: &Program, bias: u64) -> Result<(), ImageError> {
    let (mut table, mut size) = (0, 0);
    let mut entry = dynamic.p_vaddr(LittleEndian).wrapping_add(bias);
    let end = entry.saturating_add(dynamic.p_memsz(LittleEndian));
    while end.saturating_sub(entry) >= DYNAMIC_SIZE {
        let value = read(memory, entry.saturating_add(8))?;
        match elf::DynamicTag(read(memory, entry)? as i64) {
            elf::DT_NULL => break,
            elf::DT_NEEDED => return Err(ImageError::Dynamic),
            elf::DT_RELR => return Err(ImageError::PackedRelocations),
            elf::DT_RELA => table = value.wrapping_add(bias),
            elf::DT_RELASZ => size = value,
            _ => {}
        }
        entry += DYNAMIC_SIZE;
    }
    for index in 0..size / RELOCATION_SIZE {
        let address = table.wrapping_add(index * RELOCATION_SIZE);
        apply_relocation(memory, address, bias)?;
    }
    Ok(())
}

/// Applies the relocation that stands at `address`: offset, type, addend.
fn apply_relocation(memory: &mut Memory, address: u64, bias: u64) -> Result<(), ImageError> {
    let field = |index: u64| read(memory, address.wrapping_add(8 * index));
    let (offset, information, addend) = (field(0)?, field(1)?, field(2)?);
    match elf::RelocationType(information as u32) {
        elf::R_X86_64_NONE | elf::R_X86_64_IRELATIVE => Ok(()),
        elf::R_X86_64_RELATIVE => {
            let value = addend.wrapping_add(bias).to_le_bytes();
            memory.write(offset.wrapping_add(bias), &value).ok_or_else(outside)
        }
        other => Err(ImageError::Relocation(other.0)),
    }
}

fn read(memory: &Memory, address: u64) -> Result<u64, ImageError> {
    memory.read_u64(address).ok_or_else(outside)
}

fn outside() -> ImageError {
    malformed("its dynamic section or relocations are not in a segment")
}
