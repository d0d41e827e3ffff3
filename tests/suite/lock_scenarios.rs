//! The story of the distributed lock, with real processes: three machines want one thing.
//!
//! The machines are processes of their own that use the example client (`examples/lock_client/`). They
//! do what they are told, line by line, and can be stopped (SIGSTOP), let go on (SIGCONT) and killed
//! like any process. `cargo test --test suite lock_scenarios:: -- --nocapture` prints the timeline.

#[allow(dead_code, reason = "each test crate uses its own part of this module")]
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{Request, Signal, Stage, Token};
use crate::guard::{Guard, acquire};
use fencegate::lease::{Ask, ClientError};
use rustix::process::{Pid, kill_process, set_parent_process_death_signal};
use serde_json::json;
use tokio::sync::mpsc;

const KEY: &str = "objects/42";

/// How long a lease lasts here without a renewal.
const TTL: Duration = Duration::from_secs(2);

/// What a machine is, as `NAME HTTP LOCKS`.
const MACHINE: &str = "FENCEGATE_MACHINE";

// A machine.

/// Not a test by itself: what the story starts as a process.
#[test]
fn a_machine_of_the_story() {
    let Ok(said) = std::env::var(MACHINE) else {
        return;
    };
    set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    let parts: Vec<_> = said.split(' ').collect();
    let machine = Machine {
        name: parts[0].to_owned(),
        http: parts[1].parse().unwrap(),
        locks: parts[2].to_owned(),
    };
    // Of two threads: one may wait for the gateway while the guard is renewed.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime.unwrap().block_on(machine.run());
    std::process::exit(0);
}

struct Machine {
    name: String,
    http: SocketAddr,
    locks: String,
}

