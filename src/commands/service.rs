//! `infernet service`: the agent as a service of systemd.

use std::time::Duration;

use serde_json::json;

use super::Context;
use super::table::Table;
use crate::agent::process;
use crate::agent::service::{self, RunAs, Scope, ServiceStatus, Unit};
use crate::command_error::CommandError;

/// The grace period of a configuration that cannot be read.
const DEFAULT_GRACE: Duration = Duration::from_secs(30);

/// The arguments of `infernet service`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Root makes a service of the system, which starts at boot. Anybody else makes one of their own,
which starts when they log in, or at boot after: loginctl enable-linger")]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Make it a service: started now, at boot, and again when it fails
    Install(Install),
    /// Stop the service and remove it
    Uninstall(Whose),
    /// Show how the service stands
    Status(Whose),
}

#[derive(Debug, clap::Args)]
struct Whose {
    /// The service of the whole system
    #[arg(long, conflicts_with = "user")]
    system: bool,
    /// The service of this user
    #[arg(long)]
    user: bool,
}

impl Whose {
    /// Chooses: what was said, else by who asks.
    fn scope(&self) -> Scope {
        match (self.system, self.user) {
            (true, _) => Scope::System,
            (_, true) => Scope::User,
            _ if nix::unistd::geteuid().is_root() => Scope::System,
            _ => Scope::User,
        }
    }
}

#[derive(Debug, clap::Args)]
struct Install {
    #[command(flatten)]
    whose: Whose,
    /// Let the system's service run as this user; the folders stay those of who asks
    #[arg(long, value_name = "USER", conflicts_with = "user")]
    run_as: Option<String>,
    /// Only print the unit
    #[arg(long)]
    print: bool,
}

/// Looks after the service.
pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), CommandError> {
    match &args.action {
        Action::Install(args) => install(args, context).await,
        Action::Uninstall(whose) => uninstall(whose.scope(), context).await,
        Action::Status(whose) => status(whose.scope(), context).await,
    }
}

async fn install(args: &Install, context: &Context) -> Result<(), CommandError> {
    let config = context.config();
    let directories = &context.directories;
    let scope = args.whose.scope();
    let unit = Unit {
        scope,
        binary: std::env::current_exe()?,
        config: directories.config().to_owned(),
        state: directories.state().to_owned(),
        runtime: directories.runtime().to_owned(),
        run_as: args.run_as.as_deref().map(RunAs::find).transpose()?,
        grace: match &config {
            Ok(config) => config.node().map_or(DEFAULT_GRACE, |node| node.grace),
            Err(_) => DEFAULT_GRACE,
        },
    };
    let output = &context.output;
    if args.print {
        output.data(&unit.render()?)?;
        return Ok(());
    }
    // A service that cannot start would be started in vain for ever.
    config?.node()?;
    if let Some(pid) = process::running(&context.process_files())?
        && service::managing(pid).await.is_none()
    {
        return Err(CommandError::from(process::ProcessError::AlreadyRunning { pid })
            .hint("End it first, so that the service can take its place: infernet stop"));
    }
    let path = unit.install().await?;
    if output.is_json() {
        output.object(&json!({"installed": true, "scope": scope, "unit_file": path}))?;
        return Ok(());
    }
    output.talk(&format!("The agent is a service now: {}", path.display()));
    if scope == Scope::User {
        let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten();
        if user.is_none_or(|user| !service::lingers(&user.name)) {
            output.talk(
                "It ends when you log out, unless you allow it to stay: loginctl enable-linger",
            );
        }
    }
    output.talk("See infernet status and infernet logs.");
    Ok(())
}

async fn uninstall(scope: Scope, context: &Context) -> Result<(), CommandError> {
    let removed = service::uninstall(scope).await?;
    let output = &context.output;
    if output.is_json() {
        output.object(&json!({"removed": removed.is_some(), "unit_file": removed}))?;
        return Ok(());
    }
    match removed {
        Some(path) => {
            output.talk(&format!("The service has ended and {} is gone.", path.display()));
        }
        None => output.talk("The agent is not a service on this machine."),
    }
    Ok(())
}

async fn status(scope: Scope, context: &Context) -> Result<(), CommandError> {
    let status = service::status(scope).await?;
    let output = &context.output;
    if output.is_json() {
        output.object(&json!({"installed": status.is_some(), "service": status}))?;
        return Ok(());
    }
    match status {
        Some(status) => output.line(&facts(&status).text(output))?,
        None => {
            output.line("not installed")?;
            output.talk("Make the agent a service with: infernet service install");
        }
    }
    Ok(())
}

fn facts(status: &ServiceStatus) -> Table {
    let mut table = Table::sheet();
    table.fact("Service", format!("{} ({})", status.active, status.sub));
    table.fact("At boot", &status.enabled);
    table.fact_if("Process", status.pid);
    table.fact("Restarts", status.restarts);
    table.fact("Unit", status.unit_file.display());
    table
}
