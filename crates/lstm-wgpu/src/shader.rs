//! The kernels, and how their WGSL is put together: constants from `lstm_core::arithmetic`, one of three definitions of
//! `FMA`, the arithmetic, the parameters, then the kernel's own files.

use std::fmt::Write;

use lstm_core::{CellKind, LayerSpec, arithmetic as a};

use crate::parameters::{self, Definition, Parameters};

/// How a shader gets its fused multiply-add.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fma {
    /// The adapter's own.
    Native,
    /// Emulated in binary64.
    F64,
    /// Emulated with integers.
    Integer,
}

/// How the adapter is brought to compute the specified bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mode {
    /// Where fma comes from.
    pub fma: Fma,
    /// Whether shaders are handed over as SPIR-V in which contraction and reassociation are forbidden.
    pub no_contraction: bool,
}

/// An operation on each element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Unary {
    Snap,
    Sigmoid,
    Tanh,
    Clip,
}

/// How a step's product is spread; see `product.wgsl`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Spread {
    /// Units of a workgroup.
    pub(crate) units: u32,
    /// Invocations that share a unit.
    pub(crate) lanes: u32,
    /// Sequences of a workgroup.
    pub(crate) rows: u32,
}

/// What of a layer's options a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Options {
    cell: u32,
    coupled: bool,
    clipped: bool,
    projected: bool,
}

impl Options {
    pub(crate) fn of(spec: &LayerSpec) -> Self {
        Options {
            cell: match spec.cell {
                CellKind::Fused | CellKind::Unfused => 0,
                CellKind::PeepholeDense => 1,
                CellKind::PeepholeDiagonal => 2,
            },
            coupled: spec.coupled,
            clipped: spec.clip.is_some(),
            projected: spec.proj_size.is_some(),
        }
    }
}

/// A kernel: a pipeline is made of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kernel {
    Facts,
    Fma,
    Unary(Unary),
    MulAdd,
    Within,
    Copy,
    GemmDirect,
    GemmBlocked,
    GemmTiled,
    Forward { options: Options, train: bool, spread: Spread },
    Project,
    Backward { options: Options, spread: Spread },
    StateGradient(Spread),
}

/// One entry per storage buffer: whether it is written.
type Access = &'static [bool];

impl Kernel {
    /// Its files, below the arithmetic, and the access to its storage buffers.
    fn parts(self) -> (&'static [&'static str], Access) {
        match self {
            Kernel::Facts => (&[include_str!("../shaders/facts.wgsl")], &[false, true]),
            Kernel::Fma => (&[include_str!("../shaders/fma_of.wgsl")], &[false, true]),
            Kernel::Unary(_) => (&[include_str!("../shaders/unary.wgsl")], &[false, true]),
            Kernel::MulAdd => (&[include_str!("../shaders/mul_add.wgsl")], &[false, false, false, true]),
            Kernel::Within => (&[include_str!("../shaders/within.wgsl")], &[false, false, false, false, true]),
            Kernel::Copy => (&[include_str!("../shaders/copy.wgsl")], &[false, true]),
            Kernel::GemmDirect => (
                &[include_str!("../shaders/gemm_interface.wgsl"), include_str!("../shaders/gemm_direct.wgsl")],
                &[false, false, false, true],
            ),
            Kernel::GemmBlocked => (
                &[include_str!("../shaders/gemm_interface.wgsl"), include_str!("../shaders/gemm_blocked.wgsl")],
                &[false, false, false, true],
            ),
            Kernel::GemmTiled => (
                &[include_str!("../shaders/gemm_interface.wgsl"), include_str!("../shaders/gemm_tiled.wgsl")],
                &[false, false, false, true],
            ),
            Kernel::Forward { .. } => (
                &[include_str!("../shaders/product.wgsl"), include_str!("../shaders/forward.wgsl")],
                &[true, false, true, true, false, false],
            ),
            Kernel::Project => (&[include_str!("../shaders/project.wgsl")], &[false, false, true, true, false]),
            Kernel::Backward { .. } => (
                &[
                    include_str!("../shaders/product.wgsl"),
                    include_str!("../shaders/backward_interface.wgsl"),
                    include_str!("../shaders/backward.wgsl"),
                ],
                &[false, false, false, false, true, true, false, false],
            ),
            Kernel::StateGradient(_) => (
                &[
                    include_str!("../shaders/product.wgsl"),
                    include_str!("../shaders/backward_interface.wgsl"),
                    include_str!("../shaders/state_gradient.wgsl"),
                ],
                &[false, false, false, true, true, false],
            ),
        }
    }

    /// The access to its storage buffers.
    pub(crate) fn access(self) -> Access {
        self.parts().1
    }

    /// How it sees its parameters.
    pub(crate) fn parameters(self) -> Definition {
        match self {
            Kernel::Facts | Kernel::Fma => parameters::Length::DEFINITION,
            Kernel::Unary(_) => parameters::UnaryParameters::DEFINITION,
            Kernel::MulAdd => parameters::MulAddParameters::DEFINITION,
            Kernel::Within => parameters::WithinParameters::DEFINITION,
            Kernel::Copy => parameters::Copy::DEFINITION,
            Kernel::GemmDirect | Kernel::GemmBlocked | Kernel::GemmTiled => parameters::Gemm::DEFINITION,
            Kernel::Forward { .. } => parameters::Steps::DEFINITION,
            Kernel::Project => parameters::Project::DEFINITION,
            Kernel::Backward { .. } | Kernel::StateGradient(_) => parameters::BackwardSteps::DEFINITION,
        }
    }

    /// Invocations of a workgroup.
    pub(crate) fn workgroup(self) -> u32 {
        match self {
            Kernel::Facts => 1,
            Kernel::GemmDirect | Kernel::GemmBlocked | Kernel::Project | Kernel::Fma => 64,
            Kernel::Forward { spread, .. } | Kernel::Backward { spread, .. } | Kernel::StateGradient(spread) => {
                spread.units * spread.lanes
            }
            _ => 256,
        }
    }

    /// The whole shader.
    pub(crate) fn source(self, fma: Fma) -> String {
        let mut text = constants();
        match self {
            Kernel::Unary(operation) => constant(&mut text, "OPERATION", operation as u32),
            Kernel::Forward { options, train, spread } => {
                flags(&mut text, options);
                text.push_str(&format!("const TRAIN: bool = {train};\n"));
                sizes(&mut text, spread);
            }
            Kernel::Backward { options, spread } => {
                flags(&mut text, options);
                sizes(&mut text, spread);
            }
            Kernel::StateGradient(spread) => sizes(&mut text, spread),
            _ => {}
        }
        text.push_str(match fma {
            Fma::Native => include_str!("../shaders/fma_native.wgsl"),
            Fma::F64 => include_str!("../shaders/fma_f64.wgsl"),
            Fma::Integer => include_str!("../shaders/fma_integer.wgsl"),
        });
        text.push_str(match fma {
            Fma::Native => "fn FMA4(a: f32, b: vec4<f32>, c: vec4<f32>) -> vec4<f32> { return fma(vec4(a), b, c); }\n",
            _ => {
                "fn FMA4(a: f32, b: vec4<f32>, c: vec4<f32>) -> vec4<f32> {\n    \
                 return vec4(FMA(a, b.x, c.x), FMA(a, b.y, c.y), FMA(a, b.z, c.z), FMA(a, b.w, c.w));\n}\n"
            }
        });
        text.push_str(include_str!("../shaders/arithmetic.wgsl"));
        text.push_str(self.parameters().wgsl);
        for part in self.parts().0 {
            text.push_str(part);
        }
        text
    }
}

