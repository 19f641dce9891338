//! NumPy's file format .npy, <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>: reading and
//! writing headers, and reading parts of an array. This module does not use an existing crate, because those read whole
//! arrays and trust the sizes in the header.

use std::io::{Read, Seek, SeekFrom};

use half::f16;
use lstm::ndarray::Array3;

use super::{Element, Layout, SequenceShape, array_from_values, csv::parse_number};

/// First bytes of every .npy file.
const MAGIC: &[u8] = b"\x93NUMPY";

/// Longest accepted header, in bytes. Headers of plain arrays are shorter.
const MAX_HEADER_BYTES: usize = 4096;

/// In written files, the offset of the first element is a multiple of this number of bytes, as in files that NumPy
/// writes.
const DATA_ALIGNMENT: usize = 64;

/// A supported element type of an .npy file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ElementType {
    F16,
    F32,
    F64,
    I32,
    I64,
}

/// Contents of the header of an .npy file.
#[derive(Debug, PartialEq, Eq)]
struct Header {
    element_type: ElementType,
    big_endian: bool,
    shape: Vec<usize>,
}

/// Reader of the elements of an .npy file.
pub(super) struct ElementReader<R> {
    r: R,
    element_type: ElementType,
    big_endian: bool,
    /// Offset of the first element in the file, in bytes.
    data_offset: u64,
}

/// Opens an .npy file: reads the header and checks that the file has as many elements as the header says.
pub(super) fn open<R: Read + Seek>(mut r: R, layout: Layout) -> Result<(ElementReader<R>, SequenceShape), String> {
    let io = |e: std::io::Error| e.to_string();
    let file_len = r.seek(SeekFrom::End(0)).map_err(io)?;
    r.rewind().map_err(io)?;
    let text = read_header(&mut r)?;
    let Header { element_type, big_endian, shape } = parse_header(&text)?;
    let data_offset = r.stream_position().map_err(io)?;
    // Tokens have no axis of features.
    let axes = shape.len() + usize::from(layout.tokens);
    let (is_single_sequence, time_major) = (axes == 2, layout.time_major && axes == 3);
    let (batch, steps, features) = match (&shape[..], layout.tokens, time_major) {
        (&[steps, features], false, _) => (1, steps, features),
        (&[steps, batch, features], _, true) | (&[batch, steps, features], _, false) if !layout.tokens => {
            (batch, steps, features)
        }
        (&[steps], true, _) => (1, steps, 1),
        (&[steps, batch], true, true) | (&[batch, steps], true, false) => (batch, steps, 1),
        (_, true, _) => return Err(format!("expected shape (steps) or (batch, steps) of tokens, got shape {shape:?}")),
        _ => return Err(format!("expected shape (steps, features) or three axes, got shape {shape:?}")),
    };
    match (element_type.is_integer(), layout.tokens) {
        (true, false) => {
            return Err(format!(
                "expected element type f4, f8 or f2, got `{}`; convert the array with .astype(np.float32)",
                element_type.name()
            ));
        }
        (false, true) => {
            return Err(format!(
                "expected tokens of element type i8 or i4, got `{}`; convert the array with .astype(np.int64)",
                element_type.name()
            ));
        }
        _ => {}
    }
    if shape.contains(&0) {
        return Err(format!("expected axes of size 1 or more, got shape {shape:?}"));
    }
    let bytes = shape.iter().try_fold(element_type.size(), |bytes, &n| bytes.checked_mul(n));
    let bytes = bytes.and_then(|bytes| u64::try_from(bytes).ok());
    let available_bytes = file_len.saturating_sub(data_offset);
    if bytes != Some(available_bytes) {
        return Err(format!(
            "shape {shape:?} of {element_type:?} does not match the {available_bytes} bytes after the header"
        ));
    }
    Ok((
        ElementReader { r, element_type, big_endian, data_offset },
        SequenceShape { batch, steps, features, is_single_sequence, time_major },
    ))
}

impl<R: Read + Seek> ElementReader<R> {
    /// Reads `n` steps, starting with step `first_step`, as an array of shape `(batch, n, features)`.
    pub(super) fn read<T: Element>(
        &mut self,
        sequence_shape: &SequenceShape,
        first_step: usize,
        n: usize,
    ) -> Result<Array3<T>, String> {
        let SequenceShape { batch, steps, features, .. } = *sequence_shape;
        // No overflow: all products are less than the file's length, which `open` checked.
        if sequence_shape.time_major || batch == 1 {
            let values = self.read_elements(first_step * batch * features, n * batch * features, Vec::new())?;
            let mut steps = array_from_values((n, batch, features), values)?;
            steps.swap_axes(0, 1);
            return Ok(steps);
        }
        let mut values = Vec::new();
        for b in 0..batch {
            values = self.read_elements((b * steps + first_step) * features, n * features, values)?;
        }
        array_from_values((batch, n, features), values)
    }

