//! Reads a monthly time series from a CSV file.

use std::{fmt, fs, path::Path};

use crate::error::{Error, Result};

/// Number of months in a year.
pub(crate) const MONTHS_PER_YEAR: usize = 12;

/// A calendar month, stored as the number of months since January of the year 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Month(usize);

impl Month {
    /// Parses a month such as `1959-01`.
    fn parse(text: &str) -> Option<Self> {
        let (year, month) = text.split_once('-')?;
        let is_digits = |text: &str, count| text.len() == count && text.bytes().all(|b| b.is_ascii_digit());
        if !is_digits(year, 4) || !is_digits(month, 2) {
            return None;
        }
        let (year, month): (usize, usize) = (year.parse().ok()?, month.parse().ok()?);
        (1..=MONTHS_PER_YEAR).contains(&month).then(|| Month(year * MONTHS_PER_YEAR + month - 1))
    }

    /// The month as a number of years with a fraction, such as 1959.5, for charts.
    pub(crate) fn years(self) -> f64 {
        self.0 as f64 / MONTHS_PER_YEAR as f64
    }
}

impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}", self.0 / MONTHS_PER_YEAR, self.0 % MONTHS_PER_YEAR + 1)
    }
}

/// Positive values of consecutive months. The last months are held back from training and are to be forecast.
#[derive(Debug)]
pub(crate) struct Series {
    /// Month of the first value.
    first_month: Month,
    values: Vec<f64>,
    /// Number of known values: those before the months that are held back.
    known_count: usize,
}

impl Series {
    /// Reads the columns `month` and `passengers_thousands` of a CSV file, and holds back the values of the last
    /// `held_back_months` months.
    pub(crate) fn read(path: &Path, held_back_months: usize) -> Result<Self> {
        let series = Self::parse(&fs::read_to_string(path).map_err(Error::io(path))?, path)?;
        series.hold_back(held_back_months).map_err(|why| Error::file(path, why))
    }

    /// Parses the text of a CSV file. `path` is for error messages.
    fn parse(text: &str, path: &Path) -> Result<Self> {
        let text = text.trim_start_matches('\u{feff}');
        let error = |line, why| Error::InvalidLine { path: path.into(), line, why };
        let mut rows = text.lines().zip(1..).filter(|(row, _)| !row.trim().is_empty());

        let (header, line) = rows.next().ok_or_else(|| Error::file(path, "the file is empty"))?;
        let header: Vec<_> = split_fields(header).collect();
        let column = |name: &str| {
            let index = header.iter().position(|&column| column == name);
            index.ok_or_else(|| error(line, format!("expected a column `{name}`, got: {}", header.join(", "))))
        };
        let (month_column, passenger_column) = (column("month")?, column("passengers_thousands")?);

        let mut series: Option<Series> = None;
        for (row, line) in rows {
            let row: Vec<_> = split_fields(row).collect();
            if row.len() != header.len() {
                return Err(error(line, format!("expected {} fields, got {}", header.len(), row.len())));
            }
            let (month, value) = (row[month_column], row[passenger_column]);
            let month = Month::parse(month)
                .ok_or_else(|| error(line, format!("expected a month such as 1959-01, got {month:?}")))?;
            let value = value.parse().ok().filter(|v: &f64| v.is_finite() && *v > 0.0);
            let value = value
                .ok_or_else(|| error(line, format!("expected a positive number, got {:?}", row[passenger_column])))?;
            let series =
                series.get_or_insert_with(|| Series { first_month: month, values: Vec::new(), known_count: 0 });
            let next_month = series.month(series.len());
            if month != next_month {
                return Err(error(line, format!("expected the month {next_month}, got {month}")));
            }
            series.values.push(value);
            series.known_count += 1;
        }
        series.ok_or_else(|| Error::file(path, "the file has no rows"))
    }

    /// Number of months in the series, including those that are held back.
    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }

    /// Values of all months.
    pub(crate) fn values(&self) -> &[f64] {
        &self.values
    }

    /// Calendar month number `k`, counted from 0 at the first value. It may be after the last value.
    pub(crate) fn month(&self, k: usize) -> Month {
        Month(self.first_month.0 + k)
    }

    /// The known values: all values that are not held back.
    pub(crate) fn known_values(&self) -> &[f64] {
        &self.values[..self.known_count]
    }

    /// The values of the last months, which are held back to be compared with a forecast.
    pub(crate) fn held_back_values(&self) -> &[f64] {
        &self.values[self.known_count..]
    }

    /// Marks the values of the last `months` months as held back. Fails if fewer than 13 other values remain, because
    /// year-over-year growth needs 13.
    fn hold_back(self, months: usize) -> Result<Self, String> {
        let min_months = MONTHS_PER_YEAR + 1 + months;
        if self.len() < min_months {
            return Err(format!(
                "expected at least {min_months} months ({months} of them to forecast), got {}",
                self.len()
            ));
        }
        Ok(Series { known_count: self.len() - months, ..self })
    }
}

/// Splits a row of a CSV file into its fields. Quoted fields are not supported.
fn split_fields(row: &str) -> impl Iterator<Item = &str> {
    row.split(',').map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Series, String> {
        Series::parse(text, Path::new("file.csv")).map_err(|e| e.to_string())
    }

    #[test]
    fn finds_columns_by_name() -> Result<(), String> {
        let series = parse("\u{feff}passengers_thousands, month\r\n112,1949-12\r\n118.5,1950-01\r\n\r\n")?;
        assert_eq!((series.values(), series.month(0).to_string()), (&[112.0, 118.5][..], "1949-12".into()));
        assert_eq!(series.month(13).to_string(), "1951-01");
        Ok(())
    }

    #[test]
    fn errors_name_the_line() {
        let header = "month,passengers_thousands\n";
        for (rows, want) in [
            ("1949-01,112\n1949-02\n", "file.csv:3: expected 2 fields, got 1"),
            ("1949-01,112\n\n1949-02,x\n", "file.csv:4: expected a positive number, got \"x\""),
            ("1949-01,-1", "file.csv:2: expected a positive number, got \"-1\""),
            ("1949-01,nan", "file.csv:2: expected a positive number, got \"nan\""),
            ("1949-13,112", "file.csv:2: expected a month such as 1959-01, got \"1949-13\""),
            ("Jan 49,112", "file.csv:2: expected a month such as 1959-01, got \"Jan 49\""),
            ("1949-01,112\n1949-03,1", "file.csv:3: expected the month 1949-02, got 1949-03"),
            ("", "file.csv: the file has no rows"),
        ] {
            assert_eq!(parse(&format!("{header}{rows}")).unwrap_err(), want);
        }
        let want = "file.csv:1: expected a column `passengers_thousands`, got: month, passengers";
        assert_eq!(parse("month,passengers\n").unwrap_err(), want);
        assert_eq!(parse("").unwrap_err(), "file.csv: the file is empty");
    }

    #[test]
    fn rejects_series_that_are_too_short() {
        let series = |len| Series { first_month: Month(0), values: vec![1.0; len], known_count: len };
        let want = "expected at least 37 months (24 of them to forecast), got 36";
        assert_eq!(series(36).hold_back(24).unwrap_err(), want);
        assert_eq!(
            series(37).hold_back(24).map(|s| (s.known_values().len(), s.held_back_values().len())),
            Ok((13, 24))
        );
    }
}
