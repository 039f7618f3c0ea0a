//! One seed's story: dials with a plan each, faults in between, then fair weather and the count.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use towline_link::carrier::CarrierKind;
use towline_link::driver::Link;
use towline_link::live::LiveDials;
use towline_link::quic::EndpointKeys;
use towline_tests::pattern::{self, Check};

use crate::chance::Chance;
use crate::local::Local;
use crate::network::{Network, Weather};
use crate::process::{self, AgentProcess, Current, Reached, ServerProcess, Trust};

const DIALS: u16 = 12;
/// From fair weather to a link that carries dials: dead-peer detection, a handshake that was
/// just going wrong, and the longest quick pause.
const HEALS_IN: Duration = Duration::from_secs(20);
/// No dial takes longer, whatever happens to it.
const DIAL_LIMIT: Duration = Duration::from_secs(300);

/// What a dial is going to do.
#[derive(Clone, Copy, Debug)]
struct Plan {
    begins: Duration,
    up: u64,
    down: u64,
    /// Between two pieces of nine kilobytes, so that faults meet dials in the middle.
    pause: Duration,
    /// The sender gives up here instead of ending.
    up_aborts: bool,
    down_aborts: bool,
}

impl Plan {
    fn draw(chance: &mut Chance) -> Self {
        Self {
            begins: chance.time(Duration::from_secs(30)),
            up: chance.below(400_000),
            down: chance.below(400_000),
            pause: if chance.per_mille(300) {
                Duration::ZERO
            } else {
                chance.time(Duration::from_millis(300))
            },
            up_aborts: chance.per_mille(100),
            down_aborts: chance.per_mille(100),
        }
    }
}

/// What one side of a dial saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    check: Check,
    /// An orderly end, after which no byte can follow.
    clean: bool,
}

/// What tells two runs apart.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    completed: usize,
    took: Duration,
}

/// Tells the story of `seed`; panics when an invariant breaks.
pub(crate) fn run(seed: u64, kind: CarrierKind, trust: &Arc<Trust>) -> Ending {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let ending = runtime.block_on(Box::pin(tell(Chance::new(seed), kind, trust)));
    runtime.shutdown_background();
    ending
}

struct World {
    kind: CarrierKind,
    network: Network,
    trust: Arc<Trust>,
    keys: EndpointKeys,
    chance: Chance,
    current: Arc<Current>,
    live: [LiveDials; 2],
    reached: mpsc::UnboundedSender<Reached>,
    server: Option<ServerProcess>,
    agent: Option<AgentProcess>,
    moves: u8,
}

impl World {
    fn start_server(&mut self) {
        self.server = None;
        let seed = self.chance.bytes();
        self.server = Some(ServerProcess::start(
            self.kind,
            &self.network,
            &self.trust,
            &self.keys,
            seed,
            &self.current,
        ));
    }

    fn start_agent(&mut self) {
        self.agent = None;
        let address = self.next_address();
        let chance = self.chance.split();
        self.agent = Some(AgentProcess::start(
            self.kind,
            &self.network,
            &self.trust,
            address,
            chance,
            &self.live[1],
            &self.reached,
        ));
    }

    fn next_address(&mut self) -> SocketAddr {
        self.moves += 1;
        SocketAddr::from(([10, 0, 1, self.moves], 40_000))
    }

    /// One thing goes wrong, or better.
    async fn fault(&mut self) {
        let mut weather = self.network.weather();
        match self.chance.below(8) {
            0 => weather.loss = self.chance.below(80),
            1 => {
                (weather.delay, weather.jitter) =
                    (self.chance.time(Duration::from_millis(80)), Duration::ZERO)
            }
            2 => weather.jitter = self.chance.time(Duration::from_millis(30)),
            3 => weather.doubled = self.chance.below(50),
            4 => {
                let cut = Weather {
                    cut: true,
                    ..weather
                };
                self.network.set(cut);
                sleep(self.chance.time(Duration::from_secs(14))).await;
            }
            5 => self.start_server(),
            6 => self.start_agent(),
            _ => match (self.kind, &self.agent) {
                (CarrierKind::Tls, _) | (_, None) => self.network.break_pipes(),
                (CarrierKind::Quic, Some(_)) => {
                    let address = self.next_address();
                    if let Some(agent) = &self.agent {
                        agent.move_to(&self.network, address);
                    }
                }
            },
        }
        self.network.set(weather);
    }
}

