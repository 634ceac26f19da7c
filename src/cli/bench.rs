//! `tregion bench`: figures of the JIT beside this processor itself, Unicorn and QEMU.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tregion::bench::{self, Effort, Figure, Host, Race, Spread};

use super::output::{print, write};
use super::{Failure, Found, bench_plot};

/// What `bench` is given.
#[derive(Args)]
pub(super) struct Arguments {
    /// Take less than a minute, and less exact figures
    #[arg(long)]
    quick: bool,
    /// Measure only what has this in its name
    #[arg(long, value_name = "WORD")]
    only: Option<String>,
    /// The folder with the C sources of guest programs
    #[arg(long, value_name = "DIR", default_value = "corpora/programs")]
    programs: PathBuf,
    /// File for the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// File for a plot of the ratios, as SVG
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// Turns of each race, and how long Unicorn or QEMU may take in all of them.
const FULL: (usize, Duration) = (5, Duration::from_secs(120));
const QUICK: (usize, Duration) = (3, Duration::from_millis(500));

pub(super) fn run(arguments: &Arguments) -> Result<Found, Failure> {
    let (host, qemu) = (Host::here(), bench::qemu());
    let output = std::env::temp_dir().join(format!("tregion-bench-{}", std::process::id()));
    let figures = measure(arguments, qemu.is_some(), &output);
    // Nothing of it is needed, or it was never made.
    let _ = std::fs::remove_dir_all(&output);
    let (kernels, services) = figures?;
    let of_jit = bench::geometric_mean(&kernels, |figure| figure.jit_over_native);
    let of_unicorn = bench::geometric_mean(&kernels, |figure| figure.unicorn_over_jit);
    print(&mean("the JIT to native", of_jit))?;
    print(&mean("Unicorn to the JIT", of_unicorn))?;
    let all: Vec<&Figure> = kernels.iter().chain(&services).collect();
    if let Some(file) = &arguments.svg {
        write(file, bench_plot::svg(&all)?)?;
    }
    if let Some(file) = &arguments.json {
        let value = json!({
            "date": host.date,
            "processor": host.processor,
            "cores": host.cores,
            "load": host.load,
            "qemu": qemu,
            "quick": arguments.quick,
            "figures": all,
            "geomean_jit_over_native": of_jit,
            "geomean_unicorn_over_jit": of_unicorn,
        });
        write(file, serde_json::to_string_pretty(&value)? + "\n")?;
    }
    Ok(Found::Nothing)
}

/// Figures of what computes, and of everything else.
fn measure(
    arguments: &Arguments,
    qemu: bool,
    output: &Path,
) -> Result<(Vec<Figure>, Vec<Figure>), Failure> {
    let (effort, (rounds, patience)) = match arguments.quick {
        true => (Effort::Quick, QUICK),
        false => (Effort::Full, FULL),
    };
    let wanted = |name: &str| arguments.only.as_ref().is_none_or(|word| name.contains(word));
    let kernels = bench::kernels(&arguments.programs, output, effort, qemu, wanted)?;
    let (mut computing, mut others) = (Vec::new(), Vec::new());
    print(&heading(qemu))?;
    let run = |race: Race| -> Result<Figure, Failure> {
        let figure = race.run(rounds, patience)?;
        print(&line(&figure, qemu))?;
        Ok(figure)
    };
    for kernel in &kernels {
        let figure = run(kernel.race()?)?;
        if kernel.computes() { &mut computing } else { &mut others }.push(figure);
    }
    for races in [bench::walks, bench::regions, bench::services] {
        for race in races(effort)?.into_iter().filter(|race| wanted(race.name())) {
            others.push(run(race)?);
        }
    }
    if computing.is_empty() && others.is_empty() {
        return Err("nothing has that in its name".into());
    }
    Ok((computing, others))
}

fn heading(qemu: bool) -> String {
    let [of_jit, of_unicorn, of_qemu] = ["jit / native", "unicorn / jit", "qemu / native"];
    let columns = format!("{:<48} {:>9} {:>9} {:>9}", "", "native", "jit", "unicorn");
    match qemu {
        true => format!("{columns} {:>9}    {of_jit:>18} {of_unicorn:>20} {of_qemu:>19}\n", "qemu"),
        false => format!("{columns}    {of_jit:>18} {of_unicorn:>20}\n"),
    }
}

/// A row of the table. QEMU has columns only where it is installed; its ratio is to the same process
/// without it.
fn line(figure: &Figure, qemu: bool) -> String {
    let value = |spread: Option<Spread>| {
        spread.map_or_else(
            || "-".to_owned(),
            |spread| format!("{:.*}", digits(spread), spread.median),
        )
    };
    let other = |spread, failed: &Option<String>| failed.clone().unwrap_or_else(|| value(spread));
    let ratio = |spread: Option<Spread>| {
        spread.map_or_else(String::new, |spread| {
            format!("{:.2} ({:.2}-{:.2})", spread.median, spread.min, spread.max)
        })
    };
    let mut line = format!(
        "{:<48} {:>9} {:>9} {:>9}",
        figure.name,
        value(figure.native),
        value(Some(figure.jit)),
        other(figure.unicorn, &figure.unicorn_failed),
    );
    if qemu {
        line += &format!(" {:>9}", other(figure.qemu, &figure.qemu_failed));
    }
    let (of_native, of_jit) = (ratio(figure.jit_over_native), ratio(figure.unicorn_over_jit));
    line += &format!(" {:<2} {of_native:>18} {of_jit:>20}", figure.unit);
    if qemu {
        line += &format!(" {:>19}", ratio(figure.qemu_over_process));
    }
    line.trim_end().to_owned() + "\n"
}

/// Three digits in all, about.
fn digits(spread: Spread) -> usize {
    match spread.median {
        below if below < 10.0 => 2,
        below if below < 100.0 => 1,
        _ => 0,
    }
}

fn mean(of: &str, value: Option<f64>) -> String {
    value.map_or_else(String::new, |value| {
        format!("geometric mean of the programs that compute, {of}: {value:.2}\n")
    })
}
