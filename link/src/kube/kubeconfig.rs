//! A kubeconfig, as far as a daemon can use one: the current context's cluster and user.
//!
//! What would weaken the connection or run a program is refused by name: no root, skipped
//! verification, plain HTTP, passwords, plug-ins.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use towline_pki::web::server_name;
use towline_pki::{Secret, store};

use super::access::{Access, Source};
use super::error::KubeError;

#[derive(Deserialize)]
struct File {
    #[serde(rename = "current-context", default)]
    current: String,
    #[serde(default)]
    clusters: Vec<NamedCluster>,
    #[serde(default)]
    users: Vec<NamedUser>,
    #[serde(default)]
    contexts: Vec<NamedContext>,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    #[serde(default)]
    user: User,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    #[serde(default)]
    user: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    #[serde(default)]
    tls_server_name: Option<String>,
    #[serde(default)]
    insecure_skip_tls_verify: bool,
    #[serde(default)]
    certificate_authority: Option<String>,
    #[serde(default)]
    certificate_authority_data: Option<String>,
    #[serde(default)]
    proxy_url: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    #[serde(default)]
    client_certificate: Option<String>,
    #[serde(default)]
    client_certificate_data: Option<String>,
    #[serde(default)]
    client_key: Option<String>,
    #[serde(default)]
    client_key_data: Option<String>,
    #[serde(default)]
    token: Option<String>,
    #[serde(rename = "tokenFile", default)]
    token_file: Option<String>,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    exec: Option<serde_json::Value>,
    #[serde(default)]
    auth_provider: Option<serde_json::Value>,
}

/// Reads the file and checks that it can be used.
pub(super) fn load(path: &Path) -> Result<Access, KubeError> {
    let text = Secret::new(store::read(path)?);
    parse(text.expose(), path).map_err(|cause| KubeError::Kubeconfig {
        path: path.display().to_string(),
        cause,
    })
}

fn parse(text: &[u8], path: &Path) -> Result<Access, String> {
    let text = std::str::from_utf8(text).map_err(|_| "is not text (UTF-8)".to_owned())?;
    // The library's message quotes the file, in which there may be a token: only the place is told.
    let file: File = serde_saphyr::from_str(text).map_err(|error| match error.location() {
        Some(at) => format!(
            "is no kubeconfig: see line {}, column {}",
            at.line(),
            at.column()
        ),
        None => "is no kubeconfig".to_owned(),
    })?;
    let context = one(
        file.contexts,
        |item| item.name == file.current,
        "context",
        &file.current,
    )?
    .context;
    let cluster = one(
        file.clusters,
        |item| item.name == context.cluster,
        "cluster",
        &context.cluster,
    )?
    .cluster;
    let user = match context.user.as_str() {
        "" => User::default(),
        name => one(file.users, |item| item.name == name, "user", name)?.user,
    };
    refuse(&cluster, &user)?;
    let (host, port, prefix) = url(&cluster.server)?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    let source = |what: &str, file: Option<String>, data: Option<String>| match (data, file) {
        (Some(data), _) if !data.is_empty() => STANDARD
            .decode(data.trim())
            .map(|bytes| {
                Some(Source::Given {
                    what: format!("{}: {what}-data", path.display()),
                    text: Secret::new(bytes),
                })
            })
            .map_err(|_| format!("{what}-data is not base64")),
        (_, Some(file)) if !file.is_empty() => Ok(Some(Source::File(folder.join(file)))),
        _ => Ok(None),
    };
    let roots = source(
        "certificate-authority",
        cluster.certificate_authority,
        cluster.certificate_authority_data,
    )?
    .ok_or(
        "names no certificate-authority; system roots are never trusted, so give the cluster's CA",
    )?;
    let cert = source(
        "client-certificate",
        user.client_certificate,
        user.client_certificate_data,
    )?;
    let key = source("client-key", user.client_key, user.client_key_data)?;
    let pair = match (cert, key) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        _ => return Err("client-certificate and client-key go together".to_owned()),
    };
    let given = user.token.filter(|token| !token.is_empty());
    let token = match (user.token_file.filter(|file| !file.is_empty()), given) {
        (Some(file), _) => Some(Source::File(folder.join(file))),
        (None, Some(token)) => Some(Source::Given {
            what: format!("{}: token", path.display()),
            text: Secret::new(token.into_bytes()),
        }),
        (None, None) => None,
    };
    let name = cluster.tls_server_name.as_deref().unwrap_or(&host);
    Ok(Access {
        name: server_name(name).map_err(|error| error.to_string())?,
        host,
        port,
        prefix,
        roots,
        pair,
        token,
    })
}

fn one<T>(list: Vec<T>, is: impl Fn(&T) -> bool, what: &str, name: &str) -> Result<T, String> {
    list.into_iter()
        .find(is)
        .ok_or_else(|| format!("has no {what} named {name:?}"))
}

