//! Cases of `corpora/regressions`, each of which once showed an error of the translating engine, whose
//! first line says what it was: it agrees with silicon now. So do random programs where everything is
//! hooked by hooks that do nothing, which takes every access and instruction another way.
#![allow(clippy::unwrap_used, reason = "a test fails where its helper does")]

use std::fs;
use std::path::Path;

use tregion::case::{Case, text};
use tregion::engine::Engine;
use tregion::engine::jit::{Hooked, Jit};
use tregion::engine::silicon::Silicon;
use tregion::generate::choices;
use tregion::oracle::compare::compare;
use tregion::properties::Target;

const ALL: [Hooked; 6] = [
    Hooked::Nothing,
    Hooked::Memory,
    Hooked::Code,
    Hooked::Blocks,
    Hooked::Turns,
    Hooked::Restless,
];
/// Random programs of each kind for each of them.
const PROGRAMS: u64 = 300;

/// Runs a case on both engines; whether silicon can.
fn agrees(silicon: &mut Silicon, jit: &mut Jit, case: &Case, name: &str) -> bool {
    let visible = silicon.capabilities().visible.common(jit.capabilities().visible);
    let Ok(right) = silicon.run(case) else { return false };
    let Ok(other) = jit.run_beside(case, right.stop) else { return false };
    let differences = compare(case, &right, &other, visible);
    assert!(differences.is_empty(), "{name}: {:?}\n{}", differences[0], text::print(case));
    true
}

#[test]
fn old_errors_do_not_come_back() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpora/regressions");
    let mut silicon = Silicon::new().unwrap();
    let mut cases = 0;
    for hooked in ALL {
        let mut jit = Jit::hooked("jit", hooked).unwrap();
        for file in fs::read_dir(&folder).unwrap() {
            let path = file.unwrap().path();
            let case = text::parse(&fs::read_to_string(&path).unwrap()).unwrap();
            let name = format!("{hooked:?} {}", path.display());
            assert!(agrees(&mut silicon, &mut jit, &case, &name), "{name}");
            cases += 1;
        }
    }
    assert!(cases > 0);
}

#[test]
fn hooks_that_do_nothing_change_nothing() {
    let mut silicon = Silicon::new().unwrap();
    let mut bytes = Vec::new();
    for hooked in ALL {
        let mut jit = Jit::hooked("jit", hooked).unwrap();
        let mut done = 0;
        for number in 0..PROGRAMS {
            choices(0x0b5e, number, &mut bytes);
            for target in [Target::Differential, Target::SmcRemap] {
                let case = target.case_of(&bytes).unwrap();
                let name = format!("{hooked:?} {} {number}", target.name());
                done += u64::from(agrees(&mut silicon, &mut jit, &case, &name));
            }
        }
        assert!(done > PROGRAMS, "{done} of {} are cases that both can run", 2 * PROGRAMS);
    }
}
