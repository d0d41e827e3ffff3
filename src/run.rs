//! `fencegate serve`: from a config to a running gateway, and to its end.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use fencegate_filters::fault::{self, Fault};
use fencegate_filters::fence::Fence;
use fencegate_filters::store::{Store, StoreError};
use fencegate_filters::{Cidr, ForwardedLayer};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::admin::Admin;
use crate::builtin;
use crate::config::{self, Config, Endpoint, Problems};
use crate::descriptors;
use crate::forget::Forgetter;
use crate::gateway::{Gateway, Settings};
use crate::intake::Intake;
use crate::locks::{Api as LocksApi, Locks};
use crate::metrics::Metrics;
use crate::net::{self, Listener};
use crate::outbox;
use crate::reload::Reloader;
use crate::route::RouteTable;
use crate::rules::Changes;
use crate::server::{self, Door, Way};
use crate::socket_file;
use crate::spool::Spool;
use crate::stop::{Stop, Stopper, Stopping};
use crate::store::{EmbeddedStore, OpenError, Options, volatile_medium};
use crate::test_features;
use crate::tls::ServerTls;
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
    /// The config was written once more while a reload waited.
    ChangedAgain,
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
            Self::ChangedAgain => f.write_str(
                "the config has changed again while requests under the old rules were waited for; it is read anew",
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
    test_features::warn();
    descriptors::raise_limit();
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let upstreams = upstreams(&config, workers, &|_, _| None)?;
    let table = RouteTable::build(&config, file, &upstreams).map_err(RunError::Config)?;
    let store = Arc::new(open_store(&config)?);
    let settles = take_rules(&store, &table)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| RunError::System("could not start a runtime", error))?;
    let result = runtime.block_on(async {
        let (gateway, failed) = assemble(&config, table, upstreams, &store, &settles);
        let locks = gateway.locks.as_ref();
        let forgetter = Forgetter::start(&config.store, &gateway.fence, locks, &store).await;
        if let Some(forgetter) = forgetter.map_err(RunError::Store)? {
            tokio::spawn(forgetter.run());
        }
        run(config, file, &gateway, &store, workers, failed).await
    });
    close(&store, result)
}

/// Puts a gateway together over an open store, and holds what a crash orphaned. What comes with it
/// is told why the store failed for good, should it.
pub(crate) fn assemble(
    config: &Config,
    table: RouteTable,
    upstreams: BTreeMap<String, Arc<Upstream>>,
    store: &Arc<EmbeddedStore>,
    settles: &BTreeMap<String, Duration>,
) -> (Arc<Gateway>, oneshot::Receiver<Arc<str>>) {
    let (failure, failed) = oneshot::channel();
    store.on_failure(move |why| {
        // Nobody waits for it any more once the process is on its way out.
        let _ = failure.send(why);
    });
    let fence = Fence::new(Arc::clone(store) as Arc<dyn Store>, config.store.cache);
    fence.limit_keys(config.limits.keys);
    let gateway = Arc::new(gateway(config, table, fence, upstreams, store));
    let metrics = Arc::clone(&gateway.metrics);
    store.on_batch(move |marks, took| metrics.committed(marks, took));
    if !store.was_clean() {
        hold_orphans(&gateway.fence, store, settles);
    }
    (gateway, failed)
}

/// Closes the store by how serving ended: clean only where nothing is left running.
pub(crate) fn close(store: &EmbeddedStore, served: Result<bool, RunError>) -> Result<(), RunError> {
    match served {
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
        let mut addresses = Vec::new();
        for url in &upstream.urls {
            let address = match kept(name, &url.value) {
                Some(address) => address,
                None => address(upstream, &url.value)?,
            };
            addresses.push((url.value.to_string(), address));
        }
        let upstream = Upstream::new(name, upstream, addresses, workers);
        upstreams.insert(name.clone(), Arc::new(upstream));
    }
    Ok(upstreams)
}

