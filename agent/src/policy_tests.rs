//! The policy against a table and against a naive oracle.

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;

const NODE: &str = "10.0.0.7";
const OTHER_OF_NODE: &str = "192.168.9.7";
const BRIDGE: &str = "10.244.7.1";
const IPVS: &str = "10.96.0.10";
const SERVER: &str = "10.0.0.1:8091";
/// What a server says, one of them in order to keep everybody from this node's kubelet.
const TOLD: [&str; 3] = ["10.0.0.2:8091", "10.0.0.7:10250", "10.244.7.1:10250"];

struct Node;

impl Facts for Node {
    fn is_local(&self, ip: IpAddr) -> bool {
        ip.is_loopback()
            || [NODE, OTHER_OF_NODE, BRIDGE, IPVS]
                .iter()
                .any(|own| own.parse() == Ok(ip))
    }

    fn is_server(&self, address: SocketAddr) -> bool {
        SERVER.parse() == Ok(address)
    }

    fn is_told(&self, address: SocketAddr) -> bool {
        TOLD.iter().any(|told| told.parse() == Ok(address))
    }

    fn is_server_name(&self, name: &str, port: u16) -> bool {
        (name, port) == ("cp.example", 8091)
    }
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn classes(classes: &[Class]) -> Arc<RuleSet> {
    Arc::new(RuleSet::built_in(Classes::of(classes)))
}

fn asked(port: u16, said: Class) -> Asked<'static> {
    Asked {
        name: None,
        port,
        said,
    }
}

fn rules() -> Rules {
    Rules {
        node: Some("n7".parse().unwrap()),
        kubelet_addresses: ips(&[NODE]),
        kubelet_port: 10250,
        service_prefixes: nets(&["10.96.0.0/12", "fd00:96::/108"]),
        pod_prefixes: nets(&["10.244.0.0/16"]),
        rules: classes(&[Class::Kubelet, Class::Pod, Class::Service]),
        health: Some("0.0.0.0:8093".parse().unwrap()),
        open: false,
    }
}

/// One address; the word is the class, or why not.
fn judge(rules: &Rules, address: &str, said: Class) -> String {
    let address: SocketAddr = address.parse().unwrap();
    match Policy::new(rules.clone()).check(&[address.ip()], asked(address.port(), said), &Node) {
        Ok(permits) => permits[0].class().to_string(),
        Err(Denial::NoAddress) => "none".into(),
        Err(Denial::Forbidden(..)) => "forbidden".into(),
        Err(Denial::Tunnel(_)) => "tunnel".into(),
        Err(Denial::Mismatch(..)) => "mismatch".into(),
        Err(Denial::Rule(..)) => "rule".into(),
        Err(Denial::Unnamed(..)) => "class".into(),
    }
}

#[test]
fn what_a_node_with_prefixes_reaches() {
    use Class::{Kubelet, Node, Other, Pod, Service};
    for (address, said, expected) in [
        ("10.0.0.7:10250", Kubelet, "kubelet"),
        ("[::ffff:10.0.0.7]:10250", Kubelet, "kubelet"),
        ("10.0.0.7:10250", Pod, "mismatch"),
        ("10.0.0.7:22", Kubelet, "mismatch"),
        ("10.0.0.7:22", Pod, "mismatch"),
        ("10.0.0.7:22", Node, "class"),
        ("192.168.9.7:10250", Kubelet, "mismatch"),
        ("10.0.0.8:10250", Kubelet, "mismatch"),
        ("10.0.0.8:10250", Pod, "mismatch"),
        ("10.244.9.9:8080", Pod, "pod"),
        ("10.244.9.9:8080", Service, "mismatch"),
        ("10.244.7.1:22", Pod, "mismatch"),
        ("10.96.0.1:443", Service, "service"),
        ("10.96.0.10:53", Service, "service"),
        ("10.96.0.10:53", Node, "mismatch"),
        ("[fd00:96::1]:443", Service, "service"),
        ("8.8.8.8:53", Other, "class"),
        ("8.8.8.8:53", Service, "mismatch"),
        ("10.0.0.1:8091", Other, "tunnel"),
        ("10.0.0.1:8091", Service, "tunnel"),
        ("10.0.0.2:8091", Other, "tunnel"),
        ("10.0.0.2:8091", Service, "tunnel"),
        ("10.0.0.7:8093", Node, "tunnel"),
        ("[64:ff9b::a00:1]:8091", Other, "tunnel"),
        ("[2002:a00:1::1]:8091", Service, "tunnel"),
        ("[64:ff9b::a00:7]:8093", Node, "tunnel"),
        ("[64:ff9b::a00:7]:22", Pod, "mismatch"),
        ("[64:ff9b::a00:7]:22", Node, "class"),
        ("127.0.0.1:10250", Kubelet, "forbidden"),
        ("[::1]:10250", Kubelet, "forbidden"),
        ("[::ffff:127.0.0.1]:80", Pod, "forbidden"),
        ("169.254.169.254:80", Other, "forbidden"),
        ("[fe80::1]:80", Pod, "forbidden"),
        ("0.0.0.0:10250", Kubelet, "forbidden"),
        ("224.0.0.1:80", Pod, "forbidden"),
    ] {
        assert_eq!(
            judge(&rules(), address, said),
            expected,
            "{address} as {said}"
        );
    }
}

