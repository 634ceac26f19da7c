//! [`Jit`]: the translating engine of this project ([`crate::exec`]) as an engine for cases.
//!
//! A few machines are kept from case to case, each with its mappings, and a case goes to the one that
//! has most of what it wants. The objects of a case lie in a memfd that every machine maps. Events
//! are what any host program would do to a machine: its own calls.

use std::time::Duration;

use super::case_memory::CaseMemory;
use super::turns::Turns;
use super::watchdog::{self, Watchdog};
use super::{Capabilities, Engine, Unsupported, Visible};
use crate::case::{Action, Case, ExceptionVector, Loss, MapModel, Mapping, Outcome, Stop, Trigger};
use crate::exec::{Exit, Figures, Kick, Machine, MachineError, TraceOf, Vcpu};
use crate::guest::{GuestAddress, State, Xstate};
use crate::memory::{Backing, MapError};

/// Processor time that one leg may take, unless another is set.
const LEG_LIMIT: Duration = Duration::from_millis(200);
/// … and that it may take where silicon comes to an end: kernels slow down who makes split locks.
const PATIENT_LEG_LIMIT: Duration = Duration::from_secs(8);
/// The first machine has a window of 2^46 bytes, the most there are; the others, which have to fit
/// beside it, of 2^40 bytes.
const WINDOW_BITS: [u32; 2] = [46, 40];
/// How many machines there are at most.
const MOST_ROOMS: usize = 8;
/// Bytes of code memory of each: a case has a few KiB of code, and what is free is used in turn, so that all of it
/// comes to be resident.
const CODE_MEMORY: usize = 4 << 20;

/// Hooks that look at everything and do nothing, with which an engine must do as without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hooked {
    /// There are none.
    Nothing,
    /// Each access to memory is hooked, …
    Memory,
    /// … each instruction, …
    Code,
    /// … each arrival of control, …
    Blocks,
    /// … or each instruction is traced, …
    TracedCode,
    /// … or each arrival, …
    TracedBlocks,
    /// … or each instruction is hooked, to end runs without a budget, which take turns with such that have one.
    Turns,
    /// Nothing is hooked, but the vCPU leaves at every poll that it comes to.
    Restless,
}

/// See the file's head.
pub struct Jit {
    name: String,
    hooked: Hooked,
    capabilities: Capabilities,
    memory: CaseMemory,
    backing: Backing,
    rooms: Vec<Room>,
    /// The room in use.
    current: usize,
    /// How many cases were run.
    clock: u64,
    watchdog: Watchdog<Kick>,
    /// The time limit is the user's.
    limited: bool,
    /// Figures at the start of the last case, before and behind each of its events, and at its end, if
    /// somebody wants them.
    progress: Option<Vec<Figures>>,
}

/// A machine with what is mapped in it.
struct Room {
    machine: Machine,
    vcpu: Vcpu,
    turns: Option<Turns>,
    /// The mapping and its object's place in the memfd.
    present: Vec<Present>,
    /// When it was used last.
    used: u64,
}

