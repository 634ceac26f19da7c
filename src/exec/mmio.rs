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
//!
//! Handlers and hooks are called without the machine's lock, in the middle of an instruction: they may
//! take their time, and use the machine. What they changed, the rest of the instruction meets.

use std::fmt;
use std::ops::Range;

use iced_x86::{CpuidFeature, Instruction, InstructionInfoFactory, OpAccess};

use super::access::{Access, page_fault};
use super::bounce::{Operand, Registers, is_atomic, leaves_parts, runs, slot_rights};
use super::core::Core;
use super::exit::{Exit, vector};
use super::hook_context::MemoryAccess;
use super::shared::Locked;
use super::step::Undone;
use super::vcpu::Vcpu;
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
    handler: Handler,
}

/// What is called for a device, without the machine's lock; one call at a time.
#[derive(Clone)]
struct Handler(Arc<Mutex<Call>>);

impl fmt::Debug for Device {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Device").field("size", &self.backing.size()).finish()
    }
}

impl Device {
    pub(super) fn new(backing: Backing, call: impl FnMut(Mmio<'_>) + Send + 'static) -> Self {
        Self { backing, handler: Handler(Arc::new(Mutex::new(call))) }
    }

    /// Whether it is mapped nowhere any more.
    pub(super) fn is_unused(&self) -> bool {
        self.backing.is_unused()
    }
}

impl Handler {
    fn call(&self, access: Mmio<'_>) {
        (self.0.lock().unwrap_or_else(PoisonError::into_inner))(access);
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
    /// The handler of the device at an address, and the offset in the device.
    fn device_at(&self, address: GuestAddress) -> Option<(&Handler, u64)> {
        if self.devices.is_empty() {
            return None;
        }
        let mapping = self.memory.find(address).filter(|mapping| mapping.backing.is_device())?;
        let device = self.devices.iter().find(|device| device.backing.is_same(&mapping.backing))?;
        Some((&device.handler, mapping.offset_of(address)))
    }

    /// Whether some of these bytes are a device's.
    fn is_device(&self, address: GuestAddress, size: usize) -> bool {
        !self.devices.is_empty()
            && pages(address, size).any(|(page, _)| self.device_at(page).is_some())
    }

    /// Whether a device or a memory hook looks at an access.
    pub(super) fn observes(&self, address: GuestAddress, size: usize) -> bool {
        self.hooks.watch_memory(address, size) || self.is_device(address, size)
    }

    /// Whether memory holds `expected`; nobody changes it any more until the lock is given back.
    fn still_holds(&self, address: GuestAddress, expected: &[u8]) -> bool {
        self.stop_others();
        let mut now = vec![0; expected.len()];
        // Page by page: it may go on at address 0.
        pages(address, expected.len()).all(|(at, part)| {
            self.memory.read(at, &mut now[part.clone()]).is_ok()
                && now[part.clone()] == expected[part]
        })
    }

    /// Takes out the devices that are mapped nowhere, to be dropped outside of the lock.
    pub(super) fn take_unused_devices(&mut self) -> Vec<Device> {
        self.devices.extract_if(.., |device| device.is_unused()).collect()
    }
}

impl Locked<'_> {
    /// Reads memory and devices, for which it gives up the lock.
    fn read_through(&mut self, address: GuestAddress, bytes: &mut [u8]) -> Result<(), AccessError> {
        for (at, part) in pages(address, bytes.len()) {
            match self.device_at(at).map(|(device, offset)| (device.clone(), offset)) {
                Some((device, offset)) => {
                    self.unlocked(|_| device.read(at, offset, &mut bytes[part]));
                }
                None => self.memory.read(at, &mut bytes[part])?,
            }
        }
        Ok(())
    }

    /// Writes to memory and devices, for which it gives up the lock.
    fn write_through(&mut self, address: GuestAddress, bytes: &[u8]) -> Result<(), AccessError> {
        for (at, part) in pages(address, bytes.len()) {
            match self.device_at(at).map(|(device, offset)| (device.clone(), offset)) {
                Some((device, offset)) => {
                    self.unlocked(|_| device.write(at, offset, &bytes[part]));
                }
                None => self.write(at, &bytes[part])?,
            }
        }
        Ok(())
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
        core: &mut Locked<'_>,
        address: GuestAddress,
        bytes: &mut [u8],
    ) -> Result<(), Exit> {
        self.announce(core, address, bytes.len(), None)?;
        let read = core.read_through(address, bytes);
        read.map_err(|error| page_fault(core, error.address, Access::Read))
    }

