//! From what is written to what is meant; the first thing that cannot be is the error.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use serde_saphyr::{Location, Spanned};
use towline_proto::address;
use towline_proto::id::{ClusterName, Name};
use towline_proto::limits;

use super::raw::{self, Text};
use super::{ClusterFile, Endpoint, External, Keys, Lives, Machine};
use crate::cluster::layout::Purpose;
use crate::key::KeyKind;
use crate::mint::NAME_CHARS;
use crate::role;
use crate::yaml::Fault;

/// The one form that is read.
const VERSION: u64 = 1;
const PORT: u16 = 6443;
const DAY: u64 = 86_400;
/// What stands before a node's name in its user name.
const NODE: &str = "system:node:";

pub(super) fn file(raw: raw::File, beside: &Path) -> Result<ClusterFile, Fault> {
    if raw.version.value != VERSION {
        let cause = format!("version {} is not known: use {VERSION}", raw.version.value);
        return Err(Fault::at(raw.version.referenced, cause));
    }
    let cluster: ClusterName = read(&raw.cluster)?;
    let kubernetes = &raw.kubernetes;
    let services = services(kubernetes)?;
    let (authorities, external) = authorities(&raw.authorities, beside)?;
    let held_elsewhere = |one: &External| one.purpose == Purpose::Kubernetes && one.key.is_none();
    if let Some(place) = kubernetes.signer_on_control_planes.as_ref()
        && place.value
        && external.iter().any(held_elsewhere)
    {
        let cause = "control planes cannot sign with a key that is not here";
        return Err(Fault::at(place.referenced, cause));
    }
    let mut found = Machines::new(authorities.contains(&Purpose::Kubernetes), &services);
    found.all(&raw)?;
    let machines = found.list;
    if machines.is_empty() {
        let cause = "no machine: name at least one under controlPlanes, nodes or towline.servers";
        return Err(Fault::at(raw.cluster.referenced, cause));
    }
    let port = kubernetes.port.as_ref().map_or(PORT, |port| port.value);
    let (apiserver_dns, apiserver_ips) = names(&kubernetes.apiserver_names)?;
    let service_addresses = services.iter().map(first_address).collect();
    let cluster_domain = match &kubernetes.cluster_domain {
        Some(text) => {
            role::check_dns(&text.value).map_err(|error| Fault::at(text.referenced, error))?;
            text.value.clone()
        }
        None => "cluster.local".to_owned(),
    };
    Ok(ClusterFile {
        endpoint: endpoint(kubernetes.endpoint.as_ref(), port, &machines)?,
        cluster,
        port,
        service_addresses,
        cluster_domain,
        apiserver_dns,
        apiserver_ips,
        signer_on_control_planes: kubernetes
            .signer_on_control_planes
            .as_ref()
            .is_some_and(|it| it.value),
        machines,
        clients: people(&raw.towline.clients)?,
        operators: people(&raw.towline.operators)?,
        keys: keys(&raw.keys)?,
        lives: lives(&raw.lives)?,
        authorities,
        external,
    })
}

fn read<T: std::str::FromStr<Err: std::fmt::Display>>(text: &Text) -> Result<T, Fault> {
    text.value
        .parse()
        .map_err(|error| Fault::at(text.referenced, error))
}

/// The machines of all sections, one for each name.
struct Machines<'a> {
    list: Vec<Machine>,
    at: HashMap<Name, usize>,
    holders: HashMap<String, Name>,
    kubernetes: bool,
    services: &'a [IpNet],
}

impl<'a> Machines<'a> {
    fn new(kubernetes: bool, services: &'a [IpNet]) -> Self {
        Self {
            list: Vec::new(),
            at: HashMap::new(),
            holders: HashMap::new(),
            kubernetes,
            services,
        }
    }

    fn all(&mut self, raw: &raw::File) -> Result<(), Fault> {
        let agents = raw.towline.agents.unwrap_or(true);
        for machine in &raw.control_planes {
            let kubelet = machine.value.kubelet.as_ref().is_none_or(|it| it.value);
            let one = self.new_one(machine)?;
            one.control_plane = true;
            one.kubelet = kubelet;
            one.agent = kubelet && agents;
            one.etcd = raw.etcd.members.is_none();
            one.server = raw.towline.servers.is_none();
        }
        for machine in &raw.nodes {
            refuse_kubelet(machine)?;
            let one = self.new_one(machine)?;
            one.kubelet = true;
            one.agent = agents;
        }
        for machine in raw.etcd.members.iter().flatten() {
            refuse_kubelet(machine)?;
            self.old_or_new(machine)?.etcd = true;
        }
        for machine in raw.towline.servers.iter().flatten() {
            refuse_kubelet(machine)?;
            self.old_or_new(machine)?.server = true;
        }
        Ok(())
    }

