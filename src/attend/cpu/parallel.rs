//! Jobs on all threads.

use rayon::prelude::*;

/// One job after another on as many threads as there are; a single one on this thread.
pub(super) fn in_parallel<T: Send>(mut jobs: Vec<T>, run: impl Fn(T) + Sync + Send) {
    match jobs.pop() {
        Some(job) if jobs.is_empty() => run(job),
        Some(job) => {
            jobs.push(job);
            jobs.into_par_iter().with_max_len(1).for_each(run);
        }
        None => {}
    }
}
