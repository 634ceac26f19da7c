//! What one client does: loads what is there, then mutates and runs for ever.

use libafl::corpus::{Corpus as _, InMemoryOnDiskCorpus, OnDiskCorpus};
use libafl::events::LlmpRestartingEventManager;
use libafl::executors::{ExitKind, InProcessExecutor};
use libafl::feedbacks::{CrashFeedback, MaxMapFeedback, TimeoutFeedback};
use libafl::inputs::{BytesInput, HasTargetBytes as _};
use libafl::mutators::{HavocScheduledMutator, havoc_mutations};
use libafl::observers::{CanTrack as _, HitcountsMapObserver};
use libafl::schedulers::{IndexesLenTimeMinimizerScheduler, QueueScheduler};
use libafl::stages::StdMutationalStage;
use libafl::state::{HasCorpus as _, HasMaxSize as _, StdState};
use libafl::{Error, Evaluator as _, Fuzzer as _, StdFuzzer, feedback_or_fast};
use libafl_bolts::rands::StdRand;
use libafl_bolts::shmem::{StdShMem, StdShMemProvider};
use libafl_bolts::{nonzero, tuples::tuple_list};
use tregion::properties::{self, Target};

use crate::counters::{self, count};
use crate::mutators::{ByParts, CrossOver};
use crate::options::Options;

/// More bytes than an input has.
const MOST_BYTES: usize = 4096;

type State =
    StdState<InMemoryOnDiskCorpus<BytesInput>, BytesInput, StdRand, OnDiskCorpus<BytesInput>>;
type Manager = LlmpRestartingEventManager<(), BytesInput, State, StdShMem, StdShMemProvider>;

/// Fuzzes until the broker ends or an input fails. After that one, or a crash, LibAFL starts another client with the
/// state of this.
pub(crate) fn run(
    options: &Options,
    state: Option<State>,
    mut manager: Manager,
) -> Result<(), Error> {
    let counters = counters::observer();
    let counters =
        counters.ok_or_else(|| Error::illegal_state("tregion was built without counters"))?;
    let edges = HitcountsMapObserver::new(counters).track_indices();

    let mut feedback = MaxMapFeedback::new(&edges);
    let mut objective = feedback_or_fast!(CrashFeedback::new(), TimeoutFeedback::new());
    let mut state = match state {
        Some(state) => state,
        None => StdState::new(
            StdRand::new(),
            InMemoryOnDiskCorpus::no_meta(&options.corpus)?,
            OnDiskCorpus::no_meta(&options.findings)?,
            &mut feedback,
            &mut objective,
        )?,
    };
    state.set_max_size(MOST_BYTES);
    let scheduler = IndexesLenTimeMinimizerScheduler::new(&edges, QueueScheduler::new());
    let mut fuzzer = StdFuzzer::new(scheduler, feedback, objective);

    let mut harness = |input: &BytesInput| {
        check(options.target, &input.target_bytes());
        ExitKind::Ok
    };
    let mut executor = InProcessExecutor::builder()
        .timeout(options.timeout)
        .harness(&mut harness)
        .observers(tuple_list!(edges))
        .fuzzer(&mut fuzzer)
        .state(&mut state)
        .event_mgr(&mut manager)
        .build()?;

    if state.must_load_initial_inputs() {
        let folders: Vec<_> =
            [&options.corpus].into_iter().chain(&options.seeds).cloned().collect();
        state.load_initial_inputs(&mut fuzzer, &mut executor, &mut manager, &folders)?;
        if state.corpus().count() == 0 {
            fuzzer.add_input(&mut state, &mut executor, &mut manager, BytesInput::new(vec![0]))?;
        }
    }
    let parts = tuple_list!(ByParts(options.target), CrossOver(options.target));
    let by_parts = StdMutationalStage::new(HavocScheduledMutator::with_max_stack_pow(parts, 2));
    let havoc = HavocScheduledMutator::new(havoc_mutations());
    let mut stages =
        tuple_list!(by_parts, StdMutationalStage::with_max_iterations(havoc, nonzero!(32)));
    fuzzer.fuzz_loop(&mut stages, &mut executor, &mut state, &mut manager)
}

/// Panics if the target's property does not hold.
fn check(target: Target, bytes: &[u8]) {
    match target {
        Target::CaseText => properties::case_text(bytes),
        Target::Differential => properties::differential(bytes),
        Target::SmcRemap => count(&properties::smc_remap(bytes)),
        Target::RawBytes => count(&properties::raw_bytes(bytes)),
        Target::Mapping => properties::mapping(bytes),
        Target::Concurrent => properties::concurrent(bytes),
    }
}
