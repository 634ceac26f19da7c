//! What one invalidation costs, by region, by tag and in Unicorn, for more and more blocks and jumps.

use serde_json::{Value, json};
use tregion::exec::{Machine, Vcpu};
use tregion::guest::{GuestAddress, GuestRange};

use crate::Failure;
use crate::guests::{CODE, HALT, NEIGHBOUR, Program, add, chain, machine, range, run, star};
use crate::record::{Samples, show};

/// Jumps of a chain, or to one block.
const JUMPS: [u64; 4] = [1, 10, 100, 1000];
/// Blocks that are translated before a page is invalidated that has some of them.
const BLOCKS: u64 = 1000;
const ROUNDS: usize = 20;
/// Words of 32 MiB, more than this thread's share of any cache.
const OTHER: usize = 1 << 22;
/// Samples of one thing before it is another's turn.
const BATCH: usize = 10;

/// Something to be invalidated.
pub(crate) trait Victim {
    /// Has everything translated and chained.
    fn prepare(&mut self) -> Result<(), Failure>;
    /// What is timed, done to another page.
    fn warm_up(&mut self) -> Result<(), Failure>;
    /// What is timed.
    fn strike(&mut self) -> Result<(), Failure>;
}

/// Of a machine of this crate.
pub(crate) struct Ours {
    machine: Machine,
    vcpu: Vcpu,
    program: Program,
    page: GuestRange,
    /// Blocks in another region that are translated anew before each sample.
    neighbour: Option<GuestRange>,
    how: How,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum How {
    Region,
    RegionSoon,
    Block,
    BlockSoon,
}

impl How {
    pub(crate) const ALL: [Self; 4] =
        [Self::Region, Self::RegionSoon, Self::Block, Self::BlockSoon];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Region => "region, waits",
            Self::RegionSoon => "region",
            Self::Block => "tag, waits",
            Self::BlockSoon => "tag",
        }
    }
}

impl Ours {
    /// The region of a chain is invalidated, of a star the block that all jumps lead to.
    pub(crate) fn new(how: How, jumps: u64) -> Result<Self, Failure> {
        let program = match how {
            How::Region | How::RegionSoon => chain(jumps),
            How::Block | How::BlockSoon => star(jumps),
        };
        let machine = machine(&program)?;
        let mut vcpu = machine.vcpu()?;
        program.entries.iter().for_each(|entry| run(&mut vcpu, *entry));
        assert_eq!(machine.figures().chained, jumps, "every jump is chained");
        let page = range(CODE, 1)?;
        Ok(Self { machine, vcpu, program, page, neighbour: None, how })
    }

    /// The same with so many blocks in another region that each sample comes after the translation of
    /// [`BLOCKS`], however many of them it invalidates.
    fn among(how: How, jumps: u64) -> Result<Self, Failure> {
        let mut ours = Self::new(how, jumps)?;
        let program = chain(BLOCKS - jumps);
        add(&ours.machine, NEIGHBOUR, &program.bytes)?;
        ours.neighbour = Some(range(NEIGHBOUR, program.bytes.len() as u64)?);
        Ok(ours)
    }

    pub(crate) fn machine(&self) -> &Machine {
        &self.machine
    }

    fn invalidate(&self, page: GuestRange, block: GuestAddress) {
        let struck = match self.how {
            How::Region => {
                self.machine.invalidate(page);
                true
            }
            How::RegionSoon => {
                self.machine.invalidate_soon(page);
                true
            }
            How::Block => self.machine.invalidate_block(block),
            How::BlockSoon => self.machine.invalidate_block_soon(block),
        };
        assert!(struck, "there is a block");
    }
}

impl Victim for Ours {
    fn prepare(&mut self) -> Result<(), Failure> {
        // Jumps to a block that comes back need not be chained again.
        run(&mut self.vcpu, HALT);
        if let Some(neighbour) = self.neighbour {
            self.machine.invalidate(neighbour);
            run(&mut self.vcpu, NEIGHBOUR);
        }
        run(&mut self.vcpu, self.program.entries[0]);
        Ok(())
    }

