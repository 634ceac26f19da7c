//! [`FormTable`]: every form in reach of a host, by family, and every refused one with its reason.

use std::collections::BTreeMap;

use iced_x86::{Code, Encoder, Instruction, InstructionInfoFactory};

use super::HostFeatures;
use super::family::Family;
use super::form::{Form, FormId, OperandForm};
use super::operand::{Operand, operand_forms};
use super::refused::{Refusal, may_be_hidden, refusal};
use super::template::Template;
use crate::guest::{Vendor, decoder_of};

const NARROW: &str = "goes to the lowest 64 KiB, where a program has nothing (AMD)";
const OTHER_ENCODING: &str = "another encoding, which decodes to a form that is generated";
const OTHER_OPERANDS: &str = "has operands that 64-bit user code does not have";

/// No form has this number.
const NO_FORM: u16 = u16::MAX;

/// See the file's head.
#[derive(Debug)]
pub(super) struct FormTable {
    pub templates: Vec<Template>,
    pub forms: Vec<Form>,
    pub refused: BTreeMap<&'static str, Vec<Code>>,
    /// By family: the templates in it, and those of them that every emulator has.
    members: Vec<[Vec<u16>; 2]>,
    /// By opcode and operand form: the form, or [`NO_FORM`]. Small, since each instruction that is made
    /// reads another part of it.
    ids: Vec<[u16; 3]>,
    /// By opcode: refused.
    refusals: Vec<Option<Refusal>>,
    /// Opcodes of the host that are refused, which are drawn like any other and then counted.
    pub refused_codes: Vec<Code>,
}

impl FormTable {
    pub(super) fn new(host: &HostFeatures) -> Self {
        let mut table = Self {
            templates: Vec::new(),
            forms: Vec::new(),
            refused: BTreeMap::new(),
            members: vec![[Vec::new(), Vec::new()]; Family::ALL.len()],
            ids: vec![[NO_FORM; 3]; Code::values().len()],
            refusals: vec![None; Code::values().len()],
            refused_codes: Vec::new(),
        };
        let mut information = InstructionInfoFactory::new();
        for code in Code::values() {
            let info = code.op_code();
            let exists = info.is_instruction() && info.mode64() && info.long_mode();
            if exists && (host.has_all(code.cpuid_features()) || may_be_hidden(code)) {
                match refusal(code, info, host) {
                    Some(refusal) => table.refuse(code, refusal),
                    None => table.add(code, host.vendor(), &mut information),
                }
            }
        }
        table
    }

    fn refuse(&mut self, code: Code, refusal: Refusal) {
        self.refused.entry(refusal.reason).or_default().push(code);
        self.refusals[code as usize] = Some(refusal);
        self.refused_codes.push(code);
    }

    fn add(&mut self, code: Code, vendor: Vendor, information: &mut InstructionInfoFactory) {
        let info = code.op_code();
        if info.amd_decoder64() && !info.intel_decoder64() {
            // Raw code has them all the same.
            self.refused.entry(NARROW).or_default().push(code);
            return;
        }
        for operand_form in operand_forms(info.op_kinds(), info.can_broadcast()) {
            let id = FormId(self.templates.len() as u16);
            let Some(template) = Template::new(code, *operand_form, information) else {
                self.refused.entry(OTHER_OPERANDS).or_default().push(code);
                continue;
            };
            if !decodes_back(&template, vendor) {
                self.refused.entry(OTHER_ENCODING).or_default().push(code);
                continue;
            }
            self.ids[code as usize][*operand_form as usize] = id.0;
            self.forms.push(template.form());
            let members = &mut self.members[template.family as usize];
            members[0].push(id.0);
            if template.baseline {
                members[1].push(id.0);
            }
            self.templates.push(template);
        }
    }

    /// The templates of a family, only those that every emulator has if `baseline`.
    pub(super) fn members(&self, family: Family, baseline: bool) -> &[u16] {
        &self.members[family as usize][usize::from(baseline)]
    }

    /// The families that have a template.
    pub(super) fn families(&self, baseline: bool) -> Vec<Family> {
        let all = Family::ALL.iter().copied();
        all.filter(|family| !self.members(*family, baseline).is_empty()).collect()
    }

    /// The number of the form of an instruction, if it is one of those in reach.
    pub(super) fn id_of(&self, form: Form) -> Option<FormId> {
        let id = self.ids[form.code as usize][form.operands as usize];
        (id != NO_FORM).then_some(FormId(id))
    }

    /// The template of an opcode with registers or memory.
    pub(super) fn template(&self, code: Code, operands: OperandForm) -> Option<&Template> {
        self.id_of(Form { code, operands }).map(|id| &self.templates[usize::from(id.0)])
    }

    /// Why an opcode is refused.
    pub(super) fn refusal(&self, code: Code) -> Option<Refusal> {
        self.refusals[code as usize]
    }
}

/// Whether an encoder that was given a sample gives bytes that mean the same opcode.
fn decodes_back(template: &Template, vendor: Vendor) -> bool {
    let mut encoder = Encoder::new(64);
    let mut sample = template.sample();
    if template.operands().contains(&Operand::Target) {
        sample.set_near_branch64(SAMPLE_ADDRESS + 0x20);
    }
    if encoder.encode(&sample, SAMPLE_ADDRESS).is_err() {
        return false;
    }
    let bytes = encoder.take_buffer();
    decode(&bytes, vendor).code() == template.code
}

const SAMPLE_ADDRESS: u64 = 0x1_4000_0000;

fn decode(bytes: &[u8], vendor: Vendor) -> Instruction {
    decoder_of(vendor, bytes, SAMPLE_ADDRESS).decode()
}
