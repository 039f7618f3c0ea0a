//! The demo's story, step by step. Every step either shows what it says or fails the demo.

mod page;
mod world;

use std::time::{Duration, Instant};

use towline_proto::id::Role;
use towline_server::attest::table;

use crate::apiserver::FakeApiserver;
use crate::authority::Authority;
use crate::kubectl::Kubelet;
use crate::rogue;
use crate::websocket::{self, Message};
use page::Page;
use world::World;

/// What went wrong; the demo ends at the first of it.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The event, or a failure that names it.
async fn soon<T>(what: &str, event: impl Future<Output = T>) -> Result<T, Failure> {
    let waited = tokio::time::timeout(PATIENCE, event).await;
    waited.map_err(|_| format!("{what} did not happen within {PATIENCE:?}").into())
}

/// Tells the whole story, or everything up to the curl lines and then waits.
pub async fn run(keep: bool) -> Result<(), Failure> {
    let begun = Instant::now();
    let page = Page::new();
    page.title("Towline: a verified line from the control plane to every node");
    let mut world = World::start(&page).await?;
    one_request(&page, &world).await?;
    logs_and_exec(&page, &world).await?;
    refusals(&page, &world).await?;
    impostor(&page, &world).await?;
    if keep {
        return wait_for_the_end(&page, &world).await;
    }
    stolen_certificate(&page, &world).await?;
    stranger(&page, &world).await?;
    live_drain(&page, &mut world).await?;
    page.end(&format!(
        "everything above happened, in {:.1} s",
        begun.elapsed().as_secs_f64()
    ));
    Ok(())
}

async fn kubelet(world: &World, front: &FakeApiserver, node: usize) -> Result<Kubelet, Failure> {
    let target = world.kubelet_target(node);
    let pipe = soon("the door's answer", front.dial(&target)).await??;
    let pipe =
        pipe.map_err(|refused| format!("{target}: {} {}", refused.status, refused.phrase))?;
    let root = world.authority.kubelets().der();
    Ok(soon(
        "the kubelet's handshake",
        Kubelet::connect(pipe, world.node_ip(node), root),
    )
    .await??)
}

async fn one_request(page: &Page, world: &World) -> Result<(), Failure> {
    page.step("One request, hop by hop: GET /healthz of each node's kubelet");
    for node in 0..2 {
        let (door, front) = match node {
            0 => ("Unix socket", world.front_unix()),
            _ => ("TCP, mutual TLS", world.front_tcp()?),
        };
        let target = world.kubelet_target(node);
        let link = world.link(node)?;
        let mut kubelet = kubelet(world, &front, node).await?;
        let (status, body) = soon("the page", kubelet.get("/healthz")).await??;
        let name = World::node_name(node);
        page.hop(
            "front end",
            &format!("CONNECT {target} ({door})"),
            "server/src/doors/connect.rs",
            "serve",
        );
        page.hop(
            "server",
            &format!("class kubelet, owner {name}"),
            "server/src/classify.rs",
            "classify",
        );
        page.hop(
            "server",
            &format!("the kubelet of {name} has proved that it is"),
            "server/src/attest/attestor.rs",
            "Attestor::gate",
        );
        page.hop(
            "server",
            &format!("a stream on link {} ({})", link.id, link.carrier),
            "link/src/dial.rs",
            "open",
        );
        page.hop(
            "agent",
            &format!("{name}: permit for {target}"),
            "agent/src/policy.rs",
            "Policy::check",
        );
        page.hop(
            "agent",
            &format!("{name}: connected, says so"),
            "agent/src/connect.rs",
            "connect_first",
        );
        page.hop(
            "both ends",
            "bytes, as they are, both ways",
            "link/src/splice.rs",
            "splice",
        );
        page.result(&format!(
            "kubelet of {name}: {status}, {body:?}, its certificate verified inside the dial"
        ));
    }
    Ok(())
}

async fn logs_and_exec(page: &Page, world: &World) -> Result<(), Failure> {
    page.step("kubectl logs -f, and kubectl exec over WebSocket");
    let front = world.front_unix();
    world.kubelets[0].log("listening on :8080");
    let mut logs = kubelet(world, &front, 0).await?.follow().await?;
    page.said(
        "log",
        &soon("a line", logs.line()).await??.ok_or("the log ended")?,
    );
    world.kubelets[0].log("GET / 200, written while the log is followed");
    page.said(
        "log",
        &soon("a line", logs.line()).await??.ok_or("the log ended")?,
    );
    let mut shell = kubelet(world, &front, 1).await?.exec("cat").await?;
    shell
        .send(websocket::STDIN, b"echo through the line")
        .await?;
    match soon("the echo", shell.receive()).await?? {
        Message::Data(websocket::STDOUT, bytes) => {
            page.said("exec", &String::from_utf8_lossy(&bytes))
        }
        other => return Err(format!("exec answered {other:?}").into()),
    }
    shell.send(websocket::CLOSE, &[websocket::STDIN]).await?;
    match soon("the status", shell.receive()).await?? {
        Message::Data(websocket::STATUS, bytes) => {
            page.said("exec", &String::from_utf8_lossy(&bytes))
        }
        other => return Err(format!("exec ended with {other:?}").into()),
    }
    Ok(())
}

