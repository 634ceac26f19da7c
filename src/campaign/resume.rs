//! What is in a campaign's folder already, and whether it is of the same plan.

use std::fs;
use std::io::{self, ErrorKind};

use super::folder::{Folder, at};
use super::summary::{FILE, Summary, shard_name};
use super::worker::generate;
use super::{CampaignError, Plan};
use crate::generate::Generator;

/// Cases whose bytes say which generator made them, the first raw one among them.
const TELLING_CASES: u64 = 8;

/// A hash of the first cases of the plan's seed: it differs where another version or another host would
/// make other cases of the same numbers.
pub(super) fn fingerprint(generator: &Generator, plan: &Plan) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = Vec::new();
    for number in 0..TELLING_CASES {
        let program = generate(generator, plan.seed, number, &mut buffer);
        hasher.update(program.case.content_hash().as_bytes());
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

/// What earlier parts of the campaign have left in its folder.
pub(super) fn earlier(
    folder: &Folder,
    plan: &Plan,
    fingerprint: &str,
) -> Result<Option<Summary>, CampaignError> {
    let path = folder.path().join(FILE);
    let mut earlier = match Summary::read(folder.path()) {
        Err(error) if error.error.kind() == ErrorKind::NotFound => return Ok(None),
        result => result?,
    };
    let other = |what: String| CampaignError::Other { folder: folder.path().to_owned(), what };
    let Some(ledger) = &earlier.ledger else {
        return Err(other("figures that were merged, or made by an older version".to_owned()));
    };
    if !ledger.is_sound() || ledger.done() != earlier.cases {
        return Err(at(&path)(io::Error::other("its figures contradict each other")).into());
    }
    let ours = Summary::of_nothing(plan, fingerprint);
    if earlier.seed != ours.seed {
        return Err(other(format!("a campaign of seed {}, not {}", earlier.seed, ours.seed)));
    }
    if earlier.shards != ours.shards {
        let theirs: Vec<&str> = earlier.shards.iter().map(String::as_str).collect();
        let (theirs, ours) = (theirs.join(" "), shard_name(plan.shard));
        return Err(other(format!("a campaign of shard {theirs}, not {ours}")));
    }
    if earlier.engines != ours.engines {
        let (theirs, ours) = (earlier.engines.join(","), ours.engines.join(","));
        return Err(other(format!("a campaign of the engines {theirs}, not {ours}")));
    }
    if earlier.generator != ours.generator {
        let why = "a campaign whose cases this version, on this processor, makes otherwise";
        return Err(other(why.to_owned()));
    }
    for cluster in &mut earlier.clusters {
        // A case whose file is gone is written anew when its cluster is met.
        cluster.case.take_if(|hash| !has_case(folder, hash));
    }
    Ok(Some(earlier))
}

fn has_case(folder: &Folder, hash: &str) -> bool {
    fs::exists(folder.path().join(format!("{hash}.case"))).unwrap_or(false)
}
