//! [`Memory`]: segments laid out in pages, and the [`Case`] that they make.

use super::ImageError;
use crate::case::validate::MAX_BYTES;
use crate::case::{Case, Mapping, Object, ObjectId};
use crate::guest::{GuestAddress, GuestRange, PAGE_SIZE, Permissions, RangeError};

/// No more bytes are taken for an image and its stack.
const MOST_BYTES: u64 = MAX_BYTES as u64;
/// Where the stack ends, unless the image lies there: far from where engines have their own memory.
const STACK_TOP: u64 = 0x1000_0000_0000;
/// How far below it goes where the image is in the way.
const STACK_STEP: u64 = 1 << 30;

/// Bytes at an address.
pub(super) struct Segment<'b> {
    /// First address.
    pub(super) start: u64,
    /// Size in memory; what `bytes` do not fill is zero.
    pub(super) size: u64,
    /// First bytes.
    pub(super) bytes: &'b [u8],
    /// What the guest may do with it.
    pub(super) permissions: Permissions,
}

impl Segment<'_> {
    fn last(&self) -> u64 {
        self.start + (self.size - 1)
    }

    fn check(&self) -> Result<(), ImageError> {
        let start = GuestAddress(self.start);
        if self.bytes.len() as u64 > self.size {
            return Err(ImageError::SegmentSize(start));
        }
        if self.size > MOST_BYTES {
            return Err(ImageError::TooLarge(MOST_BYTES));
        }
        match self.start.checked_add(self.size - 1) {
            Some(_) => Ok(()),
            None => Err(ImageError::Wraps(start)),
        }
    }
}

/// Consecutive pages with the same permissions.
struct Run {
    start: u64,
    bytes: Vec<u8>,
    permissions: Permissions,
}

impl Run {
    fn last(&self) -> u64 {
        self.start + (self.bytes.len() as u64 - 1)
    }
}

/// The pages of an image.
pub(super) struct Memory {
    /// In order of address.
    runs: Vec<Run>,
}

impl Memory {
    /// Lays `segments` out; empty ones are skipped.
    pub(super) fn new(mut segments: Vec<Segment<'_>>) -> Result<Self, ImageError> {
        segments.retain(|segment| segment.size != 0 || !segment.bytes.is_empty());
        if segments.is_empty() {
            return Err(ImageError::Empty);
        }
        segments.iter().try_for_each(Segment::check)?;
        segments.sort_by_key(|segment| segment.start);
        for pair in segments.windows(2) {
            if pair[0].last() >= pair[1].start {
                let [first, second] = [&pair[0], &pair[1]].map(|it| GuestAddress(it.start));
                return Err(ImageError::Overlap(first, second));
            }
        }
        let mut memory = Self { runs: runs(&pages(&segments)?) };
        for segment in &segments {
            memory.write(segment.start, segment.bytes).expect("its pages were laid out");
        }
        Ok(memory)
    }

    /// The run that holds `address`, and where in it.
    fn find(&self, address: u64) -> Option<(usize, usize)> {
        let index = self.runs.partition_point(|run| run.start <= address).checked_sub(1)?;
        let offset = (address - self.runs[index].start) as usize;
        (offset < self.runs[index].bytes.len()).then_some((index, offset))
    }

    /// Writes `bytes` from `address` on, unless not all of them are mapped.
    pub(super) fn write(&mut self, mut address: u64, mut bytes: &[u8]) -> Option<()> {
        while !bytes.is_empty() {
            let (run, offset) = self.find(address)?;
            let target = &mut self.runs[run].bytes[offset..];
            let length = target.len().min(bytes.len());
            target[..length].copy_from_slice(&bytes[..length]);
            (address, bytes) = (address.wrapping_add(length as u64), &bytes[length..]);
        }
        Some(())
    }

    /// The little-endian number at `address`.
    pub(super) fn read_u64(&self, address: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        for (address, byte) in (address..=u64::MAX).zip(&mut bytes) {
            let (run, offset) = self.find(address)?;
            *byte = self.runs[run].bytes[offset];
        }
        (address <= u64::MAX - 7).then_some(u64::from_le_bytes(bytes))
    }

