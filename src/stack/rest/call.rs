//! Calls of functions: which of the overloads is meant, and how its arguments
//! are passed.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::catalog::{Argument, Catalog, Function, Name, most_similar};
use super::error::RestError;
use super::media_type::MediaType;
use super::plan::ReadNode;
use super::sql::{SOURCE, Sql, array_literal};

/// What is passed to a function.
#[derive(Debug)]
pub(crate) enum Arguments {
    /// Texts by name, from a query string or a form.
    Direct(Vec<(String, String)>),
    /// A body: JSON with the arguments, or the one unnamed argument itself.
    Body(Bytes),
}

/// Finds the one function that takes exactly the arguments `keys`.
///
/// `content` is the media type of the body when the call has one; then a
/// function with a single unnamed argument may take it whole.
pub(crate) fn find_function<'a>(
    catalog: &'a Catalog,
    name: &Name,
    keys: &BTreeSet<String>,
    content: Option<&MediaType>,
) -> Result<&'a Function, RestError> {
    let all = catalog.functions.get(name).map_or(&[][..], Vec::as_slice);
    let by_name: Vec<&Function> =
        all.iter().filter(|function| takes(function, keys, content)).collect();
    let candidates = if by_name.is_empty() {
        all.iter().filter(|function| takes_whole_body(function, content)).collect()
    } else {
        by_name
    };
    match candidates.as_slice() {
        [function] => Ok(function),
        [] => Err(not_found(catalog, name, keys, content, all)),
        several => Err(RestError::AmbiguousFunction(
            several.iter().map(|function| signature(function)).collect::<Vec<_>>().join(", "),
        )),
    }
}

fn takes(function: &Function, keys: &BTreeSet<String>, content: Option<&MediaType>) -> bool {
    if function.arguments.is_empty() {
        let raw = matches!(content, Some(MediaType::Bytes | MediaType::Text | MediaType::Xml));
        return keys.is_empty() && !raw;
    }
    let known = |key: &String| function.arguments.iter().any(|argument| argument.name == *key);
    keys.iter().all(known)
        && function
            .arguments
            .iter()
            .all(|argument| !argument.required || keys.contains(&argument.name))
}

fn takes_whole_body(function: &Function, content: Option<&MediaType>) -> bool {
    let [argument] = function.arguments.as_slice() else { return false };
    argument.name.is_empty()
        && matches!(
            (content, argument.type_name.as_str()),
            (Some(MediaType::Json), "json" | "jsonb")
                | (Some(MediaType::Text), "text")
                | (Some(MediaType::Xml), "xml")
                | (Some(MediaType::Bytes), "bytea")
        )
}

fn signature(function: &Function) -> String {
    let arguments: Vec<String> = function
        .arguments
        .iter()
        .map(|argument| format!("{} => {}", argument.name, argument.type_name))
        .collect();
    format!("{}.{}({})", function.name.schema, function.name.name, arguments.join(", "))
}

fn not_found(
    catalog: &Catalog,
    name: &Name,
    keys: &BTreeSet<String>,
    content: Option<&MediaType>,
    overloads: &[Function],
) -> RestError {
    let full = format!("{}.{}", name.schema, name.name);
    let list = keys.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    let raw = match content {
        Some(MediaType::Text) => Some("text"),
        Some(MediaType::Xml) => Some("xml"),
        Some(MediaType::Bytes) => Some("bytea"),
        _ => None,
    };
    let (called, searched) = match (raw, keys.len()) {
        (Some(kind), _) => (String::new(), format!("with a single unnamed {kind} parameter")),
        (None, 0) => (" without parameters".to_owned(), "without parameters".to_owned()),
        (None, 1) => (format!("({list})"), format!("with parameter {list}")),
        (None, _) => (format!("({list})"), format!("with parameters {list}")),
    };
    let or_whole = if content == Some(&MediaType::Json) {
        " or with a single unnamed json/jsonb parameter"
    } else {
        ""
    };
    let near = if raw.is_some() {
        None
    } else if overloads.is_empty() {
        let same_schema = catalog.functions.keys().filter(|other| other.schema == name.schema);
        most_similar(same_schema.map(|other| other.name.as_str()), &name.name, 0.75)
            .map(str::to_owned)
    } else {
        let lists: Vec<String> = overloads
            .iter()
            .map(|function| {
                let mut names: Vec<&str> =
                    function.arguments.iter().map(|argument| argument.name.as_str()).collect();
                names.sort_unstable();
                format!("({})", names.join(", "))
            })
            .collect();
        most_similar(lists.iter().map(String::as_str), &format!("({list})"), 0.33)
            .map(|near| format!("{}{near}", name.name))
    };
    RestError::NoFunction {
        message: format!("Could not find the function {full}{called} in the schema cache"),
        details: format!(
            "Searched for the function {full} {searched}{or_whole}, but no matches were found in the schema cache."
        ),
        suggestion: near
            .map(|near| format!("Perhaps you meant to call the function {}.{near}", name.schema)),
    }
}

