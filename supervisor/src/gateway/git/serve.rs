//! Git smart HTTP for one attempt: fetch from its quarantine (and so from the mirror), push into it.
//!
//! The `git` program speaks the protocol; what it may do is set here: which service, which ref, how
//! many bytes, how long.

use std::io;

use agent_operator::domain::Credential;
use axum::body::Body;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use tokio::io::AsyncReadExt as _;

use super::{
    GitService, RepositoryGrant,
    command::Run,
    error::GitError,
    exchange::{self, Asked, EXCHANGE_TIMEOUT, Terms},
    heaps,
    process::ProcessGroup,
    quarantine::{Quarantine, State},
    slots::{Slot, StreamHeap},
};

/// The list of refs: as large as the mirror's own limit.
const ADVERTISEMENT_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// What a push sends beside its pack: a command for each ref, of which one may pass.
const COMMAND_BYTES_MAX: u64 = 1024 * 1024;
/// Largest fetch request that is not compressed.
const FETCH_REQUEST_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Longest `Git-Protocol` header that is passed on.
const PROTOCOL_BYTES_MAX: usize = 64;

/// The two services of smart HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    UploadPack,
    ReceivePack,
}

impl Service {
    fn parse(name: &str) -> Option<Self> {
        match name {
            "git-upload-pack" => Some(Self::UploadPack),
            "git-receive-pack" => Some(Self::ReceivePack),
            _ => None,
        }
    }

    fn subcommand(self) -> &'static str {
        match self {
            Self::UploadPack => "upload-pack",
            Self::ReceivePack => "receive-pack",
        }
    }
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    /// `GET info/refs?service=...`
    Advertise(Service),
    /// `POST git-...-pack`
    Exchange(Service),
}

impl Operation {
    fn service(self) -> Service {
        match self {
            Self::Advertise(service) | Self::Exchange(service) => service,
        }
    }
}

impl GitService {
    /// Whether a request is an operation of git on this repository, and no other way to its files.
    pub fn serves(request: &Request<Body>, repository: &str) -> bool {
        route(request, repository).is_some()
    }

    /// Serves `/git/<repository>.git/...` to the sandbox of `grant`'s attempt; the caller knows that
    /// the request comes from it. Prepares the repository if that has not happened yet.
    pub async fn serve(
        &self,
        grant: &RepositoryGrant,
        credential: Option<&Credential>,
        request: Request<Body>,
    ) -> Response<Body> {
        let Some(operation) = route(&request, &grant.repository.name) else {
            return plain(StatusCode::NOT_FOUND, "no such repository or git service".to_owned());
        };
        if operation.service() == Service::ReceivePack && !grant.may_push {
            return plain(StatusCode::FORBIDDEN, GitError::GrantPush.to_string());
        }
        let slot = self.slot(&grant.run);
        let Some(stream) = slot.stream() else {
            return later("too many git requests at once; try again".to_owned());
        };
        let serving = Box::pin(async {
            let quarantine = Quarantine::of(&self.inner.quarantines, grant);
            let state = self.prepared(&quarantine, grant, credential).await?;
            let protocol = git_protocol(request.headers());
            let run = self.service_run(&quarantine, grant, &state, operation).await?;
            match operation {
                Operation::Advertise(service) => {
                    let heap = self.heap(&slot, &run).await?;
                    self.advertise(run, service, protocol.as_deref(), heap).await
                }
                Operation::Exchange(service) => {
                    let Ok(asked) = Asked::begin(request).await else {
                        let message = "no byte of the request has come in time".to_owned();
                        return Ok(plain(StatusCode::REQUEST_TIMEOUT, message));
                    };
                    let heap = self.heap(&slot, &run).await?;
                    if service == Service::ReceivePack {
                        quarantine.check_room(self.inner.limits.quarantine_bytes_max).await?;
                    }
                    let group = self.inner.git.start(&run, protocol.as_deref())?;
                    let (ended, body_bytes_max) = (slot.ended(), self.request_bytes_max(service));
                    let terms = Terms { body_bytes_max, ended, stream, heap };
                    let body = exchange::answer(group, asked, terms).map_err(failed(service))?;
                    Ok(git_response(service, "result", body))
                }
            }
        });
        slot.unless_ended(serving).await.unwrap_or_else(|error| failure(&error))
    }

    /// Waits, as long as `run` may last, until its heaps are free.
    async fn heap(&self, slot: &Slot, run: &Run<'_>) -> Result<StreamHeap, GitError> {
        run.in_time(async { Ok(slot.heap(self.inner.git.heaps(), run.heaps).await) }).await
    }

