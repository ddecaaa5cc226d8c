//! Documents that people write, read strictly and with places.
//!
//! Problem: a misspelt field that is ignored in silence is a pod without its limit, or a node without its reservation; and an
//! error without a place sends people to search a long file. The Kubernetes types ignore what they do not know.
//! Approach: YAML (JSON is a part of it) becomes a tree in which every node knows its line. A serde deserializer over the tree
//! tracks the path; types announce their fields to it, so whatever is not among them is an error with the nearest name.
//!
//! Terms: a *path* is written as Kubernetes does, `spec.containers[0].image`; a *fault* is what is wrong, with path and line.
//!
//! Properties: no input makes it panic; depth, size and aliases are bounded (serde-saphyr's budget); a field that is null counts
//! as absent, as in Go; a key given twice is an error.

use std::fmt;

use beelet_core::quantity::Quantity;
use serde::Deserialize;
use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// What is wrong in a document, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// As Kubernetes writes it, `spec.containers[0].image`; "" for the document.
    pub path: String,
    /// Counted from 1; 0 where it is not known.
    pub line: u64,
    /// What is wrong and what would be right.
    pub problem: String,
}

impl Fault {
    /// A fault whose line is not known.
    pub(crate) fn new(path: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { path: path.into(), line: 0, problem: problem.into() }
    }

    fn at(mut self, path: &Path<'_>, line: u64) -> Self {
        if self.path.is_empty() && self.line == 0 {
            self.path = path.to_string();
            self.line = line;
        }
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.path.as_str(), self.line) {
            ("", 0) => {}
            ("", line) => write!(f, "line {line}: ")?,
            (path, 0) => write!(f, "{path}: ")?,
            (path, line) => write!(f, "{path} (line {line}): ")?,
        }
        f.write_str(&self.problem)
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new("", message.to_string())
    }
}

/// A node of a document.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// Where it begins.
    pub(crate) line: u64,
    /// What it is.
    pub(crate) value: Value,
}

/// A value of a document.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// Nothing.
    Null,
    /// true or false.
    Bool(bool),
    /// A whole number.
    Int(i128),
    /// Another number.
    Float(f64),
    /// Text.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// Fields: name, line of the name, value.
    Map(Vec<(String, u64, Node)>),
}

/// The documents of a file; empty ones are left out.
///
/// # Errors
/// It is not YAML, or more than is sane.
pub(crate) fn documents(bytes: &[u8]) -> Result<Vec<Node>, Fault> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = 1 + bytes[..error.valid_up_to()].iter().filter(|b| **b == b'\n').count() as u64;
        Fault { path: String::new(), line, problem: "not UTF-8 text".to_owned() }
    })?;
    // Modes of files are written `0400`, which means what it means to the API server's reader of YAML.
    let options = serde_saphyr::options! { with_snippet: false, strict_booleans: true, legacy_octal_numbers: true };
    match serde_saphyr::from_multiple_with_options::<Spanned<Value>>(text, options) {
        Ok(nodes) => Ok(nodes.into_iter().map(Node::from).filter(|n| !matches!(n.value, Value::Null)).collect()),
        Err(error) => {
            // Tabs between tokens are fine in JSON and not in YAML.
            if text.trim_start().starts_with('{')
                && let Ok(json) = serde_json::from_str::<Value>(text)
            {
                return Ok(vec![Node { line: 0, value: json }]);
            }
            let line = error.location().map_or(0, |l| l.line());
            Err(Fault {
                path: String::new(),
                line,
                problem: format!("not valid YAML or JSON: {}", one_line(&error.to_string())),
            })
        }
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

impl From<Spanned<Value>> for Node {
    fn from(spanned: Spanned<Value>) -> Self {
        Self { line: spanned.referenced.line(), value: spanned.value }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Build;
        impl<'de> Visitor<'de> for Build {
            type Value = Value;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }
            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }
            fn visit_none<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }
            fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
                Value::deserialize(deserializer)
            }
            fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
                Ok(Value::Bool(v))
            }
            fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
                Ok(Value::Int(i128::from(v)))
            }
            fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
                Ok(Value::Int(i128::from(v)))
            }
            fn visit_i128<E>(self, v: i128) -> Result<Value, E> {
                Ok(Value::Int(v))
            }
            fn visit_u128<E>(self, v: u128) -> Result<Value, E> {
                Ok(i128::try_from(v).map_or_else(|_| Value::Text(v.to_string()), Value::Int))
            }
            fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
                Ok(Value::Float(v))
            }
            fn visit_str<E>(self, v: &str) -> Result<Value, E> {
                Ok(Value::Text(v.to_owned()))
            }
            fn visit_string<E>(self, v: String) -> Result<Value, E> {
                Ok(Value::Text(v))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = seq.next_element::<Spanned<Value>>()? {
                    list.push(item.into());
                }
                Ok(Value::List(list))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
                let mut fields: Vec<(String, u64, Node)> = Vec::new();
                while let Some((key, value)) = map.next_entry::<Spanned<String>, Spanned<Value>>()? {
                    fields.push((key.value, key.referenced.line(), value.into()));
                }
                Ok(Value::Map(fields))
            }
        }
        deserializer.deserialize_any(Build)
    }
}

