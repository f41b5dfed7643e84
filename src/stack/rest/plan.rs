//! From parsed parameters to a tree of what is read: embedded resources find
//! their foreign keys, filters and orders their level, names their columns.
//!
//! [`sql`](super::sql) turns the tree into a statement.

use super::catalog::{Cardinality, Catalog, Name, Relationship};
use super::error::RestError;
use super::grammar::{
    Condition, Field, Filter, JsonOperand, JsonStep, Logic, Operation, OrderTerm, RelationItem,
    SelectItem,
};
use super::query::QueryParameters;
use super::range::RowRange;
use super::relation::find_relationship;

/// Where rows come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    Table(Name),
    /// The result of the called function.
    Call,
}

/// A column as it appears in a statement.
#[derive(Debug, Clone)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) path: Vec<JsonStep>,
    /// The path needs JSON and the column is not.
    pub(crate) to_json: bool,
    /// The column is text and must become a search vector, in this language.
    pub(crate) to_search: Option<Option<String>>,
}

/// A selected column.
#[derive(Debug, Clone)]
pub(crate) struct Selected {
    pub(crate) column: Column,
    pub(crate) cast: Option<String>,
    pub(crate) alias: Option<String>,
}

/// Conditions on the rows of one level.
#[derive(Debug, Clone)]
pub(crate) enum Tree {
    Filter {
        column: Column,
        condition: Condition,
    },
    /// Whether an embedded resource, by its alias, is there.
    Embedded {
        missing: bool,
        alias: String,
    },
    Group {
        negated: bool,
        any: bool,
        members: Vec<Tree>,
    },
}

/// One key of an order.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    /// The alias of the embedded resource that the column belongs to.
    pub(crate) alias: Option<String>,
    pub(crate) column: Column,
    pub(crate) descending: Option<bool>,
    pub(crate) nulls_first: Option<bool>,
}

/// How an embedded resource is spread into the one above.
#[derive(Debug, Clone)]
pub(crate) enum Spread {
    ToOne,
    /// With what is selected only to be ordered by, each with the alias of the
    /// resource that it comes from, and the order.
    ToMany {
        extra: Vec<(Option<String>, Selected)>,
        order: Vec<Order>,
    },
}

/// A condition that joins two levels: table or alias, and column, twice.
#[derive(Debug, Clone)]
pub(crate) struct Join {
    pub(crate) left: (Qualifier, String),
    pub(crate) right: (Qualifier, String),
}

/// What a column is qualified with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Qualifier {
    Table(Name),
    Alias(String),
}

/// One level of the tree.
#[derive(Debug, Clone)]
pub(crate) struct ReadNode {
    /// The name asked for.
    pub(crate) name: Name,
    pub(crate) alias: Option<String>,
    hint: Option<String>,
    pub(crate) inner: bool,
    pub(crate) spread: Option<Spread>,
    depth: usize,
    pub(crate) source: Source,
    pub(crate) source_alias: Option<String>,
    pub(crate) select: Vec<Selected>,
    has_aggregate: bool,
    pub(crate) filters: Vec<Tree>,
    pub(crate) order: Vec<Order>,
    order_given: bool,
    pub(crate) range: RowRange,
    pub(crate) relationship: Option<Relationship>,
    /// The alias of the whole embedded resource.
    pub(crate) embed_alias: String,
    pub(crate) joins: Vec<Join>,
    pub(crate) children: Vec<ReadNode>,
}

impl ReadNode {
    /// Plans the reading of a table, or of a function's result when `call` is
    /// set; then `name` is that of the rows' type.
    pub(crate) fn plan(
        catalog: &Catalog,
        name: Name,
        call: bool,
        parameters: &QueryParameters,
        top_range: RowRange,
        max_rows: Option<i64>,
    ) -> Result<Self, RestError> {
        let mut root = Self::new(name, 0);
        root.add_items(catalog, &parameters.select);
        for (path, filter) in &parameters.filters {
            let node = root.at_path(path)?;
            let tree = resolve_filter(catalog, &node.name, filter);
            node.filters.push(tree);
        }
        for (path, terms) in &parameters.order {
            let node = root.at_path(path)?;
            // The first of two orders wins.
            if !node.order_given {
                node.order_given = true;
                node.order = resolve_order(catalog, &node.name, terms);
            }
        }
        for (path, range) in &parameters.ranges {
            root.at_path(path)?.range = *range;
        }
        root.range = top_range;
        for (path, logic) in &parameters.logic {
            let node = root.at_path(path)?;
            let tree = resolve_logic(catalog, &node.name, logic);
            node.filters.push(tree);
        }
        if call {
            root.source = Source::Call;
            root.source_alias = Some(root.name.name.clone());
        }
        root.check_table(catalog)?;
        root.add_relationships(catalog)?;
        root.expand_stars(catalog)?;
        root.add_aliases();
        root.resolve_related_orders()?;
        root.resolve_embedded_filters();
        if root.any(&|node| node.has_aggregate) {
            return Err(RestError::Aggregates);
        }
        root.move_spread_orders();
        root.restrict_ranges(max_rows);
        Ok(root)
    }

