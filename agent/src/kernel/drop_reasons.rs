//! Names of the reasons for which the kernel drops a packet.
//!
//! **Problem.** The programs tell a reason as a number, and each release numbers them anew.
//!
//! **Approach.** The kernel's own type information has the names (`enum skb_drop_reason`, 5.17 on); they are read once, at
//! the start.
//!
//! **Properties.** A number without a name has none here: a reason of a subsystem with names of its own (in its high half
//! the subsystem's number), or any on a kernel that has no reasons.

use super::btf::Btf;

/// What the kernel prepends to each name.
const PREFIX: &str = "SKB_DROP_REASON_";

/// Reasons by number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DropReasons(Vec<(u64, String)>);

impl DropReasons {
    /// Those of this kernel; none at all where it has no reasons.
    #[must_use]
    pub fn of(btf: &Btf) -> Self {
        let mut reasons: Vec<(u64, String)> = btf
            .enumeration("skb_drop_reason")
            .unwrap_or_default()
            .into_iter()
            .filter_map(|(name, value)| Some((u64::try_from(value).ok()?, name.strip_prefix(PREFIX)?.to_owned())))
            // Bounds of the list, not reasons.
            .filter(|(_, name)| name != "MAX" && !name.starts_with("SUBSYS"))
            .collect();
        reasons.sort_unstable();
        Self(reasons)
    }

    /// The kernel's name of a reason without its prefix, as in `SOCKET_RCVBUFF`.
    #[must_use]
    pub fn name(&self, reason: u64) -> Option<&str> {
        let index = self.0.binary_search_by_key(&reason, |(number, _)| *number).ok()?;
        Some(&self.0[index].1)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether this kernel has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::btf::tests::Maker;

    #[test]
    fn reasons_have_the_names_that_the_kernel_gives_them() {
        const ENUM: u32 = 6;
        let mut btf = Maker::default();
        let names = [
            "SKB_NOT_DROPPED_YET",
            "SKB_DROP_REASON_NO_SOCKET",
            "SKB_DROP_REASON_SOCKET_RCVBUFF",
            "SKB_DROP_REASON_MAX",
        ];
        let [yet, socket, buffer, end] = names.map(|name| btf.name(name));
        btf.add("skb_drop_reason", ENUM, 4, 4, &[yet, 0, buffer, 6, socket, 3, end, 7]);
        let reasons = DropReasons::of(&Btf::parse(btf.finish()).unwrap());
        assert_eq!(reasons.len(), 2);
        assert_eq!(
            [0, 3, 6, 7, 0x10003].map(|number| reasons.name(number)),
            [None, Some("NO_SOCKET"), Some("SOCKET_RCVBUFF"), None, None]
        );
    }

    #[test]
    fn a_kernel_without_reasons_has_no_names() {
        assert!(DropReasons::of(&Btf::parse(Maker::default().finish()).unwrap()).is_empty());
    }
}
