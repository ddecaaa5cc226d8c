//! `/metrics/cadvisor`: the picture by cAdvisor's names, for what was made for the stock kubelet.
//!
//! **Problem.** Dashboards sum over `container!=""` or `image!=""`, join on `id`, and take rates of counters by the timestamps in the
//! answer. One label that is missing on one row counts a pod twice.
//!
//! **Approach.** The picture is turned into rows first, each a cgroup with the kubelet's six labels; then each family asks each row
//! for its value, through one list of functions in the order of the table. A row that does not know a value has no sample.
//!
//! **Terms.** A *row* is a cgroup: the whole node (`id="/"`), a slice, a pod, a sandbox, a container. Only containers have `container`
//! set; containers and sandboxes have `name` and `image`.
//!
//! **Properties** (tested). Families, labels, types and which of them have timestamps are those of a recorded stock kubelet but for
//! the differences in [`super::dropin_table`]. Network is on the sandbox's row only, once per interface. No value is invented: what
//! is unknown is left out, never 0.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use beelet_core::sample::{CgroupReading, CpuReading, MemoryMore, MemoryReading, PressureReading};
use beelet_core::snapshot::{ContainerState, ContainerView, NodeView, PodView, Snapshot};
use beelet_core::telemetry::{CgroupDetail, FsUse, InterfaceReading};
use beelet_core::units::{Bytes, Micros, MilliCpu, Now};

use super::SelfReport;
use super::dropin_table::{CADVISOR, ROW};
use super::exposition::{Caps, Family, Format, LabelSets, RowId, Value, Writer, Written};
use super::machine::MachineFacts;

/// What `/metrics/cadvisor` serves.
#[derive(Clone, Debug)]
pub struct Cadvisor {
    machine: Arc<MachineFacts>,
    caps: Caps,
    /// Bytes of the last answer, so that the next one need not grow.
    size: Arc<AtomicUsize>,
}

impl Cadvisor {
    /// For this machine.
    #[must_use]
    pub fn new(machine: MachineFacts, caps: Caps) -> Self {
        Self { machine: Arc::new(machine), caps, size: Arc::default() }
    }

    /// The picture as text; `now` is when it was asked for.
    #[must_use]
    pub fn render(&self, picture: &Snapshot, agent: &SelfReport, now: Now, format: Format) -> (Vec<u8>, Written) {
        let mut sets = LabelSets::new(ROW, self.caps);
        let rows = rows(picture, agent);
        let rows: Vec<(RowId, &Row<'_>)> =
            rows.iter().filter_map(|row| sets.add(&row.labels()).map(|id| (id, row))).collect();
        let none = LabelSets::none();
        let mut writer = Writer::new(CADVISOR, format, self.size.load(Ordering::Relaxed) * 17 / 16);
        for source in SOURCES {
            let def = CADVISOR.iter().find(|def| def.name == source.name);
            match source.what {
                What::Node(fill) => {
                    let mut family = writer.family_of(def, &none);
                    fill(&mut family, &self.machine, picture);
                }
                What::Row(when, value) => {
                    let mut family = writer.family_of(def, &sets);
                    for (id, row) in &rows {
                        if let Some(value) = value(row) {
                            family.sample(*id, &[], value, when.of(row));
                        }
                    }
                }
                What::Many(when, fill) => {
                    let mut family = writer.family_of(def, &sets);
                    for (id, row) in &rows {
                        fill(row, &mut |extra, value| family.sample(*id, extra, value, when.of(row)));
                    }
                }
                What::Seen => {
                    let mut family = writer.family_of(def, &sets);
                    for (id, _) in rows.iter().filter(|(_, row)| row.is_live()) {
                        family.sample(*id, &[], now.wall.get() / 1_000_000, Some(now.wall));
                    }
                }
            }
        }
        let (out, written) = writer.finish();
        self.size.store(out.len(), Ordering::Relaxed);
        (out, written)
    }
}

/// What is known of a cgroup.
#[derive(Default)]
struct Row<'a> {
    container: &'a str,
    id: String,
    image: &'a str,
    name: &'a str,
    namespace: &'a str,
    pod: &'a str,
    /// When it was read (wall clock); `None` of a container that does not run.
    at: Option<Micros>,
    /// When its CPU time was read, if not with the rest.
    cpu_at: Option<Micros>,
    cpu: Option<CpuReading>,
    memory: Memory<'a>,
    pressure: Option<PressureReading>,
    threads: Option<u64>,
    detail: Option<&'a CgroupDetail>,
    detail_at: Option<Micros>,
    start: Option<Micros>,
    shares: Option<u64>,
    quota: Option<Micros>,
    period: Option<Micros>,
    oom_kills: Option<u64>,
    interfaces: &'a [InterfaceReading],
    interfaces_at: Option<Micros>,
    filesystems: &'a [(String, FsUse)],
}

