//! A filter of system calls: what acts on other processes, or takes from all of the node, fails with EPERM. The
//! runner has the same user as its children, so the kernel's own rules do not keep them apart.
//!
//! On `x86_64` a kernel may know every call by a second number, that of the x32 ABI, which the filter's architecture
//! does not tell apart. No agent image needs one, so they are refused as a whole, before the list is looked at.

use std::{collections::BTreeMap, env::consts::ARCH};

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};

use super::ConfineError;

/// Calls that only debuggers and attackers need.
const NEVER: [libc::c_long; 7] = [
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_process_madvise,
    libc::SYS_process_mrelease,
];
/// Calls that take from one number for the whole node, which no limit of a pod covers.
const FROM_ALL: [libc::c_long; 1] = [libc::SYS_io_setup];
/// Calls whose first argument names a process, and 0 the caller's own. A thread that names itself by
/// number is refused too: the filter cannot tell it from a thread of the runner.
const ONLY_ON_ITSELF: [libc::c_long; 7] = [
    libc::SYS_prlimit64,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_setattr,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setscheduler,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
];
/// Calls whose first argument names who gets a signal, or a handle to send some by. Landlock keeps signals in where the
/// kernel has it; gVisor has none, and lets a container end its own PID 1.
const NOT_ON_PID_1: [libc::c_long; 6] = [
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_tgkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_pidfd_open,
];
/// agent-runner, in its pod.
const PID_1: u64 = 1;
/// `which` of `setpriority(2)` that means: all processes of a user.
const PRIO_USER: u64 = 2;
/// `which` of `ioprio_set(2)` that means the same.
const IOPRIO_WHO_USER: u64 = 3;

/// From here on `x86_64` has the numbers of x32; its own stay far below.
const X32: u32 = 0x4000_0000;
/// Instructions of the kernel's packet filter, as far as the library does not write them: load a word of the call,
/// jump if it is at least, answer.
const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const JUMP_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const ANSWER: u16 = 0x06; // BPF_RET | BPF_K
/// Where the call's number stands in what the filter is shown.
const NUMBER: u32 = 0;

/// Installs the filter for this process and its children to come.
pub(super) fn restrict() -> Result<(), ConfineError> {
    let failed = |error: String| ConfineError::Syscalls(error);
    let program = program().map_err(|error| failed(error.to_string()))?;
    seccompiler::apply_filter(&program).map_err(|error| failed(error.to_string()))
}

fn program() -> Result<BpfProgram, seccompiler::BackendError> {
    let names_another = |argument| condition(argument, SeccompCmpOp::Ne, 0);
    let mut rules = BTreeMap::<i64, Vec<SeccompRule>>::new();
    for call in NEVER.into_iter().chain(FROM_ALL) {
        rules.insert(call, Vec::new());
    }
    for call in ONLY_ON_ITSELF {
        rules.insert(call, vec![SeccompRule::new(vec![names_another(0)?])?]);
    }
    for call in NOT_ON_PID_1 {
        let on_pid_1 = condition(0, SeccompCmpOp::Eq, PID_1)?;
        rules.insert(call, vec![SeccompRule::new(vec![on_pid_1])?]);
    }
    for (call, user) in
        [(libc::SYS_setpriority, PRIO_USER), (libc::SYS_ioprio_set, IOPRIO_WHO_USER)]
    {
        let of_user = condition(0, SeccompCmpOp::Eq, user)?;
        let of_another = names_another(1)?;
        rules.insert(
            call,
            vec![SeccompRule::new(vec![of_user])?, SeccompRule::new(vec![of_another])?],
        );
    }
    let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let arch = TargetArch::try_from(ARCH)?;
    let listed = SeccompFilter::new(rules, SeccompAction::Allow, refused.clone(), arch)?;
    let listed: BpfProgram = listed.try_into()?;
    let first = if arch == TargetArch::x86_64 { no_x32(refused) } else { BpfProgram::new() };
    Ok([first, listed].concat())
}

/// Refuses every number of x32, and goes on for others.
fn no_x32(refused: SeccompAction) -> BpfProgram {
    let instruction = |code, jf, k| sock_filter { code, jt: 0, jf, k };
    vec![
        instruction(LOAD, 0, NUMBER),
        instruction(JUMP_AT_LEAST, 1, X32),
        instruction(ANSWER, 0, refused.into()),
    ]
}

fn condition(
    argument: u8,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition, seccompiler::BackendError> {
    // Process numbers and these constants have 32 bits; the kernel ignores what stands above.
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
}

#[cfg(test)]
mod tests {
    use std::{fs, thread};

    use nix::{errno::Errno, sys::signal::kill, unistd::Pid};

    use super::*;

    #[test]
    fn pid_1_gets_no_signal_and_the_own_process_does() {
        // A filter is the thread's own.
        let tried = thread::spawn(|| {
            restrict().unwrap();
            (kill(Pid::from_raw(1), None), kill(Pid::this(), None), fs::metadata("/").is_ok())
        });
        assert_eq!(tried.join().unwrap(), (Err(Errno::EPERM), Ok(()), true));
    }

    /// What the kernel would do about a call with this number and only zeros as arguments.
    fn answer(program: &[sock_filter], number: u32) -> u32 {
        let architecture = 0xc000_003e;
        let (mut loaded, mut at) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            let holds = match code {
                LOAD => {
                    // The number, the architecture, and then the caller's address and the arguments.
                    loaded = [number, architecture].get(k as usize / 4).copied().unwrap_or(0);
                    at += 1;
                    continue;
                }
                0x05 => {
                    at += 1 + k as usize;
                    continue;
                }
                0x54 => {
                    loaded &= k;
                    at += 1;
                    continue;
                }
                0x15 => loaded == k,
                0x25 => loaded > k,
                JUMP_AT_LEAST => loaded >= k,
                ANSWER => return k,
                other => panic!("{other:#x} is not used by the filter"),
            };
            at += 1 + usize::from(if holds { jt } else { jf });
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn what_is_refused_is_refused_by_its_number_of_x32_too_and_so_is_every_other_call() {
        let program = program().unwrap();
        let refused = u32::from(SeccompAction::Errno(libc::EPERM.unsigned_abs()));
        let allowed = u32::from(SeccompAction::Allow);
        let listed = NEVER.into_iter().chain(FROM_ALL).map(|call| u32::try_from(call).unwrap());
        for call in listed {
            assert_eq!(answer(&program, call), refused, "{call}");
            assert_eq!(answer(&program, call | X32), refused, "{call} of x32");
        }
        // x32 has some calls under numbers of its own: 521 is ptrace, 539 process_vm_readv.
        for call in [libc::SYS_read, libc::SYS_getpid, 521, 539, 546] {
            let call = u32::try_from(call).unwrap();
            assert_eq!(answer(&program, call | X32), refused, "{call} of x32");
        }
        for call in [libc::SYS_read, libc::SYS_getpid, libc::SYS_kill, libc::SYS_prlimit64] {
            assert_eq!(answer(&program, u32::try_from(call).unwrap()), allowed, "{call}");
        }
    }
}
