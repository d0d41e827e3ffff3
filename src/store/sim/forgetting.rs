//! Marks that are forgotten, among crashes.

use super::*;

/// Forgets what is in the index of `keys`, as if nothing had been used for long.
fn forget(engine: &Engine, keys: &[&str]) -> Result<u64, StoreError> {
    flush(engine);
    engine.shared.ages.age("n", 3600);
    forget_idle(engine, keys)
}

fn flush(engine: &Engine) {
    // What was read is being touched, perhaps.
    rest(engine);
    lock_mutex(&engine.shared.memory).wants_flush = true;
    engine.shared.flusher_wait.notify_one();
    rest(engine);
}

fn floor(engine: &Engine) -> Option<Token> {
    engine.shared.ages.floor("n")
}

fn t(counter: u64) -> Option<Token> {
    Token::new(0, counter)
}

fn reset(key: &str, counter: u64) -> Raise {
    let mut reset = raise(key, counter);
    reset.record.resets = 1;
    reset
}

#[test]
fn the_floor_is_above_all_that_is_forgotten_and_outlives_it() {
    let disk = SimDisk::default();
    let engine = open(&disk).unwrap();
    commit(
        &engine,
        vec![raise("n/a", 5), raise("n/b", 9), raise("n/c", 7)],
    )
    .unwrap();
    assert_eq!(floor(&engine), None);
    assert_eq!(forget(&engine, &["n/a", "n/b", "n/none"]), Ok(2));
    assert_eq!(floor(&engine), t(10));
    assert_eq!((read(&engine, "n/a"), read(&engine, "n/c")), (Ok(0), Ok(7)));
    assert_eq!(engine.len(), 1);
    assert_eq!(forget(&engine, &["n/a", "n/b"]), Ok(0));
    commit(&engine, vec![raise("n/b", 10)]).unwrap();
    assert_eq!((read(&engine, "n/b"), engine.len()), (Ok(10), 2));
    for found in [
        disk.after_kill(),
        disk.after_power_loss(&mut Random::new(1)),
    ] {
        let engine = open(&found).unwrap();
        assert_eq!(floor(&engine), t(10));
        assert_eq!(
            (read(&engine, "n/a"), read(&engine, "n/b")),
            (Ok(0), Ok(10))
        );
        assert_eq!(engine.len(), 2);
    }
}

#[test]
fn what_is_young_in_memory_or_was_reset_is_kept() {
    let disk = SimDisk::default();
    let engine = open(&disk).unwrap();
    let all = ["n/old", "n/reset", "n/young", "m/other"];
    let raises = vec![raise("n/old", 5), reset("n/reset", 6), raise("m/other", 99)];
    commit(&engine, raises).unwrap();
    flush(&engine);
    engine.shared.ages.age("n", 3600);
    commit(&engine, vec![raise("n/young", 50)]).unwrap();
    assert_eq!(
        idle_keys(&engine).unwrap(),
        [(Key::from_text("n/old"), t(5).unwrap())]
    );
    // Whatever it is asked, the flusher looks for itself.
    let asks = || {
        let keys = all.map(|key| (Key::from_text(key), t(5).unwrap()));
        asked(|reply| engine.forget(keys.to_vec(), reply))
    };
    assert_eq!(asks(), Ok(1));
    flush(&engine);
    assert_eq!(asks(), Ok(0));
    assert_eq!(floor(&engine), t(6), "what is kept raises no floor");
    let marks = all.map(|key| read(&engine, key).unwrap());
    assert_eq!(marks, [0, 6, 50, 99]);
}

#[test]
fn what_is_read_counts_as_used() {
    let disk = SimDisk::default();
    let engine = open(&disk).unwrap();
    commit(&engine, vec![raise("n/used", 5), raise("n/idle", 5)]).unwrap();
    flush(&engine);
    engine.shared.ages.age("n", 3600);
    assert_eq!(read(&engine, "n/used"), Ok(5));
    rest(&engine);
    assert_eq!(forget_idle(&engine, &["n/used"]), Ok(0));
    flush(&engine);
    assert_eq!(forget_idle(&engine, &["n/used"]), Ok(0));
    assert_eq!(forget_idle(&engine, &["n/idle"]), Ok(1));
}

#[test]
fn idle_keys_are_found_a_chunk_at_a_time() {
    let disk = SimDisk::default();
    let engine = open(&disk).unwrap();
    let raises = (1..=30).map(|n| raise(&format!("n/{n:02}"), n));
    commit(&engine, raises.collect()).unwrap();
    commit(&engine, vec![raise("nn/other", 1)]).unwrap();
    flush(&engine);
    engine.shared.ages.age("n", 3600);
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let idle = engine.shared.idle_keys("n", after.as_ref(), 7).unwrap();
        found.extend(idle.keys);
        after = idle.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(found.len(), 30);
}

