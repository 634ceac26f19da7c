//! A campaign's folder is true at any moment: kills, full disks and other campaigns lose and spoil nothing.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, reason = "a test fails where its helper does")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use iced_x86::Mnemonic;
use tregion::campaign::merge::{MergeError, merge};
use tregion::campaign::{self, Campaign, CampaignError, Plan, Progress, Samples, Summary};
use tregion::case::text;
use tregion::engine::Engine;
use tregion::engine::sabotaged::{Component, Sabotage, Sabotaged, When};
use tregion::engine::silicon::Silicon;
use tregion::guest::Flag;
use tregion::oracle::Judge;

/// Cases of the campaign that is killed again and again.
const CASES: u64 = 12_000;
/// Processor time that a leg may take; no generated program needs any of it.
const PATIENCE: Duration = Duration::from_secs(10);
/// Names the folder to the process that is killed.
const FOLDER: &str = "TREGION_TEST_CAMPAIGN_FOLDER";

fn plan(folder: Option<&Path>, cases: u64) -> Plan {
    Plan {
        engines: vec!["sabotaged".to_owned()],
        seed: 3,
        shard: (1, 1),
        time: None,
        cases: Some(cases),
        workers: 2,
        out: folder.map(Path::to_owned),
        save_every: Duration::from_millis(40),
        stop_at_first: false,
    }
}

/// Silicon, and silicon with a wrong carry in programs with a `bswap`.
fn judge() -> std::io::Result<Judge> {
    let sabotage =
        Sabotage { when: When::Contains(Mnemonic::Bswap), component: Component::Flag(Flag::CF) };
    let mut judge = Silicon::new()?;
    let mut engine = Sabotaged::new(Silicon::named("sabotaged")?, sabotage);
    // On a busy host a guest may seem to run on for ever, and the same case would not end the same way.
    judge.set_time_limit(PATIENCE);
    engine.set_time_limit(PATIENCE);
    Ok(Judge::new(judge, vec![Box::new(engine)]))
}

fn run(plan: &Plan) -> Summary {
    campaign::run(plan, &judge, &Progress::default()).unwrap()
}

/// Tells which figures of two campaigns of the same cases differ.
fn assert_same(left: Summary, right: Summary) {
    let figures = |summary| match serde_json::to_value(counts(summary)) {
        Ok(serde_json::Value::Object(figures)) => figures,
        other => panic!("{other:?}"),
    };
    let (left, right) = (figures(left), figures(right));
    for (name, figure) in &left {
        assert_eq!(Some(figure), right.get(name), "{name}");
    }
    assert_eq!(left.len(), right.len());
}

/// A summary without what differs from run to run of the same cases.
fn counts(mut summary: Summary) -> Summary {
    summary.seconds = 0.0;
    summary.runs = BTreeMap::new();
    summary.work = BTreeMap::new();
    summary.cases_per_second_per_core = BTreeMap::new();
    summary.samples = Samples::default();
    for cluster in &mut summary.clusters {
        // Which worker met it first is chance.
        cluster.case = None;
        cluster.instructions = 0;
        cluster.first_seconds = 0.0;
    }
    summary
}

/// What `a_killed_campaign_goes_on` starts and kills.
#[test]
#[ignore = "is a part of another test"]
fn campaign_to_be_killed() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    run(&plan(Some(Path::new(&folder)), CASES));
}

fn start_to_be_killed(folder: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "campaign_to_be_killed", "--ignored"])
        .env(FOLDER, folder)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn a_killed_campaign_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut seen = Vec::new();
    for number in 0..12 {
        let mut child = start_to_be_killed(folder.path());
        std::thread::sleep(Duration::from_millis(150 + number * 67 % 250));
        child.kill().unwrap();
        child.wait().unwrap();
        // What is there is a whole campaign of its own at any time.
        match Summary::read(folder.path()) {
            Ok(summary) => seen.push(summary.cases),
            Err(error) => assert_eq!(error.error.kind(), std::io::ErrorKind::NotFound),
        }
    }
    assert!(seen.is_sorted(), "{seen:?}");
    let begun = seen.iter().filter(|cases| (1..CASES).contains(cases)).count();
    assert!(begun >= 3, "it is killed too soon or too late to see anything: {seen:?}");
    assert!(start_to_be_killed(folder.path()).wait().unwrap().success());
    let summary = Summary::read(folder.path()).unwrap();
    assert!(summary.unexplained > 0);
    for cluster in &summary.clusters {
        let hash = cluster.case.as_ref().expect("each cluster has a case in the end");
        let file = fs::read_to_string(folder.path().join(format!("{hash}.case"))).unwrap();
        text::parse(&file).unwrap();
    }
    assert_same(summary, run(&plan(None, CASES)));
}

