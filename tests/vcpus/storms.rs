//! Storms: vCPUs run while one kind of change after the other rains down on what they run, and what
//! is changed is never seen as it was. `windows` says how that is known.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use tregion::guest::{GuestAddress, Permissions};
use tregion::memory::Backing;

use crate::guest::{Arena, alone, range, time};
use crate::windows::{Changer, Met, Runners, Slot, versioned};

pub(crate) const FIRST: Slot = Slot { number: 0, page: 0x60_0000 };
pub(crate) const SECOND: Slot = Slot { number: 1, page: 0x61_0000 };
/// Where pages are put away, and mapped a second time.
const AWAY: u64 = 0x62_0000;
const ALIAS: u64 = 0x63_0000;

/// A slot in a page of its own that can be executed.
pub(crate) fn mapped(arena: &Arena, slot: Slot, permissions: Permissions) -> Changer {
    arena.map(slot.page, 1, permissions);
    let mut changer = Changer::new(arena, slot);
    changer.change(|changer| changer.write(slot.page));
    changer
}

/// Two runners of two slots; `storm` changes the first, again and again, until time is up.
fn storm(name: &str, permissions: Permissions, mut storm: impl FnMut(&mut Changer, u64)) -> Met {
    let _alone = alone();
    let arena = Arena::new();
    let mut changer = mapped(&arena, FIRST, permissions);
    let _quiet = mapped(&arena, SECOND, Permissions::ReadExecute);
    let runners = Runners::start(&arena, &[FIRST, SECOND], 2);
    let until = Instant::now() + time(0.75);
    let mut round = 0;
    while Instant::now() < until && runners.are_well() {
        storm(&mut changer, round);
        round += 1;
    }
    println!("{name}: {round} changes");
    runners.stop(name).0
}

#[test]
fn host_writes() {
    storm("host writes", Permissions::ReadWriteExecute, |changer, round| {
        changer.change(|changer| changer.write(changer.slot.page));
        if round % 64 == 0 {
            // Pages that are written often are treated otherwise; not for ever.
            changer.arena.machine.flush();
        }
    });
}

#[test]
fn host_writes_to_code_that_guests_cannot_write() {
    storm("host writes, r-x", Permissions::ReadExecute, |changer, _| {
        changer.change(|changer| changer.write(changer.slot.page));
        changer.arena.machine.flush();
    });
}

/// Eight bytes of code that return a number of 24 bits: `mov eax, …` and `ret`.
pub(crate) fn eight_bytes(number: u64) -> u64 {
    0xb8 | number << 8 | 0xc3 << 40
}

#[test]
fn guest_writes() {
    storm("guest writes", Permissions::ReadWriteExecute, |changer, round| {
        changer.change(|changer| {
            let (number, page) = (changer.number(), changer.slot.page);
            changer.storer.store(page, eight_bytes(number));
            // What a guest has written is current once nobody runs what was before.
            changer.arena.machine.invalidate(range(page, 1));
            number
        });
        if round % 64 == 0 {
            changer.arena.machine.flush();
        }
    });
}

#[test]
fn writes_through_an_alias() {
    storm("alias", Permissions::ReadWriteExecute, |changer, round| {
        let (arena, page) = (changer.arena.clone(), changer.slot.page);
        arena.machine.alias(range(page, 1), GuestAddress(ALIAS)).unwrap();
        changer.change(|changer| changer.write(ALIAS));
        changer.change(|changer| {
            let number = changer.number();
            changer.storer.store(ALIAS, eight_bytes(number));
            arena.machine.invalidate(range(page, 1));
            number
        });
        arena.machine.unmap(range(ALIAS, 1)).unwrap();
        if round % 16 == 0 {
            arena.machine.flush();
        }
    });
}

#[test]
fn pages_that_come_and_go() {
    let met = storm("unmap, map", Permissions::ReadExecute, |changer, round| {
        let (arena, page) = (changer.arena.clone(), changer.slot.page);
        changer.change(|_| {
            arena.machine.unmap(range(page, 1)).unwrap();
            0
        });
        changer.change(|changer| {
            if round % 2 == 0 {
                arena.map(page, 1, Permissions::ReadExecute);
                return changer.write(page);
            }
            let backing = Backing::new("version", 0x1000).unwrap();
            let number = changer.number();
            backing.write(0, &versioned(page, number));
            let permissions = Permissions::ReadExecute;
            arena.machine.map_shared(range(page, 1), &backing, 0, permissions).unwrap();
            number
        });
    });
    assert!(met.faults > 0, "runners came while the page was away");
}

