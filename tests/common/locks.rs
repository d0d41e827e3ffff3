//! A gateway with a lock service, and what most tests ask of that.

use std::net::SocketAddr;
use std::thread::JoinHandle;

use serde_json::{Value, json};

use super::config::Config;
use super::http::{Request, Response};
use super::stage::Stage;
use super::wait::{Gate, eventually};

/// The lock that is asked for where a test names no other.
pub(crate) const KEY: &str = "objects/42";

/// The token of a lease that was given.
#[track_caller]
pub(crate) fn token(answer: &Response) -> String {
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["token"].as_str().unwrap().to_owned()
}

/// A write to what the lock guards.
pub(crate) fn write(token: &str) -> Request {
    Request::put("/objects/42").token(token)
}

impl Stage {
    pub(crate) fn locking() -> Self {
        Self::locking_with(|config| config)
    }

    /// With a config that differs from the default of the tests.
    pub(crate) fn locking_with(change: impl FnOnce(Config) -> Config) -> Self {
        Self::with(|config| change(config.set("locks.address", "127.0.0.1:0")))
    }

    /// Where the lock service is.
    pub(crate) fn locks(&self) -> SocketAddr {
        self.gateway.locks()
    }

    /// What the lock service says of the lock.
    pub(crate) fn view(&self) -> Value {
        self.gateway.lock_view(KEY).json()
    }

    /// The call that takes the lock, not yet sent.
    pub(crate) fn acquiring(&self, holder: &str, ttl_ms: u64, wait_ms: u64) -> Request {
        let body = json!({ "holder": holder, "ttl_ms": ttl_ms, "wait_ms": wait_ms });
        self.gateway.lock_call(KEY, "acquire", &body)
    }

    /// Takes the lock without waiting for it.
    pub(crate) fn acquire(&self, holder: &str) -> Response {
        self.acquiring(holder, 30_000, 0).send(self.locks())
    }

    /// The same for another lock.
    pub(crate) fn acquire_other(&self, key: &str, holder: &str) -> Response {
        let body = json!({ "holder": holder, "ttl_ms": 30_000 });
        let call = self.gateway.lock_call(key, "acquire", &body);
        call.send(self.locks())
    }

    /// Somebody takes the lock, and waits for it for so long.
    pub(crate) fn queue_up(&self, holder: &str, wait_ms: u64) -> JoinHandle<Response> {
        let call = self.acquiring(holder, 30_000, wait_ms);
        call.spawn(self.locks())
    }

    /// One call of the lock service.
    pub(crate) fn lock_do(&self, action: &str, body: &Value) -> Response {
        let call = self.gateway.lock_call(KEY, action, body);
        call.send(self.locks())
    }

    pub(crate) fn release(&self, token: &str) -> Response {
        self.lock_do("release", &json!({ "token": token }))
    }

    pub(crate) fn renew(&self, token: &str, ttl_ms: u64) -> Response {
        self.lock_do("renew", &json!({ "token": token, "ttl_ms": ttl_ms }))
    }

    pub(crate) fn wait_for_waiting(&self, count: u64) {
        eventually("so many wait", || {
            (self.view()["waiting"] == count).then_some(())
        });
    }

    /// A write with this token, at the resource whole, that ends when the test says so.
    pub(crate) fn slow_write(&self, token: &str) -> SlowWrite {
        let gate = self.recorder.hold("slow");
        let answer = write(token).tag("slow").spawn(self.http());
        self.recorder.received("slow");
        SlowWrite { gate, answer }
    }
}

/// A write that is in flight.
pub(crate) struct SlowWrite {
    gate: Gate,
    answer: JoinHandle<Response>,
}

impl SlowWrite {
    /// Has it end soon.
    pub(crate) fn let_go(&self) {
        self.gate.open();
    }

    /// Has it end, and waits until it has.
    pub(crate) fn end(self) {
        self.let_go();
        self.answer.join().unwrap().assert_ok("the older write");
    }
}
