//! The address of a control plane, in one spelling.
//!
//! Login events are compared byte for byte, so every part of the program writes
//! the address as this type does: lower-case host, no default port, no slash at
//! the end.

use std::fmt;
use std::net::IpAddr;

use url::{Host, Url};

/// Where plain `http` is acceptable. Over it prompts, results and tokens can be
/// read and changed on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PlainHttp {
    /// On this machine and in private networks only.
    #[default]
    PrivateOnly,
    /// Anywhere: the user insisted.
    Anywhere,
}

/// The base URL of a control plane, such as `https://infernet.tech`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct BaseUrl(Url);

/// Why a text is no base URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BaseUrlError {
    /// The text is not an absolute URL of the web.
    #[error(
        "{text} is not the URL of a control plane: {reason}. Give it like https://infernet.tech or http://127.0.0.1:54321."
    )]
    Invalid {
        /// What was given, without any credentials.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The URL is plain `http` to a public host.
    #[error(
        "{url} would send keys and prompts in the clear. Use https, or allow plain http for this control plane if you know the network."
    )]
    PlainHttp {
        /// The URL.
        url: String,
    },
}

impl BaseUrl {
    /// Reads and normalises a base URL.
    ///
    /// Without a scheme, `https` is assumed, or `http` for a private host. A
    /// path is kept (a control plane may live below one), and one that was
    /// pasted from an API (`/rest/v1`, `/functions/v1/…`) is cut off.
    ///
    /// # Errors
    ///
    /// Says what is wrong with the text.
    pub fn parse(text: &str, plain_http: PlainHttp) -> Result<Self, BaseUrlError> {
        let text = text.trim();
        let invalid = |reason| BaseUrlError::Invalid { text: without_credentials(text), reason };
        let mut url = if text.contains("://") {
            Url::parse(text).map_err(|_| invalid("it cannot be read as a URL"))?
        } else {
            let assumed = Url::parse(&format!("http://{text}"))
                .map_err(|_| invalid("it cannot be read as a URL"))?;
            if is_private(&assumed) {
                assumed
            } else {
                Url::parse(&format!("https://{text}"))
                    .map_err(|_| invalid("it cannot be read as a URL"))?
            }
        };
        if !matches!(url.scheme(), "http" | "https") {
            return Err(invalid("only https and http are spoken"));
        }
        if url.host().is_none() {
            return Err(invalid("it names no host"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(invalid("it carries a user name or password"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(invalid("it has a query or a fragment"));
        }
        let path = url.path();
        let path = ["/rest/v1", "/functions/v1", "/realtime/v1"]
            .iter()
            .find_map(|api| path.find(api).map(|at| &path[..at]))
            .unwrap_or(path)
            .trim_end_matches('/')
            .to_owned();
        url.set_path(&path);
        if url.scheme() == "http" && plain_http == PlainHttp::PrivateOnly && !is_private(&url) {
            return Err(BaseUrlError::PlainHttp { url: Self(url).to_string() });
        }
        Ok(Self(url))
    }

    /// Returns the URL of a path below the base, such as `/rest/v1/rpc/tick`.
    pub fn join(&self, path: &str) -> String {
        format!("{self}{path}")
    }

    /// Tells whether the connection is encrypted.
    pub fn is_https(&self) -> bool {
        self.0.scheme() == "https"
    }

    /// Tells whether the host is this machine or in a private network.
    pub fn is_private(&self) -> bool {
        is_private(&self.0)
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.0.as_str().trim_end_matches('/'))
    }
}

impl fmt::Debug for BaseUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "BaseUrl({self})")
    }
}

/// Tells whether a host is this machine or in a private network, by its name or
/// address alone.
fn is_private(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => is_private_address(IpAddr::V4(address)),
        Some(Host::Ipv6(address)) => is_private_address(IpAddr::V6(address)),
        Some(Host::Domain(name)) => {
            let name = name.trim_end_matches('.');
            // A name without a dot is only ever resolved locally.
            !name.contains('.')
                || [".localhost", ".local", ".lan", ".internal", ".home.arpa"]
                    .iter()
                    .any(|suffix| name.ends_with(suffix))
        }
        None => false,
    }
}

/// Tells whether an address is loopback, private, link-local or of a
/// carrier's or VPN's shared range.
fn is_private_address(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            v4.is_loopback()
                || v4.is_private()
                || v4.is_link_local()
                || (a == 100 && (64..128).contains(&b))
        }
        IpAddr::V6(v6) => {
            v6.is_loopback()
                || v6.is_unique_local()
                || v6.is_unicast_link_local()
                || v6.to_ipv4_mapped().is_some_and(|v4| is_private_address(IpAddr::V4(v4)))
        }
    }
}

/// Cuts `user:password@` out of a text that is about to be shown.
fn without_credentials(text: &str) -> String {
    let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let path = path.split(['?', '#']).next().unwrap_or("");
    if scheme.is_empty() { format!("{host}{path}") } else { format!("{scheme}://{host}{path}") }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<String, BaseUrlError> {
        BaseUrl::parse(text, PlainHttp::PrivateOnly).map(|url| url.to_string())
    }

    #[test]
    fn urls_have_one_spelling() {
        for (given, kept) in [
            ("https://Infernet.Tech/", "https://infernet.tech"),
            ("https://infernet.tech:443", "https://infernet.tech"),
            ("infernet.tech", "https://infernet.tech"),
            (" localhost:54321 ", "http://localhost:54321"),
            ("http://127.0.0.1:8080/", "http://127.0.0.1:8080"),
            ("http://[::1]:8080", "http://[::1]:8080"),
            ("https://x.example/plane//", "https://x.example/plane"),
            ("https://x.supabase.co/rest/v1/", "https://x.supabase.co"),
            ("https://x.example/plane/functions/v1/info", "https://x.example/plane"),
        ] {
            assert_eq!(parse(given).unwrap(), kept, "{given}");
        }
    }

    #[test]
    fn joined_paths_follow_the_base() {
        let url = BaseUrl::parse("https://x.example/plane/", PlainHttp::PrivateOnly).unwrap();
        assert_eq!(url.join("/rest/v1/rpc/info"), "https://x.example/plane/rest/v1/rpc/info");
    }

    #[test]
    fn plain_http_stays_in_private_networks() {
        for private in [
            "http://localhost",
            "http://kong:8000",
            "http://10.1.2.3",
            "http://192.168.1.9:54321",
            "http://172.20.0.1",
            "http://100.101.102.103",
            "http://attic.local",
            "http://[fd00::1]",
            "http://[fe80::1]",
            "http://[::ffff:127.0.0.1]",
            "http://169.254.1.1",
        ] {
            assert!(parse(private).is_ok(), "{private}");
        }
        for public in [
            "http://infernet.tech",
            "http://8.8.8.8",
            "http://100.128.0.1",
            "http://[2001:db8::1]",
            "http://local.example",
        ] {
            let error = parse(public).unwrap_err();
            assert!(matches!(error, BaseUrlError::PlainHttp { .. }), "{public}: {error}");
            assert!(BaseUrl::parse(public, PlainHttp::Anywhere).is_ok());
        }
    }

    #[test]
    fn nonsense_is_refused_with_an_example_and_without_secrets() {
        for wrong in [
            "",
            "ftp://x.example",
            "https://",
            "https://user:hunter2@x.example",
            "x.example?key=hunter2",
            "https://x.example/#hunter2",
            "ht tp://x",
        ] {
            let message = parse(wrong).unwrap_err().to_string();
            assert!(message.contains("https://infernet.tech"), "{message}");
            assert!(!message.contains("hunter2"), "{message}");
        }
    }
}
