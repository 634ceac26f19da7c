//! Cases a second over the campaign's time.

use maud::{Markup, PreEscaped, html};
use plotters::prelude::*;

use super::ReportError;
use crate::campaign::Summary;

const SIZE: (u32, u32) = (760, 260);
/// The style sheet gives these two other colours in the dark.
const LINE: RGBColor = RGBColor(0x1f, 0x6f, 0xb4);
const GRID: RGBColor = RGBColor(0xcc, 0xcc, 0xcc);

pub(super) fn section(summary: &Summary) -> Result<Markup, ReportError> {
    let rates: Vec<(f64, f64)> = summary.samples.rates().collect();
    Ok(html! {
        section #speed {
            h2 { "Speed" }
            @if rates.len() < 2 {
                p { "The campaign was too short for a plot." }
            } @else {
                figure.plot {
                    (PreEscaped(plot(&rates).map_err(|error| ReportError::Plot(error.to_string()))?))
                    figcaption { "Cases a second, all workers together, over the seconds of the campaign." }
                }
            }
            div.scroll {
                table.counts {
                    caption { "Cases a second on one core" }
                    @for (name, rate) in &summary.cases_per_second_per_core {
                        tr { th scope="row" { (name) } td { (super::grouped(*rate as u64)) } }
                    }
                }
            }
        }
    })
}

fn plot(rates: &[(f64, f64)]) -> Result<String, Box<dyn std::error::Error>> {
    let end = rates.last().map_or(1.0, |(seconds, _)| *seconds);
    let most = rates.iter().map(|(_, rate)| *rate).fold(1.0, f64::max);
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .margin(8)
            .x_label_area_size(32)
            .y_label_area_size(64)
            .build_cartesian_2d(0.0..end, 0.0..most * 1.05)?;
        chart
            .configure_mesh()
            .bold_line_style(GRID)
            .light_line_style(TRANSPARENT)
            .x_label_formatter(&|seconds| format!("{seconds:.0$}", usize::from(end < 20.0)))
            .y_label_formatter(&|rate| format!("{rate:.0}"))
            .label_style(("sans-serif", 13))
            .draw()?;
        chart.draw_series(LineSeries::new(rates.iter().copied(), LINE.stroke_width(2)))?;
        area.present()?;
    }
    Ok(text)
}