async fn refusals(page: &Page, world: &World) -> Result<(), Failure> {
    page.step("What is refused, and the one line that kube-apiserver shows its user");
    let port = world.kubelet_port;
    for target in [
        "169.254.169.254:80".to_owned(),
        format!("127.0.0.2:{}", port ^ 1),
        "2130706433:80".into(),
        format!("127.0.0.9:{port}"),
    ] {
        match soon("the door's answer", world.front_unix().dial(&target)).await?? {
            Ok(_) => return Err(format!("{target} was dialled").into()),
            Err(refused) => page.said(&refused.status.to_string(), &refused.phrase),
        }
    }
    Ok(())
}

async fn impostor(page: &Page, world: &World) -> Result<(), Failure> {
    page.step("Somebody answers at the kubelet port of n3, with the right names and an authority of its own");
    match soon(
        "the door's answer",
        world.front_unix().dial(&world.kubelet_target(2)),
    )
    .await??
    {
        Ok(_) => return Err("the impostor was dialled".into()),
        Err(refused) if refused.phrase.contains("says wrong-ca") => {
            page.hop(
                "server",
                "a handshake of its own, through the agent of n3",
                "server/src/attest/ask.rs",
                "ask",
            );
            page.said(&refused.status.to_string(), &refused.phrase);
        }
        Err(other) => return Err(format!("refused for another cause: {}", other.phrase).into()),
    }
    if world.impostor.requests() != 0 || world.impostor.handshakes() != 0 {
        return Err("the impostor got something".into());
    }
    let known = world.server.control().status.reporter.report();
    for line in table::table(&known).lines().take(4) {
        page.said("", line);
    }
    page.result("towline-server kubelets lists them all; the impostor got no byte of a request");
    Ok(())
}

async fn stolen_certificate(page: &Page, world: &World) -> Result<(), Failure> {
    page.step("The certificate of n2 is stolen: its serial goes on the deny list");
    let mut logs = kubelet(world, &world.front_tcp()?, 1)
        .await?
        .follow()
        .await?;
    world.kubelets[1].log("a log that is open when the certificate is revoked");
    page.said(
        "log",
        &soon("a line", logs.line()).await??.ok_or("the log ended")?,
    );
    let begun = Instant::now();
    world.deny(&format!("serial:{} # stolen\n", world.agent_serials[1]))?;
    match soon("the end of the open dial", logs.line()).await? {
        Ok(line) => return Err(format!("the log goes on: {line:?}").into()),
        Err(error) => page.said(
            "log",
            &format!("cut after {:.1} s: {error}", begun.elapsed().as_secs_f64()),
        ),
    }
    let verdict = soon("the agent's verdict", world.refused(1)).await?;
    page.hop(
        "n2",
        "tries again and is refused",
        "pki/src/verify.rs",
        "PeerVerifier::verify",
    );
    page.said("", &verdict);
    match soon(
        "the door's answer",
        world.front_unix().dial(&world.kubelet_target(1)),
    )
    .await??
    {
        Ok(_) => return Err("n2 was dialled".into()),
        Err(refused) => page.said(&refused.status.to_string(), &refused.phrase),
    }
    Ok(())
}

async fn stranger(page: &Page, world: &World) -> Result<(), Failure> {
    page.step("An agent of another cluster, and one without a certificate");
    let other = Authority::new("other.example");
    let pair = other
        .leaf(Role::Agent, "n1")
        .ips(&[world.node_ip(0)])
        .sign();
    for kind in world::CARRIERS {
        for (who, pair) in [("another cluster's n1", Some(&pair)), ("nobody", None)] {
            let entering = rogue::enter(
                kind,
                world.server.link_address(),
                &world.authority,
                pair,
                rogue::hello("n1"),
            );
            match soon("the server's verdict", entering).await? {
                Ok(()) => return Err(format!("{who} got in on {kind}").into()),
                Err(error) => page.said(kind.as_str(), &format!("{who}: {error}")),
            }
        }
    }
    Ok(())
}

async fn live_drain(page: &Page, world: &mut World) -> Result<(), Failure> {
    page.step("The server stops while a log is open");
    let front = world.front_unix();
    let mut logs = kubelet(world, &front, 0).await?.follow().await?;
    while soon("a line", logs.line())
        .await??
        .is_some_and(|line| !line.contains("written while"))
    {}
    world.server.drain();
    page.hop(
        "server",
        "drains: agents told, no new dials",
        "link/src/process/drain.rs",
        "Drain::begin",
    );
    match soon("the door's answer", front.dial(&world.kubelet_target(0))).await? {
        Ok(Ok(_)) => return Err("a draining server dialled".into()),
        Ok(Err(refused)) => page.said(&refused.status.to_string(), &refused.phrase),
        Err(_) => page.said("door", "closed"),
    }
    world.kubelets[0].log("still here: open dials finish");
    page.said(
        "log",
        &soon("a line", logs.line()).await??.ok_or("the log ended")?,
    );
    drop(logs);
    soon("the server's end", world.server.wait()).await??;
    page.result("the last dial ended, and the server with it, in order");
    Ok(())
}

async fn wait_for_the_end(page: &Page, world: &World) -> Result<(), Failure> {
    page.step(
        "It stays. Try it (curl cannot speak to a proxy on a Unix socket, so this is the TCP door)",
    );
    for line in world.curl_lines() {
        page.verbatim(&line);
    }
    page.end("Ctrl-C ends it");
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    let mut count = 0_u64;
    let mut told = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    loop {
        tokio::select! {
            end = tokio::signal::ctrl_c() => return Ok(end?),
            _ = told.recv() => return Ok(()),
            _ = seconds.tick() => {
                count += 1;
                for kubelet in &world.kubelets {
                    kubelet.log(format!("{}: {count} s", kubelet.node()));
                }
            }
        }
    }
}
