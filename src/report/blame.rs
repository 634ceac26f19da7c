//! Who is wrong: for each engine its distinct differences, by the row of the table of accepted differences
//! that explains them, and how many nothing explains.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::grouped;
use crate::campaign::{ClusterRecord, Summary};
use crate::oracle::Accepted;

/// What one row of the table explains of an engine.
#[derive(Default)]
struct Share {
    clusters: u64,
    cases: u64,
}

pub(super) fn section(summary: &Summary) -> Markup {
    html! {
        section #blame {
            h2 { "Who is wrong" }
            p.aside {
                "The processor is the judge. A cluster is one distinct difference; one that takes several "
                "rows of the table to explain counts with each."
            }
            @for engine in summary.engines.iter().skip(1) {
                (engine_table(summary, engine))
            }
        }
    }
}

fn engine_table(summary: &Summary, engine: &str) -> Markup {
    let clusters: Vec<&ClusterRecord> =
        summary.clusters.iter().filter(|cluster| cluster.engine == engine).collect();
    let unexplained: Vec<&&ClusterRecord> =
        clusters.iter().filter(|cluster| cluster.accepted.is_none()).collect();
    let runs = summary.runs.get(engine).map_or(0, |runs| runs.cases);
    html! {
        h3 { (engine) }
        div.scroll {
            table.blame {
                thead { tr {
                    th scope="col" { "explained by" }
                    th.number scope="col" { "clusters" }
                    th.number scope="col" { "times seen" }
                    th scope="col" { "why, and where to read about it" }
                } }
                tbody {
                    tr.bad[!unexplained.is_empty()] {
                        th scope="row" { "nothing: unexplained" }
                        td.number { (unexplained.len()) }
                        td.number { (grouped(unexplained.iter().map(|it| it.count).sum())) }
                        td {}
                    }
                    @for (name, share) in by_row(&clusters) {
                        tr {
                            th scope="row" { (name) }
                            td.number { (share.clusters) }
                            td.number { (grouped(share.cases)) }
                            @if let Some(row) = Accepted::named(name) {
                                td { (why(row)) }
                            } @else {
                                td { "a row that this version does not have" }
                            }
                        }
                    }
                }
                tfoot { tr {
                    th scope="row" { "all" }
                    td.number { (clusters.len()) }
                    td.number { (grouped(clusters.iter().map(|it| it.count).sum())) }
                    td { "in " (grouped(runs)) " runs" }
                } }
            }
        }
    }
}

/// Why a row's difference is known, and where to read about it.
pub(super) fn why(row: &Accepted) -> Markup {
    html! { (row.reason) " " span.aside { "[" (row.reference) "]" } }
}

fn by_row<'a>(clusters: &[&'a ClusterRecord]) -> BTreeMap<&'a str, Share> {
    let mut shares: BTreeMap<&str, Share> = BTreeMap::new();
    for cluster in clusters {
        for row in cluster.accepted.iter().flatten() {
            let share = shares.entry(row).or_default();
            share.clusters += 1;
            share.cases += cluster.count;
        }
    }
    shares
}
