//! On which nodes the pod may run.
//!
//! The texts are those of pkg/apis/core/validation (release 1.36). What only a scheduler looks at (preferences, other pods) has no
//! meaning for a pod that is on its node already.

use std::collections::BTreeMap;

use beelet_core::spec::placement::{Effect, NAME_FIELD, Operator, Placement, Requirement, Term, Toleration};
use k8s_openapi::api::core::v1 as api;

use super::{invalid, one_of};
use crate::config::tree::Fault;
use crate::sources::names::{SUBDOMAIN, is_dns1123_subdomain, label_key_fault, label_value_fault};

const OPERATORS: [(&str, Operator); 6] = [
    ("In", Operator::In),
    ("NotIn", Operator::NotIn),
    ("Exists", Operator::Exists),
    ("DoesNotExist", Operator::DoesNotExist),
    ("Gt", Operator::Gt),
    ("Lt", Operator::Lt),
];

/// `os`, `nodeSelector`, the required part of `affinity.nodeAffinity`, and `tolerations`.
pub(super) fn placement(spec: &api::PodSpec) -> Result<Placement, Fault> {
    let os = spec.os.as_ref().map(|os| os.name.as_str());
    let selector = spec.node_selector.clone().unwrap_or_default();
    labels("spec.nodeSelector", &selector)?;
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let selected = affinity.and_then(|of| of.required_during_scheduling_ignored_during_execution.as_ref());
    Ok(Placement {
        os: one_of("spec.os.name", os, "", &[("linux", "linux"), ("windows", "windows")])?.to_owned(),
        selector,
        required: selected.map(terms).transpose()?,
        tolerations: tolerations(spec.tolerations.as_deref().unwrap_or_default())?,
    })
}

fn labels(path: &str, labels: &BTreeMap<String, String>) -> Result<(), Fault> {
    for (key, value) in labels {
        if let Some(why) = label_key_fault(key) {
            return Err(invalid(path, key, why));
        }
        if let Some(why) = label_value_fault(value) {
            return Err(invalid(path, value, why));
        }
    }
    Ok(())
}

fn terms(given: &api::NodeSelector) -> Result<Vec<Term>, Fault> {
    let path = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
    if given.node_selector_terms.is_empty() {
        return Err(Fault::new(path, "Required value: must have at least one node selector term"));
    }
    let all = |path: String, list: &Option<Vec<api::NodeSelectorRequirement>>, read: Read| {
        let list = list.iter().flatten().enumerate();
        list.map(|(i, one)| read(&format!("{path}[{i}]"), one)).collect::<Result<Vec<_>, _>>()
    };
    let term = |(i, term): (usize, &api::NodeSelectorTerm)| {
        Ok(Term {
            labels: all(format!("{path}[{i}].matchExpressions"), &term.match_expressions, of_label)?,
            fields: all(format!("{path}[{i}].matchFields"), &term.match_fields, of_field)?,
        })
    };
    given.node_selector_terms.iter().enumerate().map(term).collect()
}

type Read = fn(&str, &api::NodeSelectorRequirement) -> Result<Requirement, Fault>;

fn operator(path: &str, given: &api::NodeSelectorRequirement) -> Result<Operator, Fault> {
    let known = OPERATORS.iter().find(|(name, _)| *name == given.operator).map(|(_, operator)| *operator);
    known.ok_or_else(|| invalid(format!("{path}.operator"), &given.operator, "not a valid selector operator"))
}

fn of_label(path: &str, given: &api::NodeSelectorRequirement) -> Result<Requirement, Fault> {
    let values = given.values.clone().unwrap_or_default();
    let operator = operator(path, given)?;
    let why = match operator {
        Operator::In | Operator::NotIn if values.is_empty() => {
            Some("Required value: must be specified when `operator` is 'In' or 'NotIn'")
        }
        Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
            Some("Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'")
        }
        Operator::Gt | Operator::Lt if values.len() != 1 => {
            Some("Required value: must be specified single value when `operator` is 'Lt' or 'Gt'")
        }
        _ => None,
    };
    if let Some(why) = why {
        return Err(Fault::new(format!("{path}.values"), why));
    }
    if let Some(why) = label_key_fault(&given.key) {
        return Err(invalid(format!("{path}.key"), &given.key, why));
    }
    for (i, value) in values.iter().enumerate() {
        if let Some(why) = label_value_fault(value) {
            return Err(invalid(format!("{path}.values[{i}]"), value, why));
        }
    }
    Ok(Requirement { key: given.key.clone(), operator, values })
}

fn of_field(path: &str, given: &api::NodeSelectorRequirement) -> Result<Requirement, Fault> {
    let values = given.values.clone().unwrap_or_default();
    let operator = operator(path, given)?;
    if !matches!(operator, Operator::In | Operator::NotIn) {
        return Err(invalid(format!("{path}.operator"), &given.operator, "not a valid selector operator"));
    }
    if values.len() != 1 {
        let why = "Required value: must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
        return Err(Fault::new(format!("{path}.values"), why));
    }
    if given.key != NAME_FIELD {
        return Err(invalid(format!("{path}.key"), &given.key, "not a valid field selector key"));
    }
    if let Some(name) = values.iter().find(|name| !is_dns1123_subdomain(name)) {
        return Err(invalid(format!("{path}.values[0]"), name, SUBDOMAIN));
    }
    Ok(Requirement { key: given.key.clone(), operator, values })
}

fn tolerations(given: &[api::Toleration]) -> Result<Vec<Toleration>, Fault> {
    given.iter().enumerate().map(|(i, one)| toleration(&format!("spec.tolerations[{i}]"), one)).collect()
}

fn toleration(path: &str, given: &api::Toleration) -> Result<Toleration, Fault> {
    let text = |part: &Option<String>| part.clone().unwrap_or_default();
    let (key, value) = (text(&given.key), text(&given.value));
    let at = format!("{path}.operator");
    // Comparisons of numbers are behind a gate that is off.
    let any_value = one_of(&at, given.operator.as_deref(), false, &[("Equal", false), ("Exists", true)])?;
    if key.is_empty() && !any_value {
        let why = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
        return Err(invalid(at, given.operator.as_deref().unwrap_or_default(), why));
    }
    if let Some(why) = label_key_fault(&key).filter(|_| !key.is_empty()) {
        return Err(invalid(format!("{path}.key"), &key, why));
    }
    if any_value && !value.is_empty() {
        return Err(invalid(at, &value, "value must be empty when `operator` is 'Exists'"));
    }
    if let Some(why) = label_value_fault(&value) {
        return Err(invalid(at, &value, why));
    }
    let effects = Effect::ALL.map(|(name, effect)| (name, Some(effect)));
    let effect = one_of(&format!("{path}.effect"), given.effect.as_deref(), None, &effects)?;
    if given.toleration_seconds.is_some() && effect != Some(Effect::NoExecute) {
        let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
        return Err(invalid(format!("{path}.effect"), given.effect.as_deref().unwrap_or_default(), why));
    }
    Ok(Toleration { key, value: (!any_value).then_some(value), effect })
}
