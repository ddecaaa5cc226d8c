//! On which nodes a pod may run.
//!
//! Problem: a pod that is given to a node by its file was never looked at by a scheduler. Approach: the rules by which the scheduler
//! matches a node's labels and taints, as the kubelet uses them at admission (k8s.io/component-helpers/scheduling/corev1 and
//! k8s.io/api/core/v1/toleration.go, release 1.36).
//!
//! Properties: a pod without wishes matches every node; terms are alternatives, the requirements of one hold together; a term that asks
//! for nothing, or that is wrong, matches no node.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The one field of a node that can be asked for.
pub const NAME_FIELD: &str = "metadata.name";

/// What a pod asks of its node, by `spec`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Placement {
    /// `os.name`; "" for any.
    pub os: String,
    /// `nodeSelector`: labels that the node has to have.
    pub selector: BTreeMap<String, String>,
    /// `affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution`: one of these has to match.
    pub required: Option<Vec<Term>>,
    /// `tolerations`.
    pub tolerations: Vec<Toleration>,
}

impl Placement {
    /// It asks for nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a node of this name with these labels is one that the pod asks for.
    #[must_use]
    pub fn matches(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        self.selector.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.required.as_ref().is_none_or(|terms| terms.iter().any(|term| term.matches(name, labels)))
    }

    /// Whether it bears that taint.
    #[must_use]
    pub fn tolerates(&self, taint: &Taint) -> bool {
        self.tolerations.iter().any(|toleration| toleration.of(taint))
    }
}

/// Requirements that hold together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Term {
    /// `matchExpressions`, of labels.
    pub labels: Vec<Requirement>,
    /// `matchFields`, of [`NAME_FIELD`].
    pub fields: Vec<Requirement>,
}

impl Term {
    fn matches(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        let label = |key: &str| labels.get(key).map(String::as_str);
        let field = |key: &str| (key == NAME_FIELD).then_some(name);
        !(self.labels.is_empty() && self.fields.is_empty())
            && self.labels.iter().all(|one| one.holds(label(&one.key)))
            && self.fields.iter().all(|one| one.holds(field(&one.key)))
    }
}

/// One requirement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requirement {
    /// The label or field.
    pub key: String,
    /// What of it.
    pub operator: Operator,
    /// With what it is compared.
    pub values: Vec<String>,
}

/// How a label is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operator {
    /// It is one of the values.
    In,
    /// It is none of them, or is not there.
    NotIn,
    /// It is there.
    Exists,
    /// It is not.
    DoesNotExist,
    /// It is a number above the one value.
    Gt,
    /// It is a number below it.
    Lt,
}

impl Requirement {
    fn holds(&self, value: Option<&str>) -> bool {
        let listed = || value.is_some_and(|value| self.values.iter().any(|one| one == value));
        let numbers = || {
            let [limit] = &self.values[..] else { return None };
            Some((value?.parse::<i64>().ok()?, limit.parse::<i64>().ok()?))
        };
        match self.operator {
            Operator::In => listed(),
            Operator::NotIn => !listed(),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::Gt => numbers().is_some_and(|(value, limit)| value > limit),
            Operator::Lt => numbers().is_some_and(|(value, limit)| value < limit),
        }
    }
}

/// What a taint does to pods that do not tolerate it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Effect {
    /// They are not scheduled here.
    NoSchedule,
    /// They are scheduled elsewhere if they can be.
    PreferNoSchedule,
    /// They do not run here: the one effect that the kubelet looks at.
    NoExecute,
}

impl Effect {
    /// With the names of the API.
    pub const ALL: [(&str, Self); 3] = [
        ("NoSchedule", Self::NoSchedule),
        ("PreferNoSchedule", Self::PreferNoSchedule),
        ("NoExecute", Self::NoExecute),
    ];
}

/// A taint of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taint {
    /// `key`.
    pub key: String,
    /// `value`, "" for none.
    pub value: String,
    /// `effect`.
    pub effect: Effect,
}

/// What a pod bears.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Toleration {
    /// `key`; "" for every.
    pub key: String,
    /// `value`, which has to be the taint's (`operator: Equal`); `None` for any (`Exists`).
    pub value: Option<String>,
    /// `effect`; `None` for all.
    pub effect: Option<Effect>,
}

