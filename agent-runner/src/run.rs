//! The life of PID 1: gate, step, result.

use std::{
    collections::BTreeMap, env, ffi::OsString, io, path::Path, sync::Arc, thread, time::Duration,
};

use agent_operator::{
    attempt::{ENV_GATEWAY, ENV_TOKEN, Orders, Redeemed, StepSpec},
    domain::{StartFault, limits::GRACE},
};
use anyhow::Context as _;
use nix::sys::prctl;

use crate::{
    attempt::{Client, patiently},
    clock,
    confine::probe::{self, Reached},
    context::{Context, Layout},
    deadline::{self, LAST_WORDS},
    events::Events,
    gate, image,
    output::Printer,
    process::{Ownership, Processes},
    result::{Failure, StepEnd},
    signals, steps,
    stop::{Stop, Stopping},
};

/// How long the last events and lines may take. Readers miss them otherwise; the result waits.
const FLUSH_LIMIT: Duration = Duration::from_secs(3);
/// How long the result is sent again when the step failed before its deadline was known.
const EARLY_RESULT_LIMIT: Duration = Duration::from_mins(1);
/// Shortest wait for the answer to a result: one try is worth while also at the very end, and fits into
/// what [`LAST_WORDS`] leave.
const ANSWER_LIMIT_MIN: Duration = Duration::from_millis(100);

/// The parts that live as long as the process.
struct Runner {
    layout: Layout,
    reached: Reached,
    gateway: String,
    stop: Arc<Stop>,
    processes: Arc<Processes>,
    printer: Printer,
    events: Arc<Events>,
    image_environment: BTreeMap<String, OsString>,
}

/// Runs the step that the environment names; returns the exit code.
pub(crate) fn run(layout: Layout) -> anyhow::Result<i32> {
    // First of all: nothing of the sandbox may ever look into this process.
    prctl::set_dumpable(false).context("cannot become undumpable")?;
    // Orphans of the agent come here also where this is not PID 1.
    prctl::set_child_subreaper(true).context("cannot become a reaper")?;
    let descriptor = signals::open().context("cannot take signals")?;
    let gateway = env::var(ENV_GATEWAY).with_context(|| format!("{ENV_GATEWAY} is not set"))?;
    let token = env::var(ENV_TOKEN).with_context(|| format!("{ENV_TOKEN} is not set"))?;
    let own_binary = env::current_exe().context("cannot find this program's own file")?;
    let stop = Arc::<Stop>::default();
    let ownership = Ownership::detect();
    // Before the signals' thread: it reaps what `Processes` has not started, this child too, and then
    // nobody would learn what the probe found.
    let reached = probe::ask(&own_binary, &layout.writable());
    let processes = Processes::new(own_binary, layout.writable(), ownership, Arc::clone(&stop));
    let processes = Arc::new(processes);
    signals::start(descriptor, Arc::clone(&processes), Arc::clone(&stop), GRACE);
    let (printer, _) = Printer::start(io::stdout());
    let image_environment = env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
        .collect();
    let events = Arc::<Events>::default();
    let runner =
        Runner { layout, reached, gateway, stop, processes, printer, events, image_environment };
    let code = runner.attempt(&token);
    runner.printer.flush(FLUSH_LIMIT);
    Ok(code)
}

impl Runner {
    fn attempt(&self, one_time_token: &str) -> i32 {
        let client = Client::new(&self.gateway);
        let redeemed = gate::redeem(&client.with_token(one_time_token), &self.stop);
        let Redeemed { runner_token, agent_token } = match redeemed {
            Ok(redeemed) => redeemed,
            // Without a token there is nobody to report to: the exit code alone speaks.
            Err(failure) => return self.say_end(&failure.into()),
        };
        let client = client.with_token(&runner_token);
        let mut result_until = clock::boot_now() + EARLY_RESULT_LIMIT;
        let end = match self.begin(&client) {
            Ok((spec, deadline)) => {
                result_until = deadline + Duration::from_secs(spec.grace_seconds);
                self.step(&client, &spec, &agent_token)
            }
            Err(failure) => StepEnd::from(failure).stopped_by(self.stop.order()),
        };
        self.stop.decide(end.exit_code);
        self.processes.kill_everything();
        let code = self.say_end(&end);
        self.report(&client, end, result_until);
        code
    }

