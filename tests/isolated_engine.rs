//! An engine in a worker process: what comes of crashes, hangs, exits and nonsense. The worker is
//! this very program, started with the name of the one test that is a worker and nothing else.
#![allow(clippy::unwrap_used, reason = "a test fails where something is not there")]

use std::io::{BufRead, BufReader, Write};
use std::os::fd::BorrowedFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tregion::case::{Case, Loss, Outcome, Stop};
use tregion::engine::isolated::{Isolated, end_with_parent, refuse, serve};
use tregion::engine::{Capabilities, Engine, Unsupported, Visible};

/// Says which worker to be; without it the test `worker` does nothing.
const ROLE: &str = "TREGION_TEST_WORKER";

/// An engine that does what the note of a case says.
struct Scripted {
    capabilities: Capabilities,
    limit: Duration,
}

impl Engine for Scripted {
    fn name(&self) -> &str {
        "scripted"
    }

    fn version(&self) -> String {
        "scripted 1".to_owned()
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn set_time_limit(&mut self, limit: Duration) {
        self.limit = limit;
    }

    fn run(&mut self, case: &Case) -> Result<Outcome, Unsupported> {
        match case.note.as_str() {
            "abort" => std::process::abort(),
            "exit" => std::process::exit(7),
            "hang" => loop {
                std::thread::sleep(Duration::from_secs(1));
            },
            "garbage" => print(&[0xff; 64]),
            "nonsense" => print(&[3, 0, 0, 0, 9, 9, 9]),
            "half" => {
                print(&[100, 0, 0, 0, 1]);
                std::process::exit(0);
            }
            "limit" => return Err(Unsupported::new(format!("{:?}", self.limit))),
            "refuse" => return Err(Unsupported::new("that")),
            _ => {}
        }
        let mut outcome = Outcome::inexact(Stop::Halt, 0);
        outcome.state = case.state.clone();
        outcome.state.rip = u64::from(std::process::id());
        Ok(outcome)
    }
}

/// What the parent reads. The harness has words of its own for standard output.
#[allow(unsafe_code, reason = "a socket cannot be opened by its name in /proc")]
fn output() -> std::fs::File {
    // SAFETY: the shell that starts a worker opens it, and nobody here closes it.
    let output = unsafe { BorrowedFd::borrow_raw(3) };
    output.try_clone_to_owned().unwrap().into()
}

fn print(bytes: &[u8]) {
    output().write_all(bytes).unwrap();
}

#[test]
fn worker() {
    let Ok(role) = std::env::var(ROLE) else { return };
    end_with_parent().unwrap();
    match role.as_str() {
        "serve" => {
            let capabilities = Capabilities {
                visible: Visible::ALL,
                runs_on_silicon: false,
                counts: true,
                lacks: vec!["sense".to_owned()],
            };
            let mut engine = Scripted { capabilities, limit: Duration::ZERO };
            serve(&mut engine, std::io::stdin().lock(), output()).unwrap();
        }
        "refuse" => refuse("no such engine", output()).unwrap(),
        "silent" => std::thread::sleep(Duration::from_secs(60)),
        _ => panic!("no such role"),
    }
}

/// The shell command that becomes a worker with its frames on what is now standard output.
fn command(role: &str) -> String {
    let executable = std::env::current_exe().unwrap();
    let executable = executable.to_str().unwrap();
    format!("{ROLE}={role} exec {executable} --exact worker --nocapture 3>&1 1>/dev/null")
}

fn isolated(role: &str) -> std::io::Result<Isolated> {
    Isolated::new("/bin/sh".into(), vec!["-c".to_owned(), command(role)], "scripted")
}

fn case(note: &str) -> Case {
    Case { note: note.to_owned(), ..Case::default() }
}

#[test]
fn it_is_the_engine_in_the_worker() {
    let mut engine = isolated("serve").unwrap();
    assert_eq!(engine.name(), "scripted");
    assert_eq!(engine.version(), "scripted 1");
    assert_eq!(engine.capabilities().lacks, ["sense"]);
    let worker = engine.worker_id().unwrap();
    let mut sent = case("");
    sent.state.gpr[5] = 55;
    sent.objects = vec![tregion::case::Object::zeroed("large", 4096)];
    for _ in 0..3 {
        let outcome = engine.run(&sent).unwrap();
        assert_eq!((outcome.stop, outcome.state.gpr[5]), (Stop::Halt, 55));
        assert_eq!(outcome.state.rip, u64::from(worker), "it ran in the worker");
    }
    assert_eq!(engine.run(&case("refuse")), Err(Unsupported::new("that")));
    assert_eq!(engine.run(&case("limit")), Err(Unsupported::new("0ns")));
    engine.set_time_limit(Duration::from_secs(3));
    assert_eq!(engine.run(&case("limit")), Err(Unsupported::new("3s")));
    assert_eq!(engine.worker_id(), Some(worker), "nothing was lost");
}

#[test]
fn losses_are_outcomes_and_the_next_case_runs() {
    let mut engine = isolated("serve").unwrap().with_limit(Duration::from_secs(2));
    let losses = [
        ("abort", Loss::Killed { signal: 6 }),
        ("exit", Loss::Exited { status: 7 }),
        ("hang", Loss::Hung),
        ("garbage", Loss::Overwritten),
        ("nonsense", Loss::Overwritten),
        ("half", Loss::Exited { status: 0 }),
    ];
    for (note, loss) in losses {
        let before = engine.worker_id();
        let lost = engine.run(&case(note)).unwrap();
        assert_eq!(lost, Outcome::inexact(Stop::Lost(loss), 0), "{note}");
        let outcome = engine.run(&case("")).unwrap();
        assert_eq!(outcome.stop, Stop::Halt, "after {note}");
        assert_ne!(engine.worker_id(), before, "after {note}");
    }
}

#[test]
fn a_worker_killed_between_cases_is_the_loss_of_the_next() {
    let mut engine = isolated("serve").unwrap();
    let worker = engine.worker_id().unwrap();
    Command::new("kill").args(["-9", &worker.to_string()]).status().unwrap();
    let lost = engine.run(&case("")).unwrap();
    assert_eq!(lost.stop, Stop::Lost(Loss::Killed { signal: 9 }));
    assert_eq!(engine.run(&case("")).unwrap().stop, Stop::Halt);
}

#[test]
fn a_worker_without_an_engine_says_why() {
    let error = isolated("refuse").err().unwrap();
    assert_eq!(error.to_string(), "no such engine");
    let error = Isolated::new("/bin/true".into(), vec![], "nothing").err().unwrap();
    assert!(error.to_string().contains("did not start"), "{error}");
    assert!(Isolated::new("/nonexistent".into(), vec![], "nothing").is_err());
}

#[test]
fn workers_end_with_their_engine() {
    let engine = isolated("serve").unwrap();
    let worker = engine.worker_id().unwrap();
    drop(engine);
    assert!(!std::fs::exists(format!("/proc/{worker}")).unwrap());
}

/// Nobody closes the worker's input here: it has to see by itself that its parent is gone.
#[test]
fn a_busy_worker_ends_with_its_parent() {
    let script = format!("({}) & echo $!; sleep 1", command("silent"));
    let mut shell = Command::new("/bin/sh")
        .args(["-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(shell.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let worker = format!("/proc/{}/stat", line.trim());
    let alive = || std::fs::read_to_string(&worker).is_ok_and(|stat| !stat.contains(") Z "));
    assert!(alive());
    let input = shell.stdin.take();
    shell.wait().unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    while alive() {
        assert!(Instant::now() < end, "the worker lives on");
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(input);
}
