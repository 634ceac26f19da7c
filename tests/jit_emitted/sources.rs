//! Guest code to translate: programs of the generator, random bytes, and dense runs of instructions
//! whose memory operands share a few registers, which is where addresses are known without a probe.

use arbitrary::Unstructured;
use iced_x86::{Decoder, DecoderOptions};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use tregion::generate::{Generator, HostFeatures, choices};

/// Guest code at an address.
pub(crate) struct Source {
    pub(crate) pc: u64,
    pub(crate) code: Vec<u8>,
}

pub(crate) struct Sources {
    generator: Generator,
    pub(crate) random: Xoshiro256PlusPlus,
    seed: u64,
    bytes: Vec<u8>,
}

impl Sources {
    pub(crate) fn new(seed: u64) -> Self {
        let generator = Generator::new(&HostFeatures::detect());
        let random = Xoshiro256PlusPlus::seed_from_u64(seed);
        Self { generator, random, seed, bytes: Vec::new() }
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.random.next_u64() % bound
    }

    /// Source number `index`.
    pub(crate) fn next(&mut self, index: u64) -> Source {
        match index % 4 {
            0 | 1 => self.program(index),
            2 => self.dense(),
            _ => self.noise(),
        }
    }

    fn program(&mut self, index: u64) -> Source {
        choices(self.seed, index, &mut self.bytes);
        let mut choices = Unstructured::new(&self.bytes);
        let program = match index % 8 {
            0 => self.generator.raw(&mut choices),
            _ => self.generator.program(&mut choices),
        };
        let state = &program.case.state;
        let code = program.case.initial_bytes(tregion::guest::GuestAddress(state.rip));
        Source { pc: state.rip, code: code.unwrap_or(&[0xf4]).to_vec() }
    }

    /// Random bytes at a random address, as many as there are to the end of the page.
    fn noise(&mut self) -> Source {
        let pc = self.address();
        let mut code = vec![0; (4096 - pc % 4096) as usize % 1024 + 1];
        self.random.fill_bytes(&mut code);
        Source { pc, code }
    }

    fn address(&mut self) -> u64 {
        let page = match self.below(5) {
            0 => 0,
            1 => (1 << 46) - 4096,
            2 => 0xffff_ffff_8000_0000,
            3 => self.below(1 << 34) << 12,
            _ => 0x40_0000,
        };
        let offset = match self.below(3) {
            0 => 4095 - self.below(64),
            _ => self.below(4096),
        };
        page + offset
    }

    /// Instructions with operands of one or two base registers.
    fn dense(&mut self) -> Source {
        let bases = [self.below(16) as u8, self.below(16) as u8];
        let mut code = Vec::new();
        let length = [40, 40, 3, 6][self.below(4) as usize];
        for _ in 0..length {
            let instruction = self.instruction(bases);
            code.extend(instruction);
            // Branches forward, some right behind each other, over whatever comes next.
            for _ in 0..[0, 0, 0, 0, 0, 1, 1, 3][self.below(8) as usize] {
                code.extend([0x70 | self.below(16) as u8, self.below(24) as u8]);
            }
        }
        // Short ones become loops.
        let back = -(code.len() as i32) - 6;
        code.extend([0x0f, 0x80 | self.below(16) as u8]);
        code.extend(back.to_le_bytes());
        Source { pc: self.address(), code }
    }

    /// Bytes that decode to something, with few that end a block.
    fn instruction(&mut self, bases: [u8; 2]) -> Vec<u8> {
        loop {
            let bytes = self.candidate(bases);
            let decoded = Decoder::with_ip(64, &bytes, 0, DecoderOptions::NONE).decode();
            let goes_on = decoded.flow_control() == iced_x86::FlowControl::Next;
            if !decoded.is_invalid() && (goes_on || self.below(16) == 0) {
                return bytes[..decoded.len()].to_vec();
            }
        }
    }

    fn candidate(&mut self, bases: [u8; 2]) -> Vec<u8> {
        const PREFIXES: [u8; 8] = [0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x64, 0x65, 0x2e];
        const WELL_KNOWN: [u8; 32] = [
            0x01, 0x03, 0x29, 0x31, 0x39, 0x50, 0x54, 0x58, 0x5c, 0x5e, 0x63, 0x81, 0x83, 0x86,
            0x87, 0x88, 0x89, 0x8a, 0x8b, 0x8d, 0x8f, 0x91, 0x99, 0x9c, 0x9d, 0xa4, 0xc9, 0xd7,
            0xf6, 0xf7, 0xfe, 0xff,
        ];
        let base = bases[self.below(2) as usize];
        let rex = 0x40 | self.below(16) as u8 & 0xe | base >> 3;
        let mut bytes = Vec::new();
        for _ in 0..[0, 0, 0, 0, 1, 1, 2, 3][self.below(8) as usize] {
            bytes.push(PREFIXES[self.below(8) as usize]);
        }
        if self.below(16) == 0 {
            bytes.insert(0, rex);
        }
        if self.below(4) != 0 {
            bytes.push(rex);
        }
        match self.below(8) {
            0 => bytes.extend([0x0f, self.below(256) as u8]),
            1 => bytes
                .extend([0x0f, [0xa3, 0xab, 0xb0, 0xb1, 0xba, 0xc0, 0xc7][self.below(7) as usize]]),
            2 => bytes.extend([0x0f, [0x38, 0x3a][self.below(2) as usize], self.below(256) as u8]),
            3 => bytes.push(self.below(256) as u8),
            _ => bytes.push(WELL_KNOWN[self.below(32) as usize]),
        }
        let modrm = self.random.next_u32() as u8;
        bytes.push(if modrm >> 6 == 3 { modrm } else { modrm & 0xf8 | base & 7 });
        let mut rest = [0; 12];
        self.random.fill_bytes(&mut rest);
        // An index or none, and the base again.
        rest[0] = rest[0] & 0xf8 | base & 7;
        bytes.extend(rest);
        bytes
    }
}
