//! What a legacy agent says it serves: a URL query such as
//! `ipv4=10.0.0.7&host=node-7&default-route=true`, keys repeated at will.
//!
//! Read like Go's `url.ParseQuery`, because its answers are the compatibility surface: `+` is a
//! space, `%` needs two hexadecimal digits, `;` is not allowed, a pair without `=` has an empty
//! value, a broken pair is left out and makes the whole an error.

use crate::limits;

/// What may be announced; unknown keys are ignored, as the protocol has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identifiers {
    /// Values of `ipv4`.
    pub ipv4: Vec<String>,
    /// Values of `ipv6`.
    pub ipv6: Vec<String>,
    /// Values of `host`.
    pub host: Vec<String>,
    /// Values of `cidr`: no strategy uses them.
    pub cidr: Vec<String>,
    /// The first value of `default-route`, as a boolean.
    pub default_route: bool,
}

/// Why a text is not a set of identifiers. The texts are those of Go's parser, cut and escaped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentifiersError {
    #[error("invalid URL escape {0:?}")]
    Escape(String),
    #[error("invalid semicolon separator in query")]
    Semicolon,
    #[error("unknown address type: {0}")]
    UnknownType(String),
    #[error("more than {} identifiers", limits::KONNECTIVITY_IDENTIFIERS)]
    Many,
    #[error(
        "identifiers are longer than {} bytes",
        limits::KONNECTIVITY_IDENTIFIERS_BYTES
    )]
    TooLong,
}

impl Identifiers {
    /// What a server reads: unknown keys are ignored.
    pub fn parse(text: &str) -> Result<Self, IdentifiersError> {
        Self::read(text, |_| Ok(()))
    }

    /// What an agent accepts as a flag: unknown keys are refused.
    pub fn parse_strictly(text: &str) -> Result<Self, IdentifiersError> {
        Self::read(text, |key| {
            Err(IdentifiersError::UnknownType(
                key.chars().take(80).collect(),
            ))
        })
    }

    fn read(
        text: &str,
        unknown: impl Fn(&str) -> Result<(), IdentifiersError>,
    ) -> Result<Self, IdentifiersError> {
        if text.len() > limits::KONNECTIVITY_IDENTIFIERS_BYTES {
            return Err(IdentifiersError::TooLong);
        }
        let mut out = Self::default();
        let mut route = None;
        let mut count = 0;
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            if pair.contains(';') {
                return Err(IdentifiersError::Semicolon);
            }
            count += 1;
            if count > limits::KONNECTIVITY_IDENTIFIERS {
                return Err(IdentifiersError::Many);
            }
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (key, value) = (unescape(key)?, unescape(value)?);
            match key.as_str() {
                "ipv4" => out.ipv4.push(value),
                "ipv6" => out.ipv6.push(value),
                "host" => out.host.push(value),
                "cidr" => out.cidr.push(value),
                "default-route" => {
                    route.get_or_insert(value);
                }
                other => unknown(other)?,
            }
        }
        // What Go's ParseBool takes for true.
        out.default_route = route
            .is_some_and(|value| ["1", "t", "T", "true", "TRUE", "True"].contains(&value.as_str()));
        Ok(out)
    }

    /// Everything that the strategy `destHost` looks at.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        let all = self.ipv4.iter().chain(&self.ipv6).chain(&self.host);
        all.map(String::as_str)
    }
}

fn unescape(text: &str) -> Result<String, IdentifiersError> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        match first {
            b'+' => out.push(b' '),
            b'%' => {
                let digits = after.get(..2).and_then(|two| {
                    let digit = |byte: u8| char::from(byte).to_digit(16);
                    Some(digit(two[0])? << 4 | digit(two[1])?)
                });
                let Some(byte) = digits else {
                    let shown = &after[..after.len().min(2)];
                    let shown = String::from_utf8_lossy(shown);
                    return Err(IdentifiersError::Escape(format!("%{shown}")));
                };
                out.push(byte as u8);
                rest = &after[2..];
            }
            other => out.push(*other),
        }
    }
    // Go keeps any bytes; none that is not UTF-8 equals a host that a dial can name.
    Ok(String::from_utf8_lossy(&out).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_repeat_and_values_are_unescaped() {
        let text =
            "ipv4=10.0.0.7&ipv4=10.0.0.8&ipv6=fd00%3A%3A7&host=node+7&cidr=10.1.0.0/16&x=y&&host";
        let read = Identifiers::parse(text).unwrap();
        assert_eq!(read.ipv4, ["10.0.0.7", "10.0.0.8"]);
        assert_eq!(read.host, ["node 7", ""]);
        let hosts: Vec<_> = read.hosts().collect();
        assert_eq!(hosts, ["10.0.0.7", "10.0.0.8", "fd00::7", "node 7", ""]);
        assert!(!read.default_route);
    }

    #[test]
    fn only_the_first_default_route_counts() {
        for (text, expected) in [
            ("default-route=true", true),
            ("default-route=1&default-route=false", true),
            ("default-route=no&default-route=true", false),
            ("default-route", false),
        ] {
            assert_eq!(Identifiers::parse(text).unwrap().default_route, expected);
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        for (text, error) in [
            ("ipv4=%zz", "invalid URL escape \"%zz\""),
            ("ipv4=%4", "invalid URL escape \"%4\""),
            ("a=1;b=2", "invalid semicolon separator in query"),
        ] {
            assert_eq!(Identifiers::parse(text).unwrap_err().to_string(), error);
        }
        let many = "host=a&".repeat(limits::KONNECTIVITY_IDENTIFIERS + 1);
        assert_eq!(Identifiers::parse(&many), Err(IdentifiersError::Many));
    }

    #[test]
    fn an_agent_refuses_unknown_types_at_its_start() {
        let error = Identifiers::parse_strictly("uid=7").unwrap_err();
        assert_eq!(error.to_string(), "unknown address type: uid");
        assert!(Identifiers::parse("uid=7").is_ok());
    }
}
