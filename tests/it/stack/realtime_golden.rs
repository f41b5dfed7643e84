//! Replays recordings of the real Realtime server against ours.
//!
//! `tests/golden/realtime/scenarios.jsonl` was recorded from supabase/realtime
//! 2.122.0, each version of the protocol on its own. Scenarios that do not
//! share rows or topics run side by side. What is not served is listed in
//! `unsupported.txt`, a group or a scenario a line with its reason; any other
//! disagreement, and a listed scenario that agrees by now, fails the test.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, SplitSink};
use futures_util::{SinkExt, StreamExt};
use infernet::stack::jwt::sign_hs256;
use serde_json::{Map, Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};

use crate::support::cluster::client_program;
use crate::support::realtime_server::{Database, Settings, now_secs};

/// Scenarios that run at a time; they mostly wait.
const SIDE_BY_SIDE: usize = 32;
/// Stretches the recorded patience, for machines with other work.
const PATIENCE: u32 = 3;
/// How long a frame that nobody expects may take after the last step.
const GRACE: Duration = Duration::from_millis(250);
/// The groups that are to agree, but for what is listed.
const SERVED: &[&str] = &[
    "connect",
    "heartbeat",
    "join",
    "private",
    "leave",
    "broadcast",
    "binary",
    "http",
    "http_single",
    "sql",
    "changes",
    "order",
    "access_token",
    "malformed",
    "isolation",
    "limits",
    "legacy",
    "quirks",
    "slow",
];

#[derive(serde::Deserialize)]
struct Scenario {
    name: String,
    group: String,
    vsn: String,
    steps: Vec<Map<String, Value>>,
}

