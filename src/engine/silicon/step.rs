//! Single steps: legs that stop at a count or a breakpoint, and traces.
//!
//! The trap flag ends a leg after one instruction (Intel SDM volume 3B, section 18.3.1.4). The guest
//! must not notice: what an instruction copied of the flag is put back to what the guest itself had
//! there. An iteration of a repeated string instruction traps like an instruction but does not count.

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic};

use super::{Broken, LegEnd, Observer, Run, Silicon};
use crate::case::{Case, ExceptionVector, Outcome, PageChange, Stop, Trigger};
use crate::engine::Unsupported;
use crate::guest::{Flag, GuestAddress, State};

/// Steps after which a leg that is stepped is a run-away, unless a time limit was set; then one for
/// each microsecond of it.
const MAX_STEPS: u64 = 200_000;

/// The state before one instruction of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Registers before the instruction.
    pub state: State,
    /// Memory before the instruction, as it differs from the start of the case.
    pub memory: Vec<PageChange>,
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
        Decoder::with_ip(64, &self.code, self.state.rip, DecoderOptions::NONE).decode()
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
        let mut steps = Vec::new();
        let case = &Case { limit: Some(limit), ..case.clone() };
        let mut observe = |silicon: &Silicon, run: &Run<'_>| {
            steps.push(Step {
                state: run.state.clone(),
                memory: silicon.memory.changes(run.case),
                code: silicon.memory.read(&run.map, GuestAddress(run.state.rip), 15),
                events_applied: run.events_applied,
                executed_in_leg: run.executed_in_leg,
            });
        };
        let (run, stop) = self.run_observed(case, self.first_limit(), Some(&mut observe))?;
        let outcome = self.outcome(run, stop);
        Ok(Trace { steps, outcome })
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
        let limit = self.time_limit.map_or(MAX_STEPS, |limit| limit.as_micros() as u64);
        for _ in 0..limit {
            if fresh {
                if run.case.limit == Some(run.executed) {
                    return Ok(LegEnd::Stop(Stop::Limit));
                }
                if let Some(observe) = &mut observer {
                    observe(self, run);
                }
            }
            let end = self.step(run)?;
            match end {
                StepEnd::Iteration => {
                    fresh = false;
                    continue;
                }
                StepEnd::Stop(Stop::Halt) if trigger == Some(Trigger::Halt) => {
                    run.executed += 1;
                    return Ok(LegEnd::Trigger);
                }
                StepEnd::Stop(stop) => return Ok(LegEnd::Stop(stop)),
                StepEnd::Done => {}
            }
            fresh = true;
            run.executed_in_leg += 1;
            run.executed += 1;
            let met = match trigger {
                Some(Trigger::Count(count)) => run.executed_in_leg == count,
                Some(Trigger::Breakpoint(address)) => run.state.rip == address.0,
                Some(Trigger::Halt) | None => false,
            };
            if met {
                return Ok(LegEnd::Trigger);
            }
        }
        Err(Broken::Stop(Stop::TimeLimit))
    }

    fn step(&mut self, run: &mut Run<'_>) -> Result<StepEnd, Broken> {
        let before = run.state.rip;
        let code = self.memory.read(&run.map, GuestAddress(before), 15);
        let instruction = Decoder::with_ip(64, &code, before, DecoderOptions::NONE).decode();
        let own_trap = run.state.rflags & Flag::TF.mask() != 0;
        run.state.rflags |= Flag::TF.mask();
        let frame = self.enter(run)?;
        let single_step = frame.signal == libc::SIGTRAP
            && frame.trap == u64::from(ExceptionVector::DB.0)
            && instruction.mnemonic() != Mnemonic::Int1;
        if own_trap {
            return Ok(StepEnd::Stop(self.interpret(run, &frame)));
        }
        let stop = self.interpret(run, &frame);
        self.wipe_trap_flag(run, &instruction, single_step);
        Ok(match (single_step, stop) {
            (false, stop) => StepEnd::Stop(stop),
            (true, _) if run.state.rip == before && is_repeated(&instruction) => StepEnd::Iteration,
            (true, _) => StepEnd::Done,
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

fn is_repeated(instruction: &Instruction) -> bool {
    instruction.is_string_instruction()
        && (instruction.has_rep_prefix() || instruction.has_repne_prefix())
}
