//! What a kubelet gateway needs, and kube-apiserver behind it: authorities and certificates, TLS
//! to the gateway inside an open dial, and an HTTP/1.1 client that can also say what no client of
//! good manners says.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use towline_pki::{Authority as Signer, AuthoritySpec, KeyKind, PrivateKey, Usage};
use towline_proto::id::Role;

use crate::apiserver::{Pipe, client_config};
use crate::authority::{Authority, Ca, Pair};
use crate::cluster::{Cluster, node_ip};
use crate::kubectl::Kubelet;
use crate::kubelet::FakeKubelet;
use crate::scenario::{eventually, expect};
use crate::scratch::Scratch;

/// The common name of a front end that the gateway takes.
pub const FRONT_END: &str = "kube-apiserver-kubelet-client";

/// The authorities around a gateway. The gateway's own is made as `towline-pki` makes it.
pub struct GatewayKit {
    /// The cluster's own authority, which signs clients of kubelets.
    pub clients: Ca,
    /// What kube-apiserver anchors "kubelets" on.
    pub issuer: CertificateDer<'static>,
    /// What the gateway shows kubelets.
    pub kubelet_client: Pair,
    /// What kube-apiserver shows the gateway.
    pub front_end: Pair,
}

impl GatewayKit {
    /// Makes all of it, and the files that the server reads.
    pub fn make(authority: &Authority, scratch: &Scratch) -> Self {
        let clients = Ca::made_up("kubernetes");
        let hour = Duration::from_secs(3600);
        let now = SystemTime::now();
        let spec = AuthoritySpec {
            purpose: "towline gateway".to_owned(),
            organisation: authority.cluster().to_owned(),
            not_before: now - hour,
            not_after: now + 24 * hour,
            path_length: Some(0),
            usages: vec![Usage::ServerAuth],
        };
        let key = PrivateKey::generate(KeyKind::EcdsaP256).expect("a key");
        let signer = Signer::create(&spec, key).expect("an authority");
        let file = |name: &str, text: &str| {
            scratch.write(name, text).expect("a file");
        };
        file("gateway.crt", &signer.to_pem());
        let secret = signer.key_to_pem();
        file("gateway.key", &String::from_utf8_lossy(secret.expose()));
        file("front-ends.ca", clients.pem());
        let kit = Self {
            kubelet_client: leaf(authority, &clients, "towline-kubelet-client"),
            front_end: leaf(authority, &clients, FRONT_END),
            issuer: signer.der().clone(),
            clients,
        };
        kit.kubelet_client
            .write(scratch, "kubelet-client")
            .expect("files");
        kit
    }

    /// The flags of a server that is a gateway: with its own authority, or without one, for
    /// scenarios that give a certificate.
    pub fn flags(&self, scratch: &Scratch, own: bool) -> Vec<String> {
        let file = |name: &str| scratch.join(name).display().to_string();
        let authority = [
            "--kubelet-gateway-ca-cert".to_owned(),
            file("gateway.crt"),
            "--kubelet-gateway-ca-key".to_owned(),
            file("gateway.key"),
        ];
        let mut flags: Vec<String> = [
            "--kubelet-gateway".to_owned(),
            "--kubelet-gateway-client-ca".to_owned(),
            file("front-ends.ca"),
            "--kubelet-gateway-allow-name".to_owned(),
            FRONT_END.to_owned(),
            "--kubelet-client-certificate".to_owned(),
            file("kubelet-client.crt"),
            "--kubelet-client-key".to_owned(),
            file("kubelet-client.key"),
        ]
        .into();
        if own {
            flags.extend(authority);
        }
        flags
    }
}

/// A client certificate of Kubernetes: a user, no identity of Towline's.
pub fn leaf(authority: &Authority, clients: &Ca, user: &str) -> Pair {
    authority
        .leaf(Role::Client, user)
        .identities(&[])
        .signed_by(clients)
        .sign()
}