impl Sql {
    /// Writes the call as the source of what [`Sql::read`] reads.
    pub(crate) fn call(
        &mut self,
        function: &Function,
        keys: &BTreeSet<String>,
        arguments: &Arguments,
        node: &ReadNode,
    ) {
        self.push("with ").push(SOURCE).push(" as (select ");
        if function.returns_row {
            self.returned_columns(node);
        } else {
            self.push("pgrst_call.pgrst_scalar");
        }
        self.push(" from ");
        let passed: Vec<&Argument> =
            function.arguments.iter().filter(|argument| keys.contains(&argument.name)).collect();
        match (function.arguments.as_slice(), arguments) {
            ([only], Arguments::Body(body)) if only.name.is_empty() => {
                self.invoke(function, |sql| sql.whole_body(&only.type_name, body));
            }
            _ if passed.is_empty() => self.invoke(function, |_| {}),
            (_, Arguments::Direct(values)) => {
                let values = group(&passed, values);
                self.invoke(function, |sql| sql.direct_arguments(&passed, &values));
            }
            (_, Arguments::Body(body)) => {
                self.body_arguments(&passed, body);
                self.push(", lateral ");
                self.invoke(function, |sql| {
                    for (position, argument) in passed.iter().enumerate() {
                        sql.push(if position > 0 { ", " } else { "" });
                        sql.push(if argument.variadic { "variadic " } else { "" });
                        sql.name(&argument.name).push(" := pgrst_body.").name(&argument.name);
                    }
                });
            }
        }
        self.push(")");
    }

    fn invoke(&mut self, function: &Function, arguments: impl FnOnce(&mut Self)) {
        if !function.returns_row {
            self.push("(select ");
        }
        self.full_name(&function.name).push("(");
        arguments(self);
        self.push(if function.returns_row { ") pgrst_call" } else { ") pgrst_scalar) pgrst_call" });
    }

    fn whole_body(&mut self, type_name: &str, body: &Bytes) {
        if type_name == "bytea" {
            self.value(format!("\\x{}", hex::encode(body)));
        } else {
            self.value(body.to_vec());
        }
        self.push("::").push(type_name);
    }

    fn direct_arguments(&mut self, passed: &[&Argument], values: &BTreeMap<&str, Vec<String>>) {
        for (position, argument) in passed.iter().enumerate() {
            self.push(if position > 0 { ", " } else { "" });
            self.push(if argument.variadic { "variadic " } else { "" });
            self.name(&argument.name).push(" := ");
            match values.get(argument.name.as_str()).map(Vec::as_slice) {
                Some(given) if argument.variadic => _ = self.value(array_literal(given)),
                Some([.., last]) => _ = self.value(last.as_str()),
                _ => _ = self.push("null"),
            }
            // The name of the type comes from the catalogue.
            self.push("::").push(&argument.call_type);
        }
    }

    /// Takes the arguments out of a JSON object, or of the first one of an
    /// array.
    fn body_arguments(&mut self, passed: &[&Argument], body: &Bytes) {
        let first = body.iter().find(|byte| !matches!(byte, b' ' | b'\t' | b'\r' | b'\n'));
        let record = if first == Some(&b'{') { "json_to_record" } else { "json_to_recordset" };
        self.push("(select ").value(body.to_vec()).push("::json as json_data) pgrst_payload, ");
        self.push("lateral (select ");
        for (position, argument) in passed.iter().enumerate() {
            self.push(if position > 0 { ", " } else { "" }).name(&argument.name);
        }
        self.push(" from ").push(record).push("(pgrst_payload.json_data) as _(");
        for (position, argument) in passed.iter().enumerate() {
            self.push(if position > 0 { ", " } else { "" });
            self.name(&argument.name).push(" ").push(&argument.call_type);
        }
        self.push(") limit 1) pgrst_body");
    }

    /// Names what is needed of a row: what is selected, joined on and filtered
    /// by. The rest need not be readable by the caller.
    fn returned_columns(&mut self, node: &ReadNode) {
        let selected: BTreeSet<&str> =
            node.select.iter().map(|selected| selected.column.name.as_str()).collect();
        if selected.contains("*") {
            self.push("pgrst_call.*");
            return;
        }
        let mut names = selected;
        names.extend(node.joined_columns());
        if names.is_empty() {
            self.push("*");
            return;
        }
        names.extend(node.filtered_columns());
        for (position, name) in names.into_iter().enumerate() {
            self.push(if position > 0 { ", " } else { "" }).push("pgrst_call.").name(name);
        }
    }
}

/// Collects the values of each argument in the order given.
fn group<'a>(
    passed: &[&'a Argument],
    values: &[(String, String)],
) -> BTreeMap<&'a str, Vec<String>> {
    let mut grouped: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for argument in passed {
        let given = values.iter().filter(|(name, _)| *name == argument.name);
        grouped.insert(&argument.name, given.map(|(_, value)| value.clone()).collect());
    }
    grouped
}
