//! [`Machine`]: one Unicorn processor behind a safe interface. This is the only file that calls the
//! library and the only one of this engine with `unsafe`.
//!
//! A machine is made once: 64-bit, user privilege (CPL 3, by an `iretq` through a table of
//! descriptors that is then taken away again), no `until` address. Its state after that is the
//! *pristine* one, to which [`Machine::reset`] goes back, so that nothing of a case (a fault in
//! flight, a register that a case cannot name) lasts until the next.
//!
//! All of the case's memory is mapped once, at a physical address that no guest address can be.
//! What the guest finds at its own addresses is the answer of a [`PageTable`] to a TLB miss. That
//! makes a change of the map as cheap as a TLB flush, where mapping a page takes Unicorn tens of
//! microseconds; and aliases are one memory to Unicorn, so that it sees code being written under
//! another address. An access that the table does not permit is sent to the physical address that
//! equals the guest's, where nothing is, so that the hook for invalid accesses tells the address.
#![allow(unsafe_code, reason = "calls Unicorn's C interface and maps host memory into it")]

use std::cell::UnsafeCell;
use std::ffi::{c_int, c_void};
use std::fs::File;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::{MmapOptions, MmapRaw};
use unicorn_engine::{
    Arch, ControlType, HookType, MemType, Mode, Prot, RegisterX86, TlbEntry, TlbType, X86CpuModel,
    X86Insn, uc_close, uc_context, uc_context_alloc, uc_context_restore, uc_context_save, uc_ctl,
    uc_emu_start, uc_emu_stop, uc_engine, uc_error, uc_free, uc_hook_add, uc_mem_map,
    uc_mem_map_ptr, uc_mem_read, uc_mem_unmap, uc_mem_write, uc_open, uc_reg_read_batch,
    uc_reg_write, uc_reg_write_batch, uc_version, uc_x86_mmr,
};

use super::observer::{Access, Observer};
use super::page_table::PageTable;
use super::registers::{REGISTER_COUNT, REGISTER_NUMBERS, RegisterFile};
use crate::engine::watchdog::Stop;
use crate::guest::{GuestRange, PAGE_SIZE, Permissions};

/// An error code of the library.
pub(super) type Error = uc_error;

/// Bytes for translations. When they are nearly used up and a long block is to be translated,
/// Unicorn tries again and again for hundreds of milliseconds; so there are enough of them for this
/// many legs, behind which all translations are dropped and only the first few bytes are used
/// again.
const TRANSLATION_BUFFER: u32 = 64 << 20;
const LEGS_PER_FLUSH: u32 = 256;

/// The physical address of the case's memory: not canonical, so no guest address is the same.
const MEMORY_BASE: u64 = 1 << 48;

/// Which instrumentation is compiled into the code of a machine. It is fixed for a machine, because
/// hooks that come or go later cost a flush of all translations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Instruments {
    /// None: the guest runs at full speed until it stops by itself.
    None,
    /// Each instruction asks the observer whether to stop.
    Instructions,
}

/// The version of the library that is linked, from the library itself.
pub(super) fn version() -> (u32, u32, u32) {
    // SAFETY: both pointers may be null; the library then only returns the combined number.
    let combined = unsafe { uc_version(ptr::null_mut(), ptr::null_mut()) };
    (combined >> 24, combined >> 16 & 0xff, combined >> 8 & 0xff)
}

/// Where the library's code lies in this process.
pub(super) fn entry_point() -> usize {
    uc_emu_start as *const () as usize
}

/// See the file's head.
pub(super) struct Machine {
    handle: *mut uc_engine,
    pristine: *mut uc_context,
    /// Hooks hold a pointer to it and use it while the guest runs.
    observer: Box<UnsafeCell<Observer>>,
    stopper: Stopper,
    /// The memfd with the case's memory, for the guest alone.
    view: MmapRaw,
    /// How many page tables it has had.
    legs: u32,
}

/// Stops a machine from another thread, for as long as it exists.
#[derive(Clone)]
pub(super) struct Stopper(Arc<Mutex<Handle>>);

struct Handle(*mut uc_engine);

// SAFETY: the one thing done with the handle in another thread is `uc_emu_stop`, which the library
// itself calls from a thread of its own for timeouts.
unsafe impl Send for Handle {}

impl Stop for Stopper {
    /// A request that comes before the guest runs is lost.
    fn stop(&self) {
        let handle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !handle.0.is_null() {
            // SAFETY: the handle is taken away under the same lock before it is closed.
            unsafe { uc_emu_stop(handle.0) };
        }
    }
}

fn check(error: uc_error) -> Result<(), Error> {
    if error == uc_error::OK { Ok(()) } else { Err(error) }
}

