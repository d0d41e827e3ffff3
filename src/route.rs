//! The routes of the config, as the gateway uses them.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fencegate_filters::fence::{Drain, OnTimeout, Uploads};
use fencegate_filters::guard::GuardedNames;
use fencegate_filters::key::{self, Case, KeyRule, KeyRules, KeyTemplate, PathRules};
use fencegate_filters::policy::{AsPolicy, Holder, HolderFrom, Mode, Policy, Require};
use fencegate_filters::route::{RouteMatcher, Router};
use fencegate_filters::signed::Verifier;
use fencegate_filters::{Key, Reason, Refusal, StripLayer, names};
use http::{HeaderName, HeaderValue, StatusCode};

use crate::config::{self, Config, Position, Problem, Problems, Spanned};
use crate::upstream::Upstream;
use crate::upstream::upload::NOT_IN_TRAILERS;

/// One route: its fence, and where its requests go.
#[derive(Clone, Debug)]
pub struct Route {
    /// What it demands of requests.
    pub policy: Policy,
    /// Where they go; `None` where the route refuses them all.
    pub upstream: Option<Arc<Upstream>>,
    /// Whether only tokens are taken that the lock service has issued.
    pub issued_only: bool,
    /// Whether the token goes upstream.
    pub forward_token: bool,
    /// Whether bodies are received whole before the request is admitted.
    pub spool: bool,
    /// What clients must not tell the upstream.
    pub strip: StripLayer,
    /// What their trailers must not carry besides.
    pub trailers: StripLayer,
    /// Headers that only the gateway knows.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Whether Destination is made the upstream's.
    pub rewrite_destination: bool,
}

impl AsPolicy for Route {
    fn policy(&self) -> &Policy {
        &self.policy
    }
}

impl Route {
    /// The same route while its rules change: it takes no request.
    pub fn closed(&self) -> Self {
        let mut closed = self.clone();
        closed.policy.closed = true;
        closed
    }
}

/// How keys of this namespace drain: as patiently as the most patient of its routes.
pub(crate) fn drain_of(router: &Router<Arc<Route>>, key: &Key) -> Result<Drain, Refusal> {
    let fenced = |policy: &&Policy| {
        policy.keys.namespace() == key.namespace() && policy.require != Require::Never
    };
    let policies = router.routes().iter().map(|(_, route)| &route.policy);
    let drain = policies
        .filter(fenced)
        .map(|policy| policy.drain)
        .reduce(|one, other| Drain {
            timeout: one.timeout.max(other.timeout),
            settle: one.settle.max(other.settle),
            waiting: one.waiting.max(other.waiting),
            on_timeout: match (one.on_timeout, other.on_timeout) {
                (OnTimeout::Refuse, OnTimeout::Refuse) => OnTimeout::Refuse,
                _ => OnTimeout::Cut,
            },
            uploads: match (one.uploads, other.uploads) {
                (Uploads::Wait, Uploads::Wait) => Uploads::Wait,
                _ => Uploads::Cut,
            },
        });
    drain.ok_or_else(|| {
        let namespace = key.namespace();
        let detail = format!("No fenced route has the namespace {namespace:?}.");
        Refusal::new(Reason::NoRoute, detail)
    })
}

/// The key that is meant by a name which comes without a request, from the lock service or an
/// administrator. Two names of one resource must not be two locks, and what no request can have
/// would be a lock that fences nothing.
pub(crate) fn key_meant(router: &Router<Arc<Route>>, named: &Key) -> Result<Key, Refusal> {
    let (_, name) = named.as_str().split_once('/').unwrap_or_default();
    let mut meant = BTreeSet::new();
    let mut refused = None;
    for (_, route) in router.routes() {
        let policy = &route.policy;
        if policy.keys.namespace() != named.namespace() || policy.require == Require::Never {
            continue;
        }
        for key in policy.keys.named(name) {
            match key {
                Ok(key) if key == *named => return Ok(key),
                Ok(key) => {
                    meant.insert(key.as_str().to_owned());
                }
                Err(why) => refused = Some(why),
            }
        }
    }
    let bad = |detail| Err(Refusal::new(Reason::BadRequest, detail));
    let mut keys = meant.iter();
    match (keys.next(), keys.next(), refused) {
        (None, _, None) => Ok(named.clone()),
        (None, _, Some(why)) => bad(format!("No request has this key: {why}.")),
        (Some(key), None, _) => {
            let bytes = key.len() - named.namespace().len() - 1;
            match bytes {
                1..=Key::MAX_BYTES => Ok(Key::from_text(key)),
                _ => bad(format!(
                    "The key is {bytes} bytes long once it is folded; the most is {}.",
                    Key::MAX_BYTES
                )),
            }
        }
        (Some(one), Some(other), _) => bad(format!(
            "The routes of this namespace read this name in two ways: name {one:?} or {other:?}."
        )),
    }
}

