//! A small BTF made by hand, whole, cut off and damaged.

use super::*;

/// Writes types and strings as the kernel lays them out.
#[derive(Default)]
pub(in crate::kernel) struct Maker {
    types: Vec<u8>,
    strings: Vec<u8>,
}

impl Maker {
    pub(in crate::kernel) fn name(&mut self, name: &str) -> u32 {
        if self.strings.is_empty() {
            self.strings.push(0);
        }
        if name.is_empty() {
            return 0;
        }
        let offset = u32::try_from(self.strings.len()).unwrap();
        self.strings.extend(name.as_bytes());
        self.strings.push(0);
        offset
    }

    pub(in crate::kernel) fn add(&mut self, name: &str, kind: u32, count: u32, size_or_type: u32, body: &[u32]) {
        let name = self.name(name);
        for word in [name, kind << 24 | count, size_or_type].iter().chain(body) {
            self.types.extend(word.to_ne_bytes());
        }
    }

    pub(in crate::kernel) fn finish(self) -> Vec<u8> {
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        let mut data = 0xeb9f_u16.to_ne_bytes().to_vec();
        data.extend([1, 0]);
        for word in [24, 0, types, types, strings] {
            data.extend(u32::to_ne_bytes(word));
        }
        data.extend(self.types);
        data.extend(self.strings);
        data
    }
}

fn sample() -> Vec<u8> {
    let mut btf = Maker::default();
    btf.add("int", kind::INT, 0, 4, &[32]); // 1
    let (a, b, c, list) = (btf.name("a"), btf.name("b"), btf.name("c"), btf.name("list"));
    btf.add("", kind::UNION, 2, 8, &[b, 1, 0, c, 1, 32]); // 2
    btf.add("", kind::ARRAY, 0, 0, &[1, 1, 3]); // 3
    btf.add("outer", kind::STRUCT, 3, 24, &[a, 1, 0, 0, 2, 64, list, 3, 128]); // 4
    btf.add("alias", kind::TYPEDEF, 0, 5, &[]); // 5: names itself
    btf.add("", kind::PTR, 0, 4, &[]); // 6
    btf.add("", kind::PTR, 0, 0, &[]); // 7
    btf.add("", kind::FUNC_PROTO, 3, 0, &[0, 7, 0, 6, 0, 1]); // 8
    btf.add("", kind::PTR, 0, 8, &[]); // 9
    btf.add("btf_trace_thing", kind::TYPEDEF, 0, 9, &[]); // 10
    let x = btf.name("x");
    btf.add("looped", kind::STRUCT, 2, 8, &[0, 11, 0, x, 5, 32]); // 11: contains itself, and a typedef without end
    btf.finish()
}

#[test]
fn members_are_found_through_anonymous_ones_and_arrays() {
    let btf = Btf::parse(sample()).unwrap();
    assert_eq!(btf.len(), 11);
    assert_eq!(btf.member_offset("outer", "a").unwrap(), 0);
    assert_eq!(btf.member_offset("outer", "c").unwrap(), 12);
    assert_eq!(btf.member_offset("outer", "list[2]").unwrap(), 24);
    assert_eq!(btf.array_len("outer", "list").unwrap(), 3);
    assert_eq!(btf.struct_size("outer").unwrap(), 24);
    assert_eq!(
        btf.member_offset("outer", "nothing").unwrap_err().to_string(),
        "the kernel's struct outer has no member nothing"
    );
    assert!(matches!(btf.member_offset("nowhere", "a"), Err(BtfError::NoType { .. })));
    assert!(btf.member_offset("outer", "a.b").is_err());
    assert!(btf.member_offset("outer", "list[99999999999]").is_err());
}

#[test]
fn arguments_of_a_tracepoint_leave_out_the_hidden_one() {
    let btf = Btf::parse(sample()).unwrap();
    assert_eq!(btf.tracepoint("thing").unwrap(), [Argument::Struct("outer".into()), Argument::Scalar]);
    assert!(btf.tracepoint("other").is_err());
}

#[test]
fn loops_end() {
    let btf = Btf::parse(sample()).unwrap();
    assert_eq!(btf.member_offset("looped", "x").unwrap(), 4);
    assert!(btf.member_offset("looped", "x.y").is_err());
    assert!(btf.member_offset("looped", "y").is_err());
}

/// Asks everything once; only the absence of a panic counts.
fn ask(data: Vec<u8>) {
    if let Ok(btf) = Btf::parse(data) {
        for path in ["a", "c", "list[1]", "x", "x.y"] {
            let _ = (btf.member_offset("outer", path), btf.member_offset("looped", path), btf.array_len("outer", path));
        }
        let _ = (btf.tracepoint("thing"), btf.struct_size("outer"));
    }
}

#[test]
fn input_that_is_cut_off_is_an_error_and_never_a_panic() {
    let whole = sample();
    for end in 0..whole.len() {
        assert!(Btf::parse(whole[..end].to_vec()).is_err(), "cut at {end}");
    }
}

#[test]
fn damaged_input_never_panics() {
    let whole = sample();
    for position in 0..whole.len() {
        for value in [0, 1, 4, 5, 0x7f, 0x80, 0xff] {
            let mut damaged = whole.clone();
            damaged[position] = value;
            ask(damaged);
        }
    }
}

#[test]
fn no_file_is_a_clear_error() {
    let error = Btf::read(Path::new("/nonexistent/btf")).unwrap_err();
    assert!(error.to_string().contains("CONFIG_DEBUG_INFO_BTF"), "{error}");
}

#[test]
fn enumerations_have_their_values_of_either_width_and_sign() {
    const SIGNED: u32 = 1 << 7;
    let mut btf = Maker::default();
    let (a, b) = (btf.name("A"), btf.name("B"));
    btf.add("small", kind::ENUM, 2, 4, &[a, 1, b, u32::MAX]);
    btf.add("negative", kind::ENUM | SIGNED, 2, 4, &[a, 1, b, u32::MAX]);
    btf.add("large", kind::ENUM64, 2, 8, &[a, 7, 1, b, u32::MAX, u32::MAX]);
    btf.add("large_negative", kind::ENUM64 | SIGNED, 2, 8, &[a, 7, 1, b, u32::MAX, u32::MAX]);
    let btf = Btf::parse(btf.finish()).unwrap();
    assert_eq!(btf.enumeration("small").unwrap(), [("A", 1), ("B", i64::from(u32::MAX))]);
    assert_eq!(btf.enumeration("negative").unwrap(), [("A", 1), ("B", -1)]);
    assert_eq!(btf.enumeration("large").unwrap(), [("A", (1 << 32) + 7)], "beyond i64");
    assert_eq!(btf.enumeration("large_negative").unwrap(), [("A", (1 << 32) + 7), ("B", -1)]);
    assert!(matches!(btf.enumeration("none"), Err(BtfError::NoType { kind: "enum", .. })));
}

#[test]
fn a_function_is_found_by_its_name_and_no_other_type_is_one() {
    let mut btf = Maker::default();
    btf.add("here", kind::FUNC, 0, 0, &[]);
    btf.add("a_type", kind::TYPEDEF, 0, 0, &[]);
    let btf = Btf::parse(btf.finish()).unwrap();
    assert_eq!(["here", "a_type", "gone"].map(|name| btf.has_function(name)), [true, false, false]);
}
