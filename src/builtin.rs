//! `builtin:objects`: a small object store in this process, to try things on.
//!
//! `PUT`, `GET`, `HEAD` and `DELETE` on any path. `?delay=2s` makes the store work for so long
//! before it applies a write or answers a read, so that races can be shown by hand. It goes on
//! working when its client has gone away, as real stores do.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

/// The largest object, in bytes.
const LARGEST: usize = 64 * 1024 * 1024;

/// The longest delay.
const LONGEST: Duration = Duration::from_secs(600);

type Objects = Arc<Mutex<HashMap<String, Bytes>>>;

/// Starts the store on a thread of its own; what it returns takes the server's end of a connection.
///
/// # Errors
///
/// Where the thread can't be started.
pub fn objects() -> std::io::Result<Arc<dyn Fn(UnixStream) + Send + Sync>> {
    let (connect, mut connections) = mpsc::unbounded_channel::<std::os::unix::net::UnixStream>();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::Builder::new()
        .name("builtin-objects".to_owned())
        .spawn(move || {
            runtime.block_on(async move {
                let objects = Objects::default();
                while let Some(stream) = connections.recv().await {
                    if let Ok(stream) = UnixStream::from_std(stream) {
                        tokio::spawn(serve(stream, Arc::clone(&objects)));
                    }
                }
            });
        })?;
    Ok(Arc::new(move |stream: UnixStream| {
        // The stream belongs to the caller's reactor until it is made a plain one again.
        if let Ok(stream) = stream.into_std() {
            let _ = connect.send(stream);
        }
    }))
}

async fn serve(stream: UnixStream, objects: Objects) {
    let service = service_fn(move |request| {
        // A task of its own: the store goes on when the connection breaks.
        let answer = tokio::spawn(answer(request, Arc::clone(&objects)));
        async move {
            let answer = answer.await.unwrap_or_else(|_| {
                text(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "the store gave up on the request\n",
                )
            });
            Ok::<_, Infallible>(answer)
        }
    });
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn answer(request: Request<Incoming>, objects: Objects) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let name = head.uri.path().to_owned();
    let delay = match delay(head.uri.query().unwrap_or_default()) {
        Ok(delay) => delay,
        Err(what) => return text(StatusCode::BAD_REQUEST, what),
    };
    let body = match Limited::new(body, LARGEST).collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => {
            return text(
                StatusCode::BAD_REQUEST,
                "the body broke off or is above 64 MiB\n",
            );
        }
    };
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let mut objects = objects.lock().unwrap_or_else(PoisonError::into_inner);
    match head.method {
        Method::PUT => match objects.insert(name, body) {
            None => text(StatusCode::CREATED, "created\n"),
            Some(_) => text(StatusCode::OK, "replaced\n"),
        },
        Method::DELETE => match objects.remove(&name) {
            Some(_) => text(StatusCode::OK, "deleted\n"),
            None => text(StatusCode::NOT_FOUND, "no such object\n"),
        },
        Method::GET | Method::HEAD => match objects.get(&name) {
            Some(object) => Response::new(Full::new(object.clone())),
            None => text(StatusCode::NOT_FOUND, "no such object\n"),
        },
        _ => {
            let mut response = text(
                StatusCode::METHOD_NOT_ALLOWED,
                "PUT, GET, HEAD and DELETE only\n",
            );
            let allowed = HeaderValue::from_static("PUT, GET, HEAD, DELETE");
            response.headers_mut().insert(header::ALLOW, allowed);
            response
        }
    }
}

/// The value of `delay` in the query: `250ms` or `2s`.
fn delay(query: &str) -> Result<Duration, &'static str> {
    const FORM: &str = "delay is not of the form 250ms or 2s, or above 600s\n";
    let Some(value) = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("delay="))
    else {
        return Ok(Duration::ZERO);
    };
    let (number, unit) = match value.strip_suffix("ms") {
        Some(number) => (number, Duration::from_millis(1)),
        None => (value.strip_suffix('s').ok_or(FORM)?, Duration::from_secs(1)),
    };
    let number: u32 = number.parse().map_err(|_| FORM)?;
    let delay = unit.checked_mul(number).ok_or(FORM)?;
    if delay > LONGEST {
        return Err(FORM);
    }
    Ok(delay)
}

fn text(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_delays() {
        assert_eq!(delay(""), Ok(Duration::ZERO));
        assert_eq!(delay("a=b&delay=250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(delay("delay=2s"), Ok(Duration::from_secs(2)));
        for wrong in [
            "delay=",
            "delay=2",
            "delay=-1s",
            "delay=2h",
            "delay=601s",
            "delay=ms",
        ] {
            assert!(delay(wrong).is_err(), "{wrong}");
        }
    }
}
