//! [`Form`]: mnemonic × operand form of an instruction, the unit in which coverage is counted.

use std::fmt;

use iced_x86::{Code, Instruction, OpKind};
use serde::{Deserialize, Serialize};

/// Index of a form in [`super::Generator::forms`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FormId(pub u16);

/// What stands where an instruction has a choice between a register and memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OperandForm {
    /// Only registers and immediates.
    Register,
    /// Memory of the full size.
    Memory,
    /// One element of memory, broadcast.
    Broadcast,
}

/// Mnemonic × operand form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Form {
    /// Which opcode.
    pub code: Code,
    /// Which of its operand forms.
    pub operands: OperandForm,
}

/// The form of a decoded instruction.
#[must_use]
pub fn instruction_form(instruction: &Instruction) -> Form {
    let memory =
        (0..instruction.op_count()).any(|index| instruction.op_kind(index) == OpKind::Memory);
    let operands = match (instruction.is_broadcast(), memory) {
        (true, _) => OperandForm::Broadcast,
        (false, true) => OperandForm::Memory,
        (false, false) => OperandForm::Register,
    };
    Form { code: instruction.code(), operands }
}

impl fmt::Display for Form {
    /// Such as `add r32, m32`, `vaddps zmm1 {k1}{z}, zmm2, m32bcst`. Two encodings of one form (as
    /// of `add r32, r32`) have the same text.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.code.op_code().instruction_string();
        let (mnemonic, operands) = text.split_once(' ').unwrap_or((text, ""));
        formatter.write_str(&mnemonic.to_ascii_lowercase())?;
        for (index, operand) in operands.split(", ").filter(|text| !text.is_empty()).enumerate() {
            let operand = self.choose_operand(operand).to_ascii_lowercase();
            write!(formatter, "{}{operand}", if index == 0 { " " } else { ", " })?;
        }
        Ok(())
    }
}

impl Form {
    /// `r/m32` is `r32` or `m32`; `xmm2/m128/m32bcst` is one of its parts, with what follows it.
    fn choose_operand(self, text: &str) -> String {
        let Some((first, rest)) = text.split_once('/') else { return text.to_owned() };
        let end = rest.find([' ', '{']).unwrap_or(rest.len());
        let (rest, decoration) = rest.split_at(end);
        // Embedded rounding exists for registers only.
        let decoration = if self.operands == OperandForm::Register { decoration } else { "" };
        let (memory, broadcast) = rest.split_once('/').unwrap_or((rest, rest));
        let chosen = match self.operands {
            OperandForm::Register if first == "r" => memory.replacen('m', "r", 1),
            OperandForm::Register => first.to_owned(),
            OperandForm::Memory => memory.to_owned(),
            OperandForm::Broadcast => broadcast.to_owned(),
        };
        chosen + decoration
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_names_one_operand_form() {
        let text = |code, operands| Form { code, operands }.to_string();
        assert_eq!(text(Code::Add_r32_rm32, OperandForm::Register), "add r32, r32");
        assert_eq!(text(Code::Add_r32_rm32, OperandForm::Memory), "add r32, m32");
        let vector = Code::EVEX_Vaddps_zmm_k1z_zmm_zmmm512b32_er;
        assert_eq!(text(vector, OperandForm::Register), "vaddps zmm1 {k1}{z}, zmm2, zmm3{er}");
        assert_eq!(text(vector, OperandForm::Memory), "vaddps zmm1 {k1}{z}, zmm2, m512");
        assert_eq!(text(vector, OperandForm::Broadcast), "vaddps zmm1 {k1}{z}, zmm2, m32bcst");
        assert_eq!(text(Code::Cdq, OperandForm::Register), "cdq");
    }
}
