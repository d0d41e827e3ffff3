//! Holders that stall, upload slowly, die and come back, and a gateway that is killed: the effects of
//! two holders never mix at the resource, although leases run out under those who hold them.
//!
//! Clients are processes of their own, which are stopped (SIGSTOP), let go on and killed at any
//! moment. Each tells what it was told before it acts on it, with the time by the clock that all
//! processes share; the resource logs what it saw. Then it is compared:
//!
//! - the resource: no lower token after a higher one, and none still under way when a higher one
//!   begins, so that no two holders' writes mix;
//! - tokens: each was granted to one request, and what reached the resource came from who has it;
//! - grants: when one is told, no write with a lower token is under way or comes any more;
//! - leases: none is told while an earlier one lasts.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::common::{
    Config, Connection, Dice, Event, Gateway, History, Recorder, Request, Signal, Stage, Token,
    eventually, weather,
};
use rustix::process::{kill_process, set_parent_process_death_signal};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

const KEYS: u64 = 6;

/// How long an unknown outcome holds the next one. The resource works on for 50 ms at the most.
const SETTLE: &str = "500ms";

/// By how much the resource may be late and still be what `settle` says of it.
const LATE: Duration = Duration::from_millis(350);
const CLIENTS: usize = 8;

/// What a client process is, as `NAME SEED HTTP LOCKS`.
const CLIENT: &str = "FENCEGATE_STORM_CLIENT";

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// Nanoseconds, by a clock that all processes of the machine share.
fn clock() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap()
}

// What clients do, in processes of their own.

/// Not a test by itself: what the storm starts as a process.
#[test]
fn a_client_of_the_storm() {
    let Ok(said) = std::env::var(CLIENT) else {
        return;
    };
    // A client that is stopped must not outlive the storm either.
    set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    let parts: Vec<_> = said.split(' ').collect();
    let mut client = Client {
        name: parts[0].to_owned(),
        dice: Dice::new(parts[1].parse().unwrap()),
        http: parts[2].parse().unwrap(),
        locks: parts[3].parse().unwrap(),
        round: 0,
    };
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
    loop {
        client.turn();
    }
}

struct Client {
    name: String,
    dice: Dice,
    http: SocketAddr,
    locks: SocketAddr,
    round: u64,
}

impl Client {
    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.dice.below(of.len() as u64)).unwrap()]
    }

    fn post(&self, key: u64, action: &str, body: &Value) -> Option<(u16, Option<Token>)> {
        let stream = std::net::TcpStream::connect(self.locks).ok()?;
        let mut connection = Connection::over(stream);
        let request = Request::new("POST", &format!("/v1/locks/objects%2F{key}/{action}"))
            .host("localhost")
            .body(body.to_string());
        connection.send(request.whole());
        let answer = connection.try_response("POST").ok()?;
        if answer.broken.is_some() {
            return None;
        }
        let token = (answer.status == 200)
            .then(|| Token::parse(answer.json()["token"].as_str().unwrap()).unwrap());
        Some((answer.status, token))
    }

    /// Takes a lock, writes some, and may be late or never give it back.
    fn turn(&mut self) {
        self.round += 1;
        let key = self.dice.below(KEYS);
        let request = format!("{}-{}-{}", self.name, std::process::id(), self.round);
        let ttl = self.pick(&[150, 150, 150, 150, 400, 1200]);
        let mut body = json!({
            "holder": self.name, "ttl_ms": ttl, "wait_ms": self.pick(&[0, 300, 1500]),
        });
        let named = self.dice.below(2) == 0;
        if named {
            body["request_id"] = json!(request);
        }
        let mut sent = clock();
        let mut answer = self.post(key, "acquire", &body);
        if answer.is_none() && named {
            std::thread::sleep(Duration::from_millis(20));
            sent = clock();
            answer = self.post(key, "acquire", &body);
        }
        let Some((status, token)) = answer else {
            // The gateway is being started again.
            std::thread::sleep(Duration::from_millis(5));
            return;
        };
        let Some(token) = token else {
            assert!([409, 503].contains(&status), "{status}");
            std::thread::sleep(Duration::from_millis(10 + self.dice.below(40)));
            return;
        };
        let until = sent + ttl * 1_000_000;
        let told = clock();
        println!("@ operation");
        println!(
            "@ granted {key} {token} {} {request} {told} {until}",
            self.name
        );
        for _ in 0..=self.dice.below(3) {
            if self.dice.below(6) == 0 {
                std::thread::sleep(Duration::from_millis(200));
            }
            self.write(key, token);
        }
        let named = json!({ "token": token.to_string(), "ttl_ms": ttl });
        let released = json!({ "token": token.to_string() });
        match self.dice.below(8) {
            0 => {}
            1 => {
                println!("@ operation");
                let sent = clock();
                if let Some((200, _)) = self.post(key, "renew", &named) {
                    let until = sent + ttl * 1_000_000;
                    println!("@ renewed {key} {token} {until}");
                    self.write(key, token);
                }
            }
            _ => {
                println!("@ operation");
                println!("@ releasing {key} {token} {}", clock());
                self.post(key, "release", &released);
            }
        }
    }

    fn write(&mut self, key: u64, token: Token) {
        println!("@ operation");
        let tag = self.pick(&[
            "slow", "slow", "slow", "slow", "slow", "slow", "slow", "slow", "slow", "slow",
            "reset", "504", "early",
        ]);
        let write = Request::put(&format!("/objects/{key}"))
            .token(token)
            .header("X-Client", &self.name)
            .tag(tag);
        let Ok(stream) = std::net::TcpStream::connect(self.http) else {
            return;
        };
        let mut connection = Connection::over(stream);
        match self.dice.below(8) {
            0 => {
                connection.send(write.head(10)).send("half");
                connection.abort();
            }
            1 | 2 => {
                connection.send(write.head(24));
                for _ in 0..6 {
                    std::thread::sleep(Duration::from_millis(self.dice.below(40)));
                    connection.send("part");
                }
                drop(connection.try_response("PUT"));
            }
            _ => drop(connection.send(write.whole()).try_response("PUT")),
        }
    }
}

