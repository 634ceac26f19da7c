//! Loops within a block: what every pass leaves true is known at the start of each.

use iced_x86::Instruction;

use crate::checker::Checker;
use crate::symbolic::{Fact, GUEST_REGISTERS, State};

/// Bytes between the window and a register, or a sum of two, that is near it at the start of a pass.
const MOST_OF_LOOP: u64 = 2 << 30;

/// Numbers of the guest's R14 and R15, as [`State::guest`] has them.
const IN_BLOCK: [usize; 2] = [16, 17];

impl Checker<'_> {
    /// The last jump back to an instruction, if there is one.
    pub(crate) fn end_of_loop(&self, index: usize) -> Option<usize> {
        let start = self.code[index].ip();
        let jumps = |it: &Instruction| {
            let direct = it.is_jcc_short_or_near() || it.is_jmp_short_or_near();
            direct && it.near_branch_target() == start
        };
        (index..self.code.len()).rev().find(|&at| jumps(&self.code[at]))
    }

    /// Follows a loop with as much known at its start as every pass leaves true, which is found by
    /// trying.
    pub(crate) fn follow_loop(&mut self, start: usize, end: usize) -> bool {
        self.figures.loops += 1;
        let entry = self.state.clone();
        let arriving = self.arriving.clone();
        let (figures, complaints) = (self.figures, self.complaints.len());
        let mut facts = self.facts_to_try(start, end);
        self.keep(&mut facts, entry.clone());
        loop {
            (self.figures, self.arriving) = (figures, arriving.clone());
            self.complaints.truncate(complaints);
            self.state = entry.unknown(&facts, MOST_OF_LOOP, &mut self.symbols);
            (self.head, self.returning) = (Some(self.code[start].ip()), Vec::new());
            let mut alive = true;
            for index in start..=end {
                if index > start {
                    self.arrive(index, alive);
                }
                alive = self.instruction(index);
            }
            let before = facts.len();
            for state in std::mem::take(&mut self.returning) {
                if !state.polled {
                    self.complain(&self.code[end].clone(), "a loop without a poll");
                }
                self.keep(&mut facts, state);
            }
            self.head = None;
            if facts.len() == before {
                self.figures.facts_of_loops += facts.len() as u64;
                return alive;
            }
        }
    }

    /// All that might be true of registers, and of sums that the loop's operands are made of.
    fn facts_to_try(&self, start: usize, end: usize) -> Vec<Fact> {
        let of = |fact: fn(usize) -> Fact| (0..GUEST_REGISTERS).map(fact);
        let indexed = self.code[start..=end].iter().filter(|it| it.memory_index().is_gpr64());
        let sums = indexed.flat_map(|it| {
            let base = it.memory_base();
            let base = base.is_gpr64().then(|| base.number());
            let (index, scale) = (it.memory_index().number(), u64::from(it.memory_index_scale()));
            // Each may be a copy of one that is in the block.
            let bases =
                [base].into_iter().chain(base.map(|_| IN_BLOCK.map(Some)).into_iter().flatten());
            bases.flat_map(move |base| {
                let indexes = [index].into_iter().chain(IN_BLOCK);
                indexes.map(move |index| Fact::NearSum(base, index, scale))
            })
        });
        of(Fact::Near).chain(of(Fact::Small)).chain(sums).collect()
    }

    /// Keeps the facts that hold in `state`.
    fn keep(&mut self, facts: &mut Vec<Fact>, mut state: State) {
        facts.retain(|fact| match state.sum(fact, &mut self.symbols) {
            Some(sum) => {
                let distance = state.distance(&sum, self.window_bits, &self.symbols);
                distance.is_some_and(|distance| distance <= MOST_OF_LOOP)
            }
            None => {
                let Fact::Small(number) = *fact else { return false };
                let value = state.guest(number, &mut self.symbols);
                state.is_small(&value, &self.symbols)
            }
        });
    }
}
