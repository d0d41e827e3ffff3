//! The resource: a server that logs when each write began and ended, and that does to requests what
//! real ones do, as far as the contract lets it: `settle` after the gateway closed a connection it
//! does nothing more for what came on it.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use turmoil::net::TcpListener;

use super::common::parse::{Body, Framing, Head};
use super::common::{Event, Token, Write};
use super::dice::Dice;
use super::wire::Wire;
use super::world::{TICK, World};

/// What it does to one request, once it has it whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// Applies it, and answers.
    Good,
    /// Applies it and answers before the body is there whole, and works on.
    Early,
    /// Answers 504 as a balancer does, and works on.
    GivesUp,
    /// Resets the connection, and works on.
    Resets,
    /// Never answers.
    Silent,
    /// Sends the head, works while the body trickles, and has applied it before the last byte.
    Trickles,
    /// Applies it, and breaks off in the middle of the answer.
    Truncates,
    /// Applies it, answers, and closes the connection without a word.
    Closes,
}

pub(crate) struct Resource {
    world: Arc<World>,
    dice: Mutex<Dice>,
}

impl Resource {
    pub(crate) fn new(world: Arc<World>, dice: Dice) -> Arc<Self> {
        Arc::new(Self {
            world,
            dice: Mutex::new(dice),
        })
    }

    pub(crate) async fn serve(self: Arc<Self>) -> turmoil::Result {
        let listener = TcpListener::bind("0.0.0.0:9000").await?;
        loop {
            let (stream, gateway) = listener.accept().await?;
            let resource = Arc::clone(&self);
            tokio::spawn(async move {
                // That a connection broke is in the log where it matters.
                let _ = resource.connection(Wire::new(stream), gateway).await;
            });
        }
    }

    /// Draws a manner, and how long the work takes.
    fn manner(&self) -> (Manner, Duration, Dice) {
        let rough = self.world.scenario.rough;
        let settle = u64::try_from(self.world.scenario.settle.as_millis()).unwrap();
        let mut dice = self.dice.lock().unwrap();
        // When all is well again, here too.
        let rough = if self.world.is_over() { 0 } else { rough };
        let manner = match dice.percent(rough) {
            false => Manner::Good,
            true => [
                Manner::Good,
                Manner::Early,
                Manner::Early,
                Manner::GivesUp,
                Manner::Resets,
                Manner::Silent,
                Manner::Trickles,
                Manner::Truncates,
                Manner::Closes,
            ][dice.index(9)],
        };
        let long = dice.percent(rough);
        let work = if long {
            dice.ms(0, settle * 2)
        } else {
            dice.ms(0, 15)
        };
        (manner, work, dice.fork())
    }

    async fn connection(self: Arc<Self>, mut wire: Wire, gateway: SocketAddr) -> io::Result<()> {
        loop {
            let head = loop {
                if let Some(head) = wire.head() {
                    break head;
                }
                self.fill(&mut wire, gateway).await?;
            };
            if !self.request(&mut wire, gateway, head).await? {
                return Ok(());
            }
        }
    }

    /// Reads on, unless the connection has been closed for so long that no packet of it can be
    /// under way any more.
    async fn fill(&self, wire: &mut Wire, gateway: SocketAddr) -> io::Result<()> {
        loop {
            let filled = tokio::time::timeout(TICK, wire.fill()).await;
            let limit = self.world.limit(gateway);
            if limit.is_some_and(|limit| self.world.now() >= limit) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            if let Ok(filled) = filled {
                return filled;
            }
        }
    }

