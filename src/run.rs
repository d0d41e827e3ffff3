//! `fencegate serve`: from a config to a running gateway, and to its end.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use fencegate_filters::fence::Fence;
use fencegate_filters::store::{Store, StoreError};
use fencegate_filters::{Cidr, ForwardedLayer};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{oneshot, watch};

use crate::admin::Admin;
use crate::builtin;
use crate::config::{self, Config, Problems};
use crate::gateway::{Gateway, Settings};
use crate::intake::Intake;
use crate::metrics::Metrics;
use crate::reload::Reloader;
use crate::route::RouteTable;
use crate::rules::Changes;
use crate::server::{self, Stop};
use crate::spool::Spool;
use crate::store::{EmbeddedStore, OpenError, Options, volatile_medium};
use crate::upstream::{self, Upstream};
use crate::wire::{ConnTimeouts, HeadLimits};

/// How often a stop looks whether everything has ended.
const LOOK: Duration = Duration::from_millis(20);

/// How long answers to what a stop has cut may take.
const GRACE: Duration = Duration::from_secs(1);

/// How often idle upstream connections are looked through.
const REAP: Duration = Duration::from_secs(1);

/// Why the gateway could not start, or had to stop.
#[derive(Debug)]
pub enum RunError {
    /// The config is wrong.
    Config(Problems),
    /// The store could not be opened.
    Open(OpenError),
    /// The store failed at start.
    Store(StoreError),
    /// The rules that keys come from are others than those that the marks were made by.
    Rekeyed(Vec<String>),
    /// A listener could not be bound.
    Bind(String, io::Error),
    /// The system refused something at start.
    System(&'static str, io::Error),
    /// The store failed for good while serving.
    Failed(Arc<str>),
    /// What was forwarded under the old rules did not end in time.
    StillInUse(Vec<String>),
    /// A second signal cut the stop short.
    Impatient,
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(problems) => problems.fmt(f),
            Self::Open(error) => error.fmt(f),
            Self::Store(error) => error.fmt(f),
            Self::Rekeyed(changes) => {
                f.write_str(
                    "the rules that keys are made by have changed, so that old marks would no longer guard the same resources:",
                )?;
                for change in changes {
                    write!(f, "\n  {change}")?;
                }
                f.write_str(
                    "\nundo the change, or write `rekey: true` on the route once nothing holds a lock there",
                )
            }
            Self::Bind(address, error) => write!(
                f,
                "could not listen on {address}: {error}; is another process there?"
            ),
            Self::System(what, error) => write!(f, "{what}: {error}"),
            Self::Failed(why) => write!(
                f,
                "the store failed for good ({why}); nothing is admitted any more: mend the disk, check with `fencegate store verify`, and start again"
            ),
            Self::StillInUse(namespaces) => write!(
                f,
                "requests that were forwarded under the old rules of {} have not ended in time; try again",
                namespaces.join(", ")
            ),
            Self::Impatient => f.write_str("stopped at once by a second signal"),
        }
    }
}

impl std::error::Error for RunError {}

/// Runs the gateway until it is told to stop.
///
/// # Errors
///
/// As [`RunError`] says. A stop by one signal is no error.
pub fn serve(config: Config, file: &Path) -> Result<(), RunError> {
    raise_file_limit();
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let upstreams = upstreams(&config, workers, &|_, _| None)?;
    let table = RouteTable::build(&config, file, &upstreams).map_err(RunError::Config)?;
    let store = Arc::new(open_store(&config)?);
    let (failure, failed) = oneshot::channel();
    store.on_failure(move |why| {
        // Nobody waits for it any more once the process is on its way out.
        let _ = failure.send(why);
    });
    let settles = take_rules(&store, &table)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| RunError::System("could not start a runtime", error))?;
    let fence = Fence::new(Arc::clone(&store) as Arc<dyn Store>, config.store.cache);
    fence.limit_keys(config.limits.keys);
    let gateway = Arc::new(gateway(&config, table, fence, upstreams));
    let metrics = Arc::clone(&gateway.metrics);
    store.on_batch(move |marks, took| metrics.committed(marks, took));
    let result = runtime.block_on(async {
        if !store.was_clean() {
            hold_orphans(&gateway.fence, &store, &settles);
        }
        run(config, file, &gateway, &store, workers, failed).await
    });
    match result {
        Ok(clean) => {
            store.close(clean).map_err(RunError::Store)?;
            tracing::info!(clean, "stopped");
            Ok(())
        }
        Err(error) => {
            let _ = store.close(false);
            Err(error)
        }
    }
}

