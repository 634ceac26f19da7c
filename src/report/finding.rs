//! The findings: each with its instructions, how both engines ended, and what the JIT did with it.

use iced_x86::{Formatter, IntelFormatter, Mnemonic};
use maud::{Markup, html};

use super::bits::{marked, marked_text};
use super::blame::why;
use super::evidence::{Comparison, Evidence, Exhibit};
use super::timeline::event_text;
use super::{duration, grouped};
use crate::campaign::ClusterRecord;
use crate::case::text;
use crate::engine::silicon::Step;
use crate::guest::State;
use crate::oracle::Accepted;

/// Lines of a listing.
const MOST_LINES: usize = 48;

pub(super) fn section(evidence: &[Evidence<'_>]) -> Markup {
    html! {
        section #findings {
            h2 { "Findings" }
            @if evidence.is_empty() {
                p { "None." }
            } @else {
                p.aside {
                    "What nothing explains comes first. Each case was run once more for this page. "
                    "Digits that differ are marked."
                }
                (contents(evidence))
            }
            @for (number, evidence) in evidence.iter().enumerate() { (article(number, evidence)) }
        }
    }
}

fn contents(evidence: &[Evidence<'_>]) -> Markup {
    html! {
        div.scroll {
            table.contents {
                thead { tr {
                    th scope="col" { "finding" }
                    th.number scope="col" { "seen" }
                    th scope="col" { "explained by" }
                } }
                tbody {
                    @for (number, Evidence { cluster, .. }) in evidence.iter().enumerate() {
                        tr.bad[cluster.accepted.is_none()] {
                            td { a href={ "#finding-" (number) } { (cluster.key().to_string()) } }
                            td.number { (grouped(cluster.count)) }
                            td { (explained_by(cluster)) }
                        }
                    }
                }
            }
        }
    }
}

fn explained_by(cluster: &ClusterRecord) -> String {
    match &cluster.accepted {
        Some(rows) => rows.join(", "),
        None => "nothing".to_owned(),
    }
}

fn article(number: usize, evidence: &Evidence<'_>) -> Markup {
    let cluster = evidence.cluster;
    html! {
        article.finding.bad[cluster.accepted.is_none()] id={ "finding-" (number) } {
            h3 { (cluster.key().to_string()) }
            p.aside {
                "seen " (grouped(cluster.count)) " times, first in case " (cluster.first_case) " after "
                (duration(cluster.first_seconds))
                @if let Some(hash) = &cluster.case { ", " code { (hash) ".case" } }
            }
            (reasons(cluster))
            @match &evidence.exhibit {
                Ok(exhibit) => (shown(cluster, exhibit)),
                Err(why) => p.missing { "It cannot be shown: " (why) },
            }
        }
    }
}

fn reasons(cluster: &ClusterRecord) -> Markup {
    let rows = cluster.accepted.iter().flatten();
    html! {
        @for row in rows.filter_map(|name| Accepted::named(name)) {
            p { "Known: " (why(row)) }
        }
    }
}

fn shown(cluster: &ClusterRecord, exhibit: &Exhibit) -> Markup {
    html! {
        (listing(exhibit))
        @match &exhibit.comparison {
            Ok(comparison) => (side_by_side(&cluster.engine, comparison)),
            Err(why) => {
                p.missing { "It could not be run again here: " (why) ". When it was found:" }
                pre { (exhibit.notes.join("\n")) }
            }
        }
        @match &exhibit.timeline {
            Ok(timeline) => (timeline.table()),
            Err(why) => p.missing { "The JIT has no timeline of it: " (why) },
        }
        details {
            summary { "The case, as a file that replays it" }
            pre { (text::print(&exhibit.case)) }
        }
    }
}

/// What silicon executed, with the events between.
fn listing(exhibit: &Exhibit) -> Markup {
    let mut formatter = IntelFormatter::new();
    formatter.options_mut().set_hex_prefix("0x");
    formatter.options_mut().set_hex_suffix("");
    let mut lines = Vec::new();
    let mut applied = 0;
    // What stays of a program that was made small are its instructions and what it was filled with.
    for steps in exhibit.steps.chunk_by(|one, other| is_filling(one) && is_filling(other)) {
        let step = &steps[0];
        while applied < step.events_applied {
            lines.push(html! { tr.event { td colspan="3" { (event_text(&exhibit.case.events[applied])) } } });
            applied += 1;
        }
        lines.push(instruction_line(&mut formatter, step, steps.len()));
    }
    let more = lines.len().saturating_sub(MOST_LINES);
    html! {
        div.scroll {
            table.listing {
                caption { "What silicon executed" }
                @for line in lines.iter().take(MOST_LINES) { (line) }
                @if more > 0 { tr { td colspan="3" { "… and " (more) " more" } } }
                @if lines.is_empty() { tr { td { "nothing that can be stepped through" } } }
            }
        }
    }
}

fn is_filling(step: &Step) -> bool {
    let instruction = step.instruction();
    instruction.mnemonic() == Mnemonic::Nop && instruction.len() == 1
}

fn instruction_line(formatter: &mut IntelFormatter, step: &Step, times: usize) -> Markup {
    let instruction = step.instruction();
    let mut text = String::new();
    formatter.format(&instruction, &mut text);
    let length = instruction.len().clamp(1, step.code.len().max(1)).min(step.code.len());
    let bytes: Vec<String> = step.code[..length].iter().map(|byte| format!("{byte:02x}")).collect();
    html! {
        tr {
            td.address { (format!("{:x}", step.state.rip)) }
            td.bytes { (bytes.join(" ")) }
            td { (text) @if times > 1 { " " span.aside { "× " (times) } } }
        }
    }
}

/// What differs at the end, and behind it all registers of both.
fn side_by_side(engine: &str, comparison: &Comparison) -> Markup {
    let Comparison { silicon, engine: other, differences } = comparison;
    html! {
        @if differences.is_empty() {
            p.missing { "It did not show this time: both end alike." }
        }
        div.scroll {
            table.states {
                caption { "How it ended" }
                thead { tr {
                    th {} th scope="col" { "silicon" } th scope="col" { (engine) }
                    th scope="col" { "bits" }
                } }
                tbody {
                    tr {
                        th scope="row" { "stop" }
                        td { (silicon.stop.to_string()) } td { (other.stop.to_string()) } td {}
                    }
                    @for difference in differences {
                        @let [left, right, bits] = marked(difference.left, difference.right);
                        tr.differs {
                            th scope="row" { (difference.component.to_string()) }
                            td { code { (left) } } td { code { (right) } } td { (bits) }
                        }
                    }
                }
            }
        }
        @if silicon.stop.is_exact() && other.stop.is_exact() {
            details {
                summary { "Registers at the end, but for what both have as in an empty case" }
                (registers(engine, &silicon.state, &other.state))
            }
        }
    }
}

/// The registers of two states that are not zero in both.
fn registers(engine: &str, left: &State, right: &State) -> Markup {
    let (left, right) = (entries(left), entries(right));
    let mut names: Vec<&String> = left.iter().map(|(name, _)| name).collect();
    for (index, (name, _)) in right.iter().enumerate() {
        if !names.contains(&name) {
            names.insert(index.min(names.len()), name);
        }
    }
    let value = |entries: &[(String, String)], name: &String| {
        entries
            .iter()
            .find(|(known, _)| known == name)
            .map_or("as empty".to_owned(), |(_, text)| text.clone())
    };
    html! {
        div.scroll {
            table.states {
                thead { tr { th {} th scope="col" { "silicon" } th scope="col" { (engine) } } }
                tbody {
                    @for name in names {
                        @let (left, right) = (value(&left, name), value(&right, name));
                        @let [left_text, right_text] = marked_text(&left, &right);
                        tr.differs[left != right] {
                            th scope="row" { (name) }
                            td { code { (left_text) } } td { code { (right_text) } }
                        }
                    }
                }
            }
        }
    }
}

/// Names and values of a state's text form, without its comments.
fn entries(state: &State) -> Vec<(String, String)> {
    let text = text::print_state(state);
    let entry = |line: &str| {
        let (name, value) = line.split_once('=')?;
        let value = value.split('#').next().unwrap_or_default();
        Some((name.trim().to_owned(), value.trim().to_owned()))
    };
    text.lines().filter_map(entry).collect()
}
