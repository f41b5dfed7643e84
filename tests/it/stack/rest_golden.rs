//! Replays recorded requests and answers of a real PostgREST against
//! `stack::rest`. A case agrees, or it answers 501 and is in the committed
//! list of what is not served; everything else is a silent disagreement.
//!
//! How answers are compared: JSON by structure, numbers by value; of an error
//! code and message, the latter without a parser's position and a table's
//! alias; of the headers those that were recorded.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use infernet::stack::jwt::{JwtVerifier, sign_hs256};
use infernet::stack::rest::{Rest, RestContext};
use serde_json::{Map, Value};

use crate::support::cluster::Cluster;

const SECRET: &str = "super-secret-jwt-token-with-at-least-32-characters-long";

/// Headers that the cases record.
const CAPTURED: [&str; 8] = [
    "content-type",
    "content-range",
    "location",
    "preference-applied",
    "www-authenticate",
    "proxy-status",
    "allow",
    "content-profile",
];

/// Shares of a group's cases that must agree, of those that only read.
const FLOORS: [(&str, f64); 12] = [
    ("rpc", 1.0),
    ("jwt", 1.0),
    ("rls", 1.0),
    ("select", 0.95),
    ("json", 0.95),
    ("filter", 0.95),
    ("logic", 0.95),
    ("order", 0.95),
    ("page", 0.95),
    ("single", 0.95),
    ("accept", 0.95),
    ("error", 0.95),
];

fn golden(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/postgrest").join(file)
}

/// A server of the golden database under a prefix.
async fn serve(cluster: &Cluster, prefix: &str) -> (String, Rest) {
    let pool = cluster.pool("authenticator", "golden", 4);
    let mut context = RestContext::new(pool, Arc::new(JwtVerifier::from_secret(SECRET).unwrap()));
    context.schemas = vec!["public".into(), "archive".into()];
    context.extra_search_path = vec!["public".into()];
    context.rollback_allowed = true;
    let rest = Rest::new(context);
    let router = rest.router(prefix);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}{prefix}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (base, rest)
}

struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    body: String,
}

async fn send(client: &reqwest::Client, base: &str, request: &Value) -> Answer {
    let method = request["method"].as_str().unwrap().parse().unwrap();
    let url = format!("{base}{}", request["path"].as_str().unwrap());
    let mut builder = client.request(method, url);
    for (name, value) in request["headers"].as_object().unwrap() {
        let values = match value {
            Value::Array(values) => values.clone(),
            one => vec![one.clone()],
        };
        for value in values {
            builder = builder.header(name, value.as_str().unwrap());
        }
    }
    if let Some(claims) = request["jwt_claims"].as_object() {
        builder = builder.bearer_auth(sign_hs256(claims, SECRET).unwrap());
    }
    if let Some(body) = request["body"].as_str() {
        builder = builder.body(body.to_owned());
    }
    let response = builder.send().await.unwrap();
    let mut headers = BTreeMap::new();
    for name in CAPTURED {
        let values: Vec<&str> =
            response.headers().get_all(name).iter().map(|value| value.to_str().unwrap()).collect();
        if !values.is_empty() {
            headers.insert(name.to_owned(), values.join(", "));
        }
    }
    Answer { status: response.status().as_u16(), headers, body: response.text().await.unwrap() }
}

/// Lists in which the answer differs from the recorded one.
fn differences(wanted: &Value, got: &Answer) -> Vec<String> {
    let mut found = Vec::new();
    let status = wanted["status"].as_u64().unwrap();
    if status != u64::from(got.status) {
        found.push(format!("status: want {status}, got {}", got.status));
    }
    let headers = wanted["headers"].as_object().unwrap();
    for (name, value) in headers {
        let value = tidy(name, value.as_str().unwrap());
        let actual = got.headers.get(name).map(|actual| tidy(name, actual));
        if actual.as_deref() != Some(value.as_str()) {
            found.push(format!("{name}: want {value:?}, got {actual:?}"));
        }
    }
    let Some(body) = wanted["body"].as_str() else { return found };
    let kind = headers.get("content-type").and_then(Value::as_str).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default();
    if body.is_empty() || !(kind == "application/json" || kind.ends_with("+json")) {
        if body != got.body {
            found.push(format!("body: want {body:?}, got {:?}", got.body));
        }
        return found;
    }
    let mut expected: Value = serde_json::from_str(body).unwrap();
    let Ok(mut actual) = serde_json::from_str::<Value>(&got.body) else {
        found.push(format!("body: want {body:?}, got {:?}", got.body));
        return found;
    };
    let is_error = |value: &Value| value.get("code").is_some() && value.get("message").is_some();
    if status >= 300 && is_error(&expected) {
        expected = loosen(&expected);
        actual = loosen(&actual);
    }
    if let Some(difference) = difference(&expected, &actual, "$") {
        found.push(format!("body: {difference}"));
    }
    found
}

fn tidy(name: &str, value: &str) -> String {
    let value = value.split_whitespace().collect::<Vec<_>>().join(" ");
    match name {
        "content-type" => {
            let parts: Vec<&str> = value.split(';').map(str::trim).collect();
            parts.join("; ").to_lowercase()
        }
        "preference-applied" | "allow" => {
            let mut parts: Vec<&str> = value.split(',').map(str::trim).collect();
            parts.sort_unstable();
            parts.join(", ")
        }
        _ => value,
    }
}

