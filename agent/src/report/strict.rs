//! A strict reader of what [`super::exposition`] writes, and of what a stock kubelet was recorded to answer. For tests.
//!
//! It refuses what Prometheus would let pass: a family that comes twice or has no head, samples out of their family, labels that
//! are not sorted or stand twice, a series that comes twice, a number that is not in its shortest form, blank lines.

use std::collections::{BTreeMap, BTreeSet};

use super::exposition::Format;

/// A family.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Family {
    pub(crate) kind: String,
    pub(crate) help: String,
    pub(crate) samples: Vec<Sample>,
}

/// A sample.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sample {
    /// The family's name, with `_bucket` and so on.
    pub(crate) name: String,
    /// In the order of the text.
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) value: f64,
    /// Milliseconds since 1970.
    pub(crate) at: Option<u64>,
}

impl Sample {
    pub(crate) fn label(&self, name: &str) -> &str {
        self.labels.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value)
    }

    pub(crate) fn label_names(&self) -> Vec<&str> {
        self.labels.iter().map(|(name, _)| name.as_str()).collect()
    }
}

/// By the names of their samples: in OpenMetrics a counter's family has no `_total`, here it has.
pub(crate) type Families = BTreeMap<String, Family>;

/// In which order the labels of a series stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Sorted by name, as the stock kubelet writes them.
    Sorted,
    /// Any; none twice.
    Any,
}

/// Reads all of it, with sorted labels.
pub(crate) fn parse(text: &str, format: Format) -> Result<Families, String> {
    parse_in(text, format, Order::Sorted)
}

/// Reads all of it.
pub(crate) fn parse_in(text: &str, format: Format, order: Order) -> Result<Families, String> {
    let open = format == Format::OpenMetrics;
    let body = match (open, text.strip_suffix("# EOF\n")) {
        (true, Some(body)) => body,
        (true, None) => return Err("no # EOF at the end".into()),
        (false, None) => text,
        (false, Some(_)) => return Err("# EOF is not of this format".into()),
    };
    if !body.is_empty() && !body.ends_with('\n') {
        return Err("the last line does not end".into());
    }
    let (mut families, mut seen, mut names) = (Families::new(), BTreeSet::new(), BTreeSet::new());
    let mut current: Option<(String, Family)> = None;
    let mut help: Option<(String, String)> = None;
    for (n, line) in body.lines().enumerate() {
        let fail = |why: &str| Err(format!("line {}: {why}: {line}", n + 1));
        if let Some(rest) = line.strip_prefix("# HELP ") {
            close(&mut families, current.take())?;
            let (name, text) = rest.split_once(' ').unwrap_or((rest, ""));
            help = Some((name.to_owned(), text.to_owned()));
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let Some((helped, text)) = help.take() else { return fail("TYPE without HELP") };
            let Some((name, kind)) = rest.split_once(' ').filter(|(name, _)| *name == helped) else {
                return fail("TYPE is not of the HELP's name");
            };
            if !["counter", "gauge", "histogram", "unknown"].contains(&kind) || (kind == "unknown" && !open) {
                return fail("no such type");
            }
            if !names.insert(name.to_owned()) {
                return fail("a name of two families");
            }
            let name = if open && kind == "counter" { format!("{name}_total") } else { name.to_owned() };
            current = Some((name, Family { kind: kind.to_owned(), help: text, samples: Vec::new() }));
        } else if let Some(rest) = line.strip_prefix("# UNIT ") {
            let fits = current.as_ref().is_some_and(|(name, family)| {
                let stem = name.strip_suffix("_total").unwrap_or(name);
                family.samples.is_empty()
                    && rest.split_once(' ').is_some_and(|(n, unit)| n == stem && stem.ends_with(&format!("_{unit}")))
            });
            if !open || !fits {
                return fail("UNIT out of place");
            }
        } else {
            let Some((family, held)) = &mut current else { return fail("no family") };
            let sample = match sample(line, open) {
                Ok(sample) => sample,
                Err(why) => return fail(&why),
            };
            let suffix = sample.name.strip_prefix(family.as_str());
            let fits = match held.kind.as_str() {
                "histogram" => matches!(suffix, Some("_bucket" | "_sum" | "_count")),
                _ => suffix == Some(""),
            };
            if !fits {
                return fail("not of this family");
            }
            let mut labels = sample.label_names();
            if labels.last() == Some(&"le") {
                labels.pop();
            }
            if order == Order::Any {
                labels.sort_unstable();
            }
            if !labels.is_sorted_by(|a, b| a < b) {
                return fail("labels are not sorted, or stand twice");
            }
            if !seen.insert((sample.name.clone(), sample.labels.clone())) {
                return fail("a series stands twice");
            }
            held.samples.push(sample);
        }
    }
    close(&mut families, current.take())?;
    Ok(families)
}

