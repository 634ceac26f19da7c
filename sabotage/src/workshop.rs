//! [`Workshop`]: a copy of the project that patches are applied to, and its builds.

use std::path::PathBuf;
use std::process::Command;

use tregion_mutants::{Patch, Scratch, cargo, output};

use crate::bug::Test;

/// What a build of the command line and of the tests takes.
const PARTS: [&str; 12] = [
    "src",
    "tests",
    "benches",
    "examples",
    "corpora",
    "docs",
    "mutants/src",
    "mutants/Cargo.toml",
    "Cargo.toml",
    "Cargo.lock",
    "README.md",
    "ARCHITECTURE.md",
];
const FLAGS: [&str; 7] =
    ["--profile", "sabotage", "--no-default-features", "--features", "cli", "--locked", "--quiet"];

#[derive(Debug)]
pub(crate) struct Workshop {
    /// The project's folder.
    pub(crate) root: PathBuf,
    /// Where everything goes that is made.
    pub(crate) target: PathBuf,
    copy: Scratch,
}

impl Workshop {
    pub(crate) fn new() -> Result<Self, String> {
        let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        let root = root.canonicalize().map_err(|error| format!("{root:?}: {error}"))?;
        let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
        let target = target.unwrap_or_else(|| root.join("target"));
        let copy = Scratch::new(&root, target.join("sabotage-copy"), &PARTS);
        Ok(Self { root, target, copy })
    }

    /// Makes the copy what the project is.
    pub(crate) fn restore(&self) -> Result<(), String> {
        self.copy.restore()
    }

    /// Applies a patch to the copy.
    pub(crate) fn apply(&self, patch: &Patch) -> Result<(), String> {
        self.copy.apply(patch)
    }

    /// The command line of the copy.
    pub(crate) fn build(&self) -> Result<PathBuf, String> {
        let mut cargo = self.cargo("build");
        cargo.args(["--bin", "tregion"]);
        output(&mut cargo).map_err(|message| format!("does not build: {message}"))?;
        Ok(self.target.join("sabotage/tregion"))
    }

    /// The program that has a test of the copy.
    pub(crate) fn build_test(&self, test: &Test) -> Result<PathBuf, String> {
        let mut cargo = self.cargo("test");
        cargo.args(["--no-run", "--message-format=json-render-diagnostics"]);
        match test.target.as_str() {
            "lib" => cargo.arg("--lib"),
            target => cargo.args(["--test", target]),
        };
        let messages = output(&mut cargo).map_err(|text| format!("does not build: {text}"))?;
        let mut programs = messages.lines().filter_map(|line| {
            let message: serde_json::Value = serde_json::from_str(line).ok()?;
            let test = message["profile"]["test"].as_bool() == Some(true);
            message["executable"].as_str().filter(|_| test).map(PathBuf::from)
        });
        programs.next_back().ok_or_else(|| "cargo names no test program".to_owned())
    }

    fn cargo(&self, what: &str) -> Command {
        let mut cargo = cargo();
        cargo.arg(what).args(FLAGS).current_dir(self.copy.folder());
        cargo.env("CARGO_TARGET_DIR", &self.target).env_remove("RUSTFLAGS");
        cargo
    }
}