    /// Reads `n` elements, starting with element number `first_element`, and appends them to `out`.
    fn read_elements<T: Element>(&mut self, first_element: usize, n: usize, mut out: Vec<T>) -> Result<Vec<T>, String> {
        let size = self.element_type.size();
        let mut bytes = vec![0; n * size];
        let offset = self.data_offset + (first_element * size) as u64;
        let result = self.r.seek(SeekFrom::Start(offset)).and_then(|_| self.r.read_exact(&mut bytes));
        result.map_err(|e| format!("element {first_element}: {e}"))?;
        if self.big_endian {
            bytes.chunks_exact_mut(size).for_each(<[u8]>::reverse);
        }
        T::decode(self.element_type, &bytes, first_element, &mut out)?;
        Ok(out)
    }
}

impl Element for f32 {
    const EXPECTED: &str = "a number in the range of f32";

    fn parse(field: &str) -> Option<Self> {
        parse_number(field)
    }

    fn decode(
        element_type: ElementType,
        bytes: &[u8],
        first_element: usize,
        out: &mut Vec<Self>,
    ) -> Result<(), String> {
        match element_type {
            ElementType::F16 => out.extend(decode_elements(bytes, f16::from_le_bytes).map(f16::to_f32)),
            ElementType::F32 => out.extend(decode_elements(bytes, f32::from_le_bytes)),
            ElementType::F64 => {
                for (k, wide) in decode_elements(bytes, f64::from_le_bytes).enumerate() {
                    let rounded = wide as f32;
                    if rounded.is_infinite() && wide.is_finite() {
                        return Err(format!("element {}: {wide} is beyond the range of f32", first_element + k));
                    }
                    out.push(rounded);
                }
            }
            ElementType::I32 | ElementType::I64 => return Err("expected numbers, got tokens".into()),
        }
        Ok(())
    }
}

impl Element for i64 {
    const EXPECTED: &str = "an integer";

    fn parse(field: &str) -> Option<Self> {
        field.parse().ok()
    }

    fn decode(element_type: ElementType, bytes: &[u8], _: usize, out: &mut Vec<Self>) -> Result<(), String> {
        match element_type {
            ElementType::I32 => out.extend(decode_elements(bytes, i32::from_le_bytes).map(i64::from)),
            ElementType::I64 => out.extend(decode_elements(bytes, i64::from_le_bytes)),
            _ => return Err("expected tokens, got numbers".into()),
        }
        Ok(())
    }
}

/// Decodes `bytes` as consecutive elements of `N` bytes, each with the function `read`.
fn decode_elements<const N: usize, T>(bytes: &[u8], read: fn([u8; N]) -> T) -> impl Iterator<Item = T> {
    bytes.as_chunks().0.iter().map(move |b| read(*b))
}

impl ElementType {
    /// Size of an element in bytes.
    fn size(self) -> usize {
        match self {
            ElementType::F16 => 2,
            ElementType::F32 | ElementType::I32 => 4,
            ElementType::F64 | ElementType::I64 => 8,
        }
    }

    fn is_integer(self) -> bool {
        matches!(self, ElementType::I32 | ElementType::I64)
    }

    /// NumPy's name without the byte order.
    fn name(self) -> &'static str {
        match self {
            ElementType::F16 => "f2",
            ElementType::F32 => "f4",
            ElementType::F64 => "f8",
            ElementType::I32 => "i4",
            ElementType::I64 => "i8",
        }
    }
}

/// Reads the header and returns its text. After that, `r` is at the first element.
fn read_header(r: &mut impl Read) -> Result<String, String> {
    let mut read_bytes = |n: usize| {
        let mut bytes = vec![0; n];
        r.read_exact(&mut bytes).map(|()| bytes).map_err(|e| format!("not an .npy file: {e}"))
    };
    let start = read_bytes(MAGIC.len() + 2)?;
    let Some(&[major, minor]) = start.strip_prefix(MAGIC) else {
        return Err("not an .npy file: it does not begin with \\x93NUMPY".into());
    };
    let len_bytes = match (major, minor) {
        (1, 0) => read_bytes(2)?,
        (2 | 3, 0) => read_bytes(4)?,
        _ => return Err(format!("expected .npy format version 1.0, 2.0 or 3.0, got {major}.{minor}")),
    };
    let header_len = len_bytes.iter().rev().fold(0, |len, &byte| len << 8 | usize::from(byte));
    if header_len > MAX_HEADER_BYTES {
        return Err(format!("expected a header of at most {MAX_HEADER_BYTES} bytes, got {header_len}"));
    }
    String::from_utf8(read_bytes(header_len)?).map_err(|_| "the header is not UTF-8 text".into())
}

