//! The API: HTTP and JSON on a unix socket. It holds no state; every question goes to the daemon's owner task.
//!
//! ```text
//! GET /v1/status  /v1/vips  /v1/reals  /v1/stats     POST /v1/reload
//! GET /v1/reals/why?real=ADDRESS[&vip=ADDRESS][&port=NUMBER]     /v1/reals/show: the same
//! GET /v1/reals/trace?real=ADDRESS[&vip=ADDRESS][&port=NUMBER][&wait_ms=NUMBER]     (pcapng)
//! GET /v1/reals/history[?real=ADDRESS][&vip=ADDRESS][&port=NUMBER]
//! GET /v1/reals/flows?real=ADDRESS[&vip=ADDRESS][&port=NUMBER]&recent_s=NUMBER&since_s=NUMBER
//! POST /v1/reals/admin with JSON: {"of": {"real": ADDRESS, "vip": …, "port": …}, "state": "draining", "reason": …, "for_s": …}
//! POST /v1/node with JSON: {"state": "standby", "reason": …}
//! ```

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Serialize;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::model::{
    AdminOrder, AdminResult, ErrorBody, FlowsAnswer, FlowsQuestion, HistoryQuestion, HistoryRow, NodeOrder, NodeRow,
    RealChoice, RealDetail, RealRow, ReloadResult, Stats, Status, TraceQuestion, VipRow, WhyRow,
};

/// How long the owner task may take to answer; a reload fills rings and waits for the kernel.
const ANSWER_TIME: Duration = Duration::from_secs(30);
/// How long requests under way may take to end when the daemon does.
const FAREWELL: Duration = Duration::from_secs(1);
/// The longest body of a request, in bytes: an order for a real is a few hundred.
const MAX_BODY: usize = 64 << 10;
/// Who may talk to the daemon: its user and its group.
const SOCKET_MODE: u32 = 0o660;

/// The place for an answer; an error is for people.
pub type Reply<T> = oneshot::Sender<Result<T, String>>;

/// A question to the daemon's owner task, with the place for the answer.
#[derive(Debug)]
pub enum Request {
    /// The daemon as a whole.
    Status(Reply<Status>),
    /// Every VIP.
    Vips(Reply<Vec<VipRow>>),
    /// Every real of every VIP.
    Reals(Reply<Vec<RealRow>>),
    /// What is wrong with a real, by asking it; the error says why that question has no answer.
    Why(RealChoice, Reply<Vec<WhyRow>>),
    /// All that is known of a real; the error says that there is no such.
    Show(RealChoice, Reply<Vec<RealDetail>>),
    /// What became of reals; the error says that there are no such.
    History(HistoryQuestion, Reply<Vec<HistoryRow>>),
    /// The last packets of a real's checks, as a pcapng file; the error says that there is no such.
    Trace(TraceQuestion, Reply<Vec<u8>>),
    /// Drain, disable or enable a real; the error says why nothing was changed.
    Admin(AdminOrder, Reply<AdminResult>),
    /// Have the node announce VIPs, or none; the error says why nothing was changed.
    Node(NodeOrder, Reply<NodeRow>),
    /// How many flows go to a real.
    Flows(FlowsQuestion, Reply<FlowsAnswer>),
    /// The data plane's counters.
    Stats(Reply<Stats>),
    /// Read the configuration again; the error says why the old one stays in force.
    Reload(Reply<ReloadResult>),
}

/// Why the socket could not be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// A living daemon owns it.
    #[error("{} belongs to a running lbd: stop it first, or give this one another --socket", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is not a socket has that name; it is left alone.
    #[error("{} exists and is not a socket: remove it, or choose another --socket", path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// The bound socket; dropping it removes the file, unless another daemon has taken the name meanwhile.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    _file: SocketFile,
}

