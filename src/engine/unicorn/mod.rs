//! [`Unicorn`]: the emulator of that name as an engine, version 2.1 with its core of QEMU 5.0.1.
//!
//! The guest's memory is the host's: the objects of a case lie in one memfd, which is the machine's
//! physical memory, and a page table of ours says what the guest finds where. The machine is kept
//! from case to case. Unicorn does not notice that the host writes to code, so translations are
//! dropped before each case and after each event. Counts and breakpoints need a call before each
//! instruction; cases that have them run on a machine of their own, so that the others run at full
//! speed.
//!
//! Guests run at privilege level 3. A `hlt` there is a general-protection fault, which ends a leg
//! as it does on silicon.

mod filter;
mod library;
mod observer;
mod page_table;
mod registers;
mod stretch;

use std::io;
use std::time::Duration;

pub use self::filter::Filter;
pub(crate) use self::library::protection;
use self::library::{Error, Instruments, Machine, Stopper};
use self::observer::{Access, Observer, Pause};
use self::page_table::PageTable;
pub(crate) use self::registers::GPR;
use self::registers::RegisterFile;
use super::case_memory::CaseMemory;
use super::watchdog::Watchdog;
use super::{Capabilities, Engine, Unsupported, Visible};
use crate::case::{Case, Event, ExceptionVector, MapModel, Outcome, Stop, Trigger};
use crate::guest::{GuestAddress, Permissions, State};

/// Processor time that one leg may take, unless another is set.
const LEG_LIMIT: Duration = Duration::from_millis(200);

/// See the file's head.
pub struct Unicorn {
    memory: CaseMemory,
    watchdog: Watchdog<Stopper>,
    capabilities: Capabilities,
    filter: Filter,
    /// By [`Instruments`], made when first needed, given up when the library reports an error.
    machines: [Option<Machine>; 2],
}

/// A case under way.
struct Run<'case> {
    case: &'case Case,
    map: MapModel,
    state: State,
    events_applied: usize,
    /// Instructions done in the legs before this one.
    executed: u64,
}

enum LegEnd {
    /// The trigger of the next event was met.
    Trigger,
    Stop(Stop),
}

impl Unicorn {
    /// An engine that refuses cases with extensions that Unicorn is known to lack, and with
    /// instructions that can end this process.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            memory: CaseMemory::new()?,
            watchdog: Watchdog::start(LEG_LIMIT)?,
            capabilities: capabilities(),
            filter: Filter::LackingAndCrashing,
            machines: [None, None],
        })
    }

    /// The same engine with another choice of what to refuse.
    #[must_use]
    pub fn with_filter(self, filter: Filter) -> Self {
        Self { filter, ..self }
    }

    /// Where the library's code lies in this process, to tell which library it is.
    #[must_use]
    pub fn library_address() -> usize {
        library::entry_point()
    }

    fn run_on(&mut self, machine: &mut Machine, case: &Case) -> Result<Outcome, Error> {
        self.memory.load(case);
        let map = MapModel::initial(case);
        let state = case.state.clone();
        let mut run = Run { case, map, state, events_applied: 0, executed: 0 };
        let stop = loop {
            machine.set_page_table(PageTable::new(&self.memory, &run.map))?;
            match self.leg(machine, &mut run)? {
                LegEnd::Stop(stop) => break stop,
                LegEnd::Trigger => self.apply_event(&mut run),
            }
        };
        if !stop.is_exact() {
            return Ok(Outcome::inexact(stop, run.events_applied));
        }
        let (events_applied, state) = (run.events_applied, run.state);
        Ok(Outcome { stop, events_applied, state, memory: self.memory.changes(case) })
    }

    fn apply_event(&mut self, run: &mut Run<'_>) {
        self.memory.apply(&mut run.map, &run.case.events[run.events_applied]);
        run.events_applied += 1;
    }

    fn leg(&mut self, machine: &mut Machine, run: &mut Run<'_>) -> Result<LegEnd, Error> {
        let left = run.case.limit.map(|limit| limit - run.executed);
        if left == Some(0) {
            return Ok(LegEnd::Stop(Stop::Limit));
        }
        let trigger = run.case.events.get(run.events_applied).map(|event| event.trigger);
        let (wanted, breakpoint) = match trigger {
            Some(Trigger::Count(count)) => (Some(count), None),
            Some(Trigger::Breakpoint(address)) => (None, Some(address.0)),
            Some(Trigger::Halt) | None => (None, None),
        };
        let count = wanted.into_iter().chain(left).min();
        machine.observer().begin_leg(count, breakpoint);
        let end = self.run_to_end(machine, run, count)?;
        let done = machine.observer().done;
        run.executed += done;
        Ok(match end {
            End::Pause(Pause::Count)
                if wanted != Some(done) && breakpoint != Some(run.state.rip) =>
            {
                LegEnd::Stop(Stop::Limit)
            }
            End::Pause(_) => LegEnd::Trigger,
            End::Stop(Stop::Halt) if trigger == Some(Trigger::Halt) => {
                run.executed += 1;
                LegEnd::Trigger
            }
            End::Stop(stop) => LegEnd::Stop(stop),
        })
    }

    /// Runs the guest until it pauses, at most behind `count` instructions, or stops, and takes over its registers.
    fn run_to_end(
        &mut self,
        machine: &mut Machine,
        run: &mut Run<'_>,
        count: Option<u64>,
    ) -> Result<End, Error> {
        machine.reset()?;
        machine.write_registers(RegisterFile::from_state(&run.state))?;
        let start = run.state.rip;
        let code = |length| self.memory.read(&run.map, GuestAddress(start), length);
        let ends = stretch::ends(code, start, count);
        self.watchdog.begin(machine.stopper());
        let result = stretch::run(machine, start, &ends, || self.watchdog.fired());
        if self.watchdog.end() {
            return Ok(End::Stop(Stop::TimeLimit));
        }
        machine.read_registers()?.into_state(&mut run.state);
        self.interpret(machine.observer(), run, result)
    }

    fn interpret(
        &self,
        observer: &mut Observer,
        run: &mut Run<'_>,
        result: Result<(), Error>,
    ) -> Result<End, Error> {
        if let Some((Access::Fetch, _)) = observer.fault {
            observer.fetch_failed(run.state.rip);
        }
        // Unicorn may come to the next instruction before it leaves with a fault of this one.
        if let (Some(pause), None | Some((Access::Fetch, _))) = (observer.pause, observer.fault) {
            return Ok(End::Pause(pause));
        }
        if observer.system_call {
            run.state.gpr[1] = run.state.rip;
            run.state.gpr[11] = run.state.rflags;
            return Ok(End::Stop(Stop::SystemCall));
        }
        Ok(End::Stop(match (observer.fault, observer.interrupt, result) {
            (Some((access, address)), ..) => page_fault(&run.map, access, address),
            (None, Some(vector), _) => self.interrupt(run, vector),
            (None, None, Err(Error::INSN_INVALID)) => exception(ExceptionVector::UD),
            (None, None, Err(error)) => return Err(error),
            (None, None, Ok(())) => Stop::Halt,
        }))
    }

    fn interrupt(&self, run: &mut Run<'_>, vector: u32) -> Stop {
        if vector == 0x80 {
            return Stop::LegacySystemCall;
        }
        let vector = ExceptionVector(vector as u8);
        match self.memory.halt_length(&run.map, GuestAddress(run.state.rip)) {
            Some(length) if vector == ExceptionVector::GP => {
                run.state.rip = run.state.rip.wrapping_add(length);
                Stop::Halt
            }
            _ => exception(vector),
        }
    }
}