impl Machine {
    /// A machine for guests whose memory is in `memory`.
    pub(super) fn new(instruments: Instruments, memory: &File) -> Result<Self, Error> {
        let view = MmapOptions::new().map_raw(memory).map_err(|_| uc_error::NOMEM)?;
        let mut handle = ptr::null_mut();
        // SAFETY: `handle` is where the library may write it.
        check(unsafe { uc_open(Arch::X86, Mode::MODE_64, &raw mut handle) })?;
        let observer = Box::new(UnsafeCell::new(Observer::default()));
        let stopper = Stopper(Arc::new(Mutex::new(Handle(handle))));
        let mut machine =
            Self { handle, pristine: ptr::null_mut(), observer, stopper, view, legs: 0 };
        machine.configure()?;
        machine.enter_user_mode()?;
        machine.control(ControlType::UC_USE_EXITS, 1)?;
        machine.map_memory()?;
        machine.add_hooks(instruments)?;
        machine.keep_pristine()?;
        Ok(machine)
    }

    fn configure(&mut self) -> Result<(), Error> {
        self.control(ControlType::CPU_MODEL, X86CpuModel::SKYLAKE_CLIENT as u32)?;
        self.control(ControlType::TCG_BUFFER_SIZE, TRANSLATION_BUFFER)?;
        self.control(ControlType::TLB_TYPE, TlbType::VIRTUAL as u32)
    }

    /// Writes one `uc_ctl` setting that is an `int`.
    fn control(&mut self, what: ControlType, value: u32) -> Result<(), Error> {
        let request = ControlType(what.0 | ControlType::IO_WRITE.0);
        // SAFETY: each setting used here takes one argument of type `int` or `uint32_t`.
        check(unsafe { uc_ctl(self.handle, request, value) })
    }

    /// Runs `iretq` to privilege level 3 with the selectors of a Linux process.
    fn enter_user_mode(&mut self) -> Result<(), Error> {
        const PAGE: u64 = 0x1000;
        const CODE: u64 = PAGE + 0x100;
        const AFTER: u64 = CODE + 2;
        const FRAME: u64 = PAGE + 0x200;
        let (user_data, user_code) = (0x00cf_f300_0000_ffff_u64, 0x00af_fb00_0000_ffff_u64);
        // SAFETY: no pointer is passed.
        check(unsafe { uc_mem_map(self.handle, PAGE, PAGE_SIZE, Prot::ALL.0) })?;
        self.poke(PAGE + 0x28, &user_data.to_le_bytes())?;
        self.poke(PAGE + 0x30, &user_code.to_le_bytes())?;
        self.poke(CODE, &[0x48, 0xcf, 0xf4])?;
        let frame = [AFTER, 0x33, 0x202, FRAME, 0x2b];
        self.poke(FRAME, &frame.map(u64::to_le_bytes).concat())?;
        let table = |limit| uc_x86_mmr { selector: 0, base: PAGE, limit, flags: 0 };
        self.set(RegisterX86::GDTR, &table(0x37))?;
        self.set(RegisterX86::RSP, &FRAME)?;
        // SAFETY: no pointer is passed; no hook is there yet.
        check(unsafe { uc_emu_start(self.handle, CODE, AFTER, 0, 0) })?;
        self.set(RegisterX86::GDTR, &table(0))?;
        // What Linux sets, but paging and alignment checks: MP, ET, NE, WP, PE; OSFXSR,
        // OSXMMEXCPT, FSGSBASE, OSXSAVE.
        self.set(RegisterX86::CR0, &0x1_0033_u64)?;
        self.set(RegisterX86::CR4, &0x5_0600_u64)?;
        // SAFETY: no pointer is passed.
        check(unsafe { uc_mem_unmap(self.handle, PAGE, PAGE_SIZE) })
    }

    fn keep_pristine(&mut self) -> Result<(), Error> {
        // SAFETY: the context is allocated for this handle and freed when it is dropped.
        unsafe {
            check(uc_context_alloc(self.handle, &raw mut self.pristine))?;
            check(uc_context_save(self.handle, self.pristine))
        }
    }

    fn poke(&mut self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        let size = bytes.len() as u64;
        // SAFETY: the library reads `size` bytes.
        check(unsafe { uc_mem_write(self.handle, address, bytes.as_ptr().cast(), size) })
    }

    fn set<T>(&mut self, register: RegisterX86, value: &T) -> Result<(), Error> {
        // SAFETY: each caller passes a value of the register's own type and size.
        check(unsafe { uc_reg_write(self.handle, register as c_int, ptr::from_ref(value).cast()) })
    }

    /// The machine as it was when it was new, but for its memory.
    pub(super) fn reset(&mut self) -> Result<(), Error> {
        // SAFETY: the context was saved from this handle.
        check(unsafe { uc_context_restore(self.handle, self.pristine) })
    }

