//! TLS on listeners: who is let in, what is told upstream of it, and certificates that change.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::resting::wait_resting;
use crate::common::tls::{Authority, Issued, connect};
use crate::common::{
    Config, Connection, Ended, Recorder, Request, Response, Signal, Stage, eventually, http2, run,
    skip,
};
use rcgen::SanType;
use rustls::{ClientConfig, HandshakeKind, ProtocolVersion};
use serde_json::{Value, json};

/// A stage with a second listener, which has TLS.
fn secured(tls: Value, change: impl FnOnce(Config) -> Config) -> Stage {
    Stage::with(|config| {
        change(config.set(
            "listeners",
            json!([{ "address": "127.0.0.1:0" }, { "address": "127.0.0.1:0", "tls": tls }]),
        ))
    })
}

fn https(stage: &Stage) -> SocketAddr {
    let line = stage.gateway.says("https=");
    let address = line.split("https=").nth(1).unwrap();
    address.split_whitespace().next().unwrap().parse().unwrap()
}

fn send(stage: &Stage, config: &Arc<ClientConfig>, request: &Request) -> Response {
    let (mut connection, _) = connect(https(stage), config).unwrap();
    connection.send(request.whole()).response()
}

#[test]
fn a_request_over_tls_is_fenced_and_told_upstream_as_https() {
    let authority = Authority::new();
    let stage = secured(authority.listener(&authority.issue(|_| {})), |config| {
        config.set("forwarded", true)
    });
    let client = Arc::new(authority.trust());
    send(&stage, &client, &Request::put("/objects/42").token(34)).assert_ok("over TLS");
    let seen = stage.recorder.last();
    assert_eq!(seen.header("x-forwarded-proto"), Some("https"));
    assert_eq!(
        seen.header("forwarded"),
        Some("for=127.0.0.1;host=\"store.test\";proto=https")
    );
    send(&stage, &client, &Request::put("/objects/42").token(33)).assert_fenced(
        409,
        "stale-token",
        "over TLS too",
    );
    stage.raise("/objects/42", "35");
    let seen = stage.recorder.last();
    assert_eq!(
        seen.header("x-forwarded-proto"),
        Some("http"),
        "without TLS"
    );
}

#[test]
fn a_session_goes_on_after_a_rest() {
    let authority = Authority::new();
    let stage = secured(authority.listener(&authority.issue(|_| {})), |config| {
        config
    });
    let client = Arc::new(authority.trust());
    let (mut connection, _) = connect(https(&stage), &client).unwrap();
    for token in 34..37 {
        wait_resting(&stage, 1.0);
        connection.send(Request::put("/objects/42").token(token).whole());
        connection.response().assert_ok("after a rest");
    }
}

#[test]
fn http_without_tls_is_told_what_it_got_wrong() {
    let authority = Authority::new();
    let stage = secured(authority.listener(&authority.issue(|_| {})), |config| {
        config
    });
    let head = Request::put("/objects/42").token(34).whole();
    for (what, bytes) in [
        ("a request", head.as_slice()),
        ("one letter", b"G"),
        ("a preface", http2::PREFACE),
        ("a large body", &[&head[..], &[b'x'; 300_000]].concat()),
    ] {
        let mut connection = Connection::open(https(&stage));
        let answer = connection.send(bytes).response();
        answer.assert_refused(400, "bad-request", "not-forwarded", what);
        assert_eq!(answer.header("connection"), Some("close"), "{what}");
        assert!(answer.json()["detail"].as_str().unwrap().contains("HTTPS"));
        assert_eq!(connection.ended(), Ended::Closed, "{what}");
    }
    eventually("each has its line", || {
        let errors = stage.gateway.errors();
        let lines = errors.lines().filter(|line| line.contains("plain HTTP"));
        (lines
            .filter(|line| line.contains("fencegate::access"))
            .count()
            == 4)
            .then_some(())
    });
    assert_eq!(stage.recorder.count(), 0);
    // What is neither is left to TLS.
    let mut connection = Connection::open(https(&stage));
    let answer = connection.send([0x80, 0, 0, 0, 0]).take(1);
    assert_ne!(answer, Ok(b"H".to_vec()));
}

