//! NumPy's file format .npy, <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>: reading and writing
//! headers, and reading parts of an array. Existing crates read whole arrays and trust the sizes in the header.

use std::io::{Read, Seek, SeekFrom};

use half::f16;
use lstm_core::ndarray::Array3;

use super::{Extent, array};

/// First bytes of every .npy file.
const MAGIC: &[u8] = b"\x93NUMPY";

/// Longest accepted header, in bytes. Headers of plain arrays are shorter.
const MAX_HEADER: usize = 4096;

/// Alignment of the first element in bytes, as NumPy writes it.
const ALIGN: usize = 64;

/// Supported element types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Element {
    F16,
    F32,
    F64,
}

/// Contents of a header.
#[derive(Debug, PartialEq, Eq)]
struct Header {
    element: Element,
    big_endian: bool,
    shape: Vec<usize>,
}

/// Reader of the elements of a file.
pub(super) struct ElementReader<R> {
    r: R,
    element: Element,
    big_endian: bool,
    /// Offset of the first element in bytes.
    data_offset: u64,
}

/// Opens an .npy file: reads the header and checks that the file has as many elements as the header says.
pub(super) fn open<R: Read + Seek>(mut r: R, time_major: bool) -> Result<(ElementReader<R>, Extent), String> {
    let io = |e: std::io::Error| e.to_string();
    let len = r.seek(SeekFrom::End(0)).map_err(io)?;
    r.rewind().map_err(io)?;
    let text = read_header(&mut r)?;
    let Header { element, big_endian, shape } = parse(&text)?;
    let data_offset = r.stream_position().map_err(io)?;
    let (single, time_major) = (shape.len() == 2, time_major && shape.len() == 3);
    let (batch, steps, features) = match (&shape[..], time_major) {
        (&[steps, features], _) => (1, steps, features),
        (&[steps, batch, features], true) | (&[batch, steps, features], false) => (batch, steps, features),
        _ => return Err(format!("expected shape (steps, features) or three axes, got shape {shape:?}")),
    };
    if shape.contains(&0) {
        return Err(format!("expected axes of size 1 or more, got shape {shape:?}"));
    }
    let bytes = shape.iter().try_fold(element.size(), |bytes, &n| bytes.checked_mul(n));
    let bytes = bytes.and_then(|bytes| u64::try_from(bytes).ok());
    let available = len.saturating_sub(data_offset);
    if bytes != Some(available) {
        return Err(format!("shape {shape:?} of {element:?} does not match the {available} bytes after the header"));
    }
    Ok((ElementReader { r, element, big_endian, data_offset }, Extent { batch, steps, features, single, time_major }))
}

impl<R: Read + Seek> ElementReader<R> {
    /// Reads `n` steps from step `first` on as an array of shape `(batch, n, features)`.
    pub(super) fn read(&mut self, extent: &Extent, first: usize, n: usize) -> Result<Array3<f32>, String> {
        let Extent { batch, steps, features, .. } = *extent;
        // No overflow: all products are less than the file's length, which `open` checked.
        if extent.time_major || batch == 1 {
            let values = self.elements(first * batch * features, n * batch * features, Vec::new())?;
            let mut steps = array((n, batch, features), values)?;
            steps.swap_axes(0, 1);
            return Ok(steps);
        }
        let mut values = Vec::new();
        for b in 0..batch {
            values = self.elements((b * steps + first) * features, n * features, values)?;
        }
        array((batch, n, features), values)
    }

    /// Reads `n` elements, starting with element number `from`, and appends them to `out`.
    fn elements(&mut self, from: usize, n: usize, mut out: Vec<f32>) -> Result<Vec<f32>, String> {
        let size = self.element.size();
        let mut bytes = vec![0; n * size];
        let offset = self.data_offset + (from * size) as u64;
        let read = self.r.seek(SeekFrom::Start(offset)).and_then(|_| self.r.read_exact(&mut bytes));
        read.map_err(|e| format!("element {from}: {e}"))?;
        if self.big_endian {
            bytes.chunks_exact_mut(size).for_each(<[u8]>::reverse);
        }
        match self.element {
            Element::F16 => out.extend(decode(&bytes, f16::from_le_bytes).map(f16::to_f32)),
            Element::F32 => out.extend(decode(&bytes, f32::from_le_bytes)),
            Element::F64 => {
                for (k, wide) in decode(&bytes, f64::from_le_bytes).enumerate() {
                    let narrow = wide as f32;
                    if narrow.is_infinite() && wide.is_finite() {
                        return Err(format!("element {}: {wide} is beyond the range of f32", from + k));
                    }
                    out.push(narrow);
                }
            }
        }
        Ok(out)
    }
}

