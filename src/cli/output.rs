//! Where results go: files that are named, and standard output, which may be closed early, as by `head`:
//! that is no error and no panic.

use std::io::{self, ErrorKind, Write};
use std::path::Path;

use super::Failure;

/// Writes `text`. Who closes the other end wants no more: the process ends quietly.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    print_bytes(text.as_bytes())
}

/// The same for bytes.
pub(super) fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut output = io::stdout().lock();
    match output.write_all(bytes).and_then(|()| output.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        result => Ok(result?),
    }
}

/// Writes a named file; an error says which.
pub(super) fn write(file: &Path, contents: impl AsRef<[u8]>) -> Result<(), Failure> {
    std::fs::write(file, contents).map_err(|error| Failure(format!("{}: {error}", file.display())))
}

/// Writes a file if one is named, else standard output.
pub(super) fn write_or_print(
    file: Option<&Path>,
    contents: impl AsRef<[u8]>,
) -> Result<(), Failure> {
    match file {
        Some(file) => write(file, contents),
        None => print_bytes(contents.as_ref()),
    }
}
