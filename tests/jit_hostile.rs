//! Guests that try to get out: whatever they do, the process lives on, no host memory of the test's
//! own changes, and nothing of it comes into the guest's registers or memory.
//!
//! `TREGION_HOSTILE_CASES` says how many cases, `TREGION_HOSTILE_FIRST` from which on; with
//! `TREGION_HOSTILE_TRACE` each is named before it runs, for one that kills the process.
#![allow(clippy::unwrap_used, reason = "a test fails where its helper does")]

#[path = "jit_hostile/canaries.rs"]
mod canaries;
#[path = "jit_hostile/guest.rs"]
mod guest;
#[path = "jit_hostile/host.rs"]
mod host;
#[path = "jit_hostile/program.rs"]
mod program;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use canaries::Canaries;
use guest::{CODE, Guest, dice, kind};
use iced_x86::{Decoder, DecoderOptions};
use tregion::exec::{Exit, Kick};
use tregion::guest::{GuestAddress, State};

/// Cases, unless the environment says otherwise.
const CASES: u64 = if cfg!(debug_assertions) { 20_000 } else { 50_000 };
/// Cases of one machine.
const CASES_OF_MACHINE: u64 = 5_000;
/// Canaries are looked at after so many cases.
const CASES_UNTIL_LOOK: u64 = 250;
const BUDGET: u64 = 64;

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |given| given.parse().unwrap())
}

/// The tests take turns: there is room for one big window.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks a vCPU to leave, again and again while it runs without a budget, since it may never end.
struct Nagger {
    /// Whom to ask, now.
    kick: Arc<Mutex<Option<Kick>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Nagger {
    fn start() -> Self {
        let kick = Arc::new(Mutex::new(None::<Kick>));
        let stop = Arc::new(AtomicBool::new(false));
        let (theirs, end) = (Arc::clone(&kick), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_micros(200));
                if let Some(kick) = theirs.lock().unwrap().as_ref() {
                    kick.ask();
                }
            }
        });
        Self { kick, stop, thread: Some(thread) }
    }

    fn during<T>(&self, guest: &mut Guest, body: impl FnOnce(&mut Guest) -> T) -> T {
        *self.kick.lock().unwrap() = Some(guest.vcpu.kick());
        let result = body(guest);
        *self.kick.lock().unwrap() = None;
        result
    }
}

