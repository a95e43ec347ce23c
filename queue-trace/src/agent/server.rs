//! The server: `/metrics` for scrapers, `/healthz` and `/readyz` for whoever keeps it running,
//! `/listeners` for who is on the machine. It answers GET alone, few at once, and waits for
//! nobody for long.
#![expect(
    unsafe_code,
    reason = "a descriptor that the service manager hands over is a number"
)]

use std::{
    convert::Infallible,
    fs,
    io::{self, Write},
    net::{IpAddr, TcpListener as StdTcp},
    os::{
        fd::{FromRawFd, OwnedFd},
        unix::{
            fs::{FileTypeExt, PermissionsExt},
            net::{UnixListener as StdUnix, UnixStream as StdStream},
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{self, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::Semaphore,
    time::{sleep, timeout},
};

use super::{board::Board, settings::ListenAt, text::MetricsFormat};

/// Connections at once; more are closed.
const CONNECTIONS: usize = 8;
/// A connection lasts no longer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long it rests when nothing can be accepted, for want of descriptors say.
const REST: Duration = Duration::from_millis(200);

/// A socket that is listened on, before anything runs.
#[derive(Debug)]
pub enum Bound {
    /// TCP.
    Tcp(StdTcp),
    /// A unix socket; its path, if it is ours to remove.
    Unix(StdUnix, Option<PathBuf>),
}

impl Bound {
    /// Listens.
    ///
    /// # Errors
    /// If the address is taken, or may not be listened on.
    pub fn bind(listen: &ListenAt) -> Result<Self> {
        let cannot = || format!("cannot listen on {listen}");
        match listen {
            ListenAt::Tcp(address) => StdTcp::bind(address).map(Self::Tcp).with_context(cannot),
            ListenAt::Unix(path) => {
                remove_stale(path).with_context(cannot)?;
                let socket = StdUnix::bind(path).with_context(cannot)?;
                // The group may read what is told of processes; others may not.
                fs::set_permissions(path, fs::Permissions::from_mode(0o660))
                    .with_context(cannot)?;
                Ok(Self::Unix(socket, Some(path.clone())))
            }
        }
    }

    /// The sockets that systemd hands over.
    ///
    /// # Errors
    /// If it says so in a way that is not understood.
    pub fn from_systemd() -> Result<Vec<Self>> {
        let fds = sd_notify::listen_fds().context("LISTEN_FDS")?;
        let mut bound = Vec::new();
        for fd in fds {
            // SAFETY: the service manager opened the descriptor for this process, and says by
            // LISTEN_PID that it is meant; nothing else here takes it.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            let socket = socket2::Socket::from(fd);
            let is_unix = socket.local_addr().context("LISTEN_FDS")?.is_unix();
            bound.push(if is_unix {
                Self::Unix(socket.into(), None)
            } else {
                Self::Tcp(socket.into())
            });
        }
        Ok(bound)
    }

    /// The inode number of a socket for TCP.
    #[must_use]
    pub fn inode(&self) -> Option<u64> {
        match self {
            Self::Tcp(socket) => rustix::fs::fstat(socket).ok().map(|about| about.st_ino),
            Self::Unix(..) => None,
        }
    }

    /// Whether only who is on this machine can reach it.
    fn is_local(&self) -> bool {
        match self {
            Self::Tcp(socket) => socket.local_addr().is_ok_and(|at| is_loopback(at.ip())),
            Self::Unix(..) => true,
        }
    }
}

fn is_loopback(addr: IpAddr) -> bool {
    addr.to_canonical().is_loopback()
}

/// A socket that nobody listens on any more is left by a run that was killed.
fn remove_stale(path: &Path) -> Result<()> {
    let Ok(about) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !about.file_type().is_socket() {
        bail!("there is a file that is not a socket");
    }
    match StdStream::connect(path) {
        Ok(_) => bail!("somebody listens there"),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            Ok(fs::remove_file(path)?)
        }
        Err(error) => Err(error.into()),
    }
}

/// Serves on all of them, until it is dropped.
///
/// # Errors
/// If a socket cannot be registered with the event loop.
pub fn serve(bound: Vec<Bound>, board: &Arc<Board>) -> io::Result<()> {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    for bound in bound {
        let local = bound.is_local();
        let visitor = Visitor {
            board: Arc::clone(board),
            room: Arc::clone(&room),
            local,
        };
        match bound {
            Bound::Tcp(socket) => {
                socket.set_nonblocking(true)?;
                let socket = TcpListener::from_std(socket)?;
                tokio::spawn(async move {
                    loop {
                        match socket.accept().await {
                            Ok((stream, _)) => visitor.take(stream),
                            Err(_) => sleep(REST).await,
                        }
                    }
                });
            }
            Bound::Unix(socket, path) => {
                socket.set_nonblocking(true)?;
                let socket = UnixListener::from_std(socket)?;
                tokio::spawn(async move {
                    let _removed_at_end = path.map(Removed);
                    loop {
                        match socket.accept().await {
                            Ok((stream, _)) => visitor.take(stream),
                            Err(_) => sleep(REST).await,
                        }
                    }
                });
            }
        }
    }
    Ok(())
}

/// A file that goes with the task.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        // Nothing can be done about one that stays.
        let _ = fs::remove_file(&self.0);
    }
}

