//! What the operator says of reals: kept first, then carried out.

use super::{Daemon, send};
use crate::{
    admin::{Order, Place, check_reason},
    api::Reply,
    model::{Admin, AdminOrder, AdminResult, FlowsAnswer, FlowsQuestion, HistoryQuestion, RealChoice},
    reconcile::{Event, Phase},
};
use jiff::{SignedDuration, Timestamp};

/// The longest time an order may be given for: a year.
const LONGEST_S: u64 = 366 * 24 * 3600;

impl Daemon {
    /// After a start or a reload: what was said before holds on. A real that is not configured any more is forgotten, and is
    /// enabled if it comes back.
    pub(super) async fn resume_orders(&mut self) {
        if self.orders.retain(self.core.config()) {
            self.keep_orders();
        }
        let orders: Vec<_> = self.orders.iter().map(|(&place, order)| (place, order.state)).collect();
        for (place, state) in orders {
            self.event(Event::Administered(place, state)).await;
        }
    }

    fn keep_orders(&self) {
        if let Err(error) = self.orders.save(&self.options.state_dir) {
            tracing::error!(%error, "the end of an order is not kept: the next lbd takes it for one that holds");
        }
    }

    /// Enables reals whose time is over.
    pub(super) async fn end_orders(&mut self) {
        let expired = self.orders.expired(Timestamp::now());
        if expired.is_empty() {
            return;
        }
        for &place in &expired {
            self.orders.set(place, None);
        }
        self.keep_orders();
        for place in expired {
            self.administered(place, Admin::Enabled, "its time is over").await;
        }
    }

    pub(super) async fn answer_admin(&mut self, order: AdminOrder, reply: Reply<AdminResult>) {
        match self.order(order).await {
            Ok(result) => {
                let settled = self.worker.settled();
                send(reply, async move { settled.await.map(|()| result) });
            }
            // An asker that is gone wants no answer.
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    async fn order(&mut self, AdminOrder { of, state, reason, for_s }: AdminOrder) -> Result<AdminResult, String> {
        let places = self.places(of)?;
        reason.as_deref().map_or(Ok(()), check_reason)?;
        let now = Timestamp::now();
        let until = for_s.map(|seconds| end_of(now, seconds)).transpose()?;
        let mut orders = self.orders.clone();
        for &place in &places {
            // Said again, it holds since it was said first, and what is not said anew stays.
            let before = orders.get(&place).filter(|before| before.state == state).cloned();
            let new = Order { state, reason: reason.clone(), since: now, until };
            let order = match before {
                Some(Order { since, reason, until, .. }) => {
                    Order { since, reason: new.reason.or(reason), until: new.until.or(until), state }
                }
                None => new,
            };
            orders.set(place, (state != Admin::Enabled).then_some(order));
        }
        orders.save(&self.options.state_dir).map_err(|error| format!("not kept, so not done: {error}"))?;
        self.orders = orders;
        for &place in &places {
            self.administered(place, state, reason.as_deref().unwrap_or_default()).await;
        }
        let rows = self.all_real_rows().await;
        let reals = rows.into_iter().filter(|row| places.contains(&(row.key(), row.real))).collect();
        Ok(AdminResult { reals, warnings: places.iter().filter_map(|place| self.warning(place)).collect() })
    }

    async fn administered(&mut self, place: Place, state: Admin, reason: &str) {
        let (vip, real) = place;
        tracing::info!(%vip, %real, after = state.name(), reason, "administered");
        self.event(Event::Administered(place, state)).await;
    }

    fn places(&self, RealChoice { real, vip, port }: RealChoice) -> Result<Vec<Place>, String> {
        let members = self.members(HistoryQuestion { real: Some(real), vip, port })?;
        Ok(members.into_iter().map(|(service, real)| (service.config.key(), real)).collect())
    }

    /// Too few reals are left that take new flows of the VIP because they are up and may, or none.
    fn warning(&self, (vip, _): &Place) -> Option<String> {
        let service = self.core.services().find(|service| service.config.key() == *vip)?;
        let (left, needed) = (service.serving(), service.config.min_healthy());
        if left > 0 {
            let too_few = || format!("only {left} of the {needed} reals that must (min_healthy) serve {vip}");
            return (left < needed).then(too_few);
        }
        let fate = if service.ring.current().is_empty() { "are dropped" } else { "go to reals that are down" };
        Some(format!("no real of {vip} that is up takes new flows: they {fate}"))
    }

    pub(super) fn answer_flows(&self, question: FlowsQuestion, reply: Reply<FlowsAnswer>) {
        let FlowsQuestion { real, vip, port, recent_s, since_s } = question;
        let places = match self.places(RealChoice { real, vip, port }) {
            Ok(places) => places,
            Err(error) => return drop(reply.send(Err(error))),
        };
        let said = places.iter().all(|place| self.orders.get(place).is_some());
        // Until then packets meet the rings of an earlier daemon.
        let is_out = said && self.core.phase() == Phase::Running;
        let id = self.core.reals().find(|(address, _)| *address == real).map(|(_, id)| id);
        let flows = id.map(|id| self.worker.flows(id, [recent_s, since_s]));
        send(reply, async move {
            // One without an index has no flows.
            let [recent, since] = match flows {
                Some(flows) => flows.await?,
                None => [0; 2],
            };
            Ok(FlowsAnswer { recent, since, is_out })
        });
    }
}

fn end_of(now: Timestamp, seconds: u64) -> Result<Timestamp, String> {
    let allowed = (1..=LONGEST_S).contains(&seconds);
    let span = allowed.then(|| i64::try_from(seconds).ok()).flatten().map(SignedDuration::from_secs);
    let end = span.and_then(|span| now.checked_add(span).ok());
    end.ok_or_else(|| format!("{seconds} s is out of range: allowed is 1 s to a year"))
}
