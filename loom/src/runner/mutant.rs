//! [`Mutant`]: a patch that weakens one step of a protocol, and the model that must find it.

use std::path::Path;
use std::time::Duration;

use tregion_mutants::Patch;

use super::model::{self, Model, Run};

/// One of `tests/mutants/loom`.
#[derive(Debug)]
pub(crate) struct Mutant {
    pub(crate) patch: Patch,
    /// A model's name.
    pub(crate) caught_by: String,
}

impl Mutant {
    /// All of them, by name.
    pub(crate) fn all(root: &Path, models: &[Model]) -> Result<Vec<Self>, String> {
        let patches = Patch::all(&root.join("tests/mutants/loom"))?;
        patches.into_iter().map(|patch| Self::new(patch, models)).collect()
    }

    fn new(patch: Patch, models: &[Model]) -> Result<Self, String> {
        let caught_by = patch.required("Caught by: ")?;
        if !models.iter().any(|model| model.name == caught_by && !model.must_fail) {
            return Err(format!("{}: there is no model {caught_by}", patch.name));
        }
        Ok(Self { patch, caught_by })
    }

    pub(crate) fn name(&self) -> &str {
        &self.patch.name
    }

    /// Runs its model in the test binary `test`.
    pub(crate) fn run(&self, test: &Path, limit: Duration) -> Run {
        model::run(test, &self.caught_by, false, None, limit)
    }
}