/// Parses a header such as `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`.
fn parse_header(text: &str) -> Result<Header, String> {
    let header_error =
        || format!("expected a header with descr, fortran_order and shape of a plain array, got {text:?}");
    let mut remaining_text =
        text.trim().strip_prefix('{').and_then(|text| text.strip_suffix('}')).ok_or_else(header_error)?.trim();
    let (mut descr, mut fortran_order, mut shape) = (None, None, None);
    while !remaining_text.is_empty() {
        let (key, text_after) = parse_quoted_string(remaining_text).ok_or_else(header_error)?;
        let value = text_after.trim_start().strip_prefix(':').ok_or_else(header_error)?.trim_start();
        let is_duplicate = match key {
            "descr" => {
                let (text, text_after) = parse_quoted_string(value).ok_or_else(header_error)?;
                remaining_text = text_after;
                descr.replace(text).is_some()
            }
            "fortran_order" => {
                let parsed_false = value.strip_prefix("False").map(|text_after| (false, text_after));
                let (is_fortran_order, text_after) = parsed_false
                    .or(value.strip_prefix("True").map(|text_after| (true, text_after)))
                    .ok_or_else(header_error)?;
                remaining_text = text_after;
                fortran_order.replace(is_fortran_order).is_some()
            }
            "shape" => {
                let (shape_text, text_after) =
                    value.strip_prefix('(').and_then(|v| v.split_once(')')).ok_or_else(header_error)?;
                let shape_text = shape_text.trim();
                let sizes = shape_text.strip_suffix(',').unwrap_or(shape_text).split(',');
                // `parse` alone would accept `+1`.
                let size = |size: &str| size.trim().parse().ok().filter(|_| !size.contains('+'));
                let sizes = if shape_text.is_empty() { Some(Vec::new()) } else { sizes.map(size).collect() };
                remaining_text = text_after;
                shape.replace(sizes.ok_or_else(header_error)?).is_some()
            }
            _ => return Err(header_error()),
        };
        let text_after = remaining_text.trim_start();
        remaining_text = match text_after.strip_prefix(',') {
            Some(text_after) => text_after.trim_start(),
            None if text_after.is_empty() => text_after,
            None => return Err(header_error()),
        };
        if is_duplicate {
            return Err(header_error());
        }
    }
    let (Some(descr), Some(fortran_order), Some(shape)) = (descr, fortran_order, shape) else {
        return Err(header_error());
    };
    let little_endian_name = descr.strip_prefix('<').map(|name| (name, false));
    let element_type = match little_endian_name.or(descr.strip_prefix('>').map(|name| (name, true))) {
        Some(("f2", is_big_endian)) => (ElementType::F16, is_big_endian),
        Some(("f4", is_big_endian)) => (ElementType::F32, is_big_endian),
        Some(("f8", is_big_endian)) => (ElementType::F64, is_big_endian),
        Some(("i4", is_big_endian)) => (ElementType::I32, is_big_endian),
        Some(("i8", is_big_endian)) => (ElementType::I64, is_big_endian),
        _ => {
            return Err(format!(
                "expected element type f4, f8 or f2, got `{descr}`; convert the array with .astype(np.float32), or np.int64 for tokens"
            ));
        }
    };
    if fortran_order {
        return Err("expected C order, got Fortran order; convert the array with np.ascontiguousarray".into());
    }
    Ok(Header { element_type: element_type.0, big_endian: element_type.1, shape })
}

/// Parses a string in single or double quotes, without escapes. Returns the string and the text after it.
fn parse_quoted_string(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|c| ['\'', '"'].contains(c))?;
    text[1..].split_once(quote)
}

