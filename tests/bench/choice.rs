//! Which benches a command line asks for, and what has to be there for them.

use std::fmt::Write as _;

use crate::{BENCHES, Bench, measure::Scale};

/// Benches whose rows have a name of their own in the table.
const ALSO: &[(&str, &str)] = &[("gap", "requests")];

/// What has to be there for a bench.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    Nothing,
    /// kube-apiserver and etcd, see `deploy/local/apiserver`.
    ApiServer,
    /// The local cluster, see `deploy/local/up`.
    Nodes,
    /// The local cluster for its peer alone; without it the peer is left out.
    NodesForItsPeer,
}

/// Real nodes take of the two cores what else is measured, so their benches have a process of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Bare,
    Nodes,
}

/// A command line, understood.
#[derive(Debug)]
pub struct Choice {
    names: Vec<String>,
    pub json: bool,
    pub scale: Scale,
    part: Option<Part>,
    no_nodes: bool,
    told: Option<Told>,
}

/// What a command line may ask for instead of benches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    List,
    Needs,
}

impl Choice {
    pub fn new(arguments: &[String]) -> Result<Self, String> {
        let mut choice = Self {
            names: Vec::new(),
            json: false,
            scale: Scale::Full,
            part: None,
            no_nodes: false,
            told: None,
        };
        for argument in arguments {
            match argument.as_str() {
                "--json" => choice.json = true,
                "--quick" => choice.scale = Scale::Quick,
                "--list" => choice.told = Some(Told::List),
                "--needs" => choice.told = Some(Told::Needs),
                "--no-nodes" => choice.no_nodes = true,
                "--part=bare" => choice.part = Some(Part::Bare),
                "--part=nodes" => choice.part = Some(Part::Nodes),
                // From `cargo bench`.
                "--bench" => {}
                name => choice.names.push(known(name)?.to_owned()),
            }
        }
        Ok(choice)
    }

    /// What is only told: the list of all, or what the chosen ones need.
    pub fn answer(&self) -> Option<String> {
        match self.told? {
            Told::List => Some(list()),
            Told::Needs => Some(self.needs()),
        }
    }

    fn needs(&self) -> String {
        let chosen: Vec<_> = self.chosen().collect();
        let of = |part| chosen.iter().any(|(_, at, _)| *at == part);
        let api_server = chosen.iter().any(|(needs, ..)| *needs == Needs::ApiServer);
        let all =
            [("bare\n", of(Part::Bare)), ("apiserver\n", api_server), ("nodes\n", of(Part::Nodes))];
        all.iter().filter(|(_, there)| *there).map(|(word, _)| *word).collect()
    }

    /// The benches of this process.
    pub fn benches(&self) -> impl Iterator<Item = (&'static str, Bench)> {
        let here = |at: Part| self.part.is_none_or(|part| part == at);
        self.chosen().filter(move |(_, at, _)| here(*at)).map(|(.., bench)| bench)
    }

    fn is_named(&self, name: &str) -> bool {
        self.names.iter().any(|named| named == name)
    }

    /// The quick form leaves real nodes alone unless it is asked for one of their benches.
    fn has_nodes(&self) -> bool {
        let of_nodes =
            |(name, needs, _): &(&str, Needs, Bench)| *needs == Needs::Nodes && self.is_named(name);
        !self.no_nodes && (self.scale == Scale::Full || BENCHES.iter().any(of_nodes))
    }

    fn chosen(&self) -> impl Iterator<Item = (Needs, Part, (&'static str, Bench))> {
        let nodes = self.has_nodes();
        let wanted = |name: &str| self.names.is_empty() || self.is_named(name);
        BENCHES.iter().filter(move |(name, ..)| wanted(name)).filter_map(
            move |(name, needs, run)| {
                let part = match needs {
                    Needs::Nothing | Needs::ApiServer => Part::Bare,
                    Needs::Nodes if !nodes => return None,
                    Needs::NodesForItsPeer if !nodes => Part::Bare,
                    Needs::Nodes | Needs::NodesForItsPeer => Part::Nodes,
                };
                Some((*needs, part, (*name, *run)))
            },
        )
    }
}

fn list() -> String {
    let mut text = String::new();
    for (name, needs, _) in BENCHES {
        let words = match needs {
            Needs::Nothing => "",
            Needs::ApiServer => " apiserver",
            Needs::Nodes => " nodes",
            Needs::NodesForItsPeer => " nodes, for its peer",
        };
        let _ = writeln!(text, "{name}{words}");
    }
    text
}

fn known(name: &str) -> Result<&str, String> {
    let name = ALSO.iter().find(|(also, _)| *also == name).map_or(name, |(_, bench)| *bench);
    let is_there = BENCHES.iter().any(|(known, ..)| *known == name);
    is_there
        .then_some(name)
        .ok_or_else(|| format!("no bench or option is called {name}; see --list"))
}