/// Decodes elements of `N` bytes each.
fn decode<const N: usize, T>(bytes: &[u8], read: fn([u8; N]) -> T) -> impl Iterator<Item = T> {
    bytes.as_chunks().0.iter().map(move |b| read(*b))
}

impl Element {
    /// Size in bytes.
    fn size(self) -> usize {
        match self {
            Element::F16 => 2,
            Element::F32 => 4,
            Element::F64 => 8,
        }
    }
}

/// Reads the text of the header and leaves `r` at the first element.
fn read_header(r: &mut impl Read) -> Result<String, String> {
    let mut take = |n: usize| {
        let mut bytes = vec![0; n];
        r.read_exact(&mut bytes).map(|()| bytes).map_err(|e| format!("not an .npy file: {e}"))
    };
    let start = take(MAGIC.len() + 2)?;
    let Some(&[major, minor]) = start.strip_prefix(MAGIC) else {
        return Err("not an .npy file: it does not begin with \\x93NUMPY".into());
    };
    let length = match (major, minor) {
        (1, 0) => take(2)?,
        (2 | 3, 0) => take(4)?,
        _ => return Err(format!("expected .npy format version 1.0, 2.0 or 3.0, got {major}.{minor}")),
    };
    let length = length.iter().rev().fold(0, |length, &byte| length << 8 | usize::from(byte));
    if length > MAX_HEADER {
        return Err(format!("expected a header of at most {MAX_HEADER} bytes, got {length}"));
    }
    String::from_utf8(take(length)?).map_err(|_| "the header is not UTF-8 text".into())
}

/// Parses a header such as `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`.
fn parse(text: &str) -> Result<Header, String> {
    let fail = || format!("expected a header with descr, fortran_order and shape of a plain array, got {text:?}");
    let mut rest = text.trim().strip_prefix('{').and_then(|text| text.strip_suffix('}')).ok_or_else(fail)?.trim();
    let (mut descr, mut fortran, mut shape) = (None, None, None);
    while !rest.is_empty() {
        let (key, after) = parse_quoted(rest).ok_or_else(fail)?;
        let value = after.trim_start().strip_prefix(':').ok_or_else(fail)?.trim_start();
        let is_duplicate = match key {
            "descr" => {
                let (text, after) = parse_quoted(value).ok_or_else(fail)?;
                rest = after;
                descr.replace(text).is_some()
            }
            "fortran_order" => {
                let not_fortran = value.strip_prefix("False").map(|after| (false, after));
                let (is_fortran, after) =
                    not_fortran.or(value.strip_prefix("True").map(|after| (true, after))).ok_or_else(fail)?;
                rest = after;
                fortran.replace(is_fortran).is_some()
            }
            "shape" => {
                let (list, after) = value.strip_prefix('(').and_then(|v| v.split_once(')')).ok_or_else(fail)?;
                let list = list.trim();
                let sizes = list.strip_suffix(',').unwrap_or(list).split(',');
                // `parse` alone would accept `+1`.
                let size = |size: &str| size.trim().parse().ok().filter(|_| !size.contains('+'));
                let sizes = if list.is_empty() { Some(Vec::new()) } else { sizes.map(size).collect() };
                rest = after;
                shape.replace(sizes.ok_or_else(fail)?).is_some()
            }
            _ => return Err(fail()),
        };
        let after = rest.trim_start();
        rest = match after.strip_prefix(',') {
            Some(after) => after.trim_start(),
            None if after.is_empty() => after,
            None => return Err(fail()),
        };
        if is_duplicate {
            return Err(fail());
        }
    }
    let (Some(descr), Some(fortran), Some(shape)) = (descr, fortran, shape) else { return Err(fail()) };
    let little = descr.strip_prefix('<').map(|name| (name, false));
    let element = match little.or(descr.strip_prefix('>').map(|name| (name, true))) {
        Some(("f2", big)) => (Element::F16, big),
        Some(("f4", big)) => (Element::F32, big),
        Some(("f8", big)) => (Element::F64, big),
        _ => {
            return Err(format!(
                "expected element type f4, f8 or f2, got `{descr}`; convert the array with .astype(np.float32)"
            ));
        }
    };
    if fortran {
        return Err("expected C order, got Fortran order; convert the array with np.ascontiguousarray".into());
    }
    Ok(Header { element: element.0, big_endian: element.1, shape })
}