impl Scenario {
    /// Scenarios of one lane share rows or topics and run one after the other.
    fn lane(&self) -> String {
        let text = serde_json::to_string(&self.steps).unwrap();
        if text.contains("rt_docs") {
            "rt_docs".to_owned()
        } else if text.contains("realtime:user:") {
            "user".to_owned()
        } else {
            self.name.clone()
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recordings_of_the_real_server_agree() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/realtime");
    let listed = read_list(&std::fs::read_to_string(folder.join("unsupported.txt")).unwrap());
    let scenarios: Vec<Scenario> = std::fs::read_to_string(folder.join("scenarios.jsonl"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for name in listed.keys() {
        let known = scenarios.iter().any(|s| s.name == *name)
            || name
                .strip_prefix("group ")
                .is_some_and(|group| scenarios.iter().any(|s| s.group == group));
        assert!(known, "unsupported.txt lists {name}, which no recording has");
    }
    let only = std::env::var("GOLDEN_REALTIME").ok();

    let database = Database::start().await;
    let psql = client_program(&database.postgres.installation().bin, "psql");
    let context = Arc::new(Context {
        psql: psql.to_string_lossy().into_owned(),
        database_url: database.superuser_url(),
        secret: database.secrets.jwt_secret.clone(),
        base: String::new(),
        http: reqwest::Client::builder().timeout(Duration::from_secs(60)).build().unwrap(),
    });
    context
        .sql(&std::fs::read_to_string(folder.join("schema.sql")).unwrap(), &json!("postgres"))
        .await
        .unwrap();
    let server = database.serve(Settings { public_channels: true, ..Settings::default() }).await;
    let context =
        Arc::new(Context { base: format!("{}/realtime/v1", server.address), ..(*context).clone() });

    let mut lanes: BTreeMap<String, Vec<Scenario>> = BTreeMap::new();
    let mut left_out = 0;
    for scenario in scenarios {
        if listed.contains_key(&format!("group {}", scenario.group)) {
            left_out += 1;
            continue;
        }
        assert!(
            SERVED.contains(&scenario.group.as_str()),
            "group {} is neither served nor listed",
            scenario.group
        );
        if only.as_ref().is_none_or(|part| scenario.name.contains(part.as_str())) {
            lanes.entry(scenario.lane()).or_default().push(scenario);
        }
    }
    let began = Instant::now();
    // The long ones first.
    let mut lanes: Vec<_> = lanes.into_values().collect();
    lanes.sort_by_key(|lane| std::cmp::Reverse(lane.iter().map(length).sum::<u64>()));
    let results: Vec<(String, String, Result<(), String>)> = stream::iter(lanes)
        .map(|lane| {
            let context = Arc::clone(&context);
            async move {
                let mut results = Vec::new();
                for scenario in lane {
                    let result = Run::new(Arc::clone(&context), &scenario).run(&scenario).await;
                    results.push((scenario.group, scenario.name, result));
                }
                results
            }
        })
        .buffer_unordered(SIDE_BY_SIDE)
        .collect::<Vec<_>>()
        .await
        .into_iter()
        .flatten()
        .collect();
    server.stop().await;

    let mut groups: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    let mut problems = Vec::new();
    for (group, name, result) in &results {
        let tally = groups.entry(group.clone()).or_default();
        tally.1 += 1;
        match (result, listed.get(name)) {
            (Ok(()), None) => tally.0 += 1,
            (Err(_), Some(_)) => {}
            (Ok(()), Some(_)) => {
                problems.push(format!("{name} agrees and is still listed in unsupported.txt"));
            }
            (Err(problem), None) => problems.push(format!("{group} {name}: {problem}")),
        }
    }
    let (agreed, total) =
        groups.values().fold((0, 0), |sum, tally| (sum.0 + tally.0, sum.1 + tally.1));
    for (group, (agreed, total)) in &groups {
        println!("{group}: {agreed}/{total}");
    }
    println!(
        "{agreed} of {total} agree, {left_out} of unserved groups left out ({:.1} s)",
        began.elapsed().as_secs_f64()
    );
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
    assert!(only.is_some() || total > 200, "only {total} scenarios ran");
    assert!(agreed * 100 >= total * 95, "only {agreed} of {total} agree");
}

/// Reads the list: `NAME: reason`, or `group NAME: reason`.
fn read_list(text: &str) -> HashMap<String, String> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let (name, reason) = line.split_once(": ").expect("a line is NAME: reason");
            (name.to_owned(), reason.to_owned())
        })
        .collect()
}

/// Estimates how long a scenario takes, in milliseconds.
fn length(scenario: &Scenario) -> u64 {
    scenario
        .steps
        .iter()
        .flat_map(|step| step.values())
        .filter_map(|step| step.get("ms").or_else(|| step.get("recorded_ms")))
        .filter_map(Value::as_u64)
        .sum::<u64>()
        + scenario.steps.len() as u64
}

#[derive(Clone)]
struct Context {
    psql: String,
    database_url: String,
    secret: String,
    /// Host, port and path.
    base: String,
    http: reqwest::Client,
}

impl Context {
    fn sign(&self, spec: &Map<String, Value>) -> String {
        let mut claims = spec["$jwt"].as_object().unwrap().clone();
        let lifetime = spec.get("$exp_in").map_or(Some(3600), Value::as_i64);
        if let (false, Some(lifetime)) = (claims.contains_key("exp"), lifetime) {
            claims.insert("exp".into(), json!(now_secs() + lifetime));
        }
        let secret = spec.get("$secret").and_then(Value::as_str).unwrap_or(&self.secret);
        sign_hs256(&claims, secret).unwrap()
    }

    fn named_key(&self, name: &str) -> String {
        let spec = match name {
            "bad" => return "not-a-jwt".to_owned(),
            "expired" => json!({ "$jwt": { "role": "anon" }, "$exp_in": -60 }),
            role => json!({ "$jwt": { "role": role, "iss": "supabase" }, "$exp_in": 3600 }),
        };
        self.sign(spec.as_object().unwrap())
    }

