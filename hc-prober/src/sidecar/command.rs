//! The command that is run for each change: a program and its arguments, never a shell's text.

use super::{Change, Protocol};

/// What stands for something, and for what.
type Placeholder = (&'static str, fn(&Change) -> String);

const PLACEHOLDERS: [Placeholder; 11] = [
    ("{vip}", |change| change.name.vip.to_string()),
    ("{port}", |change| change.name.port.to_string()),
    ("{protocol}", |change| change.name.protocol.word().to_owned()),
    ("{ipvs_protocol}", |change| if change.name.protocol == Protocol::Tcp { "-t" } else { "-u" }.to_owned()),
    ("{service}", |change| change.name.service().to_string()),
    ("{real}", |change| change.real.to_string()),
    ("{server}", |change| std::net::SocketAddr::from((change.real, change.name.port)).to_string()),
    ("{before}", |change| change.before.to_string()),
    ("{state}", |change| change.state.to_string()),
    ("{reason}", |change| change.reason.code().to_owned()),
    ("{weight}", |change| change.weight.to_string()),
];

/// A program and its arguments, with placeholders in braces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<String>);

impl Template {
    /// From its words, the program first.
    #[must_use]
    pub fn new(words: Vec<String>) -> Self {
        Self(words)
    }

    /// The placeholders, for messages.
    #[must_use]
    pub fn allowed() -> String {
        PLACEHOLDERS.map(|(name, _)| name).join(" ")
    }

    /// The first thing in braces that stands for nothing.
    #[must_use]
    pub fn unknown(word: &str) -> Option<&str> {
        let mut rest = word;
        while let Some(open) = rest.find('{') {
            let end = rest.get(open..)?.find('}').map_or(rest.len(), |close| open + close + 1);
            let found = rest.get(open..end)?;
            if !PLACEHOLDERS.iter().any(|(name, _)| *name == found) {
                return Some(found);
            }
            rest = rest.get(end..)?;
        }
        None
    }

    /// The words for a change. What is put in is not looked at again.
    #[must_use]
    pub fn words(&self, change: &Change) -> Vec<String> {
        self.0.iter().map(|word| filled(word, change)).collect()
    }
}

fn filled(word: &str, change: &Change) -> String {
    let mut filled = String::new();
    let mut rest = word;
    while let Some((at, (name, value))) =
        PLACEHOLDERS.iter().filter_map(|p| Some((rest.find(p.0)?, p))).min_by_key(|(at, _)| *at)
    {
        let (before, after) = rest.split_at(at);
        filled.push_str(before);
        filled.push_str(&value(change));
        rest = after.strip_prefix(name).unwrap_or_default();
    }
    filled + rest
}