fn constant(text: &mut String, name: &str, value: u32) {
    let _ = writeln!(text, "const {name}: u32 = {value}u;");
}

fn flags(text: &mut String, Options { cell, coupled, clipped, projected }: Options) {
    constant(text, "CELL", cell);
    constant(text, "DENSE", 1);
    constant(text, "DIAGONAL", 2);
    for (name, value) in [("COUPLED", coupled), ("CLIPPED", clipped), ("PROJECTED", projected)] {
        let _ = writeln!(text, "const {name}: bool = {value};");
    }
}

fn sizes(text: &mut String, Spread { units, lanes, rows }: Spread) {
    constant(text, "UNITS", units);
    constant(text, "LANES", lanes);
    constant(text, "ROWS", rows);
}

/// The constants of the arithmetic, and its polynomials.
fn constants() -> String {
    let mut text = String::new();
    constant(&mut text, "ABSENT", parameters::ABSENT);
    constant(&mut text, "ROW", parameters::ROW);
    constant(&mut text, "BLOCK", a::BLOCK as u32);
    constant(&mut text, "SNAP_BITS", a::SNAP_BITS);
    constant(&mut text, "MAGNITUDE_BITS", a::MAGNITUDE_BITS);
    constant(&mut text, "SIGN_BIT", !a::MAGNITUDE_BITS);
    constant(&mut text, "INFINITY_BITS", f32::INFINITY.to_bits());
    constant(&mut text, "SPLIT_MASK", a::SPLIT_MASK);
    constant(&mut text, "TANH_LINEAR_BITS", a::TANH_LINEAR_BITS);
    for (name, value) in [
        ("MAGIC", a::MAGIC),
        ("LOG2_E", a::LOG2_E),
        ("LN2_HIGH", a::LN2_HIGH),
        ("LN2_LOW", a::LN2_LOW),
        ("SIGMOID_MAX", a::SIGMOID_MAX),
        ("TANH_MAX", a::TANH_MAX),
    ] {
        // Rust prints the shortest decimal that reads back as the same float.
        let _ = writeln!(text, "const {name}: f32 = {value:e}f;");
    }
    polynomial(&mut text, "exp_poly", &a::EXP);
    polynomial(&mut text, "exp_twice_poly", &a::EXP_TWICE);
    polynomial(&mut text, "sigmoid_poly", &a::SIGMOID);
    polynomial(&mut text, "tanh_poly", &a::TANH);
    text
}

