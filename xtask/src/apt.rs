//! Debian packages, fetched and unpacked into the cache without being installed.
//!
//! Problem: a test node needs programs of several Debian releases side by side (containerd of sid, runc of bookworm,
//! QEMU of backports). Installing them would change the machine, start services and conflict with what is there.
//!
//! Approach: one private apt configuration per suite, in the cache: own source list, own package lists, own archive
//! folder, an empty package state. Where the mirror is and which keyring signs it is read from the machine's own apt
//! sources, so that a machine behind a mirror of its own keeps using it. Packages are named one by one (no dependency
//! resolution: the caller names the libraries it needs too) and unpacked with `dpkg-deb -x`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::ctx::{self, Ctx};

/// Package lists older than this are fetched again before a download.
const LISTS_MAX_AGE: Duration = Duration::from_secs(6 * 3600);

/// An archive as the machine's apt knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Archive {
    uri: String,
    signed_by: Option<String>,
    suites: Vec<String>,
}

/// Whether packages can be fetched and unpacked here: Debian, with apt and dpkg.
pub(crate) fn is_debian() -> bool {
    os_release("ID").is_some_and(|id| id == "debian")
        && ctx::which("apt-get").is_some()
        && ctx::which("dpkg-deb").is_some()
}

/// A field of /etc/os-release.
fn os_release(key: &str) -> Option<String> {
    let text = fs::read_to_string("/etc/os-release").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
    Some(line.trim_matches('"').to_owned())
}

/// Downloads the packages from that suite (and its security and update pockets) and unpacks them into `dest`.
pub(crate) fn unpack(ctx: &Ctx, suite: &str, packages: &[&str], dest: &Path) -> Result<()> {
    let files = download(ctx, suite, packages)?;
    fs::create_dir_all(dest)?;
    for file in files {
        ctx::quiet(Command::new("dpkg-deb").arg("-x").arg(&file).arg(dest))?;
    }
    Ok(())
}

/// Downloads the packages with everything that they depend on, down to libc, and unpacks all of it into `dest`.
///
/// What comes out runs by its own dynamic linker, or as the root of a container or VM, on any host.
pub(crate) fn unpack_with_dependencies(ctx: &Ctx, suite: &str, packages: &[&str], dest: &Path) -> Result<()> {
    let private = Private::open(ctx, suite)?;
    let _lock = ctx.lock(&format!("apt-{suite}"))?;
    private.refresh(LISTS_MAX_AGE)?;
    ctx::note(format!("fetching from {suite} with dependencies: {}", packages.join(" ")));
    let files = private.fetch_closure(packages).or_else(|first| {
        private.refresh(Duration::ZERO)?;
        private.fetch_closure(packages).with_context(|| format!("first attempt: {first:#}"))
    })?;
    fs::create_dir_all(dest)?;
    for file in files {
        ctx::quiet(Command::new("dpkg-deb").arg("-x").arg(&file).arg(dest))?;
    }
    Ok(())
}

/// Downloads the packages' newest versions of that suite; returns the .deb files in the same order.
pub(crate) fn download(ctx: &Ctx, suite: &str, packages: &[&str]) -> Result<Vec<PathBuf>> {
    let private = Private::open(ctx, suite)?;
    let _lock = ctx.lock(&format!("apt-{suite}"))?;
    private.refresh(LISTS_MAX_AGE)?;
    ctx::note(format!("fetching from {suite}: {}", packages.join(" ")));
    if let Err(first) = private.fetch(packages) {
        // The mirror may have moved on since the lists were read.
        private.refresh(Duration::ZERO)?;
        private.fetch(packages).with_context(|| format!("first attempt: {first:#}"))?;
    }
    packages.iter().map(|package| private.deb_of(package)).collect()
}

/// The names of the packages that `package` depends on directly, in that suite.
pub(crate) fn depends(ctx: &Ctx, suite: &str, package: &str) -> Result<Vec<String>> {
    let private = Private::open(ctx, suite)?;
    let _lock = ctx.lock(&format!("apt-{suite}"))?;
    private.refresh(LISTS_MAX_AGE)?;
    let text = ctx::output(private.apt("apt-cache").args(["depends", "--no-recommends", "--no-suggests", package]))?;
    Ok(text.lines().filter_map(|line| line.trim().strip_prefix("Depends:")).map(|d| d.trim().to_owned()).collect())
}

