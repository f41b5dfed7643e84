//! More ways to leave the sandbox or to harm the machine from inside it, tried as in
//! [`crate::engine::sandbox`]: what must fail within our walls succeeds without them.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::time::{Duration, Instant};

use infernet::engine::docker::ContainerHost;
use infernet::engine::sandbox::Sandbox;

use crate::engine::sandbox::{LIMIT, assert_walled, sandboxed, unrestricted};
use crate::support::engine_image::docker;

const MIB: u64 = 1 << 20;

/// A container that is removed with the test, whatever comes of it.
struct Named(String);

impl Named {
    fn new() -> Self {
        Self(format!("infernet-test-{:x}", fastrand::u64(..)))
    }

    /// Returns what Docker knows of it.
    fn inspect(&self, format: &str) -> String {
        let found = docker(&["inspect", "--format", format, &self.0]);
        assert!(found.status.success(), "{found:?}");
        String::from_utf8(found.stdout).unwrap().trim().to_owned()
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        docker(&["rm", "--force", "--volumes", &self.0]);
    }
}

/// Returns the walls of a container that runs this probe.
async fn walls(probe: &[&str]) -> Sandbox {
    let mut walls = None;
    let (exit, said) = sandboxed(&["/probe", "nothing"], |sandbox| {
        walls = Some(sandbox.clone());
    })
    .await;
    assert_eq!(exit.code, Some(0), "{said}");
    Sandbox { command: probe.iter().map(|&word| word.to_owned()).collect(), ..walls.unwrap() }
}

/// Returns the image that the probes are in.
async fn image() -> String {
    walls(&[]).await.image_id
}

#[tokio::test]
async fn no_directory_takes_more_than_its_share() {
    for directory in ["/", "/data", "/dev", "/dev/shm"] {
        assert_walled(&[], &["/probe", "fill", directory, "24"]).await;
    }
}

#[tokio::test]
async fn a_flood_of_output_fills_no_disk() {
    let size = |container: &Named| -> u64 {
        let path = container.inspect("{{.LogPath}}");
        let folder = Path::new(&path).parent().unwrap();
        let logs = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
        logs.filter(|entry| entry.file_name().to_string_lossy().contains("-json.log"))
            .map(|entry| entry.metadata().unwrap().len())
            .sum()
    };
    let probe = ["/probe", "flood", "24"];
    let free = Named::new();
    let image = image().await;
    let mut arguments = vec!["run", "--detach", "--network", "none", "--name", &free.0, &image];
    arguments.extend(probe);
    assert!(docker(&arguments).status.success());
    assert!(docker(&["wait", &free.0]).status.success());
    assert!(size(&free) >= 24 * MIB, "without limits, all of it is kept: {}", size(&free));

    let walled = Named::new();
    let host = ContainerHost::connect(None).await.unwrap();
    host.start(&walled.0, &walls(&probe).await).await.unwrap();
    let exit = tokio::time::timeout(LIMIT, host.wait(&walled.0)).await.unwrap();
    assert_eq!(exit.code, Some(0), "it may write as much as it likes");
    assert!(size(&walled) <= 2 * MIB, "and next to nothing is kept: {}", size(&walled));
    // Nor does reading it take memory: the last lines are all that is ever read.
    assert!(host.last_words(&walled.0).await.len() < 8192);
}

/// Counts the processes of this machine with this word in their command line.
fn living(word: &str) -> usize {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let named = processes.filter(|entry| {
        std::fs::read(entry.path().join("cmdline"))
            .is_ok_and(|line| String::from_utf8_lossy(&line).split('\0').any(|part| part == word))
    });
    named.count()
}

/// Waits until the stubborn probe ignores all signals: it does before it has children.
async fn is_stubborn(token: &str) {
    let begun = Instant::now();
    while living(token) < 4 {
        assert!(begun.elapsed() < Duration::from_secs(30), "{} live", living(token));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn nothing_outlives_its_deadline_by_ignoring_it() {
    let token = format!("token-{:x}", fastrand::u64(..));
    let probe = ["/probe", "stubborn", &token];
    let free = Named::new();
    let image = image().await;
    let mut arguments = vec!["run", "--detach", "--network", "none", "--name", &free.0, &image];
    arguments.extend(probe);
    assert!(docker(&arguments).status.success());
    is_stubborn(&token).await;
    assert!(docker(&["kill", "--signal", "TERM", &free.0]).status.success());
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(free.inspect("{{.State.Running}}"), "true", "it does not end when asked");
    assert_eq!(living(&token), 4);
    drop(free);

    let token = format!("token-{:x}", fastrand::u64(..));
    let walled = Named::new();
    let host = ContainerHost::connect(None).await.unwrap();
    host.start(&walled.0, &walls(&["/probe", "stubborn", &token]).await).await.unwrap();
    is_stubborn(&token).await;
    let begun = Instant::now();
    host.remove(&walled.0).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert_eq!(living(&token), 0, "neither it nor its children live on");
}

#[tokio::test]
async fn no_packets_of_its_own_making() {
    assert_walled(&[], &["/probe", "raw"]).await;
}

#[tokio::test]
async fn no_sockets_of_the_machine_that_have_no_file() {
    let name = format!("infernet-test-{:x}", fastrand::u64(..));
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let _listener = UnixListener::bind_addr(&address).unwrap();
    let probe = ["/probe", "local", &format!("@{name}")];
    assert_walled(&["--network", "host"], &probe).await;
}

#[tokio::test]
async fn no_processes_of_the_machine() {
    let own = std::process::id().to_string();
    assert_walled(&["--pid", "host"], &["/probe", "process", &own]).await;
}

#[tokio::test]
async fn no_device_of_the_machine() {
    let wanted = ["/dev/mem", "/dev/fuse", "/dev/kvm", "/dev/net/tun", "/dev/nvidia0"];
    let disks = std::fs::read_dir("/sys/block").unwrap().flatten();
    let disks = disks.map(|disk| format!("/dev/{}", disk.file_name().to_string_lossy()));
    let devices: Vec<String> = wanted.iter().map(|&name| name.to_owned()).chain(disks).collect();
    let mut tried = 0;
    for device in devices.iter().filter(|device| Path::new(device).exists()) {
        let probe = ["/probe", "open", device];
        // An empty loop or drive cannot be opened by anybody.
        if unrestricted(&["--device", device], &probe).0 {
            let (exit, said) = sandboxed(&probe, |_| {}).await;
            assert_eq!(exit.code, Some(1), "{device}: {said}");
            tried += 1;
        }
        if tried == 4 {
            break;
        }
    }
    assert!(tried > 0, "this machine has devices that can be opened");
}

#[tokio::test]
async fn no_helper_of_the_kernel_is_replaced() {
    let options = ["--security-opt", "systempaths=unconfined"];
    let helper = "/proc/sys/kernel/core_pattern";
    assert_walled(&options, &["/probe", "open-to-write", helper]).await;
}
