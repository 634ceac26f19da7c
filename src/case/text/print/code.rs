//! [`CodeMap`]: which pages of which object the guest can execute, and at which address; and
//! disassembly. Only comments depend on it.

use iced_x86::{Decoder, DecoderError, DecoderOptions, Formatter, Instruction, IntelFormatter};

use crate::case::{Action, Case, MapModel, Mapping, Trigger};
use crate::guest::{GuestAddress, PAGE_SIZE};

/// Where each page of each object is executed first, if it ever is.
pub(super) struct CodeMap {
    /// By object and page: the address of the page.
    pages: Vec<Vec<Option<u64>>>,
    /// Addresses at which an instruction is known to start, in order.
    entries: Vec<u64>,
}

/// The pages of one object.
pub(super) struct ObjectCode<'m> {
    pages: &'m [Option<u64>],
    entries: &'m [u64],
}

/// Consecutive bytes of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    /// Offset of the first byte.
    pub(super) start: usize,
    /// Offset behind the last byte.
    pub(super) end: usize,
    /// Address of the first byte, if it is code.
    pub(super) address: Option<u64>,
}

impl CodeMap {
    /// Plays the events of `case` through to see what becomes executable.
    pub(super) fn of(case: &Case) -> Self {
        let pages_of = |size: usize| size.div_ceil(PAGE_SIZE as usize);
        let mut code = Self {
            pages: case.objects.iter().map(|it| vec![None; pages_of(it.contents.len())]).collect(),
            entries: entries(case),
        };
        let mut map = MapModel::initial(case);
        code.add_all(map.mappings());
        for action in case.events.iter().flat_map(|event| &event.actions) {
            let harmless =
                matches!(action, Action::Write { .. } | Action::Unmap(_) | Action::ExitRequest);
            // The printer takes any case: an action that fails makes nothing executable.
            if map.apply(action).is_ok() && !harmless {
                code.add_all(map.mappings());
            }
        }
        code
    }

    fn add_all(&mut self, mappings: &[Mapping]) {
        for mapping in mappings.iter().filter(|mapping| mapping.permissions.execute()) {
            let first = (mapping.offset / PAGE_SIZE) as usize;
            let count = (mapping.range.size() / PAGE_SIZE) as usize;
            let Some(pages) = self.pages.get_mut(mapping.object.0) else { continue };
            let addresses = (mapping.range.start().0..).step_by(PAGE_SIZE as usize);
            for (page, address) in pages.iter_mut().skip(first).take(count).zip(addresses) {
                page.get_or_insert(address);
            }
        }
    }

    /// The part of the map about object number `index`. Without a map nothing is code.
    pub(super) fn of_object(code: Option<&Self>, index: usize) -> ObjectCode<'_> {
        let pages = code.and_then(|code| code.pages.get(index)).map_or(&[][..], Vec::as_slice);
        ObjectCode { pages, entries: code.map_or(&[], |code| &code.entries) }
    }

    /// Where a byte of an object that is seen at `address` is executed, if it ever is.
    pub(super) fn executed_at(&self, map: &MapModel, address: GuestAddress) -> Option<u64> {
        if map.find(address)?.permissions.execute() {
            return Some(address.0);
        }
        let (object, offset) = map.resolve(address)?;
        let page = (*self.pages.get(object.0)?.get((offset / PAGE_SIZE) as usize)?)?;
        Some(page + offset % PAGE_SIZE)
    }
}

fn entries(case: &Case) -> Vec<u64> {
    let breakpoints = case.events.iter().filter_map(|event| match event.trigger {
        Trigger::Breakpoint(address) => Some(address.0),
        Trigger::Halt | Trigger::Count(_) => None,
    });
    let mut entries: Vec<u64> = breakpoints.chain([case.state.rip]).collect();
    entries.sort_unstable();
    entries
}

impl ObjectCode<'_> {
    /// The `size` bytes of the object, cut so that each stretch is data or code at consecutive
    /// addresses, and code is cut where an instruction is known to start.
    pub(super) fn stretches(&self, size: usize) -> Vec<Stretch> {
        let mut stretches: Vec<Stretch> = Vec::new();
        let page_size = PAGE_SIZE as usize;
        for start in (0..size).step_by(page_size) {
            let address = self.pages.get(start / page_size).copied().flatten();
            let end = size.min(start + page_size);
            match stretches.last_mut() {
                Some(last) if continues(last, address) => last.end = end,
                _ => stretches.push(Stretch { start, end, address }),
            }
        }
        stretches.into_iter().flat_map(|stretch| self.cut_at_entries(stretch)).collect()
    }

    fn cut_at_entries(&self, stretch: Stretch) -> Vec<Stretch> {
        let Some(address) = stretch.address else { return vec![stretch] };
        let length = (stretch.end - stretch.start) as u64;
        let inside = |entry: &u64| (1..length).contains(&entry.wrapping_sub(address));
        let mut parts = vec![stretch];
        for entry in self.entries.iter().copied().filter(inside) {
            let start = stretch.start + (entry - address) as usize;
            let last = parts.last_mut().expect("there is one from the beginning");
            if last.start != start {
                last.end = start;
                parts.push(Stretch { start, end: stretch.end, address: Some(entry) });
            }
        }
        parts
    }
}

fn continues(last: &Stretch, address: Option<u64>) -> bool {
    let length = (last.end - last.start) as u64;
    last.address.map(|last| last.wrapping_add(length)) == address
}

/// What lies at the start of some bytes.
pub(super) enum Decoded {
    /// An instruction of this many bytes.
    Instruction(usize, String),
    /// No instruction starts so.
    Bad,
    /// The bytes end before the instruction does.
    Cut,
}

/// Decodes and formats instructions.
pub(super) struct Disassembler {
    formatter: IntelFormatter,
}

impl Disassembler {
    pub(super) fn new() -> Self {
        let mut formatter = IntelFormatter::new();
        let options = formatter.options_mut();
        options.set_hex_prefix("0x");
        options.set_hex_suffix("");
        options.set_uppercase_hex(false);
        options.set_branch_leading_zeros(false);
        options.set_show_branch_size(false);
        Self { formatter }
    }

    /// The first instruction of `bytes`, which lie at `address`.
    pub(super) fn decode(&mut self, bytes: &[u8], address: u64) -> Decoded {
        let mut decoder = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE);
        let instruction = decoder.decode();
        match decoder.last_error() {
            DecoderError::None => Decoded::Instruction(instruction.len(), self.text(&instruction)),
            DecoderError::NoMoreBytes => Decoded::Cut,
            _ => Decoded::Bad,
        }
    }

    fn text(&mut self, instruction: &Instruction) -> String {
        let mut text = String::new();
        self.formatter.format(instruction, &mut text);
        text
    }
}

/// The instructions that `bytes` at `address` begin with, in a line.
pub(super) fn summary(mut bytes: &[u8], mut address: u64) -> String {
    const SHOWN: usize = 6;
    let mut disassembler = Disassembler::new();
    let mut parts = Vec::new();
    while let Decoded::Instruction(length, text) = disassembler.decode(bytes, address) {
        if parts.len() == SHOWN {
            break;
        }
        parts.push(text);
        (bytes, address) = (&bytes[length..], address.wrapping_add(length as u64));
    }
    if !bytes.is_empty() {
        parts.push("…".to_owned());
    }
    parts.join("; ")
}
