//! The API: HTTP requests become messages to the keeper, its answers become responses.

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, response};
use memtide_api::http::{HostChange, HostStatus, Refusal, VmAccess, VmChange, VmStatus};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};

use crate::keeper::Refused;

/// Largest body of a request. The largest sensible one has about 100 bytes.
const BODY_MAX: usize = 64 << 10;

/// What a client asks of the keeper, and where the answer goes.
#[derive(Debug)]
pub(crate) enum Question {
    /// How is the host?
    Host(oneshot::Sender<HostStatus>),
    /// Change the host.
    ChangeHost(HostChange, oneshot::Sender<Result<HostStatus, Refused>>),
    /// How is this VM?
    Vm(String, oneshot::Sender<Result<VmStatus, Refused>>),
    /// What was touched in this VM?
    Access(String, oneshot::Sender<Result<VmAccess, Refused>>),
    /// Change this VM.
    ChangeVm(String, VmChange, oneshot::Sender<Result<VmStatus, Refused>>),
}

type Keeper = mpsc::Sender<Question>;

/// The API's paths.
pub(crate) fn router(keeper: Keeper) -> Router {
    Router::new()
        .route("/v1/host", get(host).put(change_host).fallback(no_such_method))
        .route("/v1/vms/{name}", get(vm).put(change_vm).fallback(no_such_method))
        .route("/v1/vms/{name}/access", get(vm_access).fallback(only_read))
        .fallback(no_such_path)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(keeper)
}

/// A refusal and its status.
struct Problem(StatusCode, Refusal);

impl Problem {
    fn new(status: StatusCode, name: &str, message: impl Into<String>) -> Self {
        Self(status, Refusal { name: name.into(), message: message.into() })
    }

    fn stopping() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", "memtided is stopping: try again")
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (self.0, Json(self.1)).into_response()
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Unknown(refusal) => Self(StatusCode::NOT_FOUND, refusal),
            Refused::Invalid(refusal) => Self(StatusCode::BAD_REQUEST, refusal),
            Refused::NotNow(refusal) => Self(StatusCode::CONFLICT, refusal),
        }
    }
}

type Answer<T> = response::Result<Json<T>, Problem>;

async fn host(State(keeper): State<Keeper>) -> Answer<HostStatus> {
    Ok(Json(ask(&keeper, Question::Host).await?))
}

async fn change_host(State(keeper): State<Keeper>, body: Body) -> Answer<HostStatus> {
    let change = read(body)?;
    Ok(Json(ask(&keeper, |answer| Question::ChangeHost(change, answer)).await??))
}

async fn vm(State(keeper): State<Keeper>, Path(name): Path<String>) -> Answer<VmStatus> {
    Ok(Json(ask(&keeper, |answer| Question::Vm(name, answer)).await??))
}

async fn vm_access(State(keeper): State<Keeper>, Path(name): Path<String>) -> Answer<VmAccess> {
    Ok(Json(ask(&keeper, |answer| Question::Access(name, answer)).await??))
}

async fn change_vm(
    State(keeper): State<Keeper>,
    Path(name): Path<String>,
    body: Body,
) -> Answer<VmStatus> {
    let change = read(body)?;
    Ok(Json(ask(&keeper, |answer| Question::ChangeVm(name, change, answer)).await??))
}

async fn no_such_path(uri: Uri) -> Problem {
    let message = format!("there is no {}: try /v1/host or /v1/vms/NAME", uri.path());
    Problem::new(StatusCode::NOT_FOUND, "no-such-path", message)
}

async fn no_such_method(uri: Uri) -> Problem {
    let message = format!("{} is read with GET and changed with PUT", uri.path());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "no-such-method", message)
}

async fn only_read(uri: Uri) -> Problem {
    let message = format!("{} is read with GET", uri.path());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "no-such-method", message)
}

async fn ask<T>(
    keeper: &Keeper,
    question: impl FnOnce(oneshot::Sender<T>) -> Question,
) -> Result<T, Problem> {
    let (answer, asked) = oneshot::channel();
    keeper.send(question(answer)).await.map_err(|_| Problem::stopping())?;
    asked.await.map_err(|_| Problem::stopping())
}

type Body = Result<Bytes, BytesRejection>;

/// A body as JSON, whatever content type it claims.
fn read<T: DeserializeOwned>(body: Body) -> Result<T, Problem> {
    let bytes = body.map_err(|rejection| {
        let message = format!("{rejection}: a body may have {BODY_MAX} bytes");
        Problem::new(StatusCode::BAD_REQUEST, "bad-body", message)
    })?;
    serde_json::from_slice(&bytes).map_err(|error| {
        let message = format!("the body is not understood: {error}; sizes are numbers of bytes");
        Problem::new(StatusCode::BAD_REQUEST, "bad-request", message)
    })
}
