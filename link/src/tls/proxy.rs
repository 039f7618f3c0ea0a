//! Which HTTP proxy an agent goes through, from its flag or from the usual environment names.
//!
//! 1. The flag wins. It may carry no password: arguments are readable by every process of the
//!    machine.
//! 2. Else `HTTPS_PROXY`, `https_proxy`, `ALL_PROXY`, `all_proxy`: the first that is not empty.
//! 3. With 2, a server that `NO_PROXY` (or `no_proxy`) names is connected to directly: a host
//!    name and everything below it, an address, a prefix, each with or without a port, or `*`.
//!
//! Only `http://` proxies: the link inside is TLS from end to end anyway.

use std::fmt;
use std::net::IpAddr;

use towline_proto::limits::PROXY_TEXT_BYTES;
use towline_proto::target::{Host, Target};

/// Environment names, in the order in which they are asked.
const NAMES: [&str; 4] = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
const NO_PROXY: [&str; 2] = ["NO_PROXY", "no_proxy"];
/// Where `http://` without a port leads.
const DEFAULT_PORT: u16 = 80;

/// A proxy, and who goes without it. Credentials are in neither Debug nor Display.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpProxy {
    /// Name or address, without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// What `Proxy-Authorization` says after `Basic`.
    pub(super) credentials: Option<String>,
    without: Vec<Rule>,
}

/// What is wrong with a proxy setting. Never shows the setting itself: it may hold a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    /// A password in an argument.
    #[error(
        "the proxy in {origin} has a user name or password in it; give it by HTTPS_PROXY instead, where other processes cannot read it"
    )]
    SecretInFlag {
        /// The flag.
        origin: &'static str,
    },
    /// Another scheme than `http`.
    #[error("the proxy in {origin} is not an http:// proxy; Towline speaks HTTP CONNECT only")]
    Scheme {
        /// The flag or variable.
        origin: &'static str,
    },
    /// Not a URL that we can read.
    #[error(
        "the proxy in {origin} is not of the form http://[user:password@]host[:port]: {detail}"
    )]
    Form {
        /// The flag or variable.
        origin: &'static str,
        /// What does not fit.
        detail: &'static str,
    },
    /// Longer than any such setting.
    #[error("the setting in {origin} is longer than {PROXY_TEXT_BYTES} bytes")]
    TooLong {
        /// The flag or variable.
        origin: &'static str,
    },
}

impl HttpProxy {
    /// The proxy that is set, if one is. `env` is how the caller reads the environment.
    pub fn from_flag_or_env(
        flag: Option<&str>,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, ProxyError> {
        const FLAG: &str = "--http-proxy";
        if let Some(url) = flag {
            let proxy = Self::parse(url, FLAG)?;
            if proxy.credentials.is_some() {
                return Err(ProxyError::SecretInFlag { origin: FLAG });
            }
            return Ok(Some(proxy));
        }
        for origin in NAMES {
            let Some(url) = env(origin).filter(|url| !url.trim().is_empty()) else {
                continue;
            };
            let mut proxy = Self::parse(url.trim(), origin)?;
            for origin in NO_PROXY {
                let Some(list) = env(origin).filter(|list| !list.is_empty()) else {
                    continue;
                };
                if list.len() > PROXY_TEXT_BYTES {
                    return Err(ProxyError::TooLong { origin });
                }
                proxy.without = list.split([',', ' ']).filter_map(Rule::parse).collect();
                break;
            }
            return Ok(Some(proxy));
        }
        Ok(None)
    }

    /// Whether connections to this server go through the proxy.
    pub fn applies_to(&self, server: &Target) -> bool {
        !self.without.iter().any(|rule| rule.covers(server))
    }

    fn parse(url: &str, origin: &'static str) -> Result<Self, ProxyError> {
        let form = |detail| ProxyError::Form { origin, detail };
        if url.len() > PROXY_TEXT_BYTES {
            return Err(ProxyError::TooLong { origin });
        }
        let rest = match url.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
            Some(_) => return Err(ProxyError::Scheme { origin }),
            None => url,
        };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (user, place) = match authority.rsplit_once('@') {
            Some((user, place)) => (Some(user), place),
            None => (None, authority),
        };
        let credentials = match user {
            Some(user) => {
                let plain =
                    decoded(user).ok_or(form("a bad %-escape in the user name or password"))?;
                Some(base64(&plain))
            }
            None => None,
        };
        let (host, port) = match place.strip_prefix('[') {
            Some(rest) => {
                let (host, after) = rest.split_once(']').ok_or(form("a bracket is missing"))?;
                host.parse::<std::net::Ipv6Addr>()
                    .map_err(|_| form("no IPv6 address between the brackets"))?;
                (
                    host,
                    after
                        .strip_prefix(':')
                        .or((!after.is_empty()).then_some("")),
                )
            }
            None => match place.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (place, None),
            },
        };
        let port = match port {
            Some(port) => port
                .parse()
                .ok()
                .filter(|port| *port != 0)
                .ok_or(form("the port is not a number from 1 to 65535"))?,
            None => DEFAULT_PORT,
        };
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        if host.is_empty() || !host.chars().all(fits) {
            return Err(form(
                "the host is empty or has characters that no host name has",
            ));
        }
        Ok(Self {
            host: host.to_owned(),
            port,
            credentials,
            without: Vec::new(),
        })
    }
}

