//! A gateway in front of a resource, and what most tests ask of the pair.

use std::net::SocketAddr;

use super::config::Config;
use super::gateway::Gateway;
use super::http::{Ended, Request, Response, send_raw};
use super::recorder::Recorder;
use super::wait::eventually;
use serde_json::Value;

/// A resource with a gateway before it.
pub(crate) struct Stage {
    // The gateway goes first, so that it never logs the end of its upstream.
    pub(crate) gateway: Gateway,
    pub(crate) recorder: Recorder,
}

impl Stage {
    /// Waits for the first access line with `text` in it.
    pub(crate) fn access_line(&self, text: &str) -> Value {
        let line = eventually("the access line", || {
            let errors = self.gateway.errors();
            let line = errors
                .lines()
                .find(|line| line.contains(text) && line.contains("decision"));
            line.map(str::to_owned)
        });
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("no JSON: {line}"))
    }

    pub(crate) fn new() -> Self {
        Self::with(|config| config)
    }

    /// With a config that differs from the default of the tests.
    pub(crate) fn with(change: impl FnOnce(Config) -> Config) -> Self {
        Self::before(Recorder::start(), change)
    }

    pub(crate) fn before(recorder: Recorder, change: impl FnOnce(Config) -> Config) -> Self {
        let gateway = Gateway::start(change(Config::new(&recorder.url())));
        Self { gateway, recorder }
    }

    /// With the mark of `objects/42` at 34.
    pub(crate) fn at_34() -> Self {
        Self::at_34_with(|config| config)
    }

    pub(crate) fn at_34_with(change: impl FnOnce(Config) -> Config) -> Self {
        let stage = Self::with(change);
        stage.raise("/objects/42", "34");
        stage
    }

    pub(crate) fn http(&self) -> SocketAddr {
        self.gateway.http
    }

    /// Sends a well-formed request over a connection of its own.
    pub(crate) fn send(&self, request: &Request) -> Response {
        request.send(self.http())
    }

    /// Raises a mark by a write.
    pub(crate) fn raise(&self, target: &str, token: &str) {
        self.send(&Request::put(target).token(token))
            .assert_ok("the write that raises the mark");
    }

    pub(crate) fn mark(&self, key: &str) -> Option<String> {
        self.gateway.mark(key)
    }

    /// Asserts result B: an answer of the 400 class or a closed connection, nothing sent upstream,
    /// the mark of `objects/42` as it was.
    #[track_caller]
    pub(crate) fn assert_bad(&self, bytes: impl AsRef<[u8]>, what: &str) -> Option<Response> {
        self.assert_not_forwarded(bytes, what, |status| (400..500).contains(&status))
    }

    /// The same, where a status of the 500 class (501) is an answer too.
    #[track_caller]
    pub(crate) fn assert_not_forwarded(
        &self,
        bytes: impl AsRef<[u8]>,
        what: &str,
        allowed: impl Fn(u16) -> bool,
    ) -> Option<Response> {
        let (count, received) = (self.recorder.count(), self.recorder.bytes());
        let mark = self.mark("objects/42");
        let answer = match send_raw(self.http(), bytes) {
            Ok(response) => {
                assert!(
                    allowed(response.status),
                    "{what}: expected a refusal as bad input, got {} {:?}",
                    response.status,
                    response.text()
                );
                assert_eq!(
                    response.header("fencing-outcome"),
                    Some("not-forwarded"),
                    "{what}: every error of the gateway's carries its outcome: {:?}",
                    response.head
                );
                Some(response)
            }
            Err(Ended::Silent) => panic!("{what}: neither an answer nor the end of the connection"),
            Err(Ended::Closed | Ended::Reset) => None,
        };
        assert_eq!(
            (self.recorder.count(), self.recorder.bytes()),
            (count, received),
            "{what}: nothing of it may reach the upstream"
        );
        assert_eq!(
            self.mark("objects/42"),
            mark,
            "{what}: bad input changes no mark"
        );
        answer
    }

    /// Asserts that the gateway still serves, and that nothing came late from what was refused.
    #[track_caller]
    pub(crate) fn assert_alive(&self) {
        let count = self.recorder.count();
        self.send(&Request::put("/objects/alive").token("1").tag("alive"))
            .assert_ok("a good request after bad ones");
        assert_eq!(
            self.recorder.count(),
            count + 1,
            "only the good request reached the upstream"
        );
    }

    /// Asserts G3: no token reached the resource that the marks do not know.
    #[track_caller]
    pub(crate) fn assert_marks_hold(&self) {
        let marks = self.gateway.marks();
        for (path, highest) in self.recorder.history().highest_of_all() {
            let key = path.trim_start_matches('/');
            let mark = marks.get(key).copied();
            assert!(
                mark >= Some(highest),
                "G3 on {key}: {highest} was forwarded, and the mark after the crash is {mark:?}",
            );
        }
    }
}
