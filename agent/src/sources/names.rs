//! Names that are safe to use.
//!
//! Problem: names of pods, containers and volumes become names of folders and cgroups; `../x` must never get there.
//! Approach: the rules of RFC 1123 as Kubernetes applies them, with the kubelet's words
//! (k8s.io/apimachinery/pkg/util/validation/validation.go, release 1.37).
//!
//! Property: a name that passes has no slash, is not `.` or `..`, and fits a file name.

/// Whether it may be the name of a pod or a node.
#[must_use]
pub fn is_dns1123_subdomain(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_part)
}

/// Whether it may be the name of a container, a volume or a namespace.
#[must_use]
pub fn is_dns1123_label(name: &str) -> bool {
    name.len() <= 63 && is_part(name)
}

fn is_part(part: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    bytes.first().is_some_and(|b| inner(*b))
        && bytes.last().is_some_and(|b| inner(*b))
        && bytes.iter().all(|b| inner(*b) || *b == b'-')
}

/// Whether it may name folders and cgroups of a pod: what the API server makes, and hashes.
pub(crate) fn is_uid(uid: &str) -> bool {
    (1..=63).contains(&uid.len()) && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// Why it may not be the name of a port (an IANA service name); "" is no name and fine.
pub(crate) fn port_name_fault(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        return None;
    }
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if name.len() > 15 {
        Some("must be no more than 15 characters")
    } else if !name.bytes().all(plain) {
        Some("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)")
    } else if !name.bytes().any(|b| b.is_ascii_lowercase()) {
        Some("must contain at least one letter (a-z)")
    } else if name.contains("--") {
        Some("must not contain consecutive hyphens")
    } else {
        (name.starts_with('-') || name.ends_with('-')).then_some("must not begin or end with a hyphen")
    }
}

/// Why it may not be the key of a label: a name, before which a domain and a slash may stand.
pub(crate) fn label_key_fault(key: &str) -> Option<&'static str> {
    let (domain, name) = key.split_once('/').map_or((None, key), |(domain, name)| (Some(domain), name));
    if domain.is_some_and(|domain| !is_dns1123_subdomain(domain)) {
        return Some("prefix part must be a lowercase RFC 1123 subdomain");
    }
    (name.is_empty() || label_value_fault(name).is_some()).then_some(
        "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character, \
         at most 63 of them",
    )
}

/// Why it may not be the value of a label.
pub(crate) fn label_value_fault(value: &str) -> Option<&'static str> {
    let (bytes, plain) = (value.as_bytes(), |b: &u8| b.is_ascii_alphanumeric());
    let fine = value.is_empty()
        || bytes.len() <= 63
            && bytes.first().is_some_and(plain)
            && bytes.last().is_some_and(plain)
            && bytes.iter().all(|b| plain(b) || b"-_.".contains(b));
    (!fine).then_some(
        "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with \
         an alphanumeric character, at most 63 of them",
    )
}

/// What a name of a pod has to be, in the kubelet's words.
pub(crate) const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
     and must start and end with an alphanumeric character, at most 253 of them";
/// What a name of a container has to be, in the kubelet's words.
pub(crate) const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', \
     and must start and end with an alphanumeric character, at most 63 of them";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_by_the_rules() {
        for good in ["a", "web-1", "a.b", "0", "node-1.example.com"] {
            assert!(is_dns1123_subdomain(good), "{good}");
        }
        for bad in ["", ".", "..", "../x", "a/b", "A", "-a", "a-", "a..b", "a b", "ä", "a\0", "a_b"] {
            assert!(
                !is_dns1123_subdomain(bad)
                    && !is_dns1123_label(bad)
                    && (bad == "A" || bad == "-a" || bad == "a-" || !is_uid(bad)),
                "{bad}"
            );
        }
        assert!(is_dns1123_label(&"a".repeat(63)) && !is_dns1123_label(&"a".repeat(64)) && !is_dns1123_label("a.b"));
        assert!(is_dns1123_subdomain(&"a".repeat(253)) && !is_dns1123_subdomain(&"a".repeat(254)));
        assert!(is_uid("0e9c4d51-3ab8-4c4d-9a8e-1f2d3c4b5a69") && !is_uid("../../etc"));
    }

    #[test]
    fn a3_3g_names_of_ports() {
        for good in ["", "http", "a", "h2-c", "8080a"] {
            assert_eq!(port_name_fault(good), None, "{good}");
        }
        for bad in ["HTTP", "a_b", "80", "-a", "a-", "a--b", "a.b", "sixteen-letters-", "abcdefghijklmnop"] {
            assert!(port_name_fault(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn a4_16d_keys_and_values_of_labels() {
        for good in ["a", "A_b.c-1", "example.com/Name", "0"] {
            assert_eq!(label_key_fault(good), None, "{good}");
        }
        for bad in ["", "/a", "a/", "a/b/c", "A.com/b", "-a", "a-", "a b", &"a".repeat(64)] {
            assert!(label_key_fault(bad).is_some(), "{bad}");
        }
        for (value, fine) in [("", true), ("a", true), ("1.2_3-4", true), ("a/b", false), ("-", false), ("ä", false)] {
            assert_eq!(label_value_fault(value).is_none(), fine, "{value}");
        }
    }

    proptest! {
        #[test]
        fn a_name_that_passes_stays_in_its_folder(name in "[a-z./-]{0,12}") {
            if is_dns1123_subdomain(&name) {
                let path = std::path::Path::new("/folder").join(&name);
                prop_assert_eq!(path.parent(), Some(std::path::Path::new("/folder")));
                prop_assert_eq!(path.file_name().and_then(|n| n.to_str()), Some(name.as_str()));
            }
        }
    }
}
