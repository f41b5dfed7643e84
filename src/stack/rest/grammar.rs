//! The language of query parameters: select, filters, order, logic.
//!
//! A recursive descent over characters. It accepts what PostgREST's parser
//! accepts, also where that stops reading before the end of a text; names and
//! values come out as data and are never spliced into SQL ([`sql`](super::sql)
//! quotes the one and binds the other). Depth and number of parts are limited.

mod parser;

use self::parser::Parser;
use super::error::RestError;

/// A column, or something inside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Field {
    pub(crate) name: String,
    pub(crate) path: Vec<JsonStep>,
}

/// One arrow of a JSON path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JsonStep {
    /// `->>` instead of `->`.
    pub(crate) as_text: bool,
    pub(crate) operand: JsonOperand,
}

/// What stands behind an arrow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum JsonOperand {
    Key(String),
    /// A position, with its sign.
    Index(String),
}

/// One item of `select`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SelectItem {
    Field {
        field: Field,
        alias: Option<String>,
        cast: Option<String>,
        /// `count()`, `x.sum()` and their like.
        aggregate: bool,
    },
    Relation(Box<RelationItem>),
}

/// An embedded resource in `select`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RelationItem {
    pub(crate) name: String,
    pub(crate) alias: Option<String>,
    pub(crate) hint: Option<String>,
    /// `!inner`.
    pub(crate) inner: bool,
    /// `...name(…)`.
    pub(crate) spread: bool,
    pub(crate) items: Vec<SelectItem>,
}

/// A condition on one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) field: Field,
    pub(crate) condition: Condition,
}

/// An operator with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) negated: bool,
    pub(crate) operation: Operation,
}

/// What a field is compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Operation {
    /// An operator of SQL and its right side.
    Compare {
        operator: &'static str,
        quantifier: Option<Quantifier>,
        value: String,
    },
    /// `like` and `ilike`, where `*` is `%`.
    Like {
        operator: &'static str,
        quantifier: Option<Quantifier>,
        value: String,
    },
    In(Vec<String>),
    /// The keyword after `is`, in SQL.
    Is(&'static str),
    IsDistinct(String),
    /// Full text search: the function, its language, the query.
    Search {
        function: &'static str,
        language: Option<String>,
        value: String,
    },
}

/// `any` or `all`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Quantifier {
    Any,
    All,
}

/// A tree of conditions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Logic {
    Filter(Filter),
    Group { negated: bool, any: bool, members: Vec<Logic> },
}

/// One key of `order`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OrderTerm {
    /// The embedded resource whose field it is.
    pub(crate) relation: Option<String>,
    pub(crate) field: Field,
    pub(crate) descending: Option<bool>,
    pub(crate) nulls_first: Option<bool>,
}

/// What the value of a parameter of a called function is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FilterOrArgument {
    Filter(Condition),
    Argument,
}

/// Parses `select`.
pub(crate) fn parse_select(text: &str) -> Result<Vec<SelectItem>, RestError> {
    let mut parser = Parser::new(text);
    parser.select_items(0).map_err(|f| parser.error(f, &format!("select parameter ({text})")))
}

/// Parses the name of a filter or order parameter: the path of embedded
/// resources and the field.
pub(crate) fn parse_tree_path(key: &str) -> Result<(Vec<String>, Field), RestError> {
    let mut parser = Parser::new(key);
    parser.tree_path().map_err(|f| parser.error(f, &format!("tree path ({key})")))
}

/// Parses the value of a filter, of which a called function's argument is
/// told by its lack of an operator when `arguments` is set.
pub(crate) fn parse_filter_value(
    text: &str,
    arguments: bool,
) -> Result<FilterOrArgument, RestError> {
    let mut parser = Parser::new(text);
    match parser.condition(Parser::plain_value) {
        Ok(condition) => Ok(FilterOrArgument::Filter(condition)),
        Err(failure) if arguments && !failure.consumed => Ok(FilterOrArgument::Argument),
        Err(failure) => Err(parser.error(failure, &format!("filter ({text})"))),
    }
}

/// Parses `order`.
pub(crate) fn parse_order(text: &str) -> Result<Vec<OrderTerm>, RestError> {
    let mut parser = Parser::new(text);
    parser.order_terms().map_err(|f| parser.error(f, &format!("order ({text})")))
}

