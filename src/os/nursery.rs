//! Starts child processes from one thread that lives as long as this process.
//!
//! Linux ties the parent-death signal to the *thread* that made the child (prctl(2),
//! PR_SET_PDEATHSIG): started here, children die with the process and not with the thread that
//! happened to ask for them.

use std::io;
use std::process::{Child, Command};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock, PoisonError};

type Request = (Command, Sender<io::Result<Child>>);

/// Starts `command` from the long-lived thread.
pub(crate) fn spawn(command: Command) -> io::Result<Child> {
    static NURSERY: OnceLock<Mutex<Sender<Request>>> = OnceLock::new();
    let nursery = NURSERY.get_or_init(|| {
        let (sender, requests) = channel::<Request>();
        std::thread::spawn(move || {
            for (mut command, reply) in requests {
                // The asker waits for the reply, so it is there to receive it.
                let _ = reply.send(command.spawn());
            }
        });
        Mutex::new(sender)
    });
    let (reply, answer) = channel();
    let gone = || io::Error::other("the thread that starts child processes is gone");
    let sender = nursery.lock().unwrap_or_else(PoisonError::into_inner).clone();
    sender.send((command, reply)).map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}
