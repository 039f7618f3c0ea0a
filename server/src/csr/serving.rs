//! The rules for `kubernetes.io/kubelet-serving`: a node asks for a certificate of its own, for
//! names and addresses of its own, and for nothing else.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use towline_link::kube::csr::{KUBELET_SERVING, SigningRequest};
use towline_pki::Identity;
use towline_pki::kubelet::{NODE_USER, NODES_GROUP, ServingRequest};
use towline_proto::id::{Name, Role};

use super::issuer::Issuer;
use super::names::NodeNames;
use super::office::{Office, Refusal, Signed, Subject, Texts, Verdict, check_life};
use crate::trust::Trust;

/// Whether this node's identity is on the deny list.
pub type Denied = Box<dyn Fn(&Name) -> bool + Send + Sync>;

/// Whether a node's agent is on the deny list in force; nobody is without an identity of our own.
pub fn denied_agents(trust: Option<Trust>) -> Denied {
    Box::new(move |node| {
        let Some(snapshot) = trust.as_ref().map(Trust::snapshot) else {
            return false;
        };
        let cluster = snapshot.identity().cluster.clone();
        let agent = Identity::new(cluster, Role::Agent, node.clone());
        snapshot.agents.deny_list().has_identity(&agent)
    })
}

/// See the head of this file.
pub struct Serving {
    names: NodeNames,
    denied: Denied,
    issuer: Option<Arc<Issuer>>,
}

impl Serving {
    /// By these names; with an issuer we sign too.
    pub fn new(names: NodeNames, denied: Denied, issuer: Option<Arc<Issuer>>) -> Self {
        Self {
            names,
            denied,
            issuer,
        }
    }

    fn rules(&self, request: &SigningRequest) -> Result<ServingRequest, Verdict<()>> {
        let never = |word, cause: String, fix| Verdict::Never(Refusal { word, cause, fix });
        let spec = &request.spec;
        let Some(user) = spec.username.strip_prefix(NODE_USER) else {
            return Err(Verdict::NotOurs(Refusal {
                word: "Requester",
                cause: "it was not made by a node".into(),
                fix: "only nodes' own requests are decided here; whoever made this one has it \
                      approved by hand",
            }));
        };
        if !spec.groups.iter().any(|group| group == NODES_GROUP) {
            return Err(Verdict::NotOurs(Refusal {
                word: "Requester",
                cause: format!("who made it is not of the group {NODES_GROUP}"),
                fix: "only nodes' own requests are decided here",
            }));
        }
        let text = request.request().ok_or_else(|| {
            never(
                "Unreadable",
                "it holds no signing request that can be read".into(),
                "look at what made it",
            )
        })?;
        let asked = ServingRequest::parse(&text).map_err(|refusal| {
            never(
                refusal.word(),
                refusal.to_string(),
                "a kubelet makes such a request only when it was told to, or is none: look at \
                 what runs on this node",
            )
        })?;
        if asked.node().as_str() != user {
            let cause = format!("it is for node {}, and another one asks", asked.node());
            return Err(never(
                "OtherNode",
                cause,
                "a node asks for itself only: look at what runs on the node that asks",
            ));
        }
        check_usages(&spec.usages).map_err(Verdict::Never)?;
        check_life(request).map_err(Verdict::Never)?;
        let node = asked.node();
        if (self.denied)(node) {
            return Err(Verdict::NotYet(Refusal {
                word: "DenyListed",
                cause: format!("agent {node} is on the deny list"),
                fix: "a node that is denied gets no certificate until it is taken off the list",
            }));
        }
        self.names.check_node(node)?;
        for name in asked.dns() {
            self.names.check_dns(node, name)?;
        }
        for ip in asked.ips() {
            self.names.check_ip(node, *ip)?;
        }
        Ok(asked)
    }
}

