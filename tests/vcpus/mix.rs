//! Everything at once: four runners of two slots, each slot with a thread that changes it by whatever
//! means, and a third thread that does what must change nothing. The choices are those of a seed, which
//! `TREGION_STRESS_SEED` sets and which is printed; how threads meet is the host's affair. For a long run:
//! `TREGION_STRESS_SECONDS=600 cargo test --release --test vcpus mix -- --nocapture`.

use std::env;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use tregion::exec::Exit;
use tregion::guest::{GuestAddress, Permissions};
use tregion::memory::Backing;

use crate::guest::{Arena, CODE, WORDS, alone, join, range, time};
use crate::storms::{FIRST, SECOND, eight_bytes, mapped};
use crate::windows::{Changer, Runners, Slot, versioned};

/// Pages of each slot: where it is mapped a second time, and where it is put away.
const ALIAS: u64 = 0x100_0000;
const AWAY: u64 = 0x200_0000;
/// Code that no runner runs, for vCPUs that come and go.
const VISITED: u64 = CODE + 0x3000;
const VISITS: u64 = WORDS + 0xc0;

struct Choices(Xoshiro256PlusPlus);

impl Choices {
    fn below(&mut self, end: u64) -> u64 {
        self.0.next_u64() % end
    }

    fn executable(&mut self) -> Permissions {
        [Permissions::ReadExecute, Permissions::ReadWriteExecute][self.below(2) as usize]
    }
}

/// Changes a slot in one of all ways.
fn change(changer: &mut Changer, choices: &mut Choices) {
    let Slot { number: slot, page } = changer.slot;
    let arena = changer.arena.clone();
    let machine = &arena.machine;
    let (own, alias, away) = (range(page, 1), ALIAS + slot * 0x1_0000, AWAY + slot * 0x1_0000);
    match choices.below(7) {
        0 | 1 => changer.change(|changer| changer.write(page)),
        2 => {
            let permissions = choices.executable();
            changer.change(|_| {
                machine.unmap(own).unwrap();
                0
            });
            changer.change(|changer| {
                let (backing, number) =
                    (Backing::new("version", 0x1000).unwrap(), changer.number());
                backing.write(0, &versioned(page, number));
                machine.map_shared(own, &backing, 0, permissions).unwrap();
                number
            });
        }
        3 => {
            let without = [Permissions::None, Permissions::Read, Permissions::ReadWrite];
            let (without, with) = (without[choices.below(3) as usize], choices.executable());
            changer.change(|_| {
                machine.protect(own, without).unwrap();
                0
            });
            changer.change(|changer| {
                let number = changer.write(page);
                machine.protect(own, with).unwrap();
                number
            });
        }
        4 => {
            let permissions = choices.executable();
            machine.map(range(away, 1), permissions).unwrap();
            let number = changer.write(away);
            changer.change(|_| {
                machine.unmap(own).unwrap();
                machine.remap(range(away, 1), GuestAddress(page)).unwrap();
                number
            });
        }
        5 => {
            machine.alias(own, GuestAddress(alias)).unwrap();
            changer.change(|changer| changer.write(alias));
            machine.unmap(range(alias, 1)).unwrap();
        }
        _ => {
            machine.protect(own, Permissions::ReadWriteExecute).unwrap();
            changer.change(|changer| {
                let number = changer.number();
                changer.storer.store(page, eight_bytes(number));
                machine.invalidate(own);
                number
            });
        }
    }
}

/// Does something that changes nothing of what runners see.
fn disturb(arena: &Arena, choices: &mut Choices) -> u64 {
    let machine = &arena.machine;
    let page = [CODE, FIRST.page, SECOND.page][choices.below(3) as usize];
    let at = GuestAddress(page + choices.below(64));
    match choices.below(8) {
        0 => machine.flush(),
        1 => machine.invalidate(range(page, 1)),
        2 => machine.invalidate_soon(range(page, 1)),
        3 => {
            machine.set_breakpoint(at);
            std::thread::yield_now();
            assert!(machine.clear_breakpoint(at));
        }
        4 | 5 => {
            let id = match choices.below(3) {
                0 => machine.hook_code(at..=at, |_| {}),
                1 => machine.hook_blocks(at..=at, |_| {}),
                _ => machine.hook_memory(at..=at, |_| {}),
            };
            std::thread::yield_now();
            assert!(machine.remove_hook(id.unwrap()));
        }
        6 => drop(machine.snapshot().unwrap()),
        _ => {
            let mut vcpu = arena.vcpu(6, VISITED);
            assert_eq!(vcpu.run((choices.below(2) == 0).then_some(100)), Exit::Halt);
            return 1;
        }
    }
    0
}

#[test]
fn mix() {
    let _alone = alone();
    let seed = env::var("TREGION_STRESS_SEED").ok();
    let seed = seed.map_or(1, |seed| seed.parse::<u64>().expect("a seed is a number"));
    println!("mix: seed {seed}");
    let arena = Arena::new();
    arena.code(VISITED, |a| {
        a.mov(iced_x86::code_asm::r11, VISITS).unwrap();
        a.lock().inc(iced_x86::code_asm::qword_ptr(iced_x86::code_asm::r11)).unwrap();
        a.hlt().unwrap();
    });
    let changers = [FIRST, SECOND].map(|slot| mapped(&arena, slot, Permissions::ReadWriteExecute));
    let runners = Runners::start(&arena, &[FIRST, SECOND], 4);
    let over = Arc::new(AtomicBool::new(false));
    let mut threads = Vec::new();
    for mut changer in changers {
        let mut choices = Choices(Xoshiro256PlusPlus::seed_from_u64(seed + changer.slot.number));
        let over = Arc::clone(&over);
        threads.push(std::thread::spawn(move || {
            let mut changes = 0;
            while !over.load(Ordering::SeqCst) {
                change(&mut changer, &mut choices);
                changes += 1;
            }
            (changes, 0)
        }));
    }
    let mut choices = Choices(Xoshiro256PlusPlus::seed_from_u64(seed + 2));
    let (ends, disturbed) = (Arc::clone(&over), arena.clone());
    threads.push(std::thread::spawn(move || {
        let (mut disturbances, mut visits) = (0_u64, 0);
        while !ends.load(Ordering::SeqCst) {
            visits += disturb(&disturbed, &mut choices);
            disturbances += 1;
        }
        (disturbances, visits)
    }));
    let until = Instant::now() + time(1.0);
    let well = |threads: &[std::thread::JoinHandle<(u64, u64)>]| {
        runners.are_well() && threads.iter().all(|thread| !thread.is_finished())
    };
    while Instant::now() < until && well(&threads) {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    over.store(true, Ordering::SeqCst);
    let done: Vec<_> = threads.into_iter().map(|thread| join("a changer", thread)).collect();
    println!("mix: changes, changes, disturbances: {done:?}");
    assert_eq!(arena.word(VISITS), done[2].1, "visits got lost");
    runners.stop("mix");
}
