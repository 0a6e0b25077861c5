//! A hostile agent on real nodes (`tests/run hostile`): every attack of `tests/hostile/attacks.list` is
//! first shown to succeed in a pod without our walls, and then tried from inside the steps of a task.
//! Beside it: canaries are searched for wherever they could have got to, pods by the hundred try to reach
//! out with their first instruction, each refusal is looked for wherever it is told, and steps take more than
//! they were given while a neighbour works and witnesses watch. A step of another runtime sees another kernel.

mod attacks;
mod canaries;
mod control;
pub(crate) mod haystacks;
mod judge;
mod limits;
mod list;
mod parameters;
mod place;
mod promises;
mod refusals;
mod rig;
mod runtimes;
mod sink;
mod starts;
pub(crate) mod tokens;
mod trial;

/// One line for whoever watches the run.
fn say(line: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "hostile: {line}");
}