#[test]
fn only_the_versions_of_today_are_spoken() {
    let authority = Authority::new();
    let stage = secured(authority.listener(&authority.issue(|_| {})), |config| {
        config
    });
    for (version, expected) in [
        (&rustls::version::TLS13, ProtocolVersion::TLSv1_3),
        (&rustls::version::TLS12, ProtocolVersion::TLSv1_2),
    ] {
        let client = Arc::new(authority.trust_with(&[version], None));
        let (mut connection, shaken) = connect(https(&stage), &client).unwrap();
        assert_eq!(shaken.version, expected);
        connection
            .send(Request::put("/objects/42").token(34).whole())
            .response()
            .assert_ok("a write");
    }
    for minor in [0, 1, 2] {
        // A ClientHello of TLS 1.1 and before: version, random, no session, two suites, no
        // compression.
        let mut hello = vec![3, minor];
        hello.extend([7; 32]);
        hello.extend([0, 0, 4, 0xc0, 0x09, 0xc0, 0x13, 1, 0]);
        let mut handshake = vec![1, 0, 0, u8::try_from(hello.len()).unwrap()];
        handshake.extend(hello);
        let mut record = vec![22, 3, 1, 0, u8::try_from(handshake.len()).unwrap()];
        record.extend(handshake);
        let mut connection = Connection::open(https(&stage));
        let alert = connection.send(record).take(7).unwrap();
        assert_eq!(
            (alert[0], alert[5]),
            (21, 2),
            "a fatal alert, for 3.{minor}"
        );
    }
}

#[test]
fn what_is_spoken_is_agreed_on_in_the_handshake() {
    let authority = Authority::new();
    let stage = secured(authority.listener(&authority.issue(|_| {})), |config| {
        config
    });
    let with = |protocols: &[&str]| {
        let mut client = authority.trust();
        client.alpn_protocols = protocols
            .iter()
            .map(|one| one.as_bytes().to_vec())
            .collect();
        connect(https(&stage), &Arc::new(client))
    };
    let request = Request::put("/objects/42").token(34);

    let (connection, shaken) = with(&["http/1.1", "h2"]).unwrap();
    assert_eq!(shaken.alpn.as_deref(), Some(&b"h2"[..]));
    let mut client = http2::Http2::over(connection);
    let stream = client.request(&request);
    client.response(stream).assert_ok("HTTP/2 over TLS");
    assert_eq!(
        stage.recorder.last().header("x-forwarded-proto"),
        Some("https")
    );

    let (mut connection, shaken) = with(&["http/1.1"]).unwrap();
    assert_eq!(shaken.alpn.as_deref(), Some(&b"http/1.1"[..]));
    connection
        .send(request.whole())
        .response()
        .assert_ok("HTTP/1.1 over TLS");

    let (mut connection, _) = with(&["http/1.1"]).unwrap();
    let answer = connection.send(http2::PREFACE).response();
    assert_eq!(answer.status, 400, "HTTP/2 was not what was agreed on");

    let (mut connection, _) = with(&["h2"]).unwrap();
    let _ = connection.send(request.whole()).ended();
    assert_eq!(
        stage.recorder.count(),
        2,
        "HTTP/1.1 was not what was agreed on"
    );

    let (mut connection, shaken) = with(&[]).unwrap();
    assert_eq!(shaken.alpn, None);
    connection
        .send(request.whole())
        .response()
        .assert_ok("nothing was agreed on");
    assert!(with(&["spdy/3"]).is_err(), "nothing that both speak");
}

// C6
#[test]
fn early_data_is_off() {
    let authority = Authority::new();
    let stage = secured(authority.listener(&authority.issue(|_| {})), |config| {
        config
    });
    let mut client = authority.trust();
    client.enable_early_data = true;
    let client = Arc::new(client);
    for expected in [HandshakeKind::Full, HandshakeKind::Resumed] {
        let (mut connection, shaken) = connect(https(&stage), &client).unwrap();
        assert_eq!(shaken.kind, expected, "a client that comes again is known");
        connection
            .send(Request::put("/objects/42").token(34).whole())
            .response()
            .assert_ok("a write");
    }
    let name = crate::common::tls::NAME.try_into().unwrap();
    let mut next = rustls::ClientConnection::new(client, name).unwrap();
    assert!(next.early_data().is_none(), "the ticket allows none");
}

