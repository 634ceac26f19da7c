//! Scenes in which code that has run changes and runs again: in the program's own pages in every way that
//! a host has to change them, or in a function that lies among the data.

use iced_x86::{Code, Instruction, Register};

use super::layout::{CODE, CODE_ALIAS_DISTANCE, DATA, mapping, range};
use super::writer::Writer;
use crate::case::{Action, Event, Trigger};
use crate::guest::{GuestAddress, GuestRange, PAGE_SIZE, Permissions};

/// Where code goes for as long as one event, seen from where it belongs.
const ASIDE_DISTANCE: u64 = 3 * CODE_ALIAS_DISTANCE;
/// Bytes that a function among the data has at most.
const MOST_FUNCTION: u64 = 16;

impl Writer<'_, '_> {
    /// A loop in which the host changes an instruction that has been executed and will be again: at
    /// `hlt`, and at times once more a few instructions later or when it comes up.
    pub(super) fn changed_loop(&mut self, events: &mut Vec<Event>) {
        let mut patchable = None;
        let again = self.choices.byte();
        let times = 2 + self.choices.below(3);
        self.loop_of(times, |writer| {
            if writer.choices.chance(128) {
                writer.quiet_unit();
            }
            writer.come_to_the_border(false);
            patchable = Some(writer.patchable());
            if writer.choices.chance(96) {
                writer.quiet_unit();
            }
            writer.emit(&Instruction::with(Code::Hlt));
        });
        let Some(patchable) = patchable else { return };
        let running = patchable.address + self.running_distance();
        for time in 0..times {
            let between = match again {
                0..=159 => None,
                160..=199 => Some(Trigger::Count(1 + self.choices.below(2) as u64)),
                _ => Some(Trigger::Breakpoint(GuestAddress(running))),
            };
            let triggers = between.filter(|_| time > 0).into_iter().chain([Trigger::Halt]);
            for trigger in triggers {
                let (address, bytes) = self.replacement(patchable);
                let actions = self.ways_to_write(address, bytes);
                events.push(Event { trigger, actions });
            }
        }
    }

    /// A loop that runs long enough for the host to change it after numbers of instructions.
    pub(super) fn counted_loop(&mut self, events: &mut Vec<Event>) {
        let mut patchables = Vec::new();
        self.loop_of(14, |writer| {
            patchables.push(writer.patchable());
            writer.skip_sometimes();
            patchables.push(writer.patchable());
        });
        // Five instructions a pass and more.
        for _ in 0..2 + self.choices.below(2) {
            let patchable = self.choices.pick(&patchables);
            let trigger = Trigger::Count(1 + self.choices.below(23) as u64);
            let (address, bytes) = self.replacement(patchable);
            let actions = self.ways_to_write(address, bytes);
            events.push(Event { trigger, actions });
        }
    }

    /// Emits `body` as a loop that is executed a few times.
    fn loop_of(&mut self, times: usize, body: impl FnOnce(&mut Self)) {
        let counter = self.counter();
        self.load(counter, times as u64);
        let pinned = self.pinned;
        self.pinned |= 1 << counter;
        let top = self.address();
        body(self);
        self.count_down(counter, top);
        self.pinned = pinned;
    }

    /// From where the code was written to where it runs.
    fn running_distance(&self) -> u64 {
        if self.relocated { CODE_ALIAS_DISTANCE } else { 0 }
    }

    /// What a host may do to change bytes of the program's code, which is where it was before when all of
    /// it is done.
    fn ways_to_write(&mut self, address: u64, bytes: Vec<u8>) -> Vec<Action> {
        let home = range(self.layout.code, self.layout.code_pages() as u64);
        let permissions = self.layout.code_permissions();
        let aside = GuestAddress(self.layout.code + ASIDE_DISTANCE);
        let there = range(aside.0, self.layout.code_pages() as u64);
        let write = |distance| Action::Write { address: GuestAddress(address + distance), bytes };
        let map = |place: GuestRange, permissions| {
            let pages = place.size() / PAGE_SIZE;
            Action::Map(mapping(CODE, place.start().0, pages, permissions))
        };
        match self.choices.byte() {
            0..=95 => vec![write(0)],
            96..=111 => vec![Action::ExitRequest, write(self.running_distance())],
            112..=143 => vec![
                Action::Alias { source: home, destination: aside },
                write(ASIDE_DISTANCE),
                Action::Unmap(there),
            ],
            144..=175 => vec![
                Action::Remap { source: home, destination: aside },
                write(ASIDE_DISTANCE),
                Action::Remap { source: there, destination: home.start() },
            ],
            176..=207 => {
                let less = self.choices.pick(&[Permissions::ReadWrite, Permissions::None]);
                vec![
                    Action::Protect { range: home, permissions: less },
                    write(0),
                    Action::Protect { range: home, permissions },
                ]
            }
            208..=231 => vec![
                Action::Unmap(home),
                map(there, Permissions::ReadWrite),
                write(ASIDE_DISTANCE),
                Action::Unmap(there),
                map(home, permissions),
            ],
            _ => vec![
                write(0),
                Action::Protect { range: home, permissions: Permissions::ReadExecute },
                Action::Protect { range: home, permissions },
            ],
        }
    }

