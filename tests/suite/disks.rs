//! Disks that fill up, fail, or lose what was not synced: file systems made for the test.
//!
//! They need root and, for all but tmpfs, loop devices; where these are missing the tests skip and
//! say so.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::common::{
    Config, Connection, Ended, Gateway, Recorder, Request, Response, Stage, Storm, eventually,
    weather,
};

/// A small file system of its own, gone with the test.
struct Mounted {
    dir: tempfile::TempDir,
    point: PathBuf,
}

fn succeeds(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

impl Mounted {
    fn tmpfs(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let point = dir.path().join("point");
        std::fs::create_dir(&point).unwrap();
        let options = format!("size={size}");
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(&point);
        succeeds(&mut mount).then_some(Self { dir, point })
    }

    /// A journalled file system in a file, whose disk can be made to fail.
    fn ext4() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        let point = dir.path().join("point");
        std::fs::File::create(&image)
            .unwrap()
            .set_len(256 << 20)
            .unwrap();
        std::fs::create_dir(&point).unwrap();
        let made = succeeds(Command::new("mkfs.ext4").arg("-q").arg(&image));
        let disk = Self { dir, point };
        (made && disk.mount_image()).then_some(disk)
    }

    fn mount_image(&self) -> bool {
        succeeds(&mut self.mounting())
    }

    fn mounting(&self) -> Command {
        let image = self.dir.path().join("image");
        let mut mount = Command::new("mount");
        mount.args(["-o", "loop"]).arg(image).arg(&self.point);
        mount
    }

    /// Cuts the disk off at once, as the loss of power does: what was not synced is gone.
    fn lose_power(&self) -> bool {
        const SHUTDOWN: &str = "
import fcntl, os, struct, sys
EXT4_IOC_SHUTDOWN, NOLOGFLUSH = 0x8004587D, 2
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), EXT4_IOC_SHUTDOWN, struct.pack('I', NOLOGFLUSH))
";
        succeeds(
            Command::new("python3")
                .args(["-c", SHUTDOWN])
                .arg(&self.point),
        )
    }

    /// Makes the file system read-only under those who have files open in it.
    fn become_read_only(&self) -> bool {
        succeeds(
            Command::new("mount")
                .args(["-o", "remount,abort"])
                .arg(&self.point),
        )
    }

    /// Mounts it again, as a machine does that boots.
    fn boot(&self) {
        eventually("the file system is let go of", || {
            succeeds(Command::new("umount").arg(&self.point)).then_some(())
        });
        // The loop device of before is taken apart behind the call that unmounts it, and until then
        // the image is in use.
        let mut said = None;
        for _ in 0..100 {
            let mounted = self.mounting().output().unwrap();
            if mounted.status.success() {
                return;
            }
            said = Some(mounted);
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("the file system can't be mounted again: {said:?}");
    }

    fn store(&self) -> PathBuf {
        self.point.join("store")
    }

    fn config(&self, recorder: &Recorder) -> Config {
        Config::new(&recorder.url())
            .settle("200ms")
            .set("store.path", self.store().to_str().unwrap())
    }

    fn fill(&self) -> PathBuf {
        let ballast = self.point.join("ballast");
        let mut file = std::fs::File::create(&ballast).unwrap();
        let piece = vec![1; 4096];
        while std::io::Write::write_all(&mut file, &piece).is_ok() {}
        ballast
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if !succeeds(Command::new("umount").arg(&self.point)) {
            succeeds(Command::new("umount").arg("-l").arg(&self.point));
        }
    }
}