    /// The case that begins at `entry` with a stack of at least `stack_size` bytes.
    pub(super) fn into_case(
        self,
        entry: GuestAddress,
        stack_size: u64,
    ) -> Result<Case, ImageError> {
        if !self.find(entry.0).is_some_and(|(run, _)| self.runs[run].permissions.execute()) {
            return Err(ImageError::Entry(entry));
        }
        let stack = self.stack(stack_size)?;
        let mut case = Case::default();
        case.state.rip = entry.0;
        case.state.gpr[4] = stack.last().0 - 15;
        for (index, run) in self.runs.into_iter().enumerate() {
            let range = page_range(run.start, run.bytes.len() as u64)?;
            add(&mut case, format!("image_{index}"), range, run.bytes, run.permissions);
        }
        let bytes = vec![0; stack.size() as usize];
        add(&mut case, "stack".to_owned(), stack, bytes, Permissions::ReadWrite);
        case.validate()?;
        Ok(case)
    }

    /// Whether any of the image lies in `range`.
    fn reaches_into(&self, range: GuestRange) -> bool {
        let before = self.runs.partition_point(|run| run.start <= range.last().0);
        self.runs[..before].last().is_some_and(|run| run.last() >= range.start().0)
    }

    /// A free place for a stack.
    fn stack(&self, size: u64) -> Result<GuestRange, ImageError> {
        let image: u64 = self.runs.iter().map(|run| run.bytes.len() as u64).sum();
        let size = match size.checked_next_multiple_of(PAGE_SIZE) {
            Some(0) => return Err(ImageError::NoStack),
            Some(size) if size <= MOST_BYTES - image => size,
            _ => return Err(ImageError::TooLarge(MOST_BYTES)),
        };
        // Each of the at most 0x4000 pages of an image is in the way of one place only.
        (1..)
            .map_while(|step| STACK_TOP.checked_sub(step * STACK_STEP))
            .find_map(|below| {
                let start = below + (STACK_STEP - size);
                GuestRange::new(GuestAddress(start), size)
                    .ok()
                    .filter(|range| !self.reaches_into(*range))
            })
            .ok_or(ImageError::TooLarge(MOST_BYTES))
    }
}

fn add(
    case: &mut Case,
    name: String,
    range: GuestRange,
    contents: Vec<u8>,
    permissions: Permissions,
) {
    let object = ObjectId(case.objects.len());
    case.objects.push(Object { name, contents });
    case.mappings.push(Mapping { range, object, offset: 0, permissions });
}

fn page_range(start: u64, size: u64) -> Result<GuestRange, ImageError> {
    GuestRange::new(GuestAddress(start), size)
        .map_err(|error: RangeError| ImageError::Invalid(error.into()))
}

/// The numbers of the pages of `segments`, which are in order, and what is allowed there.
fn pages(segments: &[Segment<'_>]) -> Result<Vec<(u64, Permissions)>, ImageError> {
    let mut pages: Vec<(u64, Permissions)> = Vec::new();
    for segment in segments {
        let (mut first, last) = (segment.start / PAGE_SIZE, segment.last() / PAGE_SIZE);
        if let Some((page, permissions)) = pages.last_mut()
            && *page == first
        {
            *permissions = union(*permissions, segment.permissions);
            first += 1;
        }
        pages.extend((first..=last).map(|page| (page, segment.permissions)));
        if pages.len() as u64 > MOST_BYTES / PAGE_SIZE {
            return Err(ImageError::TooLarge(MOST_BYTES));
        }
    }
    Ok(pages)
}

fn runs(pages: &[(u64, Permissions)]) -> Vec<Run> {
    pages
        .chunk_by(|first, second| first.0 + 1 == second.0 && first.1 == second.1)
        .map(|run| Run {
            start: run[0].0 * PAGE_SIZE,
            bytes: vec![0; run.len() * PAGE_SIZE as usize],
            permissions: run[0].1,
        })
        .collect()
}

fn union(first: Permissions, second: Permissions) -> Permissions {
    let either = |may: fn(Permissions) -> bool| may(first) || may(second);
    permissions(either(Permissions::read), either(Permissions::write), either(Permissions::execute))
        .expect("either of them may be read where it may be more")
}

/// The permissions that allow just this, if page tables can express it.
pub(super) fn permissions(read: bool, write: bool, execute: bool) -> Option<Permissions> {
    let exactly =
        |it: &Permissions| (it.read(), it.write(), it.execute()) == (read, write, execute);
    Permissions::ALL.into_iter().find(exactly)
}
