//! [`Checker`]: the rules of [`Case::validate`] applied item by item, so that a complaint has the
//! place of the item that breaks one. The rules themselves are not repeated here.

use super::error::{Failure, Read};
use super::reader::Item;
use crate::case::{Action, Case, Invalid, MapModel, Mapping};
use crate::guest::State;

/// What is mapped so far.
pub(super) struct Checker {
    map: MapModel,
}

impl Checker {
    /// The checker for the mappings and events of a case with the objects of `case`.
    pub(super) fn new(case: &Case) -> Self {
        Self { map: MapModel::new(case) }
    }

    /// Whether `mapping`, which stands at `item`, can be mapped at the start.
    pub(super) fn map(&mut self, item: &Item<'_>, mapping: Mapping) -> Read<()> {
        self.apply(item, &Action::Map(mapping))
    }

    /// Whether `action`, which stands at `item`, can be carried out after all before it.
    pub(super) fn apply(&mut self, item: &Item<'_>, action: &Action) -> Read<()> {
        self.map.apply(action).or_else(|invalid| item.fail(invalid))
    }
}

/// Whether a case may start with `state`, which stands at `item`.
pub(super) fn check_state(item: &Item<'_>, state: &State) -> Read<()> {
    let only_state = Case { state: state.clone(), ..Case::default() };
    only_state.validate().map_err(|invalid| {
        let key = match &invalid {
            Invalid::Flags(_) => "rflags",
            Invalid::Fixed("a segment selector") => "selectors",
            Invalid::Fixed(name) | Invalid::Reserved(name, _) | Invalid::NotCanonical(name, _) => {
                name
            }
            _ => "",
        };
        Failure::new(item.find(key).unwrap_or(*item).place(), invalid)
    })
}

/// Whether a case may have the objects of `case`, whose names and sizes stand at `places`.
pub(super) fn check_objects(places: &[ObjectPlaces], case: &Case) -> Read<()> {
    // No mappings and no events yet: only state and objects are looked at.
    let Err(invalid) = case.validate() else { return Ok(()) };
    let called = |name: &str| case.objects.iter().rposition(|object| object.name == *name);
    let place = match &invalid {
        Invalid::Name(index, _) => places.get(*index).map(|places| places.name),
        Invalid::DuplicateName(name) => second_called(case, name).map(|index| places[index].name),
        Invalid::ObjectSize(name, _) => called(name).map(|index| places[index].size),
        _ => places.last().map(|places| places.size),
    };
    Err(Failure::new(place.unwrap_or(0), invalid))
}

/// Where the keys of an object stand.
pub(super) struct ObjectPlaces {
    pub(super) name: usize,
    pub(super) size: usize,
}

fn second_called(case: &Case, name: &str) -> Option<usize> {
    let mut indices = (0..case.objects.len()).filter(|&index| case.objects[index].name == name);
    indices.nth(1)
}
