//! The gateway's host: the real gateway over simulated streams.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use fencegate::net::Stream;
use fencegate::sim::{self, Connector, Faults, Listener, Waiting};
use fencegate::stop::Stopper;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use turmoil::net::{TcpListener, TcpStream};

use super::dice::Dice;
use super::world::{Pace, World};

/// One life of the gateway, from its start to its end.
pub(crate) async fn live(world: Arc<World>, dice: Dice) -> turmoil::Result {
    let (down, told) = world.life(|life| (life.down, life.told));
    if told {
        world.close_orphans();
    }
    tokio::time::sleep(down).await;
    world.close_orphans();
    let stopper = Stopper::default();
    let stop = stopper.stopping();
    let disk = world.life(|life| {
        life.stopper = Some(stopper);
        life.disk.set(Faults::default());
        life.disk.clone()
    });
    let listener = TcpListener::bind("0.0.0.0:8080").await?;
    let surroundings = sim::World {
        disk,
        pace: Pace {
            world: Arc::clone(&world),
            dice,
        },
        listener: Box::new(Accepts(listener, Arc::clone(&world))),
        connector: Arc::new(Connects(Arc::clone(&world))),
        stop,
    };
    let config = world.scenario.config.clone();
    let begun = |gateway: &Arc<fencegate::gateway::Gateway>| {
        world.log("gateway serves");
        world.life(|life| life.gateway = Arc::downgrade(gateway));
        check_marks(&world, gateway);
    };
    let ended = sim::serve(&config, surroundings, begun).await;
    let ended = ended.map_err(|error| error.to_string());
    world.log(format!("gateway ended: {ended:?}"));
    world.life(|life| life.ended = Some(ended));
    Ok(())
}

/// What stands for the mark of a key that has none; 0 where nothing was ever forgotten.
pub(crate) fn floor(gateway: &fencegate::gateway::Gateway) -> u64 {
    let floor = gateway.fence.floor("objects");
    floor.map_or(0, |floor| floor.counter())
}

/// G3: whatever token reached the resource, the mark that was found is no lower.
fn check_marks(world: &World, gateway: &fencegate::gateway::Gateway) {
    let Ok(views) = gateway.fence.keys("objects/", None, 100) else {
        return;
    };
    let floor = floor(gateway);
    for (key, token) in world.highest() {
        let name = format!("objects/{key}");
        let view = views.iter().find(|view| view.key.as_str() == name);
        let mark = view.map_or(floor, |view| view.mark.counter());
        if mark < token.counter {
            world.violation(format!(
                "G3 is broken: {key} has the mark {mark} after a restart, and {token} was forwarded"
            ));
        }
    }
}

struct Accepts(TcpListener, Arc<World>);

impl Listener for Accepts {
    fn accept(&self) -> Waiting<'_, (Stream, SocketAddr)> {
        Box::pin(async {
            let (stream, peer) = self.0.accept().await?;
            let stream = Simulated::new(&self.1, stream, None);
            Ok((Stream::Simulated(Box::new(stream)), peer))
        })
    }
}

struct Connects(Arc<World>);

impl Connector for Connects {
    fn connect(&self) -> Waiting<'_, Stream> {
        Box::pin(async {
            let stream = TcpStream::connect("resource:9000").await?;
            let address = stream.local_addr()?;
            self.0.opened(address);
            let stream = Simulated::new(&self.0, stream, Some(address));
            Ok(Stream::Simulated(Box::new(stream)))
        })
    }
}

/// A stream of the gateway, whose end is known to the simulation.
struct Simulated {
    world: Arc<World>,
    number: u64,
    /// There until it is dropped.
    stream: Option<TcpStream>,
    /// Our address, where the resource is the peer.
    to_resource: Option<SocketAddr>,
}

impl Simulated {
    fn new(world: &Arc<World>, stream: TcpStream, to_resource: Option<SocketAddr>) -> Self {
        Self {
            world: Arc::clone(world),
            number: world.stream_number(),
            stream: Some(stream),
            to_resource,
        }
    }

    fn stream(&mut self) -> Pin<&mut TcpStream> {
        Pin::new(self.stream.as_mut().unwrap())
    }
}

impl Drop for Simulated {
    fn drop(&mut self) {
        if let Some(address) = self.to_resource {
            self.world.closed(address);
        }
        if let Some(stream) = self.stream.take() {
            drop(self.world.orphan(self.number, stream));
        }
    }
}

impl std::fmt::Debug for Simulated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.stream.fmt(f)
    }
}

impl AsyncRead for Simulated {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.get_mut().stream().poll_read(cx, buf)
    }
}

impl AsyncWrite for Simulated {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().stream().poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().stream().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().stream().poll_shutdown(cx)
    }
}