impl Server {
    /// Binds `path`, in place of the socket of a daemon that died. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`BindError`]: a living daemon has it, or the system refuses.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        let failed = |operation| move |source| BindError::Io { operation, path: path.to_path_buf(), source };
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(failed("create the directory of"))?;
        }
        refuse_occupied(path)?;
        // Bound under another name and moved into place: nobody can connect before the mode is right.
        let aside = path.with_extension(format!("{}.new", std::process::id()));
        let file = SocketFile { path: aside, inode: None };
        let listener = UnixListener::bind(&file.path).map_err(failed("bind"))?;
        fs::set_permissions(&file.path, Permissions::from_mode(SOCKET_MODE)).map_err(failed("set the mode of"))?;
        let inode = fs::symlink_metadata(&file.path).map_err(failed("stat"))?.ino();
        fs::rename(&file.path, path).map_err(failed("move into place"))?;
        Ok(Self { listener, _file: SocketFile { path: path.to_path_buf(), inode: Some(inode) } })
    }

    /// Begins to answer.
    #[must_use]
    pub fn start(self, requests: mpsc::Sender<Request>) -> Serving {
        let (stop, stopped) = oneshot::channel::<()>();
        let Self { listener, _file: file } = self;
        let task = tokio::spawn(async move {
            // Kept until the task ends.
            let _file = file;
            let served = axum::serve(listener, router(requests));
            served.with_graceful_shutdown(async { drop(stopped.await) }).await
        });
        Serving { stop, task }
    }
}

/// The API while it answers.
#[derive(Debug)]
pub struct Serving {
    stop: oneshot::Sender<()>,
    task: JoinHandle<io::Result<()>>,
}

impl Serving {
    /// Takes no more requests, lets those under way finish, but not for long: one that never becomes whole is no reason
    /// to stay. The socket is gone when this returns.
    pub async fn end(self) {
        // A task that is gone has stopped already.
        let _ = self.stop.send(());
        let mut task = self.task;
        if tokio::time::timeout(FAREWELL, &mut task).await.is_err() {
            task.abort();
            let _ = task.await;
        }
    }
}

fn router(requests: mpsc::Sender<Request>) -> Router {
    Router::new()
        .route("/v1/status", get(async |owner: Owner| read(owner, Request::Status).await))
        .route("/v1/vips", get(async |owner: Owner| read(owner, Request::Vips).await))
        .route("/v1/reals", get(async |owner: Owner| read(owner, Request::Reals).await))
        .route("/v1/reals/why", get(async |owner: Owner, query| about(owner, query, Request::Why).await))
        .route("/v1/reals/show", get(async |owner: Owner, query| about(owner, query, Request::Show).await))
        .route("/v1/reals/history", get(async |owner: Owner, query| about(owner, query, Request::History).await))
        .route("/v1/reals/trace", get(trace))
        .route("/v1/reals/flows", get(async |owner: Owner, query| about(owner, query, Request::Flows).await))
        .route("/v1/reals/admin", post(administer))
        .route("/v1/node", post(order_node))
        .route("/v1/stats", get(async |owner: Owner| read(owner, Request::Stats).await))
        .route("/v1/reload", post(reload))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(requests)
}

type Owner = State<mpsc::Sender<Request>>;

async fn read<T>(owner: Owner, question: impl FnOnce(Reply<T>) -> Request) -> Result<Json<T>, ApiError> {
    ask(owner, question).await?.map(Json).map_err(ApiError::Failed)
}

async fn ask<T>(
    State(requests): Owner,
    question: impl FnOnce(Reply<T>) -> Request,
) -> Result<Result<T, String>, ApiError> {
    let (reply, answer) = oneshot::channel();
    let exchange = async {
        requests.send(question(reply)).await.map_err(|_| ApiError::Stopping)?;
        answer.await.map_err(|_| ApiError::Stopping)
    };
    tokio::time::timeout(ANSWER_TIME, exchange).await.unwrap_or(Err(ApiError::Late))
}

async fn reload(owner: Owner) -> Result<Json<ReloadResult>, ApiError> {
    ask(owner, Request::Reload).await?.map(Json).map_err(ApiError::Refused)
}

