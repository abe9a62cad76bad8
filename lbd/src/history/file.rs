//! The history in a file of the state directory: a line of JSON a change, appended when it happens, so that the next daemon
//! knows since when what is so. It is for people; what it lacks or cannot keep is told in the log and stops nothing.

use super::{Entry, History};
use hc_prober::{CheckKey, Severity, State};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, BufRead as _, BufReader, BufWriter, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

const FILE: &str = "history.jsonl";
/// When it has grown by so much, what is not remembered any more is left out. Bytes.
const GROWTH: u64 = 8 << 20;
/// When one that could not be written is tried again.
const RETRY: Duration = Duration::from_mins(1);

/// The file.
#[derive(Debug)]
pub struct HistoryFile {
    path: PathBuf,
    /// `None`: it cannot be written, which was told.
    file: Option<File>,
    /// The same was told, and not since.
    is_given_up: bool,
    /// Not before then it is tried again.
    retry: Instant,
    /// What was appended since it was written anew, bytes.
    appended: u64,
}

/// A verdict with its severity.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum Verdict {
    Init,
    Up,
    DownSoft,
    DownHard,
}

#[derive(Debug, Serialize, Deserialize)]
struct Line {
    at: Timestamp,
    check: Value,
    before: Verdict,
    after: Verdict,
    reason: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rtt_us: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

impl HistoryFile {
    /// That of this directory, and what it tells of these checks. What it tells of others is left out from now on.
    pub fn open(directory: &Path, checks: impl IntoIterator<Item = CheckKey>) -> (Self, History) {
        let path = directory.join(FILE);
        let history = read(&path, checks).unwrap_or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "the history of an earlier lbd cannot be read");
            History::default()
        });
        let mut file = Self { path, file: None, is_given_up: false, retry: Instant::now(), appended: 0 };
        file.rewrite(&history);
        (file, history)
    }

    /// Notes a change.
    pub fn append(&mut self, key: &CheckKey, entry: &Entry) {
        let Some(file) = &mut self.file else { return };
        let appended = Line::of(key, entry).bytes().and_then(|line| {
            // In one piece: a daemon that is killed leaves whole lines.
            file.write_all(&line)?;
            Ok(line.len() as u64)
        });
        match appended {
            Ok(length) => self.appended += length,
            Err(error) => self.give_up(&error),
        }
    }

    /// Whether it is to be written anew: it has grown so much, or could not be written a while ago.
    #[must_use]
    pub fn wants_rewrite(&self, now: Instant) -> bool {
        self.appended > GROWTH || self.file.is_none() && now >= self.retry
    }

    /// Writes it anew, with what is remembered.
    pub fn rewrite(&mut self, history: &History) {
        match write(&self.path, history) {
            Ok(file) => {
                if std::mem::take(&mut self.is_given_up) {
                    tracing::info!(path = %self.path.display(), "the history is kept again");
                }
                (self.file, self.appended) = (Some(file), 0);
            }
            Err(error) => self.give_up(&error),
        }
    }

    /// Until it is written anew.
    fn give_up(&mut self, error: &io::Error) {
        (self.file, self.appended, self.retry) = (None, 0, Instant::now() + RETRY);
        if !std::mem::replace(&mut self.is_given_up, true) {
            tracing::warn!(
                path = %self.path.display(), %error, again = ?RETRY, "the history is not kept: the next lbd will not know it"
            );
        }
    }
}

fn write(path: &Path, history: &History) -> io::Result<File> {
    let aside = path.with_extension("jsonl.new");
    let written = write_aside(&aside, history).and_then(|file| fs::rename(&aside, path).map(|()| file));
    if written.is_err() {
        // Perhaps there is none; half of one takes room that may be what lacks.
        let _ = fs::remove_file(&aside);
    }
    written
}

/// Each check's changes in their order; no clock orders those of different checks.
fn write_aside(aside: &Path, history: &History) -> io::Result<File> {
    let mut lines = BufWriter::new(File::create(aside)?);
    history.iter().try_for_each(|(key, entry)| lines.write_all(&Line::of(key, entry).bytes()?))?;
    let file = lines.into_inner().map_err(io::IntoInnerError::into_error)?;
    // A host that loses its power after the rename has the old file or the new one, not an empty one.
    file.sync_all()?;
    Ok(file)
}

fn read(path: &Path, checks: impl IntoIterator<Item = CheckKey>) -> io::Result<History> {
    let mut history = History::default();
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(history),
        file => file?,
    };
    let checks: HashMap<String, CheckKey> = checks.into_iter().map(|key| (name(&key).to_string(), key)).collect();
    let mut strange = 0_u64;
    for line in BufReader::new(file).split(b'\n') {
        match serde_json::from_slice::<Line>(&line?) {
            Ok(line) => {
                if let Some(key) = checks.get(&line.check.to_string()) {
                    history.recall(key, line.into_entry());
                }
            }
            // The last one may be cut short: the host lost its power.
            Err(_) => strange += 1,
        }
    }
    if strange > 0 {
        tracing::warn!(path = %path.display(), lines = strange, "not what lbd writes: left out of the history");
    }
    Ok(history)
}

