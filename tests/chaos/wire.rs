//! A network namespace for one node, with a wire to this machine that can be cut.
//!
//! The node reaches the control plane at an address on the loopback interface, which
//! stays when the wire is down, so that nothing tells the node: its packets vanish.

use std::net::Ipv4Addr;
use std::process::Command;

use super::engine::run;

/// How the wire is cut.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Cut {
    /// Nothing passes.
    Whole,
    /// What the node says arrives; the answers do not.
    Answers,
}

/// A namespace and its wire, removed when dropped.
pub(crate) struct Wire {
    /// The namespace's name.
    pub(crate) namespace: String,
    /// The end of the wire on this machine.
    outside: String,
    net: u8,
}

impl Wire {
    /// Makes a namespace with addresses that nobody here uses.
    pub(crate) fn lay() -> Self {
        let mut used = run(&mut ip(&["-4", "-o", "address"]));
        used.push_str(&run(&mut ip(&["route"])));
        let net = (0..=u8::MAX)
            .find(|net| !used.contains(&format!("10.213.{net}.")))
            .expect("a net of 256 is free");
        let wire = Self {
            namespace: format!("infernet-chaos{net}"),
            outside: format!("ichaos{net}"),
            net,
        };
        let (name, outside) = (wire.namespace.as_str(), wire.outside.as_str());
        let inside = wire.address(6).to_string();
        run(&mut ip(&["netns", "add", name]));
        run(&mut ip(&["address", "add", &format!("{}/32", wire.gate()), "dev", "lo"]));
        run(&mut ip(&[
            "link", "add", outside, "type", "veth", "peer", "name", "wire", "netns", name,
        ]));
        run(&mut ip(&["address", "add", &format!("{}/30", wire.address(5)), "dev", outside]));
        run(&mut ip(&["link", "set", outside, "up"]));
        // While the wire is down, answers must not go out by another way.
        run(&mut ip(&[
            "route",
            "add",
            "blackhole",
            &format!("{}/30", wire.address(4)),
            "metric",
            "9999",
        ]));
        let in_there = |arguments: &[&str]| {
            let mut all = vec!["-n", name];
            all.extend(arguments);
            run(&mut ip(&all));
        };
        in_there(&["link", "set", "lo", "up"]);
        in_there(&["address", "add", &format!("{inside}/30"), "dev", "wire"]);
        in_there(&["link", "set", "wire", "up"]);
        in_there(&["route", "add", "default", "via", &wire.address(5).to_string()]);
        wire
    }

    /// The address at which the node finds this machine.
    pub(crate) fn gate(&self) -> Ipv4Addr {
        self.address(1)
    }

    /// Cuts the wire.
    pub(crate) fn cut(&self, how: Cut) {
        match how {
            Cut::Whole => run(&mut ip(&["link", "set", &self.outside, "down"])),
            Cut::Answers => run(&mut ip(&["route", "add", "blackhole", &self.node()])),
        };
    }

    /// Mends it.
    pub(crate) fn mend(&self, how: Cut) {
        match how {
            Cut::Whole => run(&mut ip(&["link", "set", &self.outside, "up"])),
            Cut::Answers => run(&mut ip(&["route", "del", "blackhole", &self.node()])),
        };
    }

    fn node(&self) -> String {
        format!("{}/32", self.address(6))
    }

    fn address(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 213, self.net, host)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // What is not there any more need not be removed.
        let net = format!("{}/30", self.address(4));
        for arguments in [
            &["route", "del", "blackhole", &self.node()][..],
            &["route", "del", "blackhole", &net, "metric", "9999"],
            &["link", "del", &self.outside],
            &["netns", "del", &self.namespace],
            &["address", "del", &format!("{}/32", self.gate()), "dev", "lo"],
        ] {
            let _output = ip(arguments).output();
        }
    }
}

fn ip(arguments: &[&str]) -> Command {
    let mut command = Command::new("ip");
    command.args(arguments);
    command
}
