//! The real binary, started on ports of its own over a store of its own.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::config::Config;
use super::history::Token;
use super::http::{Request, Response};
use super::wait::{PATIENCE, eventually};

pub(crate) use rustix::process::Signal;

/// A running gateway. Dropping it kills the process; its directory goes with it.
pub(crate) struct Gateway {
    pub(crate) http: SocketAddr,
    pub(crate) admin: SocketAddr,
    config: Config,
    launch: Launch,
    dir: TempDir,
    child: Child,
    errors: Errors,
}

/// How the process is started.
#[derive(Clone, Default)]
pub(crate) struct Launch {
    /// The fault that is planted (a build with the feature `faults` has them).
    pub(crate) fault: Option<&'static str>,
    /// What stands before the binary: a program that runs it in its own place, and its arguments.
    pub(crate) under: Vec<String>,
    pub(crate) variables: Vec<(&'static str, String)>,
}

/// A gateway that ended instead of becoming ready.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) status: ExitStatus,
    pub(crate) errors: String,
}

impl Gateway {
    /// Starts the gateway and waits until it is ready.
    pub(crate) fn start(config: Config) -> Self {
        Self::start_with_fault(config, None)
    }

    /// The same with a fault planted.
    pub(crate) fn start_with_fault(config: Config, fault: Option<&'static str>) -> Self {
        let launch = Launch {
            fault,
            ..Launch::default()
        };
        Self::try_start(tempfile::tempdir().unwrap(), config, launch).unwrap_or_else(|failed| {
            panic!("the gateway ended instead of becoming ready: {failed:?}")
        })
    }

    /// Starts it in a directory that may have a store, and waits until it is ready or has ended.
    pub(crate) fn try_start(dir: TempDir, config: Config, launch: Launch) -> Result<Self, Failed> {
        let mut gateway = Self::begin(dir, config, launch);
        gateway.become_ready()?;
        Ok(gateway)
    }

    /// Starts it and waits for nothing.
    pub(crate) fn begin(dir: TempDir, config: Config, launch: Launch) -> Self {
        config.write(&dir.path().join("config.yaml"), &dir.path().join("store"));
        let (child, errors) = spawn(dir.path(), &launch);
        Self {
            http: SocketAddr::from(([0, 0, 0, 0], 0)),
            admin: SocketAddr::from(([0, 0, 0, 0], 0)),
            config,
            launch,
            dir,
            child,
            errors,
        }
    }

    /// Starts the gateway over `store` where it is expected to end at once.
    pub(crate) fn fails(config: Config, store: &Path) -> Failed {
        let dir = tempfile::tempdir().unwrap();
        config.write(&dir.path().join("config.yaml"), store);
        let (mut child, errors) = spawn(dir.path(), &Launch::default());
        match ready(&mut child, &errors) {
            Err(failed) => failed,
            Ok(_) => {
                let _ = child.kill();
                let _ = child.wait();
                panic!(
                    "the gateway should have refused to start: {}",
                    errors.text()
                );
            }
        }
    }

    pub(crate) fn become_ready(&mut self) -> Result<(), Failed> {
        let (http, admin) = ready(&mut self.child, &self.errors)?;
        self.http = http;
        self.admin = admin;
        Ok(())
    }

    /// The directory of the marks.
    pub(crate) fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    pub(crate) fn config_file(&self) -> PathBuf {
        self.dir.path().join("config.yaml")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to standard error since its last start.
    pub(crate) fn errors(&self) -> String {
        self.errors.text()
    }

    /// Waits until a line with `text` stands on standard error.
    pub(crate) fn says(&self, text: &str) -> String {
        self.errors
            .wait_for(|line| line.contains(text))
            .unwrap_or_else(|| panic!("never said {text:?}: {}", self.errors()))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Ends it as a power switch would, but for the disk's cache.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to stop and waits until it has.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// Waits until it has ended.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        eventually("the gateway ends", || self.child.try_wait().unwrap())
    }

    /// Starts it again over the same marks, on other ports.
    pub(crate) fn restart(&mut self) {
        self.restart_as(self.config.clone());
    }

    /// The same with another config.
    pub(crate) fn restart_as(&mut self, config: Config) {
        if let Err(failed) = self.try_restart_as(config) {
            panic!("the gateway did not start again: {failed:?}");
        }
    }

    /// The same on the ports that it had.
    pub(crate) fn restart_on_same_ports(&mut self) {
        let config = self
            .config
            .clone()
            .set("listeners.0.address", self.http.to_string())
            .set("admin.address", self.admin.to_string());
        self.restart_as(config);
    }

    /// From the next start on it is started so.
    pub(crate) fn launch(&mut self, launch: Launch) {
        self.launch = launch;
    }

    pub(crate) fn try_restart(&mut self) -> Result<(), Failed> {
        self.try_restart_as(self.config.clone())
    }

    /// How it has ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    pub(crate) fn try_restart_as(&mut self, config: Config) -> Result<(), Failed> {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.rewrite(config);
        (self.child, self.errors) = spawn(self.dir.path(), &self.launch);
        self.become_ready()
    }

