//! [`Options`]: what a launcher is told.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use libafl_bolts::core_affinity::Cores;
use tregion::properties::Target;

/// The property of a fuzz target under LibAFL, on many cores and many machines.
#[derive(Debug, Parser)]
pub(crate) struct Options {
    /// Whose property: smc_remap, raw_bytes, mapping, concurrent, differential or case_text
    #[arg(long)]
    pub(crate) target: Target,
    /// Folder of the inputs that reach something new, which is begun with
    #[arg(long)]
    pub(crate) corpus: PathBuf,
    /// Folder of the inputs for which the property does not hold
    #[arg(long)]
    pub(crate) findings: PathBuf,
    /// Folders of inputs to begin with
    #[arg(long)]
    pub(crate) seeds: Vec<PathBuf>,
    /// A client for each of these, such as 0,2-3 or all
    #[arg(long, default_value = "all", value_parser = cores)]
    pub(crate) cores: Cores,
    /// Where the broker listens for its clients and for other brokers
    #[arg(long, default_value_t = 1337)]
    pub(crate) port: u16,
    /// Address and port of another broker
    #[arg(long)]
    pub(crate) join: Option<SocketAddr>,
    /// Seconds that an input may take
    #[arg(long, default_value = "30", value_parser = seconds)]
    pub(crate) timeout: Duration,
    /// Be the broker alone; a launcher starts itself so
    #[arg(long, hide = true)]
    pub(crate) broker: bool,
}

fn cores(text: &str) -> Result<Cores, String> {
    Cores::from_cmdline(text).map_err(|_| format!("`{text}` is no list of cores of this machine"))
}

fn seconds(text: &str) -> Result<Duration, std::num::ParseIntError> {
    text.parse().map(Duration::from_secs)
}

impl Options {
    /// Makes the folders that are written to.
    pub(crate) fn prepare(&self) -> io::Result<()> {
        fs::create_dir_all(&self.corpus)?;
        fs::create_dir_all(&self.findings)
    }
}
