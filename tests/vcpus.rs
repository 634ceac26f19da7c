//! Several vCPUs of one machine on several threads: what they may see of each other's stores, of code
//! that changes while they run it, and of whatever the host does to their machine meanwhile.
//!
//! Each test runs for a time in proportion to `TREGION_STRESS_SECONDS`, 2 unless told.
#![allow(clippy::unwrap_used, reason = "a test fails where its helper does")]

#[path = "vcpus/atomics.rs"]
mod atomics;
#[path = "vcpus/crossing.rs"]
mod crossing;
#[path = "vcpus/guest.rs"]
mod guest;
#[path = "vcpus/litmus.rs"]
mod litmus;
#[path = "vcpus/mix.rs"]
mod mix;
#[path = "vcpus/reference.rs"]
mod reference;
#[path = "vcpus/rules.rs"]
mod rules;
#[path = "vcpus/storms.rs"]
mod storms;
#[path = "vcpus/windows.rs"]
mod windows;
