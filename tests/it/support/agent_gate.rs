//! A gate before a control plane that can make its Realtime, or all of it,
//! fail in the ways that real ones do.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// How the gate treats connections.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub(crate) enum Gate {
    /// Everything passes.
    Open,
    /// Connections to Realtime are closed without a word.
    RealtimeRefused,
    /// Realtime answers 429, as a server does that has no socket left.
    RealtimeFull,
    /// Realtime takes the connection and never says anything.
    RealtimeSilent,
    /// Nothing passes: the control plane is away.
    Shut,
    /// Everything passes but the answers that [`ControlGate::lose_answers`] names.
    Listening,
}

/// How a request begins that hands an attempt's result in.
const COMPLETION: &[u8] = b"POST /rest/v1/rpc/complete_attempt ";

/// Answers to completions that are lost on their way.
#[derive(Default)]
struct Losses {
    /// How many are still to be lost.
    wanted: usize,
    /// The attempts whose first answer was lost.
    lost: Vec<String>,
}

/// A running gate; it ends when it is dropped.
pub(crate) struct ControlGate {
    pub(crate) address: SocketAddr,
    mode: Arc<AtomicU8>,
    /// Each open connection to Realtime listens here for its end.
    cuts: watch::Sender<()>,
    losses: Arc<Mutex<Losses>>,
    server: JoinHandle<()>,
}

impl Drop for ControlGate {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl ControlGate {
    /// Binds the gate to a free port of an address of this machine; connections go to
    /// `upstream` later.
    pub(crate) async fn bind(
        mode: Gate,
        ip: IpAddr,
    ) -> (Self, tokio::sync::oneshot::Sender<SocketAddr>) {
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(AtomicU8::new(mode as u8));
        let (sender, upstream) = tokio::sync::oneshot::channel();
        let mode = Arc::clone(&shared);
        let cuts = watch::Sender::new(());
        let cutting = cuts.clone();
        let losses = Arc::new(Mutex::new(Losses::default()));
        let losing = Arc::clone(&losses);
        let server = tokio::spawn(async move {
            let Ok(upstream) = upstream.await else { return };
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let cut = cutting.clone();
                let losses = Arc::clone(&losing);
                connections.spawn(pass(client, upstream, Arc::clone(&mode), cut, losses));
            }
        });
        (Self { address, mode: shared, cuts, losses, server }, sender)
    }

    /// Returns the URL of the control plane behind the gate.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Changes what new connections meet; open ones are cut when it shuts.
    pub(crate) fn set(&self, mode: Gate) {
        self.mode.store(mode as u8, Ordering::Relaxed);
    }

    /// Loses the answers to the next completions, of as many attempts: the control
    /// plane has dealt with each when its connection breaks. Forgets which were lost
    /// before.
    pub(crate) fn lose_answers(&self, attempts: usize) {
        *self.losses.lock().unwrap() = Losses { wanted: attempts, lost: Vec::new() };
    }

    /// Returns the attempts whose answer was lost.
    pub(crate) fn lost_answers(&self) -> Vec<String> {
        self.losses.lock().unwrap().lost.clone()
    }

    /// Cuts the open connections to Realtime; returns how many there were.
    pub(crate) fn cut_realtime(&self) -> usize {
        let open = self.cuts.receiver_count();
        self.cuts.send_replace(());
        open
    }
}

async fn pass(
    mut client: TcpStream,
    upstream: SocketAddr,
    mode: Arc<AtomicU8>,
    cuts: watch::Sender<()>,
    losses: Arc<Mutex<Losses>>,
) {
    let is = |gate: Gate| mode.load(Ordering::Relaxed) == gate as u8;
    if is(Gate::Shut) {
        return;
    }
    let mut first = [0_u8; 14];
    while let Ok(seen) = client.peek(&mut first).await {
        if seen == 0 {
            return;
        }
        if seen == first.len() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut cut = None;
    if &first == b"GET /realtime/" {
        cut = Some(cuts.subscribe());
        if is(Gate::RealtimeRefused) {
            return;
        }
        if is(Gate::RealtimeFull) {
            let mut request = [0_u8; 4096];
            let _read = client.read(&mut request).await;
            let body = r#"{"error":"Too many connected users"}"#;
            let answer = format!(
                "HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/json\r\n\
                 content-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            let _written = client.write_all(answer.as_bytes()).await;
            return;
        }
        if is(Gate::RealtimeSilent) {
            let mut request = [0_u8; 4096];
            while client.read(&mut request).await.is_ok_and(|read| read > 0) {}
            return;
        }
    }
    let Ok(mut server) = TcpStream::connect(upstream).await else { return };
    let _nodelay = client.set_nodelay(true).and_then(|()| server.set_nodelay(true));
    if is(Gate::Listening) {
        let _ended = listen(&mut client, &mut server, &losses).await;
        return;
    }
    tokio::select! {
        _ended = copy_bidirectional(&mut client, &mut server) => {}
        () = async {
            match &mut cut {
                Some(cut) => drop(cut.changed().await),
                None => std::future::pending().await,
            }
        } => {}
        () = async {
            while !is(Gate::Shut) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        } => {}
    }
}

/// Passes everything on until either end is gone, or until the answer to a completion
/// has come that is to be lost.
async fn listen(
    client: &mut TcpStream,
    server: &mut TcpStream,
    losses: &Mutex<Losses>,
) -> std::io::Result<()> {
    let (mut asked, mut answered) = (vec![0_u8; 65536], vec![0_u8; 65536]);
    // The completion that waits for its answer. HTTP/1.1 has one request at a time.
    let mut completion = Vec::new();
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                let piece = &asked[..read?];
                if piece.is_empty() {
                    return Ok(());
                }
                if !completion.is_empty() || piece.starts_with(COMPLETION) {
                    completion.extend_from_slice(piece);
                }
                server.write_all(piece).await?;
            }
            read = server.read(&mut answered) => {
                let piece = &answered[..read?];
                let asked = std::mem::take(&mut completion);
                if piece.is_empty() || is_lost(&asked, losses) {
                    return Ok(());
                }
                client.write_all(piece).await?;
            }
        }
    }
}

/// Says whether the answer to a request is to be lost, and notes that it is.
fn is_lost(request: &[u8], losses: &Mutex<Losses>) -> bool {
    let request = String::from_utf8_lossy(request);
    let Some((_, rest)) = request.split_once("\"p_attempt\":\"") else { return false };
    let attempt: String = rest.chars().take_while(|&character| character != '"').collect();
    let mut losses = losses.lock().unwrap();
    if losses.wanted == 0 || losses.lost.contains(&attempt) {
        return false;
    }
    losses.wanted -= 1;
    losses.lost.push(attempt);
    true
}
