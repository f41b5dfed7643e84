# `just` lists these.

set shell := ["bash", "-euo", "pipefail", "-c"]

[private]
default:
    @just --list --unsorted

# Set up a control plane and a node, ask the model a question, watch the answer
try *arguments:
    scripts/try {{ arguments }}

# Install what the tests need and run all of them, or the named stages
test *stages:
    scripts/test {{ stages }}

# Format, lints, unit tests and the SQL tests on PostgreSQL 15: two minutes
quick:
    scripts/test quick

# The long form of all tests: an hour and more
nightly:
    scripts/test --long

# Write down which tests there are, after a look at what disappears
kept:
    scripts/kept-tests --write
    git diff --stat -- tests/kept.txt

# Run the Rust tests that match a filter
unit *filter:
    cargo nextest run {{ filter }}

# Run the SQL tests on PostgreSQL 15, 15 with pg_cron, and 18
pgtap *arguments:
    scripts/pgtap {{ arguments }}

# Kill, stop, cut and fill at random moments while jobs run, and print what came of it
chaos *arguments:
    scripts/chaos {{ arguments }}

# Measure: dispatch, overhead, streams, footprint, market or feed
bench name *arguments:
    scripts/bench {{ name }} {{ arguments }}

# Check format, lints, dependencies and scripts
lint:
    scripts/test fmt kept clippy deny shell

# Format the Rust code
fmt:
    cargo fmt
