//! The API's client: one connection, one question, one answer.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use crate::model::{
    AdminOrder, AdminResult, ErrorBody, FlowsAnswer, FlowsQuestion, HistoryQuestion, HistoryRow, NodeOrder, NodeRow,
    RealChoice, RealDetail, RealRow, ReloadResult, Stats, Status, TraceQuestion, VipRow, WhyRow,
};

/// Longer than the daemon gives itself, so that its own message arrives.
const PATIENCE: Duration = Duration::from_secs(40);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("cannot reach lbd at {}: {source}; is lbd running?", socket.display())]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The conversation broke off.
    #[error("lbd at {} broke off: {source}", socket.display())]
    Http {
        /// The socket.
        socket: PathBuf,
        /// How.
        source: hyper::Error,
    },
    /// The question cannot be put into HTTP.
    #[error("ask lbd: {0}")]
    Request(hyper::http::Error),
    /// lbd has the connection and says nothing.
    #[error("lbd at {} did not answer within {} s", socket.display(), PATIENCE.as_secs())]
    Silent {
        /// The socket.
        socket: PathBuf,
    },
    /// lbd answered that it will not, or cannot.
    #[error("{message}")]
    Refused {
        /// Its HTTP status.
        status: u16,
        /// Its words.
        message: String,
    },
    /// What was asked for came, and cannot be kept.
    #[error("write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The answer, or what was to be printed of it, is not the JSON it should be.
    #[error("the answer is not what this lbctl understands ({0}); are lbd and lbctl of one version?")]
    Json(serde_json::Error),
}

/// Asks the daemon behind a socket.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the daemon at `socket`; nothing is opened yet.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_path_buf() }
    }

    /// `GET /v1/status`
    ///
    /// # Errors
    /// [`ClientError`], like every question here.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.ask(Method::GET, "/v1/status").await
    }

    /// `GET /v1/vips`
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn vips(&self) -> Result<Vec<VipRow>, ClientError> {
        self.ask(Method::GET, "/v1/vips").await
    }

    /// `GET /v1/reals`
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn reals(&self) -> Result<Vec<RealRow>, ClientError> {
        self.ask(Method::GET, "/v1/reals").await
    }

    /// `GET /v1/reals/why`: lbd asks the real now.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if there is no such real, or too many VIPs have it; else as above.
    pub async fn why(&self, question: RealChoice) -> Result<Vec<WhyRow>, ClientError> {
        let RealChoice { real, vip, port } = question;
        let query = query(HistoryQuestion { real: Some(real), vip, port });
        self.ask(Method::GET, &format!("/v1/reals/why?{query}")).await
    }

    /// `GET /v1/reals/show`
    ///
    /// # Errors
    /// [`ClientError::Refused`] if there is no such real; else as above.
    pub async fn show(&self, question: RealChoice) -> Result<Vec<RealDetail>, ClientError> {
        let RealChoice { real, vip, port } = question;
        let query = query(HistoryQuestion { real: Some(real), vip, port });
        self.ask(Method::GET, &format!("/v1/reals/show?{query}")).await
    }

    /// `GET /v1/reals/history`
    ///
    /// # Errors
    /// [`ClientError::Refused`] if there is no such real; else as above.
    pub async fn history(&self, question: HistoryQuestion) -> Result<Vec<HistoryRow>, ClientError> {
        self.ask(Method::GET, &format!("/v1/reals/history?{}", query(question))).await
    }

    /// `POST /v1/reals/admin`
    ///
    /// # Errors
    /// [`ClientError::Refused`] if there is no such real or the order cannot be kept; else as above.
    pub async fn administer(&self, order: &AdminOrder) -> Result<AdminResult, ClientError> {
        self.tell("/v1/reals/admin", order).await
    }

    /// `POST /v1/node`
    ///
    /// # Errors
    /// [`ClientError::Refused`] if the order cannot be kept; else as above.
    pub async fn order_node(&self, order: &NodeOrder) -> Result<NodeRow, ClientError> {
        self.tell("/v1/node", order).await
    }

    /// `GET /v1/reals/flows`
    ///
    /// # Errors
    /// [`ClientError::Refused`] if there is no such real; else as above.
    pub async fn flows(&self, question: FlowsQuestion) -> Result<FlowsAnswer, ClientError> {
        let FlowsQuestion { real, vip, port, recent_s, since_s } = question;
        let query = query(HistoryQuestion { real: Some(real), vip, port });
        self.ask(Method::GET, &format!("/v1/reals/flows?{query}&recent_s={recent_s}&since_s={since_s}")).await
    }

    /// `GET /v1/stats`
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn stats(&self) -> Result<Stats, ClientError> {
        self.ask(Method::GET, "/v1/stats").await
    }

    /// `POST /v1/reload`
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the mistakes of the configuration, which was then not taken; else as above.
    pub async fn reload(&self) -> Result<ReloadResult, ClientError> {
        self.ask(Method::POST, "/v1/reload").await
    }

    /// `GET /v1/reals/trace`: a pcapng file.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if there is no such real; else as above.
    pub async fn trace(&self, question: TraceQuestion) -> Result<Bytes, ClientError> {
        let TraceQuestion { real, vip, port, wait_ms } = question;
        let query = query(HistoryQuestion { real: Some(real), vip, port });
        let wait = wait_ms.map_or_else(String::new, |wait| format!("&wait_ms={wait}"));
        self.fetch(Method::GET, &format!("/v1/reals/trace?{query}{wait}"), Bytes::new()).await
    }

    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str) -> Result<T, ClientError> {
        self.send(method, path, Bytes::new()).await
    }

    async fn tell<T: DeserializeOwned>(&self, path: &str, what: &impl Serialize) -> Result<T, ClientError> {
        let body = serde_json::to_vec(what).map_err(ClientError::Json)?;
        self.send(Method::POST, path, body.into()).await
    }

    async fn send<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> Result<T, ClientError> {
        serde_json::from_slice(&self.fetch(method, path, body).await?).map_err(ClientError::Json)
    }

    async fn fetch(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, ClientError> {
        let exchange = tokio::time::timeout(PATIENCE, self.exchange(method, path, body));
        let (status, body) = exchange.await.map_err(|_| ClientError::Silent { socket: self.socket.clone() })??;
        if status.is_success() {
            return Ok(body);
        }
        let ErrorBody { error } = serde_json::from_slice(&body).map_err(ClientError::Json)?;
        Err(ClientError::Refused { status: status.as_u16(), message: error })
    }

    async fn exchange(&self, method: Method, path: &str, body: Bytes) -> Result<(StatusCode, Bytes), ClientError> {
        let broke_off = |source| ClientError::Http { socket: self.socket.clone(), source };
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| ClientError::Unreachable { socket: self.socket.clone(), source })?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broke_off)?;
        // Ends with `sender`; what goes wrong in it is told to `sender` too.
        tokio::spawn(connection);
        let request = Request::builder().method(method).uri(path).header(header::HOST, "lbd");
        let request = request.header(header::CONTENT_TYPE, "application/json");
        let request = request.body(Full::new(body)).map_err(ClientError::Request)?;
        let response = sender.send_request(request).await.map_err(broke_off)?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(broke_off)?.to_bytes();
        Ok((status, body))
    }
}

/// Addresses and numbers need no escapes.
fn query(question: HistoryQuestion) -> String {
    let HistoryQuestion { real, vip, port } = question;
    let real = real.map(|real| format!("real={real}"));
    let vip = vip.map(|vip| format!("vip={vip}"));
    let port = port.map(|port| format!("port={port}"));
    [real, vip, port].into_iter().flatten().collect::<Vec<_>>().join("&")
}
