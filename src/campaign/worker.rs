//! One thread of a campaign.

use std::io;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use arbitrary::Unstructured;

use super::{MakeJudge, Shared, Tally};
use crate::engine::Engine;
use crate::generate::{Program, ProgramKind, choices};
use crate::oracle::judge::{EngineVerdict, Judge, Verdict};
use crate::os::pin_to_nth_cpu;

/// One case in this many is made of raw bytes.
const RAW_ONE_IN: u64 = 8;
/// Of the cases whose code may change, one in this many is traced to see whether it did.
/// Stepping through a case takes fifty times as long as running it.
const TRACE_ONE_IN: u64 = 64;
/// Instructions traced at most.
const TRACE_STEPS: u64 = 1024;
/// Cases after which a worker's counts are shown.
const REPORT_EVERY: u64 = 256;

pub(super) struct Worker<'a> {
    shared: &'a Shared<'a>,
    judge: Judge,
    tally: Tally,
    buffer: Vec<u8>,
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
        Ok(Self { shared, judge: make_judge()?, tally: Tally::default(), buffer: Vec::new() })
    }

    pub(super) fn work(mut self) -> io::Result<()> {
        while let Some(number) = self.shared.next() {
            let program = self.generate(number);
            self.tally.program(&program);
            self.judge_program(number, &program)?;
            if self.tally.cases.is_multiple_of(REPORT_EVERY) {
                self.report();
            }
        }
        self.tally.costs = self.judge.costs.clone();
        self.report();
        Ok(())
    }

    fn generate(&mut self, number: u64) -> Program {
        choices(self.shared.plan.seed, number, &mut self.buffer);
        let mut unstructured = Unstructured::new(&self.buffer);
        if number % RAW_ONE_IN == RAW_ONE_IN - 1 {
            self.shared.generator.raw(&mut unstructured)
        } else {
            self.shared.generator.program(&mut unstructured)
        }
    }

    fn judge_program(&mut self, number: u64, program: &Program) -> io::Result<()> {
        match self.judge.judge_quickly(&program.case) {
            Verdict::Unjudged(unsupported) => {
                let name = self.judge.silicon.name();
                self.tally.refuse(&format!("{name}: {}", unsupported.what));
            }
            Verdict::Judged { silicon, engines } => {
                self.tally.outcome(program, silicon.stop, silicon.events_applied);
                for (index, verdict) in engines.into_iter().enumerate() {
                    self.note(number, index, verdict)?;
                }
                self.look_for_changed_code(number, program);
            }
        }
        Ok(())
    }

    fn note(&mut self, number: u64, index: usize, verdict: EngineVerdict) -> io::Result<()> {
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
                    if self.shared.plan.stop_at_first && finding.accepted.is_none() {
                        self.shared.progress.stop.store(true, Ordering::Relaxed);
                    }
                    let engine = self.judge.engines[index].as_mut();
                    self.shared.findings.note(
                        number,
                        finding,
                        (&mut self.judge.silicon, engine),
                        self.shared.plan,
                    )?;
                }
            }
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

    /// Adds this worker's counts to those of all.
    fn report(&mut self) {
        let tally = std::mem::take(&mut self.tally);
        let progress = self.shared.progress;
        progress.cases.fetch_add(tally.cases, Ordering::Relaxed);
        let mut all = self.shared.tally.lock().unwrap_or_else(PoisonError::into_inner);
        all.add(tally);
        progress.forms.store(all.forms.iter().count() as u64, Ordering::Relaxed);
        let (differences, unexplained) = self.shared.findings.counts();
        progress.differences.store(differences, Ordering::Relaxed);
        progress.unexplained.store(unexplained, Ordering::Relaxed);
    }
}
