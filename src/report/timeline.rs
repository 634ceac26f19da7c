//! [`Timeline`]: what happened while the JIT ran a case, leg by leg and event by event: what was mapped,
//! and what became of the regions and blocks of translated code.

use maud::{Markup, html};

use crate::case::{Action, Case, Event, MapModel, Trigger};
use crate::engine::silicon::Step;
use crate::exec::Figures;
use crate::guest::GuestRange;

/// Something that a code cache counts.
type Count = fn(&Figures) -> u64;

/// What the code cache does, with how it is told.
const DONE: [(&str, Count); 10] = [
    ("blocks translated", |figures| figures.translations),
    ("jumps chained", |figures| figures.chained),
    ("writes to watched pages", |figures| figures.code_writes),
    ("vCPUs rung out", |figures| figures.invalidations),
    ("blocks invalidated", |figures| figures.blocks_invalidated),
    ("blocks revived", |figures| figures.blocks_revived),
    ("blocks adopted", |figures| figures.blocks_adopted),
    ("regions retired", |figures| figures.regions_retired),
    ("regions reclaimed", |figures| figures.regions_reclaimed),
    ("pages that check themselves", |figures| figures.checked_pages),
];

/// See the file's head.
pub(super) struct Timeline {
    moments: Vec<Moment>,
    rows: Vec<Row>,
    /// Some code was translated.
    translates: bool,
}

/// A leg or an event.
struct Moment {
    name: String,
    detail: String,
    is_event: bool,
}

/// One line of the timeline, with a cell for each moment.
struct Row {
    name: String,
    cells: Vec<String>,
}

impl Timeline {
    /// Of a run of `case` in which the JIT has noted these figures
    /// ([`crate::engine::jit::Jit::progress`]): at the start and the end of each leg. `steps` are the
    /// instructions that silicon executed.
    pub(super) fn new(case: &Case, figures: &[Figures], steps: &[Step]) -> Self {
        let events = (figures.len() / 2).saturating_sub(1);
        let moments = (0..figures.len().saturating_sub(1))
            .map(|index| match index % 2 {
                0 => leg(index / 2, steps),
                _ => event(index / 2, case.events.get(index / 2)),
            })
            .collect();
        let mut rows = mapped(case, events);
        let cell = |number: u64| if number == 0 { String::new() } else { format!("+{number}") };
        for (name, value) in DONE {
            let moments = figures.windows(2);
            let cells: Vec<String> =
                moments.map(|two| cell(value(&two[1]).saturating_sub(value(&two[0])))).collect();
            if cells.iter().any(|cell| !cell.is_empty()) {
                rows.push(Row { name: name.to_owned(), cells });
            }
        }
        let translates = figures.last().zip(figures.first());
        let translates =
            translates.is_some_and(|(last, first)| last.translations > first.translations);
        Self { moments, rows, translates }
    }

    pub(super) fn table(&self) -> Markup {
        html! {
            div.scroll {
                table.timeline {
                    caption { "What the JIT did, in time" }
                    thead { tr {
                        th {}
                        @for moment in &self.moments {
                            th.event[moment.is_event] scope="col" {
                                (moment.name) br; span { (moment.detail) }
                            }
                        }
                    } }
                    tbody {
                        @for row in &self.rows {
                            tr {
                                th scope="row" { (row.name) }
                                @for cell in &row.cells { td.on[!cell.is_empty()] { (cell) } }
                            }
                        }
                    }
                }
            }
            @if !self.translates {
                p.aside { "No code was translated: few instructions up to a limit are stepped." }
            }
        }
    }
}

fn leg(number: usize, steps: &[Step]) -> Moment {
    let count = steps.iter().filter(|step| step.events_applied == number).count();
    let detail =
        if count == 1 { "1 instruction".to_owned() } else { format!("{count} instructions") };
    Moment { name: format!("leg {}", number + 1), detail, is_event: false }
}

fn event(number: usize, event: Option<&Event>) -> Moment {
    let detail = event.map(event_text).unwrap_or_default();
    Moment { name: format!("event {}", number + 1), detail, is_event: true }
}

/// What the host did, in one line.
pub(super) fn event_text(event: &Event) -> String {
    let trigger = match event.trigger {
        Trigger::Halt => "at hlt".to_owned(),
        Trigger::Count(count) => format!("after {count}"),
        Trigger::Breakpoint(address) => format!("at {address}"),
    };
    let actions: Vec<String> = event.actions.iter().map(action_text).collect();
    format!(
        "{trigger}: {}",
        if actions.is_empty() { "nothing".to_owned() } else { actions.join("; ") }
    )
}

