//! The complaints of NVIDIA's driver in the kernel's log.
//!
//! Each has a number, an Xid, whose meaning NVIDIA documents ("Xid Errors", GPU
//! deployment and management). A line reads
//! `NVRM: Xid (PCI:0000:65:00): 79, pid=…, GPU has fallen off the bus.`
//! Only the number and what is said are kept: a line also names a program of the
//! machine.

use std::fmt;

use serde::Serialize;

/// The most that is kept of what a complaint says, in bytes.
const SAID_BYTES: usize = 160;

/// A complaint of the driver about a card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Xid {
    /// Its number.
    pub number: u32,
    /// How often it was found.
    pub times: u32,
    /// What the driver said, the last time.
    pub said: String,
}

/// Whose fault a complaint is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gravity {
    /// A program did something wrong; the card is well.
    Program,
    /// The card mended itself, and should be reset.
    Wear,
    /// The card, its memory or its firmware fails.
    Card,
}

impl Xid {
    /// Says whose fault it is. Numbers that are not known here are a program's.
    #[must_use]
    pub fn gravity(&self) -> Gravity {
        match self.number {
            // 48: memory lost data; 62: its controller stopped; 64: rows cannot be
            // replaced; 74: NVLink; 79: fallen off the bus; 95: lost data that may have
            // spread; 119 and 120: its firmware (GSP) does not answer; 140 and 143:
            // memory that cannot be repaired, a start that failed; 154: needs a reset.
            48 | 62 | 64 | 74 | 79 | 95 | 119 | 120 | 140 | 143 | 154 => Gravity::Card,
            // 63: rows are replaced at the next reset; 94: lost data of one program
            // alone; 92: many errors that were corrected.
            63 | 92 | 94 => Gravity::Wear,
            _ => Gravity::Program,
        }
    }
}

impl fmt::Display for Xid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "The driver reported Xid {}", self.number)?;
        if self.times > 1 {
            write!(formatter, " {} times", self.times)?;
        }
        let said = self.said.trim_end_matches('.');
        if said.is_empty() { formatter.write_str(".") } else { write!(formatter, ": {said}.") }
    }
}

/// Reads a line of the kernel's log; `None` when it is no complaint. Returns the card's
/// place on the bus with it.
#[must_use]
pub fn parse(line: &str) -> Option<(String, Xid)> {
    let (_, rest) = line.split_once("NVRM: Xid (PCI:")?;
    let (place, rest) = rest.split_once("): ")?;
    let mut parts = rest.trim().splitn(2, ", ");
    let number = parts.next()?.parse().ok()?;
    let said = without_program(parts.next().unwrap_or_default());
    Some((place.to_owned(), Xid { number, times: 1, said }))
}

/// Leaves out the program that a complaint names, and shortens the rest.
fn without_program(text: &str) -> String {
    let mut parts = text.split(", ").peekable();
    while parts.peek().is_some_and(|part| {
        ["pid=", "name=", "channel "].iter().any(|word| part.to_ascii_lowercase().starts_with(word))
    }) {
        parts.next();
    }
    let mut said: String =
        parts.collect::<Vec<_>>().join(", ").chars().filter(|c| !c.is_control()).collect();
    let end = (0..=SAID_BYTES.min(said.len())).rev().find(|&end| said.is_char_boundary(end));
    said.truncate(end.unwrap_or(0));
    said
}

/// Returns a place on the bus as the kernel's log writes it: the driver's library
/// writes a domain of eight digits and the function as well.
#[must_use]
pub fn short_bus_id(bus_id: &str) -> String {
    let lower = bus_id.to_ascii_lowercase();
    let without_function = lower.split('.').next().unwrap_or_default();
    match without_function.split_once(':') {
        Some((domain, rest)) => {
            let domain = domain.trim_start_matches('0');
            format!("{domain:0>4}:{rest}")
        }
        None => without_function.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_read_from_the_kernels_log() {
        let line = "3,1183,501209394187,-;NVRM: Xid (PCI:0000:65:00): 79, pid='<unknown>', \
                    name=<unknown>, GPU has fallen off the bus.";
        let (place, xid) = parse(line).unwrap();
        assert_eq!(place, "0000:65:00");
        assert_eq!((xid.number, xid.gravity()), (79, Gravity::Card));
        assert_eq!(xid.said, "GPU has fallen off the bus.");
        let line = "NVRM: Xid (PCI:0000:17:00): 31, pid=4242, name=secret-program, Ch 00000008, \
                    intr 10000000. MMU Fault";
        let (_, xid) = parse(line).unwrap();
        assert_eq!(xid.gravity(), Gravity::Program);
        assert_eq!(xid.said, "Ch 00000008, intr 10000000. MMU Fault");
        // An old driver's line, without a program.
        let (_, xid) = parse("NVRM: Xid (PCI:0000:3b:00): 48, DBE (double bit error)").unwrap();
        assert_eq!(xid.to_string(), "The driver reported Xid 48: DBE (double bit error).");
        assert_eq!(parse("usb 1-1: new device"), None);
        assert_eq!(parse("NVRM: Xid (PCI:0000:3b:00): many"), None);
    }

    #[test]
    fn a_place_on_the_bus_has_one_form() {
        for bus_id in ["0000:65:00", "00000000:65:00.0", "0000:65:00.0"] {
            assert_eq!(short_bus_id(bus_id), "0000:65:00");
        }
        assert_eq!(short_bus_id("00010001:AF:00.0"), "10001:af:00");
    }
}
