//! The matcher against a naive oracle: every rule asked one after the other, by code that anyone
//! can check by eye, on random rules and targets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use towline_proto::policy::{
    Action, Asker, Decision, Destination, FrontEnd, Question, Rule, RuleSet, RuleTag,
};
use towline_proto::target::{Class, Classes};

const NAMES: [&str; 6] = ["a", "b", "ab", "a.b", "b.svc", "a.b.svc"];
const PATTERNS: [&str; 8] = ["a", "b", "a*", "*b", "*.svc", "*", "a.b", "a*b*"];

/// A rule as it was drawn, kept apart from the rule that is tested.
#[derive(Clone, Debug)]
struct Plain {
    deny: bool,
    classes: Vec<Class>,
    ports: Vec<(u16, u16)>,
    /// Prefix as address bits, length and family; or a pattern.
    to: Vec<Result<(u128, u8, bool), usize>>,
    nodes: Vec<usize>,
    /// 0: local, 1: uid, 2: gid, 3: client.
    from: Vec<(u8, u32)>,
}

fn address(bits: u128, six: bool) -> IpAddr {
    match six {
        true => Ipv6Addr::from(bits | 0xfd00 << 112).into(),
        false => Ipv4Addr::from(bits as u32 | 0x0a00_0000).into(),
    }
}

fn bits(ip: IpAddr) -> (u128, u8) {
    match ip {
        IpAddr::V4(ip) => (u128::from(u32::from(ip)), 32),
        IpAddr::V6(ip) => (u128::from(ip), 128),
    }
}

/// `*` by trying every split.
fn fits(pattern: &[u8], name: &[u8]) -> bool {
    match pattern.split_first() {
        None => name.is_empty(),
        Some((b'*', rest)) => (0..=name.len()).any(|skip| fits(rest, &name[skip..])),
        Some((byte, rest)) => name.first() == Some(byte) && fits(rest, &name[1..]),
    }
}

fn applies(rule: &Plain, question: &Question<'_>) -> bool {
    let class = rule.classes.is_empty() || rule.classes.contains(&question.class);
    let port = rule.ports.is_empty()
        || rule
            .ports
            .iter()
            .any(|(first, last)| (*first..=*last).contains(&question.port));
    let to = rule.to.is_empty()
        || rule
            .to
            .iter()
            .any(|place| match (place, question.address, question.name) {
                (Ok((from, length, six)), Some(ip), _) => {
                    let (wanted, width) = bits(address(*from, *six));
                    let (asked, asked_width) = bits(ip);
                    let shift = u32::from(width - length);
                    let head = |bits: u128| bits.checked_shr(shift).unwrap_or(0);
                    asked_width == width && head(wanted) == head(asked)
                }
                (Err(pattern), _, Some(name)) => {
                    fits(PATTERNS[*pattern].as_bytes(), name.as_bytes())
                }
                _ => false,
            });
    let node = match question.node {
        _ if rule.nodes.is_empty() => true,
        None => !rule.deny,
        Some(node) => rule
            .nodes
            .iter()
            .any(|p| fits(PATTERNS[*p].as_bytes(), node.as_bytes())),
    };
    let asker = match question.asker {
        _ if rule.from.is_empty() => true,
        Asker::Unseen => !rule.deny,
        Asker::Local { uid, gid } => rule.from.iter().any(|(kind, id)| match kind {
            0 => true,
            1 => *id == uid,
            2 => *id == gid,
            _ => false,
        }),
        Asker::Client(name) => rule.from.iter().any(|(kind, id)| {
            *kind == 3 && fits(PATTERNS[*id as usize].as_bytes(), name.as_bytes())
        }),
    };
    class && port && to && node && asker
}

fn oracle(rules: &[Plain], question: &Question<'_>) -> Option<(bool, usize)> {
    let first = |deny: bool| {
        let applying = |rule: &Plain| rule.deny == deny && applies(rule, question);
        rules.iter().position(applying).map(|at| (!deny, at))
    };
    first(true).or_else(|| first(false))
}

