//! The config of a gateway under test. JSON is YAML, so it is built as a value and written as it is.

use std::path::Path;

use serde_json::{Value, json};

/// One route over `/objects/{id}` to one upstream, with short times; changed by dotted paths.
#[derive(Clone)]
pub(crate) struct Config(Value);

impl Config {
    /// The default of all tests, in front of the upstream at `url`.
    pub(crate) fn new(url: &str) -> Self {
        Self(json!({
            "listeners": [{ "address": "127.0.0.1:0" }],
            "admin": { "address": "127.0.0.1:0" },
            "upstreams": { "objects": { "urls": [url], "settle": "1s" } },
            "routes": [{
                "name": "objects",
                "path": "/objects/{id}",
                "upstream": "objects",
                "fence": { "key": "{id}" },
            }],
            "log": { "format": "json" },
        }))
    }

    /// Sets the value at a dotted path, such as `routes.0.fence.path`, making what is missing.
    pub(crate) fn set(mut self, path: &str, value: impl Into<Value>) -> Self {
        *self.at(path) = value.into();
        self
    }

    /// Takes the value at a dotted path away.
    pub(crate) fn without(mut self, path: &str) -> Self {
        let (parent, name) = path.rsplit_once('.').unwrap_or(("", path));
        let parent = if parent.is_empty() {
            &mut self.0
        } else {
            self.at(parent)
        };
        parent.as_object_mut().unwrap().remove(name);
        self
    }

    /// How long an unknown outcome holds newer tokens.
    pub(crate) fn settle(self, time: &str) -> Self {
        self.set("upstreams.objects.settle", time)
    }

    /// One setting of the first route's fence.
    pub(crate) fn fence(self, name: &str, value: impl Into<Value>) -> Self {
        self.set(&format!("routes.0.fence.{name}"), value)
    }

    /// One setting of the upstream.
    pub(crate) fn upstream(self, name: &str, value: impl Into<Value>) -> Self {
        self.set(&format!("upstreams.objects.{name}"), value)
    }

    /// All routes anew.
    pub(crate) fn routes(self, routes: Value) -> Self {
        self.set("routes", routes)
    }

    /// A route more, after the others.
    pub(crate) fn route(mut self, route: Value) -> Self {
        self.at("routes").as_array_mut().unwrap().push(route);
        self
    }

    pub(super) fn write(&self, file: &Path, store: &Path) {
        let mut value = self.0.clone();
        if value.get("store").and_then(|s| s.get("path")).is_none() {
            value["store"]["path"] = json!(store);
        }
        std::fs::write(file, serde_json::to_string_pretty(&value).unwrap()).unwrap();
    }

    fn at(&mut self, path: &str) -> &mut Value {
        let mut value = &mut self.0;
        for part in path.split('.') {
            value = match part.parse::<usize>() {
                Ok(index) => &mut value[index],
                Err(_) => &mut value[part],
            };
        }
        value
    }
}
