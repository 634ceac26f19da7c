//! [`HostFeatures`]: which instruction sets the host's processor and its operating system offer to
//! user code, by CPUID and XGETBV (Intel SDM volume 2, "CPUID—CPU Identification").
#![allow(unsafe_code, reason = "XGETBV has no safe wrapper")]

use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv, CpuidResult};
use std::sync::LazyLock;

use iced_x86::CpuidFeature;

/// Whose processor it is. They execute the same instructions, but not all in the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Vendor {
    /// Intel, or whoever is not known to differ.
    #[default]
    Intel,
    /// AMD, or Hygon, whose processors are AMD's.
    Amd,
}

impl Vendor {
    /// Whose this host's processor is.
    #[must_use]
    pub fn of_this_host() -> Self {
        HostFeatures::of_this_host().vendor()
    }
}

/// The bits of MXCSR that this host has: AMD's processors have one more, by which SSE's operands need not be
/// aligned (AMD64 manual volume 1, "MXCSR Register").
pub(crate) fn mxcsr_mask() -> u32 {
    static MASK: LazyLock<u32> = LazyLock::new(|| {
        let misaligned =
            __cpuid(0x8000_0000).eax >= 0x8000_0001 && has(__cpuid(0x8000_0001).ecx, 7);
        0xffff | u32::from(misaligned) << 17
    });
    *MASK
}

/// A set of [`CpuidFeature`], and whose processor has it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct HostFeatures {
    words: [u64; 4],
    vendor: Vendor,
    hypervisor: bool,
}

impl HostFeatures {
    /// What every x86-64 processor has.
    #[must_use]
    pub fn baseline() -> Self {
        use CpuidFeature as F;
        let mut features = Self::default();
        for feature in [
            F::INTEL8086,
            F::INTEL186,
            F::INTEL286,
            F::INTEL386,
            F::INTEL486,
            F::X64,
            F::FPU,
            F::FPU287,
            F::FPU387,
            F::CMOV,
            F::CX8,
            F::MMX,
            F::SSE,
            F::SSE2,
            F::FXSR,
            F::CLFSH,
            F::MULTIBYTENOP,
            F::PAUSE,
            F::SYSCALL,
            F::TSC,
            F::MSR,
            F::CPUID,
            F::SEP,
        ] {
            features.insert(feature);
        }
        features
    }

    /// What this host has.
    #[must_use]
    pub fn detect() -> Self {
        Self::of_this_host().clone()
    }

    /// The same without a copy.
    #[must_use]
    pub fn of_this_host() -> &'static Self {
        // Under a hypervisor each CPUID takes microseconds.
        static FEATURES: LazyLock<HostFeatures> = LazyLock::new(HostFeatures::ask);
        &FEATURES
    }

    fn ask() -> Self {
        let mut features = Self::baseline();
        features.vendor = vendor();
        let leaf1 = __cpuid(1);
        features.hypervisor = has(leaf1.ecx, 31);
        let saved = if has(leaf1.ecx, 27) { extended_states() } else { 0 };
        features.add_rows(BASIC, leaf1);
        let highest = __cpuid(0).eax;
        if highest >= 7 {
            features.add_rows(LEAF_7_0, __cpuid_count(7, 0));
            features.add_rows(LEAF_7_1, __cpuid_count(7, 1));
        }
        if __cpuid(0x8000_0000).eax >= 0x8000_0001 {
            features.add_rows(EXTENDED, __cpuid(0x8000_0001));
        }
        if highest >= 13 {
            features.add_rows(LEAF_13_1, __cpuid_count(13, 1));
        }
        features.remove_unsaved(saved);
        features
    }

    /// Adds one feature.
    pub fn insert(&mut self, feature: CpuidFeature) {
        self.words[feature as usize / 64] |= 1 << (feature as usize % 64);
    }

    /// Takes one feature away.
    pub fn remove(&mut self, feature: CpuidFeature) {
        self.words[feature as usize / 64] &= !(1 << (feature as usize % 64));
    }

    /// Whether `feature` is there.
    #[must_use]
    pub fn has(&self, feature: CpuidFeature) -> bool {
        self.words[feature as usize / 64] >> (feature as usize % 64) & 1 != 0
    }

    /// Whether all that an instruction needs is there.
    #[must_use]
    pub fn has_all(&self, features: &[CpuidFeature]) -> bool {
        features.iter().all(|feature| self.has(*feature))
    }

    /// Whose processor it is.
    #[must_use]
    pub fn vendor(&self) -> Vendor {
        self.vendor
    }

    /// Whether the host is itself a guest (AMD64 Architecture Programmer's Manual volume 3, appendix E.3.2: a bit
    /// that processors leave zero).
    #[must_use]
    pub fn has_hypervisor(&self) -> bool {
        self.hypervisor
    }

    fn add_rows(&mut self, rows: &[(Output, u32, CpuidFeature)], result: CpuidResult) {
        for (output, bit, feature) in rows {
            let value = match output {
                Output::Eax => result.eax,
                Output::Ebx => result.ebx,
                Output::Ecx => result.ecx,
                Output::Edx => result.edx,
            };
            if has(value, *bit) {
                self.insert(*feature);
            }
        }
    }

    /// Takes away what needs registers that the operating system does not save.
    fn remove_unsaved(&mut self, saved: u64) {
        let mut remove_matching = |needs: u64, select: fn(&str) -> bool| {
            if saved & needs != needs {
                for feature in CpuidFeature::values() {
                    if select(&format!("{feature:?}")) {
                        self.remove(feature);
                    }
                }
            }
        };
        remove_matching(0x6, |name| {
            name.starts_with("AVX") || ["FMA", "F16C", "VAES", "VPCLMULQDQ"].contains(&name)
        });
        remove_matching(0xe6, |name| name.starts_with("AVX512"));
        remove_matching(0x60000, |name| name.starts_with("AMX"));
        remove_matching(0x18, |name| name == "MPX");
    }
}