/// Encodes the header of an f32 array in C order with two or more axes, including magic bytes and padding.
pub(crate) fn encode_header(shape: &[usize]) -> Vec<u8> {
    let shape = shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    let mut text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({shape}), }}");
    let prefix_len = MAGIC.len() + 4;
    let padded_len = (prefix_len + text.len() + 1).next_multiple_of(DATA_ALIGNMENT) - prefix_len;
    text = format!("{text:<width$}\n", width = padded_len - 1);
    [MAGIC, &[1, 0], &(padded_len as u16).to_le_bytes(), text.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use lstm::ndarray::Axis;

    use super::*;

    fn time_major(time_major: bool) -> Layout {
        Layout { time_major, ..Layout::default() }
    }

    #[test]
    fn reads_tokens_of_both_widths() {
        let layout = |tokens| Layout { tokens, ..Layout::default() };
        let file = |descr: &str, shape: &str, values: &[u8]| {
            let text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape})}}\n");
            [MAGIC, &[1, 0], &(text.len() as u16).to_le_bytes(), text.as_bytes(), values].concat()
        };
        let wide: Vec<u8> = [1i64, -2, 1 << 40, 4].iter().flat_map(|v| v.to_le_bytes()).collect();
        let (mut data, shape) = open(std::io::Cursor::new(file("<i8", "2, 2", &wide)), layout(true)).unwrap();
        assert_eq!((shape.batch, shape.steps, shape.features), (2, 2, 1));
        assert_eq!(data.read::<i64>(&shape, 1, 1).unwrap().into_iter().collect::<Vec<_>>(), [-2, 4]);
        let narrow: Vec<u8> = [1i32, -2].iter().flat_map(|v| v.to_be_bytes()).collect();
        let (mut data, shape) = open(std::io::Cursor::new(file(">i4", "2,", &narrow)), layout(true)).unwrap();
        assert_eq!((shape.batch, shape.steps, shape.is_single_sequence), (1, 2, true));
        assert_eq!(data.read::<i64>(&shape, 0, 2).unwrap().into_iter().collect::<Vec<_>>(), [1, -2]);
        for (descr, shape, tokens, part) in [
            ("<f4", "1, 2", true, "astype(np.int64)"),
            ("<i4", "1, 2", false, "astype(np.float32)"),
            ("<i4", "1, 2, 1", true, "(batch, steps) of tokens"),
        ] {
            let error = open(std::io::Cursor::new(file(descr, shape, &narrow)), layout(tokens)).err().unwrap();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn parses_and_rejects_headers() {
        let expected_header =
            |element_type, big_endian, shape: &[usize]| Ok(Header { element_type, big_endian, shape: shape.to_vec() });
        let text = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }      \n";
        assert_eq!(parse_header(text), expected_header(ElementType::F32, false, &[3, 4]));
        let text = r#"{"shape":(7,),"fortran_order":False,"descr":">f8"}"#;
        assert_eq!(parse_header(text), expected_header(ElementType::F64, true, &[7]));
        assert_eq!(
            parse_header("{'descr':'<f2','fortran_order':False,'shape':()}"),
            expected_header(ElementType::F16, false, &[])
        );
        for (text, part) in [
            ("", "header"),
            ("{}", "header"),
            ("{'descr': '<f4', 'fortran_order': False}", "header"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), 'more': 1}", "more"),
            ("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (3, 4)}", "header"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (-3, 4)}", "header"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (+3, 4)}", "header"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999, 4)}", "header"),
            ("{'descr': '<f4', 'fortran_order': False 'shape': (3, 4)}", "header"),
            ("{'descr': '<f4', 'fortran_order': True, 'shape': (3, 4)}", "Fortran"),
            ("{'descr': '<u2', 'fortran_order': False, 'shape': (3, 4)}", "`<u2`"),
            ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (3, 4)}", "plain"),
        ] {
            let error = parse_header(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn encoded_headers_are_aligned_and_parse() {
        for shape in [&[3, 4][..], &[usize::MAX, 12_345, usize::MAX], &[1, 1, 1]] {
            let bytes = encode_header(shape);
            assert_eq!((bytes.len() % DATA_ALIGNMENT, bytes.last()), (0, Some(&b'\n')));
            let text = read_header(&mut &bytes[..]).unwrap();
            assert_eq!(parse_header(&text).unwrap().shape, shape);
        }
    }

    #[test]
    fn reads_steps_of_batches_in_both_layouts() {
        let values: Vec<u8> = (0..24).flat_map(|v| (v as f32).to_be_bytes()).collect();
        let header_text = String::from_utf8(encode_header(&[2, 4, 3])[10..].to_vec()).unwrap().replace('<', ">");
        let file = [&encode_header(&[2, 4, 3])[..10], header_text.as_bytes(), &values].concat();
        let (mut data, sequence_shape) = open(std::io::Cursor::new(&file), time_major(false)).unwrap();
        let steps = data.read::<f32>(&sequence_shape, 1, 2).unwrap();
        assert_eq!(
            steps.index_axis(Axis(0), 1).into_iter().copied().collect::<Vec<_>>(),
            [15., 16., 17., 18., 19., 20.]
        );
        let (mut data, sequence_shape) = open(std::io::Cursor::new(&file), time_major(true)).unwrap();
        assert_eq!((sequence_shape.batch, sequence_shape.steps), (4, 2));
        let steps = data.read::<f32>(&sequence_shape, 1, 1).unwrap();
        assert_eq!(steps.into_iter().collect::<Vec<_>>(), (12..24).map(|v| v as f32).collect::<Vec<_>>());
        assert!(open(std::io::Cursor::new(&file[..file.len() - 1]), time_major(true)).is_err());
    }
}
