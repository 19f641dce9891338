//! Recognizes the format of a file by its content, and says what a file is that no reader can open.

use crate::file::Format;

/// The format of a file with this content; `None` if it is unknown. The file may still be damaged, or contain a model
/// that is not supported.
#[must_use]
pub fn detect(bytes: &[u8]) -> Option<Format> {
    if is_safetensors(bytes) {
        return Some(Format::Safetensors);
    }
    if is_zip(bytes) {
        let names = zip_names(bytes);
        let has = |name: &str| names.iter().any(|n| n == name);
        return if names.iter().any(|name| is_data_pickle(name)) {
            Some(Format::PyTorch)
        } else if has("config.json") && has("model.weights.h5") {
            Some(Format::Keras)
        } else {
            None
        };
    }
    if has_legacy_magic(bytes) || (is_tar(bytes) && tar_names(bytes).iter().any(|name| name == "storages")) {
        return Some(Format::PyTorch);
    }
    if bytes.starts_with(HDF5_MAGIC) {
        return Some(Format::Keras);
    }
    if let Some(keys) = json_keys(bytes) {
        let has = |key: &str| keys.iter().any(|k| k == key);
        return if has("model_data") && has("state_dict") {
            Some(Format::GuitarMl)
        } else if has("architecture") {
            Some(Format::Nam)
        } else if has("layers") && AIDA_X_KEYS.iter().any(|key| has(key)) {
            Some(Format::AidaX)
        } else if has("layers") {
            Some(Format::RtNeural)
        } else {
            None
        };
    }
    is_onnx(bytes).then_some(Format::Onnx)
}

/// The keys by which AIDA-X's files differ from RTNeural's.
const AIDA_X_KEYS: [&str; 5] = ["in_skip", "in_gain", "out_gain", "input_batch", "output_batch"];

/// The first bytes of an HDF5 file.
const HDF5_MAGIC: &[u8] = b"\x89HDF\r\n\x1a\n";

/// The number that begins a file of `torch.save` before PyTorch 1.6: binary and, for the text protocols, in decimal.
const LEGACY_MAGIC: [&[u8]; 2] = [b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", b"119547037146038801333356"];

/// Largest header of a safetensors file in bytes.
const MAX_SAFETENSORS_HEADER: u64 = 100_000_000;

/// Maximum number of names in an error message.
const MAX_LISTED_NAMES: usize = 8;

/// Says what a file of an unknown format is, if that can be told, and what to do.
pub(crate) fn describe_unknown(bytes: &[u8]) -> String {
    let supported = "expected a file of safetensors, PyTorch (torch.save), Keras (.keras, .h5), ONNX, RTNeural, \
                     GuitarML, AIDA-X or NAM";
    match hint(bytes) {
        Some(hint) => format!("{hint}; {supported}"),
        None => format!("unknown format; {supported}"),
    }
}

/// Advice on how to merge the shards of a checkpoint, `model-00001-of-00002.safetensors` and so on, into one file.
/// `is_safetensors` says of which kind they are.
fn merge_advice(is_safetensors: bool) -> &'static str {
    if is_safetensors {
        "merge all of them in Python: `import glob; from safetensors.torch import load_file, save_file; \
         save_file({k: v for f in glob.glob(\"*-of-*.safetensors\") for k, v in load_file(f).items()}, \
         \"model.safetensors\")`"
    } else {
        "merge all of them in Python: `import glob, torch; torch.save({k: v for f in glob.glob(\"*-of-*.bin\") for k, v in \
         torch.load(f, map_location=\"cpu\").items()}, \"model.bin\")`"
    }
}

/// Fails for one shard of a checkpoint, which the name of the file tells: `model-00001-of-00002.safetensors`. It may look
/// like a whole model.
pub(crate) fn check_shard(file_name: &str) -> Result<(), String> {
    let Some((stem, extension)) = file_name.rsplit_once('.') else { return Ok(()) };
    let is_number = |text: &&str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let of = stem.rsplit_once("-of-");
    let shard_count = of.map(|(_, count)| count).filter(is_number);
    let shard_number = of.and_then(|(start, _)| start.rsplit('-').next()).filter(is_number);
    let shard_count = shard_count.and_then(|count| count.parse::<u32>().ok());
    let (Some(shard_count), Some(shard_number)) = (shard_count, shard_number) else { return Ok(()) };
    match shard_count > 1 {
        true => Err(format!(
            "shard {} of the {shard_count} files of a checkpoint, by its name; {}",
            shard_number.trim_start_matches('0'),
            merge_advice(extension == "safetensors")
        )),
        false => Ok(()),
    }
}