    fn new(name: Name, depth: usize) -> Self {
        Self {
            source: Source::Table(name.clone()),
            name,
            alias: None,
            hint: None,
            inner: false,
            spread: None,
            depth,
            source_alias: None,
            select: Vec::new(),
            has_aggregate: false,
            filters: Vec::new(),
            order: Vec::new(),
            order_given: false,
            range: RowRange::ALL,
            relationship: None,
            embed_alias: String::new(),
            joins: Vec::new(),
            children: Vec::new(),
        }
    }

    /// What columns of this level are qualified with.
    pub(crate) fn qualifier(&self) -> Qualifier {
        match (&self.source_alias, &self.source) {
            (Some(alias), _) => Qualifier::Alias(alias.clone()),
            (None, Source::Table(name)) => Qualifier::Table(name.clone()),
            // A call always has an alias.
            (None, Source::Call) => Qualifier::Alias(self.name.name.clone()),
        }
    }

    /// The key under which an embedded resource appears.
    pub(crate) fn key(&self) -> &str {
        self.alias.as_deref().unwrap_or(&self.name.name)
    }

    /// Nothing is selected, here and below.
    pub(crate) fn selects_nothing(&self) -> bool {
        self.select.is_empty() && self.children.iter().all(Self::selects_nothing)
    }

    fn any(&self, holds: &impl Fn(&Self) -> bool) -> bool {
        holds(self) || self.children.iter().any(|child| child.any(holds))
    }

    fn add_items(&mut self, catalog: &Catalog, items: &[SelectItem]) {
        for item in items {
            match item {
                SelectItem::Field { field, alias, cast, aggregate } => {
                    self.has_aggregate |= aggregate;
                    self.select.push(Selected {
                        column: resolve_column(catalog, &self.name, field, None),
                        cast: cast.clone(),
                        alias: alias.clone(),
                    });
                }
                SelectItem::Relation(relation) => self.add_child(catalog, relation),
            }
        }
    }

    fn add_child(&mut self, catalog: &Catalog, relation: &RelationItem) {
        let name = Name::new(self.name.schema.clone(), relation.name.clone());
        let mut child = Self::new(name, self.depth + 1);
        child.alias.clone_from(&relation.alias);
        child.hint.clone_from(&relation.hint);
        child.inner = relation.inner;
        child.spread = relation.spread.then_some(Spread::ToOne);
        child.add_items(catalog, &relation.items);
        self.children.push(child);
    }

    /// Finds the embedded resource that a path leads to.
    fn at_path(&mut self, path: &[String]) -> Result<&mut Self, RestError> {
        let mut node = self;
        for name in path {
            let found = node.children.iter().position(|child| {
                child.name.name == *name || child.alias.as_deref() == Some(name.as_str())
            });
            let place = found.ok_or_else(|| RestError::NotEmbedded(name.clone()))?;
            node = &mut node.children[place];
        }
        Ok(node)
    }

    fn check_table(&self, catalog: &Catalog) -> Result<(), RestError> {
        let table = match &self.source {
            Source::Table(name) => catalog.tables.get(name),
            Source::Call => catalog.tables.get(&self.name),
        };
        if table.is_some_and(|table| table.represented) {
            return Err(RestError::Unsupported { feature: "Columns with data representations" });
        }
        Ok(())
    }

    fn add_relationships(&mut self, catalog: &Catalog) -> Result<(), RestError> {
        // Below the first level the parent goes by its table, on the first by its alias.
        let origin = match (&self.source, self.depth) {
            (Source::Call, _) => self.name.clone(),
            (Source::Table(name), _) => name.clone(),
        };
        let parent = self.qualifier();
        for child in &mut self.children {
            let found = find_relationship(
                catalog,
                &self.name.schema,
                &origin,
                &child.name.name,
                child.hint.as_deref(),
            )?;
            child.relate(found.clone(), &parent);
            child.check_table(catalog)?;
            child.add_relationships(catalog)?;
        }
        Ok(())
    }

