//! Errors of the REST part and how they look on the wire: PostgREST's codes,
//! messages and statuses, and a code of ours (`INF…`) for what PostgREST would
//! serve and this subset does not.

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Response, StatusCode, header};
use hyper::ext::ReasonPhrase;
use serde_json::{Map, Value, json};
use tokio_postgres::error::{DbError, SqlState};

use crate::stack::jwt::JwtError;

/// Why a request is not served.
#[derive(Debug, thiserror::Error)]
pub enum RestError {
    /// A query parameter cannot be parsed.
    #[error("{message}")]
    Query {
        /// What could not be parsed, and where.
        message: String,
        /// What was found and what was expected.
        details: String,
    },
    /// A function is called by another method than GET, HEAD or POST.
    #[error("Cannot use the {0} method on RPC")]
    RpcMethod(String),
    /// The body cannot be used.
    #[error("{0}")]
    Body(String),
    /// Limit, offset or the `Range` header contradict each other.
    #[error("Requested range not satisfiable")]
    Range {
        /// Which of the two rules is broken.
        details: String,
    },
    /// The schema asked for is not exposed.
    #[error("Invalid schema: {name}")]
    Schema {
        /// The schema asked for.
        name: String,
        /// The exposed schemas.
        exposed: Vec<String>,
    },
    /// None of the accepted media types is produced.
    #[error("None of these media types are available: {0}")]
    MediaType(String),
    /// A filter, order or limit names a resource that is not embedded.
    #[error("'{0}' is not an embedded resource in this request")]
    NotEmbedded(String),
    /// `response.headers` was set to something else than it must be.
    #[error(
        "response.headers guc must be a JSON array composed of objects with a single key and a string value"
    )]
    ResponseHeaders,
    /// `response.status` was set to something that is no status.
    #[error("response.status guc must be a valid status code")]
    ResponseStatus,
    /// One row was asked for and the result has another number.
    #[error("Cannot coerce the result to a single JSON object")]
    Singular {
        /// Rows of the result.
        rows: i64,
    },
    /// The method means nothing here.
    #[error("Unsupported HTTP method: {0}")]
    Method(String),
    /// A related order goes along a relationship to many rows.
    #[error("A related order on '{target}' is not possible")]
    RelatedOrder {
        /// The ordered table.
        origin: String,
        /// The embedded resource.
        target: String,
    },
    /// `raise sqlstate 'PGRST'` carries something that is not as it must be.
    #[error("Could not parse JSON in the \"RAISE SQLSTATE 'PGRST'\" error")]
    Raise {
        /// What is wrong.
        details: String,
        /// What is expected.
        hint: &'static str,
    },
    /// Unknown preferences with `handling=strict`.
    #[error("Invalid preferences given with handling=strict")]
    Preferences(String),
    /// Aggregates are switched off.
    #[error("Use of aggregate functions is not allowed")]
    Aggregates,
    /// More rows than `max-affected`.
    #[error("Query result exceeds max-affected preference constraint")]
    MaxAffected {
        /// Rows affected.
        rows: i64,
    },
    /// `max-affected` on a function that returns no set.
    #[error(
        "Function must return SETOF or TABLE when max-affected preference is used with handling=strict"
    )]
    MaxAffectedShape,
    /// The path names nothing.
    #[error("Invalid path specified in request URL")]
    Path,
    /// No foreign key joins the two.
    #[error("Could not find a relationship between '{parent}' and '{child}' in the schema cache")]
    NoRelationship {
        /// The embedding table.
        parent: String,
        /// The name asked for.
        child: String,
        /// The hint given after `!`.
        using: Option<String>,
        /// The schema searched.
        schema: String,
        /// A near name, as a sentence.
        suggestion: Option<String>,
    },
    /// Several foreign keys join the two.
    #[error(
        "Could not embed because more than one relationship was found for '{parent}' and '{child}'"
    )]
    AmbiguousRelationship {
        /// The embedding table.
        parent: String,
        /// The name asked for.
        child: String,
        /// The candidates, as PostgREST describes them.
        candidates: Vec<Value>,
        /// The candidates as names to use.
        names: String,
    },
    /// No function takes these arguments.
    #[error("{message}")]
    NoFunction {
        /// The whole message.
        message: String,
        /// What was searched for.
        details: String,
        /// A near name, as a sentence.
        suggestion: Option<String>,
    },
    /// Several functions take these arguments.
    #[error("Could not choose the best candidate function between: {0}")]
    AmbiguousFunction(String),
    /// No such table or view.
    #[error("Could not find the table '{schema}.{name}' in the schema cache")]
    NoTable {
        /// The schema searched.
        schema: String,
        /// The name asked for.
        name: String,
        /// A near name, as a sentence.
        suggestion: Option<String>,
    },
    /// The token is refused.
    #[error("{0}")]
    Jwt(#[from] JwtError),
    /// PostgreSQL refused the statement.
    #[error("{}", .error.message)]
    Database {
        /// What PostgreSQL said.
        error: Box<DatabaseRefusal>,
        /// Whether the request ran as the anonymous role.
        anonymous: bool,
    },
    /// No connection to the database can be made.
    #[error("Database connection error. Retrying the connection.")]
    Connection,
    /// The connection was lost on the way.
    #[error("Database client error. Retrying the connection.")]
    ConnectionLost,
    /// The catalogue of tables and functions cannot be read.
    #[error("Could not query the database for the schema cache. Retrying.")]
    NoCatalog,
    /// All connections are in use.
    #[error("Timed out acquiring connection from connection pool.")]
    PoolTimeout,
    /// PostgREST serves this, the embedded gateway does not.
    #[error("{feature} are not served by the embedded gateway")]
    Unsupported {
        /// What is not served, in the plural.
        feature: &'static str,
    },
    /// The body is larger than the limit.
    #[error("The request body is larger than {limit} bytes")]
    BodyTooLarge {
        /// The limit.
        limit: usize,
    },
    /// The query has more parts than the limit.
    #[error("The query is too complex: {what}")]
    TooComplex {
        /// What there is too much of.
        what: &'static str,
    },
}