/// Exactly what the signer signs: the two sets that kubelets ask for.
fn check_usages(usages: &[String]) -> Result<(), Refusal> {
    let mut given: Vec<&str> = usages.iter().map(String::as_str).collect();
    given.sort_unstable();
    match given[..] {
        ["digital signature", "server auth"]
        | ["digital signature", "key encipherment", "server auth"] => Ok(()),
        _ => Err(Refusal {
            word: "Usages",
            cause: "its usages are not exactly digital signature and server auth, with or without \
                    key encipherment"
                .into(),
            fix: "look at what made it: a kubelet asks for these",
        }),
    }
}

impl Office for Serving {
    type Sound = ServingRequest;

    fn signer(&self) -> &str {
        KUBELET_SERVING
    }

    fn word(&self) -> &'static str {
        "kubelet-serving"
    }

    fn texts(&self) -> &'static Texts {
        &Texts {
            approved: "these are names and addresses of node",
            foreign: "somebody else signs these requests too, and only one may: turn the \
                      controller manager's signer off, or leave \
                      --kubelet-serving-signer-certificate out",
            unsigned: "a signing request is approved, and nobody signs it: is the signer of the \
                       controller manager on (--cluster-signing-cert-file and -key-file, \
                       controller csrsigning)?",
            manifest: "server/deploy/kubelet-serving.yaml",
        }
    }

    async fn judge(&self, request: &SigningRequest) -> Verdict<ServingRequest> {
        match self.rules(request) {
            Ok(sound) => Verdict::Sound(sound),
            Err(Verdict::Never(refusal)) => Verdict::Never(refusal),
            Err(Verdict::NotOurs(refusal)) => Verdict::NotOurs(refusal),
            Err(Verdict::NotYet(refusal)) => Verdict::NotYet(refusal),
            // Rules say only why not.
            Err(Verdict::Sound(())) => Verdict::NotYet(Refusal {
                word: "Undecided",
                cause: String::new(),
                fix: "",
            }),
        }
    }

    fn subject(&self, sound: &ServingRequest) -> Subject {
        let dns = sound.dns().iter().map(ToString::to_string);
        let ips = sound.ips().iter().map(ToString::to_string);
        Subject {
            node: sound.node().to_string(),
            names: dns.chain(ips).collect(),
        }
    }

    fn signs(&self) -> bool {
        self.issuer.is_some()
    }

    async fn sign(
        &self,
        request: &SigningRequest,
        sound: &ServingRequest,
        now: SystemTime,
    ) -> Result<Signed, Refusal> {
        let seconds = request.spec.expiration_seconds;
        let life = seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let issuer = self.issuer.as_ref().ok_or(Refusal {
            word: "NoSigner",
            cause: "there is no authority to sign with".into(),
            fix: "give --kubelet-serving-signer-certificate",
        })?;
        issuer.sign(sound, life.map(Duration::from_secs), now)
    }

    fn is_ours(&self, pem: &[u8]) -> bool {
        let ours = |issuer: &Arc<Issuer>| issuer.signed(pem);
        self.issuer.as_ref().is_some_and(ours)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usages_are_exactly_a_kubelets() {
        let check = |list: &[&str]| {
            let list: Vec<String> = list.iter().map(ToString::to_string).collect();
            check_usages(&list).is_ok()
        };
        assert!(check(&["server auth", "digital signature"]));
        assert!(check(&[
            "key encipherment",
            "digital signature",
            "server auth"
        ]));
        for bad in [
            &[][..],
            &["server auth"],
            &["digital signature"],
            &["digital signature", "server auth", "client auth"],
            &["digital signature", "server auth", "server auth"],
            &["digital signature", "client auth"],
            &["any", "server auth"],
        ] {
            assert!(!check(bad), "{bad:?}");
        }
    }

    #[test]
    fn lives_outside_the_bounds_are_refused() {
        let check = |seconds| {
            let mut request = SigningRequest::default();
            request.spec.expiration_seconds = seconds;
            check_life(&request).is_ok()
        };
        let most = 366 * 86_400;
        for (seconds, good) in [
            (None, true),
            (Some(599), false),
            (Some(600), true),
            (Some(most), true),
            (Some(most + 1), false),
            (Some(-1), false),
            (Some(i32::MAX), false),
        ] {
            assert_eq!(check(seconds), good, "{seconds:?}");
        }
    }
}
