//! Text with a row of numbers for each step.

use std::io::{Read, Seek};

use ::csv::{ByteRecord, Reader, ReaderBuilder, StringRecord, Trim};
use lstm_core::ndarray::Array3;

use super::{Extent, array};

/// The rows that are left.
pub(super) struct Rows<R> {
    csv: Reader<R>,
}

/// Counts the rows, all of which must have as many fields as the first, and goes back to it.
pub(super) fn open<R: Read + Seek>(r: R, header: bool) -> Result<(Rows<R>, Extent), String> {
    let mut csv = ReaderBuilder::new().has_headers(header).trim(Trim::All).from_reader(r);
    let start = csv.position().clone();
    let (mut steps, mut features) = (0, 0);
    let mut record = ByteRecord::new();
    while csv.read_byte_record(&mut record).map_err(|e| e.to_string())? {
        features = record.len();
        steps += 1;
    }
    if steps == 0 {
        return Err(format!("expected rows of numbers, found none{}", if header { " below the heading" } else { "" }));
    }
    // The heading, once read, is not part of the rows again.
    csv.seek(start).map_err(|e| e.to_string())?;
    if header {
        csv.read_byte_record(&mut record).map_err(|e| e.to_string())?;
    }
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
        let text = "a,b\n1, 2.5\n-3,4e-2\n\n5,nan\n";
        let (mut rows, extent) = open(Cursor::new(text), true).unwrap();
        assert_eq!((extent.steps, extent.features), (3, 2));
        assert_eq!(rows.read(&extent, 2).unwrap().into_iter().collect::<Vec<_>>(), [1.0, 2.5, -3.0, 0.04]);
        assert!(rows.read(&extent, 1).unwrap()[[0, 0, 1]].is_nan());
        assert!(rows.read(&extent, 1).is_err());
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