// D6 C15
#[test]
fn a_full_disk_refuses_advances_and_recovers_with_room() {
    let Some(disk) = Mounted::tmpfs("160m") else {
        println!("skipped: a file system of its own needs root");
        return;
    };
    let recorder = Recorder::start();
    let config = disk.config(&recorder);
    // Sixteen keys in one request fill the log sixteen times as fast.
    let keys: Vec<_> = (0..16)
        .map(|part| serde_json::json!({ "key": format!("{{id}}-{part}") }))
        .collect();
    let bulk = serde_json::json!({
        "name": "bulk", "path": "/bulk/{id}", "upstream": "objects", "fence": { "keys": keys },
    });
    let config = config.route(bulk);
    let mut gateway = Gateway::start(config.clone());
    let write = |gateway: &Gateway, key: u64, token: u64| {
        let request = Request::put(&format!("/objects/{key}")).token(token);
        request.send(gateway.http)
    };
    write(&gateway, 0, 34).assert_ok("with room");
    let ballast = disk.fill();

    // Room that the store holds in reserve is used up first, by many writers at once.
    let (sender, refused) = std::sync::mpsc::channel();
    for writer in 0..16 {
        let (address, sender) = (gateway.http, sender.clone());
        std::thread::spawn(move || {
            let mut client = Connection::open(address);
            for key in 0.. {
                let target = format!("/bulk/{writer}-{key}-{}", "k".repeat(950));
                client.send(Request::put(&target).token(1).whole());
                match client.try_response("PUT") {
                    Ok(answer) if answer.status == 200 => {}
                    Ok(answer) => return drop(sender.send((target, answer))),
                    Err(_) => return,
                }
            }
        });
    }
    drop(sender);
    let (target, answer) = refused
        .recv_timeout(Duration::from_secs(120))
        .expect("an advance finds no room");
    answer.assert_fenced(503, "store-unavailable", "G4: closed on failure");
    let forwarded = recorder.history();
    assert!(
        forwarded.0.iter().all(|write| write.key != target),
        "what could not be made durable is not forwarded"
    );
    write(&gateway, 0, 33).assert_fenced(409, "stale-token", "stale tokens are still refused");

    std::fs::remove_file(ballast).unwrap();
    let recovered = eventually("the gateway commits again, or has stopped", || {
        let Ok(stream) = std::net::TcpStream::connect(gateway.http) else {
            return Some(false);
        };
        let mut client = Connection::over(stream);
        client.send(Request::put(&target).token(1).whole());
        match client.try_response("PUT") {
            Ok(answer) if answer.status == 200 => Some(true),
            Ok(_) => None,
            Err(_) => Some(false),
        }
    });
    if !recovered {
        let status = gateway.wait();
        assert!(!status.success(), "a store that gave up stops the process");
        gateway.restart_as(config);
    }
    write(&gateway, 0, 35).assert_ok("an advance once there is room");
    write(&gateway, 0, 34).assert_fenced(409, "stale-token", "after it");
    recorder.history().assert_ordered();
}

#[test]
fn a_store_on_tmpfs_is_warned_of() {
    let Some(disk) = Mounted::tmpfs("160m") else {
        println!("skipped: a file system of its own needs root");
        return;
    };
    let gateway = Gateway::start(disk.config(&Recorder::start()));
    gateway.says("tmpfs");
}

/// Sends a write to a gateway that may be gone.
fn try_write(gateway: &Gateway, key: u64, token: u64) -> Result<Response, Ended> {
    let Ok(stream) = std::net::TcpStream::connect(gateway.http) else {
        return Err(Ended::Closed);
    };
    let mut client = Connection::over(stream);
    client.send(
        Request::put(&format!("/objects/{key}"))
            .token(token)
            .whole(),
    );
    client.try_response("PUT")
}

/// Asserts that a disk that has failed admits no advance, and that the process gives up.
fn assert_stops(gateway: &mut Gateway, recorder: &Recorder) {
    let forwarded = recorder.count();
    for token in 35..40 {
        if let Ok(answer) = try_write(gateway, 0, token) {
            answer.assert_fenced(503, "store-unavailable", "G4: closed on failure");
        }
        if let Ok(answer) = try_write(gateway, 0, 33) {
            assert!(
                [409, 503].contains(&answer.status),
                "a stale token is still refused: {answer:?}"
            );
        }
    }
    assert_eq!(recorder.count(), forwarded, "nothing is passed unchecked");
    let status = gateway.wait();
    assert!(!status.success(), "a failed sync is final: {status}");
}

// D7 D8
#[test]
fn a_disk_that_fails_stops_the_gateway() {
    let Some(disk) = Mounted::ext4() else {
        println!("skipped: a file system of its own needs root and loop devices");
        return;
    };
    let recorder = Recorder::start();
    let mut gateway = Gateway::start(disk.config(&recorder));
    try_write(&gateway, 0, 34)
        .unwrap()
        .assert_ok("while the disk works");
    if !disk.lose_power() {
        println!("skipped: the file system can't be shut down here");
        return;
    }
    assert_stops(&mut gateway, &recorder);
    disk.boot();
    gateway.restart();
    try_write(&gateway, 0, 33)
        .unwrap()
        .assert_fenced(409, "stale-token", "after the disk is back");
    recorder.history().assert_ordered();
}