    /// Fills in what a scenario abbreviates.
    fn expand(&self, value: &Value, token: Option<&str>) -> Value {
        match value {
            Value::Object(object) if object.contains_key("$jwt") => json!(self.sign(object)),
            Value::Object(object) if object.len() == 1 && object.contains_key("$repeat") => {
                let text = object["$repeat"][0].as_str().unwrap();
                json!(text.repeat(object["$repeat"][1].as_u64().unwrap() as usize))
            }
            Value::Object(object) if object.len() == 1 && object.contains_key("$hex_repeat") => {
                let text = object["$hex_repeat"][0].as_str().unwrap();
                json!({ "$hex": text.repeat(object["$hex_repeat"][1].as_u64().unwrap() as usize) })
            }
            Value::Object(object) => Value::Object(
                object.iter().map(|(key, item)| (key.clone(), self.expand(item, token))).collect(),
            ),
            Value::Array(items) => {
                Value::Array(items.iter().map(|item| self.expand(item, token)).collect())
            }
            Value::String(text) if text == "$token" => json!(token),
            other => other.clone(),
        }
    }

    /// Runs SQL as `psql` does: statement by statement.
    async fn sql(&self, text: &str, role: &Value) -> Result<(), String> {
        let text = match role.as_object() {
            None => text.to_owned(),
            Some(role) => format!(
                "begin;\nset local role {};\nselect set_config('request.jwt.claims', $golden${}$golden$, true);\n{text}\n;commit;\n",
                role["role"].as_str().unwrap(),
                role["claims"]
            ),
        };
        let mut child = tokio::process::Command::new(&self.psql)
            .args([
                "-X",
                "-q",
                "-At",
                "-v",
                "ON_ERROR_STOP=1",
                "-v",
                "VERBOSITY=verbose",
                "-f",
                "-",
            ])
            .arg("-d")
            .arg(&self.database_url)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(text.as_bytes()).await.unwrap();
        drop(stdin);
        let output = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output())
            .await
            .map_err(|_| "psql did not end".to_owned())?
            .unwrap();
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// What a connection has received.
#[derive(Default)]
struct Inbox {
    pending: Vec<Value>,
    allowed: Vec<Value>,
    closed: Option<u16>,
    pongs: usize,
}

struct Connection {
    token: Option<String>,
    sink: SplitSink<Socket, Message>,
    inbox: Arc<std::sync::Mutex<Inbox>>,
    news: Arc<Notify>,
    reader: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Connection {
    /// Waits for anything new until the deadline; false when it has passed.
    async fn wait(&self, deadline: Instant) -> bool {
        tokio::time::timeout_at(deadline, self.news.notified()).await.is_ok()
    }

    fn with<T>(&self, look: impl FnOnce(&mut Inbox) -> T) -> T {
        look(&mut self.inbox.lock().unwrap())
    }
}

struct Run {
    context: Arc<Context>,
    vsn: String,
    bound: HashMap<String, Value>,
    connections: HashMap<String, Connection>,
}

impl Run {
    fn new(context: Arc<Context>, scenario: &Scenario) -> Self {
        Self {
            context,
            vsn: scenario.vsn.clone(),
            bound: HashMap::new(),
            connections: HashMap::new(),
        }
    }

    async fn run(mut self, scenario: &Scenario) -> Result<(), String> {
        for (at, step) in scenario.steps.iter().enumerate() {
            self.step(step).await.map_err(|problem| format!("step {at}: {problem}"))?;
        }
        let deadline = Instant::now() + GRACE;
        for (name, connection) in &self.connections {
            while connection.wait(deadline).await {}
            if let Some(frame) = connection.with(|inbox| inbox.pending.first().cloned()) {
                return Err(format!(
                    "at the end: {name} got a frame nobody expected: {}",
                    show(&frame)
                ));
            }
        }
        Ok(())
    }

    async fn step(&mut self, step: &Map<String, Value>) -> Result<(), String> {
        if let Some(text) = step.get("sql") {
            return self.sql(text.as_str().unwrap(), step).await;
        }
        let (kind, step) = step.iter().next().unwrap();
        match kind.as_str() {
            "connect" => self.connect(step).await,
            "send" => self.send(step).await,
            "expect" => self.expect(step).await,
            "expect_silence" => self.expect_silence(step).await,
            "expect_close" => self.expect_close(step).await,
            "allow" => {
                let frame = self.context.expand(&step["frame"], None);
                self.connection(step).with(|inbox| inbox.allowed.push(frame));
                Ok(())
            }
            "close" => self.close(step).await,
            "ping" => self.ping(step).await,
            "sleep" => {
                tokio::time::sleep(millis(&step["ms"])).await;
                Ok(())
            }
            "http" => self.http(step).await,
            other => Err(format!("unknown step {other}")),
        }
    }

