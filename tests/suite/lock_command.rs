//! `fencegate lock`: a command that runs while a lock is held, with real processes.

use std::io::{BufRead, BufReader, Lines};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::common::{Request, Signal, Stage, binary, eventually};
use serde_json::{Value, json};

const KEY: &str = "objects/42";

fn stage() -> Stage {
    Stage::with(|config| {
        config
            .settle("100ms")
            .set("locks.address", "127.0.0.1:0")
            .fence("trust", "issued")
    })
}

/// `fencegate lock` with these options, and a shell script as its command.
fn locked(stage: &Stage, options: &[&str], script: &str) -> Command {
    let mut command = binary();
    command
        .args(["lock", KEY])
        .args(options)
        .args(["--", "sh", "-c", script])
        .env(
            "FENCEGATE_LOCKS_URL",
            format!("http://{}", stage.gateway.locks()),
        )
        .env_remove("FENCEGATE_LOCKS_TOKEN")
        .stdin(Stdio::null());
    command
}

fn run(stage: &Stage, options: &[&str], script: &str) -> Output {
    locked(stage, options, script).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn holder(stage: &Stage) -> Value {
    let view = stage.gateway.lock_view(KEY);
    match view.status {
        200 => view.json()["holder"].clone(),
        _ => Value::Null,
    }
}

/// A command under a lock that tells what it does, line by line.
struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Running {
    fn start(stage: &Stage, options: &[&str], script: &str) -> Self {
        let mut command = locked(stage, options, script);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    fn says(&mut self) -> String {
        self.lines.next().unwrap().unwrap()
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    fn code(&mut self) -> Option<i32> {
        eventually("the command ends", || self.child.try_wait().unwrap()).code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn write(token: &str) -> Request {
    Request::put("/objects/42").token(token)
}

#[test]
fn the_command_has_the_token_and_its_status_is_passed_on() {
    let stage = stage();
    let output = run(&stage, &[], "echo $FENCING_KEY $FENCING_TOKEN; exit 7");
    assert_eq!(output.status.code(), Some(7), "{}", said(&output));
    assert_eq!(output.stdout, b"objects/42 1\n");
    assert!(holder(&stage).is_null(), "it is given back");
    let output = run(&stage, &["--holder", "cron"], "echo $FENCING_TOKEN");
    assert_eq!(output.stdout, b"2\n", "{}", said(&output));
    let killed = run(&stage, &[], "kill -KILL $$");
    assert_eq!(killed.status.code(), Some(128 + 9));
    assert_eq!(killed.status.signal(), None);
    let mut none = binary();
    none.args(["lock", KEY, "--", "/no/such/command"]).env(
        "FENCEGATE_LOCKS_URL",
        format!("http://{}", stage.gateway.locks()),
    );
    assert_eq!(none.output().unwrap().status.code(), Some(127));
    assert!(holder(&stage).is_null(), "it is given back all the same");
}

#[test]
fn a_lease_is_renewed_for_as_long_as_the_command_runs() {
    let stage = stage();
    let began = Instant::now();
    let mut running = Running::start(
        &stage,
        &["--ttl", "2s", "--holder", "a"],
        "echo on; sleep 5",
    );
    assert_eq!(running.says(), "on");
    while began.elapsed() < Duration::from_secs(4) {
        assert_eq!(holder(&stage), "a");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(running.code(), Some(0));
}

#[test]
fn who_does_not_get_it_in_time_does_not_run() {
    let stage = stage();
    let mut running = Running::start(&stage, &["--holder", "a"], "echo on; sleep 60");
    assert_eq!(running.says(), "on");
    let output = run(&stage, &["--wait", "200ms"], "echo ran");
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    assert!(said(&output).contains("409"), "{}", said(&output));
    running.signal(Signal::TERM);
    assert_eq!(running.code(), Some(128 + 15), "a signal is passed on");
    assert!(holder(&stage).is_null());
}

#[test]
fn signals_are_passed_on_and_the_command_may_take_its_time() {
    let stage = stage();
    let script = "trap 'echo told; exit 3' USR1; echo on; while :; do sleep 0.05; done";
    let mut running = Running::start(&stage, &[], script);
    assert_eq!(running.says(), "on");
    running.signal(Signal::USR1);
    assert_eq!(running.says(), "told");
    assert_eq!(running.code(), Some(3));
}

#[test]
fn a_lost_lease_ends_the_command() {
    let stage = stage();
    let script = "trap 'echo told' TERM; echo on; while :; do sleep 0.05; done";
    let options = ["--ttl", "500ms", "--grace", "300ms"];
    let mut running = Running::start(&stage, &options, script);
    assert_eq!(running.says(), "on");
    let raised = stage.gateway.raise_call(KEY, "50");
    assert_eq!(raised.send(stage.gateway.admin).status, 200);
    assert_eq!(running.says(), "told", "first it is told");
    assert_eq!(running.code(), Some(1), "and then it is made to");
}

#[test]
fn a_gateway_that_is_gone_ends_the_command_before_the_lease_does() {
    let mut stage = stage();
    let options = ["--ttl", "900ms", "--grace", "100ms"];
    let mut running = Running::start(&stage, &options, "echo on; sleep 60");
    assert_eq!(running.says(), "on");
    stage.gateway.kill();
    let began = Instant::now();
    assert_eq!(running.code(), Some(1));
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_gateway_that_is_soon_back_is_not_noticed() {
    let mut stage = stage();
    let locks = stage.gateway.locks();
    let mut running = Running::start(
        &stage,
        &["--ttl", "5s"],
        "echo on; read line < /dev/null; sleep 2; echo $FENCING_TOKEN",
    );
    assert_eq!(running.says(), "on");
    let config = crate::common::Config::new(&stage.recorder.url())
        .settle("100ms")
        .fence("trust", "issued")
        .set("locks.address", locks.to_string());
    stage.gateway.restart_as(config);
    assert_eq!(running.says(), "1");
    assert_eq!(running.code(), Some(0));
    assert!(holder(&stage).is_null());
}

/// Three machines want one thing, and one of them stalls past its lease.
#[test]
fn a_holder_that_stalls_past_its_lease_is_refused_when_it_wakes() {
    let stage = stage();
    let began = Instant::now();
    let mut timeline = Vec::new();
    let mut note =
        |what: &str| timeline.push(format!("{:>6} ms  {what}", began.elapsed().as_millis()));
    let script = "echo $FENCING_TOKEN; read go; echo woke";
    let start = |holder: &str| {
        let mut command = locked(&stage, &["--ttl", "2s", "--holder", holder], script);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Running { child, lines }
    };
    let mut first = start("machine-1");
    let old = first.says();
    note(&format!("machine-1 holds the lock with token {old}"));
    stage.send(&write(&old)).assert_ok("the holder writes");
    note(&format!("its write with token {old} is admitted"));
    first.signal(Signal::STOP);
    note("machine-1 stalls (SIGSTOP)");
    let mut second = start("machine-2");
    let new = second.says();
    note(&format!(
        "its lease has expired; machine-2 holds the lock with token {new}"
    ));
    let third = run(&stage, &["--wait", "100ms"], "true");
    assert_eq!(
        third.status.code(),
        Some(1),
        "machine-3 waits, and goes away"
    );
    note("machine-3 waits 100 ms and goes away");
    stage.send(&write(&new)).assert_ok("the new holder writes");
    note(&format!("the write with token {new} is admitted"));
    first.signal(Signal::CONT);
    note("machine-1 wakes (SIGCONT) and writes with its old token");
    let late = stage.send(&write(&old));
    late.assert_fenced(409, "stale-token", "the stalled holder's write");
    note(&format!(
        "refused: {} (mark {})",
        late.reason(),
        late.json()["mark"]
    ));
    assert_eq!(first.code(), Some(1), "its command is ended");
    note("its command is ended, since the lease is lost");
    drop(second.child.stdin.take());
    assert_eq!(second.code(), Some(0));
    stage.recorder.history().assert_ordered();
    println!("{}", timeline.join("\n"));
}

/// A job as cron would start it: whoever comes later finds that the work of this time is done.
const JOB: &str = r#"#!/bin/sh
set -eu
[ ! -e "$1/done-$2" ] || exit 0
mkdir "$1/working" || { echo "$2 $FENCING_TOKEN" >> "$1/overlaps"; exit 1; }
echo "$FENCING_TOKEN" >> "$1/ran-$2"
rmdir "$1/working"
touch "$1/done-$2"
"#;

/// A cron job that two machines start at the same moment, again and again: it runs once each time.
#[test]
fn a_job_that_two_start_at_once_runs_once() {
    let stage = stage();
    let dir = tempfile::tempdir().unwrap();
    let job = dir.path().join("job.sh");
    std::fs::write(&job, JOB).unwrap();
    let wanted = std::env::var("FENCEGATE_LOCK_ROUNDS").map(|n| n.parse().unwrap());
    let (began, mut rounds) = (Instant::now(), 0);
    while match wanted {
        Ok(wanted) => rounds < wanted,
        Err(_) => rounds < 10 || began.elapsed() < Duration::from_secs(10),
    } {
        let script = format!("sh {} {} {rounds}", job.display(), dir.path().display());
        let start = || locked(&stage, &["--wait", "20s"], &script).spawn().unwrap();
        for mut one in [start(), start()] {
            assert!(one.wait().unwrap().success());
        }
        let runs = std::fs::read_to_string(dir.path().join(format!("ran-{rounds}"))).unwrap();
        assert_eq!(runs.lines().count(), 1, "round {rounds}: {runs}");
        rounds += 1;
    }
    assert!(!dir.path().join("overlaps").exists(), "never two at once");
    assert!(holder(&stage).is_null());
    let call = json!({ "holder": "x", "ttl_ms": 1000 });
    let next = stage.gateway.lock_call(KEY, "acquire", &call);
    let token = next.send(stage.gateway.locks()).json()["token"].clone();
    assert_eq!(
        token,
        (2 * rounds + 1).to_string(),
        "every process had a token of its own"
    );
    println!("{rounds} times two started the job at once, and it ran once each time");
}

#[test]
fn what_is_wrong_on_the_command_line_is_told() {
    for arguments in [
        &["lock", KEY][..],
        &["lock", KEY, "--ttl", "10", "--", "true"],
        &["lock", KEY, "--url", "ftp://h", "--", "true"],
        &[
            "lock",
            KEY,
            "--config",
            "/no/such/config.yaml",
            "--",
            "true",
        ],
    ] {
        let output = binary()
            .args(arguments)
            .env_remove("FENCEGATE_LOCKS_URL")
            .output()
            .unwrap();
        assert_eq!(
            output.status.code(),
            Some(2),
            "{arguments:?}: {}",
            said(&output)
        );
    }
}
