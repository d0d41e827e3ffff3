//! TLS on the listener of the locks, and the commands that call the gateway's APIs by it.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Output};
use std::sync::Arc;

use crate::common::tls::{Authority, Issued, connect};
use crate::common::{Config, Gateway, Request, Response, Stage, binary, eventually};
use rcgen::SanType;
use rustls::ClientConfig;
use serde_json::{Value, json};

const KEY: &str = "objects/42";

// "sesame"
const HASH: &str = "sha256:d0c04f4b1951e4aeaaec8223ed2039e542f3aae805a6fa7f6d794e5afff5d272";

/// A certificate for where tests listen, under both names of it.
fn server(authority: &Authority) -> Issued {
    authority.issue(|params| {
        let here = SanType::IpAddress(Ipv4Addr::LOCALHOST.into());
        params.subject_alt_names.push(here);
    })
}

fn secured(tls: Value, change: impl FnOnce(Config) -> Config) -> Stage {
    Stage::with(|config| {
        let config = config.set("locks.address", "127.0.0.1:0");
        change(config.set("locks.tls", tls))
    })
}

fn acquire(stage: &Stage, client: ClientConfig) -> Response {
    let body = json!({ "holder": "pod-a", "ttl_ms": 30_000 });
    let call = stage.gateway.lock_call(KEY, "acquire", &body);
    send(stage.gateway.locks(), client, &call)
}

