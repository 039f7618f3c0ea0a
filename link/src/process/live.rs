//! Whether the data runtime is alive. The admin thread is another one, so it would answer
//! "alive" while every byte stands still; instead it hands the data runtime an empty task and
//! waits for it, at most [`limits::LIVE_PROBE`]. Only one such task is out at any time.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use towline_proto::limits;

/// Asks one runtime.
#[derive(Clone)]
pub struct LiveProbe {
    runtime: Handle,
    out: Arc<Semaphore>,
}

impl LiveProbe {
    /// For the runtime that carries bytes.
    pub fn new(runtime: Handle) -> Self {
        Self {
            runtime,
            out: Arc::new(Semaphore::new(1)),
        }
    }

    /// Whether it runs tasks.
    pub async fn is_alive(&self) -> bool {
        timeout(limits::LIVE_PROBE, self.round_trip())
            .await
            .unwrap_or(false)
    }

    async fn round_trip(&self) -> bool {
        // Whoever waits here waits for the task that is out, so a stuck runtime gets no second.
        let Ok(permit) = Arc::clone(&self.out).acquire_owned().await else {
            return false;
        };
        self.runtime
            .spawn(async move { drop(permit) })
            .await
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::process::runtime;

    #[test]
    fn a_stuck_data_runtime_is_noticed_and_gets_one_task_only() {
        let data = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .build()
            .expect("built");
        let admin = runtime::admin().expect("built");
        let probe = LiveProbe::new(data.handle().clone());
        assert!(admin.block_on(probe.is_alive()));

        let (release, stuck) = mpsc::channel::<()>();
        let (entered, running) = mpsc::channel();
        data.spawn(async move {
            entered.send(()).expect("open");
            let _ = stuck.recv();
        });
        running.recv().expect("stuck now");
        let paused = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build();
        paused.expect("built").block_on(async {
            assert!(!probe.is_alive().await);
            assert!(!probe.is_alive().await);
        });
        assert_eq!(
            data.metrics().num_alive_tasks(),
            2,
            "the stuck one and one probe"
        );
        drop(release);
        assert!(admin.block_on(probe.is_alive()));
    }
}