fn action_text(action: &Action) -> String {
    match action {
        Action::Write { address, bytes } => format!("write {} bytes at {address}", bytes.len()),
        Action::Map(mapping) => format!("map {} {}", span(mapping.range), mapping.permissions),
        Action::Unmap(range) => format!("unmap {}", span(*range)),
        Action::Protect { range, permissions } => format!("make {} {permissions}", span(*range)),
        Action::Alias { source, destination } => {
            format!("map {} at {destination} too", span(*source))
        }
        Action::Remap { source, destination } => {
            format!("move {} to {destination}", span(*source))
        }
        Action::ExitRequest => "ask to leave".to_owned(),
    }
}

fn span(range: GuestRange) -> String {
    format!("{:#x}+{:#x}", range.start().0, range.size())
}

/// A row for each range that is mapped at some time, with its permissions while it is.
fn mapped(case: &Case, events: usize) -> Vec<Row> {
    let mut map = MapModel::initial(case);
    let mut over_time = vec![map.mappings().to_vec()];
    for event in case.events.iter().take(events) {
        for action in &event.actions {
            map.apply(action).expect("the actions of a valid case can be carried out");
        }
        // An event and the leg behind it see the same.
        over_time.extend([map.mappings().to_vec(), map.mappings().to_vec()]);
    }
    let mut ranges: Vec<(GuestRange, usize)> =
        over_time.iter().flatten().map(|mapping| (mapping.range, mapping.object.0)).collect();
    ranges.sort_by_key(|(range, object)| (range.start().0, range.size(), *object));
    ranges.dedup();
    let row = |(range, object): (GuestRange, usize)| {
        let cells = over_time.iter().map(|mappings| {
            let there = mappings.iter().find(|it| it.range == range && it.object.0 == object);
            there.map(|it| it.permissions.to_string()).unwrap_or_default()
        });
        let name = case.objects.get(object).map_or("", |object| object.name.as_str());
        Row { name: format!("{name} {}", span(range)), cells: cells.collect() }
    };
    ranges.into_iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::{Mapping, Object, ObjectId};
    use crate::engine::Engine;
    use crate::engine::jit::Jit;
    use crate::engine::silicon::Silicon;
    use crate::guest::{GuestAddress, Permissions};

    const CODE: GuestAddress = GuestAddress(0x40_0000);

    /// `inc eax; hlt`, which the host makes `dec eax; hlt` at the `hlt` behind it, and goes back.
    fn rewritten() -> Case {
        let mut code = Object::zeroed("code", 1);
        // inc eax; hlt; jmp back to the start
        code.contents[..5].copy_from_slice(&[0xff, 0xc0, 0xf4, 0xeb, 0xfb]);
        let range = GuestRange::new(CODE, 0x1000).unwrap();
        let permissions = Permissions::ReadExecute;
        let mapping = Mapping { range, object: ObjectId(0), offset: 0, permissions };
        let bytes = vec![0xff, 0xc8];
        let write = Action::Write { address: CODE, bytes };
        let protect = Action::Protect { range, permissions: Permissions::ReadWriteExecute };
        let events = [write, protect]
            .map(|action| Event { trigger: Trigger::Halt, actions: vec![action] })
            .into();
        let mut case =
            Case { objects: vec![code], mappings: vec![mapping], events, ..Case::default() };
        case.state.rip = CODE.0;
        case.validate().unwrap();
        case
    }

    #[test]
    fn events_and_what_becomes_of_code_are_shown() {
        let case = rewritten();
        let mut jit = Jit::new().unwrap();
        jit.note_progress(true);
        jit.run(&case).unwrap();
        let steps = Silicon::new().unwrap().trace(&case, 64).unwrap().steps;
        let timeline = Timeline::new(&case, jit.progress(), &steps);
        let names: Vec<_> =
            timeline.moments.iter().map(|it| format!("{} {}", it.name, it.detail)).collect();
        let expected = [
            "leg 1 2 instructions",
            "event 1 at hlt: write 2 bytes at 0x400000",
            "leg 2 3 instructions",
            "event 2 at hlt: make 0x400000+0x1000 rwx",
            "leg 3 3 instructions",
        ];
        assert_eq!(names, expected);
        let row = |name: &str| {
            let row = timeline.rows.iter().find(|row| row.name == name);
            row.unwrap_or_else(|| panic!("no row {name}")).cells.clone()
        };
        assert_eq!(row("code 0x400000+0x1000"), ["r-x", "r-x", "r-x", "rwx", "rwx"]);
        assert_eq!(row("writes to watched pages"), ["", "+1", "", "", ""]);
        let translated = row("blocks translated");
        assert!(!translated[0].is_empty() && translated[1].is_empty() && !translated[2].is_empty());
        assert_eq!(row("regions retired")[3], "+1", "a change of permissions retires the region");
        assert!(timeline.rows.iter().all(|row| row.cells.len() == timeline.moments.len()));
    }
}
