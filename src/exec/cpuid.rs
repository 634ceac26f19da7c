//! [`CpuidModel`]: what guests read by CPUID.

use std::arch::x86_64::CpuidResult;
use std::collections::BTreeMap;

/// The host's answers, but for the leaves that are set here and the features that guests do not get.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuidModel {
    /// By leaf and, if it matters, subleaf: EAX, EBX, ECX, EDX.
    set: BTreeMap<(u32, Option<u32>), [u32; 4]>,
}

impl CpuidModel {
    /// Sets what a leaf answers: EAX, EBX, ECX, EDX. Without a subleaf it is the same for all.
    pub fn set(&mut self, leaf: u32, subleaf: Option<u32>, answer: [u32; 4]) {
        self.set.insert((leaf, subleaf), answer);
    }

    /// What a guest reads: EAX, EBX, ECX, EDX.
    pub(super) fn answer(
        &self,
        leaf: u32,
        subleaf: u32,
        host: &dyn Fn() -> CpuidResult,
    ) -> [u32; 4] {
        let set = self.set.get(&(leaf, Some(subleaf))).or_else(|| self.set.get(&(leaf, None)));
        if let Some(answer) = set {
            return *answer;
        }
        let host = host();
        let mut answer = [host.eax, host.ebx, host.ecx, host.edx];
        mask(leaf, subleaf, &mut answer);
        answer
    }
}

/// Takes away what guests cannot use: AMX, transactions, user interrupts, ENQCMD, shadow stacks,
/// monitors, keys and enclaves.
fn mask(leaf: u32, subleaf: u32, answer: &mut [u32; 4]) {
    let clear = |word: &mut u32, bits: &[u32]| {
        for bit in bits {
            *word &= !(1 << bit);
        }
    };
    match (leaf, subleaf) {
        // MONITOR, VMX, SMX.
        (1, _) => clear(&mut answer[2], &[3, 5, 6]),
        (7, 0) => {
            // SGX, HLE, RTM, MPX.
            clear(&mut answer[1], &[2, 4, 11, 14]);
            // WAITPKG, shadow stacks, key locker, ENQCMD, SGX_LC.
            clear(&mut answer[2], &[5, 7, 23, 29, 30]);
            // UINTR, TSXLDTRK, CET_IBT, AMX.
            clear(&mut answer[3], &[5, 16, 20, 22, 24, 25]);
        }
        // AMX_FP16, AMX_COMPLEX.
        (7, 1) => {
            clear(&mut answer[0], &[21]);
            clear(&mut answer[3], &[8]);
        }
        // The tiles' part of the XSAVE area.
        (0xd, 0) => clear(&mut answer[0], &[17, 18]),
        (0xd, 17 | 18) | (0x1d | 0x1e, _) => *answer = [0; 4],
        // SVM, LWP, MONITORX.
        (0x8000_0001, _) => clear(&mut answer[2], &[2, 15, 29]),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_guests_cannot_use_is_masked() {
        let all = || CpuidResult { eax: !0, ebx: !0, ecx: !0, edx: !0 };
        let model = CpuidModel::default();
        let hidden = |leaf, subleaf| model.answer(leaf, subleaf, &all).map(|word| !word);
        assert_eq!(hidden(0, 0), [0; 4]);
        // Monitors and virtual machines; transactions; tiles.
        assert_eq!(hidden(1, 0)[2], 1 << 3 | 1 << 5 | 1 << 6);
        assert_eq!(hidden(7, 0)[1], 1 << 2 | 1 << 4 | 1 << 11 | 1 << 14);
        assert_eq!(hidden(7, 0)[3] >> 22, 0b1101);
        assert_eq!(hidden(0xd, 0), [3 << 17, 0, 0, 0]);
        assert_eq!(hidden(0x1d, 1), [!0; 4]);
    }

    #[test]
    fn a_model_says_what_it_was_told() {
        let none = || CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 };
        let mut model = CpuidModel::default();
        model.set(4, None, [1; 4]);
        model.set(4, Some(2), [2; 4]);
        assert_eq!([1, 2].map(|subleaf| model.answer(4, subleaf, &none)), [[1; 4], [2; 4]]);
    }
}
