//! The whole statement of a request, and how it is to be run: what was asked,
//! put together with what the catalogue says.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::call::{Arguments, find_function};
use super::catalog::{Catalog, Function, Name, most_similar};
use super::error::RestError;
use super::media_type::{self, MediaType, Shape};
use super::plan::ReadNode;
use super::preference::Count;
use super::query::QueryParameters;
use super::range::RowRange;
use super::sql::{CountedRows, ResultShape, SOURCE, Sql};
use super::{Incoming, RestContext, body, query};

/// A function to be called.
pub(super) struct Call {
    pub(super) name: Name,
    pub(super) keys: BTreeSet<String>,
    pub(super) arguments: Arguments,
    /// The media type of the body, where there is one.
    pub(super) content: Option<MediaType>,
}

impl Call {
    /// Takes the arguments out of a body.
    pub(super) fn from_body(
        name: Name,
        content: MediaType,
        body: Bytes,
        parameters: &QueryParameters,
    ) -> Result<Self, RestError> {
        let (keys, arguments) = match &content {
            MediaType::Json => {
                let keys = match &parameters.columns {
                    Some(columns) => columns.iter().cloned().collect(),
                    None => body::argument_names(&body)?,
                };
                (keys, Arguments::Body(body))
            }
            MediaType::Form => {
                let text = std::str::from_utf8(&body)
                    .map_err(|_| RestError::Body("The form is not UTF-8".to_owned()))?;
                let pairs: Vec<(String, String)> = query::parse_pairs(text)?
                    .into_iter()
                    .map(|(key, value)| (key, value.unwrap_or_default()))
                    .collect();
                let keys = pairs.iter().map(|(key, _)| key.clone()).collect();
                (keys, Arguments::Direct(pairs))
            }
            MediaType::Text | MediaType::Xml | MediaType::Bytes => {
                (BTreeSet::new(), Arguments::Body(body))
            }
            MediaType::Csv => {
                return Err(RestError::Unsupported { feature: "Arguments in CSV" });
            }
            other => {
                return Err(RestError::Body(format!(
                    "Content-Type not acceptable: {}",
                    other.name()
                )));
            }
        };
        Ok(Self { name, keys, arguments, content: Some(content) })
    }
}

/// A statement and how to run it.
pub(super) struct Planned {
    pub(super) query: Sql,
    pub(super) explain: Option<Sql>,
    pub(super) media_type: MediaType,
    pub(super) read_only: bool,
    pub(super) isolation: Option<String>,
    pub(super) role_settings: Vec<(String, String)>,
    pub(super) function_settings: Vec<(String, String)>,
    pub(super) call: bool,
    pub(super) void: bool,
}

/// Plans the reading of a table or view.
pub(super) fn plan_read(
    context: &RestContext,
    catalog: &Catalog,
    incoming: &Incoming<'_>,
    name: &Name,
    parameters: &QueryParameters,
    range: RowRange,
) -> Result<Planned, RestError> {
    if !catalog.tables.contains_key(name) {
        let same_schema = catalog.tables.keys().filter(|other| other.schema == name.schema);
        let near = most_similar(same_schema.map(|other| other.name.as_str()), &name.name, 0.75);
        return Err(RestError::NoTable {
            schema: name.schema.clone(),
            name: name.name.clone(),
            suggestion: near
                .map(|near| format!("Perhaps you meant the table '{}.{near}'", name.schema)),
        });
    }
    let max_rows = context.max_rows.map(i64::from);
    let node = ReadNode::plan(catalog, name.clone(), false, parameters, range, max_rows)?;
    let (media_type, shape) = media_type::negotiate(&incoming.accepted, incoming.head)?;
    incoming.check_preferences()?;

    let mut query = Sql::default();
    query.push("with ").push(SOURCE).push(" as (");
    query.read(&node);
    query.push(")");
    let estimated = incoming.preferences.count == Some(Count::Estimated);
    let count = incoming.preferences.counts_rows().then_some(CountedRows {
        node: &node,
        at_most: max_rows.filter(|_| estimated).map(|rows| rows + 1),
    });
    let result = ResultShape { shape, single: false, scalar: false };
    query.wrap(count, result, |sql| {
        sql.push("select * from ").push(SOURCE);
    });
    let explain = incoming.preferences.asks_planner().then(|| {
        let mut explain = Sql::default();
        explain.push("explain (format json) ");
        explain.count_rows(&node);
        explain
    });
    Ok(Planned {
        query,
        explain,
        media_type,
        read_only: true,
        isolation: isolation_of(catalog, incoming, &[]),
        role_settings: catalog.settings_of_role(&incoming.caller.role).to_vec(),
        function_settings: Vec::new(),
        call: false,
        void: false,
    })
}

/// Plans the call of a function.
pub(super) fn plan_call(
    context: &RestContext,
    catalog: &Catalog,
    incoming: &Incoming<'_>,
    call: &Call,
    parameters: &QueryParameters,
    range: RowRange,
) -> Result<Planned, RestError> {
    let function = find_function(catalog, &call.name, &call.keys, call.content.as_ref())?;
    if function.returns_media {
        return Err(RestError::Unsupported { feature: "Results with a media type of their own" });
    }
    let rows = Name::new(function.name.schema.clone(), function.result_name());
    let max_rows = context.max_rows.map(i64::from);
    let node = ReadNode::plan(catalog, rows, true, parameters, range, max_rows)?;
    let (media_type, shape) = media_type::negotiate(&incoming.accepted, incoming.head)?;
    incoming.check_preferences()?;
    if incoming.preferences.strict_max_affected().is_some() && function.returns_single() {
        return Err(RestError::MaxAffectedShape);
    }

    let mut query = Sql::default();
    query.call(function, &call.keys, &call.arguments, &node);
    let count =
        incoming.preferences.counts_rows().then_some(CountedRows { node: &node, at_most: None });
    query.wrap(count, result_of(function, shape), |sql| sql.read(&node));
    Ok(Planned {
        query,
        explain: None,
        media_type,
        read_only: call.content.is_none() || !function.volatile,
        isolation: isolation_of(catalog, incoming, &function.settings),
        role_settings: catalog.settings_of_role(&incoming.caller.role).to_vec(),
        function_settings: function
            .settings
            .iter()
            .filter(|(name, _)| name != ISOLATION)
            .cloned()
            .collect(),
        call: true,
        void: function.returns_void,
    })
}

fn result_of(function: &Function, shape: Shape) -> ResultShape {
    ResultShape {
        shape,
        single: function.returns_single(),
        scalar: function.returns_scalar() || function.returns_scalars(),
    }
}

/// The setting that must be part of `begin`.
const ISOLATION: &str = "default_transaction_isolation";

/// The isolation level that the function, else the role, asks for. Only the
/// known ones become part of a statement.
fn isolation_of(
    catalog: &Catalog,
    incoming: &Incoming<'_>,
    function_settings: &[(String, String)],
) -> Option<String> {
    let role_settings = catalog.settings_of_role(&incoming.caller.role);
    let of = |settings: &[(String, String)]| {
        let found = settings.iter().rev().find(|(name, _)| name == ISOLATION);
        found.map(|(_, value)| value.to_ascii_lowercase())
    };
    of(function_settings)
        .or_else(|| of(role_settings))
        .filter(|level| ["serializable", "repeatable read"].contains(&level.as_str()))
}