#[test]
fn a_campaign_that_is_interrupted_anywhere_counts_the_same() {
    let folder = tempfile::tempdir().unwrap();
    for cases in [1, 63, 64, 700, 700] {
        let summary = run(&plan(Some(folder.path()), cases));
        assert_eq!(summary.cases, cases);
    }
    // Somebody tidies up; what is met again is written again.
    for file in fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()) {
        if file.extension().is_some_and(|extension| extension == "case") {
            fs::remove_file(file).unwrap();
        }
    }
    // Time ends workers in the middle of what they have taken.
    for milliseconds in [300, 170, 230, 410] {
        let time = Some(Duration::from_millis(milliseconds));
        run(&Plan { time, cases: None, ..plan(Some(folder.path()), 0) });
    }
    let done = Summary::read(folder.path()).unwrap().cases;
    assert!(done > 700);
    let cases = done + 300;
    let last = run(&plan(Some(folder.path()), cases));
    assert_eq!(last.cases, cases);
    let files = last.clusters.iter().filter_map(|cluster| cluster.case.as_ref());
    let files: Vec<_> = files.map(|hash| folder.path().join(format!("{hash}.case"))).collect();
    assert!(!files.is_empty() && files.iter().all(|file| file.exists()), "{files:?}");
    // Fewer than there are: there is nothing to do, and nothing is lost.
    let again = run(&plan(Some(folder.path()), 100));
    assert_same(again, last.clone());
    // The clusters are the same too, but which of them have a case.
    assert_same(last, run(&plan(None, cases)));
}

/// Every file of a folder, by name.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

fn fuzz(folder: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tregion"));
    command.args(["fuzz", "--engines", "silicon,isolated:silicon", "--workers", "1", "--out"]);
    command.arg(folder).args(more).output().unwrap()
}

/// That a command says in one sentence why it could not do it.
fn assert_refused(output: &Output, why: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    for part in why {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn the_command_goes_on_with_the_same_plan_only() {
    let folder = tempfile::tempdir().unwrap();
    let first = fuzz(folder.path(), &["--cases", "200"]);
    assert_eq!(first.status.code(), Some(0));
    assert!(!String::from_utf8_lossy(&first.stderr).contains("going on"));
    let before = contents(folder.path());
    let refused = |more: &[&str], why| {
        assert_refused(&fuzz(folder.path(), more), &[&*folder.path().to_string_lossy(), why]);
        assert_eq!(contents(folder.path()), before, "{more:?}");
    };
    refused(&["--cases", "300", "--seed", "2"], "of seed 1, not 2");
    refused(&["--cases", "300", "--shard", "1/2"], "of shard 1/1, not 1/2");
    refused(&["--cases", "300", "--engines", "silicon,isolated:jit"], "engines silicon,isolated:");
    let second = fuzz(folder.path(), &["--cases", "300"]);
    assert_eq!(second.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&second.stderr).contains("going on behind 200 cases"));
    assert_eq!(Summary::read(folder.path()).unwrap().cases, 300);
}

#[test]
fn what_cannot_be_written_is_told_and_nothing_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    fuzz(folder.path(), &["--cases", "200"]);
    let before = fs::read(folder.path().join("summary.json")).unwrap();
    // Whoever writes the figures anew meets a full disk.
    let partial = folder.path().join("summary.json.partial");
    symlink("/dev/full", &partial).unwrap();
    let full = fuzz(folder.path(), &["--cases", "300"]);
    let told = String::from_utf8_lossy(&full.stderr).lines().last().unwrap().to_owned();
    assert_eq!(full.status.code(), Some(2), "{told}");
    assert!(told.contains("summary.json") && told.contains("No space left"), "{told}");
    assert_eq!(fs::read(folder.path().join("summary.json")).unwrap(), before);
    // When there is room again, it goes on.
    assert_eq!(fuzz(folder.path(), &["--cases", "300"]).status.code(), Some(0));

    let damaged = &before[..before.len() / 2];
    fs::write(folder.path().join("summary.json"), damaged).unwrap();
    assert_refused(&fuzz(folder.path(), &["--cases", "400"]), &["summary.json", "EOF"]);
    assert_eq!(fs::read(folder.path().join("summary.json")).unwrap(), damaged);
    assert_refused(&fuzz(Path::new("/dev/null/folder"), &[]), &["/dev/null/folder: Not a dir"]);

    // A campaign that cannot begin is no campaign that something else could not go on with.
    let empty = tempfile::tempdir().unwrap();
    let unknown = fuzz(empty.path(), &["--engines", "silicon,unknown", "--cases", "9"]);
    assert_refused(&unknown, &["unknown engine"]);
    assert_eq!(fuzz(empty.path(), &["--cases", "9"]).status.code(), Some(0));
}

