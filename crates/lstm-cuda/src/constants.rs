//! The arithmetic's constants as the kernels see them: `kernels/constants.cuh` is written from `lstm_core::arithmetic`.

/// The file's text.
#[cfg(test)]
fn text() -> String {
    use std::fmt::Write;

    use lstm_core::arithmetic as a;

    let mut text = "// The constants of `lstm_core::arithmetic`: bits, and sizes. Do not edit: `src/constants.rs` compares it with them.\n".to_owned();
    let mut line = |name: String, value: String| {
        // Writing to a string can't fail.
        let _ = writeln!(text, "#define LSTM_{name} {value}");
    };
    line("BLOCK".into(), a::BLOCK.to_string());
    for (name, bits) in [
        ("SNAP_BITS", a::SNAP_BITS),
        ("MAGNITUDE_BITS", a::MAGNITUDE_BITS),
        ("SPLIT_MASK", a::SPLIT_MASK),
        ("MAGIC", a::MAGIC.to_bits()),
        ("LOG2_E", a::LOG2_E.to_bits()),
        ("LN2_HIGH", a::LN2_HIGH.to_bits()),
        ("LN2_LOW", a::LN2_LOW.to_bits()),
        ("SIGMOID_MAX", a::SIGMOID_MAX.to_bits()),
        ("TANH_MAX", a::TANH_MAX.to_bits()),
        ("TANH_LINEAR_BITS", a::TANH_LINEAR_BITS),
    ] {
        line(name.into(), format!("{bits:#010x}u"));
    }
    for (name, table) in
        [("EXP", &a::EXP[..]), ("EXP_TWICE", &a::EXP_TWICE), ("SIGMOID", &a::SIGMOID), ("TANH", &a::TANH)]
    {
        for (k, v) in table.iter().enumerate() {
            line(format!("{name}_{k}"), format!("{:#010x}u", v.to_bits()));
        }
    }
    text
}

#[test]
fn the_kernels_constants_are_the_core_s() {
    let file = include_str!("../kernels/constants.cuh");
    assert!(file == text(), "kernels/constants.cuh must read:\n{}", text());
}