#[test]
fn large_bodies_pass_both_ways() {
    let authority = Authority::new();
    let stage = secured(authority.listener(&authority.issue(|_| {})), |config| {
        config
    });
    let body: Vec<u8> = (0..5_000_000_u32).map(|n| b'a' + (n % 23) as u8).collect();
    stage.recorder.on("large", |exchange| {
        exchange.read_body()?;
        exchange.respond(200, &"0123456789".repeat(400_000))
    });
    let request = Request::put("/objects/42")
        .token(34)
        .tag("large")
        .body(&body);
    let answer = send(&stage, &Arc::new(authority.trust()), &request);
    answer.assert_ok("a large write");
    assert_eq!(answer.body.len(), 4_000_000);
    assert!(stage.recorder.last().body == body, "byte for byte");
}

#[test]
fn a_tunnel_runs_over_tls() {
    let authority = Authority::new();
    let stage = secured(authority.listener(&authority.issue(|_| {})), |config| {
        config
    });
    stage.recorder.on("tunnel", |exchange| {
        exchange.send(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        )?;
        loop {
            let bytes = exchange.receive()?;
            exchange.send(bytes)?;
        }
    });
    let (mut client, _) = connect(https(&stage), &Arc::new(authority.trust())).unwrap();
    let upgrade = Request::get("/objects/42")
        .token(34)
        .tag("tunnel")
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket");
    client.send(upgrade.whole());
    assert!(client.head().unwrap().line.contains(" 101 "));
    for message in ["one", "two", "three"] {
        assert_eq!(
            client.send(message).take(message.len()).unwrap(),
            message.as_bytes()
        );
    }
    stage.raise("/objects/42", "35");
    client.ended();
    stage.recorder.broke("tunnel");
}

#[test]
fn certificates_of_clients_are_required_or_not() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let own = authority.client(vec![], "pod-a");
    let foreign = stranger.client(vec![], "pod-a");
    let served = authority.issue(|_| {});
    let request = Request::put("/objects/42").token(34);
    for client_auth in ["required", "optional"] {
        let stage = secured(authority.mutual(&served, client_auth), |config| config);
        for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
            let come = |own: Option<&Issued>| {
                let client = Arc::new(authority.trust_with(&[version], own));
                let (mut connection, shaken) = connect(https(&stage), &client).ok()?;
                assert_eq!(shaken.kind, HandshakeKind::Full, "each shows it anew");
                connection.send(request.whole()).try_response("PUT").ok()
            };
            let known = come(Some(&own)).expect("a certificate of the authority's");
            known.assert_ok("a certificate of the authority's");
            assert!(come(Some(&foreign)).is_none(), "one of another authority's");
            let said = stage.gateway.says("a connection could not be opened");
            assert!(
                said.contains("127.0.0.1") && said.contains("invalid peer certificate"),
                "{said}"
            );
            let nothing = come(None);
            match client_auth {
                "required" => assert!(nothing.is_none(), "none at all"),
                _ => nothing.expect("none is needed").assert_ok("none is needed"),
            }
        }
    }
}