#[test]
fn a_full_disk_forgets_nothing_and_loses_nothing() {
    let disk = SimDisk::default();
    let engine = open(&disk).unwrap();
    commit(&engine, vec![raise("n/a", 5)]).unwrap();
    flush(&engine);
    disk.fill_index(true);
    assert_eq!(forget(&engine, &["n/a"]), Err(StoreError::NoSpace));
    assert_eq!((floor(&engine), read(&engine, "n/a")), (t(6), Ok(5)));
    disk.fill_index(false);
    assert_eq!(forget(&engine, &["n/a"]), Ok(1));
}

#[test]
fn a_flush_that_came_half_way_is_done_before_anything_is_forgotten() {
    let disk = SimDisk::default();
    let mut settings = settings();
    // Nothing but the flusher uses the disk meanwhile.
    settings.tuning.idle = Duration::from_secs(3600);
    let engine = open_with(&disk, &settings).unwrap();
    commit(&engine, vec![raise("n/a", 5), raise("n/b", 9)]).unwrap();
    assert_eq!(forget(&engine, &["n/b"]), Ok(1));
    commit(&engine, vec![raise("n/new", 20)]).unwrap();
    rest(&engine);
    // The index takes the new key in, and there is no room to write the checkpoint.
    disk.fail_at(disk.operations() + 2, Failure::NoSpace(0));
    let forgotten = asked(|reply| {
        let mut memory = lock_mutex(&engine.shared.memory);
        memory.wants_flush = true;
        let keys = vec![Key::from_text("n/a")];
        memory.chores.push_back(Chore::Forget { keys, reply });
        engine.shared.flusher_wait.notify_one();
    });
    assert!(!disk.is_to_fail());
    assert_eq!((forgotten, engine.len()), (Ok(1), 1));
    for engine in [engine, open(&disk.after_kill()).unwrap()] {
        assert_eq!((engine.len(), read(&engine, "n/new")), (1, Ok(20)));
        assert_eq!(read(&engine, "n/a"), Ok(0));
    }
}

#[test]
fn the_store_that_is_closed_answers() {
    let disk = SimDisk::default();
    let engine = open(&disk).unwrap();
    commit(&engine, vec![raise("n/a", 5)]).unwrap();
    flush(&engine);
    engine.shared.ages.age("n", 3600);
    engine.close(true).unwrap();
    assert!(idle_keys(&engine).is_err());
    let keys = vec![(Key::from_text("n/a"), t(5).unwrap())];
    assert!(asked(|reply| engine.forget(keys, reply)).is_err());
    assert!(asked(|reply| engine.keep_uptime(reply)).is_err());
}

/// What counts as the mark of a key: its own, or what stands for it.
fn counts(engine: &Engine, key: &str) -> u64 {
    match read(engine, key).unwrap() {
        0 => floor(engine).map_or(0, Token::counter),
        mark => mark,
    }
}

/// Commits, forgets and crashes, again and again.
fn forgetful_lives(seed: u64) -> u64 {
    let mut random = Random::new(seed);
    let (mut disk, mut counter, mut forgotten) = (SimDisk::default(), 0, 0);
    let mut acknowledged = BTreeMap::<String, u64>::new();
    for life in 0..6 {
        disk.set(Faults {
            crash_after: Some(random.below(400) as u64),
            ..Faults::default()
        });
        if let Ok(engine) = open(&disk) {
            for _ in 0..random.below(60) {
                counter += 1;
                let key = format!("n/{}-{}", random.below(30), "x".repeat(random.below(500)));
                let key = &key[..key.len().min(2 + random.below(200))];
                if random.below(6) == 0 {
                    engine.shared.ages.age("n", 3600 << life);
                    // Not all of it is in the index, and some may be on its way there.
                    lock_mutex(&engine.shared.memory).wants_flush = true;
                    engine.shared.flusher_wait.notify_one();
                    let some = acknowledged.keys().filter(|_| random.below(2) == 0);
                    let some: Vec<_> = some.map(String::as_str).collect();
                    forgotten += forget_idle(&engine, &some).unwrap_or(0);
                } else if commit(&engine, vec![raise(key, counter)]).is_ok() {
                    acknowledged.insert(key.to_owned(), counter);
                }
            }
        }
        disk = match random.below(3) {
            0 => disk.after_kill(),
            _ => disk.after_power_loss(&mut random),
        };
        let engine = open(&disk).unwrap_or_else(|error| panic!("refused after a crash: {error}"));
        for (key, mark) in &acknowledged {
            let counts = counts(&engine, key);
            assert!(counts >= *mark, "{key} counts as {counts}, below {mark}");
        }
        let marks = engine.list("n/", None, usize::MAX).unwrap();
        assert_eq!(engine.len(), marks.len() as u64);
        engine.close(random.below(2) == 0).unwrap();
    }
    forgotten
}

#[test]
fn no_key_ever_counts_as_less_in_many_lives() {
    let seeds = std::env::var("FENCEGATE_SIM_SEEDS").ok();
    let seeds = seeds.and_then(|seeds| seeds.parse().ok()).unwrap_or(40);
    let mut forgotten = 0;
    for seed in 0..seeds {
        match catch_unwind(|| forgetful_lives(seed)) {
            Ok(marks) => forgotten += marks,
            Err(panic) => {
                eprintln!("seed {seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("{forgotten} marks were forgotten");
    assert!(forgotten > 100);
}
