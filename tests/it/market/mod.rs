//! The market in SQL: races, collisions, outages, retention, and random lives against
//! a model of it.

mod collisions;
pub(crate) mod model;
mod outages;
pub(crate) mod property;
mod races;
mod retention;
pub(crate) mod steps;
