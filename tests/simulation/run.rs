//! One simulation, from its seed to its verdict.

use std::cell::{Cell, RefCell};
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use super::dice::Dice;
use super::holder::Link;
use super::http2::Shared;
use super::nemesis::{CLIENTS, Nemesis};
use super::resource::Resource;
use super::scenario::Scenario;
use super::world::{TICK, World};
use super::{gateway, holder};

thread_local! {
    static SIMULATES: Cell<bool> = const { Cell::new(false) };
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// A panic in a task of the gateway is caught by its runtime: here it is a violation.
fn watch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let default = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if SIMULATES.get() {
                PANICS.with_borrow_mut(|panics| panics.push(info.to_string()));
            } else {
                default(info);
            }
        }));
    });
}

/// What came of one seed.
pub(crate) struct Ran {
    pub(crate) wrong: Vec<String>,
    pub(crate) hash: u64,
    pub(crate) lines: Vec<String>,
    pub(crate) simulated: Duration,
    pub(crate) reached: usize,
    pub(crate) answered: usize,
    pub(crate) good: usize,
    pub(crate) over_http2: usize,
    /// How often the gateway's life ended.
    pub(crate) crashes: u64,
    /// Marks were forgotten.
    pub(crate) forgot: bool,
}

/// Runs the simulation of `seed`.
pub(crate) fn run(seed: u64) -> Ran {
    simulate(seed, Scenario::draw(seed))
}

/// Runs it with clients of HTTP/2 alone.
#[cfg(feature = "faults")]
pub(crate) fn run_over_http2(seed: u64) -> Ran {
    let mut scenario = Scenario::draw(seed);
    scenario.http2 = 100;
    simulate(seed, scenario)
}

fn simulate(seed: u64, scenario: Scenario) -> Ran {
    watch_panics();
    SIMULATES.set(true);
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .tick_duration(TICK)
        .simulation_duration(Duration::from_secs(600))
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(scenario.max_latency)
        .tcp_capacity(128)
        .enable_random_order()
        .build();
    let (holders, http2) = (scenario.holders, scenario.http2);
    let mut links = Dice::new(seed, "links");
    let mut link = |shared: &Shared| match links.percent(http2) {
        true => Link::Http2(shared.clone()),
        false => Link::Http1(None),
    };
    let world = Arc::new(World::new(scenario));
    let lives = Arc::new(Mutex::new(Dice::new(seed, "lives")));
    {
        let world = Arc::clone(&world);
        sim.host("gateway", move || {
            let dice = lives.lock().unwrap().fork();
            gateway::live(Arc::clone(&world), dice)
        });
    }
    let resource = Resource::new(Arc::clone(&world), Dice::new(seed, "resource"));
    sim.host("resource", move || Arc::clone(&resource).serve());
    let mut dice = Dice::new(seed, "holders");
    for (number, host) in CLIENTS.into_iter().enumerate() {
        let mine = (0..holders).filter(|holder| holder % CLIENTS.len() == number);
        let shared = Shared::default();
        let mine: Vec<_> = mine
            .map(|_| holder::Holder::new(Arc::clone(&world), dice.fork(), link(&shared)))
            .collect();
        sim.client(host, async move {
            let tasks = mine.into_iter().map(|holder| tokio::spawn(holder.run()));
            for task in tasks.collect::<Vec<_>>() {
                task.await?;
            }
            Ok(())
        });
    }
    let mut nemesis = Nemesis::new(Arc::clone(&world), Dice::new(seed, "nemesis"));
    let step = |sim: &mut turmoil::Sim<'_>, nemesis: &mut Nemesis| {
        world.set_clock(sim.elapsed());
        nemesis.act(sim);
        sim.step().unwrap_or_else(|error| {
            world.violation(format!("a host failed: {error}"));
            true
        })
    };
    while !step(&mut sim, &mut nemesis) {}
    nemesis.heal(&mut sim);
    let (judge, dice) = (Arc::clone(&world), Dice::new(seed, "judge"));
    let link = link(&Shared::default());
    sim.client("judge", async move {
        holder::judge(judge, dice, link).await;
        Ok(())
    });
    while !step(&mut sim, &mut nemesis) {}
    let simulated = sim.elapsed();
    let gateway = world.life(|life| life.gateway.upgrade());
    let forgot = gateway.is_some_and(|gateway| gateway::floor(&gateway) > 0);
    drop(sim);
    SIMULATES.set(false);
    let mut wrong = world.verdict();
    let panics = PANICS.with_borrow_mut(std::mem::take);
    wrong.extend(panics.into_iter().map(|panic| format!("a panic: {panic}")));
    let finished = world.finish();
    Ran {
        wrong,
        hash: finished.hash,
        lines: finished.lines,
        simulated,
        reached: finished.reached,
        answered: finished.answered,
        good: finished.good,
        over_http2: finished.over_http2,
        crashes: nemesis.ends,
        forgot,
    }
}
