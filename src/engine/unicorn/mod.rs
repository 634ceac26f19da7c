//! [`Unicorn`]: the emulator of that name as an engine, version 2.1 with its core of QEMU 5.0.1.
//!
//! The guest's memory is the host's: each object of a case lies in one memfd, and what the case maps
//! is that memory. Engine and mappings are kept from case to case. Unicorn notices neither that the
//! host writes to code nor that code is written under another address, so translations are dropped
//! before each case and after each event, and cases with writable aliases of code run on a machine
//! that watches stores. Counts and breakpoints need a call before each instruction; cases that have
//! them run on a machine of their own too, so that the others run at full speed.
//!
//! Guests run at privilege level 3. A `hlt` there is a general-protection fault, which ends a leg as
//! it does on silicon.

mod filter;
mod library;
mod mappings;
mod observer;
mod registers;
mod watchdog;

use std::io;
use std::time::Duration;

use iced_x86::{Decoder, DecoderOptions, Mnemonic};

use self::library::{Error, Instruments, Machine};
use self::mappings::{GuestMemory, has_code_aliases};
use self::observer::{Access, Pause};
use self::registers::RegisterFile;
use self::watchdog::Watchdog;
use super::case_memory::CaseMemory;
use super::{Capabilities, Engine, Unsupported, Visible};
use crate::case::{Action, Case, ExceptionVector, MapModel, Outcome, Stop, Trigger};
use crate::guest::{GuestAddress, Permissions, State};

/// Processor time that one leg may take.
const LEG_LIMIT: Duration = Duration::from_millis(100);

/// See the file's head.
pub struct Unicorn {
    memory: CaseMemory,
    watchdog: Watchdog,
    capabilities: Capabilities,
    filtered: bool,
    /// By [`Instruments`], made when first needed, given up when the library reports an error.
    machines: [Option<Guest>; 3],
}

/// A machine and what is mapped in it.
struct Guest {
    machine: Machine,
    mapped: GuestMemory,
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
    /// An engine that refuses cases with extensions that Unicorn is known to lack.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            memory: CaseMemory::new()?,
            watchdog: Watchdog::start(LEG_LIMIT)?,
            capabilities: capabilities(),
            filtered: true,
            machines: [None, None, None],
        })
    }

    /// The same engine, but it runs every case, whatever comes of it.
    #[must_use]
    pub fn unfiltered(self) -> Self {
        Self { filtered: false, ..self }
    }

    /// Where the library's code lies in this process, to tell which library it is.
    #[must_use]
    pub fn library_address() -> usize {
        library::entry_point()
    }

    fn run_on(&mut self, guest: &mut Guest, case: &Case) -> Result<Outcome, Error> {
        self.memory.load(case);
        let map = MapModel::initial(case);
        let state = case.state.clone();
        let mut run = Run { case, map, state, events_applied: 0, executed: 0 };
        guest.load(&self.memory, &run.map, Staleness::Contents)?;
        let stop = loop {
            match guest.leg(&mut run, &self.watchdog)? {
                LegEnd::Stop(stop) => break stop,
                LegEnd::Trigger => {
                    self.apply_event(&mut run);
                    guest.load(&self.memory, &run.map, Staleness::Everything)?;
                }
            }
        };
        if !stop.is_exact() {
            return Ok(Outcome::inexact(stop, run.events_applied));
        }
        let (events_applied, state) = (run.events_applied, run.state);
        Ok(Outcome { stop, events_applied, state, memory: self.memory.changes(case) })
    }

    fn apply_event(&mut self, run: &mut Run<'_>) {
        for action in &run.case.events[run.events_applied].actions {
            if let Action::Write { address, bytes } = action {
                self.memory.write(&run.map, *address, bytes);
            }
            run.map.apply(action).expect("the actions of a valid case can be carried out");
        }
        run.events_applied += 1;
    }

    /// What has to be compiled into the guest's code for `case`.
    fn instruments(&mut self, case: &Case) -> Instruments {
        let mut map = MapModel::initial(case);
        self.memory.load(case);
        let mut aliases = has_code_aliases(&self.memory, &map);
        for action in case.events.iter().flat_map(|event| &event.actions) {
            map.apply(action).expect("the actions of a valid case can be carried out");
            aliases |= changes_map(action) && has_code_aliases(&self.memory, &map);
        }
        let counts = |trigger| matches!(trigger, Trigger::Count(_) | Trigger::Breakpoint(_));
        if aliases {
            Instruments::InstructionsAndStores
        } else if case.limit.is_some() || case.events.iter().any(|event| counts(event.trigger)) {
            Instruments::Instructions
        } else {
            Instruments::None
        }
    }
}