#[test]
fn figures_that_contradict_each_other_are_not_gone_on_with() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan(Some(folder.path()), 300);
    run(&plan);
    let file = folder.path().join("summary.json");
    let text = fs::read_to_string(&file).unwrap();
    let mut other: Summary = serde_json::from_str(&text).unwrap();
    other.cases += 1;
    fs::write(&file, serde_json::to_string(&other).unwrap()).unwrap();
    let error = Campaign::open(&plan).unwrap_err();
    assert!(matches!(error, CampaignError::File(_)), "{error}");
    other.cases -= 1;
    other.generator = "another".to_owned();
    fs::write(&file, serde_json::to_string(&other).unwrap()).unwrap();
    let error = Campaign::open(&plan).unwrap_err();
    assert!(error.to_string().contains("makes otherwise"), "{error}");
}

#[test]
fn two_processes_are_not_at_one_campaign() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan(Some(folder.path()), 300);
    let _mine = Campaign::open(&plan).unwrap();
    assert_refused(&fuzz(folder.path(), &["--cases", "300"]), &["another campaign is at work"]);
}

#[test]
fn parts_that_are_merged_are_the_whole() {
    let folder = tempfile::tempdir().unwrap();
    let part = |number| {
        let out = folder.path().join(format!("part{number}"));
        Plan { shard: (number, 2), ..plan(Some(&out), 400) }
    };
    run(&part(1));
    // The second has come to half its way, or has been killed there.
    run(&Plan { cases: Some(200), ..part(2) });
    let folders = [1, 2].map(|number| part(number).out.unwrap());
    let half = merge(&folders, &folder.path().join("half")).unwrap();
    assert_eq!(half.cases, 600);
    run(&part(2));
    let out = folder.path().join("whole");
    let merged = merge(&folders, &out).unwrap();
    assert_same(Summary::read(&out).unwrap(), merged.clone());
    for cluster in &merged.clusters {
        let hash = cluster.case.as_ref().unwrap();
        assert!(out.join(format!("{hash}.case")).exists());
    }
    let whole = run(&plan(None, 800));
    assert_same(Summary { shards: merged.shards.clone(), ledger: None, ..whole }, merged);

    // A whole cannot go on, nor be put where a campaign is, nor be merged with a part of it again.
    let into_campaign = merge(&folders, &folders[0]).unwrap_err();
    assert!(matches!(into_campaign, MergeError::IsCampaign(_)), "{into_campaign}");
    let on = Plan { out: Some(out.clone()), ..plan(None, 900) };
    let refused = Campaign::open(&on).unwrap_err();
    assert!(matches!(refused, CampaignError::Other { .. }), "{refused}");
    let twice = merge(&[out, folders[0].clone()], &folder.path().join("twice")).unwrap_err();
    assert!(matches!(twice, MergeError::Twice { .. }), "{twice}");
    assert!(!folder.path().join("twice").exists(), "nothing is made of what cannot be merged");
}

#[test]
fn the_summary_fits_a_screen_and_says_first_what_was_found() {
    let mut summary = run(&plan(None, 1500));
    assert!(summary.text().starts_with(&format!("{} UNEXPLAINED", summary.unexplained)));
    summary.clusters = summary.clusters.iter().cycle().take(500).cloned().collect();
    summary.refused = (0..100).map(|number| (format!("{number}{:80}", ""), 1)).collect();
    assert!(summary.text().lines().count() < 40, "{}", summary.text());
    summary.differences = 0;
    assert!(summary.text().starts_with("NO DIFFERENCE FOUND\n"));
}
