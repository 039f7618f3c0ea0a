//! When a certificate is asked for, and what is done about a refusal.
//!
//! At the start, when there is no valid one; then at two thirds of each one's life, some earlier
//! and some later, so that nodes that began together do not stay together. After a failure the
//! pause grows from a second to a minute (or a quarter of what is left, when that is less), with
//! jitter; to five minutes where each attempt leaves an object in the Kubernetes API. An agent is never so wrong that it gives up: whatever refuses it may be mended.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use towline_link::process::reload::ReloadHandle;
use towline_link::process::watch::Seen;
use towline_pki::role::BACKDATE;
use towline_pki::{Credentials, Leaf, date};
use towline_proto::id::Role;
use towline_proto::limits;
use tracing::{error, info, warn};

use super::flags::EnrolConfig;
use super::metrics::{EnrolMetrics, EnrolmentStatus};
use super::server::needs_a_person;
use super::{EnrolError, Issuer, Order, files};
use crate::attempt::random;
use crate::config::OwnIdentity;
use crate::trust::{Snapshot, Trust};

/// An agent that sees to its own certificate.
#[derive(Debug)]
pub struct Enrolling {
    config: EnrolConfig,
    issuer: Arc<dyn Issuer>,
    metrics: EnrolMetrics,
}

/// When to renew, between 15/24 and 17/24 of the life of which two thirds are the middle; `chance`
/// is anything from 0 to 1. The part of the life that lies before the issuing does not count.
pub fn renews_at(leaf: &Leaf, chance: f64) -> SystemTime {
    let whole = leaf.not_after.duration_since(leaf.not_before);
    let whole = whole.unwrap_or_default();
    let backdated = BACKDATE.min(whole / 2);
    let life = whole - backdated;
    let part = (15.0 + 2.0 * chance.clamp(0.0, 1.0)) / 24.0;
    leaf.not_before + backdated + life.mul_f64(part)
}

/// How long to wait after the failure of this number, the first being 0. `left` is what remains of
/// the certificate in force.
pub fn pause(failures: u32, left: Option<Duration>, chance: f64) -> Duration {
    pause_up_to(limits::ENROL_RETRY.1, failures, left, chance)
}

/// The same after this error.
fn pause_after(error: &EnrolError, failures: u32, left: Option<Duration>) -> Duration {
    let longest = match error {
        EnrolError::Decided { .. } => limits::CSR_DENIED,
        _ => limits::ENROL_RETRY.1,
    };
    pause_up_to(longest, failures, left, chance())
}

fn pause_up_to(longest: Duration, failures: u32, left: Option<Duration>, chance: f64) -> Duration {
    let first = limits::ENROL_RETRY.0;
    let grown = first.saturating_mul(1 << failures.min(16)).min(longest);
    let most = match left {
        Some(left) if !left.is_zero() => grown.min(left / 4).max(first),
        _ => grown,
    };
    most.mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0)
}

fn chance() -> f64 {
    random() as f64 / u64::MAX as f64
}

impl Enrolling {
    /// With certificates from this issuer.
    pub fn new(config: EnrolConfig, issuer: Arc<dyn Issuer>) -> Arc<Self> {
        Arc::new(Self {
            config,
            issuer,
            metrics: EnrolMetrics::default(),
        })
    }

    /// Files and names.
    pub fn config(&self) -> &EnrolConfig {
        &self.config
    }

    /// What is counted.
    pub fn metrics(&self) -> &EnrolMetrics {
        &self.metrics
    }

    /// For the status document.
    pub fn status(&self) -> EnrolmentStatus {
        self.metrics.status(self.issuer.source())
    }

    /// Why there is no certificate, in words.
    pub fn why(&self) -> String {
        let error = || self.metrics.error();
        let why = self.issuer.waits().or_else(error);
        why.unwrap_or_else(|| "no attempt has ended yet".to_owned())
    }

    /// What lies there, when it can be used now.
    pub fn load(&self, now: SystemTime) -> Result<OwnIdentity, crate::trust::TrustError> {
        let files = self.config.files.clone();
        let paths: Vec<_> = files.paths().cloned().collect();
        let seen = Seen::now(&paths);
        let trust = Snapshot::load(&files, None, now)?;
        Ok(OwnIdentity { files, trust, seen })
    }

    /// Asks once, and puts what comes back in place.
    pub async fn once(&self, current: Option<Credentials>) -> Result<Leaf, EnrolError> {
        let config = self.config.clone();
        let spec = self.issuer.request();
        let making = tokio::task::spawn_blocking(move || {
            let key = files::key_to_ask_with(&config)?;
            let csr = spec.make_der(&key)?;
            Ok::<_, EnrolError>((key, csr))
        });
        let (key, csr) = making.await.map_err(lost)??;
        let expected = current.as_ref().map(|own| own.identity().clone());
        let obtained = self.issuer.obtain(&Order { csr, current }).await?;
        let source = self.issuer.source();
        let proof = obtained.proof;
        let config = self.config.clone();
        let placing = tokio::task::spawn_blocking(move || {
            // One that no peer would take is not put in the place of one that may still work.
            let chain = obtained.chain.clone();
            let now = SystemTime::now();
            let own = Credentials::new(chain, key.to_der(), Role::Agent, now)?;
            if let Some(expected) = expected.filter(|expected| expected != own.identity()) {
                return Err(EnrolError::Identity {
                    server: source.to_owned(),
                    found: own.identity().clone(),
                    expected: expected.to_string(),
                });
            }
            files::put(&config, &obtained.chain, &obtained.authorities, &key)?;
            Ok(own.leaf().clone())
        });
        let leaf = placing.await.map_err(lost)??;
        self.metrics.done(source, proof);
        info!(
            identity = %leaf.identity, serial = %leaf.serial, source, proof,
            until = %date::text(leaf.not_after), "this node has a certificate"
        );
        Ok(leaf)
    }

