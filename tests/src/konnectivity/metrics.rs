//! What a daemon counts: the text of `/metrics` over plain HTTP, and single samples from it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Status code and body of a plain GET; `None` when nobody answers.
pub async fn get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok()?;
    let answer = String::from_utf8(answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

/// One page of samples.
#[derive(Clone, Debug, Default)]
pub struct Page(pub String);

impl Page {
    /// Reads the page of the daemon at `address`.
    pub async fn of(address: SocketAddr) -> Self {
        match get(address, "/metrics").await {
            Some((200, body)) => Self(body),
            other => panic!("{address}/metrics answers {other:?}"),
        }
    }

    /// The sum of the samples of `name` that have all these labels; `None` when there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let mut sum = None;
        for line in self.0.lines() {
            let Some(rest) = line.strip_prefix(name) else {
                continue;
            };
            let (own, value) = match rest.strip_prefix('{') {
                Some(rest) => match rest.rsplit_once('}') {
                    Some((own, value)) => (own, value),
                    None => continue,
                },
                None if rest.starts_with(' ') => ("", rest),
                None => continue,
            };
            let has = |(key, value): &(&str, &str)| own.contains(&format!("{key}=\"{value}\""));
            let value = value
                .trim()
                .split(' ')
                .next()
                .and_then(|v| v.parse::<f64>().ok());
            if let Some(value) = value
                && labels.iter().all(has)
            {
                sum = Some(sum.unwrap_or(0.0) + value);
            }
        }
        sum
    }

    /// What the series of a family look like: the names of their labels, and the bounds of their buckets.
    pub fn shape(&self, family: &str) -> Shape {
        let mut shape = Shape::default();
        for line in self.0.lines() {
            let Some(rest) = line.strip_prefix(family) else {
                continue;
            };
            let (suffix, labels) = match rest.split_once('{') {
                Some((suffix, rest)) => {
                    (suffix, rest.rsplit_once('}').map_or(rest, |(own, _)| own))
                }
                None => (rest.split(' ').next().unwrap_or_default(), ""),
            };
            // Another family may begin with the same words.
            if !["", "_bucket", "_sum", "_count"].contains(&suffix) {
                continue;
            }
            let mut names = BTreeSet::new();
            for label in labels.split("\",").filter(|label| !label.is_empty()) {
                let (name, value) = label.split_once("=\"").expect("a label");
                if name == "le" {
                    let bound = value.trim_end_matches('"').to_owned();
                    if !shape.bounds.contains(&bound) {
                        shape.bounds.push(bound);
                    }
                } else {
                    names.insert(name.to_owned());
                }
            }
            shape.labels.insert(names);
        }
        shape
    }

    /// The samples of a family without labels other than this one, by its value.
    pub fn by(&self, family: &str, label: &str) -> BTreeMap<String, f64> {
        let mut samples = BTreeMap::new();
        let start = format!("{family}{{{label}=\"");
        for line in self.0.lines() {
            let sample = line.strip_prefix(&start);
            if let Some((value, count)) = sample.and_then(|rest| rest.split_once("\"} "))
                && let Ok(count) = count.trim().parse()
            {
                samples.insert(value.to_owned(), count);
            }
        }
        samples
    }

    /// The names of all families, in order, with their type and help text.
    pub fn families(&self) -> Vec<Family> {
        let mut families: Vec<Family> = Vec::new();
        for line in self.0.lines() {
            let (kind, rest) = match line.strip_prefix("# ") {
                Some(rest) => rest.split_once(' ').unwrap_or((rest, "")),
                None => continue,
            };
            let (name, text) = rest.split_once(' ').unwrap_or((rest, ""));
            let at = match families.iter().position(|family| family.name == name) {
                Some(at) => at,
                None => {
                    families.push(Family {
                        name: name.to_owned(),
                        ..Family::default()
                    });
                    families.len() - 1
                }
            };
            match kind {
                "HELP" => families[at].help = text.to_owned(),
                "TYPE" => families[at].kind = text.to_owned(),
                _ => {}
            }
        }
        families
    }
}

/// What the series of a family look like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// The names of the labels of each series; `le` is not among them.
    pub labels: BTreeSet<BTreeSet<String>>,
    /// The values of `le`, in order.
    pub bounds: Vec<String>,
}

/// One family of a page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Family {
    /// `konnectivity_network_proxy_server_...`
    pub name: String,
    /// `counter`, `gauge`, `histogram`
    pub kind: String,
    /// Its HELP text.
    pub help: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_found_by_name_and_labels() {
        let page = Page(
            "# HELP a_total Things.\n# TYPE a_total counter\na_total{x=\"1\",y=\"2\"} 3\na_total{x=\"2\",y=\"2\"} 4\n\
             b 5\na_total_created 9\n"
                .to_owned(),
        );
        assert_eq!(page.sum("a_total", &[("y", "2")]), Some(7.0));
        assert_eq!(page.sum("a_total", &[("x", "2")]), Some(4.0));
        assert_eq!(page.sum("a_total", &[("x", "9")]), None);
        assert_eq!(page.sum("b", &[]), Some(5.0));
        assert_eq!(page.families().len(), 1);
        assert_eq!(page.families()[0].help, "Things.");
    }

    #[test]
    fn series_have_a_shape() {
        let page = Page(
            "a_bucket{x=\"1\",le=\"0.1\"} 1\na_bucket{x=\"1\",le=\"+Inf\"} 1\na_sum{x=\"1\"} 1\na_count{x=\"1\"} 1\n\
             a_total{y=\"2\"} 3\na_total{y=\"a \"} 4\n"
                .to_owned(),
        );
        let labels =
            |names: &[&str]| BTreeSet::from([names.iter().map(|&n| n.to_owned()).collect()]);
        let shape = page.shape("a");
        assert_eq!(shape.labels, labels(&["x"]));
        assert_eq!(shape.bounds, ["0.1", "+Inf"]);
        assert_eq!(page.shape("a_total").labels, labels(&["y"]));
        let by = page.by("a_total", "y");
        assert_eq!(
            by,
            BTreeMap::from([("2".to_owned(), 3.0), ("a ".to_owned(), 4.0)])
        );
    }
}