#[test]
fn pages_that_move() {
    let met = storm("remap", Permissions::ReadExecute, |changer, round| {
        let (machine, page) = (changer.arena.machine.clone(), changer.slot.page);
        if round == 0 {
            changer.arena.map(AWAY, 1, Permissions::ReadExecute);
        }
        // The page that is away gets another version, and the two change places.
        let mut number = 0;
        changer.change(|changer| {
            number = changer.write(AWAY);
            machine.remap(range(page, 1), GuestAddress(AWAY + 0x2000)).unwrap();
            0
        });
        changer.change(|_| {
            machine.remap(range(AWAY, 1), GuestAddress(page)).unwrap();
            number
        });
        machine.remap(range(AWAY + 0x2000, 1), GuestAddress(AWAY)).unwrap();
    });
    assert!(met.faults > 0, "runners came while the page was away");
}

#[test]
fn permissions_that_change() {
    let met = storm("protect", Permissions::ReadExecute, |changer, round| {
        let (machine, page) = (changer.arena.machine.clone(), changer.slot.page);
        let without = [Permissions::None, Permissions::Read, Permissions::ReadWrite];
        let with = [Permissions::ReadExecute, Permissions::ReadWriteExecute];
        changer.change(|_| {
            machine.protect(range(page, 1), without[round as usize % 3]).unwrap();
            0
        });
        changer.change(|changer| {
            let number = changer.write(page);
            machine.protect(range(page, 1), with[round as usize % 2]).unwrap();
            number
        });
    });
    assert!(met.faults > 0, "runners came while the page could not be executed");
}

#[test]
fn snapshots_and_their_return() {
    // A machine that is restored has the words of then, so that those of this test are the host's.
    let _alone = alone();
    let arena = Arena::new();
    let mut changer = mapped(&arena, FIRST, Permissions::ReadWriteExecute);
    let until = Instant::now() + time(0.75);
    let versions: Vec<u64> = (0..3)
        .map(|_| {
            let number = changer.number();
            let code = versioned(FIRST.page, number);
            arena.machine.write(GuestAddress(FIRST.page), &code).unwrap();
            number
        })
        .collect();
    let snapshot = arena.machine.snapshot().unwrap();
    let last = *versions.last().unwrap();
    // What the guest has to return at present.
    let current = Arc::new(AtomicU64::new(last));
    let epoch = Arc::new(AtomicU64::new(0));
    let over = Arc::new(AtomicBool::new(false));
    // Runs that nothing has interrupted, which can be seldom on a busy host.
    let checked = Arc::new(AtomicU64::new(0));
    let threads: Vec<_> = (0..2)
        .map(|number| {
            let mut vcpu = arena.vcpu(number, FIRST.page);
            let (current, checked) = (Arc::clone(&current), Arc::clone(&checked));
            let (epoch, over) = (Arc::clone(&epoch), Arc::clone(&over));
            std::thread::spawn(move || {
                while !over.load(Ordering::SeqCst) {
                    let before = epoch.load(Ordering::SeqCst);
                    let expected = current.load(Ordering::SeqCst);
                    vcpu.set_rip(GuestAddress(FIRST.page));
                    // The stack's word is 0: the return goes to where nothing is mapped.
                    vcpu.set_gpr(crate::guest::RSP, crate::guest::stack(number));
                    let exit = vcpu.run(None);
                    let nowhere = vcpu.rip().0 == 0;
                    if epoch.load(Ordering::SeqCst) == before && before % 2 == 0 {
                        let returned = vcpu.gpr(crate::guest::RAX);
                        assert!(
                            nowhere && returned == expected,
                            "{exit}: {returned}, not {expected}"
                        );
                        checked.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
        })
        .collect();
    let mut rounds = 0;
    let enough = || {
        let now = Instant::now();
        let some = checked.load(Ordering::Relaxed) > 0;
        now >= until && (some || now >= until + crate::guest::PATIENCE)
    };
    while !enough() && threads.iter().all(|thread| !thread.is_finished()) {
        for back in [false, true] {
            epoch.fetch_add(1, Ordering::SeqCst);
            let number = if back {
                arena.machine.restore(&snapshot).unwrap();
                last
            } else {
                let number = changer.number();
                let code = versioned(FIRST.page, number);
                arena.machine.write(GuestAddress(FIRST.page), &code).unwrap();
                number
            };
            current.store(number, Ordering::SeqCst);
            epoch.fetch_add(1, Ordering::SeqCst);
        }
        rounds += 1;
        if rounds % 8 == 0 {
            arena.machine.flush();
        }
    }
    over.store(true, Ordering::SeqCst);
    threads.into_iter().for_each(|thread| crate::guest::join("a runner", thread));
    let checked = checked.load(Ordering::Relaxed);
    println!("snapshots: {rounds} rounds, {checked} checked");
    assert!(checked > 0);
    arena.check_emptied();
}
