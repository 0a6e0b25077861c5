//! What a model call costs, in integers: micro-dollars for a million tokens of each kind.

use std::collections::BTreeMap;

use agent_operator::domain::Usage;
use serde::{Deserialize, Serialize};

/// Prices of one model in micro-dollars for a million tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Price {
    /// Tokens sent.
    #[serde(rename = "inputMicroUSDPerMTok")]
    pub input: u64,
    /// Tokens received.
    #[serde(rename = "outputMicroUSDPerMTok")]
    pub output: u64,
    /// Tokens read from the prompt cache.
    #[serde(rename = "cacheReadMicroUSDPerMTok")]
    pub cache_read: u64,
    /// Tokens written to the prompt cache.
    #[serde(rename = "cacheWriteMicroUSDPerMTok")]
    pub cache_write: u64,
    /// Tokens written to it that it keeps for an hour instead of five minutes. Where it is left out, twice
    /// `input`, as the price list of Anthropic has it for all models ("1-hour cache write tokens are 2
    /// times the base input tokens price", docs.claude.com, Prompt caching, Pricing).
    #[serde(rename = "cacheWrite1hMicroUSDPerMTok")]
    pub cache_write_1h: Option<u64>,
}

impl Price {
    /// The cost of `usage`, rounded up to a whole micro-dollar a call. Of its tokens that were written to
    /// the cache `for_an_hour` are kept there so long.
    pub fn cost_micro_usd(&self, usage: &Usage, for_an_hour: u64) -> u64 {
        const MILLION: u128 = 1_000_000;
        let cache_write_1h = self.cache_write_1h.unwrap_or_else(|| self.input.saturating_mul(2));
        let sum = [
            (usage.input_tokens, self.input),
            (usage.output_tokens, self.output),
            (usage.cache_read_tokens, self.cache_read),
            (usage.cache_write_tokens.saturating_sub(for_an_hour), self.cache_write),
            (for_an_hour, cache_write_1h),
        ]
        .into_iter()
        .map(|(tokens, price)| u128::from(tokens).saturating_mul(u128::from(price)))
        .fold(0, u128::saturating_add);
        u64::try_from(sum.div_ceil(MILLION)).unwrap_or(u64::MAX)
    }
}

/// The price table.
#[derive(Clone, Debug, Default)]
pub struct Prices(BTreeMap<String, Price>);

impl Prices {
    /// A table by model name.
    pub fn new(table: BTreeMap<String, Price>) -> Self {
        Self(table)
    }

    /// The price of `model`, see [`Self::entry`].
    pub fn of(&self, model: &str) -> Option<Price> {
        self.entry(model).map(|(_, price)| price)
    }

    /// The entry of `model`: its own, else the longest that it is a version of (`name-20250101` is a
    /// version of `name`).
    pub fn entry(&self, model: &str) -> Option<(&str, Price)> {
        let version_of = |name: &str| {
            model
                .strip_prefix(name)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '@']))
        };
        self.0
            .iter()
            .filter(|(name, _)| version_of(name))
            .max_by_key(|(name, _)| name.len())
            .map(|(name, price)| (name.as_str(), *price))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_whole_micro_dollars_rounded_up_and_never_overflow() {
        let price = Price { input: 3_000_000, output: 15_000_000, ..Price::default() };
        let usage = Usage { input_tokens: 1000, output_tokens: 100, ..Usage::default() };
        assert_eq!(price.cost_micro_usd(&usage, 0), 3000 + 1500);
        let cheap = Price { input: 1, ..Price::default() };
        assert_eq!(cheap.cost_micro_usd(&usage, 0), 1);
        let huge = Usage { input_tokens: u64::MAX, ..Usage::default() };
        assert_eq!(price.cost_micro_usd(&huge, 0), u64::MAX);
    }

    #[test]
    fn what_the_cache_keeps_for_an_hour_costs_twice_the_input_unless_the_table_says_otherwise() {
        let price = Price { input: 4_000_000, cache_write: 5_000_000, ..Price::default() };
        let usage = Usage { cache_write_tokens: 100, ..Usage::default() };
        assert_eq!(price.cost_micro_usd(&usage, 0), 500);
        assert_eq!(price.cost_micro_usd(&usage, 40), 60 * 5 + 40 * 8);
        assert_eq!(price.cost_micro_usd(&usage, 200), 200 * 8, "more than there is in all");
        let listed = Price { cache_write_1h: Some(7_000_000), ..price };
        assert_eq!(listed.cost_micro_usd(&usage, 100), 700);
    }

    #[test]
    fn a_dated_version_has_the_price_of_the_longest_matching_name() {
        let table = [("claude-x", 1), ("claude-x-mini", 2)]
            .map(|(name, input)| (name.to_owned(), Price { input, ..Price::default() }));
        let prices = Prices::new(table.into());
        assert_eq!(prices.of("claude-x-20250101").unwrap().input, 1);
        assert_eq!(prices.of("claude-x-mini-20250101").unwrap().input, 2);
        assert!(prices.of("claude-xl").is_none());
    }
}