/// `kept`: where an upstream is, where that must stay as it is.
pub(crate) fn upstreams(
    config: &Config,
    workers: usize,
    kept: &dyn Fn(&str, &config::Url) -> Option<upstream::Address>,
) -> Result<BTreeMap<String, Arc<Upstream>>, RunError> {
    let mut upstreams = BTreeMap::new();
    for (name, upstream) in &config.upstreams {
        let url = upstream.urls.first().map(|url| &url.value);
        let address = match url {
            Some(url) if let Some(address) = kept(name, url) => address,
            Some(config::Url::Http(address)) => upstream::Address::Tcp {
                host: address.host().to_owned(),
                port: address.port(),
            },
            Some(config::Url::BuiltinObjects) | None => {
                let objects = builtin::objects().map_err(|error| {
                    RunError::System("could not start the builtin object store", error)
                })?;
                upstream::Address::Builtin(objects)
            }
        };
        let upstream = Upstream::new(name, upstream, address, workers);
        upstreams.insert(name.clone(), Arc::new(upstream));
    }
    Ok(upstreams)
}

fn open_store(config: &Config) -> Result<EmbeddedStore, RunError> {
    let path = &config.store.path;
    let mut options = Options::new(path);
    options.require_existing = config.store.require_existing;
    let store = EmbeddedStore::open(&options).map_err(RunError::Open)?;
    if let Some(medium) = volatile_medium(path) {
        tracing::warn!(path = %path.display(), "{medium}");
    }
    Ok(store)
}

/// Compares the rules that keys come from with those that the marks were made by; returns how long
/// each namespace is held after a crash.
fn take_rules(
    store: &EmbeddedStore,
    table: &RouteTable,
) -> Result<BTreeMap<String, Duration>, RunError> {
    let known = store.all_rules().map_err(RunError::Store)?;
    let changes = Changes::find(&known, table, store.was_clean(), None);
    if !changes.refused.is_empty() {
        return Err(RunError::Rekeyed(changes.refused));
    }
    let until = store.opened_at() + changes.longest();
    if !store.was_clean() && until > Instant::now() {
        // Under new keys nothing would hold what the last run left behind. The new rules are put
        // only afterwards: a stop in between must find the change once more.
        tracing::warn!(
            "the keys are made anew after a run that did not end cleanly: waiting until its requests have settled"
        );
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
    }
    for (namespace, rules) in &changes.put {
        store.put_rules(namespace, rules).map_err(RunError::Store)?;
    }
    Ok(changes.settles)
}

/// The requests that a crash orphaned count as still running.
fn hold_orphans(fence: &Fence, store: &EmbeddedStore, settles: &BTreeMap<String, Duration>) {
    for (namespace, settle) in settles {
        let until = store.opened_at() + *settle;
        if until > Instant::now() {
            tracing::warn!(
                namespace,
                settle_ms = u64::try_from(settle.as_millis()).unwrap_or(u64::MAX),
                "the last run did not end cleanly: its requests may still be running, so newer tokens are held"
            );
            fence.hold(namespace, until);
        }
    }
}

fn gateway(
    config: &Config,
    table: RouteTable,
    fence: Fence,
    upstreams: BTreeMap<String, Arc<Upstream>>,
) -> Gateway {
    Gateway {
        fence,
        routes: Arc::new(ArcSwap::new(table.router)),
        intake: Arc::new(ArcSwap::from_pointee(Intake {
            guarded: table.guarded,
            body_limit: config.limits.body,
        })),
        metrics: Arc::new(Metrics::default()),
        settings: ArcSwap::from_pointee(settings(config)),
        spool: Spool::new(&config.store.path.join("spool")),
        upstreams: ArcSwap::from_pointee(upstreams),
        connections: AtomicUsize::new(0),
        ready: AtomicBool::new(false),
    }
}