#[test]
fn without_prefixes_the_servers_word_tells_pod_from_service_but_never_the_node() {
    let rules = Rules {
        service_prefixes: Vec::new(),
        pod_prefixes: Vec::new(),
        ..rules()
    };
    for (address, said, expected) in [
        ("10.244.9.9:8080", Class::Pod, "pod"),
        ("10.96.0.1:443", Class::Service, "service"),
        ("10.96.0.10:53", Class::Service, "mismatch"),
        ("10.0.0.7:22", Class::Service, "mismatch"),
        ("10.0.0.7:10250", Class::Service, "mismatch"),
        ("10.0.0.8:10250", Class::Pod, "mismatch"),
        ("10.0.0.8:10250", Class::Service, "mismatch"),
        ("10.244.9.9:10250", Class::Pod, "mismatch"),
        ("127.0.0.1:80", Class::Service, "forbidden"),
    ] {
        assert_eq!(
            judge(&rules, address, said),
            expected,
            "{address} as {said}"
        );
    }
}

#[test]
fn loopback_is_reached_only_as_the_kubelet_that_was_named_there() {
    let rules = Rules {
        kubelet_addresses: ips(&["127.0.0.1"]),
        ..rules()
    };
    assert_eq!(judge(&rules, "127.0.0.1:10250", Class::Kubelet), "kubelet");
    assert_eq!(
        judge(&rules, "127.0.0.1:10251", Class::Kubelet),
        "forbidden"
    );
    assert_eq!(
        judge(&rules, "127.0.0.2:10250", Class::Kubelet),
        "forbidden"
    );
    // Then this one is a server's word only.
    assert_eq!(judge(&rules, "10.0.0.7:10250", Class::Kubelet), "tunnel");
}

#[test]
fn without_kubelet_addresses_every_address_of_the_node_but_loopback_is_the_kubelets() {
    let rules = Rules {
        kubelet_addresses: Vec::new(),
        ..rules()
    };
    assert_eq!(
        judge(&rules, "192.168.9.7:10250", Class::Kubelet),
        "kubelet"
    );
    assert_eq!(
        judge(&rules, "127.0.0.1:10250", Class::Kubelet),
        "forbidden"
    );
    assert_eq!(judge(&rules, "10.0.0.8:10250", Class::Kubelet), "mismatch");
}

#[test]
fn one_bad_address_refuses_all() {
    let policy = Policy::new(rules());
    let check = |list: &[&str]| policy.check(&ips(list), asked(443, Class::Service), &Node);
    assert_eq!(
        check(&["10.96.0.1", "10.96.0.2", "10.96.0.1"])
            .unwrap()
            .len(),
        2
    );
    assert_eq!(
        check(&["10.96.0.1", "169.254.169.254"]).unwrap_err(),
        Denial::Forbidden("169.254.169.254".parse().unwrap(), Refusal::Metadata)
    );
    assert!(check(&["10.96.0.1", "10.0.0.7"]).is_err());
    assert_eq!(check(&[]).unwrap_err(), Denial::NoAddress);
}

