//! Both engines, and their comparison.

use std::sync::{Mutex, PoisonError};

use tregion::case::{Case, Outcome, Stop};
use tregion::engine::Engine;
use tregion::engine::jit::Jit;
use tregion::engine::silicon::Silicon;
use tregion::oracle::compare::compare;

pub(crate) struct Pair {
    silicon: Silicon,
    jit: Jit,
    cases: usize,
    wrong: Vec<String>,
}

/// Runs `body` with engines; one test at a time, since there is room for one big window. Says all that
/// differed.
pub(crate) fn with_engines(body: impl FnOnce(&mut Pair)) {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (silicon, jit) = (Silicon::new().unwrap(), Jit::new().unwrap());
    let mut pair = Pair { silicon, jit, cases: 0, wrong: Vec::new() };
    body(&mut pair);
    println!("{} cases", pair.cases);
    assert!(pair.wrong.is_empty(), "\n{}", pair.wrong.join("\n"));
}

impl Pair {
    /// Runs a case on both; gives silicon's outcome.
    pub(crate) fn agree(&mut self, what: &str, case: &Case) -> Outcome {
        self.agree_but(what, case, &[])
    }

    /// The same, where general-purpose registers of these numbers may differ.
    pub(crate) fn agree_but(&mut self, what: &str, case: &Case, but: &[usize]) -> Outcome {
        self.cases += 1;
        let right = self.silicon.run(case).unwrap();
        let other = self.jit.run(case);
        let mut other = match other {
            Ok(other) => other,
            Err(error) => {
                self.wrong.push(format!("{what}: refused, {error}"));
                return right;
            }
        };
        assert!(!matches!(right.stop, Stop::TimeLimit | Stop::Lost(_)), "{what}: {:?}", right.stop);
        for &number in but {
            other.state.gpr[number] = right.state.gpr[number];
        }
        let visible = self.silicon.capabilities().visible.common(self.jit.capabilities().visible);
        for difference in compare(case, &right, &other, visible) {
            self.wrong.push(format!("{what}: {difference:?}"));
        }
        right
    }
}
