//! Every way to change a trail, and what the proof says of it.

use std::path::PathBuf;

use towline_pki::seal;
use towline_pki::store::{self, Replace};
use towline_pki::{KeyKind, PrivateKey, SealKey, SealPublic, pem};

use super::chain::{Chain, Head};
use super::verify::{Fault, Findings, Kind, Verifier, Wanted, fuzz_verify};

/// A key in files, as the server reads it.
pub(super) fn key() -> (SealKey, SealPublic) {
    let path = |end: &str| -> PathBuf {
        let name = format!("towline-audit-{}-{:p}.{end}", std::process::id(), &end);
        std::env::temp_dir().join(name)
    };
    let (secret, public) = (path("key"), path("pub"));
    let made = PrivateKey::generate(KeyKind::Ed25519).unwrap();
    store::write_secret(&secret, &made.to_pem(), Replace::Atomically).unwrap();
    let text = pem::write_public_key(made.public().der());
    store::write_public(&public, &text, Replace::Atomically).unwrap();
    let pair = (
        SealKey::load(&secret).unwrap(),
        SealPublic::load(&public).unwrap(),
    );
    std::fs::remove_file(secret).unwrap();
    std::fs::remove_file(public).unwrap();
    pair
}

const TRAIL: &str = "0123456789abcdef0123456789abcdef";

fn sign(chain: &mut Chain, key: &SealKey, out: &mut Vec<u8>) {
    let head = chain.head();
    let fields = format!(
        "\"time\":\"2026-11-21T04:00:00.000000Z\",\"event\":\"checkpoint\",\"trail\":\"{TRAIL}\",\
         \"head\":\"{head}\",\"key\":\"{}\"",
        key.public().id()
    );
    chain
        .append_sealed(&fields, |line| key.seal(line), out)
        .unwrap();
}

/// A trail of some records with a checkpoint behind the fifth and the last.
fn trail(key: &SealKey) -> Vec<Vec<u8>> {
    let mut chain = Chain::after(Head::NONE);
    let mut out = Vec::new();
    chain.append(
        &format!("\"event\":\"trail\",\"trail\":\"{TRAIL}\""),
        &mut out,
    );
    for number in 0..8 {
        chain.append(
            &format!("\"event\":\"start\",\"target\":\"n{number}:1\",\"bytes\":{number}"),
            &mut out,
        );
        if number == 3 {
            sign(&mut chain, key, &mut out);
        }
    }
    sign(&mut chain, key, &mut out);
    split(&out)
}

fn split(bytes: &[u8]) -> Vec<Vec<u8>> {
    bytes
        .split_inclusive(|byte| *byte == b'\n')
        .map(<[u8]>::to_vec)
        .collect()
}

fn prove_with(
    lines: &[Vec<u8>],
    keys: Vec<SealPublic>,
    head: Option<Head>,
) -> (Findings, Result<(), Fault>) {
    let mut verifier = Verifier::new(Wanted { keys, head });
    let pushed = verifier
        .file("t")
        .and_then(|()| verifier.push(&lines.concat()));
    match pushed {
        Ok(()) => verifier.finish(),
        Err(fault) => (verifier.findings().clone(), Err(fault)),
    }
}

fn fault_of(lines: &[Vec<u8>], public: &SealPublic) -> (u64, Kind) {
    let (_, result) = prove_with(lines, vec![public.clone()], None);
    let fault = result.expect_err("a fault");
    (fault.at.as_ref().map_or(0, |at| at.line), fault.kind)
}

#[test]
fn a_whole_trail_is_proven_to_its_last_checkpoint() {
    let (key, public) = key();
    let lines = trail(&key);
    let (findings, result) = prove_with(&lines, vec![public], None);
    assert_eq!(result, Ok(()));
    assert_eq!(
        (findings.records, findings.checkpoints, findings.runs),
        (11, 2, 1)
    );
    assert_eq!(findings.proven.map(|(seq, ..)| seq), Some(10));
}

