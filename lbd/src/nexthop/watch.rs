//! Tells when the kernel's routes, neighbours, links or addresses have changed; not what: the reader looks again.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};
use rtnetlink::MulticastGroup;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

/// Changes come in bursts (a route, its link, its neighbours): one word for all that follow the first this closely.
const DEBOUNCE: Duration = Duration::from_millis(20);

const GROUPS: [MulticastGroup; 4] =
    [MulticastGroup::Link, MulticastGroup::Neigh, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv4Route];

/// Watches the network namespace of the calling thread. Must be called inside a tokio runtime.
///
/// Each message means that something changed since the one before; words not taken yet merge into one. A burst too large
/// for the socket's buffer is a change like any other, for nothing but the fact of it is read. The channel closes only
/// when the kernel takes the socket away.
///
/// # Errors
/// The socket cannot be opened or bound.
pub fn watch() -> io::Result<mpsc::Receiver<()>> {
    let socket = AsyncFd::register_with_interest(subscribe()?, Interest::READABLE)?;
    let (changed, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        tokio::select! {
            error = notify(&socket, &changed) => tracing::error!(%error, "watching the kernel's network tables ended"),
            () = changed.closed() => {}
        }
    });
    Ok(receiver)
}

fn subscribe() -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    let groups = GROUPS.iter().fold(0, |mask, group| mask | 1 << (*group as u32 - 1));
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(fd)
}

/// Runs until the socket fails for good; gives the reason.
async fn notify(socket: &AsyncFd<OwnedFd>, changed: &mpsc::Sender<()>) -> io::Error {
    loop {
        if let Err(error) = socket.async_io(Interest::READABLE, take).await {
            return error;
        }
        tokio::time::sleep(DEBOUNCE).await;
        // Emptied before the word is given: what comes later gets a word of its own.
        while take(socket.get_ref()).is_ok() {}
        // Full: a word is waiting that was given after this change. Closed: the caller's select ends this task.
        let _ = changed.try_send(());
    }
}

/// Takes one message, or one overrun, off the socket.
fn take(fd: &OwnedFd) -> io::Result<()> {
    // The rest of a longer message is thrown away: only its coming matters.
    match recv(fd.as_raw_fd(), &mut [0; 16], MsgFlags::empty()) {
        // ENOBUFS (netlink(7)): messages were lost. Reading it clears it.
        Ok(_) | Err(Errno::ENOBUFS) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
