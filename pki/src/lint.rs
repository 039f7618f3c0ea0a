//! Lint: what is wrong with certificates that verify perhaps, and hurt later.
//!
//! The rules are those by which Kubernetes' approvers of signing requests judge, and those that
//! break the verification of kubelets in the field: addresses written as names, no addresses at
//! all, lives that nobody will be there to end, one key for two parties, usages that fit nothing.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use towline_proto::target::HostName;

use crate::inspect::{Certificate, Usage};
use crate::key;
use crate::survey::Found;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// It works, and is worth a change at the next renewal.
    Warning,
    /// Something does not work, or protects less than it seems to.
    Error,
}

impl Severity {
    /// The word in answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Which certificate.
    pub place: String,
    /// The rule, for machines: stable.
    pub rule: &'static str,
    pub severity: Severity,
    /// What is wrong.
    pub cause: String,
    /// What to do.
    pub fix: &'static str,
}

const DAY: u64 = 86_400;
/// What a leaf may live: browsers and Kubernetes' own tools agree on no more.
const LEAF_LIFE: Duration = Duration::from_secs(825 * DAY);
/// What an authority may live.
const AUTHORITY_LIFE: Duration = Duration::from_secs(20 * 366 * DAY);
/// What a certificate with all rights may live: nothing but its end takes them away.
const MASTERS_LIFE: Duration = Duration::from_secs(400 * DAY);
/// The group that Kubernetes lets do everything, whatever RBAC says.
const MASTERS: &str = "system:masters";
const NODES: &str = "system:nodes";
const NODE: &str = "system:node:";
/// What approvers of kubelets' requests allow a serving certificate to live.
const KUBELET_LIFE: Duration = Duration::from_secs(367 * DAY);
/// MD5 and SHA-1 with RSA, SHA-1 with ECDSA and DSA.
const WEAK_SIGNATURES: [&str; 5] = [
    "1.2.840.113549.1.1.4",
    "1.2.840.113549.1.1.5",
    "1.3.14.3.2.29",
    "1.2.840.10045.4.1",
    "1.2.840.10040.4.3",
];
/// Smallest RSA key that is not weak, bits.
const RSA_BITS: usize = 2048;

/// Everything that is wrong with these certificates, each alone and beside the others.
pub fn lint(found: &[Found]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for one in found {
        let mut add = |rule, severity, cause: String, fix| {
            findings.push(Finding {
                place: one.place.clone(),
                rule,
                severity,
                cause,
                fix,
            });
        };
        of_any(&one.certificate, &mut add);
        if one.certificate.is_authority {
            of_authority(&one.certificate, &mut add);
        } else {
            of_leaf(&one.certificate, &mut add);
            of_kubelet(&one.certificate, &mut add);
        }
    }
    findings.extend(shared_keys(found));
    findings
}

fn of_any(
    certificate: &Certificate,
    add: &mut impl FnMut(&'static str, Severity, String, &'static str),
) {
    if let Some(bits) = key::rsa_bits(&certificate.public_key_der)
        && bits < RSA_BITS
    {
        add(
            "weak-key",
            Severity::Error,
            format!("an RSA key of {bits} bits can be broken"),
            "make a new key: ECDSA P-256, or RSA of 2048 bits and more",
        );
    }
    // Nobody checks what an authority signed for itself.
    let own = certificate.subject_der == certificate.issuer_der;
    if !own && WEAK_SIGNATURES.contains(&certificate.signed_with.as_str()) {
        add(
            "weak-signature",
            Severity::Error,
            "it is signed with SHA-1 or MD5, which verifiers refuse".to_owned(),
            "issue it anew: authorities of today sign with SHA-256 and more",
        );
    }
    if certificate.not_after < certificate.not_before {
        add(
            "never-valid",
            Severity::Error,
            "it ends before it begins".to_owned(),
            "issue it anew with a clock that is right",
        );
    }
}

fn of_authority(
    certificate: &Certificate,
    add: &mut impl FnMut(&'static str, Severity, String, &'static str),
) {
    if life(certificate) > AUTHORITY_LIFE {
        add(
            "long-life",
            Severity::Warning,
            format!("an authority that lives {} days", days(certificate)),
            "plan its rotation, and make the next one for ten years at most",
        );
    }
    if !certificate.uris.is_empty() {
        add(
            "authority-with-identity",
            Severity::Error,
            "an authority that carries an identity could pass for a peer".to_owned(),
            "issue it anew without URI names",
        );
    }
}

