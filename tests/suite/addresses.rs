//! Several addresses of one upstream: turns, ejection, health checks, and one fence over them all.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::common::{
    Broken, Config, Connection, Door, Exchange, Gate, Gateway, Next, Recorder, Request, Signal,
    Storm, eventually, weather,
};
use serde_json::json;

fn config(urls: &[String]) -> Config {
    Config::new("").upstream("urls", json!(urls))
}

fn before(doors: &[&Door]) -> Gateway {
    let urls: Vec<_> = doors.iter().map(|door| door.url()).collect();
    Gateway::start(config(&urls))
}

fn healthy(gateway: &Gateway, url: &str) -> bool {
    let label = format!("address=\"{url}\"");
    gateway.metric(
        "fencegate_upstream_healthy",
        &["upstream=\"objects\"", &label],
    ) > 0.0
}

fn wait_healthy(gateway: &Gateway, url: &str, is: bool) {
    eventually(&format!("{url} is well: {is}"), || {
        (healthy(gateway, url) == is).then_some(())
    });
}

fn write(token: u64) -> Request {
    Request::put("/objects/42").token(token)
}

#[test]
fn requests_go_to_one_address_after_the_other() {
    let recorder = Recorder::start();
    let doors = [Door::opened(&recorder), Door::opened(&recorder)];
    let urls = [doors[0].url(), doors[1].url()];
    let pool = json!({ "idle_timeout": "60s" });
    let gateway = Gateway::start(config(&urls).upstream("pool", pool));
    let mut client = Connection::open(gateway.http);
    for token in 1..=6 {
        client.send(write(token).whole());
        client.response().assert_ok("a write");
    }
    assert_eq!(doors[0].count(), 3);
    assert_eq!(doors[1].count(), 3);
    assert_eq!(recorder.connections(), 2, "one is kept to each address");
    recorder.history().assert_ordered();
}

#[test]
fn an_address_that_refuses_is_left_alone_and_tried_again() {
    let recorder = Recorder::start();
    let mut first = Door::shut(&recorder);
    let second = Door::opened(&recorder);
    let gateway = before(&[&first, &second]);
    for token in 1..=6 {
        write(token).send(gateway.http).assert_ok("a write");
    }
    assert_eq!((first.count(), second.count()), (0, 6));
    gateway.says("left alone");
    assert!(!healthy(&gateway, &first.url()) && healthy(&gateway, &second.url()));

    first.open();
    let mut token = 6;
    eventually("the first address is tried again", || {
        token += 1;
        write(token).send(gateway.http).assert_ok("a write");
        (first.count() > 0).then_some(())
    });
    gateway.says("reached again");
    assert!(healthy(&gateway, &first.url()));
    recorder.history().assert_ordered();
}

/// It is told apart from one that is tried in vain by being there again: whoever has it chosen while
/// it is ejected reaches it.
#[test]
fn an_ejected_address_is_not_chosen_before_its_time_although_it_is_back() {
    let recorder = Recorder::start();
    let second = Door::opened(&recorder);
    for _ in 0..20 {
        let mut first = Door::shut(&recorder);
        let gateway = before(&[&first, &second]);
        let begin = Instant::now();
        write(1).send(gateway.http).assert_ok("by the second");
        assert!(!healthy(&gateway, &first.url()), "it has had its turn");
        first.open();
        for token in 2..=5 {
            write(token).send(gateway.http).assert_ok("a write");
        }
        // Where it took longer its time may have been over: that tells of the machine.
        if begin.elapsed() < Duration::from_secs(1) {
            assert_eq!(first.count(), 0, "it was left alone");
            return;
        }
    }
    panic!("a handful of requests never took less than a second");
}

