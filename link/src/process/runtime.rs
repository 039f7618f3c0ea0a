//! The two runtimes of a daemon, with names that show in `top -H`: the data runtime carries
//! users' bytes; the admin runtime (made in [`super::admin`]) answers probes and scrapes on a
//! thread of its own, so that neither can delay the other.

use std::io;
use std::num::NonZeroUsize;

use tokio::runtime::{Builder, Runtime};
use towline_proto::limits;

/// How many threads carry bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workers {
    /// One for each processor that the process may use.
    PerProcessor,
    /// This many; one means that no second thread is started.
    Exactly(NonZeroUsize),
}

/// The runtime for everything but health and admin.
pub fn data(workers: Workers) -> io::Result<Runtime> {
    let count = match workers {
        Workers::PerProcessor => std::thread::available_parallelism()?,
        Workers::Exactly(count) => count,
    };
    let mut builder = match count.get() {
        1 => Builder::new_current_thread(),
        count => {
            let mut builder = Builder::new_multi_thread();
            builder.worker_threads(count);
            builder
        }
    };
    builder
        .thread_name("towline-data")
        .max_blocking_threads(limits::BLOCKING_THREADS)
        .enable_all()
        .build()
}

/// The runtime for health and admin, for use on one thread of its own.
pub(super) fn admin() -> io::Result<Runtime> {
    Builder::new_current_thread()
        .thread_name("towline-admin")
        .max_blocking_threads(2)
        .enable_all()
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_runtime_has_the_workers_that_were_asked_for() {
        for count in [1, 2] {
            let workers = Workers::Exactly(NonZeroUsize::new(count).expect("not zero"));
            let runtime = data(workers).expect("built");
            assert_eq!(runtime.metrics().num_workers(), count);
            runtime.block_on(async { tokio::task::yield_now().await });
        }
    }
}
