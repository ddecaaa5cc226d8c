//! The form of an image's name.
//!
//! The kubelet refuses a malformed name as `InvalidImageName` before it asks the runtime. The grammar is that of the OCI
//! distribution specification with the registry's host in front, as Docker defined it:
//! `[host[:port]/]path[/path...][:tag][@algorithm:hex]`.

/// Why `image` is no image name; `None` if it is one.
pub(super) fn fault(image: &str) -> Option<&'static str> {
    let (rest, digest) = image.split_once('@').map_or((image, None), |(rest, digest)| (rest, Some(digest)));
    if digest.is_some_and(|digest| !is_digest(digest)) {
        return Some("invalid digest");
    }
    // A colon after the last slash starts the tag; one before it is a port.
    let tag_at = rest.rfind(':').filter(|at| rest.rfind('/').is_none_or(|slash| slash < *at));
    let (name, tag) = tag_at.map_or((rest, None), |at| (&rest[..at], Some(&rest[at + 1..])));
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Some("invalid tag");
    }
    let path = match name.split_once('/') {
        Some((host, path)) if is_host_like(host) => {
            if !is_host(host) {
                return Some("invalid registry host");
            }
            path
        }
        _ => name,
    };
    if path.chars().any(|c| c.is_ascii_uppercase()) {
        return Some("repository name must be lowercase");
    }
    if name.len() > 255 {
        return Some("repository name must not be more than 255 characters");
    }
    (!path.split('/').all(is_component)).then_some("invalid reference format")
}

/// The whole name of an image's repository, without tag and digest; one without a host is Docker's.
pub(crate) fn repository(image: &str) -> String {
    let bare = image.split_once('@').map_or(image, |(rest, _)| rest);
    let name = bare.rfind(':').filter(|at| !bare[*at..].contains('/')).map_or(bare, |at| &bare[..at]);
    match name.split_once('/') {
        Some((host, _)) if is_host_like(host) => name.to_owned(),
        Some(_) => format!("docker.io/{name}"),
        None => format!("docker.io/library/{name}"),
    }
}

fn is_digest(digest: &str) -> bool {
    digest.split_once(':').is_some_and(|(algorithm, hex)| {
        !algorithm.is_empty()
            && algorithm.chars().all(|c| c.is_ascii_alphanumeric() || "+._-".contains(c))
            && hex.len() >= 32
            && hex.chars().all(|c| c.is_ascii_hexdigit())
    })
}

fn is_tag(tag: &str) -> bool {
    let first = tag.chars().next().is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
    first && tag.len() <= 128 && tag.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

/// The first part of a name is a host if nothing else can look so.
fn is_host_like(part: &str) -> bool {
    part == "localhost" || part.contains(['.', ':']) || part.chars().any(|c| c.is_ascii_uppercase())
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (host, None),
    };
    let address = name.strip_prefix('[').and_then(|n| n.strip_suffix(']'));
    let named = name.split('.').all(|label| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    });
    port.is_none_or(|port| !port.is_empty() && port.chars().all(|c| c.is_ascii_digit()))
        && address.map_or(named, |a| a.parse::<std::net::Ipv6Addr>().is_ok())
}

/// Lower-case words with one of `.`, `_`, `__` or any number of `-` between them.
fn is_component(part: &str) -> bool {
    let mut gap = String::from("start");
    for c in part.chars() {
        if c.is_ascii_lowercase() || c.is_ascii_digit() {
            gap.clear();
        } else if gap == "start" || !"._-".contains(c) {
            return false;
        } else {
            gap.push(c);
            if !(gap == "." || gap == "_" || gap == "__" || gap.chars().all(|g| g == '-')) {
                return false;
            }
        }
    }
    gap.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_judged() {
        let digest = "0".repeat(64);
        let with_digest = format!("registry.k8s.io/pause:3.9@sha256:{digest}");
        for good in [
            "busybox",
            "busybox:1.36",
            "library/busybox",
            "localhost/beelet/workload:dev",
            "localhost:5000/a/b-c__d.e:V1_x",
            "[::1]:5000/a",
            "Host.example/a",
            "a--b",
            &with_digest,
        ] {
            assert_eq!(fault(good), None, "{good}");
        }
        for bad in [
            "",
            "Busybox",
            "a b",
            "a:",
            "a:-x",
            "/a",
            "a/",
            "a//b",
            "-a",
            "a._b",
            "a___b",
            "a@sha256:12",
            "a:b:c",
            "bad_host.x/a",
            "host:port/a",
            "[nonsense]/a",
        ] {
            assert!(fault(bad).is_some(), "{bad}");
        }
    }
}