// The storm.

/// A grant as its client was told of it. Times are nanoseconds of the shared clock.
#[derive(Clone, Debug)]
struct Grant {
    client: String,
    request: String,
    told: u64,
    /// Until when its client may believe that it holds the lock.
    until: u64,
}

/// What all clients have told.
#[derive(Default)]
struct Told {
    operations: AtomicUsize,
    grants: Mutex<BTreeMap<(u64, Token), Grant>>,
    broken: Mutex<Option<String>>,
}

impl Told {
    fn hear(&self, line: &str) {
        // The test harness writes on the same stream, also at the beginning of a line.
        let Some((_, line)) = line.split_once("@ ") else {
            return;
        };
        let words: Vec<_> = line.split(' ').collect();
        if words[0] == "operation" {
            self.operations.fetch_add(1, Ordering::SeqCst);
            return;
        }
        let (key, token) = (words[1].parse().unwrap(), Token::parse(words[2]).unwrap());
        let mut grants = self.grants.lock().unwrap();
        let grant = grants.get_mut(&(key, token));
        match (words[0], grant) {
            ("granted", None) => {
                let grant = Grant {
                    client: words[3].to_owned(),
                    request: words[4].to_owned(),
                    told: words[5].parse().unwrap(),
                    until: words[6].parse().unwrap(),
                };
                grants.insert((key, token), grant);
            }
            ("granted", Some(grant)) => {
                if grant.request != words[4] {
                    let two = format!(
                        "token {token} of {key} was granted to {} and to {}",
                        grant.request, words[4]
                    );
                    *self.broken.lock().unwrap() = Some(two);
                }
            }
            ("renewed", Some(grant)) => {
                grant.until = grant.until.max(words[3].parse().unwrap());
            }
            ("releasing", Some(grant)) => {
                grant.until = grant.until.min(words[3].parse().unwrap());
            }
            (what, grant) => panic!("{what}: {grant:?}"),
        }
    }
}

/// A client as a process.
struct Process {
    child: Child,
    hears: JoinHandle<()>,
    resumes: Option<Instant>,
}

impl Process {
    fn start(name: usize, seed: u64, stage: &Stage, locks: SocketAddr, told: &Arc<Told>) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "lock_storms::a_client_of_the_storm",
                "--nocapture",
            ])
            .env(CLIENT, format!("c{name} {seed} {} {locks}", stage.http()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let told = Arc::clone(told);
        let hears = std::thread::spawn(move || {
            lines
                .map_while(Result::ok)
                .for_each(|line| told.hear(&line));
        });
        Self {
            child,
            hears,
            resumes: None,
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).unwrap();
        kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.hears.join().unwrap();
    }
}

/// How late this process is at the worst: on a machine that is too busy the resource, which is a part
/// of it, works on for longer than it should.
struct Lateness {
    stop: Arc<AtomicBool>,
    measures: JoinHandle<Duration>,
}

impl Lateness {
    fn measure() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let measures = std::thread::spawn(move || {
            let (nap, mut worst) = (Duration::from_millis(10), Duration::ZERO);
            while !stopped.load(Ordering::SeqCst) {
                let began = Instant::now();
                std::thread::sleep(nap);
                worst = worst.max(began.elapsed() - nap);
            }
            worst
        });
        Self { stop, measures }
    }

    fn worst(self) -> Duration {
        self.stop.store(true, Ordering::SeqCst);
        self.measures.join().unwrap()
    }
}

