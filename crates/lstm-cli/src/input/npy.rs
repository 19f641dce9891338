//! NumPy's format, <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>: the header, and reading
//! parts of the elements. The crates for it read whole arrays, and trust the sizes that a file claims.

use std::io::{Read, Seek, SeekFrom};

use half::f16;
use lstm_core::ndarray::Array3;

use super::{Extent, array};

const MAGIC: &[u8] = b"\x93NUMPY";

/// More than any header of a plain array has.
const MAX_HEADER: usize = 4096;

/// NumPy's own alignment of the elements.
const ALIGN: usize = 64;

/// Elements that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Element {
    F16,
    F32,
    F64,
}

/// What a header says.
#[derive(Debug, PartialEq, Eq)]
struct Header {
    element: Element,
    big_endian: bool,
    shape: Vec<usize>,
}

/// A file's elements.
pub(super) struct Data<R> {
    r: R,
    element: Element,
    big_endian: bool,
    /// Where they begin.
    start: u64,
}

/// Reads the header, and checks that the elements are there.
pub(super) fn open<R: Read + Seek>(mut r: R, time_major: bool) -> Result<(Data<R>, Extent), String> {
    let io = |e: std::io::Error| e.to_string();
    let len = r.seek(SeekFrom::End(0)).map_err(io)?;
    r.rewind().map_err(io)?;
    let text = read_header(&mut r)?;
    let Header { element, big_endian, shape } = parse(&text)?;
    let start = r.stream_position().map_err(io)?;
    let (single, time_major) = (shape.len() == 2, time_major && shape.len() == 3);
    let (batch, steps, features) = match (&shape[..], time_major) {
        (&[steps, features], _) => (1, steps, features),
        (&[steps, batch, features], true) | (&[batch, steps, features], false) => (batch, steps, features),
        _ => return Err(format!("expected (steps, features) or three axes, got shape {shape:?}")),
    };
    if shape.contains(&0) {
        return Err(format!("expected at least one of each, got shape {shape:?}"));
    }
    let bytes = shape.iter().try_fold(element.size(), |bytes, &n| bytes.checked_mul(n));
    let bytes = bytes.and_then(|bytes| u64::try_from(bytes).ok());
    let there = len.saturating_sub(start);
    if bytes != Some(there) {
        return Err(format!("shape {shape:?} of {element:?} does not fit the {there} bytes of elements that follow"));
    }
    Ok((Data { r, element, big_endian, start }, Extent { batch, steps, features, single, time_major }))
}

impl<R: Read + Seek> Data<R> {
    /// Steps from `at` on, as (batch, steps, features).
    pub(super) fn read(&mut self, extent: &Extent, at: usize, n: usize) -> Result<Array3<f32>, String> {
        let Extent { batch, steps, features, .. } = *extent;
        // All of these are less than the file's length.
        if extent.time_major || batch == 1 {
            let values = self.elements(at * batch * features, n * batch * features, Vec::new())?;
            let mut steps = array((n, batch, features), values)?;
            steps.swap_axes(0, 1);
            return Ok(steps);
        }
        let mut values = Vec::new();
        for b in 0..batch {
            values = self.elements((b * steps + at) * features, n * features, values)?;
        }
        array((batch, n, features), values)
    }

    /// Appends elements from number `from` on.
    fn elements(&mut self, from: usize, n: usize, mut out: Vec<f32>) -> Result<Vec<f32>, String> {
        let size = self.element.size();
        let mut bytes = vec![0; n * size];
        let at = self.start + (from * size) as u64;
        let read = self.r.seek(SeekFrom::Start(at)).and_then(|_| self.r.read_exact(&mut bytes));
        read.map_err(|e| format!("element {from}: {e}"))?;
        if self.big_endian {
            bytes.chunks_exact_mut(size).for_each(<[u8]>::reverse);
        }
        match self.element {
            Element::F16 => out.extend(each(&bytes, f16::from_le_bytes).map(f16::to_f32)),
            Element::F32 => out.extend(each(&bytes, f32::from_le_bytes)),
            Element::F64 => {
                for (k, wide) in each(&bytes, f64::from_le_bytes).enumerate() {
                    let narrow = wide as f32;
                    if narrow.is_infinite() && wide.is_finite() {
                        return Err(format!("element {}: {wide} is more than f32 holds", from + k));
                    }
                    out.push(narrow);
                }
            }
        }
        Ok(out)
    }
}

fn each<const N: usize, T>(bytes: &[u8], read: fn([u8; N]) -> T) -> impl Iterator<Item = T> {
    bytes.as_chunks().0.iter().map(move |b| read(*b))
}

impl Element {
    fn size(self) -> usize {
        match self {
            Element::F16 => 2,
            Element::F32 => 4,
            Element::F64 => 8,
        }
    }
}

