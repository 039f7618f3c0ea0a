//! Values of flags: time spans as Go writes them (`1h30m`, `1.5s`, `300ms`, `0`) and sizes in
//! bytes (`8MiB`, `512K`). Text and value are inverses; every error says what is allowed.
//!
//! Called by clap through [`TimeSpan::between`] and [`ByteSize::between`], which also check the
//! range, so that a value that was parsed is a value that may be used.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use towline_proto::limits;

/// Why a flag's value was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// Not a time span.
    #[error(
        "{0:?} is not a time span: write a number and a unit, e.g. 300ms, 1.5s, 10m, 1h30m, or 0"
    )]
    Span(String),
    /// Not a size.
    #[error(
        "{0:?} is not a size: write a number and B, KiB, MiB or GiB (K, M and G mean the same), e.g. 512K, 8MiB"
    )]
    Size(String),
    /// A unit that some read as 1000 and some as 1024.
    #[error(
        "{0:?}: KB, MB and GB mean different things to different people; write KiB, MiB or GiB (powers of 1024)"
    )]
    Ambiguous(String),
    /// More than fits.
    #[error("{0:?} is too large")]
    Overflow(String),
    /// Not an address with a port.
    #[error(
        "{0:?} is not an address and a port: write e.g. 127.0.0.1:8092, [::1]:8092, or [::]:8092 for every address; names are not resolved"
    )]
    ListenAddress(String),
    /// Not a prefix.
    #[error(
        "{0:?} is not a prefix: write an address and a length, e.g. 10.96.0.0/12 or fd00:96::/108"
    )]
    Prefix(String),
    /// A prefix that says more than its length.
    #[error("{value} has bits behind its length: is {meant} meant?")]
    HostBits {
        /// What was given.
        value: String,
        /// The prefix around it.
        meant: String,
    },
    /// Longer than any value.
    #[error("the value is longer than {} bytes", limits::FLAG_VALUE_BYTES)]
    TooLong,
    /// Outside of the permitted range.
    #[error("{value} is out of range: allowed is {low} to {high}")]
    Range {
        /// What was given.
        value: String,
        /// The smallest that is allowed.
        low: String,
        /// The largest that is allowed.
        high: String,
    },
}

/// An address to listen at, as a flag's value; for clap.
pub fn listen_address(text: &str) -> Result<SocketAddr, ValueError> {
    check_length(text)?;
    text.parse()
        .map_err(|_| ValueError::ListenAddress(text.to_owned()))
}

/// An address to listen at as Konnectivity's flags have it, without a port: empty for every address,
/// `localhost` for 127.0.0.1, IPv6 with brackets or without. No other name is resolved.
pub fn bind_address(text: &str) -> Option<IpAddr> {
    match text {
        "" => Some(Ipv6Addr::UNSPECIFIED.into()),
        "localhost" => Some(Ipv4Addr::LOCALHOST.into()),
        text => {
            let bare = text
                .strip_prefix('[')
                .and_then(|rest| rest.strip_suffix(']'));
            bare.unwrap_or(text).parse().ok()
        }
    }
}

/// A prefix as a flag's value; for clap. One with bits behind its length is a slip of somebody who
/// meant another length, or the address of a machine.
pub fn prefix(text: &str) -> Result<IpNet, ValueError> {
    check_length(text)?;
    let prefix: IpNet = text
        .parse()
        .map_err(|_| ValueError::Prefix(text.to_owned()))?;
    match prefix.trunc() {
        trunc if trunc == prefix => Ok(prefix),
        trunc => Err(ValueError::HostBits {
            value: prefix.to_string(),
            meant: trunc.to_string(),
        }),
    }
}

/// A length of time as a flag's value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimeSpan(pub Duration);

/// Units of time, longest text first where one is the end of another, with their nanoseconds.
const TIME_UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60 * 1_000_000_000),
    ("h", 3600 * 1_000_000_000),
];

