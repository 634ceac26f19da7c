//! [`Workshop`]: where the models are built, from a copy of the project's files with a patch or without.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tregion_mutants::{Patch, Scratch, cargo, output};

use super::mutant::Mutant;

const FLAGS: &str = "--cfg loom --cfg crossbeam_loom --cfg crossbeam_sanitize";
/// What a build of the models takes.
const PARTS: [&str; 6] = [
    "src/code",
    "loom/src",
    "loom/Cargo.toml",
    "loom/Cargo.lock",
    "mutants/src",
    "mutants/Cargo.toml",
];

/// Folders under `target/loom`.
#[derive(Debug)]
pub(crate) struct Workshop {
    /// The project's.
    pub(crate) root: PathBuf,
    folder: PathBuf,
    /// Copies and their builds are one at a time.
    copy: Mutex<Scratch>,
}

impl Workshop {
    pub(crate) fn new() -> Result<Self, String> {
        let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        let root = root.canonicalize().map_err(|error| format!("{root:?}: {error}"))?;
        let folder = root.join("target/loom");
        let tests = folder.join("tests");
        fs::create_dir_all(&tests).map_err(|error| format!("{tests:?}: {error}"))?;
        let copy = Mutex::new(Scratch::new(&root, folder.join("copy"), &PARTS));
        Ok(Self { root, folder, copy })
    }

    /// The test binary of the project as it is.
    pub(crate) fn build_real(&self) -> Result<PathBuf, String> {
        self.build_copy("real", None)
    }

    /// The test binary of the project with a patch.
    pub(crate) fn build_mutant(&self, mutant: &Mutant) -> Result<PathBuf, String> {
        self.build_copy(mutant.name(), Some(&mutant.patch))
    }

    fn build_copy(&self, name: &str, patch: Option<&Patch>) -> Result<PathBuf, String> {
        let copy = self.copy.lock().unwrap_or_else(PoisonError::into_inner);
        copy.restore()?;
        patch.map_or(Ok(()), |patch| copy.apply(patch))?;
        self.build(&copy.folder().join("loom"), name)
    }

    fn build(&self, package: &Path, name: &str) -> Result<PathBuf, String> {
        let mut cargo = cargo();
        cargo.args([
            "test",
            "--lib",
            "--no-run",
            "--locked",
            "--message-format=json-render-diagnostics",
        ]);
        cargo.current_dir(package).env("RUSTFLAGS", FLAGS);
        cargo.env("CARGO_TARGET_DIR", self.folder.join("build"));
        let messages = output(&mut cargo).map_err(|message| format!("{name}: {message}"))?;
        let built = messages
            .lines()
            .filter_map(|line| line.split("\"executable\":\"").nth(1)?.split('"').next())
            .next_back();
        let built = built.ok_or(format!("{name}: cargo names no test binary"))?;
        let kept = self.folder.join("tests").join(name);
        let copied = fs::copy(built, &kept);
        copied.map_err(|error| format!("{built} to {kept:?}: {error}"))?;
        Ok(kept)
    }
}
