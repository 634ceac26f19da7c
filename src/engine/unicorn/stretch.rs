//! Running a guest so that a failed fetch is reported where it happens, and no further ahead than need be.
//!
//! Unicorn translates ahead. When straight-line code runs off a page into one that cannot be
//! executed, it reports the fault while it translates the block, with none of the block's
//! instructions done and RIP at its start. That is no more than a quirk of when it looks, and a
//! fault at the end of a page is an ordinary way for a random program to end; so the block is run
//! again, cut into pieces by exit addresses in front of the page, until the instruction that cannot
//! be fetched is alone in its block.
//!
//! And where a few instructions are to be executed, it translates up to 512, with a call before each: a millisecond.
//! So the guest stops at exits behind the few, too.

use iced_x86::{FlowControl, Instruction, OpKind};
use smallvec::SmallVec;

use super::library::{Error, Machine};
use super::observer::Access;
use crate::guest::{GuestAddress, decoder};

/// The longest instruction.
const LONGEST: u64 = 15;

/// So many instructions are few.
const FEW: u64 = 8;

/// Where the next instructions end.
pub(super) type Ends = SmallVec<[u64; 2]>;

/// Where control is after `count` instructions, if that is few and they are those of `code`, which is executed from
/// `start` on; at the first one that transfers control there is an end too.
pub(super) fn ends(code: impl FnOnce(usize) -> Vec<u8>, start: u64, count: Option<u64>) -> Ends {
    let Some(count) = count.filter(|count| *count <= FEW) else { return Ends::new() };
    let code = code((count * LONGEST) as usize);
    let next = |instruction: &Instruction| instruction.flow_control() == FlowControl::Next;
    let mut decoder = decoder(&code, start);
    let mut left = count;
    loop {
        let instruction = decoder.decode();
        left -= 1;
        if instruction.is_invalid() {
            return Ends::new();
        }
        if left == 0 || !next(&instruction) {
            let targets = [instruction.next_ip(), instruction.near_branch_target()];
            let known = usize::from(is_direct(&instruction));
            return targets[..=known].iter().copied().filter(|end| *end != start).collect();
        }
    }
}

fn is_direct(instruction: &Instruction) -> bool {
    let targets = [OpKind::NearBranch16, OpKind::NearBranch32, OpKind::NearBranch64];
    targets.contains(&instruction.op0_kind())
}

/// Runs the guest from `start` until it stops, or `given_up` after it was asked to. Where it comes to one of `ends`, it
/// is looked whether it is to pause.
pub(super) fn run(
    machine: &mut Machine,
    mut start: u64,
    ends: &[u64],
    given_up: impl Fn() -> bool,
) -> Result<(), Error> {
    if !ends.is_empty() {
        machine.set_exits(ends)?;
    }
    let mut result = machine.start(start);
    if !ends.is_empty() {
        machine.set_exits(&[])?;
        // What was translated still ends there.
        while result.is_ok() && !machine.observer().is_stopped() && !given_up() {
            start = machine.read_registers()?.rip();
            if !ends.contains(&start) || machine.observer().stop_before(start) {
                break;
            }
            result = machine.start(start);
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 0x1000;

    fn ends_of(code: &[u8], count: Option<u64>) -> Vec<u64> {
        ends(|length| code[..length.min(code.len())].to_vec(), START, count).to_vec()
    }

    #[test]
    fn few_instructions_end_behind_the_last() {
        // nop; mov eax, 1; nop …
        let mut code = vec![0x90, 0xb8, 1, 0, 0, 0];
        code.resize(100, 0x90);
        assert_eq!(ends_of(&code, Some(1)), [START + 1]);
        assert_eq!(ends_of(&code, Some(2)), [START + 6]);
        assert_eq!(ends_of(&code, Some(FEW)), [START + 6 + FEW - 2]);
        assert!(ends_of(&code, Some(FEW + 1)).is_empty());
        assert!(ends_of(&code, None).is_empty());
    }

    #[test]
    fn a_transfer_of_control_ends_where_it_may_lead() {
        assert_eq!(ends_of(&[0x90, 0x74, 0x10, 0x90], Some(5)), [START + 3, START + 0x13]);
        assert_eq!(ends_of(&[0xff, 0xe0, 0x90], Some(5)), [START + 2]);
        assert_eq!(ends_of(&[0xe2, 0x10], Some(5)), [START + 2, START + 0x12]);
        // Where control began it stays.
        assert_eq!(ends_of(&[0xe2, 0xfe, 0x90], Some(5)), [START + 2]);
        assert_eq!(ends_of(&[0xeb, 0xfe, 0x90], Some(5)), [START + 2]);
    }

    #[test]
    fn what_cannot_be_decoded_has_no_end() {
        assert!(ends_of(&[0x90, 0x0f], Some(3)).is_empty());
        assert!(ends_of(&[], Some(1)).is_empty());
    }
}
