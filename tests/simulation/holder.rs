//! Clients: holders of locks, who stall past their leases, retry, give up and come back as zombies.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use turmoil::net::TcpStream;

use super::dice::Dice;
use super::http2::Shared;
use super::scenario::KEYS;
use super::wire::Wire;
use super::world::{Answer, World};

pub(crate) struct Holder {
    world: Arc<World>,
    dice: Dice,
    link: Link,
    /// Tokens that it once had, with their keys.
    old: Vec<(u64, Vec<usize>)>,
}

/// How a holder reaches the gateway.
pub(crate) enum Link {
    /// By HTTP/1, over a connection of its own.
    Http1(Option<Wire>),
    /// By HTTP/2, over one that it shares.
    Http2(Shared),
}

/// What is to be sent.
pub(crate) struct Attempt {
    pub(crate) tag: String,
    pub(crate) method: &'static str,
    pub(crate) target: String,
    pub(crate) token: Option<u64>,
    pub(crate) body: Vec<u8>,
    /// In how many pieces the body is sent; 0: at once with the head.
    pub(crate) chunks: usize,
    pub(crate) gap: Duration,
    /// Gone after so many pieces of the body.
    pub(crate) leaves_after: Option<usize>,
}

/// What came of it.
enum Came {
    Good,
    Stale,
    Other,
}

impl Holder {
    pub(crate) const fn new(world: Arc<World>, dice: Dice, link: Link) -> Self {
        Self {
            world,
            dice,
            link,
            old: Vec::new(),
        }
    }

    /// Works until the chaos is over.
    pub(crate) async fn run(mut self) {
        while !self.world.is_over() {
            let keys = self.keys();
            let lease = self.dice.ms(20, 400);
            let Some(token) = self.world.grant(&keys, lease) else {
                let pause = self.dice.ms(2, 40);
                tokio::time::sleep(pause).await;
                continue;
            };
            let until = self.world.now() + lease;
            self.hold(token, &keys, lease).await;
            if self.dice.percent(70) {
                self.world.release(&keys, until);
            }
            self.old.push((token, keys));
        }
    }

    fn keys(&mut self) -> Vec<usize> {
        let first = self.dice.index(KEYS);
        if self.dice.percent(75) {
            return vec![first];
        }
        vec![first, (first + 1 + self.dice.index(KEYS - 1)) % KEYS]
    }

    async fn hold(&mut self, token: u64, keys: &[usize], lease: Duration) {
        for _ in 0..=self.dice.below(4) {
            if self.world.is_over() {
                return;
            }
            if self.dice.percent(25) {
                let stall = self
                    .dice
                    .below(2 * u64::try_from(lease.as_millis()).unwrap());
                tokio::time::sleep(Duration::from_millis(stall)).await;
            }
            let zombie = self.dice.percent(15) && !self.old.is_empty();
            let (token, keys) = match zombie {
                true => self.old[self.dice.index(self.old.len())].clone(),
                false => (token, keys.to_vec()),
            };
            let mut tries = 1 + self.dice.below(4);
            while tries > 0 && !self.world.is_over() {
                let attempt = self.attempt(token, &keys);
                match self.send(&attempt).await {
                    Came::Good => break,
                    Came::Stale if !zombie => return,
                    Came::Stale => break,
                    Came::Other => tries -= 1,
                }
                let pause = self.dice.ms(0, 60);
                tokio::time::sleep(pause).await;
            }
        }
    }

    fn attempt(&mut self, token: u64, keys: &[usize]) -> Attempt {
        let dice = &mut self.dice;
        let names: Vec<_> = keys.iter().map(|key| format!("k{key}")).collect();
        let kind = if keys.len() > 1 { "pairs" } else { "objects" };
        let method = ["PUT", "PUT", "PUT", "POST", "DELETE", "GET"][dice.index(6)];
        let bare = dice.percent(5);
        let length = match method {
            "DELETE" | "GET" => 0,
            _ if dice.percent(5) => 20_000,
            _ => dice.index(60),
        };
        let chunks = if dice.percent(50) {
            1 + dice.index(5)
        } else {
            0
        };
        let gap = if dice.percent(60) {
            dice.ms(0, 12)
        } else {
            dice.ms(10, 150)
        };
        Attempt {
            tag: self.world.tag(),
            method,
            target: format!("/{kind}/{}", names.join("/")),
            token: (!bare).then_some(token),
            body: vec![b'x'; length],
            chunks: if length == 0 { 0 } else { chunks },
            gap,
            leaves_after: dice.percent(12).then(|| dice.index(5)),
        }
    }

    async fn send(&mut self, attempt: &Attempt) -> Came {
        let patient = self.dice.percent(80);
        let patience = if patient {
            Duration::from_secs(3)
        } else {
            self.dice.ms(5, 300)
        };
        if self.dice.percent(30) {
            self.link.renew();
        }
        let world = Arc::clone(&self.world);
        let Attempt {
            tag, method, token, ..
        } = attempt;
        world.log(format!(
            "client {tag} {method} {} {token:?} by {}",
            attempt.target,
            self.link.protocol()
        ));
        let exchange = self.link.exchange(attempt);
        let exchanged = tokio::time::timeout(patience, exchange).await;
        let Ok(Ok(answer)) = exchanged else {
            world.log(format!("client {tag} got nothing"));
            if patient || exchanged.is_ok() {
                // Nothing may come of it any more, for anybody.
                self.link.renew();
            }
            return Came::Other;
        };
        let Some(answer) = answer else {
            world.log(format!("client {tag} left"));
            return Came::Other;
        };
        let status = answer.status;
        world.answered(answer);
        match status {
            200..300 | 428 => Came::Good,
            409 => Came::Stale,
            _ => Came::Other,
        }
    }
}