fn refuse(cluster: &Cluster, user: &User) -> Result<(), String> {
    if cluster.insecure_skip_tls_verify {
        return Err(
            "insecure-skip-tls-verify is not supported: give certificate-authority instead"
                .to_owned(),
        );
    }
    if cluster
        .proxy_url
        .as_deref()
        .is_some_and(|url| !url.is_empty())
    {
        return Err("proxy-url is not supported".to_owned());
    }
    if user.exec.is_some() || user.auth_provider.is_some() {
        return Err(
            "a plug-in (exec, auth-provider) is not supported: use a client certificate, token or \
             tokenFile"
                .to_owned(),
        );
    }
    if user
        .username
        .as_deref()
        .is_some_and(|name| !name.is_empty())
    {
        return Err(
            "user name and password are not supported: use a client certificate, token or \
             tokenFile"
                .to_owned(),
        );
    }
    Ok(())
}

/// `https://host[:port][/prefix]`.
fn url(text: &str) -> Result<(String, u16, String), String> {
    let wrong = || format!("server {text:?} is no https://HOST[:PORT] address");
    let rest = text.strip_prefix("https://").ok_or_else(wrong)?;
    let (authority, prefix) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().map_err(|_| wrong())?),
        _ => (authority, 443),
    };
    let brackets = host.starts_with('[') == host.contains(':');
    let plain = |byte: u8| byte.is_ascii_graphic() && !b"?#@".contains(&byte);
    if host.is_empty() || !brackets || !rest.bytes().all(plain) {
        return Err(wrong());
    }
    Ok((
        host.to_owned(),
        port,
        prefix.trim_end_matches('/').to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(cluster: &str, user: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts:\n- name: c\n  context: \
             {{cluster: k, user: u}}\nclusters:\n- name: k\n  cluster: {{{cluster}}}\nusers:\n- name: \
             u\n  user: {{{user}}}\n"
        )
    }

    fn read(cluster: &str, user: &str) -> Result<Access, String> {
        parse(config(cluster, user).as_bytes(), Path::new("/etc/k/config"))
    }

    #[test]
    fn the_current_context_counts() {
        let access = read(
            "server: 'https://10.0.0.1:6443/base/', certificate-authority: ca.pem",
            "tokenFile: token",
        )
        .unwrap();
        assert_eq!(access.server(), "10.0.0.1:6443");
        assert_eq!(access.prefix, "/base");
        assert!(matches!(&access.roots, Source::File(path) if path == Path::new("/etc/k/ca.pem")));
        assert!(
            matches!(&access.token, Some(Source::File(path)) if path == Path::new("/etc/k/token"))
        );
    }

    #[test]
    fn data_goes_before_files_and_json_is_yaml() {
        let text = r#"{"current-context":"c","contexts":[{"name":"c","context":{"cluster":"k","user":"u"}}],
            "clusters":[{"name":"k","cluster":{"server":"https://[fd00::1]","certificate-authority-data":"YWJj"}}],
            "users":[{"name":"u","user":{"token":"secret"}}]}"#;
        let access = parse(text.as_bytes(), Path::new("/x")).unwrap();
        assert_eq!(access.server(), "[fd00::1]:443");
        assert!(matches!(&access.roots, Source::Given { text, .. } if text.expose() == b"abc"));
        assert!(!format!("{access:?}").contains("secret"));
    }

    #[test]
    fn what_weakens_is_refused_by_name() {
        let ca = "certificate-authority: ca.pem";
        for (cluster, user, word) in [
            (
                "server: 'https://a'".to_owned(),
                "",
                "certificate-authority",
            ),
            (format!("server: 'http://a', {ca}"), "", "https"),
            (format!("server: 'https://a:x', {ca}"), "", "https"),
            (format!("server: 'https://fd00::1', {ca}"), "", "https"),
            (
                format!("server: 'https://a', {ca}, insecure-skip-tls-verify: true"),
                "",
                "insecure",
            ),
            (
                format!("server: 'https://a', {ca}, proxy-url: 'http://p'"),
                "",
                "proxy-url",
            ),
            (
                format!("server: 'https://a', {ca}"),
                "exec: {command: x}",
                "plug-in",
            ),
            (
                format!("server: 'https://a', {ca}"),
                "username: x",
                "password",
            ),
            (
                format!("server: 'https://a', {ca}"),
                "client-certificate: x",
                "together",
            ),
        ] {
            let error = read(&cluster, user).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn an_error_names_the_place_and_not_what_stands_there() {
        let text =
            "current-context: c\nusers:\n- name: u\n  user: {token: hunter2, token: [hunter2}\n";
        let error = parse(text.as_bytes(), Path::new("/x"))
            .map(|_| ())
            .unwrap_err();
        assert!(
            error.contains("line") && !error.contains("hunter2"),
            "{error}"
        );
        assert!(
            parse(b"{}", Path::new("/x"))
                .map(|_| ())
                .unwrap_err()
                .contains("context")
        );
    }
}