/// Horner's scheme, from the highest coefficient.
fn polynomial(text: &mut String, name: &str, table: &[f32]) {
    let (last, rest) = table.split_last().expect("tables hold coefficients");
    let body = rest.iter().rev().fold(format!("{last:e}f"), |sum, c| format!("FMA({sum}, x, {c:e}f)"));
    let _ = writeln!(text, "fn {name}(x: f32) -> f32 {{ return {body}; }}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernels() -> Vec<Kernel> {
        let spreads = [
            Spread { units: 32, lanes: 8, rows: 4 },
            Spread { units: 128, lanes: 2, rows: 1 },
            Spread { units: 64, lanes: 1, rows: 4 },
        ];
        let mut all = vec![
            Kernel::Facts,
            Kernel::Fma,
            Kernel::MulAdd,
            Kernel::Within,
            Kernel::Copy,
            Kernel::GemmDirect,
            Kernel::GemmBlocked,
            Kernel::GemmTiled,
            Kernel::Project,
        ];
        all.extend([Unary::Snap, Unary::Sigmoid, Unary::Tanh, Unary::Clip].map(Kernel::Unary));
        for spread in spreads {
            all.push(Kernel::StateGradient(spread));
            for flags in 0..3 * 16 {
                let bit = |k: u32| ((flags / 3) >> k) & 1 == 1;
                let options = Options { cell: flags % 3, coupled: bit(0), clipped: bit(1), projected: bit(2) };
                all.push(Kernel::Forward { options, train: bit(3), spread });
                all.push(Kernel::Backward { options, spread });
            }
        }
        all
    }

    #[test]
    fn naga_accepts_every_shader() {
        use naga::valid::{Capabilities, ValidationFlags, Validator};
        for kernel in kernels() {
            for fma in [Fma::Native, Fma::F64, Fma::Integer] {
                let text = kernel.source(fma);
                let module = naga::front::wgsl::parse_str(&text)
                    .unwrap_or_else(|e| panic!("{kernel:?}, {fma:?}: {}", e.emit_to_string(&text)));
                let capabilities = match fma {
                    Fma::F64 => Capabilities::FLOAT64 | Capabilities::SHADER_INT64,
                    _ => Capabilities::empty(),
                };
                Validator::new(ValidationFlags::all(), capabilities)
                    .validate(&module)
                    .unwrap_or_else(|e| panic!("{kernel:?}, {fma:?}: {}", e.emit_to_string(&text)));
                let (entry, writes) = (&module.entry_points[0], kernel.access());
                assert_eq!(entry.workgroup_size.iter().product::<u32>(), kernel.workgroup(), "{kernel:?}");
                let mut uniforms = 0;
                for (_, variable) in module.global_variables.iter() {
                    if variable.space == naga::AddressSpace::Uniform {
                        uniforms += 1;
                        assert_eq!(laid_out(&module, variable), as_in_rust(kernel), "{kernel:?}");
                    }
                    if let naga::AddressSpace::Storage { access } = variable.space {
                        let place = variable.binding.expect("storage is bound").binding as usize;
                        assert_eq!(access.contains(naga::StorageAccess::STORE), writes[place], "{kernel:?}: {place}");
                    }
                }
                assert_eq!(uniforms, 1, "{kernel:?}");
                if fma != Fma::Native {
                    assert!(!text.contains("return fma("), "{kernel:?}");
                }
            }
        }
    }

    /// Bytes of a uniform, and its members with their offsets, as a shader sees them.
    fn laid_out(module: &naga::Module, uniform: &naga::GlobalVariable) -> (usize, Vec<(String, usize)>) {
        match &module.types[uniform.ty].inner {
            naga::TypeInner::Struct { members, span } => {
                let member = |m: &naga::StructMember| (m.name.clone().unwrap_or_default(), m.offset as usize);
                (*span as usize, members.iter().map(member).collect())
            }
            other => panic!("parameters are {other:?}"),
        }
    }

    fn as_in_rust(kernel: Kernel) -> (usize, Vec<(String, usize)>) {
        let Definition { size, members, .. } = kernel.parameters();
        (size, members.iter().map(|&(name, offset)| (name.to_owned(), offset)).collect())
    }

    /// What WGSL leaves open must not occur outside the definition of `FMA`.
    #[test]
    fn shaders_use_nothing_whose_accuracy_is_open() {
        // Facts looks at the adapter's own fma.
        for kernel in kernels().into_iter().filter(|kernel| *kernel != Kernel::Facts) {
            let text = kernel.source(Fma::Integer);
            let code = text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>();
            let text = code.join("\n");
            let called = text.split(|c: char| !(c.is_alphanumeric() || "_(/=".contains(c)));
            for word in called.filter_map(|word| word.split_once('(').map(|(name, _)| name)) {
                let open =
                    ["exp", "exp2", "log", "tanh", "sqrt", "pow", "fma", "dot", "mix", "inverseSqrt", "smoothstep"];
                assert!(!open.contains(&word), "{kernel:?} calls {word}");
            }
        }
    }
}