fn tested(at: usize, plain: &Plain) -> Rule {
    Rule {
        tag: RuleTag {
            name: format!("r{at}").into(),
            line: Some(at as u32),
        },
        action: if plain.deny {
            Action::Deny
        } else {
            Action::Allow
        },
        classes: match plain.classes.as_slice() {
            [] => Classes::of(&Class::ALL),
            some => Classes::of(some),
        },
        ports: plain
            .ports
            .iter()
            .map(|(a, b)| format!("{a}-{b}").parse().unwrap())
            .collect(),
        to: plain
            .to
            .iter()
            .map(|place| match place {
                Ok((bits, length, six)) => {
                    let text = format!("{}/{length}", address(*bits, *six));
                    let net: ipnet::IpNet = text.parse().unwrap();
                    Destination::Prefix(net.trunc())
                }
                Err(pattern) => Destination::Name(PATTERNS[*pattern].parse().unwrap()),
            })
            .collect(),
        nodes: plain
            .nodes
            .iter()
            .map(|p| PATTERNS[*p].parse().unwrap())
            .collect(),
        from: plain
            .from
            .iter()
            .map(|(kind, id)| match kind {
                0 => FrontEnd::Local,
                1 => FrontEnd::Uid(*id),
                2 => FrontEnd::Gid(*id),
                _ => FrontEnd::Client(PATTERNS[*id as usize].parse().unwrap()),
            })
            .collect(),
    }
}

fn rule() -> impl Strategy<Value = Plain> {
    let few = |strategy| prop::collection::vec(strategy, 0..3);
    let port = (1u16..12, 0u16..4).prop_map(|(first, more)| (first, first + more));
    let prefix = (0u128..8, 24u8..=32, any::<bool>())
        .prop_map(|(bits, length, six)| Ok((bits, if six { length + 96 } else { length }, six)));
    let place = prop_oneof![3 => prefix, 1 => (0..PATTERNS.len()).prop_map(Err)];
    (
        prop::bool::weighted(0.3),
        prop::collection::vec(prop::sample::select(Class::ALL.to_vec()), 0..4),
        prop::collection::vec(port, 0..3),
        prop::collection::vec(place, 0..4),
        few(0..PATTERNS.len()),
        prop::collection::vec((0u8..4, 0u32..4), 0..3),
    )
        .prop_map(|(deny, classes, ports, to, nodes, from)| Plain {
            deny,
            classes,
            ports,
            to,
            nodes,
            from,
        })
}

fn name() -> impl Strategy<Value = &'static str> {
    prop::sample::select(NAMES.to_vec())
}

fn asker() -> impl Strategy<Value = Asker<'static>> {
    prop_oneof![
        (0u32..4, 0u32..4).prop_map(|(uid, gid)| Asker::Local { uid, gid }),
        name().prop_map(Asker::Client),
        Just(Asker::Unseen),
    ]
}

fn question() -> impl Strategy<Value = Question<'static>> {
    (
        prop::sample::select(Class::ALL.to_vec()),
        1u16..16,
        prop::option::of(name()),
        prop::option::of((0u128..8, any::<bool>()).prop_map(|(bits, six)| address(bits, six))),
        prop::option::of(name()),
        asker(),
    )
        .prop_map(|(class, port, name, address, node, asker)| Question {
            class,
            port,
            name,
            address,
            node,
            asker,
        })
}

fn set(plain: &[Plain]) -> RuleSet {
    RuleSet::new(
        plain
            .iter()
            .enumerate()
            .map(|(at, rule)| tested(at, rule))
            .collect(),
    )
}