fn send(address: SocketAddr, client: ClientConfig, call: &Request) -> Response {
    let (mut connection, _) = connect(address, &Arc::new(client)).unwrap();
    connection.send(call.whole()).response()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// `fencegate lock` by https, with these options.
fn lock(stage: &Stage, options: &[&str]) -> Output {
    let url = format!("https://{}", stage.gateway.locks());
    let mut command: Command = binary();
    command
        .args(["lock", KEY, "--url", &url, "--wait", "200ms"])
        .args(options)
        .args(["--", "sh", "-c", "echo $FENCING_TOKEN"])
        .env_remove("FENCEGATE_LOCKS_TOKEN")
        .env_remove("SSL_CERT_FILE")
        .output()
        .unwrap()
}

#[test]
fn locks_over_tls_ask_for_the_tokens_all_the_same() {
    let authority = Authority::new();
    let tls = authority.listener(&server(&authority));
    let stage = secured(tls, |config| config.set("locks.tokens", json!([HASH])));
    acquire(&stage, authority.trust()).assert_fenced(403, "forbidden", "no token");
    let list = Request::get("/v1/locks").host("locks.internal");
    let list = list.header("Authorization", "Bearer sesame");
    let answer = send(stage.gateway.locks(), authority.trust(), &list);
    assert_eq!(answer.status, 200, "by whatever name it has");
    let ca = authority.path("ca.pem");
    let token = authority.write("token", "sesame\n");
    let (ca, token) = (ca.to_str().unwrap(), token.to_str().unwrap());
    let output = lock(&stage, &["--ca", ca, "--token-file", token]);
    assert_eq!(output.stdout, b"1\n", "{}", said(&output));
    let refused = lock(&stage, &["--ca", ca]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(said(&refused).contains("403"), "{}", said(&refused));
    // One who speaks no TLS is told so and gets nothing else.
    let plain = Request::get("/v1/locks").host("localhost");
    let plain = plain.header("Authorization", "Bearer sesame");
    let refused = plain.send(stage.gateway.locks());
    refused.assert_fenced(400, "bad-request", "no TLS");
}

#[test]
fn a_server_of_another_authority_is_told_nothing() {
    let (authority, other) = (Authority::new(), Authority::new());
    let stage = secured(authority.listener(&server(&authority)), |config| config);
    let ca = other.path("ca.pem");
    for options in [&["--ca", ca.to_str().unwrap()][..], &[]] {
        let output = lock(&stage, options);
        assert_eq!(output.status.code(), Some(1), "{options:?}");
        assert!(output.stdout.is_empty());
        assert!(said(&output).contains("not reached"), "{}", said(&output));
    }
    let view = Request::get("/v1/locks/objects%2F42").host("localhost");
    let view = send(stage.gateway.locks(), authority.trust(), &view);
    assert_eq!(view.status, 404, "nobody took it");
}

#[test]
fn certificates_of_clients_do_for_tokens_on_an_open_address() {
    let authority = Authority::new();
    let tls = authority.mutual(&server(&authority), "required");
    let stage = secured(tls, |config| config.set("locks.address", "0.0.0.0:0"));
    let port = stage.gateway.locks().port();
    let here = SocketAddr::from(([127, 0, 0, 1], port));
    let own = authority.client(vec![], "pod-a");
    let shown = authority.trust_with(rustls::DEFAULT_VERSIONS, Some(&own));
    let body = json!({ "holder": "pod-a", "ttl_ms": 30_000 });
    let call = stage.gateway.lock_call(KEY, "acquire", &body);
    assert_eq!(send(here, shown, &call).status, 200);
    // Without one there is nothing to be had: not even an answer.
    let nothing = connect(here, &Arc::new(authority.trust()));
    if let Ok((mut connection, _)) = nothing {
        let answer = connection.send(call.whole()).try_response("POST");
        assert!(answer.is_err(), "{answer:?}");
    }
    let (cert, key) = (
        authority.write("own.pem", &own.cert),
        authority.write("own.key", &own.key),
    );
    let ca = authority.path("ca.pem");
    let url = format!("https://127.0.0.1:{port}");
    let run = |more: &[&str]| {
        let options = [
            "lock",
            "objects/7",
            "--url",
            &url,
            "--wait",
            "200ms",
            "--ca",
        ];
        let mut command = binary();
        command.args(options).arg(&ca).args(more);
        command.args(["--", "true"]).output().unwrap()
    };
    let (cert, key) = (cert.to_str().unwrap(), key.to_str().unwrap());
    let good = run(&["--cert", cert, "--key", key]);
    assert_eq!(good.status.code(), Some(0), "{}", said(&good));
    assert_eq!(run(&[]).status.code(), Some(1), "without one");
    assert_eq!(
        run(&["--cert", cert]).status.code(),
        Some(2),
        "without a key"
    );
    let wrong = run(&["--cert", key, "--key", cert]);
    assert_eq!(wrong.status.code(), Some(2), "the wrong way round");
}

#[test]
fn an_open_address_needs_more_than_a_certificate_of_its_own() {
    let authority = Authority::new();
    let issued = server(&authority);
    for tls in [
        authority.listener(&issued),
        authority.mutual(&issued, "optional"),
    ] {
        let config = Config::new("http://127.0.0.1:9")
            .set("locks.address", "0.0.0.0:0")
            .set("locks.tls", tls);
        let dir = tempfile::tempdir().unwrap();
        let failed = Gateway::fails(config, &dir.path().join("store"));
        assert_eq!(failed.status.code(), Some(2));
        let said = &failed.errors;
        assert!(
            said.contains("locks.tls that requires certificates"),
            "{said}"
        );
    }
}

#[test]
fn a_new_certificate_is_taken_without_a_restart_and_leases_go_on() {
    let authority = Authority::new();
    let first = server(&authority);
    let stage = secured(authority.listener(&first), |config| config);
    let client = || Arc::new(authority.trust());
    let (mut old, shaken) = connect(stage.gateway.locks(), &client()).unwrap();
    assert_eq!(acquire(&stage, authority.trust()).status, 200);
    authority.listener(&server(&authority));
    eventually("the new certificate is shown", || {
        let (_, now) = connect(stage.gateway.locks(), &client()).unwrap();
        (now.certificate != shaken.certificate).then_some(())
    });
    let body = json!({ "token": "1", "ttl_ms": 30_000 });
    let renew = stage.gateway.lock_call(KEY, "renew", &body);
    assert_eq!(old.send(renew.whole()).response().status, 200);
}

#[test]
fn keys_are_seen_and_raised_by_https() {
    let authority = Authority::new();
    let tls = authority.mutual(&server(&authority), "required");
    let stage = secured(authority.listener(&server(&authority)), |config| {
        config.set("admin.tls", tls)
    });
    let own = authority.client(vec![], "operator");
    let cert = authority.write("own.pem", &own.cert);
    let key = authority.write("own.key", &own.key);
    let url = format!("https://{}", stage.gateway.admin);
    let keys = |more: &[&str]| {
        let mut command = binary();
        command.args(["keys", "--url", &url, "--ca"]);
        command.arg(authority.path("ca.pem")).args(more);
        command.output().unwrap()
    };
    let shown = [
        "--cert",
        cert.to_str().unwrap(),
        "--key",
        key.to_str().unwrap(),
    ];
    let raised = keys(&[&["raise", KEY, "7"], &shown[..]].concat());
    assert_eq!(raised.status.code(), Some(0), "{}", said(&raised));
    let list = keys(&[&shown[..], &["list"]].concat());
    let line: Value = serde_json::from_slice(&list.stdout).unwrap();
    assert_eq!((&line["key"], &line["mark"]), (&json!(KEY), &json!("7")));
    assert_eq!(
        keys(&["list"]).status.code(),
        Some(1),
        "without a certificate"
    );
    let plain = url.replace("https", "http");
    let mut command = binary();
    command.args(["keys", "list", "--url", &plain]).args(shown);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2), "certificates are for https");
}
