//! Ranges of rows: limit and offset, the `Range` header, and what
//! `Content-Range` says about them.

use axum::http::StatusCode;

/// A range of row numbers, from zero; `upper` is inclusive. It may be empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RowRange {
    lower: i64,
    upper: Option<i64>,
}

/// The last row of the range that `limit=0` means.
const LIMIT_ZERO_UPPER: i64 = -1;

impl RowRange {
    /// All rows.
    pub(crate) const ALL: Self = Self { lower: 0, upper: None };

    const LIMIT_ZERO: Self = Self { lower: 0, upper: Some(LIMIT_ZERO_UPPER) };

    /// The rows that `limit` and `offset`, as they were written, ask for. What
    /// is not a number counts as not given.
    pub(crate) fn from_parameters(limit: Option<&str>, offset: Option<&str>) -> Self {
        let number = |text: &str| text.trim().parse::<i64>().ok();
        let limited = limit.map(|text| Self::ALL.restrict(number(text)));
        let offset =
            offset.map(|text| number(text).map_or(Self::ALL, |lower| Self { lower, upper: None }));
        match (limited, offset) {
            (Some(limited), Some(offset)) => Self {
                lower: offset.lower,
                // A limit that is no number counts as zero beside an offset.
                upper: Some(
                    offset.lower.saturating_add(limited.limit().unwrap_or(0)).saturating_sub(1),
                ),
            },
            (Some(range), None) | (None, Some(range)) => range,
            (None, None) => Self::ALL,
        }
    }

    /// The rows that a `Range` header asks for; what it cannot read is all.
    pub(crate) fn from_header(value: &str) -> Self {
        let Some((lower, upper)) = value.split_once('-') else { return Self::ALL };
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if lower.is_empty() || !digits(lower) || !digits(upper) {
            return Self::ALL;
        }
        Self { lower: lower.parse().unwrap_or(i64::MAX), upper: upper.parse().ok() }
    }

    /// Cuts the range to at most `limit` rows.
    pub(crate) fn restrict(self, limit: Option<i64>) -> Self {
        let Some(limit) = limit else { return self };
        let last = self.lower.saturating_add(limit).saturating_sub(1);
        Self { lower: self.lower, upper: Some(self.upper.map_or(last, |upper| upper.min(last))) }
    }

    /// Cuts the range to `rows` rows, keeping `limit=0` what it is.
    pub(crate) fn restrict_to_maximum(self, rows: Option<i64>) -> Self {
        if self.is_limit_zero() { Self::LIMIT_ZERO } else { self.restrict(rows) }
    }

    /// The rows that are in both ranges; `limit=0` stays what it is.
    pub(crate) fn intersect(self, limit: Self) -> Self {
        if limit.is_limit_zero() {
            return Self::LIMIT_ZERO;
        }
        let upper = match (self.upper, limit.upper) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        Self { lower: self.lower.max(limit.lower), upper }
    }

    /// Says whether no row can be in the range.
    pub(crate) fn is_empty(self) -> bool {
        self.upper.is_some_and(|upper| upper < self.lower)
    }

    /// Says whether the range came from `limit=0`, the one empty range that
    /// is allowed.
    pub(crate) fn is_limit_zero(self) -> bool {
        self.upper == Some(LIMIT_ZERO_UPPER)
    }

    /// The number of rows, where it is bounded.
    pub(crate) fn limit(self) -> Option<i64> {
        self.upper.map(|upper| 1 + upper - self.lower)
    }

    /// The first row.
    pub(crate) fn offset(self) -> i64 {
        self.lower
    }

    /// Status and `Content-Range` of a page of `rows` rows out of `total`.
    pub(crate) fn status_and_header(self, rows: i64, total: Option<i64>) -> (StatusCode, String) {
        let (lower, upper) = (self.lower, self.lower + rows - 1);
        let status = match total {
            Some(total) if lower > total => StatusCode::RANGE_NOT_SATISFIABLE,
            Some(total) if rows < total => StatusCode::PARTIAL_CONTENT,
            _ => StatusCode::OK,
        };
        let total_text = total.map_or_else(|| "*".to_owned(), |total| total.to_string());
        let header = if total != Some(0) && lower <= upper {
            format!("{lower}-{upper}/{total_text}")
        } else {
            format!("*/{total_text}")
        };
        (status, header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_make_ranges() {
        let range = RowRange::from_parameters(Some("2"), Some("3"));
        assert_eq!((range.offset(), range.limit()), (3, Some(2)));
        assert_eq!(RowRange::from_parameters(Some("abc"), None), RowRange::ALL);
        assert!(RowRange::from_parameters(Some("-1"), None).is_empty());
        assert!(RowRange::from_parameters(Some("0"), None).is_limit_zero());
        assert!(
            RowRange::from_parameters(Some("9223372036854775807"), Some("9")).limit().is_some()
        );
    }

    #[test]
    fn headers_make_ranges() {
        assert_eq!(RowRange::from_header("1-2").limit(), Some(2));
        assert_eq!(RowRange::from_header("5-").limit(), None);
        assert_eq!(RowRange::from_header("abc"), RowRange::ALL);
        assert!(RowRange::from_header("5-1").is_empty());
    }

    #[test]
    fn pages_are_described() {
        let describe = |range: RowRange, rows, total| {
            let (status, header) = range.status_and_header(rows, total);
            (status.as_u16(), header)
        };
        assert_eq!(describe(RowRange::ALL, 7, None), (200, "0-6/*".into()));
        assert_eq!(describe(RowRange::ALL, 0, None), (200, "*/*".into()));
        assert_eq!(describe(RowRange::ALL, 0, Some(0)), (200, "*/0".into()));
        let second = RowRange::from_parameters(Some("2"), Some("2"));
        assert_eq!(describe(second, 2, Some(7)), (206, "2-3/7".into()));
        let end = RowRange::from_parameters(None, Some("7"));
        assert_eq!(describe(end, 0, Some(7)), (206, "*/7".into()));
        let beyond = RowRange::from_parameters(None, Some("100"));
        assert_eq!(describe(beyond, 0, Some(7)), (416, "*/7".into()));
    }
}
