//! Hooks: closures of the host that are called while guest code runs.
//!
//! * A *code hook* is called before each instruction of a range: blocks announce them (`announce`).
//! * A *block hook* is called where control arrives in a range: by a branch, behind an instruction
//!   that transfers control even if it did not, by falling in from outside, and where the host sets
//!   RIP. Blocks end where a range begins, and announce that control has arrived at their first instruction.
//! * A *memory hook* is called before each access to a range. The pages are trapped in the window
//!   ([`AddressSpace::set_traps`](crate::memory::AddressSpace::set_traps)), so that each access comes
//!   to the run loop.
//!
//! A code or block hook is called once for an instruction, however often that is started: a run that
//! ends before it (a hook that stops, a request to leave, a fault that the host repairs) goes on
//! behind the call.
//!
//! Hooks and devices run without any lock of the machine: they may take their time, and may use a
//! clone of the [`Machine`](super::Machine). Memory hooks and devices do so in the middle of an
//! instruction, whose rest meets what they have changed: if it may no longer make the access, it faults.
//! A LOCKed instruction stays atomic: if its operand was changed while its store was announced, it
//! starts again, and is announced again. One hook is called by one vCPU at a time. A hook that panics
//! ends the run by its panic. Nothing is left locked; after a panic in a memory hook or a device the
//! vCPU's registers may be those in the middle of the instruction, whose memory accesses before that
//! one are done.

use std::fmt;
use std::ops::{Bound, RangeBounds};

use super::announce::Place;
use super::hook_context::{HookContext, MemoryAccess};
use super::trace::Traced;
use crate::code::sync::{Arc, AtomicBool, FairMutex, Ordering};
use crate::guest::{GuestAddress, GuestRange, PAGE_SIZE};
use crate::memory::MapError;
use crate::translate::{Announced, Recorded, TraceOf};

/// Names a hook, to remove it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HookId(u64);

/// Why there is no hook.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// There is no address in the range.
    #[error("a hook needs a range of at least one address")]
    EmptyRange,
    /// A machine has one trace.
    #[error("there is a trace already")]
    Traced,
    /// The host refuses to protect the pages of the range.
    #[error("memory cannot be hooked: {0}")]
    Memory(#[from] MapError),
}

/// Addresses from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Span {
    pub(super) first: GuestAddress,
    pub(super) last: GuestAddress,
}

impl Span {
    pub(super) fn new(range: impl RangeBounds<GuestAddress>) -> Result<Self, HookError> {
        let first = match range.start_bound() {
            Bound::Included(first) => Some(first.0),
            Bound::Excluded(before) => before.0.checked_add(1),
            Bound::Unbounded => Some(0),
        };
        let last = match range.end_bound() {
            Bound::Included(last) => Some(last.0),
            Bound::Excluded(end) => end.0.checked_sub(1),
            Bound::Unbounded => Some(u64::MAX),
        };
        let ends = first.zip(last).filter(|(first, last)| first <= last);
        let (first, last) = ends.ok_or(HookError::EmptyRange)?;
        Ok(Self { first: GuestAddress(first), last: GuestAddress(last) })
    }

    pub(super) fn contains(self, address: GuestAddress) -> bool {
        (self.first..=self.last).contains(&address)
    }

    /// Whether `size` bytes at `address`, which may wrap, have one in common.
    fn touches(self, address: GuestAddress, size: usize) -> bool {
        self.contains(address) || self.first.0.wrapping_sub(address.0) < size as u64
    }

    /// The pages that it touches below `end`.
    fn pages_below(self, end: u64) -> Option<GuestRange> {
        let start = self.first.page_start();
        let last = self.last.0.min(end - 1) | (PAGE_SIZE - 1);
        let size = last.checked_sub(start.0)? + 1;
        GuestRange::new(start, size).ok()
    }
}

