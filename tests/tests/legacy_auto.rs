//! Which kind of server an agent of the compatibility profile has met, what it remembers of that,
//! and what its flags do at the start.

use std::net::SocketAddr;

use clap::Parser;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use towline_agent::args::Args;
use towline_agent::config::Config;
use towline_proto::id::Role;
use towline_tests::legacy_server::{FakeProxyServer, Script};
use towline_tests::legacy_world::{Target, World, anywhere, free_port, page, start, until};

fn two_kinds() -> Script {
    Script {
        alpn: vec![b"towline/1".to_vec(), b"h2".to_vec()],
        ..Script::default()
    }
}

#[tokio::test]
async fn without_an_identity_only_the_legacy_protocol_is_offered() {
    let world = World::new();
    let mut server = world.server(two_kinds()).await;
    let _agent = world.agent(server.address(), &[]).await;
    server.call().await;
    assert_eq!(server.handshakes(), [Some(b"h2".to_vec())]);
}

#[tokio::test]
async fn with_an_identity_a_legacy_server_is_still_served() {
    let world = World::new();
    let mut server = world.server(Script::default()).await;
    let identity = world.identity();
    let identity: Vec<&str> = identity.iter().map(String::as_str).collect();
    let agent = world.agent(server.address(), &identity).await;
    let mut call = server.call().await;
    let target = Target::new().await;
    assert_eq!(call.dial("tcp", &target.address()).await, Ok(1));
    assert!(page(&agent, "/readyz").await.ends_with("\r\n\r\nok"));
}

#[tokio::test]
async fn who_claims_towline_without_a_servers_identity_gets_nothing() {
    let world = World::new();
    // Its certificate is good for its name, and no identity of ours.
    let mut server = world.server(two_kinds()).await;
    let state = world.scratch.join("state");
    let mut flags = world.identity();
    flags.push(format!("--state-dir={}", state.display()));
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let agent = world.agent(server.address(), &flags).await;
    let words = "its certificate is not one of ours";
    until(&agent, words, |report, _| report.contains(words)).await;
    assert!(server.called().is_none());
    // And it is not remembered as a Towline server.
    assert!(!state.join("towline-servers").exists());
}

#[tokio::test]
async fn a_server_that_spoke_towline_is_never_spoken_to_in_the_legacy_protocol_again() {
    let world = World::new();
    // A verified Towline server at first: it need not serve, only prove itself in the handshake.
    let pair = world
        .authority
        .leaf(Role::Server, "s1")
        .ips(&[[127, 0, 0, 1].into()])
        .sign();
    let server = FakeProxyServer::start(&pair, two_kinds(), anywhere())
        .await
        .unwrap();
    let state = world.scratch.join("state");
    let mut flags = world.identity();
    flags.push(format!("--state-dir={}", state.display()));
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let agent = world.agent(server.address(), &flags).await;
    let remembered = state.join("towline-servers");
    until(&agent, "remembered", |_, _| remembered.exists()).await;
    drop(agent);
    let address = server.stop().await;
    let text = std::fs::read_to_string(&remembered).unwrap();
    assert_eq!(text, format!("{address}\n"));

    // Somebody else stands there now, with a good certificate for the name: nothing for him, also
    // after a restart, and also without our identity.
    let mut legacy = world.server_at(Script::default(), address).await;
    let state_only = flags[3..].to_vec();
    for flags in [&flags, &state_only] {
        let agent = world.agent(address, flags).await;
        until(&agent, "refused", |report, metrics| {
            report.contains("towline/1") || metrics.contains("attempts_failed_total{")
        })
        .await;
        assert!(legacy.called().is_none());
        drop(agent);
    }
    // Unless the operator says so.
    let mut allowed = flags.clone();
    allowed.push("--allow-downgrade");
    let _agent = world.agent(address, &allowed).await;
    legacy.call().await;
}