    pub(super) fn read_registers(&mut self) -> Result<RegisterFile, Error> {
        let mut file = RegisterFile::default();
        let mut places = file.places();
        let numbers = REGISTER_NUMBERS.as_ptr();
        let count = REGISTER_COUNT as c_int;
        // SAFETY: there is a place of the right size for each number, all inside `file`.
        check(unsafe { uc_reg_read_batch(self.handle, numbers, places.as_mut_ptr(), count) })?;
        Ok(file)
    }

    pub(super) fn write_registers(&mut self, mut file: RegisterFile) -> Result<(), Error> {
        let places = file.places();
        let numbers = REGISTER_NUMBERS.as_ptr();
        let count = REGISTER_COUNT as c_int;
        // SAFETY: there is a value of the right size for each number, all inside `file`.
        check(unsafe { uc_reg_write_batch(self.handle, numbers, places.as_ptr(), count) })
    }

    fn map_memory(&mut self) -> Result<(), Error> {
        let (host, size) = (self.view.as_mut_ptr(), self.view.len() as u64);
        // SAFETY: the view lives as long as the handle. Nobody has a reference into it; others see
        // the same memory through views of their own.
        check(unsafe { uc_mem_map_ptr(self.handle, MEMORY_BASE, size, Prot::ALL.0, host.cast()) })
    }

    /// Changes what the guest finds where, and drops all translations of code. To be called after
    /// the bytes of code may have changed too.
    pub(super) fn set_page_table(&mut self, table: PageTable) -> Result<(), Error> {
        self.legs = self.legs.wrapping_add(1);
        if self.legs.is_multiple_of(LEGS_PER_FLUSH) {
            self.request(ControlType::TB_FLUSH)?;
        } else {
            // There can be translations only of what was executable until now.
            let executable: Vec<GuestRange> = self.observer().pages.executable().collect();
            executable.into_iter().try_for_each(|range| self.forget_code(range))?;
        }
        self.observer().pages = table;
        self.request(ControlType::TLB_FLUSH)
    }

    fn request(&mut self, what: ControlType) -> Result<(), Error> {
        // SAFETY: the requests used here have no argument.
        check(unsafe { uc_ctl(self.handle, ControlType(what.0 | ControlType::IO_WRITE.0)) })
    }

    /// Drops the translations of an executable range that lies in one mapping.
    fn forget_code(&mut self, range: GuestRange) -> Result<(), Error> {
        let request = ControlType(ControlType::TB_REMOVE_CACHE.0 | ControlType::IO_WRITE.0);
        let end = range.start().0 + range.size();
        // SAFETY: the request has two arguments of type `uint64_t`.
        check(unsafe { uc_ctl(self.handle, request, range.start().0, end) })
    }

    /// Runs the guest from `address` until it stops by itself or is asked to.
    pub(super) fn start(&mut self, address: u64) -> Result<(), Error> {
        // SAFETY: hooks use the observer through the pointer they were given and nobody else does
        // before this returns, since `observer` borrows the machine.
        check(unsafe { uc_emu_start(self.handle, address, 0, 0, 0) })
    }

    /// Makes the guest stop in front of the instructions at these addresses, unless it starts
    /// there.
    pub(super) fn set_exits(&mut self, exits: &[u64]) -> Result<(), Error> {
        let request = ControlType(ControlType::UC_EXITS.0 | ControlType::IO_WRITE.0);
        // SAFETY: the arguments are an array and its length, and the library copies what it wants.
        check(unsafe { uc_ctl(self.handle, request, exits.as_ptr(), exits.len()) })
    }

    pub(super) fn observer(&mut self) -> &mut Observer {
        self.observer.get_mut()
    }

    pub(super) fn stopper(&self) -> &Stopper {
        &self.stopper
    }

    fn add_hooks(&mut self, instruments: Instruments) -> Result<(), Error> {
        let invalid = HookType::MEM_READ_UNMAPPED.0
            | HookType::MEM_WRITE_UNMAPPED.0
            | HookType::MEM_FETCH_UNMAPPED.0
            | HookType::MEM_READ_PROT.0
            | HookType::MEM_WRITE_PROT.0
            | HookType::MEM_FETCH_PROT.0;
        self.add_hook(HookType::TLB_FILL.0, on_tlb_miss as *mut c_void)?;
        self.add_hook(HookType::INTR.0, on_interrupt as *mut c_void)?;
        self.add_hook(invalid, on_invalid_access as *mut c_void)?;
        self.add_hook(HookType::INSN.0, on_system_call as *mut c_void)?;
        if instruments != Instruments::None {
            self.add_hook(HookType::CODE.0, on_instruction as *mut c_void)?;
        }
        Ok(())
    }

