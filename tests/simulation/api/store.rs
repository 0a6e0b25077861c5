//! The objects, and the log of their changes that watches and stale reads are served from.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{kinds::Kind, patch};

/// Where an object is: plural, namespace (empty for the cluster's), name.
pub type Key = (&'static str, String, String);

/// An answer that is not what was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP code.
    pub code: u16,
    /// Kubernetes' word.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into() }
    }

    fn conflict(message: impl Into<String>) -> Self {
        Self::new(409, "Conflict", message)
    }

    fn invalid(message: impl Into<String>) -> Self {
        Self::new(422, "Invalid", message)
    }

    fn not_found(key: &Key) -> Self {
        Self::new(404, "NotFound", format!("{} \"{}\" not found", key.0, key.2))
    }
}

/// One change of one object.
#[derive(Clone, Debug)]
pub struct Change {
    /// The version that it made.
    pub version: u64,
    /// The object's place.
    pub key: Key,
    /// As it was; none: it was made.
    pub before: Option<Value>,
    /// As it is; none: it is gone.
    pub after: Option<Value>,
}

/// A write before it takes effect.
#[derive(Clone, Copy, Debug)]
pub struct Admission<'a> {
    /// The resource.
    pub kind: &'static Kind,
    /// As it is; none for a creation.
    pub before: Option<&'a Value>,
    /// As it shall be.
    pub after: &'a Value,
}

