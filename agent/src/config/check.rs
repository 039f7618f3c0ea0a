//! What has to fit together among the flags.

use std::net::SocketAddr;

use towline_link::carrier::CarrierMode;
use towline_link::tls::HttpProxy;
use towline_proto::address::{self, Refusal};
use towline_proto::limits;
use towline_proto::target::Target;

use super::ConfigError;
use crate::args::Args;

/// For the tls carrier. Of the environment it may be without use: others read it, too.
pub(super) fn proxy(
    args: &Args,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Option<HttpProxy>, ConfigError> {
    match args.http_proxy.as_deref() {
        Some("off") => Ok(None),
        Some(_) if args.carrier == CarrierMode::Quic => Err(ConfigError::ProxyForQuic),
        flag => Ok(HttpProxy::from_flag_or_env(flag, env)?),
    }
}

pub(super) fn check_servers(servers: &[Target]) -> Result<(), ConfigError> {
    if servers.is_empty() {
        return Err(ConfigError::NoServer);
    }
    if servers.len() > limits::SERVERS {
        return Err(ConfigError::ManyServers {
            given: servers.len(),
        });
    }
    match servers
        .iter()
        .enumerate()
        .find(|(index, server)| servers[..*index].contains(server))
    {
        Some((_, twice)) => Err(ConfigError::SameServer(twice.clone())),
        None => Ok(()),
    }
}

pub(super) fn check_policy(args: &Args, health: SocketAddr) -> Result<(), ConfigError> {
    for (flag, prefixes) in [
        ("service-cidr", &args.service_prefixes),
        ("pod-cidr", &args.pod_prefixes),
    ] {
        if let Some(prefix) = prefixes.iter().find(|prefix| prefix.prefix_len() == 0) {
            return Err(ConfigError::Everything {
                flag,
                prefix: *prefix,
            });
        }
    }
    for service in &args.service_prefixes {
        if let Some(pod) = args
            .pod_prefixes
            .iter()
            .find(|pod| pod.contains(service) || service.contains(*pod))
        {
            return Err(ConfigError::Overlap {
                service: *service,
                pod: *pod,
            });
        }
    }
    if args.kubelet_addresses.len() > limits::LIST_ITEMS {
        return Err(ConfigError::ManyAddresses {
            given: args.kubelet_addresses.len(),
        });
    }
    for ip in &args.kubelet_addresses {
        match address::refusal(*ip) {
            None | Some(Refusal::Loopback) => {}
            Some(why) => return Err(ConfigError::KubeletAddress { ip: *ip, why }),
        }
    }
    if health.port() == args.kubelet_port {
        return Err(ConfigError::HealthPort(health));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use clap::Parser;

    use super::super::{Config, HEALTH_BIND};
    use super::*;

    fn check(more: &[&str]) -> Result<(), ConfigError> {
        let base = [
            "towline-agent",
            "--server",
            "a:1",
            "--cert",
            "/none",
            "--key",
            "/none",
            "--server-ca",
            "/none",
        ];
        let args = Args::try_parse_from(base.iter().chain(more)).unwrap();
        check_servers(&args.servers)?;
        proxy(&args, &|_| None)?;
        check_policy(&args, args.health_bind.unwrap_or(HEALTH_BIND))
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        assert!(check(&[]).is_ok());
        assert!(check(&["--kubelet-address", "127.0.0.1"]).is_ok());
        let proxy = ["--http-proxy", "http://p:3128", "--carrier"];
        assert!(check(&[&proxy[..], &["tls"]].concat()).is_ok());
        assert!(check(&["--http-proxy", "off", "--carrier", "quic"]).is_ok());
        assert!(matches!(
            check(&[&proxy[..], &["quic"]].concat()),
            Err(ConfigError::ProxyForQuic)
        ));
        assert!(matches!(
            check(&["--server", "a:1"]),
            Err(ConfigError::SameServer(_))
        ));
        let many: Vec<String> = (0..40).map(|n| format!("--server=s{n}:1")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(matches!(check(&many), Err(ConfigError::ManyServers { .. })));
        assert!(matches!(
            check(&[
                "--service-cidr",
                "10.0.0.0/8",
                "--pod-cidr",
                "10.244.0.0/16"
            ]),
            Err(ConfigError::Overlap { .. })
        ));
        assert!(matches!(
            check(&["--pod-cidr", "0.0.0.0/0"]),
            Err(ConfigError::Everything { .. })
        ));
        assert!(matches!(
            check(&["--kubelet-address", "169.254.169.254"]),
            Err(ConfigError::KubeletAddress { .. })
        ));
        assert!(matches!(
            check(&["--health-bind", "127.0.0.1:10250"]),
            Err(ConfigError::HealthPort(_))
        ));
    }

    #[test]
    fn a_missing_file_is_named() {
        let args = Args::try_parse_from([
            "towline-agent",
            "--server",
            "a:1",
            "--cert",
            "/no/such/cert.pem",
            "--key",
            "k",
            "--server-ca",
            "s",
        ])
        .unwrap();
        let error = Config::new(args, &|_| None, SystemTime::now()).unwrap_err();
        assert!(error.to_string().contains("/no/such/cert.pem"), "{error}");
    }
}
