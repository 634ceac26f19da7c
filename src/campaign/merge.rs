//! Joins the folders of several campaigns into one, by content hash.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use super::books::write;
use super::folder::{FileError, Folder, at};
use super::pairs::{self, MnemonicPairs};
use super::samples::Sample;
use super::summary::{ClusterRecord, Runs, Summary};
use super::tally::add_counts;

/// Why folders cannot be merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// No folder was given.
    #[error("there is nothing to merge")]
    Nothing,
    /// A file or folder cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The folder for the whole has a campaign of its own.
    #[error("{}: holds a campaign that can go on, and would not be able to", .0.display())]
    IsCampaign(PathBuf),
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
/// their cases. What a campaign keeps in its folder is true at any time, so it need not have come to its
/// end. The figures are written last: a merge that is cut off leaves no wrong ones.
pub fn merge(folders: &[PathBuf], out: &Path) -> Result<Summary, MergeError> {
    let parts = read_parts(folders)?;
    let target = Folder::open(out)?.ok_or_else(|| MergeError::IsCampaign(out.to_owned()))?;
    if Summary::read(out).is_ok_and(|summary| summary.ledger.is_some()) {
        return Err(MergeError::IsCampaign(out.to_owned()));
    }
    let mut pairs = MnemonicPairs::default();
    for folder in folders {
        copy_cases(folder, &target)?;
        pairs.add_all(&MnemonicPairs::read(folder)?);
    }
    let mut merged = parts.into_iter().reduce(join).ok_or(MergeError::Nothing)?;
    merged.ledger = None;
    merged.mnemonic_pairs = pairs.count();
    target.write(pairs::FILE, &pairs.to_bytes())?;
    write(&target, &merged)?;
    Ok(merged)
}

/// Reads the figures of campaigns that can be joined.
fn read_parts(folders: &[PathBuf]) -> Result<Vec<Summary>, MergeError> {
    let mut parts: Vec<Summary> = Vec::new();
    for folder in folders {
        let summary = Summary::read(folder)?;
        for other in &parts {
            if other.engines != summary.engines {
                return Err(MergeError::Different { path: folder.clone(), what: "engines" });
            }
            if other.seed == summary.seed && overlap(&other.shards, &summary.shards) {
                return Err(MergeError::Twice { path: folder.clone(), seed: summary.seed });
            }
        }
        parts.push(summary);
    }
    Ok(parts)
}

/// Whether some case is in a shard of both sets.
fn overlap(left: &BTreeSet<String>, right: &BTreeSet<String>) -> bool {
    let shard = |name: &str| {
        let (part, of) = name.split_once('/')?;
        Some((part.parse::<u64>().ok()?, of.parse::<u64>().ok().filter(|of| *of > 0)?))
    };
    // Numbers with one remainder by m and another by n meet if the remainders agree by both.
    left.iter().any(|left| {
        right.iter().any(|right| match (shard(left), shard(right)) {
            (Some((part, of)), Some((other_part, other_of))) => {
                let common = common_divisor(of, other_of);
                part % common == other_part % common
            }
            _ => left == right,
        })
    })
}

fn common_divisor(left: u64, right: u64) -> u64 {
    if right == 0 { left } else { common_divisor(right, left % right) }
}

fn copy_cases(folder: &Path, target: &Folder) -> Result<(), MergeError> {
    for entry in fs::read_dir(folder).map_err(at(folder))? {
        let path = entry.map_err(at(folder))?.path();
        let Some(name) = path.file_name().and_then(OsStr::to_str) else { continue };
        if name.ends_with(".case") && !target.path().join(name).exists() {
            target.write(name, &fs::read(&path).map_err(at(&path))?)?;
        }
    }
    Ok(())
}

/// The sum of two campaigns, the second run behind the first.
pub(super) fn join(first: Summary, second: Summary) -> Summary {
    let end = Sample { seconds: first.seconds, cases: first.cases };
    let mut samples = first.samples;
    samples.append(end, &second.samples);
    let mut two_vcpus = first.two_vcpus;
    two_vcpus.add(&second.two_vcpus);
    Summary {
        engines: first.engines,
        seed: first.seed,
        shards: first.shards.into_iter().chain(second.shards).collect(),
        generator: first.generator,
        runs: sum_runs(first.runs, second.runs),
        work: sum_runs(first.work, second.work),
        samples,
        two_vcpus,
        seconds: first.seconds + second.seconds,
        cases: first.cases + second.cases,
        compared: first.compared + second.compared,
        forms_in_reach: first.forms_in_reach.max(second.forms_in_reach),
        reached_end: first.reached_end + second.reached_end,
        programs_reached_end: first.programs_reached_end + second.programs_reached_end,
        refused: sum(first.refused, second.refused),
        changed_and_rerun: first.changed_and_rerun + second.changed_and_rerun,
        traced: first.traced + second.traced,
        plausible: first.plausible + second.plausible,
        only_undefined: first.only_undefined + second.only_undefined,
        events_applied: first.events_applied + second.events_applied,
        actions: sum(first.actions, second.actions),
        kinds: sum(first.kinds, second.kinds),
        stops: sum(first.stops, second.stops),
        clusters: join_clusters(first.clusters, second.clusters),
        forms_not_run: &first.forms_not_run & &second.forms_not_run,
        form_counts: sum(first.form_counts, second.form_counts),
        ..Summary::default()
    }
    .derived()
}

fn sum_runs(
    mut left: BTreeMap<String, Runs>,
    right: BTreeMap<String, Runs>,
) -> BTreeMap<String, Runs> {
    for (name, more) in right {
        let runs = left.entry(name).or_default();
        runs.cases += more.cases;
        runs.seconds += more.seconds;
    }
    left
}

fn sum(mut left: BTreeMap<String, u64>, right: BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    add_counts(&mut left, right);
    left
}

/// Clusters with one key are one cluster; which of the two cases it keeps is arbitrary, so the first stays.
fn join_clusters(mut left: Vec<ClusterRecord>, right: Vec<ClusterRecord>) -> Vec<ClusterRecord> {
    let key = |cluster: &ClusterRecord| (cluster.key(), cluster.accepted.is_some());
    for cluster in right {
        match left.iter_mut().find(|other| key(other) == key(&cluster)) {
            Some(other) => {
                other.count += cluster.count;
                other.first_case = other.first_case.min(cluster.first_case);
                other.first_seconds = other.first_seconds.min(cluster.first_seconds);
                if other.case.is_none() {
                    other.case = cluster.case;
                    other.instructions = cluster.instructions;
                }
            }
            None => left.push(cluster),
        }
    }
    left.sort_by_key(key);
    left
}
