//! The JSON header of a safetensors file.

/// Maximum number of colons and commas in a header. A parsed header takes many times the memory of its text.
const MAX_HEADER_SEPARATORS: usize = 1 << 19;

/// Encodes a text as a JSON string.
pub(super) fn json_string(text: &str) -> String {
    let mut json = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => json.extend(['\\', c]),
            '\0'..='\x1f' => json.push_str(&format!("\\u{:04x}", u32::from(c))),
            _ => json.push(c),
        }
    }
    json.push('"');
    json
}

/// The JSON header in the bytes of a safetensors file; empty if the file is too short.
pub(super) fn header(bytes: &[u8]) -> &[u8] {
    let header = bytes.split_first_chunk().and_then(|(header_len, following_bytes)| {
        let header_len = usize::try_from(u64::from_le_bytes(*header_len)).ok()?;
        following_bytes.get(..header_len)
    });
    header.unwrap_or_default()
}

/// Counts the entries in the JSON header of a safetensors file. The safetensors crate keeps only the last of several
/// entries with the same name, and then finds fewer entries than this count.
///
/// Fails if a sum of offsets in the header would overflow, which that crate does not detect. Fails also if the header has
/// so many entries that they would take far more memory than the file.
pub(super) fn count_header_entries(header: &[u8]) -> Result<usize, String> {
    let (mut nesting_depth, mut entries, mut parsed_number) = (0usize, 0, 0usize);
    let (mut in_string, mut after_backslash) = (false, false);
    let mut separators = 0usize;
    for &byte in header {
        parsed_number = if byte.is_ascii_digit() && !in_string { parsed_number.saturating_mul(10) } else { 0 };
        match byte {
            _ if after_backslash => after_backslash = false,
            b'\\' if in_string => after_backslash = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'0'..=b'9' => parsed_number = parsed_number.saturating_add(usize::from(byte - b'0')),
            b'{' | b'[' => nesting_depth += 1,
            b'}' | b']' => nesting_depth = nesting_depth.saturating_sub(1),
            b':' | b',' => {
                separators += 1;
                entries += usize::from(byte == b':' && nesting_depth == 1);
            }
            _ => {}
        }
        if parsed_number > isize::MAX as usize {
            return Err("the header has a number that is too large for a size or an offset".into());
        }
        if separators > MAX_HEADER_SEPARATORS {
            return Err(format!(
                "expected at most {MAX_HEADER_SEPARATORS} colons and commas in the header, as about 50,000 tensors have; \
                 divide the model into several files"
            ));
        }
    }
    Ok(entries)
}
