//! Flags of the profile whose words are checked at the start, as Konnectivity does, although most
//! of them change nothing here.

use towline_proto::limits;

use super::args::KonnectivityArgs;
use super::profile::ProfileError;
use crate::legacy::Strategies;

/// What Go's TLS library takes for secure (1.22 and later).
const CIPHERS: [&str; 13] = [
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
];

const VERSIONS: [&str; 4] = [
    "VersionTLS10",
    "VersionTLS11",
    "VersionTLS12",
    "VersionTLS13",
];

/// Flags whose value is looked at and then not needed.
pub(super) fn check(args: &KonnectivityArgs) -> Result<(), ProfileError> {
    if args.enable_contention_profiling == Some(true) && args.enable_profiling != Some(true) {
        return Err(ProfileError::Needs {
            given: "--enable-contention-profiling",
            missing: "--enable-profiling",
        });
    }
    let wrong = |flag, value: String, allowed| {
        Err(ProfileError::Value {
            flag,
            value: value.chars().take(limits::FLAG_VALUE_BYTES).collect(),
            allowed,
        })
    };
    if let Some(size) = args.xfr_channel_size.filter(|size| *size <= 0) {
        return wrong("--xfr-channel-size", size.to_string(), "it must be above 0");
    }
    if let Some(size) = args.frontend_write_channel_size.filter(|size| *size < 0) {
        let allowed = "it must not be below 0";
        return wrong("--frontend-write-channel-size", size.to_string(), allowed);
    }
    let version = args.tls_min_version.as_deref().unwrap_or_default();
    if !version.is_empty() && !VERSIONS.contains(&version) {
        let allowed =
            "use VersionTLS10, VersionTLS11, VersionTLS12 or VersionTLS13; it is TLS 1.3 always";
        return wrong("--tls-min-version", version.to_owned(), allowed);
    }
    let list = args.cipher_suites.as_deref().unwrap_or_default();
    let unknown = list.split(',').find(|name| !CIPHERS.contains(name));
    if let Some(name) = unknown.filter(|_| !list.is_empty()) {
        let allowed = "insecure, or no suite of Go's; use names such as TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256";
        return wrong("--cipher-suites", name.to_owned(), allowed);
    }
    Ok(())
}

/// In which order legacy agents are looked for. A list that is given and empty is refused.
pub(super) fn strategies(args: &KonnectivityArgs) -> Result<Strategies, ProfileError> {
    match &args.proxy_strategies {
        Some(list) => Ok(list.parse()?),
        None => Ok(Strategies::default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ciphers(list: &str) -> Result<(), ProfileError> {
        check(&KonnectivityArgs {
            cipher_suites: Some(list.to_owned()),
            ..KonnectivityArgs::default()
        })
    }

    #[test]
    fn suites_are_those_that_go_takes_for_secure() {
        ciphers("").unwrap();
        ciphers("TLS_AES_128_GCM_SHA256,TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA").unwrap();
        for wrong in [
            "TLS_RSA_WITH_RC4_128_SHA",
            "TLS_AES_128_GCM_SHA256,TLS_NO_SUCH_SUITE",
            "TLS_AES_128_GCM_SHA256,",
            "AES128",
        ] {
            let error = ciphers(wrong).unwrap_err().to_string();
            assert!(error.starts_with("--cipher-suites "), "{error}");
        }
    }

    #[test]
    fn a_list_of_strategies_that_is_empty_is_none() {
        let listed = |list: Option<&str>| {
            strategies(&KonnectivityArgs {
                proxy_strategies: list.map(str::to_owned),
                ..KonnectivityArgs::default()
            })
        };
        assert_eq!(listed(None).unwrap(), Strategies::default());
        for empty in ["", ","] {
            let error = listed(Some(empty)).unwrap_err().to_string();
            assert!(error.starts_with("--proxy-strategies: "), "{error}");
        }
    }
}
