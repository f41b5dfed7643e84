//! GPUs as their driver describes them, and what is to be thought of them.
//!
//! [`GpuDriver`] is the list of questions that a driver is asked; [`super::nvml`] asks
//! NVIDIA's. Whatever follows from the answers is decided here, so that recorded
//! answers of good, sick and partitioned cards test it on machines without any.
//!
//! Invariant: a card that refuses one question still answers the others; one that
//! answers none is reported as sick, and never hides its neighbours.

use std::fmt;

use serde::Serialize;

use super::xid::{self, Xid};

/// A card, or an instance that a partitioned card (MIG) was cut into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The card, counted from 0.
    pub card: u32,
    /// The instance on it, counted from 0; `None` is the card itself.
    pub instance: Option<u32>,
}

impl Place {
    /// Names a whole card.
    #[must_use]
    pub const fn card(card: u32) -> Self {
        Self { card, instance: None }
    }
}

/// Why a driver does not answer a question.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// This card cannot tell, now or ever.
    #[error("the card does not tell")]
    NotSupported,
    /// There is no such instance.
    #[error("there is no such instance")]
    NotFound,
    /// This user may not know.
    #[error("this user may not ask")]
    NoPermission,
    /// The card has fallen off the bus.
    #[error("the card is no longer on the bus")]
    Lost,
    /// The card works again only after a reset.
    #[error("the card needs a reset")]
    ResetRequired,
    /// Anything else, in the driver's words.
    #[error("{0}")]
    Other(String),
}

/// Memory of a card or instance, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Its size.
    pub total: u64,
    /// What programs hold of it.
    pub used: u64,
}

/// Rows of memory that the card wants to replace by spare ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Remapping {
    /// Some are replaced at the next reset.
    pub pending: bool,
    /// There were no spare ones left.
    pub failed: bool,
}

/// The questions that a driver is asked. Each may be refused by itself.
pub trait GpuDriver {
    /// Returns the driver's version, such as `550.54.15`.
    ///
    /// # Errors
    /// A [`Refusal`], as for every question.
    fn version(&self) -> Result<String, Refusal>;

    /// Returns how many cards there are.
    ///
    /// # Errors
    /// A [`Refusal`].
    fn cards(&self) -> Result<u32, Refusal>;

    /// Says whether a card is partitioned, and into how many instances at most.
    ///
    /// # Errors
    /// A [`Refusal`].
    fn most_instances(&self, card: u32) -> Result<Option<u32>, Refusal>;

    /// Returns the identity that containers are given it by.
    ///
    /// # Errors
    /// A [`Refusal`].
    fn uuid(&self, place: Place) -> Result<String, Refusal>;

    /// Returns the product's name.
    ///
    /// # Errors
    /// A [`Refusal`].
    fn name(&self, place: Place) -> Result<String, Refusal>;

    /// Returns the memory.
    ///
    /// # Errors
    /// A [`Refusal`].
    fn memory(&self, place: Place) -> Result<Memory, Refusal>;

    /// Returns the place on the bus, such as `00000000:65:00.0`.
    ///
    /// # Errors
    /// A [`Refusal`].
    fn bus_id(&self, card: u32) -> Result<String, Refusal>;

    /// Returns the share of the last moment in which it computed, in percent.
    ///
    /// # Errors
    /// A [`Refusal`].
    fn use_percent(&self, card: u32) -> Result<u32, Refusal>;

    /// Returns its temperature in degrees Celsius.
    ///
    /// # Errors
    /// A [`Refusal`].
    fn temperature(&self, card: u32) -> Result<u32, Refusal>;

    /// Says whether it computes more slowly because it is too hot.
    ///
    /// # Errors
    /// A [`Refusal`].
    fn is_slowed_by_heat(&self, card: u32) -> Result<bool, Refusal>;

    /// Returns the power that it draws, in milliwatts.
    ///
    /// # Errors
    /// A [`Refusal`].
    fn power(&self, card: u32) -> Result<u32, Refusal>;

    /// Returns the most power that it may draw, in milliwatts.
    ///
    /// # Errors
    /// A [`Refusal`].
    fn power_limit(&self, card: u32) -> Result<u32, Refusal>;

