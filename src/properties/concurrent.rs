//! Two vCPUs in one memory: what comes out is in the set of all that may ([`crate::concurrent`]).

use std::sync::{Mutex, PoisonError};

use crate::concurrent::{Scene, Watcher, print};

/// How often each pair of programs is run, in batches.
const BATCHES: u64 = 2;

/// Any bytes as two programs: what comes out when they run at the same time may come out.
pub fn concurrent(bytes: &[u8]) {
    static WATCHER: Mutex<Option<Watcher>> = Mutex::new(None);
    let scene = Scene::from_records(bytes);
    // A property that did not hold leaves a watcher that is fit for use.
    let mut watcher = WATCHER.lock().unwrap_or_else(PoisonError::into_inner);
    let watcher =
        watcher.get_or_insert_with(|| Watcher::new(0).expect("the JIT works on this host"));
    let found = watcher.check(&scene, BATCHES).expect("the JIT works on this host");
    if let Some(difference) = found {
        panic!("{}\n{}", print(&scene), difference.lines().join("\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::concurrent::RECORD_BYTES;
    use crate::generate::choices;

    #[test]
    fn seeded_pairs_of_programs() {
        let mut bytes = Vec::new();
        for number in 0..20 {
            choices(0xc0c0, number, &mut bytes);
            concurrent(&bytes[..RECORD_BYTES * (6 + number as usize % 7)]);
        }
    }
}
