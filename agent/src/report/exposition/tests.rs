use beelet_core::telemetry::Histogram;

use super::*;
use crate::report::metrics::histogram;
use crate::report::strict::parse;
use crate::report::table::Group;

const fn def(kind: Kind, name: &'static str, unit: &'static str, labels: &'static [&'static str]) -> MetricDef {
    MetricDef { group: Group::Container, name, kind, unit, labels, help: "Help with a \\ and a \"quote\"." }
}

static TABLE: &[MetricDef] = &[
    def(Kind::Counter, "a_seconds_total", "seconds", &["container", "cpu", "id", "zone"]),
    def(Kind::Gauge, "b_bytes", "bytes", &["container", "id"]),
    def(Kind::Counter, "c_evictions", "", &["signal"]),
    def(Kind::Histogram, "d_seconds", "seconds", &["container", "id"]),
    def(Kind::Gauge, "e", "bytes", &[]),
];

const LABELS: &[&str] = &["container", "id"];

fn rows(caps: Caps) -> (LabelSets, RowId, RowId) {
    let mut sets = LabelSets::new(LABELS, caps);
    let (one, two) = (sets.add(&["web", "/a\"b\\\n"]), sets.add(&["", "/"]));
    (sets, one.unwrap(), two.unwrap())
}

fn text_of(write: impl FnOnce(&mut Writer), format: Format) -> (String, Written) {
    let mut writer = Writer::new(TABLE, format, 0);
    write(&mut writer);
    let (out, written) = writer.finish();
    (String::from_utf8(out).unwrap(), written)
}

fn some_of_each(writer: &mut Writer) {
    let (sets, one, two) = rows(Caps::default());
    let none = LabelSets::none();
    let at = Some(Micros(1_700_000_000_007_999));
    let mut a = writer.family("a_seconds_total", &sets);
    a.sample(one, &["total", "z"], Micros::millis(12_500), at);
    a.sample(two, &["total", "z"], Micros(1), at);
    writer.family("b_bytes", &sets).sample(two, &[], Bytes::mib(1), None);
    writer.family("c_evictions", &none).sample(RowId::ONLY, &["memory.available"], 3_u64, None);
    let mut value = Histogram::default();
    (value.counts[0], value.counts[21], value.sum_ns) = (2, 1, 1_500_000_000);
    writer.family("d_seconds", &sets).histogram(one, &[], &histogram(&value), None);
    writer.family("e", &none).sample(RowId::ONLY, &[], f64::INFINITY, None);
}

#[test]
fn text_is_as_the_kubelet_writes_it() {
    let (text, written) = text_of(some_of_each, Format::Text);
    assert_eq!(written, Written { series: 20, dropped: 0, misfits: 0 });
    let expected = "# HELP a_seconds_total Help with a \\\\ and a \"quote\".\n\
        # TYPE a_seconds_total counter\n\
        a_seconds_total{container=\"web\",cpu=\"total\",id=\"/a\\\"b\\\\\\n\",zone=\"z\"} 12.5 1700000000007\n\
        a_seconds_total{container=\"\",cpu=\"total\",id=\"/\",zone=\"z\"} 1e-06 1700000000007\n";
    assert!(text.starts_with(expected), "{text}");
    assert!(text.contains("\nb_bytes{container=\"\",id=\"/\"} 1.048576e+06\n"), "{text}");
    assert!(text.contains("# TYPE c_evictions counter\nc_evictions{signal=\"memory.available\"} 3\n"), "{text}");
    assert!(text.ends_with("\n# TYPE e gauge\ne +Inf\n"), "{text}");
    for line in [
        "_bucket{container=\"web\",id=\"/a\\\"b\\\\\\n\",le=\"1e-06\"} 2",
        "le=\"+Inf\"} 3",
        "_sum{container=\"web\",id=\"/a\\\"b\\\\\\n\"} 1.5",
    ] {
        assert!(text.contains(line), "no {line} in {text}");
    }
    let read = parse(&text, Format::Text).unwrap();
    assert_eq!(read["a_seconds_total"].samples[0].label("id"), "/a\"b\\\n");
    assert_eq!(read["d_seconds"].samples.len(), 15);
}

