//! naga's SPIR-V with `NoContraction` on every float operation, for drivers that contract or reassociate without it.

use naga::{
    back::spv::{Options, WriterFlags, write_vec},
    proc::{BoundsCheckPolicies, BoundsCheckPolicy},
    valid::{Capabilities, ValidationFlags, Validator},
};

// From the SPIR-V specification, 3.52 "Instructions": opcode in the low half of the first word, length in the high half.
const OP_EXT_INST_IMPORT: u32 = 11;
const OP_EXT_INST: u32 = 12;
const OP_TYPES: std::ops::RangeInclusive<u32> = 19..=33;
const OP_DECORATIONS: std::ops::RangeInclusive<u32> = 71..=72;
const OP_DECORATE: u32 = 71;
/// OpFNegate, OpFAdd, OpFSub, OpFMul, OpFDiv.
const FLOAT_OPERATIONS: [u32; 5] = [127, 129, 131, 133, 136];
/// GLSL.std.450 `Fma`.
const FMA: u32 = 50;
const NO_CONTRACTION: u32 = 42;
const HEADER: usize = 5;

/// Compiles WGSL and forbids its float operations to be merged or reordered. With `restrict`, indices beyond a buffer are
/// brought to its last element.
pub(crate) fn without_contraction(wgsl: &str, restrict: bool) -> Result<Vec<u32>, String> {
    let module = naga::front::wgsl::parse_str(wgsl).map_err(|e| e.emit_to_string(wgsl))?;
    let info = Validator::new(ValidationFlags::all(), Capabilities::FLOAT64 | Capabilities::SHADER_INT64)
        .validate(&module)
        .map_err(|e| e.emit_to_string(wgsl))?;
    let mut options = Options {
        lang_version: (1, 3),
        // The kernels keep their indices in range themselves, and their loops end.
        bounds_check_policies: BoundsCheckPolicies {
            buffer: if restrict { BoundsCheckPolicy::Restrict } else { BoundsCheckPolicy::Unchecked },
            ..BoundsCheckPolicies::default()
        },
        force_loop_bounding: false,
        emit_int_div_checks: false,
        ..Options::default()
    };
    options.flags -= WriterFlags::ADJUST_COORDINATE_SPACE;
    let words = write_vec(&module, &info, &options, None).map_err(|e| e.to_string())?;
    decorate(&words)
}

/// The instructions of a module, as opcode and words.
fn instructions(words: &[u32]) -> impl Iterator<Item = Result<(usize, u32, &[u32]), String>> {
    let mut at = HEADER;
    std::iter::from_fn(move || {
        let first = *words.get(at)?;
        let (opcode, len) = (first & 0xffff, (first >> 16) as usize);
        let place = at;
        at = if len == 0 { words.len() } else { at + len };
        Some(
            words
                .get(place..place + len.max(1))
                .filter(|_| len > 0)
                .map(|w| (place, opcode, w))
                .ok_or_else(|| format!("SPIR-V ends within the instruction at word {place}")),
        )
    })
}

fn decorate(words: &[u32]) -> Result<Vec<u32>, String> {
    let (mut results, mut annotations, mut glsl) = (Vec::new(), None, None);
    for instruction in instructions(words) {
        let (place, opcode, operands) = instruction?;
        // Decorations stand before the types.
        if annotations.is_none() && (OP_TYPES.contains(&opcode) || OP_DECORATIONS.contains(&opcode)) {
            annotations = Some(place);
        }
        if opcode == OP_EXT_INST_IMPORT {
            glsl = operands.get(1).copied();
        }
        let fma = opcode == OP_EXT_INST && operands.get(3).copied() == glsl && operands.get(4) == Some(&FMA);
        if FLOAT_OPERATIONS.contains(&opcode) || fma {
            results.push(*operands.get(2).ok_or("a SPIR-V operation without a result")?);
        }
    }
    let at = annotations.ok_or("SPIR-V without types")?;
    let mut out = words[..at].to_vec();
    out.extend(results.iter().flat_map(|&id| [3 << 16 | OP_DECORATE, id, NO_CONTRACTION]));
    out.extend_from_slice(&words[at..]);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shader::{Fma, Kernel};

    #[test]
    fn every_float_operation_is_decorated_once() {
        for fma in [Fma::Native, Fma::F64, Fma::Integer] {
            let words = without_contraction(&Kernel::GemmTiled.source(fma), false).unwrap();
            let (mut decorated, mut operations) = (Vec::new(), Vec::new());
            for instruction in instructions(&words) {
                let (_, opcode, w) = instruction.unwrap();
                if opcode == OP_DECORATE && w.get(2) == Some(&NO_CONTRACTION) {
                    decorated.push(w[1]);
                }
                if FLOAT_OPERATIONS.contains(&opcode) || (opcode == OP_EXT_INST && w.get(4) == Some(&FMA)) {
                    operations.push(w[2]);
                }
            }
            assert!(!operations.is_empty());
            assert_eq!(decorated, operations, "{fma:?}");
        }
    }

    #[test]
    fn broken_modules_are_refused() {
        assert!(decorate(&[0; HEADER]).is_err());
        assert!(decorate(&[0, 0, 0, 0, 0, 9 << 16 | 19]).is_err());
        assert!(decorate(&[0, 0, 0, 0, 0, 0]).is_err());
        assert!(without_contraction("fn", false).is_err());
    }
}
