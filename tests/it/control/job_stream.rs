//! Reading a job while it is written: nothing is lost or doubled when a fifth of
//! the frames is, a fenced node is not read, and without Realtime the answer
//! still comes.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use infernet::control::job_stream::{JobEvent, JobStream, StreamTiming, open_realtime};
use infernet::control::realtime::{Channel, ChannelEvent, Realtime, RealtimeEndpoint};
use infernet::control::rpc::{Job, JobState, StartedAttempt, SubmitJob, Usage};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::support::lossy_proxy::LossyProxy;
use crate::support::test_market::{LIMIT, TestMarket, TestNode};

const MODEL: &str = "stream-test";

fn question(text: &str) -> SubmitJob {
    SubmitJob::chat(MODEL, json!({"messages": [{"role": "user", "content": text}]}))
}

/// Text whose bytes and letters differ, in pieces.
fn pieces(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("wörd {number} ")).collect()
}

fn usage(output: &str) -> Usage {
    let output_tokens = output.split_whitespace().count() as u64;
    Usage { input_tokens: 5, output_tokens, seconds: None }
}

/// What a reader would have on the screen at the end.
struct Read {
    screen: String,
    voided: usize,
    job: Job,
    before_end: usize,
}

async fn read(stream: &mut JobStream) -> Read {
    let mut screen = String::new();
    let mut voided = 0;
    let mut before_end = 0;
    loop {
        let event = tokio::time::timeout(LIMIT, stream.next()).await.unwrap().unwrap().unwrap();
        match event {
            JobEvent::Text(text) => screen.push_str(&text),
            JobEvent::Instead(text) => {
                voided += 1;
                screen = text;
            }
            JobEvent::Changed(_) | JobEvent::Away(_) => {}
            JobEvent::Ended(job) => {
                assert_eq!(stream.text(), screen);
                return Read { screen, voided, job: *job, before_end };
            }
        }
        before_end = screen.len();
    }
}

/// Writes pieces as a node does, but loses a share of the frames; answers
/// requests to send again, of which it loses as many.
struct Writer {
    attempt: StartedAttempt,
    channel: Channel,
    written: String,
    random: fastrand::Rng,
    loss: f64,
    resends: usize,
}

impl Writer {
    async fn new(node: &TestNode, attempt: StartedAttempt, loss: f64) -> Self {
        let channel = node.join(&attempt).await;
        let random = fastrand::Rng::with_seed(7);
        Self { attempt, channel, written: String::new(), random, loss, resends: 0 }
    }

    fn is_lost(&mut self) -> bool {
        self.random.f64() < self.loss
    }

    fn send(&mut self, from: usize) {
        if !self.is_lost() {
            let text = &self.written[from..];
            let delta = json!({"attempt": self.attempt.attempt, "offset": from, "text": text});
            self.channel.send("delta", &delta).unwrap();
        }
    }

    fn answer_resends(&mut self) {
        while let Some(event) = self.channel.try_recv() {
            self.answer(event);
        }
    }

    fn answer(&mut self, event: ChannelEvent) {
        if let ChannelEvent::Broadcast { event, payload, .. } = event
            && event == "resend"
            && payload["attempt"] == json!(self.attempt.attempt)
        {
            self.resends += 1;
            let from = usize::try_from(payload["from"].as_u64().unwrap()).unwrap();
            if from < self.written.len() {
                self.send(from);
            }
        }
    }

    async fn write(&mut self, piece: &str) {
        let from = self.written.len();
        self.written.push_str(piece);
        self.send(from);
        tokio::time::sleep(Duration::from_millis(3)).await;
        self.answer_resends();
    }