pub(crate) fn settings(config: &Config) -> Settings {
    let trusted = config.trusted_proxies.iter();
    let trusted = trusted.filter_map(|network| network.to_string().parse::<Cidr>().ok());
    let header_bytes = usize::try_from(config.limits.header_bytes).unwrap_or(usize::MAX);
    Settings {
        forwarded: ForwardedLayer::new(trusted, config.forwarded),
        access_log: config.log.access,
        body_timeout: config.timeouts.body,
        heads: HeadLimits {
            header_bytes,
            header_count: config.limits.header_count,
            // The codec's own bound on a target.
            target_bytes: header_bytes.min(65_534),
        },
        timeouts: ConnTimeouts {
            header: config.timeouts.header,
            idle: config.timeouts.idle,
            write_stall: config.timeouts.idle,
        },
        preserve_header_case: config
            .upstreams
            .values()
            .any(|upstream| upstream.preserve_header_case),
        requests_per_connection: config.limits.requests_per_connection,
        connections: config.limits.connections,
    }
}

fn resolve(address: &config::Address) -> Result<SocketAddr, RunError> {
    let bind = |error| RunError::Bind(address.to_string(), error);
    (address.host(), address.port())
        .to_socket_addrs()
        .map_err(bind)?
        .next()
        .ok_or_else(|| bind(io::ErrorKind::AddrNotAvailable.into()))
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<(Self, Signal), RunError> {
        let listen = |kind| {
            signal(kind).map_err(|error| RunError::System("could not listen for signals", error))
        };
        let signals = Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        };
        Ok((signals, listen(SignalKind::hangup())?))
    }

    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Serves until a signal or the store's failure. `Ok(true)`: nothing is left running.
async fn run(
    config: Config,
    file: &Path,
    gateway: &Arc<Gateway>,
    store: &Arc<EmbeddedStore>,
    workers: usize,
    failed: oneshot::Receiver<Arc<str>>,
) -> Result<bool, RunError> {
    let (mut signals, reload) = Signals::new()?;
    let (stop, stopped) = watch::channel(Stop::Serving);
    let mut bound = Vec::new();
    let mut per_worker: Vec<Vec<std::net::TcpListener>> =
        (0..workers).map(|_| Vec::new()).collect();
    for listener in &config.listeners {
        let address = resolve(&listener.address.value)?;
        let sockets = server::bind(address, workers)
            .map_err(|error| RunError::Bind(address.to_string(), error))?;
        if let Some(first) = sockets.first() {
            bound.push(("http", first.local_addr()));
        }
        for (worker, socket) in per_worker.iter_mut().zip(sockets) {
            worker.push(socket);
        }
    }
    if let Some(admin) = &config.admin {
        let address = resolve(&admin.address.value)?;
        let sockets =
            server::bind(address, 1).map_err(|error| RunError::Bind(address.to_string(), error))?;
        let host = admin.address.value.host();
        let api = Arc::new(Admin::new(Arc::clone(gateway), admin.tokens.clone(), host));
        for socket in sockets {
            bound.push(("admin", socket.local_addr()));
            tokio::spawn(Arc::clone(&api).serve(socket));
        }
    }
    let threads = start_workers(per_worker, gateway, &stopped)?;
    gateway.ready.store(true, Ordering::SeqCst);
    say_ready(&bound);

    let mut failed = failed;
    let mut reloader = Reloader::new(
        file,
        config,
        Arc::clone(gateway),
        Arc::clone(store),
        workers,
    );
    tokio::select! {
        () = signals.stop() => {}
        never = reloader.run(reload) => match never {},
        Ok(why) = &mut failed => {
            // Equal tokens need no sync: they are not to be admitted either.
            gateway.fence.stop();
            return Err(RunError::Failed(why));
        }
    }
    let timeout = reloader.config().shutdown.timeout;
    gateway.ready.store(false, Ordering::SeqCst);
    tracing::info!("stopping: no new connections, requests on their way may end");
    let stopping = wind_down(timeout, gateway, &stop);
    let clean = tokio::select! {
        clean = stopping => clean,
        () = signals.stop() => return Err(RunError::Impatient),
        Ok(why) = &mut failed => {
            // Equal tokens need no sync: they are not to be admitted either.
            gateway.fence.stop();
            return Err(RunError::Failed(why));
        }
    };
    drop(stop);
    // Each ends when the channel is gone; nothing is left on them.
    let join =
        tokio::task::spawn_blocking(|| threads.into_iter().for_each(|thread| drop(thread.join())));
    let _ = tokio::time::timeout(Duration::from_secs(1), join).await;
    Ok(clean && gateway.fence.is_quiet())
}

