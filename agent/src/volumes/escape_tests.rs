//! The published attacks on paths in volumes, with real files, links, mounts and racing threads. Those that mount need root and
//! say by name when they cannot run.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use beelet_core::spec::{Mount, Propagation};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount};
use tempfile::TempDir;

use super::tests::pod;
use super::*;

/// A folder with an agent's root, something outside of it that nobody may reach, and no mount left when it goes.
struct Bed {
    dir: TempDir,
    files: Volumes,
}

impl Bed {
    /// `None` where nothing can be mounted: then the test says so.
    fn new(test: &str) -> Option<Self> {
        let dir = TempDir::new().unwrap();
        let probe = dir.path().join("probe");
        fs::create_dir(&probe).unwrap();
        if let Err(error) = tmpfs(&probe) {
            println!("SKIPPED {test}: nothing can be mounted here: {error}");
            return None;
        }
        unmount(&probe, UnmountFlags::empty()).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        fs::write(dir.path().join("outside/precious"), "outside").unwrap();
        let files = tests::volumes(&dir);
        Some(Self { dir, files })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Nothing came to be outside, and what was there is as it was.
    fn assert_outside_untouched(&self) {
        let names: Vec<_> = fs::read_dir(self.at("outside")).unwrap().flatten().map(|e| e.file_name()).collect();
        assert_eq!(names, ["precious"]);
        assert_eq!(fs::read_to_string(self.at("outside/precious")).unwrap(), "outside");
        assert_eq!(mode(&self.at("outside")) & 0o022, 0);
        assert_eq!(remove::mounts_below(&self.at("outside")).unwrap(), Vec::<PathBuf>::new());
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        for point in remove::mounts_below(self.dir.path()).unwrap_or_default() {
            let _ = mount_change(&point, MountPropagationFlags::PRIVATE);
            let _ = unmount(&point, UnmountFlags::DETACH);
        }
    }
}

fn tmpfs(at: &Path) -> rustix::io::Result<()> {
    mount("tmpfs", at, "tmpfs", MountFlags::empty(), c"mode=0755")
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// A pod whose container mounts the volume once, and the volume's folder.
fn mounting(bed: &Bed, kind: VolumeKind, propagation: Propagation) -> (PodSpec, PathBuf) {
    let volume = Volume { name: "v".to_owned(), kind };
    let mut spec = pod("u1", vec![volume.clone()]);
    let mount = Mount { volume: "v".to_owned(), path: "/v".to_owned(), propagation, ..Mount::default() };
    spec.containers[0].mounts = vec![mount];
    let folder = paths::volume(&bed.files.root, &spec.uid, &volume);
    bed.files.setup(&spec).unwrap();
    (spec, folder)
}

fn empty_dir() -> VolumeKind {
    VolumeKind::EmptyDir { memory: false, size_limit: None }
}

fn host_path(path: &Path, kind: &str) -> VolumeKind {
    VolumeKind::HostPath { path: path.display().to_string(), kind: kind.to_owned() }
}

/// What the container's mount shows with this sub path.
fn source(bed: &Bed, spec: &PodSpec, sub_path: &str) -> Result<PathBuf, Error> {
    Ok(bed.files.sources(spec, "main", &[sub_path.to_owned()])?.remove(0))
}

fn refused(bed: &Bed, spec: &PodSpec, sub_path: &str) {
    let error = source(bed, spec, sub_path).expect_err(sub_path).to_string();
    let texts = ["prepare subPath", "create subPath directory"];
    let texts = texts.map(|what| format!("failed to {what} for volumeMount \"v\" of container \"main\""));
    assert!(texts.contains(&error), "{sub_path}: {error}");
}

#[test]
fn a7_8a_a_part_of_a_volume_has_a_place_of_its_own() {
    let Some(bed) = Bed::new("a7_8a_a_part_of_a_volume_has_a_place_of_its_own") else { return };
    let (spec, volume) = mounting(&bed, empty_dir(), Propagation::None);
    assert_eq!(source(&bed, &spec, "").unwrap(), volume, "a whole volume needs none");
    fs::create_dir_all(volume.join("a/b")).unwrap();
    fs::write(volume.join("a/b/file"), "inside").unwrap();
    let place = paths::sub_path(&bed.files.root, &spec.uid, "v", "main", 0);
    assert!(place.ends_with("pods/u1/volume-subpaths/v/main/0"));
    for sub_path in ["a/b", "a//b/", "./a/./b", "a/b"] {
        assert_eq!(source(&bed, &spec, sub_path).unwrap(), place);
        assert_eq!(fs::read_to_string(place.join("file")).unwrap(), "inside", "{sub_path}");
        assert_eq!(remove::mounts_below(&bed.files.root).unwrap(), [&*place], "one mount, however often");
    }
    source(&bed, &spec, "a/b/file").unwrap();
    assert_eq!(fs::read_to_string(&place).unwrap(), "inside", "a file, where a folder was");
    // As a program replaces a file as a whole.
    fs::write(volume.join("new"), "newer").unwrap();
    fs::rename(volume.join("new"), volume.join("a/b/file")).unwrap();
    source(&bed, &spec, "a/b/file").unwrap();
    assert_eq!(fs::read_to_string(&place).unwrap(), "newer", "the next run sees what is there now");
    bed.files.teardown(&spec.uid, false).unwrap();
    assert!(!paths::pod_dir(&bed.files.root, &spec.uid).exists());
    assert_eq!(remove::mounts_below(bed.dir.path()).unwrap(), Vec::<PathBuf>::new());
}

#[test]
fn a7_8a_what_is_missing_is_made_as_the_volume_is() {
    let Some(bed) = Bed::new("a7_8a_what_is_missing_is_made_as_the_volume_is") else { return };
    let data = bed.at("data");
    fs::create_dir_all(data.join("there")).unwrap();
    std::os::unix::fs::chown(&data, None, Some(4242)).unwrap();
    set_mode(&data, 0o2770).unwrap();
    set_mode(&data.join("there"), 0o700).unwrap();
    symlink("there", data.join("inside")).unwrap();
    let (spec, _) = mounting(&bed, host_path(&data, ""), Propagation::None);
    source(&bed, &spec, "new/deep").unwrap();
    for made in ["new", "new/deep"] {
        let made = fs::metadata(data.join(made)).unwrap();
        assert_eq!((made.mode() & 0o7777, made.gid()), (0o2770, 4242));
    }
    source(&bed, &spec, "inside/more").unwrap();
    assert_eq!(mode(&data.join("there/more")), 0o2770, "through a link that stays inside");
    assert_eq!(mode(&data.join("there")), 0o700, "what is there stays as it is");
    fs::write(data.join("file"), "").unwrap();
    refused(&bed, &spec, "file/below");
    bed.files.teardown(&spec.uid, false).unwrap();
    assert!(data.join("new/deep").is_dir() && data.join("file").is_file(), "not ours to remove");
}

#[test]
fn a7_8a_what_is_written_as_a_whole_is_read_through_its_links() {
    let Some(bed) = Bed::new("a7_8a_what_is_written_as_a_whole_is_read_through_its_links") else { return };
    let (spec, volume) = mounting(&bed, empty_dir(), Propagation::None);
    fs::create_dir(volume.join("..2026_11_30")).unwrap();
    fs::write(volume.join("..2026_11_30/key"), "value").unwrap();
    symlink("..2026_11_30", volume.join("..data")).unwrap();
    symlink("..data/key", volume.join("key")).unwrap();
    let place = source(&bed, &spec, "key").unwrap();
    assert_eq!(fs::read_to_string(place).unwrap(), "value");
}

/// CVE-2017-1002101: a link in the volume.
#[test]
fn a7_8a_cve_2017_1002101_links_that_lead_out_are_refused() {
    let Some(bed) = Bed::new("a7_8a_cve_2017_1002101_links_that_lead_out_are_refused") else { return };
    let (spec, volume) = mounting(&bed, empty_dir(), Propagation::None);
    fs::create_dir(volume.join("dir")).unwrap();
    let outside = bed.at("outside");
    let up = Path::new(&"../".repeat(40)).join(outside.strip_prefix("/").unwrap());
    for (name, target) in [
        ("absolute", outside.as_path()),
        ("relative", up.as_path()),
        ("file", &outside.join("precious")),
        ("root", Path::new("/")),
        ("back", Path::new("..")),
        ("in-and-out", Path::new("dir/../..")),
        ("proc", Path::new("/proc/self/root")),
        ("self", Path::new("/proc/self/cwd")),
        ("to-link", Path::new("absolute")),
        ("nowhere", &outside.join("not-there")),
        ("loop", Path::new("loop")),
    ] {
        symlink(target, volume.join(name)).unwrap();
        for sub_path in [name.to_owned(), format!("{name}/"), format!("{name}/made"), format!("{name}/precious")] {
            refused(&bed, &spec, &sub_path);
        }
        symlink(format!("../{name}"), volume.join("dir").join(name)).unwrap();
        refused(&bed, &spec, &format!("dir/{name}"));
    }
    assert_eq!(remove::mounts_below(&bed.files.root).unwrap(), Vec::<PathBuf>::new());
    bed.assert_outside_untouched();
}

/// CVE-2018-1002100 and its kin: names and paths that go upwards, given to the edge as if nobody had checked them before.
#[test]
fn a7_8a_cve_2018_1002100_no_name_and_no_path_goes_upwards() {
    let Some(bed) = Bed::new("a7_8a_cve_2018_1002100_no_name_and_no_path_goes_upwards") else { return };
    let (spec, volume) = mounting(&bed, empty_dir(), Propagation::None);
    fs::create_dir(volume.join("dir")).unwrap();
    let absolute = bed.at("outside").display().to_string();
    let long = "x/".repeat(3_000);
    for sub_path in ["..", "../v", "dir/../..", "dir/../../../../../../outside", "/", "/etc", &absolute, "a\0b", &long]
    {
        refused(&bed, &spec, sub_path);
    }
    let names = ["..", ".", "", "a/b", "../../../../outside", "/etc"];
    for name in names {
        let mut named = spec.clone();
        named.containers[0].name = name.to_owned();
        assert!(matches!(bed.files.sources(&named, name, &["dir".to_owned()]), Err(Error::Name(_))), "{name:?}");
        let mut named = spec.clone();
        named.volumes[0].name = name.to_owned();
        named.containers[0].mounts[0].volume = name.to_owned();
        assert!(matches!(source(&bed, &named, "dir"), Err(Error::Name(_))), "{name:?}");
    }
    bed.assert_outside_untouched();
}

/// Tries something while another thread exchanges the names `a` and `b` in a folder as fast as it can: until it was given and
/// refused often enough, which says that the race takes place.
fn while_exchanging(folder: &Path, mut given: impl FnMut(u32) -> bool) {
    const ENOUGH: u32 = 60;
    let stop = AtomicBool::new(false);
    let exchange = || renameat_with(CWD, folder.join("a"), CWD, folder.join("b"), RenameFlags::EXCHANGE).unwrap();
    std::thread::scope(|threads| {
        let racing = threads.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                exchange();
                std::thread::yield_now();
            }
        });
        let end = Instant::now() + Duration::from_secs(30);
        let tried = catch_unwind(AssertUnwindSafe(|| {
            let (mut yes, mut no) = (0, 0);
            while (yes < ENOUGH || no < ENOUGH || yes + no < 600) && Instant::now() < end {
                if given(yes + no) {
                    yes += 1;
                } else {
                    no += 1;
                }
                std::thread::yield_now();
            }
            (yes, no)
        }));
        stop.store(true, Ordering::Relaxed);
        racing.join().unwrap();
        let (yes, no) = tried.unwrap_or_else(|panic| resume_unwind(panic));
        assert!(yes >= ENOUGH && no >= ENOUGH, "no race took place: {yes} given, {no} refused");
    });
}

