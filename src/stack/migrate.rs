//! Brings the database to the state that this binary was built for: Supabase's
//! baseline, the passwords of the roles that log in, and the migrations.
//!
//! Run by [`Stack`](super::Stack) before the gateway opens. The bookkeeping is
//! that of the Supabase CLI (`supabase_migrations.schema_migrations`), so that
//! its commands work on the same database. Invariants: a migration and its
//! bookkeeping are one transaction; a database that has seen a migration which
//! this binary does not know is left alone.

use include_dir::{Dir, include_dir};
use tokio_postgres::{Client, error::ErrorPosition};

use super::{
    postgres::{Connection, Endpoint, SUPERUSER},
    secrets::Secrets,
};

/// The migrations of this release.
static MIGRATIONS: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/supabase/migrations");

/// Supabase's roles, schemas and functions on a plain PostgreSQL.
const BASELINE: &str = include_str!("bootstrap.sql");

/// Made as the Supabase CLI makes it.
const BOOKKEEPING: &str = "
    create schema if not exists supabase_migrations;
    create table if not exists supabase_migrations.schema_migrations (
      version text not null primary key,
      statements text[],
      name text
    );
    revoke all on schema supabase_migrations from public;
";

/// Why the database cannot be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// No connection, or it was lost.
    #[error("The database cannot be {action}")]
    Database {
        /// What was being done to it.
        action: &'static str,
        /// What the driver said.
        #[source]
        source: tokio_postgres::Error,
    },
    /// A file of ours is wrong for this database.
    #[error("Migration {place}: {message}")]
    Migration {
        /// Name of the file, with the line where it is known.
        place: String,
        /// What the server said.
        message: String,
        /// The whole refusal.
        #[source]
        source: tokio_postgres::Error,
    },
    /// The data were used by a newer release.
    #[error(
        "The data were used by a newer release of infernet (migration {version} is unknown \
         here); install that release again or choose another --data-dir"
    )]
    Newer {
        /// The unknown migration.
        version: String,
    },
}

/// One migration file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Migration<'a> {
    /// The digits before the first underscore; the order of the files.
    pub version: &'a str,
    /// What follows the underscore, without `.sql`.
    pub name: &'a str,
    /// Name of the file.
    pub file: &'a str,
    /// Its text.
    pub sql: &'a str,
}

/// Returns the migrations of this release in their order.
pub fn migrations() -> Vec<Migration<'static>> {
    let mut found: Vec<_> = MIGRATIONS
        .files()
        .filter_map(|file| {
            let name = file.path().file_name()?.to_str()?;
            parse_migration(name, file.contents_utf8()?)
        })
        .collect();
    found.sort_by_key(|migration| migration.version);
    found
}

/// Reads the name of a file as the CLI does, `<digits>_<name>.sql`; `None` for
/// any other file.
fn parse_migration<'a>(file: &'a str, sql: &'a str) -> Option<Migration<'a>> {
    let (version, name) = file.strip_suffix(".sql")?.split_once('_')?;
    let digits = !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_digit());
    digits.then_some(Migration { version, name, file, sql })
}

/// Makes or renews Supabase's baseline and the passwords, as the superuser. Safe
/// to repeat.
pub async fn apply_baseline(endpoint: &Endpoint, secrets: &Secrets) -> Result<(), MigrateError> {
    let failed = |action| move |source| MigrateError::Database { action, source };
    let config = endpoint.config(SUPERUSER, &secrets.superuser_password);
    let client = Connection::open(&config).await.map_err(failed("opened"))?;
    client.batch_execute(&format!("begin;\n{BASELINE}\ncommit;")).await.map_err(|source| {
        migration_error("bootstrap.sql", &format!("begin;\n{BASELINE}"), 1, source)
    })?;
    // The passwords are hexadecimal, so they need no quoting, and a utility
    // statement takes no parameters.
    let passwords = format!(
        "alter role postgres password '{}'; alter role authenticator password '{}';",
        secrets.postgres_password, secrets.authenticator_password
    );
    client.batch_execute(&passwords).await.map_err(failed("given its passwords"))
}

