//! The `Prefer` header: what the client asks for, and what of it was applied.

use axum::http::HeaderMap;

/// How the total number of rows is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Count {
    /// By counting.
    Exact,
    /// By the planner's guess.
    Planned,
    /// By counting up to the maximum of rows, by the planner's guess beyond.
    Estimated,
}

/// What a client prefers. The first of two that contradict each other wins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Preferences {
    pub(crate) count: Option<Count>,
    /// `tx=commit` is false, `tx=rollback` true; only read where it is allowed.
    pub(crate) rollback: Option<bool>,
    /// `handling=strict` is true, `handling=lenient` false.
    pub(crate) strict: Option<bool>,
    pub(crate) timezone: Option<String>,
    pub(crate) max_affected: Option<i64>,
    /// What was not understood.
    pub(crate) unknown: Vec<String>,
}

/// Preferences that mean something to PostgREST, but nothing to what is
/// served here.
const WRITE_PREFERENCES: [&str; 7] = [
    "resolution=merge-duplicates",
    "resolution=ignore-duplicates",
    "return=representation",
    "return=minimal",
    "return=headers-only",
    "missing=default",
    "missing=null",
];

impl Preferences {
    /// Reads all `Prefer` headers. `tx=` counts only with `rollback_allowed`.
    pub(crate) fn from_headers(headers: &HeaderMap, rollback_allowed: bool) -> Self {
        let mut preferences = Self::default();
        let values = headers.get_all("prefer");
        for one in values.iter().filter_map(|value| value.to_str().ok()).flat_map(|v| v.split(','))
        {
            preferences.add(one.trim(), rollback_allowed);
        }
        preferences
    }

    fn add(&mut self, preference: &str, rollback_allowed: bool) {
        match preference {
            "count=exact" => _ = self.count.get_or_insert(Count::Exact),
            "count=planned" => _ = self.count.get_or_insert(Count::Planned),
            "count=estimated" => _ = self.count.get_or_insert(Count::Estimated),
            "tx=commit" | "tx=rollback" => {
                if rollback_allowed {
                    self.rollback.get_or_insert(preference == "tx=rollback");
                }
            }
            "handling=strict" => _ = self.strict.get_or_insert(true),
            "handling=lenient" => _ = self.strict.get_or_insert(false),
            other if WRITE_PREFERENCES.contains(&other) => {}
            other => {
                if let Some(zone) = other.strip_prefix("timezone=") {
                    self.timezone.get_or_insert_with(|| zone.to_owned());
                } else if let Some(rows) = other.strip_prefix("max-affected=") {
                    if let Ok(rows) = rows.parse() {
                        self.max_affected.get_or_insert(rows);
                    }
                } else {
                    self.unknown.push(other.to_owned());
                }
            }
        }
    }

    /// Says whether rows are to be counted.
    pub(crate) fn counts_rows(&self) -> bool {
        matches!(self.count, Some(Count::Exact | Count::Estimated))
    }

    /// Says whether the planner's guess is needed.
    pub(crate) fn asks_planner(&self) -> bool {
        matches!(self.count, Some(Count::Planned | Count::Estimated))
    }

    /// Returns the most rows that may be affected, where that counts.
    pub(crate) fn strict_max_affected(&self) -> Option<i64> {
        self.max_affected.filter(|_| self.strict == Some(true))
    }

    /// Returns the value of `Preference-Applied`.
    pub(crate) fn applied(&self, call: bool) -> Option<String> {
        let count = self.count.map(|count| match count {
            Count::Exact => "count=exact",
            Count::Planned => "count=planned",
            Count::Estimated => "count=estimated",
        });
        let rollback = self.rollback.map(|yes| if yes { "tx=rollback" } else { "tx=commit" });
        let strict =
            self.strict.map(|yes| if yes { "handling=strict" } else { "handling=lenient" });
        let timezone = self.timezone.as_ref().map(|zone| format!("timezone={zone}"));
        let max_affected =
            self.strict_max_affected().filter(|_| call).map(|rows| format!("max-affected={rows}"));
        let parts: Vec<&str> =
            [count, rollback, strict, timezone.as_deref(), max_affected.as_deref()]
                .into_iter()
                .flatten()
                .collect();
        (!parts.is_empty()).then(|| parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn read(values: &[&'static str]) -> Preferences {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("prefer", HeaderValue::from_static(value));
        }
        Preferences::from_headers(&headers, true)
    }

    #[test]
    fn the_first_wins_and_the_order_is_fixed() {
        let got =
            read(&["handling=strict, count=exact", "count=planned, tx=rollback, shine=bright"]);
        assert_eq!(got.count, Some(Count::Exact));
        assert_eq!(got.unknown, ["shine=bright"]);
        assert_eq!(got.applied(false).unwrap(), "count=exact, tx=rollback, handling=strict");
        assert_eq!(read(&["return=minimal"]).applied(false), None);
    }
}
