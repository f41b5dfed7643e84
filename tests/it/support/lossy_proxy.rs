//! A proxy in front of a control plane that is unkind to websockets: it drops a
//! share of the broadcasts, in both directions, or falls silent altogether.
//! Everything else passes through untouched.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures_util::{SinkExt, StreamExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::{accept_hdr_async, client_async};
use tokio_util::sync::CancellationToken;

/// How the proxy behaves; may be changed while it runs.
#[derive(Default)]
struct Temper {
    /// Of 1000 broadcasts, how many are dropped.
    lost_per_mille: AtomicU64,
    /// Nothing passes a websocket any more, and nothing is closed.
    silent: AtomicBool,
    dropped: AtomicU64,
}

/// A running proxy; it ends when it is dropped.
pub(crate) struct LossyProxy {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    temper: Arc<Temper>,
    stop: CancellationToken,
    _tasks: JoinSet<()>,
}

impl LossyProxy {
    /// Starts in front of `upstream`, at first without loss.
    pub(crate) async fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let temper = Arc::new(Temper::default());
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let (shared, stopped) = (Arc::clone(&temper), stop.clone());
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let accepted = tokio::select! {
                    () = stopped.cancelled() => return,
                    accepted = listener.accept() => accepted,
                };
                let Ok((stream, _)) = accepted else { continue };
                connections.spawn(serve(stream, upstream, Arc::clone(&shared)));
            }
        });
        Self { address, temper, stop, _tasks: tasks }
    }

    /// Drops that share of the broadcasts from now on.
    pub(crate) fn lose(&self, share: f64) {
        self.temper.lost_per_mille.store((share * 1000.0) as u64, Ordering::Relaxed);
    }

    /// Lets nothing pass any more, without closing anything; or all again.
    pub(crate) fn silence(&self, silent: bool) {
        self.temper.silent.store(silent, Ordering::Relaxed);
    }

    /// How many broadcasts were dropped.
    pub(crate) fn dropped(&self) -> u64 {
        self.temper.dropped.load(Ordering::Relaxed)
    }
}

impl Drop for LossyProxy {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Temper {
    /// Tells whether a message passes.
    fn passes(&self, message: &Message) -> bool {
        if self.silent.load(Ordering::Relaxed) {
            return false;
        }
        let is_broadcast = match message {
            Message::Text(text) => text.contains("\"broadcast\"") && !text.contains("phx_"),
            Message::Binary(_) => true,
            _ => false,
        };
        let lost =
            is_broadcast && fastrand::u64(..1000) < self.lost_per_mille.load(Ordering::Relaxed);
        if lost {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        !lost
    }
}

async fn serve(mut stream: TcpStream, upstream: SocketAddr, temper: Arc<Temper>) {
    let _ = stream.set_nodelay(true);
    let Ok(mut server) = TcpStream::connect(upstream).await else { return };
    let _ = server.set_nodelay(true);
    let mut head = [0; 64];
    let Ok(read) = stream.peek(&mut head).await else { return };
    if !head[..read].starts_with(b"GET /realtime/v1/websocket") {
        let _ = tokio::io::copy_bidirectional(&mut stream, &mut server).await;
        return;
    }
    let mut path = String::new();
    #[expect(clippy::result_large_err, reason = "the signature is the library's")]
    let remember = |request: &Request, response: Response| {
        path = request.uri().to_string();
        Ok(response)
    };
    let Ok(client) = accept_hdr_async(stream, remember).await else { return };
    let Ok((server, _)) = client_async(format!("ws://{upstream}{path}"), server).await else {
        // The server refused; the client sees its socket end.
        return;
    };
    let (mut to_client, mut from_client) = client.split();
    let (mut to_server, mut from_server) = server.split();
    loop {
        let sent = tokio::select! {
            message = from_client.next() => match message {
                Some(Ok(message)) if temper.passes(&message) => to_server.send(message).await,
                Some(Ok(_)) => Ok(()),
                _ => return,
            },
            message = from_server.next() => match message {
                Some(Ok(message)) if temper.passes(&message) => to_client.send(message).await,
                Some(Ok(_)) => Ok(()),
                _ => return,
            },
        };
        if sent.is_err() {
            return;
        }
    }
}