type CodeCall = dyn FnMut(&mut HookContext<'_>) + Send;
pub(super) type TraceCall = dyn FnMut(Traced<'_>) + Send;
pub(super) type MemoryCall = dyn FnMut(&MemoryAccess<'_>) + Send;

/// A closure with its place.
struct Hook<Call: ?Sized> {
    id: HookId,
    span: Span,
    closure: Arc<Closure<Call>>,
}

impl<Call: ?Sized> Clone for Hook<Call> {
    fn clone(&self) -> Self {
        Self { id: self.id, span: self.span, closure: Arc::clone(&self.closure) }
    }
}

/// All hooks. vCPUs have it too, so that it is never borrowed from under the lock while one of them is called.
#[derive(Clone, Default)]
pub(super) struct HookSet {
    code: Vec<Hook<CodeCall>>,
    blocks: Vec<Hook<CodeCall>>,
    memory: Vec<Hook<MemoryCall>>,
    trace: Option<(TraceOf, Hook<TraceCall>)>,
    /// Spans of the first two.
    of_code: Vec<(GuestAddress, GuestAddress)>,
    of_blocks: Vec<(GuestAddress, GuestAddress)>,
}

impl fmt::Debug for HookSet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("HookSet")
            .field("code", &self.of_code)
            .field("blocks", &self.of_blocks)
            .field("memory", &self.memory.iter().map(|hook| hook.span).collect::<Vec<_>>())
            .field("trace", &self.recorded())
            .finish_non_exhaustive()
    }
}

impl HookSet {
    fn note_change(&mut self) {
        let spans = |hooks: &[Hook<CodeCall>]| {
            hooks.iter().map(|hook| (hook.span.first, hook.span.last)).collect()
        };
        (self.of_code, self.of_blocks) = (spans(&self.code), spans(&self.blocks));
    }

    /// Whether none is on code.
    fn leave_code_alone(&self) -> bool {
        self.code.is_empty() && self.blocks.is_empty() && self.trace.is_none()
    }

    /// What is traced.
    pub(super) fn recorded(&self) -> Option<Recorded> {
        let (of, Hook { span, .. }) = self.trace.as_ref()?;
        Some(Recorded { of: *of, span: (span.first, span.last) })
    }

    /// Whoever is given the trace.
    pub(super) fn traced(&self) -> Option<&Closure<TraceCall>> {
        self.trace.as_ref().map(|(_, hook)| &*hook.closure)
    }

    /// The closures to be called at `pc` if control arrives there.
    pub(super) fn of_arrival(
        &self,
        pc: GuestAddress,
        place: Place,
    ) -> impl Iterator<Item = &Closure<CodeCall>> {
        let at = self.blocks.iter().filter(move |hook| hook.span.contains(pc));
        at.filter(move |hook| !place.continues(pc, hook.span)).map(|hook| &*hook.closure)
    }

    /// The closures to be called for the instruction at `pc`.
    pub(super) fn of_instruction(
        &self,
        pc: GuestAddress,
        place: Place,
    ) -> impl Iterator<Item = &Closure<CodeCall>> {
        let code = if place.is_announced(pc) { &[] } else { &self.code[..] };
        code.iter().filter(move |hook| hook.span.contains(pc)).map(|hook| &*hook.closure)
    }

    /// The closures to be called before an access.
    pub(super) fn due_for_access(
        &self,
        address: GuestAddress,
        size: usize,
    ) -> impl Iterator<Item = &Closure<MemoryCall>> + Clone {
        let due = self.memory.iter().filter(move |hook| hook.span.touches(address, size));
        due.map(|hook| &*hook.closure)
    }
}

/// What a hook calls, until it is removed.
pub(super) struct Closure<Call: ?Sized> {
    removed: AtomicBool,
    call: FairMutex<Call>,
}

impl<Call> Closure<Call> {
    fn new(call: Call) -> Arc<Self> {
        Arc::new(Self { removed: AtomicBool::new(false), call: FairMutex::new(call) })
    }
}

impl<Call: ?Sized> Closure<Call> {
    pub(super) fn with(&self, work: impl FnOnce(&mut Call)) {
        let mut call = self.call.lock();
        if !self.removed.load(Ordering::Acquire) {
            work(&mut call);
        }
    }

    /// From here on no call begins.
    fn remove(self: Arc<Self>) -> Arc<Self> {
        self.removed.store(true, Ordering::Release);
        self
    }
}

/// Everything that the run loop looks out for.
#[derive(Default)]
pub(super) struct Hooks {
    next: u64,
    breakpoints: Vec<GuestAddress>,
    set: Arc<HookSet>,
    /// There is a breakpoint, a code hook or a block hook.
    pub(super) on_code: bool,
}

impl fmt::Debug for Hooks {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Hooks")
            .field("breakpoints", &self.breakpoints)
            .field("set", &self.set)
            .finish_non_exhaustive()
    }
}

impl Hooks {
    fn new_id(&mut self) -> HookId {
        self.next += 1;
        HookId(self.next)
    }

