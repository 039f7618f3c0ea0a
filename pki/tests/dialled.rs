//! `verify HOST:PORT`: servers that are what they must be, and each way in which they are not.

mod cluster;
mod tool;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::SystemTime;

use cluster::{DAY, new_key};
use rustls::{ServerConfig, ServerConnection};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use tool::Tool;
use towline_pki::{
    Anchors, Authority, AuthoritySpec, Credentials, DenyList, LeafSpec, PeerVerifier, Usage, pem,
    store, tls,
};
use towline_proto::id::Role;

/// Serves so many connections as a server does that waits for its peer to speak.
fn serve(config: Arc<ServerConfig>, connections: usize) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let served = std::thread::spawn(move || {
        for _ in 0..connections {
            let (mut stream, _) = listener.accept().unwrap();
            let mut connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            // Whoever is refused gets an alert; whoever is not says goodbye at once.
            while connection.complete_io(&mut stream).is_ok() {
                let mut sink = [0; 64];
                match connection.reader().read(&mut sink) {
                    Ok(0) => {
                        connection.send_close_notify();
                        let _ = connection.complete_io(&mut stream);
                        break;
                    }
                    Err(error) if error.kind() != ErrorKind::WouldBlock => break,
                    _ => {}
                }
            }
        }
    });
    (address, served)
}

/// A Towline server's end, with what the tool issued.
fn link(tool: &Tool, name: &str, agents: &str) -> Arc<ServerConfig> {
    let cert = tool.dir.path(format!("server-{name}.crt"));
    let now = SystemTime::now();
    let own = Credentials::load(&cert, &cert.with_extension("key"), Role::Server, now).unwrap();
    let trust = Anchors::load(&tool.dir.path(agents)).unwrap();
    let cluster = own.identity().cluster.clone();
    let peers = PeerVerifier::new(cluster, Role::Agent, trust, DenyList::default());
    tls::link_server(&own, peers).unwrap()
}

fn world() -> Tool {
    let tool = Tool::with_cluster();
    tool.ok("issue --dir prod server s1");
    tool.ok("issue --dir prod agent n1");
    tool
}

/// The result of a refusal, and the cause.
fn refused(tool: &Tool, args: &str) -> (String, Value) {
    let answer = tool.run(&format!("{args} -o json"));
    assert_eq!(answer.code, 1, "{args}: {}{}", answer.out, answer.err);
    let mut document: Value = serde_json::from_str(&answer.out).unwrap();
    let result = document["result"].take();
    assert_eq!(result["verified"], false, "{args}");
    assert!(result["fix"].as_str().is_some_and(|fix| fix.len() > 10));
    (result["cause"].as_str().unwrap().to_owned(), result)
}

#[test]
fn a_server_is_dialled_and_shows_itself() {
    let tool = world();
    let (address, served) = serve(link(&tool, "s1", "prod/trust/agents.pem"), 5);
    let verify = format!("verify {address} --role server --trust prod/trust/servers.pem");
    let out = tool.ok(&format!("{verify} --cluster prod.example"));
    for part in [
        "verified server s1 of prod.example",
        "spiffe://prod.example/towline/server/s1",
        "TLS 1.3, protocol towline/1",
        "lets nobody in without a certificate",
        "CN=towline:server:s1",
    ] {
        assert!(out.contains(part), "{part}: {out}");
    }
    // The cluster is that of our own certificate.
    let own = "--cert agent-n1.crt --key agent-n1.key";
    let out = tool.ok(&format!("{verify} {own}"));
    assert!(out.contains("our certificate was taken"), "{out}");
    assert!(!out.contains("note"), "{out}");
    // Without any, the server is asked first: two connections.
    let out = tool.ok(&verify);
    assert!(out.contains("the cluster was not checked"), "{out}");
    let answer = tool.ok(&format!("{verify} {own} -o json"));
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["result"]["connection"]["client"], "taken");
    assert_eq!(answer["result"]["connection"]["alpn"], "towline/1");
    served.join().unwrap();
}

