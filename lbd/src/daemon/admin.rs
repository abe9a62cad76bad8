//! What the operator says of reals: kept first, then carried out.

use super::Daemon;
use crate::{
    admin::{Order, Orders, Place, check_reason},
    api::Reply,
    model::{Admin, AdminOrder, AdminResult, FlowsAnswer, FlowsQuestion, HistoryQuestion, RealChoice},
    reconcile::Event,
};
use jiff::{SignedDuration, Timestamp};
use std::path::Path;

/// The longest time an order may be given for: a year.
const LONGEST_S: u64 = 366 * 24 * 3600;

/// What an earlier daemon kept. What nobody can read is put aside: a daemon that does not start serves nobody.
pub(super) fn orders_kept(directory: &Path) -> Orders {
    Orders::load(directory).unwrap_or_else(|error| {
        tracing::error!(%error, "what was drained and disabled is not known; every real is enabled");
        match Orders::put_aside(directory) {
            Ok(aside) => tracing::error!(path = %aside.display(), "put aside"),
            Err(error) => tracing::error!(%error, "not put aside"),
        }
        Orders::default()
    })
}

impl Daemon {
    /// At the start: what was said before holds on.
    pub(super) async fn resume_orders(&mut self) {
        self.forget_orders();
        let orders: Vec<_> = self.orders.iter().map(|(&place, order)| (place, order.state)).collect();
        for (place, state) in orders {
            let (vip, real) = place;
            tracing::info!(%vip, %real, ?state, "as the operator has said before");
            self.event(Event::Administered(place, state)).await;
        }
    }

    /// After a reload: a real that is not configured any more is forgotten, and is enabled if it comes back.
    pub(super) fn forget_orders(&mut self) {
        if self.orders.retain(self.core.config()) {
            self.keep_orders();
        }
    }

    fn keep_orders(&self) {
        if let Err(error) = self.orders.save(&self.options.state_dir) {
            tracing::error!(%error, "what was drained and disabled is not kept; it holds until lbd ends");
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
        // An asker that is gone wants no answer.
        drop(reply.send(self.order(order).await));
    }

    async fn order(&mut self, AdminOrder { of, state, reason, for_s }: AdminOrder) -> Result<AdminResult, String> {
        let places = self.places(of)?;
        reason.as_deref().map_or(Ok(()), check_reason)?;
        let now = Timestamp::now();
        let until = for_s.map(|seconds| end_of(now, seconds)).transpose()?;
        let order = (state != Admin::Enabled).then(|| Order { state, reason: reason.clone(), since: now, until });
        let mut orders = self.orders.clone();
        for &place in &places {
            // Said again, it holds since it was said first.
            let since = orders.get(&place).filter(|before| before.state == state).map_or(now, |before| before.since);
            orders.set(place, order.clone().map(|order| Order { since, ..order }));
        }
        orders.save(&self.options.state_dir).map_err(|error| format!("nothing was changed: {error}"))?;
        self.orders = orders;
        for &place in &places {
            self.administered(place, state, reason.as_deref().unwrap_or_default()).await;
        }
        let is_meant = |place: &Place| places.contains(place);
        let reals = self.all_real_rows().await;
        let reals = reals.into_iter().filter(|row| is_meant(&(row.key(), row.real))).collect();
        Ok(AdminResult { reals, warnings: places.iter().filter_map(|place| self.warning(place)).collect() })
    }

    async fn administered(&mut self, place: Place, state: Admin, reason: &str) {
        let (vip, real) = place;
        tracing::info!(%vip, %real, after = state.name(), reason, "administered");
        self.event(Event::Administered(place, state)).await;
    }

    fn places(&self, of: RealChoice) -> Result<Vec<Place>, String> {
        let RealChoice { real, vip, port } = of;
        let members = self.members(HistoryQuestion { real: Some(real), vip, port })?;
        Ok(members.into_iter().map(|(service, real)| (service.config.key(), real)).collect())
    }

    /// No real of the VIP takes new flows by its own merit and the operator's leave.
    fn warning(&self, (vip, _): &Place) -> Option<String> {
        let service = self.core.services().find(|service| service.config.key() == *vip)?;
        service
            .ring
            .current()
            .is_empty()
            .then(|| format!("{vip} has no real left that takes new flows: they are dropped"))
    }

    pub(super) fn answer_flows(&self, FlowsQuestion { real, within_s }: FlowsQuestion, reply: Reply<FlowsAnswer>) {
        let Some((_, id)) = self.core.reals().find(|(address, _)| *address == real) else {
            return drop(reply.send(Err(format!("no VIP has the real {real}"))));
        };
        let flows = self.worker.flows(id, within_s);
        super::send(reply, async move { Ok(FlowsAnswer { flows: flows.await? }) });
    }
}

fn end_of(now: Timestamp, seconds: u64) -> Result<Timestamp, String> {
    let allowed = (1..=LONGEST_S).contains(&seconds);
    let span = allowed.then(|| i64::try_from(seconds).ok()).flatten().map(SignedDuration::from_secs);
    let end = span.and_then(|span| now.checked_add(span).ok());
    end.ok_or_else(|| format!("{seconds} s is out of range: allowed is 1 s to a year"))
}