impl Engine for Unicorn {
    fn name(&self) -> &str {
        "unicorn"
    }

    fn version(&self) -> String {
        let (major, minor, patch) = library::version();
        format!("Unicorn {major}.{minor}.{patch}")
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn set_time_limit(&mut self, limit: Duration) {
        self.watchdog.set_limit(limit);
    }

    fn run(&mut self, case: &Case) -> Result<Outcome, Unsupported> {
        if let Some(refused) = self.filter.refuses(case) {
            return Err(refused);
        }
        let failed = |error: Error| Unsupported::new(format!("Unicorn fails: {error}"));
        let instruments = instruments(case);
        let mut machine = match self.machines[instruments as usize].take() {
            Some(machine) => machine,
            None => Machine::new(instruments, self.memory.file()).map_err(failed)?,
        };
        // After an error the machine is not put back: who knows what state it is in.
        let outcome = self.run_on(&mut machine, case).map_err(failed)?;
        self.machines[instruments as usize] = Some(machine);
        Ok(outcome)
    }
}

/// What has to be compiled into the guest's code for `case`.
fn instruments(case: &Case) -> Instruments {
    let counts =
        |event: &Event| matches!(event.trigger, Trigger::Count(_) | Trigger::Breakpoint(_));
    if case.limit.is_some() || case.events.iter().any(counts) {
        Instruments::Instructions
    } else {
        Instruments::None
    }
}

enum End {
    Pause(Pause),
    Stop(Stop),
}

fn exception(vector: ExceptionVector) -> Stop {
    Stop::Exception { vector, error: None, address: None }
}

/// The page fault of a user-mode access (Intel SDM volume 3A, section 4.7 "Page-Fault Exceptions").
fn page_fault(map: &MapModel, access: Access, address: u64) -> Stop {
    let mapping = map.find(GuestAddress(address));
    let present = mapping.is_some_and(|mapping| mapping.permissions != Permissions::None);
    let kind = match access {
        Access::Read => 0,
        Access::Write => 1 << 1,
        Access::Fetch => 1 << 4,
    };
    let error = Some(u32::from(present) | kind | 1 << 2);
    Stop::Exception { vector: ExceptionVector::PF, error, address: Some(address) }
}

fn capabilities() -> Capabilities {
    let lacks = [
        "256-bit AVX, AVX2, FMA, F16C, AVX-512, XOP, 3DNow!, SHA, GFNI and VAES: invalid opcodes",
        "128-bit AVX: it runs as two-operand SSE, with wrong results",
        "exceptions of SSE arithmetic: neither raised nor noted in MXCSR",
        "alignment checks, of MOVAPS and its like as of EFLAGS.AC",
        "#GP for addresses that are not canonical: a page fault instead",
        "error codes of exceptions other than page faults",
        "#GP for `int n`: exception n instead",
        "#GP for `in` and `out`: they do nothing",
        "the last opcode and the pointers of the x87 unit",
    ];
    Capabilities {
        visible: Visible {
            vector_registers: registers::VECTORS,
            vector_bytes: 16,
            opmask: false,
            pkru: false,
            x87_pointers: false,
            error_codes: false,
            selectors: true,
        },
        runs_on_silicon: false,
        counts: true,
        lacks: lacks.map(str::to_owned).to_vec(),
    }
}
