//! The gateway's metrics, in the text format of Prometheus. Keys are never labels.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::gateway::Gateway;
use crate::test_features;

/// A route's name as a label.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RouteName(pub Arc<str>);

impl EncodeLabelValue for RouteName {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        (&*self.0).encode(encoder)
    }
}

/// What a request is counted by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// The route; empty where none matched.
    pub route: RouteName,
    /// How the fence decided.
    pub decision: &'static str,
    /// Why it was refused, or would have been; empty where it was not.
    pub reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AddressLabels {
    upstream: String,
    address: String,
}

/// All metrics.
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    admission: Histogram,
    drain: Histogram,
    upstream: Histogram,
    upstream_healthy: Family<AddressLabels, Gauge>,
    keys: Gauge,
    in_flight: Gauge,
    waiting: Gauge,
    unsettled: Gauge,
    locks_held: Gauge,
    /// Client connections that are open.
    pub connections: Gauge,
    /// Those of them that have been quiet for a while, and hold no buffers.
    pub resting: Gauge,
    reloads: Family<ResultLabels, Counter>,
    commits: Histogram,
    batches: Histogram,
}

fn seconds() -> Histogram {
    // From 50 microseconds to 100 seconds.
    Histogram::new(exponential_buckets(0.000_05, 2.5, 17))
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("fencegate");
        let this = Self {
            requests: Family::default(),
            admission: seconds(),
            drain: seconds(),
            upstream: seconds(),
            upstream_healthy: Family::default(),
            keys: Gauge::default(),
            in_flight: Gauge::default(),
            waiting: Gauge::default(),
            unsettled: Gauge::default(),
            locks_held: Gauge::default(),
            connections: Gauge::default(),
            resting: Gauge::default(),
            reloads: Family::default(),
            commits: seconds(),
            // From 1 to 65,536 marks.
            batches: Histogram::new(exponential_buckets(1.0, 2.0, 17)),
            registry: Registry::default(),
        };
        let mut build = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
        let features = test_features::names();
        if !features.is_empty() {
            build.push(("test_features", features));
        }
        let build = Info::new(build);
        registry.register(
            "requests",
            "Requests by route and decision",
            this.requests.clone(),
        );
        registry.register(
            "admission_seconds",
            "How long fenced requests waited for their admission",
            this.admission.clone(),
        );
        registry.register(
            "drain_seconds",
            "The same for those that had to wait: for a sync, for older writes, or for them to settle",
            this.drain.clone(),
        );
        registry.register(
            "upstream_seconds",
            "From admission to the upstream's response head",
            this.upstream.clone(),
        );
        registry.register(
            "upstream_healthy",
            "1, or 0 after a failed connect or health check until one succeeds",
            this.upstream_healthy.clone(),
        );
        registry.register(
            "store_commit_seconds",
            "From a raised mark to its being durable",
            this.commits.clone(),
        );
        registry.register(
            "store_batch_size",
            "Marks in one batch, made durable by one sync",
            this.batches.clone(),
        );
        registry.register("keys", "Keys that have a mark", this.keys.clone());
        registry.register("in_flight", "Writes in flight", this.in_flight.clone());
        registry.register(
            "waiting",
            "Requests that wait for admission",
            this.waiting.clone(),
        );
        registry.register(
            "unsettled",
            "Writes whose outcome is unknown and has not settled",
            this.unsettled.clone(),
        );
        registry.register(
            "locks_held",
            "Locks that somebody holds, as far as they were used since the start",
            this.locks_held.clone(),
        );
        registry.register(
            "connections",
            "Client connections",
            this.connections.clone(),
        );
        registry.register(
            "connections_resting",
            "Client connections that have been quiet for a second, and hold no buffers",
            this.resting.clone(),
        );
        registry.register(
            "config_reloads",
            "Reloads of the config",
            this.reloads.clone(),
        );
        registry.register("build", "This build", build);
        Self { registry, ..this }
    }
}

impl Metrics {
    /// Counts a request.
    pub fn request(&self, labels: RequestLabels) {
        thread_local! {
            /// The counter of the last request: the next one mostly has the same.
            static LAST: RefCell<Option<(RequestLabels, Counter)>> = const { RefCell::new(None) };
        }
        LAST.with_borrow_mut(|last| match last {
            Some((same, counter))
                if Arc::ptr_eq(&same.route.0, &labels.route.0)
                    && same.decision == labels.decision
                    && same.reason == labels.reason =>
            {
                counter.inc();
            }
            _ => {
                let counter = self.requests.get_or_create_owned(&labels);
                counter.inc();
                *last = Some((labels, counter));
            }
        });
    }

    /// A request was admitted after `waited`; zero where it did not have to wait.
    pub fn admitted(&self, waited: Duration) {
        self.admission.observe(waited.as_secs_f64());
        if !waited.is_zero() {
            self.drain.observe(waited.as_secs_f64());
        }
    }

    /// The upstream took so long for its head.
    pub fn upstream(&self, took: Duration) {
        self.upstream.observe(took.as_secs_f64());
    }

    /// A batch of marks became durable.
    pub fn committed(&self, marks: usize, took: Duration) {
        self.commits.observe(took.as_secs_f64());
        #[expect(
            clippy::cast_precision_loss,
            reason = "a batch is far below 2^52 marks"
        )]
        self.batches.observe(marks as f64);
    }

    /// A reload of the config ended.
    pub fn reloaded(&self, ok: bool) {
        let result = if ok { "ok" } else { "failed" };
        self.reloads.get_or_create(&ResultLabels { result }).inc();
    }

    /// All metrics as text.
    pub fn render(&self, gateway: &Gateway) -> String {
        let totals = gateway.fence.totals();
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.keys.set(gauge(totals.keys));
        self.in_flight.set(gauge(totals.in_flight as u64));
        self.waiting.set(gauge(totals.waiting as u64));
        self.unsettled.set(gauge(totals.unsettled as u64));
        let held = gateway.locks.as_ref().map_or(0, |locks| locks.held());
        self.locks_held.set(gauge(held as u64));
        // A reload may have taken some away.
        self.upstream_healthy.clear();
        for upstream in gateway.upstreams.load().values() {
            for (address, well) in upstream.standings() {
                let labels = AddressLabels {
                    upstream: upstream.name.clone(),
                    address: address.to_owned(),
                };
                let healthy = self.upstream_healthy.get_or_create(&labels);
                healthy.set(i64::from(well));
            }
        }
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}
