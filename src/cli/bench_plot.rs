//! The plot of `tregion bench`: for each figure how many times as long as native the JIT and QEMU take,
//! and as the JIT Unicorn, on a logarithmic scale.

use plotters::prelude::*;
use tregion::bench::{Figure, Spread};

use super::Failure;

/// Pixels: of the whole, of a row, of what stands above and below the rows.
const WIDTH: u32 = 960;
const ROW: u32 = 34;
const AROUND: u32 = 96;
const NAMES: u32 = 320;

const JIT: RGBColor = RGBColor(0x1f, 0x6f, 0xb4);
const UNICORN: RGBColor = RGBColor(0xd9, 0x5f, 0x02);
const QEMU: RGBColor = RGBColor(0x75, 0x70, 0xb3);
const GRID: RGBColor = RGBColor(0xdd, 0xdd, 0xdd);

/// The plot as SVG.
pub(super) fn svg(figures: &[&Figure]) -> Result<String, Failure> {
    let rows: Vec<&Figure> = figures
        .iter()
        .copied()
        .filter(|figure| ratios(figure).into_iter().flatten().next().is_some())
        .collect();
    let mut text = String::new();
    let size = (WIDTH, ROW * rows.len() as u32 + AROUND);
    draw(&rows, &SVGBackend::with_string(&mut text, size).into_drawing_area())
        .map_err(|error| Failure(format!("the plot cannot be drawn: {error}")))?;
    Ok(text)
}

/// What is drawn of a figure.
fn ratios(figure: &Figure) -> [Option<Spread>; 3] {
    [figure.jit_over_native, figure.unicorn_over_jit, figure.qemu_over_process]
}

fn draw(
    rows: &[&Figure],
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
) -> Result<(), Box<dyn std::error::Error>> {
    area.fill(&WHITE)?;
    let spreads = rows.iter().flat_map(|row| ratios(row)).flatten();
    let (least, most) = spreads.fold((0.5_f64, 2.0_f64), |(least, most), spread| {
        (least.min(spread.min * 0.8), most.max(spread.max * 1.2))
    });
    let count = rows.len() as f64;
    let mut chart = ChartBuilder::on(area)
        .caption(
            "times as long: the JIT and QEMU as native, Unicorn as the JIT",
            ("sans-serif", 17),
        )
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(NAMES)
        .build_cartesian_2d((least..most).log_scale(), 0.0..count)?;
    let name = |place: &f64| {
        let row = rows.len().checked_sub(place.floor() as usize + 1);
        let middle = (place.fract() - 0.5).abs() < 1e-6;
        row.filter(|_| middle).map_or_else(String::new, |row| rows[row].name.clone())
    };
    chart
        .configure_mesh()
        .disable_y_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .y_labels(2 * rows.len() + 1)
        .y_label_formatter(&name)
        .x_label_formatter(&|ratio| format!("{ratio}"))
        .label_style(("sans-serif", 13))
        .draw()?;
    let bars = |color: RGBColor, place: f64, of: fn(&Figure) -> Option<Spread>| {
        let at = move |row: usize| count - row as f64 - place;
        let spreads = rows.iter().enumerate().filter_map(move |(row, it)| Some((row, of(it)?)));
        spreads.flat_map(move |(row, spread)| {
            let top = at(row);
            let bar = [(1.0, top), (spread.median, top - 0.24)];
            let range = [(spread.min, top - 0.12), (spread.max, top - 0.12)];
            [
                Rectangle::new(bar, color.mix(0.75).filled()).into_dyn(),
                PathElement::new(range, BLACK.stroke_width(1)).into_dyn(),
            ]
        })
    };
    let legend = |color: RGBColor| {
        move |(x, y)| Rectangle::new([(x, y - 5), (x + 14, y + 5)], color.mix(0.75).filled())
    };
    let of_jit = chart.draw_series(bars(JIT, 0.1, |figure| figure.jit_over_native))?;
    of_jit.label("the JIT, of native").legend(legend(JIT));
    let of_unicorn = chart.draw_series(bars(UNICORN, 0.38, |figure| figure.unicorn_over_jit))?;
    of_unicorn.label("Unicorn, of the JIT").legend(legend(UNICORN));
    if rows.iter().any(|row| row.qemu_over_process.is_some()) {
        let of_qemu = chart.draw_series(bars(QEMU, 0.66, |figure| figure.qemu_over_process))?;
        of_qemu.label("QEMU, of native").legend(legend(QEMU));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.9))
        .border_style(GRID)
        .label_font(("sans-serif", 13))
        .draw()?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_with_a_ratio_has_a_row() {
        let spread = |median| Some(Spread { median, min: median * 0.9, max: median * 1.1 });
        let figure = |name: &str, of_native, of_jit, of_process| Figure {
            name: name.to_owned(),
            unit: "ms",
            native: None,
            jit: Spread { median: 1.0, min: 1.0, max: 1.0 },
            unicorn: None,
            jit_over_native: of_native,
            unicorn_over_jit: of_jit,
            unicorn_failed: None,
            process: None,
            qemu: None,
            qemu_over_process: of_process,
            qemu_failed: None,
        };
        let figures = [
            figure("a<b", spread(1.2), spread(30.0), spread(9.0)),
            figure("c", None, spread(0.2), None),
            figure("d", None, None, None),
        ];
        let figures: Vec<&Figure> = figures.iter().collect();
        let Ok(svg) = svg(&figures) else { panic!("it cannot be drawn") };
        assert!(svg.contains("a&lt;b") && svg.contains("\nc\n"), "{svg}");
        assert!(!svg.contains("\nd\n"));
    }
}