/// All routes, and what follows from them together.
#[derive(Debug)]
pub struct RouteTable {
    /// The router.
    pub router: Arc<Router<Arc<Route>>>,
    /// Headers that no hop may be asked to delete.
    pub guarded: GuardedNames,
    /// The longest settle of the upstreams that each namespace reaches.
    pub settles: BTreeMap<String, Duration>,
    /// The rules that the keys of each namespace come from, and whether they may change.
    pub rules: BTreeMap<String, NamespaceRules>,
}

/// What the keys of one namespace come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceRules {
    /// Rule name to canonical text.
    pub fingerprint: BTreeMap<String, String>,
    /// Whether a route of the namespace says `rekey: true`.
    pub rekey: bool,
}

impl RouteTable {
    /// Builds the routes of a config that has been checked.
    ///
    /// # Errors
    ///
    /// Every template that does not parse, with its place in `file`.
    pub fn build(
        config: &Config,
        file: &Path,
        upstreams: &BTreeMap<String, Arc<Upstream>>,
    ) -> Result<Self, Problems> {
        let mut builder = Builder {
            file,
            config,
            problems: Vec::new(),
            guarded: HashSet::new(),
            tokens: HashSet::new(),
        };
        let mut routes = Vec::new();
        let mut settles: BTreeMap<String, Duration> = BTreeMap::new();
        let mut rules: BTreeMap<String, NamespaceRules> = BTreeMap::new();
        for route in &config.routes {
            let upstream = route
                .upstream
                .as_ref()
                .and_then(|name| upstreams.get(&name.value))
                .cloned();
            let namespace = &route.namespace.value;
            if let Some(upstream) = &upstream {
                let settle = settles.entry(namespace.clone()).or_default();
                *settle = (*settle).max(upstream.settle);
            }
            let of_namespace = rules.entry(namespace.clone()).or_default();
            of_namespace.fingerprint.extend(config::rules(route));
            of_namespace.rekey |= route.rekey;
            if let Some(built) = builder.route(route, upstream) {
                routes.push(built);
            }
        }
        if !builder.problems.is_empty() {
            return Err(Problems::new(builder.problems));
        }
        Ok(Self {
            router: Arc::new(Router::new(routes)),
            guarded: GuardedNames::new(builder.tokens, builder.guarded),
            settles,
            rules,
        })
    }
}

struct Builder<'a> {
    file: &'a Path,
    config: &'a Config,
    problems: Vec<Problem>,
    guarded: HashSet<HeaderName>,
    tokens: HashSet<HeaderName>,
}