/// Lets everything end, cuts what does not, and waits until it has settled. `true`: nothing is left.
async fn wind_down(timeout: Duration, gateway: &Gateway, stop: &watch::Sender<Stop>) -> bool {
    let idle =
        || gateway.connections.load(Ordering::SeqCst) == 0 && gateway.fence.totals().in_flight == 0;
    stop.send_replace(Stop::Draining);
    until(timeout, idle).await;
    // Whoever still waits is told so, whoever is cut as well, and has a moment to read it.
    gateway.fence.stop();
    until(GRACE, || gateway.connections.load(Ordering::SeqCst) == 0).await;
    stop.send_replace(Stop::Cutting);
    // Whatever is unsettled now, or held after a crash, has its own time and then is no more.
    while !gateway.fence.is_quiet() {
        tokio::time::sleep(LOOK).await;
    }
    true
}

async fn until(longest: Duration, done: impl Fn() -> bool) {
    let end = Instant::now() + longest;
    while !done() && Instant::now() < end {
        tokio::time::sleep(LOOK).await;
    }
}

fn say_ready(bound: &[(&str, io::Result<SocketAddr>)]) {
    use std::io::Write;
    let mut line = "fencegate is ready:".to_owned();
    for (what, address) in bound {
        if let Ok(address) = address {
            line += &format!(" {what}={address}");
        }
    }
    line.push('\n');
    // Whoever reads it may have gone away; the gateway serves all the same.
    let _ = io::stderr().write_all(line.as_bytes());
}

fn start_workers(
    per_worker: Vec<Vec<std::net::TcpListener>>,
    gateway: &Arc<Gateway>,
    stopped: &watch::Receiver<Stop>,
) -> Result<Vec<JoinHandle<()>>, RunError> {
    let start = |error| RunError::System("could not start a worker", error);
    let mut threads = Vec::new();
    for (number, listeners) in per_worker.into_iter().enumerate() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(start)?;
        let gateway = Arc::clone(gateway);
        let mut stopped = stopped.clone();
        let worker = std::thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(move || {
                upstream::enter_worker(number);
                runtime.block_on(async move {
                    for listener in listeners {
                        let accept =
                            server::accept(listener, Arc::clone(&gateway), stopped.clone());
                        tokio::spawn(async move {
                            if let Err(error) = accept.await {
                                tracing::error!(%error, "a listener could not be used");
                            }
                        });
                    }
                    tokio::spawn(reap(gateway));
                    // What settles is timed here, so the worker lives until the process is done.
                    while stopped.changed().await.is_ok() {}
                });
            })
            .map_err(start)?;
        threads.push(worker);
    }
    Ok(threads)
}

async fn reap(gateway: Arc<Gateway>) {
    loop {
        tokio::time::sleep(REAP).await;
        for upstream in gateway.upstreams.load().values() {
            upstream.reap();
        }
    }
}

/// Each connection takes a file, and the usual soft limit of 1,024 is soon reached.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit on open files could not be raised");
    }
}