impl Node {
    /// The field of that name.
    pub(crate) fn get(&self, name: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(fields) => fields.iter().find(|(key, ..)| key == name).map(|(.., node)| node),
            _ => None,
        }
    }

    /// The text, if it is one.
    pub(crate) fn text(&self) -> Option<&str> {
        if let Value::Text(text) = &self.value { Some(text) } else { None }
    }

    /// The field's text, "" without one.
    pub(crate) fn text_of(&self, name: &str) -> &str {
        self.get(name).and_then(Self::text).unwrap_or_default()
    }

    /// The line of the deepest node on a path that is there.
    pub(crate) fn line_at(&self, path: &str) -> u64 {
        let mut at = self;
        let mut line = self.line;
        let mut rest = path;
        while !rest.is_empty() {
            let in_brackets = rest.strip_prefix('[').and_then(|r| r.split_once(']'));
            let (step, after) = in_brackets.unwrap_or_else(|| {
                let plain = rest.trim_start_matches('.');
                plain.split_at(plain.find(['.', '[']).unwrap_or(plain.len()))
            });
            let next = match &at.value {
                Value::Map(fields) => {
                    fields.iter().find(|(name, ..)| name == step).map(|(_, line, node)| (*line, node))
                }
                Value::List(items) => step.parse().ok().and_then(|i: usize| items.get(i)).map(|node| (node.line, node)),
                _ => None,
            };
            let Some((found, node)) = next else { break };
            (line, at, rest) = (found, node, after);
        }
        line
    }

    /// Reads a type strictly: an unknown field is a fault.
    pub(crate) fn read<T: for<'de> Deserialize<'de>>(&self, at: &str) -> Result<T, Fault> {
        T::deserialize(Reader { node: self, path: &Path { parent: None, step: Step::Root(at) } })
    }
}

/// Where the reader is.
struct Path<'p> {
    parent: Option<&'p Path<'p>>,
    step: Step<'p>,
}

enum Step<'p> {
    Root(&'p str),
    Field(&'p str),
    Index(usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let above = self.parent.map(ToString::to_string).unwrap_or_default();
        f.write_str(&above)?;
        match self.step {
            Step::Root(name) => f.write_str(name),
            Step::Field(name) => f.write_str(&join(&above, name)[above.len()..]),
            Step::Index(index) => write!(f, "[{index}]"),
        }
    }
}

/// `path.name`; a name that would be taken for a path of its own is put in brackets, as Kubernetes does.
pub(crate) fn join(path: &str, name: &str) -> String {
    if name.contains(['.', '/', '[']) && !path.is_empty() {
        format!("{path}[{name}]")
    } else if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

/// ` did you mean "image"?` if one of the names is near.
pub(crate) fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let lower = name.to_lowercase();
    let near = known
        .into_iter()
        .map(|k| {
            let begun = lower.len() >= 4 && k.to_lowercase().starts_with(&lower);
            (if begun { 1 } else { distance(&lower, &k.to_lowercase()) }, k)
        })
        .min()
        .filter(|(steps, k)| *steps <= (k.len() / 2).clamp(1, 4));
    near.map_or_else(String::new, |(_, k)| format!(", did you mean {k:?}?"))
}

/// Letters to change, add or drop to get from one to the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    if a.len() > 100 {
        return usize::MAX;
    }
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let change = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[derive(Clone, Copy)]
struct Reader<'de, 'p> {
    node: &'de Node,
    path: &'p Path<'p>,
}

