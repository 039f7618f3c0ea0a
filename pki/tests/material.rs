//! The files of a daemon as one snapshot: what loads, what does not, and what a reload keeps.

mod cluster;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use cluster::{Cluster, DAY, Paper, Scratch, new_key, now};
use towline_pki::store::{Replace, write_secret};
use towline_pki::{Credentials, Files, LeafSpec, Material, PeerError, SharedRoots, Usage, pem};
use towline_proto::id::Role;

struct Node {
    dir: Scratch,
    cluster: Cluster,
    files: Files,
}

impl Node {
    /// An agent's files, all good.
    fn new() -> Self {
        let dir = Scratch::new();
        let cluster = Cluster::new("prod");
        let files = Files {
            cert: dir.path("agent.crt"),
            key: dir.path("agent.key"),
            anchors: vec![(Role::Server, dir.path("servers.pem"))],
            deny_list: Some(dir.path("denied")),
            crls: Vec::new(),
            crl_policy: Default::default(),
            shared_roots: Default::default(),
        };
        let node = Self {
            dir,
            cluster,
            files,
        };
        node.put(&node.cluster.paper(Role::Agent, "n1"));
        node.put_text("servers.pem", &node.cluster.servers.to_pem());
        node.put_text("denied", "# nobody\n");
        node
    }

    fn put(&self, paper: &Paper) {
        write_secret(&self.files.key, &paper.key.to_pem(), Replace::Atomically).unwrap();
        self.put_text("agent.crt", &pem::write_certificates(&paper.chain));
    }

    fn put_leaf(&self, spoil: impl FnOnce(&mut LeafSpec)) {
        let mut leaf = self.cluster.leaf(Role::Agent, "n1");
        spoil(&mut leaf);
        self.put(&self.cluster.mint(Role::Agent, &leaf));
    }

    fn put_text(&self, name: &str, text: &str) {
        fs::write(self.dir.path(name), text).unwrap();
    }

    fn load(&self) -> Result<Material, String> {
        Material::load(&self.files, Role::Agent, now()).map_err(|error| error.to_string())
    }

    #[track_caller]
    fn refused(&self, file: &str, words: &str) {
        let error = self.load().unwrap_err();
        assert!(error.contains(file) && error.contains(words), "{error}");
        assert!(!error.contains('\n'), "one line: {error:?}");
    }
}

#[test]
fn a_good_set_loads_and_says_when_each_part_ends() {
    let node = Node::new();
    let material = node.load().unwrap();
    let own = material.credentials();
    assert_eq!(own.identity(), &node.cluster.identity(Role::Agent, "n1"));
    assert!(material.verifier(Role::Server).is_some());
    assert!(material.verifier(Role::Agent).is_none());
    let expiries = material.expiries();
    let seen: Vec<_> = expiries
        .iter()
        .map(|e| (e.what.as_str(), e.not_after))
        .collect();
    let ends = [
        ("certificate", now() + 90 * DAY),
        ("server-ca", now() + 1000 * DAY),
    ];
    assert_eq!(seen, ends);
    assert_eq!(node.files.paths().count(), 4);
    let server = node.cluster.paper(Role::Server, "cp");
    let verifier = material.verifier(Role::Server).unwrap();
    assert!(verifier.verify(&server.chain, now()).is_ok());
}

#[test]
fn own_credentials_that_every_peer_would_refuse_do_not_load() {
    let node = Node::new();
    node.put_leaf(|leaf| leaf.uris.clear());
    node.refused("agent.crt", "no identity");
    node.put_leaf(|leaf| leaf.uris.push("spiffe://prod/towline/agent/n2".into()));
    node.refused("agent.crt", "2 URIs");
    node.put_leaf(|leaf| leaf.uris = vec!["https://x".into()]);
    node.refused("agent.crt", "not a Towline identity");
    node.put_leaf(|leaf| leaf.uris = vec!["spiffe://prod/towline/server/n1".into()]);
    node.refused("agent.crt", "not of role agent");
    node.put_leaf(|leaf| leaf.not_after = now() - DAY / 2);
    node.refused("agent.crt", "expired");
    node.put_leaf(|leaf| leaf.not_before = now() + DAY);
    node.refused("agent.crt", "not valid before");
    node.put_leaf(|leaf| leaf.usages = vec![Usage::ServerAuth]);
    node.refused("agent.crt", "not for");
    node.put_leaf(|leaf| leaf.usages.clear());
    node.refused("agent.crt", "not for");
    node.put_leaf(|_| ());
    node.load().unwrap();
}

