//! Devices: ranges of guest addresses whose reads and writes are calls of a closure; and how the
//! guest's accesses reach them, and memory hooks, from the run loop.
//!
//! A device is a backing object of a kind that the host never gives access to
//! ([`Backing::device`]). So it can be mapped, moved, aliased and restored like any memory, and it
//! lives as long as it is mapped or a snapshot has it.
//!
//! An instruction of its own translation runs on the vCPU's slot (`bounce`). If a device or a hook
//! looks at its operand, three things are added. Nobody is asked before it is known that the
//! instruction accesses memory at all: it runs once on a slot without access, where it can only fault.
//! What it does not read is not read. And a write that depends on a mask is done twice, on zeros and on
//! ones: what is the same then was written.

use std::fmt;
use std::ops::Range;

use iced_x86::{CpuidFeature, Instruction, InstructionInfoFactory, Mnemonic, OpAccess};

use super::access::{Access, page_fault};
use super::bounce::slot_rights;
use super::core::Core;
use super::exit::{Exit, vector};
use super::hook_context::MemoryAccess;
use super::step::{Single, Undone};
use super::vcpu::{Vcpu, lost};
use crate::code::sync::{Arc, Mutex, PoisonError};
use crate::guest::{GuestAddress, PAGE_SIZE, Permissions};
use crate::memory::{AccessError, Backing};

/// Bytes of a device's access at most. Larger operands are several accesses.
const MOST_BYTES: usize = 64;

/// An access to a device, of 1 to 64 bytes. `address` is where the guest made it, `offset` where
/// that lies in the device.
#[derive(Debug)]
pub enum Mmio<'a> {
    /// The guest reads; `value`, zeros at first, is what it gets.
    Read {
        /// Guest address.
        address: GuestAddress,
        /// From the device's first byte.
        offset: u64,
        /// To be filled in, little-endian.
        value: &'a mut [u8],
    },
    /// The guest writes `value`.
    Write {
        /// Guest address.
        address: GuestAddress,
        /// From the device's first byte.
        offset: u64,
        /// Little-endian.
        value: &'a [u8],
    },
}

type Call = dyn FnMut(Mmio<'_>) + Send;

/// A device: its handle of the memory that stands for it, and its handler.
pub(super) struct Device {
    backing: Backing,
    call: Arc<Mutex<Call>>,
}

impl fmt::Debug for Device {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Device").field("size", &self.backing.size()).finish()
    }
}

impl Device {
    pub(super) fn new(backing: Backing, call: impl FnMut(Mmio<'_>) + Send + 'static) -> Self {
        Self { backing, call: Arc::new(Mutex::new(call)) }
    }

    /// Whether it is mapped nowhere any more.
    pub(super) fn is_unused(&self) -> bool {
        self.backing.is_unused()
    }

    fn call(&self, access: Mmio<'_>) {
        (self.call.lock().unwrap_or_else(PoisonError::into_inner))(access);
    }

    fn read(&self, address: GuestAddress, offset: u64, bytes: &mut [u8]) {
        for (number, value) in bytes.chunks_mut(MOST_BYTES).enumerate() {
            let done = (number * MOST_BYTES) as u64;
            value.fill(0);
            let address = address.wrapping_add(done);
            self.call(Mmio::Read { address, offset: offset + done, value });
        }
    }

    fn write(&self, address: GuestAddress, offset: u64, bytes: &[u8]) {
        for (number, value) in bytes.chunks(MOST_BYTES).enumerate() {
            let done = (number * MOST_BYTES) as u64;
            let address = address.wrapping_add(done);
            self.call(Mmio::Write { address, offset: offset + done, value });
        }
    }
}

impl Core {
    /// The device at an address, and the offset in it.
    fn device_at(&self, address: GuestAddress) -> Option<(&Device, u64)> {
        let mapping = self.memory.find(address).filter(|mapping| mapping.backing.is_device())?;
        let device = self.devices.iter().find(|device| device.backing.is_same(&mapping.backing))?;
        Some((device, mapping.offset_of(address)))
    }

    /// Whether a device or a memory hook looks at an access.
    pub(super) fn observes(&self, address: GuestAddress, size: usize) -> bool {
        let mut pages = pages(address, size);
        self.hooks.watch_memory(address, size)
            || (!self.devices.is_empty() && pages.any(|(at, _)| self.device_at(at).is_some()))
    }

