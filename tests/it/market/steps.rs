//! What may happen in a market, as random lists of steps: generated and
//! shortened here, carried out by `market_property`.
//!
//! A step names nodes, consumers and attempts by small numbers, which are read
//! modulo what there is at that moment. So any part of a list is a list too, and
//! a failing one is shortened by leaving parts out.

use std::cell::Cell;
use std::rc::Rc;

use proptest::prelude::*;
use proptest::strategy::{NewTree, ValueTree};
use proptest::test_runner::TestRunner;

/// Which of its running attempts a node names when it calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Named {
    All,
    /// All but the first.
    ButOne,
    None,
}

/// What a consumer is ready to pay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Maximum {
    Unsaid,
    /// Below most offers.
    Low,
    Enough,
    /// More than anybody has.
    TooMuch,
}

/// What else a job asks for; mostly nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Terms {
    pub(crate) priority: i16,
    pub(crate) delay_secs: u16,
    pub(crate) excluded: Option<u8>,
    pub(crate) wants_label: bool,
}

/// One thing that happens.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Submit {
        consumer: u8,
        model: u8,
        tokens: u16,
        maximum: Maximum,
        deadline_secs: u16,
        terms: Terms,
    },
    /// As `Submit`, for several items at once; under the id of an earlier job
    /// where `takes_id`.
    SubmitBatch {
        consumer: u8,
        model: u8,
        tokens: u16,
        items: u8,
        terms: Terms,
        takes_id: bool,
    },
    SubmitBatchAgain {
        batch: u8,
        is_changed: bool,
        is_other: bool,
    },
    CancelBatch {
        batch: u8,
        is_other: bool,
    },
    /// Among all jobs where `any`, else among those that failed.
    Retry {
        job: u8,
        any: bool,
        is_other: bool,
    },
    Discard {
        job: u8,
        any: bool,
        is_other: bool,
    },
    SubmitAgain {
        job: u8,
        is_changed: bool,
        is_other: bool,
    },
    Claim {
        node: u8,
        named: Named,
        restart: bool,
    },
    Heartbeat {
        node: u8,
        named: Named,
        draining: bool,
    },
    /// Among all attempts where `any`, else among the offered ones.
    Start {
        attempt: u8,
        any: bool,
        lease: u8,
        is_other: bool,
    },
    /// Among all attempts where `any`, else among the running ones.
    Complete {
        attempt: u8,
        any: bool,
        is_wrong_lease: bool,
        bytes: u16,
        tokens: u16,
        is_stop: bool,
    },
    /// All that is offered to a node, and another one of its attempts.
    StartMany {
        node: u8,
        other: u8,
    },
    /// All that a node runs, and another one of its attempts.
    CompleteMany {
        node: u8,
        other: u8,
        is_wrong_lease: bool,
        bytes: u16,
        tokens: u16,
    },
    Fail {
        attempt: u8,
        any: bool,
        is_wrong_lease: bool,
        code: u8,
        retry: bool,
    },
    Cancel {
        job: u8,
        any: bool,
        is_other: bool,
    },
    Leave {
        node: u8,
    },
    Register {
        node: u8,
        slots: u8,
        price: u8,
        both: bool,
        is_labelled: bool,
    },
    /// The node is not heard of until it registers.
    Silence {
        node: u8,
    },
    Approve {
        node: u8,
        is_approved: bool,
    },
    /// The owner of a node, or an operator, takes it out of the market.
    Drain {
        node: u8,
        is_operator: bool,
    },
    Resume {
        node: u8,
        is_operator: bool,
    },
    /// Time passes as it should: nodes send heartbeats, then the tick runs.
    Beat {
        secs: u8,
    },
    /// Time passes with ticks, and no node is heard of.
    Wait {
        secs: u8,
    },
    Tick,
    /// The clock jumps, as after an outage of our own.
    Jump {
        secs: u16,
    },
}

