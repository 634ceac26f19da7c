//! Two outcomes of one case become a list of [`Difference`]s: which component, what the one side
//! says, what the other. Nothing is left out but what one of the two engines cannot show at all.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::case::{Case, ObjectId, Outcome, PageChange, Stop};
use crate::engine::Visible;
use crate::guest::{Flag, GPR_NAMES, PAGE_SIZE, SELECTOR_NAMES, State};

/// One thing that a guest can see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Component {
    /// How the run stopped, and with which exception.
    Stop,
    /// The error code of the exception.
    ErrorCode,
    /// The address of the page fault.
    FaultAddress,
    /// How many events were applied.
    EventsApplied,
    /// RIP.
    Rip,
    /// A general-purpose register by encoding.
    Gpr(u8),
    /// A bit of RFLAGS that user code knows.
    Flag(Flag),
    /// The other bits of RFLAGS.
    OtherFlags,
    /// FS base.
    FsBase,
    /// GS base.
    GsBase,
    /// A segment selector by encoding.
    Selector(u8),
    /// Protection key rights.
    Pkru,
    /// x87 control word.
    X87Control,
    /// x87 status word.
    X87Status,
    /// x87 tags.
    X87Tag,
    /// x87 last opcode.
    X87Opcode,
    /// x87 last instruction address.
    X87InstructionPointer,
    /// x87 last data address.
    X87DataPointer,
    /// ST(i).
    X87Register(u8),
    /// MXCSR.
    Mxcsr,
    /// A 128-bit lane of a vector register.
    Vector {
        /// Register number.
        register: u8,
        /// Lane: 0 is the XMM part, 1 the upper half of YMM, 2 and 3 the upper half of ZMM.
        lane: u8,
    },
    /// An opmask register.
    Opmask(u8),
    /// A byte of an object.
    Memory {
        /// Which object.
        object: ObjectId,
        /// Offset in it.
        offset: u64,
    },
}

/// A component without its number: what clusters are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are those of the components")]
pub enum ComponentClass {
    Stop,
    ErrorCode,
    FaultAddress,
    EventsApplied,
    Rip,
    Gpr,
    Flag(Flag),
    OtherFlags,
    SegmentBase,
    Selector,
    Pkru,
    X87Control,
    X87Status,
    X87Tag,
    X87Pointers,
    X87Register,
    Mxcsr,
    Xmm,
    YmmHigh,
    ZmmHigh,
    Opmask,
    Memory,
}

impl Component {
    /// Its class.
    #[must_use]
    pub fn class(self) -> ComponentClass {
        match self {
            Self::Stop => ComponentClass::Stop,
            Self::ErrorCode => ComponentClass::ErrorCode,
            Self::FaultAddress => ComponentClass::FaultAddress,
            Self::EventsApplied => ComponentClass::EventsApplied,
            Self::Rip => ComponentClass::Rip,
            Self::Gpr(_) => ComponentClass::Gpr,
            Self::Flag(flag) => ComponentClass::Flag(flag),
            Self::OtherFlags => ComponentClass::OtherFlags,
            Self::FsBase | Self::GsBase => ComponentClass::SegmentBase,
            Self::Selector(_) => ComponentClass::Selector,
            Self::Pkru => ComponentClass::Pkru,
            Self::X87Control => ComponentClass::X87Control,
            Self::X87Status => ComponentClass::X87Status,
            Self::X87Tag => ComponentClass::X87Tag,
            Self::X87Opcode | Self::X87InstructionPointer | Self::X87DataPointer => {
                ComponentClass::X87Pointers
            }
            Self::X87Register(_) => ComponentClass::X87Register,
            Self::Mxcsr => ComponentClass::Mxcsr,
            Self::Vector { lane: 0, .. } => ComponentClass::Xmm,
            Self::Vector { lane: 1, .. } => ComponentClass::YmmHigh,
            Self::Vector { .. } => ComponentClass::ZmmHigh,
            Self::Opmask(_) => ComponentClass::Opmask,
            Self::Memory { .. } => ComponentClass::Memory,
        }
    }
}

