//! Writes metrics as text, in the Prometheus format 0.0.4 or as OpenMetrics 1.0.0.
//!
//! **Problem.** A node of 100 pods has twenty thousand series, megabytes of text, most of it the same six labels again and again.
//! Building a tree of strings for them costs more than all the measuring did.
//!
//! **Approach.** The labels of a cgroup are escaped and rendered once ([`LabelSets`]); a [`Writer`] copies them behind each metric's
//! name and puts a metric's further labels in between, where the alphabet wants them. Numbers are written digit by digit as Go's
//! `%g` writes them, without a float where an integer will do.
//!
//! **Terms.** A *row* is a rendered set of labels (of a cgroup, say), its *extra* labels are those that only some metrics have
//! (`device`). A *family* is all samples of one metric.
//!
//! **Properties** (tested). What is not in the writer's table does not come out, nor with other labels or of another kind. No series
//! comes out twice: rows are told apart when they are made, a family takes them in order, and within a row its extra labels must
//! differ. A family without samples leaves nothing. The text reads back with the strict parser of the tests. No row has more series
//! than [`Caps::series_per_row`], no more than [`Caps::rows`] rows are written, and what is left out is counted.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::io::Write as _;

use beelet_core::units::{Bytes, Micros};
use prometheus::proto;

use super::table::{Kind, MetricDef};

/// A text format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text format 0.0.4.
    #[default]
    Text,
    /// OpenMetrics 1.0.0. A counter whose name does not end in `_total`, or is another metric's without it, is written as of
    /// unknown type there, so that its name is the same in both formats.
    OpenMetrics,
}

impl Format {
    /// The best that an `Accept` header takes; the text format where it takes neither, or says nothing, as the kubelet does.
    #[must_use]
    pub fn negotiate(accept: Option<&str>) -> Self {
        // Of equal weights the first wins; the text format needs no consent.
        let mut best = (0, Self::Text);
        for entry in accept.unwrap_or_default().split(',') {
            let mut parts = entry.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default();
            let (mut weight, mut version) = (1000, None);
            for (key, value) in parts.filter_map(|parameter| parameter.split_once('=')) {
                match key.trim().to_ascii_lowercase().as_str() {
                    "q" => weight = thousandths(value.trim()),
                    "version" => version = Some(value.trim().trim_matches('"')),
                    _ => {}
                }
            }
            let format = match media.to_ascii_lowercase().as_str() {
                "application/openmetrics-text" if version.is_none_or(|v| v == "1.0.0" || v == "0.0.1") => {
                    Self::OpenMetrics
                }
                "text/plain" if version.is_none_or(|v| v == "0.0.4" || v == "1.0.0") => Self::Text,
                "text/*" | "*/*" => Self::Text,
                _ => continue,
            };
            if weight > best.0 {
                best = (weight, format);
            }
        }
        best.1
    }

    /// Its `Content-Type`. The text format's is the one of the stock kubelet 1.36.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8; escaping=underscores",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// A weight of a header, 0 to 1, as thousandths; 0 for nonsense.
fn thousandths(text: &str) -> u32 {
    match text.parse::<f64>() {
        Ok(weight) if (0.0..=1.0).contains(&weight) => (weight * 1000.0) as u32,
        _ => 0,
    }
}

/// Whether an `Accept-Encoding` header takes gzip.
#[must_use]
pub fn accepts_gzip(accept_encoding: Option<&str>) -> bool {
    accept_encoding.unwrap_or_default().split(',').any(|entry| {
        let mut parts = entry.split(';').map(str::trim);
        let coding = parts.next().unwrap_or_default();
        let weight = parts.find_map(|p| p.strip_prefix("q=")).map_or(1000, thousandths);
        (coding.eq_ignore_ascii_case("gzip") || coding == "*") && weight > 0
    })
}

/// Compressed at the fastest level: this text shrinks twentyfold at any level.
///
/// # Errors
/// None that is known: it writes to memory.
pub fn gzip(body: &[u8]) -> std::io::Result<Vec<u8>> {
    let out = Vec::with_capacity(body.len() / 12 + 64);
    let mut encoder = flate2::write::GzEncoder::new(out, flate2::Compression::fast());
    encoder.write_all(body)?;
    encoder.finish()
}

/// A number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// A count.
    Count(u64),
    /// A time, written in seconds.
    Seconds(Micros),
    /// Anything else.
    Float(f64),
}

impl From<Bytes> for Value {
    fn from(bytes: Bytes) -> Self {
        Self::Count(bytes.get())
    }
}

