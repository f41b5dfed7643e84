//! Puts the output of a job together from deltas that may be lost, late,
//! doubled or of an attempt that is the job's no more.
//!
//! Knows nothing of sockets and calls, so that its rules can be tested alone:
//! text of the current attempt comes out in order and once; when a later attempt
//! writes something else than what was shown, that is said, and its text comes
//! out whole.

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};

use crate::id::AttemptId;

/// Bytes of deltas that are kept while an earlier one is missing, or while
/// nobody has said whose they are. What is beyond comes by `resend` or from the
/// job's row.
const WAITING_LIMIT: usize = 1024 * 1024;

/// Attempts that are remembered as not, or no longer, the job's.
const DEAD_LIMIT: usize = 64;

/// A piece of output, as the node sends it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Delta {
    /// Whose it is.
    pub attempt: AttemptId,
    /// Bytes of the UTF-8 output before it.
    pub offset: u64,
    /// The piece.
    pub text: String,
}

/// What came out of a delta.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Piece {
    /// Follows what was shown.
    Text(String),
    /// What was shown is void; this is the output so far.
    Instead(String),
}

/// What to do about a delta.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    /// It was taken, or is not needed.
    Taken,
    /// An earlier one is missing.
    Gap,
    /// It is of an attempt that nobody has named; ask which is the current one.
    Unknown,
}

/// The output of a job so far.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    /// What was given out.
    shown: String,
    /// The current attempt.
    current: Option<AttemptId>,
    /// While a later attempt repeats what was shown: how many bytes of it agree.
    repeated: Option<usize>,
    /// Deltas of the current attempt beyond a gap, by offset.
    ahead: BTreeMap<u64, String>,
    /// Deltas of an attempt that nobody has named yet.
    unknown: Vec<Delta>,
    /// Bytes in `ahead` and `unknown`.
    waiting: usize,
    /// Attempts that are not the job's current one, and never will be.
    dead: HashSet<AttemptId>,
    /// How long the output of the current attempt is, once its node said so.
    length: Option<u64>,
}

impl Assembly {
    /// Returns the attempt whose deltas are taken.
    pub(super) fn current(&self) -> Option<AttemptId> {
        self.current
    }

    /// Returns what was given out.
    pub(super) fn shown(&self) -> &str {
        &self.shown
    }

    /// Bytes of the current attempt's output that are here without a gap.
    pub(super) fn received(&self) -> u64 {
        self.repeated.unwrap_or(self.shown.len()) as u64
    }

    /// Says whether a part of the current attempt's output is known to be
    /// missing.
    pub(super) fn has_gap(&self) -> bool {
        !self.ahead.is_empty() || self.length.is_some_and(|length| length > self.received())
    }

    /// Says whether the current attempt's output is here, whole.
    pub(super) fn is_whole(&self) -> bool {
        self.length.is_some_and(|length| length <= self.received())
    }

    /// Takes a call's word for which attempt is the current one.
    pub(super) fn set_current(&mut self, attempt: Option<AttemptId>) -> Vec<Piece> {
        if self.current == attempt {
            return self.settle_unknown();
        }
        if let Some(old) = self.current.take() {
            self.bury(old);
        }
        self.current = attempt;
        self.length = None;
        self.waiting -= self.ahead.values().map(String::len).sum::<usize>();
        self.ahead.clear();
        // Whatever comes next starts at byte 0 again.
        self.repeated = (!self.shown.is_empty()).then_some(0);
        self.settle_unknown()
    }

    /// Takes a call's word that an attempt is over without a result.
    pub(super) fn bury(&mut self, attempt: AttemptId) {
        if self.dead.len() < DEAD_LIMIT {
            self.dead.insert(attempt);
        }
    }

    /// Gives the deltas that waited for a name to the attempt that has one, and
    /// drops those of others.
    fn settle_unknown(&mut self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for delta in std::mem::take(&mut self.unknown) {
            self.waiting -= delta.text.len();
            if Some(delta.attempt) == self.current {
                self.take(delta, &mut pieces);
            } else {
                self.bury(delta.attempt);
            }
        }
        pieces
    }