/// What a file of an unknown format is and how to get a file that can be read. `None` if it can't be told.
fn hint(bytes: &[u8]) -> Option<String> {
    let text = |text: &str| Some(text.to_owned());
    let text_start = bytes.trim_ascii_start();
    let starts_with_text =
        |start: &str| text_start.get(..start.len()).is_some_and(|bytes| bytes.eq_ignore_ascii_case(start.as_bytes()));
    let tag_at_4 = bytes.get(4..8).unwrap_or_default();
    if bytes.is_empty() {
        return text("the file is empty; copy or download it again");
    }
    if bytes.iter().all(|byte| *byte == 0) {
        return text("the file contains zeros only; copy or download it again");
    }
    if starts_with_text("version https://git-lfs") {
        return text("a Git LFS pointer instead of the file itself; run `git lfs pull` to download the file");
    }
    if starts_with_text("<!doctype html") || starts_with_text("<html") {
        return text("an HTML page; the download returned a web page instead of the file, download the raw file");
    }
    if starts_with_text("<?xml") || starts_with_text("<net") {
        return text("an XML file; of an OpenVINO model, use the ONNX file that it was made from");
    }
    if is_zip(bytes) {
        return Some(describe_zip(bytes));
    }
    if is_tar(bytes) {
        return Some(format!("a tar archive with {}; extract the model file from it first", list(&tar_names(bytes))));
    }
    if bytes.starts_with(b"\x1f\x8b") {
        return text("a gzip file; decompress it first, with `gunzip` or `tar -xzf`");
    }
    if bytes.starts_with(b"\x28\xb5\x2f\xfd") || bytes.starts_with(b"BZh") || bytes.starts_with(b"\xfd7zXZ") {
        return text("a compressed file (zstd, bzip2 or xz); decompress it first");
    }
    if bytes.starts_with(b"7z\xbc\xaf\x27\x1c") || bytes.starts_with(b"Rar!") {
        return text("an archive (7z or RAR); extract the model file from it first");
    }
    if bytes.starts_with(b"\x93NUMPY") {
        return text(
            "a NumPy array without names; save all arrays of the model by name, with `safetensors.numpy.save_file`",
        );
    }
    if bytes.starts_with(b"GGUF") || bytes.starts_with(b"tjgg") || bytes.starts_with(b"lmgg") {
        return text("a GGUF or GGML file; convert the original model, with `safetensors.torch.save_file` for example");
    }
    match tag_at_4 {
        b"TFL3" => return text("a TensorFlow Lite model; use the Keras file that it was made from"),
        b"ORTM" => {
            return text("a model in ONNX Runtime's own format (.ort); use the .onnx file that it was made from");
        }
        tag if tag.starts_with(b"ET") => {
            return text("an ExecuTorch program; use the PyTorch or ONNX file that it was made from");
        }
        _ => {}
    }
    if bytes.starts_with(b"RIFF") {
        return text("a WAV or AVI file, not a model; give the model first");
    }
    if is_pickle(bytes) {
        return text(
            "a Python pickle that `torch.save` did not write; load it in Python and write the weights with \
             `torch.save(model.state_dict(), \"model.pt\")`",
        );
    }
    if let Some(keys) = json_keys(bytes) {
        if keys.iter().any(|key| key == "weight_map") {
            let is_safetensors = bytes.windows(12).any(|window| window == b".safetensors");
            return Some(format!(
                "the index of a checkpoint in several files (shards), without weights; {}",
                merge_advice(is_safetensors)
            ));
        }
        let keras = ["class_name", "config"].iter().all(|key| keys.iter().any(|k| k == key));
        return Some(match keras {
            true => "the architecture of a Keras model without weights; write the whole model with \
                     `model.save(\"model.keras\")`"
                .to_owned(),
            false => format!("a JSON file of an unknown kind, with the keys {}", list(&keys)),
        });
    }
    if let Some(fields) = protobuf_fields(bytes) {
        // A SavedModel has a version (1) and graphs (2); a GraphDef has nodes (1), a library (2) and versions (4).
        let numbers: Vec<u64> = fields.iter().map(|(number, _)| *number).collect();
        let is_len = |number| fields.contains(&(number, WIRE_BYTES));
        if numbers.iter().all(|n| [1, 2].contains(n)) && fields.contains(&(1, WIRE_VARINT)) && is_len(2) {
            return text(
                "a TensorFlow SavedModel; write the Keras model with `model.save(\"model.keras\")`, or export an ONNX \
                 file with `python -m tf2onnx.convert --saved-model DIR --output model.onnx`",
            );
        }
        if numbers.iter().all(|n| [1, 2, 3, 4].contains(n)) && is_len(1) {
            return text(
                "a TensorFlow graph; export an ONNX file with `python -m tf2onnx.convert --graphdef FILE --output \
                 model.onnx`",
            );
        }
    }
    let is_text = bytes.len() < 1 << 20 && str::from_utf8(bytes).is_ok_and(|text| !text.contains('\0'));
    is_text.then(|| "a text file".to_owned())
}