    fn connection(&self, step: &Value) -> &Connection {
        &self.connections[step["conn"].as_str().unwrap()]
    }

    async fn connect(&mut self, step: &Value) -> Result<(), String> {
        let name = step["conn"].as_str().unwrap();
        let context = &self.context;
        let token = step
            .get("jwt_claims")
            .filter(|claims| !claims.is_null())
            .map(|claims| context.sign(json!({ "$jwt": claims }).as_object().unwrap()));
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        let mut header_key = None;
        for (name, value) in step.get("params").and_then(Value::as_object).into_iter().flatten() {
            query.append_pair(name, value.as_str().unwrap());
        }
        let key = match &step["apikey"] {
            Value::String(name) => Some(context.named_key(name)),
            Value::Object(spec) => Some(context.sign(spec)),
            _ => None,
        };
        if step.get("apikey_in").is_some() {
            header_key = key;
        } else if let Some(key) = key {
            query.append_pair("apikey", &key);
        }
        let vsn = match step.get("vsn") {
            None => Some(self.vsn.clone()),
            Some(vsn) => vsn.as_str().map(str::to_owned),
        };
        if let Some(vsn) = &vsn {
            query.append_pair("vsn", vsn);
        }
        let url = format!("ws://{}/websocket?{}", context.base, query.finish());
        let mut request = url.into_client_request().unwrap();
        if let Some(key) = header_key {
            request.headers_mut().insert("x-api-key", key.parse().unwrap());
        }
        let config = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
        let timeout = millis(step.get("within_ms").unwrap_or(&json!(10_000))) * PATIENCE;
        let connecting = connect_async_with_config(request, Some(config), true);
        let connected = tokio::time::timeout(timeout, connecting)
            .await
            .map_err(|_| format!("connect {name}: timed out"))?;
        let refusal = step.get("expect");
        let socket = match (connected, refusal) {
            (Ok((socket, _)), None) => socket,
            (Ok(_), Some(_)) => return Err(format!("connect {name}: want a refusal")),
            (Err(WsError::Http(response)), Some(want)) => {
                let body = response.body().clone().unwrap_or_default();
                let text = String::from_utf8_lossy(&body).into_owned();
                return self.same_reply(want, response.status().as_u16(), &text);
            }
            (Err(error), _) => return Err(format!("connect {name}: {error}")),
        };
        let (sink, mut stream) = socket.split();
        let inbox = Arc::new(std::sync::Mutex::new(Inbox::default()));
        let news = Arc::new(Notify::new());
        let (received, notify) = (Arc::clone(&inbox), Arc::clone(&news));
        let reader = tokio::spawn(async move {
            let mut code = 1006;
            while let Some(message) = stream.next().await {
                let frame = match message {
                    Ok(Message::Text(text)) => serde_json::from_str(&text)
                        .unwrap_or_else(|_| json!({ "text": text.as_str() })),
                    Ok(Message::Binary(bytes)) => decode_binary(&bytes),
                    Ok(Message::Pong(_)) => {
                        received.lock().unwrap().pongs += 1;
                        notify.notify_one();
                        continue;
                    }
                    Ok(Message::Close(frame)) => {
                        code = frame.map_or(1005, |frame| frame.code.into());
                        continue;
                    }
                    _ => continue,
                };
                let mut received = received.lock().unwrap();
                let allowed = received
                    .allowed
                    .iter()
                    .any(|want| same(want, &frame, &mut HashMap::new(), "$").is_ok());
                if !allowed {
                    received.pending.push(frame);
                    notify.notify_one();
                }
            }
            received.lock().unwrap().closed = Some(code);
            notify.notify_one();
        })
        .abort_handle();
        let connection = Connection { token, sink, inbox, news, reader };
        self.connections.insert(name.to_owned(), connection);
        Ok(())
    }

