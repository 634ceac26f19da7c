//! Fragments of code memory over a long random life of regions. One machine lives it; ways to give memory
//! to regions play it through with the same sizes, each in an arena that it just gets by with.

use std::collections::{BTreeMap, HashMap};

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use serde_json::{Value, json};
use tregion::exec::{Machine, Vcpu};
use tregion::guest::{GuestAddress, Permissions};

use crate::Failure;
use crate::allocators::{Allocator, Chunks, Classes, FirstFit, Id};
use crate::guests::{CODE, DATA, RSI, range, run, work};

const SEED: u64 = 1;
const STEPS: u64 = 3000;
/// One step of these is drawn as a point.
const EACH: u64 = 30;
/// Most regions are a page, one in four is a mapping of sixteen that cannot be written.
const PAGE: u64 = 0x1000;
const MAPPING: u64 = 16 * PAGE;
/// How far apart they lie, and how many there may be.
const STRIDE: u64 = 32 * PAGE;
const PLACES: u64 = 1024;
/// Blocks of the smallest and of the biggest of both kinds.
const SMALL: (f64, f64) = (1.0, 190.0);
const BIG: (f64, f64) = (100.0, 3000.0);
/// Lives in steps, on average: of most regions, and of one in eight.
const SHORT: f64 = 100.0;
const LONG: f64 = 1500.0;

/// A region comes with so many blocks, or goes.
#[derive(Clone, Copy, Debug)]
enum Event {
    Comes(Id, u64),
    Goes(Id),
}

/// Gives the points of each way's life.
pub(crate) fn life() -> Result<Value, Failure> {
    let events = events();
    let (lived, bytes) = lived(&events)?;
    type Make = fn(u64) -> Box<dyn Allocator>;
    let ways: [(&str, Make); 4] = [
        ("chunks of 16 KiB (this crate)", |arena| Box::new(Chunks::new(arena, 16 << 10))),
        ("chunks of 4 KiB", |arena| Box::new(Chunks::new(arena, 4 << 10))),
        ("size classes", |arena| Box::new(Classes::new(arena))),
        ("a buffer a region, first fit", |arena| Box::new(FirstFit::new(arena, 16))),
    ];
    let mut rows = vec![lived];
    for (name, make) in ways {
        let mut plenty = make(1 << 40);
        played(name, plenty.as_mut(), 1 << 40, &events, &bytes);
        let arena = plenty.reached().next_multiple_of(32 << 10);
        rows.push(played(name, make(arena).as_mut(), arena, &events, &bytes));
        let largest = &rows[rows.len() - 1];
        println!("{name}: {} at most {} KiB", largest["held_to_alive"], arena >> 10);
    }
    Ok(json!({ "seed": SEED, "regions": STEPS, "ways": rows }))
}

