//! Statements: text with quoted identifiers, and values that are always bound.

use std::error::Error as StdError;

use bytes::{BufMut, BytesMut};
use tokio_postgres::types::{Format, IsNull, ToSql, Type};

use super::catalog::{Cardinality, Name};
use super::grammar::{Condition, JsonOperand, JsonStep, Operation, Quantifier};
use super::media_type::Shape;
use super::plan::{Column, Order, Qualifier, ReadNode, Selected, Source, Spread, Tree};
use super::range::RowRange;

/// The name of the common table expression that holds the rows read or
/// returned. It appears in messages of PostgreSQL.
pub(crate) const SOURCE: &str = "pgrst_source";

/// A value sent as text, whose type PostgreSQL infers from where it stands.
#[derive(Debug)]
pub(crate) struct TextValue(pub(crate) Vec<u8>);

impl ToSql for TextValue {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn StdError + Sync + Send>> {
        out.put_slice(&self.0);
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    tokio_postgres::types::to_sql_checked!();
}

/// A statement under construction.
#[derive(Debug, Default)]
pub(crate) struct Sql {
    pub(crate) text: String,
    pub(crate) values: Vec<TextValue>,
}

impl Sql {
    pub(crate) fn push(&mut self, text: &str) -> &mut Self {
        self.text.push_str(text);
        self
    }

    /// Binds a value and refers to it.
    pub(crate) fn value(&mut self, value: impl Into<Vec<u8>>) -> &mut Self {
        self.values.push(TextValue(value.into()));
        let number = self.values.len();
        self.text.push('$');
        self.text.push_str(&number.to_string());
        self
    }

    /// Quotes a name. A NUL cannot be part of one and ends it, as in PostgreSQL.
    pub(crate) fn name(&mut self, name: &str) -> &mut Self {
        self.text.push('"');
        for character in name.chars().take_while(|c| *c != '\0') {
            if character == '"' {
                self.text.push('"');
            }
            self.text.push(character);
        }
        self.text.push('"');
        self
    }

    /// Writes `schema.name`.
    pub(crate) fn full_name(&mut self, name: &Name) -> &mut Self {
        self.name(&name.schema).push(".").name(&name.name)
    }

    fn qualifier(&mut self, qualifier: &Qualifier) -> &mut Self {
        match qualifier {
            Qualifier::Table(name) => self.full_name(name),
            Qualifier::Alias(alias) => self.name(alias),
        }
    }

    fn qualified(&mut self, qualifier: &Qualifier, column: &str) -> &mut Self {
        self.qualifier(qualifier).push(".");
        if column == "*" { self.push("*") } else { self.name(column) }
    }

    fn list<T>(
        &mut self,
        separator: &str,
        items: impl IntoIterator<Item = T>,
        mut write: impl FnMut(&mut Self, T),
    ) -> &mut Self {
        for (position, item) in items.into_iter().enumerate() {
            if position > 0 {
                self.push(separator);
            }
            write(self, item);
        }
        self
    }

    // ----------------------------------------------------------- columns

    fn column(&mut self, qualifier: &Qualifier, column: &Column) {
        if let Some(language) = &column.to_search {
            self.push("to_tsvector(");
            if let Some(language) = language {
                self.value(language.as_str()).push(", ");
            }
        }
        if column.to_json {
            self.push("to_jsonb(").qualified(qualifier, &column.name).push(")");
        } else {
            self.qualified(qualifier, &column.name);
        }
        self.json_path(&column.path);
        if column.to_search.is_some() {
            self.push(")");
        }
    }

    fn json_path(&mut self, path: &[JsonStep]) {
        for step in path {
            self.push(if step.as_text { "->>" } else { "->" });
            match &step.operand {
                JsonOperand::Key(key) => _ = self.value(key.as_str()),
                JsonOperand::Index(index) => _ = self.value(index.as_str()).push("::int"),
            }
        }
    }

    fn selected(&mut self, qualifier: &Qualifier, selected: &Selected) {
        match &selected.cast {
            None => self.column(qualifier, &selected.column),
            Some(cast) => {
                self.push("cast(");
                self.column(qualifier, &selected.column);
                self.push(" as ").type_name(cast).push(")");
            }
        }
        if let Some(alias) = &selected.alias {
            self.push(" as ").name(alias);
        }
    }

    /// Writes the name of a type that came from a request. It cannot be quoted,
    /// or `int` would not be found; the grammar lets through what an unquoted
    /// name may consist of, and this makes sure of it.
    fn type_name(&mut self, name: &str) -> &mut Self {
        self.text
            .extend(name.chars().filter(|c| c.is_alphanumeric() || matches!(c, '_' | ' ' | '$')));
        self
    }

