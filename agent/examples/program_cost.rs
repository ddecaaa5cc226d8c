//! What each eBPF program of an agent that runs costs for an event, beside an empty program at the same hook, in the same run.
//!
//!     cargo run --release -p beelet --example program_cost -- OBJECT PODS_ROOT [SECONDS]
//!
//! `PODS_ROOT` is the directory in the unified hierarchy below which the agent's pods are. Something must run there meanwhile.
//!
//! **Problem.** The kernel's statistics of a program contain the measuring itself, some 60 ns, more on some machines than the
//! program. **Approach.** At each hook of the agent's table an empty program is attached, too; both see the same events on the
//! same CPUs, and both are measured alike. What is left of the difference is the program's own work.
//!
//! **Properties.** Reads the kernel's statistics of all loaded programs, so the agent need not know of it. Several agents on one
//! machine are added up.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::programs::{BtfTracePoint, CgroupAttachMode, CgroupSkb, Program, loaded_programs};
use aya::sys::{Stats, enable_stats};
use aya::{Ebpf, EbpfLoader};
use beelet::kernel::programs::{Hook, Row, SIZED, TABLE};
use beelet_ebpf_common::program::{EMPTY_SKB, EMPTY_TP};

/// The kernel keeps this much of a program's name.
const NAME: usize = 15;

/// Time and events.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    ns: u128,
    events: u64,
}

impl Cost {
    fn since(self, before: Self) -> Self {
        Self { ns: self.ns.saturating_sub(before.ns), events: self.events.saturating_sub(before.events) }
    }

    /// Nanoseconds for one event; `None` without events.
    fn each(self) -> Option<f64> {
        (self.events > 0).then(|| self.ns as f64 / self.events as f64)
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (Some(object), Some(root)) = (arguments.first(), arguments.get(1)) else {
        eprintln!("usage: program_cost OBJECT PODS_ROOT [SECONDS]");
        return ExitCode::from(2);
    };
    let seconds = arguments.get(2).and_then(|n| n.parse().ok()).unwrap_or(10);
    match run(&PathBuf::from(object), Path::new(root), Duration::from_secs(seconds)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("program_cost: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(object: &Path, root: &Path, time: Duration) -> Result<()> {
    let mut empty = BTreeMap::new();
    for row in TABLE {
        match attach_empty(object, root, row) {
            Ok(Some(ebpf)) => drop(empty.insert(row.name, ebpf)),
            Ok(None) => {}
            Err(error) => println!("{}: no empty program beside it: {error:#}", row.name),
        }
    }
    ensure!(!empty.is_empty(), "no empty program could be attached");
    let _measuring = enable_stats(Stats::RunTime).context("the kernel measures no programs")?;
    let look = |empty: &BTreeMap<&'static str, (Ebpf, &'static str)>| -> Result<_> {
        let mut nothing = BTreeMap::new();
        for (name, (ebpf, what)) in empty {
            let info = ebpf.program(what).context("no such program")?.info()?;
            nothing.insert(*name, Cost { ns: info.run_time().as_nanos(), events: info.run_count() });
        }
        Ok((of_agents()?, nothing))
    };
    let before = look(&empty)?;
    std::thread::sleep(time);
    let after = look(&empty)?;
    println!("program           events/s  ns/event   empty  own work  times empty");
    for row in TABLE {
        let of = |all: &BTreeMap<&'static str, Cost>| all.get(row.name).copied().unwrap_or_default();
        let (cost, nothing) = (of(&after.0).since(of(&before.0)), of(&after.1).since(of(&before.1)));
        let rate = cost.events as f64 / time.as_secs_f64();
        match (cost.each(), nothing.each()) {
            (Some(cost), Some(nothing)) => println!(
                "{:<16} {rate:>9.0} {cost:>9.0} {nothing:>7.0} {:>9.0} {:>12.2}",
                row.name,
                cost - nothing,
                cost / nothing
            ),
            (Some(cost), None) => {
                println!("{:<16} {rate:>9.0} {cost:>9.0} {:>7} {:>9} {:>12}", row.name, "-", "-", "-");
            }
            (None, _) => println!("{:<16} {rate:>9.0} no event", row.name),
        }
    }
    Ok(())
}

/// What the programs of the table cost that others have loaded.
fn of_agents() -> Result<BTreeMap<&'static str, Cost>> {
    let mut all: BTreeMap<&'static str, Cost> = BTreeMap::new();
    // Programs come and go while they are listed.
    for info in loaded_programs().filter_map(Result::ok) {
        let row = TABLE.iter().find(|row| info.name_as_str() == Some(&row.name[..row.name.len().min(NAME)]));
        if let Some(row) = row {
            let cost = all.entry(row.name).or_default();
            cost.ns += info.run_time().as_nanos();
            cost.events += info.run_count();
        }
    }
    Ok(all)
}

/// An empty program at the hook of `row`, and its name; `None` where there is no hook (an iterator runs when it is read).
fn attach_empty(object: &Path, root: &Path, row: &Row) -> Result<Option<(Ebpf, &'static str)>> {
    let types = aya::Btf::from_sys_fs()?;
    let mut loader = EbpfLoader::new();
    loader.btf(Some(&types)).allow_unsupported_maps();
    for (map, _) in SIZED {
        loader.map_max_entries(map, 1);
    }
    let mut ebpf = loader.load_file(object)?;
    match row.hook {
        Hook::TracePoint(names) => {
            let program: &mut BtfTracePoint = of(&mut ebpf, EMPTY_TP)?.try_into()?;
            let loaded = names.iter().map(|name| program.load(name, &types)).find(Result::is_ok);
            ensure!(loaded.is_some(), "none of the tracepoints {names:?} is there");
            program.attach()?;
            Ok(Some((ebpf, EMPTY_TP)))
        }
        Hook::CgroupSkb(direction) => {
            let program: &mut CgroupSkb = of(&mut ebpf, EMPTY_SKB)?.try_into()?;
            program.load()?;
            program.attach(fs::File::open(root)?, direction, CgroupAttachMode::Single)?;
            Ok(Some((ebpf, EMPTY_SKB)))
        }
        Hook::Iterator(_) => Ok(None),
    }
}

fn of<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Program> {
    ebpf.program_mut(name).with_context(|| format!("the object has no program {name}"))
}
