//! Reads the attributes of a node, and rejects nodes with attributes that nothing has read.

use std::collections::BTreeMap;

use super::proto::{Attribute, Graph, Node, Tensor, attribute_type};
use lstm_core::{Error, Result};

/// A node, and those of its attributes that have not been read yet.
/// [`check_all_attributes_read`](Self::check_all_attributes_read) returns an error if there are any at the end.
pub(crate) struct NodeReader<'a> {
    /// The node as it is stored in the file.
    pub(crate) proto: &'a Node,
    /// The node's name (or its index, if it has none) and operator, for error messages.
    pub(crate) label: String,
    /// Attributes that were not read yet, by name.
    unread_attributes: BTreeMap<&'a str, &'a Attribute>,
}

/// The node's name and operator for error messages; unnamed nodes are identified by their index in the graph.
pub(crate) fn node_label(index: usize, node: &Node) -> String {
    let domain = if node.domain.is_empty() { String::new() } else { format!("{}.", node.domain) };
    match node.name.as_str() {
        "" => format!("node {index} ({domain}{})", node.op_type),
        name => format!("node `{name}` ({domain}{})", node.op_type),
    }
}

/// The name by which a caller selects a node: its name, or its index in the graph if it has none.
pub(crate) fn node_name(index: usize, node: &Node) -> String {
    if node.name.is_empty() { index.to_string() } else { node.name.clone() }
}

impl<'a> NodeReader<'a> {
    /// Starts reading a node. Repeated attributes are an error.
    pub(crate) fn new(index: usize, proto: &'a Node) -> Result<Self> {
        let mut node = NodeReader { proto, label: node_label(index, proto), unread_attributes: BTreeMap::new() };
        for attribute in &proto.attribute {
            if !attribute.ref_attr_name.is_empty() {
                return Err(node.error(format!("attribute `{}` refers to a function's attribute", attribute.name)));
            }
            if node.unread_attributes.insert(&attribute.name, attribute).is_some() {
                return Err(node.error(format!("attribute `{}` is repeated", attribute.name)));
            }
        }
        Ok(node)
    }

    /// Returns an error whose message names this node.
    pub(crate) fn error(&self, why: impl ToString) -> Error {
        Error::format(&self.label, why)
    }

    /// The name of input `k`; `None` if the input is omitted.
    pub(crate) fn input_name(&self, k: usize) -> Option<&'a str> {
        self.proto.input.get(k).map(String::as_str).filter(|name| !name.is_empty())
    }

    /// Marks an attribute as read and returns it. It is an error if the type of the attribute is not `expected_type`,
    /// which the message calls `type_name`.
    fn take_attribute(&mut self, name: &str, expected_type: i32, type_name: &str) -> Result<Option<&'a Attribute>> {
        let attribute = self.unread_attributes.remove(name);
        let found_type = attribute.map(|attribute| attribute.attribute_type.unwrap_or_default());
        match found_type.filter(|&found_type| found_type != expected_type) {
            Some(found_type) => Err(self.error(format!(
                "attribute `{name}`: expected {type_name} (type {expected_type}), got type {found_type}"
            ))),
            None => Ok(attribute),
        }
    }

    /// Reads an attribute of type FLOAT.
    pub(crate) fn float_attribute(&mut self, name: &str) -> Result<Option<f32>> {
        Ok(self.take_attribute(name, attribute_type::FLOAT, "a float")?.map(|a| a.f.unwrap_or_default()))
    }

    /// Reads an attribute of type INT.
    pub(crate) fn int_attribute(&mut self, name: &str) -> Result<Option<i64>> {
        Ok(self.take_attribute(name, attribute_type::INT, "an integer")?.map(|a| a.i.unwrap_or_default()))
    }

    /// Reads an attribute of type STRING.
    pub(crate) fn string_attribute(&mut self, name: &str) -> Result<Option<String>> {
        let decode_utf8 = |a: &Attribute| String::from_utf8_lossy(a.s.as_deref().unwrap_or_default()).into_owned();
        Ok(self.take_attribute(name, attribute_type::STRING, "a string")?.map(decode_utf8))
    }

    /// Reads an attribute of type TENSOR.
    pub(crate) fn tensor_attribute(&mut self, name: &str) -> Result<Option<&'a Tensor>> {
        let attribute = self.take_attribute(name, attribute_type::TENSOR, "a tensor")?;
        let missing_value_error = || self.error(format!("attribute `{name}` has no value"));
        attribute.map(|a| a.t.as_ref().ok_or_else(missing_value_error)).transpose()
    }

    /// Reads an attribute of type GRAPH, which must be present.
    pub(crate) fn graph_attribute(&mut self, name: &str) -> Result<&'a Graph> {
        let attribute = self.take_attribute(name, attribute_type::GRAPH, "a graph")?;
        attribute.and_then(|a| a.g.as_ref()).ok_or_else(|| self.error(format!("attribute `{name}` is missing")))
    }

    /// Reads an attribute of type FLOATS; empty if it is absent.
    pub(crate) fn floats_attribute(&mut self, name: &str) -> Result<&'a [f32]> {
        Ok(self.take_attribute(name, attribute_type::FLOATS, "floats")?.map(|a| &a.floats[..]).unwrap_or_default())
    }

    /// Reads an attribute of type INTS.
    pub(crate) fn ints_attribute(&mut self, name: &str) -> Result<Option<&'a [i64]>> {
        Ok(self.take_attribute(name, attribute_type::INTS, "integers")?.map(|a| &a.ints[..]))
    }

    /// Reads an attribute of type STRINGS; empty if it is absent.
    pub(crate) fn strings_attribute(&mut self, name: &str) -> Result<Vec<String>> {
        let attribute = self.take_attribute(name, attribute_type::STRINGS, "strings")?;
        let strings = attribute.map(|a| a.strings.iter()).into_iter().flatten();
        Ok(strings.map(|s| String::from_utf8_lossy(s).into_owned()).collect())
    }

    /// Returns an error if the node has attributes that were not read, because ignoring them could change the results.
    pub(crate) fn check_all_attributes_read(&self) -> Result<()> {
        match self.unread_attributes.keys().next() {
            Some(name) => Err(self.error(format!("attribute `{name}` is not supported for this operator and opset"))),
            None => Ok(()),
        }
    }
}