struct Visitor {
    board: Arc<Board>,
    room: Arc<Semaphore>,
    local: bool,
}

impl Visitor {
    fn take(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let Ok(permit) = Arc::clone(&self.room).try_acquire_owned() else {
            return;
        };
        let (board, local) = (Arc::clone(&self.board), self.local);
        tokio::spawn(async move {
            let _permit = permit;
            let answer = service_fn(move |request: Request<Incoming>| {
                let response = answer(&request, &board, local);
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new()
                .keep_alive(false)
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .max_buf_size(16 << 10)
                .serve_connection(TokioIo::new(stream), answer);
            // Whoever went away, or is slow, is not answered.
            let _ = timeout(PATIENCE, connection).await;
        });
    }
}

type HttpResponse = Response<Full<Bytes>>;

fn answer<T>(request: &Request<T>, board: &Board, local: bool) -> HttpResponse {
    if request.method() != Method::GET {
        let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        answer
            .headers_mut()
            .insert(header::ALLOW, HeaderValue::from_static("GET"));
        return answer;
    }
    match request.uri().path() {
        "/metrics" => metrics(request, board),
        "/healthz" => match board.is_alive() {
            Ok(()) => plain(StatusCode::OK, "ok\n"),
            Err(still) => {
                let words = format!("the loop has not turned for {} s\n", still.as_secs());
                plain(StatusCode::SERVICE_UNAVAILABLE, words)
            }
        },
        "/readyz" => {
            let not_ready = board.state().not_ready.clone();
            match not_ready {
                None => plain(StatusCode::OK, "ready\n"),
                Some(why) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
            }
        }
        "/listeners" if local => listeners(request, board),
        "/listeners" => {
            let words = "names of processes are told on loopback addresses and unix sockets only\n";
            plain(StatusCode::FORBIDDEN, words)
        }
        "/" => with_type(StatusCode::OK, LINKS, "text/html; charset=utf-8"),
        _ => plain(
            StatusCode::NOT_FOUND,
            "there is no such page; / has the links\n",
        ),
    }
}

const LINKS: &str = "<!doctype html><title>queue-trace</title><h1>queue-trace agent</h1><ul>\
    <li><a href=\"/metrics\">metrics</a><li><a href=\"/healthz\">healthz</a>\
    <li><a href=\"/readyz\">readyz</a><li><a href=\"/listeners\">listeners</a></ul>\n";

fn metrics<T>(request: &Request<T>, board: &Board) -> HttpResponse {
    let accept = request.headers().get(header::ACCEPT);
    let form = MetricsFormat::of_accept(accept.and_then(|accept| accept.to_str().ok()));
    match form.write(Arc::new(board.exposition())) {
        Ok(text) => packed(request, text.into_bytes(), form.content_type()),
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn listeners<T>(request: &Request<T>, board: &Board) -> HttpResponse {
    let listeners = Arc::clone(&board.state().listeners);
    let mut lines = Vec::new();
    for snapshot in listeners.iter() {
        if serde_json::to_writer(&mut lines, &**snapshot).is_ok() {
            lines.push(b'\n');
        }
    }
    packed(request, lines, "application/x-ndjson")
}

/// Compressed, if the other side takes it.
fn packed<T>(request: &Request<T>, body: Vec<u8>, content_type: &'static str) -> HttpResponse {
    let accepts = request.headers().get(header::ACCEPT_ENCODING);
    let accepts = accepts
        .and_then(|accepts| accepts.to_str().ok())
        .unwrap_or_default();
    let gzip = accepts.split(',').any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        parts.next() == Some("gzip") && !parts.any(|part| part == "q=0")
    });
    let compressed = gzip.then(|| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder
            .write_all(&body)
            .and_then(|()| encoder.finish())
            .ok()
    });
    match compressed.flatten() {
        Some(compressed) => {
            let mut answer = with_type(StatusCode::OK, compressed, content_type);
            answer
                .headers_mut()
                .insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            answer
        }
        None => with_type(StatusCode::OK, body, content_type),
    }
}

fn plain(status: StatusCode, body: impl Into<Bytes>) -> HttpResponse {
    with_type(status, body, "text/plain; charset=utf-8")
}

fn with_type(
    status: StatusCode,
    body: impl Into<Bytes>,
    content_type: &'static str,
) -> HttpResponse {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}
