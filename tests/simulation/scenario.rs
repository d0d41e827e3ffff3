//! What one seed draws before it begins: the config, and how bad the weather is.

use std::path::Path;
use std::time::Duration;

use fencegate::config::{Config, Forget};
use serde_json::json;

use super::dice::Dice;

/// The keys that holders write to.
pub(crate) const KEYS: usize = 3;

pub(crate) struct Scenario {
    pub(crate) config: Config,
    pub(crate) settle: Duration,
    pub(crate) discards_incomplete: bool,
    /// Marks of idle keys are forgotten.
    pub(crate) forgets: bool,
    /// How long holders work and faults happen.
    pub(crate) chaos: Duration,
    pub(crate) holders: usize,
    pub(crate) max_latency: Duration,
    /// Of a hundred requests, how many the resource treats badly.
    pub(crate) rough: u64,
    /// The mean time between two faults.
    pub(crate) fault_gap: Duration,
    /// A newest token gets through within this, once nothing is broken any more.
    pub(crate) liveness: Duration,
    /// Of a hundred clients, how many speak HTTP/2.
    pub(crate) http2: u64,
}

impl Scenario {
    pub(crate) fn draw(seed: u64) -> Self {
        let mut dice = Dice::new(seed, "scenario");
        let settle = dice.ms(100, 400);
        let timeout = dice.ms(150, 500);
        let drain = dice.ms(200, 900);
        let shutdown = dice.ms(50, 400);
        let discards_incomplete = dice.percent(30);
        let body = if dice.percent(20) { "spool" } else { "stream" };
        let on_timeout = if dice.percent(50) { "cut" } else { "refuse" };
        let uploads = if dice.percent(70) { "cut" } else { "wait" };
        let text = |time: Duration| format!("{}ms", time.as_millis());
        let fence = |key: serde_json::Value| {
            let mut fence = json!({
                "body": body,
                "drain": {
                    "timeout": text(drain), "on_timeout": on_timeout, "uploads": uploads,
                },
            });
            let all = fence.as_object_mut().unwrap();
            all.extend(key.as_object().unwrap().clone());
            fence
        };
        let config = json!({
            "listeners": [{ "address": "127.0.0.1:8080" }],
            "store": { "path": "simulated" },
            "upstreams": { "resource": {
                "urls": ["http://resource:9000"],
                "settle": text(settle),
                "timeout": text(timeout),
                "connect_timeout": text(dice.ms(60, 250)),
                "discards_incomplete": discards_incomplete,
                "pool": { "idle_timeout": text(dice.ms(50, 2000)) },
            }},
            "routes": [
                {
                    "name": "objects", "path": "/objects/{id}", "upstream": "resource",
                    "fence": fence(json!({ "key": "{id}" })),
                },
                {
                    "name": "pairs", "path": "/pairs/{a}/{b}", "upstream": "resource",
                    "namespace": "objects",
                    "fence": fence(json!({ "keys": [{ "key": "{a}" }, { "key": "{b}" }] })),
                },
            ],
            "limits": { "body": "1MiB" },
            "timeouts": {
                "header": "2s", "idle": text(dice.ms(200, 3000)), "body": text(dice.ms(100, 600)),
            },
            "shutdown": { "timeout": text(shutdown) },
            "log": { "access": false },
        });
        let loaded = Config::parse(&config.to_string(), Path::new("simulated"), &|_| None);
        let loaded = loaded.unwrap_or_else(|problems| panic!("{problems}"));
        let mut config = loaded.config;
        // Tokens rise over all keys here, so that a floor may stand for any of them.
        let mut forgetful = Dice::new(seed, "forgetful");
        config.store.forget = forgetful.percent(50).then(|| Forget {
            namespaces: vec![config.routes[0].namespace.clone()],
            // Sooner than a config may ask for: lives are short here.
            after: forgetful.ms(60, 400),
        });
        Self {
            forgets: config.store.forget.is_some(),
            config,
            settle,
            discards_incomplete,
            chaos: dice.ms(2500, 5000),
            holders: 4 + dice.index(6),
            max_latency: dice.ms(2, 20),
            rough: [0, 15, 40, 70][dice.index(4)],
            fault_gap: dice.ms(120, 600),
            liveness: Duration::from_secs(1) + 4 * (settle + timeout + drain),
            http2: [0, 50, 100][dice.index(3)],
        }
    }
}
