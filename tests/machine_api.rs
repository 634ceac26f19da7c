//! What a user of a machine relies on: hooks, devices, budgets, breakpoints, requests to leave,
//! coherent code, signals of the host process, and that everything is freed.
#![allow(clippy::unwrap_used, reason = "a test fails where its helper does")]

#[path = "machine_api/blocks.rs"]
mod blocks;
#[path = "machine_api/code.rs"]
mod code;
#[path = "machine_api/control.rs"]
mod control;
#[path = "machine_api/devices.rs"]
mod devices;
#[path = "machine_api/extended.rs"]
mod extended;
#[path = "machine_api/guest.rs"]
mod guest;
#[path = "machine_api/hooks.rs"]
mod hooks;
#[path = "machine_api/memory_hooks.rs"]
mod memory_hooks;
#[path = "machine_api/observed.rs"]
mod observed;
#[path = "machine_api/process.rs"]
mod process;
#[path = "machine_api/side_exits.rs"]
mod side_exits;
#[path = "machine_api/traces.rs"]
mod traces;
