//! Joins the folders of several campaigns into one, by content hash.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::summary::{ClusterRecord, FILE, Summary, share};
use super::tally::add_counts;

/// Why folders cannot be merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// No folder was given.
    #[error("there is nothing to merge")]
    Nothing,
    /// A file of a folder cannot be read.
    #[error("{}: {error}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The same cases are in two folders, and would be counted twice.
    #[error("{}: its shard of seed {seed} is in another of the campaigns already", path.display())]
    Twice {
        /// The second folder.
        path: PathBuf,
        /// The seed.
        seed: u64,
    },
    /// Two campaigns are not parts of one.
    #[error("{}: its {what} differ from those of the first campaign", path.display())]
    Different {
        /// The other campaign's folder.
        path: PathBuf,
        /// What differs.
        what: &'static str,
    },
}

/// Merges the campaigns in `folders` into `out`: sums their figures, joins their clusters, copies
/// their cases.
pub fn merge(folders: &[PathBuf], out: &Path) -> Result<Summary, MergeError> {
    let mut merged: Option<Summary> = None;
    fs::create_dir_all(out).map_err(at(out))?;
    for folder in folders {
        let summary = Summary::read(folder).map_err(at(&folder.join(FILE)))?;
        merged = Some(match merged {
            None => summary,
            Some(first) if first.engines != summary.engines => {
                return Err(MergeError::Different { path: folder.clone(), what: "engines" });
            }
            Some(first)
                if first.seed == summary.seed && !first.shards.is_disjoint(&summary.shards) =>
            {
                return Err(MergeError::Twice { path: folder.clone(), seed: summary.seed });
            }
            Some(first) => join(first, summary),
        });
    }
    let mut merged = merged.ok_or(MergeError::Nothing)?;
    for folder in folders {
        copy_cases(folder, out)?;
    }
    merged.differences = merged.clusters.len() as u64;
    merged.unexplained =
        merged.clusters.iter().filter(|cluster| cluster.accepted.is_none()).count() as u64;
    merged.write(out).map_err(at(&out.join(FILE)))?;
    Ok(merged)
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> MergeError {
    let path = path.to_owned();
    move |error| MergeError::File { path, error }
}

fn copy_cases(folder: &Path, out: &Path) -> Result<(), MergeError> {
    for entry in fs::read_dir(folder).map_err(at(folder))? {
        let path = entry.map_err(at(folder))?.path();
        let Some(name) = path.file_name() else { continue };
        let target = out.join(name);
        if path.extension().is_some_and(|extension| extension == "case") && !target.exists() {
            fs::copy(&path, &target).map_err(at(&path))?;
        }
    }
    Ok(())
}

fn join(first: Summary, second: Summary) -> Summary {
    let (cases, seconds) = (first.cases + second.cases, first.seconds + second.seconds);
    let form_counts = sum(first.form_counts, second.form_counts);
    let weighted = |left: f64, right: f64| {
        left * share(first.cases, cases) + right * share(second.cases, cases)
    };
    Summary {
        cases_per_second_per_core: first
            .cases_per_second_per_core
            .iter()
            .map(|(name, rate)| {
                let other = second.cases_per_second_per_core.get(name).copied().unwrap_or(*rate);
                (name.clone(), weighted(*rate, other))
            })
            .collect(),
        programs_reached_end_share: weighted(
            first.programs_reached_end_share,
            second.programs_reached_end_share,
        ),
        engines: first.engines,
        seed: first.seed,
        shards: first.shards.into_iter().chain(second.shards).collect(),
        seconds,
        cases,
        differences: 0,
        unexplained: 0,
        forms: form_counts.len() as u64,
        forms_in_reach: first.forms_in_reach.max(second.forms_in_reach),
        mnemonics: mnemonics(&form_counts),
        reached_end: first.reached_end + second.reached_end,
        refused: sum(first.refused, second.refused),
        changed_and_rerun: first.changed_and_rerun + second.changed_and_rerun,
        traced: first.traced + second.traced,
        compared: first.compared + second.compared,
        plausible: first.plausible + second.plausible,
        only_undefined: first.only_undefined + second.only_undefined,
        events_applied: first.events_applied + second.events_applied,
        kinds: sum(first.kinds, second.kinds),
        stops: sum(first.stops, second.stops),
        clusters: join_clusters(first.clusters, second.clusters),
        forms_not_run: &first.forms_not_run & &second.forms_not_run,
        form_counts,
    }
}

/// How many mnemonics there are among forms, whose first word they are.
fn mnemonics(forms: &BTreeMap<String, u64>) -> u64 {
    let first_word = |form: &String| form.split(' ').next().unwrap_or_default().to_owned();
    forms.keys().map(first_word).collect::<BTreeSet<_>>().len() as u64
}

fn sum(mut left: BTreeMap<String, u64>, right: BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    add_counts(&mut left, right);
    left
}

/// Clusters with one key are one cluster; the shorter name of the two cases is arbitrary, so the
/// first stays.
fn join_clusters(mut left: Vec<ClusterRecord>, right: Vec<ClusterRecord>) -> Vec<ClusterRecord> {
    let key = |cluster: &ClusterRecord| (cluster.key(), cluster.accepted.is_some());
    for cluster in right {
        match left.iter_mut().find(|other| key(other) == key(&cluster)) {
            Some(other) => {
                other.count += cluster.count;
                other.first_case = other.first_case.min(cluster.first_case);
                other.first_seconds = other.first_seconds.min(cluster.first_seconds);
            }
            None => left.push(cluster),
        }
    }
    left
}
