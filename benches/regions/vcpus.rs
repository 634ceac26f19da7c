//! What one invalidation costs while vCPUs spin elsewhere in the machine.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tregion::exec::{Exit, Kick, Machine, Vcpu};
use tregion::guest::GuestAddress;

use crate::Failure;
use crate::cost::{How, Ours, sample};
use crate::guests::SPIN;
use crate::record::{Samples, show};

const RUNNING: [usize; 5] = [0, 1, 2, 4, 8];
const JUMPS: u64 = 100;
const ROUNDS: usize = 8;
const BATCH: usize = 10;

struct Series {
    how: How,
    running: usize,
    victim: Ours,
    samples: Samples,
}

pub(crate) fn invalidation() -> Result<Value, Failure> {
    let mut all = Vec::new();
    for running in RUNNING {
        for how in How::ALL {
            let victim = Ours::new(how, JUMPS)?;
            all.push(Series { how, running, victim, samples: Samples::default() });
        }
    }
    for _ in 0..ROUNDS {
        for series in &mut all {
            series.round()?;
        }
    }
    Ok(all.into_iter().map(Series::done).collect())
}

impl Series {
    fn round(&mut self) -> Result<(), Failure> {
        let machine = self.victim.machine().clone();
        let mut vcpus = spinners(&machine, self.running)?;
        let kicks: Vec<Kick> = vcpus.iter().map(Vcpu::kick).collect();
        let (over, begun) = (AtomicBool::new(false), Barrier::new(self.running + 1));
        std::thread::scope(|scope| {
            for vcpu in &mut vcpus {
                scope.spawn(|| {
                    begun.wait();
                    while !over.load(Ordering::SeqCst) {
                        assert_eq!(vcpu.run(None), Exit::Requested, "nothing else ends the run");
                    }
                });
            }
            begun.wait();
            std::thread::sleep(Duration::from_millis(5));
            let result = (0..BATCH).try_for_each(|_| sample(&mut self.victim, &mut self.samples));
            over.store(true, Ordering::SeqCst);
            kicks.iter().for_each(Kick::ask);
            result
        })
    }

    fn done(self) -> Value {
        let times = self.samples.summary();
        let name = format!("{}, {JUMPS} jumps, {} vCPUs run", self.how.name(), self.running);
        show(&name, &times);
        json!({
            "how": self.how.name(), "jumps": JUMPS, "running": self.running, "nanoseconds": times,
        })
    }
}

fn spinners(machine: &Machine, count: usize) -> Result<Vec<Vcpu>, Failure> {
    let mut vcpus = Vec::new();
    for _ in 0..count {
        let mut vcpu = machine.vcpu()?;
        vcpu.set_rip(GuestAddress(SPIN));
        vcpus.push(vcpu);
    }
    Ok(vcpus)
}