impl From<Micros> for Value {
    fn from(time: Micros) -> Self {
        Self::Seconds(time)
    }
}

impl From<u64> for Value {
    fn from(count: u64) -> Self {
        Self::Count(count)
    }
}

impl From<u32> for Value {
    fn from(count: u32) -> Self {
        Self::Count(u64::from(count))
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

/// How much is written at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// Rows.
    pub rows: usize,
    /// Series of one row: the stock kubelet's container has 70, and two dozen more for each disk that it uses.
    pub series_per_row: u32,
}

impl Caps {
    /// Room for 500 pods of four rows each and as much again.
    pub const DEFAULT: Self = Self { rows: 4_000, series_per_row: 256 };
}

impl Default for Caps {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Rows of labels.
#[derive(Debug)]
pub struct LabelSets {
    names: &'static [&'static str],
    caps: Caps,
    rows: Vec<Row>,
    seen: HashSet<Box<str>>,
}

#[derive(Debug)]
struct Row {
    text: Box<str>,
    /// Where each label ends in `text`, without the comma behind it.
    ends: Vec<usize>,
    used: std::cell::Cell<u32>,
}

/// A row of some [`LabelSets`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RowId(usize);

impl RowId {
    /// The only row of [`LabelSets::none`].
    pub const ONLY: Self = Self(0);
}

impl LabelSets {
    /// Rows with these labels, which are sorted.
    #[must_use]
    pub fn new(names: &'static [&'static str], caps: Caps) -> Self {
        debug_assert!(names.is_sorted(), "labels are sorted: {names:?}");
        Self { names, caps, rows: Vec::new(), seen: HashSet::new() }
    }

    /// For metrics that have only labels of their own: one row without any, and no cap.
    #[must_use]
    pub fn none() -> Self {
        let row = Row { text: Box::default(), ends: Vec::new(), used: 0.into() };
        let caps = Caps { rows: 1, series_per_row: u32::MAX };
        Self { names: &[], caps, rows: vec![row], seen: HashSet::new() }
    }

    /// One more row; `None` if there is one with the same values, or if there is a value too many or too few.
    pub fn add(&mut self, values: &[&str]) -> Option<RowId> {
        debug_assert_eq!(values.len(), self.names.len(), "a value for each of {:?}", self.names);
        if values.len() != self.names.len() {
            return None;
        }
        let mut text = Vec::with_capacity(256);
        let mut ends = Vec::with_capacity(values.len());
        for (name, value) in self.names.iter().zip(values) {
            if !text.is_empty() {
                text.push(b',');
            }
            label(&mut text, name, value);
            ends.push(text.len());
        }
        let text = String::from_utf8(text).unwrap_or_default().into_boxed_str();
        if !self.seen.insert(text.clone()) {
            return None;
        }
        self.rows.push(Row { text, ends, used: 0.into() });
        Some(RowId(self.rows.len() - 1))
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// None yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Samples.
    pub series: u64,
    /// Samples left out by [`Caps`].
    pub dropped: u64,
    /// Samples left out because the table does not have them so, or they were there already: mistakes of the caller, which
    /// tests look for.
    pub misfits: u64,
}

/// Writes families.
#[derive(Debug)]
pub struct Writer {
    table: &'static [MetricDef],
    format: Format,
    out: Vec<u8>,
    done: HashSet<&'static str>,
    written: Written,
}

/// A piece of a family's labels.
#[derive(Clone, Copy, Debug)]
enum Piece {
    /// Labels `from` to before `to` of the row.
    Row { from: usize, to: usize },
    /// An extra label: its name, and which of the extra values it has.
    Extra(&'static str, usize),
}

impl Writer {
    /// Writes metrics of this table, into so many bytes at first.
    #[must_use]
    pub fn new(table: &'static [MetricDef], format: Format, capacity: usize) -> Self {
        Self { table, format, out: Vec::with_capacity(capacity), done: HashSet::new(), written: Written::default() }
    }

    /// Begins the family of that name, with rows from `sets`. What the table does not have, has otherwise or has had already is
    /// written nowhere, and counted.
    pub fn family<'w>(&'w mut self, name: &str, sets: &'w LabelSets) -> Family<'w> {
        let def = self.table.iter().find(|def| def.name == name);
        self.family_of(def, sets)
    }

