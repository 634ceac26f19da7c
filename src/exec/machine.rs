//! [`Machine`]: guest memory and the code translated from it.

use std::io;
use std::ops::{RangeBounds, RangeInclusive};

use super::core::Core;
use super::cpuid::CpuidModel;
use super::hook_context::{HookContext, MemoryAccess};
use super::hooks::{HookError, HookId, Span};
use super::mmio::{Device, Mmio};
use super::shared::Shared;
use super::trace::Traced;
use super::vcpu::Vcpu;
use crate::code::Figures;
use crate::code::sync::{Arc, FairGuard};
use crate::guest::{GuestAddress, GuestRange, Permissions};
use crate::memory::{AccessError, AddressSpace, Backing, MapError, Mapping, Restored, Snapshot};
use crate::translate::TraceOf;

/// Guest memory in a window of the host's address space, and the code translated from it. Cheap to
/// clone; all clones are the same machine.
///
/// All of it can be called from any thread while vCPUs run in others. When a call returns, no vCPU
/// runs code that it has made invalid, and none will; only [`Self::invalidate_soon`] and
/// [`Self::invalidate_block_soon`] do not wait. Hooks and devices may call all of it too.
#[derive(Clone, Debug)]
pub struct Machine {
    shared: Arc<Shared>,
    window: u64,
}

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The guest's memory cannot be had.
    #[error("guest memory: {0}")]
    Memory(#[from] MapError),
    /// The host refuses code memory, a signal handler or a vCPU's pages.
    #[error("the host refuses: {0}")]
    Host(#[from] io::Error),
    /// The processor lacks something.
    #[error("the host's processor lacks {0}")]
    Lacks(&'static str),
    /// Code memory has bounds, since jumps reach all of it.
    #[error("{0} bytes of code memory: it can have 1 MiB to 1 GiB")]
    CodeMemory(usize),
}

/// Bytes of code memory, of which only what is used costs anything: if not said, and the bounds.
const CODE_MEMORY: usize = 256 << 20;
const CODE_MEMORY_BOUNDS: RangeInclusive<usize> = 1 << 20..=1 << 30;

impl Machine {
    /// A machine without memory, whose window has 2^`window_bits` bytes, 32 to 46. What is mapped
    /// above the window works, slowly.
    pub fn new(window_bits: u32) -> Result<Self, MachineError> {
        Self::with_code_memory(window_bits, CODE_MEMORY)
    }

    /// The same with so many bytes of memory for translated code, 1 MiB to 1 GiB, instead of 256 MiB.
    /// When it is full, what was not used for long is dropped.
    pub fn with_code_memory(window_bits: u32, bytes: usize) -> Result<Self, MachineError> {
        if !CODE_MEMORY_BOUNDS.contains(&bytes) {
            return Err(MachineError::CodeMemory(bytes));
        }
        const HWCAP2_FSGSBASE: u64 = 1 << 1;
        if !std::arch::is_x86_feature_detected!("bmi2") {
            return Err(MachineError::Lacks("BMI2"));
        }
        if !std::arch::is_x86_feature_detected!("xsave") {
            return Err(MachineError::Lacks("XSAVE"));
        }
        if rustix::param::linux_hwcap().1 as u64 & HWCAP2_FSGSBASE == 0 {
            return Err(MachineError::Lacks("FSGSBASE, or its kernel keeps it to itself"));
        }
        let memory = AddressSpace::new(window_bits)?;
        let window = memory.window_start() as u64;
        let core = Core::new(memory, bytes)?;
        Ok(Self { shared: Arc::new(Shared::new(core)), window })
    }

    /// A processor of this machine.
    pub fn vcpu(&self) -> Result<Vcpu, MachineError> {
        Ok(Vcpu::new(Arc::clone(&self.shared), self.window)?)
    }

    fn core(&self) -> FairGuard<'_, Core> {
        self.shared.lock()
    }

    /// Maps fresh zeroed memory where nothing is mapped.
    pub fn map(&self, range: GuestRange, permissions: Permissions) -> Result<(), MapError> {
        self.shared.change(|core| {
            core.memory.map(range, permissions)?;
            core.retire_range(range);
            Ok(())
        })
    }

    /// Maps part of a backing object, from `offset` on, where nothing is mapped.
    pub fn map_shared(
        &self,
        range: GuestRange,
        backing: &Backing,
        offset: u64,
        permissions: Permissions,
    ) -> Result<(), MapError> {
        self.shared.change(|core| {
            core.memory.map_shared(range, backing, offset, permissions)?;
            core.retire_range(range);
            Ok(())
        })
    }

    /// Takes a range away, all of which is mapped.
    pub fn unmap(&self, range: GuestRange) -> Result<(), MapError> {
        // What the closures of devices hold is dropped outside of the lock.
        let gone = self.shared.change(|core| {
            core.memory.unmap(range)?;
            core.retire_range(range);
            Ok::<_, MapError>(core.take_unused_devices())
        })?;
        drop(gone);
        Ok(())
    }

    /// Changes what the guest may do in a range, all of which is mapped.
    pub fn protect(&self, range: GuestRange, permissions: Permissions) -> Result<(), MapError> {
        self.shared.change(|core| {
            core.memory.protect(range, permissions)?;
            core.retire_range(range);
            Ok(())
        })
    }

    /// Maps what is mapped at `source` a second time at `destination`.
    pub fn alias(&self, source: GuestRange, destination: GuestAddress) -> Result<(), MapError> {
        self.shared.change(|core| {
            core.memory.alias(source, destination)?;
            if let Ok(range) = GuestRange::new(destination, source.size()) {
                core.retire_range(range);
            }
            Ok(())
        })
    }

    /// Moves what is mapped at `source` to `destination`, where nothing is mapped.
    pub fn remap(&self, source: GuestRange, destination: GuestAddress) -> Result<(), MapError> {
        self.shared.change(|core| {
            core.memory.remap(source, destination)?;
            core.retire_range(source);
            if let Ok(range) = GuestRange::new(destination, source.size()) {
                core.retire_range(range);
            }
            Ok(())
        })
    }

    /// Reads guest memory, whatever the guest may do there.
    pub fn read(&self, address: GuestAddress, bytes: &mut [u8]) -> Result<(), AccessError> {
        self.core().memory.read(address, bytes)
    }

    /// Writes guest memory, whatever the guest may do there; all of it or nothing. The guest's next
    /// instruction sees it, if it is code too.
    pub fn write(&self, address: GuestAddress, bytes: &[u8]) -> Result<(), AccessError> {
        self.shared.change(|core| core.write(address, bytes))
    }

    /// Everything that is mapped, in order of address.
    #[must_use]
    pub fn regions(&self) -> Vec<Mapping> {
        self.core().memory.regions().collect()
    }

    /// Notes the present memory, to come back to it.
    pub fn snapshot(&self) -> Result<Snapshot, MapError> {
        self.core().memory.snapshot()
    }

    /// Makes memory what it was at a snapshot. Costs as much as was changed since.
    pub fn restore(&self, snapshot: &Snapshot) -> Result<(), MapError> {
        // What the closures of devices hold is dropped outside of the lock.
        let gone = self.shared.change(|core| {
            let Restored { pages, ranges, .. } = core.memory.restore(snapshot)?;
            for page in pages {
                core.code_restored(page);
            }
            for range in ranges {
                core.retire_range(range);
            }
            Ok::<_, MapError>(core.take_unused_devices())
        })?;
        drop(gone);
        Ok(())
    }

    /// Stops the guest before the instruction at `address`, before any hook of it is called.
    pub fn set_breakpoint(&self, address: GuestAddress) {
        self.shared.change(|core| core.set_breakpoint(address));
    }

    /// Takes a breakpoint away; whether there was one.
    pub fn clear_breakpoint(&self, address: GuestAddress) -> bool {
        self.shared.change(|core| core.clear_breakpoint(address))
    }

    /// Calls `call` before each instruction that starts in `range`. This and the other hooks are
    /// described in [`HookContext`] and [`MemoryAccess`].
    pub fn hook_code(
        &self,
        range: impl RangeBounds<GuestAddress>,
        call: impl FnMut(&mut HookContext<'_>) + Send + 'static,
    ) -> Result<HookId, HookError> {
        let span = Span::new(range)?;
        Ok(self.shared.change(|core| core.hook_code(span, call)))
    }

    /// Calls `call` where control arrives in `range`: by a branch, behind an instruction that transfers
    /// control, by falling in from outside.
    pub fn hook_blocks(
        &self,
        range: impl RangeBounds<GuestAddress>,
        call: impl FnMut(&mut HookContext<'_>) + Send + 'static,
    ) -> Result<HookId, HookError> {
        let span = Span::new(range)?;
        Ok(self.shared.change(|core| core.hook_blocks(span, call)))
    }

    /// Calls `call` before each access of the guest to a byte of `range`, by whatever instruction, that
    /// the guest may make. Instruction fetches are none. A masked read is one of its whole operand.
    pub fn hook_memory(
        &self,
        range: impl RangeBounds<GuestAddress>,
        call: impl FnMut(&MemoryAccess<'_>) + Send + 'static,
    ) -> Result<HookId, HookError> {
        let span = Span::new(range)?;
        self.shared.change(|core| core.hook_memory(span, call))
    }

    /// Gives `call` the addresses of what vCPUs execute in `range`, many at a time: [`Traced`]. Costs a nanosecond or
    /// two for each, where a hook costs tens. What was executed to its end is in it, in order and once: an
    /// instruction that faults is not. A machine has one trace, which is removed like a hook; what was not given
    /// by then is lost.
    pub fn trace(
        &self,
        of: TraceOf,
        range: impl RangeBounds<GuestAddress>,
        call: impl FnMut(Traced<'_>) + Send + 'static,
    ) -> Result<HookId, HookError> {
        let span = Span::new(range)?;
        self.shared.change(|core| core.trace((of, span), call))
    }

    /// Takes a hook away; whether there was one. When it returns, no call begins any more; one
    /// under way in another thread goes on, and the closure is dropped behind it.
    pub fn remove_hook(&self, id: HookId) -> bool {
        self.shared.change(|core| core.unhook(id)).is_some()
    }

    /// Makes `range`, where nothing is mapped, a device: the guest's reads and writes call `call`, each
    /// once, in parts of at most 64 bytes that do not cross pages. It cannot be executed. [`Self::unmap`]
    /// and all else works as for memory; the device is dropped when it is mapped nowhere and no
    /// snapshot has it. What the closure holds is no part of snapshots, and the host's own reads and
    /// writes do not reach it.
    pub fn map_mmio(
        &self,
        range: GuestRange,
        call: impl FnMut(Mmio<'_>) + Send + 'static,
    ) -> Result<(), MapError> {
        let backing = Backing::device(range.size())?;
        self.shared.change(|core| {
            core.memory.map_shared(range, &backing, 0, Permissions::ReadWrite)?;
            core.retire_range(range);
            core.devices.push(Device::new(backing, call));
            Ok(())
        })
    }

    /// Drops all translated code. Needed only where a backing object was written by another process.
    pub fn flush(&self) {
        self.shared.change(|core| {
            core.retire_all();
            core.forget_writes();
        });
    }

    /// Drops the code translated from a range, as if the guest had written to it.
    pub fn invalidate(&self, range: GuestRange) {
        self.shared.change(|core| core.retire_range(range));
    }

    /// The same, but does not wait: a vCPU that runs such code now leaves it at its next poll.
    pub fn invalidate_soon(&self, range: GuestRange) {
        self.shared.change_soon(|core| core.retire_range(range));
    }

    /// Drops the translation of the block that starts at `address`, and nothing else: its region stays,
    /// and so do the blocks that jump to it, however many; they meet its patched entry. Whether there
    /// was one. For a change that is known to concern this block alone and that the machine cannot
    /// see, as of bytes that another process writes: the block is compared with memory when control
    /// arrives there, and translated anew if it differs. When this returns, no vCPU runs the old one.
    pub fn invalidate_block(&self, address: GuestAddress) -> bool {
        self.shared.change(|core| {
            let any = core.invalidate_block(address);
            // Even if there was none: one that `invalidate_block_soon` has dropped may still run.
            core.gates.invalidated();
            any
        })
    }

    /// The same, but asks no vCPU to come out: one that runs the block now goes on until its end. Costs
    /// the same for any number of blocks, jumps and vCPUs.
    pub fn invalidate_block_soon(&self, address: GuestAddress) -> bool {
        self.shared.change_soon(|core| core.invalidate_block(address))
    }

    /// Sets what guests read by CPUID.
    pub fn set_cpuid(&self, model: CpuidModel) {
        self.core().cpuid = model;
    }

    /// Gives back the code memory that no vCPU can be in any more, which otherwise happens by and by.
    /// Gives the number of regions that have to wait: some thread of this process, a vCPU that runs
    /// guest code for one, has kept the epoch since before they were retired.
    pub fn reclaim(&self) -> usize {
        let mut core = self.core();
        core.cache.hurry();
        core.cache.reclaim();
        core.cache.waiting()
    }

    /// What the code cache has done and holds.
    #[must_use]
    pub fn figures(&self) -> Figures {
        self.core().figures()
    }
}