/// The header's text.
fn read_header(r: &mut impl Read) -> Result<String, String> {
    let mut take = |n: usize| {
        let mut bytes = vec![0; n];
        r.read_exact(&mut bytes).map(|()| bytes).map_err(|e| format!("no .npy file: {e}"))
    };
    let start = take(MAGIC.len() + 2)?;
    let Some(&[major, minor]) = start.strip_prefix(MAGIC) else {
        return Err("no .npy file: it does not begin with \\x93NUMPY".into());
    };
    let length = match (major, minor) {
        (1, 0) => take(2)?,
        (2 | 3, 0) => take(4)?,
        _ => return Err(format!("expected version 1.0, 2.0 or 3.0 of the format, got {major}.{minor}")),
    };
    let length = length.iter().rev().fold(0, |length, &byte| length << 8 | usize::from(byte));
    if length > MAX_HEADER {
        return Err(format!("expected a header of at most {MAX_HEADER} bytes, got {length}"));
    }
    String::from_utf8(take(length)?).map_err(|_| "the header is no text".into())
}

/// Reads `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`.
fn parse(text: &str) -> Result<Header, String> {
    let fail = || format!("expected a header with descr, fortran_order and shape of a plain array, got {text:?}");
    let mut rest = text.trim().strip_prefix('{').and_then(|text| text.strip_suffix('}')).ok_or_else(fail)?.trim();
    let (mut descr, mut fortran, mut shape) = (None, None, None);
    while !rest.is_empty() {
        let (key, after) = quoted(rest).ok_or_else(fail)?;
        let value = after.trim_start().strip_prefix(':').ok_or_else(fail)?.trim_start();
        let twice = match key {
            "descr" => {
                let (text, after) = quoted(value).ok_or_else(fail)?;
                rest = after;
                descr.replace(text).is_some()
            }
            "fortran_order" => {
                let no = value.strip_prefix("False").map(|after| (false, after));
                let (yes, after) = no.or(value.strip_prefix("True").map(|after| (true, after))).ok_or_else(fail)?;
                rest = after;
                fortran.replace(yes).is_some()
            }
            "shape" => {
                let (list, after) = value.strip_prefix('(').and_then(|v| v.split_once(')')).ok_or_else(fail)?;
                let list = list.trim();
                let sizes = list.strip_suffix(',').unwrap_or(list).split(',');
                // Not `parse` alone, which also takes `+1`.
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
        if twice {
            return Err(fail());
        }
    }
    let (Some(descr), Some(fortran), Some(shape)) = (descr, fortran, shape) else { return Err(fail()) };
    let little = descr.strip_prefix('<').map(|name| (name, false));
    let element = match little.or(descr.strip_prefix('>').map(|name| (name, true))) {
        Some(("f2", big)) => (Element::F16, big),
        Some(("f4", big)) => (Element::F32, big),
        Some(("f8", big)) => (Element::F64, big),
        _ => return Err(format!("expected elements of f4, f8 or f2, got `{descr}`: save it with .astype(np.float32)")),
    };
    if fortran {
        return Err("it is in Fortran order: save it with np.ascontiguousarray".into());
    }
    Ok(Header { element: element.0, big_endian: element.1, shape })
}

/// A string in either quotes, without escapes, and what follows.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|c| ['\'', '"'].contains(c))?;
    text[1..].split_once(quote)
}

/// A whole header, up to the elements, for f32 in C order and two axes or more.
pub(crate) fn header(shape: &[usize]) -> Vec<u8> {
    let shape = shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    let mut text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({shape}), }}");
    let before = MAGIC.len() + 4;
    let padded = (before + text.len() + 1).next_multiple_of(ALIGN) - before;
    text = format!("{text:<width$}\n", width = padded - 1);
    [MAGIC, &[1, 0], &(padded as u16).to_le_bytes(), text.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use lstm_core::ndarray::Axis;

    use super::*;

    #[test]
    fn headers() {
        let plain = |element, big_endian, shape: &[usize]| Ok(Header { element, big_endian, shape: shape.to_vec() });
        let of = |text: &str| parse(text);
        let text = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }      \n";
        assert_eq!(of(text), plain(Element::F32, false, &[3, 4]));
        let text = r#"{"shape":(7,),"fortran_order":False,"descr":">f8"}"#;
        assert_eq!(of(text), plain(Element::F64, true, &[7]));
        assert_eq!(of("{'descr':'<f2','fortran_order':False,'shape':()}"), plain(Element::F16, false, &[]));
        for (text, word) in [
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
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_written_is_read_and_aligned() {
        for shape in [&[3, 4][..], &[usize::MAX, 12_345, usize::MAX], &[1, 1, 1]] {
            let bytes = header(shape);
            assert_eq!((bytes.len() % ALIGN, bytes.last()), (0, Some(&b'\n')));
            let text = read_header(&mut &bytes[..]).unwrap();
            assert_eq!(parse(&text).unwrap().shape, shape);
        }
    }

    #[test]
    fn batches_are_read_by_steps() {
        let values: Vec<u8> = (0..24).flat_map(|v| (v as f32).to_be_bytes()).collect();
        let head = String::from_utf8(header(&[2, 4, 3])[10..].to_vec()).unwrap().replace('<', ">");
        let file = [&header(&[2, 4, 3])[..10], head.as_bytes(), &values].concat();
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
