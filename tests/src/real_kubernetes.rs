//! A real etcd and a real kube-apiserver on loopback, made by `towline-pki apply`. Needs Go: both are
//! built from their modules (`tests/interop/etcd`, `tests/interop/apiserver`).

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use towline_pki::cluster::{ClusterFile, Present, Wanted, plan, write};

use crate::konnectivity::programs::Program;
use crate::scratch::Scratch;

/// How long a program may take until it answers, on a machine that is busy.
const START: Duration = Duration::from_secs(120);

/// A program that ends with the test.
pub struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    fn start(program: &Path, args: &[String], log: PathBuf) -> Self {
        let file = fs::File::create(&log).expect("a log");
        let child = Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a log"))
            .stderr(file)
            .spawn()
            .expect("the program starts");
        Self { child, log }
    }

    /// The last lines of what it said.
    fn said(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that is free now.
fn port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

pub struct World {
    /// Everything that was made; the cluster is in `prod`.
    pub scratch: Scratch,
    etcd: String,
    etcd_process: Running,
    /// Where kube-apiserver is to be, or is.
    pub api_port: u16,
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl World {
    /// A cluster made by `apply`, and its etcd.
    pub fn new() -> Self {
        let scratch = Scratch::new().expect("a directory");
        let api_port = port();
        let text = format!(
            "version: 1\ncluster: real.example\nkubernetes:\n  endpoint: 127.0.0.1:{api_port}\n  \
             apiserverNames: [127.0.0.1]\ncontrolPlanes:\n  - {{name: cp-1, addresses: [10.0.0.1]}}\n\
             nodes:\n  - {{name: node-1, addresses: [10.0.1.1]}}\n"
        );
        let file = ClusterFile::parse(text.as_bytes(), Path::new("")).expect("a cluster file");
        let (wanted, now) = (Wanted::of(&file), SystemTime::now());
        let dir = scratch.join("prod");
        let present = Present::read(&dir, &wanted, now).expect("an empty directory");
        let plan = plan(&wanted, &present, false, now).expect("a plan");
        write(&dir, &wanted, present, &plan, 4, now).expect("a cluster");

        let pki = dir.join("hosts/cp-1/pki");
        let (client, peer) = (url(port()), url(port()));
        let mut args = vec!["--name=cp-1".to_owned()];
        let data = scratch.join("etcd");
        for (flag, value) in [
            ("data-dir", data.display().to_string()),
            ("listen-client-urls", client.clone()),
            ("advertise-client-urls", client.clone()),
            ("listen-peer-urls", peer.clone()),
            ("initial-advertise-peer-urls", peer.clone()),
            ("initial-cluster", format!("cp-1={peer}")),
            ("client-cert-auth", "true".into()),
            ("peer-client-cert-auth", "true".into()),
        ] {
            args.push(format!("--{flag}={value}"));
        }
        for (flag, file) in [
            ("cert-file", "etcd/server.crt"),
            ("key-file", "etcd/server.key"),
            ("trusted-ca-file", "etcd/ca.crt"),
            ("peer-cert-file", "etcd/peer.crt"),
            ("peer-key-file", "etcd/peer.key"),
            ("peer-trusted-ca-file", "etcd/ca.crt"),
        ] {
            args.push(format!("--{flag}={}", pki.join(file).display()));
        }
        let program = Program::Etcd.build().expect("etcd is built");
        let etcd_process = Running::start(&program, &args, scratch.join("etcd.log"));
        let world = Self {
            scratch,
            etcd: client,
            etcd_process,
            api_port,
        };
        let healthy = |answer: &str| answer.contains("\"health\":\"true\"");
        world.until("etcd", &world.etcd_process, healthy, || {
            world.ask_etcd("etcd/healthcheck-client")
        });
        world
    }

    /// A file of the control plane.
    pub fn pki(&self, name: &str) -> PathBuf {
        self.scratch.join("prod/hosts/cp-1/pki").join(name)
    }

    /// Where etcd is.
    pub fn etcd(&self) -> &str {
        &self.etcd
    }

    /// What etcd says of its health to the holder of a pair.
    pub fn ask_etcd(&self, pair: &str) -> Result<String, String> {
        let url = format!("{}/health", self.etcd);
        let pair = [format!("{pair}.crt"), format!("{pair}.key")].map(|name| self.pki(&name));
        curl(&self.pki("etcd/ca.crt"), Some(&pair), &[&url])
    }

    /// Starts kube-apiserver and waits until it is ready.
    pub fn api_server(&self) -> Running {
        let mut args = Vec::new();
        for (flag, file) in [
            ("etcd-cafile", "etcd/ca.crt"),
            ("etcd-certfile", "apiserver-etcd-client.crt"),
            ("etcd-keyfile", "apiserver-etcd-client.key"),
            ("tls-cert-file", "apiserver.crt"),
            ("tls-private-key-file", "apiserver.key"),
            ("client-ca-file", "ca.crt"),
            ("kubelet-client-certificate", "apiserver-kubelet-client.crt"),
            ("kubelet-client-key", "apiserver-kubelet-client.key"),
            ("kubelet-certificate-authority", "ca.crt"),
            ("service-account-key-file", "sa.pub"),
            ("service-account-signing-key-file", "sa.key"),
            ("requestheader-client-ca-file", "front-proxy-ca.crt"),
            ("proxy-client-cert-file", "front-proxy-client.crt"),
            ("proxy-client-key-file", "front-proxy-client.key"),
        ] {
            args.push(format!("--{flag}={}", self.pki(file).display()));
        }
        for (flag, value) in [
            ("etcd-servers", self.etcd.as_str()),
            ("bind-address", "127.0.0.1"),
            ("advertise-address", "10.0.0.1"),
            (
                "service-account-issuer",
                "https://kubernetes.default.svc.cluster.local",
            ),
            ("service-cluster-ip-range", "10.96.0.0/12"),
            ("authorization-mode", "Node,RBAC"),
            ("enable-admission-plugins", "NodeRestriction"),
            ("requestheader-allowed-names", "front-proxy-client"),
            ("requestheader-username-headers", "X-Remote-User"),
            ("requestheader-group-headers", "X-Remote-Group"),
            ("requestheader-extra-headers-prefix", "X-Remote-Extra-"),
        ] {
            args.push(format!("--{flag}={value}"));
        }
        args.push(format!("--secure-port={}", self.api_port));
        let program = Program::KubeApiserver
            .build()
            .expect("kube-apiserver is built");
        let running = Running::start(&program, &args, self.scratch.join("apiserver.log"));
        let admin = self.user("super-admin.conf");
        self.until(
            "kube-apiserver",
            &running,
            |answer| answer == "ok",
            || self.ask("/readyz", Some(&admin), &[]),
        );
        running
    }

    /// Asks until the answer is good; the time it may take is bounded.
    fn until(
        &self,
        who: &str,
        process: &Running,
        good: impl Fn(&str) -> bool,
        ask: impl Fn() -> Result<String, String>,
    ) {
        let end = Instant::now() + START;
        loop {
            let answer = ask();
            if answer.as_deref().is_ok_and(&good) {
                return;
            }
            assert!(
                Instant::now() < end,
                "{who}: {answer:?}\n{}",
                process.said()
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Certificate and key of a kubeconfig, as files.
    pub fn user(&self, conf: &str) -> [PathBuf; 2] {
        let text = fs::read_to_string(self.scratch.join("prod").join(conf)).expect(conf);
        let name = conf.replace('/', "-");
        [
            ("client-certificate-data: ", "crt"),
            ("client-key-data: ", "key"),
        ]
        .map(|(key, end)| {
            let data = text
                .lines()
                .find_map(|line| line.trim().strip_prefix(key))
                .expect(key);
            let path = self.scratch.join(format!("{name}.{end}"));
            let decoded = Command::new("base64")
                .arg("-d")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn();
            let mut decoded = decoded.expect("base64");
            use std::io::Write;
            decoded
                .stdin
                .take()
                .expect("a pipe")
                .write_all(data.as_bytes())
                .expect("a pipe");
            fs::write(&path, decoded.wait_with_output().expect("base64").stdout).expect("a file");
            path
        })
    }

    /// Asks kube-apiserver.
    pub fn ask(
        &self,
        path: &str,
        pair: Option<&[PathBuf; 2]>,
        more: &[&str],
    ) -> Result<String, String> {
        let url = format!("{}{path}", url(self.api_port));
        let mut args = more.to_vec();
        args.push(&url);
        curl(&self.pki("ca.crt"), pair, &args)
    }

    /// Makes an object.
    pub fn post(&self, path: &str, pair: &[PathBuf; 2], body: &Value, header: &[&str]) -> Value {
        let body = body.to_string();
        let mut more = vec!["-H", "Content-Type: application/json", "-d", &body];
        for line in header {
            more.extend(["-H", line]);
        }
        let answer = self.ask(path, Some(pair), &more).expect("an answer");
        serde_json::from_str(&answer).unwrap_or_else(|_| panic!("{path}: {answer}"))
    }

    /// Makes every object of a manifest, as it stands; what the API does not know is an error.
    pub fn apply(&self, manifest: &Path, pair: &[PathBuf; 2]) {
        let text = fs::read_to_string(manifest).expect("a manifest");
        for document in text.split("\n---\n") {
            let kind = document
                .lines()
                .find_map(|line| line.strip_prefix("kind: "));
            let kind = kind.expect("a kind");
            let place = match kind {
                "ServiceAccount" => "/api/v1/namespaces/kube-system/serviceaccounts",
                "DaemonSet" => "/apis/apps/v1/namespaces/kube-system/daemonsets",
                "ClusterRole" => "/apis/rbac.authorization.k8s.io/v1/clusterroles",
                "ClusterRoleBinding" => "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
                "Role" => "/apis/rbac.authorization.k8s.io/v1/namespaces/kube-system/roles",
                "RoleBinding" => {
                    "/apis/rbac.authorization.k8s.io/v1/namespaces/kube-system/rolebindings"
                }
                other => panic!("{other}"),
            };
            let path = format!("{place}?fieldValidation=Strict");
            let more = [
                "-H",
                "Content-Type: application/yaml",
                "--data-binary",
                document,
            ];
            let answer = self.ask(&path, Some(pair), &more).expect("an answer");
            let made: Value = serde_json::from_str(&answer).unwrap_or_default();
            assert_eq!(made["kind"], kind, "{}: {answer}", manifest.display());
        }
    }

    /// A token of a service account of kube-system, bound to a pod where one is named.
    pub fn token(&self, account: &str, audience: Option<&str>, pod: Option<&Value>) -> String {
        let mut spec = json!({ "expirationSeconds": 3600 });
        if let Some(audience) = audience {
            spec["audiences"] = json!([audience]);
        }
        if let Some(pod) = pod {
            let metadata = &pod["metadata"];
            spec["boundObjectRef"] = json!({
                "kind": "Pod", "apiVersion": "v1", "name": metadata["name"], "uid": metadata["uid"],
            });
        }
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec,
        });
        let path = format!("/api/v1/namespaces/kube-system/serviceaccounts/{account}/token");
        let answer = self.post(&path, &self.user("super-admin.conf"), &request, &[]);
        let token = answer["status"]["token"].as_str();
        token.unwrap_or_else(|| panic!("{answer}")).to_owned()
    }

    /// A kubeconfig for whoever holds this token.
    pub fn kubeconfig(&self, token: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts:\n- name: c\n  context: \
             {{cluster: k, user: u}}\nclusters:\n- name: k\n  cluster: {{server: '{}', \
             certificate-authority: '{}'}}\nusers:\n- name: u\n  user: {{token: '{token}'}}\n",
            url(self.api_port),
            self.pki("ca.crt").display()
        )
    }

    /// User and groups that kube-apiserver takes somebody for.
    pub fn who(&self, pair: &[PathBuf; 2], header: &[&str]) -> (String, Vec<String>) {
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "SelfSubjectReview",
        });
        let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
        let answer = self.post(path, pair, &review, header);
        let user = &answer["status"]["userInfo"];
        let groups = user["groups"].as_array().into_iter().flatten();
        let groups = groups
            .filter_map(Value::as_str)
            .filter(|group| *group != "system:authenticated");
        let name = user["username"]
            .as_str()
            .unwrap_or_else(|| panic!("{answer}"));
        (name.to_owned(), groups.map(str::to_owned).collect())
    }
}

/// On loopback.
pub fn url(port: u16) -> String {
    format!("https://127.0.0.1:{port}")
}

/// The body of an answer, or why there is none.
pub fn curl(
    authority: &Path,
    pair: Option<&[PathBuf; 2]>,
    more: &[&str],
) -> Result<String, String> {
    let mut command = Command::new("curl");
    command
        .args(["-sS", "--max-time", "10", "--noproxy", "*", "--cacert"])
        .arg(authority);
    if let Some([cert, key]) = pair {
        command.arg("--cert").arg(cert).arg("--key").arg(key);
    }
    let output = command
        .args(more)
        .output()
        .map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}