/// CVE-2021-25741: a folder is exchanged for a link to the outside between check and mount.
#[test]
fn a7_8a_cve_2021_25741_a_race_of_folder_and_link_never_leads_out() {
    let Some(bed) = Bed::new("a7_8a_cve_2021_25741_a_race_of_folder_and_link_never_leads_out") else { return };
    let (spec, volume) = mounting(&bed, empty_dir(), Propagation::None);
    fs::create_dir(volume.join("a")).unwrap();
    fs::write(volume.join("a/precious"), "inside").unwrap();
    symlink(bed.at("outside"), volume.join("b")).unwrap();
    while_exchanging(&volume, |_| {
        let file = source(&bed, &spec, "a/precious");
        let file = file.map(|place| assert_eq!(fs::read_to_string(place).unwrap(), "inside"));
        let folder = source(&bed, &spec, "a");
        let folder = folder.map(|place| assert_eq!(fs::read_to_string(place.join("precious")).unwrap(), "inside"));
        file.is_ok() && folder.is_ok()
    });
    while_exchanging(&volume, |i| source(&bed, &spec, &format!("a/made-{i}")).is_ok());
    bed.assert_outside_untouched();
}

/// CVE-2021-30465: what is mounted, or the place where it is mounted, is exchanged after it was checked and before it is used.
#[test]
fn a7_8a_cve_2021_30465_what_was_opened_is_what_is_mounted() {
    let Some(bed) = Bed::new("a7_8a_cve_2021_30465_what_was_opened_is_what_is_mounted") else { return };
    let (spec, volume) = mounting(&bed, empty_dir(), Propagation::None);
    fs::create_dir(volume.join("a")).unwrap();
    fs::write(volume.join("a/precious"), "inside").unwrap();
    let place = source(&bed, &spec, "a").unwrap();
    // The runtime comes only now.
    fs::rename(volume.join("a"), volume.join("moved")).unwrap();
    symlink(bed.at("outside"), volume.join("a")).unwrap();
    assert_eq!(fs::read_to_string(place.join("precious")).unwrap(), "inside");
    refused(&bed, &spec, "a");

    // The way to the place, or the place itself, leads elsewhere.
    let places = paths::pod_dir(&bed.files.root, &spec.uid).join("volume-subpaths");
    for way in [place.as_path(), place.parent().unwrap(), &places.join("v"), &places] {
        remove::tree(&places).unwrap();
        fs::create_dir_all(way.parent().unwrap()).unwrap();
        symlink(bed.at("outside"), way).unwrap();
        match source(&bed, &spec, "moved") {
            // A link at the place itself is taken away.
            Ok(shown) => {
                assert_eq!((fs::read_to_string(shown.join("precious")).unwrap(), way), ("inside".to_owned(), &*place));
            }
            Err(error) => assert!(error.to_string().starts_with("failed to prepare subPath"), "{error}"),
        }
        bed.assert_outside_untouched();
    }
}

