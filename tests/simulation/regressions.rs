//! What the simulation has found, each by itself.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use turmoil::net::{TcpListener, TcpStream};

use super::dice::Dice;
use super::gateway;
use super::scenario::Scenario;
use super::world::{TICK, World};

/// A gateway that dies while a write's response is on its way: the end of the client's connection
/// wants a task that drives the response on, and the runtime has no more use for tasks. Its refusal
/// came under the flight's lock, and took that lock again.
#[test]
fn a_runtime_that_ends_while_a_response_is_on_its_way() {
    ends_while_a_response_is_on_its_way(false);
}

/// The same while a newer token waits, so that a task reads the response ahead: dropped, it left
/// the connection open.
#[test]
fn a_runtime_that_ends_while_a_response_is_read_ahead() {
    ends_while_a_response_is_on_its_way(true);
}

fn ends_while_a_response_is_on_its_way(newer: bool) {
    let (done, over) = mpsc::channel();
    std::thread::spawn(move || {
        let world = Arc::new(World::new(Scenario::draw(1)));
        let mut sim = turmoil::Builder::new()
            .rng_seed(1)
            .tick_duration(TICK)
            .max_message_latency(Duration::from_millis(5))
            .build();
        let gateway = Arc::clone(&world);
        sim.host("gateway", move || {
            gateway::live(Arc::clone(&gateway), Dice::new(1, "lives"))
        });
        sim.host("resource", || async {
            let listener = TcpListener::bind("0.0.0.0:9000").await?;
            let (mut stream, _) = listener.accept().await?;
            let _ = stream.read(&mut [0; 4096]).await?;
            let head = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n";
            stream.write_all(head).await?;
            std::future::pending().await
        });
        let (heard, hears) = mpsc::channel();
        sim.client("client", async move {
            let mut stream = TcpStream::connect("gateway:8080").await?;
            let request = "DELETE /objects/k HTTP/1.1\r\nhost: g\r\nfencing-token: 1\r\n\r\n";
            stream.write_all(request.as_bytes()).await?;
            let _ = stream.read(&mut [0; 4096]).await?;
            heard.send(())?;
            std::future::pending().await
        });
        while hears.try_recv().is_err() {
            sim.step().unwrap();
        }
        if newer {
            sim.client("newer", async {
                let mut stream = TcpStream::connect("gateway:8080").await?;
                let request = "DELETE /objects/k HTTP/1.1\r\nhost: g\r\nfencing-token: 2\r\n\r\n";
                stream.write_all(request.as_bytes()).await?;
                std::future::pending().await
            });
            // Far more than it takes to arrive, and less than a response may take.
            for _ in 0..40 {
                sim.step().unwrap();
            }
        }
        world.dies(|| sim.crash("gateway"));
        done.send(world.verdict()).unwrap();
    });
    let in_time = over.recv_timeout(Duration::from_secs(30));
    let wrong = in_time.expect("the gateway's end hangs");
    assert!(wrong.is_empty(), "{wrong:?}");
}
