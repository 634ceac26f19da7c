//! What the test knows of its own process: where memory lies that a guest might aim at.

use std::fs;

/// A line of `/proc/self/maps`.
pub(crate) struct Mapped {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) rights: String,
    pub(crate) name: String,
}

pub(crate) fn mappings() -> Vec<Mapped> {
    let text = fs::read_to_string("/proc/self/maps").unwrap();
    text.lines()
        .map(|line| {
            let mut words = line.split_whitespace();
            let (start, end) = words.next().unwrap().split_once('-').unwrap();
            let rights = words.next().unwrap().to_owned();
            let number = |text| u64::from_str_radix(text, 16).unwrap();
            let name = words.skip(3).collect::<Vec<_>>().join(" ");
            Mapped { start: number(start), end: number(end), rights, name }
        })
        .collect()
}

/// The host address of guest address 0, given that `name` is mapped readable at `guest`.
pub(crate) fn window_start(name: &str, guest: u64) -> u64 {
    let mappings = mappings();
    let mut own =
        mappings.iter().filter(|it| it.name.contains(name) && it.rights.starts_with("r--"));
    own.next().unwrap().start - guest
}

/// Addresses worth aiming at: code caches, vCPUs' blocks, stacks, the heap, libraries, the kernel's
/// pages.
pub(crate) fn targets() -> Vec<u64> {
    let mut targets = vec![0xffff_ffff_ff60_0000, 0xffff_8000_0000_0000];
    let local = 0_u64;
    targets.push(&raw const local as u64);
    for mapped in mappings() {
        if mapped.rights.starts_with("---") {
            continue;
        }
        targets.extend([mapped.start, mapped.end - 8, (mapped.start + mapped.end) / 2]);
        let block = mapped.start + (256 << 10);
        if block < mapped.end {
            targets.push(block);
        }
    }
    targets
}
