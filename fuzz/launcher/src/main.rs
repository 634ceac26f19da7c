//! `tregion-launcher`: the property of a fuzz target under LibAFL, on many cores and many machines.
//!
//! A launcher is a broker and a client for each core. A broker joins another one by its address (`--join`), and
//! LibAFL passes what is new in either to the other, where each client runs it itself and keeps it if it is new
//! there too. What a client keeps is a file of `--corpus`, by its content's hash, which the next launcher of that
//! folder loads again; what fails is a file of `--findings`. A launcher that was killed comes back by joining
//! any that is left: brokers do not look for each other by themselves. Let all join one and the same, for a broker
//! that has joined another does not pass on what comes from those that have joined it.

mod broker;
mod client;
mod counters;
mod mutators;
mod options;

use std::env;
use std::process::{Child, Command, ExitCode};

use clap::Parser as _;
use libafl::Error;
use libafl::events::{EventConfig, launcher::Launcher};
use libafl::monitors::NopMonitor;
use libafl_bolts::shmem::{ShMemProvider as _, StdShMemProvider};

use crate::options::Options;

fn main() -> ExitCode {
    let options = Options::parse();
    let done = if options.broker {
        broker::run(&options).map_err(|error| error.to_string())
    } else {
        options.prepare().map_err(|error| error.to_string()).and_then(|()| launch(&options))
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("tregion-launcher: {message}");
            ExitCode::from(2)
        }
    }
}

/// This program as a broker, ended when dropped.
struct Broker(Child);

impl Broker {
    fn start() -> std::io::Result<Self> {
        let mut command = Command::new(env::current_exe()?);
        Ok(Self(command.args(env::args_os().skip(1)).arg("--broker").spawn()?))
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // It may have ended already, which is as well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the broker and the clients, and waits for the clients.
fn launch(options: &Options) -> Result<(), String> {
    let _broker = Broker::start().map_err(|error| error.to_string())?;
    let memory = StdShMemProvider::new().map_err(|error| error.to_string())?;
    let launched = Launcher::builder()
        .shmem_provider(memory)
        // Each client runs what others found, for what it reached there says little of another machine.
        .configuration(EventConfig::AlwaysUnique)
        .monitor(NopMonitor::new())
        .run_client(|state, manager, _| client::run(options, state, manager))
        .cores(&options.cores)
        .broker_port(options.port)
        .spawn_broker(false)
        .build()
        .launch();
    match launched {
        Ok(()) | Err(Error::ShuttingDown) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}
