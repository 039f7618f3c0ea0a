//! `towline-pki apply` as it is run: a whole cluster from one file, checked by openssl and by our own
//! lint; what it says, how it ends, and what it refuses.

mod cluster;
mod tool;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use cluster::{have_openssl, openssl};
use serde_json::Value;
use tool::Tool;

const CLUSTER: &str = "\
version: 1
cluster: prod.example
kubernetes:
  endpoint: cp.example:6443
  serviceCIDRs: [10.96.0.0/12, \"fd00:96::/112\"]
  apiserverNames: [203.0.113.7]
controlPlanes:
  - {name: cp-1, addresses: [10.0.0.1, \"fd00::1\"]}
  - {name: cp-2, addresses: [10.0.0.2]}
nodes:
  - {name: node-1, addresses: [10.0.1.1, \"fd00::11\"], names: [node-1.internal]}
towline:
  clients: [metrics]
  operators: [alice]
authorities:
  kubeletServing: own
";

const APPLY: &str = "apply -f cluster.yaml -d prod";

fn with(text: &str) -> Tool {
    let tool = Tool::new();
    write(&tool, text);
    tool
}

fn write(tool: &Tool, text: &str) {
    fs::write(tool.dir.path("cluster.yaml"), text).unwrap();
}

/// With the cluster of the file above.
fn applied() -> Tool {
    let tool = with(CLUSTER);
    tool.ok(APPLY);
    tool
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// Files with their content, time of last change and inode.
fn state(dir: &Path) -> Vec<(PathBuf, Vec<u8>, i64, i64, u64)> {
    let mut out = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::metadata(&path).unwrap();
            let bytes = match path.is_dir() {
                true => Vec::new(),
                false => fs::read(&path).unwrap(),
            };
            if path.is_dir() {
                folders.push(path.clone());
            }
            out.push((path, bytes, meta.mtime(), meta.mtime_nsec(), meta.ino()));
        }
    }
    out.sort();
    out
}

/// Every certificate with its authority, purpose, subject and names, as openssl prints them.
const EXPECTED: &[(&str, &str, &str, &str, &str)] = &[
    (
        "hosts/cp-1/pki/apiserver.crt",
        "pki/ca.crt",
        "sslserver",
        "CN=kube-apiserver",
        "DNS:cp-1, DNS:kubernetes, DNS:kubernetes.default, DNS:kubernetes.default.svc, \
         DNS:kubernetes.default.svc.cluster.local, DNS:cp.example, IP Address:10.96.0.1, \
         IP Address:FD00:96:0:0:0:0:0:1, IP Address:10.0.0.1, IP Address:FD00:0:0:0:0:0:0:1, \
         IP Address:203.0.113.7",
    ),
    (
        "hosts/cp-1/pki/apiserver-kubelet-client.crt",
        "pki/ca.crt",
        "sslclient",
        "O=kubeadm:cluster-admins, CN=kube-apiserver-kubelet-client",
        "",
    ),
    (
        "hosts/cp-2/pki/apiserver-etcd-client.crt",
        "pki/etcd/ca.crt",
        "sslclient",
        "CN=kube-apiserver-etcd-client",
        "",
    ),
    (
        "hosts/cp-2/pki/etcd/server.crt",
        "pki/etcd/ca.crt",
        "sslserver",
        "CN=cp-2",
        "DNS:cp-2, DNS:localhost, IP Address:10.0.0.2, IP Address:127.0.0.1, \
         IP Address:0:0:0:0:0:0:0:1",
    ),
    (
        "hosts/cp-2/pki/etcd/peer.crt",
        "pki/etcd/ca.crt",
        "sslclient",
        "CN=cp-2",
        "DNS:cp-2, DNS:localhost, IP Address:10.0.0.2, IP Address:127.0.0.1, \
         IP Address:0:0:0:0:0:0:0:1",
    ),
    (
        "hosts/cp-1/pki/etcd/healthcheck-client.crt",
        "pki/etcd/ca.crt",
        "sslclient",
        "CN=kube-etcd-healthcheck-client",
        "",
    ),
    (
        "hosts/cp-1/pki/front-proxy-client.crt",
        "pki/front-proxy-ca.crt",
        "sslclient",
        "CN=front-proxy-client",
        "",
    ),
    (
        "hosts/node-1/kubelet/kubelet.crt",
        "pki/kubelet-ca.crt",
        "sslserver",
        "O=system:nodes, CN=system:node:node-1",
        "DNS:node-1, DNS:node-1.internal, IP Address:10.0.1.1, IP Address:FD00:0:0:0:0:0:0:11",
    ),
    (
        "hosts/cp-1/towline/kubelet-client.crt",
        "pki/ca.crt",
        "sslclient",
        "CN=towline-kubelet-client",
        "",
    ),
    (
        "hosts/cp-1/towline/server.crt",
        "trust/servers.pem",
        "sslserver",
        "CN=towline:server:cp-1",
        "URI:spiffe://prod.example/towline/server/cp-1, DNS:cp-1, DNS:localhost, \
         IP Address:10.0.0.1, IP Address:FD00:0:0:0:0:0:0:1, IP Address:127.0.0.1, \
         IP Address:0:0:0:0:0:0:0:1",
    ),
    (
        "hosts/cp-2/towline/client.crt",
        "trust/servers.pem",
        "sslclient",
        "CN=towline:client:kube-apiserver",
        "URI:spiffe://prod.example/towline/client/kube-apiserver",
    ),
    (
        "hosts/node-1/towline/agent.crt",
        "trust/agents.pem",
        "sslclient",
        "CN=towline:agent:node-1",
        "URI:spiffe://prod.example/towline/agent/node-1, IP Address:10.0.1.1, \
         IP Address:FD00:0:0:0:0:0:0:11",
    ),
    (
        "clients/metrics.crt",
        "trust/servers.pem",
        "sslclient",
        "CN=towline:client:metrics",
        "URI:spiffe://prod.example/towline/client/metrics",
    ),
    (
        "operators/alice.crt",
        "trust/servers.pem",
        "sslclient",
        "CN=towline:operator:alice",
        "URI:spiffe://prod.example/towline/operator/alice",
    ),
];

#[test]
fn openssl_finds_every_chain_purpose_subject_and_name_as_kubernetes_wants_them() {
    if !have_openssl() {
        return;
    }
    let tool = applied();
    let dir = tool.dir.path("prod");
    for (file, authority, purpose, subject, names) in EXPECTED {
        let verify = format!(
            "verify -x509_strict -partial_chain -purpose {purpose} -CAfile {authority} {file}"
        );
        assert!(openssl(&dir, &verify).contains("OK"), "{file}");
        let text = openssl(
            &dir,
            &format!(
                "x509 -in {file} -noout -subject -nameopt RFC2253,sep_comma_plus_space,-dn_rev -ext subjectAltName"
            ),
        );
        let mut lines = text.lines();
        assert_eq!(
            lines.next().unwrap().trim_start_matches("subject="),
            *subject,
            "{file}"
        );
        let found = lines.last().map(str::trim).unwrap_or_default();
        let found = match names.is_empty() {
            true => "",
            false => found,
        };
        assert_eq!(found, *names, "{file}");
    }
    // Everything that is there, not only the list above: pairs fit, and no authority verifies another's.
    let others = "verify -partial_chain -CAfile pki/etcd/ca.crt hosts/cp-1/pki/apiserver.crt";
    let crossed = std::process::Command::new("openssl")
        .args(others.split(' '))
        .current_dir(&dir)
        .output()
        .unwrap();
    assert!(!crossed.status.success());
    let mut keys = Vec::new();
    for (path, ..) in state(&dir) {
        if path.extension().is_some_and(|end| end == "crt") {
            let name = path.strip_prefix(&dir).unwrap().display().to_string();
            let key = name.replace(".crt", ".key");
            if dir.join(&key).exists() {
                let of_key = openssl(&dir, &format!("pkey -in {key} -pubout"));
                let of_cert = openssl(&dir, &format!("x509 -in {name} -noout -pubkey"));
                assert_eq!(of_key, of_cert, "{name}");
                if !name.ends_with("towline/gateway.crt") {
                    keys.push(of_key);
                }
            }
        }
    }
    let count = keys.len();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), count, "no key is shared");
    assert!(count > 30, "{count}");
    let token = openssl(&dir, "pkey -in pki/sa.key -pubout");
    assert_eq!(token, fs::read_to_string(dir.join("pki/sa.pub")).unwrap());
}

#[test]
fn kubeconfigs_carry_who_they_are_for() {
    if !have_openssl() {
        return;
    }
    let tool = applied();
    let dir = tool.dir.path("prod");
    for (file, subject, server) in [
        (
            "admin.conf",
            "O=kubeadm:cluster-admins, CN=kubernetes-admin",
            "https://cp.example:6443",
        ),
        (
            "super-admin.conf",
            "O=system:masters, CN=kubernetes-super-admin",
            "https://cp.example:6443",
        ),
        (
            "hosts/cp-2/controller-manager.conf",
            "CN=system:kube-controller-manager",
            "https://10.0.0.2:6443",
        ),
        (
            "hosts/cp-1/scheduler.conf",
            "CN=system:kube-scheduler",
            "https://10.0.0.1:6443",
        ),
        (
            "hosts/node-1/kubelet.conf",
            "O=system:nodes, CN=system:node:node-1",
            "https://cp.example:6443",
        ),
    ] {
        let text = fs::read_to_string(dir.join(file)).unwrap();
        assert_eq!(
            fs::metadata(dir.join(file)).unwrap().mode() & 0o7777,
            0o600,
            "{file}"
        );
        assert!(
            text.contains(&format!("server: \"{server}\"")),
            "{file}: {text}"
        );
        let data = |key: &str| {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(key));
            let encoded = line.unwrap_or_else(|| panic!("{key} in {file}"));
            use base64::Engine as _;
            base64::engine::general_purpose::STANDARD
                .decode(encoded)
                .unwrap()
        };
        fs::write(dir.join("user.crt"), data("client-certificate-data: ")).unwrap();
        fs::write(dir.join("user.key"), data("client-key-data: ")).unwrap();
        let verdict = openssl(
            &dir,
            "verify -x509_strict -purpose sslclient -CAfile pki/ca.crt user.crt",
        );
        assert!(verdict.contains("OK"), "{file}");
        let found = openssl(
            &dir,
            "x509 -in user.crt -noout -subject -nameopt RFC2253,sep_comma_plus_space,-dn_rev",
        );
        assert_eq!(found.trim(), format!("subject={subject}"), "{file}");
        assert_eq!(
            openssl(&dir, "pkey -in user.key -pubout"),
            openssl(&dir, "x509 -in user.crt -noout -pubkey"),
            "{file}"
        );
        assert_eq!(
            data("certificate-authority-data: "),
            fs::read(dir.join("pki/ca.crt")).unwrap()
        );
    }
}

#[test]
fn what_it_makes_is_without_a_finding_and_other_verbs_go_on_from_it() {
    let tool = applied();
    let out = tool.ok("lint prod --strict");
    assert!(out.contains(", 0 findings"), "{out}");
    tool.ok("status prod --days 20");
    let verify =
        "verify prod/hosts/node-1/towline/agent.crt --role agent --trust prod/trust/agents.pem";
    tool.ok(&format!("{verify} --cluster prod.example"));
    tool.ok("issue --dir prod agent node-9 --ip 10.0.1.9");
}

#[test]
fn a_second_run_touches_nothing() {
    let tool = applied();
    let before = state(&tool.dir.path("prod"));
    let out = tool.ok(APPLY);
    assert!(out.contains("0 changed"), "{out}");
    tool.ok(&format!("{APPLY} --dry-run --prune"));
    assert_eq!(state(&tool.dir.path("prod")), before);
}

#[test]
fn a_dry_run_says_what_and_why_and_touches_nothing() {
    let tool = with(CLUSTER);
    tool.refused(&format!("{APPLY} --dry-run"), 1, &["nothing was changed"]);
    assert!(!tool.dir.path("prod").exists());
    tool.ok(APPLY);
    write(
        &tool,
        &CLUSTER
            .replace("[10.0.0.2]", "[10.0.0.2, 10.0.0.22]")
            .replace("node-1,", "node-2,")
            .replace("node-1.internal", "node-2.internal"),
    );
    let before = state(&tool.dir.path("prod"));
    let answer = tool.run(&format!("{APPLY} --dry-run"));
    assert_eq!(answer.code, 1, "{}", answer.err);
    for line in [
        "~ hosts/cp-2/pki/apiserver.crt                 address 10.0.0.22 added; new key",
        "+ hosts/node-2/                                node-2 is new: 5 parts, new keys",
        "! hosts/node-1/                                not in the file any more; left as it is",
    ] {
        assert!(answer.out.contains(line), "{line}: {}", answer.out);
    }
    let answer = tool.run(&format!("{APPLY} --dry-run --prune -o json"));
    let all = json(&answer.out)["result"].clone();
    let change = |path: &str| {
        let changes = all["changes"].as_array().unwrap().iter();
        changes
            .into_iter()
            .find(|change| change["path"] == path)
            .cloned()
            .unwrap()
    };
    let server = change("hosts/cp-2/pki/etcd/server.crt");
    assert_eq!(server["action"], "reissue");
    assert_eq!(server["key"], "new");
    assert_eq!(server["reasons"][0]["code"], "address-added");
    assert_eq!(change("hosts/node-1")["action"], "remove-machine");
    assert_eq!(all["dryRun"], true);
    assert_eq!(state(&tool.dir.path("prod")), before);
    let all = json(&tool.ok(&format!("{APPLY} --prune -o json")))["result"].clone();
    let signed = all["changes"].as_array().unwrap().iter();
    assert!(
        signed
            .into_iter()
            .any(|change| change["certificate"]["serial"].is_string())
    );
    assert!(!tool.dir.path("prod/hosts/node-1").exists());
    assert!(tool.ok(APPLY).contains("0 changed"));
}

#[test]
fn damaged_and_mismatched_files_are_one_error_and_nothing_is_touched() {
    let tool = applied();
    let file = |name: &str| tool.dir.path("prod").join(name);
    let kubelet = "hosts/node-1/kubelet/kubelet";
    let read = |name: &str| fs::read(file(name)).unwrap();
    // Something is to be done in each case, and is not done.
    write(
        &tool,
        &CLUSTER.replace("[10.0.0.2]", "[10.0.0.2, 10.0.0.22]"),
    );
    let spoil = |name: &str, bytes: &[u8], words: &[&str]| {
        let before = read(name);
        fs::write(file(name), bytes).unwrap();
        tool.refused(APPLY, 3, &[&["nothing was changed", name], words].concat());
        fs::write(file(name), before).unwrap();
    };
    let (cert, key) = (format!("{kubelet}.crt"), format!("{kubelet}.key"));
    let whole = read(&cert);
    spoil(&cert, &whole[..whole.len() / 2], &["cut off"]);
    spoil(&cert, b"", &["empty"]);
    spoil(&cert, &read("pki/ca.crt"), &["never written over"]);
    spoil(
        &key,
        &read("hosts/node-1/towline/agent.key"),
        &["is not the key of"],
    );
    spoil(&key, &whole, &["PRIVATE KEY"]);
    spoil(
        "pki/ca.key",
        &read("pki/etcd/ca.key"),
        &["not the one of authority"],
    );
    spoil("pki/ca.crt", &whole, &["not an authority"]);
    spoil(
        "pki/sa.pub",
        &read("hosts/cp-1/pki/ca.crt"),
        &["public half"],
    );
    spoil(
        "trust/agents.pem",
        b"-----BEGIN CERTIFICATE-----\n",
        &["cut off"],
    );
    spoil("admin.conf", b"users: [\n", &["not a kubeconfig"]);
    spoil("admin.conf", b"kind: Config\n", &["current-context"]);
    spoil(
        "cluster",
        b"other.example\n",
        &["is of cluster other.example"],
    );

    let locked =
        b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    spoil(&key, locked, &["encrypted"]);
    for name in [key.as_str(), "admin.conf", "pki/ca.key", "pki/sa.key"] {
        fs::set_permissions(file(name), fs::Permissions::from_mode(0o644)).unwrap();
        tool.refused(APPLY, 3, &["chmod 0600", name]);
        fs::set_permissions(file(name), fs::Permissions::from_mode(0o600)).unwrap();
    }
    fs::rename(file(&key), tool.dir.path("away")).unwrap();
    tool.refused(APPLY, 3, &["without its key", &key]);
    fs::rename(tool.dir.path("away"), file(&key)).unwrap();
    assert!(tool.ok(APPLY).contains("10.0.0.22"));
}

#[test]
fn one_run_at_a_time() {
    let tool = applied();
    let held = towline_pki::store::lock(&tool.dir.path("prod")).unwrap();
    tool.refused(APPLY, 1, &["another process"]);
    tool.ok(&format!("{APPLY} --dry-run"));
    drop(held);
    tool.ok(APPLY);
}

#[test]
fn encrypted_keys_of_authorities_are_opened() {
    let tool = with(CLUSTER);
    fs::write(tool.dir.path("pass"), "correct horse\n").unwrap();
    fs::set_permissions(tool.dir.path("pass"), fs::Permissions::from_mode(0o600)).unwrap();
    tool.ok("init prod --cluster prod.example --encrypt-keys --passphrase-file pass");
    let key = fs::read(tool.dir.path("prod/issuers/agents.key")).unwrap();
    let out = tool.ok(&format!("{APPLY} --passphrase-file pass"));
    assert!(!out.contains("issuers/agents.crt"), "{out}");
    assert_eq!(
        fs::read(tool.dir.path("prod/issuers/agents.key")).unwrap(),
        key
    );
    let verify =
        "verify prod/hosts/node-1/towline/agent.crt --role agent --trust prod/trust/agents.pem";
    tool.ok(&format!("{verify} --cluster prod.example"));
    assert!(
        tool.ok(&format!("{APPLY} --passphrase-file pass"))
            .contains("0 changed")
    );
    fs::write(tool.dir.path("pass"), "wrong\n").unwrap();
    tool.refused(
        &format!("{APPLY} --passphrase-file pass"),
        3,
        &["nothing was changed", "passphrase"],
    );
}
