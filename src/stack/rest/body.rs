//! The body of a call: is it JSON, and which arguments does it name?

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::error::RestError;

/// The keys of a JSON value, where it has any. Values are checked and dropped.
enum Outline {
    Object(BTreeSet<String>),
    Array(Vec<Option<BTreeSet<String>>>),
    Scalar,
}

/// Returns the names of the arguments in a JSON body: the keys of an object,
/// or of the objects of an array, which must all have the same.
pub(crate) fn argument_names(body: &[u8]) -> Result<BTreeSet<String>, RestError> {
    if body.is_empty() {
        return Ok(BTreeSet::new());
    }
    let invalid = || RestError::Body("Empty or invalid json".to_owned());
    std::str::from_utf8(body).map_err(|_| invalid())?;
    let outline: Outline = serde_json::from_slice(body).map_err(|_| invalid())?;
    match outline {
        Outline::Object(keys) => Ok(keys),
        Outline::Scalar => Ok(BTreeSet::new()),
        Outline::Array(elements) => {
            let Some(first) = elements.first().cloned() else { return Ok(BTreeSet::new()) };
            let uniform = first.is_some() && elements.iter().all(|element| *element == first);
            first
                .filter(|_| uniform)
                .ok_or_else(|| RestError::Body("All object keys must match".to_owned()))
        }
    }
}

impl<'de> Deserialize<'de> for Outline {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OutlineVisitor { elements: true })
    }
}

/// An element of an array, whose own arrays do not matter.
struct Element(Option<BTreeSet<String>>);

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let outline = deserializer.deserialize_any(OutlineVisitor { elements: false })?;
        Ok(Self(match outline {
            Outline::Object(keys) => Some(keys),
            Outline::Array(_) | Outline::Scalar => None,
        }))
    }
}

struct OutlineVisitor {
    /// Whether elements of an array are looked into.
    elements: bool,
}

impl<'de> Visitor<'de> for OutlineVisitor {
    type Value = Outline;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Outline, A::Error> {
        let mut keys = BTreeSet::new();
        while let Some((key, IgnoredAny)) = map.next_entry::<String, IgnoredAny>()? {
            keys.insert(key);
        }
        Ok(Outline::Object(keys))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Outline, A::Error> {
        let mut elements = Vec::new();
        if self.elements {
            while let Some(Element(keys)) = sequence.next_element()? {
                elements.push(keys);
            }
        } else {
            while sequence.next_element::<IgnoredAny>()?.is_some() {}
        }
        Ok(Outline::Array(elements))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Outline, E> {
        Ok(Outline::Scalar)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Outline, E> {
        Ok(Outline::Scalar)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Outline, E> {
        Ok(Outline::Scalar)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Outline, E> {
        Ok(Outline::Scalar)
    }

    fn visit_str<E>(self, _: &str) -> Result<Outline, E> {
        Ok(Outline::Scalar)
    }

    fn visit_unit<E>(self) -> Result<Outline, E> {
        Ok(Outline::Scalar)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found() {
        let names = |body: &str| argument_names(body.as_bytes());
        let list = |body: &str| names(body).unwrap().into_iter().collect::<Vec<_>>();
        assert_eq!(list(r#"{"b": [1, {"x": 2}], "a": null}"#), ["a", "b"]);
        assert_eq!(list(r#"[{"a": 1}, {"a": 2}]"#), ["a"]);
        assert!(list("").is_empty() && list("5").is_empty() && list("[]").is_empty());
        assert!(names("{bad").is_err());
        assert!(names(r#"[{"a": 1}, {"b": 2}]"#).is_err());
        assert!(names("[1]").is_err());
    }
}