#[test]
fn a_server_is_refused_for_what_a_daemon_refuses_it_for() {
    let tool = world();
    tool.ok("init other --cluster prod.example");
    let serial = tool.ok("inspect server-s1.crt -o json");
    let serial: Value = serde_json::from_str(&serial).unwrap();
    let serial = serial["result"]["certificates"][0]["serial"]
        .as_str()
        .unwrap();
    std::fs::write(tool.dir.path("denied"), format!("serial:{serial}\n")).unwrap();
    let (address, served) = serve(link(&tool, "s1", "prod/trust/agents.pem"), 4);
    for (rest, cause) in [
        (
            "--trust other/trust/servers.pem --cluster prod.example",
            "unknown-issuer",
        ),
        (
            "--trust prod/trust/agents.pem --cluster prod.example",
            "unknown-issuer",
        ),
        (
            "--trust prod/trust/servers.pem --cluster elsewhere",
            "wrong-cluster",
        ),
        (
            "--trust prod/trust/servers.pem --cluster prod.example --deny-list denied",
            "denied",
        ),
    ] {
        let (found, result) = refused(&tool, &format!("verify {address} --role server {rest}"));
        assert_eq!(found, cause, "{rest}");
        // What it showed is shown all the same.
        let shown = &result["certificates"][0]["identity"]["name"];
        assert_eq!(shown, "s1", "{rest}");
    }
    served.join().unwrap();
}

#[test]
fn a_server_that_does_not_take_our_certificate_is_told_apart() {
    let tool = world();
    tool.ok("init other --cluster prod.example");
    // It trusts agents of another authority.
    let (address, served) = serve(link(&tool, "s1", "other/trust/agents.pem"), 1);
    let (cause, result) = refused(
        &tool,
        &format!(
            "verify {address} --role server --trust prod/trust/servers.pem --cert agent-n1.crt --key agent-n1.key"
        ),
    );
    assert_eq!(cause, "we-are-refused");
    assert_eq!(result["connection"]["client"], "refused");
    served.join().unwrap();
}

#[test]
fn what_is_no_server_of_ours_is_said_to_be_what_it_is() {
    let tool = world();
    let trust = "--role server --trust prod/trust/servers.pem --cluster prod.example";
    // A server of ours that speaks something else.
    let mut config = (*link(&tool, "s1", "prod/trust/agents.pem")).clone();
    config.alpn_protocols = vec![b"smtp".to_vec()];
    let (address, served) = serve(Arc::new(config), 1);
    assert_eq!(
        refused(&tool, &format!("verify {address} {trust}")).0,
        "wrong-protocol"
    );
    served.join().unwrap();

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let served = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut hello = [0; 16];
        let _ = stream.read(&mut hello);
        stream
            .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
        drop(listener.accept().unwrap());
    });
    assert_eq!(
        refused(&tool, &format!("verify {address} {trust}")).0,
        "not-tls"
    );
    assert_eq!(
        refused(&tool, &format!("verify {address} {trust}")).0,
        "hung-up"
    );
    served.join().unwrap();
    tool.refused(
        &format!("verify {address} {trust}"),
        1,
        &["cannot be reached"],
    );
    for (args, words) in [
        (format!("verify {address} --role agent --trust prod/trust/agents.pem"), "listens nowhere"),
        (format!("verify {address} --role kubelet --trust prod/trust/agents.pem"), "--node"),
        (format!("verify {address} {trust} --node n1"), "--role kubelet"),
        ("verify agent-n1.crt --role agent --trust prod/trust/agents.pem --cert agent-n1.crt --key agent-n1.key".into(), "HOST:PORT"),
        (format!("verify {address} {trust} --cert agent-n1.crt"), "--key"),
    ] {
        tool.refused(&args, 2, &[words]);
    }
}

/// Somebody else's authority and what serves by it.
struct Web {
    authority: Authority,
    key: Authority,
}

impl Web {
    fn new(tool: &Tool) -> Self {
        let now = SystemTime::now();
        let spec = |purpose: &str| AuthoritySpec {
            purpose: purpose.into(),
            organisation: String::new(),
            not_before: now - DAY,
            not_after: now + 100 * DAY,
            path_length: None,
            usages: Vec::new(),
        };
        let authority = Authority::create(&spec("kubernetes"), new_key()).unwrap();
        store::write_public(
            &tool.dir.path("ca.crt"),
            &authority.to_pem(),
            store::Replace::Never,
        )
        .unwrap();
        let key = Authority::create(&spec("stranger"), new_key()).unwrap();
        Self { authority, key }
    }