/// Keeps of an error what another implementation can share.
fn loosen(error: &Value) -> Value {
    let mut kept = Map::new();
    for key in ["code", "message"] {
        if let Some(value) = error.get(key) {
            kept.insert(key.into(), value.clone());
        }
    }
    if let Some(Value::String(message)) = kept.get_mut("message") {
        if message.ends_with(')')
            && let Some(position) = message.rfind(" (line ")
        {
            message.truncate(position);
        }
        if let Some(column) =
            message.strip_prefix("column ").and_then(|rest| rest.strip_suffix(" does not exist"))
        {
            let bare = column.rsplit('.').next().unwrap_or(column).trim_matches('"');
            *message = format!("column {bare} does not exist");
        }
    }
    Value::Object(kept)
}

fn difference(want: &Value, got: &Value, path: &str) -> Option<String> {
    match (want, got) {
        (Value::Object(a), Value::Object(b)) => {
            if !a.keys().eq(b.keys()) {
                let keys = |map: &Map<String, Value>| map.keys().cloned().collect::<Vec<_>>();
                return Some(format!("{path}: want keys {:?}, got {:?}", keys(a), keys(b)));
            }
            a.iter().find_map(|(key, value)| difference(value, &b[key], &format!("{path}.{key}")))
        }
        (Value::Array(a), Value::Array(b)) => {
            if a.len() != b.len() {
                return Some(format!("{path}: want {} items, got {}", a.len(), b.len()));
            }
            let mut pairs = a.iter().zip(b).enumerate();
            pairs.find_map(|(i, (a, b))| difference(a, b, &format!("{path}[{i}]")))
        }
        (Value::Number(a), Value::Number(b)) => {
            let same = a == b || (a.is_f64() || b.is_f64()) && a.as_f64() == b.as_f64();
            (!same).then(|| format!("{path}: want {a}, got {b}"))
        }
        _ => (want != got).then(|| format!("{path}: want {want}, got {got}")),
    }
}

/// Reads the committed list: one case and its reason a line.
fn read_unsupported() -> BTreeMap<String, String> {
    fs::read_to_string(golden("unsupported.txt"))
        .unwrap_or_default()
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let (name, reason) = line.split_once(": ").unwrap();
            (name.to_owned(), reason.to_owned())
        })
        .collect()
}

#[derive(Default)]
struct Tally {
    agreed: usize,
    unsupported: usize,
    read: usize,
    read_agreed: usize,
}

/// Replays all cases in order and returns the complaints.
async fn replay(base: &str, listed: &BTreeMap<String, String>) -> Vec<String> {
    infernet::control::install_tls_provider();
    let client = reqwest::Client::new();
    let mut complaints = Vec::new();
    let mut refused = BTreeMap::new();
    // Sequences of which a step was refused, so that later ones cannot agree.
    let mut broken = BTreeSet::new();
    let mut groups: BTreeMap<String, Tally> = BTreeMap::new();
    for line in fs::read_to_string(golden("cases.jsonl")).unwrap().lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        let name = case["name"].as_str().unwrap();
        let answer = send(&client, base, &case["request"]).await;
        let tally = groups.entry(case["group"].as_str().unwrap().to_owned()).or_default();
        let path = case["request"]["path"].as_str().unwrap();
        let method = case["request"]["method"].as_str().unwrap();
        let writes =
            !path.starts_with("/rpc/") && ["POST", "PUT", "PATCH", "DELETE"].contains(&method);
        tally.read += usize::from(!writes);
        let sequence = name.split_once('#').map(|(sequence, _)| sequence.to_owned());
        let refusal = if answer.status == 501 {
            Some(answer_message(&answer).unwrap_or_else(|| "An answer without a body".to_owned()))
        } else if sequence.as_ref().is_some_and(|sequence| broken.contains(sequence)) {
            Some("An earlier step of the sequence is not served".to_owned())
        } else {
            None
        };
        if let Some(reason) = refusal {
            tally.unsupported += 1;
            refused.insert(name.to_owned(), reason);
            broken.extend(sequence);
            continue;
        }
        let found = differences(&case["response"], &answer);
        if found.is_empty() {
            tally.agreed += 1;
            tally.read_agreed += usize::from(!writes);
        } else {
            complaints.push(format!("{name}: {}", found.join("; ")));
        }
    }

    let mut table = String::new();
    for (group, tally) in &groups {
        writeln!(
            table,
            "{group}: {} agree, {} answer 501; of {} that read {} agree",
            tally.agreed, tally.unsupported, tally.read, tally.read_agreed
        )
        .unwrap();
    }
    println!("{table}");
    for (group, floor) in FLOORS {
        let tally = &groups[group];
        let share = tally.read_agreed as f64 / tally.read as f64;
        if share < floor {
            complaints.push(format!(
                "group {group}: {share:.3} of its reading cases agree, {floor} must"
            ));
        }
    }
    if refused != *listed {
        let mut list = String::new();
        for (name, reason) in &refused {
            writeln!(list, "{name}: {reason}").unwrap();
        }
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("unsupported.txt");
        fs::write(&path, list).unwrap();
        complaints.push(format!(
            "the list of what is not served has changed; if that is meant, copy {} over {}",
            path.display(),
            golden("unsupported.txt").display()
        ));
    }
    complaints
}

fn answer_message(answer: &Answer) -> Option<String> {
    let body: Value = serde_json::from_str(&answer.body).ok()?;
    Some(body["message"].as_str()?.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_recorded_cases_agree_or_answer_501() {
    let cluster = Cluster::start();
    cluster.create_database("golden", &golden("schema.sql"));
    let listed = read_unsupported();
    // Twice, and under a prefix: nothing of a first run may change a second.
    for prefix in ["", "/rest/v1"] {
        let (base, _rest) = serve(&cluster, prefix).await;
        let complaints = replay(&base, &listed).await;
        assert!(complaints.is_empty(), "{} disagree:\n{}", complaints.len(), complaints.join("\n"));
    }
}