/// CVE-2023-5528 and its kin: names that mean something to a shell, a mount table or a format.
#[test]
fn a7_8a_cve_2023_5528_names_are_only_names() {
    let Some(bed) = Bed::new("a7_8a_cve_2023_5528_names_are_only_names") else { return };
    let (spec, volume) = mounting(&bed, empty_dir(), Propagation::None);
    let evil = [
        "&calc.exe&",
        "$(touch outside)",
        "`reboot`",
        "a b\tc\nd",
        "\\040",
        "a\\012b",
        "-o",
        "--bind",
        "%s%n",
        "'\";|#*?",
        "ü\u{202e}x",
        "(deleted)",
        "a//deleted",
    ];
    for name in evil {
        let place = source(&bed, &spec, name).unwrap_or_else(|error| panic!("{name:?}: {error}"));
        assert!(place.ends_with("v/main/0"), "no part of it is in the place's name");
        fs::write(place.join("written"), name).unwrap();
        assert_eq!(fs::read_to_string(volume.join(name).join("written")).unwrap(), name);
    }
    // Mounts at such places are found, and none is taken for another one.
    let near = bed.at("root/pods/u1/volumes 2");
    fs::create_dir(&near).unwrap();
    tmpfs(&near).unwrap();
    for name in ["a b\tc\nd", "\\040", "ü"] {
        let point = volume.join(name);
        fs::create_dir_all(&point).unwrap();
        tmpfs(&point).unwrap();
        fs::write(point.join("file"), "").unwrap();
    }
    assert_eq!(remove::mounts_below(&volume).unwrap().len(), 3);
    bed.files.teardown(&spec.uid, false).unwrap();
    assert_eq!(remove::mounts_below(bed.dir.path()).unwrap(), Vec::<PathBuf>::new());
    assert!(!paths::pod_dir(&bed.files.root, &spec.uid).exists());
    bed.assert_outside_untouched();
}

