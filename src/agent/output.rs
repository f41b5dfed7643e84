//! The output of one attempt: collected whole, published in paced pieces.
//!
//! Offsets are bytes of the UTF-8 output. Realtime counts every delivery
//! against a budget of the whole project, so the control plane gives each node
//! a share in messages per second; the first piece goes out at once, what
//! comes between two sendings is joined into one piece. A consumer that missed
//! something asks to hear again from an offset: that only moves the cursor
//! back, so that a repeat obeys the same share.

use std::time::Duration;

use tokio::time::Instant;

/// The longest piece of text in one message, in bytes. Small enough for the
/// payload limit of every Supabase plan after JSON has escaped it.
const PIECE_BYTES: usize = 32 * 1024;

/// A piece of the output on its way to the consumer.
#[derive(Debug, PartialEq)]
pub(super) struct Piece<'a> {
    /// Where it starts, in bytes.
    pub(super) offset: usize,
    /// The text.
    pub(super) text: &'a str,
}

/// Collects an output up to a limit and hands out the pieces to publish.
#[derive(Debug)]
pub(super) struct Output {
    text: String,
    limit: usize,
    published: usize,
    rate: f64,
    next_at: Option<Instant>,
}

impl Output {
    /// Makes an empty output of at most `limit` bytes, published with at most
    /// `rate` messages per second (0: not at all).
    pub(super) fn new(limit: usize, rate: f64) -> Self {
        Self { text: String::new(), limit, published: 0, rate, next_at: None }
    }

    /// Appends what the engine wrote. Answers false when the limit is reached;
    /// the output then ends at the last whole character within it.
    ///
    /// NUL, which PostgreSQL's text cannot hold, is left out.
    pub(super) fn push(&mut self, delta: &str) -> bool {
        let room = self.limit - self.text.len();
        let mut fits = true;
        if delta.contains('\0') {
            let clean = delta.replace('\0', "");
            fits &= push_within(&mut self.text, &clean, room);
        } else {
            fits &= push_within(&mut self.text, delta, room);
        }
        fits
    }

    /// Gives the whole output so far.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Takes the whole output.
    pub(super) fn into_text(self) -> String {
        self.text
    }

    /// Changes the share, in messages per second.
    pub(super) fn set_rate(&mut self, rate: f64, now: Instant) {
        if rate != self.rate {
            self.rate = rate;
            // A pause that an old share set must not outlive it.
            if let (Some(at), Some(pause)) = (self.next_at, self.pause()) {
                self.next_at = Some(at.min(now + pause));
            }
        }
    }

    /// Says whether anything may be published at all.
    pub(super) fn may_publish(&self) -> bool {
        self.rate > 0.0
    }

    /// Moves the cursor back to an offset that a consumer asked for.
    pub(super) fn rewind(&mut self, from: usize) {
        let mut from = from.min(self.published);
        while !self.text.is_char_boundary(from) {
            from -= 1;
        }
        self.published = from;
    }

    /// Says when the next piece may go out, not before `now`: `None` when
    /// nothing waits or nothing may be published.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        if self.published == self.text.len() || !self.may_publish() {
            return None;
        }
        Some(self.next_at.map_or(now, |at| at.max(now)))
    }

    /// Takes the next piece, whatever the pace, and starts the pause after it.
    pub(super) fn take(&mut self, now: Instant) -> Option<Piece<'_>> {
        let pause = self.pause()?;
        let offset = self.published;
        let mut end = self.text.len().min(offset + PIECE_BYTES);
        while !self.text.is_char_boundary(end) {
            end -= 1;
        }
        if end == offset {
            return None;
        }
        self.published = end;
        self.next_at = Some(now + pause);
        Some(Piece { offset, text: &self.text[offset..end] })
    }

    fn pause(&self) -> Option<Duration> {
        (self.rate > 0.0).then(|| Duration::from_secs_f64((1.0 / self.rate).min(60.0)))
    }
}

/// Appends as much of `delta` as fits in `room` bytes; says whether all did.
fn push_within(text: &mut String, delta: &str, room: usize) -> bool {
    let mut end = delta.len().min(room);
    while !delta.is_char_boundary(end) {
        end -= 1;
    }
    text.push_str(&delta[..end]);
    end == delta.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_piece_goes_at_once_and_later_ones_are_joined() {
        let mut output = Output::new(1000, 10.0);
        let now = Instant::now();
        assert_eq!(output.due(now), None);
        output.push("a");
        assert_eq!(output.due(now), Some(now));
        assert_eq!(output.take(now), Some(Piece { offset: 0, text: "a" }));
        output.push("b");
        output.push("c");
        assert_eq!(output.due(now), Some(now + Duration::from_millis(100)));
        assert_eq!(output.take(now), Some(Piece { offset: 1, text: "bc" }));
        assert_eq!(output.take(now), None);
    }

    #[test]
    fn without_a_share_nothing_is_published() {
        let mut output = Output::new(1000, 0.0);
        output.push("a");
        let now = Instant::now();
        assert_eq!(output.due(now), None);
        assert_eq!(output.take(now), None);
        output.set_rate(5.0, now);
        assert_eq!(output.take(now), Some(Piece { offset: 0, text: "a" }));
    }

    #[test]
    fn a_larger_share_shortens_a_running_pause() {
        let mut output = Output::new(1000, 0.1);
        output.push("a");
        let now = Instant::now();
        output.take(now);
        output.push("b");
        assert_eq!(output.due(now), Some(now + Duration::from_secs(10)));
        output.set_rate(10.0, now);
        assert_eq!(output.due(now), Some(now + Duration::from_millis(100)));
    }

    #[test]
    fn a_repeat_starts_at_a_character_and_never_beyond_what_was_said() {
        let mut output = Output::new(1000, 10.0);
        output.push("aé");
        let now = Instant::now();
        output.take(now);
        output.rewind(2);
        assert_eq!(output.take(now), Some(Piece { offset: 1, text: "é" }));
        output.push("x");
        output.rewind(900);
        assert_eq!(output.take(now), Some(Piece { offset: 3, text: "x" }));
    }

    #[test]
    fn long_output_is_cut_into_pieces_at_characters() {
        let mut output = Output::new(1 << 20, 10.0);
        output.push(&"é".repeat(PIECE_BYTES));
        output.push("\0z");
        let now = Instant::now();
        let mut whole = String::new();
        while let Some(piece) = output.take(now) {
            assert_eq!(piece.offset, whole.len());
            assert!(piece.text.len() <= PIECE_BYTES);
            whole.push_str(piece.text);
        }
        assert_eq!(whole, format!("{}z", "é".repeat(PIECE_BYTES)));
    }

    #[test]
    fn the_limit_cuts_at_a_character() {
        let mut output = Output::new(4, 10.0);
        assert!(output.push("abc"));
        assert!(!output.push("éd"));
        assert_eq!(output.text(), "abc");
        assert!(!output.push("é"));
        assert!(output.push("d"));
        assert!(!output.push("e"));
        assert_eq!(output.text(), "abcd");
    }
}
