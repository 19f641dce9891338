//! A model's configuration, clipping, and what a forward pass keeps, as lines of text.

use std::{fmt, str::FromStr};

use super::{clip::Clip, text::Options};
use crate::{
    config::{Bias, CellKind, Direction, LstmConfig},
    error::{Error, Result},
    model::Checkpointing,
};

const DIRECTIONS: [(&str, Direction); 3] =
    [("forward", Direction::Forward), ("reverse", Direction::Reverse), ("bidirectional", Direction::Bidirectional)];

const CELLS: [(&str, CellKind); 4] = [
    ("fused", CellKind::Fused),
    ("unfused", CellKind::Unfused),
    ("peephole-dense", CellKind::PeepholeDense),
    ("peephole-diagonal", CellKind::PeepholeDiagonal),
];

const BIASES: [(&str, Bias); 3] = [("none", Bias::None), ("one", Bias::One), ("two", Bias::Two)];

fn word<T: PartialEq>(table: &[(&'static str, T)], value: T) -> &'static str {
    table.iter().find(|(_, v)| *v == value).expect("the tables have every value").0
}

fn or_none<T: fmt::Debug>(value: Option<T>) -> String {
    value.map_or("none".into(), |value| format!("{value:?}"))
}

/// Every option of a configuration, by name.
pub(super) fn options(config: &LstmConfig) -> [(&'static str, String); 10] {
    // `{:?}` is the shortest decimal that reads back as the same f32.
    [
        ("input_size", config.input_size.to_string()),
        ("hidden_size", config.hidden_size.to_string()),
        ("num_layers", config.num_layers.to_string()),
        ("direction", word(&DIRECTIONS, config.direction).into()),
        ("cell", word(&CELLS, config.cell).into()),
        ("bias", word(&BIASES, config.bias).into()),
        ("proj_size", or_none(config.proj_size)),
        ("coupled", config.coupled.to_string()),
        ("clip", or_none(config.clip)),
        ("dropout", format!("{:?}", config.dropout)),
    ]
}

/// Every option on one line, which keeps every bit; what [`FromStr`] reads.
///
/// ```
/// use lstm_core::LstmConfig;
/// let text = "lstm input_size=3 hidden_size=5 num_layers=2 direction=bidirectional cell=fused bias=two \
///             proj_size=none coupled=false clip=none dropout=0.25";
/// let config = LstmConfig::new(3, 5).layers(2).bidirectional().dropout(0.25);
/// assert_eq!(config.to_string(), text);
/// assert_eq!(text.parse::<LstmConfig>()?, config);
/// # Ok::<(), lstm_core::Error>(())
/// ```
impl fmt::Display for LstmConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("lstm")?;
        options(self).iter().try_for_each(|(name, value)| write!(f, " {name}={value}"))
    }
}

/// `lstm` and then options in any order. `input_size` and `hidden_size` are needed, the others have the defaults of
/// [`LstmConfig::new`]. Fails with [`Error::Format`] for other text, and as [`LstmConfig::validate`] does.
impl FromStr for LstmConfig {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut options = Options::new("model", text)?;
        if options.kind() != "lstm" {
            return Err(options.error(format!("expected lstm, got `{}`", options.kind())));
        }
        let mut config = LstmConfig::new(options.need("input_size")?, options.need("hidden_size")?);
        options.set("num_layers", &mut config.num_layers)?;
        choose(&mut options, "direction", &DIRECTIONS, &mut config.direction)?;
        choose(&mut options, "cell", &CELLS, &mut config.cell)?;
        choose(&mut options, "bias", &BIASES, &mut config.bias)?;
        set_or_none(&mut options, "proj_size", &mut config.proj_size)?;
        options.set("coupled", &mut config.coupled)?;
        set_or_none(&mut options, "clip", &mut config.clip)?;
        options.set("dropout", &mut config.dropout)?;
        options.finish()?;
        config.validate()?;
        Ok(config)
    }
}

fn choose<T: Copy + PartialEq>(
    options: &mut Options<'_>,
    name: &str,
    table: &[(&'static str, T)],
    place: &mut T,
) -> Result<()> {
    let mut got = word(table, *place).to_owned();
    options.set(name, &mut got)?;
    let Some((_, value)) = table.iter().find(|(word, _)| *word == got) else {
        let words: Vec<_> = table.iter().map(|(word, _)| *word).collect();
        return Err(options.error(format!("expected {name} of {}, got `{got}`", words.join(", "))));
    };
    *place = *value;
    Ok(())
}

fn set_or_none<T: FromStr>(options: &mut Options<'_>, name: &str, place: &mut Option<T>) -> Result<()> {
    let mut word = "none".to_owned();
    options.set(name, &mut word)?;
    let wrong = |_| options.error(format!("`{word}` is not a value of {name}"));
    *place = if word == "none" { None } else { Some(word.parse().map_err(wrong)?) };
    Ok(())
}

/// `norm bound=1.0` or `value bound=1.0`, which keeps every bit.
impl fmt::Display for Clip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Clip::Norm(bound) => write!(f, "norm bound={bound:?}"),
            Clip::Value(bound) => write!(f, "value bound={bound:?}"),
        }
    }
}