// D9
#[test]
fn a_file_system_that_turns_read_only_stops_advances() {
    let Some(disk) = Mounted::ext4() else {
        println!("skipped: a file system of its own needs root and loop devices");
        return;
    };
    let recorder = Recorder::start();
    let gateway = Gateway::start(disk.config(&recorder));
    try_write(&gateway, 0, 34)
        .unwrap()
        .assert_ok("while it can be written");
    if !disk.become_read_only() {
        println!("skipped: the file system can't be made read-only here");
        return;
    }
    let forwarded = recorder.count();
    for token in 35..40 {
        if let Ok(answer) = try_write(&gateway, 0, token) {
            answer.assert_fenced(503, "store-unavailable", "G4: closed on failure");
        }
        if let Ok(answer) = try_write(&gateway, 0, 33) {
            assert!(
                [409, 503].contains(&answer.status),
                "stale is refused: {answer:?}"
            );
        }
    }
    assert_eq!(recorder.count(), forwarded, "nothing is passed unchecked");
}

/// Everything that writes to the disk stands still for as long as this lives.
struct Frozen<'a>(&'a Mounted);

impl Frozen<'_> {
    fn new(disk: &Mounted) -> Option<Frozen<'_>> {
        let mut freeze = Command::new("fsfreeze");
        succeeds(freeze.arg("-f").arg(&disk.point)).then_some(Frozen(disk))
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        succeeds(Command::new("fsfreeze").arg("-u").arg(&self.0.point));
    }
}

// D16
#[test]
fn a_disk_that_stands_still_delays_advances_only() {
    let Some(disk) = Mounted::ext4() else {
        println!("skipped: a file system of its own needs root and loop devices");
        return;
    };
    let recorder = Recorder::start();
    let plain = serde_json::json!({
        "name": "plain", "path": "/plain/{id}", "upstream": "objects",
        "fence": { "require": "never" },
    });
    let gateway = Gateway::start(disk.config(&recorder).route(plain));
    try_write(&gateway, 0, 34)
        .unwrap()
        .assert_ok("while the disk works");
    let Some(frozen) = Frozen::new(&disk) else {
        println!("skipped: the file system can't be frozen here");
        return;
    };
    let advance = Request::put("/objects/0").token(35).tag("advance");
    let advance = advance.spawn(gateway.http);
    gateway.wait_key("objects/0", "waiting", 1);
    let other = Request::put("/objects/1")
        .token(1)
        .tag("other")
        .spawn(gateway.http);
    for _ in 0..20 {
        try_write(&gateway, 0, 34).unwrap().assert_fenced(
            409,
            "stale-token",
            "refused from memory",
        );
        let plain = Request::put("/plain/1").send(gateway.http);
        plain.assert_ok("a route that needs no mark");
    }
    let history = recorder.history();
    assert!(
        history.tagged("advance").is_empty() && history.tagged("other").is_empty(),
        "G3: nothing is forwarded before its mark is durable"
    );
    drop(frozen);
    advance
        .join()
        .unwrap()
        .assert_ok("the advance, once the disk is back");
    other.join().unwrap().assert_ok("another key's advance");
    recorder.history().assert_ordered();
}

// D2 D11
#[test]
fn the_loss_of_power_loses_no_mark_that_was_forwarded() {
    let Some(disk) = Mounted::ext4() else {
        println!("skipped: a file system of its own needs root and loop devices");
        return;
    };
    let recorder = Recorder::start();
    weather(&recorder);
    // The resource works on for 50 ms, and a busy machine holds its threads up for longer.
    let gateway = Gateway::start(disk.config(&recorder).settle("1s"));
    let mut stage = Stage { gateway, recorder };
    let counter = Arc::new(AtomicU64::new(1));
    for round in 1..=4 {
        let keys = if round % 2 == 0 { 12 } else { 100_000 };
        let storm = Storm::start(stage.http(), 12, keys, &counter, round);
        let enough = stage.recorder.count() + 150;
        eventually("some writes reach the resource", || {
            (stage.recorder.count() >= enough).then_some(())
        });
        let lost = disk.lose_power();
        stage.gateway.kill();
        storm.stop();
        if !lost {
            println!("skipped: the file system can't be shut down here");
            return;
        }
        disk.boot();
        stage.gateway.restart();
        stage.assert_marks_hold();
    }
    stage.recorder.history().assert_ordered();
}
