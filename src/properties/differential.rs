//! Properties of cases: engines do what silicon does.

use std::cell::RefCell;

use super::pairs::Pairs;
use super::target::Target;
use crate::case::{Case, text};
use crate::engine::Engine;
use crate::engine::jit::Jit;
use crate::engine::silicon::Silicon;
use crate::oracle::judge::{EngineVerdict, Finding, Judge, Verdict, judge_one};

/// Any bytes as the choices of a program: every engine agrees with silicon on it, but for differences
/// that the table accepts.
///
/// An engine that runs on silicon has no excuse. What is found in any other, such as Unicorn, is its own
/// affair and only told, so that a new bug of theirs does not end a run of ours; with
/// `TREGION_FUZZ_STRICT` in the environment it does.
pub fn differential(bytes: &[u8]) {
    thread_local! {
        static JUDGE: RefCell<Option<Judge>> = const { RefCell::new(None) };
    }
    let Ok(case) = Target::Differential.case_of(bytes) else { return };
    JUDGE.with_borrow_mut(|judge| {
        let strict = std::env::var_os("TREGION_FUZZ_STRICT").is_some();
        for (finding, on_silicon) in unexplained(judge.get_or_insert_with(all_engines), &case) {
            let case = text::print(&finding.divergence.case);
            assert!(!strict && !on_silicon, "{} is not explained:\n{case}", finding.key);
            tracing::warn!("{} is not explained:\n{case}", finding.key);
        }
    });
}

/// Any bytes as scenes in which code changes ([`crate::generate::Generator::changing`]): the JIT agrees with silicon.
/// Gives what its run has met.
pub fn smc_remap(bytes: &[u8]) -> Pairs {
    jit_agrees(Target::SmcRemap, bytes)
}

/// Any bytes as a program: the JIT agrees with silicon. Gives what its run has met.
pub fn raw_bytes(bytes: &[u8]) -> Pairs {
    jit_agrees(Target::RawBytes, bytes)
}

fn jit_agrees(target: Target, bytes: &[u8]) -> Pairs {
    thread_local! {
        static ENGINES: RefCell<Option<(Silicon, Jit)>> = const { RefCell::new(None) };
    }
    let Ok(case) = target.case_of(bytes) else { return Pairs::default() };
    ENGINES.with_borrow_mut(|engines| {
        let (silicon, jit) = engines.get_or_insert_with(|| {
            let mut jit = Jit::new().expect("the JIT works on this host");
            jit.note_progress(true);
            (Silicon::new().expect("the silicon engine works on this host"), jit)
        });
        let verdict = judge_one(silicon, jit, &case);
        let pairs = Pairs::of(&case, jit.progress());
        let Ok(EngineVerdict::Differs { findings, .. }) = verdict else { return pairs };
        let news = findings.iter().find(|finding| finding.accepted.is_none());
        if let Some(Finding { key, divergence, .. }) = news {
            panic!("{key} is not explained:\n{}", text::print(&divergence.case));
        }
        pairs
    })
}

/// The findings on `case` that the table does not explain, each with whether its engine runs on
/// silicon.
fn unexplained(judge: &mut Judge, case: &Case) -> Vec<(Finding, bool)> {
    let Verdict::Judged { engines, .. } = judge.judge_quickly(case) else { return Vec::new() };
    let verdicts = judge.engines.iter().zip(engines);
    let findings = verdicts.flat_map(|(engine, verdict)| {
        let on_silicon = engine.capabilities().runs_on_silicon;
        let findings = match verdict {
            EngineVerdict::Differs { findings, .. } => findings,
            _ => Vec::new(),
        };
        findings.into_iter().map(move |finding| (finding, on_silicon))
    });
    findings.filter(|(finding, _)| finding.accepted.is_none()).collect()
}

/// A judge with every engine of this build.
///
/// Panics if an engine cannot be had on this host.
fn all_engines() -> Judge {
    let silicon = Silicon::new().expect("the silicon engine works on this host");
    let second = Silicon::named("silicon#2").expect("the silicon engine works on this host");
    let engines: Vec<Box<dyn Engine>> = vec![
        Box::new(second),
        Box::new(Jit::new().expect("the JIT works on this host")),
        #[cfg(feature = "unicorn")]
        Box::new(crate::engine::unicorn::Unicorn::new().expect("Unicorn works on this host")),
    ];
    Judge::new(silicon, engines)
}

#[cfg(test)]
mod tests {
    use super::super::target::generator;
    use super::*;
    use crate::generate::{PIECE_BYTES, choices};

    /// An input of `smc_remap` with one to twelve scenes.
    fn input(number: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        choices(0x5e1f, number, &mut bytes);
        bytes.truncate(PIECE_BYTES * (2 + number as usize % 12));
        bytes
    }

    #[test]
    fn most_smc_cases_change_code_that_ran_and_run_it_again() {
        let mut silicon = Silicon::new().unwrap();
        let changed = (0..500).filter(|&number| {
            let case = generator().changing(&input(number)).case;
            assert_eq!(case.validate(), Ok(()), "case {number}");
            silicon.reruns_changed_code(&case, 4096).unwrap_or(false)
        });
        let share = changed.count() * 100 / 500;
        println!("{share} of 100 cases change code that ran and run it again");
        assert!(share >= 60, "{share} of 100");
    }

    #[test]
    fn seeded_scenes() {
        let mut all = Pairs::default();
        (0..1000).for_each(|number| all.add(&smc_remap(&input(number))));
        let count = all.iter().count();
        println!("{count} of {} pairs", Pairs::COUNT);
        assert!(count > 200, "{all:?}");
    }

    #[test]
    fn seeded_bytes() {
        let mut bytes = Vec::new();
        for number in 0..500 {
            choices(0xb17e, number, &mut bytes);
            raw_bytes(&bytes[..number as usize % 200]);
        }
    }
}
