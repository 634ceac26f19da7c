//! [`Jit`]: the translating engine of this project ([`crate::exec`]) as an engine for cases.
//!
//! One machine is kept from case to case. The objects of a case lie in a memfd that the machine maps
//! wherever the case wants; mappings that two cases share stay. Events are what any host program
//! would do to a machine: its own calls.

use std::time::Duration;

use super::case_memory::CaseMemory;
use super::watchdog::{Stop, Watchdog};
use super::{Capabilities, Engine, Unsupported, Visible};
use crate::case::{Action, Case, ExceptionVector, MapModel, Mapping, Outcome, Trigger};
use crate::exec::{Exit, Kick, Machine, MachineError, Vcpu};
use crate::guest::Xstate;
use crate::memory::{Backing, MapError};

/// Processor time that one leg may take, unless another is set.
const LEG_LIMIT: Duration = Duration::from_millis(200);
/// The window has 2^46 bytes, the most there are.
const WINDOW_BITS: u32 = 46;

/// See the file's head.
pub struct Jit {
    name: String,
    capabilities: Capabilities,
    memory: CaseMemory,
    backing: Backing,
    machine: Machine,
    vcpu: Vcpu,
    watchdog: Watchdog<Kick>,
    /// What is mapped in the machine: the mapping and its object's place in the memfd.
    present: Vec<Present>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Present {
    mapping: Mapping,
    position: u64,
}

impl Stop for Kick {
    fn stop(&self) {
        self.ask();
    }
}

/// A case under way.
struct Run<'case> {
    case: &'case Case,
    map: MapModel,
    events_applied: usize,
    /// Instructions done in all legs, if there is a limit.
    executed: u64,
}

enum LegEnd {
    /// The trigger of the next event was met.
    Trigger,
    Stop(crate::case::Stop),
}

impl Jit {
    /// An engine called `jit`.
    pub fn new() -> Result<Self, MachineError> {
        Self::named("jit")
    }

    /// An engine of another name.
    pub fn named(name: &str) -> Result<Self, MachineError> {
        let memory = CaseMemory::new()?;
        let size = memory.file().metadata()?.len();
        let backing = Backing::from_file(memory.file().try_clone()?, size)?;
        let machine = Machine::new(WINDOW_BITS)?;
        let vcpu = machine.vcpu()?;
        Ok(Self {
            name: name.to_owned(),
            capabilities: capabilities(),
            memory,
            backing,
            machine,
            vcpu,
            watchdog: Watchdog::start(LEG_LIMIT)?,
            present: Vec::new(),
        })
    }