fn told(decision: &Decision) -> Option<(bool, usize)> {
    let rule = decision.rule()?;
    Some((decision.is_allowed(), rule.line? as usize))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn the_matcher_is_the_oracle(
        rules in prop::collection::vec(rule(), 0..24),
        questions in prop::collection::vec(question(), 1..12),
    ) {
        let set = set(&rules);
        for question in &questions {
            prop_assert_eq!(told(&set.decide(question)), oracle(&rules, question), "{:?}", question);
        }
    }

    #[test]
    fn what_explains_a_decision_agrees_with_it(
        rules in prop::collection::vec(rule(), 0..12),
        question in question(),
    ) {
        let set = set(&rules);
        let told = set.explain(&question);
        prop_assert_eq!(&told.decision, &set.decide(&question));
        let applying = |deny: bool| {
            let of_action = rules.iter().filter(|rule| rule.deny == deny);
            of_action.filter(|rule| applies(rule, &question)).count()
        };
        prop_assert_eq!(told.denying.len(), applying(true));
        prop_assert_eq!(told.allowing.len(), applying(false));
        prop_assert!(told.near.iter().all(|miss| !miss.unmet.is_empty()));
        prop_assert!(told.allowing.is_empty() || told.near.is_empty());
    }

    #[test]
    fn who_sees_less_never_refuses_what_another_allows(
        rules in prop::collection::vec(rule(), 0..16),
        question in question(),
    ) {
        let set = set(&rules);
        let agent = Question { asker: Asker::Unseen, ..question };
        let before = Question { node: None, ..question };
        if set.decide(&question).is_allowed() {
            prop_assert!(set.decide(&agent).is_allowed());
            prop_assert!(set.decide(&before).is_allowed());
        }
    }

    #[test]
    fn a_node_that_proves_nothing_is_allowed_only_what_every_node_is(
        rules in prop::collection::vec(rule(), 0..16),
        question in question(),
        node in "n[0-9]",
    ) {
        let set = set(&rules);
        if set.decide_unproven(&question).is_allowed() {
            let proven = Question { node: Some(&node), ..question };
            prop_assert!(set.decide(&proven).is_allowed());
            prop_assert!(set.decide(&question).is_allowed());
        }
        if !set.asks_node() {
            prop_assert_eq!(set.decide_unproven(&question), set.decide(&question));
        }
    }

    #[test]
    fn order_changes_no_decision(rules in prop::collection::vec(rule(), 0..12), question in question()) {
        let mut turned = rules.clone();
        turned.reverse();
        prop_assert_eq!(set(&rules).decide(&question).is_allowed(), set(&turned).decide(&question).is_allowed());
    }
}

#[test]
fn no_rules_allow_nothing_and_the_built_in_ones_three_classes() {
    let built_in = RuleSet::built_in(Classes::of(&[Class::Kubelet, Class::Pod, Class::Service]));
    for class in Class::ALL {
        let question = Question {
            class,
            port: 443,
            name: None,
            address: Some([10, 0, 0, 1].into()),
            node: None,
            asker: Asker::Local { uid: 0, gid: 0 },
        };
        assert_eq!(
            RuleSet::new(Vec::new()).decide(&question),
            Decision::Unnamed
        );
        let allowed = matches!(class, Class::Kubelet | Class::Pod | Class::Service);
        assert_eq!(built_in.decide(&question).is_allowed(), allowed);
        assert!(RuleSet::anything().decide(&question).is_allowed());
    }
}

#[test]
fn a_prefix_that_is_denied_is_closed_in_every_spelling_of_its_addresses() {
    let rule = |action, to: &str| Rule {
        to: vec![Destination::Prefix(to.parse().unwrap())],
        ..Rule::new(to, action)
    };
    let closed = RuleSet::new(vec![
        Rule::new("anything", Action::Allow),
        rule(Action::Deny, "10.0.0.0/8"),
    ]);
    let opened = RuleSet::new(vec![rule(Action::Allow, "10.0.0.0/8")]);
    for (text, inside) in [
        ("10.1.2.3", true),
        ("64:ff9b::a01:203", true),
        ("64:ff9b:1::a01:203", true),
        ("2002:a01:203::1", true),
        ("2001:0:a01:203::", true),
        ("64:ff9b::b01:203", false),
        ("fd00::a01:203", false),
    ] {
        let ip: IpAddr = text.parse().unwrap();
        let question = Question {
            class: Class::Other,
            port: 443,
            name: None,
            address: Some(ip),
            node: None,
            asker: Asker::Unseen,
        };
        let denied = matches!(closed.decide(&question), Decision::Denied(_));
        let unproven = matches!(closed.decide_unproven(&question), Decision::Denied(_));
        assert_eq!((denied, unproven), (inside, inside), "{text}");
        assert_eq!(closed.explain(&question).denying.len(), usize::from(inside));
        // What is opened is only what was written.
        assert_eq!(
            opened.decide(&question).is_allowed(),
            ip.is_ipv4(),
            "{text}"
        );
    }
}