impl Builder<'_> {
    fn problem(&mut self, at: &Position, what: impl ToString) {
        self.problems
            .push(Problem::new(self.file, at, what.to_string()));
    }

    fn route(
        &mut self,
        route: &config::Route,
        upstream: Option<Arc<Upstream>>,
    ) -> Option<(RouteMatcher, Arc<Route>)> {
        let before = self.problems.len();
        let fence = &route.fence;
        let path_rules = match fence.path {
            config::PathRules::Strict => PathRules::Strict,
            config::PathRules::Opaque => PathRules::Opaque,
        };
        let case = match fence.case {
            config::Case::Sensitive => Case::Sensitive,
            config::Case::Insensitive => Case::Insensitive,
        };
        let matcher = self.matcher(route, path_rules, case);
        let captures: Vec<String> = matcher
            .as_ref()
            .map(|matcher| matcher.captures().into_iter().map(str::to_owned).collect())
            .unwrap_or_default();
        let keys = self.keys(fence, route.deny, &captures);
        self.tokens
            .extend(fence.token_headers.iter().map(|name| name.value.clone()));
        let namespace = &route.namespace;
        let keys = match KeyRules::new(&namespace.value, keys, path_rules, case) {
            Ok(keys) => keys,
            Err(error) => {
                let at = fence
                    .keys
                    .first()
                    .map_or(&namespace.at, |rule| &rule.key.at);
                self.problem(at, error);
                return None;
            }
        };
        self.guarded.extend(keys.headers().cloned());
        let settle = upstream
            .as_ref()
            .map_or(Duration::ZERO, |upstream| upstream.settle);
        let policy = Policy {
            route: Arc::from(route.name.value.as_str()),
            deny: route.deny,
            closed: false,
            require: match fence.require {
                config::Require::Writes => Require::Writes,
                config::Require::All => Require::All,
                config::Require::Never => Require::Never,
            },
            mode: match fence.mode {
                config::Mode::Enforce => Mode::Enforce,
                config::Mode::Observe => Mode::Observe,
            },
            keys,
            signed: (fence.trust.value == config::Trust::Signed).then(|| {
                // Without keys, which is a problem of the config, none is taken.
                let verifier: Arc<dyn Verifier> = fence.verifier.clone().unwrap_or_default();
                verifier
            }),
            safe_methods: fence.safe_methods.clone().into(),
            token_headers: fence
                .token_headers
                .iter()
                .map(|name| name.value.clone())
                .collect(),
            holder: match fence.holder {
                config::Holder::Ignore => Holder::Ignore,
                config::Holder::Bind => Holder::Bind,
            },
            holder_from: match fence.holder_from {
                config::HolderFrom::Header => HolderFrom::Header,
                config::HolderFrom::ClientCert => HolderFrom::Certificate,
            },
            max_advance: fence.max_advance,
            new_epochs: fence.new_epochs == config::NewEpochs::Allow,
            drain: Drain {
                timeout: fence.drain.timeout,
                on_timeout: match fence.drain.on_timeout {
                    config::OnTimeout::Refuse => OnTimeout::Refuse,
                    config::OnTimeout::Cut => OnTimeout::Cut,
                },
                uploads: match fence.drain.uploads {
                    config::Uploads::Cut => Uploads::Cut,
                    config::Uploads::Wait => Uploads::Wait,
                },
                settle,
                waiting: self.config.limits.waiting_per_key,
            },
            refuse_status: StatusCode::from_u16(fence.refuse_status)
                .unwrap_or(StatusCode::CONFLICT),
            reveal_mark: fence.reveal_mark,
        };
        let of_upstream = route
            .upstream
            .as_ref()
            .and_then(|name| self.config.upstreams.get(&name.value));
        let headers: Vec<(HeaderName, HeaderValue)> = of_upstream
            .map(|upstream| {
                let headers = upstream.headers.iter();
                let headers = headers
                    .map(|header| (header.name.value.clone(), header.value.expose().clone()));
                headers.collect()
            })
            .unwrap_or_default();
        let strip = if fence.allow_method_override {
            StripLayer::allowing_method_override()
        } else {
            StripLayer::new()
        };
        // What only the gateway knows, no client says, in no spelling.
        let known: Vec<_> = headers.iter().map(|(name, _)| name.clone()).collect();
        let strip = strip.with(&known);
        let named = policy.keys.keys().iter();
        let named = named.filter_map(|rule| rule.token_header.clone());
        let own = [
            names::FENCING_TOKEN.clone(),
            names::X_FENCING_TOKEN.clone(),
            names::FENCING_HOLDER.clone(),
        ];
        let tokens = policy.token_headers.iter().cloned().chain(named).chain(own);
        let keys: Vec<_> = policy.keys.headers().cloned().collect();
        let decisive: Vec<_> = tokens.chain(keys).collect();
        let built = Route {
            policy,
            upstream,
            issued_only: fence.trust.value == config::Trust::Issued,
            forward_token: fence.forward_token,
            spool: fence.body == config::Body::Spool,
            trailers: strip.with(&NOT_IN_TRAILERS).with(&decisive),
            strip,
            headers,
            rewrite_destination: of_upstream.is_some_and(|upstream| upstream.rewrite_destination),
        };
        (self.problems.len() == before).then_some((matcher?, Arc::new(built)))
    }

    fn matcher(
        &mut self,
        route: &config::Route,
        path_rules: PathRules,
        case: Case,
    ) -> Option<RouteMatcher> {
        let texts = |items: &[Spanned<String>]| -> Vec<String> {
            items.iter().map(|item| item.value.clone()).collect()
        };
        let matcher = match RouteMatcher::new(&route.path.value) {
            Ok(matcher) => matcher.path_rules(path_rules).case(case),
            Err(error) => {
                self.problem(&route.path.at, error);
                return None;
            }
        };
        let matcher = match matcher.hosts(texts(&route.hosts)) {
            Ok(matcher) => matcher,
            Err(error) => {
                let at = route.hosts.first().map_or(&route.path.at, |host| &host.at);
                self.problem(at, error);
                return None;
            }
        };
        match matcher.query(texts(&route.query)) {
            Ok(matcher) => Some(matcher.methods(route.methods.iter().cloned())),
            Err(error) => {
                let at = route.query.first().map_or(&route.path.at, |name| &name.at);
                self.problem(at, error);
                None
            }
        }
    }

    fn keys(&mut self, fence: &config::Fence, deny: bool, captures: &[String]) -> Vec<KeyRule> {
        let mut keys = Vec::new();
        for rule in &fence.keys {
            let template = match KeyTemplate::parse(&rule.key.value) {
                Ok(template) => template,
                Err(error) => {
                    self.problem(&rule.key.at, error);
                    continue;
                }
            };
            if !deny {
                for name in template.uses().captures {
                    if !captures.iter().any(|known| known == name) {
                        let what = format!(
                            "the key is made of {{{name}}}, which neither path nor hosts capture"
                        );
                        self.problem(&rule.key.at, what);
                    }
                }
            }
            if let Some(name) = &rule.token_header {
                self.tokens.insert(name.value.clone());
            }
            keys.push(KeyRule {
                template,
                when_present: rule.when == config::When::Present,
                access: match rule.access {
                    config::Access::Write => key::Access::Write,
                    config::Access::Read => key::Access::Read,
                },
                token_header: rule.token_header.as_ref().map(|name| name.value.clone()),
            });
        }
        keys
    }
}