    fn config(&self, common_name: &str, ips: &[&str], left: i64) -> Arc<ServerConfig> {
        let now = SystemTime::now();
        let end = match left {
            0.. => now + DAY * u32::try_from(left).unwrap(),
            _ => now - DAY,
        };
        let spec = LeafSpec {
            common_name: common_name.into(),
            uris: Vec::new(),
            dns: Vec::new(),
            ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            usages: vec![Usage::ServerAuth],
            not_before: now - 2 * DAY,
            not_after: end,
        };
        let key = new_key();
        let leaf = self.authority.issue_raw(&spec, &key.public()).unwrap();
        let mut config = plain(vec![leaf], key.to_der());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Arc::new(config)
    }
}

fn plain(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> ServerConfig {
    ServerConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap()
}

#[test]
fn a_kubelet_is_judged_by_its_node_and_the_address_that_is_dialled() {
    let tool = Tool::new();
    let web = Web::new(&tool);
    let node = "system:node:n1";
    for (config, rest, cause) in [
        (web.config(node, &["127.0.0.1"], 9), "--node n1", ""),
        (
            web.config(node, &["10.0.0.7"], 9),
            "--node n1 --host 10.0.0.7",
            "",
        ),
        (
            web.config(node, &["10.0.0.7"], 9),
            "--node n1",
            "missing-ip-san",
        ),
        (
            web.config(node, &["127.0.0.1"], 9),
            "--node n2",
            "other-node",
        ),
        (web.config(node, &["127.0.0.1"], -1), "--node n1", "expired"),
    ] {
        let (address, served) = serve(config, 1);
        let args = format!("verify {address} --role kubelet --trust ca.crt {rest}");
        if cause.is_empty() {
            let out = tool.ok(&args);
            assert!(out.contains("verified kubelet of n1"), "{out}");
            assert!(out.contains("did not ask for our certificate"), "{out}");
        } else {
            assert_eq!(refused(&tool, &args).0, cause, "{rest}");
        }
        served.join().unwrap();
    }
}

#[test]
fn kube_apiserver_is_judged_by_its_name() {
    let tool = Tool::new();
    let web = Web::new(&tool);
    store::write_public(
        &tool.dir.path("other.crt"),
        &web.key.to_pem(),
        store::Replace::Never,
    )
    .unwrap();
    for (ips, left, rest, cause) in [
        (["127.0.0.1"], 9, "--trust ca.crt", ""),
        (["10.0.0.1"], 9, "--trust ca.crt --host 10.0.0.1", ""),
        (["10.0.0.1"], 9, "--trust ca.crt", "wrong-name"),
        (["127.0.0.1"], -1, "--trust ca.crt", "expired"),
        (["127.0.0.1"], 9, "--trust other.crt", "unknown-issuer"),
    ] {
        let (address, served) = serve(web.config("kube-apiserver", &ips, left), 1);
        let args = format!("verify {address} --role kube-apiserver {rest}");
        match cause {
            "" => assert!(tool.ok(&args).contains("verified server"), "{args}"),
            _ => assert_eq!(refused(&tool, &args).0, cause, "{rest}"),
        }
        served.join().unwrap();
    }
}

#[test]
fn files_are_judged_by_the_same_rules() {
    let tool = Tool::new();
    let web = Web::new(&tool);
    let spec = LeafSpec {
        common_name: "system:node:n1".into(),
        uris: Vec::new(),
        dns: vec!["n1".into()],
        ips: vec!["10.0.0.7".parse().unwrap()],
        usages: vec![Usage::ServerAuth],
        not_before: SystemTime::now() - DAY,
        not_after: SystemTime::now() + DAY,
    };
    let leaf = web.authority.issue_raw(&spec, &new_key().public()).unwrap();
    write(&tool.dir.path("kubelet.crt"), &leaf);
    let verify = "verify kubelet.crt --trust ca.crt";
    let out = tool.ok(&format!("{verify} --role kubelet --node n1"));
    assert!(out.contains("name it with --host"), "{out}");
    tool.ok(&format!(
        "{verify} --role kubelet --node n1 --host 10.0.0.7"
    ));
    tool.ok(&format!("{verify} --role kube-apiserver --host n1"));
    for (rest, cause) in [
        ("--role kubelet --node n1 --host 10.0.0.8", "missing-ip-san"),
        ("--role kubelet --node n2", "other-node"),
        ("--role kube-apiserver --host n2", "wrong-name"),
    ] {
        assert_eq!(
            refused(&tool, &format!("{verify} {rest}")).0,
            cause,
            "{rest}"
        );
    }
}

fn write(path: &Path, leaf: &CertificateDer<'static>) {
    let text = pem::write_certificates(std::slice::from_ref(leaf));
    store::write_public(path, &text, store::Replace::Never).unwrap();
}