    async fn send(&mut self, step: &Value) -> Result<(), String> {
        let connection = self.connections.get_mut(step["conn"].as_str().unwrap()).unwrap();
        let frame = &step["frame"];
        let frame = self.context.expand(frame, connection.token.as_deref());
        // A failure shows in the next expect step.
        for message in encode(&frame) {
            let _ = connection.sink.send(message).await;
        }
        Ok(())
    }

    async fn expect(&mut self, step: &Value) -> Result<(), String> {
        let want = self.context.expand(&step["frame"], None);
        let ordered = step.get("ordered").and_then(Value::as_bool).unwrap_or(true);
        let within = step.get("within_ms").map_or(Duration::from_secs(3), millis);
        let deadline = Instant::now() + within * PATIENCE;
        let connection = &self.connections[step["conn"].as_str().unwrap()];
        let bound = &mut self.bound;
        let mut looked = 0;
        let mut last = String::new();
        loop {
            let found = connection.with(|inbox| {
                while looked < inbox.pending.len() {
                    let mut trial = bound.clone();
                    match same(&want, &inbox.pending[looked], &mut trial, "$") {
                        Ok(()) => {
                            *bound = trial;
                            inbox.pending.remove(looked);
                            return Ok(true);
                        }
                        Err(problem) if ordered => {
                            return Err(format!(
                                "{problem}; frame {}",
                                show(&inbox.pending[looked])
                            ));
                        }
                        Err(problem) => {
                            last = problem;
                            looked += 1;
                        }
                    }
                }
                match inbox.closed {
                    Some(code) => Err(format!("closed with {code}, want {}", show(&want))),
                    None => Ok(false),
                }
            })?;
            if found {
                return Ok(());
            }
            if !connection.wait(deadline).await {
                return Err(format!("no such frame in time: want {}; {last}", show(&want)));
            }
        }
    }

    async fn expect_silence(&mut self, step: &Value) -> Result<(), String> {
        let deadline = Instant::now() + millis(&step["ms"]);
        let connection = self.connection(step);
        loop {
            connection.with(|inbox| match (inbox.pending.first(), inbox.closed) {
                (Some(frame), _) => Err(format!("want silence, got {}", show(frame))),
                (None, Some(code)) => Err(format!("want silence, closed with {code}")),
                (None, None) => Ok(()),
            })?;
            if !connection.wait(deadline).await {
                return Ok(());
            }
        }
    }

    async fn expect_close(&mut self, step: &Value) -> Result<(), String> {
        let within = step.get("within_ms").map_or(Duration::from_secs(3), millis);
        let deadline = Instant::now() + within * PATIENCE;
        let connection = &self.connections[step["conn"].as_str().unwrap()];
        let code = loop {
            if let Some(code) = connection.with(|inbox| inbox.closed) {
                break code;
            }
            if !connection.wait(deadline).await {
                return Err("still open".to_owned());
            }
        };
        if let Some(frame) = connection.with(|inbox| inbox.pending.first().cloned()) {
            return Err(format!("before the close came {}", show(&frame)));
        }
        same(step.get("code").unwrap_or(&json!("$any")), &json!(code), &mut self.bound, "code")
    }

    async fn close(&mut self, step: &Value) -> Result<(), String> {
        let mut connection = self.connections.remove(step["conn"].as_str().unwrap()).unwrap();
        if step.get("abort").and_then(Value::as_bool) != Some(true) {
            let _ = connection.sink.send(Message::Close(None)).await;
            let deadline = Instant::now() + Duration::from_secs(2);
            while connection.with(|inbox| inbox.closed).is_none() {
                if !connection.wait(deadline).await {
                    return Err("the close was not answered".to_owned());
                }
            }
        }
        match connection.with(|inbox| inbox.pending.first().cloned()) {
            Some(frame) => Err(format!("at the close: {}", show(&frame))),
            None => Ok(()),
        }
    }

    async fn ping(&mut self, step: &Value) -> Result<(), String> {
        let connection = self.connections.get_mut(step["conn"].as_str().unwrap()).unwrap();
        let _ = connection.sink.send(Message::Ping("ping".into())).await;
        let deadline = Instant::now() + Duration::from_secs(3) * PATIENCE;
        while connection.with(|inbox| inbox.pongs) == 0 {
            if !connection.wait(deadline).await {
                return Err("no pong".to_owned());
            }
        }
        Ok(())
    }