    /// Takes a delta in.
    pub(super) fn delta(&mut self, delta: Delta, pieces: &mut Vec<Piece>) -> Verdict {
        if Some(delta.attempt) == self.current {
            self.take(delta, pieces);
            return if self.ahead.is_empty() { Verdict::Taken } else { Verdict::Gap };
        }
        if self.dead.contains(&delta.attempt) {
            return Verdict::Taken;
        }
        if self.waiting + delta.text.len() <= WAITING_LIMIT {
            self.waiting += delta.text.len();
            self.unknown.push(delta);
        }
        Verdict::Unknown
    }

    /// Takes the node's word for how long the output is.
    pub(super) fn end(&mut self, attempt: AttemptId, length: u64) {
        if Some(attempt) == self.current {
            self.length = Some(length);
        }
    }

    /// Takes the whole output from the job's row.
    pub(super) fn finish(&mut self, output: &str) -> Option<Piece> {
        if let Some(rest) = output.strip_prefix(self.shown.as_str()) {
            let rest = rest.to_owned();
            self.shown.push_str(&rest);
            return (!rest.is_empty()).then_some(Piece::Text(rest));
        }
        self.shown = output.to_owned();
        Some(Piece::Instead(output.to_owned()))
    }

    fn take(&mut self, delta: Delta, pieces: &mut Vec<Piece>) {
        if delta.offset > self.received() {
            if self.waiting + delta.text.len() <= WAITING_LIMIT {
                self.waiting += delta.text.len();
                if let Some(doubled) = self.ahead.insert(delta.offset, delta.text) {
                    self.waiting -= doubled.len();
                }
            }
            return;
        }
        self.append(delta.offset, &delta.text, pieces);
        while let Some(next) = self.ahead.first_entry() {
            if *next.key() > self.repeated.unwrap_or(self.shown.len()) as u64 {
                break;
            }
            let (offset, text) = next.remove_entry();
            self.waiting -= text.len();
            self.append(offset, &text, pieces);
        }
    }

