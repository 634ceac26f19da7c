//! The text form of a [`Scene`], TOML as that of a case is, with disassembly as comments.
//!
//! ```toml
//! two-vcpus = 1
//! one-page = false
//! joined = true
//!
//! [[vcpu]]
//! values = [0x11, 0x12, 0x13, 0x14] # rax, rdx, rbx, rsi
//! slots = ["nothing", { constant = { register = "rax", value = 7 } }]
//! code = [
//!   { patch = { own = false, place = 1, with = 1, plain = false } }, # xchg [r9+0x8],r13
//!   { add-to = { word = 0, value = 1 } }, # lock add qword [r8],byte +0x1
//! ]
//!
//! [[vcpu]]
//! …
//! ```

use super::op::Op;
use super::scene::{Program, Scene};

/// The key that no case has.
const KEY: &str = "two-vcpus";

/// Whether a text is meant to be that of a scene.
#[must_use]
pub fn is_scene(text: &str) -> bool {
    let line = text.lines().find(|line| !line.is_empty() && !line.starts_with('#'));
    line.is_some_and(|line| line.starts_with(KEY))
}

/// The scene that a text describes; or in one sentence why it does not.
pub fn parse(text: &str) -> Result<Scene, String> {
    let scene: Scene = toml::from_str(text).map_err(|error| {
        let before = &text[..error.span().map_or(0, |span| span.start)];
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|character| *character != '\n').count() + 1;
        format!("line {line}, column {column}: {}", error.message())
    })?;
    if scene.two_vcpus != 1 {
        return Err(format!("unknown form {} of two vCPUs, expected 1", scene.two_vcpus));
    }
    match scene.unsound() {
        Some((vcpu, place, why)) => Err(format!("vCPU {vcpu}, slot {place}: {why}")),
        None => Ok(scene),
    }
}

/// The text of a scene.
#[must_use]
pub fn print(scene: &Scene) -> String {
    let Scene { two_vcpus, one_page, joined, vcpus } = scene;
    let mut text = format!("{KEY} = {two_vcpus}\none-page = {one_page}\njoined = {joined}\n");
    for program in vcpus {
        text += &print_program(program);
    }
    text
}

fn print_program(program: &Program) -> String {
    let [a, b, c, d] = program.values.map(|value| format!("{value:#x}"));
    let mut text = format!("\n[[vcpu]]\nvalues = [{a}, {b}, {c}, {d}] # rax, rdx, rbx, rsi\n");
    text += "slots = [ # r12, r13\n";
    program.slots.iter().for_each(|op| text += &line(*op, 0));
    text += "]\ncode = [\n";
    for (place, op) in program.code.iter().enumerate() {
        text += &line(*op, place);
    }
    text + "]\n"
}

fn line(op: Op, place: usize) -> String {
    let value = toml::Value::try_from(op).expect("a slot has a form in TOML");
    format!("  {:<72} # {}\n", format!("{value},"), op.disassembly(place))
}
