//! Memory for engines: what this machine gives them, and who makes room for whom.
//!
//! Every container that starts reserves its memory, and that of its GPUs, out of a
//! [`Budget`]. Where there is not enough, engines that nobody uses are stopped, the one
//! first that was idle longest; one in use never is. A start that finds no room in time
//! fails, so that its request goes to another node.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::engine::error::EngineError;
use crate::engine::supervised::Supervised;

/// How long a start waits for room.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often it is looked whether an engine has become idle.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// What the engines of a node may use together. What is not named has no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Budget {
    /// Main memory, in MiB.
    pub memory_mb: Option<u64>,
    /// The memory of each GPU by its UUID, in MiB.
    pub gpu_memory_mb: BTreeMap<String, u64>,
}

/// What a container needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Need {
    /// Main memory, in MiB.
    pub(super) memory_mb: u64,
    /// UUIDs of its GPUs.
    pub(super) gpus: Vec<String>,
    /// Memory of each of them, in MiB.
    pub(super) gpu_memory_mb: u64,
}

/// The memory that is given away.
#[derive(Debug)]
pub(super) struct Room {
    budget: Budget,
    /// By the name of the container; the lock is held for a moment.
    held: Mutex<BTreeMap<String, (String, Need)>>,
    models: Mutex<Vec<Weak<Supervised>>>,
    freed: Notify,
    patience: Duration,
}

/// Memory that is held until this is dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    room: Arc<Room>,
    container: String,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.room.held.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.container);
        self.room.freed.notify_waiters();
    }
}

impl Room {
    pub(super) fn new(budget: Budget) -> Self {
        Self {
            budget,
            held: Mutex::default(),
            models: Mutex::default(),
            freed: Notify::new(),
            patience: PATIENCE,
        }
    }

