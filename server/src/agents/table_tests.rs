//! Places, addresses and routes of the table. What needs links is in `server/tests/links.rs`.

use super::*;
use towline_proto::target::{Class, Host};

fn table(max_links: usize) -> Arc<Agents> {
    Agents::new(max_links, Metrics::default())
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn route(addresses: &[&str]) -> Route {
    Route {
        addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
        ..Route::default()
    }
}

fn owner(table: &Agents, host: &str) -> Option<String> {
    let host: Host = host.parse().unwrap();
    let routes = table.routes();
    routes.owner(&host).map(|node| node.name().to_string())
}

#[tokio::test]
async fn two_agents_never_hold_one_address_at_a_time() {
    let table = table(10);
    let first = table.reserve(&name("n1"), route(&["10.0.0.1"])).unwrap();
    let refused = table.reserve(&name("n2"), route(&["10.0.0.2", "10.0.0.1"]));
    let error = refused.err().unwrap();
    assert_eq!(error.reason(), Reason::ExcessClaim);
    assert_eq!(
        error.to_string(),
        "its address 10.0.0.1 is held by the linked agent n1"
    );
    assert_eq!(owner(&table, "10.0.0.1").as_deref(), Some("n1"));
    assert_eq!(owner(&table, "10.0.0.2"), None, "nothing of it is kept");
    // A second link of the same agent is no overlap.
    let second = table.reserve(&name("n1"), route(&["10.0.0.1"])).unwrap();
    drop((first, second));
    let newcomer = table.reserve(&name("n2"), route(&["10.0.0.1"])).unwrap();
    assert_eq!(owner(&table, "10.0.0.1").as_deref(), Some("n2"));
    drop(newcomer);
    assert_eq!(owner(&table, "10.0.0.1"), None);
}

#[tokio::test]
async fn places_are_bounded_and_given_back() {
    let table = table(2);
    let a = table.reserve(&name("a"), Route::default()).unwrap();
    let _b = table.reserve(&name("b"), Route::default()).unwrap();
    let full = table.reserve(&name("c"), Route::default()).err().unwrap();
    assert_eq!(full, NotAdmitted::Full(2));
    assert_eq!(full.reason(), Reason::Overloaded);
    drop(a);
    assert!(table.reserve(&name("c"), Route::default()).is_ok());
    assert_eq!(table.nodes().len(), 1, "who never linked is not remembered");
}

#[tokio::test]
async fn one_agent_does_not_take_every_place() {
    let table = table(10 * limits::LINKS_PER_AGENT);
    let one = || table.reserve(&name("a"), Route::default());
    let held: Vec<_> = (0..limits::LINKS_PER_AGENT)
        .map(|_| one().unwrap())
        .collect();
    let error = one().err().unwrap();
    assert_eq!(
        (&error, error.reason()),
        (&NotAdmitted::Many, Reason::Overloaded)
    );
    assert!(table.reserve(&name("b"), Route::default()).is_ok());
    drop(held);
    assert!(one().is_ok());
}

#[tokio::test]
async fn routes_follow_grants() {
    let table = table(10);
    let gateway = Route {
        gateway: true,
        ..Route::default()
    };
    let host: Host = "10.96.0.1".parse().unwrap();
    let _a = table.reserve(&name("a"), Route::default()).unwrap();
    let none = table.routes();
    let answer = none.pick(&host, Class::Service, None, 0, |_| true);
    assert!(matches!(answer, Err(crate::pick::NoAgent::NoRoute)));
    let _b = table.reserve(&name("a"), gateway).unwrap();
    let routes = table.routes();
    let answer = routes.pick(&host, Class::Service, None, 0, |_| true);
    assert!(matches!(answer, Err(crate::pick::NoAgent::NoGateway)));
}
