//! Arbitrary valid cases: every action and trigger, odd registers, aliases, notes of any
//! characters, mappings at both ends of the address space.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use tregion::case::{Action, Case, Event, MapModel, Mapping, Mode, Object, ObjectId, Trigger};
use tregion::guest::{
    F80, GuestAddress, GuestRange, PAGE_SIZE, Permissions, RFLAGS_DEFAULT, RFLAGS_USER, State,
    VECTOR_COUNT, Vector, X87,
};

/// Any case that is valid.
pub(crate) fn case() -> impl Strategy<Value = Case> {
    let memory = (vec(object(), 0..4), vec(mapping(), 0..6), vec(event(), 0..4));
    let head = (note(), state(), prop::option::of(1..=u64::MAX));
    (head, memory).prop_map(|((note, state, limit), (contents, mappings, events))| {
        let object = |(index, contents)| Object { name: format!("o_{index}"), contents };
        let objects = contents.into_iter().enumerate().map(object).collect();
        let case = Case { mode: Mode::Long64, note, state, limit, objects, ..Case::default() };
        with_memory(case, mappings, events)
    })
}

/// Adds those mappings and actions that are possible.
fn with_memory(mut case: Case, mappings: Vec<Mapping>, events: Vec<Event>) -> Case {
    let mut map = MapModel::new(&case);
    case.mappings = mappings;
    case.mappings.retain(|mapping| map.apply(&Action::Map(*mapping)).is_ok());
    for mut event in events {
        event.actions.retain(|action| map.apply(action).is_ok());
        case.events.push(event);
    }
    case
}

fn note() -> impl Strategy<Value = String> {
    let special =
        select("\"\\'\n\r\t\0\u{7f}\u{85}\u{2028}\u{feff}#=[]é".chars().collect::<Vec<_>>());
    let characters = vec(prop_oneof![any::<char>(), special], 0..12);
    prop_oneof![Just(String::new()), characters.prop_map(|it| it.into_iter().collect())]
}

/// One to three pages with some bytes in them.
fn object() -> impl Strategy<Value = Vec<u8>> {
    let run = (any::<prop::sample::Index>(), vec(byte(), 1..40));
    (1..4_usize, vec(run, 0..6)).prop_map(|(pages, runs)| {
        let mut contents = vec![0; pages * PAGE_SIZE as usize];
        for (index, bytes) in runs {
            let start = index.index(contents.len());
            let end = contents.len().min(start + bytes.len());
            contents[start..end].copy_from_slice(&bytes[..end - start]);
        }
        contents
    })
}

/// Any byte, zeros and the usual first bytes of instructions more often.
fn byte() -> impl Strategy<Value = u8> {
    prop_oneof![any::<u8>(), select(vec![0, 0, 0x0f, 0x48, 0x66, 0x89, 0xc5, 0xe8, 0xf4])]
}

fn address() -> impl Strategy<Value = GuestAddress> {
    let base = select(vec![0, 0x40_0000, 0x7fff_ffff_8000, 0xffff_ffff_ffff_8000]);
    (base, 0..8_u64).prop_map(|(base, page)| GuestAddress(base + page * PAGE_SIZE))
}

fn range() -> impl Strategy<Value = GuestRange> {
    (address(), 1..4_u64)
        .prop_filter_map("wraps", |(start, pages)| GuestRange::new(start, pages * PAGE_SIZE).ok())
}

fn permissions() -> impl Strategy<Value = Permissions> {
    select(Permissions::ALL.to_vec())
}

fn mapping() -> impl Strategy<Value = Mapping> {
    (range(), 0..4_usize, 0..3_u64, permissions()).prop_map(|(range, object, page, permissions)| {
        Mapping { range, object: ObjectId(object), offset: page * PAGE_SIZE, permissions }
    })
}

fn event() -> impl Strategy<Value = Event> {
    let trigger = prop_oneof![
        Just(Trigger::Halt),
        (1..=u64::MAX).prop_map(Trigger::Count),
        any::<u64>().prop_map(|address| Trigger::Breakpoint(GuestAddress(address))),
        (address(), 0..64_u64)
            .prop_map(|(at, offset)| Trigger::Breakpoint(at.wrapping_add(offset))),
    ];
    (trigger, vec(action(), 0..8)).prop_map(|(trigger, actions)| Event { trigger, actions })
}

fn action() -> impl Strategy<Value = Action> {
    let place = (address(), 0..PAGE_SIZE).prop_map(|(page, offset)| page.wrapping_add(offset));
    prop_oneof![
        (place, vec(byte(), 1..70)).prop_map(|(address, bytes)| Action::Write { address, bytes }),
        mapping().prop_map(Action::Map),
        range().prop_map(Action::Unmap),
        (range(), permissions())
            .prop_map(|(range, permissions)| Action::Protect { range, permissions }),
        (range(), address())
            .prop_map(|(source, destination)| Action::Alias { source, destination }),
        (range(), address())
            .prop_map(|(source, destination)| Action::Remap { source, destination }),
        Just(Action::ExitRequest),
    ]
}

fn state() -> impl Strategy<Value = State> {
    let general = (prop::array::uniform16(odd_word()), canonical(), any::<u64>());
    let bases = (canonical(), canonical(), any::<u16>());
    let vectors = (vec(vector(), VECTOR_COUNT), prop::array::uniform8(odd_word()));
    (general, bases, x87(), vectors).prop_map(|(general, bases, x87, vectors)| State {
        gpr: general.0,
        rip: general.1,
        rflags: general.2 & RFLAGS_USER | RFLAGS_DEFAULT,
        fs_base: bases.0,
        gs_base: bases.1,
        mxcsr: u32::from(bases.2),
        x87,
        vector: vectors.0.try_into().expect("as many as there are"),
        opmask: vectors.1,
        ..State::default()
    })
}

/// Zero more often than not.
fn odd_word() -> impl Strategy<Value = u64> {
    prop_oneof![2 => Just(0), 1 => any::<u64>(), 1 => select(vec![1, 1 << 63, u64::MAX])]
}

fn canonical() -> impl Strategy<Value = u64> {
    odd_word().prop_map(|word| ((word << 16) as i64 >> 16) as u64)
}

fn vector() -> impl Strategy<Value = Vector> {
    let words = prop::array::uniform8(odd_word());
    (words, select(vec![0, 0, 1, 2, 3, 4, 5, 8])).prop_map(|(mut words, used)| {
        words[used..].fill(0);
        words
    })
}

fn x87() -> impl Strategy<Value = X87> {
    let words = (any::<u16>(), any::<u16>(), any::<u8>(), any::<u16>());
    let st = prop::array::uniform8((odd_word(), any::<u16>()));
    let x87 = (words, canonical(), canonical(), st).prop_map(|(words, ip, dp, st)| X87 {
        control: words.0 & !0xe0c0 | 0x40,
        status: words.1,
        tag: words.2,
        opcode: words.3 & 0x7ff,
        instruction_pointer: ip,
        data_pointer: dp,
        st: st.map(|(significand, sign_exponent)| F80 { significand, sign_exponent }),
    });
    prop_oneof![Just(X87::default()), x87]
}