    async fn sql(&mut self, text: &str, step: &Map<String, Value>) -> Result<(), String> {
        let role = step.get("as").cloned().unwrap_or_else(|| json!("postgres"));
        let done = self.context.sql(text, &role).await;
        match (done, step.get("expect_error").and_then(Value::as_str)) {
            (Ok(()), None) => Ok(()),
            (Ok(()), Some(code)) => Err(format!("sql: want error {code}")),
            (Err(text), Some(code)) if text.contains(&format!("{code}:")) => Ok(()),
            (Err(text), _) => Err(format!("sql: {text}")),
        }
    }

    async fn http(&mut self, step: &Value) -> Result<(), String> {
        let context = Arc::clone(&self.context);
        let url = format!("http://{}{}", context.base, step["path"].as_str().unwrap());
        let method = step["method"].as_str().unwrap().parse().unwrap();
        let mut request = context.http.request(method, url);
        for (name, value) in step["headers"].as_object().unwrap() {
            let value = match value {
                Value::Object(spec) => format!(
                    "{}{}",
                    spec.get("prefix").and_then(Value::as_str).unwrap_or_default(),
                    context.sign(spec)
                ),
                value => {
                    let mut value = value.as_str().unwrap().to_owned();
                    for key in ["anon", "service_role", "expired", "bad"] {
                        let name = format!("${key}");
                        if value.contains(&name) {
                            value = value.replace(&name, &context.named_key(key));
                        }
                    }
                    value
                }
            };
            request = request.header(name, value);
        }
        let body = match &step["body"] {
            Value::Null => None,
            Value::Object(body) if body.contains_key("$text") => {
                Some(body["$text"].as_str().unwrap().as_bytes().to_vec())
            }
            Value::Object(body) if body.contains_key("$hex") => {
                Some(hex::decode(body["$hex"].as_str().unwrap()).unwrap())
            }
            body => Some(context.expand(body, None).to_string().into_bytes()),
        };
        if let Some(body) = body {
            request = request.body(body);
        }
        let response = request.send().await.map_err(|error| format!("http: {error}"))?;
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let text = response.text().await.map_err(|error| format!("http: {error}"))?;
        let want = &step["expect"];
        self.same_reply(want, status, &text)?;
        for (name, value) in want.get("headers").and_then(Value::as_object).into_iter().flatten() {
            let got = headers.get(name).map(|value| value.to_str().unwrap_or_default());
            same(value, &json!(got), &mut self.bound, name)?;
        }
        Ok(())
    }

