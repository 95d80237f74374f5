//! Asks the head for its time, and corrects this clock. The one place that joins questions, answers and what follows.

use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use cid_protocol::node::TimeQuestion;

use super::discipline::Discipline;
use super::ntp::{self, Question};

/// This node's clock beside the head's.
#[derive(Debug, Default)]
pub(crate) struct Timekeeper {
    discipline: Discipline,
    question: Option<Question>,
    /// This clock when the last answer was read, in microseconds since 1970.
    heard_unix_us: Option<u64>,
}

impl Timekeeper {
    /// The head welcomed this node.
    pub(crate) fn handle_up(&mut self, now: Duration) {
        self.discipline.handle_up(now);
    }

    /// There is no head to ask.
    pub(crate) fn handle_down(&mut self) {
        *self = Self::default();
    }

    /// When [`Self::handle_deadline`] wants to be called.
    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        self.discipline.next_deadline()
    }

    /// What to ask the head now, if anything.
    pub(crate) fn handle_deadline(&mut self, now: Duration) -> Option<TimeQuestion> {
        if !self.discipline.asks(now) {
            return None;
        }
        let (question, packet) = ntp::ask(super::now())?;
        self.question = Some(question);
        Some(TimeQuestion {
            packet: BASE64_STANDARD.encode(packet),
            heard_unix_us: self.heard_unix_us.take(),
        })
    }

    /// The head answered.
    pub(crate) fn handle_answer(&mut self, now: Duration, packet: &str) {
        let clock = super::now();
        let (Some(question), Ok(packet)) = (self.question.take(), BASE64_STANDARD.decode(packet)) else {
            return;
        };
        let sample = match ntp::read(question, packet, clock) {
            Ok(sample) => sample,
            Err(error) => return log!("cid-agent: the head's time is no answer: {error}"),
        };
        self.heard_unix_us = u64::try_from(clock.as_micros()).ok();
        if let Some(correction) = self.discipline.handle_sample(now, sample) {
            super::correct(correction);
            // What was read before a step is of another clock.
            if matches!(correction, super::discipline::Correction::Step(_)) {
                self.heard_unix_us = None;
            }
        }
    }
}
