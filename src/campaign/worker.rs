//! One thread of a campaign.

use std::io;
use std::mem::take;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use arbitrary::Unstructured;

use super::findings::{FindingKey, Seen};
use super::folder::FileError;
use super::pairs::{MnemonicPairs, Pair};
use super::two_vcpus::{SceneFinding, TwoVcpus};
use super::{MakeJudge, Shared, Tally};
use crate::engine::Engine;
use crate::generate::{Generator, Program, ProgramKind, choices};
use crate::oracle::judge::{Cost, EngineVerdict, Finding, Judge, Verdict};
use crate::os::pin_to_nth_cpu;

/// One case in this many is made of raw bytes.
const RAW_ONE_IN: u64 = 8;
/// Of the cases whose code may change, one in this many is traced to see whether it did.
/// Stepping through a case takes fifty times as long as running it.
const TRACE_ONE_IN: u64 = 64;
/// Instructions traced at most.
const TRACE_STEPS: u64 = 1024;
/// A lease of slow cases is reported in parts.
const REPORT_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Worker<'a> {
    shared: &'a Shared<'a>,
    index: usize,
    judge: Judge,
    /// What was counted since the last report, …
    tally: Tally,
    /// … and the pairs of mnemonics that were new, …
    new_pairs: Vec<Pair>,
    /// … to this worker.
    pairs: MnemonicPairs,
    buffer: Vec<u8>,
    two_vcpus: Option<TwoVcpus>,
}

/// Case `number` of a seed.
pub(super) fn generate(
    generator: &Generator,
    seed: u64,
    number: u64,
    buffer: &mut Vec<u8>,
) -> Program {
    choices(seed, number, buffer);
    let mut unstructured = Unstructured::new(buffer);
    if number % RAW_ONE_IN == RAW_ONE_IN - 1 {
        generator.raw(&mut unstructured)
    } else {
        generator.program(&mut unstructured)
    }
}

impl<'a> Worker<'a> {
    pub(super) fn start(
        shared: &'a Shared<'a>,
        index: usize,
        make_judge: MakeJudge<'_>,
    ) -> io::Result<Self> {
        // Engines hand over to children of theirs: on one CPU that is five times as fast.
        if let Err(error) = pin_to_nth_cpu(index) {
            tracing::warn!("a worker cannot be tied to one CPU: {error}");
        }
        let judge = make_judge()?;
        let two_vcpus = TwoVcpus::new(&shared.plan.engines, index)?;
        let (tally, pairs) = (Tally::default(), MnemonicPairs::default());
        let (new_pairs, buffer) = (Vec::new(), Vec::new());
        Ok(Self { shared, index, judge, tally, new_pairs, pairs, buffer, two_vcpus })
    }

    /// Judges cases until there are no more, or no time for them. If one fails, it and those since the
    /// last report count as not begun.
    pub(super) fn work(mut self) -> Result<(), FileError> {
        while let Some(lease) = self.shared.lease(self.index) {
            let mut reported = Instant::now();
            for position in lease.clone() {
                let now = Instant::now();
                let over = self.shared.is_over(now);
                if over || now - reported >= REPORT_EVERY {
                    self.report(position);
                    reported = now;
                }
                if over {
                    return Ok(());
                }
                self.judge_case(self.shared.plan.number(position))?;
            }
            self.report(lease.end);
        }
        Ok(())
    }

    fn judge_case(&mut self, number: u64) -> Result<(), FileError> {
        let shared = self.shared;
        let program = generate(&shared.generator, shared.plan.seed, number, &mut self.buffer);
        self.tally.program(&program);
        self.judge_program(number, &program)?;
        self.judge_two_vcpus(number)
    }

    fn judge_two_vcpus(&mut self, number: u64) -> Result<(), FileError> {
        let seed = self.shared.plan.seed;
        let Some(two_vcpus) = &mut self.two_vcpus else { return Ok(()) };
        let found = two_vcpus.check(seed, number, &mut self.buffer);
        self.tally.two_vcpus.add(&two_vcpus.take_counts());
        match found {
            Ok(None) => Ok(()),
            Ok(Some(finding)) => self.note_scene(number, finding),
            Err(why) => {
                self.tally.refuse(&format!("two vCPUs: {why}"));
                Ok(())
            }
        }
    }

    fn note_scene(&mut self, number: u64, finding: SceneFinding) -> Result<(), FileError> {
        let (shared, key) = (self.shared, (finding.key.clone(), false));
        self.see(number, key.clone(), None);
        let Some(two_vcpus) = &mut self.two_vcpus else { return Ok(()) };
        shared.findings.first_of(key, || two_vcpus.example(finding, shared.folder))?;
        Ok(())
    }