#[test]
fn a7_12_mount_points_need_not_be_text() {
    let table = b"1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 0:5 / /p/\xff\\040x rw - tmpfs t rw\n\
                  3 2 0:6 / /p/\xff\\040x/\\134040 rw - tmpfs t rw\n4 1 0:7 / /p2 rw - tmpfs t rw\nshort\n";
    let found = remove::points_below(table, Path::new("/p"), Path::new("/link"));
    let name = |bytes: &'static [u8]| PathBuf::from(OsStr::from_bytes(bytes));
    assert_eq!(found, [name(b"/link/\xff x/\\040"), name(b"/link/\xff x")]);
}

#[test]
fn a7_3b_a_host_path_that_was_checked_is_the_one_that_is_mounted() {
    let Some(bed) = Bed::new("a7_3b_a_host_path_that_was_checked_is_the_one_that_is_mounted") else { return };
    let path = bed.at("host");
    for kind in ["File", "FileOrCreate", "Socket", "Directory", "DirectoryOrCreate"] {
        let _socket = match kind {
            "File" => fs::write(&path, "checked").map(|()| None),
            "Socket" => UnixListener::bind(&path).map(Some),
            "Directory" => fs::create_dir(&path).map(|()| None),
            _ => Ok(None),
        };
        let (spec, _) = mounting(&bed, host_path(&path, kind), Propagation::None);
        let inode = fs::metadata(&path).unwrap().ino();
        let place = source(&bed, &spec, "").unwrap();
        assert_ne!(place, path, "{kind} has a place");
        fs::rename(&path, bed.at("old")).unwrap();
        symlink(bed.at("outside"), &path).unwrap();
        let shown = fs::metadata(&place).unwrap();
        assert_eq!(shown.ino(), inode, "{kind}: the runtime mounts what was checked");
        match kind {
            "Socket" => assert!(shown.file_type().is_socket()),
            "File" | "FileOrCreate" => assert!(shown.is_file()),
            _ => assert!(shown.is_dir()),
        }
        if !kind.starts_with("Directory") {
            let error = source(&bed, &spec, "").unwrap_err().to_string();
            assert!(error.starts_with(&format!("hostPath type check failed: {} is not a ", path.display())), "{error}");
        }
        bed.files.teardown(&spec.uid, false).unwrap();
        fs::remove_file(&path).unwrap();
        let old = bed.at("old");
        if old.is_dir() { fs::remove_dir(&old) } else { fs::remove_file(&old) }.unwrap();
    }
    bed.assert_outside_untouched();
}

