//! What a campaign counts, so that one can see whether it looked at anything.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::mem::take;

use super::findings::{FindingKey, Seen};
use crate::case::{Action, Stop};
use crate::concurrent::Counts;
use crate::generate::{FormId, Program, ProgramKind};
use crate::oracle::judge::Cost;

/// Counts of one worker, or of all.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Cases judged.
    pub cases: u64,
    /// Cases by kind of program.
    pub kinds: BTreeMap<ProgramKind, u64>,
    /// Runs of engines that were compared with silicon's.
    pub compared: u64,
    /// Cases that ended at their final `hlt`, all events applied.
    pub reached_end: u64,
    /// The same, raw programs left out.
    pub programs_reached_end: u64,
    /// How often each form was executed for certain.
    pub forms: FormCounts,
    /// What was refused, by reason: instructions by the generator, cases by an engine.
    pub refused: BTreeMap<String, u64>,
    /// Cases that were looked at for changed code.
    pub traced: u64,
    /// Of those, how many executed an instruction, had it changed, and executed it again.
    pub changed_and_rerun: u64,
    /// Cases in which an engine differed only in what the manual leaves undefined.
    pub only_undefined: u64,
    /// Cases in which an engine differed as its known differences do, and that were not searched.
    pub plausible: u64,
    /// How silicon's runs ended.
    pub stops: StopCounts,
    /// Events applied.
    pub events_applied: u64,
    /// What the host did in them, by kind.
    pub actions: BTreeMap<&'static str, u64>,
    /// How often each distinct difference was seen.
    pub seen: BTreeMap<FindingKey, Seen>,
    /// Cost of each engine, silicon first.
    pub costs: Vec<Cost>,
    /// Cost of the searches for culprits …
    pub searches: Cost,
    /// … and of making examples of distinct differences small.
    pub minimising: Cost,
    /// What two vCPUs have run.
    pub two_vcpus: Counts,
}

/// A count for each form, by its number: counting is what a campaign does most.
#[derive(Clone, Debug, Default)]
pub struct FormCounts(Vec<u64>);

impl FormCounts {
    /// Counts each of `forms`.
    pub fn add(&mut self, forms: &[FormId]) {
        for form in forms {
            *self.slot(usize::from(form.0)) += 1;
        }
    }

    /// The forms that were counted and how often.
    pub fn iter(&self) -> impl Iterator<Item = (FormId, u64)> + '_ {
        let all = self.0.iter().enumerate().map(|(index, count)| (FormId(index as u16), *count));
        all.filter(|(_, count)| *count > 0)
    }

    fn slot(&mut self, index: usize) -> &mut u64 {
        if self.0.len() <= index {
            self.0.resize(index + 1, 0);
        }
        &mut self.0[index]
    }

    fn add_all(&mut self, other: &mut Self) {
        self.0.resize(self.0.len().max(other.0.len()), 0);
        for (count, more) in self.0.iter_mut().zip(&mut other.0) {
            *count += std::mem::take(more);
        }
    }
}

/// A count for each [`Stop::kind`], which is put into words only at the end.
#[derive(Clone, Debug, Default)]
pub struct StopCounts(Vec<(Stop, u64)>);

impl StopCounts {
    /// The counts by kind.
    #[must_use]
    pub fn by_kind(&self) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        for (stop, count) in &self.0 {
            *counts.entry(stop.kind()).or_default() += count;
        }
        counts
    }

    fn add(&mut self, stop: Stop, count: u64) {
        let stop = match stop {
            Stop::Exception { vector, .. } => {
                Stop::Exception { vector, error: None, address: None }
            }
            other => other,
        };
        match self.0.iter_mut().find(|(known, _)| *known == stop) {
            Some((_, so_far)) => *so_far += count,
            None => self.0.push((stop, count)),
        }
    }
}

impl Tally {
    /// Counts a program as generated.
    pub fn program(&mut self, program: &Program) {
        self.cases += 1;
        *self.kinds.entry(program.kind).or_default() += 1;
        for refusal in &program.refused {
            self.refuse(refusal.reason);
        }
    }

    /// Counts something that was refused.
    pub fn refuse(&mut self, reason: &str) {
        match self.refused.get_mut(reason) {
            Some(count) => *count += 1,
            None => drop(self.refused.insert(reason.to_owned(), 1)),
        }
    }

    /// Counts silicon's outcome of a program; whether it came to its end.
    pub fn outcome(&mut self, program: &Program, stop: Stop, events_applied: usize) -> bool {
        self.events_applied += events_applied as u64;
        for action in program.case.events[..events_applied].iter().flat_map(|event| &event.actions)
        {
            *self.actions.entry(kind_of(action)).or_default() += 1;
        }
        self.stops.add(stop, 1);
        let at_end = stop == Stop::Halt && events_applied == program.case.events.len();
        if at_end {
            self.reached_end += 1;
            self.programs_reached_end += u64::from(program.kind != ProgramKind::Raw);
            self.forms.add(&program.always_executed);
        }
        at_end
    }

    /// Moves another's counts into these, and keeps its memory for the next ones.
    pub fn take_from(&mut self, other: &mut Self) {
        let Self {
            cases,
            kinds,
            compared,
            reached_end,
            programs_reached_end,
            forms,
            refused,
            traced,
            changed_and_rerun,
            only_undefined,
            plausible,
            stops,
            events_applied,
            actions,
            seen,
            costs,
            searches,
            minimising,
            two_vcpus,
        } = other;
        self.two_vcpus.add(&take(two_vcpus));
        for (count, more) in [
            (&mut self.cases, cases),
            (&mut self.compared, compared),
            (&mut self.reached_end, reached_end),
            (&mut self.programs_reached_end, programs_reached_end),
            (&mut self.traced, traced),
            (&mut self.changed_and_rerun, changed_and_rerun),
            (&mut self.only_undefined, only_undefined),
            (&mut self.plausible, plausible),
            (&mut self.events_applied, events_applied),
        ] {
            *count += take(more);
        }
        add_counts(&mut self.kinds, take(kinds));
        add_counts(&mut self.refused, take(refused));
        add_counts(&mut self.actions, take(actions));
        self.forms.add_all(forms);
        for (stop, count) in take(&mut stops.0) {
            self.stops.add(stop, count);
        }
        for (key, more) in take(seen) {
            self.see(key, more);
        }
        self.costs.resize(self.costs.len().max(costs.len()), Cost::default());
        for (cost, more) in self.costs.iter_mut().zip(take(costs)) {
            cost.add(more);
        }
        self.searches.add(take(searches));
        self.minimising.add(take(minimising));
    }

    /// Counts what was seen of a distinct difference.
    pub(super) fn see(&mut self, key: FindingKey, more: Seen) {
        match self.seen.entry(key) {
            Entry::Occupied(mut known) => known.get_mut().add(more),
            Entry::Vacant(place) => drop(place.insert(more)),
        }
    }
}

/// What a host does, in one word.
fn kind_of(action: &Action) -> &'static str {
    match action {
        Action::Write { .. } => "write",
        Action::Map(_) => "map",
        Action::Unmap(_) => "unmap",
        Action::Protect { .. } => "protect",
        Action::Alias { .. } => "alias",
        Action::Remap { .. } => "remap",
        Action::ExitRequest => "exit request",
    }
}

/// Adds the counts of `more` to those of `counts`.
pub(super) fn add_counts<K: Ord>(counts: &mut BTreeMap<K, u64>, more: BTreeMap<K, u64>) {
    for (key, count) in more {
        *counts.entry(key).or_default() += count;
    }
}
