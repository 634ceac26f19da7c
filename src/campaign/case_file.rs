//! The file of a finding: its case, and above it as comments who differs, in what, side by side.

use std::fmt::Write as _;

use super::folder::{FileError, Folder};
use crate::case::{Case, Outcome, text};
use crate::engine::Engine;
use crate::engine::silicon::Silicon;
use crate::oracle::compare::{Difference, compare};
use crate::oracle::judge::{Finding, run_both};

/// Writes `DIR/<hash>.case`, whole or not at all.
pub(super) fn write_finding(
    folder: &Folder,
    hash: &str,
    case: &Case,
    silicon: &mut Silicon,
    engine: &mut dyn Engine,
    finding: &Finding,
) -> Result<(), FileError> {
    let name = format!("{hash}.case");
    let mut case = case.clone();
    case.note = finding.key.to_string();
    let replay = format!("tregion replay {}", folder.path().join(&name).display());
    let text = header(silicon, engine, &case, finding, &replay) + &text::print(&case);
    folder.write(&name, text.as_bytes())
}

/// The comment above a finding's case.
pub fn header(
    silicon: &mut Silicon,
    engine: &mut dyn Engine,
    case: &Case,
    finding: &Finding,
    replay: &str,
) -> String {
    let mut text = format!("# {}\n", finding.key);
    // Writing to a string cannot fail.
    let _ = match &finding.accepted {
        Some(rows) => rows.iter().try_for_each(|row| {
            writeln!(text, "# accepted ({}): {} [{}]", row.name, row.reason, row.reference)
        }),
        None => writeln!(text, "# not explained by the table of accepted differences"),
    };
    if let Ok((left, right)) = run_both(silicon, engine, case) {
        let visible = silicon.capabilities().visible.common(engine.capabilities().visible);
        let differences = compare(case, &left, &right, visible);
        let names = (silicon.name(), engine.name());
        for line in side_by_side(names, (&left, &right), &differences).lines() {
            let _ = writeln!(text, "# {line}");
        }
    }
    let _ = writeln!(text, "# replay: {replay}");
    text + "\n"
}

/// The differences as a table with a column for each engine.
#[must_use]
pub fn side_by_side(
    names: (&str, &str),
    outcomes: (&Outcome, &Outcome),
    differences: &[Difference],
) -> String {
    let mut rows = vec![
        ["".to_owned(), names.0.to_owned(), names.1.to_owned()],
        ["stop".to_owned(), outcomes.0.stop.to_string(), outcomes.1.stop.to_string()],
    ];
    let shown = differences.iter().filter(|difference| difference.component.to_string() != "stop");
    rows.extend(shown.map(|difference| {
        [
            difference.component.to_string(),
            difference.left.to_string(),
            difference.right.to_string(),
        ]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let (first, second) = (width(0), width(1));
    rows.iter()
        .map(|[name, left, right]| {
            format!("{name:first$}  {left:second$}  {right}").trim_end().to_owned() + "\n"
        })
        .collect()
}