/// A file is exchanged for a link to a device, again and again: a container gets the file or nothing.
#[test]
fn a7_3b_a_race_never_gives_another_type() {
    let Some(bed) = Bed::new("a7_3b_a_race_never_gives_another_type") else { return };
    let folder = bed.at("shared");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("a"), "file").unwrap();
    symlink("/dev/null", folder.join("b")).unwrap();
    let (spec, _) = mounting(&bed, host_path(&folder.join("a"), "File"), Propagation::None);
    while_exchanging(&folder, |_| {
        let given = source(&bed, &spec, "");
        given.map(|place| assert!(fs::symlink_metadata(place).unwrap().is_file())).is_ok()
    });
}

#[test]
fn a7_3b_a_folder_with_mounts_or_pods_in_it_is_given_by_name() {
    let Some(bed) = Bed::new("a7_3b_a_folder_with_mounts_or_pods_in_it_is_given_by_name") else { return };
    let path = bed.at("host");
    fs::create_dir_all(path.join("below")).unwrap();
    let (spec, _) = mounting(&bed, host_path(&path, "Directory"), Propagation::None);
    let place = source(&bed, &spec, "").unwrap();
    assert!(place.ends_with("volume-subpaths/v/main/0"));
    tmpfs(&path.join("below")).unwrap();
    assert_eq!(source(&bed, &spec, "").unwrap(), path, "what is mounted there belongs to it");
    for above in [bed.dir.path(), &bed.files.root, &paths::pods(&bed.files.root), Path::new("/")] {
        let (spec, _) = mounting(&bed, host_path(above, "Directory"), Propagation::None);
        assert_eq!(source(&bed, &spec, "").unwrap(), above);
    }
    let (spec, _) = mounting(&bed, host_path(&bed.at("outside"), "Directory"), Propagation::Bidirectional);
    assert_eq!(source(&bed, &spec, "").unwrap(), bed.at("outside"));
    let (spec, _) = mounting(&bed, host_path(&bed.at("none"), ""), Propagation::None);
    assert_eq!(source(&bed, &spec, "").unwrap(), bed.at("none"), "without a type nothing is looked at");
}

