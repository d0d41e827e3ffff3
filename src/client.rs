//! A client of the gateway's own APIs, for the command line: one connection, one call at a time.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::net::Stream;
use crate::tls::{Bad, ClientTls, Protocol, pem};

/// How long a connection may take to be there.
const CONNECT: Duration = Duration::from_secs(5);

/// The longest answer that is read.
const MOST_BYTES: usize = 16 << 20;

/// A gateway's API at one URL.
pub struct Client {
    authority: String,
    address: (String, u16),
    bearer: Option<HeaderValue>,
    /// `None`: without TLS.
    tls: Option<ClientTls>,
    connection: Option<SendRequest<Full<Bytes>>>,
}

/// What a client believes, and shows, where it speaks TLS.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Files<'a> {
    /// The authorities that the server's certificate comes from; `None`: those of this system.
    pub(crate) ca: Option<&'a Path>,
    /// The client's own certificate and key.
    pub(crate) own: Option<(&'a Path, &'a Path)>,
}

/// Why a call has no good answer.
#[derive(Debug)]
pub enum ClientError {
    /// The URL is none that can be called.
    Url(String),
    /// The token can't stand in a header.
    Token,
    /// A certificate or a key can't be used.
    Tls(String),
    /// The gateway was not reached, or it did not answer.
    Unreachable(String),
    /// It refused.
    Refused(StatusCode, String),
    /// What it answered is not what it should be.
    Garbled,
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(url) => write!(
                f,
                "{url:?} is not the URL of an API: expected http://HOST:PORT or https://HOST:PORT"
            ),
            Self::Tls(why) => f.write_str(why),
            Self::Token => f.write_str("the token is not one line of visible ASCII"),
            Self::Unreachable(why) => f.write_str(why),
            Self::Refused(status, detail) => write!(f, "{status}: {detail}"),
            Self::Garbled => f.write_str("the answer is not the gateway's"),
        }
    }
}

impl std::error::Error for ClientError {}

impl Client {
    /// A client of the API at `url`, with the bearer token, if there is one.
    ///
    /// By https the server's certificate must come from an authority that this system believes.
    ///
    /// # Errors
    ///
    /// The URL is none that can be called, or the token none that can be sent.
    pub fn new(url: &str, token: Option<&str>) -> Result<Self, ClientError> {
        Self::with_files(url, token, Files::default())
    }

    /// The same with what is believed and shown by https.
    pub(crate) fn with_files(
        url: &str,
        token: Option<&str>,
        files: Files<'_>,
    ) -> Result<Self, ClientError> {
        let bad = || ClientError::Url(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| bad())?;
        let authority = uri.authority().ok_or_else(bad)?;
        let secure = uri.scheme_str() == Some("https");
        let simple = (secure || uri.scheme_str() == Some("http"))
            && matches!(uri.path(), "" | "/")
            && uri.query().is_none()
            && !authority.as_str().contains('@');
        if !simple {
            return Err(bad());
        }
        if !secure && (files.ca.is_some() || files.own.is_some()) {
            let why = format!("certificates are for https, and {url:?} is not");
            return Err(ClientError::Tls(why));
        }
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let bearer = token.map(|token| {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", token.trim()))
                .map_err(|_| ClientError::Token)?;
            value.set_sensitive(true);
            Ok(value)
        });
        let tls = match secure {
            true => Some(files.tls()?.named(&host).ok_or_else(bad)?),
            false => None,
        };
        let port = if secure { 443 } else { 80 };
        Ok(Self {
            authority: authority.to_string(),
            address: (host, authority.port_u16().unwrap_or(port)),
            tls,
            bearer: bearer.transpose()?,
            connection: None,
        })
    }