    fn failed(&self, error: &EnrolError, failures: u32) {
        let text = error.to_string();
        let source = self.issuer.source();
        // The same cause again is told once in ten times: a pause is a minute at most.
        if failures.is_multiple_of(10) {
            match needs_a_person(error) {
                true => {
                    error!(source, error = %text, "no certificate; somebody has to act, trying on")
                }
                false => warn!(source, error = %text, "no certificate, trying again"),
            }
        }
        self.metrics
            .failed(source, error.as_str(), text, SystemTime::now());
    }

    /// Tries until there is a valid certificate. Cancel-safe.
    pub async fn first(&self) -> OwnIdentity {
        let mut failures = 0;
        loop {
            let error = match self.once(None).await {
                Ok(_) => match self.load(SystemTime::now()) {
                    Ok(identity) => return identity,
                    Err(error) => EnrolError::File {
                        path: self.config.files.cert.clone(),
                        what: error.to_string(),
                    },
                },
                Err(error) => error,
            };
            self.failed(&error, failures);
            tokio::time::sleep(pause_after(&error, failures, None)).await;
            failures += 1;
        }
    }

    /// Renews for as long as it is polled.
    pub async fn keep(self: Arc<Self>, trust: Arc<Trust>, reload: ReloadHandle) {
        let mut failures = 0;
        let mut planned = None;
        loop {
            let current = trust.current();
            let own = current.material.credentials();
            let leaf = own.leaf();
            // A plan is for one certificate; somebody may have put another one there.
            let at = match &planned {
                Some((serial, at)) if *serial == leaf.serial => *at,
                _ => {
                    let at = renews_at(leaf, chance());
                    planned = Some((leaf.serial.clone(), at));
                    failures = 0;
                    at
                }
            };
            let now = SystemTime::now();
            if failures == 0 {
                self.metrics.renews(at);
                if let Ok(wait) = at.duration_since(now)
                    && !wait.is_zero()
                {
                    // The clock may be set meanwhile: it is looked at now and then.
                    tokio::time::sleep(wait.min(limits::EXPIRY_LOOK)).await;
                    continue;
                }
            }
            let left = leaf.not_after.duration_since(now).ok();
            let valid = left.is_some().then(|| own.clone());
            let result = self.once(valid).await;
            let result = match result {
                Ok(_) => reload.reload_now().await.map_err(|error| EnrolError::File {
                    path: self.config.files.cert.clone(),
                    what: error.to_string(),
                }),
                Err(error) => Err(error),
            };
            match result {
                Ok(()) => failures = 0,
                Err(error) => {
                    self.failed(&error, failures);
                    let wait = pause_after(&error, failures, left);
                    self.metrics.renews(now + wait);
                    tokio::time::sleep(wait).await;
                    failures += 1;
                }
            }
        }
    }
}

fn lost(error: tokio::task::JoinError) -> EnrolError {
    EnrolError::Answer {
        server: "this process".to_owned(),
        what: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    #[test]
    fn pauses_grow_and_leave_room_before_the_end() {
        let (first, longest) = limits::ENROL_RETRY;
        assert_eq!(pause(0, None, 1.0), first);
        assert_eq!(pause(0, None, 0.0), first / 2);
        assert_eq!(pause(40, None, 1.0), longest);
        assert_eq!(
            pause(40, Some(Duration::from_secs(80)), 1.0),
            Duration::from_secs(20)
        );
        assert_eq!(pause(40, Some(Duration::from_millis(1)), 1.0), first);
        assert_eq!(pause(40, Some(Duration::ZERO), 1.0), longest);
        assert_eq!(
            pause_up_to(limits::CSR_DENIED, 40, None, 1.0),
            limits::CSR_DENIED
        );
        assert_eq!(pause_up_to(limits::CSR_DENIED, 0, None, 1.0), first);
    }

    #[test]
    fn two_thirds_are_the_middle_and_backdating_does_not_count() {
        let leaf = |life: u64| {
            let issued = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
            let key = towline_pki::PrivateKey::generate(Default::default()).unwrap();
            let spec = towline_pki::AuthoritySpec {
                purpose: "t".into(),
                organisation: String::new(),
                not_before: issued - Duration::from_secs(86_400),
                not_after: issued + Duration::from_secs(864_000),
                path_length: Some(0),
                usages: Vec::new(),
            };
            let authority = towline_pki::Authority::create(&spec, key).unwrap();
            let key = towline_pki::PrivateKey::generate(Default::default()).unwrap();
            let issue = towline_pki::Issue {
                identity: "spiffe://c/towline/agent/n1".parse().unwrap(),
                dns: Vec::new(),
                ips: Vec::new(),
                life: Some(Duration::from_secs(life)),
                public_key: key.public(),
            };
            (issued, authority.issue(&issue, issued).unwrap().leaf)
        };
        let day = 86_400;
        let (issued, daily) = leaf(day);
        assert_eq!(
            renews_at(&daily, 0.5),
            issued + Duration::from_secs(day * 2 / 3)
        );
        assert_eq!(
            renews_at(&daily, 0.0),
            issued + Duration::from_secs(day * 15 / 24)
        );
        assert_eq!(
            renews_at(&daily, 1.0),
            issued + Duration::from_secs(day * 17 / 24)
        );
        let (issued, short) = leaf(60);
        let at = renews_at(&short, 0.5);
        assert!(at < short.not_after && at > issued - BACKDATE, "{at:?}");
    }
}
