//! The files of a cluster that say who counts no more: authorities of kubelets, revocation lists,
//! deny lists. Each is in force at the next reload.

use towline_proto::id::Role;

use crate::cluster::Cluster;
use crate::scratch;

impl Cluster {
    /// The kubelets' authority in the servers' file, in force at the next reload.
    pub fn kubelet_authority(&self, pem: &str) {
        scratch::replace(&self.scratch().join("kubelets.ca"), pem).expect("a file");
    }

    /// The kubelets' revocation list, in force at the next reload.
    pub fn kubelet_revocations(&self, pem: &str) {
        scratch::replace(&self.scratch().join("kubelets.crl"), pem).expect("a file");
    }

    /// The list of who signs for this role, with a number and these serials, in force at the next
    /// reload.
    pub fn revoke(&self, role: Role, number: u64, serials: &[&str]) {
        let now = std::time::SystemTime::now();
        let hour = std::time::Duration::from_secs(3600);
        let list = self.authority.issuer(role);
        self.put_list(
            role,
            &list.list(number, serials, now - hour, now + 24 * hour),
        );
    }

    /// The same file with any content.
    pub fn put_list(&self, role: Role, content: &str) {
        let name = match role {
            Role::Agent => "agents.crl",
            Role::Server | Role::Client | Role::Operator => "servers.crl",
        };
        scratch::replace(&self.scratch().join(name), content).expect("a file");
    }

    /// Puts entries on the agents' deny list.
    pub fn deny_servers(&self, entries: &str) {
        scratch::replace(&self.scratch().join("deny-servers"), entries).expect("a file");
    }

    /// Puts entries on the servers' deny list.
    pub fn deny(&self, entries: &str) {
        scratch::replace(&self.scratch().join("deny"), entries).expect("a file");
    }
}
