//! The checksum of the safetensors files that this library writes: an entry of the metadata, over all bytes of the file.
//!
//! It is a CRC-32, which detects every change within four adjacent bytes, and all but one of 2^32 other changes. The
//! length of a file needs no checksum: the positions of the tensors determine it.

use std::collections::BTreeMap;

use super::header::json_string;

/// The metadata key by which a training checkpoint is recognized: the version of its format.
pub(crate) const CHECKPOINT_KEY: &str = "trainer.format";

/// The only version of the checkpoint format without a checksum.
pub(crate) const CHECKPOINT_VERSION_WITHOUT_CHECKSUM: &str = "1";

/// The metadata key of the checksum.
pub(super) const CHECKSUM_KEY: &str = "lstm.checksum";

/// The start of the value, before the checksum in hexadecimal digits. A value that starts so under another key shows that
/// the key is damaged.
const VALUE_START: &str = "lstm-crc32:";

/// The digits for which the checksum is computed, in place of its own.
const NO_DIGITS: &str = "00000000";

/// Whether metadata with this key or value are for the checksum alone.
pub(super) fn is_reserved(key: &str, value: &str) -> bool {
    key == CHECKSUM_KEY || value.starts_with(VALUE_START)
}

/// The metadata value with zeros in place of the digits, which [`write`] replaces.
pub(super) fn placeholder_value() -> String {
    format!("{VALUE_START}{NO_DIGITS}")
}

/// Writes the checksum into a file whose metadata has the value [`placeholder_value`].
pub(super) fn write(file: &mut [u8]) {
    if let Some(start) = digits_start(file) {
        let digits = digits(crc32fast::hash(file));
        file[start..start + digits.len()].copy_from_slice(digits.as_bytes());
    }
}

/// Checks the checksum of a file. `metadata` are those of the file, `header_len` the number of bytes before the elements.
/// Other programs and old versions write none.
pub(super) fn check(file: &[u8], header_len: usize, metadata: &BTreeMap<String, String>) -> Result<(), String> {
    let advice = "copy the file again, or use an older one (if another program changed it on purpose, remove its metadata \
                  entry `lstm.checksum`)";
    let Some(value) = metadata.get(CHECKSUM_KEY) else {
        if let Some((key, value)) = metadata.iter().find(|(_, value)| value.starts_with(VALUE_START)) {
            return Err(format!(
                "the file is damaged: expected the checksum `{value}` under the key `{CHECKSUM_KEY}`, got it under the key \
                 `{key}`; {advice}"
            ));
        }
        return match metadata.get(CHECKPOINT_KEY) {
            Some(version) if version != CHECKPOINT_VERSION_WITHOUT_CHECKSUM => Err(format!(
                "the file is damaged: expected the metadata entry `{CHECKSUM_KEY}` of a training checkpoint of version \
                 `{version}`, which is missing; copy the file again, or use an older one"
            )),
            _ => Ok(()),
        };
    };
    let start = file.get(..header_len).and_then(digits_start).filter(|start| start + NO_DIGITS.len() < header_len);
    let Some(start) = start else {
        return Err(format!(
            "expected a checksum `{VALUE_START}` and {} digits, got `{value}`; {advice}",
            NO_DIGITS.len()
        ));
    };
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&file[..start]);
    hasher.update(NO_DIGITS.as_bytes());
    hasher.update(&file[start + NO_DIGITS.len()..]);
    let found = format!("{VALUE_START}{}", digits(hasher.finalize()));
    if found == *value {
        return Ok(());
    }
    Err(format!("the file is damaged: expected content with the checksum `{value}`, got `{found}`; {advice}"))
}

/// Position of the digits in a file. The text before them occurs once: quotes inside of strings are escaped.
fn digits_start(file: &[u8]) -> Option<usize> {
    let start = format!("{}:\"{VALUE_START}", json_string(CHECKSUM_KEY));
    Some(file.windows(start.len()).position(|window| window == start.as_bytes())? + start.len())
}

fn digits(checksum: u32) -> String {
    format!("{checksum:08x}")
}