    /// Makes one call; gives the JSON of a good answer, `null` where it has no body.
    pub(crate) async fn call(
        &mut self,
        method: Method,
        target: &str,
        body: Option<&Value>,
    ) -> Result<Value, ClientError> {
        let text = body.map(Value::to_string).unwrap_or_default();
        let mut request = Request::new(Full::new(Bytes::from(text)));
        *request.method_mut() = method;
        *request.uri_mut() = target
            .parse()
            .map_err(|_| ClientError::Url(target.to_owned()))?;
        let headers = request.headers_mut();
        let host = HeaderValue::from_str(&self.authority);
        headers.insert(
            HOST,
            host.map_err(|_| ClientError::Url(self.authority.clone()))?,
        );
        if body.is_some() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        if let Some(bearer) = &self.bearer {
            headers.insert(AUTHORIZATION, bearer.clone());
        }
        let lost = |error: hyper::Error| ClientError::Unreachable(format!("no answer: {error}"));
        let kept = match self.connection.take() {
            // Where the answer before has only just been read, it may not have seen that yet.
            Some(mut kept) => kept.ready().await.is_ok().then_some(kept),
            None => None,
        };
        let mut connection = match kept {
            Some(kept) => kept,
            None => self.connect().await?,
        };
        let answer = connection.send_request(request).await.map_err(lost)?;
        let status = answer.status();
        let whole = Limited::new(answer.into_body(), MOST_BYTES).collect().await;
        let body = whole
            .map_err(|error| ClientError::Unreachable(format!("no whole answer: {error}")))?
            .to_bytes();
        self.connection = Some(connection);
        if status.is_success() && body.is_empty() {
            return Ok(Value::Null);
        }
        let json: Option<Value> = serde_json::from_slice(&body).ok();
        match json {
            Some(json) if status.is_success() => Ok(json),
            Some(problem) => {
                let detail = problem.get("detail").and_then(Value::as_str);
                Err(ClientError::Refused(
                    status,
                    detail.unwrap_or_default().to_owned(),
                ))
            }
            None => Err(ClientError::Garbled),
        }
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, ClientError> {
        let (host, port) = &self.address;
        let failed = |why: &dyn fmt::Display| {
            ClientError::Unreachable(format!("{} is not reached: {why}", self.authority))
        };
        let connecting = async {
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            let _ = stream.set_nodelay(true);
            match &self.tls {
                Some(tls) => tls.connect(Stream::Tcp(stream)).await,
                None => Ok(Stream::Tcp(stream)),
            }
        };
        let stream = tokio::time::timeout(CONNECT, connecting)
            .await
            .map_err(|_| failed(&"no connection in time"))?
            .map_err(|error| failed(&error))?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failed(&error))?;
        tokio::spawn(connection);
        Ok(sender)
    }
}

impl Files<'_> {
    fn tls(self) -> Result<ClientTls, ClientError> {
        let read = |path: &Path| {
            let failed = |why| ClientError::Tls(format!("can't read {}: {why}", path.display()));
            pem::read(path).map_err(failed)
        };
        let ca = self.ca.map(read).transpose()?;
        let own = self.own.map(|(cert, key)| Ok((read(cert)?, read(key)?)));
        let own = own.transpose()?;
        let shown = own.as_ref().map(|(cert, key)| (&**cert, &**key));
        ClientTls::new(ca.as_deref(), shown, Protocol::Http1).map_err(|bad| {
            let said = bad.into_iter().map(|bad| match bad {
                Bad::Certificate(why) => format!("the certificate can't be used: {why}"),
                Bad::Key(why) => format!("the key can't be used: {why}"),
                Bad::Authorities(why) => format!("the authority can't be used: {why}"),
            });
            ClientError::Tls(said.collect::<Vec<_>>().join("; "))
        })
    }
}

/// The bearer token: the first line of a file, or what a variable says.
pub(crate) fn bearer(file: Option<&Path>, variable: &str) -> std::io::Result<Option<String>> {
    let text = match file {
        Some(file) => Some(std::fs::read_to_string(file)?),
        None => std::env::var(variable).ok(),
    };
    Ok(text
        .map(|text| text.trim().to_owned())
        .filter(|text| !text.is_empty()))
}

/// A key as one segment of a path, or one value of a query.
pub(crate) fn encoded(key: &str) -> String {
    percent_encoding::utf8_percent_encode(key, percent_encoding::NON_ALPHANUMERIC).to_string()
}
