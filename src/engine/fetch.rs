//! Files of models, fetched from where the owner's configuration says.
//!
//! [`fetch`] goes on where an earlier try stopped, checks the sha256 and puts the file
//! into its place whole or not at all. The URL is the owner's own; where a server leads
//! on to elsewhere, that must be a public address ([`is_public`]), so that no answer of
//! a stranger makes this machine ask its neighbours.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{StatusCode, redirect};
use tokio::io::AsyncWriteExt;
use url::{Host, Url};

use crate::engine::error::EngineError;
use crate::engine::model_file::sha256_of;

/// How long connecting, and the next piece of a file, may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// How often a fetch that broke off is gone on with, and the pause before.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);

/// The most times that a server may lead on to elsewhere.
const REDIRECTS: usize = 5;

/// How far a fetch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that are there.
    pub done: u64,
    /// Bytes in all, where the server says so.
    pub total: Option<u64>,
}

/// Tells whether an address belongs to the public Internet: not to this machine, not to
/// its network, and not to either in the disguise of another protocol.
#[must_use]
pub fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    !(ip.is_unspecified()
        || ip.is_loopback()
        || ip.is_private()
        || ip.is_link_local()
        || ip.is_multicast()
        || ip.is_broadcast()
        || ip.is_documentation()
        || a == 0
        || a >= 240
        // Shared by a provider's customers, assigned for protocols, for benchmarks.
        || (a == 100 && (64..128).contains(&b))
        || (a, b, c) == (192, 0, 0)
        || (a == 198 && (18..20).contains(&b)))
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let s = ip.segments();
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Ipv4Addr::new(a, b, c, d)
    };
    if let Some(mapped) = ip.to_ipv4_mapped() {
        return is_public_v4(mapped);
    }
    // Translated (64:ff9b::/96) and tunnelled (6to4, 2002::/16) addresses of IPv4.
    if s[..6] == [0x64, 0xff9b, 0, 0, 0, 0] {
        return is_public_v4(embedded(s[6], s[7]));
    }
    if s[0] == 0x2002 {
        return is_public_v4(embedded(s[1], s[2]));
    }
    // Only 2000::/3 is given out, without Teredo, documentation and benchmarks.
    s[0] & 0xe000 == 0x2000
        && !(s[0] == 0x2001 && (s[1] == 0 || s[1] == 0xdb8 || s[1] == 2 || s[1] == 0x10))
        && s[0] != 0x3fff
}

/// Finds addresses: any for the host that the owner named, public ones for others.
#[derive(Debug)]
struct Resolver {
    named: String,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let anywhere = name.as_str().eq_ignore_ascii_case(&self.named);
        let host = name.as_str().to_owned();
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((host.as_str(), 0))
                .await?
                .filter(|address| anywhere || is_public(address.ip()))
                .collect();
            if found.is_empty() {
                return Err(format!("{host} has no public address").into());
            }
            let found: Addrs = Box::new(found.into_iter());
            Ok(found)
        })
    }
}

/// Makes a client that follows redirects to public places only.
fn client(url: &Url) -> Result<reqwest::Client, reqwest::Error> {
    let (first, secure) = (url.host().map(|host| host.to_owned()), url.scheme() == "https");
    let policy = redirect::Policy::custom(move |attempt| {
        let there = attempt.url();
        let literal = match there.host() {
            Some(Host::Ipv4(ip)) => Some(IpAddr::V4(ip)),
            Some(Host::Ipv6(ip)) => Some(IpAddr::V6(ip)),
            _ => None,
        };
        let same = there.host().map(|host| host.to_owned()) == first;
        if attempt.previous().len() > REDIRECTS {
            attempt.error("it leads on too often")
        } else if secure && there.scheme() != "https" {
            attempt.error("it leads from https to plain http")
        } else if !same && literal.is_some_and(|ip| !is_public(ip)) {
            attempt.error("it leads to an address that is not public")
        } else {
            attempt.follow()
        }
    });
    reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .redirect(policy)
        .dns_resolver(Arc::new(Resolver { named: url.host_str().unwrap_or_default().to_owned() }))
        .build()
}

