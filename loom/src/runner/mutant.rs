//! [`Mutant`]: a patch that weakens one step of a protocol, and the model that must find it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::model::{self, Model, Run};

/// One of `tests/mutants/loom`.
#[derive(Debug)]
pub(crate) struct Mutant {
    pub(crate) name: String,
    pub(crate) patch: PathBuf,
    /// A model's name.
    pub(crate) caught_by: String,
}

impl Mutant {
    /// All that have a model.
    pub(crate) fn all(root: &Path, models: &[Model]) -> Result<Vec<Self>, String> {
        let folder = root.join("tests/mutants/loom");
        let entries = fs::read_dir(&folder).map_err(|error| format!("{folder:?}: {error}"))?;
        let mut mutants = Vec::new();
        for patch in entries.flatten().map(|entry| entry.path()) {
            if patch.extension().is_some_and(|extension| extension == "patch") {
                mutants.extend(Self::read(patch, models)?);
            }
        }
        mutants.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(mutants)
    }

    fn read(patch: PathBuf, models: &[Model]) -> Result<Option<Self>, String> {
        let name = patch.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let text = fs::read_to_string(&patch).map_err(|error| format!("{patch:?}: {error}"))?;
        let head = text.lines().take_while(|line| !line.starts_with("--- "));
        let caught_by = head.filter_map(|line| line.strip_prefix("Caught by: ")).next();
        let caught_by = caught_by.ok_or(format!("{name}: does not say what it is caught by"))?;
        if !models.iter().any(|model| model.name == caught_by && !model.must_fail) {
            return Err(format!("{name}: there is no model {caught_by}"));
        }
        Ok(Some(Self { name, caught_by: caught_by.to_owned(), patch }))
    }

    /// Runs its model in the test binary `test`.
    pub(crate) fn run(&self, test: &Path, limit: Duration) -> Run {
        model::run(test, &self.caught_by, false, None, limit)
    }
}
