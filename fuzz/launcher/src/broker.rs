//! The broker: passes messages between the clients of this machine, and between them and another machine's.

use std::thread::sleep;
use std::time::Duration;

use libafl::Error;
use libafl::events::StdLlmpEventHook;
use libafl::inputs::BytesInput;
use libafl::monitors::MultiMonitor;
use libafl_bolts::llmp::{Broker as _, LlmpBroker};
use libafl_bolts::shmem::{ShMemProvider as _, StdShMemProvider};
use libafl_bolts::tuples::tuple_list;

use crate::options::Options;

/// How long a broker sleeps that has nothing to do.
const NAP: Duration = Duration::from_millis(5);
/// How often the monitor is told that nothing has come.
const SILENCE: Duration = Duration::from_secs(30);

/// Brokers until it is killed. `Launcher` of LibAFL 0.16.1 would start a broker as well, but one that joins nobody: it
/// does not pass `remote_broker_addr` on.
pub(crate) fn run(options: &Options) -> Result<(), Error> {
    let monitor = MultiMonitor::new(|line| println!("{line}"));
    let hooks = tuple_list!(StdLlmpEventHook::<BytesInput, _>::new(monitor)?);
    let memory = StdShMemProvider::new()?;
    let mut broker = LlmpBroker::create_attach_to_tcp(memory, hooks, options.port)?;
    if let Some(address) = options.join {
        // What joins takes the number of the next client, and the listener, which counts for itself, gives that to
        // the next client too, whose messages would then pass for the other broker's and stay here. So the clients
        // come first; they and the listener have numbers.
        while broker.num_clients_seen() < 1 + options.cores.ids.len() {
            broker.broker_once()?;
            sleep(NAP);
        }
        broker.inner_mut().connect_b2b(address)?;
    }
    broker.loop_with_timeouts(SILENCE, Some(NAP));
    Ok(())
}