impl Drop for Nagger {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// The guest for a case: windows of several sizes, the biggest most often.
fn guest_for(index: u64) -> Guest {
    let machine = index / CASES_OF_MACHINE;
    let bits = [46, 46, 40, 46, 32][(machine % 5) as usize];
    let word = (machine + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 << 63 | 1 << 31;
    Guest::new(bits, word)
}

/// Runs case number `index`. Gives its code and how it ended.
fn run(guest: &mut Guest, nagger: &Nagger, index: u64) -> (Vec<u8>, Exit) {
    let mut dice = dice(index);
    let length = 1 + dice.below(24);
    let code = program::write(&mut dice, length);
    guest.load(&mut dice, &code);
    let state = guest.state(&mut dice);
    guest.vcpu.set_state(&state);
    let budget = (!dice.one_in(8)).then_some(BUDGET);
    let stubborn = dice.one_in(2);
    let run_once = |guest: &mut Guest| match budget {
        Some(_) => guest.vcpu.run(budget),
        None => nagger.during(guest, |guest| guest.vcpu.run(None)),
    };
    let mut exit = run_once(guest);
    for _ in 0..length {
        if !stubborn || !pass(guest, &code, &exit) {
            break;
        }
        exit = run_once(guest);
    }
    (code, exit)
}

/// Goes on behind an instruction that the guest could not execute.
fn pass(guest: &mut Guest, code: &[u8], exit: &Exit) -> bool {
    let rip = guest.vcpu.rip();
    let rest = code.get(rip.0.wrapping_sub(CODE) as usize..).unwrap_or_default();
    let instruction = Decoder::with_ip(64, rest, rip.0, DecoderOptions::NONE).decode();
    let fault = matches!(exit, Exit::Exception { .. } | Exit::Unsupported { .. });
    if fault && !rest.is_empty() {
        guest.vcpu.set_rip(rip.wrapping_add(instruction.len().max(1) as u64));
    }
    fault && !rest.is_empty()
}

fn text(code: &[u8]) -> String {
    let decoder = Decoder::with_ip(64, code, CODE, DecoderOptions::NONE);
    decoder.into_iter().map(|instruction| format!("\n    {instruction}")).collect()
}

#[test]
fn no_guest_gets_out() {
    let _turn = turn();
    let (first, cases) =
        (number("TREGION_HOSTILE_FIRST", 0), number("TREGION_HOSTILE_CASES", CASES));
    let trace = std::env::var_os("TREGION_HOSTILE_TRACE").is_some();
    let nagger = Nagger::start();
    let (mut tally, mut wrong) = (BTreeMap::<String, u64>::new(), Vec::new());
    let (mut guest, mut surrounded) = (None::<Guest>, Vec::new());
    let start = Instant::now();
    for index in first..first + cases {
        if index % CASES_OF_MACHINE == 0
            && let Some(old) = guest.take()
        {
            surrounded.push(old.is_surrounded());
        }
        let guest = guest.get_or_insert_with(|| guest_for(index));
        if trace {
            eprintln!("case {index}");
        }
        match catch_unwind(AssertUnwindSafe(|| run(guest, &nagger, index))) {
            Ok((code, exit)) => {
                *tally.entry(kind(&exit)).or_default() += 1;
                let lost = matches!(exit, Exit::Host { .. }).then(|| exit.to_string());
                if let Some(what) = guest.has_seen().map(|it| format!("a canary in {it}")).or(lost)
                {
                    wrong.push(format!("case {index}: {what}{}", text(&code)));
                }
            }
            Err(_) => wrong.push(format!("case {index}: the host panics")),
        }
        let last = index + 1 == first + cases;
        if (index + 1) % CASES_UNTIL_LOOK == 0 || last || trace {
            let changed = guest.canaries.changed();
            assert_eq!(changed, None, "in one of the last {CASES_UNTIL_LOOK} cases up to {index}");
        }
    }
    println!("{cases} hostile cases in {:?}: {tally:?}", start.elapsed());
    println!(
        "{} bytes of canaries around the last machine",
        guest.map_or(0, |it| it.canaries.bytes())
    );
    println!("canaries right below and above the guards of machines: {surrounded:?}");
    assert!(
        wrong.is_empty(),
        "{} cases, first:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(8)].join("\n")
    );
}

/// Loads and stores of RAX, one for each form of address, made of RBX and RCX.
const FORMS: [&[u8]; 28] = [
    &[0x48, 0x8b, 0x03],                                     // [rbx]
    &[0x40, 0x48, 0x8b, 0x03],                               // the same with REX twice
    &[0x40, 0x64, 0x8b, 0x03],                               // fs:[rbx], REX ignored
    &[0x48, 0x8b, 0x43, 0xf8],                               // [rbx-8]
    &[0x48, 0x8b, 0x83, 0xff, 0xff, 0xff, 0x7f],             // [rbx+7fffffff]
    &[0x48, 0x8b, 0x83, 0x00, 0x00, 0x00, 0x80],             // [rbx-80000000]
    &[0x48, 0x8b, 0x04, 0x0b],                               // [rbx+rcx]
    &[0x48, 0x8b, 0x04, 0xcb],                               // [rbx+rcx*8]
    &[0x48, 0x8b, 0x04, 0xcd, 0, 0, 0, 0],                   // [rcx*8]
    &[0x48, 0x8b, 0x84, 0x4b, 0xff, 0xff, 0xff, 0x7f],       // [rbx+rcx*2+7fffffff]
    &[0x67, 0x48, 0x8b, 0x03],                               // [ebx]
    &[0x67, 0x48, 0x8b, 0x84, 0xcb, 0xff, 0xff, 0xff, 0xff], // [ebx+ecx*8-1]
    &[0x64, 0x48, 0x8b, 0x03],                               // fs:[rbx]
    &[0x65, 0x48, 0x8b, 0x03],                               // gs:[rbx]
    &[0x65, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0],             // gs:[0]
    &[0x64, 0x48, 0x8b, 0x04, 0x25, 0xf8, 0xff, 0xff, 0xff], // fs:[-8]
    &[0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0x80],                // [ffffffff80000000]
    &[0x48, 0x8b, 0x05, 0, 0, 0, 0x80],                      // relative to RIP
    &[0x48, 0x89, 0x03],                                     // stores
    &[0x48, 0x89, 0x04, 0xcb],
    &[0x65, 0x48, 0x89, 0x03],
    &[0x48, 0x89, 0xdc, 0x58],       // mov rsp,rbx; pop rax
    &[0x48, 0x89, 0xdc, 0x50],       // mov rsp,rbx; push rax
    &[0x48, 0x89, 0xde, 0x48, 0xad], // mov rsi,rbx; lodsq
    &[0x48, 0x89, 0xdf, 0x48, 0xab], // mov rdi,rbx; stosq
    &[0x48, 0x89, 0xde, 0x4c, 0x89, 0xcf, 0xf3, 0x48, 0xa5], // rep movsq
    &[0x4c, 0x0f, 0xab, 0x1b],       // bts [rbx],r11
    &[0x48, 0x89, 0xdd, 0xc9],       // mov rbp,rbx; leave
];

#[test]
fn no_form_of_address_reaches_a_canary() {
    let _turn = turn();
    let mut cases = 0;
    for bits in [46, 40, 32] {
        let mut guest = Guest::new(bits, 0xc0ff_ee11_dead_beef ^ u64::from(bits) << 8);
        let mut dice = dice(1);
        for form in FORMS {
            let code = [form, &[0xf4]].concat();
            guest.load(&mut dice, &code);
            guest.machine.write(GuestAddress(CODE), &code).unwrap();
            for target in guest.targets.clone() {
                for (index, base) in bases(&guest, target).into_iter().enumerate() {
                    let mut state = State { rip: CODE, ..State::default() };
                    state.gpr =
                        [0, 0, 0, base, 0x70_0800, 0, 0x50_0000, 0, 0, 0x50_0000, 0, 0, 0, 0, 0, 0];
                    state.gpr[1] = [0, 1, 4, 1 << 60][index % 4];
                    state.gpr[11] = base.wrapping_sub(0x50_0000).wrapping_mul(8);
                    state.fs_base = [0, base][index % 2];
                    state.gs_base = [0, base][index % 2];
                    guest.vcpu.set_state(&state);
                    let exit = guest.vcpu.run((index % 2 == 0).then_some(BUDGET));
                    assert!(!matches!(exit, Exit::Host { .. }), "{exit}: {}", text(&code));
                    let seen = guest.has_seen();
                    assert_eq!(seen, None, "{base:#x} {}", text(&code));
                    cases += 1;
                }
            }
            assert_eq!(guest.canaries.changed(), None, "{}", text(&code));
        }
    }
    println!("{cases} aimed accesses");
}

/// Base values that might lead to a host address, by some form of address or other.
fn bases(guest: &Guest, target: u64) -> [u64; 8] {
    let guest_address = target.wrapping_sub(guest.window);
    [
        guest_address,
        target,
        guest_address.wrapping_add(8),
        guest_address.wrapping_sub(0x7fff_ffff),
        guest_address.wrapping_add(0x8000_0000),
        guest_address.wrapping_sub(8),
        guest_address & 0xffff_ffff,
        guest_address ^ 1 << 62,
    ]
}

/// A loop whose body is translated without probes, since its store shows in each pass where its
/// base is; but that store does not take place as long as its exception is unmasked, and no fault tells.
#[test]
fn stores_that_do_not_take_place_lead_nowhere() {
    const STEP: u64 = 0x3fff_ff00;
    const PASSES: u64 = 40;
    // fldcw [rsi]; fst qword [rbx]; fnclex; add rsi,2; add rbx,STEP; dec rcx; jnz; hlt
    let code = [
        0xd9, 0x2e, 0xdd, 0x13, 0xdb, 0xe2, 0x48, 0x83, 0xc6, 0x02, 0x48, 0x81, 0xc3, 0x00, 0xff,
        0xff, 0x3f, 0x48, 0xff, 0xc9, 0x75, 0xea, 0xf4,
    ];
    let _turn = turn();
    for bits in [46, 40, 32] {
        let mut guest = Guest::new(bits, 0xfeed_f00d_8bad_cafe);
        guest.load(&mut dice(2), &code);
        guest.machine.write(GuestAddress(CODE), &code).unwrap();
        // Unmasked, and masked in the last pass, when an empty register is stored.
        let words: Vec<u8> = (0..PASSES).flat_map(|_| [0x7e, 0x03]).chain([0x7f, 0x03]).collect();
        guest.machine.write(GuestAddress(0x50_0000), &words).unwrap();
        for target in guest.canaries.addresses() {
            let base = target.wrapping_sub(guest.window).wrapping_sub(PASSES * STEP);
            let mut state = State { rip: CODE, ..State::default() };
            (state.gpr[1], state.gpr[3], state.gpr[6]) = (PASSES + 1, base, 0x50_0000);
            guest.vcpu.set_state(&state);
            let exit = guest.vcpu.run(None);
            assert_eq!(guest.canaries.changed(), None, "by a guest in 2^{bits} bytes: {exit}");
            assert!(matches!(exit, Exit::Exception { .. }), "{exit}");
        }
    }
}

/// What guests must never see is seen if they do.
#[test]
fn canaries_are_recognised() {
    let _turn = turn();
    let mut guest = Guest::new(32, 0x1234_5678_9abc_def1);
    guest.load(&mut dice(0), &[0xf4]);
    guest.vcpu.set_state(&State::default());
    assert_eq!(guest.has_seen(), None);
    guest.vcpu.set_gpr(7, 0x5678_9abc_def1_1234);
    assert!(guest.has_seen().is_some());
    guest.vcpu.set_gpr(7, 0x9abc_def1);
    assert!(guest.has_seen().is_some());
    guest.vcpu.set_gpr(7, 0x1234_5678_9abc_def2);
    assert_eq!(guest.has_seen(), None);
    for offset in [0, 3, 4095 - 7, 4095 - 3] {
        guest.load(&mut dice(0), &[0xf4]);
        let word = 0x1234_5678_9abc_def1_u64.to_le_bytes();
        guest.machine.write(GuestAddress(0x50_0000 + offset), &word).unwrap();
        assert_eq!(guest.has_seen(), Some("memory".to_owned()), "{offset}");
    }
    let mut canaries = Canaries::new(7);
    assert_eq!(canaries.changed(), None);
    let place = canaries.spoil();
    assert_eq!(canaries.changed(), Some(place));
}
