//! Marks outlive the process: crashes, full disks, damage, and two processes at once.

use std::path::{Path, PathBuf};

use crate::common::{Config, Dice, Gateway, Recorder, Request, Stage, run};

#[test]
fn a_restart_still_refuses_what_was_stale() {
    let mut stage = Stage::with(|config| config.settle("100ms"));
    for (round, token) in ["34", "35", "7.1", "7.2"].into_iter().enumerate() {
        stage.raise("/objects/42", token);
        if round % 2 == 0 {
            stage.gateway.kill();
        } else {
            assert!(stage.gateway.terminate().success());
        }
        stage.gateway.restart();
        assert_eq!(stage.mark("objects/42").as_deref(), Some(token));
        stage
            .send(&Request::put("/objects/42").token(33))
            .assert_fenced(409, "stale-token", "after a restart");
    }
    stage.recorder.history().assert_ordered();
}

// D12
#[test]
fn a_second_process_on_one_store_names_the_first() {
    let stage = Stage::at_34();
    let config = Config::new(&stage.recorder.url());
    let failed = Gateway::fails(config, &stage.gateway.store());
    assert!(!failed.status.success(), "the second one exits");
    let pid = stage.gateway.pid().to_string();
    assert!(
        failed.errors.contains(&pid),
        "and names the first by its pid {pid}: {}",
        failed.errors
    );
    stage.raise("/objects/42", "35");
}

// D13
#[test]
fn a_store_that_must_exist_is_not_made() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config::new("http://127.0.0.1:1").set("store.require_existing", true);
    let missing = dir.path().join("missing");
    let failed = Gateway::fails(config.clone(), &missing);
    assert!(!failed.status.success());
    assert!(
        failed.errors.contains("missing"),
        "it says which directory: {}",
        failed.errors
    );
    let empty = dir.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    assert!(
        !Gateway::fails(config, &empty).status.success(),
        "an empty one is amnesia too"
    );
}

// D13
#[test]
fn a_store_that_must_exist_and_does_is_used() {
    let mut stage = Stage::at_34();
    assert!(stage.gateway.terminate().success());
    let config = Config::new(&stage.recorder.url()).set("store.require_existing", true);
    stage.gateway.restart_as(config);
    assert_eq!(stage.mark("objects/42").as_deref(), Some("34"));
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn copy(from: &Path, to: &Path) {
    for file in files(from) {
        let target = to.join(file.strip_prefix(from).unwrap());
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::copy(&file, &target).unwrap();
    }
}

// D4
#[test]
fn a_flipped_bit_is_never_a_lower_mark() {
    let mut stage = Stage::new();
    for token in [33, 34] {
        for key in 0..40 {
            stage.raise(&format!("/objects/{key}"), &token.to_string());
        }
    }
    stage.gateway.kill();
    let good = tempfile::tempdir().unwrap();
    copy(&stage.gateway.store(), good.path());
    let mut dice = Dice::new(4);
    let (mut refused, mut served) = (0, 0);
    for _ in 0..25 {
        let damaged = stage.gateway.store();
        std::fs::remove_dir_all(&damaged).unwrap();
        copy(good.path(), &damaged);
        let all = files(&damaged);
        // A byte that is written, in a file that has any: zeros behind the end say nothing.
        let (file, mut bytes, at) = loop {
            let file = &all[usize::try_from(dice.below(all.len() as u64)).unwrap()];
            let bytes = std::fs::read(file).unwrap();
            let used = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0) as u64;
            if used > 0 {
                break (file, bytes, usize::try_from(dice.below(used)).unwrap());
            }
        };
        bytes[at] ^= 1 << dice.below(8);
        std::fs::write(file, &bytes).unwrap();
        let config = Config::new(&stage.recorder.url()).settle("100ms");
        match stage.gateway.try_restart_as(config) {
            Err(failed) => {
                refused += 1;
                assert!(
                    !failed.errors.is_empty() && !failed.errors.contains("panicked"),
                    "it says what is damaged: {failed:?}"
                );
            }
            Ok(()) => {
                served += 1;
                for key in 0..40 {
                    let answer = stage.send(&Request::put(&format!("/objects/{key}")).token(33));
                    assert!(
                        [409, 503].contains(&answer.status),
                        "bit {at} of {} lowered the mark of {key}: {answer:?}",
                        file.display()
                    );
                }
            }
        }
    }
    println!("{refused} refused to start, {served} served the right marks");
}

