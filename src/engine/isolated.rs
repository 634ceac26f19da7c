//! [`Isolated`]: any engine in a process of its own, so that a crash, a hang or a wild store of the
//! engine is the outcome of the case that caused it and not the end of the campaign.
//!
//! The protocol, over the worker's standard streams, in frames of a 32-bit little-endian length and
//! as many bytes of postcard:
//!
//! 1. The worker sends a greeting: what the engine is, or the text of the error that kept it from
//!    starting ([`refuse`]).
//! 2. The parent sends a case and its time limit for a leg, if one was set; the worker answers with
//!    the `Result` of [`Engine::run`]. And so on.
//! 3. The worker ends when its input ends.
//!
//! A worker that dies, is late or talks nonsense is killed, and another takes its place before the
//! next case. Nothing else in the worker may write to its standard output.

use std::io::{self, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, parent_id};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Capabilities, Engine, Unsupported, loss};
use crate::case::{Case, Loss, Outcome, Stop};

/// Time that a case or a start may take, unless another is set.
const DEFAULT_LIMIT: Duration = Duration::from_secs(10);
/// Time for a worker that closed its output to end by itself, so that its exit status is its own.
const GRACE: Duration = Duration::from_secs(1);
/// More bytes than any frame has: four times the memory of the largest case.
const LONGEST_FRAME: usize = 256 << 20;
/// Bytes read at once: most cases are smaller.
const BUFFER: usize = 64 << 10;

/// What an engine says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Greeting {
    version: String,
    capabilities: Capabilities,
}

type Answer = Result<Outcome, Unsupported>;
/// The time limit for a leg, if there is one, and the case.
type Request<'case> = (Option<Duration>, &'case Case);

/// Runs cases from `input` on `engine` and writes what comes of them to `output`, until the input
/// ends between two frames.
pub fn serve(engine: &mut dyn Engine, input: impl Read, mut output: impl Write) -> io::Result<()> {
    let mut input = BufReader::with_capacity(BUFFER, input);
    let (version, capabilities) = (engine.version(), engine.capabilities().clone());
    let greeting: Result<Greeting, String> = Ok(Greeting { version, capabilities });
    send(&mut output, &greeting)?;
    let mut limit = None;
    while let Some(frame) = receive(&mut input)? {
        let (wanted, case): (Option<Duration>, Case) = decode(&frame)?;
        if wanted != limit {
            limit = wanted;
            wanted.into_iter().for_each(|wanted| engine.set_time_limit(wanted));
        }
        send(&mut output, &engine.run(&case))?;
    }
    Ok(())
}

/// Makes this process end when its parent does, even if an engine is busy and [`serve`] does not
/// see its input end. A worker calls it first.
pub fn end_with_parent() -> io::Result<()> {
    let parent = parent_id();
    let watch = move || {
        while parent_id() == parent {
            thread::sleep(GRACE);
        }
        std::process::exit(1);
    };
    thread::Builder::new().name("parent-watch".to_owned()).spawn(watch).map(|_| ())
}

/// Tells the parent why there is no engine to [`serve`].
pub fn refuse(error: &str, mut output: impl Write) -> io::Result<()> {
    let greeting: Result<Greeting, String> = Err(error.to_owned());
    send(&mut output, &greeting)
}

/// An engine in a worker process. See the file's head.
pub struct Isolated {
    program: PathBuf,
    arguments: Vec<String>,
    name: String,
    /// For the whole of a case, on top of what its legs may take.
    limit: Duration,
    leg_limit: Option<Duration>,
    greeting: Greeting,
    /// Which cases are not to be sent.
    refuses: fn(&Case) -> Option<Unsupported>,
    /// None between the loss of a worker and the next case.
    worker: Option<Worker>,
}

impl Isolated {
    /// Starts `program` with `arguments`, which is to [`serve`] the engine `name` on its standard
    /// streams.
    pub fn new(program: PathBuf, arguments: Vec<String>, name: &str) -> io::Result<Self> {
        let (worker, greeting) = Worker::start(&program, &arguments, DEFAULT_LIMIT)?;
        let (name, limit, worker) = (name.to_owned(), DEFAULT_LIMIT, Some(worker));
        let refuses = |_: &Case| None;
        Ok(Self { program, arguments, name, limit, leg_limit: None, greeting, refuses, worker })
    }

    /// The same engine, to which cases for which `refuses` has a reason are not sent.
    #[must_use]
    pub fn refusing(self, refuses: fn(&Case) -> Option<Unsupported>) -> Self {
        Self { refuses, ..self }
    }

    /// The same engine with another time limit for each case.
    #[must_use]
    pub fn with_limit(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// The process that will run the next case, if it has been started.
    #[must_use]
    pub fn worker_id(&self) -> Option<u32> {
        self.worker.as_ref().map(|worker| worker.process.id())
    }
}

impl Engine for Isolated {
    fn name(&self) -> &str {
        &self.name
    }

    fn version(&self) -> String {
        self.greeting.version.clone()
    }

    fn capabilities(&self) -> &Capabilities {
        &self.greeting.capabilities
    }

    fn set_time_limit(&mut self, limit: Duration) {
        self.leg_limit = Some(limit);
    }

