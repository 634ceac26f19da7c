//! [`Books`]: what the workers of a campaign have done together, under one lock, and [`Keeper`], who makes
//! summaries of it and writes them into the campaign's folder.
//!
//! A campaign that goes on is one that is merged with what it was before: the books begin empty each
//! time, and each summary is joined with the earlier one.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use super::folder::{FileError, Folder};
use super::ledger::Leases;
use super::merge::join;
use super::pairs::{self, MnemonicPairs};
use super::samples::{Sample, Samples};
use super::summary::{FILE, Names, Part, Summary};
use super::{Shared, Tally};

/// How often the rate is noted.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// See the file's head.
#[derive(Debug)]
pub(super) struct Books {
    pub leases: Leases,
    pub tally: Tally,
    pub pairs: MnemonicPairs,
    /// Cases done in earlier parts of the campaign.
    pub cases_before: u64,
}

/// Keeps a campaign's summary.
pub(super) struct Keeper<'a> {
    pub shared: &'a Shared<'a>,
    pub names: Names,
    pub earlier: Option<Summary>,
    pub samples: Samples,
}

impl Keeper<'_> {
    /// Looks at the books now and then until the workers have dropped their ends of `working`.
    pub(super) fn keep(&mut self, working: &Receiver<()>) -> Result<(), FileError> {
        let save_every = self.shared.plan.save_every;
        let (mut sampled, mut saved) = (Duration::ZERO, None::<Duration>);
        let look_every = SAMPLE_EVERY.min(save_every);
        while working.recv_timeout(look_every) == Err(RecvTimeoutError::Timeout) {
            let now = self.shared.start.elapsed();
            if now - sampled >= SAMPLE_EVERY {
                let cases = self.shared.books().tally.cases;
                self.samples.push(Sample { seconds: now.as_secs_f64(), cases });
                sampled = now;
            }
            if saved.is_none_or(|saved| now - saved >= save_every) {
                self.save()?;
                saved = Some(now);
            }
        }
        Ok(())
    }

    /// Writes the summary as it is now, if there is a folder, and gives it. Before the first case is
    /// done the folder stays as it is: a campaign that cannot begin leaves nothing of itself there.
    pub(super) fn save(&mut self) -> Result<Summary, FileError> {
        let (summary, pairs) = self.summary();
        self.shared.progress.forms.store(summary.forms, Ordering::Relaxed);
        if let Some(folder) = self.shared.folder
            && summary.cases > 0
        {
            folder.write(pairs::FILE, &pairs.to_bytes())?;
            write(folder, &summary)?;
        }
        Ok(summary)
    }

    fn summary(&self) -> (Summary, MnemonicPairs) {
        let books = self.shared.books();
        let (tally, pairs, ledger) =
            (books.tally.clone(), books.pairs.clone(), books.leases.ledger());
        let elapsed = self.shared.start.elapsed();
        drop(books);
        let clusters = self.shared.findings.records(&tally.seen);
        let part = Part { tally, clusters, elapsed, samples: self.samples.clone() };
        let now = Summary::new(self.shared.plan, &self.names, part);
        let mut summary = match &self.earlier {
            Some(earlier) => join(earlier.clone(), now),
            None => now,
        };
        summary.mnemonic_pairs = pairs.count();
        summary.ledger = Some(ledger);
        (summary, pairs)
    }
}

/// Writes the figures into a campaign's folder, whole or not at all.
pub(super) fn write(folder: &Folder, summary: &Summary) -> Result<(), FileError> {
    let text = serde_json::to_string_pretty(summary).expect("figures have a form in JSON") + "\n";
    folder.write(FILE, text.as_bytes())
}