impl fmt::Display for Component {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stop => formatter.write_str("stop"),
            Self::ErrorCode => formatter.write_str("error code"),
            Self::FaultAddress => formatter.write_str("fault address"),
            Self::EventsApplied => formatter.write_str("events applied"),
            Self::Rip => formatter.write_str("rip"),
            Self::Gpr(register) => formatter.write_str(GPR_NAMES[usize::from(*register)]),
            Self::Flag(flag) => write!(formatter, "{flag}"),
            Self::OtherFlags => formatter.write_str("other flags"),
            Self::FsBase => formatter.write_str("fs_base"),
            Self::GsBase => formatter.write_str("gs_base"),
            Self::Selector(index) => formatter.write_str(SELECTOR_NAMES[usize::from(*index)]),
            Self::Pkru => formatter.write_str("pkru"),
            Self::X87Control => formatter.write_str("x87 control"),
            Self::X87Status => formatter.write_str("x87 status"),
            Self::X87Tag => formatter.write_str("x87 tag"),
            Self::X87Opcode => formatter.write_str("x87 opcode"),
            Self::X87InstructionPointer => formatter.write_str("x87 ip"),
            Self::X87DataPointer => formatter.write_str("x87 dp"),
            Self::X87Register(index) => write!(formatter, "st{index}"),
            Self::Mxcsr => formatter.write_str("mxcsr"),
            Self::Vector { register, lane: 0 } => write!(formatter, "xmm{register}"),
            Self::Vector { register, lane: 1 } => write!(formatter, "ymm{register}[255:128]"),
            Self::Vector { register, lane } => {
                write!(formatter, "zmm{register}[{}:{}]", lane * 128 + 127, u32::from(*lane) * 128)
            }
            Self::Opmask(index) => write!(formatter, "k{index}"),
            Self::Memory { object, offset } => write!(formatter, "object {}+{offset:#x}", object.0),
        }
    }
}

impl fmt::Display for ComponentClass {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Stop => "stop",
            Self::ErrorCode => "error code",
            Self::FaultAddress => "fault address",
            Self::EventsApplied => "events applied",
            Self::Rip => "rip",
            Self::Gpr => "register",
            Self::Flag(flag) => return write!(formatter, "{flag}"),
            Self::OtherFlags => "other flags",
            Self::SegmentBase => "segment base",
            Self::Selector => "selector",
            Self::Pkru => "pkru",
            Self::X87Control => "x87 control",
            Self::X87Status => "x87 status",
            Self::X87Tag => "x87 tag",
            Self::X87Pointers => "x87 pointers",
            Self::X87Register => "x87 register",
            Self::Mxcsr => "mxcsr",
            Self::Xmm => "xmm",
            Self::YmmHigh => "ymm high",
            Self::ZmmHigh => "zmm high",
            Self::Opmask => "opmask",
            Self::Memory => "memory",
        };
        formatter.write_str(name)
    }
}

/// What one side holds in a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Value {
    /// How the run stopped.
    Stop(Stop),
    /// A number of up to 128 bits.
    Bits(u128),
    /// Nothing, where the other side has something.
    Absent,
}

impl fmt::Display for Value {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stop(stop) => formatter.pad(&stop.to_string()),
            Self::Bits(bits) => formatter.pad(&format!("{bits:#x}")),
            Self::Absent => formatter.pad("-"),
        }
    }
}

/// One component in which two outcomes are not alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Difference {
    /// Which.
    pub component: Component,
    /// What the left side says; with a judge, the judge is left.
    pub left: Value,
    /// What the right side says.
    pub right: Value,
}

/// Most memory differences listed; a run that differs in thousands of bytes says no more by it.
const MAX_MEMORY_DIFFERENCES: usize = 64;

/// All differences between two outcomes of `case`, in order of component, as far as both can show.
#[must_use]
pub fn compare(case: &Case, left: &Outcome, right: &Outcome, visible: Visible) -> Vec<Difference> {
    if left == right {
        return Vec::new();
    }
    let mut list = List { differences: Vec::new() };
    list.stops(left.stop, right.stop, visible);
    if !left.stop.is_exact() || !right.stop.is_exact() {
        return list.differences;
    }
    list.words(Component::EventsApplied, left.events_applied as u64, right.events_applied as u64);
    list.states(&left.state, &right.state, visible);
    list.memories(case, &left.memory, &right.memory);
    list.differences
}

struct List {
    differences: Vec<Difference>,
}

impl List {
    fn push(&mut self, component: Component, left: Value, right: Value) {
        if left != right {
            self.differences.push(Difference { component, left, right });
        }
    }

    fn words(&mut self, component: Component, left: impl Into<u128>, right: impl Into<u128>) {
        self.push(component, Value::Bits(left.into()), Value::Bits(right.into()));
    }

    fn stops(&mut self, left: Stop, right: Stop, visible: Visible) {
        let bits =
            |value: Option<u64>| value.map_or(Value::Absent, |value| Value::Bits(value.into()));
        match (left, right) {
            (
                Stop::Exception { vector, error, address },
                Stop::Exception { vector: other, error: other_error, address: other_address },
            ) if vector == other => {
                if visible.error_codes || error.is_some() == other_error.is_some() {
                    let (error, other) = (error.map(u64::from), other_error.map(u64::from));
                    self.push(Component::ErrorCode, bits(error), bits(other));
                }
                self.push(Component::FaultAddress, bits(address), bits(other_address));
            }
            _ => self.push(Component::Stop, Value::Stop(left), Value::Stop(right)),
        }
    }

