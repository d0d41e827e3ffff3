//! Outcomes: what is known of a write that was forwarded, and what follows where it is not.

use std::time::Duration;

use crate::common::{Broken, Config, Connection, Exchange, Next, Request, Response, Stage};
use serde_json::json;

const KEY: &str = "objects/42";
const SETTLE: Duration = Duration::from_millis(500);

fn write(token: u64, tag: &str) -> Request {
    Request::put("/objects/42").token(token).tag(tag)
}

fn settling() -> Stage {
    Stage::with(|config| config.settle("500ms"))
}

/// Runs `older` with token 33 through a script, then 34, and says how long 34 was held.
fn held_after(
    stage: &Stage,
    script: impl Fn(&mut Exchange<'_>) -> Result<Next, Broken> + Send + Sync + 'static,
) -> (Response, Duration) {
    stage.recorder.on("older", script);
    let answer = stage.send(&write(33, "older"));
    stage.send(&write(34, "newer")).assert_ok("the newer write");
    stage.recorder.history().assert_ordered();
    let older = stage.recorder.ended("older");
    let sent = older.body_done.unwrap_or(older.began).at;
    let newer = stage.recorder.arrived("newer").began.at;
    (answer, newer.saturating_duration_since(sent))
}

#[track_caller]
fn assert_settled(held: Duration) {
    // The upstream may notice a close some time after it, where others want the core too.
    let least = SETTLE.mul_f32(0.5);
    assert!(
        held >= least,
        "an unknown outcome holds newer tokens: {held:?}"
    );
}

#[test]
fn a_completed_write_holds_nobody() {
    let stage = Stage::with(|config| config.settle("20s"));
    for status in [200, 204, 301, 404, 412, 500, 503] {
        let tag = status.to_string();
        let name = tag.clone();
        stage.recorder.on(&tag, move |exchange| {
            exchange.read_body()?;
            let status = name.parse().unwrap();
            if status == 204 {
                exchange.end();
                exchange.send("HTTP/1.1 204 No Content\r\n\r\n")?;
                return Ok(Next::KeepAlive);
            }
            exchange.respond(status, "done")
        });
        let answer = stage.send(&write(status, &tag));
        assert_eq!(
            u64::from(answer.status),
            status,
            "the upstream's own answer"
        );
        assert_eq!(stage.gateway.key(KEY).unwrap()["unsettled"], 0);
    }
    stage.recorder.history().assert_ordered();
}

// C11
#[test]
fn a_balancers_504_is_unknown() {
    for status in [502, 504] {
        let stage = settling();
        let (answer, held) = held_after(&stage, move |exchange| {
            exchange.read_body()?;
            exchange.send(format!(
                "HTTP/1.1 {status} Balancer\r\nContent-Length: 3\r\n\r\nlb!"
            ))?;
            // The store behind the balancer works on.
            exchange.work(Duration::from_millis(200));
            exchange.end();
            Ok(Next::KeepAlive)
        });
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (status, "lb!"),
            "relayed"
        );
        assert_settled(held);
    }
}

#[test]
fn which_statuses_are_unknown_is_the_configs() {
    let stage = Stage::with(|config| {
        config
            .settle("500ms")
            .upstream("unknown_statuses", json!([202]))
    });
    let (answer, held) = held_after(&stage, |exchange| {
        exchange.read_body()?;
        exchange.send("HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")?;
        exchange.work(Duration::from_millis(200));
        exchange.end();
        Ok(Next::KeepAlive)
    });
    assert_eq!(answer.status, 202);
    assert_settled(held);
}

// R15
#[test]
fn a_silent_upstream_is_a_timeout_of_unknown_outcome() {
    let stage = Stage::with(|config| config.settle("500ms").upstream("timeout", "300ms"));
    stage.recorder.on("older", |exchange| {
        exchange.works_on(Duration::from_millis(200));
        exchange.read_body()?;
        exchange.never()
    });
    stage.send(&write(33, "older")).assert_refused(
        504,
        "upstream-timeout",
        "unknown",
        "it never answered",
    );
    stage.send(&write(34, "newer")).assert_ok("the newer write");
    let broke = stage.recorder.broke("older").broke.unwrap().at;
    let newer = stage.recorder.arrived("newer").began.at;
    assert_settled(newer.saturating_duration_since(broke));
    stage.recorder.history().assert_ordered();
}

// R16
#[test]
fn a_reset_after_sending_is_unknown_and_never_sent_again() {
    let stage = settling();
    let (answer, held) = held_after(&stage, |exchange| {
        exchange.read_body()?;
        Ok(Next::Reset)
    });
    answer.assert_refused(
        502,
        "upstream-failed",
        "unknown",
        "reset before the response",
    );
    assert_settled(held);
    assert_eq!(
        stage.recorder.history().tagged("older").len(),
        1,
        "sent once"
    );
}