fn changes_map(action: &Action) -> bool {
    !matches!(action, Action::Write { .. } | Action::ExitRequest)
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

    fn run(&mut self, case: &Case) -> Result<Outcome, Unsupported> {
        if self.filtered
            && let Some(lacking) = filter::lacking(case)
        {
            return Err(lacking);
        }
        let failed = |error: Error| Unsupported::new(format!("Unicorn fails: {error}"));
        let instruments = self.instruments(case);
        let mut guest = match self.machines[instruments as usize].take() {
            Some(guest) => guest,
            None => Guest::new(instruments, &self.memory).map_err(failed)?,
        };
        // After an error the machine is not put back: who knows what state it is in.
        let outcome = self.run_on(&mut guest, case).map_err(failed)?;
        self.machines[instruments as usize] = Some(guest);
        Ok(outcome)
    }
}

/// Which translations a machine may hold that are out of date.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Staleness {
    /// Those of what is executable now, unless the map changes too.
    Contents,
    /// All.
    Everything,
}

impl Guest {
    fn new(instruments: Instruments, memory: &CaseMemory) -> Result<Self, Error> {
        let machine = Machine::new(instruments, memory.file())?;
        Ok(Self { machine, mapped: GuestMemory::default() })
    }

    /// Makes the machine's memory what `map` wants and drops what it remembers of any other.
    fn load(
        &mut self,
        memory: &CaseMemory,
        map: &MapModel,
        staleness: Staleness,
    ) -> Result<(), Error> {
        let remapped = self.mapped.synchronize(&mut self.machine, memory, map)?;
        if remapped || staleness == Staleness::Everything {
            self.machine.observer().code_aliases = self.mapped.code_aliases();
            return self.machine.flush();
        }
        self.mapped.executable().try_for_each(|range| self.machine.forget_code(range))
    }

    fn leg(&mut self, run: &mut Run<'_>, watchdog: &Watchdog) -> Result<LegEnd, Error> {
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
        self.machine.reset()?;
        self.machine.write_registers(RegisterFile::from_state(&run.state))?;
        self.machine.observer().begin_leg(count, breakpoint);
        let end = self.run_to_end(run, watchdog)?;
        let done = self.machine.observer().done;
        run.executed += done;
        Ok(match end {
            End::Pause(Pause::Count) if wanted != Some(done) => LegEnd::Stop(Stop::Limit),
            End::Pause(_) => LegEnd::Trigger,
            End::Stop(Stop::Halt) if trigger == Some(Trigger::Halt) => {
                run.executed += 1;
                LegEnd::Trigger
            }
            End::Stop(stop) => LegEnd::Stop(stop),
        })
    }

    /// Runs the guest until it pauses or stops, and takes over its registers.
    fn run_to_end(&mut self, run: &mut Run<'_>, watchdog: &Watchdog) -> Result<End, Error> {
        let mut start = run.state.rip;
        watchdog.begin(self.machine.stopper());
        let result = loop {
            let result = self.machine.start(start);
            if self.machine.observer().pause != Some(Pause::StaleCode) {
                break result;
            }
            start = self.machine.read_registers()?.rip();
            self.machine.flush()?;
            self.machine.observer().resume();
        };
        if watchdog.end() {
            return Ok(End::Stop(Stop::TimeLimit));
        }
        self.machine.read_registers()?.into_state(&mut run.state);
        self.interpret(run, result)
    }

    fn interpret(&mut self, run: &mut Run<'_>, result: Result<(), Error>) -> Result<End, Error> {
        let observer = self.machine.observer();
        if let Some((Access::Fetch, _)) = observer.fault {
            observer.fetch_failed(run.state.rip);
        }
        if let Some(pause) = observer.pause {
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

    fn interrupt(&mut self, run: &mut Run<'_>, vector: u32) -> Stop {
        if vector == 0x80 {
            return Stop::LegacySystemCall;
        }
        let vector = ExceptionVector(vector as u8);
        match self.halt_length(run.state.rip) {
            Some(length) if vector == ExceptionVector::GP => {
                run.state.rip = run.state.rip.wrapping_add(length);
                Stop::Halt
            }
            _ => exception(vector),
        }
    }

    /// The length of the instruction at `rip` if it is `hlt`.
    fn halt_length(&mut self, rip: u64) -> Option<u64> {
        let code = self.machine.read_memory::<15>(rip);
        if code.first() == Some(&0xf4) {
            return Some(1);
        }
        let instruction = Decoder::with_ip(64, &code, rip, DecoderOptions::NONE).decode();
        (instruction.mnemonic() == Mnemonic::Hlt).then_some(instruction.len() as u64)
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
        "AVX of 256 bits, AVX2, FMA, F16C, AVX-512, XOP, 3DNow!, SHA, GFNI and VAES are invalid opcodes.",
        "128-bit AVX runs as two-operand SSE and gives wrong results without a word.",
        "Exceptions of SSE arithmetic are neither raised nor noted in MXCSR.",
        "Alignment is never checked, neither by MOVAPS and its like nor by EFLAGS.AC.",
        "An access to a non-canonical address is a page fault.",
        "Error codes other than those of page faults are not told.",
        "`int n` is reported as exception n, where an operating system refuses most of them.",
        "The x87 unit keeps neither its last opcode nor its pointers.",
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