    /// One request; `false` where the connection is done.
    async fn request(
        self: &Arc<Self>,
        wire: &mut Wire,
        gateway: SocketAddr,
        head: Head,
    ) -> io::Result<bool> {
        let world = &self.world;
        let (write, keys) = record(&head, gateway);
        let (tag, safe) = (write.tag.clone(), write.safe);
        let ids = world.begin(&write, &keys);
        let (manner, work, mut dice) = self.manner();
        let token = write.token.map(|token| token.to_string());
        world.log(format!(
            "resource {tag} {token:?} {keys:?} begins, {manner:?} {work:?}"
        ));
        let (mut body, mut bytes) = (Body::new(head.framing()), Vec::new());
        if body.framing() == Framing::None {
            body = Body::new(Framing::Length(0));
        }
        let mut answered = false;
        loop {
            wire.feed(&mut body, &mut bytes)?;
            if body.done {
                break;
            }
            if manner == Manner::Early && !answered {
                world.change(&ids, |write, event| write.body_done = Some(event));
                answered = true;
                world.seen(&tag, |seen| (seen.early, seen.answered) = (true, Some(200)));
                wire.send(response(200, &tag, "")).await?;
            }
            if let Err(error) = self.fill(wire, gateway).await {
                self.broke(&ids, &tag, gateway, work);
                return Err(error);
            }
        }
        if !answered {
            world.change(&ids, |write, event| write.body_done = Some(event));
        }
        let works_on = |work| self.work_on(&ids, &tag, gateway, work, true);
        match manner {
            Manner::Early if answered => {
                // The gateway had handed it over whole, so the answer counts: it was the end.
                world.change(&ids, |write, _| write.ended = write.body_done);
                return Ok(false);
            }
            Manner::Resets => {
                works_on(work);
                return Ok(false);
            }
            Manner::GivesUp => {
                world.seen(&tag, |seen| seen.answered = Some(504));
                works_on(work);
                wire.send(response(504, &tag, "")).await?;
                return Ok(true);
            }
            Manner::Trickles => {
                world.seen(&tag, |seen| seen.answered = Some(200));
                let answer = response(200, &tag, "");
                let (begin, end) = answer.split_at(answer.len() - 1);
                wire.send(begin).await?;
                self.work(&ids, &tag, gateway, work, true).await;
                tokio::time::sleep(dice.ms(0, 20)).await;
                wire.send(end).await?;
                return Ok(true);
            }
            Manner::Good | Manner::Early | Manner::Silent | Manner::Truncates | Manner::Closes => {}
        }
        self.work(&ids, &tag, gateway, work, true).await;
        let well = safe || world.is_over() || dice.percent(90);
        let status = if well { 200 } else { 500 };
        match manner {
            Manner::Silent => loop {
                self.fill(wire, gateway).await?;
            },
            Manner::Truncates => {
                let head = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nbroken";
                wire.send(head).await?;
                return Ok(false);
            }
            _ => {}
        }
        world.seen(&tag, |seen| seen.answered = Some(status));
        let says = dice.percent(50) && manner == Manner::Closes;
        let field = if says { "connection: close\r\n" } else { "" };
        wire.send(response(status, &tag, field)).await?;
        Ok(manner != Manner::Closes)
    }

    /// The body never came whole.
    fn broke(self: &Arc<Self>, ids: &[usize], tag: &str, gateway: SocketAddr, work: Duration) {
        self.world.log(format!("resource {tag} broke"));
        self.world
            .change(ids, |write, event| write.broke = Some(event));
        if self.world.scenario.discards_incomplete {
            // It has never acted on it and never will: it is no write, and what is left of it may
            // come late. That it came at all had to wait for older ones.
            self.world.change(ids, |write, _| {
                write.safe = true;
                write.ended = Some(write.began);
            });
        } else {
            self.work_on(ids, tag, gateway, work, false);
        }
    }

    fn work_on(
        self: &Arc<Self>,
        ids: &[usize],
        tag: &str,
        gateway: SocketAddr,
        work: Duration,
        applies: bool,
    ) {
        let (resource, ids, tag) = (Arc::clone(self), ids.to_vec(), tag.to_owned());
        tokio::spawn(async move { resource.work(&ids, &tag, gateway, work, applies).await });
    }

    /// Works on a request, at most until the contract has it end, and logs the end.
    async fn work(
        &self,
        ids: &[usize],
        tag: &str,
        gateway: SocketAddr,
        work: Duration,
        applies: bool,
    ) {
        let world = &self.world;
        let planned = world.now() + work;
        loop {
            let limit = world.limit(gateway).unwrap_or(planned);
            if world.now() >= planned.min(limit) {
                break;
            }
            tokio::time::sleep(TICK).await;
        }
        world.log(format!("resource {tag} ends, applied {applies}"));
        world.seen(tag, |seen| seen.applied |= applies);
        world.change(ids, |write, event| write.ended = Some(event));
    }
}

fn response(status: u16, tag: &str, field: &str) -> String {
    let length = tag.len();
    format!("HTTP/1.1 {status} Said\r\n{field}content-length: {length}\r\n\r\n{tag}")
}

/// What a head says, and the keys that it touches.
fn record(head: &Head, gateway: SocketAddr) -> (Write, Vec<String>) {
    let mut line = head.line.split(' ');
    let method = line.next().unwrap_or_default().to_owned();
    let target = line.next().unwrap_or_default().to_owned();
    let mut parts = target.trim_start_matches('/').split('/').map(str::to_owned);
    parts.next();
    let keys = parts.collect();
    // Set anew where it is entered.
    let began = Event {
        order: 0,
        at: Instant::now(),
    };
    let write = Write {
        key: String::new(),
        tag: head.get("x-tag").unwrap_or_default().to_owned(),
        token: head.get("fencing-token").and_then(Token::parse),
        safe: method == "GET",
        method,
        connection: u64::from(gateway.port()),
        fields: Vec::new(),
        target,
        body: Vec::new(),
        trailers: Vec::new(),
        began,
        body_done: None,
        broke: None,
        ended: None,
    };
    (write, keys)
}
