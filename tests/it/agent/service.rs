//! `infernet service`: the unit as systemd itself reads it, and machines on which
//! there is nobody to give it to.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::support::agent_world::{program, talk};

fn service(home: &Path, arguments: &[&str]) -> Output {
    program(home)
        .env("XDG_CONFIG_HOME", home.join("xdg"))
        .arg("service")
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    let home = tempfile::tempdir().unwrap();
    for (scope, manager) in [("--system", "--system"), ("--user", "--user")] {
        let printed = service(home.path(), &["install", scope, "--print"]);
        assert!(printed.status.success(), "{}", talk(&printed));
        let folder = home.path().join(scope);
        fs::create_dir_all(&folder).unwrap();
        let unit = folder.join("infernet.service");
        fs::write(&unit, &printed.stdout).unwrap();
        let verified = Command::new("systemd-analyze")
            .args([manager, "--man=no", "--recursive-errors=no", "verify"])
            .arg(&unit)
            .env("XDG_RUNTIME_DIR", home.path())
            .output()
            .expect("scripts/test installs systemd-analyze");
        let said = talk(&verified);
        let ours: Vec<_> = said.lines().filter(|line| line.contains("infernet")).collect();
        assert!(verified.status.success() && ours.is_empty(), "{scope}: {said}");
    }
}

#[test]
fn what_is_not_installed_is_told_and_removing_it_is_no_failure() {
    let home = tempfile::tempdir().unwrap();
    let output = service(home.path(), &["status", "--user"]);
    assert!(output.status.success());
    assert_eq!(String::from_utf8(output.stdout.clone()).unwrap(), "not installed\n");
    assert!(talk(&output).contains("infernet service install"));
    let output = service(home.path(), &["uninstall", "--user", "--json"]);
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(printed, "{\"removed\":false,\"unit_file\":null}\n");
    let output = service(home.path(), &["install", "--run-as", "no-such-user-here", "--print"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(talk(&output).contains("no user no-such-user-here"), "{}", talk(&output));
}

#[test]
fn a_machine_that_is_no_node_or_has_no_systemd_gets_no_service() {
    let home = tempfile::tempdir().unwrap();
    let output = service(home.path(), &["install", "--user"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(!home.path().join("xdg").exists(), "{}", talk(&output));

    let config = home.path().join("config");
    fs::create_dir_all(&config).unwrap();
    let text = "[control]\nurl = \"http://127.0.0.1:1\"\npublishable_key = \"sb_publishable_x\"\n\
                [node]\nname = \"attic\"\n";
    fs::write(config.join("config.toml"), text).unwrap();
    let output = program(home.path())
        .env("XDG_CONFIG_HOME", home.path().join("xdg"))
        .env("PATH", home.path())
        .args(["service", "install", "--user"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(talk(&output).contains("has no systemd"), "{}", talk(&output));
    assert!(!home.path().join("xdg").exists(), "nothing is left behind");
}