#[test]
fn the_certificate_can_say_who_the_holder_is() {
    let authority = Authority::new();
    let uri = |uri: &str| SanType::URI(uri.try_into().unwrap());
    let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
    let stage = secured(
        authority.mutual(&authority.issue(|_| {}), "optional"),
        |config| {
            config
                .fence("holder", "bind")
                .fence("holder_from", "client_cert")
        },
    );
    let write = |own: Option<&Issued>, token: u64, said: Option<&str>| {
        let client = authority.trust_with(rustls::DEFAULT_VERSIONS, own);
        let mut request = Request::put("/objects/42").token(token);
        if let Some(said) = said {
            request = request.header("Fencing-Holder", said);
        }
        send(&stage, &Arc::new(client), &request)
    };
    let bound = || stage.gateway.key("objects/42").unwrap()["holder"].clone();
    let spiffe = authority.client(vec![dns("b.test"), uri("spiffe://test/pod-a")], "pod-a");
    write(Some(&spiffe), 34, None).assert_ok("an advance binds");
    assert_eq!(bound(), "spiffe://test/pod-a", "a URI before all else");
    let named = authority.client(vec![dns("b.test")], "pod-b");
    write(Some(&named), 34, None).assert_fenced(409, "holder-mismatch", "somebody else");
    write(Some(&spiffe), 34, Some("spiffe://test/pod-a")).assert_ok("the header may say the same");
    write(Some(&spiffe), 34, Some("b.test")).assert_fenced(400, "bad-request", "and nothing else");
    write(Some(&named), 35, None).assert_ok("an advance binds anew");
    assert_eq!(bound(), "b.test", "a DNS name before the common one");
    write(Some(&authority.client(vec![], "pod-c")), 36, None).assert_ok("an advance");
    assert_eq!(bound(), "pod-c", "the common name");
    write(None, 36, Some("pod-c")).assert_fenced(403, "forbidden", "no certificate");
    let odd = authority.client(vec![], "two words");
    write(Some(&odd), 37, None).assert_fenced(403, "forbidden", "a name that is no holder's");
    let plain = stage.send(
        &Request::put("/objects/42")
            .token(37)
            .header("Fencing-Holder", "x"),
    );
    plain.assert_fenced(403, "forbidden", "on a listener without TLS");
    assert_eq!(stage.mark("objects/42").as_deref(), Some("36"));
}

#[test]
fn certificates_are_read_again_when_they_change() {
    let authority = Authority::new();
    let first = authority.issue(|_| {});
    let stage = secured(authority.listener(&first), |config| config);
    let client = Arc::new(authority.trust());
    let shown = || connect(https(&stage), &client).unwrap().1.certificate;
    let reloads = |result: &str| {
        let label = format!("result=\"{result}\"");
        stage
            .gateway
            .metric("fencegate_config_reloads_total", &[&label])
    };
    let request = Request::put("/objects/42").token(34);
    let (mut old, before) = connect(https(&stage), &client).unwrap();
    old.send(request.whole()).response().assert_ok("the first");
    let before = before.certificate;

    let gate = stage.recorder.hold("under-way");
    let (mut busy, _) = connect(https(&stage), &client).unwrap();
    let under_way = Request::put("/objects/43").token(34).tag("under-way");
    busy.send(under_way.whole());
    stage.recorder.received("under-way");

    // Half of the pair: it changes nothing and is said.
    let second = authority.issue(|_| {});
    authority.write("server.pem", &second.cert);
    let said = stage.gateway.says("it is not the key of the certificate");
    assert!(said.contains("listeners[1].tls.key"), "{said}");
    assert_eq!(reloads("ok"), 0.0);
    assert_eq!(shown(), before);

    authority.write("server.key", &second.key);
    eventually("the new certificate is shown", || {
        (shown() != before).then_some(())
    });
    eventually("the reload is counted", || {
        (reloads("ok") > 0.0).then_some(())
    });
    old.send(request.whole())
        .response()
        .assert_ok("a connection from before lives on");
    gate.open();
    busy.response().assert_ok("and so does a request");

    let now = shown();
    authority.write("server.key", "this is no key");
    stage.gateway.signal(Signal::HUP);
    stage.gateway.says("no private key");
    assert_eq!(shown(), now, "what is in force stays");
    authority.listener(&first);
    stage.gateway.signal(Signal::HUP);
    eventually("the first is shown again", || {
        (shown() == before).then_some(())
    });
}

#[test]
fn a_reload_can_ask_clients_for_certificates() {
    let authority = Authority::new();
    let served = authority.issue(|_| {});
    let listeners = |tls: Value| json!([{ "address": "127.0.0.1:0" }, { "address": "127.0.0.1:0", "tls": tls }]);
    let recorder = Recorder::start();
    let plain =
        Config::new(&recorder.url()).set("listeners", listeners(authority.listener(&served)));
    let mutual = plain.clone().set(
        "listeners",
        listeners(authority.mutual(&served, "required")),
    );
    let mut stage = Stage::before(recorder, |_| plain);
    let client = Arc::new(authority.trust());
    let request = Request::put("/objects/42").token(34);
    let come = |stage: &Stage| {
        let (mut connection, _) = connect(https(stage), &client).ok()?;
        connection.send(request.whole()).try_response("PUT").ok()
    };
    assert!(come(&stage).is_some());
    stage.gateway.rewrite(mutual);
    stage.gateway.signal(Signal::HUP);
    eventually(
        "a client without a certificate is kept out, ticket or not",
        || come(&stage).is_none().then_some(()),
    );
}

