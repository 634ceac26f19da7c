//! [`Case`]: one program with its machine state, its memory and the events that the host applies
//! while it runs; and [`Outcome`]: all that a guest could see of how it went. Both are data. A case
//! replays from its file alone ([`text`]); nothing here knows an engine.
//!
//! A run goes in *legs*. A leg ends when the trigger of the next event is met, or when the guest
//! stops for any other reason; in the first case the host applies that event's actions and the guest
//! goes on, in the second the case is over and the events that are left are not applied.

pub mod image;
mod outcome;
pub mod text;
mod validate;

pub use outcome::{ExceptionVector, Loss, Outcome, PageChange, Stop};
pub use validate::{Invalid, MAX_BYTES, MapModel};

use serde::{Deserialize, Serialize};

use crate::guest::{GuestAddress, GuestRange, PAGE_SIZE, Permissions, State};

/// What kind of code the guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Mode {
    /// 64-bit long mode, user privilege.
    #[default]
    Long64,
}

/// Names one of the backing objects of a case: its index in [`Case::objects`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectId(pub usize);

/// A run of memory that can be mapped, at several addresses at once if need be.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Object {
    /// What the text form calls it: a letter or `_`, then letters, digits, `_`, at most 32 bytes.
    pub name: String,
    /// Its bytes at the start; the length is a multiple of the page size and not zero.
    #[serde(with = "serde_bytes")]
    pub contents: Vec<u8>,
}

impl Object {
    /// An object of `pages` zero pages.
    #[must_use]
    pub fn zeroed(name: &str, pages: usize) -> Self {
        Self { name: name.to_owned(), contents: vec![0; pages * PAGE_SIZE as usize] }
    }
}

/// Part of an object at a place in the guest's address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Mapping {
    /// Where it is.
    pub range: GuestRange,
    /// What is there.
    pub object: ObjectId,
    /// Where in the object it begins: bytes, a multiple of the page size.
    pub offset: u64,
    /// What the guest may do there.
    pub permissions: Permissions,
}

/// When control passes from the guest to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Trigger {
    /// The guest executes `hlt`. It goes on behind it.
    Halt,
    /// The guest has executed this many instructions of this leg. A repeated string instruction
    /// counts once, when it is done; `hlt` counts. Not zero.
    Count(u64),
    /// The guest is about to execute the instruction at this address, and it is not the first
    /// instruction of this leg.
    Breakpoint(GuestAddress),
}

/// What the host does to the guest. Host writes ignore permissions.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Action {
    /// Write bytes at a guest address; all of them are mapped.
    Write {
        /// First byte.
        address: GuestAddress,
        /// What is written: at least one byte.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// Map part of an object where nothing was mapped.
    Map(Mapping),
    /// Take a range away; all of it was mapped.
    Unmap(GuestRange),
    /// Change what the guest may do; all of it was mapped.
    Protect {
        /// The pages.
        range: GuestRange,
        /// Their new permissions.
        permissions: Permissions,
    },
    /// Map what is mapped at `source` a second time at `destination`, where nothing was mapped.
    /// The permissions are copied.
    Alias {
        /// The pages that get a second address; all of them are mapped.
        source: GuestRange,
        /// The second address of the first page.
        destination: GuestAddress,
    },
    /// Move what is mapped at `source` to `destination`, where nothing was mapped.
    Remap {
        /// The pages that move; all of them are mapped.
        source: GuestRange,
        /// The new address of the first page.
        destination: GuestAddress,
    },
    /// Ask the guest to leave and let it go on. Nothing that a guest can see changes.
    ExitRequest,
}

/// A point of the run and what the host does there.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub trigger: Trigger,
    /// What, in order.
    pub actions: Vec<Action>,
}

/// One program and all it needs to run the same way anywhere.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Case {
    /// What kind of code it is.
    pub mode: Mode,
    /// A word to the reader; it has no effect.
    pub note: String,
    /// Registers at the start.
    pub state: State,
    /// Backing objects; all their bytes are compared at the end, mapped or not.
    pub objects: Vec<Object>,
    /// What is mapped at the start.
    pub mappings: Vec<Mapping>,
    /// What the host does on the way, in order.
    pub events: Vec<Event>,
    /// Instructions in all, over all legs, after which the run ends with [`Stop::Limit`].
    pub limit: Option<u64>,
}

impl Case {
    /// The bytes mapped at `address` at the start, up to the end of that mapping.
    #[must_use]
    pub fn initial_bytes(&self, address: GuestAddress) -> Option<&[u8]> {
        let mapping = self.mappings.iter().find(|mapping| mapping.range.contains(address))?;
        let start = mapping.offset + (address.0 - mapping.range.start().0);
        let end = mapping.offset + mapping.range.size();
        self.objects.get(mapping.object.0)?.contents.get(start as usize..end as usize)
    }

    /// A hash of the whole case but its note, in hexadecimal: the name of its file.
    #[must_use]
    pub fn content_hash(&self) -> String {
        let nameless = Self { note: String::new(), ..self.clone() };
        blake3::hash(text::print_bare(&nameless).as_bytes()).to_hex()[..16].to_owned()
    }
}
