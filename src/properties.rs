//! What must hold for any input, as plain functions: the fuzz targets, the seeded tests and the tests
//! over `corpora/` call the same ones. Each panics, with all there is to know, if its property does
//! not hold.

use std::cell::RefCell;

use arbitrary::Unstructured;

use crate::case::{Case, text};
use crate::engine::Engine;
use crate::engine::jit::Jit;
use crate::engine::silicon::Silicon;
use crate::generate::{Generator, HostFeatures};
use crate::oracle::judge::{EngineVerdict, Finding, Judge, Verdict};

/// Any bytes as the text of a case: they parse to a valid case whose own text parses to the same case,
/// or they fail with a place inside the text.
pub fn case_text(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match text::parse(text) {
        Ok(case) => {
            assert_eq!(case.validate(), Ok(()), "a case that was parsed is valid");
            let printed = text::print(&case);
            let again = text::parse(&printed).expect("what was printed can be parsed");
            assert_eq!(again, case, "a case survives its text form");
            assert_eq!(text::print(&again), printed, "printing is stable");
        }
        Err(error) => {
            let lines = text.lines().count().max(1);
            assert!(
                1 <= error.line && error.line <= lines + 1 && error.column >= 1,
                "{error}: the place is inside a text of {lines} lines"
            );
        }
    }
}

/// Any bytes as the choices of a program: every engine agrees with silicon on it, but for differences
/// that the table accepts.
///
/// An engine that runs on silicon has no excuse. What is found in any other, such as Unicorn, is its own
/// affair and only told, so that a new bug of theirs does not end a run of ours; with
/// `TREGION_FUZZ_STRICT` in the environment it does.
pub fn differential(bytes: &[u8]) {
    thread_local! {
        static BENCH: RefCell<Option<(Generator, Judge)>> = const { RefCell::new(None) };
    }
    BENCH.with_borrow_mut(|bench| {
        let (generator, judge) =
            bench.get_or_insert_with(|| (Generator::new(&HostFeatures::detect()), all_engines()));
        let program = generator.program(&mut Unstructured::new(bytes));
        assert_eq!(program.case.validate(), Ok(()), "generated cases are valid");
        let strict = std::env::var_os("TREGION_FUZZ_STRICT").is_some();
        for (finding, on_silicon) in unexplained(judge, &program.case) {
            let case = text::print(&finding.divergence.case);
            assert!(!strict && !on_silicon, "{} is not explained:\n{case}", finding.key);
            tracing::warn!("{} is not explained:\n{case}", finding.key);
        }
    });
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
