//! The vectors that both implementations of login must answer alike:
//! `tests/vectors/login.json`, read here and by
//! `supabase/functions/tests/auth-test.ts`.
//!
//! The file is made by this test from fixed keys and times, so that a change of
//! behaviour or words shows as a difference: `INFERNET_WRITE_VECTORS=1 cargo
//! nextest run login_vectors` writes it anew. Events are signed with the Nostr
//! library directly, not with the code under test.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use infernet::control::session::LoginKind;
use infernet::identity::sha256_hex;
use infernet::stack::auth::{TokenSigner, check_login};
use infernet::stack::jwt::{Es256Key, JwtVerifier};
use nostr_sdk::secp256k1::{Keypair, Message};
use nostr_sdk::{EventId, Keys, Kind, SECP256K1, Tag, Tags, Timestamp};
use serde_json::{Map, Value, json};

const NOW: u64 = 1_790_000_000;
const HERE: &str = "https://plane.example/functions/v1/auth";
const HERE_TOO: &str = "http://127.0.0.1:54321/functions/v1/auth";
const ELSEWHERE: &str = "https://other.example/functions/v1/auth";
const USER_BODY: &str = r#"{"kind":"user"}"#;
const NODE_BODY: &str = r#"{"kind":"node"}"#;
const ENROLMENT_BODY: &str =
    r#"{"kind":"node","role":"provider","enrolment":"ABCD-EFGH","name":"attic"}"#;

#[test]
fn the_file_is_what_this_test_makes_and_the_native_login_answers_like_it() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/login.json");
    let mut made = vectors();
    if std::env::var_os("INFERNET_WRITE_VECTORS").is_some() {
        let text = serde_json::to_string_pretty(&made).unwrap();
        std::fs::write(&path, format!("{text}\n")).unwrap();
    }
    let kept: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    // An ES256 signature is different each time: the kept one is checked below.
    for (made, kept) in
        array(&mut made["tokens"]).iter_mut().zip(kept["tokens"].as_array().unwrap())
    {
        if made["alg"] == "ES256" {
            made["token"] = kept["token"].clone();
        }
    }
    let hint = "run it with INFERNET_WRITE_VECTORS=1 and look at the difference";
    assert_eq!(made["tokens"], kept["tokens"], "{hint}");
    for (made, kept) in array(&mut made["cases"]).iter().zip(kept["cases"].as_array().unwrap()) {
        assert_eq!(made, kept, "{hint}");
    }
    assert_eq!(made, kept, "{hint}");
}

#[test]
fn tokens_of_the_file_are_signed_as_they_say() {
    let kept: Value = serde_json::from_str(include_str!("../../vectors/login.json")).unwrap();
    for vector in kept["tokens"].as_array().unwrap() {
        let (verifier, signer) = match vector["alg"].as_str().unwrap() {
            "HS256" => {
                let secret = vector["secret"].as_str().unwrap();
                (JwtVerifier::from_secret(secret), TokenSigner::Secret(secret.to_owned()))
            }
            _ => {
                let key = Es256Key::from_jwk(&vector["private_jwk"].to_string()).unwrap();
                (
                    JwtVerifier::from_jwks(&vector["public_jwk"].to_string()),
                    TokenSigner::Key(Box::new(key)),
                )
            }
        };
        let verifier = verifier.unwrap();
        let claims = &vector["claims"];
        let signed = sign(&signer, claims);
        for token in [vector["token"].as_str().unwrap(), &signed] {
            assert_eq!(&Value::Object(verifier.verify_signature(token).unwrap().0), claims);
            assert_eq!(part(token, 0), vector["header"]);
            let forged = format!("{}AAAA", &token[..token.len() - 4]);
            assert!(verifier.verify_signature(&forged).is_err());
        }
    }
}

/// Makes the whole file.
fn vectors() -> Value {
    json!({
        "about": "Logins and what both implementations answer. Made by tests/it/login_vectors.rs. \
                  A body or header is followed by as many padding characters as body_padding \
                  (spaces) or authorization_padding (the letter A) say.",
        "cases": cases(),
        "tokens": tokens(),
    })
}

