//! Instants as the Kubernetes API writes them: RFC 3339, with microseconds in a `MicroTime`.

use std::time::SystemTime;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{OffsetDateTime, UtcOffset};

/// A `MicroTime`. What is out of the range of four-digit years is clamped to 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub SystemTime);

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let form = format_description!(
            "[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z"
        );
        let civil = OffsetDateTime::from(self.0.max(SystemTime::UNIX_EPOCH));
        let text = civil.format(form).map_err(serde::ser::Error::custom)?;
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let civil = OffsetDateTime::parse(&text, &Rfc3339).map_err(serde::de::Error::custom)?;
        let civil = civil.to_offset(UtcOffset::UTC);
        Ok(Self(SystemTime::from(
            civil.max(OffsetDateTime::UNIX_EPOCH),
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn microseconds_survive_and_other_zones_are_understood() {
        let moment = Moment(SystemTime::UNIX_EPOCH + Duration::from_micros(1_790_000_000_123_456));
        let text = serde_json::to_string(&moment).unwrap();
        assert!(text.ends_with(".123456Z\""), "{text}");
        assert_eq!(serde_json::from_str::<Moment>(&text).unwrap(), moment);
        let zoned: Moment = serde_json::from_str("\"2026-11-21T10:00:00+02:00\"").unwrap();
        let plain: Moment = serde_json::from_str("\"2026-11-21T08:00:00Z\"").unwrap();
        assert_eq!(zoned, plain);
        assert!(serde_json::from_str::<Moment>("\"yesterday\"").is_err());
        let past: Moment = serde_json::from_str("\"1900-01-01T00:00:00Z\"").unwrap();
        assert_eq!(past.0, SystemTime::UNIX_EPOCH);
    }
}