// D15
#[test]
fn a_store_of_another_format_is_refused_by_name() {
    let mut stage = Stage::at_34();
    assert!(stage.gateway.terminate().success());
    let store = stage.gateway.store();
    let version = files(&store).into_iter().find(|file| {
        let name = file.file_name().unwrap().to_string_lossy().to_lowercase();
        (name.contains("version") || name.contains("format")) && file.parent() == Some(&store)
    });
    let Some(version) = version else {
        println!("skipped: no file of the store tells its version");
        return;
    };
    let text = std::fs::read_to_string(&version).unwrap();
    for other in ['9', '0'] {
        let other: String = text
            .chars()
            .map(|c| if c.is_ascii_digit() { other } else { c })
            .collect();
        std::fs::write(&version, &other).unwrap();
        let failed = Gateway::fails(Config::new(&stage.recorder.url()), &store);
        assert!(!failed.status.success());
        assert!(
            failed.errors.contains("version") || failed.errors.contains("format"),
            "{}",
            failed.errors
        );
    }
    std::fs::write(&version, &text).unwrap();
    stage.gateway.restart();
    assert_eq!(stage.mark("objects/42").as_deref(), Some("34"));
}

// D17
#[test]
fn many_marks_are_all_known_from_the_first_request_on() {
    let recorder = Recorder::start();
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let keys = 1_000_000;
    let lines: String = (0..keys)
        .map(|key| format!("{{\"key\":\"objects/{key}\",\"token\":\"34\"}}\n"))
        .collect();
    let imported = import(&store, &lines);
    assert!(imported.status.success(), "{imported:?}");
    let config = Config::new(&recorder.url()).set("store.path", store.to_str().unwrap());
    let gateway = Gateway::start(config);
    let mut dice = Dice::new(17);
    for _ in 0..300 {
        let key = dice.below(keys);
        Request::put(&format!("/objects/{key}"))
            .token(33)
            .send(gateway.http)
            .assert_fenced(409, "stale-token", "a mark that was never read before");
    }
    assert_eq!(recorder.count(), 0);
}

fn import(store: &Path, lines: &str) -> std::process::Output {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), lines).unwrap();
    crate::common::binary()
        .args(["store", "import"])
        .arg(store)
        .stdin(file.reopen().unwrap())
        .output()
        .unwrap()
}

#[test]
fn what_is_exported_can_be_imported_and_only_ever_raises() {
    let mut stage = Stage::new();
    for (key, token) in [("a", "34"), ("b", "7.42"), ("c%20%C3%B6", "35")] {
        stage.raise(&format!("/objects/{key}"), token);
    }
    assert!(stage.gateway.terminate().success());
    let store = stage.gateway.store();
    let exported = run(&["store", "export", store.to_str().unwrap()]);
    assert!(exported.status.success(), "{exported:?}");
    let text = String::from_utf8(exported.stdout).unwrap();
    assert_eq!(
        text.lines().count(),
        3,
        "one line of JSON for each key: {text}"
    );

    let other = tempfile::tempdir().unwrap();
    let other = other.path().join("store");
    let lower = text.replace("7.42", "7.41").replace("\"34\"", "\"99\"");
    assert!(import(&other, &text).status.success());
    assert!(import(&other, &lower).status.success());
    let again = run(&["store", "export", other.to_str().unwrap()]);
    let again = String::from_utf8(again.stdout).unwrap();
    assert!(
        again.contains("7.42"),
        "a lower mark is not imported: {again}"
    );
    assert!(again.contains("99"), "a higher one is: {again}");

    for command in ["verify", "stats"] {
        let output = run(&["store", command, store.to_str().unwrap()]);
        assert!(output.status.success(), "{command}: {output:?}");
        assert!(!output.stdout.is_empty(), "{command} says what it found");
    }
}

#[test]
fn a_store_in_use_is_not_worked_on_offline() {
    let stage = Stage::at_34();
    let store = stage.gateway.store();
    let imported = import(&store, "{\"key\":\"objects/42\",\"token\":\"99\"}\n");
    assert!(!imported.status.success(), "{imported:?}");
    assert_eq!(stage.mark("objects/42").as_deref(), Some("34"));
}
