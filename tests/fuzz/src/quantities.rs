//! Quantities: a text is a number or an error that shows the text; what is printed is the same number; what changes only the writing
//! changes nothing else.

use beelet_core::quantity::{Quantity, QuantityError, parse_bytes, parse_cpu};

pub(super) fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let read = text.parse::<Quantity>();
    let quantity = match &read {
        Ok(quantity) => quantity,
        Err(error) => {
            let said = error.to_string();
            assert!(said.contains(&format!("{text:?}")), "{text:?} is not in {said:?}");
            assert!(parse_bytes(text).is_err() && parse_cpu(text).is_err());
            return;
        }
    };
    let printed = quantity.to_string();
    let again: Quantity = printed.parse().unwrap_or_else(|e| panic!("{text:?} is printed as {printed:?}: {e}"));
    assert_eq!(again, *quantity, "{text:?}");
    // A binary suffix that went away is forgotten, as upstream: 62.5Ki is printed as 64000, and that as 64k, which stays.
    let third: Quantity = again.to_string().parse().unwrap_or_else(|e| panic!("{again} of {text:?}: {e}"));
    assert_eq!((third, third.to_string()), (again, again.to_string()), "{text:?}");
    assert!(!printed.contains('.') && printed.len() < 32, "{text:?} is printed as {printed:?}");

    // Rounded up, away from zero.
    let nano = quantity.nano();
    let off = |value: i64, unit: i128| (i128::from(value) * unit - nano).abs();
    assert!(off(quantity.value(), 1_000_000_000) < 1_000_000_000, "{text:?}");
    let milli = quantity.milli_value();
    assert!(milli.unsigned_abs() >= i64::MAX as u64 || off(milli, 1_000_000) < 1_000_000, "{text:?}");

    amounts(text, quantity);
    writing(text, quantity);
}

/// An amount is the quantity's value, and never negative.
fn amounts(text: &str, quantity: &Quantity) {
    if quantity.nano() < 0 {
        assert_eq!(parse_bytes(text), Err(QuantityError::Negative(text.to_owned())));
        assert_eq!(parse_cpu(text), Err(QuantityError::Negative(text.to_owned())));
    } else {
        assert_eq!(
            parse_bytes(text).map(beelet_core::units::Bytes::get),
            Ok(quantity.value().unsigned_abs()),
            "{text:?}"
        );
        assert_eq!(
            parse_cpu(text).map(beelet_core::units::MilliCpu::get),
            Ok(quantity.milli_value().unsigned_abs()),
            "{text:?}"
        );
    }
}

/// The same number in other words.
fn writing(text: &str, quantity: &Quantity) {
    let same = |other: &str, number: i128| {
        let read = other.parse::<Quantity>().unwrap_or_else(|e| panic!("{text:?} is one, {other:?} is none: {e}"));
        assert_eq!((read.nano(), read.format()), (number, quantity.format()), "{text:?} and {other:?}");
    };
    let bare = text.trim_start_matches(['+', '-']);
    let number = if text.starts_with('-') { -quantity.nano() } else { quantity.nano() };
    same(bare, number);
    same(&format!("-{bare}"), -number);
    same(&format!("+{bare}"), number);
    same(&format!("0{bare}"), number);
    let digits = bare.len() - bare.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
    let (digits, suffix) = bare.split_at(digits);
    if digits.contains('.') {
        same(&format!("{digits}0{suffix}"), number);
    } else {
        same(&format!("{digits}.{suffix}"), number);
        same(&format!("{digits}.000{suffix}"), number);
    }
}