#[test]
fn a_change_of_any_byte_of_any_line_is_found_at_its_line() {
    let (key, public) = key();
    let lines = trail(&key);
    for line in 0..lines.len() {
        for at in 0..lines[line].len() - 1 {
            let mut changed = lines.clone();
            changed[line][at] ^= 1;
            let (findings, result) = prove_with(&changed, vec![public.clone()], None);
            let Err(fault) = result else {
                // The very last line is no checkpoint any more, and nothing else vouches for it.
                assert_eq!(line + 1, lines.len(), "byte {at}");
                assert_eq!(findings.checkpoints, 1);
                continue;
            };
            let found = fault.at.unwrap().line;
            // Of the last two lines no third one tells which was changed.
            let near =
                found == line as u64 + 1 || (line + 1 == lines.len() && found == line as u64);
            assert!(near, "line {} byte {at}: {found} {}", line + 1, fault.text);
        }
    }
}

#[test]
fn lines_that_are_taken_out_put_in_or_moved_are_found() {
    let (key, public) = key();
    let lines = trail(&key);
    for line in 1..lines.len() - 1 {
        let mut cut = lines.clone();
        cut.remove(line);
        assert_eq!(
            fault_of(&cut, &public),
            (line as u64 + 1, Kind::Order),
            "taken out {line}"
        );
        let mut twice = lines.clone();
        twice.insert(line, lines[line].clone());
        assert_eq!(
            fault_of(&twice, &public),
            (line as u64 + 2, Kind::Order),
            "twice {line}"
        );
        let mut moved = lines.clone();
        moved.swap(line - 1, line);
        let (found, _) = fault_of(&moved, &public);
        assert!(
            (line as u64..=line as u64 + 1).contains(&found),
            "moved {line}: {found}"
        );
    }
    let mut foreign = lines.clone();
    foreign.insert(3, b"hello\n".to_vec());
    assert_eq!(fault_of(&foreign, &public), (4, Kind::Changed));
}

#[test]
fn mended_hashes_do_not_help_without_the_key() {
    let (key, public) = key();
    let (other, _) = self::key();
    let fields = |line: &[u8]| {
        let text = String::from_utf8(line.to_vec()).unwrap();
        let at = text
            .find(",\"event\"")
            .or_else(|| text.find(",\"time\""))
            .unwrap();
        text[at + 1..text.len() - 2].to_owned()
    };
    let lines = trail(&key);
    // Line 3 says something else, and every hash behind it is made anew.
    let forge = |signer: Option<&SealKey>| {
        let mut chain = Chain::after(Head::NONE);
        let mut out = Vec::new();
        for (number, line) in lines.iter().enumerate() {
            let mut text = fields(line);
            if number == 2 {
                text = text.replace("n1:1", "n9:9");
            }
            match signer {
                Some(key) if text.contains("checkpoint") => sign(&mut chain, key, &mut out),
                _ => chain.append(&text, &mut out),
            }
        }
        split(&out)
    };
    // Copied checkpoints are of other lines; signed by another key they name it; left out they
    // are missed.
    assert_eq!(fault_of(&forge(None), &public), (6, Kind::Signature));
    assert_eq!(
        fault_of(&forge(Some(&other)), &public),
        (6, Kind::Signature)
    );
    assert!(prove_with(&forge(Some(&key)), vec![public], None).1.is_ok());
}

#[test]
fn the_end_that_was_cut_off_is_missed_by_its_head() {
    let (key, public) = key();
    let lines = trail(&key);
    let head = Head {
        seq: 11,
        hash: seal::sha256(&lines[10]),
    };
    let prove = |lines: &[Vec<u8>], head| prove_with(lines, vec![public.clone()], Some(head)).1;
    assert_eq!(prove(&lines, head), Ok(()));
    let cut = prove(&lines[..8], head).unwrap_err();
    assert_eq!(cut.kind, Kind::Head);
    assert!(cut.text.contains("ends at line 8"), "{cut}");
    let other = Head {
        hash: [1; 32],
        ..head
    };
    assert_eq!(prove(&lines, other).unwrap_err().kind, Kind::Head);
    let before = Head { seq: 1, ..head };
    assert_eq!(prove(&lines[3..], before).unwrap_err().kind, Kind::Head);
    // Without it, what is left is whole.
    assert!(
        prove_with(&lines[..8], vec![public.clone()], None)
            .1
            .is_ok()
    );
}

