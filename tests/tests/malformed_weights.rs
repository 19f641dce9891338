//! Malformed safetensors files: reading returns an error or a model in a short time, and never panics.

use std::sync::LazyLock;

use lstm_core::{
    Error, Init, LstmConfig, Result, StateDict, StateDictWriter, TensorNames, Weights, ndarray::array,
    weights::state_dict::Dtype,
};
use lstm_cpu::Cpu;
use lstm_tests::malformed;
use proptest::prelude::*;

static CPU: LazyLock<Cpu> = LazyLock::new(Cpu::new);

/// A safetensors file with the given header and data.
fn raw(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// A small valid file.
fn small() -> Vec<u8> {
    let writer = StateDictWriter::new().metadata("key", "value").dtype(Dtype::F16);
    let weights = Weights::init(LstmConfig::new(1, 1), &Init::default(), 11).unwrap();
    // Without the checksum, which would detect all changes before they reach the rest of the reader.
    malformed::without_checksum(&writer.lstm("", &weights, TensorNames::PyTorch).unwrap().to_bytes().unwrap())
}

/// Reads a file and runs its model.
fn read(bytes: Vec<u8>) -> Result<()> {
    malformed::check_safetensors(&*CPU, &bytes)
}

#[test]
fn rejects_malformed_headers() {
    let whole = small();
    assert!(read(whole.clone()).is_ok());
    for len in 0..whole.len() {
        assert!(StateDict::from_bytes(whole[..len].to_vec()).is_err(), "cut to {len}");
    }
    assert!(StateDict::from_bytes([&whole[..], &[0]].concat()).is_err(), "with an additional byte");
    for length in [u64::MAX, u64::MAX - 7, 1 << 63, 100_000_000, 100_000_001, 0] {
        let mut bytes = whole.clone();
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        assert!(StateDict::from_bytes(bytes).is_err(), "a header length of {length}");
    }
    let entry = |name: &str, shape: &str, start: u64, end: u64| {
        format!(r#""{name}":{{"dtype":"F32","shape":[{shape}],"data_offsets":[{start},{end}]}}"#)
    };
    let expect_error = |entries: &[String], data: usize| {
        let header = format!("{{{}}}", entries.join(","));
        match StateDict::from_bytes(raw(&header, &vec![0; data])) {
            Err(Error::Format { .. }) => {}
            other => panic!("{header}: {other:?}"),
        }
    };
    let max = i64::MAX as u64;
    expect_error(&[entry("a", "2", 0, 8), entry("b", "2", 4, 12)], 12);
    expect_error(&[entry("a", "1", 0, 4), entry("b", "1", 8, 12)], 12);
    expect_error(&[entry("a", "4", 0, 16)], 12);
    expect_error(&[entry("a", "1", 4, 0)], 4);
    expect_error(&[entry("a", "4294967296,4294967296,4", 0, 4)], 4);
    expect_error(&[entry("a", "9223372036854775807,9223372036854775807", 0, 4)], 4);
    expect_error(&[entry("a", "4294967296,4294967296,0", 0, 0)], 4);
    expect_error(&[entry("a", "-1", 0, 4)], 4);
    expect_error(&[entry("a", "1", 0, u64::MAX)], 4);
    expect_error(&[entry("a", "1", 0, 4), entry("a", "1", 0, 4)], 4);
    expect_error(&[entry("a", "1", 0, 4), entry("\\u0061", "1", 0, 4)], 4);
    expect_error(&[entry("a", "1", 0, 4), entry("a", "1", 4, 8)], 8);
    expect_error(&[entry("a", "0", 0, 0), entry("a", "0,1", 0, 0)], 0);
    expect_error(&[entry("a", "1", 0, 4), r#""__metadata__":null"#.into()], 4);
    expect_error(&[entry("a", "1", 0, 4), r#""__metadata__":{"n":1}"#.into()], 4);
    expect_error(&[format!(r#""a":{}1{}"#, "[".repeat(100_000), "]".repeat(100_000))], 0);
    assert!(StateDict::from_bytes(raw("{\"\u{e9}\":", &[])).is_err());
    assert!(StateDict::from_bytes([&2u64.to_le_bytes()[..], b"\xff\xfe"].concat()).is_err());
    // Tensors of nearly 2^61 bytes each, whose total size overflows in the `safetensors` crate.
    let step = (1u64 << 61) - 8;
    let huge: Vec<_> = (0..8)
        .map(|k| (k * step, (k + 1) * step))
        .chain([(8 * step, u64::MAX - 7)])
        .enumerate()
        .map(|(k, (start, end))| entry(&format!("t{k}"), &((end - start) / 4).to_string(), start, end))
        .collect();
    expect_error(&huge, 0);
    expect_error(&huge[..4], 0);
    expect_error(&[entry("a", &max.to_string(), 0, max)], 0);
    // Names may contain digits, colons, quotes and braces. Sizes may be large if the tensor has no elements.
    let unusual = entry("9999999999999999999999: {\\\"[", "0,1152921504606846976", 0, 0);
    let mut dict = StateDict::from_bytes(raw(&format!("{{{unusual}}}"), &[])).unwrap();
    assert_eq!(dict.take_any("9999999999999999999999: {\"[").unwrap().len(), 0);
    let mut dict =
        StateDict::from_bytes(raw(&format!("{{{}}}", entry("", &["1"; 500].join(","), 0, 4)), &[0; 4])).unwrap();
    assert_eq!(dict.take_any("").unwrap().ndim(), 500);
    // An empty tensor whose sizes overflow is rejected when it is read.
    let wide = entry("a", &format!("{max},0,{max}"), 0, 0);
    let taken = StateDict::from_bytes(raw(&format!("{{{wide}}}"), &[])).and_then(|mut dict| dict.take_any("a"));
    assert!(matches!(taken, Err(Error::Format { .. })), "{taken:?}");
}

/// A parsed entry takes many times the memory of its text.
#[test]
fn headers_have_a_largest_number_of_entries() {
    let entry = |k: usize| format!(r#""t{k}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#);
    let header = |n| format!("{{{}}}", (0..n).map(entry).collect::<Vec<_>>().join(","));
    assert_eq!(StateDict::from_bytes(raw(&header(50_000), &[])).unwrap().names().count(), 50_000);
    let metadata = format!("{{\"__metadata__\":{{{}}}}}", vec!["\"k\":\"\""; 500_000].join(","));
    let sizes = entry(0).replace("[0]", &format!("[0{}]", ",1".repeat(600_000)));
    for header in [header(500_000), metadata, format!("{{{sizes}}}")] {
        let start = std::time::Instant::now();
        let error = StateDict::from_bytes(raw(&header, &[])).unwrap_err().to_string();
        assert!(error.contains("colons and commas"), "{error}");
        assert!(start.elapsed().as_secs_f64() < 1.0, "{:?} for {} bytes", start.elapsed(), header.len());
    }
    let mut writer = StateDictWriter::new();
    for k in 0..80_000 {
        writer = writer.tensor(k.to_string(), &array![[0.0f32]]).unwrap();
    }
    assert!(writer.to_bytes().unwrap_err().to_string().contains("colons and commas"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn flipped_bytes_never_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let mut bytes = small();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let _ = read(bytes);
    }

    #[test]
    fn changed_digits_in_the_header_never_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), 0..10u8), 1..6)) {
        let mut bytes = small();
        let header = 8 + usize::from(bytes[0]) + 256 * usize::from(bytes[1]);
        let digits: Vec<usize> = (8..header).filter(|k| bytes[*k].is_ascii_digit()).collect();
        for (at, digit) in flips {
            bytes[*at.get(&digits)] = b'0' + digit;
        }
        let _ = read(bytes);
    }

    #[test]
    fn any_text_round_trips_as_name_and_metadata(name in ".*", key in any::<String>(), value in any::<String>()) {
        let writer = StateDictWriter::new().metadata(&key, &value).tensor(&name, &array![1.0f32]).unwrap();
        let mut dict = StateDict::from_bytes(writer.to_bytes().unwrap()).unwrap();
        prop_assert_eq!(dict.metadata().get(&key), Some(&value));
        prop_assert!(dict.take(&name, &[1]).is_ok() && dict.finish().is_ok());
    }
}
