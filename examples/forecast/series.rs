//! Monthly figures from a CSV file.

use std::{fmt, fs, path::Path};

use crate::error::{Error, Result};

/// Months in a year.
pub(crate) const YEAR: usize = 12;

/// A month, counted from January of the year 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Month(usize);

impl Month {
    /// Reads `1959-01`.
    fn parse(text: &str) -> Option<Self> {
        let (year, month) = text.split_once('-')?;
        let digits = |text: &str, count| text.len() == count && text.bytes().all(|b| b.is_ascii_digit());
        if !digits(year, 4) || !digits(month, 2) {
            return None;
        }
        let (year, month): (usize, usize) = (year.parse().ok()?, month.parse().ok()?);
        (1..=YEAR).contains(&month).then(|| Month(year * YEAR + month - 1))
    }

    /// The month in years, as a coordinate.
    pub(crate) fn years(self) -> f64 {
        self.0 as f64 / YEAR as f64
    }
}

impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}", self.0 / YEAR, self.0 % YEAR + 1)
    }
}

/// Positive figures of consecutive months, the last of them held back to be forecast.
#[derive(Debug)]
pub(crate) struct Series {
    first: Month,
    values: Vec<f64>,
    known: usize,
}

impl Series {
    /// Reads the columns `month` and `passengers_thousands` of a CSV file and holds back the last `months`.
    pub(crate) fn read(path: &Path, months: usize) -> Result<Self> {
        let series = Self::parse(&fs::read_to_string(path).map_err(Error::io(path))?, path)?;
        series.hold_back(months).map_err(|why| Error::file(path, why))
    }

    fn parse(text: &str, path: &Path) -> Result<Self> {
        let text = text.trim_start_matches('\u{feff}');
        let error = |line, why| Error::Line { path: path.into(), line, why };
        let mut rows = text.lines().zip(1..).filter(|(row, _)| !row.trim().is_empty());

        let (header, line) = rows.next().ok_or_else(|| Error::file(path, "the file is empty"))?;
        let header: Vec<_> = fields(header).collect();
        let column = |name: &str| {
            let place = header.iter().position(|&column| column == name);
            place.ok_or_else(|| error(line, format!("no column `{name}`; there are: {}", header.join(", "))))
        };
        let (months, passengers) = (column("month")?, column("passengers_thousands")?);

        let mut series: Option<Series> = None;
        for (row, line) in rows {
            let row: Vec<_> = fields(row).collect();
            if row.len() != header.len() {
                return Err(error(line, format!("expected {} fields, found {}", header.len(), row.len())));
            }
            let (month, value) = (row[months], row[passengers]);
            let month = Month::parse(month)
                .ok_or_else(|| error(line, format!("expected a month such as 1959-01, found {month:?}")))?;
            let value = value.parse().ok().filter(|v: &f64| v.is_finite() && *v > 0.0);
            let value =
                value.ok_or_else(|| error(line, format!("expected a positive number, found {:?}", row[passengers])))?;
            let series = series.get_or_insert_with(|| Series { first: month, values: Vec::new(), known: 0 });
            let next = series.month(series.len());
            if month != next {
                return Err(error(line, format!("expected the month {next}, found {month}")));
            }
            series.values.push(value);
            series.known += 1;
        }
        series.ok_or_else(|| Error::file(path, "there are no months"))
    }

    /// How many months there are.
    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }

    /// All figures.
    pub(crate) fn values(&self) -> &[f64] {
        &self.values
    }

    /// Month number `k`, also beyond the last.
    pub(crate) fn month(&self, k: usize) -> Month {
        Month(self.first.0 + k)
    }

    /// What is known.
    pub(crate) fn known(&self) -> &[f64] {
        &self.values[..self.known]
    }

    /// What is to be forecast.
    pub(crate) fn held_back(&self) -> &[f64] {
        &self.values[self.known..]
    }

    /// Leaves at least a year and a month known, the least that has a growth over a year.
    fn hold_back(self, months: usize) -> Result<Self, String> {
        let need = YEAR + 1 + months;
        if self.len() < need {
            return Err(format!("at least {need} months are needed ({months} to forecast), found {}", self.len()));
        }
        Ok(Series { known: self.len() - months, ..self })
    }
}

/// The fields of a row; none of ours needs quotes.
fn fields(row: &str) -> impl Iterator<Item = &str> {
    row.split(',').map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Series, String> {
        Series::parse(text, Path::new("file.csv")).map_err(|e| e.to_string())
    }

    #[test]
    fn columns_are_found_by_name() -> Result<(), String> {
        let series = parse("\u{feff}passengers_thousands, month\r\n112,1949-12\r\n118.5,1950-01\r\n\r\n")?;
        assert_eq!((series.values(), series.month(0).to_string()), (&[112.0, 118.5][..], "1949-12".into()));
        assert_eq!(series.month(13).to_string(), "1951-01");
        Ok(())
    }

    #[test]
    fn errors_name_the_line() {
        let header = "month,passengers_thousands\n";
        for (rows, want) in [
            ("1949-01,112\n1949-02\n", "file.csv:3: expected 2 fields, found 1"),
            ("1949-01,112\n\n1949-02,x\n", "file.csv:4: expected a positive number, found \"x\""),
            ("1949-01,-1", "file.csv:2: expected a positive number, found \"-1\""),
            ("1949-01,nan", "file.csv:2: expected a positive number, found \"nan\""),
            ("1949-13,112", "file.csv:2: expected a month such as 1959-01, found \"1949-13\""),
            ("Jan 49,112", "file.csv:2: expected a month such as 1959-01, found \"Jan 49\""),
            ("1949-01,112\n1949-03,1", "file.csv:3: expected the month 1949-02, found 1949-03"),
            ("", "file.csv: there are no months"),
        ] {
            assert_eq!(parse(&format!("{header}{rows}")).unwrap_err(), want);
        }
        let want = "file.csv:1: no column `passengers_thousands`; there are: month, passengers";
        assert_eq!(parse("month,passengers\n").unwrap_err(), want);
        assert_eq!(parse("").unwrap_err(), "file.csv: the file is empty");
    }

    #[test]
    fn a_year_and_a_month_must_be_known() {
        let series = |len| Series { first: Month(0), values: vec![1.0; len], known: len };
        let want = "at least 37 months are needed (24 to forecast), found 36";
        assert_eq!(series(36).hold_back(24).unwrap_err(), want);
        assert_eq!(series(37).hold_back(24).map(|s| (s.known().len(), s.held_back().len())), Ok((13, 24)));
    }
}
