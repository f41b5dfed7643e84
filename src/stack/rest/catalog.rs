//! What the database offers: tables, functions, foreign keys and settings of
//! roles, read from `pg_catalog`.
//!
//! A [`Catalog`] never changes; a reload makes a new one. Reading needs no
//! privilege, so it says what there is and not what a caller may do with it.

use std::collections::{HashMap, HashSet};

use tokio_postgres::{Client, Row};

/// A name in a schema.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Name {
    pub(crate) schema: String,
    pub(crate) name: String,
}

impl Name {
    pub(crate) fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        Self { schema: schema.into(), name: name.into() }
    }
}

/// A table or a view.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    pub(crate) is_view: bool,
    /// Names in the table's order.
    pub(crate) columns: Vec<String>,
    types: HashMap<String, ColumnType>,
    /// A column's type has a function that converts it from or to JSON.
    pub(crate) represented: bool,
}

/// The type of a column, by name.
#[derive(Debug, Clone)]
pub(crate) struct ColumnType {
    pub(crate) name: String,
    /// Under all domains.
    pub(crate) base: String,
}

impl Table {
    /// Returns the type of a column, where there is such a column.
    pub(crate) fn column_type(&self, column: &str) -> Option<&ColumnType> {
        self.types.get(column)
    }
}

/// An argument of a function.
#[derive(Debug, Clone)]
pub(crate) struct Argument {
    /// Empty for an unnamed one.
    pub(crate) name: String,
    pub(crate) type_name: String,
    /// The type as calls name it, without a length.
    pub(crate) call_type: String,
    pub(crate) required: bool,
    pub(crate) variadic: bool,
}

/// A function that can be called.
#[derive(Debug, Clone)]
pub(crate) struct Function {
    pub(crate) name: Name,
    pub(crate) arguments: Vec<Argument>,
    pub(crate) returns_set: bool,
    pub(crate) returns_row: bool,
    pub(crate) returns_void: bool,
    /// The return type is a domain named like a media type.
    pub(crate) returns_media: bool,
    /// The name of the table or type of the rows.
    pub(crate) row_type: String,
    pub(crate) volatile: bool,
    /// Settings of the function that hold for the whole transaction.
    pub(crate) settings: Vec<(String, String)>,
}

impl Function {
    /// One value, neither a row nor a set.
    pub(crate) fn returns_scalar(&self) -> bool {
        !self.returns_set && !self.returns_row
    }

    /// A set of values that are no rows.
    pub(crate) fn returns_scalars(&self) -> bool {
        self.returns_set && !self.returns_row
    }

    /// Exactly one result.
    pub(crate) fn returns_single(&self) -> bool {
        !self.returns_set
    }

    /// The name under which results are selected from.
    pub(crate) fn result_name(&self) -> &str {
        if self.returns_row { &self.row_type } else { &self.name.name }
    }
}

/// How rows of two tables belong together.
#[derive(Debug, Clone)]
pub(crate) struct Relationship {
    pub(crate) table: Name,
    pub(crate) foreign: Name,
    pub(crate) cardinality: Cardinality,
}

/// The sides of a relationship. Columns come in pairs: ours, theirs.
#[derive(Debug, Clone)]
pub(crate) enum Cardinality {
    ManyToOne(ForeignKey),
    OneToMany(ForeignKey),
    OneToOne(ForeignKey),
    ManyToMany(Box<Junction>),
}

/// A constraint and its columns.
#[derive(Debug, Clone)]
pub(crate) struct ForeignKey {
    pub(crate) constraint: String,
    pub(crate) columns: Vec<(String, String)>,
}

/// The table between two others. Columns come in pairs: of the outer table,
/// of the junction.
#[derive(Debug, Clone)]
pub(crate) struct Junction {
    pub(crate) table: Name,
    pub(crate) source: ForeignKey,
    pub(crate) target: ForeignKey,
}

impl Relationship {
    /// Both ends are the same table.
    pub(crate) fn is_self(&self) -> bool {
        self.table == self.foreign
    }

    /// At most one row on the other side.
    pub(crate) fn is_to_one(&self) -> bool {
        matches!(self.cardinality, Cardinality::ManyToOne(_) | Cardinality::OneToOne(_))
    }
}

/// What the database offers.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    pub(crate) tables: HashMap<Name, Table>,
    pub(crate) functions: HashMap<Name, Vec<Function>>,
    /// By the embedding table.
    pub(crate) relationships: HashMap<Name, Vec<Relationship>>,
    /// Tables, and names of functions that make rows out of one of theirs.
    computed_relationships: HashSet<(Name, String)>,
    role_settings: HashMap<String, Vec<(String, String)>>,
}