    /// Says that nothing follows, and answers requests for a while.
    async fn end(&mut self) {
        let length = self.written.len();
        let end = json!({"attempt": self.attempt.attempt, "length": length, "finish": "stop"});
        self.channel.send("end", &end).unwrap();
        let until = tokio::time::Instant::now() + Duration::from_millis(600);
        while let Ok(Some(event)) = tokio::time::timeout_at(until, self.channel.recv()).await {
            self.answer(event);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_doubled_with_a_fifth_of_the_frames_dropped() {
    let market = TestMarket::open().await;
    let node = market.node("attic", MODEL, 1).await;
    let shutdown = CancellationToken::new();
    let realtime = open_realtime(market.consumer.session().unwrap(), shutdown.clone()).unwrap();
    let mut stream = JobStream::submit(
        &market.consumer,
        Some(&realtime),
        &question("count"),
        StreamTiming::default(),
    )
    .await
    .unwrap();
    let text = pieces(300);
    let whole: String = text.concat();
    let writing = async {
        let attempt = node.take().await;
        let mut writer = Writer::new(&node, attempt, 0.2).await;
        for piece in &text {
            writer.write(piece).await;
        }
        writer.end().await;
        let written = writer.written.clone();
        let done = node.complete(&writer.attempt, &written, "stop", usage(&written)).await;
        assert!(done.accepted, "{done:?}");
        writer.resends
    };
    let (read, resends) = tokio::join!(read(&mut stream), writing);
    assert_eq!(read.screen, whole);
    assert_eq!(read.voided, 0);
    assert_eq!(read.job.state, JobState::Completed);
    assert_eq!(read.before_end, whole.len(), "the text came by the stream, before the end");
    assert!(resends > 0, "something was lost and asked for");
    assert!(stream.measure().streamed);
    assert_eq!(read.job.output.as_deref(), Some(whole.as_str()));
    shutdown.cancel();
    market.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fenced_node_that_keeps_writing_is_not_read() {
    let market = TestMarket::open().await;
    let first = market.node("first", MODEL, 1).await;
    let shutdown = CancellationToken::new();
    let realtime = open_realtime(market.consumer.session().unwrap(), shutdown.clone()).unwrap();
    let mut stream = JobStream::submit(
        &market.consumer,
        Some(&realtime),
        &question("count"),
        StreamTiming::default(),
    )
    .await
    .unwrap();
    let writing = async {
        let attempt = first.take().await;
        let mut fenced = Writer::new(&first, attempt, 0.0).await;
        fenced.write("one ").await;
        fenced.write("two ").await;
        // The first node restarts and forgets what it ran; a second one takes over.
        let second = market.node("second", MODEL, 1).await;
        first.rpc.claim_attempts(&[], true).await.unwrap();
        first.rpc.leave().await.unwrap();
        let attempt = second.take().await;
        let mut writer = Writer::new(&second, attempt, 0.0).await;
        for piece in ["one ", "zwei ", "drei "] {
            // The fenced one writes on, in between.
            fenced.write("FENCED ").await;
            writer.write(piece).await;
        }
        fenced.write("FENCED ").await;
        writer.end().await;
        let written = writer.written.clone();
        let late = first.complete(&fenced.attempt, "FENCED", "stop", usage("FENCED")).await;
        assert!(!late.accepted, "{late:?}");
        let done = second.complete(&writer.attempt, &written, "stop", usage(&written)).await;
        assert!(done.accepted, "{done:?}");
    };
    let (read, ()) = tokio::join!(read(&mut stream), writing);
    assert_eq!(read.screen, "one zwei drei ");
    assert_eq!(read.voided, 1, "what the first node wrote was replaced once");
    assert_eq!(read.job.attempt.unwrap().node.name, "second");
    shutdown.cancel();
    market.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_realtime_the_answer_comes_whole() {
    let market = TestMarket::open().await;
    let node = market.node("attic", MODEL, 1).await;
    let mut stream =
        JobStream::submit(&market.consumer, None, &question("count"), StreamTiming::default())
            .await
            .unwrap();
    let working = async {
        let attempt = node.take().await;
        node.complete(&attempt, "one two", "stop", usage("one two")).await
    };
    let (read, done) = tokio::join!(read(&mut stream), working);
    assert!(done.accepted);
    assert_eq!(read.screen, "one two");
    assert!(!stream.measure().streamed);
    assert_eq!(stream.next().await.unwrap().map(|_| ()), None, "nothing follows the end");
    market.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_read_from_its_beginning_by_whoever_comes_late() {
    let market = TestMarket::open().await;
    let node = market.node("attic", MODEL, 1).await;
    let shutdown = CancellationToken::new();
    let realtime = open_realtime(market.consumer.session().unwrap(), shutdown.clone()).unwrap();
    let request = question("count");
    market.consumer.submit_job(&request).await.unwrap();
    let attempt = node.take().await;
    let mut writer = Writer::new(&node, attempt, 0.0).await;
    writer.write("one ").await;
    let mut stream =
        JobStream::attach(&market.consumer, Some(&realtime), request.id, StreamTiming::default())
            .await
            .unwrap();
    let writing = async {
        writer.write("two ").await;
        writer.end().await;
        let written = writer.written.clone();
        node.complete(&writer.attempt, &written, "stop", usage(&written)).await
    };
    let (read, _done) = tokio::join!(read(&mut stream), writing);
    assert_eq!(read.screen, "one two ");
    assert_eq!(read.before_end, 8, "the text came by the stream");
    shutdown.cancel();
    market.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelling_pays_for_what_was_delivered() {
    let market = TestMarket::open().await;
    let node = market.node("attic", MODEL, 1).await;
    let mut stream =
        JobStream::submit(&market.consumer, None, &question("count"), StreamTiming::default())
            .await
            .unwrap();
    let attempt = node.take().await;
    stream.cancel().await.unwrap();
    assert_eq!(stream.job().state, JobState::Cancelling);
    let work = node.rpc.heartbeat(&[attempt.attempt], true, false).await.unwrap();
    assert_eq!(work.cancel, [attempt.attempt]);
    let done = node.complete(&attempt, "one two", "cancelled", usage("one two")).await;
    assert!(done.accepted, "{done:?}");
    let read = read(&mut stream).await;
    assert_eq!(read.job.state, JobState::Cancelled);
    assert_eq!(read.screen, "one two");
    assert_eq!(read.job.usage.unwrap().output_tokens, 2);
    assert!(!read.job.cost.unwrap().is_zero());
    market.close().await;
}

/// A socket of the consumer's that goes elsewhere than to the control plane.
fn realtime_at(market: &TestMarket, address: SocketAddr, shutdown: &CancellationToken) -> Realtime {
    let base = url::Url::parse(&format!("http://{address}")).unwrap();
    let endpoint = RealtimeEndpoint::new(&base, &market.plane.keys().publishable_key).unwrap();
    let tokens = market.consumer.session().unwrap().newest_token();
    Realtime::spawn(endpoint, tokens, shutdown.clone())
}

fn gateway(market: &TestMarket) -> SocketAddr {
    market.plane.url().trim_start_matches("http://").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_that_drops_a_fifth_of_everything_costs_nothing() {
    let market = TestMarket::open().await;
    let node = market.node("attic", MODEL, 1).await;
    let proxy = LossyProxy::start(gateway(&market)).await;
    proxy.lose(0.2);
    let shutdown = CancellationToken::new();
    let realtime = realtime_at(&market, proxy.address, &shutdown);
    let mut stream = JobStream::submit(
        &market.consumer,
        Some(&realtime),
        &question("count"),
        StreamTiming::default(),
    )
    .await
    .unwrap();
    let text = pieces(200);
    let writing = async {
        let attempt = node.take().await;
        let mut writer = Writer::new(&node, attempt, 0.0).await;
        for piece in &text {
            writer.write(piece).await;
        }
        writer.end().await;
        let written = writer.written.clone();
        node.complete(&writer.attempt, &written, "stop", usage(&written)).await
    };
    let (read, done) = tokio::join!(read(&mut stream), writing);
    assert!(done.accepted, "{done:?}");
    assert_eq!(read.screen, text.concat());
    assert_eq!(read.voided, 0);
    assert!(stream.measure().streamed && proxy.dropped() > 0);
    shutdown.cancel();
    market.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_that_falls_silent_does_not_hold_the_answer_back() {
    let market = TestMarket::open().await;
    let node = market.node("attic", MODEL, 1).await;
    let proxy = LossyProxy::start(gateway(&market)).await;
    let shutdown = CancellationToken::new();
    let realtime = realtime_at(&market, proxy.address, &shutdown);
    let mut stream = JobStream::submit(
        &market.consumer,
        Some(&realtime),
        &question("count"),
        StreamTiming::default(),
    )
    .await
    .unwrap();
    proxy.silence(true);
    let writing = async {
        let attempt = node.take().await;
        let mut writer = Writer::new(&node, attempt, 0.0).await;
        writer.write("one ").await;
        writer.write("two ").await;
        node.complete(&writer.attempt, "one two ", "stop", usage("one two")).await
    };
    let (read, done) = tokio::join!(read(&mut stream), writing);
    assert!(done.accepted, "{done:?}");
    assert_eq!(read.screen, "one two ");
    shutdown.cancel();
    market.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_that_is_refused_or_full_delays_nothing() {
    let market = TestMarket::open().await;
    let node = market.node("attic", MODEL, 1).await;
    // One port at which nobody listens, one at which there is no room.
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = closed.local_addr().unwrap();
    drop(closed);
    let full = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let no_room = full.local_addr().unwrap();
    let refusing = tokio::spawn(async move {
        loop {
            let (mut stream, _) = full.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0, "half a request");
            }
            let answer = "HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n";
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    for address in [nobody, no_room] {
        let shutdown = CancellationToken::new();
        let realtime = realtime_at(&market, address, &shutdown);
        // A join that nobody answers would be waited for, for this long.
        let timing = StreamTiming { join: LIMIT, ..StreamTiming::default() };
        let asked = Instant::now();
        let mut stream =
            JobStream::submit(&market.consumer, Some(&realtime), &question("count"), timing)
                .await
                .unwrap();
        assert!(asked.elapsed() < LIMIT / 2, "{address}");
        let working = async {
            let attempt = node.take().await;
            node.complete(&attempt, "one two", "stop", usage("one two")).await
        };
        let (read, done) = tokio::join!(read(&mut stream), working);
        assert!(done.accepted, "{done:?}");
        assert_eq!(read.screen, "one two");
        shutdown.cancel();
    }
    refusing.abort();
    market.close().await;
}
