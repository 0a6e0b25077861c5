//! What runs in a pod: a double of agent-runner and of the agent, which does what a script says.

use std::{net::IpAddr, sync::Arc, time::Duration};

use agent_operator::{
    attempt::{ENV_TOKEN, StepResult, StopOrder},
    domain::{Reason, RunKey, StepName, Usage, limits::GRACE, report::StepFacts},
};
use agent_operator_doubles::history::Fact;
use agent_operator_supervisor::link::contract::{DurableEvent, Grant};
use serde_json::Value;
use tokio::{sync::watch, time::Instant};

use super::{
    gateway::{Denied, Gateway, Opening},
    world::World,
};

/// How long the runner asks a gateway that does not answer.
const ASKING: Duration = Duration::from_mins(1);
/// Pause between two questions.
const PACE: Duration = Duration::from_millis(250);
/// Pause between two tries to write upstream: whoever comes first behind a permission gets through.
const EAGER: Duration = Duration::from_millis(5);
/// Exit code of a runner that was told to stop.
const STOPPED: i32 = 143;
/// Exit code of one that dies by itself.
const DIED: i32 = 1;
/// Exit code of a killed one.
const KILLED: i32 = 137;

/// How a step goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Script {
    /// It ends for this reason, with a report.
    Report(Reason),
    /// The runner dies without a word.
    Die,
    /// It goes on until somebody stops it.
    Hang,
}

fn script(world: &World, step: StepName) -> Script {
    let chaos = world.faults().chaos > 0;
    let pick = world.rng().u32(0..100);
    match pick {
        0..=3 if chaos => Script::Die,
        4..=6 if chaos => Script::Hang,
        7..=10 if chaos => Script::Report(Reason::ProviderUnavailable),
        11..=13 if chaos => Script::Report(Reason::AgentFailed),
        14..=33 if chaos && step == StepName::Test => Script::Report(Reason::VerifyFailed),
        _ => Script::Report(Reason::Completed),
    }
}

/// Why a step ended early.
enum Early {
    /// The gateway ordered it.
    Ordered(StopOrder),
    /// The kubelet asks for the end.
    Asked,
    /// The gateway wants nothing of it.
    Refused,
    /// The step's time is over.
    Late,
    /// It ends by itself, without a word.
    Died,
}

struct Runner<'a> {
    world: &'a Arc<World>,
    gateway: Arc<Gateway>,
    run: RunKey,
    ip: IpAddr,
    asked: watch::Receiver<bool>,
    /// When the step's time is over; none before the gate is open.
    deadline: Option<Instant>,
}