#[tokio::test]
async fn flags_that_make_no_sense_are_refused_at_the_start() {
    let world = World::new();
    let server: SocketAddr = ([127, 0, 0, 1], 8091).into();
    let parse = |more: &[&str]| {
        let args =
            Args::try_parse_from(world.args(server, more)).map_err(|error| error.to_string())?;
        Config::from_args(args)
            .map(|_| ())
            .map_err(|error| error.to_string())
    };
    parse(&[]).unwrap();
    let both = ["--sync-interval=20s", "--sync-interval-cap=10s"];
    for (more, words) in [
        (
            &["--agent-identifiers=uid=7"][..],
            "unknown address type: uid",
        ),
        (
            &["--agent-identifiers=ipv4=%zz"],
            "agent address is invalid",
        ),
        (
            &["--xfr-channel-size=0"],
            "channel size 0 must be greater than 0",
        ),
        (
            &["--enable-contention-profiling"],
            "--enable-profiling must also be set",
        ),
        (&["--agent-cert=/x"], "--agent-key"),
        (&["--agent-key=/x"], "--agent-cert"),
        (&["--health-server-port=0"], "--health-server-port 0"),
        (&["--admin-bind-address=nowhere"], "--admin-bind-address"),
        (&["--service-account-token-path=/no/such"], "/no/such"),
        (&["--server-count-source=most"], "'max'"),
        (&["--count-server-leases", "--lease-label=,"], "selector"),
        (
            &["--count-server-leases", "--kubeconfig=/no/such"],
            "/no/such",
        ),
        (&["--server=127.0.0.1:1"], "--cert"),
        (&["--cert=/x"], "--key"),
    ] {
        let more: Vec<&str> = more.to_vec();
        let error = parse(&more).unwrap_err();
        assert!(error.contains(words), "{more:?}: {error}");
    }
    let mut args = world.args(server, &[]);
    args.retain(|arg| !arg.starts_with("--sync-interval"));
    args.extend(both.map(str::to_owned));
    let error = Config::from_args(Args::try_parse_from(&args).unwrap()).unwrap_err();
    assert!(
        error.to_string().contains("sync interval 20s must be less"),
        "{error}"
    );
    // Without the profile its flags are refused by name.
    let lone = [
        "towline-agent",
        "--server=a:1",
        "--cert=c",
        "--key=k",
        "--server-ca=s",
        "--agent-id=x",
    ];
    let error = Config::from_args(Args::try_parse_from(lone).unwrap()).unwrap_err();
    assert!(
        error.to_string().contains("--compatibility=konnectivity"),
        "{error}"
    );
}

#[tokio::test]
async fn a_manifest_of_the_field_starts_us() {
    let world = World::new();
    let mut server = world.server(Script::default()).await;
    let token = world.scratch.write("token", "t").unwrap();
    // As in Kubernetes' own example, with paths and ports of this test.
    let mut args: Vec<String> = ["towline-agent", "--logtostderr=true"]
        .map(str::to_owned)
        .to_vec();
    args.push(format!("--ca-cert={}", world.ca.display()));
    args.push("--proxy-server-host=127.0.0.1".to_owned());
    args.push(format!("--proxy-server-port={}", server.address().port()));
    args.push(format!("--admin-server-port={}", free_port()));
    args.push(format!("--health-server-port={}", free_port()));
    args.push(format!("--service-account-token-path={}", token.display()));
    for rest in [
        "--agent-identifiers=host=node-7",
        "--log-file=/var/log/x.log",
        "--log-file-max-size=0",
        "--v=2",
        "--probe-interval=1s",
        "--sync-forever",
        "--warn-on-channel-limit=false",
        "--keepalive-time=1h0m0s",
        "--compatibility=konnectivity",
    ] {
        args.push(rest.to_owned());
    }
    let agent = start(&args).await;
    let mut call = server.call().await;
    assert_eq!(call.value("authorization"), "Bearer t");
    assert_eq!(call.value("agentid").len(), 36);
    let target = Target::new().await;
    assert_eq!(call.dial("tcp", &target.address()).await, Ok(1));
    let second = agent.second_address().unwrap();
    let mut stream = TcpStream::connect(("127.0.0.1", second.port()))
        .await
        .unwrap();
    let request = b"GET /metrics HTTP/1.1\r\nHost: node-7:8094\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let port = agent.health_address().port();
    let location = format!("location: //node-7:{port}/metrics\r\n");
    assert!(
        answer.starts_with("HTTP/1.1 301 ") && answer.contains(&location),
        "{answer}"
    );
}