impl Link {
    const fn protocol(&self) -> &'static str {
        match self {
            Self::Http1(_) => "HTTP/1",
            Self::Http2(_) => "HTTP/2",
        }
    }

    /// The next request goes over a new connection.
    fn renew(&mut self) {
        match self {
            Self::Http1(wire) => *wire = None,
            Self::Http2(shared) => shared.renew(),
        }
    }

    /// Sends one request and reads its answer; `None` where the client left before.
    async fn exchange(&mut self, attempt: &Attempt) -> io::Result<Option<Answer>> {
        match self {
            Self::Http1(wire) => attempt.exchange(wire).await,
            Self::Http2(shared) => shared.exchange(attempt).await,
        }
    }
}

impl Attempt {
    /// Whether the length of the body is told by its end alone.
    pub(crate) const fn is_chunked(&self) -> bool {
        self.chunks > 0 && self.body.len().is_multiple_of(2)
    }

    /// The body as it is sent.
    pub(crate) fn pieces(&self) -> Vec<&[u8]> {
        let size = self.body.len().div_ceil(self.chunks.max(1)).max(1);
        self.body.chunks(size).collect()
    }

    /// Sends it over what is kept of a connection, and keeps what may carry another.
    async fn exchange(&self, kept: &mut Option<Wire>) -> io::Result<Option<Answer>> {
        let mut wire = match kept.take() {
            Some(wire) => wire,
            None => Wire::new(TcpStream::connect("gateway:8080").await?),
        };
        let Self { method, target, .. } = self;
        let tag = &self.tag;
        let mut head = format!("{method} {target} HTTP/1.1\r\nhost: gateway\r\nx-tag: {tag}\r\n");
        if let Some(token) = self.token {
            head += &format!("fencing-token: {token}\r\n");
        }
        let chunked = self.is_chunked();
        if chunked {
            head += "transfer-encoding: chunked\r\n";
        } else if *method != "GET" {
            head += &format!("content-length: {}\r\n", self.body.len());
        }
        head += "\r\n";
        let mut first = head.into_bytes();
        let mut left = false;
        if self.chunks == 0 {
            first.extend_from_slice(&self.body);
            let _ = wire.send(first).await;
            left = self.leaves_after.is_some();
        } else {
            let _ = wire.send(first).await;
            for (number, piece) in self.pieces().into_iter().enumerate() {
                if self.leaves_after.is_some_and(|after| number >= after) {
                    return Ok(None);
                }
                tokio::time::sleep(self.gap).await;
                let sent = if chunked {
                    let mut bytes = format!("{:x}\r\n", piece.len()).into_bytes();
                    bytes.extend_from_slice(piece);
                    bytes.extend_from_slice(b"\r\n");
                    wire.send(bytes).await
                } else {
                    wire.send(piece).await
                };
                if sent.is_err() {
                    // The answer may have come before.
                    break;
                }
            }
            if chunked {
                let _ = wire.send("0\r\n\r\n").await;
            }
        }
        if left {
            tokio::time::sleep(self.gap).await;
            return Ok(None);
        }
        let (status, head, body) = wire.response().await?;
        let closes = head
            .get("connection")
            .is_some_and(|option| option.eq_ignore_ascii_case("close"));
        if !closes {
            *kept = Some(wire);
        }
        let answer = self.answer(status, |name| head.get(name), &body);
        Ok(Some(answer))
    }

    /// What the oracle is told of its answer.
    pub(crate) fn answer<'a>(
        &self,
        status: u16,
        field: impl Fn(&str) -> Option<&'a str>,
        body: &[u8],
    ) -> Answer {
        Answer {
            tag: self.tag.clone(),
            token: self.token,
            safe: self.method == "GET",
            status,
            outcome: field("fencing-outcome").map(str::to_owned),
            mark: field("fencing-mark").map(str::to_owned),
            body: String::from_utf8_lossy(body).into_owned(),
            over_http2: false,
        }
    }
}

/// When all is well again: on every key the newest token that was granted gets through, and then one
/// that is newer, and one for a pair.
pub(crate) async fn judge(world: Arc<World>, dice: Dice, link: Link) {
    let end = world.now() + world.scenario.liveness;
    let mut holder = Holder::new(Arc::clone(&world), dice, link);
    for key in 0..KEYS {
        if let Some(token) = world.newest(key) {
            holder
                .get_through(token, &[key], end, world.scenario.forgets)
                .await;
        }
    }
    for keys in (0..KEYS).map(|key| vec![key]).chain([vec![0, 1]]) {
        let token = loop {
            match world.grant(&keys, Duration::from_millis(1)) {
                Some(token) => break token,
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        holder.get_through(token, &keys, end, false).await;
    }
}

impl Holder {
    /// Sends until the token gets through. One that nobody has used for a while `may_be_late`: where
    /// marks are forgotten, it is below the floor by then.
    async fn get_through(&mut self, token: u64, keys: &[usize], end: Duration, may_be_late: bool) {
        let world = Arc::clone(&self.world);
        loop {
            let mut attempt = self.attempt(token, keys);
            attempt.method = "PUT";
            attempt.token = Some(token);
            attempt.body = b"judge".to_vec();
            attempt.chunks = 0;
            attempt.leaves_after = None;
            self.link.renew();
            match self.send(&attempt).await {
                Came::Good => return,
                Came::Stale if may_be_late => return,
                Came::Stale => return world.violation(format!("{token} is stale on {keys:?}")),
                Came::Other => tokio::time::sleep(Duration::from_millis(10)).await,
            }
            if world.now() > end {
                return world.violation(format!("{token} does not get through on {keys:?}"));
            }
        }
    }
}
