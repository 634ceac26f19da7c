//! The part of a campaign in which two vCPUs of the JIT run at the same time ([`crate::concurrent`]): beside some
//! cases a scene is drawn, run and judged by the set of its outcomes. A case's number gives the scene; which
//! numbers have one depends on how fast the campaign is ([`SHARE`]). Such a finding has a file as
//! others have, which `tregion replay` runs again.

use std::io;
use std::time::Instant;

use arbitrary::Unstructured;

use super::findings::Example;
use super::folder::{FileError, Folder};
use crate::concurrent::{Counts, Difference, Op, Round, Scene, Watcher, print, smaller};
use crate::generate::choices;
use crate::oracle::compare::ComponentClass;
use crate::oracle::judge::ClusterKey;

/// Which engine it is that has several vCPUs.
const ENGINE: &str = "jit";
/// A scene takes some hundred times as long as a case: beside one case in so many there may be one, …
const ONE_IN: u64 = 64;
/// … as long as scenes have had less than this part of the time.
const SHARE: f64 = 0.08;
/// How often a scene is run, in batches.
const BATCHES: u64 = 1;

/// What runs scenes in a worker.
pub(super) struct TwoVcpus {
    watcher: Watcher,
    begun: Instant,
    /// Seconds that scenes have had since then.
    spent: f64,
}

/// What was found.
pub(super) struct SceneFinding {
    pub key: ClusterKey,
    scene: Scene,
    difference: Difference,
}

impl TwoVcpus {
    /// For the worker of this number, if the JIT is among the engines.
    pub(super) fn new(engines: &[String], worker: usize) -> io::Result<Option<Self>> {
        let has_jit = engines.iter().any(|name| name == ENGINE);
        let make = || {
            let watcher = Watcher::new(worker).map_err(io::Error::other)?;
            Ok(Self { watcher, begun: Instant::now(), spent: 0.0 })
        };
        has_jit.then(make).transpose()
    }

    /// Runs the scene beside a case, if there is one, and gives what it has shown; or why it cannot be run.
    pub(super) fn check(
        &mut self,
        seed: u64,
        number: u64,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<SceneFinding>, String> {
        if !number.is_multiple_of(ONE_IN) || !self.is_due() {
            return Ok(None);
        }
        // The choices of a case with a number that no case has.
        choices(seed, !number, buffer);
        let scene = Scene::draw(&mut Unstructured::new(buffer));
        let difference = self.watcher.check(&scene, BATCHES).map_err(|error| error.to_string())?;
        Ok(difference.map(|difference| {
            let key = key(&scene, &difference);
            SceneFinding { key, scene, difference }
        }))
    }

    fn is_due(&self) -> bool {
        self.spent <= SHARE * self.begun.elapsed().as_secs_f64()
    }

    /// What was run since the last time.
    pub(super) fn take_counts(&mut self) -> Counts {
        let counts = std::mem::take(&mut self.watcher.counts);
        self.spent += counts.seconds;
        counts
    }

    /// Makes the scene of a finding small and writes its file into the campaign's folder.
    pub(super) fn example(
        &mut self,
        finding: SceneFinding,
        folder: Option<&Folder>,
    ) -> Result<Example, FileError> {
        let SceneFinding { key, scene, difference } = finding;
        let as_found = (scene.clone(), difference.clone());
        let (scene, difference) =
            smaller(&mut self.watcher, &scene, difference).unwrap_or(as_found);
        // What that took is no part of the campaign.
        self.watcher.counts = Counts::default();
        let instructions = scene.vcpus.iter().flat_map(|program| &program.code);
        let instructions = instructions.filter(|op| **op != Op::Nothing).count() as u64;
        let body = print(&scene);
        let hash = blake3::hash(body.as_bytes()).to_hex()[..16].to_owned();
        if let Some(folder) = folder {
            let name = format!("{hash}.case");
            let mut text = format!("# {key}\n");
            difference.lines().iter().for_each(|line| text += &format!("# {line}\n"));
            let path = folder.path().join(&name);
            text += &format!("# replay: tregion replay {}\n\n{body}", path.display());
            folder.write(&name, text.as_bytes())?;
        }
        Ok(Example { hash, instructions })
    }
}

/// What makes a finding the same as another.
fn key(scene: &Scene, difference: &Difference) -> ClusterKey {
    let code = if scene.changes_code() { ", one changes the other's code" } else { "" };
    let stops = match difference.round {
        Round::Over(_) => None,
        Round::Lost(_) => Some(("hlt".to_owned(), "no end".to_owned())),
    };
    let component = if stops.is_some() { ComponentClass::Stop } else { ComponentClass::Memory };
    let mnemonic = format!("two vCPUs{code}");
    ClusterKey { engine: ENGINE.to_owned(), mnemonic, component, stops }
}
