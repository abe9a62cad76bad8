//! What the daemon tells about one real: its checks and their history.

use super::{
    Daemon,
    views::{health, micros, timestamp},
};
use crate::{
    api::Reply,
    config::{self, Config, VipKey},
    history::Entry,
    model::{CheckRow, HistoryQuestion, HistoryRow, RealChoice, RealDetail, RttStats, Severity, TraceQuestion},
    service::{self, Service, Standing},
};
use hc_prober::{CheckKey, CheckStatus, State, Transition, driver::wall, trace};
use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    time::{Duration, Instant},
};

/// So many transitions are told at most, the last ones.
const MOST: usize = 1024;

impl Daemon {
    /// The transitions of the checks of these reals, of all VIPs together, in order of time.
    pub(super) fn history_rows(&self, question: HistoryQuestion) -> Result<Vec<HistoryRow>, String> {
        let mut entries = Vec::new();
        for (service, real) in self.members(question)? {
            for key in service.check_keys(real) {
                entries.extend(self.history.of(&key).map(|entry| (service.config.key(), key.clone(), entry)));
            }
        }
        entries.sort_by_key(|(_, _, entry)| entry.at);
        let last = entries.split_off(entries.len().saturating_sub(MOST));
        Ok(last.into_iter().map(|(vip, key, entry)| history_row(vip, &key, entry)).collect())
    }

    /// Takes note of a transition, for the next daemon too.
    pub(super) fn record(&mut self, transition: Transition) {
        let key = transition.key.clone();
        if let Some(entry) = self.history.record(transition) {
            self.history_file.append(&key, entry);
        }
    }

    /// Writes the history anew when that is due.
    pub(super) fn keep_history(&mut self) {
        if self.history_file.wants_rewrite(Instant::now()) {
            self.history_file.rewrite(&self.history);
        }
    }

    /// What is said of a real's health: until this daemon has a verdict, of one that takes new flows although it was down
    /// (`all_down = "keep"`), that it is.
    pub(super) fn shown(&self, service: &Service, real: IpAddr, standing: &Standing) -> State {
        let last = |key: CheckKey| Some(self.history.of(&key).last()?.after);
        let down = |state: &State| matches!(state, State::Down(_));
        let before = || service.check_keys(real).filter_map(last).find(down);
        let is_inherited = standing.state == State::Up && !standing.is_heard();
        if is_inherited { before().unwrap_or(State::Up) } else { standing.state }
    }

    /// How many reals are up.
    pub(super) fn reals_up(&self, service: &Service) -> usize {
        service.configured().filter(|&(real, s)| self.shown(service, real, s) == State::Up).count()
    }

    /// Takes note of why a check went down.
    pub(super) fn explain(&mut self, key: &CheckKey, code: &str) {
        if let Some(entry) = self.history.explain(key, code) {
            self.history_file.append(key, entry);
        }
    }

    /// All that is known of a real, for each VIP that has it.
    pub(super) async fn real_details(&mut self, question: RealChoice) -> Result<Vec<RealDetail>, String> {
        let statuses = self.check_statuses().await;
        let RealChoice { real, vip, port } = question;
        let members = self.members(HistoryQuestion { real: Some(real), vip, port })?;
        let detail = |(service, real): (&Service, IpAddr)| {
            let row = self.real_rows(service, &statuses).find(|row| row.real == real)?;
            let checks = service.check_keys(real).filter_map(|key| Some(self.check_row(statuses.get(&key)?))).collect();
            let finding = self.core.decisive(service, real).and_then(|key| self.diagnoses.finding(&key).cloned());
            Some(RealDetail { row, checks, finding })
        };
        Ok(members.into_iter().filter_map(detail).collect())
    }