/// Runs to the end; the exit code of PID 1.
pub async fn run(
    world: &Arc<World>,
    node: &str,
    pod: &Value,
    ip: &str,
    asked: watch::Receiver<bool>,
) -> i32 {
    let gateway = Arc::clone(&world.gateways[node]);
    let ip: IpAddr = ip.parse().unwrap();
    let env = pod["spec"]["containers"][0]["env"].as_array().unwrap();
    let token = env.iter().find(|env| env["name"] == ENV_TOKEN).unwrap();
    let token = token["value"].as_str().unwrap();
    let nonce = pod["metadata"]["uid"].as_str().unwrap();
    let mut killed = asked.clone();
    let work = async {
        let redeemed = ask(|| gateway.redeem(token, nonce, ip)).await;
        let Ok(run) = redeemed else { return 1 };
        let gateway = Arc::clone(&gateway);
        let mut runner = Runner { world, gateway, run, ip, asked, deadline: None };
        runner.step().await
    };
    let grace_over = async {
        let _ = killed.wait_for(|asked| *asked).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    tokio::select! {
        code = work => code,
        () = grace_over => KILLED,
    }
}

/// Repeats a question while the gateway does not know yet.
async fn ask<T>(mut question: impl FnMut() -> Result<T, Denied>) -> Result<T, Denied> {
    let end = Instant::now() + ASKING;
    loop {
        match question() {
            Err(Denied::Again) if Instant::now() < end => tokio::time::sleep(PACE).await,
            other => return other,
        }
    }
}

impl Runner<'_> {
    async fn step(&mut self) -> i32 {
        match self.work().await {
            Ok(result) => self.end(result).await,
            Err(Early::Ordered(order)) => {
                self.end(plain(order.reason, &order.message, STOPPED)).await
            }
            Err(Early::Asked) => {
                self.end(plain(Reason::Disrupted, "stopped from outside", STOPPED)).await
            }
            Err(Early::Late) => self.end(plain(Reason::TimedOut, "out of time", STOPPED)).await,
            Err(Early::Refused) => STOPPED,
            Err(Early::Died) => DIED,
        }
    }

    /// Looks whether the step has to end early.
    fn look(&self, deadline: Option<Instant>) -> Result<(), Early> {
        if *self.asked.borrow() {
            return Err(Early::Asked);
        }
        if let Some(order) = self.gateway.stop(&self.run) {
            return Err(Early::Ordered(order));
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(Early::Late);
        }
        Ok(())
    }

    async fn sleep(&self, deadline: Option<Instant>) -> Result<(), Early> {
        tokio::time::sleep(PACE).await;
        self.look(deadline)
    }

    async fn work(&mut self) -> Result<StepResult, Early> {
        let Opening { deadline, gone } = loop {
            match ask(|| self.gateway.gate(&self.run, self.ip)).await {
                Ok(Some(opening)) => break opening,
                Ok(None) => self.sleep(None).await?,
                Err(_) => return Err(Early::Refused),
            }
        };
        self.deadline = Some(deadline);
        self.world.tell(Fact::Opened { run: self.run.uid.to_string(), gone });
        let grant = loop {
            match self.gateway.writer(&self.run) {
                Ok(grant) => break grant,
                Err(Denied::Refused) => return Err(Early::Refused),
                Err(Denied::Again) => self.sleep(Some(deadline)).await?,
            }
        };
        let step = grant.assignment.step;
        let script = script(self.world, step);
        let seen = self.world.forge.tip(grant.assignment.task.name.as_str());
        let long = script == Script::Hang;
        let until = Instant::now() + self.world.between(200, 12_000);
        while long || Instant::now() < until {
            self.sleep(Some(deadline)).await?;
        }
        match script {
            Script::Hang | Script::Die => Err(Early::Died),
            Script::Report(Reason::Completed) => self.complete(&grant, seen, deadline).await,
            Script::Report(reason) => {
                let mut result = plain(reason, "so the script says", 1);
                result.facts.output = Some(format!("output of {step}"));
                Ok(result)
            }
        }
    }

    /// Does upstream what the step is for. Only with the permission to write.
    async fn complete(
        &self,
        grant: &Grant,
        seen: Option<String>,
        deadline: Instant,
    ) -> Result<StepResult, Early> {
        let assignment = &grant.assignment;
        let task = assignment.task.name.as_str();
        let mut facts = StepFacts {
            output: Some(format!("output of {}", assignment.step)),
            base_commit: Some("b".repeat(40)),
            command: (assignment.step == StepName::Test).then(|| vec!["make".to_owned()]),
            ..StepFacts::default()
        };
        if matches!(assignment.step, StepName::Implement | StepName::PullRequest) {
            while self.gateway.writer(&self.run).is_err() {
                tokio::time::sleep(EAGER).await;
                self.look(Some(deadline))?;
            }
        }
        match assignment.step {
            StepName::Implement => {
                let commit = format!("{:040x}", u128::from(assignment.attempt.0) + 1);
                if !self.world.forge.publish(task, seen.as_ref(), &commit) {
                    return Ok(plain(Reason::PushRefused, "the branch has moved", 1));
                }
                self.world.tell(Fact::Published { run: self.run.uid.to_string() });
                let work_branch = assignment.repository.work_branch.clone();
                facts.work_branch = Some(work_branch.clone());
                facts.head_commit = Some(commit.clone());
                self.kept(deadline, || {
                    let (work_branch, head_commit) = (work_branch.clone(), commit.clone());
                    self.gateway
                        .tell(&self.run, DurableEvent::Published { work_branch, head_commit })
                })
                .await;
            }
            StepName::PullRequest => {
                let (request, fresh) = self.world.forge.pull_request(task);
                if fresh {
                    let number = request.number;
                    self.world.tell(Fact::PullRequest { task: task.to_owned(), number });
                }
                facts.pull_request = Some(request.clone());
                self.kept(deadline, || {
                    self.gateway.tell(&self.run, DurableEvent::PullRequestOpened(request.clone()))
                })
                .await;
            }
            _ => {}
        }
        Ok(StepResult { facts, ..plain(Reason::Completed, "done", 0) })
    }

    /// Reports, and ends with the same code.
    async fn end(&self, result: StepResult) -> i32 {
        let exit_code = result.exit_code;
        let say = || {
            let told = self.gateway.result(&self.run, result.clone());
            if told.is_ok() {
                self.world.tell(Fact::Reported { run: self.run.uid.to_string(), exit_code });
            }
            told
        };
        let until = self.deadline.map_or_else(|| Instant::now() + ASKING, |end| end + GRACE);
        self.kept(until, say).await;
        exit_code
    }

    /// Says something until it is on the supervisor's disk, or nobody wants to hear it.
    async fn kept(&self, until: Instant, say: impl Fn() -> Result<u64, Denied>) {
        let mut id = None;
        while Instant::now() < until {
            match id {
                Some(id) if self.gateway.is_kept(id) => return,
                Some(id) if self.gateway.is_present(id) => {}
                _ => match say() {
                    Ok(number) => {
                        id = Some(number);
                        continue;
                    }
                    Err(Denied::Refused) => return,
                    Err(Denied::Again) => {}
                },
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn plain(reason: Reason, message: &str, exit_code: i32) -> StepResult {
    StepResult {
        reason,
        message: message.to_owned(),
        start_fault: None,
        exit_code,
        facts: StepFacts::default(),
        reported_usage: Usage::default(),
        events: 0,
        printed: None,
    }
}