#[test]
fn half_a_rotation_does_not_load_and_the_whole_does() {
    let node = Node::new();
    let old = node.load().unwrap();
    let new = node.cluster.paper(Role::Agent, "n1");
    write_secret(&node.files.key, &new.key.to_pem(), Replace::Atomically).unwrap();
    node.refused("agent.key", "not the one");
    node.put_text("agent.crt", &pem::write_certificates(&new.chain));
    let material = node.load().unwrap();
    assert!(material.keeps_identity(&old));
    assert_ne!(
        material.credentials().leaf().serial,
        old.credentials().leaf().serial
    );
    node.put(&node.cluster.paper(Role::Agent, "n2"));
    assert!(!node.load().unwrap().keeps_identity(&old));
}

#[test]
fn damaged_files_are_one_error_with_the_file_s_name() {
    let node = Node::new();
    let good = fs::read_to_string(&node.files.cert).unwrap();
    for (text, words) in [
        ("", "empty"),
        ("hello", "no CERTIFICATE"),
        (&good[..good.len() - 40], "cut off"),
        (&good.replace("-----BEGIN", "-----BEGIN-"), "agent.crt"),
        (
            &pem::write_certificates(&[vec![0x30, 0].into()]),
            "not a certificate",
        ),
        (&good.repeat(9), "more than"),
        (&good.repeat(2), "did not issue"),
    ] {
        node.put_text("agent.crt", text);
        node.refused("agent.crt", words);
    }
    node.put_text("agent.crt", &good.replace('\n', "\r\n"));
    node.load().unwrap();

    node.put_text(
        "servers.pem",
        &pem::write_certificates(&node.cluster.paper(Role::Server, "x").chain),
    );
    node.refused("servers.pem", "not an authority");
    node.put_text("servers.pem", "");
    node.refused("servers.pem", "trust anchors for server");
    node.put_text("servers.pem", &node.cluster.servers.to_pem());

    node.put_text("denied", "n7\n");
    node.refused("denied", "line 1");
    fs::remove_file(node.dir.path("denied")).unwrap();
    node.refused("denied", "cannot be read");
    node.put_text("denied", "");

    fs::set_permissions(&node.files.key, fs::Permissions::from_mode(0o644)).unwrap();
    node.refused("agent.key", "chmod 0600");
    fs::set_permissions(&node.files.key, fs::Permissions::from_mode(0o600)).unwrap();
    node.put_text(
        "agent.key",
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
    );
    node.refused("agent.key", "encrypted");
}

#[test]
fn a_new_deny_list_refuses_a_peer_that_was_in() {
    let node = Node::new();
    let server = node.cluster.paper(Role::Server, "cp");
    let before = node.load().unwrap();
    let verifier = before.verifier(Role::Server).unwrap();
    let peer = verifier.verify(&server.chain, now()).unwrap();
    node.put_text("denied", &format!("{}\n", peer.identity()));
    let after = node.load().unwrap();
    let verifier = after.verifier(Role::Server).unwrap();
    let error = verifier.verify(peer.chain(), now()).unwrap_err();
    assert!(matches!(error, PeerError::Denied { .. }), "{error}");
}

#[test]
fn a_change_of_authority_takes_both_for_a_while() {
    let node = Node::new();
    let successor = Cluster::new("prod");
    let both = node.cluster.servers.to_pem() + &successor.servers.to_pem();
    node.put_text("servers.pem", &both);
    let material = node.load().unwrap();
    assert_eq!(material.expiries().len(), 3);
    let verifier = material.verifier(Role::Server).unwrap();
    for cluster in [&node.cluster, &successor] {
        let paper = cluster.paper(Role::Server, "cp");
        assert!(verifier.verify(&paper.chain, now()).is_ok());
    }
}

#[test]
fn secrets_do_not_print() {
    let c = Cluster::new("prod");
    let paper = c.paper(Role::Agent, "n1");
    let own = Credentials::new(paper.chain.clone(), paper.key_der(), Role::Agent, now()).unwrap();
    let shown = format!("{own:?} {:?} {:?}", paper.key, c.agents);
    assert!(shown.starts_with("Credentials(spiffe://prod/towline/agent/n1) PrivateKey Authority("));
    assert!(shown.len() < 200, "{shown}");
    let _ = new_key();
}

