//! Hooks on everything, in random programs, are told exactly what the processor executes: code hooks each
//! instruction that begins, block hooks each at which control arrives. Traces have the same, but for an instruction
//! that faults.
#![allow(clippy::unwrap_used, reason = "a test fails where its helper does")]

use std::sync::{Arc, Mutex};

use iced_x86::FlowControl;
use tregion::case::{Case, text};
use tregion::engine::silicon::{Silicon, Trace};
use tregion::exec::{Exit, HookContext, HookError, HookId, Machine, TraceOf, Traced, Vcpu};
use tregion::generate::choices;
use tregion::guest::GuestAddress;
use tregion::memory::Backing;
use tregion::properties::Target;

/// Random programs.
const PROGRAMS: u64 = 400;
/// Instructions of each that are looked at.
const MOST: usize = 2000;

/// A machine with what a case maps, and a vCPU in its state; nothing if the machine cannot have that.
fn machine_of(case: &Case) -> Option<(Machine, Vcpu)> {
    let machine = Machine::new(46).or_else(|_| Machine::new(41)).unwrap();
    let backings: Vec<Backing> = case
        .objects
        .iter()
        .map(|object| {
            let backing = Backing::new(&object.name, object.contents.len() as u64).unwrap();
            backing.write(0, &object.contents);
            backing
        })
        .collect();
    for mapping in &case.mappings {
        let backing = &backings[mapping.object.0];
        machine.map_shared(mapping.range, backing, mapping.offset, mapping.permissions).ok()?;
    }
    let mut vcpu = machine.vcpu().unwrap();
    vcpu.set_state(&case.state);
    Some((machine, vcpu))
}

type Addresses = Arc<Mutex<Vec<u64>>>;

/// What a hook notes until there are [`MOST`] of them.
fn noting(addresses: &Addresses) -> impl FnMut(&mut HookContext<'_>) + Send + 'static {
    let addresses = Arc::clone(addresses);
    move |context| {
        let mut addresses = addresses.lock().unwrap();
        if addresses.len() == MOST {
            context.stop();
        } else {
            addresses.push(context.rip().0);
        }
    }
}

/// What somebody notes who is attached to the machine of a case, and how the run ends.
fn run(
    case: &Case,
    budget: Option<u64>,
    attach: impl FnOnce(&Machine, &Addresses) -> Result<HookId, HookError>,
) -> Option<(Vec<u64>, Exit)> {
    let (machine, mut vcpu) = machine_of(case)?;
    let addresses = Addresses::default();
    attach(&machine, &addresses).unwrap();
    let exit = vcpu.run(budget);
    let addresses = std::mem::take(&mut *addresses.lock().unwrap());
    Some((addresses, exit))
}

/// What hooks are told of a case: instructions, and arrivals in another run.
fn told(case: &Case) -> Option<(Vec<u64>, Vec<u64>)> {
    let everywhere = GuestAddress(0)..=GuestAddress(u64::MAX);
    let (all, _) = run(case, None, |machine, addresses| {
        machine.hook_code(everywhere.clone(), noting(addresses))
    })?;
    let (arrivals, _) = run(case, None, |machine, addresses| {
        machine.hook_blocks(everywhere.clone(), noting(addresses))
    })?;
    Some((all, arrivals))
}

/// What traces of a case have, of instructions and of arrivals in another run, and whether an exception was the end.
fn traced(case: &Case) -> Option<(Vec<u64>, Vec<u64>, bool)> {
    let trace = |of| {
        run(case, Some(MOST as u64), |machine, addresses| {
            let noted = Arc::clone(addresses);
            let note = move |traced: Traced<'_>| {
                noted.lock().unwrap().extend(traced.addresses().map(|address| address.0));
            };
            machine.trace(of, .., note)
        })
    };
    let (all, _) = trace(TraceOf::Instructions)?;
    let (arrivals, exit) = trace(TraceOf::Blocks)?;
    Some((all, arrivals, matches!(exit, Exit::Exception { .. })))
}

/// The same of silicon's trace.
fn executed(trace: &Trace) -> (Vec<u64>, Vec<u64>) {
    let instructions: Vec<u64> = trace.steps.iter().map(|step| step.state.rip).collect();
    let mut arrives = true;
    let mut arrivals = Vec::new();
    for step in &trace.steps {
        if arrives {
            arrivals.push(step.state.rip);
        }
        arrives = step.instruction().flow_control() != FlowControl::Next;
    }
    (instructions, arrivals)
}

#[test]
fn hooks_are_told_what_silicon_executes() {
    let mut silicon = Silicon::new().unwrap();
    let (mut bytes, mut compared, mut instructions) = (Vec::new(), 0, 0);
    for number in 0..PROGRAMS {
        choices(0x7e11, number, &mut bytes);
        let case = Target::Differential.case_of(&bytes).unwrap();
        // A stop by a trap flag, which comes behind an instruction, is not the processor's in a trace.
        if !case.events.is_empty() || case.limit.is_some() {
            continue;
        }
        let Ok(trace) = silicon.trace(&case, MOST as u64) else { continue };
        let Some((all, arrivals)) = told(&case) else { continue };
        let expected = executed(&trace);
        let same = all.iter().zip(&expected.0).take_while(|(told, real)| told == real).count();
        let whole = all.len() == expected.0.len() || same == MOST;
        let name = format!("program {number}\n{}", text::print(&case));
        assert!(
            whole && same == expected.0.len().min(MOST),
            "{same} of {:x?} and {:x?}: {name}",
            all,
            expected.0
        );
        let most = expected.1.len().min(arrivals.len());
        assert!(most > 0 && arrivals[..most] == expected.1[..most], "arrivals: {name}");
        assert!(most == expected.1.len(), "arrivals are missing: {name}");
        assert!(arrivals.len() == most || trace.steps.len() == MOST, "too many: {name}");
        let Some((all, arrivals, excepted)) = traced(&case) else { continue };
        for (found, expected) in [(&all, &expected.0), (&arrivals, &expected.1)] {
            assert!(expected.starts_with(found), "{found:x?} and {expected:x?} traced: {name}");
            let missing = expected.len() - found.len();
            assert!(missing <= usize::from(excepted), "{missing} are missing in a trace: {name}");
        }
        compared += 1;
        instructions += all.len();
    }
    println!("{compared} programs, {instructions} instructions");
    assert!(compared > PROGRAMS / 4 && instructions as u64 > compared * 20);
}