#[test]
fn a_write_on_an_address_that_dies_is_unknown_and_is_not_sent_to_another() {
    let recorder = Recorder::start();
    recorder.on("lost", |exchange| {
        exchange.works_on(Duration::from_millis(300));
        exchange.read_body()?;
        exchange.never()
    });
    let mut first = Door::opened(&recorder);
    let second = Door::opened(&recorder);
    let gateway = before(&[&first, &second]);
    let lost = write(33).tag("lost").spawn(gateway.http);
    recorder.received("lost");
    assert_eq!(first.count(), 1);
    let newer = write(34).tag("newer").spawn(gateway.http);
    gateway.wait_key("objects/42", "waiting", 1);
    first.close();
    let answer = lost.join().unwrap();
    answer.assert_refused(502, "upstream-failed", "unknown", "it had been sent");
    newer.join().unwrap().assert_ok("after it has settled");
    let broke = recorder.broke("lost").broke.unwrap();
    let began = recorder.arrived("newer").began;
    // The gateway may have noticed the close a little before the resource.
    assert!(
        began.at.duration_since(broke.at) > Duration::from_millis(800),
        "a settle lies between: {:?}",
        began.at.duration_since(broke.at)
    );
    let history = recorder.history();
    let sent = history.0.iter().filter(|write| write.tag == "lost");
    assert_eq!(sent.count(), 1);
    assert_eq!((first.count(), second.count()), (1, 1));
    history.assert_ordered();
}

#[test]
fn where_all_refuse_they_are_tried_all_the_same() {
    let recorder = Recorder::start();
    let first = Door::shut(&recorder);
    let mut second = Door::shut(&recorder);
    let gateway = before(&[&first, &second]);
    for token in 1..=5 {
        let answer = write(token).send(gateway.http);
        answer.assert_fenced(502, "upstream-unreachable", "nobody listens");
    }
    second.open();
    write(6)
        .send(gateway.http)
        .assert_ok("an ejection does not keep the last resort away");
    assert_eq!(second.count(), 1);
}

#[test]
fn an_address_that_does_not_answer_takes_its_share_of_the_time_and_no_more() {
    let gate = Gate::new();
    let silent = Recorder::behind(&gate);
    let recorder = Recorder::start();
    let door = Door::opened(&recorder);
    let config = config(&[silent.url(), door.url()]).upstream("connect_timeout", "1s");
    let gateway = Gateway::start(config);
    let start = Instant::now();
    write(1)
        .send(gateway.http)
        .assert_ok("by the other address");
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(450), "{took:?}");
    write(2).send(gateway.http).assert_ok("at once");
    assert_eq!((silent.count(), door.count()), (0, 2));
    gate.open();
}

#[test]
fn a_connection_that_is_kept_to_an_ejected_address_is_not_used() {
    let recorder = Recorder::start();
    let gate = recorder.hold("held");
    let mut first = Door::opened(&recorder);
    let second = Door::opened(&recorder);
    let gateway = before(&[&first, &second]);
    let mut client = Connection::open(gateway.http);
    client.send(Request::put("/objects/held").token(1).tag("held").whole());
    recorder.received("held");
    first.refuse();
    let mut turns = Connection::open(gateway.http);
    for token in 1..=2 {
        turns.send(write(token).whole());
        turns.response().assert_ok("a write");
    }
    gateway.says("left alone");
    gate.open();
    client.response().assert_ok("the held write");
    // It is kept now, and alive; a trial of the address would take a new one.
    for token in 3..=6 {
        client.send(write(token).whole());
        client.response().assert_ok("a write");
    }
    assert_eq!((first.count(), second.count()), (1, 6));
}

#[test]
fn an_address_is_found_by_its_name() {
    let recorder = Recorder::start();
    let url = format!("http://localhost:{}", recorder.address().port());
    let nowhere = "http://no-such-host.invalid:80".to_owned();
    let config = config(&[url, nowhere]).upstream("connect_timeout", "30s");
    let gateway = Gateway::start(config);
    for token in 1..=4 {
        write(token).send(gateway.http).assert_ok("by its name");
    }
    gateway.says("left alone");
    assert_eq!(recorder.count(), 4);
}