    /// A function among the data is called in a loop, and between the calls becomes another one, or the
    /// page that it is in does.
    pub(super) fn changed_callee(&mut self, events: &mut Vec<Event>) {
        let pages = range(self.layout.data(), 2);
        let mut callee = self.callee();
        let rwx = Permissions::ReadWriteExecute;
        let mut first = vec![Action::Protect { range: pages, permissions: rwx }];
        first.push(self.function_for(&callee, callee.place));
        // What the first page has there, and so does the second one's address when it stands in for it.
        first.push(match callee.straddles {
            true => self.second_half(&callee, self.layout.data()),
            false => self.other_function(callee.place - PAGE_SIZE),
        });
        self.halt(events, first);
        let times = 2 + self.choices.below(4);
        let writes = !callee.straddles && self.choices.chance(80);
        self.loop_of(times, |writer| {
            if writes {
                let value = u32::from(writer.choices.byte()) << 16;
                writer.change(Code::Add_rm32_imm32, callee.written(), value);
            }
            writer.call_data(callee.place);
            if writer.choices.chance(64) {
                writer.quiet_unit();
            }
            writer.emit(&Instruction::with(Code::Hlt));
        });
        for time in 1..=times {
            let mut actions = self.change_of(&mut callee);
            if time == times {
                actions.extend(callee.page_back());
                let permissions = Permissions::ReadWrite;
                actions.push(Action::Protect { range: pages, permissions });
            }
            events.push(Event { trigger: Trigger::Halt, actions });
        }
    }

    fn callee(&mut self) -> Callee {
        let page = self.second_page();
        let straddles = self.choices.chance(64);
        let place = match straddles {
            // The border lies among the four bytes of its constant.
            true => page - 2 - self.choices.below(4) as u64,
            false => page + 0xc00 + self.choices.below(16) as u64 * MOST_FUNCTION,
        };
        let away = self.layout.code + ASIDE_DISTANCE + 16 * PAGE_SIZE;
        let relocated = self.relocated;
        Callee { page, place, straddles, away, holds: Holds::Own, relocated }
    }

    /// `call` of an address among the data, which a relocated program does not know from itself.
    fn call_data(&mut self, place: u64) {
        if self.relocated || self.choices.chance(96) {
            let register = self.free_destination();
            self.load(register as u8, place);
            self.emit_made(Instruction::with1(Code::Call_rm64, Register::RAX + register));
        } else {
            self.emit_backward(Code::Call_rel32_64, place);
        }
    }

    /// A write of a function, one that is cut in its constant if it straddles.
    fn function_for(&mut self, callee: &Callee, place: u64) -> Action {
        if !callee.straddles {
            return self.other_function(place);
        }
        let register = self.free_destination() as u8;
        let mut bytes = vec![0x40 | register >> 3, 0xb8 | register & 7];
        bytes.extend(self.choices.double_word().to_le_bytes());
        bytes.push(0xc3);
        Action::Write { address: GuestAddress(place), bytes }
    }

    /// A write of that part of a straddling function, with another constant, that is in the second page, to
    /// the beginning of the page at `page`.
    fn second_half(&mut self, callee: &Callee, page: u64) -> Action {
        let in_first = (callee.page - callee.place - 2) as usize;
        let mut bytes = self.choices.double_word().to_le_bytes()[in_first..].to_vec();
        bytes.push(0xc3);
        Action::Write { address: GuestAddress(page), bytes }
    }

