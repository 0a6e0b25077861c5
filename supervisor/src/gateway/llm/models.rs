//! Which models may be called.

/// Digits of the date at the end of a version's name.
const DATE_DIGITS: usize = 8;

/// The installation's list. An empty one allows every model.
#[derive(Clone, Debug, Default)]
pub(super) struct AllowedModels(Vec<String>);

impl AllowedModels {
    /// Allows `names` and their dated versions.
    pub(super) fn new(names: Vec<String>) -> Self {
        Self(names)
    }

    /// Whether `model` may be called.
    pub(super) fn allow(&self, model: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|name| is_version_of(name, model))
    }
}

/// Whether `model` is `name`, or a version of it by date: `name-20250101`, `name@20250101`. Not every
/// name that goes on is a version: `name-5` may be a dearer model.
pub(super) fn is_version_of(name: &str, model: &str) -> bool {
    let Some(rest) = model.strip_prefix(name) else { return false };
    let date = rest.strip_prefix(['-', '@']);
    let is_date =
        |date: &str| date.len() == DATE_DIGITS && date.bytes().all(|byte| byte.is_ascii_digit());
    rest.is_empty() || date.is_some_and(is_date)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_allows_its_names_and_their_dated_versions_only() {
        let list = AllowedModels::new(vec!["claude-x-4".to_owned()]);
        for model in ["claude-x-4", "claude-x-4-20250101", "claude-x-4@20250101"] {
            assert!(list.allow(model), "{model}");
        }
        for model in
            ["claude-x", "claude-x-45", "claude-x-4-5", "claude-x-4-latest", "Claude-X-4", ""]
        {
            assert!(!list.allow(model), "{model}");
        }
        assert!(AllowedModels::default().allow("anything"));
    }
}
