//! Links that are cut: packets vanish in one direction or both, without a reset, as a firewall or a
//! broken switch does it.

use std::{
    fmt,
    fs::File,
    os::fd::AsRawFd as _,
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use super::{
    mend, must,
    victim::{Node, Victim},
};

/// What the rules of one cut begin with; `deploy/local/up` removes leftovers by it.
const TABLE: &str = "ao-fault";

/// Seen from the node or pod that is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Out,
    In,
    Both,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Out => "outgoing packets",
            Self::In => "incoming packets",
            Self::Both => "packets both ways",
        })
    }
}

/// Which packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    /// All.
    Everything,
    /// Those to and from servers on this port.
    Port(u16),
}

/// Port of the controller.
pub(crate) const CONTROLLER: Link = Link::Port(8443);
/// Port of the API server's Service, as pods reach it.
pub(crate) const API_SERVER: Link = Link::Port(443);

/// A network namespace, held open: its processes may die meanwhile.
pub(crate) struct Place(File);

impl Place {
    /// The node itself: everything that leaves or enters it, its pods' traffic included.
    pub(crate) fn node(node: Node) -> Self {
        let name = node.name().replace("node-", "/run/netns/ao-");
        Self(File::open(&name).unwrap_or_else(|error| panic!("{name}: {error}")))
    }

    /// The pod of supervisor and gateway.
    pub(crate) fn supervisor(node: Node) -> Self {
        let pid = Victim::Supervisor(node).pid().expect("the supervisor runs");
        Self(File::open(format!("/proc/{pid}/ns/net")).expect("its network namespace"))
    }

    /// For `setns`.
    pub(crate) fn file(&self) -> &File {
        &self.0
    }

    /// For `nsenter`.
    pub(crate) fn argument(&self) -> String {
        format!("--net=/proc/{}/fd/{}", process::id(), self.0.as_raw_fd())
    }

    /// Loads rules of nftables there.
    pub(crate) fn load(&self, rules: &str) {
        must("nsenter", &[&self.argument(), "nft", "-f", "-"], rules);
    }

    /// Removes a table.
    pub(crate) fn unload(&self, family: &str, table: &str) {
        mend("nsenter", &[&self.argument(), "nft", "delete", "table", family, table]);
    }
}

/// A cut that lasts until this goes.
pub(crate) struct Cut {
    place: Place,
    table: String,
}

impl Cut {
    /// Cuts a link at a place.
    pub(crate) fn new(place: Place, link: Link, direction: Direction) -> Self {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let table = format!("{TABLE}-{}", SERIAL.fetch_add(1, Ordering::Relaxed));
        place.load(&rules(&table, link, direction));
        Self { place, table }
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        self.place.unload("netdev", &self.table);
    }
}

fn rules(table: &str, link: Link, direction: Direction) -> String {
    let chain = |hook: &str, port: &str| {
        let what = match link {
            Link::Everything => String::new(),
            Link::Port(number) => format!("tcp {port} {number} "),
        };
        format!(
            "  chain {hook} {{\n    type filter hook {hook} device \"eth0\" priority 0;\n    {what}drop\n  }}\n"
        )
    };
    let out = if direction == Direction::In { String::new() } else { chain("egress", "dport") };
    let into = if direction == Direction::Out { String::new() } else { chain("ingress", "sport") };
    format!("table netdev {table} {{\n{out}{into}}}\n")
}