    /// Returns the errors of its memory since the driver was loaded that could not be
    /// corrected.
    ///
    /// # Errors
    /// A [`Refusal`]; [`Refusal::NotSupported`] where its memory does not check itself.
    fn uncorrected_errors(&self, card: u32) -> Result<u64, Refusal>;

    /// Returns whether rows of its memory wait to be replaced.
    ///
    /// # Errors
    /// A [`Refusal`].
    fn remapping(&self, card: u32) -> Result<Remapping, Refusal>;

    /// Returns the lines of the kernel's log that hold the driver's complaints, oldest
    /// first.
    ///
    /// # Errors
    /// A [`Refusal`]; most users may not read that log.
    fn kernel_log(&self) -> Result<Vec<String>, Refusal>;
}

/// How a card is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// Nothing is wrong.
    Good,
    /// It works, and something should be looked at.
    Worn,
    /// Its answers cannot be relied on; nothing should run on it.
    Sick,
}

impl Condition {
    /// Returns the word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Worn => "worn",
            Self::Sick => "sick",
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

/// All that is known of the GPUs of this machine. It stays on it, except for what
/// [`super::inventory_of`] takes over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GpuReport {
    /// The driver's version.
    pub driver: Option<String>,
    /// The cards, in the driver's order.
    pub cards: Vec<Card>,
}

/// A card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Card {
    /// Its number, from 0.
    pub index: u32,
    /// The identity that containers are given it by.
    pub uuid: Option<String>,
    /// Its product name.
    pub name: Option<String>,
    /// The size of its memory, in bytes.
    pub memory_bytes: Option<u64>,
    /// What programs hold of it, in bytes.
    pub memory_used_bytes: Option<u64>,
    /// The share of the last moment in which it computed.
    pub use_percent: Option<u32>,
    /// Its temperature.
    pub temperature_celsius: Option<u32>,
    /// The power that it draws.
    pub power_watts: Option<u32>,
    /// The most power that it may draw.
    pub power_limit_watts: Option<u32>,
    /// Errors of its memory that could not be corrected; `None` without such checks.
    pub uncorrected_errors: Option<u64>,
    /// Whether it is partitioned (MIG); then only its instances compute.
    pub partitioned: bool,
    /// The instances of a partitioned card.
    pub instances: Vec<Instance>,
    /// The driver's last complaints (Xid), newest last.
    pub xids: Vec<Xid>,
    /// How it is.
    pub condition: Condition,
    /// Why, in sentences.
    pub complaints: Vec<String>,
}

/// An instance of a partitioned card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Instance {
    /// The identity that containers are given it by.
    pub uuid: String,
    /// Its product name with its size, such as `NVIDIA H100 80GB HBM3 MIG 1g.10gb`.
    pub name: String,
    /// The size of its memory, in bytes.
    pub memory_bytes: u64,
    /// What programs hold of it, in bytes.
    pub memory_used_bytes: u64,
}

/// Asks a driver everything.
///
/// # Errors
/// The [`Refusal`] to count the cards; whatever else is refused is left out.
pub fn look(driver: &dyn GpuDriver) -> Result<GpuReport, Refusal> {
    let count = driver.cards()?;
    let log = driver.kernel_log().unwrap_or_default();
    let xids: Vec<(String, Xid)> = log.iter().filter_map(|line| xid::parse(line)).collect();
    Ok(GpuReport {
        driver: driver.version().ok(),
        cards: (0..count).map(|index| card(driver, index, &xids)).collect(),
    })
}