#[test]
fn openmetrics_has_its_names_units_and_end() {
    let (text, _) = text_of(some_of_each, Format::OpenMetrics);
    let expected = "# HELP a_seconds Help with a \\\\ and a \\\"quote\\\".\n\
        # TYPE a_seconds counter\n# UNIT a_seconds seconds\n\
        a_seconds_total{container=\"web\",cpu=\"total\",id=\"/a\\\"b\\\\\\n\",zone=\"z\"} 12.5 1700000000.007\n";
    assert!(text.starts_with(expected), "{text}");
    assert!(text.contains("# TYPE c_evictions unknown\nc_evictions{"), "{text}");
    assert!(text.contains("# TYPE e gauge\ne +Inf\n"), "no unit that is not in the name: {text}");
    assert!(text.ends_with("# EOF\n"));
    let names = |format| parse(&text_of(some_of_each, format).0, format).unwrap().into_keys().collect::<Vec<_>>();
    assert_eq!(names(Format::OpenMetrics), names(Format::Text), "a series has one name in both");
}

#[test]
fn a_counter_that_has_a_gauges_name_without_total_is_of_unknown_type_in_openmetrics() {
    static BOTH: &[MetricDef] = &[
        def(Kind::Gauge, "a_bytes_per_second", "bytes per second", &[]),
        def(Kind::Gauge, "b", "", &[]),
        def(Kind::Counter, "b_total", "", &[]),
    ];
    let none = LabelSets::none();
    for (format, kind) in [(Format::Text, "counter"), (Format::OpenMetrics, "unknown")] {
        let mut writer = Writer::new(BOTH, format, 0);
        for def in BOTH {
            writer.family(def.name, &none).sample(RowId::ONLY, &[], 1_u64, None);
        }
        let text = String::from_utf8(writer.finish().0).unwrap();
        assert_eq!(parse(&text, format).unwrap()["b_total"].kind, kind, "{text}");
        let unit = "# UNIT a_bytes_per_second bytes_per_second\n";
        assert_eq!(text.contains(unit), format == Format::OpenMetrics, "{text}");
    }
}

#[test]
fn what_the_table_does_not_have_does_not_come_out() {
    let (sets, one, _) = rows(Caps::default());
    let none = LabelSets::none();
    let (text, written) = text_of(
        |w| {
            w.family("nothing", &sets).sample(one, &[], 1_u64, None);
            w.family("b_bytes", &none).sample(RowId::ONLY, &["only one"], 1_u64, None);
            w.family("c_evictions", &sets).sample(one, &["x"], 1_u64, None);
            w.family("d_seconds", &sets).sample(one, &[], 1_u64, None);
            let strange = def(Kind::Gauge, "strange", "", &[]);
            let strange: &'static MetricDef = Box::leak(Box::new(strange));
            w.family_of(Some(strange), &none).sample(RowId::ONLY, &[], 1_u64, None);
        },
        Format::Text,
    );
    assert_eq!((text.as_str(), written.misfits, written.series), ("", 5, 0));
}

#[test]
fn no_series_comes_out_twice() {
    let (mut sets, one, two) = rows(Caps::default());
    assert_eq!(sets.add(&["web", "/a\"b\\\n"]), None, "the same row");
    let (text, written) = text_of(
        |w| {
            let mut a = w.family("a_seconds_total", &sets);
            a.sample(one, &["b", ""], 1_u64, None);
            a.sample(one, &["a", ""], 2_u64, None);
            a.sample(one, &["b", ""], 3_u64, None);
            a.sample(two, &["b", ""], 4_u64, None);
            a.sample(one, &["c", ""], 5_u64, None);
            w.family("a_seconds_total", &sets).sample(two, &["d", ""], 6_u64, None);
            let mut d = w.family("d_seconds", &sets);
            d.histogram(one, &[], &histogram(&Histogram::default()), None);
            d.histogram(one, &[], &histogram(&Histogram::default()), None);
        },
        Format::Text,
    );
    let read = parse(&text, Format::Text).unwrap();
    let values: Vec<f64> = read["a_seconds_total"].samples.iter().map(|s| s.value).collect();
    assert_eq!(values, [1.0, 2.0, 4.0]);
    assert_eq!((read["d_seconds"].samples.len(), written.misfits), (15, 4));
}

