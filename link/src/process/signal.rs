//! Signals in, words to the service manager out.
//!
//! * SIGTERM or SIGINT: the first begins a graceful stop, the second ends at once. A drain that
//!   was begun by the admin socket does not count as a signal, so that a preStop hook and the
//!   SIGTERM after it are one graceful stop.
//! * SIGHUP: reload.
//! * To systemd, where it started us: READY when the start-up tasks are done, STATUS with what is
//!   not ready, RELOADING around a reload, STOPPING, and WATCHDOG twice per period from the data
//!   runtime, so that a runtime that stands still is restarted.

use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use super::daemon::Daemon;
use super::drain::DrainView;
use super::ready::Readiness;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// SIGTERM, SIGINT.
    Stop,
    /// SIGHUP.
    Reload,
}

/// Where orders come from.
pub trait Orders: Send {
    /// The next order. Cancel-safe.
    fn next(&mut self) -> impl Future<Output = Order> + Send;
}

/// The process's signals. From its making on they do not end the process by themselves.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Takes the signals over. Must be called inside a runtime, before anything is started.
    pub fn install() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

impl Orders for Signals {
    async fn next(&mut self) -> Order {
        tokio::select! {
            _ = self.terminate.recv() => Order::Stop,
            _ = self.interrupt.recv() => Order::Stop,
            _ = self.hangup.recv() => Order::Reload,
        }
    }
}

/// The service manager that started us, if one did.
#[derive(Debug, Default)]
pub struct ServiceManager {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
}

impl ServiceManager {
    /// Reads `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`. Called once, by `main`, beside
    /// the flags: nobody reads the environment later.
    pub fn from_environment() -> io::Result<Self> {
        let Some(address) = std::env::var_os("NOTIFY_SOCKET") else {
            return Ok(Self::default());
        };
        let text = |name| std::env::var(name).ok();
        let watchdog = watchdog(
            text("WATCHDOG_USEC"),
            text("WATCHDOG_PID"),
            std::process::id(),
        );
        Self::at(&address, watchdog)
    }

    /// Speaks to a datagram socket: a path, or `@` and an abstract name.
    fn at(address: &OsStr, watchdog: Option<Duration>) -> io::Result<Self> {
        let address = match address.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(Path::new(address))?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        socket.connect_addr(&address)?;
        Ok(Self {
            socket: Some(socket),
            watchdog,
        })
    }

    /// Half of the watchdog's period.
    fn beat(&self) -> Option<Duration> {
        self.watchdog.map(|period| period / 2)
    }

    /// A word that cannot be sent is not worth stopping for; the manager will notice.
    fn tell(&self, states: &[NotifyState<'_>]) {
        let Some(socket) = &self.socket else {
            return;
        };
        let lines: Vec<String> = states.iter().map(ToString::to_string).collect();
        if let Err(error) = socket.send(lines.join("\n").as_bytes()) {
            debug!(%error, "the service manager was not told");
        }
    }

    fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.tell(&[NotifyState::Reloading, now]),
            Err(_) => self.tell(&[NotifyState::Reloading]),
        }
    }
}

/// The period, if it is meant for this process.
fn watchdog(period_us: Option<String>, for_process: Option<String>, own: u32) -> Option<Duration> {
    if for_process.is_some_and(|id| id.parse() != Ok(own)) {
        return None;
    }
    let period = period_us?.parse().ok().map(Duration::from_micros)?;
    (!period.is_zero()).then_some(period)
}