/// A file, not JSON.
async fn trace(
    owner: Owner,
    question: Result<Query<TraceQuestion>, QueryRejection>,
) -> Result<impl IntoResponse, ApiError> {
    let Json(file) = about(owner, question, Request::Trace).await?;
    Ok(([(header::CONTENT_TYPE, "application/x-pcapng")], file))
}

/// A question that says what it is about, and may have no answer.
async fn about<Q, T>(
    owner: Owner,
    question: Result<Query<Q>, QueryRejection>,
    request: impl FnOnce(Q, Reply<T>) -> Request,
) -> Result<Json<T>, ApiError> {
    let Query(question) = question.map_err(|rejection| ApiError::Question(rejection.body_text()))?;
    ask(owner, |reply| request(question, reply)).await?.map(Json).map_err(ApiError::Refused)
}

async fn administer(
    owner: Owner,
    order: Result<Json<AdminOrder>, JsonRejection>,
) -> Result<Json<AdminResult>, ApiError> {
    let Json(order) = order.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::TooLarge,
        _ => ApiError::Question(rejection.body_text()),
    })?;
    ask(owner, |reply| Request::Admin(order, reply)).await?.map(Json).map_err(ApiError::Refused)
}

async fn order_node(owner: Owner, order: Result<Json<NodeOrder>, JsonRejection>) -> Result<Json<NodeRow>, ApiError> {
    let Json(order) = order.map_err(|rejection| ApiError::Question(rejection.body_text()))?;
    ask(owner, |reply| Request::Node(order, reply)).await?.map(Json).map_err(ApiError::Refused)
}

async fn unknown_path(uri: Uri) -> ApiError {
    ApiError::UnknownPath(uri)
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    ApiError::WrongMethod { method, uri }
}

#[derive(Debug, thiserror::Error)]
enum ApiError {
    #[error("the daemon is stopping")]
    Stopping,
    #[error("the daemon did not answer within {} s", ANSWER_TIME.as_secs())]
    Late,
    #[error("{0}")]
    Failed(String),
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Question(String),
    #[error("allowed are {MAX_BODY} bytes")]
    TooLarge,
    #[error("{} is not a path of this API", .0.path())]
    UnknownPath(Uri),
    #[error("{} does not take {method}", uri.path())]
    WrongMethod { method: Method, uri: Uri },
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = match self {
            Self::Stopping => StatusCode::SERVICE_UNAVAILABLE,
            Self::Late => StatusCode::GATEWAY_TIMEOUT,
            Self::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Refused(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Question(_) => StatusCode::BAD_REQUEST,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnknownPath(_) => StatusCode::NOT_FOUND,
            Self::WrongMethod { .. } => StatusCode::METHOD_NOT_ALLOWED,
        };
        error_response(status, &ErrorBody { error: self.to_string() })
    }
}

fn error_response(status: StatusCode, body: &impl Serialize) -> Response {
    (status, Json(body)).into_response()
}

/// Only a socket that nobody listens on may be replaced.
fn refuse_occupied(path: &Path) -> Result<(), BindError> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(BindError::Io { operation: "stat", path: path.to_path_buf(), source }),
    };
    if !found.file_type().is_socket() {
        return Err(BindError::NotASocket { path: path.to_path_buf() });
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Ok(_) => Err(BindError::InUse { path: path.to_path_buf() }),
        Err(source) => {
            Err(BindError::Io { operation: "try whether anyone answers at", path: path.to_path_buf(), source })
        }
    }
}

/// A socket's file, removed on drop; with an inode, only while it is still that one.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: Option<u64>,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours =
            fs::symlink_metadata(&self.path).is_ok_and(|found| self.inode.is_none_or(|inode| inode == found.ino()));
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the API's socket");
        }
    }
}

#[cfg(test)]
#[path = "api_tests.rs"]
mod tests;
