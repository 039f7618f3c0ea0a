//! `--proxy-strategies`: in which order it is tried to find a legacy agent for a target.

use std::fmt;
use std::str::FromStr;

/// One way of choosing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Strategy {
    /// Any agent.
    Default,
    /// An agent that announced the host which is asked for.
    DestHost,
    /// Any agent that announced `default-route=true`.
    DefaultRoute,
}

impl Strategy {
    /// All of them.
    pub const ALL: [Strategy; 3] = [
        Strategy::Default,
        Strategy::DestHost,
        Strategy::DefaultRoute,
    ];

    /// The word of the flag and of metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Strategy::Default => "default",
            Strategy::DestHost => "destHost",
            Strategy::DefaultRoute => "defaultRoute",
        }
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A list of strategies, in order, each at most once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strategies(Vec<Strategy>);

/// What is wrong with a list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StrategyError {
    /// No such word.
    #[error("unknown proxy strategy {0:?}: use default, destHost or defaultRoute")]
    Unknown(String),
    /// No word at all.
    #[error("no proxy strategy is named: use default, destHost or defaultRoute")]
    Empty,
}

impl Default for Strategies {
    fn default() -> Self {
        Self(vec![Strategy::Default])
    }
}

impl Strategies {
    /// In order.
    pub fn iter(&self) -> impl Iterator<Item = Strategy> {
        self.0.iter().copied()
    }

    /// The one that decides about readiness.
    pub fn first(&self) -> Strategy {
        self.0.first().copied().unwrap_or(Strategy::Default)
    }
}

impl FromStr for Strategies {
    type Err = StrategyError;

    /// Empty items are skipped, as Konnectivity does; words are case-sensitive.
    fn from_str(text: &str) -> Result<Self, StrategyError> {
        let mut list = Vec::new();
        for word in text.split(',').filter(|word| !word.is_empty()) {
            let strategy = Strategy::ALL
                .into_iter()
                .find(|strategy| strategy.as_str() == word)
                .ok_or_else(|| StrategyError::Unknown(word.chars().take(32).collect()))?;
            if !list.contains(&strategy) {
                list.push(strategy);
            }
        }
        match list.is_empty() {
            true => Err(StrategyError::Empty),
            false => Ok(Self(list)),
        }
    }
}

impl fmt::Display for Strategies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<_> = self.iter().map(Strategy::as_str).collect();
        f.write_str(&words.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_in_order() {
        let list: Strategies = ",destHost,,default,destHost".parse().unwrap();
        assert_eq!(list.to_string(), "destHost,default");
        assert_eq!(list.first(), Strategy::DestHost);
    }

    #[test]
    fn other_words_are_refused() {
        for word in ["desthost", "cidr", "default, destHost"] {
            let error = word.parse::<Strategies>().unwrap_err();
            assert!(matches!(error, StrategyError::Unknown(_)), "{word}");
        }
        assert_eq!("".parse::<Strategies>(), Err(StrategyError::Empty));
    }
}
