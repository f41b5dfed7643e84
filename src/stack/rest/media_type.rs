//! Media types: what a request accepts and sends, and what is produced.

use super::error::RestError;

/// A media type that means something here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum MediaType {
    Any,
    Json,
    /// An array without the keys that are null.
    JsonStripped,
    /// One object; `true` without the keys that are null.
    Object(bool),
    Csv,
    GeoJson,
    OpenApi,
    Form,
    Text,
    Xml,
    Bytes,
    Plan,
    Other(String),
}

/// What the rows are turned into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// A JSON array, or what a function's return type says.
    Array {
        /// Without keys that are null.
        stripped: bool,
    },
    /// One JSON object.
    Object {
        /// Without keys that are null.
        stripped: bool,
    },
    /// Comma separated values.
    Csv,
    /// Nothing, for HEAD.
    Nothing,
}

impl MediaType {
    /// Reads one media type with its parameters.
    pub(crate) fn parse(text: &str) -> Self {
        let mut parts = text.split(';').map(|part| part.trim().to_ascii_lowercase());
        let name = parts.next().unwrap_or_default();
        let stripped = parts.any(|parameter| parameter == "nulls=stripped");
        match name.as_str() {
            "*/*" => Self::Any,
            "application/json" => Self::Json,
            "application/vnd.pgrst.array+json" | "application/vnd.pgrst.array" => {
                if stripped {
                    Self::JsonStripped
                } else {
                    Self::Json
                }
            }
            "application/vnd.pgrst.object+json" | "application/vnd.pgrst.object" => {
                Self::Object(stripped)
            }
            "text/csv" => Self::Csv,
            "application/geo+json" => Self::GeoJson,
            "application/openapi+json" => Self::OpenApi,
            "application/x-www-form-urlencoded" => Self::Form,
            "text/plain" => Self::Text,
            "text/xml" => Self::Xml,
            "application/octet-stream" => Self::Bytes,
            _ if name.starts_with("application/vnd.pgrst.plan") => Self::Plan,
            _ => Self::Other(text.to_owned()),
        }
    }

    /// Returns the name, as error messages and `Content-Type` have it.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Any => "*/*",
            Self::Json => "application/json",
            Self::JsonStripped => "application/vnd.pgrst.array+json;nulls=stripped",
            Self::Object(false) => "application/vnd.pgrst.object+json",
            Self::Object(true) => "application/vnd.pgrst.object+json;nulls=stripped",
            Self::Csv => "text/csv",
            Self::GeoJson => "application/geo+json",
            Self::OpenApi => "application/openapi+json",
            Self::Form => "application/x-www-form-urlencoded",
            Self::Text => "text/plain",
            Self::Xml => "text/xml",
            Self::Bytes => "application/octet-stream",
            Self::Plan => "application/vnd.pgrst.plan+json",
            Self::Other(name) => name,
        }
    }

    /// Returns the value of `Content-Type`.
    pub(crate) fn content_type(&self) -> String {
        format!("{}; charset=utf-8", self.name())
    }
}

/// Reads an `Accept` header: the best first, by quality, then by how exact a
/// range is, then in the order given.
pub(crate) fn parse_accept(header: &str) -> Vec<MediaType> {
    let mut accepted: Vec<(f64, i64, String)> = header
        .split(',')
        .map(|range| {
            let range: String = range.chars().filter(|c| *c != ' ').collect();
            let (name, quality) = match range.split_once(";q=") {
                None => (range.as_str(), 1.0),
                Some((name, rest)) => {
                    let quality = rest.split(';').next().unwrap_or_default();
                    (name, quality.parse().unwrap_or(1.0))
                }
            };
            let exactness = count(name, ';') - count(name, '*');
            (quality, exactness, name.to_owned())
        })
        .collect();
    accepted.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)));
    accepted.into_iter().map(|(_, _, name)| MediaType::parse(&name)).collect()
}

fn count(text: &str, wanted: char) -> i64 {
    i64::try_from(text.matches(wanted).count()).unwrap_or(i64::MAX)
}

/// Chooses the first accepted type that is produced, and the shape that it
/// means.
pub(crate) fn negotiate(
    accepted: &[MediaType],
    head: bool,
) -> Result<(MediaType, Shape), RestError> {
    for media_type in accepted {
        let (media_type, shape) = match media_type {
            MediaType::Any | MediaType::Json => (MediaType::Json, Shape::Array { stripped: false }),
            MediaType::JsonStripped => (media_type.clone(), Shape::Array { stripped: true }),
            MediaType::Object(stripped) => {
                (media_type.clone(), Shape::Object { stripped: *stripped })
            }
            MediaType::Csv => (MediaType::Csv, Shape::Csv),
            MediaType::GeoJson => {
                return Err(RestError::Unsupported { feature: "GeoJSON results" });
            }
            _ => continue,
        };
        return Ok((media_type, if head { Shape::Nothing } else { shape }));
    }
    Err(RestError::MediaType(name_list(accepted)))
}

/// Joins the names of media types for a message.
pub(crate) fn name_list(accepted: &[MediaType]) -> String {
    accepted.iter().map(MediaType::name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(accept: &str) -> Option<MediaType> {
        negotiate(&parse_accept(accept), false).ok().map(|(media_type, _)| media_type)
    }

    #[test]
    fn quality_is_honoured() {
        assert_eq!(chosen("*/*"), Some(MediaType::Json));
        assert_eq!(chosen("application/json;q=0.1, text/csv;q=0.9"), Some(MediaType::Csv));
        assert_eq!(chosen("text/html, application/json;q=0.8"), Some(MediaType::Json));
        assert_eq!(chosen("text/html"), None);
        assert_eq!(chosen("application/*"), None);
        assert_eq!(
            chosen("Application/Vnd.Pgrst.Object+json, application/json"),
            Some(MediaType::Object(false))
        );
    }
}
