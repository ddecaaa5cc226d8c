//! How images are pulled: `serializeImagePulls` and its like.

use beelet_core::pulls::Policy;

use super::tree::Fault;

/// What the file says; `None` for nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Written {
    pub(super) serialize: Option<bool>,
    pub(super) parallel: Option<i32>,
    pub(super) per_second: Option<i32>,
    pub(super) burst: i32,
}

/// Defaults and checks are the kubelet's (kubelet's config/v1beta1/defaults.go, pkg/kubelet/apis/config/validation, release 1.36).
pub(super) fn read(written: Written) -> Result<Policy, Fault> {
    let default = Policy::default();
    let parallel = match written.parallel.map(usize::try_from) {
        None => None,
        Some(Ok(parallel)) if parallel > 0 => Some(parallel),
        Some(_) => return Err(Fault::new("maxParallelImagePulls", "must be a positive number")),
    };
    // Whoever asks for several at a time does not want them one by one.
    let serialize = written.serialize.unwrap_or(parallel.is_none_or(|parallel| parallel < 2));
    if serialize && parallel.is_some_and(|parallel| parallel > 1) {
        let problem = "cannot be larger than 1 unless serializeImagePulls is set to false";
        return Err(Fault::new("maxParallelImagePulls", problem));
    }
    let number = |field: &str, value: i32| {
        u32::try_from(value).map_err(|_| Fault::new(field, format!("{value} must not be a negative number")))
    };
    let per_second = match written.per_second {
        None => default.per_second,
        Some(value) => Some(number("registryPullQPS", value)?).filter(|value| *value > 0),
    };
    let burst = if written.burst == 0 { default.burst } else { number("registryBurst", written.burst)? };
    Ok(Policy { parallel: if serialize { Some(1) } else { parallel }, per_second, burst })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a6_2_how_images_are_pulled_is_read_as_the_kubelet_does() {
        let none = Written::default();
        let of = |parallel, per_second, burst| Ok(Policy { parallel, per_second, burst });
        for (written, expected) in [
            (none, Ok(Policy::default())),
            (Written { serialize: Some(false), ..none }, of(None, Some(5), 10)),
            (Written { serialize: Some(false), parallel: Some(3), ..none }, of(Some(3), Some(5), 10)),
            (Written { parallel: Some(3), ..none }, of(Some(3), Some(5), 10)),
            (Written { parallel: Some(1), ..none }, of(Some(1), Some(5), 10)),
            (Written { serialize: Some(true), parallel: Some(2), ..none }, Err("maxParallelImagePulls")),
            (Written { parallel: Some(0), ..none }, Err("maxParallelImagePulls")),
            (Written { per_second: Some(0), ..none }, of(Some(1), None, 10)),
            (Written { per_second: Some(2), burst: 3, ..none }, of(Some(1), Some(2), 3)),
            (Written { per_second: Some(-1), ..none }, Err("registryPullQPS")),
            (Written { burst: -1, ..none }, Err("registryBurst")),
        ] {
            assert_eq!(read(written).map_err(|fault| fault.path), expected.map_err(str::to_owned), "{written:?}");
        }
    }
}
