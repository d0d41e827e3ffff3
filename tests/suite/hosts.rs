//! The authority of a request: which host it is for, and that it is for one only.

use crate::common::{Connection, Request, Stage};
use serde_json::json;

fn request(line: &str, hosts: &str) -> String {
    format!("{line} HTTP/1.1\r\n{hosts}Fencing-Token: 34\r\nContent-Length: 1\r\n\r\nx")
}

// K14
#[test]
fn an_absolute_target_must_name_its_own_host() {
    let stage = Stage::new();
    Connection::open(stage.http())
        .send(request(
            "PUT http://store.test/objects/42",
            "Host: store.test\r\n",
        ))
        .response()
        .assert_ok("absolute form with the same authority");
    assert_eq!(
        stage.recorder.last().target,
        "/objects/42",
        "origin form goes upstream"
    );
    assert_eq!(stage.mark("objects/42").as_deref(), Some("34"));
    for (line, host) in [
        ("PUT http://other.test/objects/42", "Host: store.test\r\n"),
        (
            "PUT http://store.test:81/objects/42",
            "Host: store.test\r\n",
        ),
        (
            "PUT http://user@store.test/objects/42",
            "Host: store.test\r\n",
        ),
        ("PUT http:///objects/42", "Host: store.test\r\n"),
        (
            "PUT http://store.test@other.test/objects/42",
            "Host: store.test\r\n",
        ),
    ] {
        let answer = stage.assert_bad(request(line, host), line);
        assert!(answer.is_none_or(|answer| answer.status == 400), "{line}");
    }
    stage.assert_alive();
}

// K14
#[test]
fn an_absolute_target_without_a_path_is_the_root() {
    let stage = Stage::with(|config| {
        config
            .set("routes.0.path", "/{*path}")
            .fence("key", "{query.id}")
    });
    for (line, target) in [
        ("PUT http://store.test?id=42", "/?id=42"),
        ("PUT http://store.test/?id=42", "/?id=42"),
        (
            "GET http://store.test?id=42&path=/a//b",
            "/?id=42&path=/a//b",
        ),
        ("GET http://store.test", "/"),
    ] {
        let head = match line.starts_with("GET") {
            true => format!("{line} HTTP/1.1\r\nHost: store.test\r\n\r\n"),
            false => request(line, "Host: store.test\r\n"),
        };
        let answer = Connection::open(stage.http()).send(head).response();
        answer.assert_ok(line);
        assert_eq!(stage.recorder.last().target, target, "{line}");
    }
    assert_eq!(stage.mark("objects/42").as_deref(), Some("34"));
}

// K15
#[test]
fn a_request_is_for_exactly_one_host() {
    let stage = Stage::new();
    for hosts in [
        "",
        "Host: store.test\r\nHost: store.test\r\n",
        "Host: store.test\r\nHost: other.test\r\n",
        "Host: store.test\r\nhost: other.test\r\n",
        "Host: store.test, other.test\r\n",
        "Host: user@store.test\r\n",
        "Host: user:secret@store.test\r\n",
        "Host: store.test/objects\r\n",
        "Host: store test\r\n",
        "Host: store.test:port\r\n",
        "Host: store.test:99999\r\n",
        "Host: store.test#\r\n",
        "Host: store.test?\r\n",
        "Host: store\\test\r\n",
    ] {
        let answer = stage.assert_bad(request("PUT /objects/42", hosts), &format!("{hosts:?}"));
        assert!(
            answer.is_none_or(|answer| answer.status == 400),
            "{hosts:?}"
        );
    }
    stage.assert_alive();
}

// K16
#[test]
fn a_key_from_the_host_minds_neither_case_nor_port_nor_trailing_dot() {
    let stage = Stage::with(|config| config.fence("key", "{host}/{id}"));
    let write =
        |host: &str, token: u64| stage.send(&Request::put("/objects/42").host(host).token(token));
    write("store.test", 34).assert_ok("the first");
    for host in [
        "STORE.test",
        "store.test:80",
        "store.test:8080",
        "store.test.",
        "Store.Test.:80",
    ] {
        write(host, 33).assert_fenced(409, "stale-token", host);
        write(host, 34).assert_ok(host);
        assert_eq!(
            stage.recorder.last().header("host"),
            Some(host),
            "Host is preserved"
        );
    }
    write("other.test", 1).assert_ok("another host is another key");
    assert_eq!(stage.mark("objects/store.test/42").as_deref(), Some("34"));
}

#[test]
fn routes_match_by_host_and_capture_from_it() {
    let stage = Stage::with(|config| {
        config.routes(json!([
            {
                "name": "bucket", "hosts": ["{bucket}.s3.internal"], "path": "/{*object}",
                "upstream": "objects", "fence": { "key": "{bucket}/{object}" },
            },
            {
                "name": "exact", "hosts": ["files.test"], "path": "/{*path}",
                "upstream": "objects", "fence": { "key": "{path}" },
            },
            {
                "name": "suffix", "hosts": ["*.files.test"], "path": "/{*path}",
                "upstream": "objects", "fence": { "key": "{host}/{path}" },
            },
        ]))
    });
    let write = |host: &str| stage.send(&Request::put("/a/b").host(host).token(34));
    write("photos.s3.internal").assert_ok("a capture in the host");
    write("files.test").assert_ok("an exact host");
    write("www.FILES.test:80").assert_ok("a suffix");
    for key in [
        "bucket/photos/a/b",
        "exact/a/b",
        "suffix/www.files.test/a/b",
    ] {
        assert_eq!(stage.mark(key).as_deref(), Some("34"), "{key}");
    }
    let count = stage.recorder.count();
    for host in [
        "s3.internal",
        "a.b.s3.internal",
        "nofiles.test",
        "unknown.test",
    ] {
        let answer = write(host);
        if answer.status == 200 {
            assert_eq!(host, "a.b.s3.internal", "no route is for {host}");
            continue;
        }
        answer.assert_fenced(404, "no-route", host);
        assert_eq!(stage.recorder.count(), count, "never forwarded");
    }
}

#[test]
fn http_1_0_without_a_host_is_served_by_routes_that_name_none() {
    let stage = Stage::new();
    let write = "PUT /objects/42 HTTP/1.0\r\nFencing-Token: 34\r\nContent-Length: 1\r\n\r\nx";
    Connection::open(stage.http())
        .send(write)
        .response()
        .assert_ok("HTTP/1.0 without Host");
    let named = Stage::with(|config| config.set("routes.0.hosts", json!(["store.test"])));
    let answer = named
        .assert_bad(write, "a route that names a host")
        .unwrap();
    answer.assert_fenced(404, "no-route", "no host matches no host");
}
