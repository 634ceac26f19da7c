//! What makes a [`Case`] well-formed. Engines may rely on it: they are only given valid cases.
//! Every map change is played through, so that no action of an event can fail in an engine.

use super::{Action, Case, Mapping, ObjectId, Trigger};
use crate::guest::{
    Flag, GuestAddress, GuestRange, PAGE_SIZE, PKRU_DEFAULT, RFLAGS_ALWAYS_ONE, RFLAGS_USER,
    RangeError, Selectors, mxcsr_mask,
};

/// The most bytes that the objects of one case may have together.
pub const MAX_BYTES: usize = 64 << 20;
/// The most mappings of a case at any time.
const MAX_MAPPINGS: usize = 1024;

/// Why a case cannot be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// An object's name cannot be written in the text form.
    #[error("object {0}: the name `{1}` is not a letter or `_` and then letters, digits and `_`")]
    Name(usize, String),
    /// Two objects have one name.
    #[error("two objects are called `{0}`")]
    DuplicateName(String),
    /// An object's size is zero or not a multiple of the page size.
    #[error("object `{0}` has {1:#x} bytes, which is not a multiple of the page size, or zero")]
    ObjectSize(String, usize),
    /// The objects are too large together.
    #[error("the objects have more than {MAX_BYTES:#x} bytes together")]
    TooLarge,
    /// Too many mappings at one time.
    #[error("more than {MAX_MAPPINGS} mappings at one time")]
    TooManyMappings,
    /// A mapping names an object that is not there.
    #[error("there is no object number {0}")]
    NoObject(usize),
    /// A mapping reaches past its object, or its offset is not a multiple of the page size.
    #[error("the mapping {0} from offset {1:#x} does not lie on whole pages of its object")]
    OutsideObject(GuestRange, u64),
    /// A mapping lies on another.
    #[error("{0} overlaps the mapping {1}")]
    Overlap(GuestRange, GuestRange),
    /// An action needs pages that are not mapped.
    #[error("not all of {0} bytes from {1} are mapped")]
    Unmapped(u64, GuestAddress),
    /// A destination is not a page range.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// A write of no bytes.
    #[error("a write has no bytes")]
    EmptyWrite,
    /// A count of zero.
    #[error("a count of instructions is zero")]
    ZeroCount,
    /// RFLAGS has bits that user code cannot set, or lacks those that are always set.
    #[error("rflags {0:#x} cannot be had in user mode")]
    Flags(u64),
    /// Something else that a case cannot choose.
    #[error("{0} cannot be chosen, the value of a 64-bit Linux process is needed")]
    Fixed(&'static str),
    /// A register has a value that the processor refuses.
    #[error("{0} {1:#x} has bits set that must be zero")]
    Reserved(&'static str, u64),
    /// A segment base that is not canonical.
    #[error("{0} {1:#x} is not canonical")]
    NotCanonical(&'static str, u64),
}

impl Case {
    /// Whether every engine may be given this case; if not, the first reason.
    pub fn validate(&self) -> Result<(), Invalid> {
        self.validate_state()?;
        self.validate_objects()?;
        let mut map = MapModel::new(self);
        for mapping in &self.mappings {
            map.map(*mapping)?;
        }
        if self.limit == Some(0) {
            return Err(Invalid::ZeroCount);
        }
        for event in &self.events {
            if event.trigger == Trigger::Count(0) {
                return Err(Invalid::ZeroCount);
            }
            for action in &event.actions {
                map.apply(action)?;
            }
        }
        Ok(())
    }

    fn validate_state(&self) -> Result<(), Invalid> {
        let state = &self.state;
        if state.rflags & !RFLAGS_USER != RFLAGS_ALWAYS_ONE | Flag::IF.mask() {
            return Err(Invalid::Flags(state.rflags));
        }
        if state.selectors != Selectors::default() {
            return Err(Invalid::Fixed("a segment selector"));
        }
        if state.pkru != PKRU_DEFAULT {
            return Err(Invalid::Fixed("pkru"));
        }
        if state.mxcsr & !mxcsr_mask() != 0 {
            return Err(Invalid::Reserved("mxcsr", u64::from(state.mxcsr)));
        }
        if state.x87.opcode & 0xf800 != 0 {
            return Err(Invalid::Reserved("x87 opcode", u64::from(state.x87.opcode)));
        }
        // Bits 7, 13–15 of the control word do not exist, bit 6 always reads as one.
        if state.x87.control & 0xe0c0 != 0x40 {
            return Err(Invalid::Reserved("x87 control", u64::from(state.x87.control)));
        }
        for (name, base) in [
            ("rip", state.rip),
            ("fs_base", state.fs_base),
            ("gs_base", state.gs_base),
            ("x87 ip", state.x87.instruction_pointer),
            ("x87 dp", state.x87.data_pointer),
        ] {
            if (base.wrapping_shl(16) as i64 >> 16) as u64 != base {
                return Err(Invalid::NotCanonical(name, base));
            }
        }
        Ok(())
    }

    fn validate_objects(&self) -> Result<(), Invalid> {
        let mut total = 0;
        for (index, object) in self.objects.iter().enumerate() {
            if !is_name(&object.name) {
                return Err(Invalid::Name(index, object.name.clone()));
            }
            if self.objects[..index].iter().any(|other| other.name == object.name) {
                return Err(Invalid::DuplicateName(object.name.clone()));
            }
            let size = object.contents.len();
            if size == 0 || !size.is_multiple_of(PAGE_SIZE as usize) {
                return Err(Invalid::ObjectSize(object.name.clone(), size));
            }
            total += size;
        }
        if total > MAX_BYTES { Err(Invalid::TooLarge) } else { Ok(()) }
    }
}

fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    name.len() <= 32
        && bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// The mappings of a case as its events change them: what is mapped where at any time.
///
/// Mappings are kept in order of address and split where an action needs it. Every action either is
/// carried out whole or fails and changes nothing.
#[derive(Clone, Debug)]
pub struct MapModel {
    object_sizes: Vec<u64>,
    mappings: Vec<Mapping>,
}

impl MapModel {
    /// The address space of `case` with nothing mapped.
    #[must_use]
    pub fn new(case: &Case) -> Self {
        Self {
            object_sizes: case.objects.iter().map(|object| object.contents.len() as u64).collect(),
            mappings: Vec::new(),
        }
    }

    /// The address space of a valid `case` at its start.
    #[must_use]
    pub fn initial(case: &Case) -> Self {
        let mut map = Self::new(case);
        map.mappings = case.mappings.clone();
        map.mappings.sort_by_key(|mapping| mapping.range);
        map
    }

    /// What is mapped, in order of address.
    #[must_use]
    pub fn mappings(&self) -> &[Mapping] {
        &self.mappings
    }

    /// The mapping that holds `address`.
    #[must_use]
    pub fn find(&self, address: GuestAddress) -> Option<&Mapping> {
        let after = self.mappings.partition_point(|mapping| mapping.range.start() <= address);
        self.mappings[..after].last().filter(|mapping| mapping.range.contains(address))
    }

    /// Where `address` lies in its object.
    #[must_use]
    pub fn resolve(&self, address: GuestAddress) -> Option<(ObjectId, u64)> {
        self.find(address)
            .map(|mapping| (mapping.object, mapping.offset + (address.0 - mapping.range.start().0)))
    }

    /// Carries out what `action` does to the map (a write does nothing to it).
    pub fn apply(&mut self, action: &Action) -> Result<(), Invalid> {
        match action {
            Action::Write { address, bytes } => match bytes.len() as u64 {
                0 => Err(Invalid::EmptyWrite),
                length => self.require_mapped(*address, length),
            },
            Action::Map(mapping) => self.map(*mapping),
            Action::Unmap(range) => self.take(*range).map(|_| ()),
            Action::Protect { range, permissions } => {
                let mut taken = self.take(*range)?;
                for mapping in &mut taken {
                    mapping.permissions = *permissions;
                }
                self.put(taken);
                Ok(())
            }
            Action::Alias { source, destination } => {
                let copies = self.clone().take(*source)?;
                self.place(*source, *destination, copies)
            }
            Action::Remap { source, destination } => {
                let mut without = self.clone();
                let moved = without.take(*source)?;
                without.place(*source, *destination, moved)?;
                *self = without;
                Ok(())
            }
            Action::ExitRequest => Ok(()),
        }
    }

    fn map(&mut self, mapping: Mapping) -> Result<(), Invalid> {
        let Some(&size) = self.object_sizes.get(mapping.object.0) else {
            return Err(Invalid::NoObject(mapping.object.0));
        };
        let end = mapping.offset.checked_add(mapping.range.size());
        if !mapping.offset.is_multiple_of(PAGE_SIZE) || end.is_none_or(|end| end > size) {
            return Err(Invalid::OutsideObject(mapping.range, mapping.offset));
        }
        self.require_free(mapping.range)?;
        if self.mappings.len() >= MAX_MAPPINGS {
            return Err(Invalid::TooManyMappings);
        }
        self.put(vec![mapping]);
        Ok(())
    }

    fn place(
        &mut self,
        source: GuestRange,
        destination: GuestAddress,
        mut mappings: Vec<Mapping>,
    ) -> Result<(), Invalid> {
        self.require_free(GuestRange::new(destination, source.size())?)?;
        if self.mappings.len() + mappings.len() > MAX_MAPPINGS {
            return Err(Invalid::TooManyMappings);
        }
        for mapping in &mut mappings {
            let offset = mapping.range.start().0 - source.start().0;
            mapping.range =
                GuestRange::new(destination.wrapping_add(offset), mapping.range.size())?;
        }
        self.put(mappings);
        Ok(())
    }

    fn require_free(&self, range: GuestRange) -> Result<(), Invalid> {
        match self.mappings.iter().find(|mapping| mapping.range.overlaps(range)) {
            Some(other) => Err(Invalid::Overlap(range, other.range)),
            None => Ok(()),
        }
    }

    fn require_mapped(&self, address: GuestAddress, length: u64) -> Result<(), Invalid> {
        let unmapped = Invalid::Unmapped(length, address);
        let last = address.0.checked_add(length - 1).ok_or(unmapped.clone())?;
        let mut next = address;
        loop {
            let mapping = self.find(next).ok_or_else(|| unmapped.clone())?;
            if mapping.range.last().0 >= last {
                return Ok(());
            }
            next = mapping.range.last().wrapping_add(1);
        }
    }

    /// Removes `range` from the map and returns what was there, split at its ends.
    fn take(&mut self, range: GuestRange) -> Result<Vec<Mapping>, Invalid> {
        self.require_mapped(range.start(), range.size())?;
        let (mut kept, mut taken) = (Vec::new(), Vec::new());
        for mapping in self.mappings.drain(..) {
            for part in split(mapping, range) {
                if range.covers(part.range) { taken.push(part) } else { kept.push(part) }
            }
        }
        self.mappings = kept;
        Ok(taken)
    }

    fn put(&mut self, mappings: Vec<Mapping>) {
        self.mappings.extend(mappings);
        self.mappings.sort_by_key(|mapping| mapping.range);
    }
}

/// `mapping` cut at the two ends of `range` where those lie inside it.
fn split(mapping: Mapping, range: GuestRange) -> impl Iterator<Item = Mapping> {
    let (start, last) = (mapping.range.start().0, mapping.range.last().0);
    let cut_at = |address: u64| (start < address && address <= last).then_some(address);
    let after = range.last().0.checked_add(1);
    let mut starts: Vec<u64> = std::iter::once(start)
        .chain(cut_at(range.start().0))
        .chain(after.and_then(cut_at))
        .collect();
    starts.dedup();
    let lasts: Vec<u64> =
        starts[1..].iter().map(|start| start - 1).chain(std::iter::once(last)).collect();
    starts.into_iter().zip(lasts).filter_map(move |(from, to)| {
        let range = GuestRange::new(GuestAddress(from), to - from + 1).ok()?;
        Some(Mapping { range, offset: mapping.offset + (from - start), ..mapping })
    })
}