    /// From the specification to the open gate and the running deadline.
    fn begin(&self, client: &Client) -> Result<(StepSpec, Duration), Failure> {
        let spec = gate::fetch_step(client, &self.stop)?;
        let path = self.image_environment.get("PATH").map(OsString::as_os_str);
        if let Some(words) = image::lacks(Path::new("/"), path, &spec.agent) {
            return Err(Failure::unstarted(StartFault::ImageNotRunnable, words));
        }
        self.printer.print(&format!("[{}] waiting at the start gate", spec.step));
        self.poll_orders(client.clone());
        let remaining = gate::pass(client, self.reached, spec.canary, &self.stop)?;
        let deadline = clock::boot_now() + remaining;
        let grace = Duration::from_secs(spec.grace_seconds);
        deadline::start(Arc::clone(&self.stop), deadline, grace);
        // What a pod that was made ahead works on is known now.
        let spec = if spec.held { gate::fetch_step(client, &self.stop)? } else { spec };
        let (events, client) = (Arc::clone(&self.events), client.clone());
        thread::spawn(move || {
            events.send_all(|request| client.post("/v1/events", request, gate::ANSWER_LIMIT));
        });
        Ok((spec, deadline))
    }

    fn step(&self, client: &Client, spec: &StepSpec, agent_token: &str) -> StepEnd {
        let context = Context {
            spec,
            layout: &self.layout,
            gateway: &self.gateway,
            agent_token,
            client,
            processes: &self.processes,
            stop: &self.stop,
            printer: &self.printer,
            events: &self.events,
            image_environment: &self.image_environment,
        };
        steps::run(&context)
    }

    /// Waits for orders, for as long as the process lives.
    fn poll_orders(&self, client: Client) {
        let stop = Arc::clone(&self.stop);
        thread::spawn(move || {
            while stop.order().is_none() {
                let asked = patiently(&stop, Duration::MAX, || {
                    client.get::<Orders>("/v1/orders", gate::POLL_LIMIT)
                });
                match asked {
                    Ok(Orders { stop: Some(order) }) => {
                        let grace = Duration::from_millis(order.grace_millis);
                        let kill_at = clock::boot_now() + grace;
                        let (reason, message) = (order.reason, order.message);
                        deadline::order(&stop, Stopping { reason, message, kill_at });
                    }
                    Ok(Orders { stop: None }) => {}
                    // Refused for good: the grant has ended, and the node stops the pod itself.
                    Err(_) => return,
                }
            }
        });
    }

    fn say_end(&self, end: &StepEnd) -> i32 {
        self.printer.print(&format!("[runner] {}: {}", end.reason, end.message));
        end.exit_code
    }

    /// Sends the result until the node has it. A stop order shortens the time for that.
    fn report(&self, client: &Client, end: StepEnd, until: Duration) {
        let until = match self.stop.order() {
            Some(stopping) => stopping.kill_at + LAST_WORDS / 2,
            None => until + LAST_WORDS / 2,
        };
        let now = clock::boot_now();
        self.events.flush(FLUSH_LIMIT.min(until.saturating_sub(now) / 2));
        let result = end.into_result(self.events.acknowledged(), self.printer.printed());
        let sent = patiently(&self.stop, until, || {
            client.post_only("/v1/result", &result, answer_limit(clock::boot_now(), until))
        });
        if let Err(error) = sent {
            self.printer.print(&format!("[runner] the result could not be delivered: {error}"));
        }
    }
}

/// How long an answer is waited for where `until` is the end: a call that outlasts it would be cut off
/// with the process, and the exit with it.
fn answer_limit(now: Duration, until: Duration) -> Duration {
    gate::ANSWER_LIMIT.min(until.saturating_sub(now)).max(ANSWER_LIMIT_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_not_waited_for_beyond_the_end() {
        let second = Duration::from_secs(1);
        assert_eq!(answer_limit(second, 100 * second), gate::ANSWER_LIMIT);
        assert_eq!(answer_limit(second, 3 * second), 2 * second);
        assert_eq!(answer_limit(3 * second, second), ANSWER_LIMIT_MIN);
    }
}
