//! Reads .csv files: one sequence, with a row of numbers for each step.

use std::io::{self, Read, Seek};

use ::csv::{ByteRecord, Reader, ReaderBuilder, StringRecord, Trim};
use lstm::ndarray::Array3;

use super::{Element, Layout, SequenceShape, array_from_values};

/// Reader of the rows of a .csv file, from its current position to its end.
pub(super) struct RowReader<R> {
    csv: Reader<R>,
}

/// Longest row in bytes. The csv crate holds a row in memory.
const MAX_ROW_BYTES: usize = 1 << 22;

/// A reader that fails at a row that is too long, and if a blank line is followed by other text. The csv crate skips blank
/// lines, which would silently drop a step.
struct LineCheck<R> {
    inner: R,
    /// Number of the current line, from 1.
    line: u64,
    /// Whether the current line has no bytes so far.
    line_is_empty: bool,
    /// Whether the last byte was a carriage return; a line feed after it does not end another line.
    after_carriage_return: bool,
    /// Number of the first blank line, if there was one.
    blank_line: Option<u64>,
    /// Number of bytes of the current row so far. A row has several lines if a field in quotes has.
    row_bytes: usize,
    /// Whether the next byte begins a field.
    begins_field: bool,
    /// Whether the next byte is in a field in quotes. A quote in it is written twice, which ends it and begins another.
    in_quotes: bool,
    /// Whether the last byte ended a field in quotes.
    after_quotes: bool,
}

impl<R: Read> Read for LineCheck<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(out)?;
        for &byte in &out[..n] {
            self.count_row_bytes(byte)?;
            match byte {
                b'\n' if self.after_carriage_return => {}
                b'\r' | b'\n' => {
                    if self.line_is_empty {
                        self.blank_line.get_or_insert(self.line);
                    }
                    (self.line, self.line_is_empty) = (self.line + 1, true);
                }
                _ => {
                    if let Some(line) = self.blank_line {
                        return Err(io::Error::other(format!(
                            "line {line}: expected a row of numbers, got a blank line"
                        )));
                    }
                    self.line_is_empty = false;
                }
            }
            self.after_carriage_return = byte == b'\r';
        }
        Ok(n)
    }
}

impl<R> LineCheck<R> {
    fn new(inner: R) -> Self {
        LineCheck {
            inner,
            line: 1,
            line_is_empty: true,
            after_carriage_return: false,
            blank_line: None,
            row_bytes: 0,
            begins_field: true,
            in_quotes: false,
            after_quotes: false,
        }
    }

    /// Counts a byte, and fails if the row has too many.
    fn count_row_bytes(&mut self, byte: u8) -> io::Result<()> {
        self.row_bytes += 1;
        match byte {
            b'"' if self.in_quotes => (self.in_quotes, self.after_quotes) = (false, true),
            b'"' => (self.in_quotes, self.after_quotes) = (self.begins_field || self.after_quotes, false),
            _ => self.after_quotes = false,
        }
        let ends_line = matches!(byte, b'\r' | b'\n');
        self.begins_field = !self.in_quotes && (ends_line || byte == b',');
        if ends_line && !self.in_quotes {
            self.row_bytes = 0;
        }
        if self.row_bytes > MAX_ROW_BYTES {
            return Err(io::Error::other(format!(
                "line {}: expected rows of at most {} MiB, got a longer one; write wide arrays to an .npy file",
                self.line,
                MAX_ROW_BYTES >> 20
            )));
        }
        Ok(())
    }
}

