//! `[registers]`: those that are not as in [`State::default`].

use super::push_line;
use crate::guest::{F80, Flag, GPR_NAMES, SELECTOR_NAMES, State, Vector, X87};

/// Collects `key = value` lines.
struct Lines {
    text: String,
    comments: bool,
}

impl Lines {
    fn push(&mut self, key: &str, value: &str, comment: &str) {
        let comment = if self.comments { comment } else { "" };
        push_line(&mut self.text, &format!("{key} = {value}"), 0, comment);
    }

    /// A line for a register that is not as it is by default.
    fn number(&mut self, key: &str, value: u64, default: u64, comment: &str) {
        if value != default {
            self.push(key, &format!("{value:#x}"), comment);
        }
    }
}

pub(super) fn print(text: &mut String, state: &State, comments: bool) {
    let mut lines = Lines { text: String::new(), comments };
    print_general(&mut lines, state);
    print_x87(&mut lines, &state.x87);
    for (index, vector) in state.vector.iter().enumerate() {
        print_vector(&mut lines, index, vector);
    }
    for (index, mask) in state.opmask.iter().enumerate() {
        lines.number(&format!("k{index}"), *mask, 0, "");
    }
    if !lines.text.is_empty() {
        text.push_str("\n[registers]\n");
        text.push_str(&lines.text);
    }
}

fn print_general(lines: &mut Lines, state: &State) {
    let default = State::default();
    for (name, value) in GPR_NAMES.iter().zip(state.gpr).filter(|(_, value)| *value != 0) {
        lines.push(name, &format!("{value:#018x}"), "");
    }
    lines.number("rip", state.rip, default.rip, "");
    lines.number("rflags", state.rflags, default.rflags, &flag_names(state.rflags));
    lines.number("fs_base", state.fs_base, default.fs_base, "");
    lines.number("gs_base", state.gs_base, default.gs_base, "");
    if state.selectors != default.selectors {
        let selectors = SELECTOR_NAMES.iter().zip(state.selectors.0);
        let entries: Vec<String> =
            selectors.map(|(name, value)| format!("{name} = {value:#x}")).collect();
        lines.push("selectors", &format!("{{ {} }}", entries.join(", ")), "");
    }
    lines.number("pkru", state.pkru.into(), default.pkru.into(), "");
    lines.number("mxcsr", state.mxcsr.into(), default.mxcsr.into(), "");
}

/// The flags that are set, the highest first, without IF, which always is.
fn flag_names(rflags: u64) -> String {
    let set = Flag::ALL.iter().rev().filter(|flag| rflags & flag.mask() != 0);
    let names: Vec<String> = set.filter(|flag| **flag != Flag::IF).map(Flag::to_string).collect();
    names.join(" ")
}

fn print_x87(lines: &mut Lines, x87: &X87) {
    let X87 { control, status, tag, opcode, instruction_pointer, data_pointer, st } = x87;
    if (X87 { st: X87::default().st, ..*x87 }) != X87::default() {
        let words = format!("control = {control:#x}, status = {status:#x}, tag = {tag:#x}");
        let pointers = format!("ip = {instruction_pointer:#x}, dp = {data_pointer:#x}");
        let value = format!("{{ {words}, opcode = {opcode:#x}, {pointers} }}");
        lines.push("x87", &value, &format!("top {}", x87.top()));
    }
    for (index, register) in st.iter().enumerate().filter(|(_, it)| **it != F80::default()) {
        let value = format!("\"{:04x}_{:016x}\"", register.sign_exponent, register.significand);
        lines.push(&format!("st{index}"), &value, &decimal(*register).unwrap_or_default());
    }
}

/// The value in decimal, if it is a normal number whose size an `f64` can express.
fn decimal(register: F80) -> Option<String> {
    let exponent = i32::from(register.sign_exponent & 0x7fff) - 0x3fff - 63;
    let normal = register.significand >> 63 == 1;
    // Scaled exactly, by an f64 made of nothing but its exponent.
    let scale = match exponent + 1023 {
        biased @ 1..=2046 => f64::from_bits((biased as u64) << 52),
        _ => return None,
    };
    let magnitude = register.significand as f64 * scale;
    let value = if register.sign_exponent >> 15 == 0 { magnitude } else { -magnitude };
    let readable = normal && magnitude.is_finite();
    readable.then(|| match magnitude {
        1e-5..1e16 => format!("{value}"),
        _ => format!("{value:e}"),
    })
}

/// As the shortest of XMM, YMM and ZMM that holds all that is not zero.
fn print_vector(lines: &mut Lines, index: usize, vector: &Vector) {
    let used = 8 - vector.iter().rev().take_while(|word| **word == 0).count();
    let (name, words) = match used {
        0 => return,
        1..=2 => {
            let (low, high) = (vector[0], vector[1]);
            return lines.push(&format!("xmm{index}"), &format!("0x{high:016x}{low:016x}"), "");
        }
        3..=4 => ("ymm", 4),
        _ => ("zmm", 8),
    };
    let words: Vec<String> =
        vector[..words].iter().rev().map(|word| format!("{word:016x}")).collect();
    lines.push(&format!("{name}{index}"), &format!("\"{}\"", words.join("_")), "");
}
