//! A cluster file that cannot be: one error with line and column, and nothing made.

mod cluster;
mod tool;

use std::fs;

use tool::Tool;

const APPLY: &str = "apply -f cluster.yaml -d prod";

fn write(tool: &Tool, text: &str) {
    fs::write(tool.dir.path("cluster.yaml"), text).unwrap();
}

#[test]
fn a_cluster_file_that_cannot_be_is_one_error_with_its_place() {
    let tool = Tool::new();
    for (text, place, words) in [
        ("version: 1\nclustr: a\n", "2:1", "clustr"),
        ("version: 1\ncluster: a\ncluster: b\n", "3:1", "given twice"),
        ("version: 2\ncluster: a\n", "1:10", "use 1"),
        ("version: 1\ncluster: A\n", "2:10", "lower-case"),
        (
            "version: 1\ncluster: a\nnodes: n\n",
            "3:8",
            "nodes: expected a list, found the text \"n\"",
        ),
        ("version: 1\ncluster: a\n", "2:10", "no machine"),
        (
            "version: 1\ncluster: a\nnodes:\n- {name: ../x, addresses: [10.0.0.1]}\n",
            "4:10",
            "lower-case",
        ),
        (
            "version: 1\ncluster: a\nnodes:\n- {name: \"a\\nb\", addresses: [10.0.0.1]}\n",
            "4:10",
            "lower-case",
        ),
        (
            "version: 1\ncluster: a\nnodes:\n- {name: \"*\", addresses: [10.0.0.1]}\n",
            "4:10",
            "lower-case",
        ),
        (
            "version: 1\ncluster: a\nnodes:\n- {name: n, addresses: [n.example]}\n",
            "4:25",
            "not an IP address",
        ),
        (
            "version: 1\ncluster: a\nnodes:\n- {name: n, addresses: [127.0.0.1]}\n",
            "4:25",
            "loopback",
        ),
        (
            "version: 1\ncluster: a\nnodes:\n- {name: n, addresses: [10.96.0.9]}\n",
            "4:25",
            "serviceCIDRs",
        ),
        (
            "version: 1\ncluster: a\nnodes:\n- {name: n, addresses: []}\n",
            "4:10",
            "no address",
        ),
        (
            "version: 1\ncluster: a\nnodes:\n- {name: n, addresses: [10.0.0.1], names: [10.0.0.1]}\n",
            "4:44",
            "IP address",
        ),
        (
            "version: 1\ncluster: a\nnodes:\n- {name: n, addresses: [10.0.0.1]}\n- {name: n, addresses: [10.0.0.2]}\n",
            "5:10",
            "already",
        ),
        (
            "version: 1\ncluster: a\nnodes:\n- {name: n, addresses: [10.0.0.1]}\n- {name: m, addresses: [10.0.0.1]}\n",
            "5:25",
            "belongs to n",
        ),
        (
            "version: 1\ncluster: a\nnodes:\n- {name: n, addresses: [10.0.0.1]}\n- {name: m, addresses: [10.0.0.2], names: [n]}\n",
            "5:44",
            "belongs to n",
        ),
        (
            "version: 1\ncluster: a\nnodes:\n- {name: n2345678901234567890123456789012345678901234567890123, addresses: [10.0.0.1]}\n",
            "4:10",
            "at most 52",
        ),
        (
            "version: 1\ncluster: a\nkubernetes: {serviceCIDRs: [10.96.0.1/12]}\n",
            "3:29",
            "10.96.0.0/12",
        ),
        (
            "version: 1\ncluster: a\nkubernetes: {apiserverNames: [\"*.example\"]}\nnodes:\n- {name: n, addresses: [10.0.0.1]}\n",
            "3:31",
            "not a DNS name",
        ),
        (
            "version: 1\ncluster: a\nkubernetes: {endpoint: \"cp:0\"}\nnodes:\n- {name: n, addresses: [10.0.0.1]}\n",
            "3:24",
            "port",
        ),
        (
            "version: 1\ncluster: a\nlives: {admins: 4000}\nnodes:\n- {name: n, addresses: [10.0.0.1]}\n",
            "3:17",
            "use 1 to 399",
        ),
        (
            "version: 1\ncluster: a\nlives: {components: -1}\nnodes:\n- {name: n, addresses: [10.0.0.1]}\n",
            "3:21",
            "",
        ),
        (
            "version: 1\ncluster: a\nlives: {renewBefore: 90}\nnodes:\n- {name: n, addresses: [10.0.0.1]}\n",
            "3:22",
            "less than",
        ),
        (
            "version: 1\ncluster: a\nkeys: {certificates: dsa}\nnodes:\n- {name: n, addresses: [10.0.0.1]}\n",
            "3:22",
            "ecdsa-p256",
        ),
        (
            "version: 1\ncluster: a\nkeys: {serviceAccounts: ed25519}\nnodes:\n- {name: n, addresses: [10.0.0.1]}\n",
            "3:25",
            "Ed25519",
        ),
        (
            "version: 1\ncluster: a\nauthorities: {leaveOut: [all]}\nnodes:\n- {name: n, addresses: [10.0.0.1]}\n",
            "3:26",
            "left out",
        ),
    ] {
        write(&tool, text);
        let place = format!("cluster.yaml:{place}: ");
        tool.refused(APPLY, 3, &[&place, words]);
        let answer = tool.run(APPLY);
        assert_eq!(answer.err.lines().count(), 1, "{}", answer.err);
        assert!(!tool.dir.path("prod").exists());
    }
    tool.refused(
        "apply -f nowhere.yaml -d prod",
        3,
        &["nowhere.yaml", "cannot be read"],
    );
    tool.refused("apply -f cluster.yaml", 2, &["--dir"]);
}
