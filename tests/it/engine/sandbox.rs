//! The walls of the sandbox, tried from inside. Every probe first succeeds in a
//! container without limits, which proves that it can; then it fails in ours.

use std::collections::HashMap;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use infernet::engine::catalogue::Tmpfs;
use infernet::engine::docker::{ContainerHost, Exit};
use infernet::engine::sandbox::{BindMount, LABEL_NODE, NOBODY, Network, Sandbox};

use crate::support::engine_image::docker;

pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// The memory of the sandbox in these tests, in MiB.
const MEMORY_MB: u64 = 64;

/// Its processes.
const PIDS: u32 = 32;

/// The directory in memory of the sandbox, and its size in MiB.
const SCRATCH: &str = "/tmp";
const SCRATCH_MB: u64 = 8;

/// Builds the image with the probe, once for every version of its source, and returns
/// the image's name.
fn probe_image() -> String {
    let source =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/engine/sandbox_probe/probe.c");
    let digest = ring::digest::digest(&ring::digest::SHA256, &std::fs::read(&source).unwrap());
    let name = format!("infernet/sandbox-probe:{}", &hex::encode(digest)[..16]);
    // Tests run at the same time, and one of them is enough to build it.
    let lock_path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sandbox-probe.lock");
    let lock = std::fs::File::create(lock_path).unwrap();
    lock.lock().unwrap();
    if docker(&["image", "inspect", &name]).status.success() {
        return name;
    }
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    for directory in ["tmp", "data"] {
        std::fs::create_dir_all(root.join(directory)).unwrap();
    }
    let run = |command: &mut Command| {
        let output = command.output().unwrap();
        assert!(
            output.status.success(),
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    run(Command::new("cc").args(["-static", "-O1", "-o"]).arg(root.join("probe")).arg(&source));
    // The same program, giving root's rights to whoever runs it.
    std::fs::copy(root.join("probe"), root.join("probe-root")).unwrap();
    let tarball = folder.path().join("layer.tar");
    run(Command::new("chmod").arg("4755").arg(root.join("probe-root")));
    run(Command::new("tar")
        .args(["--create", "--owner=0", "--group=0", "--numeric-owner", "--file"])
        .arg(&tarball)
        .arg("--directory")
        .arg(&root)
        .arg("."));
    run(Command::new("docker")
        .args(["import", "--change", "ENV LD_PRELOAD=/evil.so", "--change"])
        .arg("ENV NVIDIA_VISIBLE_DEVICES=all")
        .arg(&tarball)
        .arg(&name));
    name
}

/// Runs a probe in a container with the given options and nothing else of ours.
pub(crate) fn unrestricted(options: &[&str], probe: &[&str]) -> (bool, String) {
    let image = probe_image();
    let mut arguments = vec!["run", "--rm"];
    if !options.contains(&"--network") {
        // Where the network is not what is tried, a broken one must not matter.
        arguments.extend(["--network", "none"]);
    }
    arguments.extend(options);
    arguments.push(&image);
    arguments.extend(probe);
    let output = docker(&arguments);
    let mut said = output.stdout;
    said.write_all(&output.stderr).unwrap();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

/// Runs a probe in our sandbox.
pub(crate) async fn sandboxed(probe: &[&str], change: impl FnOnce(&mut Sandbox)) -> (Exit, String) {
    let host = ContainerHost::connect(None).await.unwrap();
    let image = host.image(&probe_image()).await.unwrap().unwrap();
    let mut sandbox = Sandbox {
        image_id: image.id,
        command: probe.iter().map(|&word| word.to_owned()).collect(),
        env: Vec::new(),
        image_env: image.env_names,
        user: (NOBODY, NOBODY),
        labels: HashMap::from([(LABEL_NODE.to_owned(), "test-sandbox".to_owned())]),
        mounts: Vec::new(),
        tmpfs: vec![Tmpfs { path: SCRATCH.to_owned(), size_mb: SCRATCH_MB, exec: false }],
        shm_mb: 8,
        memory_mb: MEMORY_MB,
        cpus: 1,
        pids: PIDS,
        gpus: Vec::new(),
        network: Network::Own,
        stdin: false,
        file_mb: None,
    };
    change(&mut sandbox);
    let name = format!("infernet-test-{:x}", fastrand::u64(..));
    host.start(&name, &sandbox).await.unwrap();
    let ended = tokio::time::timeout(LIMIT, host.wait(&name)).await;
    let said = host.last_words(&name).await;
    host.remove(&name).await.unwrap();
    (ended.expect("a probe ends"), said)
}

/// Proves that a probe works without our walls and fails within.
pub(crate) async fn assert_walled(options: &[&str], probe: &[&str]) {
    let (success, said) = unrestricted(options, probe);
    assert!(success, "without limits, {probe:?} must succeed: {said}");
    let (exit, said) = sandboxed(probe, |_| {}).await;
    assert_eq!(exit.code, Some(1), "in the sandbox, {probe:?} must be refused: {said}");
}

/// A bridge network of a test's own, with the address under which containers reach
/// this machine.
struct Bridge {
    name: String,
    gateway: String,
}

impl Bridge {
    fn new() -> Self {
        let name = format!("infernet-test-{:x}", fastrand::u64(..));
        let made = docker(&["network", "create", &name]);
        assert!(made.status.success(), "{made:?}");
        let format = "{{(index .IPAM.Config 0).Gateway}}";
        let found = docker(&["network", "inspect", &name, "--format", format]);
        Self { name, gateway: String::from_utf8(found.stdout).unwrap().trim().to_owned() }
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        docker(&["network", "rm", &self.name]);
    }
}

#[tokio::test]
async fn no_network_of_the_machine_or_of_other_containers() {
    let bridge = Bridge::new();
    for (address, network) in
        [(bridge.gateway.as_str(), bridge.name.as_str()), ("127.0.0.1", "host")]
    {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        assert_walled(&["--network", network], &["/probe", "net", address, &port]).await;
    }
}

#[tokio::test]
async fn no_docker_socket_and_nothing_else_of_the_machine() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    let volume = format!("{}:/data", folder.path().display());
    assert_walled(&["-v", &volume], &["/probe", "local", "/data/s.sock"]).await;
    let docker_socket = "/var/run/docker.sock";
    let volume = format!("{docker_socket}:{docker_socket}");
    assert_walled(&["-v", &volume], &["/probe", "local", docker_socket]).await;
}

#[tokio::test]
async fn no_writes_to_the_root_or_the_kernel() {
    assert_walled(&[], &["/probe", "write", "/x"]).await;
    assert_walled(&[], &["/probe", "write", "/data/x"]).await;
    let kernel = "/proc/sys/kernel/domainname";
    let unmasked = ["--security-opt", "systempaths=unconfined"];
    assert_walled(&unmasked, &["/probe", "open-to-write", kernel]).await;
}

#[tokio::test]
async fn no_writes_to_a_mounted_model() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("model"), "x").unwrap();
    Command::new("chmod").args(["-R", "a+rwX"]).arg(folder.path()).status().unwrap();
    let volume = format!("{}:/data", folder.path().display());
    let probe = ["/probe", "open-to-write", "/data/model"];
    let (success, said) = unrestricted(&["-v", &volume, "--user", "65534"], &probe);
    assert!(success, "{said}");
    let mount =
        BindMount { source: folder.path().to_owned(), target: "/data".to_owned(), writable: false };
    let (exit, said) = sandboxed(&probe, |sandbox| sandbox.mounts = vec![mount]).await;
    assert_eq!(exit.code, Some(1), "{said}");
    assert!(said.contains("Read-only file system"), "{said}");
}