/// What one storm was, for the record.
#[derive(Default)]
struct Counts {
    operations: usize,
    grants: usize,
    writes: usize,
    handed_on: usize,
    pauses: usize,
    deaths: usize,
    kills: usize,
}

#[derive(Clone, Copy, Default)]
struct Plan {
    seed: u64,
    operations: usize,
    /// Whether a grant raises the mark and drains.
    fenced: bool,
    fault: Option<&'static str>,
    /// A route that compares nothing.
    open: bool,
}

fn config(recorder: &Recorder, plan: Plan) -> Config {
    let config = Config::new(&recorder.url())
        .settle(SETTLE)
        .set("locks.address", "127.0.0.1:0")
        .set("locks.fence_on_grant", plan.fenced)
        .fence("drain", json!({ "timeout": "1s", "on_timeout": "cut" }));
    let config = config.fence("trust", "issued");
    if !plan.open {
        return config;
    }
    // The locks are another route's.
    config.set("routes.0.path", "/locked/{id}").route(json!({
        "name": "open",
        "path": "/objects/{id}",
        "upstream": "objects",
        "fence": { "require": "never" },
    }))
}

/// One storm; what is wrong with it, if anything is.
fn storm(plan: Plan, counts: &mut Counts) -> Result<(), String> {
    let recorder = Recorder::start();
    weather(&recorder);
    let config = config(&recorder, plan);
    let gateway = Gateway::start_with_fault(config.clone(), plan.fault);
    let mut stage = Stage { gateway, recorder };
    let locks = stage.gateway.locks();
    let config = config
        .set("locks.address", locks.to_string())
        .set("listeners.0.address", stage.http().to_string())
        .set("admin.address", stage.gateway.admin.to_string());
    let (told, mut dice) = (Arc::new(Told::default()), Dice::new(plan.seed));
    let mut clients: Vec<_> = (0..CLIENTS)
        .map(|name| Process::start(name, plan.seed + name as u64, &stage, locks, &told))
        .collect();
    let (began, mut kills) = (Instant::now(), 0);
    loop {
        let operations = told.operations.load(Ordering::SeqCst);
        if operations >= plan.operations || told.broken.lock().unwrap().is_some() {
            break;
        }
        assert!(
            began.elapsed() < Duration::from_secs(300),
            "after {operations} operations nothing goes on"
        );
        // Two ends of the gateway, at a third and at two thirds.
        if operations > plan.operations * (kills + 1) / 3 {
            stage.gateway.kill();
            stage.gateway.restart_as(config.clone());
            kills += 1;
        }
        std::thread::sleep(Duration::from_millis(5 + dice.below(20)));
        for client in &mut clients {
            if client.resumes.is_some_and(|at| at <= Instant::now()) {
                client.resumes = None;
                client.signal(Signal::CONT);
            }
        }
        let one = usize::try_from(dice.below(CLIENTS as u64)).unwrap();
        match dice.below(20) {
            0 => {
                let seed = plan.seed + dice.below(1 << 40);
                let fresh = Process::start(one, seed, &stage, locks, &told);
                std::mem::replace(&mut clients[one], fresh).kill();
                counts.deaths += 1;
            }
            1..=4 if clients[one].resumes.is_none() => {
                clients[one].signal(Signal::STOP);
                let time = 20 + dice.below(10) * dice.below(80);
                clients[one].resumes = Some(Instant::now() + Duration::from_millis(time));
                counts.pauses += 1;
            }
            _ => {}
        }
    }
    clients.into_iter().for_each(Process::kill);
    let history = eventually("all writes end", || {
        let history = stage.recorder.history();
        history
            .0
            .iter()
            .all(|write| write.ended.is_some())
            .then_some(history)
    });
    if let Some(broken) = told.broken.lock().unwrap().take() {
        return Err(broken);
    }
    let grants = told.grants.lock().unwrap();
    check(&history, &grants, plan.fenced)?;
    stage.assert_marks_hold();
    for key in 0..KEYS {
        let body = json!({ "holder": "after", "ttl_ms": 1000, "wait_ms": 20_000 });
        let key = format!("objects/{key}");
        eventually("a grant after the storm", || {
            let call = stage.gateway.lock_call(&key, "acquire", &body);
            (call.send(locks).status == 200).then_some(())
        });
    }
    let holders: BTreeSet<_> = history.0.iter().map(|one| (&one.key, one.token)).collect();
    counts.operations += told.operations.load(Ordering::SeqCst);
    counts.grants += grants.len();
    counts.writes += history.0.len();
    counts.handed_on += holders.len();
    counts.kills += kills;
    Ok(())
}