/// What PostgreSQL said when it refused a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseRefusal {
    /// The SQLSTATE.
    pub code: String,
    /// The message.
    pub message: String,
    /// The detail.
    pub detail: Option<String>,
    /// The hint.
    pub hint: Option<String>,
}

impl From<&DbError> for DatabaseRefusal {
    fn from(error: &DbError) -> Self {
        Self {
            code: error.code().code().to_owned(),
            message: error.message().to_owned(),
            detail: error.detail().map(str::to_owned),
            hint: error.hint().map(str::to_owned),
        }
    }
}

/// An error as it goes out.
struct Rendered {
    status: StatusCode,
    reason: Option<String>,
    code: String,
    message: String,
    details: Value,
    hint: Value,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl RestError {
    /// Turns an error of the client library into one of ours.
    pub(crate) fn from_postgres(error: &tokio_postgres::Error, anonymous: bool) -> Self {
        match error.as_db_error() {
            Some(refusal) => Self::Database { error: Box::new(refusal.into()), anonymous },
            None => Self::ConnectionLost,
        }
    }

    /// Says whether PostgreSQL only refused because an earlier statement of
    /// the same transaction had failed.
    pub(crate) fn is_follow_up(&self) -> bool {
        matches!(self, Self::Database { error, .. }
            if error.code == SqlState::IN_FAILED_SQL_TRANSACTION.code())
    }

    /// Makes the HTTP response. The body is left out for HEAD.
    pub(crate) fn into_response(self, head: bool) -> Response<Body> {
        let rendered = self.render();
        let body = json!({"code": rendered.code, "message": rendered.message,
                          "details": rendered.details, "hint": rendered.hint});
        let mut response =
            Response::new(if head { Body::empty() } else { Body::from(body.to_string()) });
        *response.status_mut() = rendered.status;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json; charset=utf-8"),
        );
        let server = if rendered.code.starts_with("INF") { "Infernet" } else { "PostgREST" };
        if let Ok(value) = HeaderValue::from_str(&format!("{server}; error={}", rendered.code)) {
            headers.insert(HeaderName::from_static("proxy-status"), value);
        }
        for (name, value) in rendered.headers {
            headers.insert(name, value);
        }
        if let Some(reason) = rendered.reason
            && let Ok(phrase) = ReasonPhrase::try_from(reason.into_bytes())
        {
            response.extensions_mut().insert(phrase);
        }
        response
    }