impl Catalog {
    /// Reads the catalogue of the exposed schemas in one transaction.
    ///
    /// The connection must be outside of a transaction; on an error it may be
    /// left inside of one and should be thrown away.
    pub(crate) async fn load(
        client: &Client,
        schemas: &[String],
    ) -> Result<Self, tokio_postgres::Error> {
        client
            .batch_execute(
                "begin isolation level repeatable read read only; set local search_path = ''",
            )
            .await?;
        let tables = client.query(include_str!("catalog/tables.sql"), &[&schemas]).await?;
        let functions = client.query(include_str!("catalog/functions.sql"), &[&schemas]).await?;
        let keys = client.query(include_str!("catalog/relationships.sql"), &[&schemas]).await?;
        let settings = client.query(include_str!("catalog/roles.sql"), &[]).await?;
        client.batch_execute("commit").await?;

        let mut catalog = Self::default();
        for row in &tables {
            let (name, table) = read_table(row)?;
            catalog.tables.insert(name, table);
        }
        for row in &functions {
            let function = read_function(row)?;
            let takes_row_of: Option<Vec<String>> = row.try_get("takes_row_of")?;
            if let Some([schema, name]) = takes_row_of.as_deref()
                && function.returns_row
            {
                let table = Name::new(schema.clone(), name.clone());
                catalog.computed_relationships.insert((table, function.name.name.clone()));
            }
            if row.try_get("callable")? {
                catalog.functions.entry(function.name.clone()).or_default().push(function);
            }
        }
        catalog.add_relationships(&keys)?;
        for row in &settings {
            let role: String = row.try_get("role")?;
            let setting = (row.try_get("name")?, row.try_get("value")?);
            catalog.role_settings.entry(role).or_default().push(setting);
        }
        Ok(catalog)
    }

    /// Settings of a role, in the order in which they apply.
    pub(crate) fn settings_of_role(&self, role: &str) -> &[(String, String)] {
        self.role_settings.get(role).map_or(&[], Vec::as_slice)
    }

    /// Says whether a function makes `name` out of a row of `table`, a
    /// relationship that is computed.
    pub(crate) fn is_computed_relationship(&self, table: &Name, name: &str) -> bool {
        self.computed_relationships.contains(&(table.clone(), name.to_owned()))
    }

    fn add_relationships(&mut self, rows: &[Row]) -> Result<(), tokio_postgres::Error> {
        struct Key {
            table: Name,
            foreign: Name,
            key: ForeignKey,
            one_to_one: bool,
            in_primary_key: bool,
        }
        let mut keys = Vec::with_capacity(rows.len());
        for row in rows {
            let columns: Vec<String> = row.try_get("columns")?;
            let foreign_columns: Vec<String> = row.try_get("foreign_columns")?;
            keys.push(Key {
                table: Name::new(
                    row.try_get::<_, &str>("schema")?,
                    row.try_get::<_, &str>("table_name")?,
                ),
                foreign: Name::new(
                    row.try_get::<_, &str>("foreign_schema")?,
                    row.try_get::<_, &str>("foreign_name")?,
                ),
                key: ForeignKey {
                    constraint: row.try_get("name")?,
                    columns: columns.into_iter().zip(foreign_columns).collect(),
                },
                one_to_one: row.try_get("one_to_one")?,
                in_primary_key: row.try_get("in_primary_key")?,
            });
        }
        let mut add = |table: &Name, foreign: &Name, cardinality: Cardinality| {
            self.relationships.entry(table.clone()).or_default().push(Relationship {
                table: table.clone(),
                foreign: foreign.clone(),
                cardinality,
            });
        };
        for Key { table, foreign, key, one_to_one, .. } in &keys {
            let reversed = ForeignKey {
                constraint: key.constraint.clone(),
                columns: key
                    .columns
                    .iter()
                    .map(|(ours, theirs)| (theirs.clone(), ours.clone()))
                    .collect(),
            };
            if *one_to_one {
                add(table, foreign, Cardinality::OneToOne(key.clone()));
                add(foreign, table, Cardinality::OneToOne(reversed));
            } else {
                add(table, foreign, Cardinality::ManyToOne(key.clone()));
                add(foreign, table, Cardinality::OneToMany(reversed));
            }
        }
        let joins = |key: &&Key| key.in_primary_key && !key.one_to_one;
        let outward = |key: &ForeignKey| ForeignKey {
            constraint: key.constraint.clone(),
            columns: key
                .columns
                .iter()
                .map(|(inner, outer)| (outer.clone(), inner.clone()))
                .collect(),
        };
        for first in keys.iter().filter(joins) {
            for second in keys.iter().filter(joins) {
                if first.table != second.table || first.key.constraint == second.key.constraint {
                    continue;
                }
                let junction = Junction {
                    table: first.table.clone(),
                    source: outward(&first.key),
                    target: outward(&second.key),
                };
                add(&first.foreign, &second.foreign, Cardinality::ManyToMany(Box::new(junction)));
            }
        }
        Ok(())
    }
}