/// Fails with [`Error::Format`] for other text, and as [`Clip::validate`] does.
impl FromStr for Clip {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut options = Options::new("clip", text)?;
        let clip = match options.kind() {
            "norm" => Clip::Norm(options.need("bound")?),
            "value" => Clip::Value(options.need("bound")?),
            other => return Err(options.error(format!("expected norm or value, got `{other}`"))),
        };
        options.finish()?;
        clip.validate()?;
        Ok(clip)
    }
}

/// `everything`, `segments steps=64` or `square-root`.
impl fmt::Display for Checkpointing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Checkpointing::Everything => f.write_str("everything"),
            Checkpointing::Segments(steps) => write!(f, "segments steps={steps}"),
            Checkpointing::SquareRoot => f.write_str("square-root"),
        }
    }
}

/// Fails with [`Error::Format`] for other text, and [`Error::Config`] for segments that are not a positive multiple of 32.
impl FromStr for Checkpointing {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut options = Options::new("keep", text)?;
        let keep = match options.kind() {
            "everything" => Checkpointing::Everything,
            "segments" => Checkpointing::Segments(options.need("steps")?),
            "square-root" => Checkpointing::SquareRoot,
            other => {
                return Err(options.error(format!("expected everything, segments or square-root, got `{other}`")));
            }
        };
        options.finish()?;
        keep.segment(1)?;
        Ok(keep)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_keeps_every_bit() {
        let odd = f32::from_bits(0x3dcc_ccce);
        let base = LstmConfig::new(3, 5);
        let mut configs = vec![base.clone().layers(2).dropout(odd).clip(odd).coupled(), base.clone().proj_size(4)];
        configs.extend(DIRECTIONS.map(|(_, direction)| base.clone().direction(direction)));
        configs.extend(CELLS.map(|(_, cell)| base.clone().cell(cell)));
        configs.extend(BIASES.map(|(_, bias)| base.clone().bias(bias)));
        for config in configs {
            assert_eq!(config.to_string().parse::<LstmConfig>().unwrap(), config);
        }
        for clip in [Clip::Norm(odd), Clip::Value(f32::from_bits(1))] {
            assert_eq!(clip.to_string().parse::<Clip>().unwrap(), clip);
        }
        for keep in [Checkpointing::Everything, Checkpointing::Segments(64), Checkpointing::SquareRoot] {
            assert_eq!(keep.to_string().parse::<Checkpointing>().unwrap(), keep);
        }
        assert_eq!("lstm hidden_size=5 input_size=3".parse::<LstmConfig>().unwrap(), base);
    }

    #[test]
    fn other_text_is_refused() {
        fn error<T: FromStr<Err = Error> + fmt::Debug>(text: &str) -> String {
            text.parse::<T>().unwrap_err().to_string()
        }
        let sizes = "lstm input_size=3 hidden_size=5";
        for (error, part) in [
            (error::<LstmConfig>("gru input_size=3"), "expected lstm, got `gru`"),
            (error::<LstmConfig>("lstm input_size=3"), "`lstm` needs hidden_size"),
            (error::<LstmConfig>(&format!("{sizes} cell=x")), "peephole-dense, peephole-diagonal, got `x`"),
            (error::<LstmConfig>(&format!("{sizes} bias=")), "expected bias of none, one, two, got ``"),
            (error::<LstmConfig>(&format!("{sizes} clip=big")), "`big` is not a value of clip"),
            (error::<LstmConfig>(&format!("{sizes} clip=NaN")), "option clip: expected a positive finite bound"),
            (error::<LstmConfig>(&format!("{sizes} dropout=NaN num_layers=2")), "option dropout"),
            (error::<LstmConfig>(&format!("{sizes} gates=4")), "no option `gates`"),
            (error::<LstmConfig>("lstm input_size=3 hidden_size=0"), "option hidden_size"),
            (error::<Clip>("norm"), "`norm` needs bound"),
            (error::<Clip>("norm bound=NaN"), "positive finite bound, got NaN"),
            (error::<Clip>("most bound=1"), "expected norm or value, got `most`"),
            (error::<Checkpointing>("segments steps=33"), "multiple of 32 steps, got 33"),
            (error::<Checkpointing>("segments"), "`segments` needs steps"),
            (error::<Checkpointing>("nothing"), "got `nothing`"),
            (error::<Checkpointing>("everything steps=32"), "no option `steps`"),
        ] {
            assert!(error.contains(part), "{error}: {part}");
        }
    }
}
