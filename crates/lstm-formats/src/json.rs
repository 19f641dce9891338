//! JSON values of model files.

#![cfg_attr(
    not(all(feature = "audio", feature = "keras")),
    allow(dead_code, reason = "the readers of audio models and of Keras models use different parts")
)]

use std::{collections::BTreeMap, fmt};

use ndarray::{Array1, Array2};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, SeqAccess, Visitor},
};

/// A JSON value. Numbers are `f64`, and a key that occurs twice in an object is an error.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    List(Vec<Json>),
    Object(Object),
}

/// The entries of a JSON object. Readers take the entries that they know, and what is left is unknown.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Object(BTreeMap<String, Json>);

impl Object {
    /// Parses a text that is an object. A byte order mark before it, as some Windows programs write, is skipped.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let json: Json = serde_json::from_slice(bytes).map_err(|error| format!("invalid JSON: {error}"))?;
        json.object("the file")
    }

    /// Removes the value of a key. `null` counts as missing.
    pub(crate) fn take(&mut self, key: &str) -> Option<Json> {
        self.0.remove(key).filter(|value| *value != Json::Null)
    }

    /// Removes the value of a key, which must exist.
    pub(crate) fn require(&mut self, key: &str) -> Result<Json, String> {
        self.take(key).ok_or_else(|| missing(key))
    }

    /// Removes the value of a key, which must be a whole number. `default` is the value of a missing key.
    pub(crate) fn take_size(&mut self, key: &str, default: Option<usize>) -> Result<usize, String> {
        match (self.take(key), default) {
            (Some(value), _) => value.size(&format!("`{key}`")),
            (None, Some(default)) => Ok(default),
            (None, None) => Err(missing(key)),
        }
    }

    /// Adds a value, which fails if the object has the key already.
    pub(crate) fn insert(&mut self, key: &str, value: Json) -> Result<(), String> {
        match self.0.insert(key.to_owned(), value) {
            Some(_) => Err(format!("the key `{key}` occurs twice")),
            None => Ok(()),
        }
    }

    /// The value of a key.
    pub(crate) fn get(&self, key: &str) -> Option<&Json> {
        self.0.get(key)
    }

    /// Whether the object has a value for a key.
    pub(crate) fn contains(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// The keys in alphabetical order.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Fails if a key was not taken, because the reader does not know it.
    pub(crate) fn finish(&self, place: &str) -> Result<(), String> {
        match self.0.keys().next() {
            Some(key) => Err(format!("{place}: unknown key `{key}`")),
            None => Ok(()),
        }
    }
}

fn missing(key: &str) -> String {
    format!("expected the key `{key}`, which is missing")
}