fn check(
    history: &History,
    grants: &BTreeMap<(u64, Token), Grant>,
    fenced: bool,
) -> Result<(), String> {
    if let Err(violation) = history.check() {
        return Err(format!("{violation}\n{history}"));
    }
    // Both clocks are the same one; what they call zero differs.
    let (here, there) = (Instant::now(), clock());
    let at = |event: Event| {
        let before = here.saturating_duration_since(event.at).as_nanos();
        there - u64::try_from(before).unwrap()
    };
    let mut wrong = String::new();
    for write in &history.0 {
        let key: u64 = write.key.rsplit('/').next().unwrap().parse().unwrap();
        let token = write.token.unwrap();
        match grants.get(&(key, token)) {
            None => {
                let _ = writeln!(wrong, "nobody was granted {token} of {key}");
            }
            Some(grant) if Some(&*grant.client) != write.header("x-client") => {
                let _ = writeln!(wrong, "{grant:?} was used by {write:?}");
            }
            Some(_) => {}
        }
        let ended = at(write.ended.unwrap());
        let newer = grants.range((key, token)..).skip(1);
        for ((_, newer), grant) in newer.take_while(|((of, _), _)| *of == key) {
            if fenced && ended > grant.told {
                let late = Duration::from_nanos(ended - grant.told);
                let _ = writeln!(
                    wrong,
                    "{newer} of {key} was told {late:?} before a write with {token} had ended: {write:?}"
                );
            }
        }
    }
    for (((key, token), grant), ((next_key, next), newer)) in
        grants.iter().zip(grants.iter().skip(1))
    {
        if key == next_key && newer.told < grant.until {
            let early = Duration::from_nanos(grant.until - newer.told);
            let _ = writeln!(
                wrong,
                "{next} of {key} was told {early:?} before the lease of {token} was over: {grant:?} {newer:?}"
            );
        }
    }
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(wrong),
    }
}

#[test]
fn effects_of_two_holders_never_mix_although_clients_stall_and_the_gateway_dies() {
    let seed = number("FENCEGATE_SEED", 3);
    let runs = number("FENCEGATE_LOCK_RUNS", 1);
    let operations = usize::try_from(number("FENCEGATE_LOCK_OPERATIONS", 400)).unwrap();
    println!("seed {seed}: FENCEGATE_SEED={seed} FENCEGATE_LOCK_RUNS={runs} repeats it");
    let (began, mut counts, mut void) = (Instant::now(), Counts::default(), 0);
    for run in 0..runs {
        let plan = Plan {
            seed: (seed + run) * 1000,
            operations,
            // Tokens alone keep writes apart, too.
            fenced: run % 4 != 3,
            ..Plan::default()
        };
        loop {
            let lateness = Lateness::measure();
            let verdict = storm(plan, &mut counts);
            let late = lateness.worst();
            let Err(wrong) = verdict else { break };
            assert!(
                late > LATE && void < 3 + runs / 10,
                "seed {}: {wrong}",
                seed + run
            );
            println!(
                "seed {} says nothing, the resource itself was {late:?} late: {wrong}",
                seed + run
            );
            void += 1;
        }
    }
    let Counts {
        operations,
        grants,
        writes,
        handed_on,
        pauses,
        deaths,
        kills,
    } = counts;
    println!(
        "{runs} runs of {CLIENTS} clients: {operations} operations, {grants} grants, {writes} writes of \
         {handed_on} holders at the resource, {pauses} pauses, {deaths} clients and {kills} gateways killed, \
         none wrong, {void} void, in {:.0} s",
        began.elapsed().as_secs_f64()
    );
}

/// Storms until one is wrong.
fn bites(plan: Plan, says: &str) {
    for seed in 1..=10 {
        let plan = Plan {
            seed: seed * 1000,
            operations: 400,
            ..plan
        };
        if let Err(wrong) = storm(plan, &mut Counts::default()) {
            let line = wrong.lines().next().unwrap_or_default();
            println!("{:?}, storm {seed}: {line}", plan.fault);
            assert!(wrong.contains(says), "{wrong}");
            return;
        }
    }
    panic!("{:?} was not noticed", plan.fault);
}

#[test]
fn a_route_without_a_fence_is_noticed() {
    let plan = Plan {
        open: true,
        ..Plan::default()
    };
    bites(plan, "is broken on");
}

#[cfg(feature = "faults")]
mod faults {
    use super::{Plan, bites};

    fn planted(fault: &'static str, fenced: bool, says: &str) {
        let plan = Plan {
            fenced,
            fault: Some(fault),
            ..Plan::default()
        };
        bites(plan, says);
    }

    #[test]
    fn grant_undrained() {
        planted("grant-undrained", true, "had ended");
    }

    #[test]
    fn forget_leases() {
        planted("forget-leases", true, "lease");
    }

    #[test]
    fn expire_early() {
        planted("expire-early", true, "lease");
    }

    #[test]
    fn repeat_tokens() {
        planted("repeat-tokens", false, "granted");
    }

    #[test]
    fn no_drain() {
        planted("no-drain", true, "is broken on");
    }
}
