//! [`Workshop`]: where the models are built, from the project's files or from copies with a patch.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use super::mutant::Mutant;

const FLAGS: &str = "--cfg loom --cfg crossbeam_loom --cfg crossbeam_sanitize";

/// Folders under `target/loom`.
#[derive(Debug)]
pub(crate) struct Workshop {
    /// The project's.
    pub(crate) root: PathBuf,
    folder: PathBuf,
    /// Copies and their builds are one at a time.
    busy: Mutex<()>,
}

impl Workshop {
    pub(crate) fn new() -> Result<Self, String> {
        let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        let root = root.canonicalize().map_err(|error| format!("{root:?}: {error}"))?;
        let folder = root.join("target/loom");
        make(&folder.join("tests"))?;
        Ok(Self { root, folder, busy: Mutex::new(()) })
    }

    /// The test binary of the project as it is.
    pub(crate) fn build_real(&self) -> Result<PathBuf, String> {
        self.build_copy("real", None)
    }

    /// The test binary of the project with a patch.
    pub(crate) fn build_mutant(&self, mutant: &Mutant) -> Result<PathBuf, String> {
        self.build_copy(&mutant.name, Some(&mutant.patch))
    }

    /// Builds from a copy in any case, new at each build: to cargo all of these are one package, and
    /// what is not newer than the build before it would not be built again.
    fn build_copy(&self, name: &str, patch: Option<&Path>) -> Result<PathBuf, String> {
        let _busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let copy = self.folder.join("copy");
        if copy.exists() {
            fs::remove_dir_all(&copy).map_err(|error| format!("{copy:?}: {error}"))?;
        }
        for part in ["src/code", "loom/src"] {
            copy_folder(&self.root.join(part), &copy.join(part))?;
        }
        for file in ["loom/Cargo.toml", "loom/Cargo.lock"] {
            copy_file(&self.root.join(file), &copy.join(file))?;
        }
        if let Some(patch) = patch {
            let mut command = Command::new("patch");
            command.args(["-p1", "--fuzz=0", "--batch", "--input"]).arg(patch).current_dir(&copy);
            output(&mut command).map_err(|message| format!("does not apply\n{message}"))?;
        }
        self.build(&copy.join("loom"), name)
    }

    fn build(&self, package: &Path, name: &str) -> Result<PathBuf, String> {
        let mut cargo = Command::new(std::env::var("CARGO").unwrap_or("cargo".to_owned()));
        cargo.args(["test", "--lib", "--no-run", "--locked", "--message-format=json"]);
        cargo.current_dir(package).env("RUSTFLAGS", FLAGS);
        cargo.env("CARGO_TARGET_DIR", self.folder.join("build"));
        let messages = output(&mut cargo).map_err(|message| format!("{name}: {message}"))?;
        let built = messages
            .lines()
            .filter_map(|line| line.split("\"executable\":\"").nth(1)?.split('"').next())
            .next_back();
        let built = built.ok_or(format!("{name}: cargo names no test binary"))?;
        let kept = self.folder.join("tests").join(name);
        copy_file(Path::new(built), &kept)?;
        Ok(kept)
    }
}

/// What the command prints, or all that it says if it fails.
fn output(command: &mut Command) -> Result<String, String> {
    let done = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    if done.status.success() {
        return Ok(text);
    }
    Err(format!("{command:?} failed\n{text}{}", String::from_utf8_lossy(&done.stderr)))
}

fn make(folder: &Path) -> Result<(), String> {
    fs::create_dir_all(folder).map_err(|error| format!("{folder:?}: {error}"))
}

fn copy_file(from: &Path, to: &Path) -> Result<(), String> {
    to.parent().map_or(Ok(()), make)?;
    fs::copy(from, to).map(drop).map_err(|error| format!("{from:?} to {to:?}: {error}"))
}

fn copy_folder(from: &Path, to: &Path) -> Result<(), String> {
    make(to)?;
    let entries = fs::read_dir(from).map_err(|error| format!("{from:?}: {error}"))?;
    for entry in entries.flatten() {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() { copy_folder(&from, &to)? } else { copy_file(&from, &to)? }
    }
    Ok(())
}
