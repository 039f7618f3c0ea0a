//! The whole server in start order, and in stop order.
//!
//! Stop: on the first signal doors and carriers close their listeners, agents are told that no
//! new dials come, readiness turns; live dials go on to their end or the deadline; then links
//! say goodbye. On the second signal, or at the deadline, dials are ended with a reason.

mod running;

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::SystemTime;

use prometheus_client::registry::Registry;
use tokio::task::JoinSet;
use towline_link::live::LiveDials;
use towline_link::process::accept::AcceptMetrics;
use towline_link::process::admin::{Admin, AdminParts};
use towline_link::process::drain::{Drain, DrainView};
use towline_link::process::live::LiveProbe;
use towline_link::process::panics;
use towline_link::process::ready::Readiness;
use towline_link::process::reload::{self, ReloadMetrics};
use towline_link::process::watch::{Seen, Watch};
use towline_link::process::{expiry, revocation};
use towline_link::quic::QuicListener;
use towline_proto::reason::Reason;

use crate::agents::Agents;
use crate::attest::report::Reporter;
use crate::attest::{AttestMetrics, Attestor};
use crate::audit::open as audit;
use crate::audit::writer::Trail;
use crate::compat::running::Running;
use crate::config::Config;
use crate::control::Control;
use crate::csr::told::SigningMetrics;
use crate::csr::{self, Around, Signing};
use crate::dial::{Dialer, Gates};
use crate::dial_ids::DialIds;
use crate::directory::FileDirectory;
use crate::doors::connect::Desk;
use crate::doors::front_ends::FrontEnds;
use crate::doors::signed::SignedDoor;
use crate::doors::{tcp, unix};
use crate::enrol;
use crate::gateway::Gateway;
use crate::gateway::event::RequestSink;
use crate::konnectivity::Counted;
use crate::legacy::trust::LegacyTrust;
use crate::links::accept::{self, TlsLinks};
use crate::links::bind::Sockets;
use crate::links::greet::Greeter;
use crate::listen::{Addresses, Listening};
use crate::metrics::{Live, Metrics};
use crate::nodes::NodeWatch;
use crate::policy::Policy;
use crate::policy::in_force::InForce;
use crate::ready;
use crate::reload::Reloader;
use crate::status::Source;
use crate::trust::Trust;

pub use crate::ended::RunError;
pub use crate::listen::StartError;

/// A running server. Dropping it ends everything at once.
pub struct Server {
    admin: Admin,
    drain: Drain,
    addresses: Addresses,
    control: Arc<Control>,
    readiness: Readiness,
    reloader: Arc<Reloader>,
    policy: Arc<InForce>,
    _files: reload::Reloader,
    _policy_file: Option<reload::Reloader>,
    _enrolment: Option<reload::Reloader>,
    quic: Option<Arc<QuicListener>>,
    failed: Arc<OnceLock<String>>,
    trail: Mutex<Option<Trail>>,
    counted: Arc<Counted>,
    _tasks: JoinSet<()>,
}