/// Carries orders out and keeps the service manager informed until `ended` resolves, which
/// `main` makes from the daemon's own wait.
pub async fn until_ended<T>(
    orders: &mut impl Orders,
    manager: &ServiceManager,
    daemon: &dyn Daemon,
    readiness: &Readiness,
    drain: DrainView,
    ended: impl Future<Output = T>,
) -> T {
    let mut ended = pin!(ended);
    let mut started = pin!(readiness.started());
    let mut announced = false;
    let mut was_ready = None;
    let mut stopping = false;
    let mut signals = 0;
    let mut reloading = None;
    let mut beat = Instant::now();
    loop {
        tokio::select! {
            biased;
            result = &mut ended => {
                // A drain with nothing to wait for ends before anybody has seen it begin.
                if !stopping {
                    manager.tell(&[NotifyState::Stopping]);
                }
                return result;
            }
            order = orders.next() => match order {
                Order::Stop => {
                    signals += 1;
                    obey_stop(daemon, signals);
                }
                Order::Reload if reloading.is_none() => {
                    info!("SIGHUP: reloading");
                    manager.reloading();
                    reloading = Some(daemon.reload());
                }
                Order::Reload => debug!("SIGHUP while reloading"),
            },
            _ = drain.signalled(), if !stopping => {
                stopping = true;
                manager.tell(&[NotifyState::Stopping, NotifyState::Status("draining")]);
            }
            () = &mut started, if !announced => {
                announced = true;
                manager.tell(&[NotifyState::Ready]);
            }
            ready = readiness_other_than(readiness, was_ready), if announced && !stopping => {
                was_ready = Some(ready);
                manager.tell(&[NotifyState::Status(&status(readiness))]);
            }
            result = run(&mut reloading), if reloading.is_some() => {
                reloading = None;
                if let Err(error) = result {
                    warn!(error, "the reload failed");
                }
                if announced && !stopping {
                    manager.tell(&[NotifyState::Ready, NotifyState::Status(&status(readiness))]);
                }
            }
            () = sleep_until(beat), if manager.beat().is_some() => {
                manager.tell(&[NotifyState::Watchdog]);
                beat = Instant::now() + manager.beat().unwrap_or_default();
            }
        }
    }
}

fn obey_stop(daemon: &dyn Daemon, signals: u32) {
    match signals {
        1 => {
            info!("stopping: live dials may finish; a second signal ends at once");
            daemon.drain();
        }
        _ => {
            warn!("second signal: ending at once");
            daemon.stop_now();
        }
    }
}