#[test]
fn nothing_signed_is_nothing_proven() {
    let (key, public) = key();
    let lines = trail(&key);
    let (_, result) = prove_with(&lines[..4], vec![public.clone()], None);
    assert_eq!(result.unwrap_err().kind, Kind::Unsigned);
    assert!(prove_with(&lines[..4], Vec::new(), None).1.is_ok());
    let (_, result) = prove_with(&[], vec![public], None);
    assert!(result.is_err());
}

#[test]
fn a_long_stretch_without_a_checkpoint_is_one_that_was_taken_out() {
    let (key, public) = key();
    let mut chain = Chain::after(Head::NONE);
    let mut out = Vec::new();
    chain.append("\"event\":\"trail\"", &mut out);
    for _ in 0..1_000 {
        chain.append("\"event\":\"start\"", &mut out);
    }
    sign(&mut chain, &key, &mut out);
    assert_eq!(fault_of(&split(&out), &public), (1_001, Kind::Signature));
}

#[test]
fn a_torn_line_counts_only_as_the_next_process_tells_of_it() {
    let (key, public) = key();
    let lines = trail(&key);
    let torn = b"{\"seq\":12,\"pre\n".to_vec();
    let with = |bytes: u64, sha256: &str| {
        let mut chain = Chain::after(Head {
            seq: 11,
            hash: seal::sha256(&lines[10]),
        });
        let mut out = lines.concat();
        out.extend_from_slice(&torn);
        let told = format!(
            "\"event\":\"trail\",\"trail\":\"{TRAIL}\",\"torn\":{{\"bytes\":{bytes},\"sha256\":\"{sha256}\"}}"
        );
        chain.append(&told, &mut out);
        sign(&mut chain, &key, &mut out);
        split(&out)
    };
    let sha256 = seal::hex(&seal::sha256(&torn));
    let good = with(torn.len() as u64, &sha256);
    let (findings, result) = prove_with(&good, vec![public.clone()], None);
    assert_eq!(result, Ok(()));
    assert!(
        findings.notes[0].contains("t:12") && findings.notes[0].contains("tore"),
        "{:?}",
        findings.notes
    );
    assert_eq!(fault_of(&with(3, &sha256), &public), (12, Kind::Changed));
    assert_eq!(
        fault_of(&with(torn.len() as u64, &"0".repeat(64)), &public),
        (12, Kind::Changed)
    );
    let mut taken_out = good.clone();
    taken_out.remove(11);
    assert_eq!(fault_of(&taken_out, &public), (12, Kind::Changed));
    // At the very end it is a write under way, or a crash.
    let (findings, result) = prove_with(&good[..12], vec![public], None);
    assert_eq!((result, findings.notes.len()), (Ok(()), 1));
}

#[test]
fn cutting_bytes_up_changes_nothing() {
    let (key, public) = key();
    let lines = trail(&key);
    let whole = lines.concat();
    fuzz_verify(std::slice::from_ref(&public), &whole);
    for cut in 0..whole.len() {
        let mut data = whole.clone();
        data[cut] = data[cut].wrapping_add(1);
        data.truncate(whole.len() - cut % 300);
        fuzz_verify(std::slice::from_ref(&public), &data);
    }
    let long = [
        b"x".repeat(40_000),
        b"\n".to_vec(),
        whole.clone(),
        b"y".repeat(20_000),
    ]
    .concat();
    fuzz_verify(std::slice::from_ref(&public), &long);
    let (_, result) = prove_with(&[long], vec![public], None);
    assert!(result.is_err());
}