    /// A write of a small function.
    fn other_function(&mut self, place: u64) -> Action {
        let register = self.free_destination() as u8;
        let (low, high) = (register & 7, register >> 3);
        let value = self.choices.byte();
        let mut bytes = match self.choices.below(4) {
            0 => vec![0x48 | high, 0x83, 0xc0 | (value & 7) << 3 | low, value],
            1 => vec![0x40 | high, 0xb8 | low, value, 0, self.choices.byte(), 0],
            2 => vec![0x48 | high, 0xff, 0xc0 | low],
            _ => vec![0x66, 0x90, 0x48 | high, 0x83, 0xe8 | low, value],
        };
        bytes.push(0xc3);
        Action::Write { address: GuestAddress(place), bytes }
    }

    /// What happens to the function between two calls.
    fn change_of(&mut self, callee: &mut Callee) -> Vec<Action> {
        let page = range(callee.page, 1);
        let aside = range(callee.away + 4 * PAGE_SIZE, 1);
        let permissions = Permissions::ReadWriteExecute;
        let kind = self.choices.byte();
        match kind {
            0..=31 => vec![self.function_for(callee, callee.place)],
            32..=79 if callee.straddles => vec![self.second_half(callee, callee.page)],
            32..=79 => vec![self.other_function(callee.place)],
            80..=159 => match callee.holds {
                Holds::Own if kind < 120 => callee.page_away(),
                Holds::Own => callee.page_replaced(),
                Holds::Other { .. } => callee.page_back(),
            },
            160..=191 => {
                let there = aside.start();
                let write = match callee.straddles {
                    true => self.second_half(callee, there.0),
                    false => self.other_function(callee.place - callee.page + there.0),
                };
                let alias = Action::Alias { source: page, destination: there };
                vec![alias, write, Action::Unmap(aside)]
            }
            192..=223 => vec![
                Action::Protect { range: page, permissions: Permissions::ReadWrite },
                self.function_for(callee, callee.place),
                Action::Protect { range: page, permissions },
            ],
            224..=239 => vec![
                Action::Protect { range: page, permissions: Permissions::ReadExecute },
                Action::Protect { range: page, permissions },
            ],
            _ => vec![Action::ExitRequest],
        }
    }
}

/// A function in the second page of data or, if it straddles, from the first into the second. The first
/// page has another one at the same place, so that it can stand in for the second.
#[derive(Clone, Copy, Debug)]
struct Callee {
    page: u64,
    place: u64,
    straddles: bool,
    /// Where the page goes in the meantime.
    away: u64,
    holds: Holds,
    relocated: bool,
}

/// What lies at the second page's address.
#[derive(Clone, Copy, Debug)]
enum Holds {
    Own,
    /// The first page, while its own is moved away or mapped nowhere.
    Other {
        moved: bool,
    },
}

impl Callee {
    /// Where the guest writes to change its third and fourth byte, as it says it: relative to itself.
    fn written(&self) -> u64 {
        let distance = if self.relocated { CODE_ALIAS_DISTANCE } else { 0 };
        self.place.wrapping_sub(distance)
    }

    fn first_page(&self) -> Action {
        Action::Map(mapping(DATA, self.page, 1, Permissions::ReadWriteExecute))
    }

    fn page_away(&mut self) -> Vec<Action> {
        self.holds = Holds::Other { moved: true };
        let go =
            Action::Remap { source: range(self.page, 1), destination: GuestAddress(self.away) };
        vec![go, self.first_page()]
    }

    fn page_replaced(&mut self) -> Vec<Action> {
        self.holds = Holds::Other { moved: false };
        vec![Action::Unmap(range(self.page, 1)), self.first_page()]
    }

    /// Nothing if it is there.
    fn page_back(&mut self) -> Vec<Action> {
        let Holds::Other { moved } = std::mem::replace(&mut self.holds, Holds::Own) else {
            return Vec::new();
        };
        let page = range(self.page, 1);
        let own = if moved {
            Action::Remap { source: range(self.away, 1), destination: page.start() }
        } else {
            let mut own = mapping(DATA, self.page, 1, Permissions::ReadWriteExecute);
            own.offset = PAGE_SIZE;
            Action::Map(own)
        };
        vec![Action::Unmap(page), own]
    }
}
