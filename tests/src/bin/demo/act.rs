//! One fault of one real, under load: detection, what clients see, recovery.

use std::{
    net::{IpAddr, Ipv4Addr},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use lbd::model::{Health, RealRow};
use tests::lab::{Host, LoadConfig, Packet, Payload, Request};

use crate::{
    downloads::{self, Ended},
    fault::Fault,
    say,
    stage::Stage,
};

/// 160 requests a second from eight clients of little patience.
const LOAD: LoadConfig =
    LoadConfig { workers: 8, interval: Duration::from_millis(50), timeout: Duration::from_secs(1) };
/// How long the load runs before the fault, with the fault in place, and after it.
const BEFORE: Duration = Duration::from_millis(500);
const DURING: Duration = Duration::from_millis(1500);
const AFTER: Duration = Duration::from_secs(1);

/// What was seen of a fault.
pub(crate) struct Outcome {
    pub(crate) fault: Fault,
    /// The state and reason that lbd showed.
    pub(crate) row: RealRow,
    /// From the start of the command that broke it until lbd showed the real down.
    pub(crate) detection: Duration,
    /// From the end of the command that mended it until lbd showed the real up.
    pub(crate) recovery: Duration,
    /// The failing real's share of the ring before, during and after, 0 to 1.
    pub(crate) shares: [f64; 3],
    pub(crate) requests: Requests,
    pub(crate) downloads: Vec<Ended>,
    /// The name of the failing real.
    pub(crate) real: String,
}

/// The requests of an act.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    pub(crate) total: usize,
    /// Failed, sent to the failing real.
    pub(crate) failed_there: usize,
    /// Of these, broken after the connection had been established.
    pub(crate) broken_there: usize,
    /// Of these, begun after lbd showed it down.
    pub(crate) failed_there_late: usize,
    /// Failed, sent to any other real or to none.
    pub(crate) failed_elsewhere: usize,
    /// The longest of those that were answered.
    pub(crate) slowest: Duration,
}

/// Plays one fault on the second real.
pub(crate) fn play(stage: &Stage, fault: Fault) -> Result<Outcome> {
    let real = stage.lab.real(2)?;
    say::heading(format_args!("{} on {}, under load", fault.name(), real.name()));
    let filter =
        format!("ip proto 4 and ip[29] = 6 and ip[53] & 2 != 0 and ip[32:4] = {}", stage.lab.client().addr().to_bits());
    let capture = stage.lab.router().pcap("to-lb", &filter, "act.pcap")?;
    let downloads = downloads::start_one_on_each_real(stage)?;
    let load = stage.lab.client().load(stage.lab.vip(), LOAD);
    thread::sleep(BEFORE);
    let before = share(stage, real)?;

    let broken = Instant::now();
    fault.strike(stage, real)?;
    let row = stage.wait_for_state(real, Health::Down)?;
    let (detection, down_since) = (broken.elapsed(), std::time::SystemTime::now());
    say::line(format_args!("down after {:.2} s (bound {:.2} s)", detection.as_secs_f64(), fault.bound().as_secs_f64()));
    stage.show_lbctl(&["real", "list"])?;
    thread::sleep(DURING);

    fault.mend(stage, real)?;
    let mended = Instant::now();
    let after = stage.wait_for_state(real, Health::Up)?.share;
    let recovery = mended.elapsed();
    say::line(format_args!("up again after {:.2} s", recovery.as_secs_f64()));
    thread::sleep(AFTER);

    let requests = load.stop()?;
    let syns = capture.stop()?;
    let down_since = down_since.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let outcome = Outcome {
        fault,
        detection,
        recovery,
        shares: [before, row.share, after],
        requests: Requests::count(&requests, &syns, real.addr(), down_since),
        downloads: downloads::finish(downloads)?,
        real: real.name().to_owned(),
        row,
    };
    outcome.tell();
    Ok(outcome)
}

fn share(stage: &Stage, real: &Host) -> Result<f64> {
    Ok(stage.rows()?.into_iter().find(|row| row.real == IpAddr::from(real.addr())).map_or(0.0, |row| row.share))
}

impl Outcome {
    /// Downloads from other reals: complete, and all.
    pub(crate) fn downloads_elsewhere(&self) -> (usize, usize) {
        let elsewhere = self.downloads.iter().filter(|ended| ended.real != self.real);
        (elsewhere.clone().filter(|ended| ended.complete).count(), elsewhere.count())
    }

    /// Whether the download from the failing real was served to its end.
    pub(crate) fn own_download_complete(&self) -> bool {
        self.downloads.iter().any(|ended| ended.real == self.real && ended.complete)
    }

    fn tell(&self) {
        let Requests { total, failed_there, broken_there, failed_there_late, failed_elsewhere, slowest } =
            &self.requests;
        let (complete, all) = self.downloads_elsewhere();
        say::line(format_args!(
            "requests   {total}; failed on {}: {failed_there} ({broken_there} once connected, {failed_there_late} once \
             it was down); failed elsewhere: {failed_elsewhere}; slowest answer {} ms",
            self.real,
            slowest.as_millis()
        ));
        say::line(format_args!(
            "downloads  {complete} of {all} from the other reals complete; the one from {} {}",
            self.real,
            if self.own_download_complete() { "complete" } else { "broken" }
        ));
    }
}

impl Requests {
    fn count(requests: &[Request], syns: &[Packet], failing: Ipv4Addr, down_since: Duration) -> Self {
        let mut counted = Self { total: requests.len(), ..Self::default() };
        for request in requests {
            match &request.answer {
                Ok(_) => counted.slowest = counted.slowest.max(request.took),
                Err(_) if sent_to(request, syns) == Some(failing) => {
                    counted.failed_there += 1;
                    counted.broken_there += usize::from(request.connected);
                    counted.failed_there_late += usize::from(request.began > down_since);
                }
                Err(error) => {
                    counted.failed_elsewhere += 1;
                    eprintln!("a request to {:?} failed: {error}", sent_to(request, syns));
                }
            }
        }
        counted
    }
}

/// Where the LB sent the first SYN of a request: the outer destination on its wire.
fn sent_to(request: &Request, syns: &[Packet]) -> Option<Ipv4Addr> {
    let ended = request.began + request.took;
    let is_its_syn = |packet: &&Packet| {
        let port = packet.inner().map(|inner| match inner.payload {
            Payload::Tcp { source_port, .. } => source_port,
            _ => 0,
        });
        port == Some(request.port) && (request.began..=ended).contains(&packet.at)
    };
    Some(syns.iter().find(is_its_syn)?.ip()?.destination)
}