/// Refuses writes: schema rules, admission policies, quotas.
pub type Rule = Box<dyn Fn(Admission<'_>) -> Result<(), Refusal> + Send>;

/// What a deletion demands.
#[derive(Clone, Debug, Default)]
pub struct Deletion {
    /// The object must have this uid.
    pub uid: Option<String>,
    /// The object must have this version.
    pub version: Option<String>,
    /// Seconds for the containers of a pod.
    pub grace: Option<i64>,
}

/// All objects.
pub struct Store {
    objects: BTreeMap<Key, Value>,
    /// What each manager applied last, by object and whether it was the status.
    applied: BTreeMap<(Key, String, bool), Value>,
    log: Vec<Change>,
    version: u64,
    compacted: u64,
    made: u64,
    clock: fn() -> Timestamp,
    rules: Vec<Rule>,
}

impl Store {
    /// An empty store.
    pub fn new(clock: fn() -> Timestamp) -> Self {
        Self {
            objects: BTreeMap::new(),
            applied: BTreeMap::new(),
            log: Vec::new(),
            version: 1,
            compacted: 0,
            made: 0,
            clock,
            rules: Vec::new(),
        }
    }

    /// Adds a rule that writes are held to.
    pub fn rule(&mut self, rule: Rule) {
        self.rules.push(rule);
    }

    /// The present version.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Forgets the log up to the present: who watches from before is told that it is too late.
    pub fn compact(&mut self) {
        self.compacted = self.version;
    }

    /// Whether a watch from `version` on can no longer be served.
    pub fn is_too_old(&self, version: u64) -> bool {
        version < self.compacted
    }

    /// What has changed since `version`.
    pub fn since(&self, version: u64) -> &[Change] {
        let from = self.log.partition_point(|change| change.version <= version);
        &self.log[from..]
    }

    /// An object.
    pub fn get(&self, key: &Key) -> Option<&Value> {
        self.objects.get(key)
    }

    /// All objects of a resource, by namespace and name.
    pub fn all<'a>(&'a self, kind: &'static Kind) -> impl Iterator<Item = &'a Value> + 'a {
        let of_kind = |(key, _): &(&Key, &Value)| key.0 == kind.plural;
        self.objects.iter().filter(of_kind).map(|(_, object)| object)
    }

    /// The same as they were at `version`.
    pub fn all_at(&self, kind: &'static Kind, version: u64) -> Vec<Value> {
        let mut then: BTreeMap<&Key, Option<&Value>> =
            self.objects.iter().map(|(key, object)| (key, Some(object))).collect();
        for change in self.since(version).iter().rev() {
            then.insert(&change.key, change.before.as_ref());
        }
        let of_kind = then.into_iter().filter(|(key, _)| key.0 == kind.plural);
        of_kind.filter_map(|(_, object)| object.cloned()).collect()
    }

    fn now(&self) -> String {
        (self.clock)().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    }

    fn admit(&self, admission: Admission<'_>) -> Result<(), Refusal> {
        self.rules.iter().try_for_each(|rule| rule(admission))
    }

    /// Makes an object.
    pub fn create(
        &mut self,
        kind: &'static Kind,
        namespace: Option<&str>,
        mut object: Value,
    ) -> Result<Value, Refusal> {
        self.made += 1;
        let meta = &mut object["metadata"];
        if meta["resourceVersion"].as_str().is_some_and(|version| !version.is_empty()) {
            let message = "resourceVersion should not be set on objects to be created";
            return Err(Refusal::new(400, "BadRequest", message));
        }
        if let (None, Some(prefix)) = (meta["name"].as_str(), meta["generateName"].as_str()) {
            meta["name"] = json!(format!("{prefix}{:05x}", self.made));
        }
        let name = meta["name"].as_str().unwrap_or_default().to_owned();
        if name.is_empty() {
            return Err(Refusal::invalid("name or generateName is required"));
        }
        let key = (kind.plural, namespace.unwrap_or_default().to_owned(), name);
        if let Some(namespace) = namespace {
            self.check_namespace(namespace)?;
            meta["namespace"] = json!(namespace);
        }
        if self.objects.contains_key(&key) {
            let message = format!("{} \"{}\" already exists", kind.qualified(), key.2);
            return Err(Refusal::new(409, "AlreadyExists", message));
        }
        meta["uid"] = json!(format!("00000000-0000-4000-8000-{:012x}", self.made));
        meta["creationTimestamp"] = json!(self.now());
        if kind.custom {
            meta["generation"] = json!(1);
        }
        object["apiVersion"] = json!(kind.api_version());
        object["kind"] = json!(kind.kind);
        let fields = object.as_object_mut().expect("an object of Kubernetes");
        if kind.status && kind.plural != "nodes" {
            fields.remove("status");
        }
        if kind.plural == "namespaces" {
            // A controller of the cluster takes it away once the namespace is empty.
            fields.insert("spec".to_owned(), json!({"finalizers": ["kubernetes"]}));
        }
        if kind.plural == "pods" {
            fields
                .insert("status".to_owned(), json!({"phase": "Pending", "qosClass": "Burstable"}));
        }
        self.admit(Admission { kind, before: None, after: &object })?;
        Ok(self.put(key, None, object))
    }

    fn check_namespace(&self, namespace: &str) -> Result<(), Refusal> {
        let key = ("namespaces", String::new(), namespace.to_owned());
        let found = self.objects.get(&key).ok_or_else(|| Refusal::not_found(&key))?;
        if found["metadata"]["deletionTimestamp"].is_string() {
            let message = format!("namespace {namespace} is being terminated");
            return Err(Refusal::new(403, "Forbidden", message));
        }
        Ok(())
    }

    /// Patches an object by RFC 7396.
    pub fn merge(
        &mut self,
        kind: &'static Kind,
        key: &Key,
        change: &Value,
        status: bool,
    ) -> Result<Value, Refusal> {
        self.patched(kind, key, status, |object| patch::merge(object, change))
    }

    /// Patches an object by the strategy of its lists.
    pub fn strategic(
        &mut self,
        kind: &'static Kind,
        key: &Key,
        change: &Value,
        status: bool,
    ) -> Result<Value, Refusal> {
        self.patched(kind, key, status, |object| patch::strategic(object, change))
    }

    fn patched(
        &mut self,
        kind: &'static Kind,
        key: &Key,
        status: bool,
        patch: impl FnOnce(&mut Value),
    ) -> Result<Value, Refusal> {
        let before = self.objects.get(key).cloned().ok_or_else(|| Refusal::not_found(key))?;
        let mut after = before.clone();
        patch(&mut after);
        self.update(kind, key, before, after, status)
    }

    /// Applies fields for `manager`. Makes the object where there is none.
    pub fn apply(
        &mut self,
        kind: &'static Kind,
        key: &Key,
        fields: &Value,
        manager: &str,
        status: bool,
    ) -> Result<Value, Refusal> {
        let place = (key.clone(), manager.to_owned(), status);
        let Some(before) = self.objects.get(key).cloned() else {
            if status {
                return Err(Refusal::not_found(key));
            }
            if fields["metadata"]["uid"].is_string() {
                let message = "Precondition failed: UID in precondition, UID in object meta: ";
                return Err(Refusal::conflict(message));
            }
            let namespace = Some(key.1.as_str()).filter(|namespace| !namespace.is_empty());
            let made = self.create(kind, namespace, fields.clone())?;
            self.applied.insert(place, fields.clone());
            return Ok(made);
        };
        let owned = self.applied.get(&place).cloned().unwrap_or(Value::Null);
        let mut after = before.clone();
        patch::apply(&mut after, &without_identity(&owned), &without_identity(fields));
        for field in ["uid", "resourceVersion"] {
            if let Some(demanded) = fields["metadata"].get(field) {
                after["metadata"][field] = demanded.clone();
            }
        }
        let written = self.update(kind, key, before, after, status)?;
        self.applied.insert(place, fields.clone());
        Ok(written)
    }

    /// Writes `after` in the place of `before`, as far as the subresource allows.
    fn update(
        &mut self,
        kind: &'static Kind,
        key: &Key,
        before: Value,
        mut after: Value,
        status: bool,
    ) -> Result<Value, Refusal> {
        let qualified = kind.qualified();
        let (old, new) = (&before["metadata"], &after["metadata"]);
        if new["resourceVersion"] != old["resourceVersion"] {
            let message = format!(
                "Operation cannot be fulfilled on {qualified} \"{}\": the object has been modified; please apply your changes to the latest version and try again",
                key.2
            );
            return Err(Refusal::conflict(message));
        }
        // Of a status only the version counts: the rest of its metadata is dropped first.
        if new["uid"] != old["uid"] && !status {
            let message =
                format!("{qualified} \"{}\" is invalid: metadata.uid is immutable", key.2);
            return Err(Refusal::invalid(message));
        }
        if kind.status && status {
            let written = after.get("status").cloned();
            after = before.clone();
            set(&mut after, "status", written);
        } else if kind.status && kind.plural != "nodes" {
            set(&mut after, "status", before.get("status").cloned());
        }
        for field in
            ["creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"]
        {
            set(&mut after["metadata"], field, before["metadata"].get(field).cloned());
        }
        if after["metadata"]["finalizers"].as_array().is_some_and(Vec::is_empty) {
            set(&mut after["metadata"], "finalizers", None);
        }
        if after == before {
            return Ok(before);
        }
        if kind.custom && after["spec"] != before["spec"] {
            let generation = before["metadata"]["generation"].as_i64().unwrap_or(0);
            after["metadata"]["generation"] = json!(generation + 1);
        }
        self.admit(Admission { kind, before: Some(&before), after: &after })?;
        Ok(self.put(key.clone(), Some(before), after))
    }

    /// Orders or carries out a deletion; the object as it last was.
    pub fn delete(
        &mut self,
        kind: &'static Kind,
        key: &Key,
        deletion: &Deletion,
    ) -> Result<Value, Refusal> {
        let before = self.objects.get(key).cloned().ok_or_else(|| Refusal::not_found(key))?;
        let meta = &before["metadata"];
        for (what, field, demanded) in [
            ("UID", "uid", &deletion.uid),
            ("ResourceVersion", "resourceVersion", &deletion.version),
        ] {
            if let Some(demanded) = demanded
                && meta[field] != **demanded
            {
                let message = format!(
                    "Operation cannot be fulfilled on {} \"{}\": the {what} in the precondition ({demanded}) does not match the {what} in record ({}).",
                    kind.qualified(),
                    key.2,
                    meta[field]
                );
                return Err(Refusal::conflict(message));
            }
        }
        let graceful = kind.plural == "pods" && before["spec"]["nodeName"].is_string();
        let default = before["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
        let grace = if graceful { deletion.grace.unwrap_or(default) } else { 0 };
        let mut after = before.clone();
        let present = meta["deletionGracePeriodSeconds"].as_i64();
        let grace = present.map_or(grace, |present| present.min(grace));
        if !meta["deletionTimestamp"].is_string() {
            after["metadata"]["deletionTimestamp"] = json!(self.now());
        }
        after["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        if after == before {
            return Ok(before);
        }
        Ok(self.put(key.clone(), Some(before), after))
    }

    /// Stores an object under a new version, or takes it away if nothing holds it any more.
    fn put(&mut self, key: Key, before: Option<Value>, mut after: Value) -> Value {
        self.version += 1;
        after["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let meta = &after["metadata"];
        let gone = meta["deletionTimestamp"].is_string()
            && meta["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
            && meta["finalizers"].as_array().is_none_or(Vec::is_empty)
            && after["spec"]["finalizers"].as_array().is_none_or(Vec::is_empty);
        let change = Change {
            version: self.version,
            key: key.clone(),
            before,
            after: (!gone).then(|| after.clone()),
        };
        self.log.push(change);
        if gone {
            self.applied.retain(|(of, _, _), _| *of != key);
            self.objects.remove(&key);
        } else {
            self.objects.insert(key, after.clone());
        }
        after
    }
}

fn set(object: &mut Value, field: &str, value: Option<Value>) {
    let Some(fields) = object.as_object_mut() else { return };
    match value {
        Some(value) => fields.insert(field.to_owned(), value),
        None => fields.remove(field),
    };
}

/// What an owner applies besides naming the object.
fn without_identity(fields: &Value) -> Value {
    let mut fields = fields.clone();
    if let Some(meta) = fields["metadata"].as_object_mut() {
        for field in ["name", "namespace", "uid", "resourceVersion", "managedFields"] {
            meta.remove(field);
        }
    }
    fields
}
