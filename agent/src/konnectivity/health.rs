//! The readiness page of Konnectivity's proxy-agent, to the letter.

use towline_link::process::compat::Page;

/// `connected`: whether there is a line to one server at least.
pub fn ready(connected: bool, verbose: bool) -> Page {
    let (status, text) = match (connected, verbose) {
        (true, false) => (200, "ok"),
        (true, true) => (200, "[+]ping ok\n[+]server-connected ok\ncheck passed\n"),
        (false, _) => (
            503,
            "[+]ping ok\n[-]server-connected failed: no servers connected\n",
        ),
    };
    Page {
        status,
        text: text.to_owned(),
    }
}