    // -------------------------------------------------------- conditions

    fn tree(&mut self, qualifier: &Qualifier, tree: &Tree) {
        match tree {
            Tree::Filter { column, condition } => self.filter(qualifier, column, condition),
            Tree::Embedded { missing, alias } => {
                let test =
                    if *missing { " is not distinct from null" } else { " is distinct from null" };
                self.name(alias).push(test);
            }
            Tree::Group { negated, any, members } => {
                self.push(if *negated { "not (" } else { "(" });
                self.list(if *any { " or " } else { " and " }, members, |sql, member| {
                    sql.tree(qualifier, member);
                });
                self.push(")");
            }
        }
    }

    fn filter(&mut self, qualifier: &Qualifier, column: &Column, condition: &Condition) {
        if condition.negated {
            self.push("not ");
        }
        self.column(qualifier, column);
        self.push(" ");
        match &condition.operation {
            Operation::Compare { operator, quantifier, value } => {
                self.push(operator).push(" ").quantified(*quantifier, value.as_str());
            }
            Operation::Like { operator, quantifier, value } => {
                self.push(operator).push(" ").quantified(*quantifier, value.replace('*', "%"));
            }
            Operation::In(values) => {
                if values.len() == 1 && values[0].is_empty() {
                    self.push("= any ('{}')");
                } else {
                    self.push("= any (").value(array_literal(values)).push(")");
                }
            }
            Operation::Is(keyword) => _ = self.push("is ").push(keyword),
            Operation::IsDistinct(value) => {
                self.push("is distinct from ").value(value.as_str());
            }
            Operation::Search { function, language, value } => {
                self.push("@@ ").push(function).push("(");
                if let Some(language) = language {
                    self.value(language.as_str()).push(", ");
                }
                self.value(value.as_str()).push(")");
            }
        }
    }

    fn quantified(&mut self, quantifier: Option<Quantifier>, value: impl Into<Vec<u8>>) {
        match quantifier {
            None => _ = self.value(value),
            Some(Quantifier::Any) => _ = self.push("any (").value(value).push(")"),
            Some(Quantifier::All) => _ = self.push("all (").value(value).push(")"),
        }
    }

    fn conditions(
        &mut self,
        node: &ReadNode,
        mut write_tree: impl FnMut(&mut Self, &Qualifier, &Tree),
        extra: &[&ReadNode],
    ) {
        let qualifier = node.qualifier();
        let mut word = " where ";
        for tree in &node.filters {
            self.push(word);
            write_tree(self, &qualifier, tree);
            word = " and ";
        }
        for join in &node.joins {
            self.push(word).qualified(&join.left.0, &join.left.1);
            self.push(" = ").qualified(&join.right.0, &join.right.1);
            word = " and ";
        }
        for child in extra {
            self.push(word).push("exists (");
            self.count_rows(child);
            self.push(")");
            word = " and ";
        }
    }

    fn order(&mut self, qualifier: &Qualifier, order: &[Order]) {
        if order.is_empty() {
            return;
        }
        self.push(" order by ").list(", ", order, |sql, key| {
            match &key.alias {
                Some(alias) => sql.column(&Qualifier::Alias(alias.clone()), &key.column),
                None => sql.column(qualifier, &key.column),
            }
            match key.descending {
                Some(true) => _ = sql.push(" desc"),
                Some(false) => _ = sql.push(" asc"),
                None => {}
            }
            match key.nulls_first {
                Some(true) => _ = sql.push(" nulls first"),
                Some(false) => _ = sql.push(" nulls last"),
                None => {}
            }
        });
    }

    fn limit(&mut self, range: RowRange) {
        if range == RowRange::ALL {
            return;
        }
        match range.limit() {
            Some(limit) => _ = self.push(" limit ").value(limit.to_string()),
            None => _ = self.push(" limit all"),
        }
        self.push(" offset ").value(range.offset().to_string());
    }

    // ------------------------------------------------------------ levels

    fn from(&mut self, node: &ReadNode) {
        self.push(" from ");
        match &node.source {
            Source::Table(name) => _ = self.full_name(name),
            Source::Call => _ = self.push(SOURCE),
        }
        if let Some(alias) = &node.source_alias {
            self.push(" as ").name(alias);
        }
        if let Some(relationship) = &node.relationship
            && let Cardinality::ManyToMany(junction) = &relationship.cardinality
        {
            self.push(", ").full_name(&junction.table);
        }
    }