    fn request_bytes_max(&self, service: Service) -> u64 {
        match service {
            Service::UploadPack => FETCH_REQUEST_BYTES_MAX,
            // git has the same limit for the pack, and words for it.
            Service::ReceivePack => self.inner.limits.push_bytes_max + COMMAND_BYTES_MAX,
        }
    }

    async fn prepared(
        &self,
        quarantine: &Quarantine,
        grant: &RepositoryGrant,
        credential: Option<&Credential>,
    ) -> Result<State, GitError> {
        if let Some(state) = quarantine.load().await? {
            return Ok(state);
        }
        Box::pin(self.prepare(grant, credential)).await?;
        // An attempt that ended meanwhile is told so by its slot; here only the disk can be to blame.
        quarantine.load().await?.ok_or_else(|| GitError::UseDisk {
            operation: "read a new quarantine",
            source: io::ErrorKind::NotFound.into(),
        })
    }

    /// The git run for a service: what a push may do is configuration of `receive-pack` itself, so
    /// that refusals reach the client ref by ref.
    async fn service_run<'a>(
        &self,
        quarantine: &'a Quarantine,
        grant: &RepositoryGrant,
        state: &State,
        operation: Operation,
    ) -> Result<Run<'a>, GitError> {
        let service = operation.service();
        let config = match service {
            // Filters let a client leave out large files of a large history.
            Service::UploadPack => vec!["uploadpack.allowFilter=true".to_owned()],
            Service::ReceivePack => vec![
                "receive.hideRefs=refs/".to_owned(),
                format!("receive.hideRefs=!refs/heads/{}", state.start.work_branch),
                "receive.denyDeletes=true".to_owned(),
                // An agent may have pushed by itself before the runner amends and pushes; what is
                // published must descend from the start commit anyway.
                "receive.denyNonFastForwards=false".to_owned(),
                "receive.shallowUpdate=false".to_owned(),
                "receive.advertisePushOptions=false".to_owned(),
                "receive.unpackLimit=1".to_owned(),
                format!("receive.maxInputSize={}", self.inner.limits.push_bytes_max),
            ],
        };
        let mut args = vec![service.subcommand(), "--stateless-rpc"];
        if matches!(operation, Operation::Advertise(_)) {
            args.push("--advertise-refs");
        }
        let path = quarantine.path().to_string_lossy();
        args.extend(["--", path.as_ref()]);
        // A fetch too: what it gives out is packed anew, and the sandbox may have made it.
        let run = Run::hostile(quarantine.path(), &args);
        let run = Run { git_dir: None, config, ..run };
        Ok(match operation {
            Operation::Advertise(_) => run,
            Operation::Exchange(service) => {
                let heaps = match service {
                    Service::UploadPack => heaps::of_clone(self.mirror(grant)?.path()).await?,
                    Service::ReceivePack => run.heaps,
                };
                Run { heaps, timeout: EXCHANGE_TIMEOUT, ..run }
            }
        })
    }

    async fn advertise(
        &self,
        run: Run<'_>,
        service: Service,
        protocol: Option<&str>,
        heap: StreamHeap,
    ) -> Result<Response<Body>, GitError> {
        let mut group = self.inner.git.start(&run, protocol)?;
        drop(group.child.stdin.take());
        let reading = async { read_refs(&mut group).await.map_err(failed(service)) };
        let listed = run.in_time(reading).await?;
        drop((group, heap));
        let mut body = Vec::new();
        if !protocol.is_some_and(|version| version.starts_with("version=2"))
            || service == Service::ReceivePack
        {
            let line = format!("# service=git-{}\n", service.subcommand());
            body.extend_from_slice(format!("{:04x}{line}0000", line.len() + 4).as_bytes());
        }
        body.extend_from_slice(&listed);
        Ok(git_response(service, "advertisement", Body::from(body)))
    }
}

/// Everything that a listing git says, if it ends well.
async fn read_refs(group: &mut ProcessGroup) -> io::Result<Vec<u8>> {
    let mut listed = Vec::new();
    if let Some(stdout) = group.child.stdout.take() {
        stdout.take(ADVERTISEMENT_BYTES_MAX).read_to_end(&mut listed).await?;
    }
    let status = group.child.wait().await?;
    if status.success() { Ok(listed) } else { Err(io::Error::other(status.to_string())) }
}