    fn render(self) -> Rendered {
        let message = self.to_string();
        let plain = |status: StatusCode, code: &str| Rendered {
            status,
            reason: None,
            code: code.to_owned(),
            message: message.clone(),
            details: Value::Null,
            hint: Value::Null,
            headers: Vec::new(),
        };
        let text = |value: &str| Value::String(value.to_owned());
        let optional = |value: Option<String>| value.map_or(Value::Null, Value::String);
        let bad = StatusCode::BAD_REQUEST;
        match self {
            Self::Query { details, .. } => {
                Rendered { details: text(&details), ..plain(bad, "PGRST100") }
            }
            Self::RpcMethod(_) => plain(StatusCode::METHOD_NOT_ALLOWED, "PGRST101"),
            Self::Body(_) => plain(bad, "PGRST102"),
            Self::Range { details } => Rendered {
                details: text(&details),
                ..plain(StatusCode::RANGE_NOT_SATISFIABLE, "PGRST103")
            },
            Self::Schema { exposed, .. } => Rendered {
                hint: Value::String(format!(
                    "Only the following schemas are exposed: {}",
                    exposed.join(", ")
                )),
                ..plain(StatusCode::NOT_ACCEPTABLE, "PGRST106")
            },
            Self::MediaType(_) => plain(StatusCode::NOT_ACCEPTABLE, "PGRST107"),
            Self::NotEmbedded(name) => Rendered {
                hint: Value::String(format!(
                    "Verify that '{name}' is included in the 'select' query parameter."
                )),
                ..plain(bad, "PGRST108")
            },
            Self::ResponseHeaders => plain(StatusCode::INTERNAL_SERVER_ERROR, "PGRST111"),
            Self::ResponseStatus => plain(StatusCode::INTERNAL_SERVER_ERROR, "PGRST112"),
            Self::Singular { rows } => Rendered {
                details: Value::String(format!("The result contains {rows} rows")),
                ..plain(StatusCode::NOT_ACCEPTABLE, "PGRST116")
            },
            Self::Method(_) => plain(StatusCode::METHOD_NOT_ALLOWED, "PGRST117"),
            Self::RelatedOrder { origin, target } => Rendered {
                details: Value::String(format!(
                    "'{origin}' and '{target}' do not form a many-to-one or one-to-one relationship"
                )),
                ..plain(bad, "PGRST118")
            },
            Self::Raise { details, hint } => Rendered {
                details: text(&details),
                hint: text(hint),
                ..plain(StatusCode::INTERNAL_SERVER_ERROR, "PGRST121")
            },
            Self::Preferences(list) => Rendered {
                details: Value::String(format!("Invalid preferences: {list}")),
                ..plain(bad, "PGRST122")
            },
            Self::Aggregates => plain(bad, "PGRST123"),
            Self::MaxAffected { rows } => Rendered {
                details: Value::String(format!("The query affects {rows} rows")),
                ..plain(bad, "PGRST124")
            },
            Self::MaxAffectedShape => plain(bad, "PGRST128"),
            Self::Path => plain(StatusCode::NOT_FOUND, "PGRST125"),
            Self::NoRelationship { parent, child, using, schema, suggestion } => {
                let using = using.map(|hint| format!("' using the hint '{hint}"));
                Rendered {
                    details: Value::String(format!(
                        "Searched for a foreign key relationship between '{parent}' and '{child}{}' in the schema '{schema}', but no matches were found.",
                        using.unwrap_or_default()
                    )),
                    hint: optional(suggestion),
                    ..plain(bad, "PGRST200")
                }
            }
            Self::AmbiguousRelationship { child, candidates, names, .. } => Rendered {
                details: Value::Array(candidates),
                hint: Value::String(format!(
                    "Try changing '{child}' to one of the following: {names}. Find the desired relationship in the 'details' key."
                )),
                ..plain(StatusCode::MULTIPLE_CHOICES, "PGRST201")
            },
            Self::NoFunction { details, suggestion, .. } => Rendered {
                details: text(&details),
                hint: optional(suggestion),
                ..plain(StatusCode::NOT_FOUND, "PGRST202")
            },
            Self::AmbiguousFunction(_) => Rendered {
                hint: text(
                    "Try renaming the parameters or the function itself in the database so function overloading can be resolved",
                ),
                ..plain(StatusCode::MULTIPLE_CHOICES, "PGRST203")
            },
            Self::NoTable { suggestion, .. } => {
                Rendered { hint: optional(suggestion), ..plain(StatusCode::NOT_FOUND, "PGRST205") }
            }
            Self::Jwt(error) => {
                let challenge = format!(
                    "Bearer error=\"invalid_token\", error_description=\"{}\"",
                    error.message()
                );
                Rendered {
                    details: error.details().map_or(Value::Null, text),
                    headers: HeaderValue::from_str(&challenge)
                        .map(|value| vec![(header::WWW_AUTHENTICATE, value)])
                        .unwrap_or_default(),
                    ..plain(StatusCode::UNAUTHORIZED, error.code())
                }
            }
            Self::Database { error, anonymous } => render_refusal(*error, anonymous),
            Self::Connection => passing(plain(StatusCode::SERVICE_UNAVAILABLE, "PGRST000")),
            Self::ConnectionLost => passing(plain(StatusCode::SERVICE_UNAVAILABLE, "PGRST001")),
            Self::NoCatalog => passing(plain(StatusCode::SERVICE_UNAVAILABLE, "PGRST002")),
            Self::PoolTimeout => passing(plain(StatusCode::GATEWAY_TIMEOUT, "PGRST003")),
            Self::Unsupported { .. } => Rendered {
                details: text(
                    "The embedded control plane serves a subset of PostgREST: reading tables and views, and calling functions.",
                ),
                hint: text(
                    "Call a function instead, or use a self-hosted or cloud Supabase project.",
                ),
                ..plain(StatusCode::NOT_IMPLEMENTED, "INF501")
            },
            Self::BodyTooLarge { .. } => plain(StatusCode::PAYLOAD_TOO_LARGE, "INF413"),
            Self::TooComplex { .. } => plain(bad, "INF400"),
        }
    }
}