#[test]
fn what_is_too_much_is_left_out_and_counted() {
    let (sets, one, two) = rows(Caps { rows: 1, series_per_row: 2 });
    let (text, written) = text_of(
        |w| {
            let mut a = w.family("a_seconds_total", &sets);
            for cpu in ["0", "1", "2"] {
                a.sample(one, &[cpu, ""], 1_u64, None);
            }
            a.sample(two, &["0", ""], 1_u64, None);
            w.family("b_bytes", &sets).sample(one, &[], 1_u64, None);
            w.family("d_seconds", &sets).histogram(one, &[], &histogram(&Histogram::default()), None);
        },
        Format::Text,
    );
    assert_eq!(written, Written { series: 2, dropped: 2 + 1 + 15, misfits: 0 });
    assert_eq!(parse(&text, Format::Text).unwrap().len(), 1, "{text}");
}

#[test]
fn numbers_are_as_go_writes_them() {
    let of = |value: Value| {
        let mut out = Vec::new();
        number(&mut out, value);
        String::from_utf8(out).unwrap()
    };
    for (value, text) in [
        (0.0, "0"),
        (-0.0, "-0"),
        (1.0, "1"),
        (-1.5, "-1.5"),
        (100.0, "100"),
        (999_999.0, "999999"),
        (1e6, "1e+06"),
        (1_048_576.0, "1.048576e+06"),
        (0.0001, "0.0001"),
        (0.000_099_99, "9.999e-05"),
        (1e-7, "1e-07"),
        (1.5e300, "1.5e+300"),
        (0.1, "0.1"),
        (123.456, "123.456"),
        (1_763_990_000.000_123, "1.763990000000123e+09"),
        (f64::NAN, "NaN"),
        (f64::NEG_INFINITY, "-Inf"),
    ] {
        assert_eq!(of(Value::Float(value)), text);
    }
    assert_eq!(of(Value::Count(u64::MAX)), "1.8446744073709552e+19");
    assert_eq!(of(Value::Count(1_000_000)), "1e+06");
    assert_eq!(of(Value::Seconds(Micros(1))), "1e-06");
    assert_eq!(of(Value::Seconds(Micros(100))), "0.0001");
    assert_eq!(of(Value::Seconds(Micros::secs(10))), "10");
}

proptest::proptest! {
    #[test]
    fn integers_and_times_are_written_as_their_doubles(n in proptest::prelude::any::<u64>(), shift in 0_u32..64) {
        let of = |value: Value| {
            let mut out = Vec::new();
            number(&mut out, value);
            String::from_utf8(out).unwrap()
        };
        let n = n >> shift;
        proptest::prop_assert_eq!(of(Value::Count(n)), of(Value::Float(n as f64)));
        proptest::prop_assert_eq!(of(Value::Seconds(Micros(n))), of(Value::Float(n as f64 / 1e6)));
        proptest::prop_assert_eq!(of(Value::Count(n)).parse::<f64>().unwrap(), n as f64);
    }
}

#[test]
fn the_format_is_the_one_asked_for() {
    let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
        application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
        text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
    for (accept, format) in [
        (None, Format::Text),
        (Some(""), Format::Text),
        (Some("*/*"), Format::Text),
        (Some("text/plain"), Format::Text),
        (Some(prometheus), Format::OpenMetrics),
        (Some("application/openmetrics-text"), Format::OpenMetrics),
        (Some("application/openmetrics-text; version=\"1.0.0\""), Format::OpenMetrics),
        (Some("application/openmetrics-text;version=2.0.0"), Format::Text),
        (Some("application/openmetrics-text;q=0.2, text/plain;q=0.3"), Format::Text),
        (Some("application/openmetrics-text;q=0"), Format::Text),
        (Some("application/openmetrics-text;q=NaN"), Format::Text),
        (Some("application/vnd.google.protobuf;proto=x;encoding=delimited;q=0.7,*/*;q=0.1"), Format::Text),
    ] {
        assert_eq!(Format::negotiate(accept), format, "{accept:?}");
    }
    for (coding, yes) in [
        (None, false),
        (Some("gzip"), true),
        (Some("br, GZIP;q=0.5"), true),
        (Some("gzip;q=0"), false),
        (Some("*"), true),
    ] {
        assert_eq!(accepts_gzip(coding), yes, "{coding:?}");
    }
}

#[test]
fn compressed_text_unpacks() {
    let text = "container_memory_rss{id=\"/\"} 1\n".repeat(10_000);
    let packed = gzip(text.as_bytes()).unwrap();
    assert!(packed.len() * 20 < text.len());
    let mut back = String::new();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&packed[..]), &mut back).unwrap();
    assert!(back == text);
}