// R12
#[test]
fn handshakes_that_do_not_end_are_connections_and_are_shed() {
    let authority = Authority::new();
    let stage = secured(authority.listener(&authority.issue(|_| {})), |config| {
        config
            .set("limits.connections", 20)
            .set("timeouts.header", "2s")
    });
    let client = Arc::new(authority.trust());
    let connections = || stage.gateway.metric("fencegate_connections", &[]);
    let mut silent: Vec<_> = (0..20).map(|_| Connection::open(https(&stage))).collect();
    for (index, connection) in silent.iter_mut().enumerate() {
        // Half of them have begun with a record that never ends.
        if index % 2 == 0 {
            connection.send([22, 3, 1, 2, 0, 1]);
        }
    }
    eventually("they count as connections", || {
        (connections() >= 20.0).then_some(())
    });
    for _ in 0..20 {
        let shed = Connection::open(https(&stage)).ended();
        assert!(matches!(shed, Ended::Closed | Ended::Reset), "{shed:?}");
    }
    assert!(
        connect(https(&stage), &client).is_err(),
        "there is no place"
    );
    for connection in &mut silent {
        let ended = connection.ended();
        assert!(matches!(ended, Ended::Closed | Ended::Reset), "{ended:?}");
    }
    eventually("all places are free", || {
        (connections() == 0.0).then_some(())
    });
    send(&stage, &client, &Request::put("/objects/42").token(34)).assert_ok("it has recovered");
}

#[test]
fn what_is_not_tls_is_closed() {
    let authority = Authority::new();
    let stage = secured(authority.listener(&authority.issue(|_| {})), |config| {
        config
    });
    let request = Request::put("/objects/42").token(34);
    let mut plain = Connection::open(https(&stage));
    assert_ne!(plain.send(request.whole()).ended(), Ended::Silent);
    assert_eq!(stage.recorder.count(), 0);
    let mut secret = Connection::open(stage.http());
    let answer = secret
        .send([22, 3, 1, 0, 5, 1, 0, 0, 1, 0, b'\r', b'\n', b'\r', b'\n'])
        .try_response("GET");
    assert!(
        answer.is_ok_and(|answer| answer.status == 400),
        "TLS where there is none"
    );
}

// K14, K22
#[test]
fn a_uri_names_the_scheme_of_its_connection() {
    let authority = Authority::new();
    let rules = json!([
        { "key": "{path}" },
        { "key": "{header.destination|path}", "when": "present" },
    ]);
    let stage = secured(authority.listener(&authority.issue(|_| {})), |config| {
        config
            .set("routes.0.path", "/objects/{*path}")
            .set("routes.0.fence", json!({ "keys": rules }))
    });
    let client = Arc::new(authority.trust());
    let absolute = |scheme: &str, port: &str| {
        format!(
            "PUT {scheme}://store.test{port}/objects/42 HTTP/1.1\r\nHost: store.test\r\n\
             Fencing-Token: 34\r\nContent-Length: 0\r\n\r\n"
        )
    };
    let moving = |destination: &str| {
        let request = Request::new("MOVE", "/objects/42").token(34);
        String::from_utf8(request.header("Destination", destination).whole()).unwrap()
    };
    let cases = [
        (absolute("http", ""), 200, 400),
        (absolute("https", ""), 400, 200),
        (absolute("http", ":80"), 200, 400),
        (absolute("https", ":443"), 400, 200),
        (absolute("http", ":443"), 400, 400),
        (absolute("https", ":80"), 400, 400),
        (absolute("https", ":81"), 400, 400),
        (moving("/objects/b"), 200, 200),
        (moving("http://store.test/objects/b"), 200, 400),
        (moving("https://store.test/objects/b"), 400, 200),
        (moving("http://store.test:81/objects/b"), 400, 400),
        (moving("https://store.test:444/objects/b"), 400, 400),
    ];
    for (request, plain, secret) in cases {
        let answer = Connection::open(stage.http()).send(&request).response();
        assert_eq!(answer.status, plain, "without TLS: {request}");
        let (mut connection, _) = connect(https(&stage), &client).unwrap();
        let answer = connection.send(&request).response();
        assert_eq!(answer.status, secret, "with TLS: {request}");
    }
}