/// Which operation a request asks for; none for anything that is not exactly one of them.
fn route(request: &Request<Body>, repository: &str) -> Option<Operation> {
    let path = request.uri().path().strip_prefix("/git/")?;
    let (name, rest) = path.split_once(".git/")?;
    if name != repository {
        return None;
    }
    match (request.method(), rest, request.uri().query()) {
        (&Method::GET, "info/refs", Some(query)) => {
            Service::parse(query.strip_prefix("service=")?).map(Operation::Advertise)
        }
        (&Method::POST, service, None) => Service::parse(service).map(Operation::Exchange),
        _ => None,
    }
}

/// The protocol version that the client asks for, when it looks like one.
fn git_protocol(headers: &HeaderMap) -> Option<String> {
    let value = headers.get("git-protocol")?.to_str().ok()?;
    let plain = value.len() <= PROTOCOL_BYTES_MAX
        && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"=:._-".contains(&b));
    plain.then(|| value.to_owned())
}

fn git_response(service: Service, what: &str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let content_type = format!("application/x-git-{}-{what}", service.subcommand());
    if let Ok(value) = content_type.parse() {
        response.headers_mut().insert(header::CONTENT_TYPE, value);
    }
    let no_cache = header::HeaderValue::from_static("no-cache");
    response.headers_mut().insert(header::CACHE_CONTROL, no_cache);
    response
}

fn failed(service: Service) -> impl FnOnce(io::Error) -> GitError {
    move |error| GitError::RunGit {
        operation: service.subcommand().to_owned(),
        detail: error.to_string(),
    }
}

/// An error as git shows it to its user.
fn failure(error: &GitError) -> Response<Body> {
    tracing::warn!(kind = error.kind(), error = %error, "git request failed");
    if error.retryable() {
        return later(error.to_string());
    }
    let status = match error {
        GitError::FindRepository { .. } | GitError::FindBranch { .. } => StatusCode::NOT_FOUND,
        _ => StatusCode::FORBIDDEN,
    };
    plain(status, error.to_string())
}

fn later(message: String) -> Response<Body> {
    let mut response = plain(StatusCode::SERVICE_UNAVAILABLE, message);
    let seconds = header::HeaderValue::from_static("2");
    response.headers_mut().insert(header::RETRY_AFTER, seconds);
    response
}

fn plain(status: StatusCode, message: String) -> Response<Body> {
    let mut response = Response::new(Body::from(message + "\n"));
    *response.status_mut() = status;
    let text = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, text);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routed(method: &str, uri: &str) -> Option<Operation> {
        let request = Request::builder().method(method).uri(uri).body(Body::empty()).unwrap();
        route(&request, "main")
    }

    #[test]
    fn the_three_urls_of_smart_http_are_known_and_nothing_else() {
        use Operation::{Advertise, Exchange};
        use Service::{ReceivePack, UploadPack};
        let refs = "/git/main.git/info/refs";
        assert_eq!(
            routed("GET", &format!("{refs}?service=git-upload-pack")),
            Some(Advertise(UploadPack))
        );
        assert_eq!(
            routed("GET", &format!("{refs}?service=git-receive-pack")),
            Some(Advertise(ReceivePack))
        );
        assert_eq!(routed("POST", "/git/main.git/git-upload-pack"), Some(Exchange(UploadPack)));
        assert_eq!(routed("POST", "/git/main.git/git-receive-pack"), Some(Exchange(ReceivePack)));
        for (method, uri) in [
            ("GET", refs),
            ("GET", "/git/main.git/info/refs?service=git-upload-archive"),
            ("GET", "/git/main.git/info/refs?service=git-upload-pack&x=1"),
            ("GET", "/git/main.git/HEAD"),
            ("GET", "/git/main.git/objects/info/packs"),
            ("POST", "/git/other.git/git-upload-pack"),
            ("POST", "/git/../main.git/git-upload-pack"),
            ("POST", "/git/main.git/git-upload-pack/"),
            ("PUT", "/git/main.git/git-receive-pack"),
        ] {
            assert_eq!(routed(method, uri), None, "{method} {uri}");
        }
    }

    #[test]
    fn a_strange_protocol_header_is_not_passed_on() {
        let read = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("git-protocol", value.parse().unwrap());
            git_protocol(&headers)
        };
        assert_eq!(read("version=2").as_deref(), Some("version=2"));
        assert_eq!(read("version=2 --exec=id"), None);
        assert_eq!(read(&"v".repeat(100)), None);
    }
}