    fn states(&mut self, left: &State, right: &State, visible: Visible) {
        self.words(Component::Rip, left.rip, right.rip);
        for (index, (left, right)) in left.gpr.into_iter().zip(right.gpr).enumerate() {
            self.words(Component::Gpr(index as u8), left, right);
        }
        self.flags(left.rflags, right.rflags);
        self.words(Component::FsBase, left.fs_base, right.fs_base);
        self.words(Component::GsBase, left.gs_base, right.gs_base);
        if visible.selectors {
            for (index, (left, right)) in
                left.selectors.0.into_iter().zip(right.selectors.0).enumerate()
            {
                self.words(Component::Selector(index as u8), left, right);
            }
        }
        if visible.pkru {
            self.words(Component::Pkru, left.pkru, right.pkru);
        }
        self.x87(left, right, visible);
        self.words(Component::Mxcsr, left.mxcsr, right.mxcsr);
        self.vectors(left, right, visible);
        if visible.opmask {
            for (index, (left, right)) in left.opmask.into_iter().zip(right.opmask).enumerate() {
                self.words(Component::Opmask(index as u8), left, right);
            }
        }
    }

    fn flags(&mut self, left: u64, right: u64) {
        let mut known = 0;
        for flag in Flag::ALL {
            known |= flag.mask();
            let bit = |flags: u64| u8::from(flags & flag.mask() != 0);
            self.words(Component::Flag(flag), bit(left), bit(right));
        }
        self.words(Component::OtherFlags, left & !known, right & !known);
    }

    fn x87(&mut self, left: &State, right: &State, visible: Visible) {
        let (left, right) = (&left.x87, &right.x87);
        self.words(Component::X87Control, left.control, right.control);
        self.words(Component::X87Status, left.status, right.status);
        self.words(Component::X87Tag, left.tag, right.tag);
        if visible.x87_pointers {
            self.words(Component::X87Opcode, left.opcode, right.opcode);
            let pointers = (left.instruction_pointer, right.instruction_pointer);
            self.words(Component::X87InstructionPointer, pointers.0, pointers.1);
            self.words(Component::X87DataPointer, left.data_pointer, right.data_pointer);
        }
        for (index, (left, right)) in left.st.into_iter().zip(right.st).enumerate() {
            let bits = |value: crate::guest::F80| {
                u128::from(value.sign_exponent) << 64 | u128::from(value.significand)
            };
            self.words(Component::X87Register(index as u8), bits(left), bits(right));
        }
    }

    fn vectors(&mut self, left: &State, right: &State, visible: Visible) {
        let registers = left.vector.iter().zip(&right.vector).take(visible.vector_registers);
        for (register, (left, right)) in registers.enumerate() {
            if left == right {
                continue;
            }
            for lane in 0..visible.vector_bytes / 16 {
                let bits = |vector: &[u64; 8]| {
                    u128::from(vector[lane * 2 + 1]) << 64 | u128::from(vector[lane * 2])
                };
                let component = Component::Vector { register: register as u8, lane: lane as u8 };
                self.words(component, bits(left), bits(right));
            }
        }
    }

    fn memories(&mut self, case: &Case, left: &[PageChange], right: &[PageChange]) {
        let mut pages: Vec<_> =
            left.iter().chain(right).map(|change| (change.object, change.page)).collect();
        pages.sort_unstable();
        pages.dedup();
        let mut listed = 0;
        for (object, page) in pages {
            let (left, right) =
                (page_of(case, left, object, page), page_of(case, right, object, page));
            if left == right {
                continue;
            }
            for (offset, (left, right)) in left.iter().zip(right).enumerate() {
                if left != right && listed < MAX_MEMORY_DIFFERENCES {
                    listed += 1;
                    let offset = page as u64 * PAGE_SIZE + offset as u64;
                    self.words(Component::Memory { object, offset }, *left, *right);
                }
            }
        }
    }
}

/// What a page of an object holds after `changes`.
#[must_use]
pub fn page_of<'a>(
    case: &'a Case,
    changes: &'a [PageChange],
    object: ObjectId,
    page: usize,
) -> &'a [u8] {
    let size = PAGE_SIZE as usize;
    match changes.iter().find(|change| change.object == object && change.page == page) {
        Some(change) => &change.contents,
        None => &case.objects[object.0].contents[page * size..(page + 1) * size],
    }
}
