//! Every parser's fuzz body over a corpus: the files in `corpus/<name>/` (inputs that once were
//! interesting), and for each of them a few hundred mutations from a fixed seed. What a fuzzer
//! finds is added as a file and stays found.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Instant, SystemTime};

use towline_pki::kubelet::{Expected, KubeletTrust, RevocationLists};
use towline_pki::{Anchors, DenyList, PeerVerifier};
use towline_proto::control::{Hello, Message, Welcome};
use towline_proto::dial::{Dial, DialReply, DialRequest, Refused};
use towline_proto::id::{DialId, InstanceId, Role};
use towline_proto::reason::Reason;
use towline_proto::target::{Class, Host};
use towline_proto::version::{Capabilities, VERSION_MAX, VERSION_MIN};
use towline_tests::authority::Authority;

/// Mutations of each input.
const MUTATIONS: u64 = 300;

fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// One small damage: a flipped bit, an interesting byte, a cut, a doubling, bytes of chance.
fn mutate(input: &[u8], state: &mut u64) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=next(state) % 4 {
        let at = (next(state) % (bytes.len() as u64 + 1)) as usize;
        match next(state) % 6 {
            0 if at < bytes.len() => bytes[at] ^= 1 << (next(state) % 8),
            1 if at < bytes.len() => {
                bytes[at] = [0, 1, 0x7f, 0x80, 0xff, b'\n', b'"', b'%'][(next(state) % 8) as usize]
            }
            2 => bytes.truncate(at),
            3 => bytes.extend_from_within(at..),
            4 => bytes.insert(at, next(state) as u8),
            _ => {
                bytes.extend((0..next(state) % 16).map(|byte| (byte as u8).wrapping_mul(at as u8)))
            }
        }
        bytes.truncate(64 * 1024);
    }
    bytes
}

/// Runs `body` over the corpus of this name and over `more`.
fn over(name: &str, more: &[Vec<u8>], body: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(name);
    let mut inputs = more.to_vec();
    for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
        inputs.push(fs::read(entry.path()).expect("a readable corpus"));
    }
    inputs.push(Vec::new());
    assert!(
        inputs.len() > 1,
        "no corpus for {name} in {}",
        folder.display()
    );
    let mut state = 0x9e37_79b9_7f4a_7c15;
    let run = |input: &[u8]| {
        if catch_unwind(AssertUnwindSafe(|| body(input))).is_err() {
            panic!(
                "{name} panics on {input:?} (text {:?})",
                String::from_utf8_lossy(input)
            );
        }
    };
    for input in &inputs {
        run(input);
        for _ in 0..MUTATIONS {
            run(&mutate(input, &mut state));
        }
    }
}

