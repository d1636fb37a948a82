//! `headwise demo`: the main job on a real model.

mod flags;
mod outcome;
mod page;
mod rates;
mod serving;

use std::time::Instant;

pub(super) use self::flags::Demo;
use self::outcome::Outcome;
use super::{
    error::CliError,
    given::Given,
    input::read_text,
    output::{Input, Results},
    place::with_model,
    setup::Loaded,
};
use crate::engine::{EngineError, Runner};

/// The repository's own documents: what the demo reads when nothing else is given.
const DOCUMENTS: [&str; 5] = [
    include_str!("../../docs/design.md"),
    include_str!("../../docs/attention.md"),
    include_str!("../../docs/eviction.md"),
    include_str!("../../docs/page-format.md"),
    include_str!("../../README.md"),
];

impl Demo {
    pub fn run(self, given: &Given) -> Result<(), CliError> {
        // What cannot be done should not cost minutes to find out.
        let mut inputs = self.model.inputs()?;
        let text = self.prompt_file.iter();
        inputs.extend(text.map(|path| Input::file("the text of --prompt-file", path)));
        let results = Results::to(self.json.path(), Some(&self.report), &inputs)?;
        self.check_flags(given)?;
        let text = match &self.prompt_file {
            Some(path) => read_text(path)?,
            None => DOCUMENTS.concat(),
        };
        let start = Instant::now();
        with_model!(self.model, |loaded| self.show(&loaded, &text, start, &results))
    }

    fn show<R: Runner>(
        &self,
        loaded: &Loaded<R>,
        text: &str,
        start: Instant,
        results: &Results,
    ) -> Result<(), CliError> {
        let tokens = loaded.tokenizer.encode_plain_prompt(text)?;
        if tokens.is_empty() {
            return Err(EngineError::EmptyRequest.into());
        }
        let following = tokens.len().saturating_sub(self.context.saturating_add(1));
        let further = following.min(self.following).max(self.generate);
        loaded.model.config().check_context(self.context.saturating_add(further))?;
        let comparison = self.prepare_serving(loaded, &tokens)?;
        results.print(self.introduction(loaded))?;
        let rates = self.compare_rates(loaded, &tokens)?;
        results.print(rates.table())?;
        let serving = comparison.run()?;
        results.print(serving.table())?;
        let saturated = [rates.saturated, serving.plain.saturated, serving.compressed.saturated];
        self.pages.check_saturated(saturated.iter().sum(), results)?;
        let outcome = Outcome {
            model: loaded.name(),
            format: self.pages.format.to_string(),
            rates,
            serving,
            seconds: start.elapsed().as_secs_f64(),
        };
        results.write_report(&page::page(&outcome).to_html())?;
        let report = self.report.display();
        results.print(format!("\nreport: {report} ({:.0} s)\n", outcome.seconds))?;
        results.write_json(&outcome)
    }

    fn introduction<R: Runner>(&self, loaded: &Loaded<R>) -> String {
        let shape = loaded.model.shape();
        let (heads, channels) = (shape.heads() / shape.layers(), shape.layer(0).k_dim());
        format!(
            "{}: {} layers × {} KV heads of {} channels, one page table each; {} pages of {} \
             tokens\n\n",
            loaded.name(),
            shape.layers(),
            heads,
            channels,
            self.pages.format,
            self.pages.block_tokens,
        )
    }
}