fn of_leaf(
    certificate: &Certificate,
    add: &mut impl FnMut(&'static str, Severity, String, &'static str),
) {
    for name in &certificate.dns_sans {
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        if bare.parse::<IpAddr>().is_ok() {
            add(
                "ip-as-dns-name",
                Severity::Error,
                format!("{name} is written as a DNS name, where no verifier looks for an address"),
                "issue it anew with the address as an IP name",
            );
        } else if !name.contains('*') && name.parse::<HostName>().is_err() {
            add(
                "malformed-name",
                Severity::Error,
                format!("{name} is no DNS name, so nobody can connect to it by that"),
                "issue it anew with names of letters, digits, '-' and '.'",
            );
        } else if name.contains('*') {
            add(
                "wildcard",
                Severity::Warning,
                format!("{name} stands for every name of its zone"),
                "name the hosts that are meant",
            );
        }
    }
    let serves = certificate.usages.contains(&Usage::ServerAuth);
    if serves && certificate.dns_sans.is_empty() && certificate.ip_sans.is_empty() {
        // Ours are known by identity, not by host.
        if certificate.identity().is_err() {
            add(
                "no-names",
                Severity::Error,
                "a server's certificate without DNS or IP names: the common name is not looked at"
                    .to_owned(),
                "issue it anew with the names and addresses that clients connect to",
            );
        }
    }
    if certificate.usages.is_empty() {
        add(
            "no-usage",
            Severity::Error,
            "it has no extended key usage: verifiers that ask for one refuse it, others take it \
             for anything"
                .to_owned(),
            "issue it anew for serverAuth or clientAuth",
        );
    }
    let odd: Vec<String> = certificate
        .usages
        .iter()
        .filter_map(|usage| match usage {
            Usage::Other(name) => Some(name.clone()),
            Usage::ServerAuth | Usage::ClientAuth => None,
        })
        .collect();
    if !odd.is_empty() {
        add(
            "odd-usage",
            Severity::Warning,
            format!("it may be used for {}", odd.join(", ")),
            "issue it anew for serverAuth or clientAuth only",
        );
    }
    if !certificate.signs_handshakes {
        add(
            "wrong-key-usage",
            Severity::Error,
            "its key may not sign handshakes (key usage without digitalSignature)".to_owned(),
            "issue it anew with digitalSignature",
        );
    }
    if life(certificate) > LEAF_LIFE {
        add(
            "long-life",
            Severity::Warning,
            format!("a leaf that lives {} days", days(certificate)),
            "issue it for a year or less and let it be renewed",
        );
    }
    if certificate.uris.iter().any(|uri| uri.contains("/towline/"))
        && let Err(error) = certificate.identity()
    {
        add(
            "bad-identity",
            Severity::Error,
            error.to_string(),
            "issue it anew with `towline-pki issue`",
        );
    }
    let masters = groups(certificate).any(|group| group == MASTERS);
    if masters && life(certificate) > MASTERS_LIFE {
        add(
            "all-rights-for-long",
            Severity::Error,
            format!(
                "a member of {MASTERS} for {} days: RBAC does not bind it and nothing revokes it",
                days(certificate)
            ),
            "issue it for days, or for a group that RBAC knows",
        );
    }
}

/// What is asked of certificates with which kubelets serve.
fn of_kubelet(
    certificate: &Certificate,
    add: &mut impl FnMut(&'static str, Severity, String, &'static str),
) {
    let names = certificate.common_names.as_deref().unwrap_or_default();
    let Some(node) = names.iter().find_map(|name| name.strip_prefix(NODE)) else {
        return;
    };
    if groups(certificate).all(|group| group != NODES) {
        add(
            "kubelet-group",
            Severity::Error,
            format!("{NODE}{node} is not in the organisation {NODES}"),
            "issue it anew with O=system:nodes",
        );
    }
    if !certificate.usages.contains(&Usage::ServerAuth) {
        if !certificate.ip_sans.is_empty() || !certificate.dns_sans.is_empty() {
            add(
                "names-in-client",
                Severity::Warning,
                format!("the kubelet of {node} logs in with it, and it has names of a server"),
                "leave them out: the signer kube-apiserver-client-kubelet refuses them",
            );
        }
        return;
    }
    if life(certificate) > KUBELET_LIFE {
        add(
            "long-life",
            Severity::Warning,
            format!(
                "a kubelet's serving certificate that lives {} days",
                days(certificate)
            ),
            "a year at most, and rotateCertificates: approvers refuse more",
        );
    }
    let nowhere = |ip: &&IpAddr| ip.is_loopback() || ip.is_unspecified() || ip.is_multicast();
    if let Some(ip) = certificate.ip_sans.iter().find(nowhere) {
        add(
            "unreachable-address",
            Severity::Error,
            format!("{ip} is an address of every machine or of none, not of node {node}"),
            "issue it with the node's own addresses",
        );
    }
    if certificate.ip_sans.is_empty() {
        add(
            "missing-ip-name",
            Severity::Error,
            format!("the kubelet of {node} is dialled by address, and no address is in it"),
            "set serverTLSBootstrap on the kubelet, or issue it with the node's addresses",
        );
    }
    if certificate.usages.contains(&Usage::ClientAuth) {
        add(
            "two-usages",
            Severity::Warning,
            "one certificate to serve with and to log in with".to_owned(),
            "issue one for each: the signers of Kubernetes know two usages",
        );
    }
    let foreign = certificate
        .dns_sans
        .iter()
        .find(|name| name.as_str() != node && !name.starts_with(&format!("{node}.")));
    if let Some(name) = foreign {
        add(
            "foreign-name",
            Severity::Warning,
            format!("{name} does not begin with the node's name {node}"),
            "leave names of others out",
        );
    }
}

/// One key in certificates of different parties. The same party may renew with its key.
fn shared_keys(found: &[Found]) -> Vec<Finding> {
    let mut first: HashMap<&[u8], &Found> = HashMap::new();
    let mut findings = Vec::new();
    for one in found {
        let key = one.certificate.public_key_der.as_slice();
        let before = *first.entry(key).or_insert(one);
        let (a, b) = (&before.certificate, &one.certificate);
        if a.subject != b.subject || a.uris != b.uris || a.is_authority != b.is_authority {
            findings.push(Finding {
                place: one.place.clone(),
                rule: "shared-key",
                severity: Severity::Error,
                cause: format!(
                    "its key is also the one of {} in {}",
                    a.subject, before.place
                ),
                fix: "make a key for each: who steals one has both",
            });
        }
    }
    findings
}

fn groups(certificate: &Certificate) -> impl Iterator<Item = &str> {
    let groups = certificate.organisations.iter().flatten();
    groups.map(String::as_str)
}

fn life(certificate: &Certificate) -> Duration {
    let life = certificate.not_after.duration_since(certificate.not_before);
    life.unwrap_or_default()
}

fn days(certificate: &Certificate) -> u64 {
    life(certificate).as_secs() / DAY
}