fn named() -> impl Strategy<Value = Named> {
    prop_oneof![8 => Just(Named::All), 1 => Just(Named::ButOne), 1 => Just(Named::None)]
}

fn rarely() -> impl Strategy<Value = bool> {
    prop::bool::weighted(0.1)
}

fn terms() -> impl Strategy<Value = Terms> {
    let some = (
        prop_oneof![1 => Just(3), 9 => -2..1_i16],
        prop_oneof![2 => Just(0), 1 => 1..30_u16],
        proptest::option::weighted(0.3, 0..4_u8),
        prop::bool::weighted(0.3),
    );
    let some = some.prop_map(|(priority, delay_secs, excluded, wants_label)| Terms {
        priority,
        delay_secs,
        excluded,
        wants_label,
    });
    prop_oneof![1 => Just(Terms::default()), 1 => some]
}

fn step() -> impl Strategy<Value = Step> {
    let maximum = prop_oneof![
        4 => Just(Maximum::Unsaid),
        2 => Just(Maximum::Low),
        6 => Just(Maximum::Enough),
        1 => Just(Maximum::TooMuch)
    ];
    let deadline = prop_oneof![1 => 1..12_u16, 4 => Just(600_u16)];
    prop_oneof![
        20 => (0..3_u8, 0..2_u8, 1..200_u16, maximum, deadline, terms()).prop_map(
            |(consumer, model, tokens, maximum, deadline_secs, terms)|
            Step::Submit { consumer, model, tokens, maximum, deadline_secs, terms }),
        2 => (0..3_u8, 0..2_u8, 1..200_u16, 1..7_u8, terms(), rarely()).prop_map(
            |(consumer, model, tokens, items, terms, takes_id)|
            Step::SubmitBatch { consumer, model, tokens, items, terms, takes_id }),
        1 => (any::<u8>(), any::<bool>(), rarely()).prop_map(
            |(batch, is_changed, is_other)| Step::SubmitBatchAgain { batch, is_changed, is_other }),
        1 => (any::<u8>(), rarely()).prop_map(
            |(batch, is_other)| Step::CancelBatch { batch, is_other }),
        3 => (any::<u8>(), rarely(), rarely()).prop_map(
            |(job, any, is_other)| Step::Retry { job, any, is_other }),
        1 => (any::<u8>(), rarely(), rarely()).prop_map(
            |(job, any, is_other)| Step::Discard { job, any, is_other }),
        3 => (any::<u8>(), any::<bool>(), rarely()).prop_map(
            |(job, is_changed, is_other)| Step::SubmitAgain { job, is_changed, is_other }),
        4 => (0..4_u8, named(), rarely()).prop_map(
            |(node, named, restart)| Step::Claim { node, named, restart }),
        8 => (0..4_u8, named(), rarely()).prop_map(
            |(node, named, draining)| Step::Heartbeat { node, named, draining }),
        18 => (any::<u8>(), rarely(), 0..3_u8, rarely()).prop_map(
            |(attempt, any, lease, is_other)| Step::Start { attempt, any, lease, is_other }),
        14 => (any::<u8>(), rarely(), rarely(), 0..60_u16, 0..60_u16, any::<bool>()).prop_map(
            |(attempt, any, is_wrong_lease, bytes, tokens, is_stop)|
            Step::Complete { attempt, any, is_wrong_lease, bytes, tokens, is_stop }),
        3 => (0..4_u8, any::<u8>()).prop_map(|(node, other)| Step::StartMany { node, other }),
        3 => (0..4_u8, any::<u8>(), rarely(), 0..60_u16, 0..60_u16).prop_map(
            |(node, other, is_wrong_lease, bytes, tokens)|
            Step::CompleteMany { node, other, is_wrong_lease, bytes, tokens }),
        6 => (any::<u8>(), rarely(), rarely(), 0..5_u8, prop::bool::weighted(0.8)).prop_map(
            |(attempt, any, is_wrong_lease, code, retry)|
            Step::Fail { attempt, any, is_wrong_lease, code, retry }),
        5 => (any::<u8>(), rarely(), rarely()).prop_map(
            |(job, any, is_other)| Step::Cancel { job, any, is_other }),
        2 => (0..4_u8).prop_map(|node| Step::Leave { node }),
        5 => (0..4_u8, 1..4_u8, 1..5_u8, any::<bool>(), any::<bool>()).prop_map(
            |(node, slots, price, both, is_labelled)|
            Step::Register { node, slots, price, both, is_labelled }),
        1 => (0..4_u8).prop_map(|node| Step::Silence { node }),
        2 => (0..4_u8, prop::bool::weighted(0.7)).prop_map(
            |(node, is_approved)| Step::Approve { node, is_approved }),
        1 => (0..4_u8, any::<bool>()).prop_map(
            |(node, is_operator)| Step::Drain { node, is_operator }),
        2 => (0..4_u8, prop::bool::weighted(0.7)).prop_map(
            |(node, is_operator)| Step::Resume { node, is_operator }),
        12 => (1..5_u8).prop_map(|secs| Step::Beat { secs }),
        1 => (1..30_u8).prop_map(|secs| Step::Wait { secs }),
        4 => Just(Step::Tick),
        2 => prop_oneof![Just(1_u16), Just(4), Just(11), Just(16), Just(40), Just(700), Just(3600)]
            .prop_map(|secs| Step::Jump { secs }),
    ]
}

