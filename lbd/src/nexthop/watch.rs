//! Tells when the kernel's routes, neighbours, links or addresses have changed; not what: the reader looks again.

use std::future::poll_fn;
use std::io;
use std::time::Duration;

use rtnetlink::MulticastGroup;
use rtnetlink::sys::{AsyncSocket, SocketAddr, TokioSocket, protocols};
use tokio::sync::mpsc;

/// Changes come in bursts (a route, its link, its neighbours): one word for all that follow the first this closely.
const DEBOUNCE: Duration = Duration::from_millis(20);

const GROUPS: [MulticastGroup; 6] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv6Route,
];

/// Watches the network namespace of the calling thread. Must be called inside a tokio runtime.
///
/// Each message means that something changed since the one before; words not taken yet merge into one. A burst too large
/// for the socket's buffer is a change like any other, for nothing but the fact of it is read. The channel closes only
/// when the kernel takes the socket away.
///
/// # Errors
/// The socket cannot be opened or bound.
pub fn watch() -> io::Result<mpsc::Receiver<()>> {
    let socket = subscribe()?;
    let (changed, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        tokio::select! {
            error = notify(&socket, &changed) => tracing::error!(%error, "watching the kernel's network tables ended"),
            () = changed.closed() => {}
        }
    });
    Ok(receiver)
}

fn subscribe() -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(protocols::NETLINK_ROUTE)?;
    let groups = GROUPS.iter().fold(0, |mask, group| mask | 1 << (*group as u32 - 1));
    socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
    Ok(socket)
}

/// Runs until the socket fails for good; gives the reason.
async fn notify(socket: &TokioSocket, changed: &mpsc::Sender<()>) -> io::Error {
    // Sixteen bytes are enough: only the coming of a message matters, and the kernel throws the rest of it away.
    loop {
        if let Err(error) = overrun_is_news(poll_fn(|cx| socket.poll_recv(cx, &mut &mut [0; 16][..])).await) {
            return error;
        }
        tokio::time::sleep(DEBOUNCE).await;
        // Emptied before the word is given: what comes later gets a word of its own.
        while overrun_is_news(socket.socket_ref().recv(&mut &mut [0; 16][..], 0).map(drop)).is_ok() {}
        // Full: a word is waiting that was given after this change. Closed: the caller's select ends this task.
        let _ = changed.try_send(());
    }
}

/// ENOBUFS (netlink(7)): the buffer was full and messages were lost, so something changed. Reading the error clears it.
fn overrun_is_news(taken: io::Result<()>) -> io::Result<()> {
    match taken {
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(()),
        taken => taken,
    }
}