    /// Writes the reading of one level and of all below.
    pub(crate) fn read(&mut self, node: &ReadNode) {
        let qualifier = node.qualifier();
        self.push("select ");
        let mut separator = "";
        if node.select.is_empty() && node.children.is_empty() {
            // Without any column there would be nothing to aggregate.
            self.qualified(&qualifier, "*");
            separator = ", ";
        }
        for selected in &node.select {
            self.push(separator);
            self.selected(&qualifier, selected);
            separator = ", ";
        }
        if let Some(Spread::ToMany { extra, .. }) = &node.spread {
            for (alias, selected) in extra {
                self.push(separator);
                match alias {
                    Some(alias) => self.selected(&Qualifier::Alias(alias.clone()), selected),
                    None => self.selected(&qualifier, selected),
                }
                separator = ", ";
            }
        }
        for child in &node.children {
            self.embedded_columns(child, &mut separator);
        }
        self.from(node);
        for child in &node.children {
            self.lateral(child);
        }
        self.conditions(node, |sql, qualifier, tree| sql.tree(qualifier, tree), &[]);
        self.order(&qualifier, &node.order);
        self.limit(node.range);
    }

    /// Writes what an embedded resource adds to the columns above it.
    fn embedded_columns(&mut self, child: &ReadNode, separator: &mut &str) {
        let to_one = child.relationship.as_ref().is_some_and(|one| one.is_to_one());
        if child.spread.is_some() {
            for column in spread_columns(child) {
                self.push(separator)
                    .qualified(&Qualifier::Alias(child.embed_alias.clone()), column);
                *separator = ", ";
            }
            return;
        }
        if child.selects_nothing() {
            return;
        }
        self.push(separator);
        *separator = ", ";
        let alias = &child.embed_alias;
        if to_one {
            self.push("row_to_json(").name(alias).push(".*)::jsonb");
        } else {
            self.push("coalesce(").name(alias).push(".").name(alias).push(", '[]')");
        }
        self.push(" as ").name(child.key());
    }

    /// Writes the join of an embedded resource.
    fn lateral(&mut self, child: &ReadNode) {
        let to_one = child.relationship.as_ref().is_some_and(|one| one.is_to_one());
        let alias = &child.embed_alias;
        self.push(if child.inner { " inner" } else { " left" }).push(" join lateral (");
        if to_one {
            self.read(child);
        } else {
            self.push("select json_agg(").name(alias).push(")::jsonb as ").name(alias);
            if let Some(Spread::ToMany { order, .. }) = &child.spread {
                let qualifier = Qualifier::Alias(alias.clone());
                for column in spread_columns(child) {
                    self.push(", coalesce(json_agg(").qualified(&qualifier, column);
                    self.order(&qualifier, order);
                    self.push("), '[]')::jsonb as ").name(column);
                }
            }
            self.push(" from (");
            self.read(child);
            self.push(") as ").name(alias);
        }
        self.push(") as ").name(alias).push(" on ");
        if child.inner && !to_one {
            self.name(alias).push(" is not null");
        } else {
            self.push("true");
        }
    }

    /// Writes one row for each row of a level, without range and order.
    pub(crate) fn count_rows(&mut self, node: &ReadNode) {
        self.push("select 1");
        self.from(node);
        let inner: Vec<&ReadNode> = node.children.iter().filter(|child| child.inner).collect();
        self.conditions(
            node,
            |sql, qualifier, tree| sql.counted_tree(node, qualifier, tree),
            &inner,
        );
    }

    /// Like [`Sql::tree`], for counting, where embedded resources are not
    /// joined and have to be asked for.
    fn counted_tree(&mut self, node: &ReadNode, qualifier: &Qualifier, tree: &Tree) {
        match tree {
            Tree::Embedded { missing, alias } => {
                let child = node.children.iter().find(|child| child.embed_alias == *alias);
                let Some(child) = child else { return };
                self.push(if *missing { "not exists (" } else { "exists (" });
                self.count_rows(child);
                self.push(")");
            }
            Tree::Group { negated, any, members } => {
                self.push(if *negated { "not (" } else { "(" });
                self.list(if *any { " or " } else { " and " }, members, |sql, member| {
                    sql.counted_tree(node, qualifier, member);
                });
                self.push(")");
            }
            Tree::Filter { .. } => self.tree(qualifier, tree),
        }
    }

    // ------------------------------------------------------- whole query

