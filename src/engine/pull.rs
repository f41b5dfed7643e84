//! What a model needs and is not on this machine: its engine's image, and its file.
//!
//! An image comes from its registry through Docker, a file from the URL that the owner
//! wrote down ([`fetch`]). Both are judged as at a start: an image by the id that the
//! catalogue pins, a file by its sha256.

use std::path::Path;

use super::catalogue::{EngineEntry, EngineKind, ServedModel};
use super::container_job::JobImage;
use super::docker::ContainerHost;
use super::error::EngineError;
use super::fetch::{Progress, fetch};
use super::supervised::{Settings, Supervised};

/// How an entry of the catalogue says that its image has a registry.
const FROM_REGISTRY: &str = "docker pull ";

/// Is told of what is fetched and how far that is.
pub type Tell<'a> = dyn Fn(&str, Progress) + Sync + 'a;

/// What is there once a model was pulled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// The sha256 of the model's file, or of the image, in hex.
    pub digest: Option<String>,
    /// Whether anything had to be fetched.
    pub fetched: bool,
}

/// Gets what a model needs.
///
/// # Errors
/// As [`EnginePool::pull`](super::EnginePool::pull).
pub(super) async fn model(model: &Supervised, tell: &Tell<'_>) -> Result<Pulled, EngineError> {
    let served = &model.served;
    let (Some(entry), EngineKind::Container { path, .. }) = (&model.entry, served.kind()?) else {
        return Err(EngineError::NotOurs { model: served.name.clone() });
    };
    let image = engine_image(&model.settings, entry, tell).await?;
    let (digest, file) = model_file(&model.settings, served, path, tell).await?;
    Ok(Pulled { digest: Some(digest), fetched: image || file })
}

/// Gets the image of container jobs.
///
/// # Errors
/// As [`EnginePool::pull`](super::EnginePool::pull).
pub(super) async fn job_image(
    settings: &Settings,
    image: &JobImage,
    tell: &Tell<'_>,
) -> Result<Pulled, EngineError> {
    let host = ContainerHost::connect(settings.docker_host.as_deref()).await?;
    let digest = image.digest().map(str::to_ascii_lowercase);
    if host.image(&image.image).await?.is_some() {
        return Ok(Pulled { digest, fetched: false });
    }
    if image.is_local() {
        return Err(image.missing());
    }
    host.pull(&image.image, &|progress| tell(&image.image, progress)).await?;
    Ok(Pulled { digest, fetched: true })
}

/// Gets an engine's image. Answers whether it had to be fetched.
async fn engine_image(
    settings: &Settings,
    entry: &EngineEntry,
    tell: &Tell<'_>,
) -> Result<bool, EngineError> {
    let host = ContainerHost::connect(settings.docker_host.as_deref()).await?;
    let mut found = host.image(&entry.image).await?;
    let fetched = found.is_none() && entry.install.starts_with(FROM_REGISTRY);
    if fetched {
        host.pull(&entry.image, &|progress| tell(&entry.image, progress)).await?;
        found = host.image(&entry.image).await?;
    }
    let found = found.ok_or_else(|| entry.image_missing())?;
    entry.check_image(&found.id)?;
    Ok(fetched)
}

/// Gets a model's file. Answers its sha256, and whether it had to be fetched.
async fn model_file(
    settings: &Settings,
    served: &ServedModel,
    path: &Path,
    tell: &Tell<'_>,
) -> Result<(String, bool), EngineError> {
    let wanting = match settings.digests.check(served, path).await {
        Ok((_bytes, digest)) => return Ok((digest, false)),
        Err(error @ (EngineError::ModelMissing { .. } | EngineError::ModelMismatch { .. })) => {
            error
        }
        Err(error) => return Err(error),
    };
    // A folder has no one file to be fetched.
    let Some(url) = served.url.as_ref().filter(|_url| !path.is_dir()) else {
        return Err(wanting);
    };
    let sha256 = served.sha256.as_deref();
    fetch(&served.name, url, path, sha256, &|progress| tell(&served.name, progress)).await?;
    let (_bytes, digest) = settings.digests.check(served, path).await?;
    Ok((digest, true))
}
