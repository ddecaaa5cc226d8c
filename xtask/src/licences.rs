//! The licences of everything that is linked in, against the list in deny.toml.
//!
//! Problem: a dependency with a licence that nobody agreed to must not slip in. cargo-deny does this and more, but building
//! it takes minutes on a fresh machine.
//!
//! Approach: `cargo deny check licenses` where cargo-deny is on PATH; else the part that matters here: each package's SPDX
//! expression, from `cargo metadata` of both workspaces, must be satisfied by the `allow` list of deny.toml.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::ctx::{self, Ctx};
use crate::ebpf;

/// Checks both workspaces; returns how it was done.
pub(crate) fn check(ctx: &Ctx) -> Result<String> {
    if ctx::which("cargo-deny").is_some() {
        ctx::run(
            Command::new("cargo").args(["deny", "--all-features", "check", "licenses", "bans"]).current_dir(&ctx.root),
        )?;
        return Ok("by cargo-deny".to_owned());
    }
    let text = fs::read_to_string(ctx.root.join("deny.toml")).context("there is no deny.toml")?;
    let allowed = strings_of(&text, "allow");
    ensure!(!allowed.is_empty(), "deny.toml has no `allow = [...]` under [licenses]");
    let mut count = 0;
    let mut bad = Vec::new();
    for folder in [ctx.root.clone(), ctx.root.join("agent-ebpf")] {
        for (name, licence) in packages(&folder)? {
            count += 1;
            let fine = licence.as_deref().is_some_and(|expression| satisfied(expression, &allowed));
            if !fine && !is_exception(&text, &name, licence.as_deref()) {
                bad.push(format!("{name}: {}", licence.as_deref().unwrap_or("no licence given")));
            }
        }
    }
    bad.sort();
    bad.dedup();
    if !bad.is_empty() {
        bail!("licences that deny.toml does not allow:\n  {}", bad.join("\n  "));
    }
    Ok(format!("{count} packages, by xtask's own check: cargo-deny is not installed"))
}

/// Name and licence expression of every package that is resolved for this kind of machine.
fn packages(folder: &Path) -> Result<Vec<(String, Option<String>)>> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    ebpf::scrub(&mut cargo);
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    cargo.current_dir(folder).args(["metadata", "--format-version", "1", "--locked", "--all-features"]);
    let text = ctx::output(cargo.args(["--filter-platform", &triple]))?;
    let metadata: Value = serde_json::from_str(&text).context("cargo metadata printed no JSON")?;
    let nodes = metadata["resolve"]["nodes"].as_array().context("cargo metadata resolved nothing")?;
    let used: Vec<&str> = nodes.iter().filter_map(|node| node["id"].as_str()).collect();
    let all = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    let named = all.iter().filter(|package| package["id"].as_str().is_some_and(|id| used.contains(&id)));
    let text = |value: &Value| value.as_str().map(str::to_owned);
    Ok(named.filter_map(|package| Some((text(&package["name"])?, text(&package["license"])))).collect())
}

/// The strings of `key = ["a", "b"]`, possibly over several lines.
fn strings_of(toml: &str, key: &str) -> Vec<String> {
    let without_comments: Vec<&str> = toml.lines().map(|line| line.split('#').next().unwrap_or_default()).collect();
    let text = without_comments.join("\n");
    let start = text.match_indices(key).find_map(|(at, _)| {
        let rest = text[at + key.len()..].trim_start();
        let begins_line = text[..at].ends_with('\n') || at == 0;
        begins_line.then(|| rest.strip_prefix('=')?.trim_start().strip_prefix('[')).flatten()
    });
    let list = start.and_then(|rest| rest.split(']').next()).unwrap_or_default();
    list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Whether an `exceptions` line of deny.toml names this package with this licence.
fn is_exception(toml: &str, name: &str, licence: Option<&str>) -> bool {
    let named = |line: &&str| line.contains(&format!("\"{name}\"")) && line.contains("allow");
    let lines = toml.lines().filter(|line| !line.trim_start().starts_with('#'));
    lines.filter(named).any(|line| {
        let list = line.split_once("allow").map(|(_, rest)| strings_of(&format!("allow{rest}"), "allow"));
        licence.is_some_and(|expression| satisfied(expression, &list.unwrap_or_default()))
    })
}

/// Whether an SPDX expression holds when only these licences are taken.
fn satisfied(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut parser = Parser { words: &words, allowed };
    let fine = parser.or();
    fine && parser.words.is_empty()
}

struct Parser<'a> {
    words: &'a [&'a str],
    allowed: &'a [String],
}

impl Parser<'_> {
    fn take(&mut self, word: &str) -> bool {
        let is = self.words.first().is_some_and(|first| *first == word);
        if is {
            self.words = &self.words[1..];
        }
        is
    }

    fn or(&mut self) -> bool {
        let mut fine = self.and();
        while self.take("OR") {
            fine |= self.and();
        }
        fine
    }

    fn and(&mut self) -> bool {
        let mut fine = self.one();
        while self.take("AND") {
            fine &= self.one();
        }
        fine
    }

    fn one(&mut self) -> bool {
        if self.take("(") {
            let fine = self.or();
            return self.take(")") && fine;
        }
        let Some((name, rest)) = self.words.split_first() else { return false };
        self.words = rest;
        let mut name = (*name).to_owned();
        if self.take("WITH")
            && let Some((exception, rest)) = self.words.split_first()
        {
            name = format!("{name} WITH {exception}");
            self.words = rest;
        }
        self.allowed.contains(&name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions() {
        let allowed = ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned);
        for good in ["MIT", "GPL-3.0 OR MIT", "MIT/Zlib", "(MIT OR X) AND Apache-2.0", "Apache-2.0 WITH LLVM-exception"]
        {
            assert!(satisfied(good, &allowed), "{good}");
        }
        for bad in ["", "GPL-3.0", "MIT AND GPL-3.0", "(MIT", "MIT MIT", "MIT WITH X"] {
            assert!(!satisfied(bad, &allowed), "{bad}");
        }
    }

    #[test]
    fn reads_the_list() {
        let toml = "[licenses]\nallow = [\n  \"MIT\", # a comment\n  \"Apache-2.0\",\n]\n\
                    exceptions = [\n  { allow = [\"MPL-2.0\"], crate = \"x\" },\n]\n";
        assert_eq!(strings_of(toml, "allow"), ["MIT", "Apache-2.0"]);
        assert!(is_exception(toml, "x", Some("MPL-2.0")));
        assert!(!is_exception(toml, "y", Some("MPL-2.0")));
    }
}
