//! Single steps: legs that stop at a count or a breakpoint, and traces.
//!
//! The trap flag ends a leg after one instruction (Intel SDM volume 3B, section 18.3.1.4). The guest
//! must not notice: what an instruction copied of the flag is put back to what the guest itself had
//! there. An iteration of a repeated string instruction traps like an instruction but does not count.

use std::collections::HashMap;
use std::sync::Arc;

use iced_x86::{Code, Instruction, Mnemonic};

use super::countdown::{Countdown, Counted, is_repeated, loses_trap, needs_engine};
use super::{Broken, LegEnd, Observer, Run, Silicon};
use crate::case::{Case, Loss, Outcome, PageChange, Stop, Trigger};
use crate::engine::Unsupported;
use crate::guest::{Flag, GuestAddress, State, decoder};

/// Steps after which a leg that is stepped is a run-away, unless a time limit was set; then one for
/// each microsecond of it.
const MAX_STEPS: u64 = 200_000;
/// Steps that the stub takes by itself at most: few enough that its processor time is not a
/// run-away's.
const STEPS_AT_ONCE: u64 = 2000;

/// The state before one instruction of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Registers before the instruction.
    pub state: State,
    /// Memory before the instruction, as it differs from the start of the case: shared with the step before
    /// as long as it is the same, since most instructions do not write.
    pub memory: Arc<[PageChange]>,
    /// The instruction's bytes, up to 15 or to the end of what is mapped.
    pub code: Vec<u8>,
    /// Events applied before.
    pub events_applied: usize,
    /// Instructions of this leg executed before.
    pub executed_in_leg: u64,
}

impl Step {
    /// The instruction about to be executed.
    #[must_use]
    pub fn instruction(&self) -> Instruction {
        decode(&self.code, self.state.rip)
    }
}

/// A run, instruction by instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The state before each instruction, in order of execution.
    pub steps: Vec<Step>,
    /// How it ended.
    pub outcome: Outcome,
}

enum StepEnd {
    /// The instruction is done.
    Done,
    /// One iteration of it is done.
    Iteration,
    Stop(Stop),
}

