//! The fuzz bodies over a generated corpus: good inputs, each cut, changed and joined in many
//! places. The mutations are the same in every run.

mod cluster;

use cluster::{Cluster, now};
use towline_pki::kubelet::{Expected, KubeletTrust, RevocationLists};
use towline_pki::{Request, fuzz, pem};
use towline_proto::id::Role;

/// Every way in which one input is spoilt.
fn spoilt(seed: &[u8]) -> Vec<Vec<u8>> {
    let mut out = vec![seed.to_vec(), Vec::new()];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below.max(1) as u64) as usize
    };
    for _ in 0..400 {
        let mut bytes = seed.to_vec();
        let at = next(bytes.len());
        match next(5) {
            0 => bytes.truncate(at),
            1 => bytes[at] = next(256) as u8,
            2 => bytes.insert(at, next(256) as u8),
            3 => {
                bytes.remove(at);
            }
            _ => {
                let from = next(bytes.len());
                let part = bytes[from.min(at)..from.max(at)].to_vec();
                bytes.splice(at..at, part);
            }
        }
        out.push(bytes);
    }
    out
}

#[test]
fn parsers_return_whatever_they_are_given() {
    let c = Cluster::new("prod");
    let mut leaf = c.leaf(Role::Agent, "n1");
    leaf.ips = vec!["10.0.0.1".parse().unwrap()];
    leaf.dns = vec!["a.example".into()];
    let paper = c.mint(Role::Agent, &leaf);
    let verifier = c.verifier(Role::Agent);
    let kubelets = KubeletTrust::new(c.anchors(Role::Agent), RevocationLists::default());
    let expected = Expected {
        node: "n1".parse().unwrap(),
        host: "10.0.0.1".parse().unwrap(),
    };
    for der in [paper.chain[0].as_ref(), c.root.der().as_ref()] {
        for bytes in spoilt(der) {
            fuzz::certificate(&bytes);
            fuzz::presented(&verifier, &bytes, now());
            fuzz::kubelet(&kubelets, &expected, &bytes, now());
            fuzz::revocation_list(&bytes);
        }
    }
    let texts = [
        pem::write_certificates(&paper.chain),
        Request::make(&paper.key, "x").unwrap(),
        String::from_utf8(paper.key.to_pem().expose().to_vec()).unwrap(),
    ];
    for bytes in texts.iter().flat_map(|text| spoilt(text.as_bytes())) {
        fuzz::pem(&bytes);
    }
    for bytes in spoilt(b"spiffe://prod.example/towline/agent/node-7") {
        fuzz::identity(&bytes);
    }
    for bytes in spoilt(b"0A:bc:12").into_iter().chain(spoilt(b"00ff")) {
        fuzz::identity(&bytes);
    }
    for bytes in spoilt(b"# x\nspiffe://prod/towline/agent/n7\nserial:0abc # y\r\n") {
        fuzz::deny_list(&bytes);
    }
}
