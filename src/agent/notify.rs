//! What a service manager is told: that the agent is ready, that it ends, and that
//! it lives.
//!
//! The protocol is a datagram of `NAME=value` lines to the socket that
//! `NOTIFY_SOCKET` names (`man sd_notify`). It is a dozen lines here, so that no
//! crate is needed for it. Without such a socket nothing is sent.
//!
//! The watchdog is fed only when the attempt table has answered: an agent whose
//! owner loop hangs is restarted, whatever its timers do.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use super::table::{TableEvent, look};

/// The connection to the service manager, if there is one.
#[derive(Debug, Default)]
pub struct Notifier {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// Finds the service manager that the environment names.
    pub fn from_env() -> Self {
        Self::resolve(|name| std::env::var_os(name))
    }

    /// Finds it in another environment.
    fn resolve(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let Some(name) = variable("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Self::default();
        };
        let socket = match connect(&name) {
            Ok(socket) => socket,
            Err(error) => {
                error!(error = %error, "the service manager cannot be told that the agent is ready");
                return Self::default();
            }
        };
        let number = |name: &str| variable(name)?.to_str()?.parse::<u64>().ok();
        // The variables may have come down from another process's service.
        let meant = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|usec| meant && *usec > 0);
        Self { socket: Some(socket), watchdog: watchdog.map(Duration::from_micros) }
    }

    /// Says that the agent takes work.
    pub(super) fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={status}\n"));
    }

    /// Says that the agent ends.
    pub(super) fn stopping(&self) {
        self.send("STOPPING=1\nSTATUS=Takes no more work and finishes what it holds.\n");
    }

    fn alive(&self, status: &str) {
        self.send(&format!("WATCHDOG=1\nSTATUS={status}\n"));
    }

    fn send(&self, message: &str) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = socket.send(message.as_bytes()) {
            // It is told again with the next message.
            debug!(error = %error, "the service manager was not told");
        }
    }
}

/// Connects to a socket by its path, or by its abstract name after an `@`. Sending
/// never waits: a service manager that does not read must not hold up the agent.
fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    match name.as_bytes() {
        [b'@', name @ ..] => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        _ => socket.connect(name)?,
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Feeds the watchdog three times in its interval, as long as the table answers.
/// Ends at once where there is none.
pub(super) async fn run_watchdog(
    notifier: &Notifier,
    table: mpsc::Sender<TableEvent>,
    shutdown: CancellationToken,
) {
    let Some(watchdog) = notifier.watchdog else { return };
    let pause = watchdog / 3;
    let mut ticks = interval(pause.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        match look(&table, pause).await {
            Some(view) => notifier.alive(&format!(
                "{} running, {} completed, {} failed.",
                view.attempts.len(),
                view.counters.completed,
                view.counters.failed
            )),
            // While the agent ends, the table goes first.
            None if table.is_closed() => return,
            None => error!("the attempt table does not answer; the watchdog is not fed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::super::table::TableView;
    use super::*;

    fn environment(socket: &str) -> impl Fn(&str) -> Option<OsString> {
        move |name: &str| match name {
            "NOTIFY_SOCKET" => Some(socket.into()),
            "WATCHDOG_USEC" => Some("90000".into()),
            _ => None,
        }
    }

    fn hear(socket: &UnixDatagram) -> Option<String> {
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8(buffer[..length].to_vec()).unwrap())
    }

    #[test]
    fn both_kinds_of_names_are_understood_and_none_is_no_error() {
        let name = format!("infernet-notify-{}", uuid::Uuid::new_v4());
        let address = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        Notifier::resolve(environment(&format!("@{name}"))).ready("Ready.");
        assert_eq!(hear(&manager).unwrap(), "READY=1\nSTATUS=Ready.\n");

        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::resolve(environment(path.to_str().unwrap()));
        notifier.stopping();
        assert!(hear(&manager).unwrap().starts_with("STOPPING=1\n"));
        assert_eq!(notifier.watchdog, Some(Duration::from_millis(90)));

        Notifier::resolve(environment("/nonexistent/notify")).ready("Ready.");
        Notifier::resolve(|_name| None).ready("Ready.");
    }

    #[test]
    fn the_watchdog_of_another_process_is_not_ours() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("notify");
        let _manager = UnixDatagram::bind(&path).unwrap();
        let given = environment(path.to_str().unwrap());
        let notifier =
            Notifier::resolve(
                |name| if name == "WATCHDOG_PID" { Some("1".into()) } else { given(name) },
            );
        assert_eq!(notifier.watchdog, None);
    }

    #[tokio::test]
    async fn a_table_that_does_not_answer_starves_the_watchdog() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_nonblocking(true).unwrap();
        let notifier = Notifier::resolve(environment(path.to_str().unwrap()));
        let (table, mut events) = mpsc::channel(1);
        let shutdown = CancellationToken::new();
        let _end = shutdown.clone().drop_guard();
        let watching = run_watchdog(&notifier, table, shutdown);
        let owner = async {
            for _turn in 0..2 {
                let asked = timeout(Duration::from_secs(5), events.recv()).await;
                let Ok(Some(TableEvent::Look(answer))) = asked else { panic!("not asked") };
                answer.send(TableView::default()).unwrap();
            }
            // From here on it hangs: its queue is there, and nobody takes from it.
            tokio::time::sleep(Duration::from_millis(300)).await;
            events
        };
        tokio::select! {
            () = watching => panic!("the watchdog ended"),
            _events = owner => {}
        }
        let heard: Vec<String> = std::iter::from_fn(|| hear(&manager)).collect();
        assert_eq!(heard.len(), 2, "{heard:?}");
        assert!(heard[0].starts_with("WATCHDOG=1\nSTATUS=0 running"), "{heard:?}");
    }
}
