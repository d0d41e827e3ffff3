use http::Method;

use super::*;
use crate::key::HostError;

pub(super) fn route(path: &str) -> RouteMatcher {
    RouteMatcher::new(path).unwrap()
}

pub(super) fn opaque(path: &str) -> RouteMatcher {
    route(path).path_rules(PathRules::Opaque)
}

fn on(host: &str, path: &str) -> RouteMatcher {
    route(path).hosts([host]).unwrap()
}

pub(super) fn router(routes: impl IntoIterator<Item = RouteMatcher>) -> Router<usize> {
    Router::new(routes.into_iter().zip(0..))
}

pub(super) fn view<'a>(target: &'a str) -> RequestView<'a> {
    let (path, query) = match target.split_once('?') {
        None => (target, None),
        Some((path, query)) => (path, Some(query)),
    };
    RequestView {
        method: &Method::PUT,
        host: Some("example.com"),
        path,
        query,
    }
}

pub(super) fn find<'r>(
    router: &'r Router<usize>,
    target: &str,
) -> Result<usize, RouteError<'r, usize>> {
    router.find(&view(target)).map(|found| found.index)
}

fn captures(router: &Router<usize>, target: &str) -> Vec<(String, String)> {
    let view = view(target);
    let found = router.find(&view).unwrap();
    found
        .captures()
        .iter()
        .map(|&(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn values(router: &Router<usize>, target: &str) -> Vec<String> {
    captures(router, target)
        .into_iter()
        .map(|(_, value)| value)
        .collect()
}

fn is_ambiguous(result: &Result<usize, RouteError<'_, usize>>) -> bool {
    matches!(result, Err(RouteError::AmbiguousPath { .. }))
}

#[test]
fn templates_capture_decoded_segments() {
    let routes = router([
        route("/objects/{id}"),
        route("/v2/{*name}/manifests/{ref}"),
        opaque("/buckets/{bucket}/{*object}"),
    ]);
    assert_eq!(values(&routes, "/objects/%34%32"), ["42"]);
    assert_eq!(values(&routes, "/objects/42/"), ["42"]);
    assert_eq!(values(&routes, "/%6fbjects/42"), ["42"]);
    assert_eq!(
        captures(&routes, "/v2/library/nginx/manifests/latest"),
        [
            ("name".to_owned(), "library/nginx".to_owned()),
            ("ref".to_owned(), "latest".to_owned())
        ]
    );
    assert_eq!(values(&routes, "/v2/manifests/latest"), ["", "latest"]);
    assert_eq!(values(&routes, "/buckets/b/a//c;d/"), ["b", "a//c;d/"]);
    assert_eq!(values(&routes, "/buckets/b"), ["b", ""]);
    assert_eq!(values(&routes, "/buckets/b/"), ["b", ""]);
    for path in ["/", "/objects", "/objects/1/2", "/v2/a/manifests", "/other"] {
        assert_eq!(find(&routes, path), Err(RouteError::NoRoute), "{path}");
    }
}

#[test]
fn the_catch_all_matches_the_root() {
    for template in ["/{*path}", "/{*path}/"] {
        let routes = router([route(template)]);
        assert_eq!(values(&routes, "/"), [""]);
        assert_eq!(values(&routes, "/a/b/"), ["a/b"]);
    }
    assert_eq!(find(&router([route("/")]), "/"), Ok(0));
    assert_eq!(find(&router([route("/")]), "/a"), Err(RouteError::NoRoute));
}

// K1
#[test]
fn dot_segments_lead_nowhere() {
    let routes = router([route("/objects/{id}"), opaque("/{*path}")]);
    for path in [
        "/x/../objects/42",
        "/objects/x/%2e%2e/42",
        "/objects/./42",
        "/x/..;/objects/42",
        "/x%2F..%2Fobjects/42",
        "/x%5C..%5Cobjects%5C42",
    ] {
        assert_eq!(
            find(&routes, path),
            Err(RouteError::AmbiguousPath {
                what: AmbiguousPath::DotSegment,
                route: None
            }),
            "{path}"
        );
    }
    // Read in any way these stay with one route; they are refused all the same.
    for path in ["/x/../y", "/objects/%2e%2e/x"] {
        assert_eq!(
            find(&routes, path),
            Err(RouteError::AmbiguousPath {
                what: AmbiguousPath::DotSegment,
                route: Some(&1)
            }),
            "{path}"
        );
    }
}

// K2, K3, K10
#[test]
fn an_ambiguous_path_never_falls_through_to_another_route() {
    for routes in [
        router([route("/objects/{id}"), opaque("/{*path}")]),
        router([opaque("/objects/{id}"), opaque("/{*path}")]),
        router([opaque("/objects/{id}"), route("/{*path}")]),
        router([route("/objects/{id}"), route("/{*path}")]),
    ] {
        for path in [
            "/objects//42",
            "//objects/42",
            "/objects%2F42",
            "/objects%2f%2F42",
            "/objects%5C42",
            "/objects;v=1/42",
            "/objects%3Bx/42",
            "/objects/;/42",
            "/objects/a%2Fb",
            "/%2Fobjects/42",
            "/objects/42//",
            "/;/objects/42",
        ] {
            let result = find(&routes, path);
            assert!(is_ambiguous(&result), "{path} {result:?}");
        }
    }
}

// K3
#[test]
fn a_strict_route_is_never_left_for_an_opaque_one() {
    let routes = router([
        opaque("/{bucket}/{*object}"),
        route("/admin/{*rest}"),
        route("/{bucket}/policy"),
    ]);
    for path in [
        "/admin%2Fx",
        "/b/policy;x",
        "/b//policy",
        "/b%2Fpolicy",
        "/b/policy//",
        "/b%5Cpolicy",
        "//admin/x",
        "/admin;x/y",
    ] {
        assert!(is_ambiguous(&find(&routes, path)), "{path}");
    }
    for path in [
        "/b/x//y",
        "/b/x;y",
        "/b/x%2Fy",
        "/b//x",
        "/b/x%5Cy/",
        "/b%2Fx",
    ] {
        assert_eq!(find(&routes, path), Ok(0), "{path}");
    }
}

// K2
#[test]
fn the_refusing_route_is_named_where_there_is_one() {
    let routes = router([route("/objects/{id}")]);
    assert_eq!(
        find(&routes, "/objects//42"),
        Err(RouteError::AmbiguousPath {
            what: AmbiguousPath::EmptySegment,
            route: Some(&0)
        })
    );
    assert_eq!(
        find(&routes, "/objects/a//42"),
        Err(RouteError::AmbiguousPath {
            what: AmbiguousPath::EmptySegment,
            route: None
        })
    );
    assert_eq!(
        find(&router([opaque("/objects/{id}")]), "/x//y"),
        Err(RouteError::NoRoute)
    );
}

// K4
#[test]
fn an_escaped_slash_is_a_slash_to_an_opaque_route() {
    let routes = router([opaque("/objects/{*id}")]);
    for path in [
        "/objects/a%2Fb",
        "/objects/a%2fb",
        "/objects/a/b",
        "/objects%2Fa/b",
    ] {
        assert_eq!(values(&routes, path), ["a/b"], "{path}");
    }
    let routes = router([opaque("/projects/{id}")]);
    assert_eq!(values(&routes, "/projects/group%2Fname"), ["group/name"]);
    assert_eq!(
        find(&routes, "/projects/group/name"),
        Err(RouteError::NoRoute)
    );
    // Escaped or not, one trailing slash decides nothing.
    assert_eq!(values(&routes, "/projects/a%2F"), ["a"]);
    assert_eq!(values(&routes, "/projects/a/"), ["a"]);
}

// K5
#[test]
fn a_path_is_decoded_once_before_it_is_matched() {
    let routes = router([route("/objects/{id}"), route("/{*path}")]);
    assert_eq!(values(&routes, "/objects/%252e"), ["%2e"]);
    assert_eq!(find(&routes, "/%256fbjects/42"), Ok(1));
}

// K6, K7, K8, K9
#[test]
fn broken_paths_are_refused_on_every_route() {
    let routes = router([route("/objects/{id}"), opaque("/{*path}")]);
    for path in [
        "/objects/%zz",
        "/%ff",
        "/a%00",
        "/objects/42%00",
        "/a|b",
        "/a b",
        "",
    ] {
        assert!(is_ambiguous(&find(&routes, path)), "{path}");
    }
    assert!(is_ambiguous(&find(&router([]), "/%00")));
}

#[test]
fn a_long_ambiguous_path_is_refused_with_little_work() {
    let routes = router([opaque("/{*path}")]);
    let long = format!("/{}", "a;".repeat(4096));
    assert!(is_ambiguous(&find(&routes, &long)));
    assert_eq!(find(&routes, &format!("/{}", "a/".repeat(4096))), Ok(0));
}

// K11
#[test]
fn an_insensitive_route_folds_its_literals() {
    let routes = router([
        route("/Objects/{id}").case(Case::Insensitive),
        route("/{*path}"),
    ]);
    for path in [
        "/objects/A",
        "/OBJECTS/A",
        "/ob%C2%ADjects/A",
        "/%EF%BD%8Fbjects/A",
    ] {
        assert_eq!(find(&routes, path), Ok(0), "{path}");
        assert_eq!(values(&routes, path), ["A"], "{path}");
    }
    for path in ["/objects%EF%BC%8F42", "/%E2%80%A5/objects/42"] {
        assert!(is_ambiguous(&find(&routes, path)), "{path}");
    }
    let routes = router([route("/objects/{id}"), route("/{*path}")]);
    assert_eq!(find(&routes, "/Objects/A"), Ok(1));
}

#[test]
fn the_most_specific_path_wins_in_any_order() {
    let mut templates = vec![
        "/a/b",
        "/a/{x}",
        "/a/{*x}",
        "/{x}/b",
        "/{x}/{y}",
        "/{x}",
        "/{*x}/c/b",
        "/{*x}/b",
        "/{*x}",
    ];
    for _ in 0..templates.len() {
        templates.rotate_left(1);
        let routes = router(templates.iter().map(|template| route(template)));
        for (path, template) in [
            ("/a/b", "/a/b"),
            ("/a/c", "/a/{x}"),
            ("/a/c/d", "/a/{*x}"),
            ("/a", "/a/{*x}"),
            ("/z", "/{x}"),
            ("/z/b", "/{x}/b"),
            ("/z/z", "/{x}/{y}"),
            ("/z/z/b", "/{*x}/b"),
            ("/z/c/b", "/{*x}/c/b"),
            ("/z/z/z", "/{*x}"),
            ("/", "/{*x}"),
        ] {
            assert_eq!(templates[find(&routes, path).unwrap()], template, "{path}");
        }
    }
}

#[test]
fn the_most_specific_host_wins_before_the_path() {
    let routes = router([
        route("/a"),
        on("*.internal", "/a"),
        on("*.s3.internal", "/{*x}"),
        on("{bucket}.s3.internal", "/{*x}"),
        on("logs.s3.internal", "/{*x}"),
        on("{*bucket}.s4.internal", "/{*x}"),
    ]);
    let at = |host, path| routes.find(&RequestView { host, ..view(path) });
    let index = |host, path| at(Some(host), path).map(|found| found.index);
    assert_eq!(index("LOGS.s3.internal.:80", "/a"), Ok(4));
    assert_eq!(index("b.s3.internal", "/a"), Ok(3));
    assert_eq!(index("b.c.s3.internal", "/a"), Ok(2));
    assert_eq!(index("c.internal", "/a"), Ok(1));
    assert_eq!(index("internal", "/a"), Ok(0));
    assert_eq!(index("b.internal", "/b"), Err(RouteError::NoRoute));
    assert_eq!(index("s3.internal", "/a"), Ok(1));
    assert_eq!(at(None, "/a").unwrap().index, 0);
    assert_eq!(
        at(Some("b.s3.internal"), "/k").unwrap().captures()[..],
        [("x", "k"), ("bucket", "b")]
    );
    assert_eq!(
        at(Some("my.b.s4.internal"), "/k").unwrap().captures()[1],
        ("bucket", "my.b")
    );
}

// K15, K16
#[test]
fn hosts_are_matched_in_their_one_spelling() {
    let routes = router([on("Example.com", "/{*x}"), on("[::1]", "/{*x}")]);
    for host in ["example.com", "EXAMPLE.COM:8080", "example.com."] {
        let found = routes.find(&RequestView {
            host: Some(host),
            ..view("/")
        });
        assert_eq!(found.unwrap().host(), Some("example.com"));
    }
    for (host, index) in [("[0::1]:1", Some(1)), ("a.example.com", None)] {
        let found = routes.find(&RequestView {
            host: Some(host),
            ..view("/")
        });
        assert_eq!(found.ok().map(|found| found.index), index);
    }
    let found = routes.find(&RequestView {
        host: Some("a,b"),
        ..view("/")
    });
    assert_eq!(
        found.map(|_| ()),
        Err(RouteError::Host(HostError::Character(',')))
    );
}

#[test]
fn one_route_can_have_several_hosts() {
    let routes = router([route("/{*x}").hosts(["a", "{bucket}.b"]).unwrap()]);
    for (host, count) in [("a", 1), ("c.b", 2)] {
        let request = RequestView {
            host: Some(host),
            ..view("/")
        };
        assert_eq!(routes.find(&request).unwrap().captures().len(), count);
    }
    assert_eq!(routes.routes()[0].0.captures(), ["x"]);
}

#[test]
fn methods_and_query_names_decide_after_the_path() {
    let routes = router([
        route("/{*x}"),
        route("/o/{id}").methods([Method::PUT, Method::DELETE]),
        route("/o/{id}")
            .methods([Method::PUT])
            .query(["uploads"])
            .unwrap(),
        route("/o/{id}")
            .methods([Method::PUT])
            .query(["part", "upload"])
            .unwrap(),
    ]);
    assert_eq!(find(&routes, "/o/1"), Ok(1));
    assert_eq!(find(&routes, "/o/1?uploads"), Ok(2));
    assert_eq!(find(&routes, "/o/1?upl%6fads=1"), Ok(2));
    assert_eq!(find(&routes, "/o/1?part=1"), Ok(1));
    assert_eq!(find(&routes, "/o/1?uploads&upload=1&part=1"), Ok(3));
    let get = RequestView {
        method: &Method::GET,
        ..view("/o/1")
    };
    assert_eq!(routes.find(&get).unwrap().index, 0);
    assert_eq!(
        find(&routes, "/o/1?x;uploads"),
        Err(RouteError::AmbiguousQuery { name: "uploads" })
    );
    assert_eq!(find(&routes, "/p?x;uploads"), Ok(0));
}

// K20
#[test]
fn a_method_that_no_route_takes_is_not_allowed() {
    let routes = router([
        route("/o/{id}").methods([Method::PUT, Method::GET]),
        route("/o/{*id}").methods([Method::GET, Method::DELETE]),
        route("/q").methods([Method::GET]).query(["a"]).unwrap(),
    ]);
    let lower = Method::from_bytes(b"put").unwrap();
    let request = RequestView {
        method: &lower,
        ..view("/o/1")
    };
    let Err(RouteError::MethodNotAllowed { allowed }) = routes.find(&request) else {
        panic!("a lower-case method is another method");
    };
    assert_eq!(allowed, [&Method::DELETE, &Method::GET, &Method::PUT]);
    assert_eq!(find(&routes, "/q"), Err(RouteError::NoRoute));
    assert!(matches!(
        find(&routes, "/q?a"),
        Err(RouteError::MethodNotAllowed { .. })
    ));
}

#[test]
fn the_cost_is_flat_with_ten_thousand_routes() {
    let many = (0..2_500).flat_map(|n| {
        [
            route(&format!("/objects-{n}/{{id}}")),
            route(&format!("/v2/{{*name}}/kind-{n}/{{ref}}")),
            on(&format!("host-{n}.internal"), "/{*x}"),
            on(&format!("{{bucket}}.s{n}.internal"), "/{*x}"),
        ]
    });
    let routes = router(many.chain([route("/{*rest}")]));
    for (host, path, at_most) in [
        ("a", "/objects-1234/1", 2),
        ("a", "/v2/a/b/kind-77/1", 2),
        ("host-9.internal", "/v2/a/b/kind-77/1", 3),
        ("b.s2000.internal", "/objects-0/1", 3),
        ("a", "/nothing", 1),
    ] {
        let groups = routes.groups_of(Some(host));
        let search = routes.search(&groups, &path[1..], &view(path));
        assert!(search.best.is_some());
        assert!(search.offered <= at_most, "{path}: {}", search.offered);
    }
}

// K16, K22
#[test]
fn a_match_makes_the_keys_of_its_request() {
    use crate::key::{KeyRule, KeyRules, KeyTemplate};

    let routes = router([on("{bucket}.internal", "/{*object}")]);
    let request = RequestView {
        host: Some("B.internal:80"),
        ..view("/a/%62/")
    };
    let rule = |template| KeyRule::new(KeyTemplate::parse(template).unwrap());
    let keys = vec![
        rule("{bucket}/{object}"),
        rule("{host}/{header.destination|path}"),
    ];
    let rules = KeyRules::new("ns", keys, PathRules::Strict, Case::Sensitive).unwrap();
    let mut headers = http::HeaderMap::new();
    headers.insert(
        "destination",
        http::HeaderValue::from_static("http://b.internal/c"),
    );
    let found = routes.find(&request).unwrap();
    let keys = found.keys(&rules, None, &headers).unwrap();
    assert_eq!(keys[0].key.as_str(), "ns/b/a/b");
    assert_eq!(keys[1].key.as_str(), "ns/b.internal/c");
}

#[test]
fn routes_that_share_no_path_are_told_apart() {
    let share = |one: &RouteMatcher, other: &RouteMatcher| {
        let both = (one.may_share_paths(other), other.may_share_paths(one));
        assert_eq!(both.0, both.1);
        both.0
    };
    for (one, other) in [
        ("/a/{id}", "/b/{id}"),
        ("/a/{*rest}", "/b"),
        ("/a/{x}/c", "/a/{y}/d/{*rest}"),
        ("/{x}/c/{*rest}", "/a/d/{y}"),
    ] {
        assert!(!share(&route(one), &route(other)), "{one} {other}");
        assert!(
            share(&opaque(one), &route(other)),
            "what is opaque may be any"
        );
    }
    for (one, other) in [
        ("/a/{id}", "/a/{id}"),
        ("/a/{id}", "/{x}/b"),
        ("/{*rest}", "/b"),
        ("/a/{*rest}/c", "/a/b/d"),
        // An upstream may take them for one.
        ("/A/{id}", "/a/{id}"),
        ("/stra\u{df}e/{id}", "/STRASSE/{id}"),
        ("/a", "/a/{id}"),
        ("/", "/a"),
    ] {
        assert!(share(&route(one), &route(other)), "{one} {other}");
    }
}
