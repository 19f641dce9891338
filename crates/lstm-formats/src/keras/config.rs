//! The architecture of a model: its layers, from the input to the output.

use std::collections::{BTreeMap, BTreeSet};

use crate::json::{Json, Object};

/// A layer of the architecture.
pub(super) struct LayerConfig {
    /// The class, such as `LSTM`.
    pub(super) class: String,
    /// The user's or Keras's name of the layer.
    pub(super) name: String,
    pub(super) config: Object,
    pub(super) place: Place,
}

/// Where the parameters of a layer are.
#[derive(Clone, Default)]
pub(super) struct Place {
    /// The names of the layer and of the models around it in a `.keras` file, the outermost first. Keras forms
    /// them from the class and a number.
    pub(super) path: Vec<String>,
    /// The name of the layer, or of the outermost model around it, below the model itself, in a `.h5` file.
    pub(super) group: String,
}

/// The layers of a model in order, without inputs. Models that are layers of others are replaced by their layers.
///
/// # Errors
/// A text, for a model of another class, a graph that is not a chain, and layers outside the chain.
pub(super) fn chain(model: Object) -> Result<Vec<LayerConfig>, String> {
    let mut layers = Vec::new();
    let class = model.get("class_name").cloned();
    check_origin(&model, class.as_ref(), "the model")?;
    add_model(model, &Place::default(), &mut layers)?;
    Ok(layers)
}

/// Adds the layers of a model.
fn add_model(mut model: Object, place: &Place, layers: &mut Vec<LayerConfig>) -> Result<(), String> {
    let class = model.require("class_name")?.text("`class_name`")?;
    let config = model.require("config")?;
    match &*class {
        "Sequential" => {
            let list = match config {
                // Early versions of Keras 2.
                Json::List(list) => list,
                config => config.object("`config`")?.require("layers")?.list("`layers`")?,
            };
            let mut names = Names::default();
            for layer in list {
                let mut layer = layer.object("a layer")?;
                let (class, name) = identify(&mut layer)?;
                let place = names.place(&class, &name, place);
                add_layer(layer, class, name, place, layers)?;
            }
            Ok(())
        }
        "Functional" | "Model" => add_functional(config.object("`config`")?, place, layers),
        _ => Err(format!(
            "expected a Sequential or functional model, got one of the class `{class}`, whose code is not in the file"
        )),
    }
}

/// Adds a layer, or the layers of a model that is a layer.
fn add_layer(
    mut layer: Object,
    class: String,
    name: String,
    place: Place,
    layers: &mut Vec<LayerConfig>,
) -> Result<(), String> {
    if ["Sequential", "Functional", "Model"].contains(&&*class) {
        layer.insert("class_name", Json::Text(class))?;
        return add_model(layer, &place, layers);
    }
    let config = layer.require("config")?.object("`config`")?;
    layers.push(LayerConfig { class, name, config, place });
    Ok(())
}

/// The class and the name of a layer.
pub(super) fn identify(layer: &mut Object) -> Result<(String, String), String> {
    let class = layer.require("class_name")?.text("`class_name`")?;
    let name = match (layer.take("name"), layer.get("config")) {
        (Some(Json::Text(name)), _) => name,
        (_, Some(Json::Object(config))) => match config.get("name") {
            Some(Json::Text(name)) => name.clone(),
            _ => return Err(format!("a layer of the class {class} has no name")),
        },
        // A nested Sequential model of early versions of Keras 2.
        _ => class.to_lowercase(),
    };
    check_origin(layer, Some(&Json::Text(class.clone())), &format!("layer `{name}` ({class})"))?;
    Ok((class, name))
}

/// Fails if a layer or model is of a user's class, whose name may be that of one of Keras: `module` and
/// `registered_name` tell. Keras 2 writes neither of them into `.h5` files.
fn check_origin(object: &Object, class: Option<&Json>, what: &str) -> Result<(), String> {
    let is_null = |value: Option<&Json>| value.is_none_or(|value| *value == Json::Null);
    let (module, registered) = (object.get("module"), object.get("registered_name"));
    let is_of_keras = match module {
        Some(Json::Text(module)) => {
            let package = module.split('.').next().unwrap_or_default();
            // Functional models are registered by the name of their class.
            ["keras", "tf_keras"].contains(&package) && (is_null(registered) || registered == class)
        }
        // `.h5` files have the name of a registered class as that of the class.
        other => {
            let is_registered = matches!(class, Some(Json::Text(class)) if class.contains('>'));
            is_null(other) && is_null(registered) && is_null(object.get("package")) && !is_registered
        }
    };
    if is_of_keras {
        return Ok(());
    }
    let describe = |value: Option<&Json>| value.unwrap_or(&Json::Null).describe();
    Err(format!(
        "{what}: expected a class of Keras, got a user's class, whose code is not in the file (`module`: {}, \
         `registered_name`: {}); build the model from Keras's own layers, set its weights, and save that",
        describe(module),
        describe(registered)
    ))
}

/// The names that Keras 3 gives to the layers of one model in a file of weights.
#[derive(Default)]
struct Names(BTreeMap<String, usize>);

impl Names {
    /// The place of the next layer of this model.
    fn place(&mut self, class: &str, name: &str, outer: &Place) -> Place {
        let snake = snake_case(class);
        let count = self.0.entry(snake.clone()).or_insert(0);
        let inner = if *count == 0 { snake } else { format!("{snake}_{count}") };
        *count += 1;
        let mut path = outer.path.clone();
        path.push(inner);
        Place { path, group: if outer.path.is_empty() { name.to_owned() } else { outer.group.clone() } }
    }
}