fn has(value: u32, bit: u32) -> bool {
    value >> bit & 1 != 0
}

fn vendor() -> Vendor {
    // "AuthenticAMD" and "HygonGenuine".
    if [0x6874_7541, 0x6f67_7948].contains(&__cpuid(0).ebx) { Vendor::Amd } else { Vendor::Intel }
}

fn extended_states() -> u64 {
    // SAFETY: the caller has seen CPUID.1:ECX.OSXSAVE, so XGETBV of XCR0 is allowed.
    unsafe { read_xcr0() }
}

/// # Safety
/// The operating system has enabled XSAVE.
#[target_feature(enable = "xsave")]
unsafe fn read_xcr0() -> u64 {
    // SAFETY: as the caller promises; register 0 always exists then.
    unsafe { _xgetbv(0) }
}

#[derive(Clone, Copy, Debug)]
enum Output {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

use CpuidFeature as F;
use Output::{Eax, Ebx, Ecx, Edx};

type Rows = &'static [(Output, u32, CpuidFeature)];

#[rustfmt::skip]
const BASIC: Rows = &[
    (Ecx, 0, F::SSE3), (Ecx, 1, F::PCLMULQDQ), (Ecx, 3, F::MONITOR), (Ecx, 5, F::VMX),
    (Ecx, 6, F::SMX), (Ecx, 9, F::SSSE3), (Ecx, 12, F::FMA), (Ecx, 13, F::CMPXCHG16B),
    (Ecx, 19, F::SSE4_1), (Ecx, 20, F::SSE4_2), (Ecx, 22, F::MOVBE), (Ecx, 23, F::POPCNT),
    (Ecx, 25, F::AES), (Ecx, 27, F::XSAVE), (Ecx, 28, F::AVX), (Ecx, 29, F::F16C),
    (Ecx, 30, F::RDRAND),
];

#[rustfmt::skip]
const LEAF_7_0: Rows = &[
    (Ebx, 0, F::FSGSBASE), (Ebx, 3, F::BMI1), (Ebx, 5, F::AVX2), (Ebx, 7, F::SMAP),
    (Ebx, 8, F::BMI2), (Ebx, 10, F::INVPCID), (Ebx, 11, F::RTM), (Ebx, 11, F::HLE_or_RTM),
    (Ebx, 14, F::MPX), (Ebx, 16, F::AVX512F), (Ebx, 17, F::AVX512DQ), (Ebx, 18, F::RDSEED),
    (Ebx, 19, F::ADX), (Ebx, 21, F::AVX512_IFMA), (Ebx, 23, F::CLFLUSHOPT), (Ebx, 24, F::CLWB),
    (Ebx, 26, F::AVX512PF), (Ebx, 27, F::AVX512ER), (Ebx, 28, F::AVX512CD), (Ebx, 29, F::SHA),
    (Ebx, 30, F::AVX512BW), (Ebx, 31, F::AVX512VL),
    (Ecx, 0, F::PREFETCHWT1), (Ecx, 1, F::AVX512_VBMI), (Ecx, 3, F::PKU), (Ecx, 5, F::WAITPKG),
    (Ecx, 6, F::AVX512_VBMI2), (Ecx, 7, F::CET_SS), (Ecx, 8, F::GFNI), (Ecx, 9, F::VAES),
    (Ecx, 10, F::VPCLMULQDQ), (Ecx, 11, F::AVX512_VNNI), (Ecx, 12, F::AVX512_BITALG),
    (Ecx, 14, F::AVX512_VPOPCNTDQ), (Ecx, 22, F::RDPID), (Ecx, 23, F::KL), (Ecx, 25, F::CLDEMOTE),
    (Ecx, 27, F::MOVDIRI), (Ecx, 28, F::MOVDIR64B), (Ecx, 29, F::ENQCMD),
    (Edx, 2, F::AVX512_4VNNIW), (Edx, 3, F::AVX512_4FMAPS), (Edx, 5, F::UINTR),
    (Edx, 8, F::AVX512_VP2INTERSECT), (Edx, 14, F::SERIALIZE), (Edx, 16, F::TSXLDTRK),
    (Edx, 20, F::CET_IBT), (Edx, 22, F::AMX_BF16), (Edx, 23, F::AVX512_FP16),
    (Edx, 24, F::AMX_TILE), (Edx, 25, F::AMX_INT8),
];

#[rustfmt::skip]
const LEAF_7_1: Rows = &[
    (Eax, 0, F::SHA512), (Eax, 1, F::SM3), (Eax, 2, F::SM4), (Eax, 3, F::RAO_INT),
    (Eax, 4, F::AVX_VNNI), (Eax, 5, F::AVX512_BF16), (Eax, 7, F::CMPCCXADD),
    (Eax, 21, F::AMX_FP16), (Eax, 23, F::AVX_IFMA), (Edx, 4, F::AVX_VNNI_INT8),
    (Edx, 5, F::AVX_NE_CONVERT), (Edx, 8, F::AMX_COMPLEX), (Edx, 10, F::AVX_VNNI_INT16),
];

#[rustfmt::skip]
const LEAF_13_1: Rows =
    &[(Eax, 0, F::XSAVEOPT), (Eax, 1, F::XSAVEC), (Eax, 3, F::XSAVES)];

#[rustfmt::skip]
const EXTENDED: Rows = &[
    (Ecx, 2, F::SVM), (Ecx, 5, F::LZCNT), (Ecx, 6, F::SSE4A), (Ecx, 8, F::PREFETCHW),
    (Ecx, 11, F::XOP), (Ecx, 15, F::LWP), (Ecx, 16, F::FMA4), (Ecx, 21, F::TBM),
    (Ecx, 29, F::MONITORX), (Edx, 27, F::RDTSCP), (Edx, 30, F::D3NOWEXT), (Edx, 31, F::D3NOW),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_standard_library() {
        let host = HostFeatures::detect();
        assert_eq!(host.has(F::AVX2), is_x86_feature_detected!("avx2"));
        assert_eq!(host.has(F::AVX512BW), is_x86_feature_detected!("avx512bw"));
        assert_eq!(host.has(F::SHA), is_x86_feature_detected!("sha"));
        assert_eq!(host.has(F::GFNI), is_x86_feature_detected!("gfni"));
        assert_eq!(host.has(F::LZCNT), is_x86_feature_detected!("lzcnt"));
        assert_eq!(host.has(F::MOVBE), is_x86_feature_detected!("movbe"));
        assert!(host.has_all(&[F::X64, F::SSE2]));
    }

    #[test]
    fn features_need_saved_registers() {
        let mut host = HostFeatures::detect();
        host.insert(F::AVX512F);
        host.insert(F::AVX2);
        host.remove_unsaved(0x7);
        assert!(!host.has(F::AVX512F) && host.has(F::AVX2));
        host.remove_unsaved(0x3);
        assert!(!host.has(F::AVX2) && host.has(F::SSE2));
    }
}
