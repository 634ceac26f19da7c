//! [`Silicon`]: the host's own processor as an engine, and the judge of all others.
//!
//! A case runs in a child process that has nothing of its own but a short stub (`stub`): the
//! guest's pages lie at the guest's own addresses and are the same memory that this process sees.
//! Each leg loads the whole state, jumps into the guest, and takes the state from the signal frame
//! that ends it (`frame`). A guest's system calls are stopped by seccomp; a guest that runs on is
//! stopped by its processor time; a child that is lost is replaced before the next case (`child`).
//!
//! Legs that need to stop at an instruction count or a breakpoint are single-stepped by the trap
//! flag, whose traces in the guest's state are wiped off (`step`); where nobody looks on, the stub
//! steps by itself (`countdown`).
//!
//! What a guest could do to see the difference from a bare processor: read or write the stub's span
//! at [`Silicon::base`] (a write is told as [`Loss::Overwritten`]), and call the three entries of the
//! kernel's vsyscall page.

mod child;
mod countdown;
mod frame;
mod int1;
mod layout;
mod rooms;
mod step;
mod stub;

use std::io;
use std::time::Duration;

use iced_x86::{Instruction, Mnemonic};

use child::{Answer, Child, USER_END};
use countdown::Countdown;
use frame::Frame;
use layout::{SPAN, request};
use rooms::{Present, Rooms};
pub use step::{Step, Trace};

use super::case_memory::CaseMemory;
use super::{Capabilities, Engine, Unsupported, Visible};
use crate::case::{Action, Case, ExceptionVector, Loss, MapModel, Outcome, Stop, Trigger};
use crate::guest::{GuestAddress, GuestRange, Permissions, State, Xstate, decoder};

/// Where the child's span is put: the first place that the case does not use. Nothing is special
/// about them but that neither programs nor interesting values tend to lie there.
const BASES: [u64; 3] = [0x3a5c_71e9_4000, 0x1d93_b2c6_8000, 0x52e7_0b8d_f000];

/// Processor time of a leg after which its guest may have run away …
const LEG_TIME: Duration = Duration::from_millis(10);
/// … and after which, in a second try, it has. Under a hypervisor a process is charged for time in
/// which its virtual CPU did not run, so one look does not tell.
const SECOND_LEG_TIME: Duration = Duration::from_secs(2);

/// See the file's head.
#[derive(Debug)]
pub struct Silicon {
    name: String,
    capabilities: Capabilities,
    xstate: Xstate,
    memory: CaseMemory,
    rooms: Rooms,
    /// Processor time that a leg may take, if it was set; else there are two tries.
    time_limit: Option<Duration>,
    /// See [`int1`].
    reports_int1_early: bool,
}

/// A run between two answers of the child.
struct Run<'a> {
    case: &'a Case,
    map: MapModel,
    /// The map may not be what is mapped in the child.
    map_changed: bool,
    state: Box<State>,
    events_applied: usize,
    /// Instructions executed, if they are counted.
    executed: u64,
    /// The same, of this leg.
    executed_in_leg: u64,
}

/// Called before each instruction of a run that is stepped.
type Observer<'a> = dyn FnMut(&Silicon, &Run<'_>) + 'a;

/// Why a run cannot go on to a stop of the guest's own.
enum Broken {
    Unsupported(Unsupported),
    Stop(Stop),
}

impl From<Unsupported> for Broken {
    fn from(unsupported: Unsupported) -> Self {
        Self::Unsupported(unsupported)
    }
}

impl Silicon {
    /// An engine called `silicon`. It needs memfds, `/proc`, seccomp, and FSGSBASE in user mode.
    pub fn new() -> io::Result<Self> {
        Self::named("silicon")
    }

    /// An engine of another name, for comparing the host with itself.
    pub fn named(name: &str) -> io::Result<Self> {
        Ok(Self { reports_int1_early: int1::is_reported_early()?, ..Self::untried(name)? })
    }

