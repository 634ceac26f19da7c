//! Draws what `make regions-record` has recorded last, as SVG, for
//! `docs/decisions/0005-translation-regions.md`.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use plotters::prelude::*;
use serde_json::Value;

type Failure = Box<dyn Error>;

const SIZE: (u32, u32) = (760, 420);
const COLORS: [RGBColor; 6] = [
    RGBColor(0x1f, 0x6f, 0xb4),
    RGBColor(0xd9, 0x5f, 0x02),
    RGBColor(0x2c, 0x8c, 0x5a),
    RGBColor(0xc0, 0x39, 0x6b),
    RGBColor(0x7a, 0x5b, 0xb5),
    RGBColor(0x80, 0x70, 0x20),
];

/// One axis, from its first to its last label.
struct Axis {
    name: &'static str,
    from: f64,
    to: f64,
    /// Labels are powers of ten, and `from` and `to` their exponents.
    powers: bool,
    labels: usize,
}

/// A line, of points with the range that half of their samples lie in.
struct Line {
    name: String,
    points: Vec<(f64, [f64; 3])>,
}

struct Plot {
    file: &'static str,
    title: &'static str,
    axes: [Axis; 2],
    lines: Vec<Line>,
    legend: SeriesLabelPosition,
}

fn main() -> Result<(), Failure> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let record: Value = serde_json::from_str(&fs::read_to_string(last_record(root)?)?)?;
    let folder = root.join("docs/decisions/0005");
    fs::create_dir_all(&folder)?;
    for plot in [jumps(&record)?, vcpus(&record)?, held(&record)?, largest(&record)?] {
        draw(&plot, &folder)?;
    }
    Ok(())
}

/// The record with the last date.
fn last_record(root: &Path) -> Result<PathBuf, Failure> {
    let entries = fs::read_dir(root.join("benches/record"))?;
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| Ok(entry?.path())).collect::<Result<_, Failure>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    paths.pop().ok_or_else(|| "nothing is recorded: `make regions-record`".into())
}

fn rows<'record>(record: &'record Value, name: &str) -> Result<&'record Vec<Value>, Failure> {
    record[name].as_array().ok_or_else(|| format!("the record has no {name}").into())
}

fn number(row: &Value, key: &str) -> Result<f64, Failure> {
    row[key].as_f64().ok_or_else(|| format!("a row has no {key}: {row}").into())
}

/// Lines of rows by what they call `how`, over `x`.
fn times(rows: &[Value], x: &str) -> Result<Vec<Line>, Failure> {
    let mut lines: Vec<Line> = Vec::new();
    for row in rows {
        let name = row["how"].as_str().unwrap_or_default();
        let keys = ["lower_quartile", "median", "upper_quartile"];
        let mut values = [0.0; 3];
        for (value, key) in values.iter_mut().zip(keys) {
            *value = number(&row["nanoseconds"], key)?.max(1.0);
        }
        let point = (number(row, x)?, values);
        match lines.iter_mut().find(|line| line.name == name) {
            Some(line) => line.points.push(point),
            None => lines.push(Line { name: name.to_owned(), points: vec![point] }),
        }
    }
    Ok(lines)
}

/// A line over the steps of each way's life.
fn lives(
    record: &Value,
    value: impl Fn(&Value) -> Result<f64, Failure>,
    wanted: impl Fn(&Value) -> bool,
) -> Result<Vec<Line>, Failure> {
    let mut lines = Vec::new();
    for way in rows(&record["life"], "ways")?.iter().filter(|way| wanted(way)) {
        let mut points = Vec::new();
        for point in rows(way, "points")? {
            points.push((number(point, "step")?, [value(point)?; 3]));
        }
        lines.push(Line { name: way["way"].as_str().unwrap_or_default().to_owned(), points });
    }
    Ok(lines)
}

