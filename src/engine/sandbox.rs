//! The walls of every container.
//!
//! [`Sandbox::container`] is the only place in which the description of a container is
//! made, for engines that serve models as for anything else that this node runs. What
//! may vary (sizes, mounts, GPUs) are fields of [`Sandbox`]; what may not (no network,
//! read-only root, no capability, no new privileges, default seccomp, an ordinary
//! user) cannot be expressed.

use std::collections::HashMap;
use std::path::PathBuf;

use bollard::models::{
    ContainerCreateBody, DeviceRequest, HostConfig, HostConfigLogConfig, Mount, MountBindOptions,
    MountBindOptionsPropagationEnum, MountType, ResourcesUlimits, RestartPolicy,
    RestartPolicyNameEnum,
};

use crate::engine::catalogue::{Tmpfs, is_withheld};

/// Label with the node that a container belongs to; leftovers are found by it.
pub const LABEL_NODE: &str = "infernet.node";
/// Label with the catalogue's entry that a container was made from.
pub const LABEL_ENGINE: &str = "infernet.engine";
/// Label with the model that a container serves.
pub const LABEL_MODEL: &str = "infernet.model";
/// Label with the attempt that a container was made for.
pub const LABEL_ATTEMPT: &str = "infernet.attempt";

/// The user and group `nobody`: owns nothing on any machine.
pub const NOBODY: u32 = 65_534;

const MIB: i64 = 1024 * 1024;

/// A directory or file of this machine that a container sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindMount {
    /// The path on this machine.
    pub source: PathBuf,
    /// The path in the container.
    pub target: String,
    /// Whether the container may write to it.
    pub writable: bool,
}

/// What network a container has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Network {
    /// None but its own loopback interface, which nobody else reaches.
    #[default]
    Own,
    /// That of another of our containers, of this name: also no more than a loopback
    /// interface, which the two share.
    Of(String),
}

/// Everything about a container that may differ from another.
#[derive(Debug, Clone)]
pub struct Sandbox {
    /// The image's id (never a name, which could come to mean another image).
    pub image_id: String,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Environment variables to set.
    pub env: Vec<(String, String)>,
    /// The names of the variables that the image sets; some are taken away.
    pub image_env: Vec<String>,
    /// The user and group inside, as numbers.
    pub user: (u32, u32),
    /// Labels by which the container is found again.
    pub labels: HashMap<String, String>,
    /// What of this machine it sees.
    pub mounts: Vec<BindMount>,
    /// Directories in memory.
    pub tmpfs: Vec<Tmpfs>,
    /// The size of `/dev/shm`, in MiB.
    pub shm_mb: u64,
    /// The limit of its memory, in MiB, without swap.
    pub memory_mb: u64,
    /// The number of processors that it may keep busy.
    pub cpus: u32,
    /// The most processes and threads.
    pub pids: u32,
    /// UUIDs of the GPUs that it sees.
    pub gpus: Vec<String>,
    /// Its network.
    pub network: Network,
    /// Whether something is written to its standard input, which then ends.
    pub stdin: bool,
    /// The largest file that it may write, in MiB, where it may write to this
    /// machine's disk.
    pub file_mb: Option<u64>,
}

impl Sandbox {
    /// Returns the description of the container that Docker is given.
    #[must_use]
    pub fn container(&self) -> ContainerCreateBody {
        let (command, arguments) =
            self.command.split_first().map_or((None, None), |(command, arguments)| {
                (Some(vec![command.clone()]), Some(arguments.to_vec()))
            });
        ContainerCreateBody {
            image: Some(self.image_id.clone()),
            // Both are set, so that nothing of the image's own start remains.
            entrypoint: command,
            cmd: arguments,
            working_dir: Some("/".to_owned()),
            env: Some(self.environment()),
            user: Some(format!("{}:{}", self.user.0, self.user.1)),
            // Docker takes neither where the network is another container's.
            hostname: (self.network == Network::Own).then(|| "engine".to_owned()),
            network_disabled: (self.network == Network::Own).then_some(true),
            open_stdin: Some(self.stdin),
            stdin_once: Some(self.stdin),
            attach_stdin: Some(self.stdin),
            // A health check of the image would run its own programs in here.
            healthcheck: Some(bollard::models::HealthConfig {
                test: Some(vec!["NONE".to_owned()]),
                ..Default::default()
            }),
            labels: Some(self.labels.clone()),
            stop_timeout: Some(1),
            host_config: Some(self.host_config()),
            ..Default::default()
        }
    }

    /// Returns the limits; the one function that sets any.
    fn host_config(&self) -> HostConfig {
        let memory = mib(self.memory_mb);
        HostConfig {
            network_mode: Some(match &self.network {
                Network::Own => "none".to_owned(),
                Network::Of(container) => format!("container:{container}"),
            }),
            readonly_rootfs: Some(true),
            privileged: Some(false),
            cap_drop: Some(vec!["ALL".to_owned()]),
            cap_add: Some(Vec::new()),
            // Seccomp is not named: naming none leaves Docker's default profile, and
            // the host is asked for one before anything starts.
            security_opt: Some(vec!["no-new-privileges".to_owned()]),
            ipc_mode: Some("private".to_owned()),
            memory: Some(memory),
            // The same number means no swap at all.
            memory_swap: Some(memory),
            nano_cpus: Some(i64::from(self.cpus) * 1_000_000_000),
            pids_limit: Some(i64::from(self.pids)),
            // Under memory pressure of the whole machine the owner's programs live longer.
            oom_score_adj: Some(500),
            ulimits: Some(self.ulimits()),
            shm_size: Some(mib(self.shm_mb)),
            tmpfs: Some(self.tmpfs.iter().map(|tmpfs| tmpfs_option(tmpfs, self.user)).collect()),
            mounts: Some(self.mounts.iter().map(bind_mount).collect()),
            devices: Some(Vec::new()),
            device_requests: self.gpu_request(),
            log_config: Some(HostConfigLogConfig {
                typ: Some("json-file".to_owned()),
                config: Some(HashMap::from([
                    ("max-size".to_owned(), "1m".to_owned()),
                    ("max-file".to_owned(), "1".to_owned()),
                ])),
            }),
            // Restarts are the pool's business, which counts them.
            restart_policy: Some(RestartPolicy {
                name: Some(RestartPolicyNameEnum::NO),
                maximum_retry_count: None,
            }),
            auto_remove: Some(false),
            init: Some(false),
            ..Default::default()
        }
    }

