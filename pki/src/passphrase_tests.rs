//! Passphrases: files, descriptors, and a person at a terminal of the kernel's own making.

use std::os::unix::fs::PermissionsExt;

use rustix::pty::{self, OpenptFlags};

use super::*;
use crate::store::tests::Scratch;

fn of(path: &Path) -> Passphrases {
    Passphrases::new(PassphraseSource::File(path.to_owned()), "")
}

fn write(dir: &Scratch, text: &[u8]) -> PathBuf {
    let path = dir.path("passphrase");
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

#[test]
fn the_first_line_of_a_file_is_the_passphrase() {
    let dir = Scratch::new();
    for (text, expected) in [
        (&b"correct horse\n"[..], "correct horse"),
        (b"correct horse", "correct horse"),
        (b"correct horse\r\nsecond line\n", "correct horse"),
        (b" spaces count \n", " spaces count "),
    ] {
        let path = write(&dir, text);
        let mut source = of(&path);
        let read = source.open(Path::new("a.key")).unwrap();
        assert_eq!(read.expose(), expected.as_bytes());
    }
}

#[test]
fn what_is_no_passphrase_is_refused_with_the_files_name() {
    let dir = Scratch::new();
    for (text, word) in [
        (&b""[..], "empty"),
        (b"\nsecond\n", "empty"),
        (b"a\0b\n", "zero byte"),
        (&[b'x'; limits::PASSPHRASE_BYTES + 1], "more than"),
    ] {
        let path = write(&dir, text);
        let error = of(&path).open(Path::new("a.key")).unwrap_err().to_string();
        assert!(
            error.contains(word) && error.contains("passphrase"),
            "{error}"
        );
    }
    let path = write(&dir, b"shorter\n");
    assert!(of(&path).open(Path::new("a.key")).is_ok());
    let error = of(&path).choose("a.key").unwrap_err().to_string();
    assert!(error.contains("fewer than 8"), "{error}");
}

#[test]
fn a_passphrase_that_others_can_read_is_refused() {
    let dir = Scratch::new();
    let path = write(&dir, b"correct horse\n");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = of(&path).open(Path::new("a.key")).unwrap_err().to_string();
    assert!(error.contains("chmod 0600"), "{error}");
}

#[test]
fn a_descriptor_is_read_once_and_kept() {
    let dir = Scratch::new();
    let path = write(&dir, b"correct horse\n");
    let file = File::open(path).unwrap();
    let number = u32::try_from(std::os::fd::AsRawFd::as_raw_fd(&file)).unwrap();
    let mut source = Passphrases::new(PassphraseSource::Descriptor(number), "");
    for _ in 0..2 {
        let read = source.open(Path::new("a.key")).unwrap();
        assert_eq!(read.expose(), b"correct horse");
    }
    let mut closed = Passphrases::new(PassphraseSource::Descriptor(9_999), "");
    let error = closed.open(Path::new("a.key")).unwrap_err().to_string();
    assert!(error.contains("descriptor 9999"), "{error}");
}

/// Types at a terminal; returns what was read, what the terminal showed, and whether it is as
/// before.
fn at_terminal(typed: &[u8]) -> (Option<Vec<u8>>, String, bool) {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
    let person = pty::openpt(flags).unwrap();
    pty::grantpt(&person).unwrap();
    pty::unlockpt(&person).unwrap();
    let name = pty::ptsname(&person, Vec::new()).unwrap();
    let mut terminal = File::options()
        .read(true)
        .write(true)
        .open(name.to_str().unwrap())
        .unwrap();
    let echoes = |terminal: &File| {
        let modes = termios::tcgetattr(terminal).unwrap().local_modes;
        modes.contains(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG)
    };
    assert!(echoes(&terminal));
    let mut person = File::from(person);
    let prompter = std::thread::spawn(move || {
        let line = ask(&mut terminal, "passphrase: ").unwrap();
        (line, terminal)
    });
    // What is typed before the prompt is thrown away, so it is waited for.
    let mut shown = Vec::new();
    let mut byte = [0];
    while !shown.ends_with(b"passphrase: ") {
        person.read_exact(&mut byte).unwrap();
        shown.push(byte[0]);
    }
    person.write_all(typed).unwrap();
    while shown.last() != Some(&b'\n') {
        person.read_exact(&mut byte).unwrap();
        shown.push(byte[0]);
    }
    let (line, terminal) = prompter.join().unwrap();
    let line = line.map(|line| line.to_vec());
    let shown = String::from_utf8_lossy(&shown).into_owned();
    (line, shown, echoes(&terminal))
}

#[test]
fn a_person_types_and_nothing_is_shown() {
    for (typed, expected) in [
        (&b"correct horse\r"[..], Some("correct horse")),
        (b"wrong\x15right\n", Some("right")),
        (b"horsr\x7fe\n", Some("horse")),
        ("h\u{f6}\x7forse\n".as_bytes(), Some("horse")),
        (b"\n", Some("")),
        (b"abc\x03", None),
        (b"\x04", None),
    ] {
        let (line, shown, restored) = at_terminal(typed);
        assert_eq!(line.as_deref(), expected.map(str::as_bytes), "{typed:?}");
        assert_eq!(shown.trim_end(), "passphrase:", "{typed:?}");
        assert!(restored, "{typed:?}");
    }
}
