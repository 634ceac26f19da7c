//! `int1` under a hypervisor that takes debug exceptions first. The instruction is a trap: RIP is behind it
//! (Intel SDM volume 3A, "Interrupt 1"; AMD64 Architecture Programmer's Manual volume 3, "INT1"). KVM on AMD's
//! processors gives the exception back with RIP at the instruction, which is the hypervisor's doing and not the
//! processor's, so it is put right, where a first try shows that this host does so.

use std::io;
use std::sync::OnceLock;

use super::Silicon;
use super::frame::Frame;
use crate::case::{Case, ExceptionVector, Mapping, Object, ObjectId, Stop};
use crate::engine::{Engine, Unsupported};
use crate::guest::{GuestAddress, GuestRange, PAGE_SIZE, Permissions, Vendor};

const INT1: u8 = 0xf1;
/// The kernel's word for a trap flag's exception, in `si_code`.
const TRACE: i32 = 2;

/// Whether this host has the exception of an `int1` come with RIP at the instruction.
pub(super) fn is_reported_early() -> io::Result<bool> {
    static EARLY: OnceLock<bool> = OnceLock::new();
    if Vendor::of_this_host() == Vendor::Intel {
        return Ok(false);
    }
    if let Some(early) = EARLY.get() {
        return Ok(*early);
    }
    let early = Silicon::untried("silicon")?.reports_int1_early().map_err(io::Error::other)?;
    Ok(*EARLY.get_or_init(|| early))
}

impl Silicon {
    fn reports_int1_early(&mut self) -> Result<bool, Unsupported> {
        const CODE: u64 = 0x40_0000;
        let mut object = Object::zeroed("code", 1);
        object.contents[0] = INT1;
        let range = GuestRange::new(GuestAddress(CODE), PAGE_SIZE)
            .map_err(|error| Unsupported::new(error.to_string()))?;
        let permissions = Permissions::ReadExecute;
        let mapping = Mapping { range, object: ObjectId(0), offset: 0, permissions };
        let mut case = Case { objects: vec![object], mappings: vec![mapping], ..Case::default() };
        case.state.rip = CODE;
        let outcome = self.run(&case)?;
        let debug = matches!(outcome.stop, Stop::Exception { vector: ExceptionVector::DB, .. });
        Ok(debug && outcome.state.rip == CODE)
    }
}

impl Frame {
    /// Whether this debug exception is that of an `int1`, if the next instruction is one.
    pub(super) fn may_be_int1(&self) -> bool {
        self.is_single_step() && self.signal_code != TRACE
    }
}
