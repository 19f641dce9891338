use lstm_core::quantized::{INT8, INT12};
use naga::valid::{Capabilities, ValidationFlags, Validator};

use super::{parameters::ParameterDefinition, *};
use crate::device::Fma;

/// All kernels. Kernels of layers are listed with all combinations of options and several tilings.
fn kernels() -> Vec<Kernel> {
    let tilings = [
        StepTiling { units: 32, lanes: 8, rows: 4 },
        StepTiling { units: 128, lanes: 2, rows: 1 },
        StepTiling { units: 64, lanes: 1, rows: 4 },
    ];
    let mut all_kernels = vec![
        Kernel::FloatBehavior,
        Kernel::FmaSamples,
        Kernel::MulAdd,
        Kernel::SelectBetween,
        Kernel::Copy,
        Kernel::GemmDirect,
        Kernel::GemmBlocked,
        Kernel::GemmTiled,
        Kernel::QuantizeRows { max: INT8.max },
        Kernel::QuantizeRows { max: INT12.max },
        Kernel::GemmQuantized,
        Kernel::GemmQuantizedBlocked,
        Kernel::Project,
    ];
    all_kernels.extend([Unary::Snap, Unary::Sigmoid, Unary::Tanh, Unary::Clip].map(Kernel::Unary));
    for tiling in tilings {
        all_kernels.push(Kernel::StateGradient(tiling));
        for flags in 0..3 * 16 {
            let flag = |k: u32| ((flags / 3) >> k) & 1 == 1;
            let options =
                KernelOptions { cell_code: flags % 3, coupled: flag(0), has_clip: flag(1), has_projection: flag(2) };
            all_kernels.push(Kernel::Forward { options, train: flag(3), tiling });
            all_kernels.push(Kernel::Backward { options, tiling });
        }
    }
    all_kernels
}

#[test]
fn naga_validates_all_shaders() {
    for kernel in kernels() {
        for fma in [Fma::Native, Fma::EmulatedInF64, Fma::EmulatedInIntegers] {
            let text = kernel.wgsl_source(fma);
            let module = naga::front::wgsl::parse_str(&text)
                .unwrap_or_else(|e| panic!("{kernel:?}, {fma:?}: {}", e.emit_to_string(&text)));
            let capabilities = match fma {
                Fma::EmulatedInF64 => Capabilities::FLOAT64 | Capabilities::SHADER_INT64,
                _ => Capabilities::empty(),
            };
            Validator::new(ValidationFlags::all(), capabilities)
                .validate(&module)
                .unwrap_or_else(|e| panic!("{kernel:?}, {fma:?}: {}", e.emit_to_string(&text)));
            let (entry_point, buffer_writes) = (&module.entry_points[0], kernel.buffer_writes());
            assert_eq!(entry_point.workgroup_size.iter().product::<u32>(), kernel.workgroup_size(), "{kernel:?}");
            let mut uniform_count = 0;
            for (_, variable) in module.global_variables.iter() {
                if variable.space == naga::AddressSpace::Uniform {
                    uniform_count += 1;
                    assert_eq!(wgsl_layout(&module, variable), rust_layout(kernel), "{kernel:?}");
                }
                if let naga::AddressSpace::Storage { access } = variable.space {
                    let binding = variable.binding.expect("storage buffers have bindings").binding as usize;
                    let is_written = access.contains(naga::StorageAccess::STORE);
                    assert_eq!(is_written, buffer_writes[binding], "{kernel:?}, binding {binding}");
                }
            }
            assert_eq!(uniform_count, 1, "{kernel:?}");
            if fma != Fma::Native {
                assert!(!text.contains("return fma("), "{kernel:?}");
            }
        }
    }
}

