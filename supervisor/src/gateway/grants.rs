//! What the supervisor registered, in memory: attempts by key, tokens by hash. Nothing in here
//! outlives the process; after a restart the supervisor registers every live attempt again.

pub mod attempt;
pub mod refusals;
pub mod tokens;

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use agent_operator::domain::RunKey;
use tokio::time::Instant;

pub use self::{
    attempt::Attempt,
    refusals::RefusalKind,
    tokens::{Minted, TokenHash, TokenKind},
};
use super::{args::Limits, metrics::Metrics};
use crate::link::contract::{Grant, Redemption};

/// Most attempts of one node: a kubelet runs 110 pods by default.
const ATTEMPTS_MAX: usize = 1024;

/// Why a redemption is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RedeemError {
    /// Another nonce or address has redeemed before.
    #[error("the token has been redeemed by somebody else")]
    Taken,
    /// The gate is open: whoever needed tokens has them.
    #[error("the step has started; its token can no longer be redeemed")]
    Started,
    /// Its caller has asked again since, and got tokens.
    #[error("a later call has redeemed the token")]
    Late,
}

/// Why the gate stays closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The attempt is not registered.
    #[error("the attempt is not known")]
    Unknown,
    /// Nobody has redeemed.
    #[error("the attempt's token has not been redeemed")]
    NotRedeemed,
    /// Somebody else than the pod has redeemed; the tokens are dead now.
    #[error("the token was redeemed from {redeemer}, but the pod has {pod}")]
    OtherAddress {
        /// Who redeemed.
        redeemer: IpAddr,
        /// The pod.
        pod: IpAddr,
    },
}

/// Who a token belongs to.
#[derive(Clone, Debug)]
pub enum Lookup {
    /// A live attempt.
    Found(Arc<Attempt>, TokenKind),
    /// Not known, but the supervisor has not registered everything yet.
    NotSynced,
    /// Not known.
    Unknown,
}

#[derive(Debug, Default)]
struct Table {
    attempts: HashMap<RunKey, Arc<Attempt>>,
    tokens: HashMap<TokenHash, (RunKey, TokenKind)>,
    /// Whether the supervisor has registered everything since its last Hello.
    synced: bool,
    /// Registered since the last Hello.
    seen: HashSet<RunKey>,
    /// The supervisor has lost its record of these and asks for ours.
    asked_about: HashSet<RunKey>,
}

/// All attempts of the node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Grants {
    table: Arc<Mutex<Table>>,
    limits: Arc<Limits>,
    metrics: Arc<Metrics>,
}

