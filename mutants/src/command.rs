//! Commands: what they print, and how they end within a limit.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How a command went.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// Nothing if it had to be stopped.
    pub status: Option<ExitStatus>,
    /// How long it took.
    pub seconds: f64,
}

/// What the command prints; if it fails, all that it says, but for messages in JSON.
pub fn output(command: &mut Command) -> Result<String, String> {
    let done = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    if done.status.success() {
        return Ok(text);
    }
    // Cargo tells of what it makes in JSON; errors are to be rendered.
    let told = text.lines().filter(|line| !line.starts_with('{')).map(|line| format!("{line}\n"));
    Err(format!("{}{}", told.collect::<String>(), String::from_utf8_lossy(&done.stderr)))
}

/// Runs the command, with all that it says in the file `log`, and stops it at the limit.
pub fn run_within(command: &mut Command, limit: Duration, log: &Path) -> Result<Ended, String> {
    let start = Instant::now();
    let mut run = || {
        let log = File::create(log)?;
        command.stdin(Stdio::null()).stderr(log.try_clone()?).stdout(log);
        let mut child = command.spawn()?;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(Some(status));
            }
            if start.elapsed() > limit {
                child.kill()?;
                child.wait()?;
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let status = run().map_err(|error: std::io::Error| format!("{command:?}: {error}"))?;
    Ok(Ended { status, seconds: start.elapsed().as_secs_f64() })
}

/// The cargo that runs this program, if one does.
#[must_use]
pub fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from))
}