/// The name of a class in a file of weights.
fn snake_case(class: &str) -> String {
    match class {
        "LSTM" => "lstm".into(),
        "TimeDistributed" => "time_distributed".into(),
        // Keras 2 calls functional models so.
        "Model" => "functional".into(),
        // Other layers have no parameters, or names of one word.
        other => other.to_lowercase(),
    }
}

/// A tensor that a layer reads: the layer that returns it, the number of that layer's call, and which of its outputs.
type Tensor = (String, usize, usize);

/// Adds the layers of a functional model, which must be a chain.
fn add_functional(mut config: Object, place: &Place, layers: &mut Vec<LayerConfig>) -> Result<(), String> {
    let mut nodes = BTreeMap::new();
    let mut names = Names::default();
    for layer in config.require("layers")?.list("`layers`")? {
        let mut layer = layer.object("a layer")?;
        let (class, name) = identify(&mut layer)?;
        let inputs = layer.take("inbound_nodes").map_or(Ok(Vec::new()), |nodes| nodes.list("`inbound_nodes`"))?;
        let place = names.place(&class, &name, place);
        if nodes.insert(name.clone(), (layer, class, inputs, place)).is_some() {
            return Err(format!("two layers have the name `{name}`"));
        }
    }
    let only = |tensors: Json, what: &str| -> Result<Tensor, String> {
        let tensors = tensors_of(tensors)?;
        match <[Tensor; 1]>::try_from(tensors) {
            Ok([tensor]) => Ok(tensor),
            Err(tensors) => {
                let names: Vec<_> = tensors.iter().take(5).map(|(name, ..)| format!("`{name}`")).collect();
                Err(format!(
                    "expected a model with one {what}, got {}: {}; make a model of the chain from one input to one output, \
                     `keras.Model(x, y)`, and save that",
                    tensors.len(),
                    names.join(", ")
                ))
            }
        }
    };
    let input = only(config.require("input_layers")?, "input")?.0;
    let (mut name, mut node, mut output) = only(config.require("output_layers")?, "output")?;
    let mut chain = Vec::new();
    loop {
        let Some((layer, class, inputs, place)) = nodes.remove(&name) else {
            return Err(format!("the layer `{name}` is missing, or occurs twice in the chain from the output"));
        };
        if node != 0 || inputs.len() > 1 {
            return Err(format!("the layer `{name}` ({class}) is called several times; expected a chain of layers"));
        }
        if output != 0 {
            return Err(format!("the state of the layer `{name}` ({class}) is used; expected its output alone"));
        }
        let next = inputs.into_iter().next();
        chain.push((layer, class, name.clone(), place));
        let Some(next) = next else { break };
        let class = &chain[chain.len() - 1].1;
        let at = |why: String| format!("the layer `{name}` ({class}): {why}");
        let mut tensors = tensors_of(next).map_err(at)?;
        let (Some(tensor), true) = (tensors.pop(), tensors.is_empty()) else {
            return Err(at("it has several inputs, or none; expected one, as in a chain of layers".into()));
        };
        (name, node, output) = tensor;
    }
    if name != input {
        return Err(format!("the chain from the output ends at the layer `{name}`, not at the input `{input}`"));
    }
    if !nodes.is_empty() {
        let outside: BTreeSet<_> = nodes.iter().map(|(name, (_, class, ..))| format!("`{name}` ({class})")).collect();
        let outside: Vec<_> = outside.into_iter().take(5).collect();
        return Err(format!(
            "expected a chain of layers from the input to the output, which does not contain {}",
            outside.join(", ")
        ));
    }
    for (layer, class, name, place) in chain.into_iter().rev() {
        add_layer(layer, class, name, place, layers)?;
    }
    Ok(())
}

/// The tensors of a call of a layer, or the inputs or outputs of a model.
fn tensors_of(call: Json) -> Result<Vec<Tensor>, String> {
    let mut tensors = Vec::new();
    match call {
        // Keras 3: positional arguments and keyword arguments.
        Json::Object(mut call) => {
            for argument in call.require("args")?.list("`args`")? {
                // Layers such as Add and Concatenate read a list of tensors.
                if let Json::List(inputs) = argument {
                    return Err(format!(
                        "it has several inputs, a list of {}; expected one, as in a chain of layers",
                        inputs.len()
                    ));
                }
                let mut tensor = argument.object("an argument")?.require("config")?.object("a tensor")?;
                tensors.push(tensor_of(tensor.require("keras_history")?.list("`keras_history`")?)?);
            }
            check_arguments(call.take("kwargs"))?;
        }
        Json::List(items) if matches!(items.first(), Some(Json::Text(_))) => tensors.push(tensor_of(items)?),
        // Keras 2: a list of tensors, each with the keyword arguments of the call.
        Json::List(items) => {
            for item in items {
                tensors.push(tensor_of(item.list("a tensor")?)?);
            }
        }
        other => return Err(format!("expected the inputs of a layer, got {}", other.describe())),
    }
    Ok(tensors)
}

/// A tensor from its list: the name of the layer and two numbers; in Keras 2, keyword arguments follow.
fn tensor_of(items: Vec<Json>) -> Result<Tensor, String> {
    let mut items = items.into_iter();
    let mut next = || items.next().ok_or("expected a tensor: a layer and two numbers");
    let tensor = (next()?.text("a layer")?, next()?.size("a number")?, next()?.size("a number")?);
    check_arguments(items.next())?;
    Ok(tensor)
}

/// Fails for keyword arguments of a call, except those without effect.
fn check_arguments(arguments: Option<Json>) -> Result<(), String> {
    let Some(arguments) = arguments else { return Ok(()) };
    for (name, value) in arguments.object("keyword arguments")? {
        if !matches!(value, Json::Null | Json::Bool(false)) {
            return Err(format!("the call has the argument `{name}`; expected the input alone"));
        }
    }
    Ok(())
}