    /// One that takes the hypervisor at its word.
    fn untried(name: &str) -> io::Result<Self> {
        const HWCAP2_FSGSBASE: u64 = 1 << 1;
        if rustix::param::linux_hwcap().1 as u64 & HWCAP2_FSGSBASE == 0 {
            return Err(io::Error::other("the silicon engine needs FSGSBASE in user mode"));
        }
        let xstate = Xstate::of_this_host();
        let capabilities = Capabilities {
            visible: Visible::of_host(&xstate),
            runs_on_silicon: true,
            counts: true,
            lacks: vec![
                "pages below the host's mmap_min_addr and above 0x7fffffffefff".to_owned(),
                "segment selectors other than the host's own".to_owned(),
            ],
        };
        let memory = CaseMemory::new()?;
        let mut silicon = Self {
            name: name.to_owned(),
            capabilities,
            xstate,
            memory,
            rooms: Rooms::default(),
            time_limit: None,
            reports_int1_early: false,
        };
        silicon.start_child(BASES[0])?;
        Ok(silicon)
    }

    /// Where the stub of the present child lies: the one span that no guest can have.
    #[must_use]
    pub fn base(&self) -> Option<GuestRange> {
        let base = self.rooms.current()?.child.base();
        GuestRange::new(GuestAddress(base), SPAN as u64).ok()
    }

    /// Process number of the present child.
    #[must_use]
    pub fn child_id(&self) -> Option<u32> {
        self.rooms.current().map(|room| room.child.id())
    }

    /// All that is to be seen of a run that ended with `stop`.
    fn outcome(&self, run: Run<'_>, stop: Stop) -> Outcome {
        if !stop.is_exact() {
            return Outcome::inexact(stop, run.events_applied);
        }
        let memory = self.memory.changes(run.case);
        Outcome { stop, events_applied: run.events_applied, state: *run.state, memory }
    }

    /// Processor time of a leg after which a first try ends.
    fn first_limit(&self) -> Duration {
        self.time_limit.unwrap_or(LEG_TIME)
    }

    fn start_child(&mut self, base: u64) -> io::Result<()> {
        tracing::debug!("starting a silicon child at {base:#x}");
        self.rooms.add(Child::start(base, self.memory.file(), LEG_TIME)?);
        Ok(())
    }

    /// Takes a child that does not lie where the case wants pages, best one that has its mappings; whether
    /// it has them.
    fn prepare_child(&mut self, case: &Case, map: &MapModel) -> Result<bool, Unsupported> {
        if ranges(case).any(|range| range.last().0 >= USER_END) {
            return Err(Unsupported::new("pages above the user half of the address space"));
        }
        let is_free = |base: u64| {
            GuestRange::new(GuestAddress(base), SPAN as u64)
                .is_ok_and(|span| !ranges(case).any(|range| range.overlaps(span)))
        };
        let wanted = Present::all(map, &self.memory);
        if self.rooms.take(&wanted, is_free) {
            return Ok(self.rooms.current().is_some_and(|room| room.has(&wanted)));
        }
        let base = BASES.into_iter().find(|&base| is_free(base));
        let base = base.ok_or_else(|| Unsupported::new("no room for the stub beside the pages"))?;
        self.start_child(base)
            .map_err(|error| Unsupported::new(format!("the child cannot be started: {error}")))?;
        Ok(false)
    }

