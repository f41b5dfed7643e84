//! The query string: which parameter means what.

use std::collections::HashMap;

use percent_encoding::percent_decode_str;

use super::error::RestError;
use super::grammar::{self, Filter, FilterOrArgument, Logic, OrderTerm, SelectItem};
use super::range::RowRange;

/// How many parameters a query may have.
const MAX_PARAMETERS: usize = 1_000;

/// The parameters of a request, each with the path of embedded resources that
/// it belongs to.
#[derive(Debug, Default)]
pub(crate) struct QueryParameters {
    pub(crate) select: Vec<SelectItem>,
    pub(crate) filters: Vec<(Vec<String>, Filter)>,
    pub(crate) logic: Vec<(Vec<String>, Logic)>,
    pub(crate) order: Vec<(Vec<String>, Vec<OrderTerm>)>,
    pub(crate) ranges: Vec<(Vec<String>, RowRange)>,
    /// What `columns` names.
    pub(crate) columns: Option<Vec<String>>,
    /// Arguments of a function called by GET or HEAD.
    pub(crate) arguments: Vec<(String, String)>,
}

impl QueryParameters {
    /// Parses a query string. With `call_by_get`, parameters without an
    /// operator are arguments.
    pub(crate) fn parse(query: &str, call_by_get: bool) -> Result<Self, RestError> {
        let pairs = parse_pairs(query)?;
        let mut parameters = Self::default();
        let (mut order, mut logic, mut filters) = (Vec::new(), Vec::new(), Vec::new());
        let mut select = None;
        let mut columns = None;
        let (mut limits, mut offsets) = (HashMap::new(), HashMap::new());
        for (key, value) in &pairs {
            let Some(value) = value else { continue };
            match (key.as_str(), last_name(key)) {
                (_, "order") => order.push((key, value)),
                (_, "and" | "or") => logic.push((key, value)),
                (_, "limit") => _ = limits.insert(parent_of(key), value),
                (_, "offset") => _ = offsets.insert(parent_of(key), value),
                ("select", _) => _ = select.get_or_insert(value),
                ("columns", _) => _ = columns.get_or_insert(value),
                ("on_conflict", _) => {}
                _ => filters.push((key, value)),
            }
        }
        for (key, value) in order {
            let (path, _) = grammar::parse_tree_path(key)?;
            parameters.order.push((path, grammar::parse_order(value)?));
        }
        for (key, value) in logic {
            parameters.logic.push(grammar::parse_logic(key, value)?);
        }
        parameters.columns = columns.map(|text| grammar::parse_columns(text)).transpose()?;
        parameters.select = grammar::parse_select(select.map_or("*", String::as_str))?;
        for (key, value) in filters {
            let (path, field) = grammar::parse_tree_path(key)?;
            match grammar::parse_filter_value(value, call_by_get)? {
                FilterOrArgument::Filter(condition) => {
                    parameters.filters.push((path, Filter { field, condition }));
                }
                FilterOrArgument::Argument => {
                    parameters.arguments.push((field.name, value.clone()));
                }
            }
        }
        let mut owners: Vec<&str> = limits.keys().chain(offsets.keys()).copied().collect();
        owners.sort_unstable();
        owners.dedup();
        for owner in owners {
            let text = |map: &HashMap<&str, &String>| map.get(owner).map(|value| (*value).clone());
            let range =
                RowRange::from_parameters(text(&limits).as_deref(), text(&offsets).as_deref());
            let (path, _) = grammar::parse_tree_path(&format!("{owner}limit"))?;
            parameters.ranges.push((path, range));
        }
        Ok(parameters)
    }

    /// The range that the top level asks for.
    pub(crate) fn top_range(&self) -> RowRange {
        self.ranges
            .iter()
            .find(|(path, _)| path.is_empty())
            .map_or(RowRange::ALL, |(_, range)| *range)
    }
}

/// The part of a key behind its last dot.
fn last_name(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

/// The part of a key up to and with its last dot.
fn parent_of(key: &str) -> &str {
    key.rfind('.').map_or("", |dot| &key[..=dot])
}

/// Splits and decodes `a=b&c=d`, where a plus sign is a space. A key without
/// an equals sign has no value.
pub(crate) fn parse_pairs(query: &str) -> Result<Vec<(String, Option<String>)>, RestError> {
    let pairs: Vec<&str> = query.split(['&', ';']).filter(|pair| !pair.is_empty()).collect();
    if pairs.len() > MAX_PARAMETERS {
        return Err(RestError::TooComplex { what: "too many parameters" });
    }
    pairs
        .into_iter()
        .map(|pair| {
            let (key, value) = match pair.split_once('=') {
                Some((key, value)) => (key, Some(value)),
                None => (pair, None),
            };
            Ok((decode(key)?, value.map(decode).transpose()?))
        })
        .collect()
}

fn decode(text: &str) -> Result<String, RestError> {
    let spaced = text.replace('+', " ");
    let decoded = percent_decode_str(&spaced).decode_utf8().map_err(|_| RestError::Query {
        message: "The query string is not UTF-8".to_owned(),
        details: "unexpected byte".to_owned(),
    })?;
    Ok(decoded.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_sorted_out() {
        let query = "select=id&id=gt.1&or=(a.eq.1)&books.order=id&books.limit=2&limit=5&b";
        let got = QueryParameters::parse(query, false).unwrap();
        assert_eq!(got.select.len(), 1);
        assert_eq!(got.filters.len(), 1);
        assert_eq!(got.logic.len(), 1);
        assert_eq!(got.order[0].0, ["books"]);
        assert_eq!(got.ranges.len(), 2);
        assert_eq!(got.top_range().limit(), Some(5));
    }

    #[test]
    fn arguments_are_told_from_filters() {
        let got = QueryParameters::parse("author=1&id=gt.1&x=a+b%20c", true).unwrap();
        assert_eq!(got.arguments, [("author".into(), "1".into()), ("x".into(), "a b c".into())]);
        assert_eq!(got.filters.len(), 1);
        assert!(QueryParameters::parse("author=1", false).is_err());
    }

    #[test]
    fn the_number_of_parameters_is_limited() {
        let query = "a=eq.1&".repeat(2_000);
        assert!(QueryParameters::parse(&query, false).is_err());
    }
}