fn address(upstream: &config::Upstream, url: &config::Url) -> Result<upstream::Address, RunError> {
    let tcp = |address: &config::Address, tls| upstream::Address::Tcp {
        host: address.host().to_owned(),
        port: address.port(),
        tls,
    };
    Ok(match url {
        config::Url::Http(address) => tcp(address, None),
        config::Url::Https(address) => {
            let tls = upstream.tls.as_ref();
            tcp(address, tls.and_then(|tls| tls.for_host(address.host())))
        }
        config::Url::Unix(path) => upstream::Address::Unix(path.clone()),
        config::Url::BuiltinObjects => {
            upstream::Address::Builtin(builtin::objects().map_err(|error| {
                RunError::System("could not start the builtin object store", error)
            })?)
        }
    })
}

fn open_store(config: &Config) -> Result<EmbeddedStore, RunError> {
    let path = &config.store.path;
    let mut options = Options::new(path);
    options.require_existing = config.store.require_existing;
    if fault::small_store() {
        // Segments fill, and marks move into the index, with every few commits.
        options.segment_bytes = 16 << 10;
        options.flush_segments = 1;
    }
    let store = EmbeddedStore::open(&options).map_err(RunError::Open)?;
    if let Some(medium) = volatile_medium(path) {
        tracing::warn!(path = %path.display(), "{medium}");
    }
    Ok(store)
}

/// Compares the rules that keys come from with those that the marks were made by; returns how long
/// each namespace is held after a crash.
pub(crate) fn take_rules(
    store: &EmbeddedStore,
    table: &RouteTable,
) -> Result<BTreeMap<String, Duration>, RunError> {
    let known = store.all_rules().map_err(RunError::Store)?;
    let changes = Changes::find(&known, table, store.was_clean(), None);
    if !changes.refused.is_empty() {
        return Err(RunError::Rekeyed(changes.refused));
    }
    let until = Instant::from_std(store.opened_at() + changes.longest());
    if !store.was_clean() && until > Instant::now() {
        // Under new keys nothing would hold what the last run left behind. The new rules are put
        // only afterwards: a stop in between must find the change once more.
        tracing::warn!(
            "the keys are made anew after a run that did not end cleanly: waiting until its requests have settled"
        );
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
    }
    store.put_rules(&changes.put).map_err(RunError::Store)?;
    Ok(changes.settles)
}