impl fmt::Display for HttpProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "http://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "http://{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Debug for HttpProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HttpProxy({self})")
    }
}

/// One item of `NO_PROXY`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Rule {
    All,
    Prefix(IpAddr, u8),
    /// Lower case, without leading dots: the name and everything below it.
    Suffix {
        name: String,
        port: Option<u16>,
    },
    Address(IpAddr, Option<u16>),
}

impl Rule {
    fn parse(item: &str) -> Option<Self> {
        let item = item.trim();
        if item.is_empty() {
            return None;
        }
        if item == "*" {
            return Some(Rule::All);
        }
        if let Some((address, length)) = item.split_once('/') {
            let address: IpAddr = address.parse().ok()?;
            let length: u8 = length.parse().ok()?;
            let most = if address.is_ipv4() { 32 } else { 128 };
            return (length <= most).then_some(Rule::Prefix(address, length));
        }
        let bare = item.trim_start_matches('[');
        if let Ok(address) = bare.trim_end_matches(']').parse() {
            return Some(Rule::Address(address, None));
        }
        let (host, port) = match item.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().ok()?)),
            None => (item, None),
        };
        if let Ok(address) = host.trim_matches(['[', ']']).parse() {
            return Some(Rule::Address(address, port));
        }
        let name = host
            .trim_start_matches("*.")
            .trim_matches('.')
            .to_ascii_lowercase();
        (!name.is_empty()).then_some(Rule::Suffix { name, port })
    }

    fn covers(&self, server: &Target) -> bool {
        let port_fits = |port: &Option<u16>| port.is_none_or(|port| port == server.port());
        match (self, &server.host) {
            (Rule::All, _) => true,
            (Rule::Prefix(prefix, length), Host::Ip(ip)) => contains(*prefix, *length, *ip),
            (Rule::Address(address, port), Host::Ip(ip)) => {
                address.to_canonical() == ip.to_canonical() && port_fits(port)
            }
            (Rule::Suffix { name, port }, Host::Name(host)) => {
                let host = host.as_str().trim_end_matches('.').to_ascii_lowercase();
                let below = host.strip_suffix(name.as_str());
                below.is_some_and(|rest| rest.is_empty() || rest.ends_with('.')) && port_fits(port)
            }
            (Rule::Prefix(..) | Rule::Address(..), Host::Name(_))
            | (Rule::Suffix { .. }, Host::Ip(_)) => false,
        }
    }
}

fn contains(prefix: IpAddr, length: u8, ip: IpAddr) -> bool {
    let shift = |width: u32| width - u32::from(length);
    match (prefix.to_canonical(), ip.to_canonical()) {
        (IpAddr::V4(prefix), IpAddr::V4(ip)) if length <= 32 => {
            (u32::from(prefix) ^ u32::from(ip))
                .checked_shr(shift(32))
                .unwrap_or(0)
                == 0
        }
        (IpAddr::V6(prefix), IpAddr::V6(ip)) => {
            (u128::from(prefix) ^ u128::from(ip))
                .checked_shr(shift(128))
                .unwrap_or(0)
                == 0
        }
        _ => false,
    }
}

