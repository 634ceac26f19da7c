//! [`VcpuBlock`]: the memory of a vCPU that translated code works with, apart from the guest's own.
//!
//! While guest code runs, the host's RSP points at it, so every slot is `[rsp + offset]` and no
//! general-purpose register is spent on it. Below RSP lies a stack of ours: signals of the host
//! process can arrive at any time, and their frames must not fall on guest memory. At its end lies
//! the *probe page*, whose last bytes are readable and behind which nothing is mapped for
//! [`PROBE_REACH`] bytes: a load there faults where an address check fails, without touching flags.

use std::mem::offset_of;

use super::extended::Extended;

/// Bytes that the host's XSAVE area may take without AMX tiles.
pub const XSAVE_BYTES: usize = 4096;

/// Bytes of the slot: two pages, so that an operand lies in it as it does in the guest's pages.
pub const SLOT_BYTES: usize = 2 * 4096;

/// Entries of the jump cache: one for each value of the low 16 bits of an address.
pub(super) const JUMP_CACHE_ENTRIES: usize = 1 << 16;

/// How far behind the block a probe can reach: 16 bits of index, eight bytes each.
pub const PROBE_REACH: usize = (1 << 16) * 8 + 4096;

/// Bytes without access that a window has on either side: translated code relies on as many.
pub const GUARD_BYTES: u64 = 64 << 30;

/// Where translated code keeps what it must put back: one word for each.
pub(super) const SPILLS: usize = 4;

/// See the file's head. Offsets are part of translated code.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct VcpuBlock {
    /// General-purpose registers while the guest is out of the code cache, in encoding order. R14 and
    /// R15 are here at all times: their host registers are scratch and the guest's RSP.
    pub gpr: [u64; 16],
    /// Host registers that an instruction's translation borrowed.
    pub spill: [u64; SPILLS],
    /// The target of an indirect jump.
    pub target: u64,
    /// What a block leaves to the run loop that somebody looks at: the address of an access, …
    pub observed: u64,
    /// … a word that is to be stored there, …
    pub word: u64,
    /// … and what is to be done, a packed [`super::WordMove`].
    pub word_move: u64,
    /// Address that polls load from; one that faults asks the vCPU to leave.
    pub poll: u64,
    /// Host address of guest address 0.
    pub window: u64,
    /// Its negative, since nothing but an addition leaves flags alone.
    pub minus_window: u64,
    /// Base of the FS segment.
    pub fs_base: u64,
    /// Base of the GS segment.
    pub gs_base: u64,
    /// Instructions that counted code may still execute.
    pub budget: i64,
    /// How many blocks that check themselves may still be entered until somebody looks whether they have
    /// to.
    pub calm: i64,
    /// RFLAGS while the guest is out of the code cache, without TF.
    pub rflags: u64,
    /// Where execution goes on in the code cache.
    pub entry: u64,
    /// Host address behind the call by which the code cache was left.
    pub exit_address: u64,
    /// Why it was left: the number of a stub.
    pub exit_kind: u64,
    /// The host's stack pointer, GS base, and floating-point control.
    pub host_rsp: u64,
    /// See [`Self::host_rsp`].
    pub host_gs_base: u64,
    /// MXCSR in the low half, x87 control word in the high one.
    pub host_controls: u64,
    /// Which components of the extended state are the guest's.
    pub components: u64,
    /// How much of the extended state guest code needs: a number of [`super::Extended`].
    pub extended: u64,
    /// Vector of the host exception that ended guest code.
    pub fault_vector: u64,
    /// Its error code.
    pub fault_error: u64,
    /// CR2 at a page fault.
    pub fault_address: u64,
    /// Host address of the instruction that faulted.
    pub fault_pc: u64,
    /// The thread that runs guest code on this block, or 0.
    pub thread: u64,
    /// A word that polls may load: nothing is asked.
    pub quiet: u64,
    /// Host address at which the next traced address is noted; a store to it faults where there is no room.
    pub record: u64,
    /// The guest's extended state while it is out of the code cache.
    pub xsave: XsaveArea,
    /// An operand that cannot be reached in the window.
    pub slot: Slot,
    /// By the low 16 bits of a guest address: the negative of the guest address …
    pub jump_tags: [u64; JUMP_CACHE_ENTRIES],
    /// … and the host address of its translation.
    pub jump_hosts: [u64; JUMP_CACHE_ENTRIES],
    /// The probe page.
    pub probe: ProbePage,
}

