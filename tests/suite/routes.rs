//! Which route a request takes, and what becomes of those that match none.

use crate::common::{Config, Request, Stage};
use serde_json::{Value, json};

fn route(name: &str, path: &str, more: Value) -> Value {
    let mut route = json!({ "name": name, "path": path, "upstream": "objects" });
    for (key, value) in more.as_object().unwrap() {
        route[key] = value.clone();
    }
    route
}

fn with_routes(routes: Value) -> Stage {
    Stage::with(|config: Config| config.routes(routes))
}

#[test]
fn what_no_route_matches_is_never_forwarded() {
    let stage = Stage::new();
    for target in ["/", "/objects", "/objects/1/2", "/Objects/1", "/other/1"] {
        for request in [Request::get(target), Request::put(target).token(1)] {
            stage.send(&request).assert_fenced(404, "no-route", target);
        }
    }
    assert_eq!(stage.recorder.count(), 0, "no route, no upstream");
}

#[test]
fn a_method_that_a_matching_route_does_not_list_is_not_allowed() {
    let stage = Stage::with(|config| config.set("routes.0.methods", json!(["GET", "PUT"])));
    stage
        .send(&Request::new("DELETE", "/objects/42").token(1))
        .assert_fenced(405, "method-not-allowed", "DELETE is not listed");
    stage.raise("/objects/42", "1");
    assert_eq!(stage.recorder.count(), 1);
}

#[test]
fn a_denied_route_refuses_what_matches() {
    let stage = with_routes(json!([
        route("all", "/{*path}", json!({})),
        { "name": "bulk", "path": "/bulk/{*rest}", "deny": true },
    ]));
    for request in [Request::get("/bulk/1"), Request::put("/bulk/1").token(1)] {
        stage
            .send(&request)
            .assert_fenced(403, "forbidden", "deny: true");
    }
    stage.raise("/other", "1");
    assert_eq!(stage.recorder.count(), 1);
}

// K24
#[test]
fn a_bulk_operation_is_refused_unless_a_route_keys_it_by_its_container() {
    let stage = with_routes(json!([
        route(
            "object",
            "/buckets/{bucket}/{*object}",
            json!({ "fence": { "key": "{bucket}/{object}" } })
        ),
        route(
            "bulk",
            "/buckets/{bucket}",
            json!({
                "methods": ["POST"], "query": ["delete"], "fence": { "key": "{bucket}" },
            })
        ),
    ]));
    let other = stage.send(&Request::new("POST", "/buckets/photos").token(5));
    assert_eq!(
        (other.status, stage.recorder.count()),
        (400, 0),
        "without ?delete the object's route has no object: {other:?}"
    );
    stage
        .send(&Request::new("POST", "/buckets/photos?delete").token(5))
        .assert_ok("the route that keys it by the bucket");
    assert_eq!(stage.mark("bulk/photos").as_deref(), Some("5"));
    stage
        .send(&Request::new("POST", "/buckets/photos?delete=").token(4))
        .assert_fenced(409, "stale-token", "and fences it");
}

#[test]
fn the_most_specific_route_wins_in_whatever_order_they_stand() {
    let routes = [
        route("all", "/{*path}", json!({})),
        route("two", "/a/{b}", json!({ "fence": { "key": "{b}" } })),
        route("exact", "/a/b", json!({ "fence": { "key": "fixed" } })),
        route(
            "middle",
            "/v2/{*name}/manifests/{ref}",
            json!({ "fence": { "key": "{name}:{ref}" } }),
        ),
    ];
    for turn in 0..routes.len() {
        let mut turned = routes.to_vec();
        turned.rotate_left(turn);
        let stage = with_routes(json!(turned));
        for (target, key) in [
            ("/a/b", "exact/fixed"),
            ("/a/c", "two/c"),
            ("/a/c/d", "all/a/c/d"),
            ("/v2/x/y/manifests/latest", "middle/x/y:latest"),
            ("/v2/x/manifests", "all/v2/x/manifests"),
        ] {
            stage.raise(target, "34");
            assert_eq!(stage.mark(key).as_deref(), Some("34"), "{target} is {key}");
        }
    }
}

#[test]
fn routes_collide_only_on_purpose() {
    let stage = with_routes(json!([
        route(
            "old",
            "/old/{id}",
            json!({ "fence": { "key": "{id}" }, "namespace": "files" })
        ),
        route(
            "new",
            "/new/{id}",
            json!({ "fence": { "key": "{id}" }, "namespace": "files" })
        ),
        route(
            "apart",
            "/apart/{id}",
            json!({ "fence": { "key": "{id}" } })
        ),
    ]));
    stage.raise("/old/42", "34");
    stage
        .send(&Request::put("/new/42").token(33))
        .assert_fenced(409, "stale-token", "a shared namespace shares its keys");
    stage.raise("/apart/42", "1");
    assert_eq!(stage.mark("files/42").as_deref(), Some("34"));
    assert_eq!(stage.mark("apart/42").as_deref(), Some("1"));
}

#[test]
fn a_plain_route_is_not_fenced() {
    let stage = Stage::with(|config| config.fence("require", "never"));
    stage
        .send(&Request::put("/objects/42"))
        .assert_ok("no token");
    stage
        .send(&Request::put("/objects/42").token("34"))
        .assert_ok("a token");
    stage
        .send(&Request::put("/objects/42").token("33"))
        .assert_ok("a lower token");
    assert_eq!(stage.mark("objects/42"), None, "nothing is kept");
}

#[test]
fn a_route_can_require_a_token_of_reads_too() {
    let stage = Stage::with(|config| config.fence("require", "all"));
    stage
        .send(&Request::get("/objects/42"))
        .assert_fenced(428, "token-required", "require: all");
    stage
        .send(&Request::get("/objects/42").token(34))
        .assert_ok("a read with a token");
}

#[test]
fn a_read_without_a_token_minds_the_path_but_not_the_key() {
    let stage = Stage::with(|config| {
        config
            .set("routes.0.path", "/{*path}")
            .fence("key", "{query.id}")
    });
    stage
        .send(&Request::get("/blob"))
        .assert_ok("a read that names no key");
    stage.send(&Request::get("/blob//x")).assert_fenced(
        400,
        "ambiguous-path",
        "the path's rules still apply",
    );
    stage.send(&Request::get("/blob").token(1)).assert_fenced(
        400,
        "no-key",
        "with a token it is fenced, and needs its key",
    );
}

#[test]
fn a_read_with_a_token_raises_the_mark() {
    let stage = Stage::at_34();
    stage
        .send(&Request::get("/objects/42").token(35))
        .assert_ok("the new holder reads first");
    stage
        .send(&Request::put("/objects/42").token(34))
        .assert_fenced(409, "stale-token", "the old holder's write");
    stage
        .send(&Request::get("/objects/42").token(34))
        .assert_fenced(409, "stale-token", "and its read");
    stage
        .send(&Request::get("/objects/42"))
        .assert_ok("a read without a token is not fenced");
}