/// Asks everything of one card.
fn card(driver: &dyn GpuDriver, index: u32, xids: &[(String, Xid)]) -> Card {
    let place = Place::card(index);
    let mut verdict = Verdict::default();
    // A card that is gone refuses every question alike: these two every card answers.
    let uuid = verdict.must_answer(driver.uuid(place));
    let memory = verdict.must_answer(driver.memory(place));
    let most_instances = driver.most_instances(index).ok().flatten();
    let power_watts = driver.power(index).ok().map(watts);
    let power_limit_watts = driver.power_limit(index).ok().map(watts);
    let uncorrected_errors = driver.uncorrected_errors(index).ok();
    let temperature_celsius = driver.temperature(index).ok();
    if let Some(errors @ 1..) = uncorrected_errors {
        let times = if errors == 1 { "once".to_owned() } else { format!("{errors} times") };
        verdict.sick(format!("Its memory lost data {times} since the driver was loaded."));
    }
    let remapping = driver.remapping(index).unwrap_or_default();
    if remapping.failed {
        verdict.sick("Rows of its memory are broken, and no spare ones are left.".to_owned());
    } else if remapping.pending {
        verdict
            .worn("Rows of its memory wait to be replaced: reset it when it is idle.".to_owned());
    }
    if driver.is_slowed_by_heat(index) == Ok(true) {
        let degrees = temperature_celsius.map_or(String::new(), |c| format!(" ({c} °C)"));
        verdict.worn(format!("It is too hot{degrees} and computes more slowly."));
    }
    let xids = driver.bus_id(index).map_or_else(|_| Vec::new(), |bus_id| of_card(&bus_id, xids));
    for xid in &xids {
        match xid.gravity() {
            xid::Gravity::Card => verdict.sick(xid.to_string()),
            xid::Gravity::Wear => verdict.worn(xid.to_string()),
            // A program's own fault says nothing of the card.
            xid::Gravity::Program => {}
        }
    }
    Card {
        index,
        uuid,
        name: driver.name(place).ok(),
        memory_bytes: memory.map(|memory| memory.total),
        memory_used_bytes: memory.map(|memory| memory.used),
        // A partitioned card does not tell: its instances are used apart.
        use_percent: driver.use_percent(index).ok(),
        temperature_celsius,
        power_watts,
        power_limit_watts,
        uncorrected_errors,
        partitioned: most_instances.is_some(),
        instances: most_instances.map_or_else(Vec::new, |most| instances(driver, index, most)),
        xids,
        condition: verdict.condition,
        complaints: verdict.complaints,
    }
}

/// Returns the instances of a card that there are; numbers may be left out.
fn instances(driver: &dyn GpuDriver, card: u32, most: u32) -> Vec<Instance> {
    let instance = |instance| {
        let place = Place { card, instance: Some(instance) };
        let memory = driver.memory(place)?;
        Ok(Instance {
            uuid: driver.uuid(place)?,
            name: driver.name(place)?,
            memory_bytes: memory.total,
            memory_used_bytes: memory.used,
        })
    };
    (0..most)
        .filter_map(|number| match instance(number) {
            Ok(found) => Some(found),
            Err(Refusal::NotFound) => None,
            Err(refusal) => {
                tracing::warn!(card, number, %refusal, "an instance of a GPU does not answer");
                None
            }
        })
        .collect()
}

/// Returns the complaints about the card at this place on the bus, one of a kind,
/// newest last.
fn of_card(bus_id: &str, xids: &[(String, Xid)]) -> Vec<Xid> {
    let place = xid::short_bus_id(bus_id);
    let mut found: Vec<Xid> = Vec::new();
    for (at, xid) in xids {
        if xid::short_bus_id(at) != place {
            continue;
        }
        let seen = found.iter().position(|other| other.number == xid.number);
        let times = seen.map_or(0, |at| found.remove(at).times);
        found.push(Xid { times: times + xid.times, ..xid.clone() });
    }
    found
}

/// Converts milliwatts to watts, rounded.
fn watts(milliwatts: u32) -> u32 {
    milliwatts.saturating_add(500) / 1000
}

/// Collects what is wrong with a card.
struct Verdict {
    condition: Condition,
    complaints: Vec<String>,
}

impl Default for Verdict {
    fn default() -> Self {
        Self { condition: Condition::Good, complaints: Vec::new() }
    }
}

impl Verdict {
    fn sick(&mut self, complaint: String) {
        self.add(Condition::Sick, complaint);
    }

    fn worn(&mut self, complaint: String) {
        self.add(Condition::Worn, complaint);
    }

    fn add(&mut self, condition: Condition, complaint: String) {
        self.condition = self.condition.max(condition);
        if !self.complaints.contains(&complaint) {
            self.complaints.push(complaint);
        }
    }

    /// Takes the answer to a question that every working card answers.
    fn must_answer<T>(&mut self, answer: Result<T, Refusal>) -> Option<T> {
        answer.map_err(|refusal| self.sick(format!("It does not answer: {refusal}."))).ok()
    }
}