impl Silicon {
    /// Runs `case` and notes the state before each instruction, at most `max_steps` of them.
    pub fn trace(&mut self, case: &Case, max_steps: u64) -> Result<Trace, Unsupported> {
        let limit = case.limit.unwrap_or(u64::MAX).min(max_steps);
        let mut steps: Vec<Step> = Vec::new();
        let case = &Case { limit: Some(limit), ..case.clone() };
        let mut observe = |silicon: &Silicon, run: &Run<'_>| {
            let changes = silicon.memory.changes(run.case);
            let memory = match steps.last() {
                Some(before) if *before.memory == *changes => Arc::clone(&before.memory),
                _ => changes.into(),
            };
            steps.push(Step {
                state: State::clone(&run.state),
                memory,
                code: silicon.memory.read(&run.map, GuestAddress(run.state.rip), 15),
                events_applied: run.events_applied,
                executed_in_leg: run.executed_in_leg,
            });
        };
        let (run, stop) = self.run_observed(case, self.first_limit(), Some(&mut observe))?;
        let outcome = self.outcome(run, stop);
        Ok(Trace { steps, outcome })
    }

    /// Runs `case` and shows each instruction, with up to 15 bytes from where it lies, just before it
    /// is executed, at most `max_steps` of them.
    pub fn step_through(
        &mut self,
        case: &Case,
        max_steps: u64,
        mut look: impl FnMut(&Instruction, &[u8]),
    ) -> Result<(), Unsupported> {
        let limit = case.limit.unwrap_or(u64::MAX).min(max_steps);
        let case = &Case { limit: Some(limit), ..case.clone() };
        let mut observe = |silicon: &Silicon, run: &Run<'_>| {
            let code = silicon.memory.read(&run.map, GuestAddress(run.state.rip), 15);
            look(&decode(&code, run.state.rip), &code);
        };
        self.run_observed(case, self.first_limit(), Some(&mut observe)).map(|_| ())
    }

    /// Whether some instruction of `case`, one of the first `max_steps`, is executed at an address where
    /// another was executed before: code that has run was changed and ran again.
    pub fn reruns_changed_code(
        &mut self,
        case: &Case,
        max_steps: u64,
    ) -> Result<bool, Unsupported> {
        let (mut executed, mut changed) = (HashMap::new(), false);
        self.step_through(case, max_steps, |instruction, code| {
            let code = code[..instruction.len().min(code.len())].to_vec();
            let before = executed.insert(instruction.ip(), code.clone());
            changed |= before.is_some_and(|before| before != code);
        })?;
        Ok(changed)
    }

    /// Runs `case` one instruction at a time; how it ended and how many instructions that took.
    pub fn count(&mut self, case: &Case) -> Result<(Outcome, u64), Unsupported> {
        let (run, stop) = self.run_observed(case, self.first_limit(), Some(&mut |_, _| {}))?;
        let executed = run.executed;
        Ok((self.outcome(run, stop), executed))
    }

    /// A leg that ends at `trigger`, at the case's limit, or by itself. `observe` is called before
    /// each instruction.
    pub(super) fn stepped_leg(
        &mut self,
        run: &mut Run<'_>,
        trigger: Option<Trigger>,
        mut observer: Option<&mut Observer<'_>>,
    ) -> Result<LegEnd, Broken> {
        run.executed_in_leg = 0;
        let mut fresh = true;
        let mut steps = self.time_limit.map_or(MAX_STEPS, |limit| limit.as_micros() as u64);
        while steps > 0 {
            if fresh && run.case.limit == Some(run.executed) {
                return Ok(LegEnd::Stop(Stop::Limit));
            }
            if fresh && let Some(observe) = &mut observer {
                observe(self, run);
            }
            let instruction = self.next_instruction(run);
            let alone = observer.is_none() && !needs_engine(&instruction) && !has_trap_flag(run);
            let (end, taken) = match alone {
                true => self.steps(run, &instruction, trigger, steps)?,
                false => (self.step(run, &instruction)?, 1),
            };
            steps = steps.saturating_sub(taken);
            fresh = !matches!(end, StepEnd::Iteration);
            match end {
                StepEnd::Iteration => {}
                StepEnd::Stop(Stop::Halt) if trigger == Some(Trigger::Halt) => {
                    run.executed += 1;
                    return Ok(LegEnd::Trigger);
                }
                StepEnd::Stop(stop) => return Ok(LegEnd::Stop(stop)),
                StepEnd::Done if is_met(trigger, run) => return Ok(LegEnd::Trigger),
                StepEnd::Done => {}
            }
        }
        Err(Broken::Stop(Stop::TimeLimit))
    }

    fn next_instruction(&self, run: &Run<'_>) -> Instruction {
        let rip = run.state.rip;
        let code = self.memory.read(&run.map, GuestAddress(rip), 15);
        decode(&code, rip)
    }

    /// Lets the stub step by itself, at most `most` times, until something is to be looked at; says
    /// also how often it has.
    fn steps(
        &mut self,
        run: &mut Run<'_>,
        first: &Instruction,
        trigger: Option<Trigger>,
        most: u64,
    ) -> Result<(StepEnd, u64), Broken> {
        let left = |end: Option<u64>, now: u64| end.map_or(u64::MAX, |end| end - now);
        let (count, breakpoint) = match trigger {
            Some(Trigger::Count(count)) => (Some(count), None),
            Some(Trigger::Breakpoint(address)) => (None, Some(address.0)),
            Some(Trigger::Halt) | None => (None, None),
        };
        let count = left(count, run.executed_in_leg).min(left(run.case.limit, run.executed));
        let countdown = Countdown { steps: most.min(STEPS_AT_ONCE), count, breakpoint };
        run.state.rflags |= Flag::TF.mask();
        let frame = self.enter(run, countdown, Some(first))?;
        run.state.rflags &= !Flag::TF.mask();
        let counted = self.counted(run.state.rip)?;
        run.executed_in_leg += counted.instructions;
        run.executed += counted.instructions;
        let taken = countdown.steps - counted.steps_left;
        Ok(match frame.is_single_step() {
            false => (StepEnd::Stop(self.interpret(run, &frame)), taken),
            true if counted.iterating => (StepEnd::Iteration, taken),
            true => (StepEnd::Done, taken.max(1)),
        })
    }

    fn counted(&self, rip: u64) -> Result<Counted, Broken> {
        let room = self.rooms.current().ok_or(Broken::Stop(Stop::Lost(Loss::Hung)))?;
        Ok(Counted::load(&room.child, rip))
    }

    fn step(&mut self, run: &mut Run<'_>, instruction: &Instruction) -> Result<StepEnd, Broken> {
        if loses_trap(instruction) {
            return Err(Unsupported::new("single steps over what the kernel may execute").into());
        }
        let before = run.state.rip;
        let own_trap = has_trap_flag(run);
        run.state.rflags |= Flag::TF.mask();
        let frame = self.enter(run, Countdown::default(), None)?;
        let single_step = frame.is_single_step() && instruction.mnemonic() != Mnemonic::Int1;
        if own_trap {
            return Ok(StepEnd::Stop(self.interpret(run, &frame)));
        }
        let stop = self.interpret(run, &frame);
        self.wipe_trap_flag(run, instruction, single_step);
        Ok(match (single_step, stop) {
            (false, stop) => StepEnd::Stop(stop),
            (true, _) if run.state.rip == before && is_repeated(instruction) => StepEnd::Iteration,
            (true, _) => {
                run.executed_in_leg += 1;
                run.executed += 1;
                StepEnd::Done
            }
        })
    }

    /// Takes the engine's trap flag out of wherever the instruction just executed left it.
    fn wipe_trap_flag(&mut self, run: &mut Run<'_>, instruction: &Instruction, executed: bool) {
        let trap = Flag::TF.mask();
        if executed && loads_flags(instruction) {
            // What is in the flags now is what the guest loaded.
            return;
        }
        run.state.rflags &= !trap;
        if executed && matches!(instruction.code(), Code::Pushfq | Code::Pushfw) {
            let high = GuestAddress(run.state.gpr[4].wrapping_add(1));
            let pushed = self.memory.read(&run.map, high, 1);
            let wiped: Vec<u8> = pushed.iter().map(|byte| byte & !((trap >> 8) as u8)).collect();
            self.memory.write(&run.map, high, &wiped);
        }
        if instruction.mnemonic() == Mnemonic::Syscall {
            run.state.gpr[11] &= !trap;
        }
    }
}