/// Installs the packages that are missing, on the machine itself. Only for what cannot run from the cache.
pub(crate) fn install_missing(packages: &[&str]) -> Result<()> {
    let missing: Vec<&str> = packages.iter().copied().filter(|package| !is_installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let step = ctx::step(format!("installing {}", missing.join(" ")));
    let install = |update: bool| -> Result<()> {
        if update {
            ctx::quiet(Command::new("apt-get").args(["update", "-qq"]))?;
        }
        ctx::quiet(
            Command::new("apt-get")
                .args(["install", "-y", "-qq", "--no-install-recommends"])
                .args(&missing)
                .env("DEBIAN_FRONTEND", "noninteractive"),
        )
    };
    install(false).or_else(|_| install(true)).context("apt-get install failed; install these packages by hand")?;
    step.done();
    Ok(())
}

fn is_installed(package: &str) -> bool {
    let asked = Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}", package]).output();
    asked.is_ok_and(|out| out.stdout == b"installed")
}

/// The archive lines of one suite, as deb822 stanzas that only this cache uses.
pub(crate) fn sources(suite: &str) -> Result<String> {
    let archives = machine_archives()?;
    let base = suite.strip_suffix("-backports").unwrap_or(suite);
    let main = archives
        .iter()
        .find(|a| a.suites.iter().any(|s| !s.contains("-security") && !s.contains("-backports")))
        .context("no Debian archive in /etc/apt: add one (`man sources.list`)")?;
    let security = archives.iter().find(|a| a.suites.iter().any(|s| s.ends_with("-security")));
    let mut text = stanza(
        main,
        &if base == suite && suite != "sid" {
            vec![suite.to_owned(), format!("{suite}-updates")]
        } else {
            vec![suite.to_owned()]
        },
    );
    if let Some(security) = security.filter(|_| base == suite && suite != "sid") {
        text += &stanza(security, &[format!("{suite}-security")]);
    }
    Ok(text)
}

fn stanza(archive: &Archive, suites: &[String]) -> String {
    let signed = archive.signed_by.as_ref().map_or_else(String::new, |key| format!("Signed-By: {key}\n"));
    format!("Types: deb\nURIs: {}\nSuites: {}\nComponents: main\n{signed}\n", archive.uri, suites.join(" "))
}

/// Debian's archives in the machine's apt configuration, both file formats.
fn machine_archives() -> Result<Vec<Archive>> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(dir) = fs::read_dir("/etc/apt/sources.list.d") {
        let mut more: Vec<PathBuf> = dir.flatten().map(|entry| entry.path()).collect();
        more.sort();
        files.extend(more);
    }
    let codename = os_release("VERSION_CODENAME").context("/etc/os-release has no VERSION_CODENAME")?;
    let mut archives = Vec::new();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        match file.extension().and_then(|e| e.to_str()) {
            Some("sources") => archives.extend(parse_deb822(&text)),
            Some("list") => archives.extend(text.lines().filter_map(parse_one_line)),
            _ => {}
        }
    }
    let ours = |suite: &String| suite.starts_with(&codename) || ["stable", "testing", "sid"].contains(&suite.as_str());
    archives.retain(|archive| archive.suites.iter().any(ours));
    Ok(archives)
}

fn parse_deb822(text: &str) -> Vec<Archive> {
    let uncommented: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let parse = |stanza: &[&str]| -> Option<Archive> {
        let field = |name: &str| {
            stanza.iter().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
            })
        };
        if !field("Types")?.split_whitespace().any(|t| t == "deb") || field("Enabled").is_some_and(|e| e == "no") {
            return None;
        }
        Some(Archive {
            uri: field("URIs")?.split_whitespace().next()?.to_owned(),
            signed_by: field("Signed-By").filter(|key| key.starts_with('/')),
            suites: field("Suites")?.split_whitespace().map(str::to_owned).collect(),
        })
    };
    uncommented.split(|line| line.trim().is_empty()).filter_map(parse).collect()
}

fn parse_one_line(line: &str) -> Option<Archive> {
    let rest = line.trim().strip_prefix("deb ")?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(inner) => inner.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace();
    Some(Archive {
        uri: words.next()?.to_owned(),
        signed_by: options.split_whitespace().find_map(|o| o.strip_prefix("signed-by=")).map(str::to_owned),
        suites: vec![words.next()?.to_owned()],
    })
}

/// The private apt configuration of one suite.
struct Private {
    dir: PathBuf,
}

