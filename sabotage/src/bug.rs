//! [`Bug`]: a patch that makes the engine wrong, and what its head says of it.

use std::path::Path;

use tregion_mutants::Patch;

/// One patch of `tests/mutants/engine`.
#[derive(Debug)]
pub(crate) struct Bug {
    pub(crate) patch: Patch,
    /// What is wrong.
    pub(crate) breaks: String,
    /// One of I1 to I9, or `semantics`.
    pub(crate) invariant: String,
    /// How it shows, or `test TARGET::NAME`.
    pub(crate) found_by: String,
    /// The vendor or the flag in `/proc/cpuinfo` of processors that do what it breaks, if others do not.
    only_on: Option<String>,
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
        let patches = Patch::all(&root.join("tests/mutants/engine"))?;
        patches.into_iter().map(Self::new).collect()
    }

    fn new(patch: Patch) -> Result<Self, String> {
        let (breaks, invariant) = (patch.required("Breaks: ")?, patch.required("Invariant: ")?);
        let found_by = patch.required("Found by: ")?;
        let only_on = patch.head("Only on: ").map(str::to_owned);
        Ok(Self { patch, breaks, invariant, found_by, only_on })
    }

    /// Whether a processor with this vendor and these flags does what it breaks.
    pub(crate) fn is_of(&self, processor: &str) -> bool {
        let mut words = processor.split_whitespace();
        self.only_on.as_deref().is_none_or(|only| words.any(|word| word == only))
    }

    pub(crate) fn name(&self) -> &str {
        &self.patch.name
    }

    /// The test that finds it, if it is not a campaign that does.
    pub(crate) fn test(&self) -> Option<Test> {
        let (target, name) = self.found_by.strip_prefix("test ")?.split_once("::")?;
        Some(Test { target: target.to_owned(), name: name.to_owned() })
    }
}