impl Reader<'_, '_> {
    fn fault(&self, problem: impl Into<String>) -> Fault {
        Fault { path: self.path.to_string(), line: self.node.line, problem: problem.into() }
    }
}

impl<'de> Deserializer<'de> for Reader<'de, '_> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let read = match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(v) => visitor.visit_bool(*v),
            Value::Int(v) => match (i64::try_from(*v), u64::try_from(*v)) {
                (Ok(v), _) => visitor.visit_i64(v),
                (_, Ok(v)) => visitor.visit_u64(v),
                _ => Err(self.fault(format!("{v} is too large"))),
            },
            Value::Float(v) => visitor.visit_f64(*v),
            Value::Text(v) => visitor.visit_borrowed_str(v),
            Value::List(items) => visitor.visit_seq(Items { items: items.iter().enumerate(), path: self.path }),
            Value::Map(fields) => visitor.visit_map(Fields { fields: fields.iter(), value: None, path: self.path }),
        };
        read.map_err(|fault| fault.at(self.path, self.node.line))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        if matches!(self.node.value, Value::Null) { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Map(fields) => {
                if let Some((name, line, _)) = fields.iter().find(|(name, ..)| !known.contains(&name.as_str())) {
                    return Err(Fault {
                        path: join(&self.path.to_string(), name),
                        line: *line,
                        problem: format!("unknown field{}", did_you_mean(name, known.iter().copied())),
                    });
                }
                self.deserialize_map(visitor)
            }
            Value::Null => self.deserialize_map(visitor),
            Value::List(_) => Err(self.fault("a list where fields (name: value) are wanted")),
            other => Err(self.fault(format!("{} where fields (name: value) are wanted", say(other)))),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        if matches!(self.node.value, Value::Null) {
            return visitor.visit_map(Fields { fields: [].iter(), value: None, path: self.path });
        }
        self.deserialize_any(visitor)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        if matches!(self.node.value, Value::Null) {
            return visitor.visit_seq(Items { items: [].iter().enumerate(), path: self.path });
        }
        self.deserialize_any(visitor)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Int(_) | Value::Float(_) | Value::Bool(_) => {
                let value = say(&self.node.value);
                Err(self.fault(format!("{value} where text is wanted: write it in quotes, \"{value}\"")))
            }
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Bool(_) => self.deserialize_any(visitor),
            // YAML 1.1, which the kubelet reads, takes these for booleans. Here they are, but only where one is wanted: a
            // variable of the name N stays one.
            Value::Text(text) if matches!(text.to_lowercase().as_str(), "yes" | "on") => visitor.visit_bool(true),
            Value::Text(text) if matches!(text.to_lowercase().as_str(), "no" | "off") => visitor.visit_bool(false),
            other => Err(self.fault(format!("{} is not true or false", say(other)))),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, Fault> {
        if name == "Quantity" {
            let text = match &self.node.value {
                Value::Text(text) => text.clone(),
                Value::Int(v) => v.to_string(),
                Value::Float(v) => v.to_string(),
                other => return Err(self.fault(format!("{} where a quantity is wanted, as 500m or 1Gi", say(other)))),
            };
            text.parse::<Quantity>().map_err(|error| self.fault(error.to_string()))?;
        }
        visitor.visit_newtype_struct(self).map_err(|fault: Fault| fault.at(self.path, self.node.line))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let Some(text) = self.node.text() else {
            return Err(self.fault(format!("{} is not one of {}", say(&self.node.value), known.join(", "))));
        };
        if !known.contains(&text) {
            return Err(self.fault(format!(
                "{text:?} is not one of {}{}",
                known.join(", "),
                did_you_mean(text, known.iter().copied())
            )));
        }
        let variant: StrDeserializer<'_, Fault> = text.into_deserializer();
        visitor.visit_enum(variant)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct identifier
    }
}

fn say(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(v) => v.to_string(),
        Value::Int(v) => v.to_string(),
        Value::Float(v) => v.to_string(),
        Value::Text(v) => format!("{v:?}"),
        Value::List(_) => "a list".to_owned(),
        Value::Map(_) => "a group of fields".to_owned(),
    }
}

