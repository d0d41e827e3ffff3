//! A small object store that fences itself: the filters as layers of an axum service.
//!
//! `cargo run --example embedded` serves on 127.0.0.1:3000 and keeps its marks in `./marks`.
//!
//! ```text
//! $ curl -i -X PUT -H 'Fencing-Token: 33' -d hello localhost:3000/objects/a
//! HTTP/1.1 204 No Content
//!
//! $ curl -i -X PUT -H 'Fencing-Token: 34' -d world localhost:3000/objects/a
//! HTTP/1.1 204 No Content
//!
//! $ curl -i -X PUT -H 'Fencing-Token: 33' -d zombie localhost:3000/objects/a
//! HTTP/1.1 409 Conflict
//! fencing-mark: 34
//! fencing-outcome: not-forwarded
//!
//! $ curl -i -X PUT -d anybody localhost:3000/objects/a
//! HTTP/1.1 428 Precondition Required
//!
//! $ curl localhost:3000/objects/a
//! world
//! ```
//!
//! Ctrl-C stops it; the marks are there when it runs again. To see a newer token cut an upload,
//! start `curl -X PUT -H 'Fencing-Token: 40' -T - localhost:3000/objects/a`, type nothing, and send
//! token 41 from another terminal: the first gets `superseded` at once, the second is let through
//! when the first has settled.

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use fencegate::store::{EmbeddedStore, Options};
use fencegate_filters::RespondLayer;
use fencegate_filters::claim::ClaimLayer;
use fencegate_filters::fence::{Fence, FenceLayer, SendLayer};
use fencegate_filters::key::KeyRules;
use fencegate_filters::policy::Policy;
use fencegate_filters::route::{RouteLayer, RouteMatcher};
use fencegate_filters::store::Store;
use tower::ServiceBuilder;

/// How long a handler may still be at work after its request was cut.
const SETTLE: Duration = Duration::from_secs(5);

type Objects = Arc<Mutex<HashMap<String, Bytes>>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let store = Arc::new(EmbeddedStore::open(&Options::new("marks"))?);
    let fence = Fence::new(Arc::clone(&store) as Arc<dyn Store>, 16 << 20);
    if !store.was_clean() {
        // What a crash left running may still be writing.
        fence.hold("objects", store.opened_at() + SETTLE);
    }

    let mut policy = Policy::new("objects", KeyRules::single("objects", "{id}")?);
    policy.drain.settle = SETTLE;
    let routes = RouteLayer::fixed([(RouteMatcher::new("/objects/{id}")?, policy)]);

    let fenced = ServiceBuilder::new()
        // What the others refuse becomes a response.
        .layer(RespondLayer)
        // Which key a request touches.
        .layer(routes)
        // Which token it carries.
        .layer(ClaimLayer)
        // Compared, made durable, drained: admitted.
        .layer(FenceLayer::new(fence.clone()))
        // In flight until the response has ended.
        .layer(SendLayer);
    let app = Router::new()
        .route("/objects/{id}", get(read).put(write))
        .with_state(Objects::default())
        .layer(fenced);

    let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    axum::serve(listener, app)
        .with_graceful_shutdown(async {
            // Without a signal handler it runs until it is killed.
            let _ = tokio::signal::ctrl_c().await;
        })
        .await?;

    // Only what is known to have ended lets the next start go without a hold.
    while !fence.is_quiet() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    store.close(true)?;
    Ok(())
}

async fn read(State(objects): State<Objects>, Path(id): Path<String>) -> Result<Bytes, StatusCode> {
    let objects = objects.lock().unwrap_or_else(PoisonError::into_inner);
    objects.get(&id).cloned().ok_or(StatusCode::NOT_FOUND)
}

async fn write(
    State(objects): State<Objects>,
    Path(id): Path<String>,
    object: Bytes,
) -> StatusCode {
    let mut objects = objects.lock().unwrap_or_else(PoisonError::into_inner);
    objects.insert(id, object);
    StatusCode::NO_CONTENT
}