    /// Learns of the models whose engines may be stopped for others.
    pub(super) fn know<'a>(&self, models: impl Iterator<Item = &'a Arc<Supervised>>) {
        let mut known = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        known.extend(models.map(Arc::downgrade));
    }

    /// Reserves memory for a container of a model or an image, stopping idle engines
    /// where there is too little.
    ///
    /// # Errors
    /// [`EngineError::NoRoom`], at once where even an empty machine has too little.
    pub(super) async fn reserve(
        self: &Arc<Self>,
        container: &str,
        model: &str,
        need: Need,
    ) -> Result<Reservation, EngineError> {
        let no_room =
            |lack: &str| EngineError::NoRoom { model: model.to_owned(), lack: lack.to_owned() };
        if let Some(lack) = self.lack(&need, std::iter::empty()) {
            return Err(no_room(&lack));
        }
        let limit = Instant::now() + self.patience;
        loop {
            let freed = self.freed.notified();
            let lack = {
                let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
                let lack = self.lack(&need, held.values().map(|(_, need)| need));
                if lack.is_none() {
                    held.insert(container.to_owned(), (model.to_owned(), need));
                    return Ok(Reservation {
                        room: Arc::clone(self),
                        container: container.to_owned(),
                    });
                }
                lack
            };
            if let Some(evicted) = self.evict(&need) {
                tracing::info!(model, evicted, "stopped an idle engine to make room");
            }
            if Instant::now() >= limit {
                return Err(no_room(&lack.unwrap_or_default()));
            }
            // Room becomes free, or an engine becomes idle.
            let _either = tokio::time::timeout(LOOK_INTERVAL, freed).await;
        }
    }

    /// Says what a need lacks beside what is held, `None` when there is enough.
    fn lack<'a>(
        &self,
        need: &Need,
        held: impl Iterator<Item = &'a Need> + Clone,
    ) -> Option<String> {
        let memory: u64 = held.clone().map(|held| held.memory_mb).sum();
        if let Some(limit) = self.budget.memory_mb
            && memory.saturating_add(need.memory_mb) > limit
        {
            let needed = need.memory_mb;
            return Some(format!("{needed} MiB of memory, of {limit} MiB for all engines"));
        }
        for gpu in &need.gpus {
            let Some(limit) = self.budget.gpu_memory_mb.get(gpu) else { continue };
            let used: u64 = held
                .clone()
                .filter(|held| held.gpus.contains(gpu))
                .map(|held| held.gpu_memory_mb)
                .sum();
            if used.saturating_add(need.gpu_memory_mb) > *limit {
                let needed = need.gpu_memory_mb;
                return Some(format!("{needed} MiB on {gpu}, of {limit} MiB"));
            }
        }
        None
    }

    /// Stops the engine that was idle longest among those that hold what is lacking.
    fn evict(&self, need: &Need) -> Option<String> {
        let held: Vec<(String, Need)> = {
            let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            held.values().cloned().collect()
        };
        let useful = |model: &Supervised| {
            held.iter().any(|(name, held)| {
                *name == *model.name
                    && (need.memory_mb > 0 || held.gpus.iter().any(|gpu| need.gpus.contains(gpu)))
            })
        };
        let models: Vec<Arc<Supervised>> = {
            let known = self.models.lock().unwrap_or_else(PoisonError::into_inner);
            known.iter().filter_map(Weak::upgrade).collect()
        };
        let mut idle: Vec<(Duration, &Arc<Supervised>)> = models
            .iter()
            .filter(|model| useful(model))
            .filter_map(|model| Some((model.idle_for()?, model)))
            .collect();
        idle.sort_by_key(|(idle, _)| std::cmp::Reverse(*idle));
        idle.into_iter()
            .find(|(_, model)| model.stop_if_idle(Duration::ZERO))
            .map(|(_, model)| model.name.as_ref().to_owned())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn need(memory_mb: u64, gpu: Option<(&str, u64)>) -> Need {
        Need {
            memory_mb,
            gpus: gpu.map(|(gpu, _)| gpu.to_owned()).into_iter().collect(),
            gpu_memory_mb: gpu.map_or(0, |(_, memory)| memory),
        }
    }

    fn room() -> Arc<Room> {
        let budget = Budget {
            memory_mb: Some(1000),
            gpu_memory_mb: BTreeMap::from([("GPU-a".to_owned(), 24_000)]),
        };
        Arc::new(Room { patience: Duration::from_millis(400), ..Room::new(budget) })
    }

    #[tokio::test]
    async fn what_never_fits_is_told_at_once() {
        let room = room();
        let error = room.reserve("c", "m", need(1001, None)).await.unwrap_err();
        assert!(error.to_string().contains("1001 MiB of memory"), "{error}");
        assert_eq!(error.attempt_code(), "engine_unavailable");
        let error = room.reserve("c", "m", need(1, Some(("GPU-a", 24_001)))).await.unwrap_err();
        assert!(error.to_string().contains("24001 MiB on GPU-a"), "{error}");
        // One that nobody measured has no limit.
        assert!(room.reserve("c", "m", need(1, Some(("GPU-b", 99_999)))).await.is_ok());
    }

    #[tokio::test]
    async fn memory_is_given_away_once_and_comes_back() {
        let room = room();
        let first = room.reserve("a", "m", need(600, Some(("GPU-a", 20_000)))).await.unwrap();
        let begun = Instant::now();
        let error = room.reserve("b", "n", need(600, None)).await.unwrap_err();
        assert!(matches!(error, EngineError::NoRoom { .. }), "{error}");
        assert!(begun.elapsed() >= room.patience);
        let error = room.reserve("b", "n", need(1, Some(("GPU-a", 5_000)))).await.unwrap_err();
        assert!(error.to_string().contains("GPU-a"), "{error}");
        let waiting = room.reserve("b", "n", need(600, None));
        let freeing = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            drop(first);
        };
        let begun = Instant::now();
        let (second, ()) = tokio::join!(waiting, freeing);
        assert!(second.is_ok() && begun.elapsed() < Duration::from_millis(300));
    }
}
