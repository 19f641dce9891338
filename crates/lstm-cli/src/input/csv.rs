//! Text with a row of numbers for each step.

use std::io::{self, Read, Seek};

use ::csv::{ByteRecord, Reader, ReaderBuilder, StringRecord, Trim};
use lstm_core::ndarray::Array3;

use super::{Extent, array};

/// The rows that are left.
pub(super) struct Rows<R> {
    csv: Reader<R>,
}

/// Passes bytes on, but no line after a blank one: the parser would skip that, and a step would be lost.
struct Lines<R> {
    inner: R,
    /// The number of the current line, and whether it has nothing yet.
    line: u64,
    empty: bool,
    /// Whether the last byte was a carriage return, which a line feed belongs to.
    returned: bool,
    /// The first blank line.
    blank: Option<u64>,
}

impl<R: Read> Read for Lines<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(out)?;
        for &byte in &out[..n] {
            match byte {
                b'\n' if self.returned => {}
                b'\r' | b'\n' => {
                    if self.empty {
                        self.blank.get_or_insert(self.line);
                    }
                    (self.line, self.empty) = (self.line + 1, true);
                }
                _ => {
                    if let Some(line) = self.blank {
                        return Err(io::Error::other(format!(
                            "line {line}: expected a row of numbers, got a blank line"
                        )));
                    }
                    self.empty = false;
                }
            }
            self.returned = byte == b'\r';
        }
        Ok(n)
    }
}

/// Counts the rows, all of which must have as many fields as the first, and goes back to the first.
pub(super) fn open<R: Read + Seek>(mut r: R, header: bool) -> Result<(Rows<R>, Extent), String> {
    let mut builder = ReaderBuilder::new();
    builder.has_headers(header).trim(Trim::All);
    let lines = Lines { inner: &mut r, line: 1, empty: true, returned: false, blank: None };
    let mut csv = builder.from_reader(lines);
    let (mut steps, mut features) = (0, 0);
    let mut record = ByteRecord::new();
    while csv.read_byte_record(&mut record).map_err(|e| e.to_string())? {
        features = record.len();
        steps += 1;
    }
    if steps == 0 {
        return Err(format!("expected rows of numbers, found none{}", if header { " below the heading" } else { "" }));
    }
    drop(csv);
    r.rewind().map_err(|e| e.to_string())?;
    let csv = builder.from_reader(r);
    Ok((Rows { csv }, Extent { batch: 1, steps, features, single: true, time_major: false }))
}

impl<R: Read> Rows<R> {
    /// The next rows, as (1, rows, features).
    pub(super) fn read(&mut self, extent: &Extent, n: usize) -> Result<Array3<f32>, String> {
        let mut values = Vec::new();
        let mut record = StringRecord::new();
        for _ in 0..n {
            if !self.csv.read_record(&mut record).map_err(|e| e.to_string())? {
                return Err("it became shorter while it was read".into());
            }
            let line = record.position().map_or(0, ::csv::Position::line);
            for (column, field) in (1..).zip(&record) {
                values.push(number(field).ok_or_else(|| {
                    let hint = if line == 1 { "; with --header the first row is a heading" } else { "" };
                    format!("line {line}, column {column}: expected a number that f32 holds, got `{field}`{hint}")
                })?);
            }
        }
        array((1, n, extent.features), values)
    }
}

/// The nearest f32; infinite only where the text says so.
fn number(field: &str) -> Option<f32> {
    let value: f32 = field.parse().ok()?;
    (value.is_finite() || field.contains(['n', 'N'])).then_some(value)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    #[test]
    fn rows_come_in_parts() {
        let text = "a,b\n1, 2.5\n-3,4e-2\n5,nan\n\n";
        let (mut rows, extent) = open(Cursor::new(text), true).unwrap();
        assert_eq!((extent.steps, extent.features), (3, 2));
        assert_eq!(rows.read(&extent, 2).unwrap().into_iter().collect::<Vec<_>>(), [1.0, 2.5, -3.0, 0.04]);
        assert!(rows.read(&extent, 1).unwrap()[[0, 0, 1]].is_nan());
        assert!(rows.read(&extent, 1).is_err());
    }

    #[test]
    fn blank_lines_are_steps_that_are_missing() {
        let blank = |text: &str, header| open(Cursor::new(text.to_owned()), header).err().unwrap_or_default();
        for (text, header, line) in [
            ("1\n2\n\n4\n", false, 3),
            ("1,2\r\n\r\n\r\n3,4\r\n", false, 2),
            ("1\r2\r\r4", false, 3),
            ("\n1\n", false, 1),
            ("a\n\n1\n", true, 2),
        ] {
            assert_eq!(
                blank(text, header),
                format!("line {line}: expected a row of numbers, got a blank line"),
                "{text:?}"
            );
        }
        for text in ["1\n2\n\n\n", "1\r\n2\r\n\r\n", "1\r2\r\r", "1\n2"] {
            let (mut rows, extent) = open(Cursor::new(text), false).unwrap();
            assert_eq!(
                rows.read(&extent, extent.steps).unwrap().into_iter().collect::<Vec<_>>(),
                [1.0, 2.0],
                "{text:?}"
            );
        }
    }

    #[test]
    fn what_is_no_number_is_named() {
        let error = |text: &str, header| match open(Cursor::new(text.to_owned()), header) {
            Ok((mut rows, extent)) => rows.read(&extent, extent.steps).unwrap_err(),
            Err(error) => error,
        };
        assert!(error("a,b\n1,2\n", false).contains("--header"));
        assert!(error("1,2\n1,x\n", false).contains("line 2, column 2"));
        assert!(error("1,2\n1e60,3\n", false).contains("`1e60`"));
        assert!(error("1,2\n1,2,3\n", false).contains("3 fields"));
        assert!(error("1,\n", false).contains("column 2"));
        assert!(error("", false).contains("none"));
        assert!(error("a\n", true).contains("below the heading"));
        assert_eq!(
            (number("inf"), number("-Infinity"), number("1e40")),
            (Some(f32::INFINITY), Some(f32::NEG_INFINITY), None)
        );
    }
}
