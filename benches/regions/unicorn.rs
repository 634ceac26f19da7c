//! The same guests in Unicorn 2.1.5, whose core is QEMU 5.0.1's: `uc_ctl_remove_cache` drops the blocks
//! that touch a range one by one, and patches back each jump to them (`tb_phys_invalidate__locked`).

use unicorn_engine::{Arch, Mode, Prot, Unicorn, uc_error};

use crate::Failure;
use crate::cost::Victim;
use crate::guests::{CODE, HALT, Program, chain, star};

/// What is invalidated.
type Victims = Vec<(&'static str, u64, Box<dyn Victim>)>;

struct Theirs {
    unicorn: Unicorn<'static, ()>,
    entries: Vec<u64>,
    first: u64,
    end: u64,
}

impl Theirs {
    fn new(program: &Program, first: u64, end: u64) -> Result<Self, Failure> {
        let mut unicorn = Unicorn::new(Arch::X86, Mode::MODE_64).map_err(told)?;
        unicorn.mem_map(CODE, 0x1000, Prot::ALL).map_err(told)?;
        unicorn.mem_write(CODE, &program.bytes).map_err(told)?;
        unicorn.mem_map(HALT, 0x1000, Prot::ALL).map_err(told)?;
        unicorn.mem_write(HALT, &[0xf4]).map_err(told)?;
        Ok(Self { unicorn, entries: program.entries.clone(), first, end })
    }
}

impl Victim for Theirs {
    fn prepare(&mut self) -> Result<(), Failure> {
        // Jumps were patched back, all of them.
        for entry in [HALT].iter().chain(&self.entries) {
            self.unicorn.emu_start(*entry, 0, 0, 0).map_err(told)?;
        }
        Ok(())
    }

    fn warm_up(&mut self) -> Result<(), Failure> {
        self.unicorn.ctl_remove_cache(HALT, HALT + 1).map_err(told)
    }

    fn strike(&mut self) -> Result<(), Failure> {
        self.unicorn.ctl_remove_cache(self.first, self.end).map_err(told)
    }
}

/// A page with a chain, and a block that as many jumps lead to. It chains inside of a page only, into
/// which 800 jumps fit.
pub(crate) fn victims(jumps: u64) -> Result<Victims, Failure> {
    let (page, fitting) = (chain(jumps), jumps.min(800));
    let block = star(fitting);
    Ok(vec![
        ("Unicorn, page", jumps, Box::new(Theirs::new(&page, CODE, CODE + 0x1000)?)),
        ("Unicorn, block", fitting, Box::new(Theirs::new(&block, CODE, CODE + 1)?)),
    ])
}

fn told(error: uc_error) -> Failure {
    format!("Unicorn: {error:?}").into()
}