/// Whether the flags after `instruction` are those that it took from the stack.
fn loads_flags(instruction: &Instruction) -> bool {
    matches!(
        instruction.mnemonic(),
        Mnemonic::Popf | Mnemonic::Popfq | Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq
    )
}

fn decode(code: &[u8], rip: u64) -> Instruction {
    decoder(code, rip).decode()
}

fn has_trap_flag(run: &Run<'_>) -> bool {
    run.state.rflags & Flag::TF.mask() != 0
}

/// Whether `trigger` is met behind an instruction that is done.
fn is_met(trigger: Option<Trigger>, run: &Run<'_>) -> bool {
    match trigger {
        Some(Trigger::Count(count)) => run.executed_in_leg == count,
        Some(Trigger::Breakpoint(address)) => run.state.rip == address.0,
        Some(Trigger::Halt) | None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::{Event, Mapping, Object, ObjectId};
    use crate::engine::Engine;
    use crate::guest::{GuestRange, Permissions};

    const CODE: u64 = 0x40_0000;

    /// One page of code, which is also where the stack and the strings are.
    fn case(code: &[u8]) -> Case {
        let mut object = Object::zeroed("all", 1);
        object.contents[..code.len()].copy_from_slice(code);
        let mapping = Mapping {
            range: GuestRange::new(GuestAddress(CODE), 0x1000).unwrap(),
            object: ObjectId(0),
            offset: 0,
            permissions: Permissions::ReadWriteExecute,
        };
        let mut case = Case { objects: vec![object], mappings: vec![mapping], ..Case::default() };
        case.state.rip = CODE;
        case.state.gpr[4] = CODE + 0x800;
        case.state.gpr[7] = CODE + 0xc00;
        case
    }

    /// Flags pushed and popped, a repeated string of five iterations, one of none, a loop to itself,
    /// a jump far into the page, SSE, `hlt`.
    const PROGRAM: [u8; 46] = [
        0x9c, 0xb9, 5, 0, 0, 0, 0xf3, 0xaa, 0x66, 0xf2, 0xaf, 0x66, 0x9c, 0x66, 0x9d, 0xb9, 3, 0,
        0, 0, 0xe2, 0xfe, 0x0f, 0x57, 0xc0, 0xf3, 0x0f, 0x2a, 0xc4, 0xe9, 0xc3, 0x0e, 0, 0, 0xcc,
        0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc,
    ];

    fn program() -> Case {
        let mut case = case(&PROGRAM);
        // nop × 15 to the end of the page but for `hlt`.
        let target = 0x22 + 0xec3;
        case.objects[0].contents[target..].fill(0x90);
        *case.objects[0].contents.last_mut().unwrap() = 0xf4;
        case
    }

    #[test]
    fn the_stub_counts_as_the_engine_does() {
        let mut engine = Silicon::new().unwrap();
        let case = program();
        let whole = engine.run(&case).unwrap();
        assert_eq!(whole.stop, Stop::Halt);
        let trace = engine.trace(&case, 4000).unwrap();
        assert_eq!((trace.outcome, trace.steps.len() > 290), (whole.clone(), true));
        for (index, step) in trace.steps.iter().enumerate().skip(1).take(40) {
            let limited = Case { limit: Some(index as u64), ..case.clone() };
            let outcome = engine.run(&limited).unwrap();
            assert_eq!((outcome.stop, &outcome.state), (Stop::Limit, &step.state), "{index}");
            assert_eq!(outcome.memory, *step.memory, "{index}");
        }
        let all = Case { limit: Some(trace.steps.len() as u64), ..case.clone() };
        assert_eq!(engine.run(&all).unwrap(), whole);
    }

    #[test]
    fn a_breakpoint_is_met_where_the_trace_says() {
        let mut engine = Silicon::new().unwrap();
        let plain = program();
        let trace = engine.trace(&plain, 40).unwrap();
        for step in &trace.steps[1..] {
            let trigger = Trigger::Breakpoint(GuestAddress(step.state.rip));
            let event = Event { trigger, actions: Vec::new() };
            // Once met, there is no instruction left to execute.
            let met = trace.steps[1..].iter().position(|one| one.state.rip == step.state.rip);
            let limit = Some(met.unwrap() as u64 + 1);
            let case = Case { events: vec![event], limit, ..plain.clone() };
            let outcome = engine.run(&case).unwrap();
            assert_eq!((outcome.stop, outcome.events_applied), (Stop::Limit, 1));
            assert_eq!(outcome.state.rip, step.state.rip);
        }
    }
}