    /// Appends what of a text at an offset is new. `offset` is not beyond what
    /// was received.
    fn append(&mut self, offset: u64, text: &str, pieces: &mut Vec<Piece>) {
        // The offset is at most what was received, which fits memory.
        let known = (self.received() - offset) as usize;
        let Some(new) = text.get(known..).filter(|new| !new.is_empty()) else {
            // Wholly known, or cut within a character, which no node does.
            return;
        };
        let Some(agreed) = self.repeated else {
            self.shown.push_str(new);
            pieces.push(Piece::Text(new.to_owned()));
            return;
        };
        // A later attempt: as long as it writes what was shown, nothing is
        // shown twice.
        let old = &self.shown[agreed..];
        if old.starts_with(new) {
            let agreed = agreed + new.len();
            self.repeated = (agreed < self.shown.len()).then_some(agreed);
        } else if let Some(rest) = new.strip_prefix(old) {
            let rest = rest.to_owned();
            self.repeated = None;
            self.shown.push_str(&rest);
            pieces.push(Piece::Text(rest));
        } else {
            self.repeated = None;
            self.shown.truncate(agreed);
            self.shown.push_str(new);
            pieces.push(Piece::Instead(self.shown.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(number: u128) -> AttemptId {
        AttemptId::from_uuid(uuid::Uuid::from_u128(number))
    }

    fn delta(number: u128, offset: u64, text: &str) -> Delta {
        Delta { attempt: attempt(number), offset, text: text.to_owned() }
    }

    /// Takes deltas in and returns what a reader would have on the screen.
    fn read(assembly: &mut Assembly, deltas: &[Delta]) -> (String, Vec<Verdict>) {
        let mut pieces = Vec::new();
        let verdicts =
            deltas.iter().map(|delta| assembly.delta(delta.clone(), &mut pieces)).collect();
        let mut screen = String::new();
        for piece in pieces {
            match piece {
                Piece::Text(text) => screen.push_str(&text),
                Piece::Instead(text) => screen = text,
            }
        }
        (screen, verdicts)
    }

    fn of_first() -> Assembly {
        let mut assembly = Assembly::default();
        assembly.set_current(Some(attempt(1)));
        assembly
    }

    #[test]
    fn deltas_come_out_once_and_in_order() {
        let mut assembly = of_first();
        let (screen, verdicts) = read(
            &mut assembly,
            &[
                delta(1, 0, "Hé"),
                delta(1, 5, "o"),
                delta(1, 5, "o"),
                delta(1, 0, "Hél"),
                delta(1, 3, "ll"),
            ],
        );
        assert_eq!(screen, "Héllo");
        assert_eq!(
            verdicts,
            [Verdict::Taken, Verdict::Gap, Verdict::Gap, Verdict::Gap, Verdict::Taken]
        );
        assert_eq!(assembly.waiting, 0);
        assembly.end(attempt(1), 6);
        assert!(assembly.is_whole());
    }

    #[test]
    fn a_delta_of_nobody_waits_for_a_call() {
        let mut assembly = of_first();
        let (screen, verdicts) = read(&mut assembly, &[delta(1, 0, "ab"), delta(2, 0, "ab")]);
        assert_eq!((screen.as_str(), verdicts[1]), ("ab", Verdict::Unknown));
        let (_, verdicts) = read(&mut assembly, &[delta(2, 2, "cd")]);
        assert_eq!(verdicts, [Verdict::Unknown]);
        assert_eq!(assembly.set_current(Some(attempt(2))), [Piece::Text("cd".into())]);
        let (screen, verdicts) = read(&mut assembly, &[delta(1, 2, "fenced"), delta(2, 4, "e")]);
        assert_eq!((screen.as_str(), verdicts[0]), ("e", Verdict::Taken));
        assert_eq!(assembly.shown(), "abcde");
    }

    #[test]
    fn a_call_that_names_another_attempt_drops_the_deltas_of_strangers() {
        let mut assembly = of_first();
        read(&mut assembly, &[delta(9, 0, "not the job's")]);
        assert_eq!(assembly.set_current(Some(attempt(1))), []);
        let (screen, verdicts) = read(&mut assembly, &[delta(9, 13, "!"), delta(1, 0, "a")]);
        assert_eq!((screen.as_str(), verdicts[0]), ("a", Verdict::Taken));
        assert_eq!(assembly.waiting, 0);
    }

    #[test]
    fn a_second_attempt_that_writes_something_else_replaces_the_first() {
        let mut assembly = of_first();
        read(&mut assembly, &[delta(1, 0, "one two")]);
        assembly.set_current(Some(attempt(2)));
        let mut pieces = Vec::new();
        assembly.delta(delta(2, 0, "one "), &mut pieces);
        assert_eq!(pieces, [], "what agrees is not shown twice");
        assert_eq!(assembly.received(), 4);
        assembly.delta(delta(2, 4, "three"), &mut pieces);
        assert_eq!(pieces, [Piece::Instead("one three".into())]);
        assert_eq!(assembly.received(), 9);
    }

    #[test]
    fn the_row_fills_what_never_arrived() {
        let mut assembly = of_first();
        read(&mut assembly, &[delta(1, 0, "one"), delta(1, 7, "!")]);
        assert!(assembly.has_gap());
        assert_eq!(assembly.finish("one two!"), Some(Piece::Text(" two!".into())));
        assert_eq!(assembly.finish("one two!"), None);
        assert_eq!(assembly.finish("two"), Some(Piece::Instead("two".into())));
    }

    #[test]
    fn any_order_and_any_loss_with_resends_ends_in_the_same_text() {
        let text: String = (0..400).map(|n| format!("wörd{n} ")).collect();
        for seed in 0..50 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut deltas = Vec::new();
            let mut offset = 0;
            for part in text.split_inclusive(' ') {
                deltas.push(delta(1, offset, part));
                offset += part.len() as u64;
            }
            let mut assembly = of_first();
            let mut screen = String::new();
            while assembly.received() < text.len() as u64 {
                let from = assembly.received();
                let mut round: Vec<_> = deltas
                    .iter()
                    .filter(|delta| delta.offset >= from && random.u8(..) >= 51)
                    .cloned()
                    .collect();
                random.shuffle(&mut round);
                screen.push_str(&read(&mut assembly, &round).0);
            }
            assert_eq!(screen, text, "seed {seed}");
            assert_eq!(assembly.waiting, 0, "seed {seed}");
        }
    }
}
