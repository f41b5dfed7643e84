//! The rules of the language, one method each.
//!
//! A rule that fails says whether it had read anything; only one that had not
//! gives way to another. The furthest failure is what the client is told.

use super::{
    Condition, Field, Filter, JsonOperand, JsonStep, Logic, Operation, OrderTerm, Quantifier,
    RelationItem, SelectItem,
};
use crate::stack::rest::error::RestError;

/// How deep embeddings and logic may be nested.
const MAX_DEPTH: usize = 24;

/// How many parts one parameter may have.
const MAX_PARTS: usize = 2_000;

/// A failure, and whether anything had been read before it: a parser that has
/// read something is not tried again by another rule.
#[derive(Debug, Clone, Copy)]
pub(super) struct Failure {
    pub(super) consumed: bool,
    too_complex: bool,
}

impl Failure {
    const SOFT: Self = Self { consumed: false, too_complex: false };
    const TOO_COMPLEX: Self = Self { consumed: true, too_complex: true };

    fn hard(self) -> Self {
        Self { consumed: true, ..self }
    }
}

pub(super) type Parsed<T> = Result<T, Failure>;

/// A text, and how far it is read.
pub(super) struct Parser {
    characters: Vec<char>,
    position: usize,
    parts: usize,
    /// The furthest place where something else was expected, and what.
    furthest: usize,
    expected: Vec<&'static str>,
}

impl Parser {
    pub(super) fn new(text: &str) -> Self {
        Self {
            characters: text.chars().collect(),
            position: 0,
            parts: 0,
            furthest: 0,
            expected: Vec::new(),
        }
    }

    /// Makes the error for the client out of the furthest failure.
    pub(super) fn error(&self, failure: Failure, what: &str) -> RestError {
        if failure.too_complex {
            return RestError::TooComplex { what: "too many or too deeply nested parts" };
        }
        let found = match self.characters.get(self.furthest) {
            Some(character) => format!("unexpected \"{character}\""),
            None => "unexpected end of input".to_owned(),
        };
        let expected = match self.expected.split_last() {
            None => String::new(),
            Some((only, [])) => format!(" expecting {only}"),
            Some((last, rest)) => format!(" expecting {} or {last}", rest.join(", ")),
        };
        RestError::Query {
            message: format!("\"failed to parse {what}\" (line 1, column {})", self.furthest + 1),
            details: format!("{found}{expected}"),
        }
    }

    fn fail<T>(&mut self, expected: &'static str) -> Parsed<T> {
        if self.position > self.furthest {
            self.furthest = self.position;
            self.expected.clear();
        }
        if self.position == self.furthest && !self.expected.contains(&expected) {
            self.expected.push(expected);
        }
        Err(Failure::SOFT)
    }

    fn part(&mut self) -> Parsed<()> {
        self.parts += 1;
        if self.parts > MAX_PARTS { Err(Failure::TOO_COMPLEX) } else { Ok(()) }
    }

    fn peek(&self) -> Option<char> {
        self.characters.get(self.position).copied()
    }

    fn at(&self, text: &str) -> bool {
        text.chars().enumerate().all(|(i, c)| self.characters.get(self.position + i) == Some(&c))
    }

    /// Reads `text` or nothing.
    fn literal(&mut self, text: &str, expected: &'static str) -> Parsed<()> {
        if self.at(text) {
            self.position += text.chars().count();
            Ok(())
        } else {
            self.fail(expected)
        }
    }

    /// Tries a rule and stands where it began when it fails.
    fn attempt<T>(&mut self, rule: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        let start = self.position;
        rule(self).map_err(|failure| {
            self.position = start;
            if failure.too_complex { failure } else { Failure::SOFT }
        })
    }

    /// Runs a rule and says whether its failure came after reading something.
    fn tracked<T>(&mut self, rule: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        let start = self.position;
        rule(self).map_err(|failure| if self.position > start { failure.hard() } else { failure })
    }

