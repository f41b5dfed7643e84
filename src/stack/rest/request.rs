//! The HTTP side of a request: what it names, by which method, in which schema.

use axum::http::{HeaderMap, Method};
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};

use super::catalog::Name;
use super::error::RestError;
use super::media_type::{MediaType, parse_accept};

/// What a path names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Resource {
    Root,
    Table(String),
    Function(String),
}

impl Resource {
    /// Reads a path, without the prefix that the gateway serves under.
    pub(crate) fn from_path(path: &str) -> Result<Self, RestError> {
        let path = path.strip_prefix('/').unwrap_or(path);
        if path.is_empty() {
            return Ok(Self::Root);
        }
        let segments: Vec<String> = path
            .split('/')
            .map(|segment| {
                percent_decode_str(segment)
                    .decode_utf8()
                    .map(|text| text.into_owned())
                    .map_err(|_| RestError::Path)
            })
            .collect::<Result<_, _>>()?;
        match segments.as_slice() {
            [table] => Ok(Self::Table(table.clone())),
            [rpc, function] if rpc == "rpc" => Ok(Self::Function(function.clone())),
            _ => Err(RestError::Path),
        }
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    Read(Name),
    /// By POST, with a body.
    Call(Name),
    /// By GET or HEAD, with arguments in the query string.
    CallByGet(Name),
    DescribeFunction(Name),
    DescribeRoot,
    ReadRoot,
}

impl Action {
    /// Decides by resource and method. What is not served is refused here.
    pub(crate) fn new(
        resource: Resource,
        schema: &str,
        method: &Method,
    ) -> Result<Self, RestError> {
        let named = |name| Name::new(schema, name);
        match (resource, method.as_str()) {
            (Resource::Function(name), "GET" | "HEAD") => Ok(Self::CallByGet(named(name))),
            (Resource::Function(name), "POST") => Ok(Self::Call(named(name))),
            (Resource::Function(name), "OPTIONS") => Ok(Self::DescribeFunction(named(name))),
            (Resource::Function(_), other) => Err(RestError::RpcMethod(other.to_owned())),
            (Resource::Table(name), "GET" | "HEAD") => Ok(Self::Read(named(name))),
            (Resource::Table(_), "POST") => {
                Err(RestError::Unsupported { feature: "Inserts and upserts into tables" })
            }
            (Resource::Table(_), "PUT") => {
                Err(RestError::Unsupported { feature: "Upserts of single rows" })
            }
            (Resource::Table(_), "PATCH") => {
                Err(RestError::Unsupported { feature: "Updates of tables" })
            }
            (Resource::Table(_), "DELETE") => {
                Err(RestError::Unsupported { feature: "Deletes from tables" })
            }
            (Resource::Table(_), "OPTIONS") => {
                Err(RestError::Unsupported { feature: "Lists of the methods of tables" })
            }
            (Resource::Root, "GET" | "HEAD") => Ok(Self::ReadRoot),
            (Resource::Root, "OPTIONS") => Ok(Self::DescribeRoot),
            (_, other) => Err(RestError::Method(other.to_owned())),
        }
    }
}

/// The schema of a request, and whether it was negotiated: asked for by a
/// header, or the first of several.
pub(crate) fn negotiate_schema<'a>(
    schemas: &'a [String],
    headers: &HeaderMap,
    method: &Method,
) -> Result<(&'a str, bool), RestError> {
    let writes = [Method::POST, Method::PUT, Method::PATCH, Method::DELETE].contains(method);
    let header = if writes { "content-profile" } else { "accept-profile" };
    let default = schemas.first().map_or("public", String::as_str);
    match headers.get(header).map(|value| String::from_utf8_lossy(value.as_bytes())) {
        None => Ok((default, schemas.len() != 1)),
        Some(wanted) => schemas
            .iter()
            .find(|schema| **schema == wanted)
            .map(|schema| (schema.as_str(), true))
            .ok_or_else(|| RestError::Schema {
                name: wanted.into_owned(),
                exposed: schemas.to_vec(),
            }),
    }
}

/// The accepted media types, the best first.
pub(crate) fn accepted(headers: &HeaderMap) -> Vec<MediaType> {
    match headers.get("accept").and_then(|value| value.to_str().ok()) {
        None => vec![MediaType::Any],
        Some(text) => parse_accept(text),
    }
}

/// The media type of the body; JSON unless it says otherwise.
pub(crate) fn content_type(headers: &HeaderMap) -> MediaType {
    match headers.get("content-type").and_then(|value| value.to_str().ok()) {
        None => MediaType::Json,
        Some(text) => MediaType::parse(text),
    }
}

/// The headers as the setting `request.headers` has them: JSON with names in
/// lower case, without cookies.
pub(crate) fn headers_setting(headers: &HeaderMap) -> String {
    let object: Map<String, Value> = headers
        .iter()
        .filter(|(name, _)| *name != "cookie")
        .map(|(name, value)| {
            let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
            (name.as_str().to_owned(), Value::String(text))
        })
        .collect();
    Value::Object(object).to_string()
}

/// The cookies as the setting `request.cookies` has them.
pub(crate) fn cookies_setting(headers: &HeaderMap) -> String {
    let text = headers.get("cookie").map(|value| String::from_utf8_lossy(value.as_bytes()));
    let object: Map<String, Value> = text
        .iter()
        .flat_map(|text| text.split(';'))
        .filter_map(|cookie| {
            let (name, value) = cookie.split_once('=')?;
            Some((name.trim().to_owned(), Value::String(value.trim().to_owned())))
        })
        .collect();
    Value::Object(object).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_resources() {
        let named = |path: &str| Resource::from_path(path).ok();
        assert_eq!(named("/"), Some(Resource::Root));
        assert_eq!(named("/%63ategories"), Some(Resource::Table("categories".into())));
        assert_eq!(named("/rpc/f"), Some(Resource::Function("f".into())));
        assert_eq!(named("/books/"), None);
        assert_eq!(named("/a/b/c"), None);
    }
}