    /// A machine that must not have been named before.
    fn new_one(&mut self, raw: &Spanned<raw::Machine>) -> Result<&mut Machine, Fault> {
        let name: Name = read(&raw.value.name)?;
        if self.at.contains_key(&name) {
            let cause = format!("{name} is there already: one machine, one name");
            return Err(Fault::at(raw.value.name.referenced, cause));
        }
        if raw.value.addresses.is_empty() {
            let cause = format!("{name} has no address: give all that it is reached at");
            return Err(Fault::at(raw.value.name.referenced, cause));
        }
        self.old_or_new(raw)
    }

    /// A machine that may have been named in another section; what is said here is added.
    fn old_or_new(&mut self, raw: &Spanned<raw::Machine>) -> Result<&mut Machine, Fault> {
        let place = raw.value.name.referenced;
        let name: Name = read(&raw.value.name)?;
        let most = NAME_CHARS - NODE.len();
        if self.kubernetes && name.as_str().len() > most {
            let cause = format!(
                "a name of {} characters: {NODE}NAME must fit into the {NAME_CHARS} of a common \
                 name, so at most {most}",
                name.as_str().len()
            );
            return Err(Fault::at(place, cause));
        }
        let index = match self.at.get(&name) {
            Some(index) => *index,
            None if self.list.len() == limits::CLUSTER_MACHINES => {
                let cause = format!("more than {} machines", limits::CLUSTER_MACHINES);
                return Err(Fault::at(place, cause));
            }
            None => {
                self.list.push(Machine {
                    name: name.clone(),
                    dns: Vec::new(),
                    ips: Vec::new(),
                    control_plane: false,
                    etcd: false,
                    kubelet: false,
                    server: false,
                    agent: false,
                });
                self.at.insert(name.clone(), self.list.len() - 1);
                self.list.len() - 1
            }
        };
        self.hold(name.as_str(), &name, place)?;
        for list in [&raw.value.addresses, &raw.value.names] {
            if let Some(item) = list.get(limits::CLUSTER_NAMES) {
                let cause = format!("more than {} for one machine", limits::CLUSTER_NAMES);
                return Err(Fault::at(item.referenced, cause));
            }
        }
        let mut ips = Vec::new();
        for text in &raw.value.addresses {
            let ip = self.address(text)?;
            self.hold(&ip.to_string(), &name, text.referenced)?;
            ips.push(ip);
        }
        let mut dns = Vec::new();
        for text in &raw.value.names {
            role::check_dns(&text.value).map_err(|error| Fault::at(text.referenced, error))?;
            self.hold(&text.value, &name, text.referenced)?;
            dns.push(text.value.clone());
        }
        let machine = self
            .list
            .get_mut(index)
            .ok_or_else(|| Fault::at(place, "too many machines"))?;
        for ip in ips {
            if !machine.ips.contains(&ip) {
                machine.ips.push(ip);
            }
        }
        for one in dns {
            if one != name.as_str() && !machine.dns.contains(&one) {
                machine.dns.push(one);
            }
        }
        if machine.ips.is_empty() {
            let cause = format!("{name} has no address: give all that it is reached at");
            return Err(Fault::at(place, cause));
        }
        Ok(machine)
    }

    fn address(&self, text: &Text) -> Result<IpAddr, Fault> {
        let ip: IpAddr = text.value.parse().map_err(|_| {
            let cause = format!("{:?} is not an IP address", text.value);
            Fault::at(text.referenced, cause)
        })?;
        let ip = address::canonical(ip);
        if let Some(refusal) = address::refusal(ip) {
            let cause = format!("{ip} cannot be the address of a machine: {refusal}");
            return Err(Fault::at(text.referenced, cause));
        }
        if self.services.iter().any(|net| net.contains(&ip)) {
            let cause = format!("{ip} lies inside kubernetes.serviceCIDRs: no machine has it");
            return Err(Fault::at(text.referenced, cause));
        }
        Ok(ip)
    }

    /// A name or address belongs to one machine.
    fn hold(&mut self, what: &str, name: &Name, place: Location) -> Result<(), Fault> {
        let holder = self
            .holders
            .entry(what.to_ascii_lowercase())
            .or_insert_with(|| name.clone());
        if holder == name {
            return Ok(());
        }
        let cause = format!("{what} belongs to {holder} already: who holds it twice is believed");
        Err(Fault::at(place, cause))
    }
}

fn refuse_kubelet(machine: &Spanned<raw::Machine>) -> Result<(), Fault> {
    match &machine.value.kubelet {
        Some(place) => Err(Fault::at(
            place.referenced,
            "kubelet is for controlPlanes: nodes have one, the others are given under nodes too",
        )),
        None => Ok(()),
    }
}