impl TimeSpan {
    /// A clap value parser that also checks the range.
    pub fn between(
        allowed: RangeInclusive<Duration>,
    ) -> impl Fn(&str) -> Result<TimeSpan, ValueError> + Clone {
        move |text| {
            let span: TimeSpan = text.parse()?;
            if allowed.contains(&span.0) {
                return Ok(span);
            }
            Err(ValueError::Range {
                value: span.to_string(),
                low: TimeSpan(*allowed.start()).to_string(),
                high: TimeSpan(*allowed.end()).to_string(),
            })
        }
    }
}

impl From<TimeSpan> for Duration {
    fn from(span: TimeSpan) -> Self {
        span.0
    }
}

impl From<Duration> for TimeSpan {
    fn from(duration: Duration) -> Self {
        TimeSpan(duration)
    }
}

impl FromStr for TimeSpan {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        check_length(text)?;
        let wrong = || ValueError::Span(text.to_owned());
        let overflow = || ValueError::Overflow(text.to_owned());
        if text == "0" {
            return Ok(TimeSpan(Duration::ZERO));
        }
        let mut rest = text;
        let mut total: u128 = 0;
        loop {
            let (number, after) = split_number(rest).ok_or_else(wrong)?;
            let (unit, nanos) = TIME_UNITS
                .iter()
                .copied()
                .find(|(unit, _)| {
                    after.strip_prefix(unit).is_some_and(|next| {
                        next.is_empty() || next.starts_with(|c: char| c.is_ascii_digit())
                    })
                })
                .ok_or_else(wrong)?;
            total += scale(number, u128::from(nanos)).ok_or_else(overflow)?;
            rest = &after[unit.len()..];
            if rest.is_empty() {
                break;
            }
        }
        let nanos = u64::try_from(total).map_err(|_| overflow())?;
        Ok(TimeSpan(Duration::from_nanos(nanos)))
    }
}

impl fmt::Display for TimeSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos();
        if nanos == 0 {
            return f.write_str("0s");
        }
        if nanos < 1_000_000_000 {
            let (unit, size) = match nanos {
                0..1_000 => ("ns", 1),
                1_000..1_000_000 => ("us", 1_000),
                _ => ("ms", 1_000_000),
            };
            return write_decimal(f, nanos, size, unit);
        }
        let minute = 60 * 1_000_000_000;
        let (hours, nanos) = (nanos / (60 * minute), nanos % (60 * minute));
        let (minutes, nanos) = (nanos / minute, nanos % minute);
        if hours > 0 {
            write!(f, "{hours}h")?;
        }
        if minutes > 0 {
            write!(f, "{minutes}m")?;
        }
        if nanos > 0 {
            write_decimal(f, nanos, 1_000_000_000, "s")?;
        }
        Ok(())
    }
}

/// A number of bytes as a flag's value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// A clap value parser that also checks the range.
    pub fn between(
        allowed: RangeInclusive<u64>,
    ) -> impl Fn(&str) -> Result<ByteSize, ValueError> + Clone {
        move |text| {
            let size: ByteSize = text.parse()?;
            if allowed.contains(&size.0) {
                return Ok(size);
            }
            Err(ValueError::Range {
                value: size.to_string(),
                low: ByteSize(*allowed.start()).to_string(),
                high: ByteSize(*allowed.end()).to_string(),
            })
        }
    }
}

impl From<ByteSize> for u64 {
    fn from(size: ByteSize) -> Self {
        size.0
    }
}

impl FromStr for ByteSize {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        check_length(text)?;
        let wrong = || ValueError::Size(text.to_owned());
        let (number, unit) = split_number(text).ok_or_else(wrong)?;
        let size: u128 = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "ki" | "kib" => 1 << 10,
            "m" | "mi" | "mib" => 1 << 20,
            "g" | "gi" | "gib" => 1 << 30,
            "kb" | "mb" | "gb" => return Err(ValueError::Ambiguous(text.to_owned())),
            _ => return Err(wrong()),
        };
        let bytes = scale(number, size).ok_or_else(|| ValueError::Overflow(text.to_owned()))?;
        let bytes = u64::try_from(bytes).map_err(|_| ValueError::Overflow(text.to_owned()))?;
        Ok(ByteSize(bytes))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0;
        for (unit, size) in [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
            if bytes >= size && bytes.is_multiple_of(size) {
                return write!(f, "{}{unit}", bytes / size);
            }
        }
        write!(f, "{bytes}B")
    }
}