/// All zero.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct ProbePage(pub [u64; 512]);

impl VcpuBlock {
    /// From now on, no less of the extended state is loaded.
    pub(crate) fn need(&mut self, extended: Extended) {
        self.extended = self.extended.max(extended as u64);
    }

    /// The address of the x87 unit's last operand, in the XSAVE area.
    #[must_use]
    pub fn xsave_data_pointer(&self) -> u64 {
        u64::from_le_bytes(self.xsave.0[16..24].try_into().expect("eight bytes"))
    }

    /// Sets it.
    pub fn set_xsave_data_pointer(&mut self, address: u64) {
        self.xsave.0[16..24].copy_from_slice(&address.to_le_bytes());
    }
}

/// An XSAVE area in standard form.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct XsaveArea(pub [u8; XSAVE_BYTES]);

/// Two pages whose protection can be that of the guest's two pages.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Slot(pub [u8; SLOT_BYTES]);

/// Offsets from RSP, for emitting code.
pub(crate) mod at {
    use super::{VcpuBlock, offset_of};

    macro_rules! offsets {
        ($($name:ident = $field:ident;)*) => {
            $(pub(crate) const $name: i32 = offset_of!(VcpuBlock, $field) as i32;)*
        };
    }
    offsets! {
        GPR = gpr;
        SPILL = spill;
        TARGET = target;
        OBSERVED = observed;
        WORD = word;
        WORD_MOVE = word_move;
        POLL = poll;
        WINDOW = window;
        MINUS_WINDOW = minus_window;
        FS_BASE = fs_base;
        GS_BASE = gs_base;
        BUDGET = budget;
        CALM = calm;
        RECORD = record;
        RFLAGS = rflags;
        ENTRY = entry;
        EXIT_ADDRESS = exit_address;
        EXIT_KIND = exit_kind;
        HOST_RSP = host_rsp;
        HOST_GS_BASE = host_gs_base;
        HOST_CONTROLS = host_controls;
        COMPONENTS = components;
        EXTENDED = extended;
        XSAVE = xsave;
        SLOT = slot;
        JUMP_TAGS = jump_tags;
        JUMP_HOSTS = jump_hosts;
    }

    /// Where the slot of guest register `number` lies.
    pub(crate) const fn gpr(number: u8) -> i32 {
        GPR + number as i32 * 8
    }

    /// Where spill slot `index` lies.
    pub(crate) const fn spill(index: usize) -> i32 {
        SPILL + index as i32 * 8
    }
}

/// How an address is checked against a window of 2^`bits` bytes, for `32 <= bits <= 46`.
///
/// Bits `shift .. shift + 16` of the address index the probe page. Fewer than `entries` of the
/// indexes lie in it, and they are those of the window's addresses. A higher index faults. An
/// address whose bits above `shift + 16` are not all equal to zero and whose index is in range is
/// not canonical once the window's start is added, since `shift + 16 >= 48`, and so faults itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeShape {
    /// Lowest bit of the address that counts.
    pub shift: u8,
    /// Offset from RSP of the entry for index 0.
    pub base: i32,
}

impl ProbeShape {
    /// The shape for a window of 2^`bits` bytes.
    #[must_use]
    pub const fn new(bits: u32) -> Self {
        assert!(bits >= 32 && bits <= 46, "windows have 2^32 to 2^46 bytes");
        let shift = if bits > 41 { bits - 9 } else { 32 };
        let entries = 1 << (bits - shift);
        Self { shift: shift as u8, base: (size_of::<VcpuBlock>() - entries * 8) as i32 }
    }
}

const _: () = {
    assert!(size_of::<VcpuBlock>() == offset_of!(VcpuBlock, probe) + 4096);
    assert!(offset_of!(VcpuBlock, xsave).is_multiple_of(64));
    assert!(offset_of!(VcpuBlock, slot).is_multiple_of(4096));
    let mut bits = 32;
    while bits <= 46 {
        let shape = ProbeShape::new(bits);
        assert!(shape.shift as u32 + 16 >= 48 && bits >= shape.shift as u32);
        assert!(shape.base >= offset_of!(VcpuBlock, probe) as i32);
        bits += 1;
    }
};
