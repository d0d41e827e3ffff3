//! What goes wrong outside of clients and resource: links, the power, the disk, the operator.

use std::sync::Arc;
use std::time::Duration;

use fencegate::sim::{Faults, Random};
use fencegate::stop::Stop;
use turmoil::Sim;

use super::dice::Dice;
use super::world::World;

/// The hosts of clients.
pub(crate) const CLIENTS: [&str; 2] = ["clients-a", "clients-b"];

pub(crate) struct Nemesis {
    world: Arc<World>,
    dice: Dice,
    next: Duration,
    /// What ends when.
    undo: Vec<(Duration, Undo)>,
    /// How often the gateway's life ended.
    pub(crate) ends: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Undo {
    Release(&'static str),
    Repair(&'static str),
    Disk,
    Index,
    Stall,
    /// The power fails while the gateway is stopping.
    CutStop,
}

impl Nemesis {
    pub(crate) fn new(world: Arc<World>, dice: Dice) -> Self {
        Self {
            world,
            dice,
            next: Duration::ZERO,
            undo: Vec::new(),
            ends: 0,
        }
    }

    /// Acts before a step of the simulation.
    pub(crate) fn act(&mut self, sim: &mut Sim<'_>) {
        let now = self.world.now();
        self.notice_end(sim);
        while let Some(at) = self.undo.iter().position(|undo| undo.0 <= now) {
            let (_, undo) = self.undo.remove(at);
            self.undo(sim, undo);
        }
        if now >= self.next && !self.world.is_over() {
            let gap = u64::try_from(self.world.scenario.fault_gap.as_millis()).unwrap();
            self.next = now + self.dice.ms(gap / 4, gap * 7 / 4);
            // The first call is only there to draw a first time.
            if now > Duration::ZERO {
                self.strike(sim, now);
            }
        }
    }

    /// Makes all well at once: from here on a newest token must get through.
    pub(crate) fn heal(&mut self, sim: &mut Sim<'_>) {
        self.notice_end(sim);
        for (_, undo) in std::mem::take(&mut self.undo) {
            if undo != Undo::CutStop {
                self.undo(sim, undo);
            }
        }
        self.world.log("all is well");
    }

    /// A gateway that ended by itself, or was stopped, is started again.
    fn notice_end(&mut self, sim: &mut Sim<'_>) {
        let Some(ended) = self.world.life(|life| life.ended.take()) else {
            return;
        };
        let mut told = true;
        if let Err(why) = ended {
            // A disk that fails stops the gateway; one that was without power does not.
            let expected = ["store", "simulated", "space"]
                .iter()
                .any(|word| why.contains(word));
            if !expected || why.contains("damage") {
                self.world
                    .violation(format!("the gateway does not run: {why}"));
            }
            // After a failed sync nobody knows what is on the disk.
            told = self.replace_disk();
        }
        self.begin_anew(sim, told);
    }

    /// The disk as it is found after the power was gone, or the process alone; whether it was that.
    fn replace_disk(&mut self) -> bool {
        let power = self.dice.percent(60);
        let mut random = Random::new(self.dice.below(u64::MAX));
        self.world.life(|life| {
            life.disk = match power {
                true => life.disk.after_power_loss(&mut random),
                false => life.disk.after_kill(),
            };
        });
        let gone = if power { "the power" } else { "the process" };
        self.world.log(format!("{gone} is gone"));
        !power
    }

    fn crash(&mut self, sim: &mut Sim<'_>) {
        let told = self.replace_disk();
        let world = Arc::clone(&self.world);
        world.dies(|| sim.crash("gateway"));
        if world.life(|life| life.gateway.strong_count()) > 0 {
            let what = "something of the crashed gateway is left";
            world.violation(what.to_owned());
        }
        self.begin_anew(sim, told);
    }

    /// Whatever there was is gone; after a while the next one begins.
    fn begin_anew(&mut self, sim: &mut Sim<'_>, told: bool) {
        self.ends += 1;
        let down = self.dice.ms(2, 250);
        self.world.life(|life| {
            (life.down, life.told) = (down, told);
            (life.stopper, life.ended) = (None, None);
        });
        let gone = |undo: &Undo| [Undo::CutStop, Undo::Disk].contains(undo);
        self.undo.retain(|undo| !gone(&undo.1));
        let world = Arc::clone(&self.world);
        world.dies(|| sim.bounce("gateway"));
    }

    /// Whether a gateway runs, and is not being stopped.
    fn is_up(&self) -> bool {
        self.world.life(|life| life.stopper.is_some())
    }

    fn undo(&mut self, sim: &mut Sim<'_>, undo: Undo) {
        self.world.log(format!("undo {undo:?}"));
        let set = |faults| self.world.life(|life| life.disk.set(faults));
        match undo {
            Undo::Release(host) => sim.release(host, "gateway"),
            Undo::Repair(host) => sim.repair(host, "gateway"),
            Undo::Disk => set(Faults::default()),
            Undo::Index => self.world.life(|life| life.disk.fill_index(false)),
            Undo::Stall => self.world.life(|life| life.stall = Duration::ZERO),
            Undo::CutStop => self.crash(sim),
        }
    }

    fn break_disk(&mut self, until: Duration, faults: Faults) {
        self.world.life(|life| life.disk.set(faults));
        self.undo.push((until, Undo::Disk));
    }

    fn strike(&mut self, sim: &mut Sim<'_>, now: Duration) {
        let host = ["resource", CLIENTS[0], CLIENTS[1], "resource"][self.dice.index(4)];
        let until = now + self.dice.ms(10, 350);
        let free = |all: &[(Duration, Undo)]| {
            !all.iter()
                .any(|undo| undo.1 == Undo::Release(host) || undo.1 == Undo::Repair(host))
        };
        let what = self.dice.below(100);
        self.world
            .log(format!("strike {what} {host} until {}", until.as_millis()));
        match what {
            0..20 if free(&self.undo) => {
                sim.hold(host, "gateway");
                self.undo.push((until, Undo::Release(host)));
            }
            20..35 if free(&self.undo) => {
                sim.partition(host, "gateway");
                self.undo.push((until, Undo::Repair(host)));
            }
            // Also while it is down or stopping.
            35..60 => self.crash(sim),
            _ if !self.is_up() => {}
            60..72 => {
                let stopper = self.world.life(|life| life.stopper.take());
                if let Some(stopper) = stopper {
                    stopper.go_on(Stop::Draining);
                    // Kept: the stop would be over with it.
                    self.world.life(|life| life.stopper = Some(stopper));
                    if self.dice.percent(40) {
                        let at = now + self.dice.ms(1, 500);
                        self.undo.push((at, Undo::CutStop));
                    }
                }
            }
            72..77 => self.break_disk(
                until,
                Faults {
                    no_space: true,
                    ..Faults::default()
                },
            ),
            77..80 => self.break_disk(
                until,
                Faults {
                    read_only: true,
                    ..Faults::default()
                },
            ),
            80..83 => self.break_disk(
                until,
                Faults {
                    short_writes: true,
                    ..Faults::default()
                },
            ),
            83..86 => self.break_disk(
                until,
                Faults {
                    failing_syncs: true,
                    ..Faults::default()
                },
            ),
            86..91 => {
                let after = self.dice.below(12);
                self.world.life(|life| {
                    life.disk.set(Faults {
                        crash_after: Some(after),
                        ..Faults::default()
                    });
                });
            }
            91..94 => {
                self.world.life(|life| life.disk.fill_index(true));
                self.undo.push((until, Undo::Index));
            }
            _ => {
                let stall = self.dice.ms(5, 250);
                self.world.life(|life| life.stall = stall);
                self.undo.push((until, Undo::Stall));
            }
        }
    }
}
