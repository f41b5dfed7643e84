//! Digests of models, which are files or folders of files.
//!
//! A file is read once; its digest is remembered by path, size and time of change, in
//! memory and, where a directory is given, across restarts, because reading a model
//! of forty gigabytes takes minutes. A folder's digest is that of the list of its files,
//! as `sha256sum` writes it, in the order of their paths.

use std::collections::HashMap;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::engine::catalogue::ServedModel;
use crate::engine::error::EngineError;

/// The file in which digests are remembered.
const CACHE_FILE: &str = "model-digests.json";

/// Remembers digests. Cloning it shares the memory.
#[derive(Debug, Clone, Default)]
pub struct ModelDigests {
    directory: Option<PathBuf>,
    known: Arc<Mutex<HashMap<String, Known>>>,
}

/// A file as it was when it was read, and its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    size: u64,
    inode: u64,
    changed_secs: i64,
    changed_nanos: i64,
    sha256: String,
}

impl ModelDigests {
    /// Makes a memory that also lives in `directory`, where one is given. A memory
    /// that cannot be read is an empty one.
    #[must_use]
    pub fn new(directory: Option<PathBuf>) -> Self {
        let known = directory
            .as_ref()
            .and_then(|directory| std::fs::read(directory.join(CACHE_FILE)).ok())
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        Self { directory, known: Arc::new(Mutex::new(known)) }
    }

    /// Returns the size in bytes and the sha256 in hex of a model's file, and compares
    /// the latter with the one that the owner allows.
    ///
    /// # Errors
    /// [`EngineError::ModelMissing`], [`EngineError::ModelUnreadable`],
    /// [`EngineError::ModelMismatch`].
    pub async fn check(
        &self,
        model: &ServedModel,
        path: &Path,
    ) -> Result<(u64, String), EngineError> {
        let this = self.clone();
        let owned = path.to_owned();
        let (size, found) = tokio::task::spawn_blocking(move || this.digest(&owned))
            .await
            .map_err(std::io::Error::other)
            .flatten()
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound | std::io::ErrorKind::IsADirectory => {
                    EngineError::ModelMissing { model: model.name.clone(), path: path.to_owned() }
                }
                _ => EngineError::ModelUnreadable {
                    model: model.name.clone(),
                    path: path.to_owned(),
                    reason: error.to_string(),
                },
            })?;
        match &model.sha256 {
            Some(wanted) if !wanted.eq_ignore_ascii_case(&found) => {
                Err(EngineError::ModelMismatch {
                    model: model.name.clone(),
                    path: path.to_owned(),
                    found,
                    wanted: wanted.to_ascii_lowercase(),
                })
            }
            _ => Ok((size, found)),
        }
    }

    /// Returns the bytes and the digest of a file, or of all files of a folder.
    fn digest(&self, path: &Path) -> std::io::Result<(u64, String)> {
        if !path.is_dir() {
            return self.file_digest(path);
        }
        let mut files = Vec::new();
        list_files(path, &mut files)?;
        files.sort();
        if files.is_empty() {
            return Err(std::io::ErrorKind::NotFound.into());
        }
        let mut size = 0;
        let mut list = ring::digest::Context::new(&ring::digest::SHA256);
        for file in files {
            let (bytes, digest) = self.file_digest(&file)?;
            size += bytes;
            let name = file.strip_prefix(path).map_err(std::io::Error::other)?;
            list.update(format!("{digest}  {}\n", name.display()).as_bytes());
        }
        Ok((size, hex::encode(list.finish())))
    }

    fn file_digest(&self, path: &Path) -> std::io::Result<(u64, String)> {
        let key = path.display().to_string();
        let mut file = std::fs::File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(std::io::ErrorKind::IsADirectory.into());
        }
        let mut now = Known {
            size: metadata.len(),
            inode: metadata.ino(),
            changed_secs: metadata.mtime(),
            changed_nanos: metadata.mtime_nsec(),
            sha256: String::new(),
        };
        if let Some(known) =
            self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned()
        {
            now.sha256.clone_from(&known.sha256);
            if now == known {
                return Ok((known.size, known.sha256));
            }
        }
        tracing::info!(path = %path.display(), bytes = now.size, "reading a model to know its digest");
        now.sha256 = sha256_of(&mut file)?;
        let answer = (now.size, now.sha256.clone());
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(key, now);
        if let Some(directory) = &self.directory
            && let Err(error) = store(directory, &known)
        {
            tracing::debug!(%error, "the digests of models cannot be stored");
        }
        Ok(answer)
    }
}