impl Private {
    fn open(ctx: &Ctx, suite: &str) -> Result<Self> {
        if !is_debian() {
            bail!("packages of Debian {suite} are fetched on Debian only");
        }
        let dir = ctx.cache.join("apt").join(suite);
        for sub in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(dir.join(sub))?;
        }
        fs::write(dir.join("status"), "")?;
        fs::write(dir.join("debian.sources"), sources(suite)?)?;
        Ok(Self { dir })
    }

    /// `apt-get` or `apt-cache` that sees only this configuration.
    fn apt(&self, program: &str) -> Command {
        let dir = self.dir.display();
        let mut command = Command::new(program);
        command.current_dir(self.dir.join("archives"));
        for option in [
            format!("Dir::Etc::SourceList={dir}/debian.sources"),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            "Dir::Etc::Preferences=/dev/null".to_owned(),
            "Dir::Etc::PreferencesParts=/dev/null".to_owned(),
            format!("Dir::State={dir}"),
            format!("Dir::State::Lists={dir}/lists"),
            format!("Dir::State::Status={dir}/status"),
            format!("Dir::Cache={dir}"),
            format!("Dir::Cache::Archives={dir}/archives"),
            // The download user may not enter a folder under root's home.
            "APT::Sandbox::User=".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            "Acquire::Retries=3".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        command
    }

    fn refresh(&self, max_age: Duration) -> Result<()> {
        let stamp = self.dir.join("lists.stamp");
        let wanted = fs::read_to_string(self.dir.join("debian.sources"))?;
        let age = fs::metadata(&stamp).and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
        if age.is_some_and(|age| age < max_age) && fs::read_to_string(&stamp).is_ok_and(|had| had == wanted) {
            return Ok(());
        }
        ctx::quiet(self.apt("apt-get").args(["update", "-qq"])).context("cannot read the package lists")?;
        fs::write(&stamp, wanted)?;
        Ok(())
    }

    fn fetch(&self, packages: &[&str]) -> Result<()> {
        ctx::quiet(self.apt("apt-get").args(["download", "-qq"]).args(packages))
    }

    /// Downloads what an installation of these packages on an empty system would; returns the .deb files.
    fn fetch_closure(&self, packages: &[&str]) -> Result<Vec<PathBuf>> {
        let install = |flag: &str, archives: &Path| {
            let mut command = self.apt("apt-get");
            command.args(["install", "-y", "-qq", "--no-install-recommends", flag, "-o", "Debug::NoLocking=1", "-o"]);
            command.arg(format!("Dir::Cache::Archives={}", archives.display())).args(packages);
            command
        };
        let archives = self.dir.join("archives");
        // Lines of 'URI' FILE SIZE HASH. It leaves out what is downloaded already, so let it look at an empty folder.
        let listed = ctx::output(&mut install("--print-uris", &self.dir.join("lists/partial")))?;
        ctx::quiet(&mut install("--download-only", &archives))?;
        let file = |line: &str| Some(archives.join(line.strip_prefix('\'')?.split_whitespace().nth(1)?));
        let files: Vec<PathBuf> = listed.lines().filter_map(file).collect();
        match files.iter().find(|file| !file.is_file()) {
            None => Ok(files),
            Some(file) => bail!("apt-get should have downloaded {}", file.display()),
        }
    }

    /// The newest downloaded file of that package.
    fn deb_of(&self, package: &str) -> Result<PathBuf> {
        let shown = ctx::output(self.apt("apt-cache").args(["show", "--no-all-versions", package]))?;
        let field = |name: &str| {
            shown.lines().find_map(|line| line.strip_prefix(name)).map(|v| v.trim().to_owned()).context("no such field")
        };
        let (version, arch) = (field("Version:")?, field("Architecture:")?);
        let name = package.split(':').next().unwrap_or(package);
        let file = self.dir.join("archives").join(format!("{name}_{}_{arch}.deb", version.replace(':', "%3a")));
        if !file.is_file() {
            bail!("apt-get downloaded {package} {version}, but {} is not there", file.display());
        }
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_source_formats() {
        let text = "Types: deb\n# an old one\nURIs: http://m/debian\nSuites: bookworm bookworm-updates\nSigned-By: /k.gpg\n\n\
                    Types: deb-src\nURIs: http://m/src\nSuites: bookworm\n";
        let archives = parse_deb822(text);
        assert_eq!(archives.len(), 1);
        assert_eq!(archives[0].uri, "http://m/debian");
        assert_eq!(archives[0].signed_by.as_deref(), Some("/k.gpg"));
        let line = parse_one_line("deb [arch=amd64 signed-by=/k.gpg] http://m/debian trixie main").unwrap();
        assert_eq!(line.suites, ["trixie"]);
        assert_eq!(line.signed_by.as_deref(), Some("/k.gpg"));
        assert_eq!(parse_one_line("# deb http://m/debian trixie main"), None);
    }
}