    /// The machine that runs the cases.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    fn run_case(&mut self, case: &Case) -> Result<Outcome, Failed> {
        self.memory.load(case);
        // The objects' bytes are others now, and nobody told the machine.
        self.machine.flush();
        let map = MapModel::initial(case);
        self.map_what_is_wanted(&map)?;
        self.vcpu.set_state(&case.state);
        let mut run = Run { case, map, events_applied: 0, executed: 0 };
        let stop = loop {
            match self.leg(&mut run)? {
                LegEnd::Stop(stop) => break stop,
                LegEnd::Trigger => self.apply_event(&mut run)?,
            }
        };
        if !stop.is_exact() {
            return Ok(Outcome::inexact(stop, run.events_applied));
        }
        let memory = self.memory.changes(case);
        Ok(Outcome { stop, events_applied: run.events_applied, state: self.vcpu.state(), memory })
    }

    fn map_what_is_wanted(&mut self, map: &MapModel) -> Result<(), MapError> {
        let wanted = self.presence(map);
        if wanted == self.present {
            return Ok(());
        }
        for old in std::mem::take(&mut self.present) {
            if !wanted.contains(&old) {
                self.machine.unmap(old.mapping.range)?;
            } else {
                self.present.push(old);
            }
        }
        for new in &wanted {
            if !self.present.contains(new) {
                let Mapping { range, permissions, .. } = new.mapping;
                self.machine.map_shared(range, &self.backing, new.position, permissions)?;
            }
        }
        self.present = wanted;
        Ok(())
    }

    fn presence(&self, map: &MapModel) -> Vec<Present> {
        let place = |mapping: &Mapping| self.memory.position(mapping.object, mapping.offset);
        map.mappings().iter().map(|&mapping| Present { mapping, position: place(&mapping) }).collect()
    }

    fn apply_event(&mut self, run: &mut Run<'_>) -> Result<(), Failed> {
        let event = &run.case.events[run.events_applied];
        for action in &event.actions {
            self.apply(action)?;
            run.map.apply(action).expect("the actions of a valid case can be carried out");
        }
        self.present = self.presence(&run.map);
        run.events_applied += 1;
        Ok(())
    }

    fn apply(&mut self, action: &Action) -> Result<(), Failed> {
        match action {
            Action::Write { address, bytes } => {
                let written = self.machine.write(*address, bytes);
                written.expect("a valid case writes where something is mapped");
            }
            Action::Map(mapping) => {
                let place = self.memory.position(mapping.object, mapping.offset);
                let Mapping { range, permissions, .. } = *mapping;
                self.machine.map_shared(range, &self.backing, place, permissions)?;
            }
            Action::Unmap(range) => self.machine.unmap(*range)?,
            Action::Protect { range, permissions } => self.machine.protect(*range, *permissions)?,
            Action::Alias { source, destination } => self.machine.alias(*source, *destination)?,
            Action::Remap { source, destination } => self.machine.remap(*source, *destination)?,
            Action::ExitRequest => self.vcpu.kick().ask(),
        }
        Ok(())
    }

    fn leg(&mut self, run: &mut Run<'_>) -> Result<LegEnd, Failed> {
        let left = run.case.limit.map(|limit| limit - run.executed);
        if left == Some(0) {
            return Ok(LegEnd::Stop(crate::case::Stop::Limit));
        }
        let trigger = run.case.events.get(run.events_applied).map(|event| event.trigger);
        let wanted = match trigger {
            Some(Trigger::Count(count)) => Some(count),
            _ => None,
        };
        let breakpoint = match trigger {
            Some(Trigger::Breakpoint(address)) => Some(address),
            _ => None,
        };
        let budget = wanted.into_iter().chain(left).min();
        if let Some(address) = breakpoint {
            self.machine.set_breakpoint(address);
        }
        let before = self.vcpu.executed();
        self.watchdog.begin(&self.vcpu.kick());
        let exit = self.run_to_end(budget);
        let run_away = self.watchdog.end();
        if let Some(address) = breakpoint {
            self.machine.clear_breakpoint(address);
        }
        let done = self.vcpu.executed() - before;
        run.executed += done;
        if run_away {
            return Ok(LegEnd::Stop(crate::case::Stop::TimeLimit));
        }
        self.interpret(exit, trigger, wanted == Some(done))
    }

    /// Runs on after requests to leave that come from an event.
    fn run_to_end(&mut self, budget: Option<u64>) -> Exit {
        let start = self.vcpu.executed();
        loop {
            let left = budget.map(|budget| budget - (self.vcpu.executed() - start));
            match self.vcpu.run(left) {
                Exit::Requested if !self.watchdog.fired() => {}
                exit => return exit,
            }
        }
    }

    fn interpret(
        &self,
        exit: Exit,
        trigger: Option<Trigger>,
        counted: bool,
    ) -> Result<LegEnd, Failed> {
        use crate::case::Stop;
        Ok(LegEnd::Stop(match exit {
            Exit::Halt if trigger == Some(Trigger::Halt) => return Ok(LegEnd::Trigger),
            Exit::Halt => Stop::Halt,
            Exit::Breakpoint => return Ok(LegEnd::Trigger),
            Exit::Budget if counted => return Ok(LegEnd::Trigger),
            Exit::Budget => {
                let at = match trigger {
                    Some(Trigger::Breakpoint(address)) => Some(address),
                    _ => None,
                };
                if at == Some(self.vcpu.rip()) {
                    return Ok(LegEnd::Trigger);
                }
                Stop::Limit
            }
            Exit::SystemCall => Stop::SystemCall,
            Exit::LegacySystemCall => Stop::LegacySystemCall,
            Exit::Exception { vector, error, address } => {
                Stop::Exception { vector: ExceptionVector(vector), error: Some(error), address }
            }
            Exit::Requested => Stop::TimeLimit,
            Exit::Unsupported { what } => return Err(Failed(Unsupported::new(what))),
            Exit::Host { what } => return Err(Failed(Unsupported::new(what))),
        }))
    }
}

/// Why a case cannot be run to its end.
struct Failed(Unsupported);

impl From<MapError> for Failed {
    fn from(error: MapError) -> Self {
        Self(Unsupported::new(format!("the host refuses a mapping: {error}")))
    }
}

impl Engine for Jit {
    fn name(&self) -> &str {
        &self.name
    }

    fn version(&self) -> String {
        format!("tregion {}", env!("CARGO_PKG_VERSION"))
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn set_time_limit(&mut self, limit: Duration) {
        self.watchdog.set_limit(limit);
    }

    fn run(&mut self, case: &Case) -> Result<Outcome, Unsupported> {
        let result = self.run_case(case);
        if result.is_err() {
            // Whatever is mapped now, the next case starts from nothing.
            let all: Vec<_> = self.machine.regions().iter().map(|mapping| mapping.range).collect();
            for range in all {
                self.machine.unmap(range).expect("what is mapped can be unmapped");
            }
            self.present.clear();
        }
        result.map_err(|Failed(unsupported)| unsupported)
    }
}

fn capabilities() -> Capabilities {
    Capabilities {
        visible: Visible::of_host(&Xstate::of_this_host()),
        runs_on_silicon: true,
        counts: true,
        lacks: vec![
            "tile registers, 32-bit code, shadow stacks, user interrupts, enclaves".to_owned(),
            "protection keys guard nothing".to_owned(),
        ],
    }
}
