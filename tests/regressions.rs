//! Cases of `corpora/regressions`, each of which once showed an error of the translating engine, whose
//! first line says what it was: it agrees with silicon now.
#![allow(clippy::unwrap_used, reason = "a test fails where its helper does")]

use std::fs;
use std::path::Path;

use tregion::case::text;
use tregion::engine::Engine;
use tregion::engine::jit::Jit;
use tregion::engine::silicon::Silicon;
use tregion::oracle::compare::compare;

#[test]
fn old_errors_do_not_come_back() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpora/regressions");
    let (mut silicon, mut jit) = (Silicon::new().unwrap(), Jit::new().unwrap());
    let visible = silicon.capabilities().visible.common(jit.capabilities().visible);
    let mut cases = 0;
    for file in fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let case = text::parse(&fs::read_to_string(&path).unwrap()).unwrap();
        let (right, other) = (silicon.run(&case).unwrap(), jit.run(&case).unwrap());
        let differences = compare(&case, &right, &other, visible);
        assert!(differences.is_empty(), "{}: {:?}", path.display(), differences[0]);
        cases += 1;
    }
    assert!(cases > 0);
}
