//! Assembles the WGSL source of a kernel: constants from `lstm_core::arithmetic`, one of three definitions of `FMA`,
//! the arithmetic, the kernel's parameters, then the kernel's own files.

use std::fmt::Write;

use lstm_core::{
    arithmetic as a,
    quantized::{EIGHTH_ROUND_UP, Format, INT8},
};

use super::{Kernel, KernelOptions, StepTiling, parameters};
use crate::device::Fma;

impl Kernel {
    /// The complete WGSL source, with `FMA` defined by `fma`.
    pub(super) fn wgsl_source(self, fma: Fma) -> String {
        let mut text = arithmetic_constants();
        match self {
            Kernel::Unary(operation) => write_constant(&mut text, "OPERATION", operation as u32),
            Kernel::Forward { options, train, tiling } => {
                write_options(&mut text, options);
                text.push_str(&format!("const TRAIN: bool = {train};\n"));
                write_tiling(&mut text, tiling);
            }
            Kernel::Backward { options, tiling } => {
                write_options(&mut text, options);
                write_tiling(&mut text, tiling);
            }
            Kernel::StateGradient(tiling) => write_tiling(&mut text, tiling),
            Kernel::QuantizeRows { max } => {
                let format = Format { max, ..INT8 };
                write_constant(&mut text, "EIGHTH_ROUND_UP", EIGHTH_ROUND_UP);
                write_constant(&mut text, "NAN_BITS", f32::NAN.to_bits());
                write_table(&mut text, "to_integer_factor", format.to_integer_factors());
                write_table(&mut text, "from_integer_factor", format.from_integer_factors());
            }
            _ => {}
        }
        text.push_str(match fma {
            Fma::Native => include_str!("../../shaders/fma_native.wgsl"),
            Fma::EmulatedInF64 => include_str!("../../shaders/fma_f64.wgsl"),
            Fma::EmulatedInIntegers => include_str!("../../shaders/fma_integer.wgsl"),
        });
        text.push_str(match fma {
            Fma::Native => "fn FMA4(a: f32, b: vec4<f32>, c: vec4<f32>) -> vec4<f32> { return fma(vec4(a), b, c); }\n",
            _ => {
                "fn FMA4(a: f32, b: vec4<f32>, c: vec4<f32>) -> vec4<f32> {\n    \
                 return vec4(FMA(a, b.x, c.x), FMA(a, b.y, c.y), FMA(a, b.z, c.z), FMA(a, b.w, c.w));\n}\n"
            }
        });
        text.push_str(include_str!("../../shaders/arithmetic.wgsl"));
        text.push_str(self.parameters().wgsl);
        for file in self.source_files() {
            text.push_str(file);
        }
        text
    }
}

fn write_constant(text: &mut String, name: &str, value: u32) {
    let _ = writeln!(text, "const {name}: u32 = {value}u;");
}

fn write_options(text: &mut String, KernelOptions { cell_code, coupled, has_clip, has_projection }: KernelOptions) {
    write_constant(text, "CELL", cell_code);
    write_constant(text, "DENSE", 1);
    write_constant(text, "DIAGONAL", 2);
    for (name, value) in [("COUPLED", coupled), ("CLIPPED", has_clip), ("PROJECTED", has_projection)] {
        let _ = writeln!(text, "const {name}: bool = {value};");
    }
}

fn write_tiling(text: &mut String, StepTiling { units, lanes, rows }: StepTiling) {
    write_constant(text, "UNITS", units);
    write_constant(text, "LANES", lanes);
    write_constant(text, "ROWS", rows);
}

/// Writes a WGSL function that returns an element of a table.
fn write_table(text: &mut String, name: &str, values: [f32; 8]) {
    // Rust prints the shortest decimal that parses to the same float.
    let values = values.map(|v| format!("{v:e}f")).join(", ");
    let _ = writeln!(text, "fn {name}(k: u32) -> f32 {{ var table = array<f32, 8>({values}); return table[k]; }}");
}

/// WGSL constants and polynomials of the arithmetic.
fn arithmetic_constants() -> String {
    let mut text = String::new();
    write_constant(&mut text, "ABSENT", parameters::OPERAND_ABSENT);
    write_constant(&mut text, "ROW", parameters::OPERAND_ROW);
    write_constant(&mut text, "BLOCK", a::DOT_BLOCK as u32);
    write_constant(&mut text, "SNAP_BITS", a::SNAP_THRESHOLD_BITS);
    write_constant(&mut text, "MAGNITUDE_BITS", a::MAGNITUDE_BITS);
    write_constant(&mut text, "SIGN_BIT", !a::MAGNITUDE_BITS);
    write_constant(&mut text, "INFINITY_BITS", f32::INFINITY.to_bits());
    write_constant(&mut text, "SPLIT_MASK", a::CLEAR_LOW_BITS_MASK);
    write_constant(&mut text, "TANH_LINEAR_BITS", a::TANH_LINEAR_BITS);
    for (name, value) in [
        ("MAGIC", a::ROUNDING_MAGIC),
        ("LOG2_E", a::LOG2_E),
        ("LN2_HIGH", a::LN2_HIGH),
        ("LN2_LOW", a::LN2_LOW),
        ("SIGMOID_MAX", a::SIGMOID_MAX),
        ("TANH_MAX", a::TANH_MAX),
    ] {
        // Rust prints the shortest decimal that parses to the same float.
        let _ = writeln!(text, "const {name}: f32 = {value:e}f;");
    }
    write_polynomial(&mut text, "exp_poly", &a::EXP_POLYNOMIAL);
    write_polynomial(&mut text, "exp_twice_poly", &a::EXP_2R_POLYNOMIAL);
    write_polynomial(&mut text, "sigmoid_poly", &a::SIGMOID_POLYNOMIAL);
    write_polynomial(&mut text, "tanh_poly", &a::TANH_POLYNOMIAL);
    text
}

/// Writes a WGSL function that evaluates a polynomial by Horner's method. `coefficients` start with the constant term.
fn write_polynomial(text: &mut String, name: &str, coefficients: &[f32]) {
    let (highest_coefficient, lower_coefficients) = coefficients.split_last().expect("a polynomial has coefficients");
    let body = lower_coefficients
        .iter()
        .rev()
        .fold(format!("{highest_coefficient:e}f"), |sum, c| format!("FMA({sum}, x, {c:e}f)"));
    let _ = writeln!(text, "fn {name}(x: f32) -> f32 {{ return {body}; }}");
}