fn close(families: &mut Families, done: Option<(String, Family)>) -> Result<(), String> {
    let Some((name, family)) = done else { return Ok(()) };
    if family.samples.is_empty() {
        return Err(format!("{name} has no samples"));
    }
    if families.keys().next_back().is_some_and(|last| *last >= name) {
        return Err(format!("{name} comes after {:?}", families.keys().next_back()));
    }
    families.insert(name, family);
    Ok(())
}

fn sample(line: &str, open: bool) -> Result<Sample, String> {
    let end = line.find(['{', ' ']).ok_or("no value")?;
    let (name, mut rest) = line.split_at(end);
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return Err("no name".into());
    }
    let mut labels = Vec::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            let (name, after) = rest.split_once("=\"").ok_or("no label value")?;
            let (value, after) = unescape(after)?;
            labels.push((name.to_owned(), value));
            match after.as_bytes().first() {
                Some(b',') => rest = &after[1..],
                Some(b'}') => {
                    rest = &after[1..];
                    break;
                }
                _ => return Err("labels do not end".into()),
            }
        }
    }
    let mut words = rest.strip_prefix(' ').ok_or("no space before the value")?.split(' ');
    let value = number(words.next().unwrap_or_default())?;
    let at = words.next().map(|word| moment(word, open)).transpose()?;
    if words.next().is_some() {
        return Err("too much".into());
    }
    Ok(Sample { name: name.to_owned(), labels, value, at })
}

fn unescape(text: &str) -> Result<(String, &str), String> {
    let mut out = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((out, &text[at + 1..])),
            '\\' => match chars.next() {
                Some((_, 'n')) => out.push('\n'),
                Some((_, c @ ('\\' | '"'))) => out.push(c),
                _ => return Err("an escape that there is not".into()),
            },
            c => out.push(c),
        }
    }
    Err("a label value does not end".into())
}

fn number(word: &str) -> Result<f64, String> {
    let value = match word {
        "+Inf" => return Ok(f64::INFINITY),
        "-Inf" => return Ok(f64::NEG_INFINITY),
        "NaN" => return Ok(f64::NAN),
        word => word.parse::<f64>().map_err(|_| format!("{word:?} is no number"))?,
    };
    let shortest = format!("{value:e}");
    let significant = |text: &str| {
        let digits: String = text.split('e').next().unwrap_or_default().chars().filter(char::is_ascii_digit).collect();
        digits.trim_matches('0').to_owned()
    };
    if significant(word) != significant(&shortest) {
        return Err(format!("{word} has more digits than {shortest}"));
    }
    let plain = value == 0.0 || (1e-4..1e6).contains(&value.abs());
    let exponent = word.split_once('e').map(|(_, exponent)| exponent);
    let canonical = exponent.is_none_or(|e| e.len() >= 3 && e.starts_with(['+', '-']));
    if plain == exponent.is_some() || !canonical || word.ends_with(".0") {
        return Err(format!("{word} is not as Go writes {shortest}"));
    }
    Ok(value)
}

fn moment(word: &str, open: bool) -> Result<u64, String> {
    let bad = || format!("{word:?} is no moment");
    if open {
        let (seconds, millis) = word.split_once('.').filter(|(_, m)| m.len() == 3).ok_or_else(bad)?;
        let parse = |text: &str| text.parse::<u64>().map_err(|_| bad());
        Ok(parse(seconds)? * 1_000 + parse(millis)?)
    } else {
        word.parse().map_err(|_| bad())
    }
}

#[test]
fn it_refuses_what_is_wrong() {
    let head = "# HELP a help\n# TYPE a gauge\n";
    assert!(parse(&format!("{head}a{{b=\"x\\n\\\"\",c=\"\"}} 1.5 1000\n"), Format::Text).is_ok());
    for wrong in [
        "a 1",
        "a 1.0\n",
        "a 1000000\n",
        "a 0.1e+01\n",
        "b 1\n",
        "a{c=\"\",b=\"\"} 1\n",
        "a{b=\"} 1\n",
        "a 1\na 2\n",
        "a 1\n\n",
        "a 1 1.5\n",
        "a 1\n# HELP a help\n# TYPE a gauge\na{x=\"\"} 1\n",
        "",
    ] {
        assert!(parse(&format!("{head}{wrong}"), Format::Text).is_err(), "{wrong:?} was taken");
    }
    let in_any = |labels: &str| parse_in(&format!("{head}a{{{labels}}} 1\n"), Format::Text, Order::Any);
    assert!(in_any("c=\"\",b=\"\"").is_ok() && in_any("c=\"\",b=\"\",c=\"\"").is_err());
    // The gauge's name and the counter's family are one.
    let both = format!("{head}a 1\n# HELP a help\n# TYPE a counter\na_total 1\n# EOF\n");
    assert!(parse(&both, Format::OpenMetrics).is_err());
}