impl Cluster {
    /// The kubelet of `n1`, which asks for client certificates as a real one does.
    pub async fn asking_kubelet(&self) -> FakeKubelet {
        let pair = self.authority.kubelet_leaf("n1", &[node_ip(1)]).sign();
        let bind = ([127, 0, 0, 1], 0).into();
        let root = self.gateway.clients.der();
        let kubelet = FakeKubelet::start_with_clients("n1", &pair, bind, root)
            .await
            .expect("a kubelet on loopback");
        self.at_node(1, kubelet.address());
        kubelet
    }

    /// kube-apiserver, connected with what it takes for the kubelet of `n1`.
    pub async fn front_end(&self) -> FrontEnd {
        let pipe = self.apiserver().pipe("10.0.0.1:10250").await;
        FrontEnd::to(pipe, node_ip(1), &self.gateway).await
    }

    /// The metrics of the first server.
    pub async fn metrics(&self) -> String {
        let health = self.server(0).health_address();
        let asking = async {
            let mut stream = TcpStream::connect(health).await?;
            let request = "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
            stream.write_all(request.as_bytes()).await?;
            let mut page = Vec::new();
            stream.read_to_end(&mut page).await?;
            io::Result::Ok(String::from_utf8_lossy(&page).into_owned())
        };
        asking.await.expect("metrics")
    }

    /// Waits until a line that begins so is among them.
    pub async fn measured(&self, line: &str) {
        let found = || async {
            let page = self.metrics().await;
            page.lines().any(|one| one.starts_with(line)).then_some(())
        };
        eventually(line, found).await;
    }

    /// The same for logs and commands.
    pub async fn through_gateway(&self) -> Kubelet {
        let pipe = self.apiserver().pipe("10.0.0.1:10250").await;
        let own = Some(&self.gateway.front_end);
        let connecting = Kubelet::connect_as(pipe, node_ip(1), own, &self.gateway.issuer);
        expect("the gateway's handshake", connecting)
            .await
            .expect("the gateway takes kube-apiserver")
    }
}

/// One connection of kube-apiserver with what it takes for a kubelet.
pub struct FrontEnd {
    stream: TlsStream<Pipe>,
    rest: Vec<u8>,
}

/// An answer, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The status line and headers.
    pub head: String,
    /// The body.
    pub body: String,
}

impl Reply {
    /// The number.
    pub fn status(&self) -> u16 {
        let code = self.head.get(9..12).and_then(|code| code.parse().ok());
        code.unwrap_or(0)
    }

    /// What kubectl prints of a `Status` object that is whole and right.
    pub fn sentence(&self) -> String {
        let status: serde_json::Value =
            serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"));
        assert_eq!(status["kind"], "Status", "{self:?}");
        assert_eq!(status["apiVersion"], "v1", "{self:?}");
        assert_eq!(status["status"], "Failure", "{self:?}");
        assert_eq!(status["code"], self.status(), "{self:?}");
        status["message"].as_str().unwrap_or_default().to_owned()
    }
}

impl FrontEnd {
    /// TLS inside an open dial, as kube-apiserver does it.
    pub async fn connect(
        pipe: Pipe,
        name: ServerName<'static>,
        kit: &GatewayKit,
    ) -> io::Result<Self> {
        Self::connect_with(
            pipe,
            name,
            &client_config(Some(&kit.front_end), &kit.issuer),
        )
        .await
    }

    /// The same with a certificate, root and protocols of the scenario's choice.
    pub async fn connect_with(
        pipe: Pipe,
        name: ServerName<'static>,
        config: &rustls::ClientConfig,
    ) -> io::Result<Self> {
        let connector = TlsConnector::from(Arc::new(config.clone()));
        Ok(Self {
            stream: connector.connect(name, pipe).await?,
            rest: Vec::new(),
        })
    }

