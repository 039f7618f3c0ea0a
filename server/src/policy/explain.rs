//! Why a target is allowed or not, and what would change that: one document for people and tools,
//! the same from a file and from a running server.

use std::fmt::{self, Write};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use towline_proto::policy::{Asker, Decision, FrontEnd, RuleTag};
use towline_proto::target::{Class, Host, Target};

use super::{Policy, question};

/// The document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    /// What was asked about.
    pub target: String,
    /// What that is.
    pub class: String,
    /// For whom; `any` when nobody was named.
    pub front_end: String,
    /// Through which node; absent while any may be chosen.
    pub node: Option<String>,
    /// Through whom it would go now; absent when only a file was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub through: Option<String>,
    /// The file, or `built-in default`.
    pub policy: String,
    /// The answer.
    pub allowed: bool,
    /// `allow`, `deny`, `default` (no rule) or `built-in` (no rule can).
    pub decided_by: String,
    /// The rule that decided.
    pub rule: Option<RuleView>,
    /// The answer in a sentence.
    pub because: String,
    /// Every `deny` rule that applies.
    pub denying: Vec<RuleView>,
    /// Every `allow` rule that applies.
    pub allowing: Vec<RuleView>,
    /// `allow` rules that nearly apply, and which of their conditions are not met.
    pub near: Vec<NearView>,
    /// What would allow it, in sentences; empty when it is allowed or nothing can.
    pub would_allow: Vec<String>,
    /// A rule that would, as YAML.
    pub smallest_rule: Option<String>,
    /// Rules whose condition about the node or the front end was left open.
    pub open: Vec<OpenView>,
    /// What was not given and may change the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// A rule and its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleView {
    /// Its name.
    pub name: String,
    /// Its line in the file.
    pub line: Option<u32>,
}

impl From<&RuleTag> for RuleView {
    fn from(tag: &RuleTag) -> Self {
        Self {
            name: tag.name.to_string(),
            line: tag.line,
        }
    }
}

impl fmt::Display for RuleView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{} (line {line})", self.name),
            None => write!(f, "{} (built in)", self.name),
        }
    }
}

/// See [`Explained::near`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NearView {
    /// Which rule.
    pub rule: RuleView,
    /// Keys of the conditions.
    pub unmet: Vec<String>,
}

/// See [`Explained::open`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenView {
    /// Which rule.
    pub rule: RuleView,
    /// `nodes` or `from`.
    pub condition: String,
}

/// `--as`: one front end, in the words of the policy file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum As {
    /// A process; a user and a group may be given together: `uid:1000,gid:1000`.
    Local {
        /// Its user.
        uid: u32,
        /// Its group.
        gid: u32,
    },
    /// A client certificate.
    Client(Box<str>),
}

/// A text that is not one front end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not one front end: use uid:NUMBER, uid:NUMBER,gid:NUMBER or client:NAME")]
pub struct AsError(String);

impl FromStr for As {
    type Err = AsError;

    fn from_str(text: &str) -> Result<Self, AsError> {
        let wrong = || AsError(text.chars().take(80).collect());
        let one = |part: &str| part.parse::<FrontEnd>().map_err(|_| wrong());
        match text.split_once(',') {
            Some((uid, gid)) => match (one(uid)?, one(gid)?) {
                (FrontEnd::Uid(uid), FrontEnd::Gid(gid)) => Ok(As::Local { uid, gid }),
                _ => Err(wrong()),
            },
            None => match one(text)? {
                // The group of a user who is given alone is the one of the same number, as usual.
                FrontEnd::Uid(uid) => Ok(As::Local { uid, gid: uid }),
                FrontEnd::Client(name) => match name.exact() {
                    Some(name) => Ok(As::Client(name.into())),
                    None => Err(wrong()),
                },
                FrontEnd::Local | FrontEnd::Gid(_) => Err(wrong()),
            },
        }
    }
}

impl fmt::Display for As {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            As::Local { uid, gid } => write!(f, "uid:{uid},gid:{gid}"),
            As::Client(name) => write!(f, "client:{name}"),
        }
    }
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Where to.
    pub target: Target,
    /// For whom; `None`: for anybody.
    pub front_end: Option<As>,
    /// Through which node; `None`: whichever.
    pub node: Option<String>,
}

impl Asked {
    pub(crate) fn asker(&self) -> Asker<'_> {
        match &self.front_end {
            Some(As::Local { uid, gid }) => Asker::Local {
                uid: *uid,
                gid: *gid,
            },
            Some(As::Client(name)) => Asker::Client(name),
            None => Asker::Unseen,
        }
    }

    /// As the query of the admin listener's page.
    pub fn query(&self) -> String {
        let mut query = format!("target={}", escape(&self.target.to_string()));
        if let Some(front_end) = &self.front_end {
            query += &format!("&as={}", escape(&front_end.to_string()));
        }
        if let Some(node) = &self.node {
            query += &format!("&node={}", escape(node));
        }
        query
    }

    /// From the query; the error is for whoever asked.
    pub fn from_query(query: &str) -> Result<Self, String> {
        let (mut target, mut front_end, mut node) = (None, None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = unescape(value).ok_or("the query is not percent-encoded text")?;
            match key {
                "target" => target = Some(value.parse::<Target>().map_err(|e| e.to_string())?),
                "as" => front_end = Some(value.parse::<As>().map_err(|e| e.to_string())?),
                "node" => node = Some(value),
                _ => return Err("use target=HOST:PORT, as=FRONTEND and node=NAME".to_owned()),
            }
        }
        Ok(Self {
            target: target.ok_or("target=HOST:PORT is missing")?,
            front_end,
            node,
        })
    }
}

fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        match byte.is_ascii_alphanumeric() || b"-._:,".contains(&byte) {
            true => escaped.push(char::from(byte)),
            // A string takes everything.
            false => drop(write!(escaped, "%{byte:02X}")),
        }
    }
    escaped
}

fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        rest = more;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let hex = rest
            .get(..2)
            .filter(|hex| hex.iter().all(u8::is_ascii_hexdigit))?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()?);
        rest = rest.get(2..)?;
    }
    String::from_utf8(bytes).ok()
}

/// Explains. `source` names the policy.
pub fn explain(policy: &Policy, source: &str, class: Class, asked: &Asked) -> Explained {
    let question = question(&asked.target, class, asked.asker(), asked.node.as_deref());
    let told = policy.rules().explain(&question);
    let forbidden = policy.refusal(&asked.target.host, class);
    let views = |tags: &[RuleTag]| tags.iter().map(RuleView::from).collect::<Vec<_>>();
    let place = |tag: &RuleTag| match tag.line {
        Some(line) => format!("{:?} ({source}:{line})", tag.name),
        None => format!("{:?} (built in)", tag.name),
    };
    let (allowed, decided_by, rule, because) = match (forbidden, &told.decision) {
        (Some(refusal), _) => (
            false,
            "built-in",
            None,
            format!(
                "{} is a {refusal}, which no rule can allow",
                asked.target.host
            ),
        ),
        (None, decision @ Decision::Allowed(tag)) => (
            true,
            decision.as_str(),
            Some(tag.into()),
            format!("rule {} allows it, and no rule denies it", place(tag)),
        ),
        (None, decision @ Decision::Denied(tag)) => (
            false,
            decision.as_str(),
            Some(tag.into()),
            format!("rule {} denies it, and deny wins", place(tag)),
        ),
        (None, decision @ Decision::Unnamed) => (
            false,
            decision.as_str(),
            None,
            "no rule allows it, and what no rule allows is denied".to_owned(),
        ),
    };
    let mut would_allow = Vec::new();
    let mut smallest_rule = None;
    if !allowed && forbidden.is_none() {
        for tag in &told.denying {
            would_allow.push(format!("narrow or remove the deny rule {}", place(tag)));
        }
        if told.allowing.is_empty() {
            for miss in &told.near {
                let keys: Vec<_> = miss.unmet.iter().map(|unmet| unmet.as_str()).collect();
                let rule = place(&miss.rule);
                would_allow.push(format!(
                    "widen {} of the allow rule {rule}",
                    keys.join(" and ")
                ));
            }
            would_allow.push("add an allow rule".to_owned());
            smallest_rule = Some(smallest(class, asked));
        }
    }
    let near = told.near.iter().map(|miss| NearView {
        rule: (&miss.rule).into(),
        unmet: miss
            .unmet
            .iter()
            .map(|unmet| unmet.as_str().to_owned())
            .collect(),
    });
    let open = told.open.iter().map(|(tag, condition)| OpenView {
        rule: tag.into(),
        condition: condition.as_str().to_owned(),
    });
    Explained {
        target: asked.target.to_string(),
        class: class.to_string(),
        front_end: asked
            .front_end
            .as_ref()
            .map_or("any".to_owned(), As::to_string),
        node: asked.node.clone(),
        through: None,
        policy: source.to_owned(),
        allowed,
        decided_by: decided_by.to_owned(),
        rule,
        because,
        denying: views(&told.denying),
        allowing: views(&told.allowing),
        near: near.collect(),
        would_allow,
        smallest_rule,
        open: open.collect(),
        hint: None,
    }
}

/// The narrowest rule that allows exactly this.
fn smallest(class: Class, asked: &Asked) -> String {
    let host = match &asked.target.host {
        Host::Ip(ip) => format!("\"{}\"", towline_proto::address::canonical(*ip)),
        Host::Name(name) => name.as_str().to_owned(),
    };
    let mut rule = format!(
        "  - name: allow-{class}-{port}\n    action: allow\n    classes: [{class}]\n    ports: [{port}]\n    to: [{host}]\n",
        port = asked.target.port()
    );
    if let Some(front_end) = &asked.front_end {
        let front_end = match front_end {
            As::Local { uid, .. } => format!("uid:{uid}"),
            client @ As::Client(_) => client.to_string(),
        };
        rule += &format!("    from: [{front_end}]\n");
    }
    rule
}