    /// The same by the table's entry.
    pub fn family_of<'w>(&'w mut self, def: Option<&'static MetricDef>, sets: &'w LabelSets) -> Family<'w> {
        let known = def.filter(|def| self.table.iter().any(|d| d.name == def.name));
        let plan = known.and_then(|def| {
            let plan = plan(def.labels, sets.names)?;
            self.done.insert(def.name).then_some((def, plan))
        });
        let (def, pieces, extras) = match plan {
            Some((def, (pieces, extras))) => (Some(def), pieces, extras),
            None => (None, Vec::new(), 0),
        };
        Family { writer: self, sets, def, pieces, extras, begun: false, last: None, last_extras: Vec::new(), max: None }
    }

    /// The text, and what is in it.
    #[must_use]
    pub fn finish(mut self) -> (Vec<u8>, Written) {
        if self.format == Format::OpenMetrics {
            self.out.extend_from_slice(b"# EOF\n");
        }
        (self.out, self.written)
    }

    fn head(&mut self, def: &MetricDef) {
        let open = self.format == Format::OpenMetrics;
        let (name, kind) = match def.kind {
            Kind::Counter if open => match def.name.strip_suffix("_total") {
                Some(stem) if self.table.iter().all(|other| other.name != stem) => (stem, "counter"),
                _ => (def.name, "unknown"),
            },
            kind => (def.name, kind.as_str()),
        };
        let mut head = format!("# HELP {name} ");
        for c in def.help.chars() {
            match c {
                '\\' => head.push_str("\\\\"),
                '\n' => head.push_str("\\n"),
                '"' if open => head.push_str("\\\""),
                c => head.push(c),
            }
        }
        let _ = write!(head, "\n# TYPE {name} {kind}\n");
        // OpenMetrics wants the unit in the name, which some of cAdvisor's lack.
        let unit = def.unit.replace(' ', "_");
        if open && !unit.is_empty() && name.strip_suffix(unit.as_str()).is_some_and(|stem| stem.ends_with('_')) {
            let _ = writeln!(head, "# UNIT {name} {unit}");
        }
        self.out.extend_from_slice(head.as_bytes());
    }
}

/// How a family's labels are put together, and how many are extra; `None` if it lacks one of the row's.
fn plan(labels: &'static [&'static str], row: &[&str]) -> Option<(Vec<Piece>, usize)> {
    let (mut pieces, mut next, mut extras) = (Vec::new(), 0, 0);
    for &name in labels {
        if row.get(next) == Some(&name) {
            match pieces.last_mut() {
                Some(Piece::Row { to, .. }) => *to = next + 1,
                _ => pieces.push(Piece::Row { from: next, to: next + 1 }),
            }
            next += 1;
        } else {
            pieces.push(Piece::Extra(name, extras));
            extras += 1;
        }
    }
    (next == row.len()).then_some((pieces, extras))
}

/// The samples of one metric.
#[derive(Debug)]
pub struct Family<'w> {
    writer: &'w mut Writer,
    sets: &'w LabelSets,
    def: Option<&'static MetricDef>,
    pieces: Vec<Piece>,
    extras: usize,
    begun: bool,
    last: Option<RowId>,
    /// Where in the output the labels of the samples of the row `last` stand.
    last_extras: Vec<(usize, usize)>,
    /// The greatest of these.
    max: Option<(usize, usize)>,
}

