//! Which files prove who we are and decide whom we believe.

use std::path::PathBuf;

use towline_link::carrier::CarrierMode;
use towline_pki::kubelet::KubeletFiles;
use towline_pki::{CrlPolicy, Files, SharedRoots};
use towline_proto::id::Role;

use super::ConfigError;
use crate::args::Args;
use crate::attest::Mode;

/// The files of our own identity; none of them only in the compatibility profile.
pub(super) fn own_files(args: &Args) -> Result<Option<Files>, ConfigError> {
    let needs = |given: bool, flag| match given {
        true => Err(ConfigError::NoIdentity(flag)),
        false => Ok(()),
    };
    let (cert, key, agent_ca) = match (&args.cert, &args.key, &args.agent_ca) {
        (Some(cert), Some(key), Some(agent_ca)) => (cert, key, agent_ca),
        (None, None, None) => {
            needs(args.client_ca.is_some(), "--client-ca")?;
            needs(args.deny_list.is_some(), "--deny-list")?;
            needs(!args.agent_crls.is_empty(), "--agent-crl")?;
            needs(!args.client_crls.is_empty(), "--client-crl")?;
            needs(args.grants.is_some(), "--grants")?;
            needs(args.state_dir.is_some(), "--state-dir")?;
            needs(args.carrier == CarrierMode::Quic, "--carrier quic")?;
            return Ok(None);
        }
        (None, ..) => return Err(ConfigError::PartOfIdentity("--cert")),
        (_, None, _) => return Err(ConfigError::PartOfIdentity("--key")),
        (.., None) => return Err(ConfigError::PartOfIdentity("--agent-ca")),
    };
    if args.client_ca.is_none() && !args.client_crls.is_empty() {
        return Err(ConfigError::Useless {
            flag: "--client-crl",
            without: "--client-ca",
        });
    }
    let clients = args.client_ca.clone().map(|path| (Role::Client, path));
    let agents = [(Role::Agent, agent_ca.clone())];
    Ok(Some(Files {
        cert: cert.clone(),
        key: key.clone(),
        anchors: agents.into_iter().chain(clients).collect(),
        deny_list: args.deny_list.clone(),
        crls: vec![
            (Role::Agent, args.agent_crls.clone()),
            (Role::Client, args.client_crls.clone()),
        ],
        crl_policy: args.crl_policy,
        // Clusters that come from Konnectivity may have one authority for everything.
        shared_roots: match args.konnectivity.compatibility {
            Some(_) => SharedRoots::Taken,
            None => SharedRoots::Refused,
        },
    }))
}

/// The files by which kubelets are verified. With `off` they may be given and are not read, so
/// that switching it is one word.
pub(super) fn kubelet_files(
    mode: Mode,
    authority: Option<PathBuf>,
    crls: Vec<PathBuf>,
    crl_policy: CrlPolicy,
) -> Result<Option<KubeletFiles>, ConfigError> {
    match (mode, authority) {
        (Mode::Off, _) => Ok(None),
        (_, Some(authority)) => Ok(Some(KubeletFiles {
            authority,
            crls,
            crl_policy,
        })),
        (mode, None) => Err(ConfigError::NoKubeletAuthority(mode)),
    }
}