impl IntoIterator for Object {
    type Item = (String, Json);
    type IntoIter = std::collections::btree_map::IntoIter<String, Json>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl Json {
    /// Describes the value for an error message, without its contents if they are long.
    pub(crate) fn describe(&self) -> String {
        match self {
            Json::List(items) => format!("a list of {}", items.len()),
            Json::Object(_) => "an object".into(),
            Json::Text(text) => format!("`{}`", text.chars().take(60).collect::<String>()),
            other => other.to_string(),
        }
    }

    fn expected<T>(&self, what: &str, expected: &str) -> Result<T, String> {
        Err(format!("{what}: expected {expected}, got {}", self.describe()))
    }

    /// A whole number that is not negative.
    pub(crate) fn size(&self, what: &str) -> Result<usize, String> {
        match *self {
            Json::Number(n) if n >= 0.0 && n.fract() == 0.0 && n < 1e15 => Ok(n as usize),
            _ => self.expected(what, "a whole number"),
        }
    }

    /// A finite number.
    pub(crate) fn number(&self, what: &str) -> Result<f64, String> {
        match *self {
            Json::Number(n) if n.is_finite() => Ok(n),
            _ => self.expected(what, "a number"),
        }
    }

    /// True or false, or 1 or 0.
    pub(crate) fn flag(&self, what: &str) -> Result<bool, String> {
        match *self {
            Json::Bool(flag) => Ok(flag),
            Json::Number(n) if n == 0.0 || n == 1.0 => Ok(n == 1.0),
            _ => self.expected(what, "0 or 1"),
        }
    }

    pub(crate) fn text(self, what: &str) -> Result<String, String> {
        match self {
            Json::Text(text) => Ok(text),
            other => other.expected(what, "a text"),
        }
    }

    pub(crate) fn object(self, what: &str) -> Result<Object, String> {
        match self {
            Json::Object(object) => Ok(object),
            other => other.expected(what, "an object"),
        }
    }

    pub(crate) fn list(self, what: &str) -> Result<Vec<Json>, String> {
        match self {
            Json::List(items) => Ok(items),
            other => other.expected(what, "a list"),
        }
    }

    /// A list of numbers, rounded to f32.
    pub(crate) fn vector(self, what: &str) -> Result<Array1<f32>, String> {
        let items = self.list(what)?;
        let values: Vec<f32> = items
            .iter()
            .map(|item| match item {
                Json::Number(n) if (*n as f32).is_finite() => Ok(*n as f32),
                other => other.expected(what, "a list of numbers that fit in f32"),
            })
            .collect::<Result<_, _>>()?;
        Ok(values.into())
    }

    /// A list of rows of numbers, all of the same length, rounded to f32.
    pub(crate) fn matrix(self, what: &str) -> Result<Array2<f32>, String> {
        let mut values = Vec::new();
        let (mut height, mut width) = (0, 0);
        for row in self.list(what)? {
            let row = row.vector(what)?;
            if height > 0 && row.len() != width {
                return Err(format!("{what}: expected rows of the same length, got {width} and {}", row.len()));
            }
            (height, width) = (height + 1, row.len());
            values.extend(row);
        }
        Array2::from_shape_vec((height, width), values).map_err(|error| format!("{what}: {error}"))
    }

    /// The value as text by key, with a dot between the keys of objects inside each other. Does nothing for `null`.
    pub(crate) fn add_to(self, key: String, texts: &mut BTreeMap<String, String>) {
        let text = match self {
            Json::Null => return,
            Json::Object(object) => {
                return object.into_iter().for_each(|(inner, value)| value.add_to(format!("{key}.{inner}"), texts));
            }
            Json::Text(text) => text,
            other => other.to_string(),
        };
        texts.insert(key, text);
    }
}

/// Writes the value as JSON.
impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |text: &str| serde_json::to_string(text).unwrap_or_default();
        match self {
            Json::Null => f.write_str("null"),
            Json::Bool(flag) => write!(f, "{flag}"),
            Json::Number(n) => write!(f, "{n}"),
            Json::Text(text) => f.write_str(&quoted(text)),
            Json::List(items) => {
                f.write_str("[")?;
                for (k, item) in items.iter().enumerate() {
                    write!(f, "{}{item}", if k == 0 { "" } else { ", " })?;
                }
                f.write_str("]")
            }
            Json::Object(object) => {
                f.write_str("{")?;
                for (k, (key, value)) in object.0.iter().enumerate() {
                    write!(f, "{}{}: {value}", if k == 0 { "" } else { ", " }, quoted(key))?;
                }
                f.write_str("}")
            }
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Json, E> {
        Ok(Json::Bool(flag))
    }

    fn visit_i64<E>(self, n: i64) -> Result<Json, E> {
        Ok(Json::Number(n as f64))
    }

    fn visit_u64<E>(self, n: u64) -> Result<Json, E> {
        Ok(Json::Number(n as f64))
    }

    fn visit_f64<E>(self, n: f64) -> Result<Json, E> {
        Ok(Json::Number(n))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Json::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut object = Object::default();
        while let Some((key, value)) = map.next_entry::<String, Json>()? {
            object.insert(&key, value).map_err(A::Error::custom)?;
        }
        Ok(Json::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_writes() {
        let text = r#"{"a": [1, -2.5, null, true, "x\"y"], "b": {"c": {}}}"#;
        let json: Json = serde_json::from_str(text).unwrap();
        assert_eq!(json.to_string(), text);
        assert!(serde_json::from_str::<Json>(r#"{"a": 1, "a": 2}"#).unwrap_err().to_string().contains("`a`"));
        assert!(Object::parse("[".repeat(1_000_000).as_bytes()).is_err());
        assert!(Object::parse("{\"a\":".repeat(1_000_000).as_bytes()).is_err());
        assert!(Object::parse(b"\xef\xbb\xbf{\"a\": 1}").unwrap().contains("a"));
        assert!(Object::parse(b"3").unwrap_err().contains("expected an object, got 3"));
    }

    #[test]
    fn matrices_are_rectangular_and_fit_in_f32() {
        let matrix = |text: &str| serde_json::from_str::<Json>(text).unwrap().matrix("m");
        assert_eq!(matrix("[[1, 2], [3, 4]]").unwrap(), ndarray::array![[1.0, 2.0], [3.0, 4.0]]);
        assert_eq!(matrix("[]").unwrap().shape(), [0, 0]);
        assert!(matrix("[[1, 2], [3]]").unwrap_err().contains("2 and 1"));
        assert!(matrix("[[1e60]]").unwrap_err().contains("fit in f32"));
        assert!(matrix("[[null]]").unwrap_err().contains("got null"));
        assert!(matrix("[1]").unwrap_err().contains("expected a list"));
    }

    #[test]
    fn text_by_key() {
        let json: Json = serde_json::from_str(r#"{"name": "x", "n": 48000.0, "o": {"p": [1]}, "q": null}"#).unwrap();
        let mut texts = BTreeMap::new();
        json.add_to("m".into(), &mut texts);
        let want = [("m.n", "48000"), ("m.name", "x"), ("m.o.p", "[1]")];
        assert_eq!(texts, want.map(|(key, text)| (key.into(), text.into())).into());
    }
}