    /// Writes for the guest where it may write.
    pub(super) fn write_guest(
        &self,
        core: &mut Locked<'_>,
        address: GuestAddress,
        bytes: &[u8],
    ) -> Result<(), Exit> {
        self.write_expecting(core, address, bytes, None).map(drop)
    }

    /// The same, but if memory does not hold what is `expected` when it is to be written, nothing is.
    /// Whether it was. Devices have nothing to compare with.
    pub(super) fn write_expecting(
        &self,
        core: &mut Locked<'_>,
        address: GuestAddress,
        bytes: &[u8],
        expected: Option<&[u8]>,
    ) -> Result<bool, Exit> {
        self.announce(core, address, bytes.len(), Some(bytes))?;
        let expected = expected.filter(|_| !core.is_device(address, bytes.len()));
        if expected.is_some_and(|expected| !core.still_holds(address, expected)) {
            return Ok(false);
        }
        match core.write_through(address, bytes) {
            Ok(()) => Ok(true),
            Err(error) => Err(page_fault(core, error.address, Access::Write)),
        }
    }

    /// Calls the memory hooks of an access that is allowed and about to be made, without the lock. That
    /// it still is allowed afterwards, is looked at again.
    fn announce(
        &self,
        core: &mut Locked<'_>,
        address: GuestAddress,
        size: usize,
        written: Option<&[u8]>,
    ) -> Result<(), Exit> {
        // The vCPU's own, if there are no others by now: to count references to the machine's would cost more than
        // to look whose accesses these are.
        let current = self.generation == core.gates.generation();
        let others;
        let hooks = match self.hooks.as_ref().filter(|_| current) {
            Some(own) => own,
            None => {
                others = Arc::clone(core.hooks.set());
                &others
            }
        };
        let due = hooks.due_for_access(address, size);
        if due.clone().next().is_none() {
            return Ok(());
        }
        core.unlocked(|shared| {
            let access = MemoryAccess { vcpu: self, shared, address, size, written };
            due.for_each(|hook| hook.with(|call| call(&access)));
        });
        let access = if written.is_some() { Access::Write } else { Access::Read };
        self.check(core, address, size, access)
    }

    /// Runs the instruction at RIP, whose operand is looked at, on a copy of it, to which `finish` is
    /// applied, before it is stored if it is. If another vCPU has changed the operand of an atomic instruction
    /// while a hook was told of the store, all of it is done again, and announced again.
    pub(super) fn bounce_observed(
        &mut self,
        core: &mut Locked<'_>,
        operand: &Operand<'_>,
        mut finish: impl FnMut(&mut [u8]),
    ) -> Result<(), Undone> {
        let how = OperandAccess::of(operand.instruction);
        let atomic = is_atomic(operand.instruction);
        loop {
            let Some(mut bytes) = self.load_observed(core, operand, &how)? else { return Ok(()) };
            let before = how.writes.then(|| self.registers());
            self.run_once(core, operand, &bytes)?;
            let Some(before) = before else {
                finish(&mut bytes);
                return Ok(());
            };
            let expected = atomic.then_some(&bytes[..]);
            match self.store_observed(core, operand, &how, &before, &mut finish, expected) {
                Ok(true) => return Ok(()),
                Ok(false) => self.set_registers(&before),
                Err(undone) => {
                    self.set_registers(&before);
                    return Err(undone);
                }
            }
        }
    }

