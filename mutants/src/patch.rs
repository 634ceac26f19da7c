//! [`Patch`]: one change, and what its head says of it.

use std::fs;
use std::path::{Path, PathBuf};

/// See the file's head.
#[derive(Clone, Debug)]
pub struct Patch {
    /// The file's name without `.patch`.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// All of it.
    pub text: String,
}

impl Patch {
    /// The patches of a folder, by name.
    pub fn all(folder: &Path) -> Result<Vec<Self>, String> {
        let entries = fs::read_dir(folder).map_err(|error| format!("{folder:?}: {error}"))?;
        let paths = entries.flatten().map(|entry| entry.path());
        let mut patches: Vec<Self> = paths
            .filter(|path| path.extension().is_some_and(|extension| extension == "patch"))
            .map(Self::read)
            .collect::<Result<_, _>>()?;
        patches.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(patches)
    }

    fn read(path: PathBuf) -> Result<Self, String> {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).map_err(|error| format!("{path:?}: {error}"))?;
        Ok(Self { name, path, text })
    }

    /// The rest of the line of the head that begins with `label`.
    #[must_use]
    pub fn head(&self, label: &str) -> Option<&str> {
        let mut lines = self.text.lines().take_while(|line| !line.starts_with("--- "));
        lines.find_map(|line| line.strip_prefix(label))
    }

    /// The same, of a head that must have it.
    pub fn required(&self, label: &str) -> Result<String, String> {
        let value = self.head(label).map(str::to_owned);
        value.ok_or_else(|| format!("{}: its head has no `{label}`", self.name))
    }
}