/// Says what a zip archive is that is neither PyTorch's nor Keras'.
fn describe_zip(bytes: &[u8]) -> String {
    let names = zip_names(bytes);
    if names.is_empty() {
        return "a zip archive without a directory; it may be truncated, copy or download it again".to_owned();
    }
    if names.iter().all(|name| name.ends_with(".npy")) {
        return format!(
            "NumPy's .npz with {}; save the arrays by PyTorch's names with `safetensors.numpy.save_file`",
            list(&names)
        );
    }
    if names.iter().any(|name| name.ends_with("saved_model.pb")) {
        return "an archive of a TensorFlow SavedModel; write the Keras model with `model.save(\"model.keras\")`"
            .to_owned();
    }
    let is_export = |name: &String| {
        name.ends_with("archive_format")
            || name.ends_with("models/model.json")
            || name.ends_with("serialized_exported_program.json")
    };
    if names.iter().any(is_export) {
        return "an archive of torch.export (.pt2), which contains a program that is not run; save its weights: \
                `torch.save(torch.export.load(\"model.pt2\").state_dict, \"model.pt\")`, or write an ONNX file with \
                torch.onnx.export"
            .to_owned();
    }
    format!("a zip archive with {}; extract the model file from it first", list(&names))
}

/// Some names in backquotes, for an error message.
fn list(names: &[String]) -> String {
    let shown: Vec<_> = names.iter().take(MAX_LISTED_NAMES).map(|name| format!("`{}`", shorten(name))).collect();
    match names.len().saturating_sub(MAX_LISTED_NAMES) {
        0 if names.is_empty() => "no names".to_owned(),
        0 => shown.join(", "),
        others => format!("{} and {others} others", shown.join(", ")),
    }
}

/// A name without control characters, of limited length, for an error message.
fn shorten(name: &str) -> String {
    const MAX_CHARS: usize = 60;
    let shown: String = name.chars().take(MAX_CHARS).map(|c| if c.is_control() { '?' } else { c }).collect();
    if name.chars().nth(MAX_CHARS).is_some() { format!("{shown}...") } else { shown }
}

/// Whether a file begins like safetensors: the length of a header, and its first brace. The rest may be missing.
fn is_safetensors(bytes: &[u8]) -> bool {
    let header_len = bytes.first_chunk().map(|len| u64::from_le_bytes(*len));
    header_len.is_some_and(|len| len <= MAX_SAFETENSORS_HEADER) && bytes.get(8) == Some(&b'{')
}

fn is_zip(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"PK\x05\x06")
}

fn is_tar(bytes: &[u8]) -> bool {
    bytes.get(257..262) == Some(b"ustar")
}

/// Whether a file begins with the number of PyTorch's old container, as any pickle protocol writes it.
fn has_legacy_magic(bytes: &[u8]) -> bool {
    let start = &bytes[..bytes.len().min(64)];
    LEGACY_MAGIC.iter().any(|magic| start.windows(magic.len()).any(|window| window == *magic))
}

/// Whether a file begins like a pickle of protocol 2 or later, or of protocol 0 with a dictionary.
fn is_pickle(bytes: &[u8]) -> bool {
    matches!(bytes, [0x80, 2..=5, ..]) || bytes.starts_with(b"(dp") || bytes.starts_with(b"(lp")
}

/// Whether this is the name of the pickle in an archive of `torch.save`: `data.pkl` in a folder.
pub(crate) fn is_data_pickle(name: &str) -> bool {
    name.rsplit('/').next() == Some("data.pkl")
}

/// The names in the directory of a zip archive, in its order. Empty if the directory is damaged or missing.
pub(crate) fn zip_names(bytes: &[u8]) -> Vec<String> {
    zip_entries(bytes).into_iter().map(|entry| entry.name).collect()
}