/// Applies those of `migrations` that the database has not seen, each file in one
/// transaction, as the role `postgres`. Returns how many were applied.
pub async fn apply_migrations(
    endpoint: &Endpoint,
    secrets: &Secrets,
    migrations: &[Migration<'_>],
) -> Result<usize, MigrateError> {
    let failed = |action| move |source| MigrateError::Database { action, source };
    let config = endpoint.config("postgres", &secrets.postgres_password);
    let client = Connection::open(&config).await.map_err(failed("opened"))?;
    client.batch_execute(BOOKKEEPING).await.map_err(failed("prepared for migrations"))?;
    let seen = client
        .query(
            "select version, statements from supabase_migrations.schema_migrations order by version",
            &[],
        )
        .await
        .map_err(failed("asked for its migrations"))?;
    for row in &seen {
        let version: String = row.get(0);
        let statements: Option<Vec<String>> = row.get(1);
        let Some(known) = migrations.iter().find(|migration| migration.version == version) else {
            return Err(MigrateError::Newer { version });
        };
        let changed = statements.is_some_and(|texts| texts.len() == 1 && texts[0] != known.sql);
        if changed {
            tracing::warn!(
                file = known.file,
                "a migration was changed after it was applied to this database, which keeps the old one"
            );
        }
    }
    let mut applied = 0;
    for migration in migrations {
        let is_seen = seen.iter().any(|row| row.get::<_, &str>(0) == migration.version);
        if !is_seen {
            apply_migration(&client, migration).await?;
            tracing::debug!(file = migration.file, "applied a migration");
            applied += 1;
        }
    }
    if applied > 0 {
        client
            .batch_execute("notify pgrst, 'reload schema'")
            .await
            .map_err(failed("told of its new schema"))?;
    }
    Ok(applied)
}

/// Applies one file.
async fn apply_migration(client: &Client, migration: &Migration<'_>) -> Result<(), MigrateError> {
    // On one line, so that the lines of the file keep their numbers.
    const HEAD: &str = "begin; reset all; ";
    let batch = format!("{HEAD}{}", migration.sql);
    let result = match client.batch_execute(&batch).await {
        Ok(()) => record_migration(client, migration).await,
        Err(source) => Err(source),
    };
    if let Err(source) = result {
        if let Err(error) = client.batch_execute("rollback; reset all").await {
            tracing::debug!(%error, "a failed migration was not rolled back by us");
        }
        return Err(migration_error(migration.file, &batch, 0, source));
    }
    Ok(())
}

/// Writes a migration into the bookkeeping and commits it. The CLI keeps a text
/// for each statement; here the file is one text, which it reads as well and
/// which needs no parser of SQL.
async fn record_migration(
    client: &Client,
    migration: &Migration<'_>,
) -> Result<(), tokio_postgres::Error> {
    client
        .execute(
            "insert into supabase_migrations.schema_migrations (version, statements, name) \
             values ($1, $2, $3)",
            &[&migration.version, &vec![migration.sql], &migration.name],
        )
        .await?;
    client.batch_execute("commit; reset all").await
}

/// Words a refusal with the line of the file, where the server tells a position.
/// `before` is the number of lines that stand before the file in `batch`.
fn migration_error(
    file: &str,
    batch: &str,
    before: usize,
    source: tokio_postgres::Error,
) -> MigrateError {
    let Some(refusal) = source.as_db_error() else {
        return MigrateError::Database { action: "changed", source };
    };
    let mut message = refusal.message().to_owned();
    for more in [refusal.detail(), refusal.hint(), refusal.where_()].into_iter().flatten() {
        message.push_str("; ");
        message.push_str(more.lines().next().unwrap_or_default());
    }
    let place = match refusal.position() {
        Some(ErrorPosition::Original(position)) => {
            let line = line_at(batch, *position).saturating_sub(before);
            format!("{file} line {line}")
        }
        _ => file.to_owned(),
    };
    MigrateError::Migration { place, message, source }
}

/// Returns the number of the line that holds the character at `position`, both
/// counted from 1.
fn line_at(text: &str, position: u32) -> usize {
    let before = usize::try_from(position).unwrap_or(usize::MAX).saturating_sub(1);
    1 + text.chars().take(before).filter(|letter| *letter == '\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_the_cli_are_migrations() {
        let migration = parse_migration("20260101000000_identity.sql", "select 1").unwrap();
        assert_eq!((migration.version, migration.name), ("20260101000000", "identity"));
        for other in [".gitkeep", "notes.md", "x_identity.sql", "20260101000000.sql", "_x.sql"] {
            assert_eq!(parse_migration(other, ""), None, "{other}");
        }
    }

    #[test]
    fn the_migrations_of_this_release_have_versions_of_their_own() {
        let versions: Vec<_> = migrations().iter().map(|migration| migration.version).collect();
        assert!(versions.is_sorted_by(|a, b| a < b), "{versions:?}");
    }

    #[test]
    fn lines_are_counted_by_characters() {
        assert_eq!(line_at("é\nx", 1), 1);
        assert_eq!(line_at("é\nx", 3), 2);
        assert_eq!(line_at("", 10), 1);
    }
}
