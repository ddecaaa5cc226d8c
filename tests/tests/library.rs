//! beelet as a library: the example of the documentation, run for real.

use std::fs;
use std::path::Path;
use std::process::Command;

use e2e::{AgentOptions, NODE, SharedBed, configuration, secs, skip};

static BED: SharedBed = SharedBed::new("library");

#[test]
fn the_example_makes_a_pod_and_deletes_it() {
    const NAME: &str = "the_example_makes_a_pod_and_deletes_it";
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    if !workspace.join("agent/examples/pod.rs").exists() {
        return skip(NAME, "agent/examples/pod.rs is not there");
    }
    let Some(bed) = BED.get(NAME) else { return };
    // Named, it is built already.
    if std::env::var_os("BEELET_EXAMPLE_POD").is_none() {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let built = Command::new(cargo)
            .args(["build", "--quiet", "--locked", "-p", "beelet", "--example", "pod"])
            .current_dir(&workspace)
            .output()
            .expect("cargo");
        assert!(built.status.success(), "the example does not build:\n{}", String::from_utf8_lossy(&built.stderr));
    }
    let config = bed.run_dir.join("kubelet.yaml");
    fs::write(&config, configuration(&bed, &AgentOptions::default())).unwrap();
    let program = e2e::built("BEELET_EXAMPLE_POD", "debug/examples/pod");
    let mut command = bed.inside("agent", &program);
    command.arg(NODE).arg(&config).arg(&bed.root_dir);
    let said = bed.log_dir.join("example.log");
    let file = fs::File::create(&said).unwrap();
    let mut child = command.stdout(file.try_clone().unwrap()).stderr(file).spawn().expect("xtask");
    let read = || fs::read_to_string(&said).unwrap_or_default();
    let status = e2e::wait_for("the example to end", secs(150), || child.try_wait().ok().flatten(), read);
    let text = read();
    assert!(status.success(), "the example ended with {status}:\n{text}");
    for line in ["kubelet of node serves on", "created ", "running on 10.201.", "gone"] {
        assert!(text.contains(line), "`{line}` is not in:\n{text}");
    }
    e2e::wait_for(
        "nothing to be left",
        secs(30),
        || bed.leftovers().is_empty().then_some(()),
        || bed.leftovers().join("\n"),
    );
}