fn hello() -> Hello {
    Hello {
        versions: (VERSION_MIN, VERSION_MAX),
        capabilities: Capabilities::OURS,
        instance: InstanceId::new(7).unwrap(),
        name: "n1".parse().unwrap(),
        addresses: vec!["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap()],
        prefixes: vec!["10.1.0.0/16".parse().unwrap()],
        software: "towline-agent 0.1.0".into(),
    }
}

fn control() -> Vec<Vec<u8>> {
    let welcome = Welcome {
        version: VERSION_MAX,
        capabilities: Capabilities::OURS,
        server: "s1".parse().unwrap(),
        servers: vec!["s1.example:8091".into()],
        routes: vec!["10.96.0.0/12".parse().unwrap()],
        max_dials: 4096,
        software: "towline-server 0.1.0".into(),
    };
    let hello = Message::Hello(hello()).encode();
    let welcome = Message::Welcome(welcome).encode();
    vec![[hello.clone(), welcome.clone()].concat(), hello, welcome]
}

#[test]
fn control_messages() {
    over("control", &control(), towline_proto::control::fuzz_control);
}

#[test]
fn sessions() {
    let now = Instant::now();
    over("control", &control(), |data| {
        towline_proto::session::fuzz_session(now, hello(), data)
    });
}

#[test]
fn dial_requests() {
    let request = DialRequest::Dial(Dial {
        id: DialId::new(7).unwrap(),
        target: "webhook.ns.svc:443".parse().unwrap(),
        class: Class::Service,
        timeout: std::time::Duration::from_secs(9),
        trace: None,
    });
    let refused = DialReply::Refused(Refused::new(Reason::TargetRefused)).encode();
    let bodies = [request.encode(), DialRequest::Probe.encode(), refused];
    let samples: Vec<_> = bodies
        .iter()
        .flat_map(|whole| [whole.clone(), whole[2..].to_vec()])
        .collect();
    over("dial", &samples, towline_proto::dial::fuzz_dial);
}

#[test]
fn enrolment() {
    use towline_proto::enrol::{EnrolReply, EnrolRequest, Proof, Refusal, Token};
    let token = || Token::new("eyJhbGciOi.x.y").unwrap();
    let proofs = [
        Proof::Certificate,
        Proof::ServiceAccount(token()),
        Proof::Join(token()),
    ];
    let mut samples: Vec<Vec<u8>> = Vec::new();
    for proof in proofs {
        let request = EnrolRequest {
            csr: vec![0x30, 0x03, 1, 2, 3],
            proof,
            name: Some("n1".parse().unwrap()),
            software: "towline-agent/0.1.0".into(),
        };
        samples.push(request.encode()[2..].to_vec());
    }
    for refusal in Refusal::all() {
        let text = refusal.to_string();
        samples.push(EnrolReply::Refused { refusal, text }.encode()[3..].to_vec());
    }
    samples.push(EnrolReply::Issued(vec![vec![0x30, 1], vec![0x30]]).encode()[3..].to_vec());
    over("enrol", &samples, towline_proto::enrol::fuzz_enrol);
}

#[test]
fn join_tokens() {
    over("join", &[], towline_pki::fuzz::join);
}

#[test]
fn multiplexer_frames() {
    let frames = vec![
        (0_u8..=255).collect(),
        vec![0; 64],
        (0..64).map(|at| at % 8).collect(),
    ];
    over("mux", &frames, towline_proto::mux::fuzz::fuzz_mux);
}

#[test]
fn targets() {
    over("target", &[], |data| {
        if let Ok(text) = std::str::from_utf8(data)
            && let Ok(target) = text.parse::<towline_proto::target::Target>()
        {
            assert_eq!(target.to_string().parse(), Ok(target));
        }
    });
}

#[test]
fn request_heads() {
    over("head", &[], towline_server::doors::head::fuzz_head);
}

#[test]
fn proxies_of_the_environment() {
    use towline_link::tls::HttpProxy;
    const SECRET: &str = "hunter2";
    let settings = [
        "http://proxy.example:3128\n10.0.0.0/8,.internal,cp.example:8091",
        "http://user:hunter2@[fd00::1]:3128/\n*",
        "proxy.example\n[fd00::1]:8091, cp.example.",
        "HTTP://us%65r:hunter2%40@10.0.0.1\n::1/128 10.0.0.1:99999",
    ];
    let servers = ["10.1.2.3:8091", "[fd00::1]:8091", "cp.example:8091"];
    over(
        "proxy",
        &settings.map(|text| text.as_bytes().to_vec()),
        |data| {
            let text = String::from_utf8_lossy(data);
            let (url, without) = text.split_once('\n').unwrap_or((&text, ""));
            let set = |name: &str| match name {
                "https_proxy" => Some(url.to_owned()),
                "no_proxy" => Some(without.to_owned()),
                _ => None,
            };
            for read in [
                HttpProxy::from_flag_or_env(Some(url), &set),
                HttpProxy::from_flag_or_env(None, &set),
            ] {
                // Whatever is wrong with it, a password goes nowhere.
                assert!(!format!("{read:?}").contains(SECRET));
                match read {
                    Ok(Some(proxy)) => {
                        for server in servers {
                            proxy.applies_to(&server.parse().expect("a target"));
                        }
                    }
                    Ok(None) => assert!(url.trim().is_empty()),
                    Err(error) => assert!(!error.to_string().contains(SECRET), "{error}"),
                }
            }
        },
    );
}

#[test]
fn values_of_flags() {
    use towline_link::process::values::{ByteSize, TimeSpan, listen_address, prefix};
    let values = [
        "1h30m0.5s",
        "300ms",
        "90",
        "512MiB",
        "64k",
        "0",
        "[::]:8091",
        "127.0.0.1:0",
        ":8091",
        "10.96.0.0/12",
        "fd00:96::/108",
        "10.0.0.1",
    ];
    over(
        "flag",
        &values.map(|text| text.as_bytes().to_vec()),
        |data| {
            let text = String::from_utf8_lossy(data);
            if let Ok(span) = text.parse::<TimeSpan>() {
                let again = span.to_string().parse::<TimeSpan>();
                assert_eq!(again.ok().map(|again| again.0), Some(span.0), "{text}");
            }
            if let Ok(size) = text.parse::<ByteSize>() {
                let again = size.to_string().parse::<ByteSize>();
                assert_eq!(again.ok().map(|again| again.0), Some(size.0), "{text}");
            }
            if let Ok(net) = prefix(&text) {
                assert_eq!(prefix(&net.to_string()).ok(), Some(net));
            }
            if let Ok(address) = listen_address(&text) {
                assert_eq!(listen_address(&address.to_string()).ok(), Some(address));
            }
        },
    );
}

#[test]
fn grants_files() {
    over("grants", &[], towline_server::grants::fuzz_grants);
}

#[test]
fn policy_files() {
    let body = towline_link::process::policy_file::fuzz_policy_file;
    over("policy", &[], body);
}

#[test]
fn certificates_and_keys() {
    let authority = Authority::new("fuzz.example");
    let pair = authority
        .leaf(Role::Agent, "n1")
        .ips(&[[10, 0, 0, 1].into()])
        .sign();
    let pems = [
        pair.cert_pem.clone().into_bytes(),
        pair.key_pem.clone().into_bytes(),
    ];
    over("pem", &pems, towline_pki::fuzz::pem);
    let der = [pair.chain[0].to_vec(), pair.chain[1].to_vec()];
    over("certificate", &der, towline_pki::fuzz::certificate);
    let anchors = Anchors::new(&[authority.issuer(Role::Agent).der().clone()]).unwrap();
    let verifier = PeerVerifier::new(
        "fuzz.example".parse().unwrap(),
        Role::Agent,
        anchors,
        DenyList::default(),
    );
    let now = SystemTime::now();
    over("certificate", &der, |data| {
        towline_pki::fuzz::presented(&verifier, data, now)
    });
}

#[test]
fn certificates_of_kubelets() {
    let authority = Authority::new("fuzz.example");
    let ip = [10, 0, 0, 1].into();
    let kubelet = authority.kubelet_leaf("n1", &[ip]).sign();
    let der = [kubelet.chain[0].to_vec(), kubelet.chain[1].to_vec()];
    let anchors = Anchors::new(&[authority.kubelets().der().clone()]).unwrap();
    let trust = KubeletTrust::new(anchors, RevocationLists::default());
    let expected = Expected {
        node: "n1".parse().unwrap(),
        host: Host::Ip(ip),
    };
    let now = SystemTime::now();
    over("kubelet_certificate", &der, |data| {
        towline_pki::fuzz::kubelet(&trust, &expected, data, now)
    });
    over("revocation_list", &der, towline_pki::fuzz::revocation_list);
}

#[test]
fn identities_and_deny_lists() {
    over("identity", &[], towline_pki::fuzz::identity);
    over("deny_list", &[], towline_pki::fuzz::deny_list);
}

#[test]
fn audit_trails() {
    use towline_server::audit::chain::{Chain, Head};
    use towline_server::audit::{tail, verify};
    let mut chain = Chain::after(Head::NONE);
    let mut trail = Vec::new();
    let name = "0".repeat(32);
    for event in ["trail", "start", "end", "checkpoint", "gap", "rotate"] {
        let fields = format!("\"event\":\"{event}\",\"trail\":\"{name}\",\"dropped\":7");
        chain.append(&fields, &mut trail);
    }
    let torn = [&trail[..], b"{\"seq\":7,\"prev\":\"00"].concat();
    let samples = [trail.clone(), torn, trail[100..].to_vec()];
    over("audit", &samples, |data| verify::fuzz_verify(&[], data));
    over("audit", &samples, tail::fuzz_tail);
}

#[test]
fn requests_of_the_gateway() {
    over("http1", &[], towline_proto::http1::fuzz::exchange);
}

#[test]
fn paths_of_kubelets() {
    use towline_proto::kubelet::{Call, Effect, Rules, Verb, Verdict};
    use towline_proto::limits;
    let all = Rules::new(Effect::Allow, Vec::new()).unwrap();
    over("kubelet_path", &[], |data| {
        let call = Call::of(&String::from_utf8_lossy(data));
        for name in [&call.namespace, &call.pod, &call.container] {
            let chars = name.as_ref().map_or(0, |name| name.chars().count());
            assert!(chars <= limits::GATEWAY_NAME_BYTES);
        }
        let words: usize = call.command.iter().map(String::len).sum();
        assert!(words <= limits::GATEWAY_COMMAND_BYTES);
        let odd = call.verb == Verb::Unknown || call.ambiguity.is_some();
        let refused = matches!(all.judge(&call, "n1"), Verdict::Refused(_));
        assert_eq!(odd, refused);
    });
}