/// The requests that a crash orphaned count as still running.
fn hold_orphans(fence: &Fence, store: &EmbeddedStore, settles: &BTreeMap<String, Duration>) {
    if fault::planted(Fault::NoCrashHold) {
        return;
    }
    for (namespace, settle) in settles {
        let until = store.opened_at() + *settle;
        if Instant::from_std(until) > Instant::now() {
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
    store: &Arc<EmbeddedStore>,
) -> Gateway {
    let routes = Arc::new(ArcSwap::new(table.router));
    let locks = config.locks.as_ref().map(|locks| {
        let store = Arc::clone(store) as Arc<dyn Store>;
        Locks::new(
            fence.clone(),
            Arc::clone(&routes),
            store,
            locks.fence_on_grant,
        )
    });
    Gateway {
        fence,
        routes,
        locks,
        intake: Arc::new(ArcSwap::from_pointee(Intake {
            guarded: table.guarded,
            body_limit: config.limits.body,
            heads: heads(config),
        })),
        metrics: Arc::new(Metrics::default()),
        settings: ArcSwap::from_pointee(settings(config)),
        spool: Spool::new(&config.store.path.join("spool")),
        upstreams: ArcSwap::from_pointee(upstreams),
        doors: config
            .listeners
            .iter()
            .map(|listener| {
                (
                    listener.address.value.clone(),
                    Arc::new(Door::new(way(listener))),
                )
            })
            .collect(),
        admin_door: Door::new(Way {
            tls: config.admin.as_ref().and_then(admin_tls),
            proxy_protocol: false,
        }),
        locks_door: Arc::new(Door::new(Way {
            tls: config.locks.as_ref().and_then(locks_tls),
            proxy_protocol: false,
        })),
        connections: AtomicUsize::new(0),
        ready: AtomicBool::new(false),
    }
}

pub(crate) fn settings(config: &Config) -> Settings {
    let trusted = config.trusted_proxies.iter();
    let trusted = trusted.filter_map(|network| network.to_string().parse::<Cidr>().ok());
    Settings {
        forwarded: ForwardedLayer::new(trusted, config.forwarded),
        access_log: config.log.access,
        body_timeout: config.timeouts.body,
        heads: heads(config),
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
        http2_streams: config.limits.http2_streams,
        connections: descriptors::most_connections(config.limits.connections),
    }
}

pub(crate) fn heads(config: &Config) -> HeadLimits {
    let header_bytes = usize::try_from(config.limits.header_bytes).unwrap_or(usize::MAX);
    HeadLimits {
        header_bytes,
        header_count: config.limits.header_count,
        // The codec's own bound on a target.
        target_bytes: header_bytes.min(65_534),
    }
}

/// How connections to a listener are opened.
pub(crate) fn way(listener: &config::Listener) -> Way {
    Way {
        tls: listener.tls.as_ref().map(|tls| tls.server.clone()),
        proxy_protocol: listener.proxy_protocol,
    }
}

pub(crate) fn admin_tls(admin: &config::Admin) -> Option<ServerTls> {
    admin.tls.as_ref().map(|tls| tls.server.clone())
}

pub(crate) fn locks_tls(locks: &config::Locks) -> Option<ServerTls> {
    locks.tls.as_ref().map(|tls| tls.server.clone())
}

fn resolve(address: &config::Address) -> Result<SocketAddr, RunError> {
    let bind = |error| RunError::Bind(address.to_string(), error);
    (address.host(), address.port())
        .to_socket_addrs()
        .map_err(bind)?
        .next()
        .ok_or_else(|| bind(io::ErrorKind::AddrNotAvailable.into()))
}

/// A listening socket of one worker.
type Entrance = (net::Bound, Arc<Door>);

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
    let stop = Stopper::default();
    let mut bound = Vec::new();
    let mut files = Vec::new();
    let mut per_worker: Vec<Vec<Entrance>> = (0..workers).map(|_| Vec::new()).collect();
    for (listener, (_, door)) in config.listeners.iter().zip(&gateway.doors) {
        let (sockets, address) = match &listener.address.value {
            Endpoint::Tcp(address) => {
                let address = resolve(address)?;
                let bind = |error| RunError::Bind(address.to_string(), error);
                let sockets = server::bind(address, workers).map_err(bind)?;
                let address = sockets.first().map(std::net::TcpListener::local_addr);
                let sockets: Vec<_> = sockets.into_iter().map(net::Bound::Tcp).collect();
                let address = address.and_then(Result::ok).map(|one| one.to_string());
                (sockets, address)
            }
            Endpoint::Unix(path) => {
                let bind = |error| RunError::Bind(path.display().to_string(), error);
                let (socket, file) = socket_file::listen(path).map_err(bind)?;
                files.push(file);
                // One queue, from which every worker takes.
                let all = (0..workers).map(|_| socket.try_clone().map(net::Bound::Unix));
                let all = all.collect::<io::Result<_>>().map_err(bind)?;
                (all, Some(listener.address.value.to_string()))
            }
        };
        if let Some(address) = address {
            let scheme = if listener.tls.is_some() {
                "https"
            } else {
                "http"
            };
            bound.push((scheme, address));
        }
        for (worker, socket) in per_worker.iter_mut().zip(sockets) {
            worker.push((socket, Arc::clone(door)));
        }
    }
    if let Some(admin) = &config.admin {
        let address = resolve(&admin.address.value)?;
        let sockets =
            server::bind(address, 1).map_err(|error| RunError::Bind(address.to_string(), error))?;
        let host = admin.address.value.host();
        let api = Arc::new(Admin::new(Arc::clone(gateway), admin.tokens.clone(), host));
        for socket in sockets {
            bound.extend(socket.local_addr().map(|one| ("admin", one.to_string())));
            tokio::spawn(Arc::clone(&api).serve(socket));
        }
    }
    if let Some(locks) = &config.locks {
        let address = resolve(&locks.address.value)?;
        let sockets =
            server::bind(address, 1).map_err(|error| RunError::Bind(address.to_string(), error))?;
        if let Some(service) = &gateway.locks {
            let api = LocksApi::new(
                Arc::clone(service),
                locks.tokens.clone(),
                &locks.address.value,
                Arc::clone(&gateway.locks_door),
            );
            let api = Arc::new(api);
            tokio::spawn(Arc::clone(service).sweep());
            for socket in sockets {
                bound.extend(socket.local_addr().map(|one| ("locks", one.to_string())));
                tokio::spawn(Arc::clone(&api).serve(socket));
            }
        }
    }
    let threads = start_workers(per_worker, gateway, &stop.stopping())?;
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
        Ok(why) = &mut failed => return Err(fail(gateway, why)),
    }
    drop(files);
    let timeout = reloader.config().shutdown.timeout;
    let stopping = wind_down(timeout, gateway, &stop);
    let clean = tokio::select! {
        clean = stopping => clean,
        () = signals.stop() => return Err(RunError::Impatient),
        Ok(why) = &mut failed => return Err(fail(gateway, why)),
    };
    drop(stop);
    // Each ends with the stop; nothing is left on them.
    let join =
        tokio::task::spawn_blocking(|| threads.into_iter().for_each(|thread| drop(thread.join())));
    let _ = tokio::time::timeout(Duration::from_secs(1), join).await;
    let quiet = gateway.fence.is_quiet() || fault::planted(Fault::CleanUnsettled);
    Ok(clean && quiet)
}

