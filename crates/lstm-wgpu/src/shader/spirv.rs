//! Compiles WGSL to SPIR-V with `NoContraction` on every float operation, for drivers that would otherwise contract or
//! reassociate these operations.

use naga::{
    back::spv::{Options, WriterFlags, write_vec},
    proc::{BoundsCheckPolicies, BoundsCheckPolicy},
    valid::{Capabilities, ValidationFlags, Validator},
};

// From the SPIR-V specification, section 3.52 "Instructions". The first word of an instruction holds the opcode in its
// low half and the number of words in its high half.
const OP_EXT_INST_IMPORT: u32 = 11;
pub(super) const OP_EXT_INST: u32 = 12;
const TYPE_OPCODES: std::ops::RangeInclusive<u32> = 19..=33;
const DECORATION_OPCODES: std::ops::RangeInclusive<u32> = 71..=72;
pub(super) const OP_DECORATE: u32 = 71;
/// Opcodes of OpFNegate, OpFAdd, OpFSub, OpFMul and OpFDiv.
pub(super) const FLOAT_OPCODES: [u32; 5] = [127, 129, 131, 133, 136];
/// Instruction number of `Fma` in the extended instruction set GLSL.std.450.
pub(super) const GLSL_FMA: u32 = 50;
/// Number of the decoration `NoContraction`.
pub(super) const NO_CONTRACTION: u32 = 42;
/// Number of words in a SPIR-V module before the first instruction.
pub(super) const HEADER_WORDS: usize = 5;

/// Compiles WGSL to SPIR-V whose float operations a driver must not merge or reorder. With `clamp_indices`, indices
/// beyond a buffer access its last element.
pub(super) fn compile_without_contraction(wgsl: &str, clamp_indices: bool) -> Result<Vec<u32>, String> {
    let module = naga::front::wgsl::parse_str(wgsl).map_err(|e| e.emit_to_string(wgsl))?;
    let info = Validator::new(ValidationFlags::all(), Capabilities::FLOAT64 | Capabilities::SHADER_INT64)
        .validate(&module)
        .map_err(|e| e.emit_to_string(wgsl))?;
    let mut options = Options {
        lang_version: (1, 3),
        // The kernels check their own indices, and their loops terminate.
        bounds_check_policies: BoundsCheckPolicies {
            buffer: if clamp_indices { BoundsCheckPolicy::Restrict } else { BoundsCheckPolicy::Unchecked },
            ..BoundsCheckPolicies::default()
        },
        force_loop_bounding: false,
        emit_int_div_checks: false,
        ..Options::default()
    };
    options.flags -= WriterFlags::ADJUST_COORDINATE_SPACE;
    let words = write_vec(&module, &info, &options, None).map_err(|e| e.to_string())?;
    add_no_contraction(&words)
}

/// Iterates over the instructions of a module. Yields the position, the opcode and the words of each.
pub(super) fn instructions(words: &[u32]) -> impl Iterator<Item = Result<(usize, u32, &[u32]), String>> {
    let mut next_position = HEADER_WORDS;
    std::iter::from_fn(move || {
        let first_word = *words.get(next_position)?;
        let (opcode, len) = (first_word & 0xffff, (first_word >> 16) as usize);
        let position = next_position;
        next_position = if len == 0 { words.len() } else { next_position + len };
        Some(
            words
                .get(position..position + len.max(1))
                .filter(|_| len > 0)
                .map(|w| (position, opcode, w))
                .ok_or_else(|| format!("SPIR-V is truncated in the instruction at word {position}")),
        )
    })
}

/// Adds a `NoContraction` decoration for every float operation of a module.
pub(super) fn add_no_contraction(words: &[u32]) -> Result<Vec<u32>, String> {
    let (mut float_result_ids, mut annotations_position, mut glsl_set_id) = (Vec::new(), None, None);
    for instruction in instructions(words) {
        let (position, opcode, operands) = instruction?;
        // Decorations precede types in a module.
        if annotations_position.is_none() && (TYPE_OPCODES.contains(&opcode) || DECORATION_OPCODES.contains(&opcode)) {
            annotations_position = Some(position);
        }
        if opcode == OP_EXT_INST_IMPORT {
            glsl_set_id = operands.get(1).copied();
        }
        let is_fma =
            opcode == OP_EXT_INST && operands.get(3).copied() == glsl_set_id && operands.get(4) == Some(&GLSL_FMA);
        if FLOAT_OPCODES.contains(&opcode) || is_fma {
            float_result_ids.push(*operands.get(2).ok_or("a SPIR-V float operation has no result")?);
        }
    }
    let insert_position = annotations_position.ok_or("the SPIR-V module has no types")?;
    let mut out = words[..insert_position].to_vec();
    out.extend(float_result_ids.iter().flat_map(|&id| [3 << 16 | OP_DECORATE, id, NO_CONTRACTION]));
    out.extend_from_slice(&words[insert_position..]);
    Ok(out)
}
