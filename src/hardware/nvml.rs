//! NVIDIA GPUs, asked through the driver's own library.
//!
//! The library is loaded when it is asked for and belongs to the driver: a machine
//! without one answers with an error, and nothing is linked against it.

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

/// A GPU as its driver describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// The identity that containers are given it by.
    pub uuid: String,
    /// Its product name.
    pub name: String,
    /// The size of its memory.
    pub memory_bytes: u64,
}

/// The driver cannot be asked.
#[derive(Debug, thiserror::Error)]
#[error("NVIDIA's driver cannot be asked: {0}. Without an NVIDIA GPU that is in order.")]
pub struct NvmlUnavailable(#[from] NvmlError);

/// Returns the GPUs of this machine that answer.
///
/// # Errors
/// [`NvmlUnavailable`] when there is no driver, or it refuses.
pub fn gpus() -> Result<Vec<Gpu>, NvmlUnavailable> {
    // The plain name is a developer's package; the driver alone brings the other.
    let nvml =
        Nvml::init().or_else(|_| Nvml::builder().lib_path("libnvidia-ml.so.1".as_ref()).init())?;
    let count = nvml.device_count()?;
    let mut gpus = Vec::new();
    for index in 0..count {
        match describe(&nvml, index) {
            Ok(gpu) => gpus.push(gpu),
            // One that has fallen off the bus must not hide the others.
            Err(error) => tracing::warn!(index, %error, "a GPU does not answer"),
        }
    }
    Ok(gpus)
}

fn describe(nvml: &Nvml, index: u32) -> Result<Gpu, NvmlError> {
    let device = nvml.device_by_index(index)?;
    Ok(Gpu {
        uuid: device.uuid()?,
        name: device.name()?,
        memory_bytes: device.memory_info()?.total,
    })
}