    fn relate(&mut self, relationship: Relationship, parent: &Qualifier) {
        self.source = Source::Table(relationship.foreign.clone());
        self.embed_alias = format!("{}_{}_{}", relationship.table.name, self.key(), self.depth);
        if self.spread.is_some() && !relationship.is_to_one() {
            self.spread = Some(Spread::ToMany { extra: Vec::new(), order: Vec::new() });
        }
        match &relationship.cardinality {
            Cardinality::ManyToMany(junction) => {
                let foreign = Qualifier::Table(relationship.foreign.clone());
                let between = Qualifier::Table(junction.table.clone());
                for (outer, inner) in &junction.target.columns {
                    self.joins.push(Join {
                        left: (between.clone(), inner.clone()),
                        right: (foreign.clone(), outer.clone()),
                    });
                }
                for (outer, inner) in &junction.source.columns {
                    self.joins.push(Join {
                        left: (between.clone(), inner.clone()),
                        right: (parent.clone(), outer.clone()),
                    });
                }
            }
            Cardinality::ManyToOne(key)
            | Cardinality::OneToMany(key)
            | Cardinality::OneToOne(key) => {
                let alias = format!("{}_{}", relationship.foreign.name, self.depth);
                for (ours, theirs) in &key.columns {
                    self.joins.push(Join {
                        left: (Qualifier::Alias(alias.clone()), theirs.clone()),
                        right: (parent.clone(), ours.clone()),
                    });
                }
                self.source_alias = Some(alias);
            }
        }
        self.relationship = Some(relationship);
    }

    /// Names the columns of `*` where rows are spread into arrays, because
    /// there each column is aggregated by itself.
    fn expand_stars(&mut self, catalog: &Catalog) -> Result<(), RestError> {
        if matches!(self.spread, Some(Spread::ToMany { .. })) {
            let Source::Table(name) = &self.source else { return Ok(()) };
            let columns = catalog.tables.get(name).map(|table| table.columns.clone());
            let columns = columns.unwrap_or_default();
            self.select = std::mem::take(&mut self.select)
                .into_iter()
                .flat_map(|selected| {
                    if selected.column.name != "*" {
                        return vec![selected];
                    }
                    columns
                        .iter()
                        .map(|column| Selected {
                            column: Column { name: column.clone(), ..selected.column.clone() },
                            ..selected.clone()
                        })
                        .collect()
                })
                .collect();
        }
        self.children.iter_mut().try_for_each(|child| child.expand_stars(catalog))
    }

    /// Names what has a path after its last key.
    fn add_aliases(&mut self) {
        for selected in &mut self.select {
            if selected.alias.is_some() || selected.column.path.is_empty() {
                continue;
            }
            let last_key = selected.column.path.iter().rev().find_map(|step| match &step.operand {
                JsonOperand::Key(key) => Some(key.clone()),
                JsonOperand::Index(_) => None,
            });
            selected.alias = Some(last_key.unwrap_or_else(|| selected.column.name.clone()));
        }
        self.children.iter_mut().for_each(Self::add_aliases);
    }

    fn resolve_related_orders(&mut self) -> Result<(), RestError> {
        for order in &mut self.order {
            let Some(target) = &order.alias else { continue };
            let child = self.children.iter().find(|child| child.key() == target);
            let child = child.ok_or_else(|| RestError::NotEmbedded(target.clone()))?;
            if !child.relationship.as_ref().is_some_and(Relationship::is_to_one) {
                return Err(RestError::RelatedOrder {
                    origin: match &self.source {
                        Source::Table(name) => name.name.clone(),
                        Source::Call => self.name.name.clone(),
                    },
                    target: target.clone(),
                });
            }
            order.alias = Some(child.embed_alias.clone());
        }
        self.children.iter_mut().try_for_each(Self::resolve_related_orders)
    }

    /// Turns `embedded=is.null` into a question after the embedded resource.
    fn resolve_embedded_filters(&mut self) {
        let names: Vec<(String, String)> = self
            .children
            .iter()
            .map(|child| (child.key().to_owned(), child.embed_alias.clone()))
            .collect();
        for filter in &mut self.filters {
            resolve_embedded(filter, &names);
        }
        self.children.iter_mut().for_each(Self::resolve_embedded_filters);
    }