/// One login, before it is answered.
struct Case {
    name: &'static str,
    urls: Vec<&'static str>,
    now: u64,
    authorization: Option<String>,
    authorization_padding: usize,
    body: String,
    body_padding: usize,
    /// The name of an earlier case whose event this one repeats.
    repeats: Option<&'static str>,
}

impl Case {
    /// A login at this control plane, now.
    fn new(name: &'static str, authorization: impl Into<String>, body: &str) -> Self {
        Self {
            name,
            urls: vec![HERE, HERE_TOO],
            now: NOW,
            authorization: Some(authorization.into()),
            authorization_padding: 0,
            body: body.to_owned(),
            body_padding: 0,
            repeats: None,
        }
    }

    fn at(self, now: u64) -> Self {
        Self { now, ..self }
    }

    /// Answers the case with the native login.
    fn answered(&self) -> Value {
        let padded = format!("{}{}", self.body, " ".repeat(self.body_padding));
        let authorization = self
            .authorization
            .as_ref()
            .map(|text| format!("{text}{}", "A".repeat(self.authorization_padding)));
        let urls: Vec<String> = self.urls.iter().map(|url| (*url).to_owned()).collect();
        let answer =
            check_login(authorization.as_deref(), &urls, "POST", padded.as_bytes(), self.now);
        let mut case = json!({
            "name": self.name,
            "urls": self.urls,
            "now": self.now,
            "authorization": self.authorization,
            "body": self.body,
        });
        if self.authorization_padding > 0 {
            case["authorization_padding"] = json!(self.authorization_padding);
        }
        if self.body_padding > 0 {
            case["body_padding"] = json!(self.body_padding);
        }
        if let Some(repeats) = self.repeats {
            case["repeats"] = json!(repeats);
        }
        match answer {
            Ok((login, request)) => {
                case["accepted"] = json!({
                    "event_id": login.event_id,
                    "public_key": login.public_key,
                    "created_at": login.created_at,
                    "request": request,
                });
            }
            Err(refusal) => {
                case["refused"] = json!({
                    "status": refusal.status,
                    "code": refusal.code,
                    "message": refusal.message,
                    "hint": refusal.hint,
                });
            }
        }
        case
    }
}