/// Whether mounts at this point are shared, and whether it gets those of others.
fn propagation_of(point: &Path) -> (bool, bool) {
    let table = String::from_utf8_lossy(&fs::read("/proc/self/mountinfo").unwrap()).into_owned();
    let line = table.lines().rfind(|line| line.split(' ').nth(4) == point.to_str()).expect("a mount");
    let optional = line.split(" - ").next().unwrap_or_default();
    (optional.contains(" shared:"), optional.contains(" master:"))
}

#[test]
fn a7_10b_mounts_of_the_node_outlive_those_of_a_pod() {
    let Some(bed) = Bed::new("a7_10b_mounts_of_the_node_outlive_those_of_a_pod") else { return };
    let host = bed.at("host");
    fs::create_dir(&host).unwrap();
    tmpfs(&host).unwrap();
    mount_change(&host, MountPropagationFlags::SHARED).unwrap();
    fs::create_dir_all(host.join("part/later")).unwrap();
    for (propagation, expected) in [
        (Propagation::None, (false, false)),
        (Propagation::HostToContainer, (false, true)),
        (Propagation::Bidirectional, (true, false)),
    ] {
        let (spec, _) = mounting(&bed, host_path(&host, ""), propagation);
        let place = source(&bed, &spec, "part").unwrap();
        assert_eq!(propagation_of(&place), expected, "{propagation:?}");
        tmpfs(&host.join("part/later")).unwrap();
        fs::write(host.join("part/later/file"), "node's").unwrap();
        assert_eq!(place.join("later/file").exists(), propagation != Propagation::None, "{propagation:?}");
        if propagation == Propagation::None {
            // As an agent leaves it that is killed right after the mount.
            unmount(host.join("part/later"), UnmountFlags::empty()).unwrap();
            unmount(&place, UnmountFlags::empty()).unwrap();
            mount_bind(host.join("part"), &place).unwrap();
            tmpfs(&host.join("part/later")).unwrap();
            fs::write(host.join("part/later/file"), "node's").unwrap();
            assert!(place.join("later/file").exists());
        }
        bed.files.teardown(&spec.uid, false).unwrap();
        assert_eq!(fs::read_to_string(host.join("part/later/file")).unwrap_or_default(), "node's", "{propagation:?}");
        assert_eq!(remove::mounts_below(&bed.files.root).unwrap(), Vec::<PathBuf>::new());
        unmount(host.join("part/later"), UnmountFlags::empty()).unwrap();
    }
}

#[test]
fn a7_12_what_is_mounted_is_never_emptied() {
    let Some(bed) = Bed::new("a7_12_what_is_mounted_is_never_emptied") else { return };
    let (dir, file) = (bed.at("dir/deep/point"), bed.at("dir/file"));
    fs::create_dir_all(&dir).unwrap();
    fs::write(&file, "").unwrap();
    // As if it were mounted after the mounts were looked for.
    mount_bind(bed.at("outside"), &dir).unwrap();
    let error = remove::unmounted(&bed.at("dir")).unwrap_err();
    assert!(matches!(&error, Error::Mounted(at) if *at == dir), "{error}");
    bed.assert_outside_untouched();
    unmount(&dir, UnmountFlags::empty()).unwrap();
    fs::write(&file, "").unwrap();
    mount_bind(bed.at("outside/precious"), &file).unwrap();
    let error = remove::unmounted(&bed.at("dir")).unwrap_err();
    assert!(matches!(&error, Error::Mounted(at) if *at == file), "{error}");
    bed.assert_outside_untouched();
    remove::tree(&bed.at("dir")).unwrap();
    assert!(!bed.at("dir").exists());
}

