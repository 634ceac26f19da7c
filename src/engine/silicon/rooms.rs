//! [`Rooms`]: a few children, each of which keeps what is mapped in it from case to case.
//!
//! To map a page costs as much as to run a short leg, and cases come in few layouts. So a case goes
//! to the child that has its mappings already; if there is none, to a new child while there are few,
//! else to the one that was not used for the longest time.

use super::child::{Child, SystemCall, call};
use crate::case::{MapModel, Mapping};
use crate::engine::case_memory::CaseMemory;
use crate::guest::{GuestRange, Permissions};

/// How many children there are at most: one for each layout of generated programs, and a few for what
/// events leave behind.
const MOST: usize = 12;

/// Something that is mapped in a child: where, from which position in the memfd, and for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Present {
    range: GuestRange,
    position: u64,
    permissions: Permissions,
}

/// A child and what is mapped in it.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) child: Child,
    present: Vec<Present>,
    /// When it was taken last.
    taken: u64,
}

/// See the file's head.
#[derive(Debug, Default)]
pub(super) struct Rooms {
    rooms: Vec<Room>,
    /// The room in use, or used last.
    current: Option<usize>,
    /// How often a room was taken.
    clock: u64,
}

impl Rooms {
    /// The room in use, or used last, unless its child was lost.
    pub(super) fn current(&self) -> Option<&Room> {
        self.rooms.get(self.current?)
    }

    /// The same to be changed.
    pub(super) fn current_mut(&mut self) -> Option<&mut Room> {
        self.rooms.get_mut(self.current?)
    }

    /// Takes into use the room that suits a case best which wants `wanted` and leaves those spans
    /// free of which `is_free` is true. False where a new child is to be started instead.
    pub(super) fn take(&mut self, wanted: &[Present], is_free: impl Fn(u64) -> bool) -> bool {
        let free = |(_, room): &(usize, &Room)| is_free(room.child.base());
        let suits = |room: &Room| room.has(wanted) || room.present.is_empty();
        let rooms = || self.rooms.iter().enumerate().filter(free);
        let ready = rooms().find(|(_, room)| suits(room));
        let any = || rooms().min_by_key(|(_, room)| room.taken);
        let full = self.rooms.len() >= MOST;
        let index = ready.or_else(|| any().filter(|_| full)).map(|(index, _)| index);
        let found = index.is_some();
        if found {
            self.use_room(index);
        } else if full {
            self.drop_oldest();
        }
        found
    }

    /// Adds a child in which nothing is mapped, and takes it into use.
    pub(super) fn add(&mut self, child: Child) {
        self.rooms.push(Room { child, present: Vec::new(), taken: 0 });
        self.use_room(Some(self.rooms.len() - 1));
    }

    /// Ends the child in use.
    pub(super) fn drop_current(&mut self) {
        if let Some(index) = self.current.take() {
            self.rooms.swap_remove(index);
        }
    }

    fn use_room(&mut self, index: Option<usize>) {
        self.current = index;
        self.clock += 1;
        let taken = self.clock;
        if let Some(room) = self.current_mut() {
            room.taken = taken;
        }
    }

    fn drop_oldest(&mut self) {
        self.current = None;
        let oldest = self.rooms.iter().enumerate().min_by_key(|(_, room)| room.taken);
        if let Some((index, _)) = oldest {
            self.rooms.swap_remove(index);
        }
    }
}

impl Room {
    /// Whether just that is mapped.
    pub(super) fn has(&self, wanted: &[Present]) -> bool {
        self.present == wanted
    }

    /// The system calls that turn what is mapped into `wanted`.
    pub(super) fn remap(&mut self, wanted: Vec<Present>) -> Vec<SystemCall> {
        if self.has(&wanted) {
            return Vec::new();
        }
        // What comes in the very place of something that goes replaces it, which saves a call.
        let replaced = |old: &&Present| wanted.iter().any(|new| new.range == old.range);
        let gone = self.present.iter().filter(|old| !wanted.contains(old));
        let new = wanted.iter().filter(|new| !self.present.contains(new));
        let unmap =
            |old: &Present| call(libc::SYS_munmap, &[old.range.start().0, old.range.size()]);
        let commands =
            gone.filter(|old| !replaced(old)).map(unmap).chain(new.map(Present::map)).collect();
        self.present = wanted;
        commands
    }
}

impl Present {
    /// What has to be there for `map`.
    pub(super) fn all(map: &MapModel, memory: &CaseMemory) -> Vec<Self> {
        let accessible = |mapping: &&Mapping| mapping.permissions != Permissions::None;
        let present = |mapping: &Mapping| Self {
            range: mapping.range,
            position: memory.position(mapping.object, mapping.offset),
            permissions: mapping.permissions,
        };
        map.mappings().iter().filter(accessible).map(present).collect()
    }

    fn map(&self) -> SystemCall {
        let protection = match self.permissions {
            Permissions::None => libc::PROT_NONE,
            Permissions::Read => libc::PROT_READ,
            Permissions::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
            Permissions::ReadExecute => libc::PROT_READ | libc::PROT_EXEC,
            Permissions::ReadWriteExecute => libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
        } as u64;
        let flags = (libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_POPULATE) as u64;
        let (start, size) = (self.range.start().0, self.range.size());
        let memory = libc::STDOUT_FILENO as u64;
        call(libc::SYS_mmap, &[start, size, protection, flags, memory, self.position])
    }
}