fn read_table(row: &Row) -> Result<(Name, Table), tokio_postgres::Error> {
    let name = Name::new(row.try_get::<_, &str>("schema")?, row.try_get::<_, &str>("name")?);
    let columns: Vec<String> = row.try_get("column_names")?;
    let types: Vec<String> = row.try_get("column_types")?;
    let bases: Vec<String> = row.try_get("base_types")?;
    let types = columns
        .iter()
        .zip(types.into_iter().zip(bases))
        .map(|(column, (name, base))| (column.clone(), ColumnType { name, base }))
        .collect();
    let table = Table {
        is_view: row.try_get("is_view")?,
        columns,
        types,
        represented: row.try_get("represented")?,
    };
    Ok((name, table))
}

fn read_function(row: &Row) -> Result<Function, tokio_postgres::Error> {
    let names: Vec<String> = row.try_get("argument_names")?;
    let types: Vec<String> = row.try_get("argument_types")?;
    let call_types: Vec<String> = row.try_get("call_types")?;
    let required: Vec<bool> = row.try_get("required")?;
    let variadic: bool = row.try_get("variadic")?;
    let last = names.len().saturating_sub(1);
    let arguments = names
        .into_iter()
        .zip(types)
        .zip(call_types.into_iter().zip(required))
        .enumerate()
        .map(|(position, ((name, type_name), (call_type, required)))| Argument {
            name,
            type_name,
            call_type,
            required,
            variadic: variadic && position == last,
        })
        .collect();
    let settings: Option<Vec<String>> = row.try_get("settings")?;
    Ok(Function {
        name: Name::new(row.try_get::<_, &str>("schema")?, row.try_get::<_, &str>("name")?),
        arguments,
        returns_set: row.try_get("returns_set")?,
        returns_row: row.try_get("returns_row")?,
        returns_void: row.try_get("returns_void")?,
        returns_media: row.try_get("returns_media")?,
        row_type: row.try_get("row_type")?,
        volatile: row.try_get("volatile")?,
        settings: settings
            .unwrap_or_default()
            .iter()
            .filter_map(|setting| setting.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
    })
}

/// Returns the candidate most like `wanted`, where one is at least `minimum`
/// (0 to 1) like it.
pub(crate) fn most_similar<'a>(
    candidates: impl Iterator<Item = &'a str>,
    wanted: &str,
    minimum: f64,
) -> Option<&'a str> {
    candidates
        .map(|candidate| (similarity(candidate, wanted), candidate))
        .filter(|(score, _)| *score >= minimum && *score < 1.0)
        .max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(a.1)))
        .map(|(_, candidate)| candidate)
}

/// One minus the edit distance over the longer length, without regard to
/// case. Names beyond the length of an identifier are like nothing.
fn similarity(a: &str, b: &str) -> f64 {
    const LONGEST: usize = 256;
    if a.len() > LONGEST || b.len() > LONGEST {
        return 0.0;
    }
    if a == b {
        return 1.0;
    }
    let a: Vec<char> = a.to_lowercase().chars().collect();
    let b: Vec<char> = b.to_lowercase().chars().collect();
    let mut previous: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut current = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let substituted = previous[j] + usize::from(x != y);
            current.push(substituted.min(previous[j + 1] + 1).min(current[j] + 1));
        }
        previous = current;
    }
    let longest = a.len().max(b.len()).max(1);
    // Only equal names reach one.
    (1.0 - previous[b.len()] as f64 / longest as f64).min(0.999)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_suggested() {
        let names = ["books", "authors", "add_numbers"];
        let near = |wanted| most_similar(names.into_iter(), wanted, 0.75);
        assert_eq!(near("Books"), Some("books"));
        assert_eq!(near("add_number"), Some("add_numbers"));
        assert_eq!(near("nowhere"), None);
    }
}