async fn tell(mut chance: Chance, kind: CarrierKind, trust: &Arc<Trust>) -> Ending {
    let began = Instant::now();
    let (reached, mut connections) = mpsc::unbounded_channel();
    let mut world = World {
        kind,
        network: Network::new(chance.split()),
        trust: Arc::clone(trust),
        keys: EndpointKeys::ephemeral().unwrap(),
        chance: chance.split(),
        current: Arc::new(watch::Sender::new(None)),
        live: [LiveDials::new(u64::MAX), LiveDials::new(u64::MAX)],
        reached,
        server: None,
        agent: None,
        moves: 0,
    };
    world.start_server();
    world.start_agent();

    let plans: Arc<BTreeMap<u16, Plan>> = Arc::new(
        (1..=DIALS)
            .map(|number| (number, Plan::draw(&mut chance)))
            .collect(),
    );
    // Faultless stories have to end well in every dial.
    let faults = chance.below(8);

    let targets = {
        let plans = Arc::clone(&plans);
        tokio::spawn(async move {
            let mut running = JoinSet::new();
            let mut seen = Vec::new();
            while let Some(Reached { number, end }) = connections.recv().await {
                let plan = plans.get(&number).copied();
                running.spawn(async move {
                    let plan = plan.unwrap_or(FINAL);
                    (
                        number,
                        converse(end, plan.down, plan.pause, plan.down_aborts).await,
                    )
                });
            }
            while let Some(result) = running.join_next().await {
                seen.push(result.unwrap());
            }
            seen
        })
    };

    let mut dials = JoinSet::new();
    for (number, plan) in plans.iter().map(|(number, plan)| (*number, *plan)) {
        let (current, live) = (Arc::clone(&world.current), world.live[0].clone());
        dials.spawn(async move {
            sleep(plan.begins).await;
            (number, attempt(&current, number, plan, &live).await)
        });
    }
    for _ in 0..faults {
        sleep(world.chance.time(Duration::from_secs(7))).await;
        world.fault().await;
    }

    world.network.set(Weather::FAIR);
    let last = timeout(HEALS_IN, final_dial(&world.current, &world.live[0])).await;
    let last =
        last.unwrap_or_else(|_| panic!("no dial worked within {HEALS_IN:?} of fair weather"));
    assert!(
        last.clean && last.check.is_exactly(FINAL.down),
        "the dial after the storm: {last:?}"
    );

    let mut front = BTreeMap::new();
    let all = timeout(DIAL_LIMIT, async {
        while let Some(result) = dials.join_next().await {
            let (number, seen) = result.unwrap();
            front.insert(number, seen);
        }
    });
    assert!(
        all.await.is_ok(),
        "dials hang: {} of {DIALS} ended",
        front.len()
    );
    nothing_left(&world).await;

    let sent_packets = world.network.sent();
    assert!(sent_packets > 0);
    drop((world.server.take(), world.agent.take()));
    drop(world);
    let back: Vec<_> = timeout(DIAL_LIMIT, targets)
        .await
        .expect("targets hang")
        .unwrap();
    let completed = judge(&plans, &front, &back, faults == 0);
    Ending {
        completed,
        took: began.elapsed(),
    }
}

/// The dial that proves that the link healed.
const FINAL: Plan = Plan {
    begins: Duration::ZERO,
    up: 70_000,
    down: 70_000,
    pause: Duration::ZERO,
    up_aborts: false,
    down_aborts: false,
};

async fn live_link(current: &Current) -> Link {
    let mut watching = current.subscribe();
    let link = watching
        .wait_for(Option::is_some)
        .await
        .expect("the world holds the sender");
    link.clone().expect("just looked")
}