/// What a daemon of this role says of its roots, given so.
fn of_roots(node: &Node, own: Role, sets: &[(Role, String)]) -> Result<Vec<String>, String> {
    let paper = node.cluster.paper(own, "x");
    let chain = [
        paper.chain.as_slice(),
        &[node.cluster.issuer(own).der().clone()],
    ]
    .concat();
    let mut files = node.files.clone();
    write_secret(&files.key, &paper.key.to_pem(), Replace::Atomically).unwrap();
    node.put_text("agent.crt", &pem::write_certificates(&chain));
    files.anchors.clear();
    for (role, text) in sets {
        let name = format!("{role}.roots");
        node.put_text(&name, text);
        files.anchors.push((*role, node.dir.path(name)));
    }
    let load = |files: &Files| Material::load(files, own, now()).map_err(|error| error.to_string());
    let strict = load(&files);
    files.shared_roots = SharedRoots::Taken;
    let warnings = load(&files).expect("taken where it may be").warnings(now());
    match strict {
        Ok(_) => Ok(warnings),
        Err(error) => {
            assert_eq!(
                warnings,
                std::slice::from_ref(&error),
                "the same is said where it is taken"
            );
            Err(error)
        }
    }
}

#[test]
fn an_authority_that_could_sign_two_kinds_of_roles_is_refused() {
    let node = Node::new();
    let c = &node.cluster;
    let [root, agents, servers] = [&c.root, &c.agents, &c.servers].map(|one| one.to_pem());
    let other = Cluster::new("prod");
    let refused = |own, sets: &[(Role, &String)], file: &str, words: &str| {
        let sets: Vec<_> = sets
            .iter()
            .map(|(role, text)| (*role, (*text).clone()))
            .collect();
        let error = of_roots(&node, own, &sets).expect_err(words);
        assert!(error.contains(file) && error.contains(words), "{error}");
        assert!(
            error.contains("trust/agents.pem") && !error.contains('\n'),
            "{error}"
        );
    };
    use Role::{Agent, Client, Server};
    // The servers' issuer and the root for agents, alone or beside the right one.
    refused(
        Server,
        &[(Agent, &servers)],
        "agent.roots",
        "above our own certificate",
    );
    refused(
        Server,
        &[(Agent, &root)],
        "agent.roots",
        "above our own certificate",
    );
    refused(
        Server,
        &[(Agent, &(agents.clone() + &root))],
        "agent.roots",
        "above our own",
    );
    refused(
        Agent,
        &[(Server, &root)],
        "server.roots",
        "above our own certificate, which is one of agents",
    );
    // Two sets of one server, of another cluster's root, so that our own chain says nothing.
    let [above, theirs] = [&other.root, &other.agents].map(|one| one.to_pem());
    refused(
        Server,
        &[(Agent, &theirs), (Client, &above)],
        "client.roots",
        "signed",
    );
    let both = servers.clone() + &theirs;
    refused(
        Server,
        &[(Agent, &theirs), (Client, &both)],
        "client.roots",
        "both hold",
    );
}

#[test]
fn roots_of_one_kind_may_be_shared_and_a_lone_root_is_a_warning() {
    let node = Node::new();
    let c = &node.cluster;
    let [agents, servers] = [&c.agents, &c.servers].map(|one| one.to_pem());
    use Role::{Agent, Client, Server};
    let sets = [(Agent, agents.clone()), (Client, servers.clone())];
    assert_eq!(
        of_roots(&node, Server, &sets),
        Ok(vec![]),
        "as init and apply make them"
    );
    assert_eq!(
        of_roots(&node, Agent, &[(Server, servers.clone())]),
        Ok(vec![])
    );
    let successor = Cluster::new("prod");
    let sets = [
        (Agent, agents + &successor.agents.to_pem()),
        (Client, servers + &successor.servers.to_pem()),
    ];
    assert_eq!(
        of_roots(&node, Server, &sets),
        Ok(vec![]),
        "while authorities change"
    );
    let said = of_roots(&node, Server, &[(Agent, successor.root.to_pem())]).expect("taken");
    assert!(
        said.len() == 1 && said[0].contains("is a root by its own"),
        "{said:?}"
    );
}
