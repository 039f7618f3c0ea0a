//! Instants as seconds, as text and as they stand in a certificate.
//!
//! Every function is total: an instant outside of what a form can say is clamped, never a panic.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;
use time::macros::format_description;

/// Seconds since 1970, rounded towards the past.
pub fn seconds(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
        Err(before) => {
            let before = before.duration();
            let whole = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
            -whole - i64::from(before.subsec_nanos() > 0)
        }
    }
}

/// The instant of a number of seconds since 1970.
pub fn from_seconds(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let instant = if seconds >= 0 {
        UNIX_EPOCH.checked_add(distance)
    } else {
        UNIX_EPOCH.checked_sub(distance)
    };
    instant.unwrap_or(UNIX_EPOCH)
}

/// `2026-11-21T04:00:00Z`.
pub fn text(time: SystemTime) -> String {
    civil(time)
        .format(format_description!(
            "[year]-[month]-[day]T[hour]:[minute]:[second]Z"
        ))
        .unwrap_or_else(|_| seconds(time).to_string())
}

/// The instant of what [`text`] writes.
pub fn from_text(text: &str) -> Option<SystemTime> {
    let form = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");
    let civil = time::PrimitiveDateTime::parse(text, form).ok()?;
    Some(from_seconds(civil.assume_utc().unix_timestamp()))
}

/// "in 89 days", "2 hours ago": the largest unit that says something.
pub fn distance(from: SystemTime, to: SystemTime) -> String {
    let delta = seconds(to).saturating_sub(seconds(from));
    let size = delta.unsigned_abs();
    let (count, unit) = match size {
        0..60 => (size, "second"),
        60..7_200 => (size / 60, "minute"),
        7_200..172_800 => (size / 3_600, "hour"),
        _ => (size / 86_400, "day"),
    };
    let plural = if count == 1 { "" } else { "s" };
    if delta < 0 {
        format!("{count} {unit}{plural} ago")
    } else {
        format!("in {count} {unit}{plural}")
    }
}

/// Tag and digits of a certificate's time: UTCTime up to 2049, GeneralizedTime after (RFC 5280
/// section 4.1.2.5).
pub(crate) fn asn1(time: SystemTime) -> (u8, String) {
    let date = civil(time);
    let utc = (1950..2050).contains(&date.year());
    let digits = date
        .format(format_description!(
            "[year][month][day][hour][minute][second]Z"
        ))
        .unwrap_or_else(|_| "99991231235959Z".into());
    if utc {
        (0x17, digits.chars().skip(2).collect())
    } else {
        (0x18, digits)
    }
}

/// Clamped to the years 0 to 9999, which is what certificates and the text form can say.
fn civil(time: SystemTime) -> OffsetDateTime {
    const FIRST: i64 = -62_167_219_200;
    const LAST: i64 = 253_402_300_799;
    OffsetDateTime::from_unix_timestamp(seconds(time).clamp(FIRST, LAST))
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_survive_seconds_and_print_in_utc() {
        for s in [-1, 0, 1_795_233_600, 253_402_300_799] {
            assert_eq!(seconds(from_seconds(s)), s);
        }
        assert_eq!(text(from_seconds(0)), "1970-01-01T00:00:00Z");
        assert_eq!(text(from_seconds(i64::MAX)).len(), 20);
    }

    #[test]
    fn text_reads_back() {
        for seconds in [0, 1_793_000_000, -62_000_000_000] {
            assert_eq!(
                from_text(&text(from_seconds(seconds))),
                Some(from_seconds(seconds))
            );
        }
        for bad in [
            "",
            "2026-11-21",
            "2026-13-21T04:00:00Z",
            "2026-11-21T04:00:00",
        ] {
            assert_eq!(from_text(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_certificate_changes_form_in_2050() {
        assert_eq!(
            asn1(from_seconds(2_524_607_999)),
            (0x17, "491231235959Z".into())
        );
        assert_eq!(
            asn1(from_seconds(2_524_608_000)),
            (0x18, "20500101000000Z".into())
        );
    }

    #[test]
    fn distances_use_the_largest_useful_unit() {
        let now = from_seconds(1_000_000_000);
        let after = |s: i64| distance(now, from_seconds(1_000_000_000 + s));
        assert_eq!(after(1), "in 1 second");
        assert_eq!(after(-120), "2 minutes ago");
        assert_eq!(after(90 * 86_400), "in 90 days");
    }
}