/// Makes all cases, in the order of the checks.
fn cases() -> Vec<Value> {
    let user = key(1);
    let node = key(2);
    let event = |body: &str| login(&user, HERE, "POST", body, NOW);
    let header = |body: &str| header(&event(body));

    let mut cases = vec![
        Case::new("a user signs in", header(USER_BODY), USER_BODY),
        Case::new(
            "a node signs in",
            self::header(&login(&node, HERE, "POST", NODE_BODY, NOW)),
            NODE_BODY,
        ),
        Case::new(
            "a node is enrolled",
            self::header(&login(&node, HERE, "POST", ENROLMENT_BODY, NOW)),
            ENROLMENT_BODY,
        ),
        Case::new(
            "another public URL of the same control plane",
            self::header(&login(&user, HERE_TOO, "POST", USER_BODY, NOW)),
            USER_BODY,
        ),
        Case::new("the oldest that is fresh", header(USER_BODY), USER_BODY).at(NOW + 60),
        Case::new("the newest that is fresh", header(USER_BODY), USER_BODY).at(NOW - 60),
        Case::new(
            "a scheme in small letters",
            header(USER_BODY).replace("Nostr", "nostr"),
            USER_BODY,
        ),
        {
            let mut extended = event(USER_BODY);
            extended["seen_on"] = json!(["somewhere"]);
            Case::new("a field more is ignored", self::header(&extended), USER_BODY)
        },
        {
            let mut tags = tags(HERE, "POST", USER_BODY);
            tags.push(vec![
                "client".into(),
                "quote \" slash \\ tab \t bell \u{7} ünïcödé 🦀".into(),
            ]);
            let event = signed(&user, 27_235, NOW, tags, "line\nbreak \u{2028} \u{7f}");
            Case::new("text that needs escapes in the hashed form", self::header(&event), USER_BODY)
        },
        Case {
            repeats: Some("a user signs in"),
            ..Case::new("replayed here: the same event a second time", header(USER_BODY), USER_BODY)
        },
        Case {
            urls: vec![ELSEWHERE],
            ..Case::new("replayed at a second control plane", header(USER_BODY), USER_BODY)
        },
    ];

    // The request itself.
    cases.push(Case {
        body_padding: 16 * 1024,
        ..Case::new("a body that is too long", header(USER_BODY), USER_BODY)
    });

    // The header and the shape of the event.
    cases.push(Case { authorization: None, ..Case::new("no header", "", USER_BODY) });
    for (name, authorization) in [
        ("an empty header", ""),
        ("a scheme alone", "Nostr"),
        ("another scheme", "Bearer eyJhbGciOiJIUzI1NiJ9.e30.e30"),
        ("not base64", "Nostr {\"kind\":27235}"),
        ("base64 without its padding", "Nostr e30K8"),
        ("base64 for URLs", "Nostr eyJhIjoi_-8ifQ=="),
        ("base64 with bits to spare", "Nostr e31="),
        ("base64 after two spaces", "Nostr  e30="),
        ("not JSON", "Nostr bm8="),
        ("not UTF-8", "Nostr //8="),
        ("not an object", "Nostr W10="),
        ("not an event", "Nostr e30="),
    ] {
        cases.push(Case::new(name, authorization, USER_BODY));
    }
    cases.push(Case {
        authorization_padding: 8 * 1024,
        ..Case::new("a header that is too long", "Nostr ", USER_BODY)
    });
    for (name, field, value) in [
        ("an id in capitals", "id", json!("A".repeat(64))),
        ("an id that is too short", "id", json!("0".repeat(62))),
        ("a public key that is no text", "pubkey", json!(7)),
        ("a signature that is too long", "sig", json!("0".repeat(130))),
        ("a time that is text", "created_at", json!("1790000000")),
        ("a time with a fraction", "created_at", json!(1_790_000_000.5)),
        ("a time before 1970", "created_at", json!(-1)),
        ("a time after the year 9999", "created_at", json!(253_402_300_800_u64)),
        ("a kind that is too large", "kind", json!(65_536)),
        ("tags that are no lists", "tags", json!(["u"])),
        ("an empty tag", "tags", json!([[]])),
        ("a tag with a number", "tags", json!([["u", 1]])),
        ("content that is no text", "content", json!(null)),
    ] {
        let mut odd = event(USER_BODY);
        odd[field] = value;
        cases.push(Case::new(name, self::header(&odd), USER_BODY));
    }
    let mut incomplete = event(USER_BODY);
    incomplete.as_object_mut().unwrap().remove("sig");
    cases.push(Case::new("no signature", self::header(&incomplete), USER_BODY));
    let listed: Vec<Value> = ["id", "pubkey", "created_at", "kind", "tags", "content", "sig"]
        .map(|field| event(USER_BODY)[field].clone())
        .to_vec();
    cases.push(Case::new("a list of the fields", self::header(&json!(listed)), USER_BODY));
    let other_kind = signed(&user, 22_242, NOW, tags(HERE, "POST", USER_BODY), "");
    cases.push(Case::new("another kind of event", self::header(&other_kind), USER_BODY));
    for (name, tag) in [
        ("two u tags", vec!["u", ELSEWHERE]),
        ("two method tags", vec!["method", "POST"]),
        ("two payload tags", vec!["payload"]),
    ] {
        let mut tags = tags(HERE, "POST", USER_BODY);
        tags.push(tag.into_iter().map(str::to_owned).collect());
        let event = signed(&user, 27_235, NOW, tags, "");
        cases.push(Case::new(name, self::header(&event), USER_BODY));
    }

    // The signature.
    for (name, change) in [
        ("signed with another key than it names", json!({"pubkey": node.public_key().to_hex()})),
        ("a key that is no point", json!({"pubkey": "f".repeat(64)})),
        ("changed after it was signed", json!({"created_at": NOW + 1})),
        ("an id of another event", json!({"id": "0".repeat(64)})),
        ("a signature of zeros", json!({"sig": "0".repeat(128)})),
    ] {
        let mut forged = event(USER_BODY);
        for (field, value) in change.as_object().unwrap() {
            forged[field] = value.clone();
        }
        cases.push(Case::new(name, self::header(&forged), USER_BODY));
    }
    {
        // A hash that fits, so that only the signature can give it away.
        let mut forged = event(USER_BODY);
        forged["pubkey"] = json!(node.public_key().to_hex());
        forged["id"] =
            json!(event_id(&node, 27_235, NOW, &tags(HERE, "POST", USER_BODY), "").to_hex());
        cases.push(Case::new("wrong key, with an id that fits", self::header(&forged), USER_BODY));
    }

    // The request that it was signed for.
    for (name, url) in [
        ("for another control plane", ELSEWHERE),
        ("for plain http", "http://plane.example/functions/v1/auth"),
        ("for another path", "https://plane.example/functions/v1/info"),
        ("for a URL with a slash more", "https://plane.example/functions/v1/auth/"),
        ("for a URL with a query", "https://plane.example/functions/v1/auth?x=1"),
        ("for another port", "https://plane.example:8443/functions/v1/auth"),
        ("for a longer host", "https://plane.example.evil.example/functions/v1/auth"),
        ("for an empty URL", ""),
    ] {
        let event = login(&user, url, "POST", USER_BODY, NOW);
        cases.push(Case::new(name, self::header(&event), USER_BODY));
    }
    for (name, method) in [("for GET", "GET"), ("for post in small letters", "post")] {
        let event = login(&user, HERE, method, USER_BODY, NOW);
        cases.push(Case::new(name, self::header(&event), USER_BODY));
    }
    for (name, missing) in
        [("no u tag", "u"), ("no method tag", "method"), ("no payload tag", "payload")]
    {
        let mut tags = tags(HERE, "POST", USER_BODY);
        tags.retain(|tag| tag[0] != missing);
        let event = signed(&user, 27_235, NOW, tags, "");
        cases.push(Case::new(name, self::header(&event), USER_BODY));
    }
    cases.push(Case::new("the body was changed", header(USER_BODY), NODE_BODY));
    cases.push(Case::new("the body was left out", header(USER_BODY), ""));
    {
        let tags = tags(HERE, "POST", USER_BODY)
            .into_iter()
            .map(|tag| {
                tag.into_iter()
                    .map(|text| if text.len() == 64 { text.to_uppercase() } else { text })
                    .collect()
            })
            .collect();
        let event = signed(&user, 27_235, NOW, tags, "");
        cases.push(Case::new("a payload hash in capitals", self::header(&event), USER_BODY));
    }

    // The clock.
    for (name, now) in [
        ("too old by a second", NOW + 61),
        ("too new by a second", NOW - 61),
        ("a clock that is two minutes slow", NOW + 120),
        ("a clock that is two minutes fast", NOW - 120),
        ("a clock that is years slow", NOW + 100_000_000),
    ] {
        cases.push(Case::new(name, header(USER_BODY), USER_BODY).at(now));
    }
    {
        let event = login(&user, HERE, "POST", USER_BODY, 0);
        cases.push(Case::new("a clock that was never set", self::header(&event), USER_BODY));
    }

    // What the body says.
    for (name, body) in [
        ("an empty body", ""),
        ("a body that is not JSON", "kind=user"),
        ("a body that is a list", "[]"),
        ("a body that is a list of the fields", r#"["user"]"#),
        ("a body without a kind", "{}"),
        ("a body with an unknown kind", r#"{"kind":"operator"}"#),
        ("a body with an unknown field", r#"{"kind":"user","is_operator":true}"#),
        ("a body with a field of another type", r#"{"kind":"node","name":5}"#),
        ("a body with a byte order mark", "\u{feff}{\"kind\":\"user\"}"),
    ] {
        cases.push(Case::new(name, header(body), body));
    }
    let nulls = r#"{"kind":"node","role":null,"enrolment":null,"name":null}"#;
    cases.push(Case::new("a body with nulls", header(nulls), nulls));

    cases.iter().map(Case::answered).collect()
}

/// Makes the tokens: the same claims, signed in both ways.
fn tokens() -> Value {
    let subject: uuid::Uuid = "0192d3a0-0000-7000-8000-000000000001".parse().unwrap();
    let claims = json!({
        "sub": subject,
        "role": "authenticated",
        "pubkey": key(1).public_key().to_hex(),
        "kind": "user",
        "iat": NOW,
        "exp": NOW + 3600,
    });
    let secret = "a-secret-of-the-vectors-with-more-than-32-characters";
    // The key of RFC 7515, appendix A.3.
    let private_jwk = json!({
        "kty": "EC", "crv": "P-256", "alg": "ES256", "kid": "vectors",
        "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
        "d": "jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI",
    });
    let key = Es256Key::from_jwk(&private_jwk.to_string()).unwrap();
    let public_jwk = key.public_jwk();
    json!([
        {
            "alg": "HS256",
            "secret": secret,
            "header": {"alg": "HS256", "typ": "JWT"},
            "claims": claims,
            "token": sign(&TokenSigner::Secret(secret.to_owned()), &claims),
        },
        {
            "alg": "ES256",
            "private_jwk": private_jwk,
            "public_jwk": public_jwk,
            "header": {"alg": "ES256", "kid": "vectors", "typ": "JWT"},
            "claims": claims,
            "token": sign(&TokenSigner::Key(Box::new(key)), &claims),
        },
    ])
}

/// Signs the claims of a vector.
fn sign(signer: &TokenSigner, claims: &Value) -> String {
    let text = |name: &str| claims[name].as_str().unwrap();
    let number = |name: &str| claims[name].as_u64().unwrap();
    let subject = text("sub").parse().unwrap();
    signer.sign(subject, LoginKind::User, text("pubkey"), number("iat"), number("exp")).unwrap()
}

/// Decodes a part of a token.
fn part(token: &str, index: usize) -> Value {
    let part = token.split('.').nth(index).unwrap();
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(part).unwrap();
    let object: Map<String, Value> = serde_json::from_slice(&bytes).unwrap();
    Value::Object(object)
}

fn array(value: &mut Value) -> &mut Vec<Value> {
    value.as_array_mut().unwrap()
}

/// Makes a key of these vectors. Everybody knows them.
fn key(number: u8) -> Keys {
    Keys::parse(&format!("{number:02x}").repeat(32)).unwrap()
}

fn tags(url: &str, method: &str, body: &str) -> Vec<Vec<String>> {
    [("u", url), ("method", method), ("payload", &sha256_hex(body.as_bytes()))]
        .map(|(name, value)| vec![name.to_owned(), value.to_owned()])
        .to_vec()
}

fn login(keys: &Keys, url: &str, method: &str, body: &str, created_at: u64) -> Value {
    signed(keys, 27_235, created_at, tags(url, method, body), "")
}

fn event_id(
    keys: &Keys,
    kind: u16,
    created_at: u64,
    tags: &[Vec<String>],
    content: &str,
) -> EventId {
    let tags = tags.iter().map(|tag| Tag::parse(tag.iter().cloned()).unwrap()).collect();
    EventId::new(
        &keys.public_key(),
        &Timestamp::from_secs(created_at),
        &Kind::from_u16(kind),
        &Tags::from_list(tags),
        content,
    )
}

/// Signs an event; the same arguments give the same bytes.
fn signed(keys: &Keys, kind: u16, created_at: u64, tags: Vec<Vec<String>>, content: &str) -> Value {
    let id = event_id(keys, kind, created_at, &tags, content);
    let pair = Keypair::from_secret_key(SECP256K1, keys.secret_key());
    let signature = SECP256K1.sign_schnorr_no_aux_rand(&Message::from_digest(id.to_bytes()), &pair);
    json!({
        "id": id.to_hex(),
        "pubkey": keys.public_key().to_hex(),
        "created_at": created_at,
        "kind": kind,
        "tags": tags,
        "content": content,
        "sig": signature.to_string(),
    })
}

fn header(event: &Value) -> String {
    format!("Nostr {}", STANDARD.encode(event.to_string()))
}