    /// What an instruction reads of its operand, zeros for the rest; nothing if it turns out to access
    /// no memory, and is done.
    fn load_observed(
        &mut self,
        core: &mut Locked<'_>,
        operand: &Operand<'_>,
        how: &OperandAccess,
    ) -> Result<Option<Vec<u8>>, Undone> {
        let mut bytes = vec![0; operand.size];
        let rights = slot_rights(core, operand.address);
        let allowed = operand.parts(rights).all(|(_, rights)| how.is_allowed(rights));
        if !how.reads || !(allowed || how.masked) {
            return Ok(Some(bytes));
        }
        let certain = allowed && always_reads(operand.instruction) && !self.checks_alignment();
        if !certain && !self.accesses(core, operand)? {
            return Ok(None);
        }
        if allowed {
            self.read_guest(core, operand.address, &mut bytes)?;
            return Ok(Some(bytes));
        }
        for (part, _) in operand.parts(rights).filter(|(_, rights)| rights.read()) {
            self.read_guest(core, operand.at(part.start), &mut bytes[part])?;
        }
        Ok(Some(bytes))
    }

    /// Stores what the instruction left in the slot; if it is atomic, only if memory is as `expected`.
    /// Whether it did. `before` is what the registers were; RIP is that until then, so that hooks are
    /// told of it.
    fn store_observed(
        &mut self,
        core: &mut Locked<'_>,
        operand: &Operand<'_>,
        how: &OperandAccess,
        before: &Registers,
        finish: &mut impl FnMut(&mut [u8]),
        expected: Option<&[u8]>,
    ) -> Result<bool, Undone> {
        let next = std::mem::replace(&mut self.pc, before.pc);
        let mut result = self.read_slot(operand.start(), operand.size)?;
        finish(&mut result);
        let mut written = runs(0..operand.size, |_| true);
        if how.masked && !how.reads {
            self.set_registers(before);
            self.run_once(core, operand, &vec![0xff; operand.size])?;
            self.pc = before.pc;
            let mut again = self.read_slot(operand.start(), operand.size)?;
            finish(&mut again);
            written = runs(0..operand.size, |index| result[index] == again[index]);
        }
        for part in written {
            let at = operand.at(part.start);
            if !self.write_expecting(core, at, &result[part], expected)? {
                return Ok(false);
            }
        }
        self.pc = next;
        Ok(true)
    }

    /// Whether the instruction at RIP accesses its operand at all. If not, it is done.
    fn accesses(&mut self, core: &mut Locked<'_>, operand: &Operand<'_>) -> Result<bool, Undone> {
        self.load_slot(operand.start(), &vec![0; operand.size], [Permissions::None; 2])?;
        match self.try_on_slot(core, operand)? {
            None => Ok(false),
            Some(fault) if fault.vector == vector::PF => Ok(true),
            Some(fault) => Err(self.bounce_fault(core, operand, fault).into()),
        }
    }

    /// Runs the instruction at RIP with `bytes` in the slot.
    fn run_once(
        &mut self,
        core: &mut Locked<'_>,
        operand: &Operand<'_>,
        bytes: &[u8],
    ) -> Result<(), Undone> {
        let rights = slot_rights(core, operand.address);
        self.load_slot(operand.start(), bytes, rights)?;
        let pointer = self.memory.block().xsave_data_pointer();
        if let Some(fault) = self.try_on_slot(core, operand)? {
            return Err(self.bounce_fault(core, operand, fault).into());
        }
        self.fix_data_pointer(pointer, operand.instruction, operand.address.0);
        Ok(())
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
    /// Which bytes, a mask decides; or it may leave some alone for another reason.
    masked: bool,
}

impl OperandAccess {
    fn of(instruction: &Instruction) -> Self {
        use OpAccess as A;
        let mut information = InstructionInfoFactory::new();
        let used = information.info(instruction).used_memory();
        let any = |kinds: &[A]| used.iter().any(|used| kinds.contains(&used.access()));
        let reads = any(&[A::Read, A::CondRead, A::ReadWrite, A::ReadCondWrite]);
        let writes = any(&[A::Write, A::CondWrite, A::ReadWrite, A::ReadCondWrite]);
        let masked = any(&[A::CondRead, A::CondWrite]) || leaves_parts(instruction);
        // A comparison that fails writes back what it has read.
        Self { reads, writes, masked }
    }

    fn is_allowed(&self, rights: Permissions) -> bool {
        (rights.read() || !self.reads) && (rights.write() || !self.writes)
    }
}