/// Lists of steps.
#[derive(Clone, Debug)]
pub(crate) struct Steps {
    pub(crate) len: usize,
    /// Where the last run failed, counted in steps; 0 after the last step.
    pub(crate) failed_at: Rc<Cell<usize>>,
}

impl Strategy for Steps {
    type Tree = StepsTree;
    type Value = Vec<Step>;

    fn new_tree(&self, runner: &mut TestRunner) -> NewTree<Self> {
        let kind = step().boxed();
        let steps = (0..self.len)
            .map(|_| kind.new_tree(runner).map(|tree| tree.current()))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(StepsTree {
            chunk: 0,
            end: 0,
            has_shortened: false,
            failing: steps.clone(),
            current: steps,
            failed_at: Rc::clone(&self.failed_at),
        })
    }
}

/// A failing list that gets shorter: what comes after the failure goes, then half
/// of the rest is left out, then quarters, and so on down to single steps, from
/// the end to the beginning.
#[derive(Debug)]
pub(crate) struct StepsTree {
    /// The shortest list that is known to fail.
    failing: Vec<Step>,
    current: Vec<Step>,
    chunk: usize,
    /// Steps before this one have not been left out yet, at this size.
    end: usize,
    has_shortened: bool,
    failed_at: Rc<Cell<usize>>,
}

impl StepsTree {
    /// Leaves the next part out; false when there is none.
    fn leave_out(&mut self) -> bool {
        if self.end == 0 {
            if self.chunk == 1 && !self.has_shortened {
                return false;
            }
            self.chunk = (self.chunk / 2).max(1);
            self.has_shortened = false;
            self.end = self.failing.len();
        }
        if self.failing.len() <= 1 {
            return false;
        }
        let start = self.end.saturating_sub(self.chunk);
        self.current = self.failing.clone();
        self.current.drain(start..self.end);
        self.end = start;
        true
    }
}

impl ValueTree for StepsTree {
    type Value = Vec<Step>;

    fn current(&self) -> Self::Value {
        self.current.clone()
    }

    /// Is called when `current` has failed.
    fn simplify(&mut self) -> bool {
        self.has_shortened |= self.current.len() < self.failing.len();
        self.failing = self.current.clone();
        if self.failed_at.get() > 0 {
            self.failing.truncate(self.failed_at.get());
            self.end = self.end.min(self.failing.len());
        }
        if self.chunk == 0 {
            self.chunk = self.failing.len().max(2);
        }
        self.leave_out()
    }

    fn complicate(&mut self) -> bool {
        self.current = self.failing.clone();
        self.leave_out()
    }
}
