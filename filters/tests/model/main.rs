//! The fence, model-checked: every way in which requests, the store, crashes and the resource can
//! come between each other, up to a bound, and what must hold in each of them.
//!
//! The transition function is the real code: the states hold real lanes, and the steps are those
//! of `fence::step` and `fence::lane`. Only the shell around them is a model: the table of lanes,
//! the cache, the store, the resource, and the clock, which are events that may come at any time.
//!
//! ```text
//! make model                         # what CI runs
//! FENCEGATE_MODEL=soak make model    # more requests, more failures: an hour, some GB of memory
//! FENCEGATE_MODEL_ONLY=WORD …        # only what has WORD in its name
//! ```
//!
//! Each planted fault must give a counterexample: a checker that finds nothing proves nothing.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

mod rules;
mod scope;
mod scopes;
mod state;
mod world;

use std::collections::VecDeque;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Instant;

use fencegate_filters::fault::{self, Fault};
use stateright::{Checker, HasDiscoveries, Model, Path, Property};

use scope::Scope;
use state::{Promise, State};
use world::{Action, World};

struct Protocol {
    scope: Scope,
    fault: Option<Fault>,
    /// Whether liveness is looked at.
    probes: bool,
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.scope.initial()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let _planted = self.fault.map(fault::plant);
        world::actions(&self.scope, state, actions);
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        // The checker has threads of its own: it is planted wherever a step is taken.
        let _planted = self.fault.map(fault::plant);
        let mut world = World {
            scope: &self.scope,
            state: before.clone(),
            strict: self.fault.is_none(),
        };
        world.step(action);
        world.judge(before, self.probes);
        Some(world.state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        fn holds(promise: Promise, state: &State) -> bool {
            state.broken.is_none_or(|broken| broken.0 != promise)
        }
        vec![
            Property::always("G1", |_, state: &State| holds(Promise::G1, state)),
            Property::always("G2", |_, state: &State| holds(Promise::G2, state)),
            Property::always("G3", |_, state: &State| holds(Promise::G3, state)),
            Property::always("G4", |_, state: &State| holds(Promise::G4, state)),
            Property::always("G7", |_, state: &State| holds(Promise::G7, state)),
            Property::always("liveness", |_, state: &State| {
                holds(Promise::Liveness, state)
            }),
            Property::always("lane", |_, state: &State| holds(Promise::Lane, state)),
        ]
    }
}

/// One line of the report, and whether it is as it should be.
struct Line(String, bool);

/// Explores all of one scope.
fn exhaust(scope: Scope) -> Line {
    let name = scope.name;
    let began = Instant::now();
    // Depth first: the states that are still to be looked at stay few. One thread for each scope,
    // and two scopes at once.
    let checker = Protocol {
        scope,
        fault: None,
        probes: true,
    }
    .checker()
    .finish_when(HasDiscoveries::AnyFailures)
    .spawn_dfs()
    .join();
    let found = checker.discoveries();
    let result = if found.is_empty() { "holds" } else { "BROKEN" };
    let mut line = format!(
        "{name:<58} | {:>10} | {:>11} | {:>5} | {:>7.1} | {result}",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        began.elapsed().as_secs_f64(),
    );
    for (property, path) in &found {
        line.push_str(&format!(
            "\n    {property}: {}",
            way(&checker.model().scope, path)
        ));
    }
    Line(line, found.is_empty())
}

/// Looks for the shortest way in which `fault` breaks `promise`.
fn catch(fault: Fault, promise: &'static str, scope: &Scope) -> Line {
    let began = Instant::now();
    let mut states = 0;
    let mut shortest: Option<Path<State, Action>> = None;
    // The checker looks at states by the block, and tells the last that it found in one: it is
    // asked again for a shorter way until there is none.
    loop {
        let mut checker = Protocol {
            scope: scope.clone(),
            fault: Some(fault),
            probes: promise == "liveness",
        }
        .checker()
        .finish_when(HasDiscoveries::AnyOf([promise].into()));
        if let Some(path) = &shortest {
            checker = checker.target_max_depth(path.clone().into_actions().len() + 1);
        }
        let checker = checker.spawn_bfs().join();
        states += checker.unique_state_count();
        match checker.discovery(promise) {
            Some(shorter) => shortest = Some(shorter),
            None => break,
        }
    }
    let name = fault.name();
    let seconds = began.elapsed().as_secs_f64();
    let Some(path) = shortest else {
        let line = format!("{name:<24} | NOT CAUGHT in {states} states");
        return Line(line, false);
    };
    let length = path.clone().into_actions().len();
    let way = way(scope, &path);
    let line =
        format!("{name:<24} | {promise:<8} | {length:>5} | {states:>8} | {seconds:>7.1} | {way}");
    Line(line, true)
}

/// A counterexample in one line: what breaks, and the way there.
fn way(scope: &Scope, path: &Path<State, Action>) -> String {
    let broken = path.last_state().broken.map_or("", |broken| broken.1);
    let steps = path.clone().into_actions().into_iter();
    let steps: Vec<String> = steps.map(|step| step.tell(scope)).collect();
    format!("{broken}: {}", steps.join("; "))
}

/// Runs `jobs` two at a time, and prints what comes of each when it comes.
fn run<J: Send>(jobs: Vec<J>, job: impl Fn(J) -> Line + Sync) -> bool {
    let jobs = Mutex::new(VecDeque::from(jobs));
    let good = Mutex::new(true);
    let work = || {
        loop {
            let Some(next) = jobs.lock().unwrap().pop_front() else {
                return;
            };
            let Line(line, fine) = job(next);
            println!("{line}");
            *good.lock().unwrap() &= fine;
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        scope.spawn(work);
    });
    good.into_inner().unwrap()
}

fn main() -> ExitCode {
    let variable = |name| std::env::var(name).unwrap_or_default();
    let arguments: Vec<String> = std::env::args().collect();
    // As the test harness takes it: `--exact NAME` is one test.
    let exact = arguments.iter().position(|argument| argument == "--exact");
    let exact = exact.and_then(|at| arguments.get(at + 1));
    let only = variable("FENCEGATE_MODEL_ONLY");
    let mut scopes = match variable("FENCEGATE_MODEL").as_str() {
        "soak" => scopes::soak(),
        "ci" => scopes::ci(),
        _ => scopes::quick(),
    };
    let wanted = |name: &str| exact.map_or(name.contains(&only), |exact| name == exact);
    scopes.retain(|scope| wanted(scope.name));
    let mut faults = scopes::faults();
    faults.retain(|fault| wanted(fault.0.name()));
    if exact.is_some() {
        println!("running {} test", scopes.len() + faults.len());
    }
    println!(
        "{:<58} | {:>10} | {:>11} | {:>5} | {:>7} | result",
        "model", "states", "transitions", "depth", "seconds"
    );
    let holds = run(scopes, exhaust);
    println!(
        "\n{:<24} | {:<8} | {:>5} | {:>8} | {:>7} | counterexample",
        "fault", "property", "steps", "states", "seconds"
    );
    let caught = run(faults, |(fault, promise, scope)| {
        catch(fault, promise, &scope)
    });
    if holds && caught {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