/// Opens a .csv file: reads it once to count its rows, which must have the same number of fields, and rewinds it.
pub(super) fn open<R: Read + Seek>(mut r: R, layout: Layout) -> Result<(RowReader<R>, SequenceShape), String> {
    let has_header = layout.header;
    let mut builder = ReaderBuilder::new();
    // `flexible`, so that rows of different lengths are found here, after the check of separators.
    builder.has_headers(has_header).trim(Trim::All).flexible(true);
    let mut csv = builder.from_reader(LineCheck::new(&mut r));
    let (mut steps, mut features) = (0, 0);
    let mut record = ByteRecord::new();
    while csv.read_byte_record(&mut record).map_err(|e| e.to_string())? {
        let line = record.position().map_or(0, ::csv::Position::line);
        for (separator, name) in [(b';', "semicolons"), (b'\t', "tabs")] {
            if record.iter().any(|field| field.contains(&separator)) {
                return Err(format!(
                    "line {line}: the columns are separated by {name}; expected commas between them and a point in \
                     decimal numbers"
                ));
            }
        }
        if steps > 0 && record.len() != features {
            return Err(format!(
                "line {line}: expected {features} fields as in the rows before, got {} fields",
                record.len()
            ));
        }
        features = record.len();
        steps += 1;
    }
    if steps == 0 {
        return Err(format!(
            "expected rows of numbers, found none{}",
            if has_header { " below the header" } else { "" }
        ));
    }
    drop(csv);
    if layout.tokens && features != 1 {
        return Err(format!("expected one token per row, got {features}; several sequences need an .npy file"));
    }
    r.rewind().map_err(|e| e.to_string())?;
    let csv = builder.from_reader(r);
    Ok((RowReader { csv }, SequenceShape { batch: 1, steps, features, is_single_sequence: true, time_major: false }))
}

impl<R: Read> RowReader<R> {
    /// Reads the next `n` rows as an array of shape `(1, n, features)`.
    pub(super) fn read<T: Element>(&mut self, sequence_shape: &SequenceShape, n: usize) -> Result<Array3<T>, String> {
        let mut values = Vec::new();
        let mut record = StringRecord::new();
        for _ in 0..n {
            if !self.csv.read_record(&mut record).map_err(|e| e.to_string())? {
                return Err("the file was truncated while it was read".into());
            }
            let line = record.position().map_or(0, ::csv::Position::line);
            for (column, field) in (1..).zip(&record) {
                values.push(T::parse(field).ok_or_else(|| {
                    let hint = if line == 1 { "; if the first row is a header, use --header" } else { "" };
                    format!("line {line}, column {column}: expected {}, got `{field}`{hint}", T::EXPECTED)
                })?);
            }
        }
        array_from_values((1, n, sequence_shape.features), values)
    }
}

