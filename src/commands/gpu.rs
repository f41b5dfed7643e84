//! `infernet gpu`: what this machine computes with, for its owner's eyes.

use serde::Serialize;

use super::Context;
use super::output::Output;
use super::table::{Cell, Table, cell};
use crate::command_error::{CommandError, Kind};
use crate::hardware::host::Host;
use crate::hardware::{self, Card, GpuReport};

/// The arguments of `infernet gpu`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Of all this, only maker, model and class of memory of each usable GPU ever leave the machine.
Complaints (Xid) of NVIDIA's driver are read from the kernel's log, which only root may do on
most systems.")]
pub(crate) struct Args {}

/// What was found.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    host: Host,
    #[serde(flatten)]
    gpus: GpuReport,
}

/// Looks at the hardware.
pub(crate) async fn run(_args: &Args, context: &Context) -> Result<(), CommandError> {
    let report = tokio::task::spawn_blocking(|| Report {
        host: hardware::host::look(),
        gpus: hardware::gpus(),
    })
    .await
    .map_err(|error| CommandError::new(Kind::Internal, error))?;
    if context.output.is_json() {
        context.output.object(&report)?;
        return Ok(());
    }
    context.output.line(&describe_host(&report.host))?;
    if report.gpus.cards.is_empty() {
        context.output.talk(
            "No GPU answers. With an NVIDIA card in this machine, install its driver and look at: \
             nvidia-smi",
        );
        return Ok(());
    }
    context.output.line(&describe_gpus(&report.gpus, &context.output))?;
    Ok(())
}

/// Describes processors and memory on one line.
fn describe_host(host: &Host) -> String {
    let processor = host.processor.as_deref().unwrap_or(&host.platform);
    let memory = match (host.memory_available_bytes, host.memory_bytes) {
        (Some(free), Some(all)) => format!(", memory {} free of {}", size(free), size(all)),
        (None, Some(all)) => format!(", memory {}", size(all)),
        (_, None) => String::new(),
    };
    format!("{processor}, {} processors{memory}", host.cpus)
}

/// Describes the cards in a table, and what is wrong with them below it.
fn describe_gpus(report: &GpuReport, output: &Output) -> String {
    let heading = ["gpu", "model", "memory", "use", "temperature", "power", "condition"];
    let mut table = Table::new(&heading);
    for card in &report.cards {
        table.row(row(card));
        for (number, part) in card.instances.iter().enumerate() {
            table.row(vec![
                cell(format!("{}/{number}", card.index)),
                cell(&part.name),
                cell(format!("{} of {}", size(part.memory_used_bytes), size(part.memory_bytes))),
            ]);
        }
    }
    let mut text = table.text(output);
    for card in &report.cards {
        for complaint in &card.complaints {
            text.push_str(&format!("\nGPU {} is {}: {complaint}", card.index, card.condition));
        }
    }
    if let Some(driver) = &report.driver {
        text.push_str(&format!("\nDriver {driver}"));
    }
    text
}

fn row(card: &Card) -> Vec<Cell> {
    let or_dash = |text: Option<String>| cell(text.unwrap_or_else(|| "-".to_owned()));
    let memory = match (card.memory_used_bytes, card.memory_bytes) {
        (Some(used), Some(all)) => Some(format!("{} of {}", size(used), size(all))),
        _ => None,
    };
    let power = match (card.power_watts, card.power_limit_watts) {
        (Some(draws), Some(limit)) => Some(format!("{draws} of {limit} W")),
        (Some(draws), None) => Some(format!("{draws} W")),
        _ => None,
    };
    vec![
        cell(card.index),
        or_dash(card.name.clone()),
        or_dash(memory),
        if card.partitioned {
            cell("MIG")
        } else {
            or_dash(card.use_percent.map(|percent| format!("{percent} %")))
        },
        or_dash(card.temperature_celsius.map(|degrees| format!("{degrees} °C"))),
        or_dash(power),
        cell(card.condition),
    ]
}

/// Writes an amount of memory in GiB, with one decimal.
fn size(bytes: u64) -> String {
    let tenths = bytes.saturating_mul(10).saturating_add(1 << 29) >> 30;
    format!("{}.{} GiB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hardware::{Condition, Instance};

    const GIB: u64 = 1 << 30;

    fn card(index: u32, name: &str) -> Card {
        Card {
            index,
            uuid: Some(format!("GPU-{index}")),
            name: Some(name.to_owned()),
            memory_bytes: Some(24 * GIB),
            memory_used_bytes: Some(3 * GIB),
            use_percent: Some(97),
            temperature_celsius: Some(64),
            power_watts: Some(398),
            power_limit_watts: Some(450),
            uncorrected_errors: None,
            partitioned: false,
            instances: Vec::new(),
            xids: Vec::new(),
            condition: Condition::Good,
            complaints: Vec::new(),
        }
    }

    #[test]
    fn good_sick_and_partitioned_cards_are_told_apart() {
        let partitioned = Card {
            partitioned: true,
            use_percent: None,
            instances: vec![Instance {
                uuid: "MIG-1".to_owned(),
                name: "NVIDIA H100 80GB HBM3 MIG 1g.10gb".to_owned(),
                memory_bytes: 10 * GIB,
                memory_used_bytes: GIB / 10,
            }],
            ..card(1, "NVIDIA H100 80GB HBM3")
        };
        let lost = Card {
            name: None,
            memory_bytes: None,
            memory_used_bytes: None,
            use_percent: None,
            temperature_celsius: None,
            power_watts: None,
            condition: Condition::Sick,
            complaints: vec!["It does not answer: the card is no longer on the bus.".to_owned()],
            ..card(2, "")
        };
        let report = GpuReport {
            driver: Some("550.54.15".to_owned()),
            cards: vec![card(0, "NVIDIA GeForce RTX 4090"), partitioned, lost],
        };
        insta::assert_snapshot!(describe_gpus(&report, &Output::of_terminal(200, false)));
    }

    #[test]
    fn a_machine_without_gpus_has_processors_and_memory() {
        let host = Host {
            platform: "linux-x86_64".to_owned(),
            processor: None,
            cpus: 2,
            memory_bytes: Some(16 * GIB),
            memory_available_bytes: Some(GIB + GIB / 2),
        };
        assert_eq!(
            describe_host(&host),
            "linux-x86_64, 2 processors, memory 1.5 GiB free of 16.0 GiB"
        );
    }
}
