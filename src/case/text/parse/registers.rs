//! `[registers]`.

use std::sync::LazyLock;

use super::super::check::check_state;
use super::super::error::Read;
use super::super::reader::{Item, Table};
use crate::guest::{
    F80, GPR_NAMES, OPMASK_COUNT, SELECTOR_NAMES, State, VECTOR_COUNT, Vector, X87,
};

const SCALARS: [&str; 8] =
    ["rip", "rflags", "fs_base", "gs_base", "selectors", "pkru", "mxcsr", "x87"];

/// Every key that may stand under `[registers]`.
static KEYS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let numbered = |prefix: &'static str, count| (0..count).map(move |i| format!("{prefix}{i}"));
    let names = GPR_NAMES.into_iter().chain(SCALARS).map(str::to_owned);
    let vectors = ["xmm", "ymm", "zmm"].into_iter().flat_map(|name| numbered(name, VECTOR_COUNT));
    names.chain(numbered("st", 8)).chain(numbered("k", OPMASK_COUNT)).chain(vectors).collect()
});

/// Reads the registers and checks them.
pub(super) fn read(item: &Item<'_>) -> Read<State> {
    let keys: Vec<&str> = KEYS.iter().map(String::as_str).collect();
    let table = item.table(&keys)?;
    let mut state = State::default();
    read_scalars(&table, &mut state)?;
    for (name, register) in GPR_NAMES.iter().zip(&mut state.gpr) {
        read_number(&table, name, register)?;
    }
    for (index, register) in state.opmask.iter_mut().enumerate() {
        read_number(&table, &format!("k{index}"), register)?;
    }
    for (index, register) in state.x87.st.iter_mut().enumerate() {
        if let Some(item) = table.optional(&format!("st{index}")) {
            *register = read_f80(&item)?;
        }
    }
    for (index, register) in state.vector.iter_mut().enumerate() {
        read_vector(&table, index, register)?;
    }
    check_state(item, &state)?;
    Ok(state)
}

/// Reads what stands under `key`, if anything does.
fn read_number<T: TryFrom<u128>>(table: &Table<'_>, key: &str, register: &mut T) -> Read<()> {
    if let Some(item) = table.optional(key) {
        *register = item.number()?;
    }
    Ok(())
}

fn read_scalars(table: &Table<'_>, state: &mut State) -> Read<()> {
    read_number(table, "rip", &mut state.rip)?;
    read_number(table, "rflags", &mut state.rflags)?;
    read_number(table, "fs_base", &mut state.fs_base)?;
    read_number(table, "gs_base", &mut state.gs_base)?;
    read_number(table, "pkru", &mut state.pkru)?;
    read_number(table, "mxcsr", &mut state.mxcsr)?;
    if let Some(item) = table.optional("selectors") {
        let table = item.table(&SELECTOR_NAMES)?;
        for (name, selector) in SELECTOR_NAMES.iter().zip(&mut state.selectors.0) {
            read_number(&table, name, selector)?;
        }
    }
    table.optional("x87").map_or(Ok(()), |item| read_x87(&item, &mut state.x87))
}

fn read_x87(item: &Item<'_>, x87: &mut X87) -> Read<()> {
    let table = item.table(&["control", "status", "tag", "opcode", "ip", "dp"])?;
    read_number(&table, "control", &mut x87.control)?;
    read_number(&table, "status", &mut x87.status)?;
    read_number(&table, "tag", &mut x87.tag)?;
    read_number(&table, "opcode", &mut x87.opcode)?;
    read_number(&table, "ip", &mut x87.instruction_pointer)?;
    read_number(&table, "dp", &mut x87.data_pointer)
}

/// `3fff_8000000000000000`: sign and exponent, then the significand.
fn read_f80(item: &Item<'_>) -> Read<F80> {
    match split_digits(item.text()?, &[4, 16]) {
        Some(parts) => Ok(F80 { sign_exponent: parts[0] as u16, significand: parts[1] }),
        None => item.expected("4 and 16 hexadecimal digits with a `_` between"),
    }
}

/// Reads vector register `index` under the one of its three names that is there.
fn read_vector(table: &Table<'_>, index: usize, register: &mut Vector) -> Read<()> {
    let mut names: Vec<(usize, Item<'_>)> = [("xmm", 2), ("ymm", 4), ("zmm", 8)]
        .iter()
        .filter_map(|(name, words)| Some((*words, table.optional(&format!("{name}{index}"))?)))
        .collect();
    names.sort_by_key(|(_, item)| item.place());
    if let [_, (_, second), ..] = names.as_slice() {
        return second.fail(format!("vector register {index} is given twice"));
    }
    match names.as_slice() {
        [] => Ok(()),
        [(2, item), ..] => {
            let value: u128 = item.number()?;
            (register[0], register[1]) = (value as u64, (value >> 64) as u64);
            Ok(())
        }
        [(words, item), ..] => read_words(item, &mut register[..*words]),
    }
}

/// Words of 16 digits with `_` between, the highest first.
fn read_words(item: &Item<'_>, words: &mut [u64]) -> Read<()> {
    match split_digits(item.text()?, &vec![16; words.len()]) {
        Some(parts) => {
            words.iter_mut().zip(parts.iter().rev()).for_each(|(word, part)| *word = *part);
            Ok(())
        }
        None => item.expected(&format!("{} times 16 hexadecimal digits, `_` between", words.len())),
    }
}

/// The numbers in `text`, which has exactly as many digits as `lengths` says, `_` between.
fn split_digits(text: &str, lengths: &[usize]) -> Option<Vec<u64>> {
    let parts: Vec<&str> = text.split('_').collect();
    let shape = parts.iter().map(|part| part.len()).eq(lengths.iter().copied());
    let hexadecimal = text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'_');
    if !shape || !hexadecimal {
        return None;
    }
    parts.iter().map(|part| u64::from_str_radix(part, 16).ok()).collect()
}
