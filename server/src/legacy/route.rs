//! When the dialer asks a legacy agent, and how.
//!
//! | target | who is asked |
//! |---|---|
//! | owned by a verified agent (its node, its prefix) | that agent and nobody else, also while it has no link; with `--allow-downgrade` a legacy agent while it has none |
//! | pod or service, some verified gateway is linked | a gateway |
//! | anything else, and none of the above | a legacy agent, by `--proxy-strategies` |

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use towline_link::carrier::Stream;
use towline_proto::reason::Reason;
use towline_proto::target::Target;

use super::error::DialFailure;
use super::stream::{AgentStream, Place};
use super::table::LegacyAgents;

/// What the dialer has to know about legacy agents.
#[derive(Clone, Debug)]
pub struct LegacyRoute {
    /// Who is there.
    pub agents: LegacyAgents,
    /// Dials of one stream at once.
    pub per_stream: usize,
    /// `--backend-dial-timeout`; an agent that takes no request within it loses its stream.
    pub answer_within: Option<Duration>,
    /// `--allow-downgrade`: a target whose verified owner has no link may go to a legacy agent.
    pub downgrade: bool,
}

/// A dial that a legacy agent opened.
pub struct LegacyDial {
    /// Through which stream.
    pub through: Arc<AgentStream>,
    /// The pipe.
    pub stream: Stream,
    /// Its place among those of the stream.
    pub place: Place,
}

impl LegacyRoute {
    /// Asks for a connection, once more with somebody else when the first never heard of it.
    /// `None`: there is nobody to ask.
    pub async fn dial(
        &self,
        target: &Target,
        turn: usize,
        deadline: Instant,
    ) -> Option<Result<LegacyDial, (Arc<AgentStream>, DialFailure)>> {
        let until = match self.answer_within {
            Some(within) => deadline.min(Instant::now() + within),
            None => deadline,
        };
        let first = self.agents.pick(&target.host, turn, None)?;
        let failed = match self.ask(&first, target, until).await {
            Ok(dial) => return Some(Ok(dial)),
            Err(failure) => failure,
        };
        let again = turn.wrapping_add(1);
        let second = match failed.reached || Instant::now() >= until {
            true => None,
            false => self.agents.pick(&target.host, again, Some(first.serial())),
        };
        let Some(second) = second else {
            return Some(Err((first, failed)));
        };
        let asked = self.ask(&second, target, until).await;
        Some(asked.map_err(|failure| (second, failure)))
    }

    async fn ask(
        &self,
        through: &Arc<AgentStream>,
        target: &Target,
        until: Instant,
    ) -> Result<LegacyDial, DialFailure> {
        let asked = through.dial(target, self.per_stream, until).await;
        if let Err(failure) = &asked
            && failure.reason == Reason::DialTimeout
            && !failure.reached
            && self.answer_within.is_some()
        {
            through.end(Reason::PeerSilent);
        }
        asked.map(|(stream, place)| LegacyDial {
            through: Arc::clone(through),
            stream,
            place,
        })
    }
}