#[tokio::test]
async fn no_mounts() {
    let options = ["--cap-add", "SYS_ADMIN", "--security-opt", "apparmor=unconfined"];
    assert_walled(&options, &["/probe", "mount", SCRATCH]).await;
}

#[tokio::test]
async fn no_capabilities() {
    assert_walled(&[], &["/probe", "capabilities"]).await;
    assert_walled(&[], &["/probe", "chown", "/tmp/x"]).await;
    assert_walled(&[], &["/probe", "mknod", "/tmp/null"]).await;
    // Even as root inside, there are none.
    for probe in [&["/probe", "capabilities"][..], &["/probe", "mknod", "/tmp/null"]] {
        let (exit, said) = sandboxed(probe, |sandbox| sandbox.user = (0, 0)).await;
        assert_eq!(exit.code, Some(1), "{said}");
    }
}

#[tokio::test]
async fn no_rights_from_a_setuid_program() {
    assert_walled(&["--user", "65534:65534"], &["/probe-root", "user"]).await;
}

#[tokio::test]
async fn no_user_namespaces() {
    // What seccomp prevents, and nothing else of ours does.
    assert_walled(&["--security-opt", "seccomp=unconfined"], &["/probe", "namespace"]).await;
}

#[tokio::test]
async fn no_devices() {
    let options = ["--device", "/dev/kmsg", "--cap-add", "SYSLOG"];
    assert_walled(&options, &["/probe", "open", "/dev/kmsg"]).await;
}

#[tokio::test]
async fn no_variables_that_steer_the_loader_or_nvidias_hook() {
    for name in ["LD_PRELOAD", "NVIDIA_VISIBLE_DEVICES"] {
        assert_walled(&[], &["/probe", "environment", name]).await;
    }
}

#[tokio::test]
async fn no_programs_from_the_directory_in_memory() {
    assert_walled(&[], &["/probe", "execute", "/tmp/x"]).await;
}

#[tokio::test]
async fn memory_has_a_limit() {
    let probe = ["/probe", "memory", "256"];
    let (success, said) = unrestricted(&[], &probe);
    assert!(success, "{said}");
    let (exit, said) = sandboxed(&probe, |_| {}).await;
    assert!(exit.out_of_memory, "{exit:?}: {said}");
    assert_eq!(exit.code, Some(137));
    // Directories in memory have theirs, and count as memory.
    let probe = ["/probe", "fill", SCRATCH, "12"];
    assert_walled(&[], &probe).await;
}

#[tokio::test]
async fn processes_have_a_limit() {
    let probe = ["/probe", "processes", "100"];
    let (success, said) = unrestricted(&[], &probe);
    assert!(success, "{said}");
    let (exit, said) = sandboxed(&probe, |_| {}).await;
    assert_eq!(exit.code, Some(1), "{said}");
    assert!(said.contains("refused: fork"), "{said}");
}

#[tokio::test]
async fn time_has_a_limit_and_its_end_is_certain() {
    let (success, said) = unrestricted(&[], &["/probe", "sleep", "2"]);
    assert!(success, "{said}");
    // Time is the agent's to limit: it removes the container, whatever that does.
    let host = ContainerHost::connect(None).await.unwrap();
    let running = sandboxed(&["/probe", "sleep", "600"], |sandbox| {
        sandbox.labels = HashMap::from([(LABEL_NODE.to_owned(), "test-deadline".to_owned())]);
    });
    let ending = async {
        let found = loop {
            let found = host.containers_of("test-deadline", None).await.unwrap();
            if !found.is_empty() {
                break found;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        tokio::time::sleep(Duration::from_millis(500)).await;
        host.remove(&found[0]).await.unwrap();
    };
    let begun = std::time::Instant::now();
    tokio::join!(running, ending);
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    assert!(host.containers_of("test-deadline", None).await.unwrap().is_empty());
}