#[test]
fn the_nodes_own_name_is_never_resolved() {
    let policy = Policy::new(rules());
    let target: Target = "n7:10250".parse().unwrap();
    assert_eq!(policy.lookup(&target), Lookup::Known(ips(&[NODE])));
    let target: Target = "n8:10250".parse().unwrap();
    assert!(matches!(policy.lookup(&target), Lookup::Resolve(_)));
}

#[test]
fn what_travels_is_a_number_and_an_address() {
    let ip: IpAddr = NODE.parse().unwrap();
    assert_eq!(
        Denial::Unnamed(ip, Class::Node).refused(),
        Refused {
            reason: Reason::AgentPolicy,
            address: Some(ip)
        }
    );
    assert_eq!(
        Denial::NoAddress.refused(),
        Refused::new(Reason::NameNotFound)
    );
}

#[test]
fn rules_of_a_file_are_kept_on_the_resolved_address() {
    use towline_proto::policy::{Action, Destination, FrontEnd, Rule};
    let allow = |name: &str, change: &dyn Fn(&mut Rule)| {
        let mut rule = Rule::new(name, Action::Allow);
        change(&mut rule);
        rule
    };
    let deny = Rule {
        action: Action::Deny,
        ..allow("no-dns", &|rule| {
            rule.to = vec![Destination::from(IpAddr::from([10, 96, 0, 10]))];
        })
    };
    let set = RuleSet::new(vec![
        deny,
        allow("hook", &|rule| {
            rule.to = vec![Destination::Name("hook.ns.svc".parse().unwrap())];
        }),
        allow("own", &|rule| rule.nodes = vec!["n7".parse().unwrap()]),
        allow("root", &|rule| {
            rule.classes = Classes::of(&[Class::Pod]);
            rule.from = vec![FrontEnd::Uid(0)];
        }),
    ]);
    let policy = Policy::new(Rules {
        rules: Arc::new(set),
        ..rules()
    });
    let check = |policy: &Policy, name, ip: &str, said| {
        let asked = Asked {
            name,
            port: 443,
            said,
        };
        policy.check(&ips(&[ip]), asked, &Node).map(|_| ())
    };
    // By name, and a name is no way around a rule about addresses.
    assert!(check(&policy, Some("hook.ns.svc"), "10.96.0.1", Class::Service).is_ok());
    let denied = check(&policy, Some("hook.ns.svc"), "10.96.0.10", Class::Service);
    assert!(matches!(denied, Err(Denial::Rule(_, tag)) if &*tag.name == "no-dns"));
    // Who asks is not visible here: the servers have looked.
    assert!(check(&policy, None, "10.244.1.1", Class::Pod).is_ok());
    let elsewhere = Policy::new(Rules {
        node: Some("n8".parse().unwrap()),
        ..policy.rules().clone()
    });
    let unnamed = check(&elsewhere, None, "10.96.0.1", Class::Service);
    assert!(matches!(unnamed, Err(Denial::Unnamed(..))), "{unnamed:?}");
    assert!(check(&policy, None, "10.96.0.1", Class::Service).is_ok());
}

/// The rules again, as plainly as they can be said, over IPv4 only.
fn oracle(rules: &Rules, ip: Ipv4Addr, port: u16, said: Class) -> bool {
    let [a, b, c, d] = ip.octets();
    let is_kubelet = port == 10250 && rules.kubelet_addresses.contains(&ip.into());
    if a == 127 {
        return is_kubelet && said == Class::Kubelet;
    }
    let never = a == 0
        || a >= 224
        || (a, b) == (169, 254)
        || [a, b, c, d] == [100, 100, 100, 200]
        || [a, b, c, d] == [168, 63, 129, 16];
    let tunnel = ([a, b, c, d] == [10, 0, 0, 1] && port == 8091)
        || (Node.is_local(ip.into()) && port == 8093);
    if never || tunnel {
        return false;
    }
    if is_kubelet {
        return said == Class::Kubelet;
    }
    let services = !rules.service_prefixes.is_empty();
    let pods = !rules.pod_prefixes.is_empty();
    if services && a == 10 && (96..112).contains(&b) {
        return said == Class::Service;
    }
    if Node.is_local(ip.into()) {
        return false;
    }
    if pods && (a, b) == (10, 244) {
        return said == Class::Pod;
    }
    port != 10250 && ((said == Class::Service && !services) || (said == Class::Pod && !pods))
}