fn powers(name: &'static str, from: i32, to: i32) -> Axis {
    let labels = (to - from) as usize + 1;
    Axis { name, from: f64::from(from), to: f64::from(to), powers: true, labels }
}

fn plain(name: &'static str, from: f64, to: f64, labels: usize) -> Axis {
    Axis { name, from, to, powers: false, labels }
}

fn jumps(record: &Value) -> Result<Plot, Failure> {
    Ok(Plot {
        file: "jumps.svg",
        title: "One invalidation, by chained jumps that lead to what is invalidated",
        axes: [powers("jumps", 0, 3), powers("nanoseconds", 1, 6)],
        lines: times(rows(record, "invalidation")?, "jumps")?,
        legend: SeriesLabelPosition::UpperLeft,
    })
}

fn vcpus(record: &Value) -> Result<Plot, Failure> {
    Ok(Plot {
        file: "vcpus.svg",
        title: "One invalidation (100 jumps), by vCPUs that spin elsewhere",
        axes: [plain("vCPUs", 0.0, 8.0, 9), powers("nanoseconds", 1, 9)],
        lines: times(rows(record, "vcpus")?, "running")?,
        legend: SeriesLabelPosition::MiddleRight,
    })
}

fn held(record: &Value) -> Result<Plot, Failure> {
    let share = |point: &Value| Ok(number(point, "held")? / number(point, "alive")?);
    Ok(Plot {
        file: "held.svg",
        title: "Code memory held by regions / bytes of their code",
        axes: [plain("regions made", 0.0, 3000.0, 7), plain("ratio", 1.0, 3.0, 5)],
        lines: lives(record, share, |_| true)?,
        legend: SeriesLabelPosition::UpperRight,
    })
}

fn largest(record: &Value) -> Result<Plot, Failure> {
    let share = |point: &Value| Ok(number(point, "largest")? / number(point, "free")?.max(1.0));
    Ok(Plot {
        file: "largest.svg",
        title: "The biggest region that there is room for / free code memory",
        axes: [plain("regions made", 0.0, 3000.0, 7), plain("ratio", 0.0, 1.4, 8)],
        lines: lives(record, share, |way| way["arena"].is_u64())?,
        legend: SeriesLabelPosition::UpperRight,
    })
}

impl Axis {
    fn place(&self, value: f64) -> f64 {
        if self.powers { value.log10() } else { value }
    }

    fn label(&self, place: f64) -> String {
        match self.powers {
            true => format!("{}", 10_f64.powf(place).round()),
            false if self.to > 5.0 => format!("{place:.0}"),
            false => format!("{place:.1}"),
        }
    }
}

fn draw(plot: &Plot, folder: &Path) -> Result<(), Failure> {
    let path = folder.join(plot.file);
    let area = SVGBackend::new(&path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let [x, y] = &plot.axes;
    let mut chart = ChartBuilder::on(&area)
        .caption(plot.title, ("sans-serif", 16))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(80)
        .build_cartesian_2d(x.from..x.to, y.from..y.to)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_labels(x.labels)
        .y_labels(y.labels)
        .x_desc(x.name)
        .y_desc(y.name)
        .x_label_formatter(&|place| x.label(*place))
        .y_label_formatter(&|place| y.label(*place))
        .draw()?;
    for (line, color) in plot.lines.iter().zip(COLORS) {
        let at = |value: &(f64, [f64; 3])| (x.place(value.0), y.place(value.1[1]));
        chart
            .draw_series(LineSeries::new(line.points.iter().map(at), color.stroke_width(2)))?
            .label(&line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
        chart.draw_series(line.points.iter().map(|(across, values)| {
            let ends = [values[0], values[2]].map(|value| (x.place(*across), y.place(value)));
            PathElement::new(ends, color.stroke_width(1))
        }))?;
    }
    chart
        .configure_series_labels()
        .position(plot.legend.clone())
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    area.present()?;
    println!("written: {}", path.display());
    Ok(())
}