/// An entry of a zip archive, as its directory describes it.
pub(crate) struct ZipEntry {
    /// The name with its folders.
    pub(crate) name: String,
    /// The size of its content in bytes; `u32::MAX` or more for an archive with 64-bit sizes.
    #[allow(unused, reason = "the reader of PyTorch files uses it")]
    pub(crate) size: u64,
}

/// The entries in the directory of a zip archive, in its order. Stops where the directory is damaged.
pub(crate) fn zip_entries(bytes: &[u8]) -> Vec<ZipEntry> {
    // The end record is 22 bytes long and may be followed by a comment of at most 65535 bytes.
    const END_LEN: usize = 22;
    let tail_start = bytes.len().saturating_sub(END_LEN + usize::from(u16::MAX));
    let u16_at = |at: usize| Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let u32_at = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let end = bytes[tail_start..].windows(4).rposition(|window| window == b"PK\x05\x06").map(|at| tail_start + at);
    let Some(end) = end else { return Vec::new() };
    let (Some(directory_len), Some(directory)) = (u32_at(end + 12), u32_at(end + 16)) else { return Vec::new() };
    let mut at = directory as usize;
    if directory == u32::MAX {
        // The directory ends where the 64-bit end record begins, which is 56 bytes long before a locator of 20 bytes.
        let start = end.checked_sub(76).and_then(|end64| end64.checked_sub(directory_len as usize));
        let Some(start) = start else { return Vec::new() };
        at = start;
    }
    let mut entries = Vec::new();
    while bytes.get(at..).is_some_and(|rest| rest.starts_with(b"PK\x01\x02")) {
        let (Some(size), Some(name_len), Some(extra_len), Some(comment_len)) =
            (u32_at(at + 24), u16_at(at + 28), u16_at(at + 30), u16_at(at + 32))
        else {
            break;
        };
        let name_end = at + 46 + usize::from(name_len);
        let Some(name) = bytes.get(at + 46..name_end) else { break };
        entries.push(ZipEntry { name: String::from_utf8_lossy(name).into_owned(), size: size.into() });
        at = name_end + usize::from(extra_len) + usize::from(comment_len);
    }
    entries
}

/// The names of the files in a tar archive, in its order. Stops where the archive is damaged.
fn tar_names(bytes: &[u8]) -> Vec<String> {
    const BLOCK: usize = 512;
    let (mut names, mut at) = (Vec::new(), 0usize);
    while let Some(header) = bytes.get(at..).and_then(|rest| rest.first_chunk::<BLOCK>()) {
        let field = |range: std::ops::Range<usize>| {
            let field = &header[range];
            String::from_utf8_lossy(&field[..field.iter().position(|b| *b == 0).unwrap_or(field.len())]).into_owned()
        };
        let name = field(0..100);
        let Ok(size) = usize::from_str_radix(field(124..136).trim(), 8) else { break };
        if name.is_empty() {
            break;
        }
        names.push(name.trim_start_matches("./").to_owned());
        let Some(next) =
            size.div_ceil(BLOCK).checked_mul(BLOCK).and_then(|len| at.checked_add(BLOCK)?.checked_add(len))
        else {
            break;
        };
        at = next;
    }
    names
}

/// The keys of the object that a JSON file consists of, in order. `None` if the file does not begin with an object. The
/// rest of the file need not be valid, and is not nested by recursion. Escapes in keys are kept as they are.
fn json_keys(bytes: &[u8]) -> Option<Vec<String>> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_start();
    let after_brace = bytes.strip_prefix(b"{")?.trim_ascii_start();
    if !matches!(after_brace.first(), Some(b'"' | b'}') | None) {
        return None;
    }
    let (mut keys, mut depth, mut string_start, mut last_string) = (Vec::new(), 0usize, None, 0..0);
    let mut after_backslash = false;
    for (at, &byte) in bytes.iter().enumerate() {
        match (string_start, byte) {
            (Some(_), _) if after_backslash => after_backslash = false,
            (Some(_), b'\\') => after_backslash = true,
            (Some(start), b'"') => (last_string, string_start) = (start..at, None),
            (Some(_), _) => {}
            (None, b'"') => string_start = Some(at + 1),
            (None, b'{' | b'[') => depth += 1,
            (None, b'}' | b']') => depth = depth.saturating_sub(1),
            (None, b':') if depth == 1 => {
                keys.push(String::from_utf8_lossy(&bytes[last_string.clone()]).into_owned());
            }
            _ => {}
        }
    }
    Some(keys)
}

/// Wire type of a number in a protobuf file.
const WIRE_VARINT: u8 = 0;
/// Wire type of text, bytes and nested messages in a protobuf file.
const WIRE_BYTES: u8 = 2;