/// Computes the sha256 of what is left to read, in hex.
///
/// # Errors
/// What reading fails with.
pub fn sha256_of(reader: &mut impl Read) -> std::io::Result<String> {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(hex::encode(context.finish())),
            Ok(length) => context.update(&buffer[..length]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Lists the files below a folder. Links are refused: what they lead to is not in the
/// container.
fn list_files(folder: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            list_files(&entry.path(), files)?;
        } else if kind.is_file() {
            files.push(entry.path());
        } else {
            let name = entry.path().display().to_string();
            return Err(std::io::Error::other(format!("{name} is neither a file nor a folder")));
        }
    }
    Ok(())
}

/// Writes the memory to its file, whole or not at all.
fn store(directory: &Path, known: &HashMap<String, Known>) -> std::io::Result<()> {
    std::fs::create_dir_all(directory)?;
    let new = directory.join(format!("{CACHE_FILE}.{}", std::process::id()));
    std::fs::write(&new, serde_json::to_vec(known)?)?;
    std::fs::rename(new, directory.join(CACHE_FILE))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn digests_are_remembered_and_files_that_change_are_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        std::fs::write(&path, "abc").unwrap();
        let model = ServedModel::file("m", &path);
        let digests = ModelDigests::new(Some(folder.path().to_owned()));
        let (size, first) = digests.check(&model, &path).await.unwrap();
        assert_eq!(size, 3);
        assert_eq!(first, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");

        // A second memory takes it from the file: a planted one proves that.
        let stored = folder.path().join(CACHE_FILE);
        let planted = std::fs::read_to_string(&stored).unwrap().replace(&first, "planted");
        std::fs::write(&stored, planted).unwrap();
        let again = ModelDigests::new(Some(folder.path().to_owned()));
        assert_eq!(again.check(&model, &path).await.unwrap().1, "planted");

        std::fs::write(&path, "abcd").unwrap();
        assert_ne!(digests.check(&model, &path).await.unwrap().1, first);
    }

    #[tokio::test]
    async fn a_wrong_or_missing_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        let mut model = ServedModel::file("m", &path);
        let digests = ModelDigests::default();
        let error = digests.check(&model, &path).await.unwrap_err();
        assert!(matches!(error, EngineError::ModelMissing { .. }), "{error}");
        // A folder without a file.
        assert!(matches!(
            digests.check(&model, folder.path()).await.unwrap_err(),
            EngineError::ModelMissing { .. }
        ));
        std::fs::write(&path, "abc").unwrap();
        model.sha256 = Some("0".repeat(64));
        let error = digests.check(&model, &path).await.unwrap_err().to_string();
        assert!(error.contains("not the one that is allowed"), "{error}");
        assert!(error.contains("ba7816bf"), "{error}");
    }

    #[tokio::test]
    async fn a_folder_is_what_its_files_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model");
        std::fs::create_dir_all(path.join("deep")).unwrap();
        std::fs::write(path.join("z.json"), "abc").unwrap();
        std::fs::write(path.join("deep/a.bin"), "abcd").unwrap();
        let model = ServedModel::file("m", &path);
        let digests = ModelDigests::default();
        let (size, first) = digests.check(&model, &path).await.unwrap();
        // (cd model; find -type f -printf '%P\n' | sort | xargs sha256sum | sha256sum)
        assert_eq!(size, 7);
        assert_eq!(first, "864e996a78bdb35228150e7ce46f5e331b8be561e859c29e9206cc8ed7b6d0b6");
        std::fs::rename(path.join("z.json"), path.join("y.json")).unwrap();
        assert_ne!(digests.check(&model, &path).await.unwrap().1, first);
        std::os::unix::fs::symlink("/etc/hostname", path.join("link")).unwrap();
        let error = digests.check(&model, &path).await.unwrap_err().to_string();
        assert!(error.contains("link is neither"), "{error}");
    }
}