fn services(raw: &raw::Kubernetes) -> Result<Vec<IpNet>, Fault> {
    let Some(list) = &raw.service_cidrs else {
        return Ok("10.96.0.0/12".parse().into_iter().collect());
    };
    let mut nets: Vec<IpNet> = Vec::new();
    for text in list {
        let net: IpNet = text.value.parse().map_err(|_| {
            let cause = format!("{:?} is not a prefix such as 10.96.0.0/12", text.value);
            Fault::at(text.referenced, cause)
        })?;
        if net.trunc() != net {
            let cause = format!("{net} has bits behind its prefix: write {}", net.trunc());
            return Err(Fault::at(text.referenced, cause));
        }
        if net.prefix_len() + 2 > net.max_prefix_len() {
            return Err(Fault::at(text.referenced, format!("{net} is too small")));
        }
        let double = nets
            .iter()
            .any(|other| other.addr().is_ipv4() == net.addr().is_ipv4());
        if double {
            let cause = "two prefixes of one family: Kubernetes has one of each";
            return Err(Fault::at(text.referenced, cause));
        }
        nets.push(net);
    }
    Ok(nets)
}

/// The service "kubernetes" has the first address of the prefix.
fn first_address(net: &IpNet) -> IpAddr {
    match net.network() {
        IpAddr::V4(v4) => IpAddr::V4(u32::from(v4).saturating_add(1).into()),
        IpAddr::V6(v6) => IpAddr::V6(u128::from(v6).saturating_add(1).into()),
    }
}

/// DNS names and addresses, told apart by their form.
fn names(list: &[Text]) -> Result<(Vec<String>, Vec<IpAddr>), Fault> {
    let (mut dns, mut ips) = (Vec::new(), Vec::new());
    for text in list {
        match text.value.parse::<IpAddr>() {
            Ok(ip) => ips.push(address::canonical(ip)),
            Err(_) => {
                role::check_dns(&text.value).map_err(|error| Fault::at(text.referenced, error))?;
                dns.push(text.value.clone());
            }
        }
    }
    Ok((dns, ips))
}