#[test]
fn a7_12_no_folder_is_too_deep_to_be_removed() {
    let dir = TempDir::new().unwrap();
    let top = dir.path().join("top");
    fs::create_dir(&top).unwrap();
    // Deeper than a path may be long, and than files may be open.
    let mut at = safe::open_named(&top, rustix::fs::OFlags::PATH).unwrap();
    for _ in 0..6_000 {
        at = safe::make_folder(&at, "d", 0o755).unwrap();
    }
    fs::create_dir_all(top.join(".removed-0/x")).unwrap();
    remove::tree(&top).unwrap();
    assert!(!top.exists());
}

#[test]
fn a7_9a_the_group_gets_what_is_in_the_volume_and_nothing_else() {
    let Some(bed) = Bed::new("a7_9a_the_group_gets_what_is_in_the_volume_and_nothing_else") else { return };
    let top = bed.at("volume");
    fs::create_dir_all(top.join("sub")).unwrap();
    fs::write(top.join("sub/file"), "").unwrap();
    fs::write(top.join("run"), "").unwrap();
    for (name, mode) in [("", 0o700), ("sub", 0o1755), ("sub/file", 0o400), ("run", 0o751)] {
        set_mode(&top.join(name), mode).unwrap();
    }
    symlink(bed.at("outside/precious"), top.join("link")).unwrap();
    symlink(bed.at("outside"), top.join("sub/folder-link")).unwrap();
    fs::create_dir(top.join("mounted")).unwrap();
    mount_bind(bed.at("outside"), top.join("mounted")).unwrap();
    fs_group::give(&top, 4242).unwrap();
    for (name, expected) in [("", 0o2770), ("sub", 0o3775), ("sub/file", 0o660), ("run", 0o771)] {
        let found = fs::symlink_metadata(top.join(name)).unwrap();
        assert_eq!((found.mode() & 0o7777, found.gid()), (expected, 4242), "{name}");
    }
    assert_eq!(fs::symlink_metadata(top.join("link")).unwrap().gid(), 4242, "the link itself");
    for outside in ["outside", "outside/precious"] {
        assert_ne!(fs::metadata(bed.at(outside)).unwrap().gid(), 4242, "{outside}");
    }
    bed.assert_outside_untouched();
}

#[test]
fn a7_2b_what_is_in_memory_is_not_swapped_out() {
    let Some(bed) = Bed::new("a7_2b_what_is_in_memory_is_not_swapped_out") else { return };
    let (spec, volume) = mounting(&bed, VolumeKind::EmptyDir { memory: true, size_limit: None }, Propagation::None);
    let table = String::from_utf8_lossy(&fs::read("/proc/self/mountinfo").unwrap()).into_owned();
    let line = table.lines().find(|line| line.split(' ').nth(4) == volume.to_str()).expect("a mount");
    let probe = bed.at("probe");
    match mount("tmpfs", &probe, "tmpfs", MountFlags::empty(), c"noswap") {
        Ok(()) => assert!(line.contains("noswap"), "{line}"),
        Err(error) => {
            println!("SKIPPED a7_2b_what_is_in_memory_is_not_swapped_out: this kernel has no noswap: {error}");
        }
    }
    bed.files.teardown(&spec.uid, false).unwrap();
}

#[test]
fn a7_11a_all_volumes_that_are_not_there_are_named() {
    let dir = TempDir::new().unwrap();
    let files = tests::volumes(&dir);
    let volume = |name: &str, kind| Volume { name: name.to_owned(), kind };
    let absent = dir.path().join("absent");
    let volumes = vec![
        volume("one", host_path(&absent, "Directory")),
        volume("fine", empty_dir()),
        volume("two", host_path(dir.path(), "File")),
    ];
    let error = files.setup(&pod("u1", volumes)).unwrap_err().to_string();
    let expected = format!(
        "Unable to attach or mount volumes: unmounted volumes=[one two], unattached volumes=[], failed to process volumes=[]: \
         MountVolume.SetUp failed for volume \"one\" : hostPath type check failed: {} is not a directory; \
         MountVolume.SetUp failed for volume \"two\" : hostPath type check failed: {} is not a file",
        absent.display(),
        dir.path().display()
    );
    assert_eq!(error, expected);
    assert!(paths::empty_dir(&files.root, &"u1".into(), "fine").is_dir());
}