#[test]
fn a_trusted_proxy_may_have_been_asked_by_another_scheme() {
    let stage = Stage::with(|config| config.set("trusted_proxies", json!(["127.0.0.1"])));
    let request = "PUT https://store.test/objects/42 HTTP/1.1\r\nHost: store.test\r\n\
                   Fencing-Token: 34\r\nContent-Length: 0\r\n\r\n";
    Connection::open(stage.http())
        .send(request)
        .response()
        .assert_ok("TLS ended at the proxy");
}

#[test]
fn the_admin_listener_speaks_tls() {
    let authority = Authority::new();
    let served = authority.issue(|_| {});
    let own = authority.client(vec![], "operator");
    let recorder = Recorder::start();
    let stage = Stage::before(recorder, |config| {
        config.set("admin.tls", authority.mutual(&served, "required"))
    });
    let ask = |own: Option<&Issued>| {
        let mut client = authority.trust_with(rustls::DEFAULT_VERSIONS, own);
        client.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let (mut connection, shaken) = connect(stage.gateway.admin, &Arc::new(client)).ok()?;
        assert_eq!(shaken.alpn.as_deref(), Some(&b"http/1.1"[..]));
        let request = Request::get("/readyz").host("localhost");
        connection.send(request.whole()).try_response("GET").ok()
    };
    assert_eq!(ask(Some(&own)).unwrap().status, 200);
    assert!(ask(None).is_none(), "without a certificate");
    let mut plain = Connection::open(stage.gateway.admin);
    plain.send(Request::get("/readyz").host("localhost").whole());
    assert_ne!(plain.ended(), Ended::Silent, "without TLS");
}

/// What `fencegate check` says of a config with these listeners and this admin section.
fn check(listeners: Value, admin: Value) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yaml");
    let config = json!({
        "listeners": listeners,
        "admin": admin,
        "upstreams": { "objects": { "urls": ["builtin:objects"] } },
        "routes": [{ "name": "objects", "path": "/objects/{id}", "upstream": "objects" }],
    });
    std::fs::write(&file, serde_json::to_string_pretty(&config).unwrap()).unwrap();
    let output = run(&["check", "--config", file.to_str().unwrap()]);
    let text = String::from_utf8(output.stderr).unwrap();
    (output.status.code(), text)
}

