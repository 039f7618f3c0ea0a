//! What is done once a server was found to speak `towline/1`: a link is kept to it as to any
//! other, on quic where that works. With `--allow-downgrade` it is looked now and then, while
//! there is no link, whether the server has gone back to the legacy protocol.

use std::sync::Arc;

use towline_link::process::drain::DrainWatch;
use towline_proto::limits;
use tracing::{info, warn};

use super::attempt::Attempts;
use crate::attempt::Keeping;
use crate::links::Links;
use crate::reconnect::Keeper;

/// Everything that a keeper of the link needs.
pub struct Towline {
    /// What all keepers share.
    pub keeping: Arc<Keeping>,
    /// Where the link is listed.
    pub links: Links,
    /// At which place.
    pub index: usize,
}

impl Towline {
    /// Keeps a link. Ends when the agent stops, or when the server speaks the legacy protocol
    /// again and that is allowed.
    pub(super) async fn keep(&self, attempts: &Attempts, drain: &DrainWatch) {
        let slot = self.links.slot(self.index);
        let server = slot.server().clone();
        self.links.use_slot(self.index, true);
        let keeper = Keeper::new(Arc::clone(&self.keeping), slot, drain.clone());
        if !attempts.config.allow_downgrade {
            info!(%server, "only towline/1 is spoken to this server (--allow-downgrade would change that)");
            return Box::pin(keeper.run()).await;
        }
        tokio::select! {
            () = Box::pin(keeper.run()) => {}
            () = self.went_back(attempts) => {
                warn!(%server, "the server speaks the legacy protocol again, and --allow-downgrade is given: it is not verified any more");
                self.links.use_slot(self.index, false);
            }
        }
    }

    async fn went_back(&self, attempts: &Attempts) {
        loop {
            tokio::time::sleep(limits::LEGACY_LOOK).await;
            if !self.links.is_ready(self.index) && attempts.is_legacy().await {
                return;
            }
        }
    }
}