    fn add_hook(&mut self, kind: u32, callback: *mut c_void) -> Result<(), Error> {
        let mut hook = 0;
        let data = self.observer.get().cast();
        let instruction = X86Insn::SYSCALL as c_int;
        // SAFETY: the callback has the type that goes with `kind`; the data outlive the handle; the
        // range 1..=0 means everywhere; only hooks of instructions look at the last argument.
        check(unsafe {
            uc_hook_add(
                self.handle,
                &raw mut hook,
                kind as c_int,
                callback,
                data,
                1,
                0,
                instruction,
            )
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stopper.0.lock().unwrap_or_else(PoisonError::into_inner).0 = ptr::null_mut();
        // SAFETY: both were made by the library and are not used again.
        unsafe {
            if !self.pristine.is_null() {
                uc_free(self.pristine.cast());
            }
            uc_close(self.handle);
        }
    }
}

/// What Unicorn calls these permissions.
pub(crate) fn protection(permissions: Permissions) -> Prot {
    match permissions {
        Permissions::None => Prot::NONE,
        Permissions::Read => Prot::READ,
        Permissions::ReadWrite => Prot(Prot::READ.0 | Prot::WRITE.0),
        Permissions::ReadExecute => Prot(Prot::READ.0 | Prot::EXEC.0),
        Permissions::ReadWriteExecute => Prot::ALL,
    }
}

/// The right that an access of this kind needs.
fn needed(kind: MemType) -> Prot {
    match kind {
        MemType::WRITE | MemType::WRITE_UNMAPPED | MemType::WRITE_PROT => Prot::WRITE,
        MemType::FETCH | MemType::FETCH_UNMAPPED | MemType::FETCH_PROT => Prot::EXEC,
        _ => Prot::READ,
    }
}

/// The observer behind a hook's data pointer.
///
/// # Safety
/// `data` is the pointer given to `uc_hook_add` and the reference does not outlive the callback.
unsafe fn observer<'run>(data: *mut c_void) -> &'run mut Observer {
    // SAFETY: it points to the machine's own cell, which nobody else uses while the guest runs;
    // hooks do not nest.
    unsafe { &mut *data.cast::<Observer>() }
}

extern "C" fn on_interrupt(handle: *mut uc_engine, vector: u32, data: *mut c_void) {
    // SAFETY: called by the library with what `add_hook` gave it, from inside `uc_emu_start`.
    unsafe {
        observer(data).interrupt(vector);
        uc_emu_stop(handle);
    }
}

extern "C" fn on_tlb_miss(
    _handle: *mut uc_engine,
    page: u64,
    kind: MemType,
    answer: *mut TlbEntry,
    data: *mut c_void,
) -> bool {
    // SAFETY: as in `on_interrupt`; but outside a run too, when code is forgotten.
    let found = unsafe { observer(data) }.pages.find(page);
    let needed = needed(kind);
    let permitted = found.map(|(position, permissions)| (position, protection(permissions)));
    let entry = match permitted.filter(|(_, rights)| rights.0 & needed.0 != 0) {
        Some((position, perms)) => TlbEntry { paddr: MEMORY_BASE + position, perms },
        None => TlbEntry { paddr: page, perms: needed },
    };
    // SAFETY: the library passes a place for the answer.
    unsafe { answer.write(entry) };
    true
}

extern "C" fn on_invalid_access(
    _handle: *mut uc_engine,
    kind: MemType,
    address: u64,
    _size: c_int,
    _value: i64,
    data: *mut c_void,
) -> bool {
    let access = match needed(kind) {
        Prot::WRITE => Access::Write,
        Prot::EXEC => Access::Fetch,
        _ => Access::Read,
    };
    // SAFETY: as in `on_interrupt`.
    unsafe { observer(data) }.fault(access, address);
    false
}

extern "C" fn on_system_call(handle: *mut uc_engine, data: *mut c_void) {
    // SAFETY: as in `on_interrupt`.
    unsafe {
        observer(data).system_call();
        uc_emu_stop(handle);
    }
}

extern "C" fn on_instruction(handle: *mut uc_engine, address: u64, _size: u32, data: *mut c_void) {
    let read = |position: u64, bytes: &mut [u8]| {
        let (place, size) = (bytes.as_mut_ptr().cast(), bytes.len() as u64);
        // SAFETY: the library writes `size` bytes or none.
        unsafe { uc_mem_read(handle, MEMORY_BASE + position, place, size) };
    };
    // SAFETY: as in `on_interrupt`; `read` does not use the observer.
    unsafe {
        if observer(data).instruction(address, read) {
            uc_emu_stop(handle);
        }
    }
}