#[test]
fn one_fence_stands_before_all_addresses() {
    let recorder = Recorder::start();
    weather(&recorder);
    let mut first = Door::opened(&recorder);
    let second = Door::opened(&recorder);
    let third = Door::shut(&recorder);
    let urls = [first.url(), second.url(), third.url()];
    let gateway = Gateway::start(config(&urls).settle("300ms"));
    let counter = Arc::new(AtomicU64::new(1));
    let storm = Storm::start(gateway.http, 16, 3, &counter, 77);
    for _ in 0..3 {
        let enough = recorder.count() + 60;
        eventually("writes reach the resource", || {
            (recorder.count() >= enough).then_some(())
        });
        first.close();
        let enough = recorder.count() + 30;
        eventually("writes reach the resource by the other", || {
            (recorder.count() >= enough).then_some(())
        });
        first.open();
    }
    storm.stop();
    assert!(first.count() > 0 && second.count() > 0 && third.count() == 0);
    recorder.history().assert_ordered();
    for key in 0..3 {
        let token = counter.load(Ordering::SeqCst) + 10;
        let request = Request::put(&format!("/objects/{key}")).token(token);
        eventually("an advance after the storm", || {
            (request.send(gateway.http).status == 200).then_some(())
        });
    }
    recorder.history().assert_ordered();
}

/// Has one of two addresses take every request and answer none of them, by `script`, until it is
/// well.
fn assert_silent_is_left_alone(status: u16, script: fn(&mut Exchange<'_>) -> Result<Next, Broken>) {
    let (first, second) = (Recorder::start(), Recorder::start());
    first.otherwise(script);
    let config = config(&[first.url(), second.url()])
        .upstream("timeout", "300ms")
        .settle("100ms");
    let gateway = Gateway::start(config);
    let read = || Request::get("/objects/42").send(gateway.http).status;
    let mut statuses: Vec<u16> = (0..6).map(|_| read()).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 200, status, status, status]);
    gateway.says("answers no requests");
    assert!(!healthy(&gateway, &first.url()) && healthy(&gateway, &second.url()));
    let begin = Instant::now();
    let failed = (0..30).filter(|_| read() != 200).count();
    // One request tries it after a second, and after two more.
    let most = 1 + usize::try_from(begin.elapsed().as_secs()).unwrap();
    assert!(failed <= most, "{failed} requests went to it");

    first.otherwise(|exchange| {
        exchange.read_body()?;
        exchange.respond(200, "ok")
    });
    eventually("the address is tried again", || {
        read();
        healthy(&gateway, &first.url()).then_some(())
    });
    gateway.says("answers again");
    let before = first.count();
    assert_eq!([read(), read()], [200, 200]);
    assert_eq!(first.count(), before + 1, "they take turns again");
}

#[test]
fn an_address_that_takes_connections_and_never_answers_is_left_alone() {
    assert_silent_is_left_alone(504, |exchange| exchange.never());
}

#[test]
fn an_address_that_breaks_off_every_request_is_left_alone() {
    assert_silent_is_left_alone(502, |exchange| {
        exchange.read_body()?;
        Ok(Next::Close)
    });
}

/// What the gateway cuts, or a client does not send, is not the address's failure.
#[test]
fn an_address_is_not_left_alone_for_what_others_do() {
    let (first, second) = (Recorder::start(), Recorder::start());
    let gateway = Gateway::start(config(&[first.url(), second.url()]));
    for token in 1..=10 {
        let mut client = Connection::open(gateway.http);
        let tag = format!("upload-{token}");
        client.send(write(token).tag(&tag).head(100));
        client.send("begins");
        eventually("it is on its way", || {
            let has = |recorder: &Recorder| {
                let history = recorder.history();
                history.0.iter().any(|write| write.tag == tag)
            };
            (has(&first) || has(&second)).then_some(())
        });
        // The next one cuts it, or it breaks off before.
        if token % 2 == 0 {
            client.abort();
        }
    }
    assert!(healthy(&gateway, &first.url()) && healthy(&gateway, &second.url()));
}