/// What is known of its memory.
#[derive(Default)]
struct Memory<'a> {
    usage: Option<Bytes>,
    working_set: Option<Bytes>,
    rss: Option<Bytes>,
    cache: Option<Bytes>,
    active_file: Option<Bytes>,
    inactive_file: Option<Bytes>,
    /// 0 for none.
    limit: Option<Bytes>,
    swap: Option<Bytes>,
    /// Page faults, and major ones.
    faults: Option<(u64, u64)>,
    more: Option<&'a MemoryMore>,
}

impl<'a> Memory<'a> {
    fn of(reading: &'a MemoryReading) -> Self {
        let more = &reading.more;
        Self {
            usage: Some(reading.usage),
            working_set: Some(reading.working_set()),
            rss: Some(reading.anon),
            cache: more.file.or(Some(reading.inactive_file + reading.active_file + reading.shmem)),
            active_file: Some(reading.active_file),
            inactive_file: Some(reading.inactive_file),
            limit: Some(reading.limit.unwrap_or(Bytes::ZERO)),
            swap: more.swap,
            faults: more.page_faults.zip(more.major_faults),
            more: Some(more),
        }
    }
}

impl<'a> Row<'a> {
    fn labels(&self) -> [&str; 6] {
        [self.container, &self.id, self.image, self.name, self.namespace, self.pod]
    }

    fn is_live(&self) -> bool {
        self.at.is_some()
    }

    /// With what was read of its cgroup.
    fn with(mut self, reading: Option<&'a CgroupReading>, detail: Option<&'a CgroupDetail>, now: Now) -> Self {
        if let Some(reading) = reading {
            self.at = Some(moment(reading.at, now));
            self.cpu = reading.cpu;
            self.memory = reading.memory.as_ref().map(Memory::of).unwrap_or_default();
            self.pressure = reading.pressure;
            self.threads = reading.pids;
        }
        if let Some(detail) = detail {
            self.detail = Some(detail);
            self.detail_at = Some(moment(detail.at, now));
            if let Some(limits) = &detail.limits {
                self.start = limits.made.or(self.start);
                self.shares = limits.cpu_shares;
                self.quota = limits.cpu_quota;
                self.period = limits.cpu_period;
            }
        }
        self
    }
}

/// A moment of the monotonic clock on the other one. A reading that does not say when it was made is as old as the picture.
pub(super) fn moment(at: Micros, now: Now) -> Micros {
    if at == Micros::ZERO { now.wall } else { now.wall_of(at) }
}

/// All rows, in the order of their labels.
fn rows<'a>(picture: &'a Snapshot, agent: &'a SelfReport) -> Vec<Row<'a>> {
    let mut rows: Vec<Row<'_>> = root(picture).into_iter().collect();
    slices(&mut rows, &picture.node, agent, picture.at);
    for pod in &picture.pods {
        of_pod(&mut rows, pod, agent, picture.at);
    }
    rows.sort_by(|a, b| a.labels().cmp(&b.labels()));
    rows
}

fn root(picture: &Snapshot) -> Option<Row<'_>> {
    let (node, now) = (&picture.node, picture.at);
    let reading = node.reading?;
    let detail = node.detail.as_deref();
    let usage = detail.and_then(|d| d.memory_usage);
    Some(Row {
        id: "/".to_owned(),
        at: Some(detail.map_or(now.wall, |d| moment(d.at, now))),
        cpu_at: Some(node.cpu_at().map_or(now.wall, |at| moment(at, now))),
        cpu: Some(CpuReading {
            usage: Some(reading.cpu_busy),
            user: detail.and_then(|d| d.cpu).map(|(user, _)| user),
            system: detail.and_then(|d| d.cpu).map(|(_, system)| system),
            ..CpuReading::default()
        }),
        memory: Memory {
            usage,
            working_set: node.memory_working_set(),
            rss: detail.and_then(|d| d.memory_rss),
            limit: Some(node.capacity.memory),
            swap: detail.and_then(|d| d.swap).map(|(used, _)| used),
            faults: detail.and_then(|d| d.page_faults),
            ..Memory::default()
        },
        pressure: detail.and_then(|d| d.pressure),
        start: detail.map(|d| d.booted).filter(|at| *at > Micros::ZERO),
        interfaces: detail.map_or(&[], |d| &d.interfaces),
        interfaces_at: detail.map(|d| moment(d.at, now)),
        filesystems: detail.map_or(&[], |d| &d.filesystems),
        detail_at: detail.map(|d| moment(d.at, now)),
        ..Row::default()
    })
}