impl Grants {
    /// An empty table; refusals of all attempts are counted in `metrics`.
    pub fn new(limits: Limits, metrics: Arc<Metrics>) -> Self {
        Self { table: Arc::default(), limits: Arc::new(limits), metrics }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A supervisor has connected and starts to register.
    pub fn begin_sync(&self) {
        let mut table = self.table();
        table.synced = false;
        table.seen.clear();
        table.asked_about.clear();
    }

    /// Keeps an attempt that the supervisor asks about.
    pub fn keep(&self, key: &RunKey) {
        let mut table = self.table();
        table.seen.insert(key.clone());
        table.asked_about.insert(key.clone());
        // Nobody has judged yet whether it is still wanted.
        if let Some(attempt) = table.attempts.get(key) {
            attempt.claim().set(false);
        }
    }

    /// Takes the attempts that were asked about.
    pub fn asked_about(&self) -> Vec<Arc<Attempt>> {
        let mut table = self.table();
        let asked = std::mem::take(&mut table.asked_about);
        asked.iter().filter_map(|key| table.attempts.get(key).cloned()).collect()
    }

    /// Everything has been registered: drops and returns the attempts that were not named.
    pub fn synced(&self) -> Vec<Arc<Attempt>> {
        let mut table = self.table();
        table.synced = true;
        let seen = std::mem::take(&mut table.seen);
        let gone: Vec<RunKey> =
            table.attempts.keys().filter(|key| !seen.contains(*key)).cloned().collect();
        gone.iter().filter_map(|key| table.remove(key)).collect()
    }

    /// Whether the supervisor has registered everything since its last Hello.
    pub fn is_synced(&self) -> bool {
        self.table().synced
    }

    /// Makes an attempt known, or updates it. None when the table is full.
    pub fn register(&self, grant: Grant, now: Instant) -> Option<Arc<Attempt>> {
        let mut table = self.table();
        let key = grant.assignment.key();
        let known = table.attempts.get(&key).cloned();
        if known.is_none() && table.attempts.len() >= ATTEMPTS_MAX {
            return None;
        }
        table.seen.insert(key.clone());
        let one_time = TokenHash::from_hex(&grant.one_time_hash);
        table.tokens.insert(one_time, (key.clone(), TokenKind::OneTime));
        let attempt = if let Some(known) = known {
            known.update(&grant, now);
            known
        } else {
            let attempt =
                Arc::new(Attempt::new(grant, &self.limits, Arc::clone(&self.metrics), now));
            table.attempts.insert(key.clone(), Arc::clone(&attempt));
            attempt
        };
        let redemption = attempt.state().redemption.clone();
        if let Some(redemption) = redemption {
            let agent_lives = !attempt.agent_ended().is_cancelled();
            table.add_tokens(&key, &redemption, agent_lives);
        }
        Some(attempt)
    }

    /// The attempt with this key.
    pub fn get(&self, key: &RunKey) -> Option<Arc<Attempt>> {
        self.table().attempts.get(key).cloned()
    }

    /// All live attempts.
    pub fn live(&self) -> Vec<Arc<Attempt>> {
        self.table().attempts.values().cloned().collect()
    }

    /// The attempt whose pod has this address.
    pub fn at_address(&self, address: IpAddr) -> Option<Arc<Attempt>> {
        self.table().attempts.values().find(|known| known.address() == Some(address)).cloned()
    }

    /// Who a presented token belongs to.
    pub fn lookup(&self, token: &TokenHash) -> Lookup {
        let table = self.table();
        let Some((key, kind)) = table.tokens.get(token) else {
            return if table.synced { Lookup::Unknown } else { Lookup::NotSynced };
        };
        match table.attempts.get(key) {
            Some(attempt) => Lookup::Found(Arc::clone(attempt), *kind),
            None => Lookup::Unknown,
        }
    }

    /// Trades the one-time token: the same nonce from the same address may repeat it until the gate
    /// opens, and gets fresh tokens each time (the earlier ones are dead then). Calls are numbered by
    /// their caller: one that arrives behind a later one changes nothing.
    pub fn redeem(
        &self,
        attempt: &Attempt,
        (nonce, call): (&TokenHash, u32),
        address: IpAddr,
        minted: &Minted,
    ) -> Result<Redemption, RedeemError> {
        let mut table = self.table();
        let mut state = attempt.state();
        if state.spoiled {
            return Err(RedeemError::Taken);
        }
        if let Some(earlier) = &state.redemption {
            let same_nonce = TokenHash::from_hex(&earlier.nonce_hash).matches(nonce);
            if !same_nonce || earlier.pod_ip != address {
                return Err(RedeemError::Taken);
            }
            if call < state.redeemed_by_call {
                return Err(RedeemError::Late);
            }
        }
        if attempt.signal().borrow().open_until.is_some() {
            return Err(RedeemError::Started);
        }
        if let Some(earlier) = state.redemption.take() {
            table.drop_tokens(&earlier);
        }
        let redemption = Redemption {
            nonce_hash: nonce.as_str().to_owned(),
            pod_ip: address,
            runner_hash: TokenHash::of(&minted.runner).as_str().to_owned(),
            agent_hash: TokenHash::of(&minted.agent).as_str().to_owned(),
        };
        table.add_tokens(attempt.key(), &redemption, true);
        state.redemption = Some(redemption.clone());
        state.redeemed_by_call = call;
        Ok(redemption)
    }

    /// Opens the start gate, if the pod that it is opened for is the one that redeemed.
    pub fn open_gate(
        &self,
        key: &RunKey,
        pod: IpAddr,
        remaining_millis: u64,
        now: Instant,
    ) -> Result<(), OpenError> {
        let mut table = self.table();
        let attempt = table.attempts.get(key).cloned().ok_or(OpenError::Unknown)?;
        let mut state = attempt.state();
        let redeemer =
            state.redemption.as_ref().map(|known| known.pod_ip).ok_or(OpenError::NotRedeemed)?;
        let pod = pod.to_canonical();
        if redeemer != pod {
            state.spoiled = true;
            if let Some(redemption) = state.redemption.take() {
                table.drop_tokens(&redemption);
            }
            return Err(OpenError::OtherAddress { redeemer, pod });
        }
        drop(state);
        attempt.open(attempt::deadline(now, remaining_millis));
        Ok(())
    }

    /// The agent's token is dead at once; the runner's lives on.
    pub fn kill_agent_token(&self, attempt: &Attempt) {
        let mut table = self.table();
        if let Some(redemption) = &attempt.state().redemption {
            table.tokens.remove(&TokenHash::from_hex(&redemption.agent_hash));
        }
    }

    /// Ends an attempt: its tokens and credentials are gone after this.
    pub fn revoke(&self, key: &RunKey) -> Option<Arc<Attempt>> {
        self.table().remove(key)
    }
}

impl Table {
    fn add_tokens(&mut self, key: &RunKey, redemption: &Redemption, agent: bool) {
        let runner = TokenHash::from_hex(&redemption.runner_hash);
        self.tokens.insert(runner, (key.clone(), TokenKind::Runner));
        if agent {
            let agent = TokenHash::from_hex(&redemption.agent_hash);
            self.tokens.insert(agent, (key.clone(), TokenKind::Agent));
        }
    }

    fn drop_tokens(&mut self, redemption: &Redemption) {
        self.tokens.remove(&TokenHash::from_hex(&redemption.runner_hash));
        self.tokens.remove(&TokenHash::from_hex(&redemption.agent_hash));
    }

    fn remove(&mut self, key: &RunKey) -> Option<Arc<Attempt>> {
        let attempt = self.attempts.remove(key)?;
        self.tokens.retain(|_, (owner, _)| owner != key);
        attempt.end();
        Some(attempt)
    }
}
