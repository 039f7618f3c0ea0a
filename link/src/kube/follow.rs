//! All objects of a collection, kept up to date: a list in pages, then a watch from it, for as
//! long as asked.
//!
//! Objects of a kind that anybody may create can be of any size, so a page that is too large is
//! asked for again in halves. A watch that ends in order is begun anew from where it was; one
//! that fell behind, or failed, begins with a list.

use std::time::{Duration, Instant};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use towline_proto::limits;

use super::client::{Client, escape};
use super::error::KubeError;
use super::retry::Retry;
use super::watch::Event;

/// An object of which there are lists.
pub trait Listed: DeserializeOwned {
    /// The version that an event about it moves the watch to.
    fn version(&self) -> &str;
}

/// What is told.
#[derive(Debug)]
pub enum Told<'a, T> {
    /// A list begins: what the pages until [`Told::Listed`] do not name is gone.
    Begins,
    /// Some of what there is.
    Page(Vec<T>),
    /// That was all.
    Listed,
    /// One is there, new or changed.
    Is(T),
    /// One is gone; this was its last state.
    Was(T),
    /// It failed, and is tried again after a pause.
    Failed(&'a KubeError, Duration),
}

#[derive(Deserialize)]
struct List<T> {
    #[serde(default)]
    metadata: ListMetadata,
    #[serde(default = "Vec::new")]
    items: Vec<T>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMetadata {
    #[serde(default)]
    resource_version: String,
    #[serde(default, rename = "continue")]
    more: String,
}

/// A collection, and which of its objects.
#[derive(Clone, Debug)]
pub struct Collection {
    client: Client,
    path: String,
    selector: String,
}

impl Collection {
    /// At `path`; `selector` is a field selector, empty for everything.
    pub fn new(client: Client, path: impl Into<String>, selector: &str) -> Self {
        Self {
            client,
            path: path.into(),
            selector: escape(selector),
        }
    }

    /// Tells what there is, and what happens to it. Never ends by itself.
    pub async fn follow<T: Listed>(&self, mut tell: impl FnMut(Told<'_, T>)) {
        let mut retry = Retry::new();
        loop {
            let begun = Instant::now();
            let Err(error) = self.once(&mut tell).await;
            let pause = retry.after(begun.elapsed());
            tell(Told::Failed(&error, pause));
            tokio::time::sleep(pause).await;
        }
    }

    /// One list, and watches from it until one fails.
    async fn once<T: Listed>(
        &self,
        tell: &mut impl FnMut(Told<'_, T>),
    ) -> Result<std::convert::Infallible, KubeError> {
        let mut version = self.list(tell).await?;
        loop {
            let begun = Instant::now();
            let path = format!(
                "{}?fieldSelector={}&resourceVersion={}",
                self.path,
                self.selector,
                escape(&version)
            );
            let mut watch = self.client.watch::<T>(&path).await?;
            while let Some(event) = watch.next_in_time().await? {
                let (Event::Is(object) | Event::Was(object)) = &event;
                version = object.version().to_owned();
                tell(match event {
                    Event::Is(object) => Told::Is(object),
                    Event::Was(object) => Told::Was(object),
                });
            }
            // A watch that ends as soon as it begins must not become a storm.
            let least = limits::KUBE_RETRY.0;
            tokio::time::sleep(least.saturating_sub(begun.elapsed())).await;
        }
    }

    /// Every page; the version from which to watch.
    async fn list<T: Listed>(
        &self,
        tell: &mut impl FnMut(Told<'_, T>),
    ) -> Result<String, KubeError> {
        tell(Told::Begins);
        let (mut size, mut more) = (limits::KUBE_PAGE, String::new());
        for _ in 0..limits::KUBE_PAGES {
            let path = format!(
                "{}?fieldSelector={}&limit={size}&continue={}",
                self.path,
                self.selector,
                escape(&more)
            );
            let page: List<T> = match self.client.get(&path).await {
                Err(KubeError::TooLarge { .. }) if size > 1 => {
                    size /= 2;
                    continue;
                }
                other => other?,
            };
            tell(Told::Page(page.items));
            if page.metadata.more.is_empty() {
                tell(Told::Listed);
                return Ok(page.metadata.resource_version);
            }
            more = page.metadata.more;
        }
        Err(KubeError::TooLarge {
            server: self.client.server().to_owned(),
            max: limits::KUBE_PAGES * limits::KUBE_BODY_BYTES,
        })
    }
}
