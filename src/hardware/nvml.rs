//! NVIDIA GPUs, asked through the driver's own library.
//!
//! The library is loaded when it is asked for and belongs to the driver: a machine
//! without one answers with an error, and nothing is linked against it.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;

use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::enums::device::SampleValue;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::structs::device::FieldId;
use nvml_wrapper::sys_exports::field_id::{
    NVML_FI_DEV_REMAPPED_FAILURE, NVML_FI_DEV_REMAPPED_PENDING,
};
use nvml_wrapper::{Device, Nvml};

use super::gpu::{GpuDriver, Memory, Place, Refusal, Remapping};

/// The most lines of the kernel's log that are looked at; it holds some thousands.
const LOG_LINES: usize = 100_000;

/// The driver cannot be asked.
#[derive(Debug, thiserror::Error)]
#[error("NVIDIA's driver cannot be asked: {0}. Without an NVIDIA GPU that is in order.")]
pub struct NvmlUnavailable(#[from] NvmlError);

/// NVIDIA's driver on this machine.
#[derive(Debug)]
pub struct NvidiaDriver {
    nvml: Nvml,
}

impl NvidiaDriver {
    /// Loads the driver's library.
    ///
    /// # Errors
    /// [`NvmlUnavailable`] when there is no driver, or it refuses.
    pub fn load() -> Result<Self, NvmlUnavailable> {
        // The plain name is a developer's package; the driver alone brings the other.
        let nvml = Nvml::init()
            .or_else(|_| Nvml::builder().lib_path("libnvidia-ml.so.1".as_ref()).init())?;
        Ok(Self { nvml })
    }

    fn device(&self, place: Place) -> Result<Device<'_>, Refusal> {
        let card = self.nvml.device_by_index(place.card)?;
        match place.instance {
            None => Ok(card),
            Some(instance) => Ok(card.mig_device_by_index(instance)?),
        }
    }

    fn card(&self, card: u32) -> Result<Device<'_>, Refusal> {
        self.device(Place::card(card))
    }
}

impl From<NvmlError> for Refusal {
    fn from(error: NvmlError) -> Self {
        match error {
            NvmlError::NotSupported
            | NvmlError::FunctionNotFound
            | NvmlError::FailedToLoadSymbol(_)
            | NvmlError::NoData => Self::NotSupported,
            NvmlError::NotFound => Self::NotFound,
            NvmlError::NoPermission => Self::NoPermission,
            NvmlError::GpuLost => Self::Lost,
            NvmlError::ResetRequired => Self::ResetRequired,
            other => Self::Other(other.to_string()),
        }
    }
}

impl GpuDriver for NvidiaDriver {
    fn version(&self) -> Result<String, Refusal> {
        Ok(self.nvml.sys_driver_version()?)
    }

    fn cards(&self) -> Result<u32, Refusal> {
        Ok(self.nvml.device_count()?)
    }

    fn most_instances(&self, card: u32) -> Result<Option<u32>, Refusal> {
        let device = self.card(card)?;
        if device.mig_mode()?.current == 0 {
            return Ok(None);
        }
        Ok(Some(device.mig_device_count()?))
    }

    fn uuid(&self, place: Place) -> Result<String, Refusal> {
        Ok(self.device(place)?.uuid()?)
    }

    fn name(&self, place: Place) -> Result<String, Refusal> {
        Ok(self.device(place)?.name()?)
    }

    fn memory(&self, place: Place) -> Result<Memory, Refusal> {
        let memory = self.device(place)?.memory_info()?;
        Ok(Memory { total: memory.total, used: memory.used })
    }

    fn bus_id(&self, card: u32) -> Result<String, Refusal> {
        Ok(self.card(card)?.pci_info()?.bus_id)
    }

    fn use_percent(&self, card: u32) -> Result<u32, Refusal> {
        Ok(self.card(card)?.utilization_rates()?.gpu)
    }

    fn temperature(&self, card: u32) -> Result<u32, Refusal> {
        Ok(self.card(card)?.temperature(TemperatureSensor::Gpu)?)
    }

    fn is_slowed_by_heat(&self, card: u32) -> Result<bool, Refusal> {
        let reasons = self.card(card)?.current_throttle_reasons()?;
        let heat = ThrottleReasons::SW_THERMAL_SLOWDOWN | ThrottleReasons::HW_THERMAL_SLOWDOWN;
        Ok(reasons.intersects(heat))
    }

    fn power(&self, card: u32) -> Result<u32, Refusal> {
        Ok(self.card(card)?.power_usage()?)
    }

    fn power_limit(&self, card: u32) -> Result<u32, Refusal> {
        Ok(self.card(card)?.enforced_power_limit()?)
    }

    fn uncorrected_errors(&self, card: u32) -> Result<u64, Refusal> {
        let device = self.card(card)?;
        Ok(device.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile)?)
    }

    fn remapping(&self, card: u32) -> Result<Remapping, Refusal> {
        let fields = [NVML_FI_DEV_REMAPPED_PENDING, NVML_FI_DEV_REMAPPED_FAILURE].map(FieldId);
        let values = self.card(card)?.field_values_for(&fields)?;
        let mut values = values.into_iter().map(|value| Ok(is_set(&value?.value?)));
        let mut next = || values.next().unwrap_or(Err(Refusal::NotSupported));
        Ok(Remapping { pending: next()?, failed: next()? })
    }

    fn kernel_log(&self) -> Result<Vec<String>, Refusal> {
        read_kernel_log().map_err(|error| match error.kind() {
            ErrorKind::PermissionDenied => Refusal::NoPermission,
            ErrorKind::NotFound => Refusal::NotSupported,
            _ => Refusal::Other(error.to_string()),
        })
    }
}

fn is_set(value: &SampleValue) -> bool {
    match *value {
        SampleValue::F64(number) => number > 0.0,
        SampleValue::U32(number) => number > 0,
        SampleValue::U64(number) => number > 0,
        SampleValue::I64(number) => number > 0,
    }
}

/// Reads the lines of the driver from the kernel's log, without waiting for new ones.
fn read_kernel_log() -> std::io::Result<Vec<String>> {
    let mut log = OpenOptions::new()
        .read(true)
        .custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits())
        .open("/dev/kmsg")?;
    let mut lines = Vec::new();
    // One read returns one line, never longer than this.
    let mut buffer = [0; 8192];
    for _ in 0..LOG_LINES {
        match log.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => {
                let line = String::from_utf8_lossy(&buffer[..length]);
                if line.contains("NVRM: Xid") {
                    lines.push(line.lines().next().unwrap_or_default().to_owned());
                }
            }
            // Nothing more was written yet.
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            // Lines were overwritten meanwhile; the next read goes on behind them.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(lines)
}