/// Parses `or`, `and` and their negations, on whatever level.
pub(crate) fn parse_logic(key: &str, text: &str) -> Result<(Vec<String>, Logic), RestError> {
    let mut names = Parser::new(key);
    let mut path = names.name_path().map_err(|f| names.error(f, &format!("logic path ({key})")))?;
    let operator = path.pop().unwrap_or_default();
    let negated = operator == "not" || path.iter().any(|name| name == "not");
    path.retain(|name| name != "not");
    let mut parser = Parser::new(text);
    let members = parser.group(0).map_err(|f| parser.error(f, &format!("logic tree ({text})")))?;
    Ok((path, Logic::Group { negated, any: operator == "or", members }))
}

/// Parses a list of column names.
pub(crate) fn parse_columns(text: &str) -> Result<Vec<String>, RestError> {
    let mut parser = Parser::new(text);
    parser
        .separated(|parser| parser.field_name())
        .map_err(|f| parser.error(f, &format!("columns parameter ({text})")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(result: Result<impl std::fmt::Debug, RestError>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn select_is_parsed() {
        let items =
            parse_select("id,label:name::text,attrs->dims->>w,rel!hint!inner(*,...x(y))").unwrap();
        assert_eq!(items.len(), 4);
        let SelectItem::Field { field, .. } = &items[2] else { panic!("{items:?}") };
        assert_eq!(field.path.len(), 2);
        let SelectItem::Relation(relation) = &items[3] else { panic!("{items:?}") };
        assert!(relation.inner && relation.hint.as_deref() == Some("hint"));
        assert_eq!(relation.items.len(), 2);
        assert!(parse_select("").unwrap().is_empty());
    }

    #[test]
    fn wrong_selects_say_where() {
        assert_eq!(
            message(parse_select("id!!")),
            "\"failed to parse select parameter (id!!)\" (line 1, column 3)"
        );
        assert_eq!(
            message(parse_select("price::numeric(4,1)")),
            "\"failed to parse select parameter (price::numeric(4,1))\" (line 1, column 15)"
        );
        assert!(parse_select("a.b.c").is_err());
        assert!(parse_select("id,").is_err());
    }

    #[test]
    fn filters_are_parsed() {
        let filter = |text| parse_filter_value(text, false);
        let Ok(FilterOrArgument::Filter(condition)) = filter("not.in.(\"a,b\",c)") else {
            panic!()
        };
        assert!(condition.negated);
        assert_eq!(condition.operation, Operation::In(vec!["a,b".into(), "c".into()]));
        assert!(filter("neq(any).{1}").is_err());
        assert!(filter("is.maybe").is_err());
        assert!(filter("eq").is_err());
        let Ok(FilterOrArgument::Filter(condition)) = filter("like(all).{*a*}") else { panic!() };
        assert!(matches!(condition.operation, Operation::Like { .. }));
        assert_eq!(parse_filter_value("3", true).unwrap(), FilterOrArgument::Argument);
        assert!(parse_filter_value("in.(1", true).is_err());
    }

    #[test]
    fn logic_is_parsed() {
        let (path, logic) =
            parse_logic("books.not.or", "(id.eq.1,and(a.is.null,not.or(b.lt.2)))").unwrap();
        assert_eq!(path, ["books"]);
        let Logic::Group { negated, any, members } = logic else { panic!() };
        assert!(negated && any && members.len() == 2);
        assert!(parse_logic("or", "(id.eq.1,id.eq.2").is_err());
        assert!(parse_logic("or", "id.eq.1").is_err());
    }

    #[test]
    fn order_is_parsed() {
        let terms = parse_order("a.desc.nullslast, b->c, rel(d).asc").unwrap();
        assert_eq!(terms.len(), 3);
        assert_eq!(terms[0].nulls_first, Some(false));
        assert_eq!(terms[2].relation.as_deref(), Some("rel"));
        assert!(parse_order("id.up").is_err());
        assert!(parse_order("").is_err());
    }

    #[test]
    fn depth_is_limited() {
        let deep = format!("{}x{}", "a(".repeat(200), ")".repeat(200));
        assert!(matches!(parse_select(&deep), Err(RestError::TooComplex { .. })));
        let deep = format!("{}id.eq.1{}", "(or".repeat(100), ")".repeat(100));
        assert!(parse_logic("or", &deep).is_err());
        let wide = format!("({}id.eq.1)", "id.eq.1,".repeat(5_000));
        assert!(matches!(parse_logic("or", &wide), Err(RestError::TooComplex { .. })));
    }
}