    /// Writes another config into its file and does nothing else.
    pub(crate) fn rewrite(&mut self, config: Config) {
        self.config = config;
        self.config.write(&self.config_file(), &self.store());
    }

    pub(crate) fn admin_get(&self, target: &str) -> Response {
        Request::get(target)
            .host(&self.admin.to_string())
            .send(self.admin)
    }

    /// Where the lock service is.
    pub(crate) fn locks(&self) -> SocketAddr {
        let line = self.says("locks=");
        let found = line.split("locks=").nth(1).unwrap();
        found.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// One call of the lock service, not yet sent.
    pub(crate) fn lock_call(&self, key: &str, action: &str, body: &Value) -> Request {
        Request::new("POST", &format!("/v1/locks/{}/{action}", encoded(key)))
            .host("localhost")
            .body(body.to_string())
    }

    /// What the lock service says of a lock.
    pub(crate) fn lock_view(&self, key: &str) -> Response {
        Request::get(&format!("/v1/locks/{}", encoded(key)))
            .host("localhost")
            .send(self.locks())
    }

    /// One call of the admin API that changes something, in JSON.
    pub(crate) fn admin_post(&self, target: &str, body: &str) -> Response {
        self.admin_call(target, body).send(self.admin)
    }

    /// The same, not yet sent.
    pub(crate) fn admin_call(&self, target: &str, body: &str) -> Request {
        Request::new("POST", target)
            .host(&self.admin.to_string())
            .header("Content-Type", "application/json")
            .body(body)
    }

    /// The call that resets the mark of a key, its namespace included.
    pub(crate) fn reset_call(&self, key: &str, from: &str, to: &str) -> Request {
        let body = format!(r#"{{"from":"{from}","to":"{to}"}}"#);
        self.admin_call(&format!("/v1/keys/{}/reset", encoded(key)), &body)
    }

    /// The call that raises it.
    pub(crate) fn raise_call(&self, key: &str, token: &str) -> Request {
        let body = format!(r#"{{"token":"{token}"}}"#);
        self.admin_call(&format!("/v1/keys/{}/raise", encoded(key)), &body)
    }

    /// The admin's view of a key, its namespace included; `None` where it has no mark.
    pub(crate) fn key(&self, key: &str) -> Option<Value> {
        let encoded = encoded(key);
        let response = self.admin_get(&format!("/v1/keys/{encoded}"));
        match response.status {
            200 => Some(response.json()),
            404 => None,
            other => panic!("{other} for the view of {key}: {}", response.text()),
        }
    }

    /// All marks, by key.
    pub(crate) fn marks(&self) -> BTreeMap<String, Token> {
        let (mut marks, mut after) = (BTreeMap::new(), String::new());
        loop {
            let page = self
                .admin_get(&format!("/v1/keys?limit=1000{after}"))
                .json();
            for view in page["keys"].as_array().unwrap() {
                let mark = Token::parse(view["mark"].as_str().unwrap()).unwrap();
                marks.insert(view["key"].as_str().unwrap().to_owned(), mark);
            }
            match page["next"].as_str() {
                Some(next) => after = format!("&after={}", encoded(next)),
                None => return marks,
            }
        }
    }

    pub(crate) fn mark(&self, key: &str) -> Option<String> {
        let view = self.key(key)?;
        Some(view["mark"].as_str()?.to_owned())
    }

    /// Waits until the admin's view of a key says `count` for `field`.
    pub(crate) fn wait_key(&self, key: &str, field: &str, count: u64) {
        eventually(&format!("{key} has {count} {field}"), || {
            let view = self.key(key)?;
            (view[field].as_u64() == Some(count)).then_some(())
        });
    }

    pub(crate) fn wait_mark(&self, key: &str, mark: &str) {
        eventually(&format!("{key} has the mark {mark}"), || {
            (self.mark(key)? == mark).then_some(())
        });
    }

    /// The value of a metric's line that contains all of `labels`, summed; 0 where there is none.
    pub(crate) fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = self.admin_get("/metrics").text();
        text.lines()
            .filter(|line| {
                line.strip_prefix(name)
                    .is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' '))
            })
            .filter(|line| labels.iter().all(|label| line.contains(label)))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// Memory that is resident, in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        self.status_field("VmRSS:")
    }

