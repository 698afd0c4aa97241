use std::{fs::File, os::fd::AsFd as _};

use super::*;

fn parts() -> HostParts {
    HostParts {
        skeleton: "/w/root/skeleton".into(),
        root: "/w/root/mount".into(),
        empty: "/w/root/empty".into(),
        host_files: vec!["/etc/hosts".into()],
        hidden: vec![
            Hidden { path: "/proc/kcore".into(), directory: false },
            Hidden { path: "/sys/firmware".into(), directory: true },
        ],
        read_only: vec!["/proc/sys".into()],
        cgroup: "/sys/fs/cgroup".into(),
    }
}

fn view<'a>(parts: &'a HostParts, layers: Vec<&'a Path>, trees: Vec<Tree<'a>>) -> View<'a> {
    let tmp = Path::new("/w/sandboxes/f/t/private/tmp");
    View { parts, layers, private: true, pid_namespace: true, trees, tmp, devices: Vec::new() }
}

fn shown(view: &View<'_>) -> Vec<String> {
    view.steps().unwrap().iter().map(ToString::to_string).collect()
}

fn position(steps: &[String], step: &str) -> usize {
    steps.iter().position(|s| s.contains(step)).unwrap_or_else(|| panic!("{step:?} in {steps:#?}"))
}

/// The paths that are opened again after everything was made read-only.
fn writable(view: &View<'_>) -> Vec<String> {
    let steps = view.steps().unwrap();
    let everything = |step: &ChildStep<'_>| matches!(step, ChildStep::MountAttributes { recursive: true, set, .. } if *set == libc::MOUNT_ATTR_RDONLY);
    let from = steps.iter().position(everything).unwrap();
    let opened = steps[from + 1..].iter().map(|step| match step {
        ChildStep::MountAttributes { path, recursive: false, clear, .. }
            if *clear == libc::MOUNT_ATTR_RDONLY =>
        {
            path.to_str().unwrap().to_owned()
        }
        other => panic!("{other} after everything was made read-only"),
    });
    opened.collect()
}

#[test]
fn nothing_is_mounted_where_others_could_see_it() {
    let parts = parts();
    for layers in [Vec::new(), vec![Path::new("/l")]] {
        assert_eq!(shown(&view(&parts, layers, Vec::new()))[0], "keep the mounts below / to itself");
    }
}

#[test]
fn only_what_is_the_tasks_own_can_be_written() {
    let (parts, null) = (parts(), File::open("/dev/null").unwrap());
    let tree = |target: &str, writable| Tree { fd: null.as_fd(), target: target.into(), writable };
    let trees = vec![tree("/sandbox", true), tree("/data", true), tree("/reference", false)];
    let expected = ["/dev", "/dev/pts", "/proc", "/tmp", "/sandbox", "/data"];
    assert_eq!(writable(&view(&parts, Vec::new(), trees.clone())), expected);
    assert_eq!(writable(&view(&parts, vec![Path::new("/l")], trees)), expected);
}

#[test]
fn what_tells_of_the_host_is_hidden_after_proc_is_there() {
    let parts = parts();
    let steps = shown(&view(&parts, Vec::new(), Vec::new()));
    let proc = position(&steps, "mount proc on /proc");
    for hidden in [
        "show /dev/null at /proc/kcore",
        "show /w/root/empty at /sys/firmware",
        "show /proc/sys at /proc/sys",
    ] {
        assert!(position(&steps, hidden) > proc);
    }
    // The empty directory may lie below /tmp, as in these tests.
    assert!(position(&steps, "at /tmp") > position(&steps, "/w/root/empty"));
}

#[test]
fn an_image_is_mounted_below_the_skeleton_and_then_the_root() {
    let (parts, null) = (parts(), File::open("/dev/null").unwrap());
    let layers = ["/own", "/w/root/skeleton", "/store/high", "/store/low"].map(Path::new);
    let trees = vec![Tree { fd: null.as_fd(), target: SANDBOX_IN_IMAGE.into(), writable: true }];
    let view = view(&parts, layers.to_vec(), trees);
    let steps = shown(&view);
    let pivot = position(&steps, "make /w/root/mount the root");
    let overlay = position(&steps, "mount an overlay of 4 directories on /w/root/mount");
    for inside in [
        "mount proc on /w/root/mount/proc",
        "attach a mount to /w/root/mount/mnt/sandbox",
        "show /etc/hosts at /w/root/mount/etc/hosts",
    ] {
        let at = position(&steps, inside);
        assert!(overlay < at && at < pivot);
    }
    assert!(!steps.iter().any(|s| s.ends_with("mount on /")));
}

#[test]
fn trusted_tasks_with_volumes_keep_the_rest_of_the_host() {
    let (parts, null) = (parts(), File::open("/dev/null").unwrap());
    let trees = vec![Tree { fd: null.as_fd(), target: "/data".into(), writable: false }];
    let view = View { private: false, pid_namespace: false, ..view(&parts, Vec::new(), trees) };
    assert_eq!(shown(&view), ["keep the mounts below / to itself", "attach a mount to /data"]);
}

#[test]
fn a_sandbox_below_the_hidden_tmp_is_shown_all_the_same() {
    let (parts, null) = (parts(), File::open("/dev/null").unwrap());
    let trees = vec![Tree { fd: null.as_fd(), target: "/tmp/a/b".into(), writable: true }];
    let steps = shown(&view(&parts, Vec::new(), trees));
    let at = ["at /tmp", "the directory /tmp/a", "the directory /tmp/a/b", "attach a mount to /tmp/a/b"];
    let found: Vec<usize> =
        at.iter().map(|step| steps.iter().position(|s| s.ends_with(step)).unwrap()).collect();
    assert!(found.is_sorted(), "{found:?} {steps:#?}");
}

#[test]
fn granted_devices_are_beside_the_harmless_ones() {
    let (parts, null) = (parts(), File::open("/dev/null").unwrap());
    let devices = vec![Tree { fd: null.as_fd(), target: "/dev/net/tun".into(), writable: true }];
    let steps = shown(&View { devices, ..view(&parts, Vec::new(), Vec::new()) });
    assert!(
        position(&steps, "make the directory /dev/net") < position(&steps, "make the device /dev/net/tun")
    );
    assert_eq!(steps.iter().filter(|s| s.starts_with("make the device")).count(), NODES.len() + 1);
}