/// One dial on the link there is; `None` when it was refused or lost before it opened.
async fn attempt(current: &Current, number: u16, plan: Plan, live: &LiveDials) -> Option<Seen> {
    let link = live_link(current).await;
    let mut splices = JoinSet::new();
    let end = process::dial(&link, number, live, &mut splices)
        .await
        .ok()?;
    drop(link);
    let seen = converse(end, plan.up, plan.pause, plan.up_aborts).await;
    while splices.join_next().await.is_some() {}
    Some(seen)
}

async fn final_dial(current: &Current, live: &LiveDials) -> Seen {
    loop {
        match attempt(current, 60_000, FINAL, live).await {
            Some(seen) if seen.clean => return seen,
            // The link was one that had died in the cut and was not noticed yet.
            _ => sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Sends `count` bytes and an end (or gives up), and reads to the end.
async fn converse(end: Local, count: u64, pause: Duration, aborts: bool) -> Seen {
    let (mut read, mut write) = tokio::io::split(end);
    let sending = async {
        let mut sent = 0;
        while sent < count {
            let piece = pattern::bytes(sent, (count - sent).min(9_000));
            if write.write_all(piece).await.is_err() {
                return;
            }
            sent += piece.len() as u64;
            sleep(pause).await;
        }
        if !aborts {
            let _ = write.shutdown().await;
        }
    };
    let mut check = Check::default();
    let reading = async {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            match read.read(&mut buffer).await {
                Ok(0) => return true,
                Ok(n) => check.feed(&buffer[..n]),
                Err(_) => return false,
            }
        }
    };
    if aborts {
        // Both halves go with the one that gives up: that is what a dying process does.
        let clean = tokio::select! {
            biased;
            () = sending => false,
            clean = reading => clean,
        };
        return Seen { check, clean };
    }
    let ((), clean) = tokio::join!(sending, reading);
    Seen { check, clean }
}

async fn nothing_left(world: &World) {
    let gone = timeout(Duration::from_secs(60), async {
        while !world.live.iter().all(LiveDials::is_empty) {
            sleep(Duration::from_millis(10)).await;
        }
    });
    let counts = || world.live.iter().map(LiveDials::len).collect::<Vec<_>>();
    assert!(
        gone.await.is_ok(),
        "live dials left at server and agent: {:?}",
        counts()
    );
    let link = live_link(&world.current).await;
    assert_eq!(link.dials(), 0, "dials left in the link's count");
}

/// Compares what both sides saw with what was planned.
fn judge(
    plans: &BTreeMap<u16, Plan>,
    front: &BTreeMap<u16, Option<Seen>>,
    back: &[(u16, Seen)],
    faultless: bool,
) -> usize {
    let mut completed = 0;
    for (number, plan) in plans {
        let told = |seen: &Seen, who: &str, wanted: u64, aborted: bool| {
            assert_eq!(
                seen.check.wrong_at, None,
                "dial {number}, {who}: {seen:?} of {plan:?}"
            );
            if seen.clean {
                assert!(
                    seen.check.is_exactly(wanted),
                    "dial {number}, {who}: a truncated end looked clean: {seen:?} of {plan:?}"
                );
                assert!(
                    !aborted,
                    "dial {number}, {who}: an abort looked clean: {seen:?} of {plan:?}"
                );
            } else {
                assert!(
                    seen.check.received <= wanted,
                    "dial {number}, {who}: {seen:?} of {plan:?}"
                );
            }
        };
        let ours = front.get(number).copied().flatten();
        let theirs: Vec<_> = back
            .iter()
            .filter(|(of, _)| of == number)
            .map(|(_, seen)| *seen)
            .collect();
        assert!(
            theirs.len() <= 1,
            "dial {number} reached its target {} times",
            theirs.len()
        );
        if let Some(seen) = &ours {
            told(seen, "front end", plan.down, plan.down_aborts);
        }
        for seen in &theirs {
            told(seen, "target", plan.up, plan.up_aborts);
        }
        let both = ours.is_some_and(|seen| seen.clean) && theirs.iter().all(|seen| seen.clean);
        if faultless && !plan.up_aborts && !plan.down_aborts {
            assert!(
                both,
                "dial {number} failed although nothing went wrong: {ours:?} {theirs:?} of {plan:?}"
            );
        }
        completed += usize::from(both);
    }
    completed
}
