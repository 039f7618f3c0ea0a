//! What would become of a dial, without making it: for people who ask over the admin socket.

use towline_proto::target::{Class, Host};

use super::Dialer;
use crate::agents::Node;
use crate::classify::classify;
use crate::pick::{NoAgent, Routes};
use crate::policy::explain::{self, Explained};

impl Dialer {
    /// Whether it would be allowed, and through whom it would go now. The owner of a node's
    /// address or name is the node through which it would go.
    pub fn explain(&self, mut asked: explain::Asked) -> Explained {
        let routes = self.agents.routes();
        let class = classify(&asked.target, &self.prefixes, &*routes);
        if asked.node.is_none() && matches!(class, Class::Kubelet | Class::Node) {
            let owner = routes.owner(&asked.target.host);
            asked.node = owner.map(|node| node.name().to_string());
        }
        let source = match self.policy().path() {
            Some(path) => path.display().to_string(),
            None => "built-in default".to_owned(),
        };
        let policy = self.policy().policy();
        let mut explained = explain::explain(&policy, &source, class, &asked);
        let (asks_node, allowed) = (policy.rules().asks_node(), explained.allowed);
        let may = |node: &Node| {
            let name = node.name().as_str();
            let wanted = asked.node.as_deref().is_none_or(|wanted| wanted == name);
            let leave = || policy.check_asker(&asked.target, class, asked.asker(), Some(name));
            // Who would carry it is worth knowing also where it is denied to everybody.
            wanted && (!asks_node || !allowed || leave().is_ok())
        };
        let mut through = through(&routes, &asked.target.host, class, may);
        if class == Class::Kubelet && self.options.gateway {
            through += ", behind the kubelet gateway of this server";
        }
        explained.through = Some(through);
        explained
    }
}

fn through(
    routes: &Routes<Node>,
    host: &Host,
    class: Class,
    may: impl Fn(&Node) -> bool,
) -> String {
    let owner = matches!(class, Class::Kubelet | Class::Node);
    match routes.pick(host, class, None, 0, may) {
        Ok(node) if owner => format!("agent {}, which owns it", node.name()),
        Ok(node) if class == Class::Pod && routes.owns(node.name().as_str(), host) => {
            format!("agent {}, which owns a prefix around it", node.name())
        }
        Ok(node) => format!(
            "agent {} or another of the {} agents that are gateways",
            node.name(),
            routes.gateways()
        ),
        Err(NoAgent::Owner(node)) => {
            format!("nobody now: agent {} owns it and has no link", node.name())
        }
        Err(NoAgent::UnknownNode) => "nobody now: no agent that was linked owns it".to_owned(),
        Err(NoAgent::NoGateway) => "nobody now: no agent that is a gateway has a link".to_owned(),
        Err(NoAgent::NoRoute) => "nobody: no agent is granted it".to_owned(),
        Err(NoAgent::Forbidden(node)) => format!(
            "nobody: neither agent {} nor another that could be asked may carry it",
            node.name()
        ),
    }
}
