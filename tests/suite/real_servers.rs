//! The story of the stalled holder, with real programs: nginx's WebDAV as the legacy store, curl
//! and Python's http.client as the writers.
//!
//! A holds the lock with token 33, starts a slow upload, and stalls. B gets the lock with token 34
//! and writes. A wakes and sends the rest. A's bytes must never become the file.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use crate::common::{Config, Gateway, eventually, skip};

/// nginx with WebDAV over a directory of its own.
struct Nginx {
    child: Child,
    address: SocketAddr,
    dir: tempfile::TempDir,
}

impl Nginx {
    /// `None`, and a word about it, where the programs of these tests are not installed.
    fn start() -> Option<Self> {
        for program in [["nginx", "-v"], ["curl", "-V"], ["python3", "-V"]] {
            let found = Command::new(program[0]).arg(program[1]).output();
            if !found.is_ok_and(|output| output.status.success()) {
                skip(&format!("{} is not installed", program[0]));
                return None;
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().display().to_string();
        std::fs::create_dir_all(dir.path().join("files/objects")).unwrap();
        std::fs::create_dir(dir.path().join("body")).unwrap();
        // A port that was free a moment ago; nginx can't say which one it took.
        let address = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let user = if rustix::process::getuid().is_root() {
            "user root;"
        } else {
            ""
        };
        let config = format!(
            "daemon off; master_process off; {user} pid {root}/pid; error_log {root}/error.log;
             events {{ worker_connections 64; }}
             http {{
               access_log off; client_body_temp_path {root}/body; proxy_temp_path {root}/proxy;
               fastcgi_temp_path {root}/f; uwsgi_temp_path {root}/u; scgi_temp_path {root}/s;
               server {{
                 listen {address}; root {root}/files; client_max_body_size 0;
                 location / {{ dav_methods PUT DELETE MKCOL COPY MOVE; }}
               }}
             }}"
        );
        let file = dir.path().join("nginx.conf");
        std::fs::write(&file, config).unwrap();
        let child = Command::new("nginx")
            .args(["-p", &root, "-e", &format!("{root}/error.log"), "-c"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let nginx = Self {
            child,
            address,
            dir,
        };
        eventually("nginx listens", || TcpStream::connect(address).ok());
        Some(nginx)
    }

    fn gateway(&self) -> Gateway {
        Gateway::start(Config::new(&format!("http://{}", self.address)).settle("1s"))
    }

    /// What the file holds.
    fn file(&self) -> String {
        let path = self.dir.path().join("files/objects/report");
        std::fs::read_to_string(path).unwrap_or_default()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A writer that is told from outside when to send the rest.
struct Writer {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Writer {
    /// curl, that uploads what it reads from its standard input.
    fn curl(address: SocketAddr, token: u64, out: &Path) -> Self {
        Self::spawn(
            Command::new("curl")
                .args(["-sS", "-N", "-X", "PUT", "-T", "-", "-o"])
                .arg(out)
                .args(["-w", "%{http_code}\n", "-H"])
                .arg(format!("Fencing-Token: {token}"))
                .arg(format!("http://{address}/objects/report")),
        )
    }

    /// Python, that sends a head for all of it and then every line as it comes.
    fn python(address: SocketAddr, token: u64, length: usize) -> Self {
        const SCRIPT: &str = "
import http.client, sys
host, token, length = sys.argv[1:]
conn = http.client.HTTPConnection(host)
conn.putrequest('PUT', '/objects/report')
conn.putheader('Fencing-Token', token)
conn.putheader('Content-Length', length)
conn.endheaders()
try:
    for line in sys.stdin:
        conn.send(line.encode())
except OSError:
    pass
try:
    print(conn.getresponse().status)
except (OSError, http.client.HTTPException) as error:
    print('000', error)
";
        Self::spawn(
            Command::new("python3")
                .args(["-c", SCRIPT])
                .arg(address.to_string())
                .arg(token.to_string())
                .arg(length.to_string()),
        )
    }

    fn spawn(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take();
        Self { child, stdin }
    }

    fn send(&mut self, text: &str) {
        // It may have ended already: it was told why.
        let stdin = self.stdin.as_mut().unwrap();
        let _ = stdin
            .write_all(text.as_bytes())
            .and_then(|()| stdin.flush());
    }

    /// Sends the rest and says with which status it was answered; 0 for none.
    fn finish(mut self, text: &str) -> u16 {
        self.send(text);
        drop(self.stdin.take());
        let mut line = String::new();
        let mut output = BufReader::new(self.child.stdout.take().unwrap());
        output.read_line(&mut line).unwrap();
        let _ = output.read_to_string(&mut String::new());
        self.child.wait().unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const HALF: &str = "A: the first half of an old report\n";
const REST: &str = "A: and its second half\n";
const NEW: &str = "B: the new report\n";

/// The two kinds of writers.
#[derive(Clone, Copy)]
enum Kind {
    Curl,
    Python,
}

impl Kind {
    fn start(self, address: SocketAddr, token: u64, length: usize, dir: &Path) -> Writer {
        match self {
            Self::Curl => Writer::curl(address, token, &dir.join(format!("answer-{token}"))),
            Self::Python => Writer::python(address, token, length),
        }
    }

    fn write(self, address: SocketAddr, token: u64, text: &str, dir: &Path) -> u16 {
        self.start(address, token, text.len(), dir).finish(text)
    }

    /// Starts A's upload, and waits until the gateway has forwarded the beginning of it.
    fn stall(self, nginx: &Nginx, gateway: &Gateway) -> Writer {
        let length = HALF.len() + REST.len();
        let mut writer = self.start(gateway.http, 33, length, nginx.dir.path());
        writer.send(HALF);
        gateway.wait_key("objects/report", "in_flight", 1);
        writer
    }
}

/// Without a gateway the race is real: this is what the fence is for.
#[test]
fn without_the_fence_the_stalled_holder_overwrites_newer_work() {
    let Some(nginx) = Nginx::start() else { return };
    let dir = nginx.dir.path();
    let length = HALF.len() + REST.len();
    let mut a = Kind::Python.start(nginx.address, 33, length, dir);
    a.send(HALF);
    assert_eq!(
        Kind::Curl.write(nginx.address, 34, NEW, dir),
        201,
        "B writes"
    );
    assert_eq!(a.finish(REST), 204, "A wakes");
    assert_eq!(
        nginx.file(),
        format!("{HALF}{REST}"),
        "and B's work is gone"
    );
}

fn stalled_holder(kind: Kind) {
    let Some(nginx) = Nginx::start() else { return };
    let gateway = nginx.gateway();
    let a = kind.stall(&nginx, &gateway);
    let status = kind.write(gateway.http, 34, NEW, nginx.dir.path());
    assert_eq!(
        status, 201,
        "B's write is admitted once A's is cut and settled"
    );
    assert_eq!(nginx.file(), NEW, "B's bytes are the file");
    let status = a.finish(REST);
    assert!([409, 0].contains(&status), "A is refused: {status}");
    assert_eq!(nginx.file(), NEW, "A's bytes never become the file");
    let again = kind.write(gateway.http, 33, &format!("{HALF}{REST}"), nginx.dir.path());
    assert_eq!(again, 409, "nor when it tries again");
    assert_eq!(nginx.file(), NEW);
}

#[test]
fn a_stalled_curl_never_overwrites_newer_work() {
    stalled_holder(Kind::Curl);
}

#[test]
fn a_stalled_python_writer_never_overwrites_newer_work() {
    stalled_holder(Kind::Python);
}

fn stalled_holder_and_a_crash(kind: Kind) {
    let Some(nginx) = Nginx::start() else { return };
    let dir = nginx.dir.path();
    let whole = format!("{HALF}{REST}");

    // The gateway dies while A stalls, before B has come.
    let mut gateway = nginx.gateway();
    let a = kind.stall(&nginx, &gateway);
    gateway.kill();
    gateway.restart_on_same_ports();
    assert_eq!(
        kind.write(gateway.http, 34, NEW, dir),
        201,
        "B writes after the hold"
    );
    let status = a.finish(REST);
    assert!(
        ![200, 201, 204].contains(&status),
        "A's upload is not completed: {status}"
    );
    assert_eq!(nginx.file(), NEW, "A's bytes never become the file");
    assert_eq!(
        kind.write(gateway.http, 33, &whole, dir),
        409,
        "A tries again"
    );

    // The gateway dies after B has written: the mark is not forgotten.
    gateway.kill();
    gateway.restart_on_same_ports();
    assert_eq!(
        kind.write(gateway.http, 33, &whole, dir),
        409,
        "A tries after the crash"
    );
    assert_eq!(nginx.file(), NEW, "B's bytes are the file");
    assert_eq!(
        kind.write(gateway.http, 34, "B: more\n", dir),
        204,
        "B goes on"
    );
    assert_eq!(nginx.file(), "B: more\n");
}

#[test]
fn a_stalled_curl_is_kept_out_across_a_crash_of_the_gateway() {
    stalled_holder_and_a_crash(Kind::Curl);
}

#[test]
fn a_stalled_python_writer_is_kept_out_across_a_crash_of_the_gateway() {
    stalled_holder_and_a_crash(Kind::Python);
}