/// Undoes %-escapes (RFC 3986, section 2.1).
fn decoded(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut plain = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        plain.push(if byte == b'%' {
            let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
            let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
            u8::try_from(high * 16 + low).ok()?
        } else {
            byte
        });
    }
    Some(plain)
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let at = |n: usize| u32::from(three.get(n).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for n in 0..4 {
            if n <= three.len() {
                let letter = (bits >> (18 - 6 * n)) & 63;
                text.push(char::from(LETTERS[letter as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(flag: Option<&str>, env: &[(&str, &str)]) -> Result<Option<HttpProxy>, ProxyError> {
        HttpProxy::from_flag_or_env(flag, &|name| {
            env.iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        })
    }

    fn direct(list: &str, server: &str) -> bool {
        let proxy = from(None, &[("HTTPS_PROXY", "http://p:1"), ("NO_PROXY", list)])
            .expect("a good setting")
            .expect("a proxy");
        !proxy.applies_to(&server.parse().expect("a server"))
    }

    #[test]
    fn the_flag_wins_and_the_environment_is_asked_in_order() {
        let shown = |flag, env| {
            from(flag, env)
                .expect("good")
                .map(|proxy| proxy.to_string())
        };
        let env = [("https_proxy", "b:2"), ("ALL_PROXY", "http://c:3")];
        assert_eq!(shown(None, &[]), None);
        assert_eq!(shown(None, &[("HTTPS_PROXY", " ")]), None);
        assert_eq!(shown(None, &env).as_deref(), Some("http://b:2"));
        assert_eq!(
            shown(Some("http://a/"), &env).as_deref(),
            Some("http://a:80")
        );
        assert_eq!(
            shown(Some("http://[::1]:3128"), &env).as_deref(),
            Some("http://[::1]:3128")
        );
    }

    #[test]
    fn a_password_is_taken_from_the_environment_only_and_never_shown() {
        let url = "http://us%65r:p%40ss@proxy:3128";
        let error = from(Some(url), &[]).expect_err("refused");
        assert_eq!(
            error,
            ProxyError::SecretInFlag {
                origin: "--http-proxy"
            }
        );
        let proxy = from(None, &[("HTTPS_PROXY", url)])
            .expect("good")
            .expect("a proxy");
        assert_eq!(proxy.credentials.as_deref(), Some("dXNlcjpwQHNz"));
        for shown in [
            format!("{proxy}"),
            format!("{proxy:?}"),
            format!("{error} {error:?}"),
        ] {
            assert!(
                !shown.contains("dXNl") && !shown.contains("p%40ss"),
                "{shown}"
            );
        }
    }

    #[test]
    fn what_is_not_a_proxy_is_refused_with_its_place() {
        let refused = |url: &str| from(None, &[("ALL_PROXY", url)]).expect_err(url);
        assert_eq!(
            refused("socks5://p:1"),
            ProxyError::Scheme {
                origin: "ALL_PROXY"
            }
        );
        assert_eq!(
            refused("https://p:1"),
            ProxyError::Scheme {
                origin: "ALL_PROXY"
            }
        );
        for url in [
            "http://",
            "http://p:0",
            "http://p:x",
            "http://[::1",
            "http://[x]:1",
            "http://a b",
            "http://%zz@p:1",
            "http://p\r\nX: y",
        ] {
            assert!(matches!(refused(url), ProxyError::Form { .. }), "{url}");
        }
    }

    #[test]
    fn no_proxy_names_hosts_addresses_prefixes_and_all() {
        assert!(direct("*", "server.example:8091"));
        assert!(direct("example", "server.example:8091"));
        assert!(direct(".example", "server.example:8091"));
        assert!(direct("*.Example", "server.example:8091"));
        assert!(direct("other, server.example:8091", "server.example:8091"));
        assert!(!direct("server.example:1", "server.example:8091"));
        assert!(
            !direct("ample", "server.example:8091"),
            "a suffix in the middle of a label"
        );
        assert!(direct("10.0.0.0/8", "10.200.3.4:8091"));
        assert!(!direct("10.0.0.0/8", "11.0.0.1:8091"));
        assert!(direct("0.0.0.0/0", "11.0.0.1:8091"));
        assert!(direct("fd00::/8", "[fd12::1]:8091"));
        assert!(direct("192.0.2.7", "192.0.2.7:8091"));
        assert!(direct("[fd12::1]:8091", "[fd12::1]:8091"));
        assert!(!direct("192.0.2.7:1", "192.0.2.7:8091"));
        assert!(!direct("10.0.0.0/99,, ,nonsense/", "10.0.0.1:8091"));
    }

    #[test]
    fn base64_as_in_the_rfc() {
        let pairs = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ];
        for (plain, text) in pairs {
            assert_eq!(base64(plain.as_bytes()), text);
        }
    }

    /// Every setting near a good one is taken or refused, and what is taken can be shown again.
    #[test]
    fn any_setting_is_judged() {
        let good = "http://us%65r:p%40ss@[fd00::1]:3128/x,10.0.0.0/8,*.a.b:1";
        for at in 0..good.len() {
            for value in (0..128).map(char::from) {
                let mut text = good.to_owned();
                text.replace_range(at..at + 1, &value.to_string());
                if let Ok(Some(proxy)) = from(None, &[("ALL_PROXY", &text), ("NO_PROXY", &text)]) {
                    let again = from(Some(&proxy.to_string()), &[])
                        .expect("good")
                        .expect("a proxy");
                    assert_eq!(
                        (&again.host, again.port),
                        (&proxy.host, proxy.port),
                        "{text:?}"
                    );
                }
            }
        }
    }
}