fn endpoint(
    text: Option<&Text>,
    port: u16,
    machines: &[Machine],
) -> Result<Option<Endpoint>, Fault> {
    let Some(text) = text else {
        let first = machines.iter().find(|machine| machine.control_plane);
        return Ok(first
            .and_then(|machine| machine.ips.first())
            .map(|ip| Endpoint {
                host: ip.to_string(),
                port,
            }));
    };
    let wrong = |cause: &str| {
        let cause = format!("{:?} is not HOST or HOST:PORT: {cause}", text.value);
        Fault::at(text.referenced, cause)
    };
    let whole = text.value.as_str();
    let (host, port) = match whole.rsplit_once(':') {
        _ if whole.parse::<IpAddr>().is_ok() => (whole, port),
        Some((host, digits)) => match digits.parse::<u16>() {
            Ok(port) if port > 0 => (host, port),
            _ => return Err(wrong("the port is no number from 1 to 65535")),
        },
        None => (whole, port),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.parse::<IpAddr>().is_err() {
        role::check_dns(host).map_err(|error| wrong(&error.to_string()))?;
    }
    Ok(Some(Endpoint {
        host: host.to_owned(),
        port,
    }))
}

fn people(list: &[Text]) -> Result<Vec<Name>, Fault> {
    let mut names: Vec<Name> = Vec::new();
    for text in list {
        let name = read(text)?;
        if names.contains(&name) {
            return Err(Fault::at(text.referenced, format!("{name} is there twice")));
        }
        names.push(name);
    }
    Ok(names)
}

fn keys(raw: &raw::Keys) -> Result<Keys, Fault> {
    let kind = |text: &Option<Text>| text.as_ref().map(read::<KeyKind>).transpose();
    let certificates = kind(&raw.certificates)?.unwrap_or_default();
    let service_accounts = match (&raw.service_accounts, certificates) {
        (Some(text), _) => match read(text)? {
            KeyKind::Ed25519 => {
                let cause = "kube-apiserver signs no tokens with Ed25519: use ECDSA or RSA";
                return Err(Fault::at(text.referenced, cause));
            }
            kind => kind,
        },
        (None, KeyKind::Ed25519) => KeyKind::EcdsaP256,
        (None, kind) => kind,
    };
    let authorities = kind(&raw.authorities)?.unwrap_or_default();
    if let Some(text) = &raw.authorities
        && !authorities.fits_authority()
    {
        let cause = format!("{authorities} is too weak for an authority: use rsa-3072 or more");
        return Err(Fault::at(text.referenced, cause));
    }
    Ok(Keys {
        authorities,
        certificates,
        service_accounts,
    })
}

fn lives(raw: &raw::Lives) -> Result<Lives, Fault> {
    let life = |days: &Option<raw::Days>, default: u64, most: u64| match days {
        None => Ok(Duration::from_secs(default * DAY)),
        Some(days) if (1..=most).contains(&days.value) => Ok(Duration::from_secs(days.value * DAY)),
        Some(days) => {
            let cause = format!("{} days: use 1 to {most}", days.value);
            Err(Fault::at(days.referenced, cause))
        }
    };
    let mut lives = Lives {
        authorities: life(&raw.authorities, 3_650, 7_300)?,
        issuers: life(&raw.issuers, 1_825, 7_300)?,
        components: life(&raw.components, 365, 824)?,
        kubelets: life(&raw.kubelets, 365, 824)?,
        admins: life(&raw.admins, 365, 399)?,
        servers: life(&raw.servers, 365, 824)?,
        agents: life(&raw.agents, 90, 400)?,
        clients: life(&raw.clients, 365, 824)?,
        operators: life(&raw.operators, 30, 90)?,
        renew_before: None,
    };
    if lives.issuers >= lives.authorities {
        let place = raw.issuers.as_ref().or(raw.authorities.as_ref());
        let cause = "lives.issuers must be shorter than lives.authorities: an issuer cannot \
                     outlive its root";
        return Err(place.map_or_else(
            || Fault::at(Location::UNKNOWN, cause),
            |place| Fault::at(place.referenced, cause),
        ));
    }
    if let Some(days) = &raw.renew_before {
        let ahead = Duration::from_secs(days.value.saturating_mul(DAY));
        let shortest = [
            lives.components,
            lives.kubelets,
            lives.admins,
            lives.servers,
            lives.agents,
            lives.clients,
            lives.operators,
        ];
        if shortest.iter().any(|life| ahead >= *life) || ahead.is_zero() {
            let cause = format!(
                "{} days: use at least 1 and less than every certificate's life, or each run \
                 would renew it",
                days.value
            );
            return Err(Fault::at(days.referenced, cause));
        }
        lives.renew_before = Some(ahead);
    }
    Ok(lives)
}

fn authorities(
    raw: &raw::Authorities,
    beside: &Path,
) -> Result<(Vec<Purpose>, Vec<External>), Fault> {
    let mut have = Purpose::ALL.to_vec();
    let externals = &raw.external;
    let own = match &raw.kubelet_serving {
        None => externals.kubelets.is_some(),
        Some(text) => match text.value.as_str() {
            "own" => true,
            "kubernetes" if externals.kubelets.is_none() => false,
            other => {
                let cause = format!("{other:?}: use kubernetes, or own with or without external");
                return Err(Fault::at(text.referenced, cause));
            }
        },
    };
    if !own {
        have.retain(|purpose| *purpose != Purpose::Kubelets);
    }
    for text in &raw.leave_out {
        let gone: &[Purpose] = match text.value.as_str() {
            "kubernetes" => &[Purpose::Kubernetes, Purpose::FrontProxy, Purpose::Kubelets],
            "etcd" => &[Purpose::Etcd],
            "frontProxy" => &[Purpose::FrontProxy],
            "gateway" => &[Purpose::Gateway],
            "towline" => &[
                Purpose::Root,
                Purpose::Agents,
                Purpose::Servers,
                Purpose::Gateway,
            ],
            other => {
                let cause = format!(
                    "{other:?} cannot be left out: use kubernetes, etcd, frontProxy, gateway or \
                     towline"
                );
                return Err(Fault::at(text.referenced, cause));
            }
        };
        have.retain(|purpose| !gone.contains(purpose));
    }
    let mut list = Vec::new();
    for (purpose, external) in [
        (Purpose::Kubernetes, &externals.kubernetes),
        (Purpose::Etcd, &externals.etcd),
        (Purpose::FrontProxy, &externals.front_proxy),
        (Purpose::Kubelets, &externals.kubelets),
        (Purpose::Agents, &externals.agents),
        (Purpose::Servers, &externals.servers),
        (Purpose::Gateway, &externals.gateway),
    ] {
        let Some(external) = external else { continue };
        if !have.contains(&purpose) {
            let cause = format!("{purpose} is external and left out at once");
            return Err(Fault::at(external.referenced, cause));
        }
        if purpose == Purpose::Gateway && external.value.key.is_none() {
            let cause = "the gateway signs with its authority's key by itself: give key";
            return Err(Fault::at(external.referenced, cause));
        }
        let path = |text: &Text| beside.join(&text.value);
        list.push(External {
            purpose,
            certificate: path(&external.value.certificate),
            key: external.value.key.as_ref().map(path),
        });
    }
    Ok((have, list))
}