/// Whether a file is ONNX's `ModelProto`: it has a graph and only known fields.
fn is_onnx(bytes: &[u8]) -> bool {
    const FIELDS: [(u64, u8); 11] = [
        (1, WIRE_VARINT), // ir_version
        (2, WIRE_BYTES),  // producer_name
        (3, WIRE_BYTES),  // producer_version
        (4, WIRE_BYTES),  // domain
        (5, WIRE_VARINT), // model_version
        (6, WIRE_BYTES),  // doc_string
        (7, WIRE_BYTES),  // graph
        (8, WIRE_BYTES),  // opset_import
        (14, WIRE_BYTES), // metadata_props
        (20, WIRE_BYTES), // training_info
        (25, WIRE_BYTES), // functions
    ];
    protobuf_fields(bytes).is_some_and(|fields| {
        fields.iter().all(|field| FIELDS.contains(field))
            && fields.contains(&(7, WIRE_BYTES))
            && (fields.contains(&(1, WIRE_VARINT)) || fields.contains(&(8, WIRE_BYTES)))
    })
}

/// The distinct fields of a protobuf message, by number and wire type, in the order of their first use. The last one
/// may be truncated. `None` if the file is not a message.
fn protobuf_fields(bytes: &[u8]) -> Option<Vec<(u64, u8)>> {
    fn varint(bytes: &mut &[u8]) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = bytes.split_first()?;
            *bytes = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
    let (mut rest, mut fields) = (bytes, Vec::new());
    while !rest.is_empty() {
        let tag = varint(&mut rest)?;
        let (number, wire) = (tag >> 3, (tag & 7) as u8);
        let skipped = match wire {
            WIRE_VARINT => {
                varint(&mut rest)?;
                0
            }
            1 => 8,
            WIRE_BYTES => usize::try_from(varint(&mut rest)?).ok()?,
            5 => 4,
            _ => return None,
        };
        if number == 0 {
            return None;
        }
        if !fields.contains(&(number, wire)) {
            fields.push((number, wire));
        }
        rest = rest.get(skipped..).unwrap_or_default();
    }
    (!fields.is_empty()).then_some(fields)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn files_of_every_format_are_recognized() {
        let mut checked = 0;
        for folder in ["onnx", "models"] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data").join(folder);
            for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
                let expected = match path.extension().and_then(|extension| extension.to_str()) {
                    Some("onnx") => Format::Onnx,
                    Some("pt") => Format::PyTorch,
                    Some("keras" | "h5") => Format::Keras,
                    Some("nam") => Format::Nam,
                    Some("aidax") => Format::AidaX,
                    Some("safetensors") => Format::Safetensors,
                    _ => continue,
                };
                assert_eq!(detect(&fs::read(&path).unwrap()), Some(expected), "{}", path.display());
                checked += 1;
            }
        }
        assert!(checked > 20, "{checked} files");
    }

    #[test]
    fn shards_of_a_checkpoint_are_named() {
        for (name, words) in [
            ("model-00001-of-00002.safetensors", ["shard 1 of the 2 files", "safetensors.torch"]),
            ("pytorch_model-00010-of-00012.bin", ["shard 10 of the 12 files", "torch.load"]),
        ] {
            let error = check_shard(name).unwrap_err();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
        for name in ["model-00001-of-00001.safetensors", "model.bin", "out-of-time.pt", "a-1-of-2.pt", "00001-of-00002"]
        {
            assert_eq!(check_shard(name), Ok(()), "{name}");
        }
        let error = describe_unknown(br#"{"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}"#);
        assert!(error.contains("the index of a checkpoint") && error.contains("safetensors.torch"), "{error}");
    }

    #[test]
    fn damaged_archives_do_not_panic() {
        let zip = b"PK\x03\x04PK\x01\x02............................PK\x05\x06....\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff";
        for end in 0..zip.len() {
            let _ = (zip_names(&zip[..end]), describe_unknown(&zip[..end]));
        }
        let mut tar = vec![b'7'; 1024];
        tar[257..262].copy_from_slice(b"ustar");
        for at in 0..tar.len() {
            let mut damaged = tar.clone();
            damaged[at] = 0xff;
            let _ = (detect(&damaged), describe_unknown(&damaged), detect(&damaged[..at]));
        }
        for bytes in
            [&b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"[..], b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", b"{\"a"]
        {
            assert_eq!(detect(bytes), None);
            assert!(!describe_unknown(bytes).is_empty());
        }
    }
}