fn slices<'a>(rows: &mut Vec<Row<'a>>, node: &'a NodeView, agent: &SelfReport, now: Now) {
    let slices = node.detail.as_deref().map_or(&[][..], |d| &d.slices);
    let pods = if agent.kubepods.is_empty() { "kubepods" } else { &agent.kubepods };
    let mut detail = None;
    for slice in slices {
        if slice.path == pods && node.kubepods.is_some() {
            // Read at each look; the details come with the slices.
            detail = slice.detail.as_deref();
            continue;
        }
        let row = Row { id: absolute(&slice.path), ..Row::default() };
        rows.push(row.with(Some(&slice.reading), slice.detail.as_deref(), now));
    }
    if let Some(reading) = &node.kubepods {
        rows.push(Row { id: absolute(pods), ..Row::default() }.with(Some(reading), detail, now));
    }
}

fn absolute(path: &str) -> String {
    format!("/{}", path.trim_start_matches('/'))
}

/// The path of a container's cgroup below its pod's: by the runtime's systemd driver, or as it is.
fn below(pod: &str, id: &str) -> String {
    if pod.ends_with(".slice") { format!("{pod}/cri-containerd-{id}.scope") } else { format!("{pod}/{id}") }
}

fn of_pod<'a>(rows: &mut Vec<Row<'a>>, view: &'a PodView, agent: &'a SelfReport, now: Now) {
    let (namespace, pod) = (view.spec.namespace.as_str(), view.spec.name.as_str());
    let id = absolute(&view.cgroup);
    if view.reading.is_some() && !view.cgroup.is_empty() {
        let row = Row { id: id.clone(), namespace, pod, start: Some(view.since), ..Row::default() };
        rows.push(row.with(view.reading.as_ref(), view.cgroup_detail.as_deref(), now));
    }
    let running = view.containers.iter().any(is_running);
    if !view.sandbox_id.is_empty() && (view.sandbox.is_some() || running) {
        let row = Row {
            id: below(&id, &view.sandbox_id),
            image: &agent.sandbox_image,
            name: &view.sandbox_id,
            namespace,
            pod,
            start: view.sandbox_created,
            ..Row::default()
        };
        let mut row = row.with(view.sandbox.as_ref(), None, now);
        if let Some(detail) = view.detail.as_deref() {
            row.interfaces = &detail.interfaces;
            row.interfaces_at = Some(moment(detail.at, now));
        }
        rows.push(row);
    }
    for container in view.containers.iter().filter(|c| !c.id.is_empty()) {
        let row = Row {
            container: &container.name,
            id: below(&id, &container.id),
            image: &container.image,
            name: &container.id,
            namespace,
            pod,
            oom_kills: Some(container.oom_kills),
            ..Row::default()
        };
        if let ContainerState::Running { started } = container.state {
            // Of a foreign pod the spec is what could be found out, which is not enough.
            let wanted = if view.foreign { None } else { resources(view, container) };
            let row = Row { start: Some(started), ..row };
            let row = match wanted {
                Some((shares, quota)) => Row { shares: Some(shares), quota, period: Some(Micros::millis(100)), ..row },
                None => row,
            };
            rows.push(row.with(container.reading.as_ref(), container.detail.as_deref(), now));
        } else if container.oom_kills > 0 {
            // The rest went with the cgroup.
            rows.push(row);
        }
    }
}

pub(super) fn is_running(container: &ContainerView) -> bool {
    matches!(container.state, ContainerState::Running { .. })
}

/// CPU shares and quota by the spec, as the kubelet turns them into the cgroup's knobs (pkg/kubelet/cm/helpers_linux.go, release
/// 1.36): 1024 shares a core and at least 2; 100 ms of each 100 ms for a core and at least 1 ms.
fn resources(view: &PodView, container: &ContainerView) -> Option<(u64, Option<Micros>)> {
    let mut specs = view.spec.init_containers.iter().chain(&view.spec.containers);
    let wanted = &specs.find(|spec| spec.name == container.name)?.resources;
    let request = wanted.cpu_request.or(wanted.cpu_limit).unwrap_or(MilliCpu::ZERO);
    let quota = wanted.cpu_limit.filter(|limit| *limit > MilliCpu::ZERO);
    Some(((request.get() * 1024 / 1000).max(2), quota.map(|limit| Micros((limit.get() * 100).max(1_000)))))
}