/// The store has failed for good while serving.
pub(crate) fn fail(gateway: &Gateway, why: Arc<str>) -> RunError {
    // Equal tokens need no sync: they are not to be admitted either.
    gateway.fence.fail();
    RunError::Failed(why)
}

/// Lets everything end, cuts what does not, and waits until it has settled. `true`: nothing is left.
pub(crate) async fn wind_down(timeout: Duration, gateway: &Gateway, stop: &Stopper) -> bool {
    gateway.ready.store(false, Ordering::SeqCst);
    tracing::info!("stopping: no new connections, requests on their way may end");
    let locks = gateway.locks.as_ref();
    locks.inspect(|locks| locks.end_watches());
    let idle =
        || gateway.connections.load(Ordering::SeqCst) == 0 && gateway.fence.totals().in_flight == 0;
    stop.go_on(Stop::Draining);
    until(timeout, idle).await;
    // Whoever still waits is told so, whoever is cut as well, and has a moment to read it.
    gateway.fence.stop();
    locks.inspect(|locks| locks.wake_all());
    let answered = || locks.is_none_or(|locks| locks.is_idle());
    until(GRACE, || {
        gateway.connections.load(Ordering::SeqCst) == 0 && answered()
    })
    .await;
    stop.go_on(Stop::Cutting);
    // Whatever is unsettled now, or held after a crash, has its own time and then is no more.
    let quiet = || gateway.fence.is_quiet() || fault::planted(Fault::CleanUnsettled);
    while !quiet() {
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

fn say_ready(bound: &[(&str, String)]) {
    use std::io::Write;
    let mut line = "fencegate is ready:".to_owned();
    for (what, address) in bound {
        line += &format!(" {what}={address}");
    }
    line.push('\n');
    // Whoever reads it may have gone away; the gateway serves all the same.
    let _ = io::stderr().write_all(line.as_bytes());
}

fn start_workers(
    per_worker: Vec<Vec<Entrance>>,
    gateway: &Arc<Gateway>,
    stopping: &Stopping,
) -> Result<Vec<JoinHandle<()>>, RunError> {
    let start = |error| RunError::System("could not start a worker", error);
    let mut threads = Vec::new();
    for (number, listeners) in per_worker.into_iter().enumerate() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(start)?;
        let gateway = Arc::clone(gateway);
        let stopping = stopping.clone();
        let worker = std::thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(move || {
                upstream::enter_worker(number);
                outbox::enable();
                runtime.block_on(async move {
                    tokio::spawn(outbox::sender());
                    for (listener, door) in listeners {
                        match Listener::from_std(listener) {
                            Ok(listener) => {
                                let gateway = Arc::clone(&gateway);
                                tokio::spawn(server::accept(
                                    listener,
                                    door,
                                    gateway,
                                    stopping.clone(),
                                ));
                            }
                            Err(error) => tracing::error!(%error, "a listener could not be used"),
                        }
                    }
                    tokio::spawn(reap(gateway));
                    // What settles is timed here, so the worker lives until the process is done.
                    stopping.reached(Stop::Over).await;
                });
            })
            .map_err(start)?;
        threads.push(worker);
    }
    Ok(threads)
}

pub(crate) async fn reap(gateway: Arc<Gateway>) {
    loop {
        tokio::time::sleep(REAP).await;
        for upstream in gateway.upstreams.load().values() {
            upstream.reap();
        }
    }
}
