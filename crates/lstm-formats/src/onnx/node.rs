//! A node and its attributes, which are claimed one by one so that none is left unnoticed.

use std::collections::BTreeMap;

use super::proto::{Attribute, Node, Tensor};
use lstm_core::{Error, Result};

/// A node with the attributes that nobody has asked for yet.
pub(super) struct Op<'a> {
    pub(super) node: &'a Node,
    /// The node's name, or its number where it has none, and its operator.
    pub(super) label: String,
    attributes: BTreeMap<&'a str, &'a Attribute>,
}

/// What errors call a node.
pub(super) fn label(index: usize, node: &Node) -> String {
    let domain = if node.domain.is_empty() { String::new() } else { format!("{}.", node.domain) };
    match node.name.as_str() {
        "" => format!("node {index} ({domain}{})", node.op_type),
        name => format!("node `{name}` ({domain}{})", node.op_type),
    }
}

impl<'a> Op<'a> {
    pub(super) fn new(index: usize, node: &'a Node) -> Result<Self> {
        let mut op = Op { node, label: label(index, node), attributes: BTreeMap::new() };
        for attribute in &node.attribute {
            if !attribute.ref_attr_name.is_empty() || op.attributes.insert(&attribute.name, attribute).is_some() {
                return Err(op.fail(format!("attribute `{}` is a reference or there twice", attribute.name)));
            }
        }
        Ok(op)
    }

    /// An error about this node.
    pub(super) fn fail(&self, why: impl ToString) -> Error {
        Error::format(&self.label, why)
    }

    /// The name of an input; `None` where it is left out.
    pub(super) fn input(&self, k: usize) -> Option<&'a str> {
        self.node.input.get(k).map(String::as_str).filter(|name| !name.is_empty())
    }

    /// Takes an attribute; `kind` is the number and name of its type.
    fn take(&mut self, name: &str, kind: (i32, &str)) -> Result<Option<&'a Attribute>> {
        match self.attributes.remove(name) {
            Some(a) if a.kind.unwrap_or_default() != kind.0 => {
                let got = a.kind.unwrap_or_default();
                Err(self.fail(format!("attribute `{name}`: expected {} (type {}), got type {got}", kind.1, kind.0)))
            }
            attribute => Ok(attribute),
        }
    }

    pub(super) fn float(&mut self, name: &str) -> Result<Option<f32>> {
        Ok(self.take(name, (1, "a float"))?.map(|a| a.f.unwrap_or_default()))
    }

    pub(super) fn int(&mut self, name: &str) -> Result<Option<i64>> {
        Ok(self.take(name, (2, "an integer"))?.map(|a| a.i.unwrap_or_default()))
    }

    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>> {
        let text = |a: &Attribute| String::from_utf8_lossy(a.s.as_deref().unwrap_or_default()).into_owned();
        Ok(self.take(name, (3, "a string"))?.map(text))
    }

    pub(super) fn tensor(&mut self, name: &str) -> Result<Option<&'a Tensor>> {
        let attribute = self.take(name, (4, "a tensor"))?;
        attribute.map(|a| a.t.as_ref().ok_or_else(|| self.fail(format!("attribute `{name}` is empty")))).transpose()
    }

    pub(super) fn floats(&mut self, name: &str) -> Result<&'a [f32]> {
        Ok(self.take(name, (6, "floats"))?.map(|a| &a.floats[..]).unwrap_or_default())
    }

    pub(super) fn ints(&mut self, name: &str) -> Result<Option<&'a [i64]>> {
        Ok(self.take(name, (7, "integers"))?.map(|a| &a.ints[..]))
    }

    pub(super) fn texts(&mut self, name: &str) -> Result<Vec<String>> {
        let text = |s: &Vec<u8>| String::from_utf8_lossy(s).into_owned();
        Ok(self.take(name, (8, "strings"))?.map(|a| a.strings.iter().map(text).collect()).unwrap_or_default())
    }

    /// Ends the reading: an attribute that is left is one that would be ignored.
    pub(super) fn finish(&self) -> Result<()> {
        match self.attributes.keys().next() {
            Some(name) => Err(self.fail(format!("attribute `{name}` is not one of this operator's in this opset"))),
            None => Ok(()),
        }
    }
}