    /// The largest memory that has been resident, in KiB.
    pub(crate) fn peak_kib(&self) -> u64 {
        self.status_field("VmHWM:")
    }

    /// The CPU time that it has used so far, to the hundredth of a second.
    pub(crate) fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        // The name of the program, in brackets, may have spaces: utime and stime are the 12th and
        // 13th field after it (proc_pid_stat(5)), in hundredths of a second.
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        let times = fields.split(' ').skip(11).take(2);
        let ticks: u64 = times.map(|ticks| ticks.parse::<u64>().unwrap()).sum();
        Duration::from_millis(ticks * 10)
    }

    fn status_field(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("standard error of the gateway:\n{}", self.errors.tail());
        }
    }
}

/// A key as one segment of a path, or one value of a query.
fn encoded(key: &str) -> String {
    key.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}

/// The binary under test: the one that was built with the tests, or, to measure a release with them,
/// the one that `FENCEGATE_BIN` names.
pub(crate) fn binary() -> Command {
    let named = std::env::var_os("FENCEGATE_BIN");
    Command::new(named.unwrap_or_else(|| env!("CARGO_BIN_EXE_fencegate").into()))
}

/// Runs the binary to its end.
pub(crate) fn run(arguments: &[&str]) -> Output {
    binary()
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn spawn(dir: &Path, launch: &Launch) -> (Child, Errors) {
    let mut command = match launch.under.split_first() {
        None => binary(),
        Some((program, arguments)) => {
            let mut command = Command::new(program);
            command.args(arguments).arg(binary().get_program());
            command
        }
    };
    command
        .args(["serve", "--config"])
        .arg(dir.join("config.yaml"))
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    if let Some(fault) = launch.fault {
        command.env("FENCEGATE_FAULT", fault);
    }
    for (name, value) in &launch.variables {
        command.env(name, value);
    }
    let mut child = command.spawn().unwrap();
    let errors = Errors::default();
    let lines = BufReader::new(child.stderr.take().unwrap()).split(b'\n');
    let collected = errors.clone();
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            collected.push(String::from_utf8_lossy(&line).into_owned());
        }
        collected.close();
    });
    (child, errors)
}

/// Waits for the line that says that all listeners are bound, and reads their addresses.
fn ready(child: &mut Child, errors: &Errors) -> Result<(SocketAddr, SocketAddr), Failed> {
    let is_ready = |line: &str| line.contains("ready") && line.contains("http=");
    let Some(line) = errors.wait_for(is_ready) else {
        let status = eventually("the gateway becomes ready or ends", || {
            child.try_wait().unwrap()
        });
        return Err(Failed {
            status,
            errors: errors.text(),
        });
    };
    let address = |name: &str| -> SocketAddr {
        let found = line.split(name).nth(1).unwrap_or_default();
        let end = found.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == ':'));
        let found = &found[..end.unwrap_or(found.len())];
        found
            .parse()
            .unwrap_or_else(|_| panic!("no {name}ADDRESS in {line:?}"))
    };
    Ok((address("http="), address("admin=")))
}

/// The lines of a process's standard error.
#[derive(Clone, Default)]
struct Errors(Arc<(Mutex<Lines>, Condvar)>);

#[derive(Default)]
struct Lines {
    lines: Vec<String>,
    closed: bool,
}

impl Errors {
    fn push(&self, line: String) {
        self.0.0.lock().unwrap().lines.push(line);
        self.0.1.notify_all();
    }

    fn close(&self) {
        self.0.0.lock().unwrap().closed = true;
        self.0.1.notify_all();
    }

    fn text(&self) -> String {
        self.0.0.lock().unwrap().lines.join("\n")
    }

    fn tail(&self) -> String {
        let lines = self.0.0.lock().unwrap();
        let skipped = lines.lines.len().saturating_sub(40);
        lines.lines[skipped..].join("\n")
    }

    /// The first line that `is` true of, or `None` when the process ended without it.
    fn wait_for(&self, is: impl Fn(&str) -> bool) -> Option<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut lines = self.0.0.lock().unwrap();
        loop {
            if let Some(line) = lines.lines.iter().find(|line| is(line)) {
                return Some(line.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if lines.closed || left.is_zero() {
                return None;
            }
            lines = self.0.1.wait_timeout(lines, left).unwrap().0;
        }
    }
}