    /// Returns the variables to set, with those of the image that steer the loader or
    /// NVIDIA's hook set to nothing: Docker has no way to leave them out.
    fn environment(&self) -> Vec<String> {
        let emptied =
            self.image_env.iter().filter(|name| is_withheld(name)).map(|name| format!("{name}="));
        let given = self.env.iter().map(|(name, value)| format!("{name}={value}"));
        emptied.chain(given).collect()
    }

    fn ulimits(&self) -> Vec<ResourcesUlimits> {
        let mut limits = vec![ulimit("core", 0), ulimit("nofile", 4096)];
        limits.extend(self.file_mb.map(|size| ulimit("fsize", mib(size))));
        limits
    }

    fn gpu_request(&self) -> Option<Vec<DeviceRequest>> {
        if self.gpus.is_empty() {
            return None;
        }
        Some(vec![DeviceRequest {
            driver: Some("nvidia".to_owned()),
            device_ids: Some(self.gpus.clone()),
            capabilities: Some(vec![vec!["gpu".to_owned(), "compute".to_owned()]]),
            ..Default::default()
        }])
    }
}

/// Converts MiB to bytes, staying within Docker's numbers.
fn mib(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX).saturating_mul(MIB)
}

fn ulimit(name: &str, limit: i64) -> ResourcesUlimits {
    ResourcesUlimits { name: Some(name.to_owned()), soft: Some(limit), hard: Some(limit) }
}

/// Returns the options of a directory in memory. It belongs to the container's user:
/// the mode alone would not open it, since that of the image's own directory of the
/// same name wins.
fn tmpfs_option(tmpfs: &Tmpfs, user: (u32, u32)) -> (String, String) {
    let (uid, gid) = user;
    let size = tmpfs.size_mb;
    let exec = if tmpfs.exec { "exec" } else { "noexec" };
    (
        tmpfs.path.clone(),
        format!("rw,{exec},nosuid,nodev,mode=700,uid={uid},gid={gid},size={size}m"),
    )
}

fn bind_mount(mount: &BindMount) -> Mount {
    Mount {
        target: Some(mount.target.clone()),
        source: Some(mount.source.display().to_string()),
        typ: Some(MountType::BIND),
        read_only: Some(!mount.writable),
        bind_options: Some(MountBindOptions {
            propagation: Some(MountBindOptionsPropagationEnum::RPRIVATE),
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sandbox() -> Sandbox {
        Sandbox {
            image_id: "sha256:abc".to_owned(),
            command: vec!["/bin/server".to_owned(), "--flag".to_owned()],
            env: vec![("HOME".to_owned(), "/tmp".to_owned())],
            image_env: ["PATH", "LD_PRELOAD", "NVIDIA_VISIBLE_DEVICES"].map(str::to_owned).to_vec(),
            user: (NOBODY, NOBODY),
            labels: HashMap::new(),
            mounts: vec![BindMount {
                source: PathBuf::from("/m.gguf"),
                target: "/models/model.gguf".to_owned(),
                writable: false,
            }],
            tmpfs: vec![Tmpfs { path: "/tmp".to_owned(), size_mb: 8, exec: false }],
            shm_mb: 16,
            memory_mb: 256,
            cpus: 2,
            pids: 64,
            gpus: Vec::new(),
            network: Network::Own,
            stdin: false,
            file_mb: None,
        }
    }

    #[test]
    fn every_wall_stands() {
        let body = sandbox().container();
        let host = body.host_config.unwrap();
        assert_eq!(body.user.unwrap(), "65534:65534");
        assert_eq!(body.network_disabled, Some(true));
        assert_eq!(host.network_mode.as_deref(), Some("none"));
        assert_eq!(host.readonly_rootfs, Some(true));
        assert_eq!(host.cap_drop.unwrap(), ["ALL"]);
        assert!(host.cap_add.unwrap().is_empty());
        assert_eq!(host.security_opt.unwrap(), ["no-new-privileges"]);
        assert_eq!((host.memory, host.memory_swap), (Some(256 * MIB), Some(256 * MIB)));
        assert_eq!(host.pids_limit, Some(64));
        assert_eq!(host.nano_cpus, Some(2_000_000_000));
        assert!(host.devices.unwrap().is_empty());
        assert!(host.device_requests.is_none());
        assert_eq!(host.mounts.unwrap()[0].read_only, Some(true));
    }

    #[test]
    fn variables_of_the_image_that_steer_the_loader_are_emptied() {
        let env = sandbox().container().env.unwrap();
        assert_eq!(env, ["LD_PRELOAD=", "NVIDIA_VISIBLE_DEVICES=", "HOME=/tmp"]);
    }

    #[test]
    fn only_named_gpus_are_asked_for() {
        let gpus = vec!["GPU-1".to_owned()];
        let host = Sandbox { gpus: gpus.clone(), ..sandbox() }.container().host_config.unwrap();
        let request = &host.device_requests.unwrap()[0];
        assert_eq!(request.device_ids.as_ref(), Some(&gpus));
        assert_eq!(request.count, None);
    }
}
