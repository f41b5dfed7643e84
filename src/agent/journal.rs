//! What the agent holds, on disk: one small file an attempt.
//!
//! A record is made when an attempt is started and removed when the control
//! plane has answered for it. After a crash the records say what was held: a
//! generation that was cut off cannot be resumed and is reported as lost by
//! not being named to `claim_attempts`; a finished answer that could not be
//! handed in yet is kept whole, so that the restarted agent still delivers it.
//!
//! The record of a start is not flushed to the disk itself: it has to survive the
//! death of the process, not that of the machine, whose attempts are reported as
//! lost anyway. Outputs are written only when handing in failed at first, so that
//! answers do not lie on a provider's disk in the normal case; they are flushed.
//!
//! A journal that cannot be written, such as on a full disk, stops no work: an
//! attempt without a record is one that is not named after a crash, and so is
//! assigned again. The trouble is told to the owner.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::control::rpc::Usage;
use crate::id::{AttemptId, JobId, LeaseId};

/// Says what the journal knows of one attempt.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Record {
    /// The attempt's id, also the name of the file.
    pub(super) attempt: AttemptId,
    /// The lease that the agent made for it.
    pub(super) lease: LeaseId,
    /// The job that it works on.
    pub(super) job: JobId,
    /// When it was started, by this machine's clock, in seconds of the epoch.
    pub(super) started: i64,
    /// The answer, when it is complete and still to be handed in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) finished: Option<Finished>,
}

/// A complete answer that waits for the control plane.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Finished {
    /// The whole output.
    pub(super) output: String,
    /// Why it ended: `stop`, `length` or `cancelled`.
    pub(super) finish: String,
    /// What was used.
    #[serde(flatten)]
    pub(super) usage: Usage,
    /// The signed receipt.
    pub(super) receipt: serde_json::Value,
}

/// Keeps the records of one node in a directory of their own.
#[derive(Clone, Debug)]
pub(super) struct Journal {
    directory: PathBuf,
    trouble: watch::Sender<Option<String>>,
}

impl Journal {
    /// Opens the journal below a state directory and makes its folder (0700).
    pub(super) fn open(state_dir: &Path) -> io::Result<Self> {
        let directory = state_dir.join("attempts");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        Ok(Self { directory, trouble: watch::Sender::new(None) })
    }

    /// Writes a record, replacing the attempt's earlier one in one step.
    pub(super) fn write(&self, record: &Record) -> io::Result<()> {
        let written = self.replace(record, false);
        self.note(&written);
        written
    }

    /// Writes the record of a finished answer down to the disk, beside the runtime's
    /// thread: this answer may have to outlive the machine's own end.
    pub(super) async fn keep(&self, record: Record) -> io::Result<()> {
        let journal = self.clone();
        let written = tokio::task::spawn_blocking(move || journal.replace(&record, true)).await;
        let written = written.expect("writing a file does not panic");
        self.note(&written);
        written
    }

    /// Says why the last record could not be written, as long as none can be.
    pub(super) fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.trouble.subscribe()
    }

    fn note(&self, written: &io::Result<()>) {
        self.trouble.send_if_modified(|trouble| {
            let now = written.as_ref().err().map(ToString::to_string);
            let changed = *trouble != now;
            *trouble = now;
            changed
        });
    }

    /// Puts a record in the place of the attempt's earlier one. What could not be
    /// written whole is taken away again: on a full disk it would stand in the way of
    /// the next one, and the earlier record stays as it was.
    fn replace(&self, record: &Record, to_disk: bool) -> io::Result<()> {
        let path = self.path(record.attempt);
        let draft = path.with_extension("new");
        let write = || {
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&draft)?;
            file.write_all(&serde_json::to_vec(record)?)?;
            if to_disk {
                file.sync_data()?;
            }
            fs::rename(&draft, path)
        };
        let written = write();
        if written.is_err() {
            // There may be none; the error that counts is the first.
            drop(fs::remove_file(&draft));
        }
        written
    }

    /// Removes an attempt's record; one that is not there is no error.
    pub(super) fn remove(&self, attempt: AttemptId) -> io::Result<()> {
        match fs::remove_file(self.path(attempt)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Reads every record; a file that does not parse was cut off while it was
    /// written and is removed.
    pub(super) fn read(&self) -> io::Result<Vec<Record>> {
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            if !entry.file_type()?.is_file() {
                // Not ours, such as the folder that a file system keeps its finds in.
                continue;
            }
            let path = entry.path();
            match fs::read(&path).map(|bytes| serde_json::from_slice::<Record>(&bytes)) {
                Ok(Ok(record)) if path.extension().is_some_and(|e| e == "json") => {
                    records.push(record);
                }
                Ok(_) => fs::remove_file(&path)?,
                Err(error) => return Err(error),
            }
        }
        Ok(records)
    }

    fn path(&self, attempt: AttemptId) -> PathBuf {
        self.directory.join(format!("{attempt}.json"))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use uuid::Uuid;

    use super::*;

    fn record() -> Record {
        Record {
            attempt: AttemptId::from_uuid(Uuid::now_v7()),
            lease: LeaseId::generate(),
            job: JobId::generate(),
            started: 1_790_000_000,
            finished: None,
        }
    }

    #[test]
    fn records_come_back_until_they_are_removed() {
        let home = tempfile::tempdir().unwrap();
        let journal = Journal::open(home.path()).unwrap();
        let mut held = record();
        journal.write(&held).unwrap();
        held.finished = Some(Finished {
            output: "Hello.".into(),
            finish: "stop".into(),
            usage: Usage { input_tokens: 3, output_tokens: 2, seconds: None },
            receipt: serde_json::json!({"id": "00"}),
        });
        journal.write(&held).unwrap();
        assert_eq!(Journal::open(home.path()).unwrap().read().unwrap(), vec![held.clone()]);
        journal.remove(held.attempt).unwrap();
        journal.remove(held.attempt).unwrap();
        assert_eq!(journal.read().unwrap(), vec![]);
    }

    #[test]
    fn files_are_private_and_cut_off_ones_are_removed() {
        let home = tempfile::tempdir().unwrap();
        let journal = Journal::open(home.path()).unwrap();
        let held = record();
        journal.write(&held).unwrap();
        let path = journal.path(held.attempt);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let directory = fs::metadata(path.parent().unwrap()).unwrap();
        assert_eq!(directory.permissions().mode() & 0o777, 0o700);
        let cut = path.with_file_name(format!("{}.json", Uuid::now_v7()));
        fs::write(&cut, "{\"attempt\":\"01").unwrap();
        assert_eq!(journal.read().unwrap(), vec![held]);
        assert!(!cut.exists());
    }
}
