//! Which checks the daemon has its reals asked about, and for whom.

use super::{Daemon, views::health};
use crate::{
    api::Reply,
    config::VipKey,
    model::{Finding, HistoryQuestion, RealChoice, WhyRow},
    service::Service,
    why::Case,
};
use hc_prober::{CheckKey, State};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};
use tokio::sync::oneshot;

/// So many checks are asked about for one question: the asker waits for all of them.
const MOST: usize = 8;

/// What one question is about: a VIP, what is known of the real there, and its check.
type Meant = (VipKey, State, CheckKey);

/// Tells of a diagnosis that is kept.
pub(super) fn log(key: &CheckKey, finding: &Finding) {
    let Finding { code, text, mend, .. } = finding;
    let (kind, mend) = (key.kind.name(), mend.as_deref().unwrap_or_default());
    tracing::info!(real = %key.real, vip = %key.target, kind, code, text, mend, "diagnosis");
}

impl Daemon {
    /// A check has changed its state: why, if it is down?
    pub(super) fn diagnose(&mut self, key: &CheckKey, state: State) {
        match state {
            State::Down(_) => {
                // None: removed meanwhile, nobody wants to know.
                if let Some(case) = self.case(key) {
                    self.diagnoses.went_down(case);
                }
            }
            State::Up | State::Init => self.diagnoses.went_up(key),
        }
    }

    /// Has the real asked as each VIP's; the answer is put together when all is known.
    pub(super) fn answer_why(&mut self, question: RealChoice, reply: Reply<Vec<WhyRow>>) {
        let meant = match self.meant(question) {
            Ok(meant) => meant,
            // An asker that is gone wants no answer.
            Err(error) => return drop(reply.send(Err(error))),
        };
        let keys: BTreeSet<&CheckKey> = meant.iter().map(|(_, _, key)| key).collect();
        let cases: Vec<Case> = keys.into_iter().filter_map(|key| self.case(key)).collect();
        let answers: Vec<_> = cases.into_iter().map(|case| (case.key.clone(), self.diagnoses.ask(case))).collect();
        let real = question.real;
        tokio::spawn(async move { drop(reply.send(Ok(rows(real, meant, answers).await))) });
    }

    fn meant(&self, question: RealChoice) -> Result<Vec<Meant>, String> {
        let RealChoice { real, vip, port } = question;
        let members = self.members(HistoryQuestion { real: Some(real), vip, port })?;
        let meant = |(service, real): (&Service, _)| {
            let state = service.standing(real).map_or(State::Init, |standing| standing.state);
            Some((service.config.key(), state, self.core.decisive(service, real)?))
        };
        let meant: Vec<Meant> = members.into_iter().filter_map(meant).collect();
        let checks = meant.iter().map(|(_, _, key)| key).collect::<BTreeSet<_>>().len();
        match checks {
            ..=MOST => Ok(meant),
            _ => Err(format!(
                "{real} has {checks} checks of its own in as many VIPs, and at most {MOST} are asked about at a time: name \
                 one VIP, with its port"
            )),
        }
    }

    fn case(&self, key: &CheckKey) -> Option<Case> {
        let (timing, decap_worked) = self.core.check(key)?;
        Some(Case { key: key.clone(), timeout: timing.timeout, decap_worked })
    }
}

async fn rows(real: IpAddr, meant: Vec<Meant>, answers: Vec<(CheckKey, oneshot::Receiver<Finding>)>) -> Vec<WhyRow> {
    let mut findings = BTreeMap::new();
    for (key, answer) in answers {
        // Nobody answers only when the daemon ends.
        if let Ok(finding) = answer.await {
            findings.insert(key, finding);
        }
    }
    let row = |(VipKey { address, protocol, port }, state, key): Meant| {
        let (finding, state) = (findings.get(&key)?.clone(), health(state));
        Some(WhyRow { vip: address, protocol, port, real, state, finding })
    };
    meant.into_iter().filter_map(row).collect()
}
