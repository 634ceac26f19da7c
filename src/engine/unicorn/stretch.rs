//! Running a guest so that a failed fetch is reported where it happens.
//!
//! Unicorn translates ahead. When straight-line code runs off a page into one that cannot be
//! executed, it reports the fault while it translates the block, with none of the block's
//! instructions done and RIP at its start. That is no more than a quirk of when it looks, and a
//! fault at the end of a page is an ordinary way for a random program to end; so the block is run
//! again, cut into pieces by exit addresses in front of the page, until the instruction that cannot
//! be fetched is alone in its block.

use super::library::{Error, Machine};
use super::observer::Access;
use crate::guest::GuestAddress;

/// The longest instruction.
const LONGEST: u64 = 15;

/// Runs the guest from `start` until it stops, or `given_up` after it was asked to.
pub(super) fn run(
    machine: &mut Machine,
    start: u64,
    given_up: impl Fn() -> bool,
) -> Result<(), Error> {
    let result = machine.start(start);
    match early_fault(machine)? {
        Some((rip, page)) => {
            let result = run_in_pieces(machine, rip, page, given_up);
            machine.set_exits(&[])?;
            result
        }
        None => result,
    }
}

/// Where the guest is and the page that it cannot execute, if it did not jump right there.
fn early_fault(machine: &mut Machine) -> Result<Option<(u64, u64)>, Error> {
    let Some((Access::Fetch, address)) = machine.observer().fault else { return Ok(None) };
    let rip = machine.read_registers()?.rip();
    let page = GuestAddress(address).page_start().0;
    Ok((rip != address).then_some((rip, page)))
}

fn run_in_pieces(
    machine: &mut Machine,
    mut start: u64,
    mut page: u64,
    given_up: impl Fn() -> bool,
) -> Result<(), Error> {
    loop {
        let before_page = (0..=LONGEST).map(|distance| page.wrapping_sub(distance));
        let exits: Vec<u64> = before_page.filter(|exit| *exit != start).collect();
        machine.set_exits(&exits)?;
        machine.observer().fault = None;
        let result = machine.start(start);
        match early_fault(machine)? {
            // It did not get any further: this is the instruction that reaches into the page.
            Some((rip, same)) if rip == start && same == page => return result,
            Some((rip, other)) => (start, page) = (rip, other),
            None if result.is_err() || machine.observer().is_stopped() || given_up() => {
                return result;
            }
            None => start = machine.read_registers()?.rip(),
        }
    }
}