    /// Runs a case. If there is an `observer`, it is called before each instruction.
    fn run_observed<'a>(
        &mut self,
        case: &'a Case,
        leg_time: Duration,
        mut observer: Option<&mut Observer<'_>>,
    ) -> Result<(Run<'a>, Stop), Unsupported> {
        self.memory.load(case);
        let map = MapModel::initial(case);
        let is_mapped = self.prepare_child(case, &map)?;
        if let Some(room) = self.rooms.current_mut() {
            room.child.set_leg_time(leg_time);
        }
        let mut run = Run {
            case,
            map,
            map_changed: !is_mapped,
            state: Box::new(case.state.clone()),
            events_applied: 0,
            executed: 0,
            executed_in_leg: 0,
        };
        loop {
            match self.leg(&mut run, observer.as_deref_mut()) {
                Ok(LegEnd::Trigger) => self.apply_event(&mut run),
                Ok(LegEnd::Stop(stop)) => return Ok((run, stop)),
                Err(Broken::Stop(stop)) => {
                    self.rooms.drop_current();
                    return Ok((run, stop));
                }
                Err(Broken::Unsupported(unsupported)) => return Err(unsupported),
            }
        }
    }

    fn apply_event(&mut self, run: &mut Run<'_>) {
        self.memory.apply(&mut run.map, &run.case.events[run.events_applied]);
        run.map_changed = true;
        run.events_applied += 1;
    }

    fn leg(
        &mut self,
        run: &mut Run<'_>,
        observer: Option<&mut Observer<'_>>,
    ) -> Result<LegEnd, Broken> {
        let trigger = run.case.events.get(run.events_applied).map(|event| event.trigger);
        let counted = matches!(trigger, Some(Trigger::Count(_) | Trigger::Breakpoint(_)));
        if counted || run.case.limit.is_some() || observer.is_some() {
            return self.stepped_leg(run, trigger, observer);
        }
        let frame = self.enter(run, Countdown::default(), None)?;
        let end = self.interpret(run, &frame);
        Ok(match (end, trigger) {
            (Stop::Halt, Some(Trigger::Halt)) => LegEnd::Trigger,
            (stop, _) => LegEnd::Stop(stop),
        })
    }

    /// Runs the guest from `run.state` until a signal ends it, and takes its state over. With a
    /// `countdown`, `first` is the first instruction.
    fn enter(
        &mut self,
        run: &mut Run<'_>,
        countdown: Countdown,
        first: Option<&Instruction>,
    ) -> Result<Frame, Broken> {
        let lost = || Broken::Stop(Stop::Lost(Loss::Hung));
        let xstate = self.xstate;
        let room = self.rooms.current_mut().ok_or_else(lost)?;
        let commands = match std::mem::take(&mut run.map_changed) {
            true => room.remap(Present::all(&run.map, &self.memory)),
            false => Vec::new(),
        };
        let child = &mut room.child;
        load_state(child, &xstate, &run.state);
        countdown.store(child, run.state.rip, first);
        match child.request(&commands, true) {
            Answer::Done => {}
            Answer::Failed(errno) => {
                self.rooms.drop_current();
                let error = io::Error::from_raw_os_error(errno);
                return Err(Unsupported::new(format!("the host refuses a mapping: {error}")).into());
            }
            Answer::RanOn => return Err(Broken::Stop(Stop::TimeLimit)),
            Answer::Lost(loss) => return Err(Broken::Stop(Stop::Lost(loss))),
        }
        let overwritten = || Broken::Stop(Stop::Lost(Loss::Overwritten));
        let frame = Frame::read(child, &xstate, &mut run.state).ok_or_else(overwritten)?;
        if child.is_untouched(frame.start) { Ok(frame) } else { Err(overwritten()) }
    }

    /// Says what stopped the guest.
    fn interpret(&self, run: &mut Run<'_>, frame: &Frame) -> Stop {
        if frame.signal == libc::SIGSYS {
            let code = self.memory.read(&run.map, GuestAddress(run.state.rip.wrapping_sub(2)), 2);
            return if code == [0xcd, 0x80] { Stop::LegacySystemCall } else { Stop::SystemCall };
        }
        let vector = ExceptionVector(frame.trap as u8);
        if vector == ExceptionVector::GP
            && let Some(length) = self.memory.halt_length(&run.map, GuestAddress(run.state.rip))
        {
            run.state.rip = run.state.rip.wrapping_add(length);
            return Stop::Halt;
        }
        if self.reports_int1_early && frame.may_be_int1() {
            let code = self.memory.read(&run.map, GuestAddress(run.state.rip), 15);
            let next = decoder(&code, run.state.rip).decode();
            if next.mnemonic() == Mnemonic::Int1 {
                run.state.rip = next.next_ip();
            }
        }
        let page_fault = vector == ExceptionVector::PF;
        let error = if page_fault { page_fault_error(&run.map, frame) } else { frame.error as u32 };
        Stop::Exception { vector, error: Some(error), address: page_fault.then_some(frame.cr2) }
    }
}

