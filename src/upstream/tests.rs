//! Connections that are kept, in paused time.

use tokio::time::advance;

use super::*;

/// An upstream in this process with one address, which has a name or has not; its other ends stay
/// open.
fn upstream(named: bool) -> Upstream {
    let config = config::Upstream {
        urls: Vec::new(),
        http2: false,
        connect_timeout: Duration::from_secs(5),
        timeout: Duration::from_secs(60),
        settle: Duration::from_secs(15),
        discards_incomplete: false,
        unknown_statuses: BTreeSet::new(),
        rewrite_destination: false,
        headers: Vec::new(),
        tls: None,
        pool: config::Pool {
            max_idle: 8,
            idle_timeout: Duration::from_secs(600),
        },
        preserve_header_case: false,
        health: None,
    };
    let ends = Mutex::new(Vec::new());
    let accept = move |end| ends.lock().unwrap().push(end);
    let address = Address::Builtin(Arc::new(accept));
    let mut upstream = Upstream::new("objects", &config, vec![("here".to_owned(), address)], 1);
    if named {
        upstream.places[0].name = Some(Name::new("storage"));
    }
    enter_worker(0);
    upstream
}

async fn seconds(count: u64) {
    advance(Duration::from_secs(count)).await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_to_a_name_is_used_for_a_minute_idle_or_not() {
    let upstream = upstream(true);
    let conn = upstream.connect(Turn::only()).await.unwrap();
    seconds(50).await;
    upstream.keep(conn);
    seconds(9).await;
    let conn = upstream
        .kept(&Turn::only())
        .expect("it is not a minute yet");
    upstream.keep(conn);
    seconds(1).await;
    assert!(upstream.kept(&Turn::only()).is_none(), "it was idle");

    let conn = upstream.connect(Turn::only()).await.unwrap();
    seconds(60).await;
    upstream.keep(conn);
    assert!(upstream.kept(&Turn::only()).is_none(), "it was busy");
}

#[tokio::test(start_paused = true)]
async fn one_that_nobody_takes_is_closed_after_a_minute() {
    let upstream = upstream(true);
    let conn = upstream.connect(Turn::only()).await.unwrap();
    seconds(50).await;
    upstream.keep(conn);
    let kept = || upstream.places[0].idle[0].lock().unwrap().len();
    upstream.reap();
    assert_eq!(kept(), 1);
    seconds(10).await;
    upstream.reap();
    assert_eq!(kept(), 0);
}

#[tokio::test(start_paused = true)]
async fn one_to_an_address_is_used_for_as_long_as_it_is_not_idle_for_too_long() {
    let upstream = upstream(false);
    let conn = upstream.connect(Turn::only()).await.unwrap();
    seconds(3_600).await;
    upstream.keep(conn);
    seconds(599).await;
    let conn = upstream.kept(&Turn::only()).expect("it is an address");
    upstream.keep(conn);
    seconds(600).await;
    assert!(upstream.kept(&Turn::only()).is_none());
}
