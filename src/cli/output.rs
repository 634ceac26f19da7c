//! Standard output that may be closed early, as by `head`: that is no error and no panic.

use std::io::{self, ErrorKind, Write};

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