impl Family<'_> {
    /// A sample of a counter or a gauge, with its extra labels in the table's order and the moment it was read (wall clock).
    pub fn sample(&mut self, row: RowId, extra: &[&str], value: impl Into<Value>, at: Option<Micros>) {
        let Some(def) = self.begin(row, extra, None) else { return };
        let start = self.open(def, "", row, extra);
        if self.is_again(row, start) {
            return;
        }
        self.close(value.into(), at);
        self.writer.written.series += 1;
    }

    /// A histogram: its buckets, one more without a bound, sum and count.
    pub fn histogram(&mut self, row: RowId, extra: &[&str], value: &proto::Histogram, at: Option<Micros>) {
        let series = histogram_series(value);
        let Some(def) = self.begin(row, extra, Some(series)) else { return };
        let bounded = value.get_bucket().iter().map(|bucket| (bucket.upper_bound(), bucket.cumulative_count()));
        for (n, (bound, seen)) in bounded.chain([(f64::INFINITY, value.get_sample_count())]).enumerate() {
            let start = self.open(def, "_bucket", row, extra);
            if n == 0 && self.is_again(row, start) {
                return;
            }
            self.le(start, Value::Float(bound));
            self.close(Value::Count(seen), at);
        }
        self.open(def, "_sum", row, extra);
        self.close(Value::Float(value.get_sample_sum()), at);
        self.open(def, "_count", row, extra);
        self.close(Value::Count(value.get_sample_count()), at);
        self.writer.written.series += series;
    }

    /// What is written of a sample, or of a histogram of so many series, if it fits.
    fn begin(&mut self, row: RowId, extra: &[&str], histogram: Option<u64>) -> Option<&'static MetricDef> {
        let is_kind = |def: &&MetricDef| (def.kind == Kind::Histogram) == histogram.is_some();
        let fits = self.def.filter(|def| is_kind(def) && extra.len() == self.extras);
        let backwards = self.last.is_some_and(|last| row < last);
        let (Some(def), Some(labels), false) = (fits, self.sets.rows.get(row.0), backwards) else {
            self.writer.written.misfits += 1;
            return None;
        };
        let series = histogram.unwrap_or(1);
        let used = u64::from(labels.used.get()) + series;
        if row.0 >= self.sets.caps.rows || used > u64::from(self.sets.caps.series_per_row) {
            self.writer.written.dropped += series;
            return None;
        }
        if !self.sets.names.is_empty() {
            labels.used.set(u32::try_from(used).unwrap_or(u32::MAX));
        }
        if !self.begun {
            self.begun = true;
            self.writer.head(def);
        }
        Some(def)
    }

    /// Writes name and labels, up to the bracket that closes them; where they begin.
    fn open(&mut self, def: &MetricDef, suffix: &str, row: RowId, extra: &[&str]) -> usize {
        let out = &mut self.writer.out;
        out.extend_from_slice(def.name.as_bytes());
        out.extend_from_slice(suffix.as_bytes());
        let start = out.len();
        let Some(labels) = self.sets.rows.get(row.0) else { return start };
        let mut between = b'{';
        for piece in &self.pieces {
            out.push(between);
            between = b',';
            match *piece {
                Piece::Row { from, to } => {
                    let from = if from == 0 { 0 } else { labels.ends[from - 1] + 1 };
                    out.extend_from_slice(&labels.text.as_bytes()[from..labels.ends[to - 1]]);
                }
                Piece::Extra(name, which) => label(out, name, extra.get(which).copied().unwrap_or_default()),
            }
        }
        if between == b',' {
            out.push(b'}');
        }
        start
    }

    /// Whether the row has had a sample with these labels, which were just written and then are taken back.
    fn is_again(&mut self, row: RowId, start: usize) -> bool {
        let out = &mut self.writer.out;
        // Without the bracket, in the place of which a histogram goes on.
        let end = out.len() - usize::from(out.len() > start);
        if self.last != Some(row) {
            self.last = Some(row);
            self.last_extras.clear();
            self.max = None;
        }
        let new = &out[start..end];
        // Who comes in order is new for sure.
        let behind = self.max.is_none_or(|(from, to)| &out[from..to] < new);
        if !behind && self.last_extras.iter().any(|&(from, to)| &out[from..to] == new) {
            let line = out[..start].iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
            out.truncate(line);
            self.writer.written.misfits += 1;
            return true;
        }
        if behind {
            self.max = Some((start, end));
        }
        self.last_extras.push((start, end));
        false
    }

    /// Adds the label `le`, the last one as everywhere.
    fn le(&mut self, start: usize, bound: Value) {
        let out = &mut self.writer.out;
        if out.len() > start {
            out.pop();
            out.push(b',');
        } else {
            out.push(b'{');
        }
        out.extend_from_slice(b"le=\"");
        number(out, bound);
        out.extend_from_slice(b"\"}");
    }

    fn close(&mut self, value: Value, at: Option<Micros>) {
        let open = self.writer.format == Format::OpenMetrics;
        let out = &mut self.writer.out;
        out.push(b' ');
        number(out, value);
        if let Some(at) = at {
            let millis = at.get() / 1_000;
            out.push(b' ');
            if open {
                integer(out, millis / 1_000);
                out.push(b'.');
                let rest = millis % 1_000;
                for digit in [rest / 100, rest / 10 % 10, rest % 10] {
                    out.push(ascii(digit));
                }
            } else {
                integer(out, millis);
            }
        }
        out.push(b'\n');
    }
}

/// Series of a histogram: its buckets, `+Inf`, sum and count.
#[must_use]
pub fn histogram_series(value: &proto::Histogram) -> u64 {
    value.get_bucket().len() as u64 + 3
}