    /// Writes the statement around a source: how many rows there are, how many
    /// are on the page, the body, and what functions set for the response.
    ///
    /// `count` is the level to count; `result` says what becomes the body.
    pub(crate) fn wrap(
        &mut self,
        count: Option<CountedRows<'_>>,
        result: ResultShape,
        rows: impl FnOnce(&mut Self),
    ) {
        let page_total = if result.single { "1" } else { "pg_catalog.count(_postgrest_t)" };
        let mut total = "null";
        if let Some(CountedRows { node, at_most }) = count {
            self.push(", pgrst_source_count as (");
            self.count_rows(node);
            if let Some(at_most) = at_most {
                self.push(&format!(" limit {at_most}"));
            }
            self.push(")");
            total = "(select pg_catalog.count(*) from pgrst_source_count)";
        }
        self.push(" select ").push(total).push("::bigint as total, ");
        self.push(page_total)
            .push("::bigint as page, (")
            .push(&result.body())
            .push(")::text as body, ");
        self.push("nullif(current_setting('response.headers', true), '') as headers, ");
        self.push("nullif(current_setting('response.status', true), '') as status from (");
        rows(self);
        self.push(") _postgrest_t");
    }
}

/// What is counted, and up to what number.
pub(crate) struct CountedRows<'a> {
    pub(crate) node: &'a ReadNode,
    pub(crate) at_most: Option<i64>,
}

/// What the body is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ResultShape {
    pub(crate) shape: Shape,
    /// There is exactly one result.
    pub(crate) single: bool,
    /// Results are values and not rows.
    pub(crate) scalar: bool,
}

impl ResultShape {
    fn body(self) -> String {
        let rows = if self.scalar { "_postgrest_t.pgrst_scalar" } else { "_postgrest_t" };
        let strip = |stripped: bool, text: String| {
            if stripped { format!("json_strip_nulls({text})") } else { text }
        };
        match self.shape {
            Shape::Nothing => "''".to_owned(),
            Shape::Object { stripped } => {
                // Of a set of values the object is made of the row that holds the value.
                let rows = if self.scalar && !self.single { "_postgrest_t" } else { rows };
                let first = strip(stripped, format!("json_agg({rows})->0"));
                format!("coalesce({first}, 'null')")
            }
            Shape::Array { stripped } if self.single => {
                let first = strip(stripped, format!("json_agg({rows})->0"));
                format!("coalesce({first}, 'null')")
            }
            Shape::Array { stripped } => {
                let all = strip(stripped, format!("json_agg({rows})"));
                format!("coalesce({all}, '[]')")
            }
            Shape::Csv => "(select coalesce(string_agg(k, ','), '') from json_object_keys(json_agg(_postgrest_t)->0) as k) \
                 || chr(10) || coalesce(string_agg(substring(_postgrest_t::text, 2, length(_postgrest_t::text) - 2), chr(10)), '')"
                .to_owned(),
        }
    }
}

/// The columns that a spread resource hands upwards.
fn spread_columns(child: &ReadNode) -> Vec<&str> {
    let mut columns: Vec<&str> = child
        .select
        .iter()
        .map(|selected| selected.alias.as_deref().unwrap_or(&selected.column.name))
        .collect();
    for below in &child.children {
        if below.spread.is_some() {
            columns.extend(spread_columns(below));
        } else if !below.selects_nothing() {
            columns.push(below.key());
        }
    }
    columns
}

/// Writes an array whose element type is not known yet.
pub(crate) fn array_literal(values: &[String]) -> String {
    let mut text = String::from("{");
    for (position, value) in values.iter().enumerate() {
        if position > 0 {
            text.push(',');
        }
        text.push('"');
        for character in value.chars() {
            if matches!(character, '"' | '\\') {
                text.push('\\');
            }
            text.push(character);
        }
        text.push('"');
    }
    text.push('}');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_and_values_bound() {
        let mut sql = Sql::default();
        sql.name("a\"; drop table x; --").push(" = ").value("1'; drop table x; --");
        assert_eq!(sql.text, "\"a\"\"; drop table x; --\" = $1");
        assert_eq!(sql.values[0].0, b"1'; drop table x; --");
        let mut sql = Sql::default();
        sql.type_name("int); drop table x; --");
        assert_eq!(sql.text, "int drop table x ");
    }

    #[test]
    fn array_elements_are_quoted() {
        assert_eq!(array_literal(&["a,b".into(), "\"\\".into()]), r#"{"a,b","\"\\"}"#);
    }
}
