//! From a client's request to its upstream, top to bottom.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Duration;

use arc_swap::ArcSwap;
use fencegate_filters::claim::ClaimLayer;
use fencegate_filters::fence::{Fence, FenceLayer};
use fencegate_filters::route::{RouteLayer, Routes};
use fencegate_filters::{ForwardedLayer, HopByHopLayer};
use http::{Request, Response};
use tower::ServiceBuilder;
use tower_service::Service;

use crate::access::{AccessBody, AccessLayer};
use crate::body::ClientBody;
use crate::config;
use crate::forward::Forward;
use crate::intake::{Intake, IntakeLayer};
use crate::locks::Locks;
use crate::metrics::Metrics;
use crate::route::Route;
use crate::server::Door;
use crate::spool::Spool;
use crate::spool_layer::SpoolLayer;
use crate::trust::TrustLayer;
use crate::upstream::Upstream;
use crate::wire::{ConnTimeouts, HeadLimits};

/// What all connections and requests share.
pub struct Gateway {
    /// The marks and lanes.
    pub fence: Fence,
    /// The routes in force.
    pub routes: Routes<Route>,
    /// The lock service, where there is one.
    pub locks: Option<Arc<Locks>>,
    /// What is checked of every request in force.
    pub intake: Arc<ArcSwap<Intake>>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// What new connections are served by; a reload puts others in their place.
    pub settings: ArcSwap<Settings>,
    /// Where large bodies are received.
    pub spool: Spool,
    /// The upstreams in force.
    pub upstreams: ArcSwap<BTreeMap<String, Arc<Upstream>>>,
    /// How connections to each listener are opened, in the order of the config at the start.
    pub doors: Vec<(config::Endpoint, Arc<Door>)>,
    /// How those to the admin listener are.
    pub admin_door: Door,
    /// How those to the lock service are.
    pub locks_door: Arc<Door>,
    /// Client connections.
    pub connections: AtomicUsize,
    /// Whether all listeners are bound and nothing is being stopped.
    pub ready: AtomicBool,
}

/// What a connection is served by from its first request to its last.
#[derive(Debug)]
pub struct Settings {
    /// `trusted_proxies` and `forwarded`.
    pub forwarded: ForwardedLayer,
    /// Whether access lines are written.
    pub access_log: bool,
    /// The longest gap between two reads of a request body.
    pub body_timeout: Option<Duration>,
    /// How large heads may be.
    pub heads: HeadLimits,
    /// How long clients may take.
    pub timeouts: ConnTimeouts,
    /// Whether the spelling of header names is kept for an upstream that cares.
    pub preserve_header_case: bool,
    /// How many requests one connection may carry.
    pub requests_per_connection: Option<u64>,
    /// How many requests an HTTP/2 connection may carry at once.
    pub http2_streams: u32,
    /// How many client connections there may be.
    pub connections: Option<usize>,
}

impl Gateway {
    /// The request's way. Each layer is a file of its own; what it learns travels in a
    /// [`Passage`](fencegate_filters::passage::Passage), and what it refuses comes back as a
    /// [`Refusal`](fencegate_filters::Refusal).
    pub fn service(
        &self,
        settings: &Settings,
    ) -> impl Service<
        Request<ClientBody>,
        Response = Response<AccessBody>,
        Error = Infallible,
        Future: Send + Unpin + 'static,
    > + Clone
    + Send
    + Sync
    + Unpin
    + 'static {
        ServiceBuilder::new()
            // One line and one count for every request; refusals become responses here.
            .layer(AccessLayer::new(
                Arc::clone(&self.metrics),
                self.locks.clone(),
                settings.access_log,
            ))
            // HTTP that hops could read in two ways, and bodies that are too large.
            .layer(IntakeLayer::new(Arc::clone(&self.intake)))
            // Which route takes it, and which keys it touches.
            .layer(RouteLayer::new(Arc::clone(&self.routes)))
            // Which tokens it carries for them, verified where the route says so: from here on there is
            // a claim, or none is needed.
            .layer(ClaimLayer)
            // Where the route says so, no token is taken that was never issued.
            .layer(TrustLayer::new(self.locks.clone()))
            // Where the route says so, the body is received before the fence is asked.
            .layer(SpoolLayer::new(
                self.fence.clone(),
                self.spool.clone(),
                settings.body_timeout,
            ))
            // Compared, raised, made durable, drained: admitted.
            .layer(FenceLayer::new(self.fence.clone()))
            // What is meant for this hop alone ends here.
            .layer(HopByHopLayer::new())
            // Who asked, for the upstream.
            .layer(settings.forwarded.clone())
            // Sent once its connection is ready, if no newer token has come: in flight.
            .service(Forward::new(settings.body_timeout))
    }
}