fn check_length(text: &str) -> Result<(), ValueError> {
    if text.len() > limits::FLAG_VALUE_BYTES {
        return Err(ValueError::TooLong);
    }
    Ok(())
}

/// A decimal number at the start of a text: whole part and digits after the point.
type Number<'a> = (&'a str, &'a str);

/// `12.5ms` is ((`12`, `5`), `ms`). At least one digit, a point only with a digit after it.
fn split_number(text: &str) -> Option<(Number<'_>, &str)> {
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let (whole, rest) = text.split_at(digits(text));
    let Some(after_point) = rest.strip_prefix('.') else {
        return (!whole.is_empty()).then_some(((whole, ""), rest));
    };
    let (fraction, rest) = after_point.split_at(digits(after_point));
    (!whole.is_empty() && !fraction.is_empty()).then_some(((whole, fraction), rest))
}

/// The number times `unit`, without floating point; what is smaller than one is dropped.
fn scale((whole, fraction): Number<'_>, unit: u128) -> Option<u128> {
    let whole: u128 = whole.parse().ok()?;
    let mut total = whole.checked_mul(unit)?;
    // Digit by digit in units of 10^-18, enough for every unit above.
    const FINE: u128 = 1_000_000_000_000_000_000;
    let mut place = unit.checked_mul(FINE)?;
    let mut part: u128 = 0;
    for digit in fraction.bytes() {
        place /= 10;
        part = part.checked_add(place.checked_mul(u128::from(digit - b'0'))?)?;
    }
    total = total.checked_add(part / FINE)?;
    (total <= u128::from(u64::MAX)).then_some(total)
}

