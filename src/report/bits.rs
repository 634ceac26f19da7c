//! Two values next to each other, with what differs in them marked.

use maud::{Markup, html};

use crate::oracle::Value;

/// Both values with the digits marked that differ, and the numbers of the bits that do.
pub(super) fn marked(left: Value, right: Value) -> [Markup; 3] {
    match (left, right) {
        (Value::Bits(left), Value::Bits(right)) => {
            let digits = (128 - (left | right).leading_zeros()).div_ceil(4).max(1) as usize;
            let text = |value: u128| format!("{value:0digits$x}");
            let [left_text, right_text] = marked_text(&text(left), &text(right));
            let bits = html! { (bit_list(left ^ right)) };
            [html! { "0x" (left_text) }, html! { "0x" (right_text) }, bits]
        }
        _ => [
            html! { mark { (left.to_string()) } },
            html! { mark { (right.to_string()) } },
            html! {},
        ],
    }
}

/// Both texts with the characters marked that differ; all of them if they are not equally long.
pub(super) fn marked_text(left: &str, right: &str) -> [Markup; 2] {
    let same_length = left.chars().count() == right.chars().count();
    let differs: Vec<bool> = if same_length {
        left.chars().zip(right.chars()).map(|(left, right)| left != right).collect()
    } else {
        vec![true; left.chars().count().max(right.chars().count())]
    };
    [left, right].map(|text| {
        let characters: Vec<(char, bool)> = text.chars().zip(differs.iter().copied()).collect();
        html! {
            @for run in characters.chunk_by(|one, other| one.1 == other.1) {
                @let part: String = run.iter().map(|(character, _)| character).collect();
                @if run[0].1 { mark { (part) } } @else { (part) }
            }
        }
    })
}

/// The set bits, as `63, 12–15`, the highest first.
fn bit_list(bits: u128) -> String {
    let set: Vec<u32> = (0..128).rev().filter(|bit| bits >> bit & 1 != 0).collect();
    let runs = set.chunk_by(|high, low| high - low == 1);
    let parts = runs.map(|run| match run {
        [only] => only.to_string(),
        [high, .., low] => format!("{high}–{low}"),
        [] => String::new(),
    });
    parts.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_that_differ_are_named() {
        assert_eq!(bit_list(0), "");
        assert_eq!(bit_list(1 << 127 | 1), "127, 0");
        assert_eq!(bit_list(0xf0 | 0b11), "7–4, 1–0");
    }

    #[test]
    fn digits_that_differ_are_marked() {
        let [left, right, bits] = marked(Value::Bits(0x1234), Value::Bits(0x34));
        assert_eq!(left.into_string(), "0x<mark>12</mark>34");
        assert_eq!(right.into_string(), "0x<mark>00</mark>34");
        assert_eq!(bits.into_string(), "12, 9");
        let [left, right] = marked_text("a<b", "a>b");
        assert_eq!(left.into_string(), "a<mark>&lt;</mark>b");
        assert_eq!(right.into_string(), "a<mark>&gt;</mark>b");
        let [left, _] = marked_text("short", "longer");
        assert_eq!(left.into_string(), "<mark>short</mark>");
    }
}