impl Toleration {
    fn of(&self, taint: &Taint) -> bool {
        self.effect.is_none_or(|effect| effect == taint.effect)
            && (self.key.is_empty() || self.key == taint.key)
            && self.value.as_ref().is_none_or(|value| *value == taint.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn one(key: &str, operator: Operator, values: &[&str]) -> Requirement {
        Requirement { key: key.to_owned(), operator, values: values.iter().map(|v| (*v).to_owned()).collect() }
    }

    #[test]
    fn a4_16d_requirements_compare_labels_as_the_scheduler_does() {
        use Operator::{DoesNotExist, Exists, Gt, In, Lt, NotIn};
        let node = labels(&[("zone", "a"), ("cpus", "8"), ("word", "x8")]);
        for (requirement, expected) in [
            (one("zone", In, &["b", "a"]), true),
            (one("zone", In, &["b"]), false),
            (one("none", In, &["a"]), false),
            (one("zone", NotIn, &["b"]), true),
            (one("zone", NotIn, &["a"]), false),
            (one("none", NotIn, &["a"]), true),
            (one("zone", Exists, &[]), true),
            (one("none", Exists, &[]), false),
            (one("zone", DoesNotExist, &[]), false),
            (one("none", DoesNotExist, &[]), true),
            (one("cpus", Gt, &["7"]), true),
            (one("cpus", Gt, &["8"]), false),
            (one("cpus", Lt, &["9"]), true),
            (one("cpus", Lt, &["8"]), false),
            (one("none", Lt, &["8"]), false),
            (one("word", Gt, &["1"]), false),
            (one("cpus", Gt, &["x"]), false),
            (one("cpus", Gt, &["1", "2"]), false),
        ] {
            let said = format!("{requirement:?}");
            let placement = Placement {
                required: Some(vec![Term { labels: vec![requirement], ..Term::default() }]),
                ..Placement::default()
            };
            assert_eq!(placement.matches("node", &node), expected, "{said}");
        }
    }

    #[test]
    fn a4_16d_terms_are_alternatives_and_the_selector_holds_beside_them() {
        let node = labels(&[("zone", "a")]);
        let of = |terms: Vec<Term>| Placement { required: Some(terms), ..Placement::default() };
        let right = || Term { labels: vec![one("zone", Operator::Exists, &[])], ..Term::default() };
        let wrong = || Term { labels: vec![one("none", Operator::Exists, &[])], ..right() };
        let named = |name: &str| Term { fields: vec![one(NAME_FIELD, Operator::In, &[name])], ..Term::default() };
        for (placement, expected) in [
            (Placement::default(), true),
            (of(vec![]), false),
            (of(vec![Term::default()]), false),
            (of(vec![wrong()]), false),
            (of(vec![wrong(), right()]), true),
            (of(vec![Term { labels: [right().labels, wrong().labels].concat(), ..Term::default() }]), false),
            (of(vec![named("node")]), true),
            (of(vec![named("other")]), false),
            (of(vec![Term { labels: wrong().labels, ..named("node") }]), false),
            (Placement { selector: labels(&[("zone", "a")]), ..of(vec![right()]) }, true),
            (Placement { selector: labels(&[("zone", "b")]), ..of(vec![right()]) }, false),
            (Placement { selector: labels(&[("zone", "a"), ("none", "")]), ..Placement::default() }, false),
        ] {
            assert_eq!(placement.matches("node", &node), expected, "{placement:?}");
        }
    }

    #[test]
    fn a4_16g_a_toleration_has_to_name_all_that_it_names() {
        let taint = Taint { key: "k".to_owned(), value: "v".to_owned(), effect: Effect::NoExecute };
        let by = |key: &str, value: Option<&str>, effect| Toleration {
            key: key.to_owned(),
            value: value.map(str::to_owned),
            effect,
        };
        for (toleration, expected) in [
            (by("k", Some("v"), None), true),
            (by("k", Some("w"), None), false),
            (by("k", None, None), true),
            (by("", None, None), true),
            (by("l", None, None), false),
            (by("k", None, Some(Effect::NoExecute)), true),
            (by("k", None, Some(Effect::NoSchedule)), false),
        ] {
            let said = format!("{toleration:?}");
            let placement = Placement { tolerations: vec![toleration], ..Placement::default() };
            assert_eq!(placement.tolerates(&taint), expected, "{said}");
        }
        assert!(!Placement::default().tolerates(&taint));
    }
}