    fn warm_up(&mut self) -> Result<(), Failure> {
        self.invalidate(range(HALT, 1)?, GuestAddress(HALT));
        Ok(())
    }

    fn strike(&mut self) -> Result<(), Failure> {
        self.invalidate(self.page, GuestAddress(self.program.last));
        Ok(())
    }
}

struct Series {
    name: &'static str,
    jumps: u64,
    victim: Box<dyn Victim>,
    /// Right after everything was translated, …
    samples: Samples,
    /// … when another page was invalidated in between, …
    warm: Samples,
    /// … and with the caches full of something else: more blocks leave less of what an invalidation
    /// needs in the caches, and these two show what their number changes besides.
    cold: Samples,
}

/// Times one invalidation of a prepared victim.
pub(crate) fn sample(victim: &mut dyn Victim, samples: &mut Samples) -> Result<(), Failure> {
    victim.prepare()?;
    samples.time(|| victim.strike())
}

/// The same after another page was invalidated.
fn sample_warm(victim: &mut dyn Victim, samples: &mut Samples) -> Result<(), Failure> {
    victim.prepare()?;
    victim.warm_up()?;
    samples.time(|| victim.strike())
}

/// The same after `other` memory was read.
fn sample_cold(
    victim: &mut dyn Victim,
    samples: &mut Samples,
    other: &[u64],
) -> Result<(), Failure> {
    victim.prepare()?;
    std::hint::black_box(other.iter().fold(0, |sum: u64, word| sum.wrapping_add(*word)));
    samples.time(|| victim.strike())
}

/// All ways, with no vCPU inside.
pub(crate) fn invalidation() -> Result<Value, Failure> {
    let mut all = Vec::new();
    for jumps in JUMPS {
        for how in How::ALL {
            let victim = Box::new(Ours::new(how, jumps)?);
            all.push(Series::new(how.name(), jumps, victim));
        }
        let victim = Box::new(Ours::among(How::RegionSoon, jumps)?);
        all.push(Series::new("region, of 1000 blocks", jumps, victim));
        #[cfg(feature = "unicorn")]
        for (name, jumps, victim) in crate::unicorn::victims(jumps)? {
            all.push(Series::new(name, jumps, victim));
        }
    }
    let other = vec![1; OTHER];
    for _ in 0..ROUNDS {
        for Series { victim, samples, warm, cold, .. } in &mut all {
            (0..BATCH).try_for_each(|_| sample(victim.as_mut(), samples))?;
            (0..BATCH).try_for_each(|_| sample_warm(victim.as_mut(), warm))?;
            (0..BATCH).try_for_each(|_| sample_cold(victim.as_mut(), cold, &other))?;
        }
    }
    Ok(all.into_iter().map(Series::done).collect())
}

impl Series {
    fn new(name: &'static str, jumps: u64, victim: Box<dyn Victim>) -> Self {
        let [samples, warm, cold] = [(); 3].map(|()| Samples::default());
        Self { name, jumps, victim, samples, warm, cold }
    }

    fn done(self) -> Value {
        let name = format!("{}, {} jumps", self.name, self.jumps);
        let [times, warm, cold] = [self.samples, self.warm, self.cold].map(Samples::summary);
        show(&name, &times);
        show(&format!("{name}, after another"), &warm);
        show(&format!("{name}, caches cold"), &cold);
        json!({
            "how": self.name, "jumps": self.jumps, "nanoseconds": times, "after another": warm,
            "cold": cold,
        })
    }
}

/// What timing nothing gives; every sample has it in it.
pub(crate) fn clock() -> Result<Value, Failure> {
    let mut samples = Samples::default();
    (0..1000).for_each(|_| samples.time(|| ()));
    let times = samples.summary();
    show("the clock itself", &times);
    Ok(times)
}
