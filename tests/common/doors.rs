//! More addresses of one resource, which can be shut and opened while it goes on.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::recorder::Recorder;

/// One address of a resource. Its port stays its own while it is shut.
pub(crate) struct Door {
    recorder: Recorder,
    address: SocketAddr,
    _reserved: socket2::Socket,
    /// Its connections, by their numbers.
    accepted: Arc<Mutex<Vec<u64>>>,
    open: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
}

impl Door {
    /// An address at which nobody listens yet.
    pub(crate) fn shut(recorder: &Recorder) -> Self {
        let reserved = bound("127.0.0.1:0".parse().unwrap());
        let address = reserved.local_addr().unwrap().as_socket().unwrap();
        Self {
            recorder: recorder.beside(),
            address,
            _reserved: reserved,
            accepted: Arc::default(),
            open: None,
        }
    }

    /// One at which the resource is reached.
    pub(crate) fn opened(recorder: &Recorder) -> Self {
        let mut door = Self::shut(recorder);
        door.open();
        door
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn open(&mut self) {
        let socket = bound(self.address);
        socket.listen(128).unwrap();
        let listener = TcpListener::from(socket);
        let stopped = Arc::new(AtomicBool::new(false));
        let (stop, accepted) = (Arc::clone(&stopped), Arc::clone(&self.accepted));
        let recorder = self.recorder.beside();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                // Known before anything of it is logged.
                let mut accepted = accepted.lock().unwrap();
                accepted.push(recorder.serve(Arc::new(stream)));
            }
        });
        self.open = Some((stopped, thread));
    }

    /// Takes no more connections; those that there are stay.
    pub(crate) fn refuse(&mut self) {
        if let Some((stopped, thread)) = self.open.take() {
            stopped.store(true, Ordering::SeqCst);
            drop(TcpStream::connect(self.address));
            thread.join().unwrap();
        }
    }

    /// Takes no more connections, and breaks those that there are.
    pub(crate) fn close(&mut self) {
        self.refuse();
        for connection in &*self.accepted.lock().unwrap() {
            self.recorder.break_off(*connection);
        }
    }

    /// How many requests have come in by it.
    pub(crate) fn count(&self) -> usize {
        let history = self.recorder.history();
        let accepted = self.accepted.lock().unwrap();
        let ours = |connection| accepted.contains(&connection);
        let writes = history.0.iter();
        writes.filter(|write| ours(write.connection)).count()
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.close();
    }
}

/// Several sockets share the port, so that it stays taken while no one of them listens.
fn bound(address: SocketAddr) -> socket2::Socket {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket
}
