//! Who gets no certificate, and which certificates count no more: by the deny list and the revocation
//! lists of the directory.

use std::collections::HashSet;
use std::path::Path;

use super::layout;
use super::present::PresentError;
use crate::crl::List;
use crate::identity::Identity;
use crate::inspect::Certificate;
use crate::revoke::DenyList;
use crate::serial::Serial;
use crate::store;

/// See the head of this file. The default knows of nothing.
#[derive(Default)]
pub(super) struct Revoked {
    denied: DenyList,
    serials: HashSet<Serial>,
}

impl Revoked {
    /// Files that are not there say nothing; damaged ones are errors.
    pub(super) fn read(dir: &Path) -> Result<Self, PresentError> {
        let denied = dir.join(layout::DENIED);
        let mut read = Self::default();
        if store::is_there(&denied) {
            read.denied = DenyList::load(&denied)?;
        }
        for list in layout::REVOCATION_LISTS {
            let path = dir.join(list);
            if store::is_there(&path) {
                for list in List::load(&path)? {
                    let serials = list.entries().iter().map(|entry| entry.serial.clone());
                    read.serials.extend(serials);
                }
            }
        }
        Ok(read)
    }

    /// The identity among these names that is denied.
    pub(super) fn denies(&self, uris: &[String]) -> Option<Identity> {
        let mut identities = uris.iter().filter_map(|uri| uri.parse().ok());
        identities.find(|identity| self.denied.has_identity(identity))
    }

    /// Whether this certificate counts no more.
    pub(super) fn has(&self, certificate: &Certificate) -> bool {
        self.serials.contains(&certificate.serial) || self.denied.has_serial(&certificate.serial)
    }
}