    /// As [`connect`](Self::connect), to an address.
    pub async fn to(pipe: Pipe, ip: IpAddr, kit: &GatewayKit) -> Self {
        let connecting = Self::connect(pipe, ServerName::from(ip), kit);
        expect("the gateway's handshake", connecting)
            .await
            .expect("the gateway takes kube-apiserver")
    }

    /// The certificate that was shown.
    pub fn shown(&self) -> CertificateDer<'static> {
        let chain = self.stream.get_ref().1.peer_certificates();
        chain.expect("a chain")[0].clone()
    }

    /// Sends bytes as they are.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref()).await?;
        self.stream.flush().await
    }

    /// A request without a body, and its answer.
    pub async fn ask(&mut self, method: &str, path: &str) -> Reply {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: node\r\nUser-Agent: kit\r\n\r\n");
        self.send(request).await.expect("the request is taken");
        self.reply().await
    }

    /// The next answer, whole.
    pub async fn reply(&mut self) -> Reply {
        expect("the answer", self.try_reply())
            .await
            .expect("an answer")
    }

    /// The next answer, if one comes.
    pub async fn try_reply(&mut self) -> io::Result<Reply> {
        let head = self.until(b"\r\n\r\n").await?;
        let head = String::from_utf8_lossy(&head).into_owned();
        let header = |name: &str| {
            head.lines()
                .filter_map(|line| line.split_once(": "))
                .find(|(key, _)| key.eq_ignore_ascii_case(name))
                .map(|(_, value)| value.to_owned())
        };
        let mut body = Vec::new();
        if header("transfer-encoding").is_some() {
            loop {
                let chunk = self.chunk().await?;
                if chunk.is_empty() {
                    break;
                }
                body.extend(chunk);
            }
        } else if let Some(length) = header("content-length") {
            body = self.take(length.parse().map_err(io::Error::other)?).await?;
        }
        Ok(Reply {
            head,
            body: String::from_utf8_lossy(&body).into_owned(),
        })
    }

    /// The head of the next answer.
    pub async fn head(&mut self) -> String {
        let head = expect("a head", self.until(b"\r\n\r\n")).await;
        String::from_utf8_lossy(&head.expect("a head")).into_owned()
    }

    /// The next chunk of a chunked body; empty at its end.
    pub async fn chunk(&mut self) -> io::Result<Vec<u8>> {
        let size = self.until(b"\r\n").await?;
        let size = String::from_utf8_lossy(&size);
        let size = usize::from_str_radix(size.trim(), 16).map_err(io::Error::other)?;
        let mut chunk = self.take(size + 2).await?;
        chunk.truncate(size);
        Ok(chunk)
    }

    /// So many bytes.
    pub async fn take(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.rest.len() < count {
            self.more().await?;
        }
        Ok(self.rest.drain(..count).collect())
    }

    /// Bytes up to and with `end`.
    pub async fn until(&mut self, end: &[u8]) -> io::Result<Vec<u8>> {
        loop {
            let found = self.rest.windows(end.len()).position(|one| one == end);
            if let Some(at) = found {
                return Ok(self.rest.drain(..at + end.len()).collect());
            }
            self.more().await?;
        }
    }

    async fn more(&mut self) -> io::Result<()> {
        match self.stream.read_buf(&mut self.rest).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// How the other side ends: in order, or not.
    pub async fn end(&mut self) -> io::Result<()> {
        let ending = async {
            loop {
                self.rest.clear();
                if self.stream.read_buf(&mut self.rest).await? == 0 {
                    return Ok(());
                }
            }
        };
        expect("the end", ending).await
    }

    /// The bytes themselves, when none were read ahead.
    pub fn into_stream(self) -> TlsStream<Pipe> {
        assert!(self.rest.is_empty(), "bytes were read ahead");
        self.stream
    }

    /// Ends our direction.
    pub async fn finish(&mut self) -> io::Result<()> {
        self.stream.shutdown().await
    }
}