impl Explained {
    /// For a terminal.
    pub fn text(&self) -> String {
        let mut text = format!(
            "{}: {} (class {}, front end {}, node {})\n  {}\n",
            self.target,
            if self.allowed { "allowed" } else { "denied" },
            self.class,
            self.front_end,
            self.node.as_deref().unwrap_or("any"),
            self.because,
        );
        if let Some(through) = &self.through {
            text += &format!("  through: {through}\n");
        }
        for other in self
            .allowing
            .iter()
            .filter(|rule| Some(*rule) != self.rule.as_ref())
        {
            text += &format!("  also allowed by {other}\n");
        }
        for other in self
            .denying
            .iter()
            .filter(|rule| Some(*rule) != self.rule.as_ref())
        {
            text += &format!("  also denied by {other}\n");
        }
        for open in &self.open {
            text += &format!(
                "  {} asks for {}, which was not given\n",
                open.rule, open.condition
            );
        }
        if let Some(hint) = &self.hint {
            text += &format!("  hint: {hint}\n");
        }
        if !self.would_allow.is_empty() {
            text += "what would allow it:\n";
            for way in &self.would_allow {
                text += &format!("  {way}\n");
            }
        }
        if let Some(rule) = &self.smallest_rule {
            text += rule;
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use towline_link::process::policy_file::PolicyFile;

    const FILE: &str = "version: 1
rules:
  - name: kubelets
    action: allow
    classes: [kubelet]
    from: [uid:0]
  - name: hooks
    action: allow
    classes: [service]
    ports: [443]
  - name: no-vault
    action: deny
    to: [10.0.0.66, vault.ns.svc]
";

    fn explained(target: &str, class: Class, front_end: Option<&str>) -> Explained {
        let file = PolicyFile::parse(FILE.as_bytes()).unwrap();
        let asked = Asked {
            target: target.parse().unwrap(),
            front_end: front_end.map(|text| text.parse().unwrap()),
            node: None,
        };
        let asked = Asked::from_query(&asked.query()).unwrap();
        explain(&Policy::new(file.rules), "policy.yaml", class, &asked)
    }

    #[test]
    fn the_rule_its_place_and_the_way_out_are_told() {
        let told = explained("10.0.0.7:10250", Class::Kubelet, Some("uid:0"));
        assert!(
            told.allowed && told.text().contains("\"kubelets\" (policy.yaml:3)"),
            "{told:?}"
        );
        let told = explained("10.0.0.7:10250", Class::Kubelet, Some("client:backup"));
        assert_eq!((told.allowed, told.decided_by.as_str()), (false, "default"));
        assert_eq!(told.near[0].unmet, ["from"]);
        assert!(
            told.text()
                .contains("widen from of the allow rule \"kubelets\""),
            "{}",
            told.text()
        );
        let told = explained("vault.ns.svc:443", Class::Service, None);
        assert_eq!(told.rule.as_ref().unwrap().line, Some(11));
        assert_eq!(told.allowing.len(), 1);
        assert!(
            told.text()
                .contains("narrow or remove the deny rule \"no-vault\"")
        );
        let told = explained("169.254.169.254:80", Class::Other, None);
        assert_eq!(told.decided_by, "built-in");
        assert!(told.would_allow.is_empty() && told.smallest_rule.is_none());
        let told = explained("10.0.0.7:10250", Class::Kubelet, None);
        assert!(told.allowed && told.open[0].condition == "from");
    }

    #[test]
    fn the_rule_that_is_proposed_allows_it() {
        for (target, class, front_end) in [
            ("[fd00::7]:22", Class::Node, Some("uid:1000")),
            ("[::ffff:10.1.1.1]:80", Class::Other, None),
            ("a.b.svc:8443", Class::Service, Some("client:backup")),
        ] {
            let told = explained(target, class, front_end);
            let file = format!("version: 1\nrules:\n{}", told.smallest_rule.unwrap());
            let file = PolicyFile::parse(file.as_bytes()).unwrap();
            let asked = Asked {
                target: target.parse().unwrap(),
                front_end: front_end.map(|text| text.parse().unwrap()),
                node: None,
            };
            let again = explain(&Policy::new(file.rules), "x", class, &asked);
            assert!(again.allowed, "{target}: {again:?}");
        }
    }

    #[test]
    fn one_front_end_is_one_front_end() {
        for text in ["uid:0,gid:5", "client:kube-apiserver"] {
            assert_eq!(text.parse::<As>().unwrap().to_string(), text);
        }
        assert_eq!("uid:7".parse(), Ok(As::Local { uid: 7, gid: 7 }));
        for bad in [
            "",
            "local",
            "gid:1",
            "client:*",
            "uid:0,uid:1",
            "uid:0,",
            "root",
        ] {
            assert!(bad.parse::<As>().is_err(), "{bad:?}");
        }
        for bad in [
            "",
            "target=",
            "target=a",
            "target=a:1&as=x",
            "target=a:1&x=1",
            "target=%zz",
        ] {
            assert!(Asked::from_query(bad).is_err(), "{bad:?}");
        }
    }
}