/// Parses a string in single or double quotes, without escapes. Returns the string and the text after it.
fn parse_quoted(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|c| ['\'', '"'].contains(c))?;
    text[1..].split_once(quote)
}

/// Encodes the header of an f32 array in C order with two or more axes, including magic bytes and padding.
pub(crate) fn encode_header(shape: &[usize]) -> Vec<u8> {
    let shape = shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    let mut text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({shape}), }}");
    let prefix = MAGIC.len() + 4;
    let padded = (prefix + text.len() + 1).next_multiple_of(ALIGN) - prefix;
    text = format!("{text:<width$}\n", width = padded - 1);
    [MAGIC, &[1, 0], &(padded as u16).to_le_bytes(), text.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use lstm_core::ndarray::Axis;

    use super::*;

    #[test]
    fn parses_and_rejects_headers() {
        let plain = |element, big_endian, shape: &[usize]| Ok(Header { element, big_endian, shape: shape.to_vec() });
        let of = |text: &str| parse(text);
        let text = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }      \n";
        assert_eq!(of(text), plain(Element::F32, false, &[3, 4]));
        let text = r#"{"shape":(7,),"fortran_order":False,"descr":">f8"}"#;
        assert_eq!(of(text), plain(Element::F64, true, &[7]));
        assert_eq!(of("{'descr':'<f2','fortran_order':False,'shape':()}"), plain(Element::F16, false, &[]));
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
            ("{'descr': '<i8', 'fortran_order': False, 'shape': (3, 4)}", "`<i8`"),
            ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (3, 4)}", "plain"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn encoded_headers_are_aligned_and_parse() {
        for shape in [&[3, 4][..], &[usize::MAX, 12_345, usize::MAX], &[1, 1, 1]] {
            let bytes = encode_header(shape);
            assert_eq!((bytes.len() % ALIGN, bytes.last()), (0, Some(&b'\n')));
            let text = read_header(&mut &bytes[..]).unwrap();
            assert_eq!(parse(&text).unwrap().shape, shape);
        }
    }

    #[test]
    fn reads_steps_of_batches_in_both_layouts() {
        let values: Vec<u8> = (0..24).flat_map(|v| (v as f32).to_be_bytes()).collect();
        let head = String::from_utf8(encode_header(&[2, 4, 3])[10..].to_vec()).unwrap().replace('<', ">");
        let file = [&encode_header(&[2, 4, 3])[..10], head.as_bytes(), &values].concat();
        let (mut data, extent) = open(std::io::Cursor::new(&file), false).unwrap();
        let part = data.read(&extent, 1, 2).unwrap();
        assert_eq!(
            part.index_axis(Axis(0), 1).into_iter().copied().collect::<Vec<_>>(),
            [15., 16., 17., 18., 19., 20.]
        );
        let (mut data, extent) = open(std::io::Cursor::new(&file), true).unwrap();
        assert_eq!((extent.batch, extent.steps), (4, 2));
        let part = data.read(&extent, 1, 1).unwrap();
        assert_eq!(part.into_iter().collect::<Vec<_>>(), (12..24).map(|v| v as f32).collect::<Vec<_>>());
        assert!(open(std::io::Cursor::new(&file[..file.len() - 1]), true).is_err());
    }
}
