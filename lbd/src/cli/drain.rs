//! Waiting until a real that is drained has no flows left.

use super::client::{Client, ClientError};
use crate::model::{FlowsAnswer, FlowsQuestion, RealChoice};
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

/// How waiting ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The real has no flows left.
    Drained,
    /// Time is over.
    TimedOut,
    /// Somebody has enabled it, or its order came to its end.
    Enabled,
}

/// Waits until no flow was seen on the real for as long as `patience` says. Tells on standard error how far it is: on a
/// terminal in one line, else whenever the number of flows changes.
pub(super) async fn wait(client: &Client, of: RealChoice, patience: Patience) -> Result<End, ClientError> {
    let RealChoice { real, vip, port } = of;
    let asked = Instant::now();
    // Packets may meet the order later than it was given: lbd has just started.
    let mut out_since = None;
    let mut progress = Progress { live: io::stderr().is_terminal(), shown: None };
    loop {
        let elapsed = out_since.map_or(Duration::ZERO, |since: Instant| since.elapsed());
        let (recent_s, since_s) = (seconds(patience.quiet), seconds(elapsed));
        let answer = client.flows(FlowsQuestion { real, vip, port, recent_s, since_s }).await?;
        match (answer.is_out, out_since) {
            (true, None) => out_since = Some(Instant::now()),
            (false, Some(_)) => return Ok(End::Enabled),
            _ => {}
        }
        progress.show(real, elapsed, answer, patience.quiet);
        if out_since.is_some() && elapsed >= patience.quiet && answer.recent == 0 {
            return Ok(End::Drained);
        }
        if patience.timeout.is_some_and(|timeout| asked.elapsed() >= timeout) {
            return Ok(End::TimedOut);
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
    fn show(&mut self, real: IpAddr, elapsed: Duration, flows: FlowsAnswer, quiet: Duration) {
        let FlowsAnswer { recent, since, .. } = flows;
        if self.shown.replace((since, recent)) == Some((since, recent)) && !self.live {
            return;
        }
        let (start, end) = if self.live { ("\r\x1b[K", "") } else { ("", "\n") };
        let (elapsed, quiet) = (elapsed.as_secs(), quiet.as_secs());
        let mut stderr = io::stderr().lock();
        // Whoever does not read this waits all the same.
        let _ = write!(
            stderr,
            "{start}{real}: draining for {elapsed} s; flows seen since: {since}, in the last {quiet} s: {recent}{end}"
        );
        let _ = stderr.flush();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.live && self.shown.is_some() {
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