    fn run(&mut self, case: &Case) -> Answer {
        if let Some(refused) = (self.refuses)(case) {
            return Err(refused);
        }
        let mut worker = match self.worker.take() {
            Some(worker) => worker,
            None => Worker::start(&self.program, &self.arguments, self.limit)
                .map(|(worker, _)| worker)
                .map_err(|error| Unsupported::new(format!("no worker: {error}")))?,
        };
        let legs = u32::try_from(case.events.len()).unwrap_or(u32::MAX).saturating_add(1);
        let legs_limit = self.leg_limit.unwrap_or_default().saturating_mul(legs);
        match worker.run(&(self.leg_limit, case), self.limit.saturating_add(legs_limit)) {
            Ok(answer) => {
                self.worker = Some(worker);
                answer
            }
            Err(loss) => Ok(Outcome::inexact(Stop::Lost(loss), 0)),
        }
    }
}

/// A process and this end of its standard streams, which are one socket. Killed when dropped.
struct Worker {
    process: Child,
    /// First the greeting comes, then an answer for each request.
    frames: BufReader<Timed>,
}

impl Worker {
    fn start(
        program: &PathBuf,
        arguments: &[String],
        limit: Duration,
    ) -> io::Result<(Self, Greeting)> {
        let (stream, theirs) = UnixStream::pair()?;
        let process = Command::new(program)
            .args(arguments)
            // Ctrl-C at a terminal is for this process alone.
            .process_group(0)
            .stdin(OwnedFd::from(theirs.try_clone()?))
            .stdout(OwnedFd::from(theirs))
            .spawn()?;
        let frames = BufReader::with_capacity(BUFFER, Timed { stream, end: None });
        let mut worker = Self { process, frames };
        worker.limit(limit);
        let greeting: Result<Greeting, String> = worker
            .next_frame()
            .map_err(|loss| io::Error::other(format!("the worker did not start: {loss}")))?;
        Ok((worker, greeting.map_err(io::Error::other)?))
    }

    fn run(&mut self, request: &Request<'_>, limit: Duration) -> Result<Answer, Loss> {
        self.limit(limit);
        match send(self.frames.get_mut(), request) {
            Ok(()) => self.next_frame(),
            Err(error) => Err(self.cause_of_error(&error)),
        }
    }

    /// Whatever comes next may take so long in all.
    fn limit(&mut self, limit: Duration) {
        self.frames.get_mut().end = Instant::now().checked_add(limit);
    }

    fn next_frame<T: DeserializeOwned>(&mut self) -> Result<T, Loss> {
        match receive(&mut self.frames) {
            Ok(Some(frame)) => decode(&frame).map_err(|_| Loss::Overwritten),
            Ok(None) => Err(self.cause_of_end()),
            Err(error) => Err(self.cause_of_error(&error)),
        }
    }

    fn cause_of_error(&mut self, error: &io::Error) -> Loss {
        match error.kind() {
            io::ErrorKind::InvalidData => Loss::Overwritten,
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Loss::Hung,
            _ => self.cause_of_end(),
        }
    }

    /// Why the worker, which answers no more, has ended.
    fn cause_of_end(&mut self) -> Loss {
        let end = Instant::now() + GRACE;
        loop {
            match self.process.try_wait() {
                Ok(Some(status)) => return loss(status),
                Ok(None) if Instant::now() < end => thread::sleep(Duration::from_millis(1)),
                // It closed its output and lives on.
                Ok(None) | Err(_) => return Loss::Hung,
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended already, which is as well.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A socket that waits no longer than until its end, whatever signals come.
struct Timed {
    stream: UnixStream,
    end: Option<Instant>,
}

impl Timed {
    /// How long it may still wait.
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.end.map(|end| end.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            self.stream.set_read_timeout(self.left()?)?;
            match self.stream.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}

impl Write for Timed {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        loop {
            self.stream.set_write_timeout(self.left()?)?;
            match self.stream.write(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sends a frame in one piece, so that who waits for it is woken once.
fn send(output: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    const LENGTH: usize = size_of::<u32>();
    let mut frame = postcard::to_extend(value, vec![0; LENGTH]).map_err(io::Error::other)?;
    let length = u32::try_from(frame.len() - LENGTH).map_err(io::Error::other)?;
    frame[..LENGTH].copy_from_slice(&length.to_le_bytes());
    output.write_all(&frame)?;
    output.flush()
}

/// The next frame, or `None` where the input ends in front of one.
fn receive(input: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    if input.read(&mut length[..1])? == 0 {
        return Ok(None);
    }
    input.read_exact(&mut length[1..])?;
    let length = u32::from_le_bytes(length) as usize;
    if length > LONGEST_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the frame is too long"));
    }
    // Little memory for bytes that do not come: the length may be nonsense.
    let mut frame = Vec::with_capacity(length.min(BUFFER));
    input.by_ref().take(length as u64).read_to_end(&mut frame)?;
    if frame.len() < length { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(Some(frame)) }
}

fn decode<T: DeserializeOwned>(frame: &[u8]) -> io::Result<T> {
    postcard::from_bytes(frame).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames() {
        let mut bytes = Vec::new();
        send(&mut bytes, &"one").unwrap();
        send(&mut bytes, &()).unwrap();
        let mut input = bytes.as_slice();
        assert_eq!(receive(&mut input).unwrap().as_deref(), Some(&b"\x03one"[..]));
        assert_eq!(receive(&mut input).unwrap().as_deref(), Some(&b""[..]));
        assert_eq!(receive(&mut input).unwrap(), None);
    }

    #[test]
    fn broken_frames() {
        let kind = |mut bytes: &[u8]| receive(&mut bytes).unwrap_err().kind();
        assert_eq!(kind(&[3, 0]), io::ErrorKind::UnexpectedEof);
        assert_eq!(kind(&[3, 0, 0, 0, 1, 2]), io::ErrorKind::UnexpectedEof);
        assert_eq!(kind(&[0, 0, 0, 0xff]), io::ErrorKind::InvalidData);
    }
}