/// At what time a value was read.
#[derive(Clone, Copy)]
enum When {
    /// With the cgroup's files.
    Reading,
    /// As CPU time was.
    Cpu,
    /// With the details.
    Detail,
    /// With the interfaces.
    Interfaces,
    /// The family has no timestamps.
    Never,
}

impl When {
    fn of(self, row: &Row<'_>) -> Option<Micros> {
        match self {
            Self::Reading => row.at,
            Self::Cpu => row.cpu_at.or(row.at),
            Self::Detail => row.detail_at,
            Self::Interfaces => row.interfaces_at,
            Self::Never => None,
        }
    }
}

type Put<'p> = &'p mut dyn FnMut(&[&str], Value);

/// Where a family's values come from.
#[derive(Clone, Copy)]
enum What {
    /// One per row.
    Row(When, fn(&Row<'_>) -> Option<Value>),
    /// Several per row, with the family's extra labels.
    Many(When, fn(&Row<'_>, Put<'_>)),
    /// Not of rows.
    Node(fn(&mut Family<'_>, &MachineFacts, &Snapshot)),
    /// The time of the request.
    Seen,
}

struct Source {
    name: &'static str,
    what: What,
}

const fn row(name: &'static str, when: When, value: fn(&Row<'_>) -> Option<Value>) -> Source {
    Source { name, what: What::Row(when, value) }
}

const fn many(name: &'static str, when: When, fill: fn(&Row<'_>, Put<'_>)) -> Source {
    Source { name, what: What::Many(when, fill) }
}

const fn node(name: &'static str, fill: fn(&mut Family<'_>, &MachineFacts, &Snapshot)) -> Source {
    Source { name, what: What::Node(fill) }
}

use When::{Cpu, Detail, Interfaces, Never, Reading};

/// One per family of [`CADVISOR`], in its order.
#[rustfmt::skip]
static SOURCES: &[Source] = &[
    node("cadvisor_version_info", |f, m, _| f.sample(RowId::ONLY, &["", "", "", &m.kernel, &m.os], 1_u64, None)),
    many("container_blkio_device_usage_total", Detail, |r, put| {
        for io in r.detail.iter().flat_map(|d| &d.io) {
            let (major, minor) = (io.device.major.to_string(), io.device.minor.to_string());
            put(&[&io.device.name, &major, &minor, "Read"], io.read_bytes.into());
            put(&[&io.device.name, &major, &minor, "Write"], io.write_bytes.into());
        }
    }),
    row("container_cpu_cfs_burst_periods_total", Reading, |r| limited(r)?.bursts.map(Value::from)),
    row("container_cpu_cfs_burst_seconds_total", Reading, |r| limited(r)?.burst.map(Value::from)),
    row("container_cpu_cfs_periods_total", Reading, |r| limited(r)?.periods.map(Value::from)),
    row("container_cpu_cfs_throttled_periods_total", Reading, |r| limited(r)?.throttled_periods.map(Value::from)),
    row("container_cpu_cfs_throttled_seconds_total", Reading, |r| limited(r)?.throttled.map(Value::from)),
    row("container_cpu_system_seconds_total", Reading, |r| r.cpu?.system.map(Value::from)),
    many("container_cpu_usage_seconds_total", Cpu, |r, put| {
        if let Some(usage) = r.cpu.and_then(|c| c.best()).filter(|usage| *usage > Micros::ZERO) {
            put(&["total"], usage.into());
        }
    }),
    row("container_cpu_user_seconds_total", Reading, |r| r.cpu?.user.map(Value::from)),
    row("container_file_descriptors", Detail, |r| r.detail?.open_files.map(Value::from)),
    many("container_fs_inodes_free", Detail, |r, put| each_fs(r, put, |fs| fs.inodes_free.map(Value::from))),
    many("container_fs_inodes_total", Detail, |r, put| each_fs(r, put, |fs| fs.inodes.map(Value::from))),
    many("container_fs_limit_bytes", Detail, |r, put| each_fs(r, put, |fs| fs.capacity.map(Value::from))),
    many("container_fs_reads_bytes_total", Detail, |r, put| each_device(r, put, |io| io.read_bytes)),
    many("container_fs_reads_total", Detail, |r, put| each_device(r, put, |io| io.reads)),
    many("container_fs_usage_bytes", Detail, |r, put| each_fs(r, put, |fs| Some(fs.used.into()))),
    many("container_fs_writes_bytes_total", Detail, |r, put| each_device(r, put, |io| io.write_bytes)),
    many("container_fs_writes_total", Detail, |r, put| each_device(r, put, |io| io.writes)),
    Source { name: "container_last_seen", what: What::Seen },
    row("container_memory_cache", Reading, |r| r.memory.cache.map(Value::from)),
    row("container_memory_failcnt", Reading, |r| r.memory.more?.max_events.map(Value::from)),
    many("container_memory_failures_total", Reading, |r, put| {
        if let Some((faults, major)) = r.memory.faults {
            for (kind, count) in [("pgfault", faults), ("pgmajfault", major)] {
                put(&[kind, "container"], count.into());
                put(&[kind, "hierarchy"], count.into());
            }
        }
    }),
    row("container_memory_kernel_usage", Reading, |r| r.memory.more?.kernel.map(Value::from)),
    row("container_memory_mapped_file", Reading, |r| r.memory.more?.mapped_file.map(Value::from)),
    row("container_memory_max_usage_bytes", Reading, |r| r.memory.more?.peak.map(Value::from)),
    row("container_memory_rss", Reading, |r| r.memory.rss.map(Value::from)),
    row("container_memory_swap", Reading, |r| r.memory.swap.map(Value::from)),
    row("container_memory_total_active_file_bytes", Reading, |r| r.memory.active_file.map(Value::from)),
    row("container_memory_total_inactive_file_bytes", Reading, |r| r.memory.inactive_file.map(Value::from)),
    row("container_memory_usage_bytes", Reading, |r| r.memory.usage.map(Value::from)),
    row("container_memory_working_set_bytes", Reading, |r| r.memory.working_set.map(Value::from)),
    many("container_network_receive_bytes_total", Interfaces, |r, put| each_interface(r, put, |i| i.traffic.rx_bytes)),
    many("container_network_receive_errors_total", Interfaces, |r, put| each_interface(r, put, |i| i.rx_errors)),
    many("container_network_receive_packets_dropped_total", Interfaces, |r, put| each_interface(r, put, |i| i.rx_dropped)),
    many("container_network_receive_packets_total", Interfaces, |r, put| each_interface(r, put, |i| i.traffic.rx_packets)),
    many("container_network_transmit_bytes_total", Interfaces, |r, put| each_interface(r, put, |i| i.traffic.tx_bytes)),
    many("container_network_transmit_errors_total", Interfaces, |r, put| each_interface(r, put, |i| i.tx_errors)),
    many("container_network_transmit_packets_dropped_total", Interfaces, |r, put| each_interface(r, put, |i| i.tx_dropped)),
    many("container_network_transmit_packets_total", Interfaces, |r, put| each_interface(r, put, |i| i.traffic.tx_packets)),
    row("container_oom_events_total", Reading, |r| r.oom_kills.map(Value::from)),
    row("container_pressure_cpu_stalled_seconds_total", Reading, |r| Some(r.pressure?.cpu.full.total.into())),
    row("container_pressure_cpu_waiting_seconds_total", Reading, |r| Some(r.pressure?.cpu.some.total.into())),
    row("container_pressure_io_stalled_seconds_total", Reading, |r| Some(r.pressure?.io.full.total.into())),
    row("container_pressure_io_waiting_seconds_total", Reading, |r| Some(r.pressure?.io.some.total.into())),
    row("container_pressure_memory_stalled_seconds_total", Reading, |r| Some(r.pressure?.memory.full.total.into())),
    row("container_pressure_memory_waiting_seconds_total", Reading, |r| Some(r.pressure?.memory.some.total.into())),
    row("container_processes", Detail, |r| Some(r.detail?.tasks?.processes.into())),
    node("container_scrape_error", |f, _, p| f.sample(RowId::ONLY, &[], u64::from(is_blind(p)), None)),
    row("container_sockets", Detail, |r| r.detail?.sockets.map(Value::from)),
    row("container_spec_cpu_period", Never, |r| Some(r.period?.get().into())),
    row("container_spec_cpu_quota", Never, |r| Some(r.quota?.get().into())),
    row("container_spec_cpu_shares", Never, |r| r.shares.map(Value::from)),
    row("container_spec_memory_limit_bytes", Never, |r| r.memory.limit.map(Value::from)),
    row("container_spec_memory_reservation_limit_bytes", Never, |r| {
        r.detail?.limits?.memory_reservation.map(|bytes| unlimited_as_zero(bytes.get()))
    }),
    row("container_spec_memory_swap_limit_bytes", Never, |r| {
        // Without swap accounting nothing is known of its limit.
        r.memory.swap.and(r.memory.more).map(|more| more.swap_limit.map_or(Value::Count(0), Value::from))
    }),
    row("container_start_time_seconds", Never, |r| Some((r.start?.get() / 1_000_000).into())),
    row("container_threads", Reading, |r| r.threads.map(Value::from)),
    row("container_threads_max", Detail, |r| r.detail?.limits?.pids_max.map(unlimited_as_zero)),
    many("container_ulimits_soft", Detail, |r, put| {
        if let Some(limit) = r.detail.and_then(|d| d.open_files_limit) {
            put(&["max_open_files"], if limit == u64::MAX { Value::Float(-1.0) } else { limit.into() });
        }
    }),
    node("machine_cpu_cores", |f, m, p| machine(f, m, Some((p.node.capacity.cpu.get() / 1_000).into()))),
    node("machine_cpu_physical_cores", |f, m, _| machine(f, m, m.physical_cores.map(Value::from))),
    node("machine_cpu_sockets", |f, m, _| machine(f, m, m.sockets.map(Value::from))),
    node("machine_memory_bytes", |f, m, p| machine(f, m, Some(p.node.capacity.memory.into()))),
    node("machine_scrape_error", |f, _, _| f.sample(RowId::ONLY, &[], 0_u64, None)),
    node("machine_swap_bytes", |f, m, p| {
        let swap = p.node.detail.as_deref().and_then(|d| d.swap);
        machine(f, m, swap.map(|(used, free)| (used + free).into()));
    }),
];

/// CPU of a row with a quota; a cgroup without one counts no periods, and the kubelet then has no rows.
fn limited(row: &Row<'_>) -> Option<CpuReading> {
    let cpu = row.cpu?;
    let ran_under_one = cpu.periods.is_some_and(|periods| periods > 0);
    (row.quota.is_some() || ran_under_one).then_some(cpu)
}

/// Nothing of the node or of its pods could be read.
pub(super) fn is_blind(picture: &Snapshot) -> bool {
    picture.node.reading.is_none()
}

fn machine(family: &mut Family<'_>, machine: &MachineFacts, value: Option<Value>) {
    if let Some(value) = value {
        family.sample(RowId::ONLY, &[&machine.boot_id, &machine.machine_id, &machine.system_uuid], value, None);
    }
}

/// The kubelet takes all above 2^62 for no limit, and shows no limit as 0.
fn unlimited_as_zero(limit: u64) -> Value {
    Value::Count(if limit > 1 << 62 { 0 } else { limit })
}

fn each_fs(row: &Row<'_>, put: Put<'_>, value: impl Fn(&FsUse) -> Option<Value>) {
    for (device, fs) in row.filesystems {
        if let Some(value) = value(fs) {
            put(&[device], value);
        }
    }
}

fn each_device(row: &Row<'_>, put: Put<'_>, value: impl Fn(&beelet_core::telemetry::DeviceIo) -> u64) {
    // Two devices without a name would be one series.
    for io in row.detail.iter().flat_map(|d| &d.io).filter(|io| !io.device.name.is_empty()) {
        put(&[&io.device.name], value(io).into());
    }
}

/// Devices that the kubelet does not show: loopback, and the node's ends of the pods' devices.
const HIDDEN: [&str; 4] = ["lo", "veth", "docker", "nerdctl"];

/// The devices that the kubelet shows.
pub(super) fn shown(interfaces: &[InterfaceReading]) -> impl Iterator<Item = &InterfaceReading> {
    interfaces.iter().filter(|interface| !HIDDEN.iter().any(|hidden| interface.name.starts_with(hidden)))
}

fn each_interface(row: &Row<'_>, put: Put<'_>, value: impl Fn(&InterfaceReading) -> u64) {
    for interface in shown(row.interfaces) {
        put(&[&interface.name], value(interface).into());
    }
}

#[cfg(test)]
pub(crate) mod tests;
