//! What translation regions cost: invalidating a page by swapping its region, one block by its tag, and
//! both in Unicorn; with vCPUs running; memory; fragments over a long life; the span of a region.
//!
//! `make regions-record` writes all samples to `benches/record/`, from which `make plots` draws. What is
//! compared is measured in turns, a few times each, so that what else the host does hits all alike.

#[path = "regions/allocators.rs"]
mod allocators;
#[path = "regions/cost.rs"]
mod cost;
#[path = "regions/guests.rs"]
mod guests;
#[path = "regions/life.rs"]
mod life;
#[path = "regions/memory.rs"]
mod memory;
#[path = "regions/record.rs"]
mod record;
#[path = "regions/spans.rs"]
mod spans;
#[cfg(feature = "unicorn")]
#[path = "regions/unicorn.rs"]
mod unicorn;
#[path = "regions/vcpus.rs"]
mod vcpus;

use std::env::args;
use std::error::Error;

use serde_json::Value;

/// Whatever keeps a measurement from being made.
pub(crate) type Failure = Box<dyn Error>;

/// A part of the record, and what measures it.
type Part = (&'static str, fn() -> Result<Value, Failure>);

const PARTS: [Part; 6] = [
    ("clock", cost::clock),
    ("invalidation", cost::invalidation),
    ("vcpus", vcpus::invalidation),
    ("memory", memory::memory),
    ("life", life::life),
    ("spans", spans::spans),
];

/// Measures the parts that the arguments name, or all; only all are recorded.
fn main() -> Result<(), Failure> {
    let wanted: Vec<String> = args().skip(1).filter(|name| !name.starts_with('-')).collect();
    let mut record = record::Record::new();
    for (name, part) in PARTS {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            record.note(name, part()?);
        }
    }
    if wanted.is_empty() {
        println!("written: {}", record.write()?.display());
    }
    Ok(())
}