    /// Counts a distinct difference.
    fn see(&mut self, number: u64, key: FindingKey, accepted: Option<Vec<&'static str>>) {
        let shared = self.shared;
        if shared.plan.stop_at_first && accepted.is_none() {
            shared.progress.stop.store(true, Ordering::Relaxed);
        }
        let first_seconds = shared.seconds();
        let seen = Seen { count: 1, first_case: number, first_seconds, accepted };
        self.tally.see(key, seen);
    }

    fn judge_program(&mut self, number: u64, program: &Program) -> Result<(), FileError> {
        match self.judge.judge_quickly(&program.case) {
            Verdict::Unjudged(unsupported) => {
                let name = self.judge.silicon.name();
                self.tally.refuse(&format!("{name}: {}", unsupported.what));
            }
            Verdict::Judged { silicon, engines } => {
                if self.tally.outcome(program, silicon.stop, silicon.events_applied) {
                    self.pair_up(program);
                }
                for (index, verdict) in engines.into_iter().enumerate() {
                    self.note(number, index, verdict)?;
                }
                self.look_for_changed_code(number, program);
            }
        }
        Ok(())
    }

    /// Notes which mnemonics were executed one behind the other.
    fn pair_up(&mut self, program: &Program) {
        let forms = self.shared.generator.forms();
        let mnemonics =
            program.always_executed.iter().map(|form| forms[usize::from(form.0)].code.mnemonic());
        for (first, second) in mnemonics.clone().zip(mnemonics.skip(1)) {
            let pair = Pair::new(first, second);
            if self.pairs.add(pair) {
                self.new_pairs.push(pair);
            }
        }
    }

    fn note(&mut self, number: u64, index: usize, verdict: EngineVerdict) -> Result<(), FileError> {
        self.tally.compared += u64::from(!matches!(verdict, EngineVerdict::Unsupported(_)));
        match verdict {
            EngineVerdict::Agrees => {}
            EngineVerdict::Plausible { .. } => self.tally.plausible += 1,
            EngineVerdict::Unsupported(unsupported) => {
                let name = self.judge.engines[index].name();
                self.tally.refuse(&format!("{name}: {}", unsupported.what));
            }
            EngineVerdict::Differs { findings, .. } => {
                self.tally.only_undefined += u64::from(findings.is_empty());
                for finding in findings {
                    self.note_finding(number, index, &finding)?;
                }
            }
        }
        Ok(())
    }

    fn note_finding(
        &mut self,
        number: u64,
        index: usize,
        finding: &Finding,
    ) -> Result<(), FileError> {
        let shared = self.shared;
        let key = (finding.key.clone(), finding.accepted.is_some());
        self.see(number, key, finding.row_names());
        let engine = self.judge.engines[index].as_mut();
        let begun = Instant::now();
        let is_new =
            shared.findings.note(finding, (&mut self.judge.silicon, engine), shared.folder)?;
        if is_new {
            self.tally.minimising.add(Cost { cases: 1, time: begun.elapsed() });
        }
        Ok(())
    }

    fn look_for_changed_code(&mut self, number: u64, program: &Program) {
        let may_change = matches!(program.kind, ProgramKind::Eventful | ProgramKind::SelfModifying);
        if !may_change || !(number / RAW_ONE_IN).is_multiple_of(TRACE_ONE_IN) {
            return;
        }
        let changed = self.judge.silicon.reruns_changed_code(&program.case, TRACE_STEPS);
        let Ok(changed) = changed else { return };
        self.tally.traced += 1;
        self.tally.changed_and_rerun += u64::from(changed);
    }

    /// Adds this worker's counts to those of all: they are those of its cases before `position`.
    fn report(&mut self, position: u64) {
        self.tally.costs = self.judge.costs.iter_mut().map(take).collect();
        self.tally.searches = take(&mut self.judge.searches);
        let mut books = self.shared.books();
        books.leases.done(self.index, position);
        books.tally.take_from(&mut self.tally);
        for pair in self.new_pairs.drain(..) {
            books.pairs.add(pair);
        }
        let progress = self.shared.progress;
        progress.cases.store(books.cases_before + books.tally.cases, Ordering::Relaxed);
        let (differences, unexplained) = self.shared.findings.counts();
        progress.differences.store(differences, Ordering::Relaxed);
        progress.unexplained.store(unexplained, Ordering::Relaxed);
    }
}
