//! For the simulation's tests: the gateway over a simulated network, clock and disk.
//!
//! Everything from accept to the upstream's connection, the fence, the store, the stop and the start
//! after a crash is the real code. What is swapped: the listener and the connector
//! ([`crate::net`]), the disk and the index on it ([`Disk`]), and the store's threads, whose steps a
//! task takes ([`EmbeddedStore::work`]). What is left out: the config's file and its reload,
//! signals, the admin listener, health checks, and the workers' threads, of which there is one.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use fencegate_filters::fence::Fence;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::config::{self, Config};
use crate::forget::Forgetter;
use crate::gateway::Gateway;
use crate::net;
use crate::route::RouteTable;
use crate::run::{self, RunError};
use crate::server;
use crate::stop::{Stop, Stopper, Stopping};
use crate::store::EmbeddedStore;
pub use crate::store::Pace;
pub use crate::store::sim_disk::{Faults, Random, SimDisk as Disk};
use crate::upstream::{self, Address};

/// A stream of the simulated network. Dropping it must close it as the system closes a socket.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + fmt::Debug {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + fmt::Debug> Stream for S {}

/// What comes of a wait in the simulated network.
pub type Waiting<'a, T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send + 'a>>;

/// A listener of the simulated network.
pub trait Listener: Send + Sync {
    /// The next client.
    fn accept(&self) -> Waiting<'_, (net::Stream, SocketAddr)>;
}

/// Connects to the one upstream of the simulated network.
pub trait Connector: Send + Sync {
    /// A new connection.
    fn connect(&self) -> Waiting<'_, net::Stream>;
}

/// What a gateway runs in.
pub struct World<P> {
    /// Where its store is.
    pub disk: Disk,
    /// How long that disk takes.
    pub pace: P,
    /// Where its clients come from.
    pub listener: Box<dyn Listener>,
    /// How it reaches every upstream of its config.
    pub connector: Arc<dyn Connector>,
    /// Has it stop in good order once that has gone as far as [`Stop::Draining`].
    pub stop: Stopping,
}

/// Runs a gateway to its end, as `fencegate serve` does. `begun` is called once it serves.
///
/// # Errors
///
/// As [`RunError`] says.
pub async fn serve<P: Pace + 'static>(
    config: &Config,
    world: World<P>,
    begun: impl FnOnce(&Arc<Gateway>),
) -> Result<(), RunError> {
    upstream::enter_worker(0);
    let connector = world.connector;
    let simulated = |_: &str, _: &config::Url| Some(Address::Simulated(connector.clone()));
    let upstreams = run::upstreams(config, 1, &simulated)?;
    let file = Path::new("simulated.yaml");
    let table = RouteTable::build(config, file, &upstreams).map_err(RunError::Config)?;
    let store = EmbeddedStore::open_simulated(&world.disk).map_err(RunError::Open)?;
    let store = Arc::new(store);
    let settles = run::take_rules(&store, &table)?;
    let (gateway, mut failed) = run::assemble(config, table, upstreams, &store, &settles);
    let stopper = Stopper::default();
    let listener = net::Listener::Simulated(world.listener);
    tokio::spawn(server::accept(
        listener,
        Arc::default(),
        Arc::clone(&gateway),
        stopper.stopping(),
    ));
    let reaping = tokio::spawn(run::reap(Arc::clone(&gateway)));
    let forgetting = tokio::spawn(forget(
        config.store.clone(),
        gateway.fence.clone(),
        Arc::clone(&store),
    ));
    begun(&gateway);
    let timeout = config.shutdown.timeout;
    let serving = async {
        tokio::select! {
            biased;
            Ok(why) = &mut failed => return Err(run::fail(&gateway, why)),
            () = world.stop.reached(Stop::Draining) => {}
        }
        tokio::select! {
            biased;
            Ok(why) = &mut failed => Err(run::fail(&gateway, why)),
            clean = run::wind_down(timeout, &gateway, &stopper) => {
                Ok(clean && gateway.fence.is_quiet())
            }
        }
    };
    let served = tokio::select! {
        biased;
        served = serving => served,
        () = store.work(world.pace) => Ok(false),
    };
    reaping.abort();
    forgetting.abort();
    run::close(&store, served)
}

async fn forget(config: config::Store, fence: Fence, store: Arc<EmbeddedStore>) {
    let forgetter = Forgetter::start(&config, &fence, None, &store).await;
    if let Ok(Some(forgetter)) = forgetter {
        forgetter.run().await;
    }
}
