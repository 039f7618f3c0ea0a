//! Reports: which authorities a daemon has loaded, as it says itself or as its trust file says.
//!
//! Before a new issuer signs anything, whoever is to accept it must trust it. A daemon's `status`
//! lists the fingerprints of the anchors that it has in force; where nobody can ask it, a copy of
//! its trust file stands for it, which is weaker: a file can lie there and not be loaded.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use towline_proto::id::{ClusterName, Role};

use super::Seat;
use crate::identity::Identity;
use crate::inspect::{Certificate, escape};
use crate::pem;
use crate::serial::Fingerprint;
use crate::store::{self, StoreError};

/// What one daemon has loaded.
#[derive(Clone, Debug)]
pub struct Report {
    /// Its name; of an agent the node name.
    pub name: String,
    /// Its role; not known of a trust file.
    pub role: Option<Role>,
    /// The file.
    pub place: PathBuf,
    /// Fingerprints by the role of the peers that they are for; one list without a role of a
    /// trust file.
    loaded: BTreeMap<Option<String>, Vec<String>>,
}

/// What is wrong with a report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "{path}: neither the JSON of a daemon's `status` with its trust in it nor a trust file in \
         PEM: {cause}",
        path = path.display()
    )]
    Unreadable { path: PathBuf, cause: String },
    #[error("{path}: is of cluster {found}, not of {ours}", path = path.display())]
    Cluster {
        path: PathBuf,
        found: ClusterName,
        ours: ClusterName,
    },
}

#[derive(Deserialize)]
struct Status {
    identity: String,
    trust: Vec<Loaded>,
}

#[derive(Deserialize)]
struct Loaded {
    role: String,
    sha256: String,
}

impl Report {
    /// Reads a file, or every `.json`, `.pem` and `.crt` file of a directory.
    pub fn read(path: &Path, cluster: &ClusterName) -> Result<Vec<Self>, ReportError> {
        if !path.is_dir() {
            return Ok(vec![Self::parse(path, &store::read(path)?, cluster)?]);
        }
        let wanted = |path: &PathBuf| {
            let end = path.extension().and_then(|end| end.to_str());
            end.is_some_and(|end| ["json", "pem", "crt"].contains(&end))
        };
        let files = store::files_below(path)?.into_iter().filter(wanted);
        files
            .map(|file| Self::parse(&file, &store::read(&file)?, cluster))
            .collect()
    }

    fn parse(path: &Path, text: &[u8], cluster: &ClusterName) -> Result<Self, ReportError> {
        let unreadable = |cause: String| ReportError::Unreadable {
            path: path.into(),
            cause,
        };
        if text.trim_ascii_start().first() != Some(&b'{') {
            let bundle = pem::certificates(text).map_err(|error| unreadable(error.to_string()))?;
            let loaded = bundle
                .iter()
                .map(|der| Fingerprint::of(der.as_ref()).to_string())
                .collect();
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            return Ok(Self {
                name: escape(&name),
                role: None,
                place: path.into(),
                loaded: BTreeMap::from([(None, loaded)]),
            });
        }
        let status: Status =
            serde_json::from_slice(text).map_err(|error| unreadable(error.to_string()))?;
        let identity: Identity = status
            .identity
            .parse()
            .map_err(|error| unreadable(format!("{error}")))?;
        if identity.cluster != *cluster {
            return Err(ReportError::Cluster {
                path: path.into(),
                found: identity.cluster,
                ours: cluster.clone(),
            });
        }
        let mut loaded: BTreeMap<_, Vec<String>> = BTreeMap::new();
        for one in status.trust {
            loaded.entry(Some(one.role)).or_default().push(one.sha256);
        }
        Ok(Self {
            name: identity.name.to_string(),
            role: Some(identity.role),
            place: path.into(),
            loaded,
        })
    }

    /// What the daemon lacks to accept what this authority of this seat signs; `None` when it
    /// lacks nothing, or has nothing to do with what the seat signs.
    pub fn lacks(&self, seat: Seat, authority: &Certificate) -> Option<String> {
        let wanted = authority.fingerprint.to_string();
        let has = |list: &Vec<String>| list.contains(&wanted);
        let mut concerned = false;
        for (role, list) in &self.loaded {
            let of_seat = match role {
                None => true,
                Some(role) => role
                    .parse()
                    .is_ok_and(|role: Role| Seat::issuer_of(role) == seat),
            };
            concerned |= of_seat;
            if of_seat && !has(list) {
                let whose = role.as_deref().map_or_else(String::new, |role| {
                    format!(" for peers of role {}", escape(role))
                });
                return Some(format!("does not trust it{whose} yet"));
            }
        }
        // An agent anchors no agents; anybody else who anchors nothing of the seat cannot be asked.
        if concerned || (self.role == Some(Role::Agent) && seat == Seat::Agents) {
            None
        } else {
            Some("has loaded no trust file of this kind".to_owned())
        }
    }
}

/// Names that somebody listed: one in each line, `#` begins a comment; `node/NAME` as kubectl
/// prints it, `agent/NAME`, `server/NAME` or the name alone.
pub fn names(text: &str) -> Vec<(Option<Role>, String)> {
    text.lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .filter(|line| !line.is_empty())
        .map(|line| match line.split_once('/') {
            Some(("node", name)) => (None, name.to_owned()),
            Some((role, name)) if role.parse::<Role>().is_ok() => {
                (role.parse().ok(), name.to_owned())
            }
            _ => (None, line.to_owned()),
        })
        .collect()
}

/// Everybody who is not ready for this authority, and why. Whoever is listed and not reported is
/// not known to be ready.
pub fn unready(
    reports: &[Report],
    listed: &[(Option<Role>, String)],
    seat: Seat,
    authority: &Certificate,
) -> Vec<String> {
    let of = |report: &Report| match report.role {
        Some(role) => format!("{role} {}", report.name),
        None => report.name.clone(),
    };
    let mut unready: Vec<String> = reports
        .iter()
        .filter_map(|report| {
            let lacks = report.lacks(seat, authority)?;
            Some(format!(
                "{} {lacks} ({})",
                of(report),
                report.place.display()
            ))
        })
        .collect();
    for (role, name) in listed {
        let known = reports.iter().any(|report| {
            report.name == *name
                && (role.is_none() || report.role.is_none() || report.role == *role)
        });
        if !known {
            let role = role.map_or_else(String::new, |role| format!("{role} "));
            unready.push(format!(
                "{role}{} is listed, and nothing reports of it",
                escape(name)
            ));
        }
    }
    unready
}
