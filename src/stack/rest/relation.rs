//! Which foreign key an embedded resource means.

use serde_json::{Value, json};

use super::catalog::{Cardinality, Catalog, ForeignKey, Name, Relationship, most_similar};
use super::error::RestError;

/// Finds the one relationship from `origin` to what is called `target`: a
/// table, a constraint or a column, made exact by a `hint`.
pub(crate) fn find_relationship<'a>(
    catalog: &'a Catalog,
    schema: &str,
    origin: &Name,
    target: &str,
    hint: Option<&str>,
) -> Result<&'a Relationship, RestError> {
    if catalog.is_computed_relationship(origin, target) {
        return Err(RestError::Unsupported { feature: "Computed relationships" });
    }
    let all: Vec<&Relationship> = catalog
        .relationships
        .get(origin)
        .map(|all| all.iter().filter(|one| one.foreign.schema == schema).collect())
        .unwrap_or_default();
    let fitting: Vec<&Relationship> =
        all.iter().copied().filter(|one| fits(one, target, hint)).collect();
    match fitting.as_slice() {
        [one] => Ok(one),
        [] => {
            let is_view = |name: &Name| catalog.tables.get(name).is_some_and(|table| table.is_view);
            // Which columns of a view are those of its tables is not read from the catalogue.
            if is_view(origin) || is_view(&Name::new(schema, target)) {
                return Err(RestError::Unsupported { feature: "Relationships of views" });
            }
            Err(RestError::NoRelationship {
                parent: origin.name.clone(),
                child: target.to_owned(),
                using: hint.map(str::to_owned),
                schema: schema.to_owned(),
                suggestion: most_similar(
                    all.iter().map(|one| one.foreign.name.as_str()),
                    target,
                    0.6,
                )
                .map(|near| format!("Perhaps you meant '{near}' instead of '{target}'.")),
            })
        }
        several => Err(RestError::AmbiguousRelationship {
            parent: origin.name.clone(),
            child: target.to_owned(),
            candidates: several.iter().map(|one| describe(one)).collect(),
            names: several
                .iter()
                .map(|one| format!("'{}!{}'", one.foreign.name, hint_for(one)))
                .collect::<Vec<_>>()
                .join(", "),
        }),
    }
}

fn fits(relationship: &Relationship, target: &str, hint: Option<&str>) -> bool {
    let key = match &relationship.cardinality {
        Cardinality::ManyToOne(key) | Cardinality::OneToMany(key) | Cardinality::OneToOne(key) => {
            Some(key)
        }
        Cardinality::ManyToMany(_) => None,
    };
    let single = key.and_then(|key| match key.columns.as_slice() {
        [(ours, theirs)] => Some((ours.as_str(), theirs.as_str())),
        _ => None,
    });
    let named = target == relationship.foreign.name;
    let constraint = |name: &str| key.is_some_and(|key| key.constraint == name);
    let our_column = |name: &str| single.is_some_and(|(ours, _)| ours == name);
    let their_column = |name: &str| single.is_some_and(|(_, theirs)| theirs == name);
    let many_to_one = matches!(relationship.cardinality, Cardinality::ManyToOne(_));
    let one_to_many = matches!(relationship.cardinality, Cardinality::OneToMany(_));
    match (relationship.is_self(), hint) {
        // On a table that refers to itself its name means the children, the column the parent.
        (true, None) => named && one_to_many || our_column(target) && many_to_one,
        (true, Some(hint)) => named && one_to_many && their_column(hint),
        (false, None) => named || constraint(target) || our_column(target),
        (false, Some(hint)) => {
            let junction = matches!(&relationship.cardinality,
                Cardinality::ManyToMany(junction) if junction.table.name == hint);
            named && (constraint(hint) || our_column(hint) || their_column(hint) || junction)
        }
    }
}

fn hint_for(relationship: &Relationship) -> &str {
    match &relationship.cardinality {
        Cardinality::ManyToOne(key) | Cardinality::OneToMany(key) | Cardinality::OneToOne(key) => {
            &key.constraint
        }
        Cardinality::ManyToMany(junction) => &junction.table.name,
    }
}

fn describe(relationship: &Relationship) -> Value {
    let (table, foreign) = (&relationship.table.name, &relationship.foreign.name);
    let list = |columns: Vec<&str>| format!("({})", columns.join(", "));
    let both = |key: &ForeignKey| {
        format!(
            "{} using {table}{} and {foreign}{}",
            key.constraint,
            list(key.columns.iter().map(|(ours, _)| ours.as_str()).collect()),
            list(key.columns.iter().map(|(_, theirs)| theirs.as_str()).collect()),
        )
    };
    let (cardinality, using) = match &relationship.cardinality {
        Cardinality::ManyToOne(key) => ("many-to-one", both(key)),
        Cardinality::OneToMany(key) => ("one-to-many", both(key)),
        Cardinality::OneToOne(key) => ("one-to-one", both(key)),
        Cardinality::ManyToMany(junction) => {
            let inner = |key: &ForeignKey| {
                list(key.columns.iter().map(|(_, inner)| inner.as_str()).collect())
            };
            let using = format!(
                "{} using {}{} and {}{}",
                junction.table.name,
                junction.source.constraint,
                inner(&junction.source),
                junction.target.constraint,
                inner(&junction.target),
            );
            ("many-to-many", using)
        }
    };
    json!({"cardinality": cardinality, "embedding": format!("{table} with {foreign}"),
           "relationship": using})
}
