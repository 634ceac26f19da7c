//! Whole programs as processes of their own: on the processor itself, and under `qemu-x86_64` where it
//! is installed. Starting a process is in both times.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use super::program::Agreed;
use super::race::Processes;
use super::{Contender, Failure};

/// QEMU's emulator of processes, which is looked for in `PATH`.
const QEMU: &str = "qemu-x86_64";

/// Whether QEMU is there, and which one: the first line that it says of itself.
#[must_use]
pub fn qemu() -> Option<String> {
    let said = Command::new(QEMU).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    text.lines().next().map(str::to_owned).filter(|_| said.status.success())
}

/// Both ways to run a program, which may have other work than engines get.
pub(super) fn processes(binary: &Path) -> Processes {
    let agreed = Agreed::default();
    let binary = binary.as_os_str();
    // Of its models of processors, the one that has most.
    let by_qemu = [OsStr::new(QEMU), OsStr::new("-cpu"), OsStr::new("max"), binary];
    Processes {
        native: started("the process", &[binary], &agreed),
        qemu: started(QEMU, &by_qemu, &agreed),
    }
}

/// Starts a process and waits until it is gone; milliseconds.
fn started(who: &'static str, command: &[&OsStr], agreed: &Agreed) -> Contender {
    let command: Vec<_> = command.iter().map(|word| word.to_os_string()).collect();
    let agreed = agreed.clone();
    Box::new(move || {
        let begun = Instant::now();
        let done = Command::new(&command[0]).args(&command[1..]).output();
        let milliseconds = begun.elapsed().as_secs_f64() * 1e3;
        let done = done.map_err(|error| format!("{who}: {error}"))?;
        if !done.status.success() {
            return Err(format!("{who}: {}", done.status).into());
        }
        agreed.check(who, checksum(who, &done.stdout)?)?;
        Ok(milliseconds)
    })
}

fn checksum(who: &str, written: &[u8]) -> Result<u64, Failure> {
    let bytes = written.try_into().map_err(|_| format!("{who}: wrote {} bytes", written.len()))?;
    Ok(u64::from_le_bytes(bytes))
}
