//! Succession: a crash between any two file operations of a step is repaired by the next run, and
//! at every moment in between the seat signs and everything in use is trusted.

use std::time::Duration;

use super::*;
use crate::hierarchy::Layout;
use crate::key::{KeyKind, PrivateKey};
use crate::passphrase::PassphraseSource;
use crate::store::tests::{Scratch, fail_after};

const DAYS: u64 = 30;

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000)
}

fn nobody() -> Passphrases {
    Passphrases::new(PassphraseSource::Terminal, "")
}

fn made(seat: Seat) -> Authority {
    let key = PrivateKey::generate(KeyKind::EcdsaP256).unwrap();
    Authority::create(&seat.spec("c", now(), DAYS), key).unwrap()
}

/// A directory with a current and a next authority.
fn prepared(seat: Seat) -> (Scratch, Layout, [CertificateDer<'static>; 2]) {
    let dir = Scratch::new();
    let layout = Layout::new(&dir.path(""));
    for folder in ["root", "issuers", "trust"] {
        store::make_private_directory(&dir.path(folder)).unwrap();
    }
    let authorities = [made(seat), made(seat)];
    for (authority, generation) in authorities
        .iter()
        .zip([Generation::Current, Generation::Next])
    {
        let key = layout.key(seat, generation);
        store::write_secret(&key, &authority.key_to_pem(), Replace::Never).unwrap();
        let cert = layout.cert(seat, generation);
        store::write_public(&cert, &authority.to_pem(), Replace::Never).unwrap();
    }
    trust(&layout, seat).unwrap();
    (
        dir,
        layout,
        authorities.map(|authority| authority.der().clone()),
    )
}

fn trusts(layout: &Layout, seat: Seat) -> Vec<CertificateDer<'static>> {
    layout
        .trust(seat)
        .map_or_else(Vec::new, |path| store::read_certificates(&path).unwrap())
}

#[test]
fn an_activation_is_finished_by_the_next_run_wherever_it_stopped() {
    for seat in Seat::ALL {
        let mut crashes = 0;
        loop {
            let (_dir, layout, [old, new]) = prepared(seat);
            fail_after(Some(crashes));
            let first = activate(&layout, seat, &mut nobody(), now());
            fail_after(None);
            // In between: it signs, with one of the two, and both are trusted.
            let signing = open(&layout, seat, &mut nobody(), now()).unwrap();
            assert!([&old, &new].contains(&signing.der()), "{seat} {crashes}");
            if seat != Seat::Root {
                let bundle = trusts(&layout, seat);
                assert!(
                    bundle.contains(&old) && bundle.contains(&new),
                    "{seat} {crashes}"
                );
            }
            if first.is_ok() {
                break;
            }
            crashes += 1;
            if Stage::of(&layout, seat).has_next() {
                activate(&layout, seat, &mut nobody(), now()).unwrap();
            }
            let signing = open(&layout, seat, &mut nobody(), now()).unwrap();
            assert_eq!(signing.der(), &new, "{seat} {crashes}");
            let kept = layout.read_cert(seat, Generation::Old).unwrap();
            assert_eq!(kept.as_ref(), Some(&old), "{seat} {crashes}");
            assert!(layout.key(seat, Generation::Old).exists());
            assert!(!Stage::of(&layout, seat).has_next());
        }
        assert!(crashes >= 4, "{seat}: {crashes} operations");
    }
}

#[test]
fn a_retirement_is_finished_by_the_next_run_wherever_it_stopped() {
    for seat in Seat::ALL {
        let mut crashes = 0;
        loop {
            let (_dir, layout, [_, new]) = prepared(seat);
            activate(&layout, seat, &mut nobody(), now()).unwrap();
            fail_after(Some(crashes));
            let first = retire(&layout, seat);
            fail_after(None);
            if seat != Seat::Root {
                assert!(trusts(&layout, seat).contains(&new), "{seat} {crashes}");
            }
            if first.is_ok() {
                break;
            }
            crashes += 1;
            retire(&layout, seat).unwrap();
            assert!(!Stage::of(&layout, seat).has_old(), "{seat} {crashes}");
            if seat != Seat::Root {
                assert_eq!(trusts(&layout, seat), [new], "{seat} {crashes}");
            }
        }
        assert!(crashes >= 2, "{seat}: {crashes} operations");
    }
}

#[test]
fn steps_out_of_order_are_refused_and_change_nothing() {
    let (_dir, layout, _) = prepared(Seat::Agents);
    assert!(matches!(
        retire(&layout, Seat::Agents),
        Err(SuccessionError::NoOld { .. })
    ));
    activate(&layout, Seat::Agents, &mut nobody(), now()).unwrap();
    assert!(matches!(
        may_prepare(&layout, Seat::Agents),
        Err(SuccessionError::OldThere { .. })
    ));
    assert!(matches!(
        activate(&layout, Seat::Agents, &mut nobody(), now()),
        Err(SuccessionError::NoNext { .. })
    ));
    retire(&layout, Seat::Agents).unwrap();
    assert!(may_prepare(&layout, Seat::Agents).is_ok());
    assert!(matches!(
        activate(&layout, Seat::Agents, &mut nobody(), now()),
        Err(SuccessionError::NoNext { .. })
    ));
}

#[test]
fn a_next_key_that_is_not_its_certificates_is_not_activated() {
    let (_dir, layout, [old, _]) = prepared(Seat::Agents);
    let key = layout.key(Seat::Agents, Generation::Next);
    let other = made(Seat::Agents).key_to_pem();
    store::write_secret(&key, &other, Replace::Atomically).unwrap();
    assert!(activate(&layout, Seat::Agents, &mut nobody(), now()).is_err());
    let signing = open(&layout, Seat::Agents, &mut nobody(), now()).unwrap();
    assert_eq!(signing.der(), &old);
    assert!(!Stage::of(&layout, Seat::Agents).has_old());
}
