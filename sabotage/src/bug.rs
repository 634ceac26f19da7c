//! [`Bug`]: a patch that makes the engine wrong, and what its head says of it.

use std::fs;
use std::path::{Path, PathBuf};

/// One patch of `tests/mutants/engine`.
#[derive(Debug)]
pub(crate) struct Bug {
    pub(crate) name: String,
    pub(crate) patch: PathBuf,
    /// What is wrong.
    pub(crate) breaks: String,
    /// One of I1 to I9, or `semantics`.
    pub(crate) invariant: String,
    /// How it shows, or `test TARGET::NAME`.
    pub(crate) found_by: String,
}

/// A test of the project.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Test {
    /// A file of `tests`, or `lib`.
    pub(crate) target: String,
    pub(crate) name: String,
}

impl Bug {
    /// All of them, by name.
    pub(crate) fn all(root: &Path) -> Result<Vec<Self>, String> {
        let folder = root.join("tests/mutants/engine");
        let entries = fs::read_dir(&folder).map_err(|error| format!("{folder:?}: {error}"))?;
        let patches = entries.flatten().map(|entry| entry.path());
        let mut bugs: Vec<Self> = patches
            .filter(|path| path.extension().is_some_and(|extension| extension == "patch"))
            .map(Self::read)
            .collect::<Result<_, _>>()?;
        bugs.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(bugs)
    }

    fn read(patch: PathBuf) -> Result<Self, String> {
        let name = patch.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let text = fs::read_to_string(&patch).map_err(|error| format!("{patch:?}: {error}"))?;
        let head = |label: &str| {
            let mut lines = text.lines().take_while(|line| !line.starts_with("--- "));
            let value = lines.find_map(|line| line.strip_prefix(label));
            value.map(str::to_owned).ok_or_else(|| format!("{name}: its head has no `{label}`"))
        };
        let (breaks, invariant) = (head("Breaks: ")?, head("Invariant: ")?);
        let found_by = head("Found by: ")?;
        Ok(Self { name, patch, breaks, invariant, found_by })
    }

    /// The test that finds it, if it is not a campaign that does.
    pub(crate) fn test(&self) -> Option<Test> {
        let (target, name) = self.found_by.strip_prefix("test ")?.split_once("::")?;
        Some(Test { target: target.to_owned(), name: name.to_owned() })
    }
}
