//! `restartPolicy` and `restartPolicyRules` of a container (pkg/apis/core/validation, `validateContainerRestartPolicy`, release 1.36).

use beelet_core::restart::{ContainerRestart, RestartRule};
use beelet_core::spec::RestartPolicy;
use k8s_openapi::api::core::v1 as api;

use super::convert::{invalid, one_of, required};
use crate::config::tree::Fault;

/// The most exit codes of a rule, and the most rules.
const MOST_CODES: usize = 255;
const MOST_RULES: usize = 20;

/// Reads them; `None` where the pod's policy counts.
pub(super) fn restart(path: &str, given: &api::Container) -> Result<Option<ContainerRestart>, Fault> {
    let rules = given.restart_policy_rules.as_deref().unwrap_or_default();
    let Some(policy) = given.restart_policy.as_deref().filter(|policy| !policy.is_empty()) else {
        return match rules {
            [] => Ok(None),
            _ => Err(Fault::new(
                format!("{path}.restartPolicy"),
                "Required value: must specify restartPolicy when restart rules are used",
            )),
        };
    };
    let policy = one_of(
        &format!("{path}.restartPolicy"),
        Some(policy),
        RestartPolicy::Always,
        &[("Always", RestartPolicy::Always), ("OnFailure", RestartPolicy::OnFailure), ("Never", RestartPolicy::Never)],
    )?;
    if rules.len() > MOST_RULES {
        let count = rules.len().to_string();
        return Err(invalid(
            format!("{path}.restartPolicyRules"),
            &count,
            format!("must have at most {MOST_RULES} items"),
        ));
    }
    let rule = |(i, rule): (usize, &api::ContainerRestartRule)| one(&format!("{path}.restartPolicyRules[{i}]"), rule);
    let rules = rules.iter().enumerate().map(rule).collect::<Result<_, _>>()?;
    Ok(Some(ContainerRestart { policy, rules }))
}

fn one(path: &str, rule: &api::ContainerRestartRule) -> Result<RestartRule, Fault> {
    one_of(&format!("{path}.action"), Some(&rule.action), (), &[("Restart", ())])?;
    let codes = rule.exit_codes.as_ref().ok_or_else(|| required(format!("{path}.exitCodes")))?;
    let within =
        one_of(&format!("{path}.exitCodes.operator"), Some(&codes.operator), true, &[("In", true), ("NotIn", false)])?;
    let values = codes.values.clone().unwrap_or_default();
    if values.is_empty() || values.len() > MOST_CODES {
        let count = values.len().to_string();
        return Err(invalid(format!("{path}.exitCodes.values"), &count, format!("must have 1 to {MOST_CODES} items")));
    }
    Ok(RestartRule { within, codes: values })
}
