//! `strace`, which makes a system call of the real process fail, kills the process in its place, or
//! lets it take longer.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::wait::eventually;

/// Every call by which a store changes or reads what is on its disk.
pub(crate) const CALLS: &[&str] = &[
    "openat",
    "creat",
    "write",
    "pwrite64",
    "writev",
    "pwritev",
    "fsync",
    "fdatasync",
    "sync_file_range",
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
    "ftruncate",
    "fallocate",
    "mkdir",
    "mkdirat",
    "flock",
    "link",
    "linkat",
];

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Blow {
    /// The process is killed as it makes the call, which has no effect.
    Kill,
    Eio,
    NoSpace,
    /// It is interrupted.
    Eintr,
    /// It takes this long, in milliseconds.
    Delay(u64),
}

impl Blow {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kill => "SIGKILL",
            Self::Eio => "EIO",
            Self::NoSpace => "ENOSPC",
            Self::Eintr => "EINTR",
            Self::Delay(_) => "delay",
        }
    }

    fn tampering(self) -> String {
        match self {
            Self::Kill => "signal=KILL".to_owned(),
            Self::Eio => "error=EIO".to_owned(),
            Self::NoSpace => "error=ENOSPC".to_owned(),
            Self::Eintr => "error=EINTR".to_owned(),
            Self::Delay(ms) => format!("delay_enter={ms}ms"),
        }
    }
}

/// Says whether processes can be traced here.
pub(crate) fn available() -> bool {
    let mut strace = Command::new("strace");
    strace.args(["-D", "-f", "-o", "/dev/null", "true"]);
    let works = strace.output().is_ok_and(|output| output.status.success());
    if !works {
        println!("skipped: strace is missing, or processes can't be traced here");
    }
    works
}

fn options(log: &Path, calls: &[&str], blow: Option<(&str, String, Blow)>) -> Vec<String> {
    let mut options = vec![
        "-y".to_owned(),
        "-o".to_owned(),
        log.display().to_string(),
        "-e".to_owned(),
        format!("trace={}", calls.join(",")),
    ];
    if let Some((call, when, blow)) = blow {
        options.push(format!("--inject={call}:{}:when={when}", blow.tampering()));
    }
    options
}

/// What stands before the binary, to trace it from its start. The numbers of calls are counted for
/// each thread by itself.
pub(crate) fn under(log: &Path, calls: &[&str], blow: Option<(&str, u32, Blow)>) -> Vec<String> {
    let mut command = vec!["strace".to_owned(), "-D".to_owned(), "-f".to_owned()];
    let blow = blow.map(|(call, nth, blow)| (call, nth.to_string(), blow));
    command.extend(options(log, calls, blow));
    command.push("--".to_owned());
    command
}

/// A thread of a running process that is traced, until this is dropped.
pub(crate) struct Traced {
    child: Child,
    log: PathBuf,
}

impl Traced {
    /// Traces the thread of `pid` that is called `thread`; `when` as strace understands it.
    pub(crate) fn attach(
        pid: u32,
        thread: &str,
        log: &Path,
        calls: &[&str],
        blow: Option<(&str, String, Blow)>,
    ) -> Self {
        let id = thread_id(pid, thread);
        let mut child = Command::new("strace")
            .args(options(log, calls, blow))
            .args(["-p", &id.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let attached = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("attached")));
        assert!(attached.is_some(), "strace attaches to {thread}");
        // What it says later is read, so that it never waits for a reader.
        std::thread::spawn(move || lines.for_each(drop));
        Self {
            child,
            log: log.to_owned(),
        }
    }

    pub(crate) fn log(&self) -> Vec<Call> {
        read(&self.log)
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).unwrap();
        if let Some(pid) = rustix::process::Pid::from_raw(pid) {
            // It lets go of the thread, which would else be stopped with it.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

fn thread_id(pid: u32, name: &str) -> u32 {
    if name == "main" {
        return pid;
    }
    // A thread names itself once it runs.
    eventually(&format!("there is a thread {name}"), || {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?;
        let mut ids = tasks.filter_map(|task| task.ok()?.file_name().to_str()?.parse().ok());
        ids.find(|id: &u32| {
            let comm = std::fs::read_to_string(format!("/proc/{pid}/task/{id}/comm"));
            comm.is_ok_and(|comm| comm.trim() == name)
        })
    })
}

/// One line of a log.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) name: String,
    /// Which call of this name it is in its thread, from 1.
    pub(crate) nth: u32,
    /// Whether it is the process's first thread.
    pub(crate) first: bool,
    pub(crate) line: String,
}

impl Call {
    pub(crate) fn was_hit(&self) -> bool {
        self.line.contains("(INJECTED)") || self.line.contains("(DELAYED)")
    }
}

/// The calls of a log, in its order.
pub(crate) fn read(log: &Path) -> Vec<Call> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let mut counts = std::collections::HashMap::new();
    let (mut calls, mut first) = (Vec::<Call>::new(), None::<String>);
    for line in text.lines() {
        let digits = line.bytes().take_while(u8::is_ascii_digit).count();
        let (thread, rest) = line.split_at(digits);
        let rest = rest.trim_start();
        let name: String = rest
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect();
        if name.is_empty() || !rest[name.len()..].starts_with('(') {
            // The rest of a call that was interrupted in the log by another thread's.
            if rest.contains("(INJECTED)")
                && let Some(call) = calls
                    .iter_mut()
                    .rev()
                    .find(|call| call.line.starts_with(thread) && call.line.contains("<unfinished"))
            {
                call.line += " (INJECTED)";
            }
            continue;
        }
        let first = *first.get_or_insert(thread.to_owned()) == thread;
        let nth = counts.entry((thread.to_owned(), name.clone())).or_insert(0);
        *nth += 1;
        calls.push(Call {
            nth: *nth,
            first,
            name,
            line: line.to_owned(),
        });
    }
    calls
}