#[test]
fn a_close_without_an_answer_is_unknown_and_never_sent_again() {
    let stage = settling();
    // The connection comes from the pool: this is where a client library would try again.
    stage
        .send(&Request::get("/objects/42"))
        .assert_ok("a read that fills the pool");
    let (answer, held) = held_after(&stage, |exchange| {
        exchange.read_body()?;
        Ok(Next::Close)
    });
    answer.assert_refused(
        502,
        "upstream-failed",
        "unknown",
        "closed before the response",
    );
    assert_settled(held);
    assert_eq!(
        stage.recorder.history().tagged("older").len(),
        1,
        "sent once"
    );
}

#[test]
fn a_read_that_reached_the_upstream_is_not_sent_again_either() {
    let stage = settling();
    stage.recorder.on("read", |_| Ok(Next::Close));
    stage
        .send(&Request::get("/objects/42"))
        .assert_ok("a read that fills the pool");
    let answer = stage.send(&Request::get("/objects/42").tag("read"));
    answer.assert_refused(
        502,
        "upstream-failed",
        "unknown",
        "closed before the response",
    );
    assert_eq!(
        stage.recorder.history().tagged("read").len(),
        1,
        "sent once"
    );
}

// R16
#[test]
fn a_response_that_breaks_off_is_unknown_and_broken_for_the_client() {
    for (what, response) in [
        (
            "a length not reached",
            "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
        ),
        (
            "no last chunk",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        ),
    ] {
        let stage = settling();
        let (answer, held) = held_after(&stage, move |exchange| {
            exchange.read_body()?;
            exchange.send(response)?;
            exchange.works_on(Duration::from_millis(100));
            Ok(Next::Close)
        });
        assert!(
            answer.broken.is_some() || answer.status == 502,
            "{what}: the client must not take half a response for a whole one: {answer:?}"
        );
        assert_settled(held);
    }
}

#[test]
fn an_invalid_response_is_unknown() {
    for response in [
        "not http at all\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nNo Colon\r\n\r\n",
    ] {
        let stage = settling();
        let (answer, held) = held_after(&stage, move |exchange| {
            exchange.read_body()?;
            exchange.send(response)?;
            Ok(Next::Close)
        });
        answer.assert_refused(502, "upstream-failed", "unknown", response);
        assert_settled(held);
    }
}

// R17 C10
#[test]
fn an_early_answer_is_relayed_the_upload_stops_and_the_outcome_is_unknown() {
    let stage = settling();
    stage.recorder.on("early", |exchange| {
        exchange.read_some(5)?;
        exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nearly")?;
        exchange.works_on(Duration::from_millis(200));
        exchange.never()
    });
    let mut client = Connection::open(stage.http());
    client.send(write(33, "early").head(1 << 20)).send("begin");
    let answer = client.response();
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (200, "early"),
        "relayed"
    );
    let broke = stage.recorder.broke("early");
    assert_eq!(broke.body_done, None, "the upload stopped");
    stage.send(&write(35, "newer")).assert_ok("the newer write");
    let newer = stage.recorder.arrived("newer").began.at;
    assert_settled(newer.saturating_duration_since(broke.broke.unwrap().at));
    stage.recorder.history().assert_ordered();
}

// R18
#[test]
fn a_client_that_leaves_mid_upload_takes_the_upstream_connection_with_it() {
    let stage = settling();
    stage.recorder.on("left", |exchange| {
        exchange.works_on(Duration::from_millis(200));
        exchange.read_body()?;
        exchange.respond(200, "ok")
    });
    for chunked in [false, true] {
        let tag = "left";
        let mut client = Connection::open(stage.http());
        let token = if chunked { 53 } else { 33 };
        if chunked {
            client
                .send(write(token, tag).chunked_head())
                .send("4\r\nhalf\r\n");
        } else {
            client.send(write(token, tag).head(100)).send("half");
        }
        let left = |write: &crate::common::Write| write.token == Some(token.into());
        crate::common::eventually("half of the upload arrives", || {
            let history = stage.recorder.history();
            history
                .0
                .iter()
                .any(|write| left(write) && write.body.len() >= 4)
                .then_some(())
        });
        client.abort();
        let newer = format!("newer-{token}");
        stage
            .send(&write(token + 1, &newer))
            .assert_ok("the newer write");
        let history = stage.recorder.history();
        let older = history.0.iter().find(|write| left(write)).unwrap();
        assert_eq!(older.body_done, None, "what broke off never looks whole");
        let broke = older.broke.unwrap().at;
        let newer = stage.recorder.arrived(&newer).began.at;
        assert_settled(newer.saturating_duration_since(broke));
    }
    stage.recorder.history().assert_ordered();
}

