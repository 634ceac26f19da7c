//! What was run to completion: a heat map of families of instructions and of what their operand is, a
//! register or memory.

use std::collections::BTreeMap;

use iced_x86::CpuidFeature;
use maud::{Markup, html};

use super::{grouped, percent};
use crate::campaign::Summary;
use crate::generate::{Family, FormId, Generator, HostFeatures, OperandForm};

const COLUMNS: [(OperandForm, &str); 3] = [
    (OperandForm::Register, "register"),
    (OperandForm::Memory, "memory"),
    (OperandForm::Broadcast, "broadcast"),
];
/// Executions of each form on average at which a cell is as hot as it gets.
const HOTTEST: f64 = 1e6;

/// One square of the map.
#[derive(Clone, Copy, Default)]
struct Cell {
    run: u64,
    in_reach: u64,
    executions: u64,
}

pub(super) fn section(summary: &Summary) -> Markup {
    let cells = cells(summary);
    html! {
        section #coverage {
            h2 { "Coverage" }
            p {
                (grouped(summary.forms)) " of " (grouped(summary.forms_in_reach))
                " forms of instructions were run to completion ("
                (percent(summary.forms, summary.forms_in_reach)) "), " (grouped(summary.mnemonics))
                " mnemonics, " (grouped(summary.mnemonic_pairs))
                " pairs of mnemonics one behind the other."
            }
            div.scroll {
                table.heat {
                    caption {
                        "Forms run of those in reach, and executions. Stronger: each form more often. "
                        "What always faults never runs to completion."
                    }
                    thead { tr {
                        th scope="col" { "family" }
                        @for (_, name) in COLUMNS { th scope="col" { (name) } }
                    } }
                    tbody {
                        @for family in families(&cells) {
                            tr {
                                th scope="row" { (family.map_or("others", Family::text)) }
                                @for (operands, _) in COLUMNS { (square(cells.get(&(family, operands)))) }
                            }
                        }
                    }
                }
            }
            @if !summary.forms_not_run.is_empty() {
                details {
                    summary { (summary.forms_not_run.len()) " forms were not run to completion" }
                    ul.forms { @for form in &summary.forms_not_run { li { code { (form) } } } }
                }
            }
        }
    }
}

type Cells = BTreeMap<(Option<Family>, OperandForm), Cell>;

fn families(cells: &Cells) -> Vec<Option<Family>> {
    let mut families: Vec<_> = cells.keys().map(|(family, _)| *family).collect();
    families.dedup();
    families
}

fn square(cell: Option<&Cell>) -> Markup {
    let Some(cell) = cell else { return html! { td.none { "–" } } };
    let average = cell.executions as f64 / cell.in_reach.max(1) as f64;
    let heat = (average.max(1.0).log10() / HOTTEST.log10()).min(1.0);
    html! {
        td.bad[cell.run == 0] style={ "--heat:" (format!("{:.0}%", 100.0 * heat)) } {
            b { (cell.run) "/" (cell.in_reach) } " "
            span { (short(cell.executions)) "×" }
        }
    }
}

/// A number in four characters.
fn short(number: u64) -> String {
    match number {
        0..10_000 => number.to_string(),
        10_000..10_000_000 => format!("{} k", number / 1000),
        _ => format!("{} M", number / 1_000_000),
    }
}

fn cells(summary: &Summary) -> Cells {
    let places = places();
    let place = |form: &String| places.get(form).copied().unwrap_or((None, OperandForm::Register));
    let mut cells = Cells::new();
    for (form, count) in &summary.form_counts {
        let cell = cells.entry(place(form)).or_default();
        cell.run += 1;
        cell.in_reach += 1;
        cell.executions += count;
    }
    for form in &summary.forms_not_run {
        cells.entry(place(form)).or_default().in_reach += 1;
    }
    cells
}

/// Where each form belongs, those too that this host does not have: the campaign may come from another.
/// Two encodings of one form have the same text, and are counted together, with the older one's family.
fn places() -> BTreeMap<String, (Option<Family>, OperandForm)> {
    let mut everything = HostFeatures::baseline();
    CpuidFeature::values().for_each(|feature| everything.insert(feature));
    let mut places = BTreeMap::new();
    let generator = Generator::new(&everything);
    for (index, form) in generator.forms().iter().enumerate() {
        let place = (Some(generator.family(FormId(index as u16))), form.operands);
        let known = places.entry(form.to_string()).or_insert(place);
        *known = place.min(*known);
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_of_this_host_has_its_place() {
        let generator = Generator::new(&HostFeatures::detect());
        let places = places();
        let mut other = 0;
        for (index, form) in generator.forms().iter().enumerate() {
            let (family, operands) = places[&form.to_string()];
            assert_eq!(operands, form.operands, "{form}");
            // But for VEX forms that EVEX has too.
            other += usize::from(family != Some(generator.family(FormId(index as u16))));
        }
        assert!(other * 10 < generator.forms().len(), "{other} forms are in another family");
    }

    #[test]
    fn what_was_not_run_is_in_reach_all_the_same() {
        let summary = Summary {
            form_counts: [("add r32, r32".to_owned(), 70_000), ("no such form".to_owned(), 1)]
                .into(),
            forms_not_run: ["add r32, m32".to_owned(), "sub r32, r32".to_owned()].into(),
            ..Summary::default()
        };
        let cells = cells(&summary);
        let cell = cells[&(Some(Family::Arithmetic), OperandForm::Register)];
        assert_eq!((cell.run, cell.in_reach, cell.executions), (1, 2, 70_000));
        assert_eq!(cells[&(Some(Family::Arithmetic), OperandForm::Memory)].run, 0);
        let page = section(&summary).into_string();
        assert!(
            page.contains("1/2") && page.contains("70 k×") && page.contains("others"),
            "{page}"
        );
    }
}
