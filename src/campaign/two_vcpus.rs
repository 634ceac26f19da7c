//! The part of a campaign in which two vCPUs of the JIT run at the same time ([`crate::concurrent`]): beside one
//! case in [`ONE_IN`] a scene is drawn, run and judged by the set of its outcomes. Such a finding has a file as
//! others have, which `tregion replay` runs again.

use std::io;

use arbitrary::Unstructured;

use super::folder::{FileError, Folder};
use crate::concurrent::{Counts, Difference, Op, Round, Scene, Watcher, print, smaller};
use crate::generate::choices;
use crate::oracle::compare::ComponentClass;
use crate::oracle::judge::ClusterKey;

/// Which engine it is that has several vCPUs.
const ENGINE: &str = "jit";
/// A scene takes some hundred times as long as a case.
const ONE_IN: u64 = 4096;
/// How often a scene is run, in batches.
const BATCHES: u64 = 1;

/// What runs scenes in a worker.
pub(super) struct TwoVcpus(Watcher);

/// What was found.
pub(super) struct SceneFinding {
    pub key: ClusterKey,
    scene: Scene,
    difference: Difference,
}

/// The example of a finding.
pub(super) struct SceneFile {
    pub hash: String,
    pub instructions: u64,
    text: String,
}

impl TwoVcpus {
    /// For the worker of this number, if the JIT is among the engines.
    pub(super) fn new(engines: &[String], worker: usize) -> io::Result<Option<Self>> {
        let has_jit = engines.iter().any(|name| name == ENGINE);
        let make = || Watcher::new(worker).map(Self).map_err(io::Error::other);
        has_jit.then(make).transpose()
    }

    /// Runs the scene beside a case, if there is one, and gives what it has shown; or why it cannot be run.
    pub(super) fn check(
        &mut self,
        seed: u64,
        number: u64,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<SceneFinding>, String> {
        if !number.is_multiple_of(ONE_IN) {
            return Ok(None);
        }
        // The choices of a case with a number that no case has.
        choices(seed, !number, buffer);
        let scene = Scene::draw(&mut Unstructured::new(buffer));
        let difference = self.0.check(&scene, BATCHES).map_err(|error| error.to_string())?;
        Ok(difference.map(|difference| {
            let key = key(&scene, &difference);
            SceneFinding { key, scene, difference }
        }))
    }

    /// What was run since the last time.
    pub(super) fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.0.counts)
    }

    /// The file of a finding, whose scene is made small.
    pub(super) fn file(&mut self, finding: SceneFinding, folder: Option<&Folder>) -> SceneFile {
        let SceneFinding { key, scene, difference } = finding;
        let as_found = (scene.clone(), difference.clone());
        let (scene, difference) = smaller(&mut self.0, &scene, difference).unwrap_or(as_found);
        let body = print(&scene);
        let hash = blake3::hash(body.as_bytes()).to_hex()[..16].to_owned();
        let mut text = format!("# {key}\n");
        difference.lines().iter().for_each(|line| text += &format!("# {line}\n"));
        if let Some(folder) = folder {
            let path = folder.path().join(name(&hash));
            text += &format!("# replay: tregion replay {}\n\n", path.display());
        }
        let instructions = scene.vcpus.iter().flat_map(|program| &program.code);
        let instructions = instructions.filter(|op| **op != Op::Nothing).count() as u64;
        SceneFile { hash, instructions, text: text + &body }
    }
}

impl SceneFile {
    /// Writes it into the campaign's folder.
    pub(super) fn write(&self, folder: &Folder) -> Result<(), FileError> {
        folder.write(&name(&self.hash), self.text.as_bytes())
    }
}

fn name(hash: &str) -> String {
    format!("{hash}.case")
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