    fn optional<T>(&mut self, rule: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<Option<T>> {
        match self.attempt(rule) {
            Ok(value) => Ok(Some(value)),
            Err(failure) if failure.too_complex => Err(failure),
            Err(_) => Ok(None),
        }
    }

    fn spaces(&mut self) {
        while matches!(self.peek(), Some(' ' | '\t')) {
            self.position += 1;
        }
    }

    fn lexeme<T>(&mut self, rule: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        self.spaces();
        let value = rule(self)?;
        self.spaces();
        Ok(value)
    }

    pub(super) fn separated<T>(&mut self, rule: impl Fn(&mut Self) -> Parsed<T>) -> Parsed<Vec<T>> {
        let mut values = vec![rule(self)?];
        while self.optional(|p| p.lexeme(|p| p.literal(",", "\",\"")))?.is_some() {
            self.part()?;
            values.push(rule(self).map_err(Failure::hard)?);
        }
        Ok(values)
    }

    fn take_while(&mut self, accepts: impl Fn(char) -> bool) -> String {
        let start = self.position;
        while self.peek().is_some_and(&accepts) {
            self.position += 1;
        }
        self.characters[start..self.position].iter().collect()
    }

    // ------------------------------------------------------------- names

    fn identifier(&mut self) -> Parsed<String> {
        let name = self.take_while(|c| c.is_alphanumeric() || matches!(c, '_' | ' ' | '$'));
        if name.is_empty() {
            return self.fail("field name (* or [a..z0..9_$])");
        }
        Ok(name.trim().to_owned())
    }

    /// Parts joined by dashes, where a dash is not the start of an arrow.
    fn dashed(&mut self, rule: impl Fn(&mut Self) -> Parsed<String>) -> Parsed<String> {
        let mut name = rule(self)?;
        while self.peek() == Some('-') && self.characters.get(self.position + 1) != Some(&'>') {
            self.position += 1;
            name.push('-');
            name.push_str(&rule(self).map_err(Failure::hard)?);
        }
        Ok(name)
    }

    pub(super) fn field_name(&mut self) -> Parsed<String> {
        if self.peek() == Some('"') { self.quoted() } else { self.dashed(Self::identifier) }
    }

    fn quoted(&mut self) -> Parsed<String> {
        self.literal("\"", "\"\\\"\"")?;
        let mut value = String::new();
        loop {
            match self.peek() {
                Some('"') => {
                    self.position += 1;
                    return Ok(value);
                }
                Some('\\') => {
                    self.position += 1;
                    let Some(escaped) = self.peek() else {
                        return self.fail("any character").map_err(Failure::hard);
                    };
                    value.push(escaped);
                }
                Some(character) => value.push(character),
                None => return self.fail("\"\\\"\"").map_err(Failure::hard),
            }
            self.position += 1;
        }
    }

    pub(super) fn name_path(&mut self) -> Parsed<Vec<String>> {
        let mut path = vec![self.field_name()?];
        while self.peek() == Some('.') {
            self.position += 1;
            self.part()?;
            path.push(self.field_name().map_err(Failure::hard)?);
        }
        Ok(path)
    }

    pub(super) fn tree_path(&mut self) -> Parsed<(Vec<String>, Field)> {
        let mut path = self.name_path()?;
        let name = path.pop().unwrap_or_default();
        let steps = self.json_path()?;
        Ok((path, Field { name, path: steps }))
    }

    fn json_path(&mut self) -> Parsed<Vec<JsonStep>> {
        let mut steps = Vec::new();
        loop {
            let as_text = if self.at("->>") {
                self.position += 3;
                true
            } else if self.at("->") {
                self.position += 2;
                false
            } else {
                return Ok(steps);
            };
            self.part()?;
            let operand = match self.attempt(Self::json_index) {
                Ok(index) => JsonOperand::Index(index),
                Err(_) => JsonOperand::Key(self.json_key().map_err(Failure::hard)?),
            };
            steps.push(JsonStep { as_text, operand });
        }
    }

    fn json_index(&mut self) -> Parsed<String> {
        let sign = if self.peek() == Some('-') {
            self.position += 1;
            '-'
        } else {
            '+'
        };
        let digits = self.take_while(|c| c.is_ascii_digit());
        let ends = self.at("->") || self.at("::") || matches!(self.peek(), None | Some('.' | ','));
        if digits.is_empty() || !ends {
            return self.fail("digit");
        }
        Ok(format!("{sign}{digits}"))
    }

    fn json_key(&mut self) -> Parsed<String> {
        if self.peek() == Some('"') {
            return self.quoted();
        }
        self.dashed(|parser| {
            let key = parser.take_while(|c| !matches!(c, '(' | '-' | ':' | '.' | ',' | '>' | ')'));
            if key.is_empty() {
                return parser.fail("any non reserved character different from: .,>()");
            }
            Ok(key.trim().to_owned())
        })
    }

    fn field(&mut self) -> Parsed<Field> {
        self.lexeme(|parser| {
            let name = parser.field_name()?;
            let path = parser.json_path()?;
            Ok(Field { name, path })
        })
    }

    fn alias(&mut self) -> Parsed<Option<String>> {
        self.optional(|parser| {
            let name = parser.field_name()?;
            parser.literal(":", "\":\"")?;
            if parser.peek() == Some(':') {
                return parser.fail("field name (* or [a..z0..9_$])");
            }
            Ok(name)
        })
    }

    // ------------------------------------------------------------ select

    pub(super) fn select_items(&mut self, depth: usize) -> Parsed<Vec<SelectItem>> {
        if depth > MAX_DEPTH {
            return Err(Failure::TOO_COMPLEX);
        }
        let mut items = match self.tracked(|parser| parser.select_item(depth)) {
            Ok(item) => vec![item],
            Err(failure) if failure.consumed => return Err(failure),
            Err(_) => return Ok(Vec::new()),
        };
        while self.optional(|p| p.lexeme(|p| p.literal(",", "\",\"")))?.is_some() {
            self.part()?;
            items.push(self.select_item(depth).map_err(Failure::hard)?);
        }
        Ok(items)
    }

    fn select_item(&mut self, depth: usize) -> Parsed<SelectItem> {
        let expected = (self.furthest, self.expected.clone());
        let head = match self.optional(|parser| parser.relation_head(true))? {
            Some(head) => Some(head),
            None => self.optional(|parser| parser.relation_head(false))?,
        };
        let Some(mut relation) = head else {
            // It is a field, and what a relation would have had to be does not matter.
            (self.furthest, self.expected) = expected;
            return self.select_field();
        };
        self.literal("(", "\"(\"")?;
        relation.items = self.select_items(depth + 1)?;
        self.literal(")", "\")\"")?;
        Ok(SelectItem::Relation(Box::new(relation)))
    }

    fn relation_head(&mut self, spread: bool) -> Parsed<RelationItem> {
        self.lexeme(|parser| {
            let alias = if spread {
                parser.literal("...", "\"...\"")?;
                None
            } else {
                parser.alias()?
            };
            let name = parser.field_name()?;
            if !spread && name == "count" {
                return Err(Failure::SOFT);
            }
            let (mut hint, mut inner) = (None, None);
            for _ in 0..2 {
                if parser.peek() != Some('!') {
                    break;
                }
                parser.position += 1;
                if parser.at("left") {
                    parser.position += 4;
                    inner = inner.or(Some(false));
                } else if parser.at("inner") {
                    parser.position += 5;
                    inner = inner.or(Some(true));
                } else {
                    let name = parser.field_name()?;
                    hint = hint.or(Some(name));
                }
            }
            if parser.peek() != Some('(') {
                return parser.fail("\"(\"");
            }
            let inner = inner.unwrap_or(false);
            Ok(RelationItem { name, alias, hint, inner, spread, items: Vec::new() })
        })
    }

    fn select_end(&mut self) -> Parsed<()> {
        match self.peek() {
            None | Some(')' | ',') => Ok(()),
            Some(_) => {
                for expected in ["\"->>\"", "\"->\"", "\"::\"", "\".\"", "\")\"", "\",\""] {
                    self.fail::<()>(expected).ok();
                }
                self.fail("end of input")
            }
        }
    }

    fn select_field(&mut self) -> Parsed<SelectItem> {
        self.lexeme(|parser| {
            let star = parser.optional(|parser| {
                parser.literal("*", "field name (* or [a..z0..9_$])")?;
                parser.select_end()
            })?;
            let whole = || Field { name: "*".to_owned(), path: Vec::new() };
            if star.is_some() {
                return Ok(SelectItem::Field {
                    field: whole(),
                    alias: None,
                    cast: None,
                    aggregate: false,
                });
            }
            let counted = parser.optional(|parser| {
                let alias = parser.alias()?;
                parser.literal("count()", "\"count()\"")?;
                parser.aggregate_cast()?;
                parser.select_end()?;
                Ok(alias)
            })?;
            if let Some(alias) = counted {
                return Ok(SelectItem::Field {
                    field: whole(),
                    alias,
                    cast: None,
                    aggregate: true,
                });
            }
            let alias = parser.alias()?;
            let field = parser.field()?;
            let cast = parser.aggregate_cast()?;
            let aggregate = parser.optional(Self::aggregate)?.is_some();
            if aggregate {
                parser.aggregate_cast()?;
            }
            parser.select_end()?;
            Ok(SelectItem::Field { field, alias, cast, aggregate })
        })
    }

    fn aggregate_cast(&mut self) -> Parsed<Option<String>> {
        if !self.at("::") {
            return Ok(None);
        }
        self.position += 2;
        self.identifier().map(Some).map_err(Failure::hard)
    }

    fn aggregate(&mut self) -> Parsed<()> {
        self.literal(".", "\".\"")?;
        for (name, expected) in [
            ("sum()", "\"sum\""),
            ("avg()", "\"avg\""),
            ("count()", "\"count\""),
            ("max()", "\"max\""),
            ("min()", "\"min\""),
        ] {
            if self.literal(name, expected).is_ok() {
                return Ok(());
            }
        }
        Err(Failure::SOFT)
    }

    // ----------------------------------------------------------- filters

    pub(super) fn plain_value(&mut self) -> Parsed<String> {
        let rest = self.characters[self.position..].iter().collect();
        self.position = self.characters.len();
        Ok(rest)
    }

    fn logic_value(&mut self) -> Parsed<String> {
        if let Some(value) = self.optional(Self::quoted_element)? {
            return Ok(value);
        }
        let array = self.optional(|parser| {
            parser.literal("{", "\"{\"")?;
            let inner = parser.take_while(|c| !matches!(c, '{' | '}'));
            parser.literal("}", "\"}\"")?;
            Ok(format!("{{{inner}}}"))
        })?;
        match array {
            Some(value) => Ok(value),
            None => Ok(self.take_while(|c| !matches!(c, ',' | ')'))),
        }
    }

    /// A quoted value with nothing but a comma or a parenthesis after it.
    fn quoted_element(&mut self) -> Parsed<String> {
        let value = self.quoted()?;
        match self.peek() {
            None | Some(',' | ')') => Ok(value),
            Some(_) => self.fail("\",\""),
        }
    }

    pub(super) fn condition(
        &mut self,
        value: fn(&mut Self) -> Parsed<String>,
    ) -> Parsed<Condition> {
        let negated = self.at("not.");
        if negated {
            self.position += 4;
        }
        let operation = self.operation(value);
        let operation = if negated { operation.map_err(Failure::hard) } else { operation }?;
        Ok(Condition { negated, operation })
    }

    fn operation(&mut self, value: fn(&mut Self) -> Parsed<String>) -> Parsed<Operation> {
        if self.at("in.") {
            self.position += 3;
            return self.list().map(Operation::In).map_err(Failure::hard);
        }
        if self.at("is.") {
            self.position += 3;
            return self.is_value().map(Operation::Is).map_err(Failure::hard);
        }
        if self.at("isdistinct.") {
            self.position += 11;
            return value(self).map(Operation::IsDistinct);
        }
        if let Some(operation) = self.optional(|parser| parser.search(value))? {
            return Ok(operation);
        }
        if let Some(operation) = self.optional(|parser| parser.comparison(value))? {
            return Ok(operation);
        }
        if self.position == 0 {
            self.fail::<()>("\"not\"").ok();
        }
        self.fail("operator (eq, gt, ...)")
    }

    fn search(&mut self, value: fn(&mut Self) -> Parsed<String>) -> Parsed<Operation> {
        let function = [
            ("fts", "to_tsquery"),
            ("plfts", "plainto_tsquery"),
            ("phfts", "phraseto_tsquery"),
            ("wfts", "websearch_to_tsquery"),
        ];
        let Some((name, function)) = function.into_iter().find(|(name, _)| self.at(name)) else {
            return Err(Failure::SOFT);
        };
        self.position += name.len();
        let language = self.optional(|parser| {
            parser.literal("(", "operator (eq, gt, ...)")?;
            let language = parser.identifier()?;
            parser.literal(")", "operator (eq, gt, ...)")?;
            Ok(language)
        })?;
        self.literal(".", "operator (eq, gt, ...)")?;
        Ok(Operation::Search { function, language, value: value(self)? })
    }

    fn comparison(&mut self, value: fn(&mut Self) -> Parsed<String>) -> Parsed<Operation> {
        // Of two names where one starts with the other, the longer stands first.
        const OPERATORS: [(&str, &str, bool); 18] = [
            ("neq", "<>", false),
            ("cs", "@>", false),
            ("cd", "<@", false),
            ("ov", "&&", false),
            ("sl", "<<", false),
            ("sr", ">>", false),
            ("nxr", "&<", false),
            ("nxl", "&>", false),
            ("adj", "-|-", false),
            ("eq", "=", true),
            ("gte", ">=", true),
            ("gt", ">", true),
            ("lte", "<=", true),
            ("lt", "<", true),
            ("like", "like", true),
            ("ilike", "ilike", true),
            ("match", "~", true),
            ("imatch", "~*", true),
        ];
        let found = OPERATORS.into_iter().find(|(name, ..)| self.at(name));
        let Some((name, operator, quantified)) = found else { return Err(Failure::SOFT) };
        self.position += name.len();
        let quantifier = if !quantified {
            None
        } else if self.at("(any)") {
            self.position += 5;
            Some(Quantifier::Any)
        } else if self.at("(all)") {
            self.position += 5;
            Some(Quantifier::All)
        } else {
            None
        };
        self.literal(".", "operator (eq, gt, ...)")?;
        let value = value(self)?;
        Ok(match operator {
            "like" | "ilike" => Operation::Like { operator, quantifier, value },
            _ => Operation::Compare { operator, quantifier, value },
        })
    }

    fn is_value(&mut self) -> Parsed<&'static str> {
        for (name, keyword) in [
            ("null", "null"),
            ("not_null", "not null"),
            ("true", "true"),
            ("false", "false"),
            ("unknown", "unknown"),
        ] {
            let given = self.characters[self.position..].iter().take(name.len());
            if given.clone().count() == name.len()
                && given.zip(name.chars()).all(|(a, b)| a.eq_ignore_ascii_case(&b))
            {
                self.position += name.len();
                return Ok(keyword);
            }
        }
        self.fail("isVal: (null, not_null, true, false, unknown)")
    }

