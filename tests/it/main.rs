//! Integration tests, one binary: each module is a topic.

#[cfg(feature = "stack")]
mod stack_database;
