//! The silicon engine: what it reports for each kind of stop, and what it survives.

use tregion::case::{Case, ExceptionVector, Mapping, Object, ObjectId, Outcome, Stop};
use tregion::engine::Engine;
use tregion::engine::silicon::Silicon;
use tregion::guest::{GuestAddress, GuestRange, Permissions};

const CODE: u64 = 0x40_0000;
const DATA: u64 = 0x50_0000;

fn mapping(at: u64, pages: u64, object: usize, permissions: Permissions) -> Mapping {
    let range = GuestRange::new(GuestAddress(at), pages * 0x1000).unwrap();
    Mapping { range, object: ObjectId(object), offset: 0, permissions }
}

fn case(code: &[u8]) -> Case {
    let mut text = Object::zeroed("code", 1);
    text.contents[..code.len()].copy_from_slice(code);
    let mut case = Case {
        objects: vec![text, Object::zeroed("data", 2)],
        mappings: vec![
            mapping(CODE, 1, 0, Permissions::ReadExecute),
            mapping(DATA, 2, 1, Permissions::ReadWrite),
        ],
        ..Case::default()
    };
    case.state.rip = CODE;
    case.state.gpr[4] = DATA + 0x1000;
    case.validate().unwrap();
    case
}

fn run(code: &[u8]) -> Outcome {
    Silicon::new().unwrap().run(&case(code)).unwrap()
}

#[test]
fn halts() {
    let outcome = run(&[0x48, 0xff, 0xc0, 0x50, 0xf4]);
    assert_eq!(outcome.stop, Stop::Halt);
    assert_eq!(outcome.state.gpr[0], 1);
    assert_eq!(outcome.state.rip, CODE + 5);
    assert_eq!(outcome.memory.len(), 1);
    assert_eq!(outcome.memory[0].contents[0xff8], 1);
}

#[test]
fn page_fault() {
    let outcome = run(&[0x8b, 0x04, 0x25, 0, 0, 0x60, 0, 0xf4]);
    let vector = ExceptionVector::PF;
    assert_eq!(outcome.stop, Stop::Exception { vector, error: Some(4), address: Some(0x60_0000) });
}

#[test]
fn rate() {
    tregion::os::pin_to_nth_cpu(0).unwrap();
    let mut engine = Silicon::new().unwrap();
    let case = case(&[0x48, 0xff, 0xc0, 0x50, 0xf4]);
    let n = 200_000;
    let start = std::time::Instant::now();
    for _ in 0..n {
        std::hint::black_box(engine.run(&case).unwrap());
    }
    println!("{} /s", n as f64 / start.elapsed().as_secs_f64());
}