#[test]
fn check_reads_certificates_and_keys() {
    let authority = Authority::new();
    let one = authority.issue(|_| {});
    let other = authority.issue(|_| {});
    let write = |name: &str, text: &str| json!(authority.write(name, text));
    let (cert, key) = (write("one.pem", &one.cert), write("one.key", &one.key));
    let broken = one.cert.replacen("MII", "NII", 1);
    let address = "127.0.0.1:0";
    let listeners = json!([
        { "address": address, "tls": { "cert": cert, "key": write("other.key", &other.key) } },
        { "address": address, "tls": { "cert": authority.path("none.pem"), "key": key } },
        { "address": address, "tls": { "cert": key, "key": cert } },
        { "address": address, "tls": { "cert": write("broken.pem", &broken), "key": key } },
        { "address": address, "tls": { "cert": cert, "key": key, "client_ca": key } },
        { "address": address, "tls": { "cert": cert, "key": key, "client_auth": "required" } },
        { "address": address, "tls": { "cert": cert } },
        { "address": address, "tls": { "cert": cert, "key": key, "client_auth": "maybe" } },
    ]);
    let (code, text) = check(listeners, json!({ "address": address }));
    assert_eq!(code, Some(2), "{text}");
    for expected in [
        "listeners[0].tls.key: can't use",
        "it is not the key of the certificate",
        "listeners[1].tls.cert: can't read",
        "listeners[2].tls.cert: can't use",
        "it has no certificate in PEM",
        "listeners[2].tls.key: can't use",
        "it has no private key without a password in PEM",
        "listeners[3].tls.cert: can't use",
        "listeners[4].tls.client_ca: can't use",
        "listeners[5].tls.client_auth: certificates of clients need a client_ca",
        "listeners[6].tls: key is missing",
        "listeners[7].tls.client_auth: expected none, optional or required, found \"maybe\"",
        "9 problems",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    for line in text.lines().filter(|line| line.contains("listeners[")) {
        let mut place = line.split(':').skip(1);
        let number = place.next().and_then(|line| line.parse::<usize>().ok());
        assert!(
            number.is_some_and(|line| line > 1),
            "a line and a column: {line}"
        );
    }
}

#[test]
fn check_warns_of_certificates_that_count_no_more() {
    let authority = Authority::new();
    for (year, warned) in [(2002, true), (2099, false)] {
        let tls = authority.listener(&authority.until(year));
        let address = "127.0.0.1:0";
        let listeners = json!([{ "address": address, "tls": tls }]);
        let (code, text) = check(listeners, json!({ "address": address }));
        assert_eq!(code, Some(0), "{text}");
        assert_eq!(text.contains("has expired"), warned, "{text}");
        assert_eq!(text.contains("listeners[0].tls.cert"), warned, "{text}");
    }
}

#[test]
fn an_admin_address_for_others_needs_a_proof() {
    let authority = Authority::new();
    let served = authority.issue(|_| {});
    let listeners = json!([{ "address": "127.0.0.1:0" }]);
    for (tls, good) in [
        (json!({}), false),
        (authority.listener(&served), false),
        (authority.mutual(&served, "optional"), false),
        (authority.mutual(&served, "required"), true),
    ] {
        let admin = json!({ "address": "0.0.0.0:0", "tls": tls });
        let (code, text) = check(listeners.clone(), admin);
        assert_eq!(code == Some(0), good, "{tls}: {text}");
    }
}

#[test]
fn a_stop_ends_handshakes_at_once() {
    let authority = Authority::new();
    let mut stage = secured(authority.listener(&authority.issue(|_| {})), |config| {
        config.set("shutdown.timeout", "20s")
    });
    let mut silent = Connection::open(https(&stage));
    let connections = || stage.gateway.metric("fencegate_connections", &[]);
    eventually("it is there", || (connections() > 0.0).then_some(()));
    let began = std::time::Instant::now();
    assert!(stage.gateway.terminate().success());
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "nothing was on it"
    );
    assert_ne!(silent.ended(), Ended::Silent);
}

/// What `make setup` installs.
const SCANNER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/sslyze");

#[test]
fn a_scanner_finds_nothing_to_warn_of() {
    if !std::path::Path::new(SCANNER).join("sslyze").is_dir() {
        skip("sslyze is not installed");
        return;
    }
    let authority = Authority::new();
    let issued = authority.issue(|params| {
        // For where the scanner finds it, and for as long as it thinks right.
        let here = std::net::Ipv4Addr::LOCALHOST.into();
        params.subject_alt_names = vec![SanType::IpAddress(here)];
        let now = std::time::UNIX_EPOCH.elapsed().unwrap();
        let day = Duration::from_secs(24 * 60 * 60);
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        params.not_before = epoch + (now - day);
        params.not_after = epoch + (now + 90 * day);
    });
    let stage = secured(authority.listener(&issued), |config| config);
    let output = std::process::Command::new("python3")
        .env("PYTHONPATH", SCANNER)
        .args([
            "-m",
            "sslyze",
            "--mozilla_config=intermediate",
            "--early_data",
            "--resum",
        ])
        .arg("--certinfo_ca_file")
        .arg(authority.path("ca.pem"))
        .arg(https(&stage).to_string())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    // No public authority knows that of a test.
    let of_public = |line: &&str| line.contains(" CA Store (") && !line.contains("Supplied CA");
    let warnings: Vec<&str> = text
        .lines()
        .filter(|line| {
            ["FAILED", "VULNERABLE", "WARNING", "ERROR"]
                .iter()
                .any(|word| line.contains(word))
        })
        .filter(|line| !of_public(line))
        .collect();
    assert!(warnings.is_empty(), "{warnings:#?}\n{text}");
    assert!(text.contains("SCANS COMPLETED"), "{text}");
    assert!(text.contains("OK - Compliant"), "{text}");
    assert!(output.status.success(), "{text}");
}