async fn run<F: Future + Unpin>(future: &mut Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

/// Resolves with the readiness when it is not (or no more) the one that was told.
async fn readiness_other_than(readiness: &Readiness, told: Option<bool>) -> bool {
    match told {
        None => return readiness.is_ready(),
        Some(true) => readiness.unready().await,
        Some(false) => readiness.ready().await,
    }
    readiness.is_ready()
}

fn status(readiness: &Readiness) -> String {
    let report = readiness.report();
    let unmet = report
        .lines()
        .find_map(|(name, unmet)| unmet.map(|reason| format!("not ready: {name}: {reason}")));
    unmet.unwrap_or_else(|| "ready".to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU32, Ordering};

    use async_trait::async_trait;
    use tokio::sync::mpsc;

    use super::super::drain::{Drain, Outcome};
    use super::*;

    impl Orders for mpsc::Receiver<Order> {
        async fn next(&mut self) -> Order {
            match self.recv().await {
                Some(order) => order,
                None => std::future::pending().await,
            }
        }
    }

    struct Fake {
        drain: Drain,
        reloads: AtomicU32,
        told: Mutex<mpsc::Sender<&'static str>>,
    }

    impl Fake {
        fn say(&self, word: &'static str) {
            self.told
                .lock()
                .expect("not poisoned")
                .try_send(word)
                .expect("room");
        }
    }

    #[async_trait]
    impl Daemon for Fake {
        fn status(&self) -> serde_json::Value {
            serde_json::Value::Null
        }

        async fn reload(&self) -> Result<(), String> {
            self.reloads.fetch_add(1, Ordering::Relaxed);
            self.say("reload");
            Err("no".to_owned())
        }

        fn drain(&self) {
            self.drain.begin(Duration::from_secs(30));
            self.say("drain");
        }

        fn stop_now(&self) {
            self.drain.force();
            self.say("stop");
        }
    }

    fn fake() -> (Fake, mpsc::Receiver<&'static str>) {
        let (told, heard) = mpsc::channel(8);
        (
            Fake {
                drain: Drain::new(),
                reloads: AtomicU32::new(0),
                told: Mutex::new(told),
            },
            heard,
        )
    }

    /// A manager whose words arrive at the second value.
    fn manager(folder: &Path, watchdog: Option<Duration>) -> (ServiceManager, UnixDatagram) {
        let path = folder.join("notify");
        let words = UnixDatagram::bind(&path).expect("bound");
        words.set_nonblocking(true).expect("set");
        (
            ServiceManager::at(path.as_os_str(), watchdog).expect("connected"),
            words,
        )
    }

    fn words(socket: &UnixDatagram) -> String {
        let mut all = String::new();
        let mut bytes = [0; 1024];
        while let Ok(length) = socket.recv(&mut bytes) {
            all.push_str(&String::from_utf8_lossy(&bytes[..length]));
            all.push('\n');
        }
        all
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_signal_drains_and_the_second_ends_at_once() {
        let (daemon, mut heard) = fake();
        let (orders, mut incoming) = mpsc::channel(8);
        let watch = daemon.drain.watch();
        let guard = watch.guard();
        tokio::spawn(async move {
            watch.forced().await;
            drop((watch, guard));
        });
        orders.try_send(Order::Reload).expect("room");
        orders.try_send(Order::Stop).expect("room");
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(5)).await;
            let _ = orders.send(Order::Stop).await;
            std::future::pending::<()>().await;
        });
        let begun = Instant::now();
        let readiness = Readiness::new();
        let manager = ServiceManager::default();
        let ended = daemon.drain.finish();
        let outcome = until_ended(
            &mut incoming,
            &manager,
            &daemon,
            &readiness,
            daemon.drain.view(),
            ended,
        )
        .await;
        assert_eq!(outcome, Outcome::Cut { work: 1 });
        assert_eq!(begun.elapsed(), Duration::from_secs(5));
        let mut said = Vec::new();
        while let Ok(word) = heard.try_recv() {
            said.push(word);
        }
        said.sort_unstable();
        assert_eq!(said, ["drain", "reload", "stop"]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_service_manager_hears_ready_reloading_status_and_stopping() {
        let folder = tempfile::tempdir().expect("folder");
        let (manager, socket) = manager(folder.path(), Some(Duration::from_secs(10)));
        let (daemon, mut heard) = fake();
        let (orders, mut incoming) = mpsc::channel(8);
        let readiness = Readiness::new();
        let links = readiness.condition("links", "no agent is linked");
        let task = readiness.task("listeners");
        let script = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(words(&socket), "WATCHDOG=1\n");
            task.done();
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(
                words(&socket),
                "READY=1\nSTATUS=not ready: links: no agent is linked\n"
            );
            links.met();
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(words(&socket), "STATUS=ready\n");
            orders.send(Order::Reload).await.expect("open");
            assert_eq!(heard.recv().await, Some("reload"));
            tokio::time::sleep(Duration::from_secs(1)).await;
            let text = words(&socket);
            assert!(text.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{text}");
            assert!(text.ends_with("READY=1\nSTATUS=ready\n"), "{text}");
            tokio::time::sleep(Duration::from_secs(2)).await;
            assert_eq!(words(&socket), "WATCHDOG=1\n");
            daemon.drain.begin(Duration::ZERO);
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(words(&socket), "STOPPING=1\nSTATUS=draining\n");
        };
        until_ended(
            &mut incoming,
            &manager,
            &daemon,
            &readiness,
            daemon.drain.view(),
            script,
        )
        .await;
    }

    #[tokio::test]
    async fn an_end_at_once_is_told_all_the_same() {
        let folder = tempfile::tempdir().expect("folder");
        let (manager, socket) = manager(folder.path(), None);
        let (daemon, _heard) = fake();
        let (_orders, mut incoming) = mpsc::channel(8);
        until_ended(
            &mut incoming,
            &manager,
            &daemon,
            &Readiness::new(),
            daemon.drain.view(),
            std::future::ready(()),
        )
        .await;
        assert_eq!(words(&socket), "STOPPING=1\n");
    }

    #[test]
    fn the_watchdog_is_for_the_process_that_is_named() {
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(
            watchdog(text("20000000"), None, 7),
            Some(Duration::from_secs(20))
        );
        assert_eq!(
            watchdog(text("20000000"), text("7"), 7),
            Some(Duration::from_secs(20))
        );
        for (period, process) in [("20000000", "8"), ("0", "7"), ("x", "7"), ("5", "x")] {
            assert_eq!(watchdog(text(period), text(process), 7), None);
        }
        assert_eq!(watchdog(None, None, 7), None);
    }
}