/// `name="value"`, escaped.
fn label(out: &mut Vec<u8>, name: &str, value: &str) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"=\"");
    if value.bytes().any(|b| matches!(b, b'\\' | b'"' | b'\n')) {
        for byte in value.bytes() {
            match byte {
                b'\\' => out.extend_from_slice(b"\\\\"),
                b'"' => out.extend_from_slice(b"\\\""),
                b'\n' => out.extend_from_slice(b"\\n"),
                byte => out.push(byte),
            }
        }
    } else {
        out.extend_from_slice(value.as_bytes());
    }
    out.push(b'"');
}

/// Below this an integer has at most 15 digits, and is its own shortest decimal.
const EXACT: u64 = 1_000_000_000_000_000;

/// The shortest decimal that reads back as the same double, in Go's `%g` notation.
fn number(out: &mut Vec<u8>, value: Value) {
    match value {
        Value::Count(n) if n < EXACT => decimal(out, n, 0),
        Value::Count(n) => float(out, n as f64),
        // Thousandths of a millisecond: the double nearest to it has this as its shortest decimal, too, up to 15 digits.
        Value::Seconds(Micros(us)) if us < EXACT => decimal(out, us, 6),
        Value::Seconds(Micros(us)) => float(out, us as f64 / 1e6),
        Value::Float(value) => float(out, value),
    }
}

fn float(out: &mut Vec<u8>, value: f64) {
    if !value.is_finite() {
        let word: &[u8] = if value.is_nan() {
            b"NaN"
        } else if value > 0.0 {
            b"+Inf"
        } else {
            b"-Inf"
        };
        out.extend_from_slice(word);
        return;
    }
    if value.is_sign_negative() {
        out.push(b'-');
    }
    let value = value.abs();
    if value < EXACT as f64 && value.fract() == 0.0 {
        return decimal(out, value as u64, 0);
    }
    // `1.234e-5`: the shortest digits, with an exponent.
    let text = format!("{value:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let digits: Vec<u8> = digits.bytes().filter(u8::is_ascii_digit).collect();
    placed(out, &digits, exponent.parse().unwrap_or(0));
}

/// `n` with the decimal point moved so many places to the left.
fn decimal(out: &mut Vec<u8>, n: u64, shift: i32) {
    if n == 0 {
        out.push(b'0');
        return;
    }
    let mut buffer = [0; 20];
    let digits = digits(&mut buffer, n);
    let exponent = i32::try_from(digits.len()).unwrap_or(0) - 1 - shift;
    let significant = digits.iter().rposition(|&d| d != b'0').map_or(1, |last| last + 1);
    placed(out, &digits[..significant], exponent);
}

fn integer(out: &mut Vec<u8>, n: u64) {
    let mut buffer = [0; 20];
    out.extend_from_slice(digits(&mut buffer, n));
}

fn digits(buffer: &mut [u8; 20], mut n: u64) -> &[u8] {
    let mut at = buffer.len();
    loop {
        at -= 1;
        buffer[at] = ascii(n % 10);
        n /= 10;
        if n == 0 || at == 0 {
            return &buffer[at..];
        }
    }
}

/// The character of a digit.
fn ascii(digit: u64) -> u8 {
    b'0' + u8::try_from(digit % 10).unwrap_or(0)
}

/// Digits of which the first counts 10^exponent: plain from 10^-4 to below 10^6, else with the exponent (Go's strconv with `g` and
/// the shortest precision).
fn placed(out: &mut Vec<u8>, digits: &[u8], exponent: i32) {
    match exponent {
        0..6 => {
            let whole = usize::try_from(exponent).unwrap_or(0) + 1;
            if digits.len() <= whole {
                out.extend_from_slice(digits);
                out.extend(std::iter::repeat_n(b'0', whole - digits.len()));
            } else {
                out.extend_from_slice(&digits[..whole]);
                out.push(b'.');
                out.extend_from_slice(&digits[whole..]);
            }
        }
        -4..0 => {
            out.extend_from_slice(b"0.");
            out.extend(std::iter::repeat_n(b'0', usize::try_from(-exponent - 1).unwrap_or(0)));
            out.extend_from_slice(digits);
        }
        _ => {
            let (first, rest) = digits.split_at(1.min(digits.len()));
            out.extend_from_slice(first);
            if !rest.is_empty() {
                out.push(b'.');
                out.extend_from_slice(rest);
            }
            out.extend_from_slice(if exponent < 0 { b"e-" } else { b"e+" });
            let size = u64::from(exponent.unsigned_abs());
            if size < 10 {
                out.push(b'0');
            }
            integer(out, size);
        }
    }
}

#[cfg(test)]
mod tests;
