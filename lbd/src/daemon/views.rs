//! What the daemon tells `lbctl`: the core's state, the prober's and the counters, put together.

use super::Daemon;
use crate::{
    config::VipKey,
    data_plane::{Error, Mode, Report},
    flap::Flaps,
    model::{
        Admin, ConfigStatus, Health, InterfaceStatus, Phase, ProberState, ProberStatus, ProgramStatus, RealRow,
        RealStats, ReasonStats, RingShare, RingStatus, Stats, Status, TrackedStats, Verdict, VipRow, VipStats,
        VipSummary, XdpMode,
    },
    notice::reason,
    ring::WHOLE,
    service::Service,
};
use hc_prober::{CheckKey, CheckStatus, Condition, State};
use jiff::{Timestamp, Unit};
use lb_ebpf::{
    counter::{Action, Counter, FlowEvent, Reason},
    ring::RealId,
    syn::SynCounter,
};
use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    time::{Duration, Instant, SystemTime},
};

/// The reason of a real that the data plane has no place for.
const NO_INDEX: &str = "NO_INDEX";
/// That of a real that is held down although its checks pass.
const HELD_DOWN: &str = "HELD_DOWN";

pub(super) fn timestamp(at: SystemTime) -> Timestamp {
    Timestamp::try_from(at).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// By the wall, to the second: the two clocks do not go in step.
fn second(at: Instant) -> Timestamp {
    let (now, wall) = (Instant::now(), SystemTime::now());
    let wall = wall + at.saturating_duration_since(now) - now.saturating_duration_since(at);
    let at = timestamp(wall);
    at.round(Unit::Second).unwrap_or(at)
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn share_of(shares: &BTreeMap<RealId, f64>, id: RealId) -> f64 {
    shares.get(&id).copied().unwrap_or(0.0)
}

impl Daemon {
    pub(super) async fn status(&self) -> impl Future<Output = Result<Status, Error>> + Send + use<> {
        let report = self.worker.report(Vec::new(), Vec::new());
        let counters = self.prober.counters().await;
        let checks = self.prober.status().await;
        let condition = self.prober.condition();
        let fault = matches!(condition, Condition::NotSending | Condition::CutOff).then(|| fault_of(&checks)).flatten();
        let mut status = Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started: self.started,
            phase: if self.attached.is_empty() { Phase::Starting } else { Phase::Running },
            node: self.node.clone(),
            config: ConfigStatus {
                path: self.options.config.clone(),
                revision: self.revision,
                loaded_at: self.loaded_at,
                last_reload_error: self.last_reload_error.clone(),
            },
            interfaces: self.interfaces(),
            program: None,
            prober: ProberStatus {
                checks: u64::from(count(checks.len())),
                sent: counters.sent,
                forged: counters.forged,
                late: counters.late,
                lag_us: counters.lag.max_us(),
                lag_p50_us: counters.lag.percentile_us(50),
                lag_p99_us: counters.lag.percentile_us(99),
                send_errors: counters.send_errors + counters.no_port,
                state: prober_state(condition),
                fault,
            },
            vips: self.core.services().map(|s| self.summary_of(s)).collect(),
            rings: self.core.services().map(|s| self.ring_status(s)).collect(),
        };
        async move {
            let program = report.await?.program;
            status.program = Some(ProgramStatus { id: program.id, verified_insns: program.verified_instructions });
            Ok(status)
        }
    }

    fn summary_of(&self, service: &Service) -> VipSummary {
        let VipKey { address, protocol, port } = service.config.key();
        let (reals_up, reals_total) = (count(self.reals_up(service)), count(service.configured().count()));
        VipSummary { vip: address, protocol, port, reals_up, reals_total, state: service.state() }
    }

    fn interfaces(&self) -> Vec<InterfaceStatus> {
        let mode = match self.options.mode {
            Mode::Native => XdpMode::Native,
            Mode::Generic => XdpMode::Generic,
        };
        let status = |name: &String| InterfaceStatus {
            name: name.clone(),
            mode,
            attached: self.attached.iter().any(|a| a.interface == *name),
        };
        self.core.config().node().interfaces().iter().map(status).collect()
    }

    fn ring_status(&self, service: &Service) -> RingStatus {
        let VipKey { address, protocol, port } = service.config.key();
        let shares = service.ring.shares();
        let share = |(real, s): (_, &crate::service::Standing)| RingShare { real, share: share_of(&shares, s.id) };
        RingStatus {
            vip: address,
            protocol,
            port,
            size: count(service.ring.size()),
            size_wanted: count(service.ring_size_wanted()),
            digest: self.digest(service),
            shares: service.configured().map(share).collect(),
        }
    }

    fn digest(&self, service: &Service) -> String {
        format!("{:016x}", self.core.digest(service))
    }

    pub(super) fn vip_rows(&self) -> impl Future<Output = Result<Vec<VipRow>, Error>> + Send + use<> {
        let report = self.worker.report(self.core.services().map(|s| s.index).collect(), Vec::new());
        let now = Instant::now();
        let row = |service: &Service| {
            let VipKey { address, protocol, port } = service.config.key();
            let until =
                service.ring.window_until().map(|at| timestamp(SystemTime::now() + at.saturating_duration_since(now)));
            VipRow {
                vip: address,
                protocol,
                port,
                reals_up: count(self.reals_up(service)),
                reals_total: count(service.configured().count()),
                ring_size: count(service.ring.size()),
                ring_size_wanted: count(service.ring_size_wanted()),
                digest: self.digest(service),
                packets: 0,
                bytes: 0,
                window_open_until: until,
                state: service.state(),
                reason: reason(service.state(), service.serving(), service.config.min_healthy()),
                reals_serving: count(service.serving()),
                min_healthy: count(service.config.min_healthy()),
                serving: self.core.can_serve(service),
                route: None,
                route_held_until: None,
                answers: self.answers(service),
            }
        };
        let row = |service: &Service| self.with_route(row(service), service, now);
        let mut rows: Vec<_> = self.core.services().map(row).collect();
        async move {
            for (row, counter) in rows.iter_mut().zip(report.await?.vips) {
                (row.packets, row.bytes) = (counter.packets, counter.bytes);
            }
            Ok(rows)
        }
    }

    pub(super) async fn all_real_rows(&mut self) -> Vec<RealRow> {
        let statuses = self.check_statuses().await;
        self.core.services().flat_map(|service| self.real_rows(service, &statuses)).collect()
    }

    /// The rows of a VIP's reals.
    pub(super) fn real_rows(
        &self,
        service: &Service,
        statuses: &HashMap<CheckKey, CheckStatus>,
    ) -> impl Iterator<Item = RealRow> {
        let standings: BTreeMap<_, _> = service.configured().collect();
        let shares = service.ring.shares();
        service.config.reals().iter().map(move |real| {
            let VipKey { address, protocol, port } = service.config.key();
            let key = self.core.decisive(service, real.address);
            let check = key.as_ref().and_then(|key| statuses.get(key));
            let standing = standings.get(&real.address);
            let order = self.orders.get(&(service.config.key(), real.address));
            // Of a state that this daemon has not seen yet too.
            let state = standing.map_or(State::Init, |standing| self.shown(service, real.address, standing));
            let kept = key.as_ref().filter(|_| standing.is_some()).and_then(|key| self.history.since(key, state));
            let flaps = standing.map(|standing| &standing.flaps);
            let held_until = flaps.and_then(Flaps::held_until);
            let span = service.config.policy().slow_start;
            let ramp_until = standing.and_then(|standing| standing.ramp_until(span));
            let reason = match standing {
                Some(_) if held_until.is_some() => HELD_DOWN,
                Some(_) => check.map_or("INIT", |c| c.reason.code()),
                None => NO_INDEX,
            };
            RealRow {
                vip: address,
                protocol,
                port,
                real: real.address,
                weight: real.weight,
                admin: order.map_or(Admin::Enabled, |order| order.state),
                state: health(state),
                reason: reason.to_owned(),
                since: flaps
                    .and_then(Flaps::since)
                    .map(second)
                    .or(kept)
                    .or_else(|| check.map(|c| timestamp(c.since)))
                    .unwrap_or(self.started),
                last_check: check.and_then(|c| c.last_run).map(timestamp),
                rtt_us: check.and_then(|c| c.rtt).map(micros),
                rise: check.map_or(0, |c| c.rise),
                fall: check.map_or(0, |c| c.fall),
                share: standing.map_or(0.0, |s| share_of(&shares, s.id)),
                mtu: self.core.mtu(real.address),
                why: key.and_then(|key| self.diagnoses.finding(&key)).map(|finding| finding.code.clone()),
                admin_reason: order.and_then(|order| order.reason.clone()),
                admin_since: order.map(|order| order.since),
                admin_until: order.and_then(|order| order.until),
                flaps: flaps
                    .map_or(0, |flaps| count(flaps.recent(service.config.policy().flap.window, Instant::now()))),
                flaps_total: flaps.map_or(0, Flaps::total),
                held_until: held_until.map(second),
                ramp_percent: ramp_until.and(standing).map(|s| s.portion() * (100 / WHOLE)),
                ramp_until: ramp_until.map(second),
            }
        })
    }

    pub(super) fn stats(&self) -> impl Future<Output = Result<Stats, Error>> + Send + use<> {
        let (addresses, ids): (Vec<_>, Vec<_>) = self.core.reals().unzip();
        let (vips, indexes): (Vec<_>, Vec<_>) = self.core.services().map(|s| (s.config.key(), s.index)).unzip();
        let report = self.worker.report(indexes, ids);
        let room = u64::from(count(self.core.config().node().tracked_flows().entries()));
        let remembered = self.remembered.map(|flows| u64::from(count(flows)));
        let tracked = TrackedStats { remembered, room, ..TrackedStats::default() };
        async move { Ok(stats(&vips, &addresses, tracked, &report.await?)) }
    }
}

fn stats(vips: &[VipKey], reals: &[IpAddr], tracked: TrackedStats, report: &Report) -> Stats {
    let vip = |(vip, counter): (&VipKey, &Counter)| {
        let VipKey { address, protocol, port } = *vip;
        VipStats { vip: address, protocol, port, packets: counter.packets, bytes: counter.bytes }
    };
    let real = |(&real, (counter, syns)): (&IpAddr, &(Counter, SynCounter))| RealStats {
        real,
        packets: counter.packets,
        bytes: counter.bytes,
        syns: syns.syns,
        repeated_syns: syns.repeated,
    };
    let reason = |(reason, counter): &(Reason, Counter)| ReasonStats {
        verdict: match reason.action() {
            Action::Pass => Verdict::Pass,
            Action::Drop => Verdict::Drop,
            Action::Transmit | Action::Redirect => Verdict::Tx,
        },
        reason: reason.code().to_owned(),
        packets: counter.packets,
    };
    let events = |wanted: &[FlowEvent]| {
        report.flow_events.iter().filter(|(event, _)| wanted.contains(event)).map(|(_, n)| n).sum()
    };
    Stats {
        vips: vips.iter().zip(&report.vips).map(vip).collect(),
        reals: reals.iter().zip(&report.reals).map(real).collect(),
        reasons: report.reasons.iter().map(reason).collect(),
        tracked: TrackedStats {
            hits: events(&[FlowEvent::Hit]),
            misses: events(&[FlowEvent::MissSyn, FlowEvent::MissTcp, FlowEvent::MissUdp]),
            evictions: events(&[FlowEvent::Evict]),
            ..tracked
        },
    }
}

pub(super) fn health(state: State) -> Health {
    match state {
        State::Init => Health::Init,
        State::Up => Health::Up,
        State::Down(_) => Health::Down,
    }
}

/// What the last probe met.
fn fault_of(checks: &[CheckStatus]) -> Option<String> {
    let telling = checks.iter().filter(|check| check.detail.is_some()).max_by_key(|check| check.last_run);
    telling.and_then(|check| check.detail.clone())
}

fn prober_state(condition: Condition) -> ProberState {
    match condition {
        Condition::Running => ProberState::Running,
        Condition::Stalled => ProberState::Stalled,
        Condition::NotSending => ProberState::NotSending,
        Condition::CutOff => ProberState::CutOff,
    }
}

pub(super) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