#[test]
fn a_client_that_leaves_after_its_upload_leaves_the_exchange_to_the_gateway() {
    let stage = Stage::with(|config| config.settle("20s"));
    let gate = stage.recorder.hold("left");
    let mut client = Connection::open(stage.http());
    client.send(write(33, "left").whole());
    stage.recorder.received("left");
    client.abort();
    let newer = write(34, "newer").spawn(stage.http());
    stage.gateway.wait_mark(KEY, "34");
    let view = stage.gateway.key(KEY).unwrap();
    assert_eq!(
        view["in_flight"], 1,
        "it holds its lane until its outcome is known: {view}"
    );
    gate.open();
    newer
        .join()
        .unwrap()
        .assert_ok("completed, though nobody read the response");
    let left = stage.recorder.ended("left");
    assert_eq!(left.broke, None, "the exchange ran to its end");
    stage.recorder.history().assert_ordered();
}

#[test]
fn equal_tokens_are_not_held_by_an_unknown_outcome() {
    let stage = Stage::with(|config| config.settle("20s"));
    stage.recorder.on("reset", |exchange| {
        exchange.read_body()?;
        Ok(Next::Reset)
    });
    let answer = stage.send(&write(33, "reset"));
    answer.assert_refused(502, "upstream-failed", "unknown", "a reset");
    let view = stage.gateway.key(KEY).unwrap();
    assert_eq!(view["unsettled"], 1, "{view}");
    stage
        .send(&write(33, "again"))
        .assert_ok("the holder itself may try again at once");
}

#[test]
fn waiting_for_a_settle_is_bounded() {
    let stage = Stage::with(|config: Config| {
        config
            .settle("20s")
            .fence("drain", json!({ "timeout": "300ms" }))
    });
    stage.recorder.on("reset", |exchange| {
        exchange.read_body()?;
        Ok(Next::Reset)
    });
    stage.send(&write(33, "reset"));
    let answer = stage.send(&write(34, "newer"));
    answer.assert_fenced(503, "settling", "an unknown outcome still holds it");
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
    stage
        .send(&write(33, "late"))
        .assert_fenced(409, "stale-token", "the mark stays raised");
}

#[test]
fn an_upload_that_broke_has_ended_where_the_upstream_discards_it() {
    let stage = Stage::with(|config| config.settle("20s").upstream("discards_incomplete", true));
    let mut client = Connection::open(stage.http());
    client.send(write(33, "older").head(100)).send("half");
    stage.recorder.has_body("older", 4);
    client.abort();
    stage.recorder.broke("older");
    stage
        .send(&write(34, "newer"))
        .assert_ok("nothing to settle");

    let mut cut = Connection::open(stage.http());
    cut.send(write(34, "cut").chunked_head())
        .send("4\r\nhalf\r\n");
    stage.recorder.has_body("cut", 4);
    stage
        .send(&write(35, "newest"))
        .assert_ok("a cut upload has ended too");
    let answer = cut.response();
    assert_eq!(
        (answer.status, answer.reason().as_str()),
        (409, "superseded")
    );

    stage.recorder.on("whole", |exchange| {
        exchange.read_body()?;
        Ok(Next::Reset)
    });
    stage.send(&write(35, "whole"));
    let view = stage.gateway.key(KEY).unwrap();
    assert_eq!(
        view["unsettled"], 1,
        "what was handed over whole may be applied: {view}"
    );
}

#[test]
fn an_unreachable_upstream_is_not_forwarded() {
    let stage = Stage::with(|config| {
        // A port that nobody listens on: it was bound a moment ago and is free again.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        config
            .settle("20s")
            .upstream("urls", json!([format!("http://{address}")]))
    });
    for token in [33, 34] {
        stage.send(&write(token, "")).assert_refused(
            502,
            "upstream-unreachable",
            "not-forwarded",
            "no byte was sent, so nothing settles",
        );
    }
    assert_eq!(
        stage.mark(KEY).as_deref(),
        Some("34"),
        "the mark was raised first"
    );
}

// R2
#[test]
fn a_slow_upload_times_out_as_unknown() {
    let stage = Stage::with(|config| config.settle("500ms").set("timeouts.body", "300ms"));
    let mut client = Connection::open(stage.http());
    client.send(write(33, "slow").head(100)).send("half");
    let answer = client.response();
    answer.assert_refused(408, "request-timeout", "unknown", "the body stalled");
    let broke = stage.recorder.broke("slow").broke.unwrap().at;
    stage.send(&write(34, "newer")).assert_ok("the newer write");
    let newer = stage.recorder.arrived("newer").began.at;
    assert_settled(newer.saturating_duration_since(broke));
    stage.recorder.history().assert_ordered();
}