struct Items<'de, 'p> {
    items: std::iter::Enumerate<std::slice::Iter<'de, Node>>,
    path: &'p Path<'p>,
}

impl<'de> SeqAccess<'de> for Items<'de, '_> {
    type Error = Fault;
    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        let Some((index, node)) = self.items.next() else { return Ok(None) };
        let path = Path { parent: Some(self.path), step: Step::Index(index) };
        seed.deserialize(Reader { node, path: &path }).map(Some).map_err(|fault| fault.at(&path, node.line))
    }
}

struct Fields<'de, 'p> {
    fields: std::slice::Iter<'de, (String, u64, Node)>,
    value: Option<(&'de str, &'de Node)>,
    path: &'p Path<'p>,
}

impl<'de> MapAccess<'de> for Fields<'de, '_> {
    type Error = Fault;
    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        let Some((name, _, node)) = self.fields.find(|(.., node)| !matches!(node.value, Value::Null)) else {
            return Ok(None);
        };
        self.value = Some((name, node));
        let key: StrDeserializer<'_, Fault> = name.as_str().into_deserializer();
        seed.deserialize(key).map(Some)
    }
    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let Some((name, node)) = self.value.take() else { return Err(Fault::new("", "a value without its name")) };
        let path = Path { parent: Some(self.path), step: Step::Field(name) };
        seed.deserialize(Reader { node, path: &path }).map_err(|fault| fault.at(&path, node.line))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Outer {
        #[serde(default)]
        name: String,
        #[serde(default)]
        items: Vec<Inner>,
        #[serde(default)]
        labels: BTreeMap<String, String>,
    }

    #[derive(Debug, Deserialize)]
    struct Inner {
        #[serde(default)]
        count: u32,
    }

    fn read(text: &str) -> Result<Outer, Fault> {
        documents(text.as_bytes()).and_then(|docs| docs[0].read(""))
    }

    #[test]
    fn faults_name_path_and_line() {
        for (text, said) in [
            (
                "name: a\nitems:\n- count: 1\n- cuont: 2\n",
                "items[1].cuont (line 4): unknown field, did you mean \"count\"?",
            ),
            ("nothing-alike: 1\n", "nothing-alike (line 1): unknown field"),
            ("name: 5\n", "name (line 1): 5 where text is wanted: write it in quotes, \"5\""),
            ("labels: {a.b/c: 1}\n", "labels[a.b/c] (line 1): 1 where text is wanted: write it in quotes, \"1\""),
            ("\nitems: [1]\n", "items[0] (line 2): 1 where fields (name: value) are wanted"),
            ("items:\n- count: -1\n", "items[0].count (line 2): invalid value: integer `-1`, expected u32"),
        ] {
            assert_eq!(read(text).expect_err(text).to_string(), said);
        }
    }

    #[test]
    fn null_is_absent_and_documents_are_split() {
        let nulls = read("name: null\nitems:\nlabels: {a: b}\n").unwrap();
        assert_eq!((nulls.name.as_str(), nulls.items.len(), nulls.labels["a"].as_str()), ("", 0, "b"));
        assert_eq!(read("items: [{count: 3}]").unwrap().items[0].count, 3);
        assert_eq!(documents(b"---\na: 1\n---\n---\nb: 1\n").unwrap().len(), 2);
        assert_eq!(documents(b"").unwrap().len(), 0);
        assert_eq!(documents(b"{\n\t\"a\":\t1\n}").unwrap().len(), 1);
        let docs = documents(b"a: 1\n---\nb: 1\n").unwrap();
        assert_eq!(docs[1].line, 3);
    }

    #[test]
    fn what_is_no_document_is_refused() {
        for bytes in [&b"a: [1"[..], b"a: 1\na: 2\n", b"\xff\xfe", b"a: *nowhere"] {
            assert!(documents(bytes).is_err(), "{}", String::from_utf8_lossy(bytes));
        }
        let deep = "[".repeat(100_000);
        assert!(documents(deep.as_bytes()).is_err());
        let bomb = (1..12).fold("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned(), |text, n| {
            let aliases = vec![format!("*a{}", n - 1); 10].join(",");
            format!("{text}a{n}: &a{n} [{aliases}]\n")
        });
        assert!(documents(bomb.as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = documents(&bytes);
        }
    }
}