/// Adds when to try again to an error that passes by itself.
fn passing(mut rendered: Rendered) -> Rendered {
    rendered.headers.push((header::RETRY_AFTER, HeaderValue::from_static("1")));
    rendered
}

/// Renders what PostgreSQL said, with the special errors `PTxyz` and `PGRST`.
fn render_refusal(error: DatabaseRefusal, anonymous: bool) -> Rendered {
    if error.code == "PGRST" {
        return match parse_raise(&error) {
            Ok(rendered) => rendered,
            Err(wrong) => wrong.render(),
        };
    }
    let (status, reason) = status_of(&error, anonymous);
    let challenge = (status == StatusCode::UNAUTHORIZED)
        .then(|| (header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")));
    Rendered {
        status,
        reason,
        code: error.code,
        message: error.message,
        details: error.detail.map_or(Value::Null, Value::String),
        hint: error.hint.map_or(Value::Null, Value::String),
        headers: challenge.into_iter().collect(),
    }
}

/// Maps SQLSTATE to HTTP, with the reason phrase where one is given.
fn status_of(error: &DatabaseRefusal, anonymous: bool) -> (StatusCode, Option<String>) {
    let code = error.code.as_str();
    let message = error.message.as_str();
    let status = match code {
        "23503" | "23505" => 409,
        "25006" => 405,
        "21000" if message.ends_with("requires a WHERE clause") => 400,
        "21000" => 500,
        "22023" if message.starts_with("role") && message.ends_with("does not exist") => 401,
        "53400" => 500,
        "57P01" => 503,
        "P0001" => 400,
        "42883" if message.starts_with("function xmlagg(") => 406,
        "42883" | "42P01" => 404,
        "42P17" => 500,
        "42501" if anonymous => 401,
        "42501" => 403,
        _ => match code.get(..2).unwrap_or_default() {
            "PT" => {
                let status = code[2..].parse().ok().and_then(|n| StatusCode::from_u16(n).ok());
                return match status {
                    Some(status) => (status, Some(message.to_owned())),
                    None => (StatusCode::INTERNAL_SERVER_ERROR, None),
                };
            }
            "0L" | "0P" | "28" => 403,
            "08" | "53" => 503,
            "09" | "25" | "2D" | "38" | "39" | "3B" | "40" | "54" | "55" | "57" | "58" | "F0"
            | "HV" | "P0" | "XX" => 500,
            _ => 400,
        },
    };
    (StatusCode::from_u16(status).expect("the table above holds statuses"), None)
}

/// Reads the JSON of `raise sqlstate 'PGRST'`.
fn parse_raise(error: &DatabaseRefusal) -> Result<Rendered, RestError> {
    const MESSAGE_HINT: &str = "MESSAGE must be a JSON object with obligatory keys: 'code', 'message' and optional keys: 'details', 'hint'.";
    const DETAIL_HINT: &str = "DETAIL must be a JSON object with obligatory keys: 'status', 'headers' and optional key: 'status_text'.";

    let wrong_message = || RestError::Raise {
        details: format!("Invalid JSON value for MESSAGE: '{}'", error.message),
        hint: MESSAGE_HINT,
    };
    let Some(detail) = &error.detail else {
        // The message is judged first.
        parse_object(&error.message).ok_or_else(wrong_message)?;
        return Err(RestError::Raise {
            details: "DETAIL is missing in the RAISE statement".to_owned(),
            hint: DETAIL_HINT,
        });
    };
    let wrong_detail = || RestError::Raise {
        details: format!("Invalid JSON value for DETAIL: '{detail}'"),
        hint: DETAIL_HINT,
    };

    let message = parse_object(&error.message).ok_or_else(wrong_message)?;
    let required = |key: &str| message.get(key).and_then(Value::as_str).map(str::to_owned);
    let optional = |key: &str| match message.get(key) {
        None | Some(Value::Null) => Ok(Value::Null),
        Some(value @ Value::String(_)) => Ok(value.clone()),
        Some(_) => Err(wrong_message()),
    };
    let code = required("code").ok_or_else(wrong_message)?;
    let text = required("message").ok_or_else(wrong_message)?;

    let answer = parse_object(detail).ok_or_else(wrong_detail)?;
    let status = answer
        .get("status")
        .and_then(Value::as_u64)
        .and_then(|status| u16::try_from(status).ok())
        .and_then(|status| StatusCode::from_u16(status).ok())
        .ok_or_else(wrong_detail)?;
    let mut headers = Vec::new();
    let given = answer.get("headers").and_then(Value::as_object).ok_or_else(wrong_detail)?;
    for (name, value) in given {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong_detail())?;
        let value = value.as_str().and_then(|value| HeaderValue::from_str(value).ok());
        headers.push((name, value.ok_or_else(wrong_detail)?));
    }
    Ok(Rendered {
        status,
        reason: answer.get("status_text").and_then(Value::as_str).map(str::to_owned),
        code,
        message: text,
        details: optional("details")?,
        hint: optional("hint")?,
        headers,
    })
}

fn parse_object(text: &str) -> Option<Map<String, Value>> {
    serde_json::from_str(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(code: &str, message: &str) -> DatabaseRefusal {
        DatabaseRefusal { code: code.into(), message: message.into(), detail: None, hint: None }
    }

    #[test]
    fn sqlstates_have_statuses() {
        let status = |code: &str| status_of(&refusal(code, "m"), false).0.as_u16();
        for (code, wanted) in [
            ("23505", 409),
            ("23502", 400),
            ("25006", 405),
            ("25001", 500),
            ("42501", 403),
            ("42883", 404),
            ("42703", 400),
            ("40001", 500),
            ("57014", 500),
            ("57P01", 503),
            ("53300", 503),
            ("P0001", 400),
            ("P0004", 500),
            ("PT418", 418),
            ("PTxyz", 500),
            ("22P02", 400),
        ] {
            assert_eq!(status(code), wanted, "{code}");
        }
        assert_eq!(status_of(&refusal("42501", "m"), true).0, StatusCode::UNAUTHORIZED);
        let missing_role = refusal("22023", "role \"x\" does not exist");
        assert_eq!(status_of(&missing_role, false).0, StatusCode::UNAUTHORIZED);
    }

    #[test]
    fn a_raise_says_status_headers_and_body() {
        let mut raised = refusal("PGRST", r#"{"code":"LIB01","message":"Closed","hint":"wait"}"#);
        raised.detail = Some(r#"{"status":423,"headers":{"X-Branch":"Central"}}"#.into());
        let rendered = render_refusal(raised.clone(), true);
        assert_eq!((rendered.status.as_u16(), rendered.code.as_str()), (423, "LIB01"));
        assert_eq!(rendered.headers[0].0.as_str(), "x-branch");
        raised.detail = Some("[]".into());
        assert_eq!(render_refusal(raised, true).code, "PGRST121");
    }
}
