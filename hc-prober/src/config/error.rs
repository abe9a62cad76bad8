//! What is wrong with a configuration, said so that it can be mended: where, what was found, what is allowed.

use std::fmt::Write;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Why a configuration was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file was read and holds mistakes.
    #[error("{report}")]
    Mistakes {
        /// Every mistake, in the order of the file.
        mistakes: Vec<Mistake>,
        /// All of them for people: place, message and the line itself.
        report: String,
    },
}

/// The text of a configuration's file.
///
/// # Errors
/// [`ConfigError::Unreadable`].
pub fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable { path: path.to_path_buf(), source })
}

impl ConfigError {
    /// What is wrong with `text`, for which `name` stands in messages.
    #[must_use]
    pub fn mistakes(name: &str, text: &str, mut mistakes: Vec<Mistake>) -> Self {
        mistakes.sort_by_key(|mistake| mistake.span.start);
        let shown: Vec<_> = mistakes.iter().map(|mistake| mistake.show(name, text)).collect();
        Self::Mistakes { mistakes, report: shown.join("\n\n") }
    }
}

/// One thing that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    span: Range<usize>,
    message: String,
}

impl Mistake {
    /// A mistake in these bytes of the text.
    #[must_use]
    pub fn new(span: Range<usize>, message: impl Into<String>) -> Self {
        Self { span, message: message.into() }
    }

    /// The bytes of the text it is about.
    #[must_use]
    pub fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// What is wrong and what is allowed, without the place.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// `name:line:column: message`, and below it the line with the culprit underlined. Columns count characters from 1.
    fn show(&self, name: &str, text: &str) -> String {
        // A span may point behind the last line (something is missing at the end of the file): show that line.
        let start = text.floor_char_boundary(self.span.start.min(text.trim_end().len()));
        let (before, after) = text.split_at(start);
        let number = before.matches('\n').count() + 1;
        let indent = before.rsplit('\n').next().unwrap_or_default();
        let rest = after.lines().next().unwrap_or_default();
        let marked = rest.char_indices().take_while(|(at, _)| start + at < self.span.end).count().max(1);

        let mut shown = format!("{name}:{number}:{}: {}\n", indent.chars().count() + 1, self.message);
        let gutter = number.to_string();
        // Tabs stay tabs, so that the mark stands under what it marks.
        let blank: String = indent.chars().map(|c| if c == '\t' { c } else { ' ' }).collect();
        let marks = "^".repeat(marked);
        let _ = write!(shown, "{gutter} | {indent}{rest}\n{:width$} | {blank}{marks}", "", width = gutter.len());
        shown
    }
}

impl From<toml::de::Error> for Mistake {
    fn from(error: toml::de::Error) -> Self {
        Self::new(error.span().unwrap_or_default(), error.message())
    }
}
