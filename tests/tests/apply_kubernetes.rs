//! What `towline-pki apply` makes starts a real etcd and a real kube-apiserver, and everybody is to
//! them who it should be. Needs Go (see `towline_tests::real_kubernetes`).

use serde_json::json;
use towline_tests::real_kubernetes::{World, curl};

#[ignore = "needs Go"]
#[test]
fn a_real_etcd_and_kube_apiserver_take_everybody_for_who_they_are() {
    let world = World::new();
    // etcd takes its own clients only: not Kubernetes', and nobody without a certificate.
    assert!(world.ask_etcd("apiserver-etcd-client").is_ok());
    assert!(world.ask_etcd("apiserver-kubelet-client").is_err());
    assert!(
        curl(
            &world.pki("etcd/ca.crt"),
            None,
            &[&format!("{}/health", world.etcd())]
        )
        .is_err()
    );

    let _api_server = world.api_server();
    let nobody: &[&str] = &[];
    for (conf, user, groups) in [
        (
            "admin.conf",
            "kubernetes-admin",
            &["kubeadm:cluster-admins"][..],
        ),
        (
            "super-admin.conf",
            "kubernetes-super-admin",
            &["system:masters"],
        ),
        (
            "hosts/cp-1/controller-manager.conf",
            "system:kube-controller-manager",
            nobody,
        ),
        ("hosts/cp-1/scheduler.conf", "system:kube-scheduler", nobody),
        (
            "hosts/cp-1/kubelet.conf",
            "system:node:cp-1",
            &["system:nodes"],
        ),
        (
            "hosts/node-1/kubelet.conf",
            "system:node:node-1",
            &["system:nodes"],
        ),
    ] {
        let (name, found) = world.who(&world.user(conf), &[]);
        assert_eq!(name, user, "{conf}");
        assert_eq!(found, groups, "{conf}");
    }
    // The front proxy speaks for others, and nobody else does.
    let pair =
        |stem: &str| [format!("{stem}.crt"), format!("{stem}.key")].map(|name| world.pki(&name));
    let headers = ["X-Remote-User: alice", "X-Remote-Group: people"];
    let proxied = world.who(&pair("front-proxy-client"), &headers);
    assert_eq!(proxied, ("alice".to_owned(), vec!["people".to_owned()]));
    let admin = world.user("super-admin.conf");
    assert_eq!(world.who(&admin, &headers).0, "kubernetes-super-admin");
    let kubelet_client = world.who(&pair("apiserver-kubelet-client"), &[]);
    assert_eq!(kubelet_client.0, "kube-apiserver-kubelet-client");

    // A token that sa.key signs verifies with sa.pub.
    let account =
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "probe" } });
    world.post(
        "/api/v1/namespaces/default/serviceaccounts",
        &admin,
        &account,
        &[],
    );
    let request =
        json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {} });
    let path = "/api/v1/namespaces/default/serviceaccounts/probe/token";
    let token = world.post(path, &admin, &request, &[]);
    let token = token["status"]["token"]
        .as_str()
        .unwrap_or_else(|| panic!("{token}"));
    let review = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": { "token": token },
    });
    let review = world.post(
        "/apis/authentication.k8s.io/v1/tokenreviews",
        &admin,
        &review,
        &[],
    );
    assert_eq!(review["status"]["authenticated"], true, "{review}");
    assert_eq!(
        review["status"]["user"]["username"],
        "system:serviceaccount:default:probe"
    );
}
