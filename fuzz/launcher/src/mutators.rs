//! [`ByParts`] and [`CrossOver`]: the mutations of a target's inputs by whole parts, as LibAFL takes them.

use std::borrow::Cow;

use libafl::Error;
use libafl::corpus::{Corpus as _, CorpusId};
use libafl::inputs::{BytesInput, HasMutatorBytes as _, ResizableMutator as _};
use libafl::mutators::{MutationResult, Mutator};
use libafl::random_corpus_id;
use libafl::state::{HasCorpus, HasMaxSize, HasRand};
use libafl_bolts::Named;
use libafl_bolts::rands::Rand as _;
use tregion::properties::Target;

/// Changes an input.
pub(crate) struct ByParts(pub(crate) Target);

/// Makes one input of the first part of one and the last part of another.
pub(crate) struct CrossOver(pub(crate) Target);

impl Named for ByParts {
    fn name(&self) -> &Cow<'static, str> {
        &Cow::Borrowed("ByParts")
    }
}

impl Named for CrossOver {
    fn name(&self) -> &Cow<'static, str> {
        &Cow::Borrowed("CrossOver")
    }
}

impl<S: HasRand + HasMaxSize> Mutator<BytesInput, S> for ByParts {
    fn mutate(&mut self, state: &mut S, input: &mut BytesInput) -> Result<MutationResult, Error> {
        let (size, most) = (input.mutator_bytes().len(), state.max_size());
        if size > most {
            return Ok(MutationResult::Skipped);
        }
        let seed = seed(state);
        input.resize(most, 0);
        let size = self.0.mutate(input.mutator_bytes_mut(), size, most, seed);
        input.resize(size, 0);
        Ok(MutationResult::Mutated)
    }

    fn post_exec(&mut self, _: &mut S, _: Option<CorpusId>) -> Result<(), Error> {
        Ok(())
    }
}

impl<S: HasRand + HasMaxSize + HasCorpus<BytesInput>> Mutator<BytesInput, S> for CrossOver {
    fn mutate(&mut self, state: &mut S, input: &mut BytesInput) -> Result<MutationResult, Error> {
        let id = random_corpus_id!(state.corpus(), state.rand_mut());
        if state.corpus().current().is_some_and(|current| current == id) {
            return Ok(MutationResult::Skipped);
        }
        let other = state.corpus().cloned_input_for_id(id)?;
        let seed = seed(state);
        let mut out = vec![0; state.max_size()];
        let (first, last) = (input.mutator_bytes(), other.mutator_bytes());
        let size = self.0.cross_over(first, last, &mut out, seed);
        *input = BytesInput::new(out[..size].to_vec());
        Ok(MutationResult::Mutated)
    }

    fn post_exec(&mut self, _: &mut S, _: Option<CorpusId>) -> Result<(), Error> {
        Ok(())
    }
}

fn seed<S: HasRand>(state: &mut S) -> u32 {
    (state.rand_mut().next() >> 32) as u32
}