/// Has a resource answer health checks by `well`, and everything else with 200.
fn checked(recorder: &Recorder, well: &Arc<AtomicBool>) {
    let well = Arc::clone(well);
    recorder.otherwise(move |exchange: &mut Exchange<'_>| {
        exchange.read_body()?;
        let check = exchange.head.line.starts_with("GET /healthz?full ");
        if check && !well.load(Ordering::SeqCst) {
            return exchange.respond(503, "starting");
        }
        exchange.respond(200, "ok")
    });
}

fn writes_of(recorder: &Recorder) -> usize {
    let history = recorder.history();
    let writes = history.0.iter();
    writes.filter(|write| write.method == "PUT").count()
}

#[test]
fn an_address_whose_checks_fail_is_left_alone_until_one_succeeds() {
    let (first, second) = (Recorder::start(), Recorder::start());
    let well = Arc::new(AtomicBool::new(false));
    checked(&first, &well);
    checked(&second, &Arc::new(AtomicBool::new(true)));
    let health = json!({ "path": "/healthz?full", "interval": "500ms" });
    let config = config(&[first.url(), second.url()]).upstream("health", health);
    let gateway = Gateway::start(config);
    gateway.says("not healthy");
    wait_healthy(&gateway, &first.url(), false);
    for token in 1..=4 {
        write(token).send(gateway.http).assert_ok("a write");
    }
    assert_eq!((writes_of(&first), writes_of(&second)), (0, 4));
    let check = first.last();
    assert_eq!(
        check.header("host"),
        Some(first.address().to_string().as_str())
    );
    assert_eq!(check.header("fencing-token"), None);

    well.store(true, Ordering::SeqCst);
    gateway.says("healthy again");
    wait_healthy(&gateway, &first.url(), true);
    for token in 5..=8 {
        write(token).send(gateway.http).assert_ok("a write");
    }
    assert_eq!((writes_of(&first), writes_of(&second)), (2, 6));
}

#[test]
fn a_check_that_gets_no_answer_in_time_has_failed() {
    let (first, second) = (Recorder::start(), Recorder::start());
    first.otherwise(|exchange| match exchange.head.line.starts_with("GET") {
        true => exchange.never(),
        false => {
            exchange.read_body()?;
            exchange.respond(200, "ok")
        }
    });
    let health = json!({ "path": "/", "interval": "100ms" });
    let config = config(&[first.url(), second.url()]).upstream("health", health);
    let gateway = Gateway::start(config);
    wait_healthy(&gateway, &first.url(), false);
    write(1)
        .send(gateway.http)
        .assert_ok("by the other address");
    assert_eq!(writes_of(&first), 0);
}

#[test]
fn a_reload_begins_the_checks_anew() {
    let recorder = Recorder::start();
    let asked = |path: &str| {
        let history = recorder.history();
        let line = |target: &String| target == path;
        history.0.iter().filter(|write| line(&write.target)).count()
    };
    let config = |path: &str| {
        let health = json!({ "path": path, "interval": "100ms" });
        config(&[recorder.url()]).upstream("health", health)
    };
    let mut gateway = Gateway::start(config("/old"));
    eventually("checks", || (asked("/old") > 2).then_some(()));
    gateway.rewrite(config("/new"));
    gateway.signal(Signal::HUP);
    gateway.says("config reloaded");
    eventually("the new checks", || (asked("/new") > 2).then_some(()));
    let old = asked("/old");
    let new = asked("/new");
    eventually("more of them", || (asked("/new") > new + 5).then_some(()));
    assert_eq!(asked("/old"), old, "the old ones are over");
    assert_eq!(gateway.terminate().code(), Some(0));
}
