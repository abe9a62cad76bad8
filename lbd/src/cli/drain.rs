//! Waiting until a real that is drained has no flows left.

use super::client::{Client, ClientError};
use crate::model::FlowsQuestion;
use std::{
    io::{self, IsTerminal as _, Write as _},
    net::IpAddr,
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// How often lbd is asked.
const EVERY: Duration = Duration::from_secs(1);

/// What to wait for, and how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// No flow of the real was seen for so long.
    pub(super) quiet: Duration,
    /// After this it is given up; never, if absent.
    pub(super) timeout: Option<Duration>,
}

/// Waits until no flow was seen on the real for as long as `patience` says; false if its time was over before. Tells on
/// standard error how far it is: on a terminal in one line, else whenever the number of flows changes.
pub(super) async fn wait(client: &Client, real: IpAddr, patience: Patience) -> Result<bool, ClientError> {
    let began = Instant::now();
    let mut progress = Progress { live: io::stderr().is_terminal(), shown: None };
    loop {
        let elapsed = began.elapsed();
        let recent = client.flows(FlowsQuestion { real, within_s: seconds(patience.quiet) }).await?.flows;
        // What is remembered of a moment ago is not of the drain.
        let all = client.flows(FlowsQuestion { real, within_s: seconds(elapsed) }).await?.flows;
        progress.show(real, elapsed, all, recent, patience.quiet);
        let done = elapsed >= patience.quiet && recent == 0;
        if done || patience.timeout.is_some_and(|timeout| elapsed >= timeout) {
            progress.end();
            return Ok(done);
        }
        sleep(EVERY).await;
    }
}

/// Rounded up.
fn seconds(span: Duration) -> u16 {
    u16::try_from(span.as_millis().div_ceil(1000)).unwrap_or(u16::MAX)
}

struct Progress {
    live: bool,
    shown: Option<(u64, u64)>,
}

impl Progress {
    fn show(&mut self, real: IpAddr, elapsed: Duration, all: u64, recent: u64, quiet: Duration) {
        if !self.live && self.shown.replace((all, recent)) == Some((all, recent)) {
            return;
        }
        let (start, end) = if self.live { ("\r\x1b[K", "") } else { ("", "\n") };
        let mut stderr = io::stderr().lock();
        // Whoever does not read this waits all the same.
        let _ = write!(
            stderr,
            "{start}{real}: draining for {} s; flows seen since: {all}, in the last {} s: {recent}{end}",
            elapsed.as_secs(),
            quiet.as_secs()
        );
        let _ = stderr.flush();
    }

    fn end(&self) {
        if self.live {
            let _ = writeln!(io::stderr());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_rounded_up_and_bounded() {
        let of = |ms| seconds(Duration::from_millis(ms));
        assert_eq!([of(0), of(1), of(1000), of(1001), of(u64::MAX)], [0, 1, 1, 2, u16::MAX]);
    }
}