/// `value / size` with as many digits after the point as it needs.
fn write_decimal(f: &mut fmt::Formatter<'_>, value: u128, size: u128, unit: &str) -> fmt::Result {
    let (whole, mut rest) = (value / size, value % size);
    write!(f, "{whole}")?;
    if rest > 0 {
        f.write_str(".")?;
        let mut place = size / 10;
        while rest > 0 {
            write!(f, "{}", rest / place)?;
            rest %= place;
            place /= 10;
        }
    }
    f.write_str(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(text: &str) -> Result<Duration, ValueError> {
        text.parse::<TimeSpan>().map(Duration::from)
    }

    #[test]
    fn time_spans_are_read_as_go_reads_them() {
        let table = [
            ("0", Duration::ZERO),
            ("0s", Duration::ZERO),
            ("300ms", Duration::from_millis(300)),
            ("1.5s", Duration::from_millis(1500)),
            ("1h30m", Duration::from_secs(5400)),
            ("1m0.5s", Duration::from_millis(60_500)),
            ("7us", Duration::from_micros(7)),
            ("7\u{b5}s", Duration::from_micros(7)),
            ("0.1ns", Duration::ZERO),
        ];
        for (text, expected) in table {
            assert_eq!(span(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_span_is_refused_with_the_allowed_form() {
        for text in [
            "", "10", "s", "1.s", ".5s", "-1s", "+1s", "1 s", "1d", "1s ", "1m30", "1e3s", "0x1s",
            "1h-3m",
        ] {
            let error = span(text).expect_err(text);
            assert!(matches!(error, ValueError::Span(_)), "{text}: {error}");
            assert!(error.to_string().contains("1h30m"));
        }
        assert!(matches!(span("99999999999h"), Err(ValueError::Overflow(_))));
        assert!(span("600000h").is_ok());
        assert!(matches!(span(&"9".repeat(64)), Err(ValueError::Span(_))));
        assert_eq!(span(&"9".repeat(65)), Err(ValueError::TooLong));
    }

    #[test]
    fn time_spans_print_what_they_parse_from() {
        for nanos in [
            1,
            999,
            1_500,
            1_000_000,
            300_000_000,
            1_500_000_000,
            90_000_000_000,
            3_600_000_000_001,
        ] {
            let value = TimeSpan(Duration::from_nanos(nanos));
            assert_eq!(value.to_string().parse(), Ok(value), "{value}");
        }
        assert_eq!(TimeSpan(Duration::from_secs(5400)).to_string(), "1h30m");
        assert_eq!(TimeSpan(Duration::from_millis(1500)).to_string(), "1.5s");
        assert_eq!(TimeSpan(Duration::ZERO).to_string(), "0s");
    }

    #[test]
    fn sizes_are_powers_of_1024_and_print_what_they_parse_from() {
        let table = [
            ("0", 0),
            ("17", 17),
            ("17B", 17),
            ("512K", 512 << 10),
            ("512Ki", 512 << 10),
            ("8MiB", 8 << 20),
            ("8m", 8 << 20),
            ("1.5GiB", 3 << 29),
        ];
        for (text, expected) in table {
            let size: ByteSize = text.parse().expect(text);
            assert_eq!(size.0, expected, "{text}");
            assert_eq!(size.to_string().parse(), Ok(size));
        }
        assert_eq!(ByteSize(8 << 20).to_string(), "8MiB");
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "MiB", "-1", "1 MiB", "1T", "1x", "1.K", "0x10"] {
            assert!(
                matches!(text.parse::<ByteSize>(), Err(ValueError::Size(_))),
                "{text}"
            );
        }
        assert!(matches!(
            "8MB".parse::<ByteSize>(),
            Err(ValueError::Ambiguous(_))
        ));
        assert!(matches!(
            "99999999999999999999G".parse::<ByteSize>(),
            Err(ValueError::Overflow(_))
        ));
    }

    #[test]
    fn a_range_is_named_when_it_is_missed() {
        let parse = TimeSpan::between(Duration::from_secs(1)..=Duration::from_secs(30));
        assert_eq!(parse("10s"), Ok(TimeSpan(Duration::from_secs(10))));
        let error = parse("1h").expect_err("too long");
        assert_eq!(
            error.to_string(),
            "1h is out of range: allowed is 1s to 30s"
        );
        let parse = ByteSize::between(1 << 20..=8 << 20);
        let error = parse("1K").expect_err("too small");
        assert_eq!(
            error.to_string(),
            "1KiB is out of range: allowed is 1MiB to 8MiB"
        );
    }

    #[test]
    fn addresses_and_prefixes_say_what_is_missing() {
        assert_eq!(
            listen_address("[::1]:8092"),
            Ok(([0, 0, 0, 0, 0, 0, 0, 1], 8092).into())
        );
        for text in ["127.0.0.1", "localhost:8092", ":8092", "[::]", ""] {
            let error = listen_address(text).expect_err(text).to_string();
            assert!(error.contains("write e.g. 127.0.0.1:8092"), "{error}");
        }
        assert_eq!(prefix("10.96.0.0/12"), Ok("10.96.0.0/12".parse().unwrap()));
        for text in ["10.96.0.0", "10.96.0.0/33", "fd00::", "all", ""] {
            let error = prefix(text).expect_err(text).to_string();
            assert!(error.contains("is not a prefix: write"), "{error}");
        }
        assert_eq!(
            prefix("10.96.0.1/12").expect_err("host bits").to_string(),
            "10.96.0.1/12 has bits behind its length: is 10.96.0.0/12 meant?"
        );
    }

    #[test]
    fn an_address_to_bind_may_be_empty_or_localhost() {
        for (text, address) in [
            ("", "::"),
            ("localhost", "127.0.0.1"),
            ("10.0.0.7", "10.0.0.7"),
            ("fd00::7", "fd00::7"),
            ("[::1]", "::1"),
        ] {
            assert_eq!(bind_address(text), address.parse().ok(), "{text}");
        }
        for text in ["cp.example", "10.0.0.7:1", "[::1", "::1]", "Localhost"] {
            assert_eq!(bind_address(text), None, "{text}");
        }
    }
}