/// Fetches a model's file into its place, and says how far it is. `sha256` is what the
/// file must have; plain http needs one.
///
/// # Errors
/// [`EngineError::FetchFailed`], [`EngineError::ModelMismatch`].
pub async fn fetch(
    model: &str,
    url: &Url,
    path: &Path,
    sha256: Option<&str>,
    told: &(dyn Fn(Progress) + Sync),
) -> Result<(), EngineError> {
    let failed = |reason: String| EngineError::FetchFailed { model: model.to_owned(), reason };
    if !(url.scheme() == "https" || (url.scheme() == "http" && sha256.is_some())) {
        return Err(failed("its url must begin with https://, or it needs a sha256".to_owned()));
    }
    let client = client(url).map_err(|error| failed(error.to_string()))?;
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    if let Some(parent) = path.parent() {
        tokio::fs::create_dir_all(parent).await.map_err(|error| failed(error.to_string()))?;
    }
    let mut tries = 0;
    while let Err(reason) = go_on(&client, url, &part, told).await {
        tries += 1;
        if tries >= TRIES {
            return Err(failed(reason));
        }
        tracing::warn!(model, reason, "fetching a model broke off and is gone on with");
        tokio::time::sleep(PAUSE.mul_f64(f64::from(tries) + fastrand::f64())).await;
    }
    let checked = part.clone();
    let digest = tokio::task::spawn_blocking(move || sha256_of(&mut std::fs::File::open(checked)?))
        .await
        .map_err(std::io::Error::other)
        .flatten()
        .map_err(|error| failed(error.to_string()))?;
    if let Some(wanted) = sha256.filter(|wanted| !wanted.eq_ignore_ascii_case(&digest)) {
        // What is there is wrong from somewhere on: going on with it is of no use.
        let _gone = tokio::fs::remove_file(&part).await;
        return Err(EngineError::ModelMismatch {
            model: model.to_owned(),
            path: path.to_owned(),
            found: digest,
            wanted: wanted.to_owned(),
        });
    }
    tokio::fs::rename(&part, path).await.map_err(|error| failed(error.to_string()))
}

/// Fetches what is missing of a file. Says why it broke off.
async fn go_on(
    client: &reqwest::Client,
    url: &Url,
    part: &Path,
    told: &(dyn Fn(Progress) + Sync),
) -> Result<(), String> {
    let words = |error: &dyn std::error::Error| {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            text = format!("{text}: {inner}");
            cause = inner.source();
        }
        text
    };
    let mut done = tokio::fs::metadata(part).await.map_or(0, |metadata| metadata.len());
    let mut request = client.get(url.clone());
    if done > 0 {
        request = request.header(reqwest::header::RANGE, format!("bytes={done}-"));
    }
    let response = request.send().await.map_err(|error| words(&error))?;
    match response.status() {
        StatusCode::PARTIAL_CONTENT => {}
        // The whole was there already.
        StatusCode::RANGE_NOT_SATISFIABLE if done > 0 => return Ok(()),
        StatusCode::OK => done = 0,
        status => return Err(format!("the server answered {status}")),
    }
    let total = response.content_length().map(|rest| done + rest);
    let mut file = tokio::fs::OpenOptions::new()
        .create(true)
        .write(true)
        .append(done > 0)
        .truncate(done == 0)
        .open(part)
        .await
        .map_err(|error| error.to_string())?;
    let mut pieces = response.bytes_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|error| words(&error))?;
        file.write_all(&piece).await.map_err(|error| error.to_string())?;
        done += piece.len() as u64;
        told(Progress { done, total });
    }
    file.sync_all().await.map_err(|error| error.to_string())?;
    match total {
        Some(total) if done < total => Err("the connection ended early".to_owned()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn addresses_inside_are_known_in_every_disguise() {
        for inside in [
            "127.0.0.1",
            "0.0.0.0",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "192.0.0.1",
            "198.18.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "64:ff9b::7f00:1",
            "64:ff9b::a00:1",
            "2002:7f00:1::",
            "2002:c0a8:101::1",
            "2001::1",
            "2001:db8::1",
            "fec0::1",
        ] {
            assert!(!is_public(inside.parse().unwrap()), "{inside}");
        }
        for outside in
            ["1.1.1.1", "8.8.8.8", "100.63.0.1", "2606:4700::1", "::ffff:1.1.1.1", "2002:101:101::"]
        {
            assert!(is_public(outside.parse().unwrap()), "{outside}");
        }
    }
}
