//! Servers of models that are on this machine already.

use std::time::Duration;

use serde::Deserialize;

use crate::engine::catalogue::EXTERNAL_ENGINE;
use crate::engine::transport::{Address, Transport};

/// The ports that are looked at: those of Ollama, llama.cpp, vLLM and SGLang.
const PORTS: [u16; 4] = [11_434, 8080, 8000, 30_000];

/// How long a server may take to say what it serves.
const LOOK_TIMEOUT: Duration = Duration::from_millis(500);

/// The longest list of models that is read, in bytes, and the most models of it.
const LIST_BYTES: usize = 256 * 1024;
const MODELS: usize = 100;

/// A server of models on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundServer {
    /// Its base URL, such as `http://127.0.0.1:11434/v1`.
    pub url: String,
    /// The catalogue's entry that says how it is spoken to.
    pub engine: &'static str,
    /// The models that it serves.
    pub models: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct List {
    data: Vec<Listed>,
}

#[derive(Debug, Deserialize)]
struct Listed {
    id: String,
    #[serde(default)]
    owned_by: String,
}

/// Looks for servers at the usual ports of the loopback interface.
pub async fn find_servers() -> Vec<FoundServer> {
    let looks = PORTS.map(|port| look(format!("http://127.0.0.1:{port}/v1")));
    futures_util::future::join_all(looks).await.into_iter().flatten().collect()
}

/// Asks a server what it serves; `None` when there is none, or it is none of these.
pub async fn look(url: String) -> Option<FoundServer> {
    let transport = Transport::new(Address::parse(&url).ok()?, 0);
    let asking = async {
        let mut answer = transport.send("/v1/models", None).await.ok()?;
        if answer.status() != 200 {
            return None;
        }
        answer.read_small(LIST_BYTES).await.ok()
    };
    let bytes = tokio::time::timeout(LOOK_TIMEOUT, asking).await.ok()??;
    let list: List = serde_json::from_slice(&bytes).ok()?;
    let engine = engine(&list.data.first()?.owned_by);
    let models = list.data.into_iter().take(MODELS).map(|listed| listed.id).collect();
    Some(FoundServer { url, engine, models })
}

/// Tells a server by the word that it signs its models with.
fn engine(owned_by: &str) -> &'static str {
    match owned_by {
        "library" => "ollama",
        "llamacpp" => "llama.cpp",
        "vllm" => "vllm",
        "sglang" => "sglang",
        _ => EXTERNAL_ENGINE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_is_found_where_nobody_listens() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        // It accepts and says nothing.
        assert_eq!(look(url.clone()).await, None);
        drop(listener);
        assert_eq!(look(url).await, None);
    }

    #[test]
    fn servers_are_told_by_their_word() {
        assert_eq!(
            [engine("library"), engine("vllm"), engine("me")],
            ["ollama", "vllm", "external"]
        );
    }
}
