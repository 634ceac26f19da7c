//! Two launchers, each with its broker, joined on loopback: what one keeps the other runs and keeps, one is killed
//! with all its processes and comes back, and nothing that was found is lost.
//!
//! It shows that LibAFL's brokers carry inputs between address spaces by TCP and that folders outlive launchers. It
//! shows nothing of slow or broken networks, nor of more than two.

#![allow(clippy::unwrap_used, reason = "a test fails where its helper does")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Longer than anything here takes: a broker looks for messages of another one every three seconds.
const PATIENCE: Duration = Duration::from_secs(120);

/// An input of so many bytes is not found twice.
const LONG: usize = 64;

/// Files by name, with their contents.
type Inputs = BTreeMap<String, Vec<u8>>;

/// A launcher of `smc_remap` on one core, and its folders.
struct Machine {
    folder: PathBuf,
    core: usize,
    port: u16,
    process: Option<Child>,
}

impl Machine {
    fn new(folder: PathBuf, core: usize, seeds: &[PathBuf]) -> Self {
        fs::create_dir_all(folder.join("seeds")).unwrap();
        for seed in seeds {
            fs::copy(seed, folder.join("seeds").join(seed.file_name().unwrap())).unwrap();
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self { folder, core, port, process: None }
    }

    fn start(&mut self, join: Option<u16>) {
        let log = File::options().create(true).append(true).open(self.folder.join("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tregion-launcher"));
        command.args(["--target", "smc_remap", "--cores", &self.core.to_string()]);
        command.args(["--port", &self.port.to_string()]);
        for folder in ["corpus", "findings", "seeds"] {
            command.arg(format!("--{folder}")).arg(self.folder.join(folder));
        }
        if let Some(port) = join {
            command.args(["--join", &format!("127.0.0.1:{port}")]);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.process = Some(command.process_group(0).spawn().unwrap());
        self.wait_for("the broker listens", || TcpStream::connect(("127.0.0.1", self.port)).ok());
    }

    /// Ends the broker and its clients at once.
    fn kill(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        let group = format!("-{}", process.id());
        let killed = Command::new("kill").args(["-KILL", "--", &group]).status().unwrap();
        assert!(killed.success(), "the group is there until its leader was waited for");
        process.wait().unwrap();
    }

    /// What it has kept.
    fn corpus(&self) -> Inputs {
        inputs(&self.folder.join("corpus"))
    }

    fn wait_for<T>(&self, what: &str, ready: impl Fn() -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            if let Some(value) = ready() {
                return value;
            }
            let log = || fs::read_to_string(self.folder.join("log")).unwrap_or_default();
            assert!(start.elapsed() < PATIENCE, "in vain: {what}\n{}", log());
            sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Whole files: LibAFL's own are hidden.
fn inputs(folder: &Path) -> Inputs {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let files = entries.map(|entry| entry.path()).filter(|path| path.is_file());
    let named = files.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path));
    named
        .filter(|(name, _)| !name.starts_with('.'))
        .map(|(name, path)| (name, fs::read(path).unwrap()))
        .collect()
}

fn has(inputs: &Inputs, content: &[u8]) -> bool {
    inputs.values().any(|input| input == content)
}

/// Whether `inputs` has one of `others`. The shortest are left out: they could be found twice.
fn meets(inputs: &Inputs, others: &Inputs) -> Option<()> {
    others.values().any(|other| other.len() >= LONG && has(inputs, other)).then_some(())
}

/// The inputs of `after` that are not in `before`, but for the shortest.
fn since(before: &Inputs, after: Inputs) -> Inputs {
    after.into_iter().filter(|(_, input)| input.len() >= LONG && !has(before, input)).collect()
}

fn seeds() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../corpora/fuzz/smc_remap");
    let mut seeds: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    seeds.sort();
    seeds
}

#[test]
fn what_is_found_gets_about_and_survives() {
    let folder = tempfile::tempdir().unwrap();
    let seeds = seeds();
    let (of_one, of_two) = seeds.split_at(seeds.len() / 2);
    let mut one = Machine::new(folder.path().join("one"), 0, of_one);
    let mut two = Machine::new(folder.path().join("two"), 1, of_two);
    let (of_one, of_two) = (inputs(&one.folder.join("seeds")), inputs(&two.folder.join("seeds")));
    one.start(None);
    two.start(Some(one.port));

    // Neither could have made the other's seeds.
    two.wait_for("two keeps a seed of one", || meets(&two.corpus(), &of_one));
    one.wait_for("one keeps a seed of two", || meets(&one.corpus(), &of_two));
    let found = || Some(since(&of_one, one.corpus())).filter(|found| !found.is_empty());
    let found = since(&of_two, one.wait_for("one finds inputs", found));
    two.wait_for("two keeps what one has found", || meets(&two.corpus(), &found));

    // The one that the other has joined goes; the other stays alone and finds more.
    let kept = one.corpus();
    one.kill();
    let before = two.corpus();
    let news = || Some(since(&before, two.corpus())).filter(|news| !news.is_empty());
    let missed = since(&kept, two.wait_for("two goes on alone", news));
    assert!(!missed.is_empty(), "two finds what one does not have");

    // It comes back by joining the one that is left.
    one.start(Some(two.port));
    one.wait_for("one keeps what it has missed", || meets(&one.corpus(), &missed));
    let corpus = one.corpus();
    assert!(kept.values().all(|input| has(&corpus, input)), "nothing that one had is lost");
    assert!(before.values().all(|input| has(&two.corpus(), input)), "nor what two had");
    let fresh = || Some(since(&corpus, one.corpus())).filter(|fresh| !fresh.is_empty());
    let fresh = one.wait_for("one finds more", fresh);
    two.wait_for("two keeps that too", || meets(&two.corpus(), &fresh));
}