    fn same_reply(&mut self, want: &Value, status: u16, text: &str) -> Result<(), String> {
        if want["status"] != json!(status) {
            return Err(format!("want HTTP {}, got {status} {text}", want["status"]));
        }
        match want.get("body") {
            None | Some(Value::Null) => Ok(()),
            Some(body @ Value::String(_)) => same(body, &json!(text), &mut self.bound, "body"),
            Some(body) => {
                let got: Value = serde_json::from_str(text)
                    .map_err(|_| format!("want {}, got {text}", show(body)))?;
                same(body, &got, &mut self.bound, "body")
            }
        }
    }
}

fn millis(value: &Value) -> Duration {
    Duration::from_millis(value.as_u64().unwrap())
}

fn show(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(400) {
        Some((end, _)) => format!("{}… ({} bytes)", &text[..end], text.len()),
        None => text,
    }
}

// ------------------------------------------------------------------- frames

/// Turns the frame of a send step into websocket messages.
fn encode(frame: &Value) -> Vec<Message> {
    let Some(object) = frame.as_object() else {
        return vec![Message::text(frame.to_string())];
    };
    if let Some(text) = object.get("text") {
        return vec![Message::text(text.as_str().unwrap())];
    }
    if let Some(text) = object.get("text_hex") {
        let bytes = hex::decode(text.as_str().unwrap()).unwrap();
        return vec![Message::Frame(Frame::message(bytes, OpCode::Data(Data::Text), true))];
    }
    if let Some(parts) = object.get("fragments").and_then(Value::as_array) {
        return parts
            .iter()
            .enumerate()
            .map(|(at, part)| {
                let kind = if at == 0 { Data::Text } else { Data::Continue };
                let part = part.as_str().unwrap().to_owned().into_bytes();
                Message::Frame(Frame::message(part, OpCode::Data(kind), at + 1 == parts.len()))
            })
            .collect();
    }
    if let Some(text) = object.get("binary_hex") {
        return vec![Message::binary(hex::decode(text.as_str().unwrap()).unwrap())];
    }
    if let Some(part) = object.get("binary") {
        return vec![Message::binary(encode_binary(part))];
    }
    vec![Message::text(frame.to_string())]
}

/// Writes a frame of kind 3, independently of the codec under test.
fn encode_binary(part: &Value) -> Vec<u8> {
    let text = |name: &str| part.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut fields: Vec<String> = ["join_ref", "ref", "topic", "event"].map(text).to_vec();
    fields.push(match part.get("meta") {
        None | Some(Value::Null) => String::new(),
        Some(meta) => meta.to_string(),
    });
    let payload = match &part["payload"] {
        Value::Object(payload) if payload.contains_key("$hex") => {
            hex::decode(payload["$hex"].as_str().unwrap()).unwrap()
        }
        Value::Object(payload) if payload.contains_key("$raw") => {
            payload["$raw"].as_str().unwrap().as_bytes().to_vec()
        }
        payload => payload.to_string().into_bytes(),
    };
    let mut bytes = vec![part["kind"].as_u64().unwrap() as u8];
    bytes.extend(fields.iter().map(|field| field.len() as u8));
    bytes.push(part["encoding"].as_u64().unwrap() as u8);
    bytes.extend(fields.concat().into_bytes());
    bytes.extend(payload);
    bytes
}

/// Reads a binary frame in the form that expect steps use.
fn decode_binary(bytes: &[u8]) -> Value {
    let read = || -> Option<Value> {
        let (&kind, rest) = bytes.split_first()?;
        let (&[topic, event, meta, encoding], mut rest) = rest.split_first_chunk::<4>()?;
        let mut field = |length: u8| -> Option<String> {
            let (field, others) = rest.split_at_checked(usize::from(length))?;
            rest = others;
            Some(std::str::from_utf8(field).ok()?.to_owned())
        };
        let (topic, event, meta) = (field(topic)?, field(event)?, field(meta)?);
        let meta = if meta.is_empty() { Value::Null } else { serde_json::from_str(&meta).ok()? };
        let payload = if encoding == 1 {
            serde_json::from_slice(rest).ok()?
        } else {
            json!({ "$hex": hex::encode(rest) })
        };
        (kind == 4).then(|| {
            json!({ "binary": {
                "kind": kind, "topic": topic, "event": event, "meta": meta,
                "encoding": encoding, "payload": payload,
            } })
        })
    };
    read().unwrap_or_else(|| json!({ "binary_hex": hex::encode(bytes) }))
}

// ---------------------------------------------------------------- comparing

type Bound = HashMap<String, Value>;

/// A part of an expected text.
enum Part<'a> {
    Text(&'a str),
    Kind { kind: &'a str, name: Option<&'a str> },
}

/// Splits an expected text at its placeholders.
fn parts(text: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        let kind = ["uuid", "int", "timestamp", "phx_ref", "any"]
            .into_iter()
            .find(|kind| rest[at + 1..].starts_with(kind));
        let Some(kind) = kind else {
            let (text, others) = rest.split_at(at + 1);
            parts.push(Part::Text(text));
            rest = others;
            continue;
        };
        if at > 0 {
            parts.push(Part::Text(&rest[..at]));
        }
        rest = &rest[at + 1 + kind.len()..];
        let mut name = None;
        if let Some(after) = rest.strip_prefix(':') {
            let end = after
                .find(|character: char| !character.is_ascii_alphanumeric() && character != '_')
                .unwrap_or(after.len());
            if end > 0 {
                name = Some(&after[..end]);
                rest = &after[end..];
            }
        }
        parts.push(Part::Kind { kind, name });
    }
    if !rest.is_empty() {
        parts.push(Part::Text(rest));
    }
    parts
}

fn is_of_kind(kind: &str, text: &str) -> bool {
    match kind {
        "any" => true,
        "uuid" => text.len() == 36 && uuid::Uuid::parse_str(text).is_ok(),
        "int" => text.parse::<i64>().is_ok(),
        "phx_ref" => {
            !text.is_empty()
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/=_-".contains(&byte))
        }
        // Only whole values are timestamps in these recordings.
        "timestamp" => text.len() >= 19 && text.as_bytes()[4] == b'-',
        _ => false,
    }
}

fn fits(parts: &[Part<'_>], text: &str) -> bool {
    match parts {
        [] => text.is_empty(),
        [Part::Text(want), others @ ..] => {
            text.strip_prefix(want).is_some_and(|rest| fits(others, rest))
        }
        [Part::Kind { kind, .. }, others @ ..] => (0..=text.len())
            .filter(|end| text.is_char_boundary(*end))
            .any(|end| is_of_kind(kind, &text[..end]) && fits(others, &text[end..])),
    }
}

/// Compares by structure; placeholders that have a name are bound.
fn same(want: &Value, got: &Value, bound: &mut Bound, path: &str) -> Result<(), String> {
    let differ = || Err(format!("{path}: want {}, got {}", show(want), show(got)));
    match (want, got) {
        (Value::String(text), _) => {
            let parts = parts(text);
            if let [Part::Kind { kind, name }] = parts.as_slice() {
                let good = match (*kind, got) {
                    ("any", _) => true,
                    ("int", Value::Number(number)) => number.is_i64() || number.is_u64(),
                    ("int", _) => false,
                    (kind, Value::String(text)) => is_of_kind(kind, text),
                    _ => false,
                };
                if !good {
                    return differ();
                }
                if let Some(name) = name {
                    let key = format!("{kind}:{name}");
                    let first = bound.entry(key).or_insert_with(|| got.clone());
                    if first != got {
                        return Err(format!(
                            "{path}: want {} again, got {}",
                            show(first),
                            show(got)
                        ));
                    }
                }
                return Ok(());
            }
            match got {
                Value::String(got) if fits(&parts, got) => Ok(()),
                _ => differ(),
            }
        }
        (Value::Object(set), _) if set.len() == 1 && set.contains_key("$set") => {
            let (Some(want), Some(got)) = (set["$set"].as_array(), got.as_array()) else {
                return differ();
            };
            same_set(want, got, bound).ok_or_else(|| differ().unwrap_err())
        }
        (Value::Object(want), Value::Object(got)) => {
            let keys = |object: &Map<String, Value>| {
                let mut keys: Vec<String> = object.keys().cloned().collect();
                keys.sort();
                keys
            };
            if keys(want) != keys(got) {
                return differ();
            }
            want.iter()
                .try_for_each(|(key, want)| same(want, &got[key], bound, &format!("{path}.{key}")))
        }
        (Value::Array(want), Value::Array(got)) if want.len() == got.len() => want
            .iter()
            .zip(got)
            .enumerate()
            .try_for_each(|(at, (want, got))| same(want, got, bound, &format!("{path}[{at}]"))),
        (Value::Number(a), Value::Number(b)) if a.as_f64() == b.as_f64() => Ok(()),
        _ if want == got => Ok(()),
        _ => differ(),
    }
}

/// Compares a list in any order, by trying the assignments.
fn same_set(want: &[Value], got: &[Value], bound: &mut Bound) -> Option<()> {
    let Some((first, others)) = want.split_first() else {
        return got.is_empty().then_some(());
    };
    for at in 0..got.len() {
        let mut trial = bound.clone();
        if same(first, &got[at], &mut trial, "$").is_ok() {
            let mut left = got.to_vec();
            left.remove(at);
            if same_set(others, &left, &mut trial).is_some() {
                *bound = trial;
                return Some(());
            }
        }
    }
    None
}
