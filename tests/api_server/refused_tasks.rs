//! Wrong tasks, as people write them.

use serde_json::{Value, json};

/// An object that must be refused.
pub(crate) struct Row {
    /// Changes of the sample: pointer and value; null removes.
    pub(crate) changes: Vec<(&'static str, Value)>,
    /// Path of the field that the refusal must name.
    pub(crate) field: &'static str,
    /// What it must say about it.
    pub(crate) words: &'static str,
}

/// `row!(pointer = json, ... => field, words)`.
macro_rules! row {
    ($($pointer:literal = $value:tt),+ => $field:literal, $words:literal) => {
        $crate::refused_tasks::Row {
            changes: vec![$(($pointer, json!($value))),+],
            field: $field,
            words: $words,
        }
    };
}
pub(crate) use row;

/// One pointer, several values, the same words.
fn each<V: Into<Value>>(
    pointer: &'static str,
    values: impl IntoIterator<Item = V>,
    field: &'static str,
    words: &'static str,
) -> Vec<Row> {
    let row = |value: V| Row { changes: vec![(pointer, value.into())], field, words };
    values.into_iter().map(row).collect()
}

/// Every wrong task.
pub(crate) fn tasks() -> Vec<Row> {
    [
        names(),
        sources(),
        urls(),
        branches(),
        work_branches(),
        prompts(),
        secrets(),
        durations(),
        quantities(),
        numbers(),
        programs(),
        placement(),
        hosts(),
        unknown_fields(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn names() -> Vec<Row> {
    let mut rows = each(
        "/metadata/name",
        ["Upper", "under_score", "-x", "x-", "a..b", "a b", "ü"],
        "metadata.name",
        "lowercase RFC 1123",
    );
    rows.extend([
        row!("/metadata/name" = ("a".repeat(254)) => "metadata.name", "no more than 253"),
        row!("/metadata/name" = "release.lock" => "metadata.name", "set spec.repository.workBranch"),
    ]);
    rows
}

fn sources() -> Vec<Row> {
    let github = json!({"owner": "o", "repo": "r", "issueNumber": 7});
    let chat = json!({"sessionId": "s", "userId": "u"});
    vec![
        row!("/spec/source" = null => "spec.source", "Required"),
        row!("/spec/source" = {} => "spec.source.type", "Required"),
        row!("/spec/source" = {"type": "mail"} => "spec.source.type", "supported values"),
        row!("/spec/source" = {"type": "Chat"} => "spec.source.type", "supported values"),
        row!("/spec/source" = {"type": "github-issue"} => "spec.source", "github-issue needs spec.source.github with owner, repo and issueNumber"),
        row!("/spec/source" = {"type": "chat"} => "spec.source", "chat needs spec.source.chat with sessionId and userId"),
        row!("/spec/source/github" = github => "spec.source", "spec.source.github is only for spec.source.type github-issue"),
        row!("/spec/source" = {"type": "github-issue", "github": github, "chat": chat} => "spec.source", "spec.source.chat is only for spec.source.type chat"),
        row!("/spec/source" = {"type": "github-issue", "chat": chat} => "spec.source", "github-issue needs spec.source.github"),
        row!("/spec/source/chat" = {"userId": "u"} => "spec.source.chat.sessionId", "Required"),
        row!("/spec/source/chat/userId" = "" => "spec.source.chat.userId", "at least 1 chars"),
        row!("/spec/source/chat/sessionId" = "a\nb" => "spec.source.chat.sessionId", "one line"),
        row!("/spec/source/chat/sessionId" = ("s".repeat(257)) => "spec.source.chat.sessionId", "Too long"),
        row!("/spec/source" = {"type": "github-issue", "github": {"owner": "o", "repo": "r"}} => "spec.source.github.issueNumber", "Required"),
        row!("/spec/source" = {"type": "github-issue", "github": {"owner": "o", "repo": "r", "issueNumber": 0}} => "spec.source.github.issueNumber", "greater than or equal to 1"),
        row!("/spec/source" = {"type": "github-issue", "github": {"owner": "o", "repo": "r", "issueNumber": "7"}} => "spec.source.github.issueNumber", "must be of type integer"),
        row!("/spec/source" = {"type": "github-issue", "github": {"owner": "o", "repo": "r", "issueNumber": 3_000_000_000_i64}} => "spec.source.github.issueNumber", "less than or equal to"),
        row!("/spec/source" = {"type": "github-issue", "github": {"owner": "o/p", "repo": "r", "issueNumber": 7}} => "spec.source.github.owner", "must be as in the repository's address"),
        row!("/spec/source" = {"type": "github-issue", "github": {"owner": "o", "repo": "..", "issueNumber": 7}} => "spec.source.github.repo", "must be as in the repository's address"),
    ]
}

fn urls() -> Vec<Row> {
    let mut rows = each(
        "/spec/repository/url",
        [
            "git@github.com:o/r.git",
            "ssh://git@github.com/o/r.git",
            "git://github.com/o/r.git",
            "file:///etc/passwd",
            "ext::sh -c id",
            "/srv/git/repository.git",
            "HTTPS://github.com/o/r.git",
            "https://user:pass@github.com/o/r.git",
            "https://ghp_token@github.com/o/r.git",
            "https://github.com",
            "https://github.com/",
            "https://github.com/only-owner",
            "https://github.com//r.git",
            "https://github.com/--upload-pack=id/r.git",
            "https://github.com/o/r.git?ref=main",
            "https://github.com/o/r.git#main",
            "https://github.com/o/r.git\nx",
            "https://github.com/o/r r.git",
            "https://github.com/o/%2e%2e/r.git",
            "https://-github.com/o/r.git",
            "https://github.com./o/r.git",
            "https://github.com:99999/o/r.git",
            "https://github.com:0/o/r.git",
            "https://[::1]/o/r.git",
            "https://bücher.example/o/r.git",
        ],
        "spec.repository.url",
        "must be an http or https clone URL without user name or password",
    );
    rows.extend(each(
        "/spec/repository/url",
        [
            "http://localhost:3000/o/r.git",
            "http://git.localhost/o/r.git",
            "http://127.0.0.1/o/r.git",
            "http://127.1/o/r.git",
            "http://0.0.0.0:80/o/r.git",
            "http://0x7f.1/o/r.git",
            "http://0177.0.0.1/o/r.git",
            "http://2130706433/o/r.git",
            "http://169.254.169.254/latest/meta-data",
        ],
        "spec.repository.url",
        "must not name this machine or a link-local address",
    ));
    rows.extend([
        row!("/spec/repository" = null => "spec.repository", "Required"),
        row!("/spec/repository" = {} => "spec.repository.url", "Required"),
        row!("/spec/repository/url" = "" => "spec.repository.url", "at least 10 chars"),
        row!("/spec/repository/url" = 7 => "spec.repository.url", "must be of type string"),
        row!("/spec/repository/url" = "https://github.com/o/../../r" => "spec.repository.url", "must not contain '.', '..' or '.git' as a folder"),
        row!("/spec/repository/url" = "https://github.com/o/.git" => "spec.repository.url", "must not contain '.', '..' or '.git' as a folder"),
        row!("/spec/repository/url" = "https://github.com/o/./r" => "spec.repository.url", "must not contain '.', '..' or '.git' as a folder"),
        row!("/spec/repository/url" = (format!("https://h.example/{}/r", "x".repeat(3000))) => "spec.repository.url", "Too long"),
    ]);
    rows
}

/// What git allows in no branch name, and what would be read as something else than a branch.
const NOT_BRANCHES: [&str; 24] = [
    "a..b",
    "a~1",
    "a^",
    "a:b",
    "-x",
    "--upload-pack=x",
    "a@{1}",
    "@",
    "x.lock",
    "x.lock/y",
    "a/",
    "/a",
    "a//b",
    "a b",
    "a\tb",
    "a\u{7f}b",
    "a\\b",
    "a*",
    "a?",
    "a[b",
    ".a",
    "a/.b",
    "a.",
    "ünïcode",
];

fn branches() -> Vec<Row> {
    const WORDS: &str = "must be a git branch name of letters, digits and . _ / + -";
    let mut rows = each("/spec/repository/branch", NOT_BRANCHES, "spec.repository.branch", WORDS);
    rows.extend(each(
        "/spec/repository/branch",
        ["HEAD", "refs/heads/main"],
        "spec.repository.branch",
        WORDS,
    ));
    rows.extend([
        row!("/spec/repository/branch" = "" => "spec.repository.branch", "at least 1 chars"),
        row!("/spec/repository/branch" = ("b".repeat(245)) => "spec.repository.branch", "Too long"),
        row!("/spec/repository/branch" = true => "spec.repository.branch", "must be of type string"),
        row!("/spec/repository/branch" = "ai" => "spec.repository.branch", "set spec.repository.workBranch"),
    ]);
    rows
}

fn work_branches() -> Vec<Row> {
    let mut rows = each(
        "/spec/repository/workBranch",
        ["a..b", "-x", "x.lock", "a b", "a@{1}", "HEAD", "refs/heads/x"],
        "spec.repository.workBranch",
        "must be a git branch name of letters, digits and . _ / + -",
    );
    rows.extend([
        row!("/spec/repository/workBranch" = "" => "spec.repository.workBranch", "at least 1 chars"),
        row!("/spec/repository/workBranch" = ("b".repeat(239)) => "spec.repository.workBranch", "Too long"),
        row!("/spec/repository/workBranch" = "main" => "spec.repository.workBranch", "must differ from spec.repository.branch"),
        row!("/spec/repository/workBranch" = "main", "/spec/repository/branch" = null => "spec.repository.workBranch", "must differ from the base branch main"),
        row!("/spec/repository/workBranch" = "main/x" => "spec.repository.workBranch", "cannot both exist in git"),
        row!("/spec/repository/workBranch" = "release", "/spec/repository/branch" = "release/1" => "spec.repository.workBranch", "cannot both exist in git"),
    ]);
    rows
}

fn prompts() -> Vec<Row> {
    vec![
        row!("/spec/prompt" = null => "spec.prompt", "Required"),
        row!("/spec/prompt" = "" => "spec.prompt", "at least 1 chars"),
        row!("/spec/prompt" = " \n\t " => "spec.prompt", "has no text"),
        row!("/spec/prompt" = ("x".repeat(65_537)) => "spec.prompt", "Too long"),
        row!("/spec/prompt" = ("ü".repeat(32_769)) => "spec.prompt", "longer than 64 KiB"),
        row!("/spec/prompt" = "a\u{0}b" => "spec.prompt", "NUL"),
        row!("/spec/prompt" = ["a"] => "spec.prompt", "must be of type string"),
    ]
}

fn secrets() -> Vec<Row> {
    vec![
        row!("/spec/anthropicApiKeyRef" = null => "spec.anthropicApiKeyRef", "Required"),
        row!("/spec/anthropicApiKeyRef" = "sk-ant-1" => "spec.anthropicApiKeyRef", "must be of type object"),
        row!("/spec/anthropicApiKeyRef/name" = "Upper_Case" => "spec.anthropicApiKeyRef.name", "must be the name of a Secret"),
        row!("/spec/anthropicApiKeyRef/name" = "a..b" => "spec.anthropicApiKeyRef.name", "must be the name of a Secret"),
        row!("/spec/anthropicApiKeyRef/key" = "" => "spec.anthropicApiKeyRef.key", "at least 1 chars"),
        row!("/spec/gitCredentialsRef" = null => "spec.gitCredentialsRef", "Required"),
        row!("/spec/gitCredentialsRef/name" = "other/secret" => "spec.gitCredentialsRef.name", "must be the name of a Secret"),
        row!("/spec/gitCredentialsRef/key" = "a/b" => "spec.gitCredentialsRef.key", "must be a key of the Secret"),
        row!("/spec/gitCredentialsRef/key" = ".." => "spec.gitCredentialsRef.key", "must be a key of the Secret"),
        row!("/spec/imagePullSecrets" = [{"name": "a"}, {"name": "a"}] => "spec.imagePullSecrets[1]", "Duplicate"),
        row!("/spec/imagePullSecrets" = [{"name": "A"}] => "spec.imagePullSecrets[0].name", "must be the name of a Secret"),
        row!("/spec/imagePullSecrets" = (json!((0..9).map(|n| json!({"name": format!("s{n}")})).collect::<Vec<_>>())) => "spec.imagePullSecrets", "must have at most 8 items"),
    ]
}

fn durations() -> Vec<Row> {
    const WORDS: &str = "must be a duration of whole hours, minutes and seconds between 1s and";
    let mut rows = each(
        "/spec/stepTimeout",
        [
            "1y",
            "1d",
            "1M",
            "-5m",
            "",
            "0",
            "0s",
            "0h0m0s",
            "5",
            "1.5h",
            "500ms",
            "30m1h",
            "1h 30m",
            "01:30:00",
            "PT30M",
            "30 minutes",
            "200h",
            "169h",
            "99999999s",
        ],
        "spec.stepTimeout",
        WORDS,
    );
    rows.extend(each(
        "/spec/taskTimeout",
        ["1y", "-5m", "", "0s", "721h", "1M", "01:30:00"],
        "spec.taskTimeout",
        WORDS,
    ));
    rows.extend([
        row!("/spec/stepTimeout" = "999999999999999999999h" => "spec.stepTimeout", "Too long"),
        row!("/spec/stepTimeout" = 30 => "spec.stepTimeout", "must be of type string"),
        row!("/spec/taskTimeout" = ["1h"] => "spec.taskTimeout", "must be of type string"),
    ]);
    rows
}

fn quantities() -> Vec<Row> {
    const QUANTITY: &str = "must be a Kubernetes quantity greater than zero and below 1P";
    let mut rows = each(
        "/spec/resources/cpu",
        [
            "abc",
            "0",
            "-1",
            "Gi",
            "1e400",
            "",
            "1 Gi",
            "1,5",
            "four",
            "0x10",
            "NaN",
            "1000000000000000000000000000000",
        ],
        "spec.resources.cpu",
        QUANTITY,
    );
    rows.extend([
        row!("/spec/resources/cpu" = 0 => "spec.resources.cpu", "must be a Kubernetes quantity greater than zero"),
        row!("/spec/resources/cpu" = (-1) => "spec.resources.cpu", "must be a Kubernetes quantity greater than zero"),
        row!("/spec/resources/cpu" = 1.5 => "spec.resources.cpu", "must be of type integer,string"),
        row!("/spec/resources/cpu" = 1e30 => "spec.resources.cpu", "spec.resources.cpu"),
        row!("/spec/resources/cpu" = "0.5m" => "spec.resources.cpu", "must be between 10m"),
        row!("/spec/resources/cpu" = 4000 => "spec.resources.cpu", "must be between 10m"),
        row!("/spec/resources/cpu" = ("1".repeat(33)) => "spec.resources.cpu", "Too long"),
        row!("/spec/resources/memory" = 8 => "spec.resources.memory", "a number alone counts bytes"),
        row!("/spec/resources/memory" = "400m" => "spec.resources.memory", "must be between 64Mi"),
        row!("/spec/resources/memory" = "8GB" => "spec.resources.memory", "must be a Kubernetes quantity"),
        row!("/spec/resources/memory" = "1000000000000E" => "spec.resources.memory", "must be a Kubernetes quantity"),
        row!("/spec/resources/storage" = "20" => "spec.resources.storage", "a number alone counts bytes"),
        row!("/spec/resources/storage" = "Gi" => "spec.resources.storage", "must be a Kubernetes quantity"),
        row!("/spec/resources/storage" = true => "spec.resources.storage", "must be of type integer,string"),
        row!("/spec/resources" = {"gpu": 1} => "spec.resources.gpu", "unknown field"),
        row!("/spec/budget/maxCostUSD" = "NaN" => "spec.budget.maxCostUSD", "must be a Kubernetes quantity"),
        row!("/spec/budget/maxCostUSD" = "inf" => "spec.budget.maxCostUSD", "must be a Kubernetes quantity"),
        row!("/spec/budget/maxCostUSD" = "-2" => "spec.budget.maxCostUSD", "must be a Kubernetes quantity"),
        row!("/spec/budget/maxCostUSD" = 0 => "spec.budget.maxCostUSD", "must be a Kubernetes quantity"),
        row!("/spec/budget/maxCostUSD" = "$5" => "spec.budget.maxCostUSD", "must be a Kubernetes quantity"),
        row!("/spec/budget/maxCostUSD" = "1e30" => "spec.budget.maxCostUSD", "must be a Kubernetes quantity"),
        row!("/spec/budget/maxCostUSD" = "0.5m" => "spec.budget.maxCostUSD", "must be between 1m"),
        row!("/spec/budget/maxCostUSD" = "2M" => "spec.budget.maxCostUSD", "must be between 1m"),
        row!("/spec/budget/maxCostUSD" = 2.5 => "spec.budget.maxCostUSD", "must be of type integer,string"),
    ]);
    rows
}

fn numbers() -> Vec<Row> {
    vec![
        row!("/spec/maxRetries" = (-1) => "spec.maxRetries", "greater than or equal to 0"),
        row!("/spec/maxRetries" = 21 => "spec.maxRetries", "less than or equal to 20"),
        row!("/spec/maxRetries" = 1_000_000_000 => "spec.maxRetries", "less than or equal to 20"),
        row!("/spec/maxRetries" = 9_223_372_036_854_775_807_i64 => "spec.maxRetries", "less than or equal to 20"),
        row!("/spec/maxRetries" = "three" => "spec.maxRetries", "must be of type integer"),
        row!("/spec/maxRetries" = 1.5 => "spec.maxRetries", "must be of type integer"),
        row!("/spec/budget/maxTokens" = 0 => "spec.budget.maxTokens", "greater than or equal to 1"),
        row!("/spec/budget/maxTokens" = (-1) => "spec.budget.maxTokens", "greater than or equal to 1"),
        row!("/spec/budget/maxTokens" = "1000" => "spec.budget.maxTokens", "must be of type integer"),
        row!("/spec/budget/maxTokens" = 9_223_372_036_854_775_807_i64 => "spec.budget.maxTokens", "less than or equal to"),
        row!("/spec/budget/onExceeded" = "Shrug" => "spec.budget.onExceeded", "supported values"),
        row!("/spec/suspend" = "yes" => "spec.suspend", "must be of type boolean"),
        row!("/spec/model/maxTurns" = 0 => "spec.model.maxTurns", "greater than or equal to 1"),
        row!("/spec/model/planMaxTurns" = 10_001 => "spec.model.planMaxTurns", "less than or equal to 10000"),
        row!("/spec/model/plan" = "" => "spec.model.plan", "at least 1 chars"),
        row!("/spec/model/default" = "--dangerous" => "spec.model.default", "must be a model name"),
        row!("/spec/model/implement" = "a b" => "spec.model.implement", "must be a model name"),
        row!("/spec/model/pullRequest" = "a\nb" => "spec.model.pullRequest", "must be a model name"),
        row!("/spec/model/test" = ("m".repeat(129)) => "spec.model.test", "Too long"),
        row!("/spec/model" = "opus" => "spec.model", "must be of type object"),
    ]
}

fn programs() -> Vec<Row> {
    let mut rows = each(
        "/spec/agentImage",
        [
            " ubuntu",
            "https://ghcr.io/o/i",
            "ghcr.io/Owner/Image",
            "-x",
            "a:b:c",
            "image:",
            "image@sha256:12",
            "a b",
        ],
        "spec.agentImage",
        "must be an image reference",
    );
    rows.extend([
        row!("/spec/agentImage" = "" => "spec.agentImage", "at least 1 chars"),
        row!("/spec/agentImage" = ("i".repeat(513)) => "spec.agentImage", "Too long"),
        row!("/spec/agent" = {} => "spec.agent.type", "Required"),
        row!("/spec/agent" = {"type": "Robot"} => "spec.agent.type", "supported values"),
        row!("/spec/agent" = {"type": "Command"} => "spec.agent", "Command needs spec.agent.command"),
        row!("/spec/agent" = {"type": "ClaudeCode", "command": ["x"]} => "spec.agent", "spec.agent.command is only for"),
        row!("/spec/agent" = {"type": "Command", "command": []} => "spec.agent.command", "at least 1 items"),
        row!("/spec/agent" = {"type": "Command", "command": [""]} => "spec.agent.command", "must begin with a program"),
        row!("/spec/agent" = {"type": "Command", "command": ["sh", "a\u{0}b"]} => "spec.agent.command", "no NUL characters"),
        row!("/spec/agent" = {"type": "Command", "command": "make"} => "spec.agent.command", "must be of type array"),
        row!("/spec/agent" = {"type": "Command", "command": (vec!["x"; 65])} => "spec.agent.command", "must have at most 64 items"),
        row!("/spec/test" = {"onUnverifiable": "Maybe"} => "spec.test.onUnverifiable", "supported values"),
        row!("/spec/test" = {"command": []} => "spec.test.command", "at least 1 items"),
        row!("/spec/test" = {"command": [""]} => "spec.test.command", "must begin with a program"),
        row!("/spec/test" = {"command": ["a\u{0}"]} => "spec.test.command", "no NUL characters"),
        row!("/spec/test" = {"command": ["sh", ("x".repeat(16_385))]} => "spec.test.command[1]", "Too long"),
        row!("/spec/test" = {"command": [1]} => "spec.test.command[0]", "must be of type string"),
    ]);
    rows
}

fn placement() -> Vec<Row> {
    let labels: serde_json::Map<String, Value> =
        (0..33).map(|n| (format!("k{n}"), json!("v"))).collect();
    let mut rows = each(
        "/spec/nodeSelector",
        [
            json!({"": "v"}),
            json!({"-a": "v"}),
            json!({"a b": "v"}),
            json!({"UPPER.example/a": "v"}),
            json!({"a/b/c": "v"}),
            json!({("k".repeat(64)): "v"}),
            json!({"disk": "s s d"}),
            json!({"disk": "-ssd"}),
        ],
        "spec.nodeSelector",
        "has a key or value that no label can have",
    );
    rows.extend([
        row!("/spec/nodeSelector" = labels => "spec.nodeSelector", "must have at most 32 items"),
        row!("/spec/nodeSelector" = {"disk": ("v".repeat(64))} => "spec.nodeSelector.disk", "Too long"),
        row!("/spec/nodeSelector" = {"disk": true} => "spec.nodeSelector.disk", "must be of type string"),
        row!("/spec/nodeSelector" = ["disk=ssd"] => "spec.nodeSelector", "must be of type object"),
        row!("/spec/tolerations" = [{"key": "a", "operator": "Perhaps"}] => "spec.tolerations[0].operator", "supported values"),
        row!("/spec/tolerations" = [{"key": "a", "effect": "Never"}] => "spec.tolerations[0].effect", "supported values"),
        row!("/spec/tolerations" = [{"key": "a", "operator": "Exists", "value": "v"}] => "spec.tolerations[0]", "must have no value with operator Exists"),
        row!("/spec/tolerations" = [{"operator": "Equal", "value": "v"}] => "spec.tolerations[0]", "must name the key of a taint"),
        row!("/spec/tolerations" = [{"key": "a", "tolerationSeconds": 5}] => "spec.tolerations[0]", "must have effect NoExecute"),
        row!("/spec/tolerations" = [{"key": "a", "effect": "NoExecute", "tolerationSeconds": 1_000_000_000}] => "spec.tolerations[0].tolerationSeconds", "less than or equal to"),
        row!("/spec/tolerations" = [{"key": "a b"}] => "spec.tolerations[0].key", "must be the key of a taint"),
        row!("/spec/tolerations" = [{"key": "a", "value": "b c"}] => "spec.tolerations[0].value", "must be the value of a taint"),
        row!("/spec/tolerations" = (json!(vec![json!({"key": "a"}); 33])) => "spec.tolerations", "must have at most 32 items"),
        row!("/spec/sandbox" = {"egressPolicy": "None"} => "spec.sandbox.egressPolicy", "supported values"),
        row!("/spec/sandbox" = {"runtimeClassName": "gVisor_1"} => "spec.sandbox.runtimeClassName", "must be the name of a RuntimeClass"),
        row!("/spec/sandbox" = {"requirePidsLimit": 100} => "spec.sandbox.requirePidsLimit", "must be of type boolean"),
    ]);
    rows
}

fn hosts() -> Vec<Row> {
    let many: Vec<_> = (0..65).map(|n| format!("h{n}.example")).collect();
    let mut rows = each(
        "/spec/sandbox/allowedHosts",
        [
            "*.example.com",
            "https://x.example",
            "x.example/path",
            "UPPER.example",
            "a b",
            "a..example",
            "10.0.0.1",
            "127.1",
            "0x7f.1",
            "[::1]",
            "10.0.0.0/8",
            "x.example:99999",
            "x.example:",
            "user@x.example",
        ]
        .map(|host| json!([host])),
        "spec.sandbox.allowedHosts",
        "takes host names in lower case",
    );
    rows.extend(each(
        "/spec/sandbox/allowedHosts",
        ["github.com", "github.com:443", "api.anthropic.com", "api.anthropic.com:443"]
            .map(|host| json!([host])),
        "spec.sandbox.allowedHosts",
        "must not name the host of spec.repository.url or of the model",
    ));
    rows.extend([
        row!("/spec/sandbox/allowedHosts" = ["a.example", "a.example"] => "spec.sandbox.allowedHosts[1]", "Duplicate"),
        row!("/spec/sandbox/allowedHosts" = [""] => "spec.sandbox.allowedHosts[0]", "at least 1 chars"),
        row!("/spec/sandbox/allowedHosts" = many => "spec.sandbox.allowedHosts", "must have at most 64 items"),
    ]);
    rows
}

fn unknown_fields() -> Vec<Row> {
    vec![
        row!("/spec/promt" = "x" => "spec.promt", "unknown field"),
        row!("/spec/repository/depth" = 1 => "spec.repository.depth", "unknown field"),
        row!("/spec/agent" = {"type": "ClaudeCode", "env": {}} => "spec.agent.env", "unknown field"),
        row!("/sepc" = {} => "sepc", "unknown field"),
    ]
}