    /// An array is ordered where it is made, so what it is ordered by has to
    /// be selected below.
    fn move_spread_orders(&mut self) {
        if let Some(Spread::ToMany { extra, order: moved }) = &mut self.spread {
            for (position, order) in std::mem::take(&mut self.order).into_iter().enumerate() {
                let alias = format!("{}_{}_{}", self.embed_alias, order.column.name, position + 1);
                let column = Column {
                    name: alias.clone(),
                    path: Vec::new(),
                    to_json: false,
                    to_search: None,
                };
                moved.push(Order { alias: None, column, ..order });
                extra.push((
                    order.alias,
                    Selected { column: order.column, cast: None, alias: Some(alias) },
                ));
            }
        }
        self.children.iter_mut().for_each(Self::move_spread_orders);
    }

    fn restrict_ranges(&mut self, max_rows: Option<i64>) {
        self.range = self.range.restrict_to_maximum(max_rows);
        self.children.iter_mut().for_each(|child| child.restrict_ranges(max_rows));
    }

    /// Names of the columns that filters of this level need.
    pub(crate) fn filtered_columns(&self) -> Vec<&str> {
        fn collect<'a>(tree: &'a Tree, names: &mut Vec<&'a str>) {
            match tree {
                Tree::Filter { column, .. } => names.push(&column.name),
                Tree::Embedded { .. } => {}
                Tree::Group { members, .. } => {
                    for member in members {
                        collect(member, names);
                    }
                }
            }
        }
        let mut names = Vec::new();
        for filter in &self.filters {
            collect(filter, &mut names);
        }
        names
    }

    /// Names of the columns that embedding needs of this level.
    pub(crate) fn joined_columns(&self) -> Vec<&str> {
        self.children
            .iter()
            .filter_map(|child| child.relationship.as_ref())
            .flat_map(|relationship| match &relationship.cardinality {
                Cardinality::ManyToOne(key)
                | Cardinality::OneToMany(key)
                | Cardinality::OneToOne(key) => &key.columns,
                Cardinality::ManyToMany(junction) => &junction.source.columns,
            })
            .map(|(ours, _)| ours.as_str())
            .collect()
    }
}

/// Looks up what a field needs to be used.
fn resolve_column(
    catalog: &Catalog,
    table: &Name,
    field: &Field,
    search: Option<Option<String>>,
) -> Column {
    let known = catalog.tables.get(table).and_then(|table| table.column_type(&field.name));
    let is_json = known.is_some_and(|known| known.name == "json" || known.name == "jsonb");
    // Of a column that is not known nothing is known.
    let to_search = known.filter(|known| known.base != "tsvector").and(search);
    Column {
        name: field.name.clone(),
        path: field.path.clone(),
        to_json: !field.path.is_empty() && !is_json,
        to_search,
    }
}

fn resolve_filter(catalog: &Catalog, table: &Name, filter: &Filter) -> Tree {
    let search = match &filter.condition.operation {
        Operation::Search { language, .. } => Some(language.clone()),
        _ => None,
    };
    Tree::Filter {
        column: resolve_column(catalog, table, &filter.field, search),
        condition: filter.condition.clone(),
    }
}

fn resolve_logic(catalog: &Catalog, table: &Name, logic: &Logic) -> Tree {
    match logic {
        Logic::Filter(filter) => resolve_filter(catalog, table, filter),
        Logic::Group { negated, any, members } => Tree::Group {
            negated: *negated,
            any: *any,
            members: members.iter().map(|member| resolve_logic(catalog, table, member)).collect(),
        },
    }
}

fn resolve_order(catalog: &Catalog, table: &Name, terms: &[OrderTerm]) -> Vec<Order> {
    terms
        .iter()
        .map(|term| {
            let column = match &term.relation {
                None => resolve_column(catalog, table, &term.field, None),
                Some(_) => Column {
                    name: term.field.name.clone(),
                    path: term.field.path.clone(),
                    to_json: false,
                    to_search: None,
                },
            };
            Order {
                alias: term.relation.clone(),
                column,
                descending: term.descending,
                nulls_first: term.nulls_first,
            }
        })
        .collect()
}

fn resolve_embedded(tree: &mut Tree, names: &[(String, String)]) {
    match tree {
        Tree::Group { members, .. } => {
            for member in members {
                resolve_embedded(member, names);
            }
        }
        Tree::Embedded { .. } => {}
        Tree::Filter { column, condition } => {
            if !column.path.is_empty() || condition.operation != Operation::Is("null") {
                return;
            }
            if let Some((_, alias)) = names.iter().find(|(key, _)| *key == column.name) {
                *tree = Tree::Embedded { missing: !condition.negated, alias: alias.clone() };
            }
        }
    }
}
