//! A campaign's folder as one HTML page for people: what was found and by what it is explained, each
//! finding run once more and shown side by side, what was covered, how fast it went.
//!
//! The page is whole in itself: no script, nothing from the network, and its own policy forbids both. All
//! text that comes from a campaign or a case is escaped by the template engine. It is readable on a phone,
//! in the dark and on paper; how it looks is in `style.css` alone.
//!
//! This reads folders and runs cases; it writes no file and knows no engine but the judge and the JIT, which
//! is asked for its timeline. The others come from whoever calls.

mod bits;
mod blame;
mod coverage;
mod evidence;
mod finding;
mod speed;
mod timeline;

use std::io;
use std::path::Path;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::campaign::{FileError, Summary};
use crate::engine::Engine;
use evidence::{Evidence, Witnesses};

/// Makes an engine by the name that it has in a campaign.
pub type MakeEngine<'a> = &'a dyn Fn(&str) -> io::Result<Box<dyn Engine>>;

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The folder has no figures that can be read.
    #[error(transparent)]
    Folder(#[from] FileError),
    /// There is no judge here to show cases with.
    #[error("the processor cannot be asked: {0}")]
    Silicon(io::Error),
    /// A plot cannot be drawn.
    #[error("a plot cannot be drawn: {0}")]
    Plot(String),
}

/// The page about the campaign in `folder`.
pub fn page(folder: &Path, make_engine: MakeEngine<'_>) -> Result<String, ReportError> {
    let summary = Summary::read(folder)?;
    let mut witnesses = Witnesses::new(make_engine).map_err(ReportError::Silicon)?;
    let evidence: Vec<Evidence> = evidence::in_order(&summary)
        .into_iter()
        .map(|cluster| witnesses.hear(folder, cluster))
        .collect();
    let body = html! {
        header {
            h1 { (verdict(&summary)) }
            (in_short(&summary))
        }
        main {
            (blame::section(&summary))
            (finding::section(&evidence))
            (coverage::section(&summary))
            (speed::section(&summary)?)
            (counts(&summary))
        }
    };
    Ok(document(&verdict(&summary), &body).into_string())
}

fn document(title: &str, body: &Markup) -> Markup {
    // Of CSS the page has its own, of everything else nothing.
    const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "tregion: " (title) }
                style { (PreEscaped(include_str!("style.css"))) }
            }
            body { (body) }
        }
    }
}

/// The first thing that one wants to know.
fn verdict(summary: &Summary) -> String {
    match (summary.differences, summary.unexplained) {
        _ if summary.compared == 0 => "Nothing was compared".to_owned(),
        (0, _) => "No difference found".to_owned(),
        (known, 0) => format!("No unexplained difference, {known} known"),
        (all, new) => format!("{new} unexplained of {all} distinct differences"),
    }
}

fn in_short(summary: &Summary) -> Markup {
    let shards: Vec<&str> = summary.shards.iter().map(String::as_str).collect();
    let rate = summary.cases_per_second_per_core.get("all").copied().unwrap_or_default();
    html! {
        dl.short {
            div { dt { "cases" } dd { (grouped(summary.cases)) } }
            div { dt { "time" } dd { (duration(summary.seconds)) } }
            div { dt { "cases/s on a core" } dd { (grouped(rate as u64)) } }
            div { dt { "engines" } dd { (summary.engines.join(", ")) } }
            div { dt { "seed" } dd { (summary.seed) } }
            div { dt { "shard" } dd { (shards.join(" ")) } }
            div {
                dt { "reached their hlt" }
                dd { (percent(summary.reached_end, summary.cases)) " of all" }
            }
            div {
                dt { "code changed and run again" }
                dd { (summary.changed_and_rerun) " of " (summary.traced) " traced" }
            }
        }
    }
}

/// All counts that have no section of their own.
fn counts(summary: &Summary) -> Markup {
    let tables = [
        ("How runs ended on silicon", &summary.stops),
        ("Kinds of programs", &summary.kinds),
        ("What the host did on the way", &summary.actions),
        ("What was refused, and why", &summary.refused),
    ];
    html! {
        section #counts {
            h2 { "Counts" }
            div.columns {
                @for (title, counts) in tables {
                    table.counts {
                        caption { (title) }
                        @for (name, count) in by_count(counts) {
                            tr { th scope="row" { (name) } td { (grouped(*count)) } }
                        }
                        @if counts.is_empty() { tr { td { "nothing" } } }
                    }
                }
            }
        }
    }
}

fn by_count(counts: &std::collections::BTreeMap<String, u64>) -> Vec<(&String, &u64)> {
    let mut rows: Vec<_> = counts.iter().collect();
    rows.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    rows
}

/// A number in groups of three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            // A narrow space that no line is broken at.
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        "–".to_owned()
    } else {
        format!("{:.1} %", 100.0 * part as f64 / whole as f64)
    }
}

fn duration(seconds: f64) -> String {
    let whole = seconds as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(grouped(7), "7");
        assert_eq!(grouped(1234), "1\u{202f}234");
        assert_eq!(grouped(123_456_789), "123\u{202f}456\u{202f}789");
        assert_eq!(percent(1, 0), "–");
        assert_eq!(percent(1, 8), "12.5 %");
        assert_eq!(duration(59.94), "59.9 s");
        assert_eq!(duration(61.0), "1 min 1 s");
        assert_eq!(duration(7260.0), "2 h 1 min");
    }
}