/// A check as the file names it: with all that tells it from others.
fn name(key: &CheckKey) -> Value {
    serde_json::to_value(key).unwrap_or_default()
}

impl Line {
    fn of(key: &CheckKey, entry: &Entry) -> Self {
        let Entry { at, before, after, reason, detail, rtt, why } = entry.clone();
        let rtt_us = rtt.map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX));
        Self { at, check: name(key), before: before.into(), after: after.into(), reason, detail, rtt_us, why }
    }

    fn into_entry(self) -> Entry {
        let Self { at, check: _, before, after, reason, detail, rtt_us, why } = self;
        Entry {
            at,
            before: before.into(),
            after: after.into(),
            reason,
            detail,
            rtt: rtt_us.map(Duration::from_micros),
            why,
        }
    }

    fn bytes(&self) -> io::Result<Vec<u8>> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        Ok(line)
    }
}

impl From<State> for Verdict {
    fn from(state: State) -> Self {
        match state {
            State::Init => Self::Init,
            State::Up => Self::Up,
            State::Down(Severity::Soft) => Self::DownSoft,
            State::Down(Severity::Hard) => Self::DownHard,
        }
    }
}

impl From<Verdict> for State {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Init => Self::Init,
            Verdict::Up => Self::Up,
            Verdict::DownSoft => Self::Down(Severity::Soft),
            Verdict::DownHard => Self::Down(Severity::Hard),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{DOWN, key, transition},
        *,
    };

    fn open(directory: &Path) -> (HistoryFile, History) {
        HistoryFile::open(directory, [key(80), key(443)])
    }

    /// As the daemon does it.
    fn note(file: &mut HistoryFile, history: &mut History, port: u16, second: u64, [from, to]: [State; 2]) {
        if let Some(entry) = history.record(transition(port, second, from, to)) {
            file.append(&key(port), entry);
        }
    }

    #[test]
    fn history_noted_is_what_the_next_daemon_knows_of_the_checks_it_makes() {
        let directory = tempfile::tempdir().unwrap();
        let (mut file, mut history) = open(directory.path());
        assert_eq!(history, History::default());
        note(&mut file, &mut history, 80, 1, [State::Init, State::Up]);
        note(&mut file, &mut history, 443, 1, [State::Init, State::Up]);
        note(&mut file, &mut history, 80, 2, [State::Up, DOWN]);
        let explained = history.explain(&key(80), "HOST_DOWN").unwrap();
        file.append(&key(80), explained);
        drop(file);
        let (_, known) = open(directory.path());
        assert_eq!(known, history);
        assert_eq!(known.of(&key(80)).last().unwrap().why.as_deref(), Some("HOST_DOWN"));

        let (_, known) = HistoryFile::open(directory.path(), [key(443)]);
        assert_eq!((known.of(&key(80)).count(), known.of(&key(443)).count()), (0, 1));
        let (_, known) = open(directory.path());
        assert_eq!(known.of(&key(80)).count(), 0, "left out when it was written anew");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing but the file");
    }

    #[test]
    fn line_that_is_cut_short_costs_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let (mut file, mut history) = open(directory.path());
        note(&mut file, &mut history, 80, 1, [State::Init, State::Up]);
        let path = directory.path().join(FILE);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, [&whole[..], &whole[..whole.len() / 2]].concat()).unwrap();
        assert_eq!(open(directory.path()).1, history);
    }

    #[test]
    fn history_that_cannot_be_written_stops_nothing_and_is_kept_whole_when_it_can() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("later");
        let (mut file, mut history) = open(&directory);
        note(&mut file, &mut history, 80, 1, [State::Init, State::Up]);
        assert_eq!(history.of(&key(80)).count(), 1);
        let now = Instant::now();
        assert!(!file.wants_rewrite(now) && file.wants_rewrite(now + RETRY));

        fs::create_dir(&directory).unwrap();
        file.rewrite(&history);
        note(&mut file, &mut history, 80, 2, [State::Up, DOWN]);
        assert!(!file.wants_rewrite(now + RETRY));
        assert_eq!(open(&directory).1, history);
    }

    #[test]
    fn append_that_fails_is_made_up_for() {
        let directory = tempfile::tempdir().unwrap();
        let (mut file, mut history) = open(directory.path());
        // Every write to it fails: the disk is full.
        file.file = Some(File::options().write(true).open("/dev/full").unwrap());
        note(&mut file, &mut history, 80, 1, [State::Init, State::Up]);
        assert!(file.wants_rewrite(Instant::now() + RETRY));
        file.rewrite(&history);
        assert_eq!(open(directory.path()).1, history);
    }

    #[test]
    fn clock_that_steps_back_turns_no_order_round() {
        let directory = tempfile::tempdir().unwrap();
        let (mut file, mut history) = open(directory.path());
        note(&mut file, &mut history, 80, 9, [State::Init, State::Up]);
        note(&mut file, &mut history, 80, 2, [State::Up, DOWN]);
        file.rewrite(&history);
        let (_, known) = open(directory.path());
        assert_eq!(known.of(&key(80)).map(|entry| entry.after).collect::<Vec<_>>(), [State::Up, DOWN]);
    }
}
