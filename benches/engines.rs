//! How many cases a second each engine runs on one core: about 20 instructions a case, new code in
//! each, without events and with a page remapped in the middle. `cargo bench --bench engines`.

use std::time::{Duration, Instant};

use iced_x86::code_asm::*;
use tregion::case::{Action, Case, Event, Mapping, Object, ObjectId, Trigger};
use tregion::engine::Engine;
use tregion::engine::silicon::Silicon;
use tregion::guest::{GuestAddress, GuestRange, Permissions};
use tregion::os::pin_to_nth_cpu;

const CODE: u64 = 0x40_0000;
const DATA: u64 = 0x50_0000;
const TIME: Duration = Duration::from_secs(2);

fn main() {
    pin_to_nth_cpu(0).expect("the thread can be tied to a CPU");
    let mut engines: Vec<Box<dyn Engine>> = vec![Box::new(Silicon::new().expect("silicon"))];
    #[cfg(feature = "unicorn")]
    engines.push(Box::new(tregion::engine::unicorn::Unicorn::new().expect("Unicorn")));
    println!(
        "{:<10} {:>12} {:>12}   cases/s on one core, median of 5",
        "", "no events", "one remap"
    );
    for engine in &mut engines {
        let rates = [false, true].map(|remap| rate(engine.as_mut(), &cases(remap)));
        println!("{:<10} {:>12.0} {:>12.0}", engine.name(), rates[0], rates[1]);
    }
}

fn rate(engine: &mut dyn Engine, cases: &[Case]) -> f64 {
    let mut rates: Vec<f64> = (0..5)
        .map(|_| {
            let (start, mut run) = (Instant::now(), 0);
            while start.elapsed() < TIME / 5 {
                for case in cases {
                    std::hint::black_box(engine.run(case).expect("the case is supported"));
                }
                run += cases.len();
            }
            run as f64 / start.elapsed().as_secs_f64()
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    rates[2]
}

/// 64 cases, none like another.
fn cases(remap: bool) -> Vec<Case> {
    (0..64).map(|number| case(number, remap)).collect()
}

fn case(number: u32, remap: bool) -> Case {
    let page = |at: u64, object: usize, permissions: Permissions| Mapping {
        range: GuestRange::new(GuestAddress(at), 0x1000).expect("a page"),
        object: ObjectId(object),
        offset: 0,
        permissions,
    };
    let data = page(DATA, 1, Permissions::ReadWrite);
    let mut case = Case {
        objects: ["code", "data", "other"].map(|name| Object::zeroed(name, 1)).to_vec(),
        mappings: vec![page(CODE, 0, Permissions::ReadExecute), data],
        ..Case::default()
    };
    let code = program(number, remap).expect("the program can be assembled");
    case.objects[0].contents[..code.len()].copy_from_slice(&code);
    case.state.rip = CODE;
    case.state.gpr[4] = DATA + 0x800;
    if remap {
        let actions =
            vec![Action::Unmap(data.range), Action::Map(Mapping { object: ObjectId(2), ..data })];
        case.events = vec![Event { trigger: Trigger::Halt, actions }];
    }
    case.validate().expect("the case is valid");
    case
}

fn program(number: u32, remap: bool) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    for half in 0..2 {
        a.mov(eax, number)?;
        a.mov(ebx, half + 3)?;
        a.add(rax, rbx)?;
        a.imul_2(rcx, rax)?;
        a.mov(qword_ptr(DATA + 16), rax)?;
        a.xor(rdx, qword_ptr(DATA + 16))?;
        a.push(rax)?;
        a.adc(rsi, number as i32)?;
        a.shl(rsi, 3)?;
        a.pop(rdi)?;
        if half == 1 || remap {
            a.hlt()?;
        }
    }
    a.assemble(CODE)
}