    fn list(&mut self) -> Parsed<Vec<String>> {
        self.lexeme(|parser| parser.literal("(", "\"(\""))?;
        let mut values = vec![self.list_element()?];
        while self.peek() == Some(',') {
            self.position += 1;
            self.part()?;
            values.push(self.list_element()?);
        }
        if self.peek() != Some(')') {
            self.fail::<()>("\",\"").ok();
        }
        self.lexeme(|parser| parser.literal(")", "\")\""))?;
        Ok(values)
    }

    fn list_element(&mut self) -> Parsed<String> {
        match self.optional(Self::quoted_element)? {
            Some(value) => Ok(value),
            None => Ok(self.take_while(|c| !matches!(c, ',' | ')'))),
        }
    }

    // ------------------------------------------------------------- logic

    pub(super) fn group(&mut self, depth: usize) -> Parsed<Vec<Logic>> {
        self.lexeme(|parser| parser.literal("(", "\"(\""))?;
        let members = self.separated(|parser| parser.logic(depth + 1))?;
        if !matches!(self.peek(), Some(')')) {
            self.fail::<()>("\",\"").ok();
        }
        self.lexeme(|parser| parser.literal(")", "\")\""))?;
        Ok(members)
    }

    fn logic(&mut self, depth: usize) -> Parsed<Logic> {
        if depth > MAX_DEPTH {
            return Err(Failure::TOO_COMPLEX);
        }
        let filter = self.optional(|parser| {
            let field = parser.field()?;
            parser.literal(".", "delimiter (.)")?;
            let condition = parser.condition(Self::logic_value)?;
            Ok(Filter { field, condition })
        })?;
        if let Some(filter) = filter {
            return Ok(Logic::Filter(filter));
        }
        let negated = self.at("not.");
        if negated {
            self.position += 4;
        }
        let any = if self.at("and") {
            self.position += 3;
            false
        } else if self.at("or") {
            self.position += 2;
            true
        } else {
            if !negated {
                self.fail::<()>("negation operator (not)").ok();
            }
            return self.fail("logic operator (and, or)");
        };
        let members = self.group(depth)?;
        Ok(Logic::Group { negated, any, members })
    }