/// A number from 0 on and below 1.
fn unit(random: &mut Xoshiro256PlusPlus) -> f64 {
    (random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

fn events() -> Vec<Event> {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(SEED);
    let mut ends: BTreeMap<u64, Vec<Id>> = BTreeMap::new();
    let mut events = Vec::new();
    for id in 0..STEPS {
        events.extend(ends.remove(&id).unwrap_or_default().into_iter().map(Event::Goes));
        let (least, most) = if random.next_u64().is_multiple_of(4) { BIG } else { SMALL };
        // As many regions have ten to twenty blocks as have a hundred to two hundred.
        let blocks = (least * (most / least).powf(unit(&mut random))) as u64;
        let mean = if random.next_u64().is_multiple_of(8) { LONG } else { SHORT };
        let life = -mean * (1.0 - unit(&mut random)).ln();
        ends.entry(id + 1 + life as u64).or_default().push(id);
        events.push(Event::Comes(id, blocks));
    }
    events
}

/// A machine with a place for each region that is alive.
struct Host {
    machine: Machine,
    vcpu: Vcpu,
    /// Free places for small regions, and for big ones.
    free: [Vec<u64>; 2],
    places: HashMap<Id, (usize, u64)>,
    /// Where the chain of a place ends, and the bytes of one of its blocks.
    ends: [u64; 2],
    step: u64,
    /// Code memory that is there without a region.
    before: u64,
}

impl Host {
    fn new() -> Result<Self, Failure> {
        let machine = Machine::new(40)?;
        machine.map(range(DATA, 1)?, Permissions::ReadWrite)?;
        let step = work(1)?.last - CODE;
        let mut free = [Vec::new(), Vec::new()];
        let mut ends = [0, 0];
        let kinds = [(PAGE, Permissions::ReadWriteExecute), (MAPPING, Permissions::ReadExecute)];
        for (kind, (bytes, permissions)) in kinds.into_iter().enumerate() {
            let chain = work((bytes - 1) / step)?;
            ends[kind] = chain.last - CODE;
            for number in 0..PLACES {
                let at = 0x1000_0000 + (2 * number + kind as u64) * STRIDE;
                machine.map(range(at, bytes)?, permissions)?;
                machine.write(GuestAddress(at), &chain.bytes)?;
                free[kind].push(at);
            }
        }
        let mut vcpu = machine.vcpu()?;
        vcpu.set_gpr(RSI, DATA);
        let before = machine.figures().used_bytes;
        Ok(Self { machine, vcpu, free, places: HashMap::new(), ends, step, before })
    }

    /// Enters a place's chain so far from its end that it has this many blocks.
    fn comes(&mut self, id: Id, blocks: u64) {
        let kind = usize::from((blocks - 1) * self.step > self.ends[0]);
        let place = self.free[kind].pop().expect("there are more places than regions");
        self.places.insert(id, (kind, place));
        run(&mut self.vcpu, place + self.ends[kind] - (blocks - 1) * self.step);
    }

    fn goes(&mut self, id: Id) -> Result<(), Failure> {
        let (kind, place) = self.places.remove(&id).expect("what goes has come");
        self.machine.invalidate_soon(range(place, MAPPING)?);
        self.machine.reclaim();
        self.free[kind].insert(0, place);
        Ok(())
    }

    fn held(&self) -> u64 {
        let figures = self.machine.figures();
        figures.used_bytes - figures.retired_bytes - self.before
    }
}

/// The life of a real machine; and the bytes of each region, with which the others play.
fn lived(events: &[Event]) -> Result<(Value, HashMap<Id, u64>), Failure> {
    let mut host = Host::new()?;
    let each = bytes_of_a_block()?;
    let (mut bytes, mut alive, mut points) = (HashMap::new(), 0, Vec::new());
    for event in events {
        match *event {
            Event::Comes(id, blocks) => {
                host.comes(id, blocks);
                alive += bytes.entry(id).insert_entry(blocks * each).get();
                if id % EACH == 0 {
                    points.push(json!({ "step": id, "alive": alive, "held": host.held() }));
                }
            }
            Event::Goes(id) => {
                host.goes(id)?;
                alive -= bytes[&id];
            }
        }
    }
    Ok((json!({ "way": "this crate, lived", "points": points }), bytes))
}

/// Bytes that a block takes, with its alignment.
fn bytes_of_a_block() -> Result<u64, Failure> {
    let mut host = Host::new()?;
    host.comes(0, 1000);
    let figures = host.machine.figures();
    Ok((figures.host_bytes / figures.translations).next_multiple_of(16))
}

fn played(
    name: &str,
    way: &mut dyn Allocator,
    arena: u64,
    events: &[Event],
    bytes: &HashMap<Id, u64>,
) -> Value {
    let (mut alive, mut points, mut ratios) = (0, Vec::new(), Vec::new());
    for event in events {
        match *event {
            Event::Comes(id, _) => {
                assert!(way.take(id, bytes[&id]), "the arena is as big as it was found to be");
                alive += bytes[&id];
                if id % EACH == 0 {
                    let (held, largest) = (way.held(), way.largest());
                    let free = arena - held;
                    ratios.push(held as f64 / alive as f64);
                    points.push(json!({
                        "step": id, "alive": alive, "held": held, "free": free, "largest": largest,
                    }));
                }
            }
            Event::Goes(id) => {
                way.give_back(id);
                alive -= bytes[&id];
            }
        }
    }
    ratios.sort_by(f64::total_cmp);
    let ratio = ratios[ratios.len() / 2];
    json!({ "way": name, "arena": arena, "held_to_alive": ratio, "points": points })
}
