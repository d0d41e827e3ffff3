//! Load: many writers with rising tokens, some of whom misbehave.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::http::{Connection, Request};
use super::recorder::{Next, Recorder};

/// Numbers that look random and are the same in every run.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// What the resource does to the writes of a storm, by their tags.
pub(crate) fn weather(recorder: &Recorder) {
    recorder.on("slow", |exchange| {
        exchange.works_on(Duration::from_millis(50));
        exchange.read_body()?;
        exchange.work(Duration::from_millis(10));
        exchange.respond(200, "ok")
    });
    recorder.on("reset", |exchange| {
        exchange.read_body()?;
        exchange.work(Duration::from_millis(5));
        Ok(Next::Reset)
    });
    recorder.on("504", |exchange| {
        exchange.read_body()?;
        exchange.send("HTTP/1.1 504 Balancer\r\nContent-Length: 0\r\n\r\n")?;
        exchange.work(Duration::from_millis(50));
        exchange.end();
        Ok(Next::KeepAlive)
    });
    recorder.on("early", |exchange| {
        exchange.works_on(Duration::from_millis(50));
        exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
        exchange.read_body()?;
        Ok(Next::Close)
    });
}

/// Writers that go on until they are told to stop.
pub(crate) struct Storm {
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<()>>,
}

impl Storm {
    /// Starts `writers` threads that write to `keys` keys with tokens from one rising counter,
    /// each a little behind or ahead of the others.
    pub(crate) fn start(
        address: SocketAddr,
        writers: u64,
        keys: u64,
        counter: &Arc<AtomicU64>,
        seed: u64,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let writers = (0..writers)
            .map(|writer| {
                let (stop, counter) = (Arc::clone(&stop), Arc::clone(counter));
                let mut dice = Dice::new(seed * 1000 + writer + 1);
                std::thread::spawn(move || {
                    while !stop.load(Ordering::SeqCst) {
                        let newest = counter.fetch_add(dice.below(2), Ordering::SeqCst);
                        let token = newest.saturating_sub(dice.below(3)).max(1);
                        one_write(address, dice.below(keys), token, &mut dice);
                    }
                })
            })
            .collect();
        Self { stop, writers }
    }

    pub(crate) fn stop(mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for writer in self.writers.drain(..) {
            writer.join().unwrap();
        }
    }
}

fn one_write(address: SocketAddr, key: u64, token: u64, dice: &mut Dice) {
    let Ok(stream) = std::net::TcpStream::connect(address) else {
        // The gateway is being restarted.
        std::thread::sleep(Duration::from_millis(1));
        return;
    };
    let mut client = Connection::over(stream);
    let write = Request::put(&format!("/objects/{key}")).token(token);
    match dice.below(20) {
        0 => {
            client.send(write.tag("left").head(100)).send("half");
            std::thread::sleep(Duration::from_millis(dice.below(5)));
            client.abort();
        }
        1 => {
            client.send(write.tag("slow").whole());
            std::thread::sleep(Duration::from_millis(dice.below(5)));
            client.abort();
        }
        2 => {
            client.send(write.tag("slow").head(8)).send("half");
            std::thread::sleep(Duration::from_millis(dice.below(20)));
            let _ = client.send("half").try_response("PUT");
        }
        3 => drop(client.send(write.tag("reset").whole()).try_response("PUT")),
        4 => drop(client.send(write.tag("504").whole()).try_response("PUT")),
        5 => {
            client.send(write.tag("early").head(8)).send("half");
            let _ = client.send("half").try_response("PUT");
        }
        6..=12 => drop(client.send(write.tag("slow").whole()).try_response("PUT")),
        _ => drop(client.send(write.whole()).try_response("PUT")),
    }
}