impl Room {
    fn new(window_bits: u32, hooked: Hooked) -> Result<Self, MachineError> {
        let machine = Machine::with_code_memory(window_bits, CODE_MEMORY)?;
        let hook = match hooked {
            Hooked::Nothing | Hooked::Turns | Hooked::Restless => None,
            Hooked::Memory => Some(machine.hook_memory(.., |_| {})),
            Hooked::Code => Some(machine.hook_code(.., |_| {})),
            Hooked::Blocks => Some(machine.hook_blocks(.., |_| {})),
            Hooked::TracedCode => Some(machine.trace(TraceOf::Instructions, .., |_| {})),
            Hooked::TracedBlocks => Some(machine.trace(TraceOf::Blocks, .., |_| {})),
        };
        hook.transpose().expect("a range of all, nothing is mapped, and no other trace");
        let turns = (hooked == Hooked::Turns).then(|| Turns::new(&machine));
        let turns = turns.transpose().expect("a range of all");
        let mut vcpu = machine.vcpu()?;
        vcpu.set_restless(hooked == Hooked::Restless);
        Ok(Self { machine, vcpu, turns, present: Vec::new(), used: 0 })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Present {
    mapping: Mapping,
    position: u64,
}

impl watchdog::Stop for Kick {
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
    Stop(Stop),
}

impl Jit {
    /// An engine called `jit`.
    pub fn new() -> Result<Self, MachineError> {
        Self::hooked("jit", Hooked::Nothing)
    }

    /// An engine called `name`, in whose machines so much is hooked.
    pub fn hooked(name: &str, hooked: Hooked) -> Result<Self, MachineError> {
        let memory = CaseMemory::new()?;
        let size = memory.file().metadata()?.len();
        let backing = Backing::from_file(memory.file().try_clone()?, size)?;
        Ok(Self {
            name: name.to_owned(),
            hooked,
            capabilities: capabilities(),
            memory,
            backing,
            // Where so large a window cannot be had, under a sanitizer, say, a small one will do.
            rooms: vec![
                Room::new(WINDOW_BITS[0], hooked).or_else(|_| Room::new(WINDOW_BITS[1], hooked))?,
            ],
            current: 0,
            clock: 0,
            watchdog: Watchdog::start(LEG_LIMIT)?,
            limited: false,
            progress: None,
        })
    }

    /// The machine that ran the last case.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.room().machine
    }

    /// Whether [`Self::progress`] is noted. To look at the figures reclaims code memory.
    pub fn note_progress(&mut self, wanted: bool) {
        self.progress = wanted.then(Vec::new);
    }

    /// The machine's figures at the start of the last case, before and behind each event that was
    /// applied, and at the end; nothing unless [`Self::note_progress`] has asked for it.
    #[must_use]
    pub fn progress(&self) -> &[Figures] {
        self.progress.as_deref().unwrap_or_default()
    }

    fn note_figures(&mut self) {
        if self.progress.is_some() {
            let figures = self.machine().figures();
            self.progress.iter_mut().for_each(|progress| progress.push(figures));
        }
    }

    fn room(&self) -> &Room {
        &self.rooms[self.current]
    }

    fn room_mut(&mut self) -> &mut Room {
        &mut self.rooms[self.current]
    }

    /// Takes the room into use that has just these mappings; if none has, a new one, or the one that
    /// was not used for the longest time. What the small windows do not reach goes to the large one.
    fn take_room(&mut self, wanted: &[Present]) {
        self.clock += 1;
        let small = wanted.iter().all(|present| {
            let last = present.mapping.range.last().0;
            last >> WINDOW_BITS[1] == 0 || last >> WINDOW_BITS[0] != 0
        });
        let ready = self.rooms.iter().position(|room| room.present == wanted);
        self.current = match ready {
            Some(ready) => ready,
            None if small => self.another_room(),
            None => 0,
        };
        self.room_mut().used = self.clock;
    }

    /// A room with a small window, if there can be one.
    fn another_room(&mut self) -> usize {
        if self.rooms.len() < MOST_ROOMS {
            match Room::new(WINDOW_BITS[1], self.hooked) {
                Ok(room) => {
                    self.rooms.push(room);
                    return self.rooms.len() - 1;
                }
                Err(error) => tracing::warn!("no further machine: {error}"),
            }
        }
        let rooms = self.rooms.iter().enumerate().skip(1);
        rooms.min_by_key(|(_, room)| room.used).map_or(0, |(index, _)| index)
    }

    fn run_case(&mut self, case: &Case) -> Result<Outcome, Failed> {
        self.memory.load(case);
        let map = MapModel::initial(case);
        let wanted = self.presence(&map);
        self.take_room(&wanted);
        // The objects' bytes are others now, and nobody told the machine.
        self.room().machine.flush();
        self.map_what_is_wanted(wanted)?;
        self.room_mut().vcpu.set_state(&case.state);
        self.room_mut().turns.iter_mut().for_each(Turns::begin);
        let mut run = Run { case, map, events_applied: 0, executed: 0 };
        self.progress.iter_mut().for_each(Vec::clear);
        self.note_figures();
        let stop = loop {
            let end = self.leg(&mut run)?;
            self.note_figures();
            match end {
                LegEnd::Stop(stop) => break stop,
                LegEnd::Trigger => self.apply_event(&mut run)?,
            }
            self.note_figures();
        };
        if !stop.is_exact() {
            return Ok(Outcome::inexact(stop, run.events_applied));
        }
        let memory = self.memory.changes(case);
        Ok(Outcome {
            stop,
            events_applied: run.events_applied,
            state: as_interrupted(self.room().vcpu.state()),
            memory,
        })
    }

    fn map_what_is_wanted(&mut self, wanted: Vec<Present>) -> Result<(), MapError> {
        let room = &mut self.rooms[self.current];
        if wanted == room.present {
            return Ok(());
        }
        for old in std::mem::take(&mut room.present) {
            if !wanted.contains(&old) {
                room.machine.unmap(old.mapping.range)?;
            } else {
                room.present.push(old);
            }
        }
        for new in &wanted {
            if !room.present.contains(new) {
                let Mapping { range, permissions, .. } = new.mapping;
                room.machine.map_shared(range, &self.backing, new.position, permissions)?;
            }
        }
        room.present = wanted;
        Ok(())
    }

    fn presence(&self, map: &MapModel) -> Vec<Present> {
        let place = |mapping: &Mapping| self.memory.position(mapping.object, mapping.offset);
        map.mappings()
            .iter()
            .map(|&mapping| Present { mapping, position: place(&mapping) })
            .collect()
    }

    fn apply_event(&mut self, run: &mut Run<'_>) -> Result<(), Failed> {
        let event = &run.case.events[run.events_applied];
        for action in &event.actions {
            self.apply(action)?;
            run.map.apply(action).expect("the actions of a valid case can be carried out");
        }
        self.room_mut().present = self.presence(&run.map);
        run.events_applied += 1;
        Ok(())
    }

    fn apply(&mut self, action: &Action) -> Result<(), Failed> {
        match action {
            Action::Write { address, bytes } => {
                let written = self.room().machine.write(*address, bytes);
                written.expect("a valid case writes where something is mapped");
            }
            Action::Map(mapping) => {
                let place = self.memory.position(mapping.object, mapping.offset);
                let Mapping { range, permissions, .. } = *mapping;
                self.room().machine.map_shared(range, &self.backing, place, permissions)?;
            }
            Action::Unmap(range) => self.room().machine.unmap(*range)?,
            Action::Protect { range, permissions } => {
                self.room().machine.protect(*range, *permissions)?
            }
            Action::Alias { source, destination } => {
                self.room().machine.alias(*source, *destination)?
            }
            Action::Remap { source, destination } => {
                self.room().machine.remap(*source, *destination)?
            }
            Action::ExitRequest => self.room().vcpu.kick().ask(),
        }
        Ok(())
    }

    fn leg(&mut self, run: &mut Run<'_>) -> Result<LegEnd, Failed> {
        let left = run.case.limit.map(|limit| limit - run.executed);
        if left == Some(0) {
            return Ok(LegEnd::Stop(Stop::Limit));
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
            self.room().machine.set_breakpoint(address);
        }
        self.watchdog.begin(&self.room().vcpu.kick());
        let (exit, done) = self.run_to_end(budget, breakpoint);
        let run_away = self.watchdog.end();
        if let Some(address) = breakpoint {
            self.room().machine.clear_breakpoint(address);
        }
        run.executed += done;
        if run_away {
            return Ok(LegEnd::Stop(Stop::TimeLimit));
        }
        self.interpret(exit, trigger, wanted == Some(done))
    }

    /// Runs on after requests to leave that come from an event. Gives how many instructions were executed too, if
    /// that is counted.
    fn run_to_end(&mut self, budget: Option<u64>, breakpoint: Option<GuestAddress>) -> (Exit, u64) {
        let mut executed = 0;
        loop {
            let left = budget.map(|budget| budget - executed);
            let Room { vcpu, turns, .. } = self.room_mut();
            let (exit, done) = match turns {
                Some(turns) => turns.run(vcpu, left, breakpoint),
                None => {
                    let before = vcpu.executed();
                    (vcpu.run(left), vcpu.executed() - before)
                }
            };
            executed += done;
            match exit {
                Exit::Requested if !self.watchdog.fired() => {}
                exit => return (exit, executed),
            }
        }
    }

    fn interpret(
        &self,
        exit: Exit,
        trigger: Option<Trigger>,
        counted: bool,
    ) -> Result<LegEnd, Failed> {
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
                if at == Some(self.room().vcpu.rip()) {
                    return Ok(LegEnd::Trigger);
                }
                Stop::Limit
            }
            Exit::SystemCall => Stop::SystemCall,
            Exit::LegacySystemCall => Stop::LegacySystemCall,
            Exit::Exception { vector, error, address } => {
                Stop::Exception { vector: ExceptionVector(vector), error: Some(error), address }
            }
            Exit::Stopped => Stop::Lost(Loss::Overran),
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

    fn figures(&self) -> Vec<(&'static str, u64)> {
        self.room().machine.figures().rows().to_vec()
    }

    fn set_time_limit(&mut self, limit: Duration) {
        self.watchdog.set_limit(limit);
        self.limited = true;
    }

    fn run(&mut self, case: &Case) -> Result<Outcome, Unsupported> {
        let result = self.run_case(case);
        if result.is_err() {
            // Whatever is mapped now, the next case starts from nothing.
            let machine = &self.room().machine;
            let all: Vec<_> = machine.regions().iter().map(|mapping| mapping.range).collect();
            for range in all {
                self.room().machine.unmap(range).expect("what is mapped can be unmapped");
            }
            self.room_mut().present.clear();
        }
        result.map_err(|Failed(unsupported)| unsupported)
    }

    fn run_beside(&mut self, case: &Case, silicon: Stop) -> Result<Outcome, Unsupported> {
        let outcome = self.run(case)?;
        if outcome.stop != Stop::TimeLimit || silicon == Stop::TimeLimit || self.limited {
            return Ok(outcome);
        }
        self.watchdog.set_limit(PATIENT_LEG_LIMIT);
        let outcome = self.run(case);
        self.watchdog.set_limit(LEG_LIMIT);
        outcome
    }
}

/// A null selector as any interrupt leaves it, whose return clears its low bits: a state that was read
/// out of a process has no other.
fn as_interrupted(mut state: State) -> State {
    for selector in &mut state.selectors.0 {
        if *selector & !3 == 0 {
            *selector = 0;
        }
    }
    state
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