    // ------------------------------------------------------------- order

    pub(super) fn order_terms(&mut self) -> Parsed<Vec<OrderTerm>> {
        let mut terms = vec![self.lexeme(Self::order_term)?];
        while self.peek() == Some(',') {
            self.position += 1;
            self.part()?;
            terms.push(self.lexeme(Self::order_term)?);
        }
        Ok(terms)
    }

    fn order_term(&mut self) -> Parsed<OrderTerm> {
        let related = self.optional(|parser| {
            let relation = parser.field_name()?;
            parser.literal("(", "\"(\"")?;
            let field = parser.field()?;
            parser.literal(")", "\")\"")?;
            let (descending, nulls_first) = parser.direction()?;
            Ok(OrderTerm { relation: Some(relation), field, descending, nulls_first })
        })?;
        if let Some(term) = related {
            return Ok(term);
        }
        let field = self.field()?;
        let (descending, nulls_first) = self.direction()?;
        Ok(OrderTerm { relation: None, field, descending, nulls_first })
    }

    fn direction(&mut self) -> Parsed<(Option<bool>, Option<bool>)> {
        let mut keyword = |words: [(&str, &'static str, bool); 2]| {
            for (word, expected, value) in words {
                if self.literal(word, expected).is_ok() {
                    return Some(value);
                }
            }
            None
        };
        let descending = keyword([(".asc", "\"asc\"", false), (".desc", "\"desc\"", true)]);
        let nulls_first = keyword([
            (".nullsfirst", "\"nullsfirst\"", true),
            (".nullslast", "\"nullslast\"", false),
        ]);
        match self.peek() {
            None | Some(',') => Ok((descending, nulls_first)),
            Some(_) => self.fail("\",\" or end of input"),
        }
    }
}