impl Machine {
    async fn run(&self) {
        let (told, mut orders) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            for line in std::io::stdin().lines().map_while(Result::ok) {
                let _ = told.send(line);
            }
        });
        let mut guard = None;
        while let Some(order) = orders.recv().await {
            match &*order {
                "wait" => guard = Some(self.acquire(Duration::from_secs(30)).await),
                "back off" => guard = Some(self.back_off().await),
                "write" => self.write(guard.as_ref().unwrap()),
                "look, then write" => {
                    let guard = guard.as_ref().unwrap();
                    match guard.check() {
                        Ok(()) => println!("@ the lease lasts: about to write"),
                        Err(lost) => println!("@ {lost}"),
                    }
                    // The stall comes here, between the look and the write.
                    assert_eq!(orders.recv().await.unwrap(), "go on");
                    self.write(guard);
                    println!("@ {}", guard.lost().await);
                }
                "release" => {
                    let held = guard.take().unwrap().release().await;
                    println!(
                        "@ gives the lock back{}",
                        if held { "" } else { ", and had lost it" }
                    );
                }
                other => panic!("{other}"),
            }
        }
    }

    async fn ask(&self, wait: Duration) -> Result<Guard, ClientError> {
        let ask = Ask {
            key: KEY.to_owned(),
            holder: self.name.clone(),
            ttl: TTL,
            wait,
        };
        acquire(&format!("http://{}", self.locks), None, ask).await
    }

    async fn acquire(&self, wait: Duration) -> Guard {
        println!("@ asks for the lock, and waits in line");
        let guard = self.ask(wait).await.unwrap();
        println!("@ holds the lock with token {}", guard.token());
        guard
    }

    /// Never waits in line: asks again after a while.
    async fn back_off(&self) -> Guard {
        let mut refusals = 0;
        loop {
            match self.ask(Duration::ZERO).await {
                Ok(guard) => {
                    println!(
                        "@ holds the lock with token {} after {refusals} refusals",
                        guard.token()
                    );
                    return guard;
                }
                Err(ClientError::Refused(status, _)) if status == 409 => {
                    if refusals == 0 {
                        println!("@ asks for the lock, gets 409 lock-held, and backs off");
                    }
                    refusals += 1;
                    tokio::time::sleep(Duration::from_millis(150)).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn write(&self, guard: &Guard) {
        let write = Request::put("/objects/42").token(guard.token());
        let answer = write.send(self.http);
        match answer.status {
            200 => println!("@ writes with token {}: 200", guard.token()),
            status => println!(
                "@ writes with token {}: {status} {}, the resource saw {}",
                guard.token(),
                answer.reason(),
                answer.json()["mark"]
            ),
        }
    }
}

// The story.

struct Timeline {
    began: Instant,
    lines: Vec<String>,
}

impl Timeline {
    fn note(&mut self, who: &str, what: &str) {
        let at = self.began.elapsed().as_millis();
        self.lines.push(format!("{at:>6} ms  {who:<9}  {what}"));
    }
}

struct Process {
    name: &'static str,
    child: Child,
    orders: ChildStdin,
    lines: BufReader<ChildStdout>,
}

impl Process {
    fn start(name: &'static str, stage: &Stage) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "lock_scenarios::a_machine_of_the_story",
                "--nocapture",
            ])
            .env(
                MACHINE,
                format!("{name} {} {}", stage.http(), stage.gateway.locks()),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            name,
            orders: child.stdin.take().unwrap(),
            lines: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    fn told(&mut self, order: &str) {
        writeln!(self.orders, "{order}").unwrap();
    }

    /// The next thing that it says.
    fn says(&mut self, timeline: &mut Timeline) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(
                self.lines.read_line(&mut line).unwrap(),
                0,
                "{} ended",
                self.name
            );
            if let Some((_, said)) = line.split_once("@ ") {
                let said = said.trim_end().to_owned();
                timeline.note(self.name, &said);
                return said;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn three_machines_want_one_thing_and_the_one_that_stalls_is_refused() {
    let stage = Stage::with(|config| {
        config
            .settle("100ms")
            .set("locks.address", "127.0.0.1:0")
            .fence("trust", "issued")
    });
    // The lock has been held 22 times before.
    for n in 1..=22 {
        let body = json!({ "holder": "before", "ttl_ms": 1000 });
        let call = stage.gateway.lock_call(KEY, "acquire", &body);
        let token = call.send(stage.gateway.locks()).json()["token"].clone();
        assert_eq!(token, n.to_string());
        let call = stage
            .gateway
            .lock_call(KEY, "release", &json!({ "token": token }));
        assert_eq!(call.send(stage.gateway.locks()).status, 204);
    }
    let [mut one, mut two, mut three] =
        ["machine-1", "machine-2", "machine-3"].map(|name| Process::start(name, &stage));
    let mut timeline = Timeline {
        began: Instant::now(),
        lines: Vec::new(),
    };
    let time = &mut timeline;

    one.told("wait");
    one.says(time);
    assert_eq!(one.says(time), "holds the lock with token 23");
    two.told("wait");
    two.says(time);
    three.told("back off");
    three.says(time);
    one.told("write");
    assert_eq!(one.says(time), "writes with token 23: 200");

    // It is renewed for as long as its holder lives: nobody else gets it.
    std::thread::sleep(TTL + TTL / 4);
    let view = stage.gateway.lock_view(KEY).json();
    assert_eq!(
        (&view["holder"], &view["waiting"]),
        (&json!("machine-1"), &json!(1))
    );
    time.note(
        "",
        &format!("after {TTL:?} and more it is still machine-1's: it is renewed"),
    );

    one.told("look, then write");
    assert_eq!(one.says(time), "the lease lasts: about to write");
    one.signal(Signal::STOP);
    time.note(
        "machine-1",
        "stalls (SIGSTOP), between its look and its write",
    );
    assert_eq!(two.says(time), "holds the lock with token 24");
    two.told("write");
    assert_eq!(two.says(time), "writes with token 24: 200");
    one.told("go on");
    one.signal(Signal::CONT);
    time.note("machine-1", "wakes (SIGCONT), and goes on where it was");
    assert_eq!(
        one.says(time),
        "writes with token 23: 409 stale-token, the resource saw \"24\""
    );
    let lost = one.says(time);
    assert!(lost.starts_with("the lock is lost"), "{lost}");
    two.told("write");
    assert_eq!(two.says(time), "writes with token 24: 200");

    // One that dies gives nothing back: its lease runs out.
    two.signal(Signal::KILL);
    time.note("machine-2", "dies (SIGKILL), and holds the lock");
    let died = Instant::now();
    let got = three.says(time);
    assert!(got.starts_with("holds the lock with token 25"), "{got}");
    assert!(died.elapsed() > TTL / 4, "not before its lease was over");
    three.told("write");
    assert_eq!(three.says(time), "writes with token 25: 200");
    three.told("release");
    assert_eq!(three.says(time), "gives the lock back");
    assert!(stage.gateway.lock_view(KEY).json()["holder"].is_null());

    let history = stage.recorder.history();
    history.assert_ordered();
    let tokens: Vec<_> = history.0.iter().map(|write| write.token.unwrap()).collect();
    assert_eq!(
        tokens,
        [23, 24, 24, 25].map(Token::from),
        "what the resource saw"
    );
    time.note("resource", "saw 23, 24, 24, 25");
    println!("{}", timeline.lines.join("\n"));
}
