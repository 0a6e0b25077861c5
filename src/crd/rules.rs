//! The CEL rules that are longer than a line or stand at several fields, apart from their messages:
//! a message names its field, a rule need not.

/// Git's own rules for a branch, narrowed to characters that no shell, URL or header reads as its
/// own. A full reference or `HEAD` is refused too: as a branch it would be another one than meant.
pub(super) const BRANCH: &str = r"self.matches('^[A-Za-z0-9_][A-Za-z0-9._/+-]*$') && !self.contains('..') && !self.contains('//') && !self.contains('/.') && !self.contains('.lock/') && !self.endsWith('/') && !self.endsWith('.') && !self.endsWith('.lock') && !self.startsWith('refs/') && self != 'HEAD'";

/// A plain clone URL: scheme, host, port up to 65535, and a path of at least two parts.
pub(super) const CLONE_URL: &str = r"self.matches('^https?://[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?([.][A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*(:([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?(/[A-Za-z0-9._~][A-Za-z0-9._~-]*){2,}/?$')";

/// No part of a path that means another place, and not a repository's own folder.
pub(super) const CLONE_URL_PATH: &str = r"!self.contains('..') && !self.matches('/[.](git)?(/|$)')";

/// Not the node's own addresses, nor the link-local ones where clouds keep their metadata, in any
/// way that resolvers read a number (`127.1`, `0x7f.1`, `2130706433`).
pub(super) const CLONE_URL_AWAY: &str = r"!self.matches('(?i)^https?://(([^/:]*[.])?localhost|0[.][^/:]*|127[.][^/:]*|169[.]254[.][^/:]*)[:/]') && (!self.matches('^https?://([^/:]*[.])?[0-9][^./:]*[:/]') || self.matches('^https?://(0|[1-9][0-9]{0,2})([.](0|[1-9][0-9]{0,2})){3}[:/]'))";

/// An image reference as registries understand it.
pub(super) const IMAGE: &str = r"self.matches('^([A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]{1,5})?/)?[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@[a-z0-9]+:[0-9a-f]{32,128})?$')";

/// A model's name, in the forms of providers and gateways. It never starts like an option.
pub(super) const MODEL: &str = r"self.matches('^[A-Za-z0-9][][A-Za-z0-9._:/@+-]*$')";

/// A command that a kernel can execute: it has a program, and no argument ends early.
pub(super) const COMMAND: &str =
    r"(self.size() == 0 || self[0] != '') && self.all(word, !word.contains('\u0000'))";

/// Text of one line, as ids have.
pub(super) const ONE_LINE: &str = r"!self.matches('[[:cntrl:]]')";

/// Characters of owners and repositories at the forge.
pub(super) const FORGE_NAME: &str =
    r"self.matches('^[A-Za-z0-9._-]+$') && self != '.' && self != '..'";

/// Name of a Kubernetes object.
pub(super) const OBJECT_NAME: &str =
    r"self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')";

/// Key of a Secret.
pub(super) const SECRET_KEY: &str =
    r"self.matches('^[-._a-zA-Z0-9]+$') && self != '.' && !self.startsWith('..')";

/// Key of a taint: a label's key, or nothing.
pub(super) const TAINT_KEY: &str = r"self == '' || self.matches('^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$')";

/// A label's value, or nothing.
pub(super) const LABEL_VALUE: &str =
    r"self == '' || self.matches('^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$')";

/// Labels that a node can have.
pub(super) const NODE_LABELS: &str = r"self.all(key, key.matches('^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$') && (self[key] == '' || self[key].matches('^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$')))";

/// Host names as the gateway matches them: whole, in lower case, with a port if need be. Their last
/// part begins with a letter, so that no address is among them, however it is written.
pub(super) const HOSTS: &str = r"self.all(host, host.matches('^([a-z0-9]([-a-z0-9]*[a-z0-9])?[.])*[a-z]([-a-z0-9]*[a-z0-9])?(:([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?$'))";

/// A Go-style duration of at most `$hours`.
macro_rules! duration_up_to {
    ($hours:literal) => {
        concat!(
            "self.matches('^([0-9]{1,4}h)?([0-9]{1,6}m)?([0-9]{1,8}s)?$') && self != '' && duration(self) >= duration('1s') && duration(self) <= duration('",
            $hours,
            "h')"
        )
    };
}

/// Time of a step.
pub(super) const STEP_TIMEOUT: &str = duration_up_to!("168");

/// Time of a task.
pub(super) const TASK_TIMEOUT: &str = duration_up_to!("720");

/// A quantity at `$field` from `$least` to `$most`; what is no quantity has its own sentence. These
/// stand at the object: a rule at the field itself is lost, because the type brings its own.
macro_rules! quantity_between {
    ($field:literal, $least:literal, $most:literal) => {
        concat!(
            "!has(self.",
            $field,
            ") || !isQuantity(string(self.",
            $field,
            ")) || (quantity(string(self.",
            $field,
            ")).compareTo(quantity('",
            $least,
            "')) >= 0 && quantity(string(self.",
            $field,
            ")).compareTo(quantity('",
            $most,
            "')) <= 0)"
        )
    };
}

/// Any quantity: what the controller has resolved may come from the chart, which has bounds of its own.
pub(super) const QUANTITY: &str = "isQuantity(self)";

/// From a hundredth of a CPU, below which nothing starts, to more than any node has.
pub(super) const CPU: &str = quantity_between!("cpu", "10m", "1k");

/// From what the runner needs, so that `8` for `8Gi` is noticed, to more than any node has.
pub(super) const MEMORY: &str = quantity_between!("memory", "64Mi", "1Pi");

/// From what git needs for a small repository, likewise.
pub(super) const STORAGE: &str = quantity_between!("storage", "64Mi", "1Pi");

/// From a thousandth of a dollar, the finest that is counted, to a million dollars.
pub(super) const DOLLARS: &str = quantity_between!("maxCostUSD", "1m", "1M");
