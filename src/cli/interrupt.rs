//! Ctrl-C in the middle of a fetch.

/// From now on, a signal that ends this process removes the temporary folders of its fetches first.
/// What it does else stays: the process ends by the signal.
#[cfg(unix)]
pub(super) fn clean_up() {
    use std::sync::Once;

    use signal_hook::{
        consts::{SIGINT, SIGTERM},
        iterator::Signals,
        low_level::emulate_default_handler,
    };

    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // Without a handler, the next fetch cleans up.
        let Ok(mut signals) = Signals::new([SIGINT, SIGTERM]) else { return };
        std::thread::spawn(move || {
            for signal in signals.forever() {
                crate::fetch::remove_temporaries();
                let _ = emulate_default_handler(signal);
            }
        });
    });
}

#[cfg(not(unix))]
pub(super) fn clean_up() {}