/// Size of a uniform in bytes, and the names and offsets of its members, as naga lays it out.
fn wgsl_layout(module: &naga::Module, uniform: &naga::GlobalVariable) -> (usize, Vec<(String, usize)>) {
    match &module.types[uniform.ty].inner {
        naga::TypeInner::Struct { members, span } => {
            let member = |m: &naga::StructMember| (m.name.clone().unwrap_or_default(), m.offset as usize);
            (*span as usize, members.iter().map(member).collect())
        }
        other => panic!("expected a struct of parameters, found {other:?}"),
    }
}

/// Size of the Rust parameters in bytes, and the names and offsets of their members.
fn rust_layout(kernel: Kernel) -> (usize, Vec<(String, usize)>) {
    let ParameterDefinition { size, members, .. } = kernel.parameters();
    (size, members.iter().map(|&(name, offset)| (name.to_owned(), offset)).collect())
}

/// Outside of the definition of `FMA`, no shader calls a function whose accuracy WGSL does not specify exactly.
#[test]
fn shaders_call_no_functions_of_unspecified_accuracy() {
    // This kernel tests the adapter's own fma.
    for kernel in kernels().into_iter().filter(|kernel| *kernel != Kernel::FloatBehavior) {
        let text = kernel.wgsl_source(Fma::EmulatedInIntegers);
        let code = text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>();
        let text = code.join("\n");
        let calls = text.split(|c: char| !(c.is_alphanumeric() || "_(/=".contains(c)));
        for name in calls.filter_map(|call| call.split_once('(').map(|(name, _)| name)) {
            let inexact_functions =
                ["exp", "exp2", "log", "tanh", "sqrt", "pow", "fma", "dot", "mix", "inverseSqrt", "smoothstep"];
            assert!(!inexact_functions.contains(&name), "{kernel:?} calls {name}");
        }
    }
}

#[cfg(not(target_arch = "wasm32"))]
#[test]
fn every_float_operation_is_decorated_once() {
    use super::spirv::{FLOAT_OPCODES, GLSL_FMA, NO_CONTRACTION, OP_DECORATE, OP_EXT_INST};
    for fma in [Fma::Native, Fma::EmulatedInF64, Fma::EmulatedInIntegers] {
        let words = spirv::compile_without_contraction(&Kernel::GemmTiled.wgsl_source(fma), false).unwrap();
        let (mut decorated_ids, mut operation_ids) = (Vec::new(), Vec::new());
        for instruction in spirv::instructions(&words) {
            let (_, opcode, w) = instruction.unwrap();
            if opcode == OP_DECORATE && w.get(2) == Some(&NO_CONTRACTION) {
                decorated_ids.push(w[1]);
            }
            if FLOAT_OPCODES.contains(&opcode) || (opcode == OP_EXT_INST && w.get(4) == Some(&GLSL_FMA)) {
                operation_ids.push(w[2]);
            }
        }
        assert!(!operation_ids.is_empty());
        assert_eq!(decorated_ids, operation_ids, "{fma:?}");
    }
}

#[cfg(not(target_arch = "wasm32"))]
#[test]
fn rejects_malformed_spirv_and_wgsl() {
    use super::spirv::{HEADER_WORDS, add_no_contraction, compile_without_contraction};
    assert!(add_no_contraction(&[0; HEADER_WORDS]).is_err());
    assert!(add_no_contraction(&[0, 0, 0, 0, 0, 9 << 16 | 19]).is_err());
    assert!(add_no_contraction(&[0, 0, 0, 0, 0, 0]).is_err());
    assert!(compile_without_contraction("fn", false).is_err());
}

#[cfg(not(target_arch = "wasm32"))]
#[test]
fn dispatch_rejects_parameters_of_another_kernel() {
    let Some(wgpu) = crate::testing::open_adapter(false) else { return };
    let x = wgpu.gpu().allocate("test", 1).unwrap();
    let y = wgpu.gpu().allocate("test", 1).unwrap();
    let result = wgpu.gpu().bind_and_dispatch("test", Kernel::Copy, &[&x, &y], &ProbeParameters { len: 1 }, 1);
    assert!(result.unwrap_err().to_string().contains("parameters belong to another kernel"));
}
