//! Who holds a token: two holders with one token are told apart.

use crate::common::{Request, Response, Stage};

fn bound() -> Stage {
    Stage::with(|config| config.fence("holder", "bind"))
}

fn write(stage: &Stage, token: u64, holder: Option<&str>) -> Response {
    let mut request = Request::put("/objects/42").token(token);
    if let Some(holder) = holder {
        request = request.header("Fencing-Holder", holder);
    }
    stage.send(&request)
}

#[test]
fn an_equal_token_is_for_the_holder_that_raised_the_mark() {
    let stage = bound();
    write(&stage, 34, Some("pod-a")).assert_ok("the advance binds");
    write(&stage, 34, Some("pod-a")).assert_ok("the same holder");
    write(&stage, 34, Some("pod-b")).assert_fenced(409, "holder-mismatch", "another holder");
    write(&stage, 34, None).assert_fenced(409, "holder-mismatch", "no holder");
    write(&stage, 35, Some("pod-b")).assert_ok("an advance binds anew");
    write(&stage, 35, Some("pod-a")).assert_fenced(409, "holder-mismatch", "the holder before");
    let view = stage.gateway.key("objects/42").unwrap();
    assert_eq!(
        view["holder"], "pod-b",
        "the view names who is bound: {view}"
    );
}

#[test]
fn a_mark_raised_without_a_holder_is_bound_to_none() {
    let stage = bound();
    write(&stage, 34, None).assert_ok("the advance binds nobody");
    write(&stage, 34, Some("pod-a")).assert_fenced(409, "holder-mismatch", "bound to none");
    write(&stage, 34, None).assert_ok("nobody again");
}

#[test]
fn a_binding_outlives_a_crash() {
    let mut stage = Stage::with(|config| config.fence("holder", "bind").settle("100ms"));
    write(&stage, 34, Some("pod-a")).assert_ok("the advance binds");
    stage.gateway.kill();
    stage.gateway.restart();
    write(&stage, 34, Some("pod-b")).assert_fenced(409, "holder-mismatch", "after a crash");
    write(&stage, 34, Some("pod-a")).assert_ok("the holder is still bound");
}

#[test]
fn a_mark_from_before_binding_is_bound_by_its_first_equal_token() {
    let mut stage = Stage::with(|config| config.settle("100ms"));
    write(&stage, 34, None).assert_ok("the advance, where holders are ignored");
    assert!(stage.gateway.terminate().success());
    let config = crate::common::Config::new(&stage.recorder.url()).fence("holder", "bind");
    stage.gateway.restart_as(config.settle("100ms"));
    write(&stage, 34, Some("pod-a")).assert_ok("the first equal token binds");
    stage.gateway.kill();
    stage.gateway.restart();
    write(&stage, 34, Some("pod-b")).assert_fenced(
        409,
        "holder-mismatch",
        "a first binding is durable before it is forwarded",
    );
}

#[test]
fn a_holder_that_is_no_name_is_refused() {
    let stage = bound();
    let long = "h".repeat(129);
    for holder in [
        "",
        " ",
        "two words",
        long.as_str(),
        "h\u{f6}lder",
        "tab\there",
    ] {
        let answer = write(&stage, 34, Some(holder));
        assert_eq!(
            (answer.status, stage.recorder.count()),
            (400, 0),
            "1 to 128 visible ASCII characters make a holder, {holder:?} is none"
        );
    }
    write(&stage, 34, Some(&"h".repeat(128))).assert_ok("128 characters");
    let twice = Request::put("/objects/42")
        .token(34)
        .header("Fencing-Holder", "a")
        .header("Fencing-Holder", "a");
    assert_eq!(stage.send(&twice).status, 400, "two holders are none");
}

#[test]
fn holders_are_ignored_by_default() {
    let stage = Stage::new();
    write(&stage, 34, Some("pod-a")).assert_ok("the advance");
    write(&stage, 34, Some("pod-b")).assert_ok("another holder");
}