    /// Has the real's checks traced for a while, and then tells what there is.
    pub(super) fn answer_trace(&self, question: TraceQuestion, reply: Reply<Vec<u8>>) {
        let TraceQuestion { real, vip, port, wait_ms } = question;
        let wait = Duration::from_millis(wait_ms.unwrap_or(0).min(TraceQuestion::MOST_WAIT_MS));
        let members = match self.members(HistoryQuestion { real: Some(real), vip, port }) {
            Ok(members) => members,
            // An asker that is gone wants no answer.
            Err(error) => return drop(reply.send(Err(error))),
        };
        let keys: BTreeSet<_> = members.iter().flat_map(|(service, real)| service.check_keys(*real)).collect();
        let (keys, tracing) = (Vec::from_iter(keys), self.prober.tracing());
        tokio::spawn(async move {
            if !wait.is_zero() {
                tracing.trace(keys.clone(), wait).await;
                tokio::time::sleep(wait).await;
            }
            let mut file = Vec::new();
            let written = trace::write(&tracing.trace(keys, Duration::ZERO).await, wall, &mut file);
            drop(reply.send(written.map(|()| file).map_err(|error| error.to_string())));
        });
    }

    fn check_row(&self, status: &CheckStatus) -> CheckRow {
        let rtts = status.rtts.map(|rtts| RttStats {
            count: rtts.count,
            min_us: micros(rtts.min),
            avg_us: micros(rtts.avg),
            max_us: micros(rtts.max),
        });
        CheckRow {
            check: status.key.to_string(),
            state: health(status.state),
            severity: severity(status.state),
            reason: status.reason.code().to_owned(),
            detail: status.detail.clone(),
            since: self.history.since(&status.key, status.state).unwrap_or_else(|| timestamp(status.since)),
            last_check: status.last_run.map(timestamp),
            rtt_us: status.rtt.map(micros),
            rtts,
            rise: status.rise,
            fall: status.fall,
        }
    }

    /// The reals that a question is about, with each VIP that has them.
    pub(super) fn members(&self, question: HistoryQuestion) -> Result<Vec<(&Service, IpAddr)>, String> {
        let HistoryQuestion { real, vip, port } = question;
        let is_meant = |service: &&Service| {
            let key = service.config.key();
            vip.is_none_or(|vip| vip == key.address) && port.is_none_or(|port| port == key.port)
        };
        let services = self.core.services().filter(is_meant);
        let members: Vec<_> = services
            .flat_map(|service| service.config.reals().iter().map(move |member| (service, member.address)))
            .filter(|(_, member)| real.is_none_or(|real| real == *member))
            .collect();
        match (members.is_empty(), real) {
            (false, _) => Ok(members),
            (true, Some(real)) if vip.is_none() && port.is_none() => Err(format!("no VIP has the real {real}")),
            (true, Some(real)) => Err(format!("that VIP does not have the real {real}, or is none")),
            (true, None) => Err("there is no such VIP".to_owned()),
        }
    }

    pub(super) async fn check_statuses(&self) -> HashMap<CheckKey, CheckStatus> {
        self.prober.status().await.into_iter().map(|status| (status.key.clone(), status)).collect()
    }
}

fn history_row(vip: VipKey, key: &CheckKey, entry: &Entry) -> HistoryRow {
    let Entry { at, before, after, reason, detail, rtt, why } = entry.clone();
    HistoryRow {
        at,
        vip: vip.address,
        protocol: vip.protocol,
        port: vip.port,
        real: key.real,
        check: key.to_string(),
        before: health(before),
        after: health(after),
        severity: severity(after),
        reason,
        detail,
        rtt_us: rtt.map(micros),
        why,
    }
}

/// The checks of a configuration.
pub(super) fn check_keys(config: &Config) -> impl Iterator<Item = CheckKey> {
    let of_vip = |vip| config::Vip::reals(vip).iter().flat_map(move |real| service::check_keys(vip, real.address));
    config.vips().iter().flat_map(of_vip).map(|(key, _)| key)
}

fn severity(state: State) -> Option<Severity> {
    match state {
        State::Down(hc_prober::Severity::Hard) => Some(Severity::Hard),
        State::Down(hc_prober::Severity::Soft) => Some(Severity::Soft),
        State::Init | State::Up => None,
    }
}