enum LegEnd {
    /// The trigger of the next event was met.
    Trigger,
    Stop(Stop),
}

impl Engine for Silicon {
    fn name(&self) -> &str {
        &self.name
    }

    fn version(&self) -> String {
        processor_name()
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn set_time_limit(&mut self, limit: Duration) {
        self.time_limit = Some(limit);
    }

    fn run(&mut self, case: &Case) -> Result<Outcome, Unsupported> {
        let (mut run, mut stop) = self.run_observed(case, self.first_limit(), None)?;
        if stop == Stop::TimeLimit && self.time_limit.is_none() {
            (run, stop) = self.run_observed(case, SECOND_LEG_TIME, None)?;
        }
        if let Stop::Exception { address: Some(address), .. } = stop
            && !is_canonical(address)
        {
            // The processor has no such page fault: the kernel has executed an instruction for the
            // guest (UMIP) and says so where it failed.
            return Err(Unsupported::new("a page fault that only the kernel makes"));
        }
        Ok(self.outcome(run, stop))
    }
}

/// Whether bits 63–47 of an address are all alike.
fn is_canonical(address: u64) -> bool {
    matches!(address as i64 >> 47, 0 | -1)
}

/// Every range that the case maps at any time.
fn ranges(case: &Case) -> impl Iterator<Item = GuestRange> + '_ {
    let actions = case.events.iter().flat_map(|event| &event.actions);
    let mapped = actions.filter_map(|action| match action {
        Action::Map(mapping) => Some(mapping.range),
        Action::Alias { source, destination } | Action::Remap { source, destination } => {
            GuestRange::new(*destination, source.size()).ok()
        }
        Action::Write { .. } | Action::Unmap(_) | Action::Protect { .. } | Action::ExitRequest => {
            None
        }
    });
    case.mappings.iter().map(|mapping| mapping.range).chain(mapped)
}

/// Puts `state` where the stub loads it from.
fn load_state(child: &mut Child, xstate: &Xstate, state: &State) {
    child.write_u64(request::COMPONENTS, xstate.components());
    child.write_u64(request::BASES, state.fs_base);
    child.write_u64(request::BASES + 8, state.gs_base);
    let selector = |index: usize| u64::from(state.selectors.0[index]);
    let frame = [state.rip, selector(1), state.rflags, state.gpr[4], selector(2)];
    for (index, word) in frame.into_iter().enumerate() {
        child.write_u64(request::RETURN_FRAME + index * 8, word);
    }
    for (index, word) in state.gpr.into_iter().enumerate() {
        child.write_u64(request::GPR + index * 8, word);
    }
    xstate.store(state, child.bytes_mut(request::XSAVE, xstate.size()));
}

/// The error code of a page fault. The kernel fills page tables when it pleases, so the processor's
/// P bit is chance under it; here it is what the case's own mappings make it (Intel SDM volume 3A,
/// section 4.7): set where the page is mapped.
fn page_fault_error(map: &MapModel, frame: &Frame) -> u32 {
    let mapped = map
        .find(GuestAddress(frame.cr2))
        .is_some_and(|mapping| mapping.permissions != Permissions::None);
    frame.error as u32 & !1 | u32::from(mapped)
}

/// The brand string of the host's processor (CPUID leaves 80000002H–80000004H).
fn processor_name() -> String {
    let leaf = |leaf: u32| std::arch::x86_64::__cpuid(leaf);
    if leaf(0x8000_0000).eax < 0x8000_0004 {
        return "x86-64 processor".to_owned();
    }
    let words = (0x8000_0002..=0x8000_0004).map(leaf);
    let words = words.flat_map(|words| [words.eax, words.ebx, words.ecx, words.edx]);
    let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).take_while(|&byte| byte != 0).collect();
    String::from_utf8_lossy(&bytes).split_whitespace().collect::<Vec<_>>().join(" ")
}