    fn read_through(&self, address: GuestAddress, bytes: &mut [u8]) -> Result<(), AccessError> {
        if self.devices.is_empty() {
            return self.memory.read(address, bytes);
        }
        for (at, part) in pages(address, bytes.len()) {
            match self.device_at(at) {
                Some((device, offset)) => device.read(at, offset, &mut bytes[part]),
                None => self.memory.read(at, &mut bytes[part])?,
            }
        }
        Ok(())
    }

    fn write_through(&mut self, address: GuestAddress, bytes: &[u8]) -> Result<(), AccessError> {
        if self.devices.is_empty() {
            return self.write(address, bytes);
        }
        for (at, part) in pages(address, bytes.len()) {
            match self.device_at(at) {
                Some((device, offset)) => device.write(at, offset, &bytes[part]),
                None => self.write(at, &bytes[part])?,
            }
        }
        Ok(())
    }

    /// Takes out the devices that are mapped nowhere, to be dropped outside of the lock.
    pub(super) fn take_unused_devices(&mut self) -> Vec<Device> {
        self.devices.extract_if(.., |device| device.is_unused()).collect()
    }
}

/// The pieces of an access, in one page each: address, and place in the access.
fn pages(address: GuestAddress, size: usize) -> impl Iterator<Item = (GuestAddress, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = address.wrapping_add(done as u64);
        let room = (PAGE_SIZE - at.0 % PAGE_SIZE) as usize;
        let part = done..size.min(done + room);
        done = part.end;
        (!part.is_empty()).then_some((at, part))
    })
}

impl Vcpu {
    /// Reads for the guest what it may read.
    pub(super) fn read_guest(
        &self,
        core: &Core,
        address: GuestAddress,
        bytes: &mut [u8],
    ) -> Result<(), Exit> {
        let size = bytes.len();
        core.hooks.before_access(&MemoryAccess { vcpu: self, core, address, size, written: None });
        let read = core.read_through(address, bytes);
        read.map_err(|error| page_fault(core, error.address, Access::Read))
    }

    /// Writes for the guest where it may write.
    pub(super) fn write_guest(
        &self,
        core: &mut Core,
        address: GuestAddress,
        bytes: &[u8],
    ) -> Result<(), Exit> {
        let (size, written) = (bytes.len(), Some(bytes));
        core.hooks.before_access(&MemoryAccess { vcpu: self, core, address, size, written });
        let written = core.write_through(address, bytes);
        written.map_err(|error| page_fault(core, error.address, Access::Write))
    }

    /// Runs the instruction at RIP, whose operand is looked at, on a copy of it.
    pub(super) fn bounce_observed(
        &mut self,
        core: &mut Core,
        instruction: &Instruction,
        address: GuestAddress,
        size: usize,
    ) -> Result<(), Undone> {
        let how = OperandAccess::of(instruction);
        let rights = slot_rights(core, address);
        let start = (address.0 % PAGE_SIZE) as usize;
        let split = size.min((PAGE_SIZE as usize) - start);
        let parts = [(0..split, rights[0]), (split..size, rights[1])];
        let allowed = parts.iter().all(|(part, rights)| part.is_empty() || how.is_allowed(*rights));
        let mut operand = vec![0; size];
        if how.reads && (allowed || how.masked) {
            let certain = allowed && always_reads(instruction) && !self.checks_alignment();
            if !certain && !self.accesses(core, instruction, address, start, size)? {
                return Ok(());
            }
            if allowed {
                self.read_guest(core, address, &mut operand)?;
            } else {
                for (part, _) in
                    parts.iter().filter(|(part, rights)| !part.is_empty() && rights.read())
                {
                    let at = address.wrapping_add(part.start as u64);
                    self.read_guest(core, at, &mut operand[part.clone()])?;
                }
            }
        }
        let pointer = self.memory.block().xsave_data_pointer();
        self.run_on_slot(core, instruction, address, &operand, rights)?;
        self.fix_data_pointer(pointer, instruction, address.0);
        if !how.writes {
            return Ok(());
        }
        // Hooks of the write are told of this instruction.
        let next = std::mem::replace(&mut self.pc, GuestAddress(instruction.ip()));
        let result = self.read_slot(start, size)?;
        let mut written = runs(size, |_| true);
        if how.masked && !how.reads {
            self.run_on_slot(core, instruction, address, &vec![0xff; size], rights)?;
            self.pc = GuestAddress(instruction.ip());
            let again = self.read_slot(start, size)?;
            written = runs(size, |index| result[index] == again[index]);
        }
        for part in written {
            let at = address.wrapping_add(part.start as u64);
            self.write_guest(core, at, &result[part])?;
        }
        self.pc = next;
        Ok(())
    }

