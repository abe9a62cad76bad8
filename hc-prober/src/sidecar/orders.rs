//! Commands that wait for the one that runs. Of each real only its last change waits: what was superseded meanwhile is not
//! done any more, so there are never more of them than reals.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

use super::{Change, Template};

/// A command to run: for what, which, and how long it may take.
pub type Order = (Change, Template, Duration);

/// The commands that wait.
#[derive(Debug, Default)]
pub struct Orders {
    waiting: Mutex<Waiting>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    orders: VecDeque<Order>,
    closed: bool,
}

impl Orders {
    /// Adds one, in the place of an earlier one for the same real of the same service.
    pub fn put(&self, change: Change, template: &Template, timeout: Duration) {
        self.with(|waiting| {
            let concerns = |(earlier, ..): &Order| (earlier.name, earlier.real) == (change.name, change.real);
            waiting.orders.retain(|order| !concerns(order));
            waiting.orders.push_back((change, template.clone(), timeout));
        });
        self.changed.notify_one();
    }

    /// No more are coming.
    pub fn close(&self) {
        self.with(|waiting| waiting.closed = true);
        self.changed.notify_one();
    }

    /// The next one, as soon as there is one; `None` when all are done and no more are coming.
    pub async fn next(&self) -> Option<Order> {
        loop {
            let (next, closed) = self.with(|waiting| (waiting.orders.pop_front(), waiting.closed));
            if next.is_some() || closed {
                return next;
            }
            self.changed.notified().await;
        }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Waiting) -> T) -> T {
        // Nothing in here panics half-way.
        act(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
