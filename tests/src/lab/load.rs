//! A client load that knows of each request when it was made, from which port, and who answered it.
//!
//! curl and wrk know none of this of a request that fails, and which real a failed request was meant for is the
//! question: with the source port, a capture on the LB's wire answers it.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use socket2::{Domain, Socket, Type};

use super::{
    Host,
    error::{Error, Result},
};

/// Requests one after another from several threads; each is `GET /` on a connection of its own.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<Result<Vec<Request>>>>,
}

/// How much load, and how patient it is.
#[derive(Debug, Clone, Copy)]
pub struct LoadConfig {
    /// Threads, each with one request at a time.
    pub workers: usize,
    /// From the start of a request to the start of that worker's next one, unless it took longer.
    pub interval: Duration,
    /// A request that is not answered to the end by then has failed.
    pub timeout: Duration,
}

/// What became of one request.
#[derive(Debug)]
pub struct Request {
    /// When it began, since the epoch, as captures tell the time.
    pub began: Duration,
    /// How long it took.
    pub took: Duration,
    /// The client's port.
    pub port: u16,
    /// Whether the connection was established.
    pub connected: bool,
    /// The name of the real that answered, or how it failed.
    pub answer: io::Result<String>,
}

impl Host {
    /// Starts a load from this host on port 80 of `address`.
    #[must_use]
    pub fn load(&self, address: Ipv4Addr, config: LoadConfig) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let worker = |_| {
            let (host, stop) = (self.clone(), Arc::clone(&stop));
            thread::spawn(move || host.enter().and_then(|()| requests(SocketAddrV4::new(address, 80), config, &stop)))
        };
        let workers = (0..config.workers).map(worker).collect();
        Load { stop, workers }
    }
}

impl Load {
    /// Ends the load, once the requests under way have ended, and returns all of them.
    ///
    /// # Errors
    /// [`Error::Socket`] if a worker could not even open a socket.
    pub fn stop(mut self) -> Result<Vec<Request>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for worker in self.workers.drain(..) {
            let crashed = |_| Error::Socket(io::Error::other("a worker of the load crashed"));
            all.extend(worker.join().map_err(crashed)??);
        }
        Ok(all)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for worker in self.workers.drain(..) {
            // What it found is no longer asked for.
            let _ = worker.join();
        }
    }
}

fn requests(server: SocketAddrV4, config: LoadConfig, stop: &AtomicBool) -> Result<Vec<Request>> {
    let mut all = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        all.push(request(server, config.timeout).map_err(Error::Socket)?);
        thread::sleep(config.interval.saturating_sub(start.elapsed()));
    }
    Ok(all)
}

/// Fails only if there is no socket or port to make the request from.
fn request(server: SocketAddrV4, timeout: Duration) -> io::Result<Request> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    // Bound before it connects: the port of a connection that fails is asked for as well.
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)).into())?;
    let port = socket.local_addr()?.as_socket().map_or(0, |address| address.port());
    let (began, start) = (SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(), Instant::now());
    let connection = socket.connect_timeout(&server.into(), timeout);
    let connected = connection.is_ok();
    let answer = connection.and_then(|()| exchange(&mut socket.into(), *server.ip(), start + timeout));
    Ok(Request { began, took: start.elapsed(), port, connected, answer })
}

fn exchange(stream: &mut TcpStream, server: Ipv4Addr, deadline: Instant) -> io::Result<String> {
    write!(stream, "GET / HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut buffer = [0; 2048];
    loop {
        stream.set_read_timeout(Some(left(deadline)?))?;
        match stream.read(&mut buffer)? {
            0 => return real_of(&String::from_utf8_lossy(&answer)),
            n => answer.extend(buffer.iter().take(n)),
        }
    }
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// The real that an answer names in `X-Real`: it is complete if its body names the same.
fn real_of(answer: &str) -> io::Result<String> {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let real = head.lines().find_map(|line| line.strip_prefix("X-Real: "));
    match real {
        Some(real) if head.starts_with("HTTP/1.1 200 ") && body.trim_end() == real => Ok(real.to_owned()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, format!("not an answer of the lab's nginx: {answer:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complete_answer_names_its_real() {
        assert_eq!(real_of("HTTP/1.1 200 OK\r\nX-Real: real1\r\n\r\nreal1\n").unwrap(), "real1");
    }

    #[test]
    fn answer_cut_short_or_with_another_status_is_a_failure() {
        for answer in ["", "HTTP/1.1 200 OK\r\nX-Real: real1\r\n\r\n", "HTTP/1.1 502 Bad\r\nX-Real: a\r\n\r\na\n"] {
            assert_eq!(real_of(answer).unwrap_err().kind(), io::ErrorKind::InvalidData, "{answer}");
        }
    }
}
