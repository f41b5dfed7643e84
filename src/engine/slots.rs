//! The slots of one model's engine, and whose prompts they remember.
//!
//! An engine keeps what it computed of a prompt, so that the next request which begins
//! alike answers sooner. Between consumers that is a leak: how soon an answer begins
//! says whether somebody else has just asked the same. A slot therefore lets a request
//! use what it remembers only when that came from the same consumer, or from one who
//! allows sharing while this one does, too.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

/// Who asks, and whether they share what an engine remembers of their prompts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asker {
    /// The consumer; nobody who is unknown shares anything.
    pub(super) consumer: Option<String>,
    /// Whether others who allow it, too, may see that a prompt was known.
    pub(super) shares: bool,
}

impl Asker {
    /// Tells whether what was left by `earlier` may be used.
    fn may_use(&self, earlier: &Self) -> bool {
        (self.consumer.is_some() && self.consumer == earlier.consumer)
            || (self.shares && earlier.shares)
    }
}

/// The slots of an engine.
#[derive(Debug)]
pub(super) struct Slots {
    free: Arc<Semaphore>,
    /// Whoever used a slot last, `None` before the first; the lock is held for a moment.
    board: Mutex<Vec<Slot>>,
}

#[derive(Debug, Clone, Default)]
struct Slot {
    busy: bool,
    last: Option<Asker>,
}

/// A slot in use. It is free again when this is dropped.
#[derive(Debug)]
pub(super) struct TakenSlot {
    slots: Arc<Slots>,
    /// Its number.
    pub(super) index: usize,
    /// Whether what it remembers may be used.
    pub(super) may_reuse: bool,
    permit: Option<OwnedSemaphorePermit>,
}

impl Slots {
    pub(super) fn new(count: usize) -> Arc<Self> {
        Arc::new(Self {
            free: Arc::new(Semaphore::new(count)),
            board: Mutex::new(vec![Slot::default(); count]),
        })
    }

    /// Waits for a free slot and takes it: one that remembers something usable, else
    /// one that remembers nothing, else any.
    ///
    /// # Errors
    /// When the slots are closed for good.
    pub(super) async fn take(self: &Arc<Self>, asker: Asker) -> Result<TakenSlot, AcquireError> {
        let permit = Arc::clone(&self.free).acquire_owned().await?;
        let mut board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        let (index, slot) = board
            .iter_mut()
            .enumerate()
            .filter(|(_, slot)| !slot.busy)
            .min_by_key(|(_, slot)| match &slot.last {
                Some(last) if asker.may_use(last) => 0,
                None => 1,
                Some(_) => 2,
            })
            .expect("there are as many permits as slots");
        let may_reuse = slot.last.as_ref().is_some_and(|last| asker.may_use(last));
        *slot = Slot { busy: true, last: Some(asker) };
        Ok(TakenSlot { slots: Arc::clone(self), index, may_reuse, permit: Some(permit) })
    }

    /// Waits until nothing is in use, and takes all slots.
    ///
    /// # Errors
    /// When the slots are closed for good.
    pub(super) async fn take_all(&self, count: u32) -> Result<OwnedSemaphorePermit, AcquireError> {
        Arc::clone(&self.free).acquire_many_owned(count).await
    }

    /// Lets nobody in any more.
    pub(super) fn close(&self) {
        self.free.close();
    }
}

impl Drop for TakenSlot {
    fn drop(&mut self) {
        let mut board = self.slots.board.lock().unwrap_or_else(PoisonError::into_inner);
        board[self.index].busy = false;
        drop(board);
        // Only now may another take it.
        drop(self.permit.take());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn asker(consumer: &str, shares: bool) -> Asker {
        Asker { consumer: Some(consumer.to_owned()), shares }
    }

    #[tokio::test]
    async fn what_is_remembered_is_for_the_same_consumer_or_for_two_who_share() {
        for (first, second, wanted) in [
            (asker("a", false), asker("a", false), true),
            (asker("a", false), asker("b", false), false),
            (asker("a", true), asker("b", false), false),
            (asker("a", false), asker("b", true), false),
            (asker("a", true), asker("b", true), true),
            (
                Asker { consumer: None, shares: false },
                Asker { consumer: None, shares: false },
                false,
            ),
        ] {
            let slots = Slots::new(1);
            assert!(!slots.take(first.clone()).await.unwrap().may_reuse);
            let taken = slots.take(second.clone()).await.unwrap();
            assert_eq!(taken.may_reuse, wanted, "{first:?} {second:?}");
        }
    }

    #[tokio::test]
    async fn one_who_does_not_share_leaves_nothing_to_those_who_do() {
        let slots = Slots::new(1);
        for (asker, wanted) in
            [(asker("a", true), false), (asker("b", false), false), (asker("c", true), false)]
        {
            assert_eq!(slots.take(asker).await.unwrap().may_reuse, wanted);
        }
    }

    #[tokio::test]
    async fn a_slot_is_chosen_by_what_it_remembers() {
        let slots = Slots::new(3);
        let first = slots.take(asker("a", false)).await.unwrap();
        let second = slots.take(asker("b", false)).await.unwrap();
        assert_eq!((first.index, second.index), (0, 1));
        drop((first, second));
        let again = slots.take(asker("b", false)).await.unwrap();
        assert_eq!((again.index, again.may_reuse), (1, true));
        // A slot that remembers nothing before one that would be overwritten.
        assert_eq!(slots.take(asker("c", false)).await.unwrap().index, 2);
    }

    #[tokio::test]
    async fn there_are_no_more_than_there_are() {
        let slots = Slots::new(1);
        let taken = slots.take(asker("a", false)).await.unwrap();
        let waiting = slots.take(asker("a", false));
        assert!(tokio::time::timeout(std::time::Duration::from_millis(20), waiting).await.is_err());
        drop(taken);
        slots.take(asker("a", false)).await.unwrap();
        slots.close();
        assert!(slots.take(asker("a", false)).await.is_err());
    }
}