    pub(super) fn add_code(
        &mut self,
        span: Span,
        call: impl FnMut(&mut HookContext<'_>) + Send + 'static,
    ) -> HookId {
        let id = self.new_id();
        Arc::make_mut(&mut self.set).code.push(Hook { id, span, closure: Closure::new(call) });
        self.note_change();
        id
    }

    pub(super) fn add_block(
        &mut self,
        span: Span,
        call: impl FnMut(&mut HookContext<'_>) + Send + 'static,
    ) -> HookId {
        let id = self.new_id();
        Arc::make_mut(&mut self.set).blocks.push(Hook { id, span, closure: Closure::new(call) });
        self.note_change();
        id
    }

    /// Nothing if there is a trace already.
    pub(super) fn add_trace(
        &mut self,
        (of, span): (TraceOf, Span),
        call: impl FnMut(Traced<'_>) + Send + 'static,
    ) -> Option<HookId> {
        if self.set.trace.is_some() {
            return None;
        }
        let id = self.new_id();
        let closure: Arc<Closure<TraceCall>> = Closure::new(call);
        Arc::make_mut(&mut self.set).trace = Some((of, Hook { id, span, closure }));
        self.note_change();
        Some(id)
    }

    /// The caller then traps [`Self::trapped_below`].
    pub(super) fn add_memory(
        &mut self,
        span: Span,
        call: impl FnMut(&MemoryAccess<'_>) + Send + 'static,
    ) -> HookId {
        let id = self.new_id();
        Arc::make_mut(&mut self.set).memory.push(Hook { id, span, closure: Closure::new(call) });
        id
    }

    /// Takes a hook out: its span, and the closure, to be dropped by the caller.
    pub(super) fn remove(&mut self, id: HookId) -> Option<(Span, Removed)> {
        let set = Arc::make_mut(&mut self.set);
        let taken = [&mut set.code, &mut set.blocks].into_iter().find_map(|hooks| {
            let at = hooks.iter().position(|hook| hook.id == id)?;
            Some(hooks.remove(at))
        });
        if let Some(hook) = taken {
            self.note_change();
            return Some((hook.span, Removed::Code(hook.closure.remove())));
        }
        if let Some((_, hook)) = set.trace.take_if(|(_, hook)| hook.id == id) {
            self.note_change();
            return Some((hook.span, Removed::Trace(hook.closure.remove())));
        }
        let place = set.memory.iter().position(|hook| hook.id == id)?;
        let hook = set.memory.remove(place);
        Some((hook.span, Removed::Memory(hook.closure.remove())))
    }

    /// Whether there was none yet.
    pub(super) fn add_breakpoint(&mut self, address: GuestAddress) -> bool {
        let Err(place) = self.breakpoints.binary_search(&address) else { return false };
        self.breakpoints.insert(place, address);
        self.note_change();
        true
    }

    /// Whether there was one.
    pub(super) fn remove_breakpoint(&mut self, address: GuestAddress) -> bool {
        let Ok(place) = self.breakpoints.binary_search(&address) else { return false };
        self.breakpoints.remove(place);
        self.note_change();
        true
    }

    fn note_change(&mut self) {
        Arc::make_mut(&mut self.set).note_change();
        self.on_code = !(self.breakpoints.is_empty() && self.set.leave_code_alone());
    }

    /// The hooks.
    pub(super) fn set(&self) -> &Arc<HookSet> {
        &self.set
    }

    /// What of the guest's code blocks are to announce.
    pub(super) fn announced(&self) -> Announced<'_> {
        Announced {
            instructions: &self.set.of_code,
            arrivals: &self.set.of_blocks,
            recorded: self.set.recorded(),
        }
    }

    /// Whether only the run loop may pass the instruction at `pc`.
    pub(super) fn is_breakpoint(&self, pc: GuestAddress) -> bool {
        self.breakpoints.binary_search(&pc).is_ok()
    }

    /// Whether translated code may jump to the block at `pc`.
    pub(super) fn allow_jump(&self, pc: GuestAddress) -> bool {
        !self.on_code || !self.is_breakpoint(pc)
    }

    /// How many bytes from `pc` on, which is no breakpoint, a block may be made of.
    pub(super) fn room(&self, pc: GuestAddress) -> u64 {
        if !self.on_code {
            return u64::MAX;
        }
        let traced = self.set.recorded().and_then(Recorded::arrivals);
        let spans = self.set.of_blocks.iter().copied().chain(traced).map(|(first, _)| first);
        let ends = spans.chain(self.breakpoints.iter().copied()).filter(|&end| end > pc);
        ends.map(|end| end.0 - pc.0).min().unwrap_or(u64::MAX)
    }

    /// The pages of memory hooks below `end`.
    pub(super) fn trapped_below(&self, end: u64) -> Vec<GuestRange> {
        self.set.memory.iter().filter_map(|hook| hook.span.pages_below(end)).collect()
    }

    /// Whether an access is some memory hook's business.
    pub(super) fn watch_memory(&self, address: GuestAddress, size: usize) -> bool {
        self.set.due_for_access(address, size).next().is_some()
    }
}

/// A closure that is no hook any more.
pub(super) enum Removed {
    Code(#[expect(dead_code, reason = "kept to be dropped")] Arc<Closure<CodeCall>>),
    Memory(#[expect(dead_code, reason = "kept to be dropped")] Arc<Closure<MemoryCall>>),
    Trace(#[expect(dead_code, reason = "kept to be dropped")] Arc<Closure<TraceCall>>),
}

impl Removed {
    pub(super) fn is_memory(&self) -> bool {
        matches!(self, Self::Memory(_))
    }
}
