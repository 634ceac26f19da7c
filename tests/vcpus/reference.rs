//! The two litmus shapes whose relaxed outcome x86 allows, on the host's threads with plain accesses:
//! what the vCPUs are to show too, if the host shows it.

use std::hint::spin_loop;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

pub(crate) struct Seen {
    pub(crate) relaxed: u64,
    pub(crate) all: u64,
}

/// Two words in lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Line(AtomicU64);

#[derive(Debug, Default)]
struct Cells {
    x: Line,
    y: Line,
    results: [Line; 2],
    barrier: Line,
    stop: AtomicBool,
}

impl Cells {
    fn wait(&self, goal: &mut u64) {
        *goal += 2;
        self.barrier.0.fetch_add(1, Ordering::SeqCst);
        let mut spins = 0_u32;
        while self.barrier.0.load(Ordering::SeqCst) < *goal {
            spins += 1;
            if spins.is_multiple_of(1 << 12) {
                std::thread::yield_now();
            }
            if spins > 64 {
                spin_loop();
            }
        }
    }
}

/// R0 = R1 = 0, though each thread stores before it loads what the other stores.
pub(crate) fn store_buffering(time: Duration) -> Seen {
    run(
        time,
        |cells| {
            cells.x.0.store(1, Ordering::Relaxed);
            cells.y.0.load(Ordering::Relaxed)
        },
        |cells| {
            cells.y.0.store(1, Ordering::Relaxed);
            cells.x.0.load(Ordering::Relaxed)
        },
        |_, first, second| first == 0 && second == 0,
    )
}

/// The second thread's store is last, and its load does not see the first's.
pub(crate) fn r(time: Duration) -> Seen {
    run(
        time,
        |cells| {
            cells.x.0.store(1, Ordering::Relaxed);
            cells.y.0.store(1, Ordering::Relaxed);
            0
        },
        |cells| {
            cells.y.0.store(2, Ordering::Relaxed);
            cells.x.0.load(Ordering::Relaxed)
        },
        |y, _, second| y == 2 && second == 0,
    )
}

fn run(
    time: Duration,
    first: impl Fn(&Cells) -> u64,
    second: impl Fn(&Cells) -> u64 + Send + 'static,
    relaxed: impl Fn(u64, u64, u64) -> bool,
) -> Seen {
    let cells = Arc::new(Cells::default());
    let other = Arc::clone(&cells);
    let delay = |number: u64, factor: u64| (0..number * factor % 64).for_each(|_| spin_loop());
    let thread = std::thread::spawn(move || {
        let (mut goal, mut number) = (0, 0);
        loop {
            other.wait(&mut goal);
            if other.stop.load(Ordering::SeqCst) {
                return;
            }
            number += 1;
            delay(number, 13);
            other.results[1].0.store(second(&other), Ordering::Relaxed);
            other.wait(&mut goal);
        }
    });
    let until = std::time::Instant::now() + time;
    let (mut goal, mut number) = (0, 0);
    let mut seen = Seen { relaxed: 0, all: 0 };
    loop {
        if number % 256 == 0 && std::time::Instant::now() > until {
            cells.stop.store(true, Ordering::SeqCst);
            cells.wait(&mut goal);
            thread.join().unwrap();
            return seen;
        }
        cells.wait(&mut goal);
        number += 1;
        delay(number, 7);
        let result = first(&cells);
        cells.wait(&mut goal);
        let (y, other) = (&cells.y.0, cells.results[1].0.load(Ordering::Relaxed));
        seen.all += 1;
        seen.relaxed += u64::from(relaxed(y.load(Ordering::Relaxed), result, other));
        cells.x.0.store(0, Ordering::Relaxed);
        y.store(0, Ordering::Relaxed);
    }
}