    /// Whether the instruction at RIP accesses its operand at all. If not, it is done.
    fn accesses(
        &mut self,
        core: &mut Core,
        instruction: &Instruction,
        address: GuestAddress,
        start: usize,
        size: usize,
    ) -> Result<bool, Undone> {
        self.load_slot(start, &vec![0; size], [Permissions::None; 2])?;
        match self.run_single(core, instruction, Some(start as u32)) {
            Single::Done => Ok(false),
            Single::None => Err(lost("an instruction without a translation").into()),
            Single::Fault(fault) if fault.vector == vector::PF => Ok(true),
            Single::Fault(fault) => {
                Err(self.bounce_fault(core, instruction, address, fault).into())
            }
        }
    }

    fn run_on_slot(
        &mut self,
        core: &mut Core,
        instruction: &Instruction,
        address: GuestAddress,
        operand: &[u8],
        rights: [Permissions; 2],
    ) -> Result<(), Undone> {
        let start = (address.0 % PAGE_SIZE) as usize;
        self.load_slot(start, operand, rights)?;
        match self.run_single(core, instruction, Some(start as u32)) {
            Single::Done => Ok(()),
            Single::None => Err(lost("an instruction without a translation").into()),
            Single::Fault(fault) => {
                Err(self.bounce_fault(core, instruction, address, fault).into())
            }
        }
    }
}

/// Whether an instruction that may read its operand reads it whatever the registers hold, and raises
/// nothing before: one of general-purpose registers, none of which asks for alignment.
fn always_reads(instruction: &Instruction) -> bool {
    use CpuidFeature as F;
    instruction.cpuid_features().iter().all(|feature| {
        matches!(
            feature,
            F::INTEL8086
                | F::INTEL186
                | F::INTEL286
                | F::INTEL386
                | F::INTEL486
                | F::X64
                | F::CMOV
                | F::BMI1
                | F::BMI2
                | F::ADX
                | F::MOVBE
                | F::POPCNT
                | F::LZCNT
        )
    })
}

/// What an instruction does with its memory operand.
struct OperandAccess {
    reads: bool,
    writes: bool,
    /// Which bytes, a mask decides.
    masked: bool,
}

impl OperandAccess {
    fn of(instruction: &Instruction) -> Self {
        use Mnemonic as M;
        use OpAccess as A;
        let mut information = InstructionInfoFactory::new();
        let used = information.info(instruction).used_memory();
        let any = |kinds: &[A]| used.iter().any(|used| kinds.contains(&used.access()));
        let reads = any(&[A::Read, A::CondRead, A::ReadWrite, A::ReadCondWrite]);
        let writes = any(&[A::Write, A::CondWrite, A::ReadWrite, A::ReadCondWrite]);
        let masked = instruction.has_op_mask()
            || any(&[A::CondRead, A::CondWrite])
            || matches!(
                instruction.mnemonic(),
                M::Vmaskmovps | M::Vmaskmovpd | M::Vpmaskmovd | M::Vpmaskmovq
            );
        // A comparison that fails writes back what it has read.
        Self { reads, writes, masked }
    }

    fn is_allowed(&self, rights: Permissions) -> bool {
        (rights.read() || !self.reads) && (rights.write() || !self.writes)
    }
}

/// The runs of indexes below `size` that are `wanted`.
fn runs(size: usize, wanted: impl Fn(usize) -> bool) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for index in (0..size).filter(|&index| wanted(index)) {
        match runs.last_mut() {
            Some(run) if run.end == index => run.end += 1,
            _ => runs.push(index..index + 1),
        }
    }
    runs
}