fn address() -> impl Strategy<Value = Ipv4Addr> {
    let near = prop::sample::select(vec![
        [10, 0, 0, 7],
        [10, 0, 0, 1],
        [10, 96, 0, 10],
        [10, 111, 255, 255],
        [10, 112, 0, 0],
        [10, 244, 7, 1],
        [10, 244, 7, 2],
        [127, 0, 0, 1],
        [169, 254, 169, 254],
        [192, 168, 9, 7],
        [224, 0, 0, 1],
        [0, 0, 0, 0],
    ]);
    prop_oneof![near.prop_map(Ipv4Addr::from), any::<Ipv4Addr>()]
}

proptest! {
    #[test]
    fn the_policy_is_the_oracle(
        ip in address(),
        port in prop_oneof![Just(10250u16), Just(8091), Just(8093), Just(22), 1u16..],
        said in prop::sample::select(Class::ALL.to_vec()),
        (services, pods) in any::<(bool, bool)>(),
        loopback: bool,
        mapped: bool,
    ) {
        let mut rules = rules();
        if !services { rules.service_prefixes.clear(); }
        if !pods { rules.pod_prefixes.clear(); }
        if loopback { rules.kubelet_addresses = ips(&["127.0.0.1"]); }
        let ip_asked: IpAddr = if mapped { ip.to_ipv6_mapped().into() } else { ip.into() };
        let result = Policy::new(rules.clone()).check(&[ip_asked], asked(port, said), &Node);
        prop_assert_eq!(result.is_ok(), oracle(&rules, ip, port, said), "{:?}", result);
        if let Ok(permits) = result {
            prop_assert_eq!(permits[0].address(), SocketAddr::new(ip.into(), port));
        }
    }

    #[test]
    fn no_ipv6_spelling_of_loopback_or_metadata_passes(low: u16, which in 0usize..5, port in 1u16.., said in prop::sample::select(Class::ALL.to_vec())) {
        let high = [0x7f00, 0xa9fe][usize::from(low) % 2];
        let ip = match which {
            0 => Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, high, low),
            1 => Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
            2 => Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
            3 => Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, !high, !low),
            _ => Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, high, low),
        };
        let open = Rules { rules: classes(&Class::ALL), service_prefixes: Vec::new(), pod_prefixes: Vec::new(), ..rules() };
        prop_assert!(Policy::new(open).check(&[ip.into()], asked(port, said), &Node).is_err());
    }
}

#[test]
fn a_server_is_no_target_by_its_name_either() {
    let policy = Policy::new(rules());
    for (port, allowed) in [(8091, false), (443, true)] {
        let asked = Asked {
            name: Some("cp.example"),
            port,
            said: Class::Service,
        };
        let judged = policy.check(&ips(&["10.96.0.9"]), asked, &Node);
        assert_eq!(judged.is_ok(), allowed, "{judged:?}");
        assert!(allowed || matches!(judged, Err(Denial::Tunnel(_))));
    }
}

#[test]
fn a_servers_word_does_not_take_the_kubelet_away() {
    assert_eq!(judge(&rules(), "10.0.0.7:10250", Class::Kubelet), "kubelet");
    // Without a --kubelet-address every address of the node is the kubelet's.
    let any = Rules {
        kubelet_addresses: Vec::new(),
        ..rules()
    };
    for address in ["10.0.0.7:10250", "10.244.7.1:10250"] {
        assert_eq!(judge(&any, address, Class::Kubelet), "kubelet", "{address}");
    }
    assert_eq!(
        judge(&rules(), "10.244.7.1:10250", Class::Kubelet),
        "tunnel"
    );
}