impl Server {
    /// Starts everything: when it returns, doors and carriers take connections.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        Box::pin(Self::start_with(config, |_| ())).await
    }

    /// The same, with more metrics than its own.
    pub async fn start_with(
        config: Config,
        more: impl FnOnce(&mut Registry),
    ) -> Result<Self, StartError> {
        let Config {
            own,
            seen,
            compat,
            links,
            doors,
            prefixes,
            grants,
            kubelets,
            gateway,
            enrol,
            policy,
            signing,
            dials,
            audit,
            memory_budget,
            drain_timeout,
            process,
        } = config;
        let connections = doors.max_connections;
        let (doors_speak, keep_alive) = (doors.speaks, doors.keep_alive);
        let mut registry = Registry::default();
        more(&mut registry);
        panics::register(&mut registry);
        let drain = Drain::new();
        let readiness = Readiness::new();
        let starting = readiness.task("listeners");
        let metrics = Metrics::default();
        metrics.register(&mut registry);
        let konnectivity = Arc::clone(metrics.counted());
        let accepted = AcceptMetrics::register(&mut registry);

        // What can fail comes first: sockets.
        let listening =
            Listening::bind(&links, doors, &process, own.as_ref().map(|own| &own.trust))?;
        listening.register(&mut registry);
        let Listening {
            admin,
            links: Sockets { quic, tcp, address },
            door_unix,
            door_tcp,
            door_signed,
            addresses,
        } = listening;

        let trail = match (audit, &own) {
            (Some(config), Some(own)) => {
                let who = own.trust.identity();
                Some(audit::open(config, who, SystemTime::now())?)
            }
            // The configuration has no trail without an identity.
            _ => None,
        };
        let audit = trail.as_ref().map(|trail| trail.audit().clone());
        let audit = audit.unwrap_or_default();
        audit.stops_with(drain.view());
        if let Some(trail) = &trail {
            trail.register(&mut registry);
        }

        // What everything else is made of.
        let (files, trust) = own.map(|own| (own.files, Trust::new(own.trust))).unzip();
        let (grants_path, grants) = grants.unzip();
        let directory = Arc::new(FileDirectory::new(prefixes.clone(), grants));
        let agents = Agents::new(links.max_links, metrics.clone());
        let (policy_file, policy_seen) = policy.unzip();
        let built_in = match &compat {
            Some(_) => Policy::compatibility(),
            None => Policy::default(),
        };
        let policy = Arc::new(InForce::new(
            built_in,
            policy_file,
            Arc::clone(&directory) as _,
            metrics.clone(),
        ));
        let live = LiveDials::new(memory_budget);
        Live::register(&mut registry, Arc::clone(&agents), live.clone());
        let max_dials = dials.per_link;
        let ids = Arc::new(DialIds::default());
        let attested = AttestMetrics::default();
        attested.register(&mut registry);
        let kubelet_files = kubelets.trust.as_ref().map(|(files, _)| files.clone());
        let port = prefixes.kubelet_port;
        let cluster = prefixes.clone();
        let attestor = Attestor::new(kubelets, port, Arc::clone(&ids), attested);
        let reporter = Reporter {
            attestor: Arc::clone(&attestor),
            agents: Arc::clone(&agents),
        };
        reporter.register(&mut registry);
        let gates = Gates {
            policy: Arc::clone(&policy),
            attestor: Arc::clone(&attestor),
            audit: audit.clone(),
        };
        let enrol_prefixes = prefixes.clone();
        let mut dialer = Dialer::new(
            Arc::clone(&agents),
            prefixes,
            gates,
            dials,
            live.clone(),
            metrics.clone(),
            ids,
        );
        let compat = compat.map(|profile| {
            Running::new(
                profile,
                links.max_links,
                max_dials,
                live.clone(),
                metrics.clone(),
            )
        });
        if let Some(compat) = &compat {
            compat.shout();
            dialer = dialer.with_legacy(compat.route.clone());
        }
        let dialer = Arc::new(dialer);
        let gateway = gateway.map(|config| {
            let requests: Arc<dyn RequestSink> = Arc::new(audit.clone());
            let (kubelets, policy) = (Arc::clone(&attestor), Arc::clone(&policy));
            Gateway::new(config, kubelets, policy, requests, &mut registry)
        });
        if let Some(gateway) = &gateway {
            let gateway = Arc::downgrade(gateway);
            policy.also_judges(move || {
                let gateway = gateway.upgrade();
                gateway.map_or(0, |gateway| gateway.check_again(SystemTime::now()))
            });
        }
        let front_ends = FrontEnds::default();
        let signing_metrics = SigningMetrics::default();
        signing_metrics.register(&mut registry);
        let enrols = enrol.as_ref().and_then(|config| config.asks(&cluster));
        let api = signing.as_ref().map(|config| &config.client).or(enrols);
        let mut nodes = api.map(|api| NodeWatch::new(api.clone(), signing_metrics.clone()));
        if let Some(nodes) = &nodes {
            nodes.register(&mut registry);
        }
        let signing = signing.zip(nodes.as_mut()).map(|(config, nodes)| {
            let around = Around {
                agents: Arc::clone(&agents),
                directory: Arc::clone(&directory),
                prefixes: cluster,
                denied: csr::serving::denied_agents(trust.clone()),
                audit: audit.clone(),
            };
            Signing::new(config, around, nodes, signing_metrics.clone())
        });
        let signing_files = signing.as_ref().map(Signing::files).unwrap_or_default();

        // Agents come in, some for a certificate first.
        let mut serving = JoinSet::new();
        let mut tasks = JoinSet::new();
        let around = enrol::flags::Around {
            audit: audit.clone(),
            agents: Arc::clone(&agents),
            directory: Arc::clone(&directory),
            nodes: nodes.as_mut(),
            prefixes: enrol_prefixes,
            registry: &mut registry,
            signing: signing_metrics,
        };
        let enrolment = enrol::flags::start(enrol, trust.as_ref(), around, &mut tasks)?;
        let own = trust.clone().map(|trust| {
            let greeter = Greeter::new(
                Arc::clone(&agents),
                Arc::clone(&directory) as _,
                metrics.clone(),
                trust.clone(),
                links.advertise,
                max_dials,
            );
            (trust, Arc::new(greeter))
        });
        if let (Some(quic), Some((_, greeter))) = (&quic, &own) {
            let greeter = Arc::clone(greeter);
            serving.spawn(accept::quic(Arc::clone(quic), greeter, drain.watch()));
        }
        if let Some(listener) = tcp {
            let tls = TlsLinks {
                own,
                enrol: enrolment.as_ref().map(|running| Arc::clone(&running.door)),
                legacy: compat.as_ref().and_then(|compat| compat.door.clone()),
                counted: metrics.clone(),
                handshakes: links.quic.handshakes,
                handshakes_per_address: links.quic.handshakes_per_address,
                connections: links.max_links.saturating_add(links.quic.handshakes),
                metrics: accepted.clone(),
            };
            serving.spawn(tls.run(listener, drain.watch()));
        }

        // Front ends come in.
        let desk = Desk::new(
            Arc::clone(&dialer),
            metrics.clone(),
            doors_speak,
            keep_alive,
        );
        let desk = Arc::new(desk.with_gateway(gateway.clone()));
        if let Some((socket, allowed)) = door_unix {
            let desk = Arc::clone(&desk);
            let (counted, watch) = (accepted.clone(), drain.watch());
            let door = unix::run(socket, allowed, connections, counted, desk, watch);
            serving.spawn(door);
        }
        if let (Some(listener), Some(compat)) = (door_signed, &compat) {
            let door = SignedDoor::new(
                compat.trust.clone(),
                compat.front_ends.clone(),
                Arc::clone(&desk),
            );
            serving.spawn(door.run(listener, connections, accepted.clone(), drain.watch()));
        }
        if let (Some((listener, allow)), Some(trust)) = (door_tcp, &trust) {
            let door = tcp::TcpDoor::new(trust.clone(), allow, front_ends.clone(), desk);
            serving.spawn(door.run(listener, connections, accepted.clone(), drain.watch()));
        }

        // What goes on beside.
        let reloader = Arc::new(Reloader {
            files,
            grants: grants_path,
            trust: trust.clone(),
            legacy: compat.as_ref().map(Running::reload),
            directory,
            agents: Arc::clone(&agents),
            quic: quic.clone(),
            front_ends,
            policy: Arc::clone(&policy),
            kubelets: kubelet_files,
            attestor: Arc::clone(&attestor),
            gateway: gateway.clone(),
            signing: signing_files.clone(),
        });
        let watch = Watch::since(reloader.paths(), seen);
        let counted = ReloadMetrics::register(&mut registry);
        counted.count("files", true);
        let applying = Arc::clone(&reloader);
        let recorded = audit.clone();
        let policy_reload = policy_seen.map(|seen| {
            policy.watch_over(readiness.condition("policy", "not read yet"));
            follow_policy(Arc::clone(&policy), seen, counted.clone())
        });
        let enrolment_reload = enrolment.as_ref().map(|one| {
            let noted = readiness.condition("enrolment", "not read yet");
            one.follow(counted.clone(), noted)
        });
        let noted = readiness.condition("files", "not read yet");
        let files = reload::Reloader::start("files", watch, counted, Some(noted), move || {
            // SIGHUP says that the file may have been moved, too.
            recorded.look();
            applying.reload(SystemTime::now()).map(|_| ())
        });
        let source: expiry::Source = {
            let (trust, attestor) = (trust.clone(), Arc::clone(&attestor));
            let gateway = gateway.clone();
            let legacy = compat.as_ref().map(|compat| compat.trust.clone());
            let issuer = enrolment.as_ref().map(|one| Arc::clone(&one.issuer));
            Arc::new(move || {
                let snapshot = trust.as_ref().map(Trust::snapshot);
                let mut all = snapshot.map_or_else(Vec::new, |own| own.material.expiries());
                all.extend(attestor.expiries());
                all.extend(signing_files.expiries());
                all.extend(gateway.iter().flat_map(|gateway| gateway.expiries()));
                all.extend(legacy.iter().flat_map(LegacyTrust::expiries));
                all.extend(issuer.iter().map(|issuer| issuer.expiry()));
                all
            })
        };
        expiry::register(&mut registry, Arc::clone(&source));
        let listing = trust.clone();
        let lists: revocation::Source = Arc::new(move || {
            let own = listing.as_ref().map(Trust::snapshot);
            own.map_or_else(Default::default, |own| {
                let faults = own.material.crl_faults().to_vec();
                (own.material.crl_states(), faults)
            })
        });
        revocation::register(&mut registry, Arc::clone(&lists));
        let status = Source {
            agents: Arc::clone(&agents),
            live: live.clone(),
            trust,
            reporter: reporter.clone(),
            expiries: Arc::clone(&source),
            compat: compat.as_ref().map(Running::told),
            drain: drain.view(),
            listen: address,
        };
        tasks.spawn(live.clone().keep_budget());
        tasks.spawn(cut_when_forced(drain.view(), live));
        tasks.spawn(Arc::clone(&reloader).keep_verifying());
        let linked = readiness.condition("links", "no agent is linked");
        let new_dials = readiness.condition("new-dials", "not started");
        if audit.blocks() {
            let written = readiness.condition("audit", "nothing was written yet");
            tasks.spawn(ready::keep_audit(audit, written));
        }
        let verified = readiness.condition("kubelets", "not looked at yet");
        tasks.spawn(reporter.clone().keep_ready(verified));
        tasks.spawn(attestor.keep(Arc::clone(&agents), drain.view()));
        tasks.spawn(expiry::warn_in_time(source));
        if let Some(signing) = signing {
            signing.start(&mut tasks);
        }
        if let Some(nodes) = nodes {
            tasks.spawn(nodes.run(readiness.condition("nodes", "not looked at yet")));
        }
        let noted = readiness.condition("revocation", "not looked at yet");
        tasks.spawn(revocation::keep_noted(lists, noted));
        let legacy = compat.as_ref().map(|compat| compat.route.agents.clone());
        let linked_agents = Arc::clone(&agents);
        tasks.spawn(ready::keep(agents, legacy, drain.view(), linked, new_dials));
        let pages = compat
            .as_ref()
            .map(|compat| compat.pages(&linked_agents, &konnectivity));
        if let Some(mut compat) = compat {
            tasks.spawn(compat.count(linked_agents, Arc::clone(&konnectivity)));
            if let Some(lease) = compat.lease(Arc::clone(&konnectivity)) {
                tasks.spawn(lease.keep(drain.watch()));
            }
        }
        let failed = Arc::new(OnceLock::new());
        tasks.spawn(supervise(serving, drain.clone(), Arc::clone(&failed)));
        let control = Arc::new(Control {
            status,
            files: files.handle(),
            dialer: Arc::clone(&dialer),
            enrolment: enrolment_reload.as_ref().map(reload::Reloader::handle),
            policy_file: policy_reload.as_ref().map(reload::Reloader::handle),
            drain: drain.clone(),
            drain_timeout,
        });
        let admin = admin.serve(AdminParts {
            registry,
            readiness: readiness.clone(),
            live: LiveProbe::new(tokio::runtime::Handle::current()),
            daemon: Arc::clone(&control) as _,
            accepted,
            compat: pages,
        })?;
        starting.done();
        Ok(Self {
            admin,
            drain,
            addresses,
            control,
            readiness,
            reloader,
            policy,
            _files: files,
            _policy_file: policy_reload,
            _enrolment: enrolment_reload,
            quic,
            failed,
            trail: Mutex::new(trail),
            counted: konnectivity,
            _tasks: tasks,
        })
    }
}

/// A set of its own: a fault in the policy keeps no new certificate out.
fn follow_policy(policy: Arc<InForce>, seen: Seen, metrics: ReloadMetrics) -> reload::Reloader {
    metrics.count("policy", true);
    let paths: Vec<_> = policy.path().map(Path::to_owned).into_iter().collect();
    let watch = Watch::since(paths, seen);
    reload::Reloader::start("policy", watch, metrics, None, move || {
        policy.reload().map(|_| ())
    })
}

/// Ends live dials when the drain is forced: their splices reset both sides.
async fn cut_when_forced(stage: DrainView, live: LiveDials) {
    stage.forced().await;
    live.end_all(Reason::Shutdown);
}

/// A listener whose task panicked would be missed for ever: the process ends, and whoever
/// started it starts it again.
async fn supervise(mut serving: JoinSet<()>, drain: Drain, failed: Arc<OnceLock<String>>) {
    while let Some(ended) = serving.join_next().await {
        if let Err(error) = ended
            && error.is_panic()
        {
            tracing::error!(%error, "a listener's task panicked, the server stops");
            let _ = failed.set(error.to_string());
            drain.force();
        }
    }
}