/// Parses a decimal number, and rounds it to the nearest f32. Returns `None` for text that is no number and for finite
/// numbers beyond the range of f32.
pub(super) fn parse_number(field: &str) -> Option<f32> {
    let value: f32 = field.parse().ok()?;
    (value.is_finite() || field.contains(['n', 'N'])).then_some(value)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn header(header: bool) -> Layout {
        Layout { header, ..Layout::default() }
    }

    #[test]
    fn names_other_separators() {
        for (text, name) in [("1;2\n3;4\n", "semicolons"), ("1,5;2\n3;4\n", "semicolons"), ("1\t2\n", "tabs")] {
            let error = open(Cursor::new(text), Layout::default()).err().unwrap();
            assert!(error.starts_with("line 1: ") && error.contains(name) && error.contains("commas"), "{error}");
        }
        // White space around a number is no separator.
        assert!(open(Cursor::new("1,\t2\t\n"), Layout::default()).is_ok());
    }

    #[test]
    fn reads_tokens() {
        let layout = Layout { tokens: true, ..Layout::default() };
        let (mut rows, shape) = open(Cursor::new("3\n-1\n99999999999\n"), layout).unwrap();
        assert_eq!(rows.read::<i64>(&shape, 3).unwrap().into_iter().collect::<Vec<_>>(), [3, -1, 99_999_999_999]);
        assert!(open(Cursor::new("1,2\n"), layout).err().unwrap().contains("one token per row"));
        let (mut rows, shape) = open(Cursor::new("3\n1.5\n"), layout).unwrap();
        assert!(rows.read::<i64>(&shape, 2).unwrap_err().contains("line 2, column 1: expected an integer"));
    }

    #[test]
    fn reads_rows_in_chunks() {
        let text = "a,b\n1, 2.5\n-3,4e-2\n5,nan\n\n";
        let (mut rows, sequence_shape) = open(Cursor::new(text), header(true)).unwrap();
        assert_eq!((sequence_shape.steps, sequence_shape.features), (3, 2));
        assert_eq!(
            rows.read::<f32>(&sequence_shape, 2).unwrap().into_iter().collect::<Vec<_>>(),
            [1.0, 2.5, -3.0, 0.04]
        );
        assert!(rows.read::<f32>(&sequence_shape, 1).unwrap()[[0, 0, 1]].is_nan());
        assert!(rows.read::<f32>(&sequence_shape, 1).is_err());
    }

    #[test]
    fn rejects_blank_lines_between_rows() {
        let open_error =
            |text: &str, has_header| open(Cursor::new(text.to_owned()), header(has_header)).err().unwrap_or_default();
        for (text, has_header, line) in [
            ("1\n2\n\n4\n", false, 3),
            ("1,2\r\n\r\n\r\n3,4\r\n", false, 2),
            ("1\r2\r\r4", false, 3),
            ("\n1\n", false, 1),
            ("a\n\n1\n", true, 2),
        ] {
            assert_eq!(
                open_error(text, has_header),
                format!("line {line}: expected a row of numbers, got a blank line"),
                "{text:?}"
            );
        }
        for text in ["1\n2\n\n\n", "1\r\n2\r\n\r\n", "1\r2\r\r", "1\n2"] {
            let (mut rows, sequence_shape) = open(Cursor::new(text), header(false)).unwrap();
            assert_eq!(
                rows.read::<f32>(&sequence_shape, sequence_shape.steps).unwrap().into_iter().collect::<Vec<_>>(),
                [1.0, 2.0],
                "{text:?}"
            );
        }
    }

    /// A text followed by another one again and again, and the number of bytes that were read.
    struct Endless<'a>(&'a [u8], &'a [u8], usize);

    impl Read for Endless<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            out.iter_mut().for_each(|byte| {
                let rest = || self.1[(self.2 - self.0.len()) % self.1.len()];
                *byte = self.0.get(self.2).copied().unwrap_or_else(rest);
                self.2 += 1;
            });
            Ok(out.len())
        }
    }

    impl Seek for Endless<'_> {
        fn seek(&mut self, _: io::SeekFrom) -> io::Result<u64> {
            Ok(self.2 as u64)
        }
    }

    #[test]
    fn rows_have_a_largest_length() {
        for (start, rest) in [("", "\0"), ("", "0"), ("", "0,"), ("\"", "0,\n"), ("1,2\n\"\"\"", "0\r\n\"\"")] {
            let mut file = Endless(start.as_bytes(), rest.as_bytes(), 0);
            let error = open(&mut file, Layout::default()).err().unwrap();
            assert!(error.contains("expected rows of at most 4 MiB"), "{start:?} {rest:?}: {error}");
            assert!(file.2 < 2 * MAX_ROW_BYTES, "{start:?} {rest:?}: {} bytes were read", file.2);
        }
        // Short rows in a long file, with quotes that belong to a field.
        let row = "\"1\",2,\"3\"\n";
        let text = format!("a\"b,\"c\"\"d\",e\"\"\n{}", row.repeat(2 * MAX_ROW_BYTES / row.len()));
        let (mut rows, shape) = open(Cursor::new(text), header(true)).unwrap();
        assert_eq!(rows.read::<f32>(&shape, 1).unwrap().into_iter().collect::<Vec<_>>(), [1.0, 2.0, 3.0]);
    }

    #[test]
    fn rejects_fields_that_are_not_numbers() {
        let error = |text: &str, has_header| match open(Cursor::new(text.to_owned()), header(has_header)) {
            Ok((mut rows, sequence_shape)) => rows.read::<f32>(&sequence_shape, sequence_shape.steps).unwrap_err(),
            Err(error) => error,
        };
        assert!(error("a,b\n1,2\n", false).contains("--header"));
        assert!(error("1,2\n1,x\n", false).contains("line 2, column 2"));
        assert!(error("1,2\n1e60,3\n", false).contains("`1e60`"));
        assert!(error("1,2\n1,2,3\n", false).contains("3 fields"));
        assert!(error("1,\n", false).contains("column 2"));
        assert!(error("", false).contains("none"));
        assert!(error("a\n", true).contains("below the header"));
        assert_eq!(
            (parse_number("inf"), parse_number("-Infinity"), parse_number("1e40")),
            (Some(f32::INFINITY), Some(f32::NEG_INFINITY), None)
        );
    }
}
