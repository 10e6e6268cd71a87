//! A filter that refuses system calls which no daemon of ours makes (seccomp(2)), for this thread
//! and all that it starts.
//!
//! It lists what is refused, not what is permitted. The C library, Python and their updates make
//! other calls from one release to the next, and a tunnel that stops after an update is the worse
//! fault. A refused call gets EPERM; the process isn't killed.

use std::collections::BTreeMap;
use std::io;

use libc::{EPERM, c_long};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Other programs.
const EXEC: &[c_long] = &[libc::SYS_execve, libc::SYS_execveat];
/// Other processes' memory, and what debuggers and profilers use.
const DEBUG: &[c_long] = &[
    libc::SYS_kcmp,
    libc::SYS_perf_event_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_process_madvise,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_userfaultfd,
];
/// Mounts, roots, namespaces, swap and quotas.
const MOUNT: &[c_long] = &[
    libc::SYS_acct,
    libc::SYS_chroot,
    libc::SYS_fanotify_init,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_mknodat,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_pivot_root,
    libc::SYS_quotactl,
    libc::SYS_setns,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_umount2,
    libc::SYS_unshare,
];
/// The kernel itself, its clocks, its keys and the machine's names.
const KERNEL: &[c_long] = &[
    libc::SYS_add_key,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_personality,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_settimeofday,
    libc::SYS_syslog,
    libc::SYS_vhangup,
];
/// Being another user.
const IDENTITY: &[c_long] = &[
    libc::SYS_capset,
    libc::SYS_setfsgid,
    libc::SYS_setfsuid,
    libc::SYS_setgid,
    libc::SYS_setgroups,
    libc::SYS_setregid,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
    libc::SYS_setreuid,
    libc::SYS_setuid,
];
/// Modes, owners and attributes of files, which Landlock doesn't cover.
const MODES: &[c_long] = &[
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    FCHMODAT2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fremovexattr,
    libc::SYS_fsetxattr,
    libc::SYS_lremovexattr,
    libc::SYS_lsetxattr,
    libc::SYS_removexattr,
    libc::SYS_setxattr,
    SETXATTRAT,
    REMOVEXATTRAT,
    FILE_SETATTR,
];
/// Linux 6.6, 6.13 and 6.17: the same numbers on every processor. libc doesn't have them on each.
const FCHMODAT2: c_long = 452;
const SETXATTRAT: c_long = 463;
const REMOVEXATTRAT: c_long = 466;
const FILE_SETATTR: c_long = 469;
/// Those that only this processor has.
#[cfg(target_arch = "x86_64")]
const OLD_MODES: &[c_long] = &[libc::SYS_chmod, libc::SYS_chown, libc::SYS_lchown];
#[cfg(not(target_arch = "x86_64"))]
const OLD_MODES: &[c_long] = &[];
/// What only this processor has.
#[cfg(target_arch = "x86_64")]
const PROCESSOR: &[c_long] =
    &[libc::SYS_ioperm, libc::SYS_iopl, libc::SYS_mknod, libc::SYS_modify_ldt, libc::SYS_uselib];
#[cfg(not(target_arch = "x86_64"))]
const PROCESSOR: &[c_long] = &[];
/// Needed for `--uring`.
const URING: &[c_long] = &[libc::SYS_io_uring_enter, libc::SYS_io_uring_register, libc::SYS_io_uring_setup];
/// Families of sockets that are used; AF_XDP only for `--xdp`.
const FAMILIES: &[i32] = &[libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
/// Flags of clone(2) that make a namespace.
const NAMESPACES: &[i32] = &[
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWUTS,
];

/// Refuse the system calls of the list from now on, for good.
///
/// Return their number. The caller has set `no_new_privs` or has CAP_SYS_ADMIN. With `modes`, modes
/// and owners of files stay as they are.
///
/// # Errors
/// The kernel has no filters, or refuses this one; or there are none for this processor.
pub fn refuse(uring: bool, xdp: bool, modes: bool) -> io::Result<usize> {
    let rules = rules(uring, xdp, modes).map_err(io::Error::other)?;
    let number = rules.len() + 1;
    let mut program = compile(rules, EPERM)?;
    if cfg!(target_arch = "x86_64") {
        program.splice(0..0, refuse_x32());
    }
    install(&program)?;
    // What clone3(2) is asked for is in memory that a filter can't read. Without it, the C library
    // uses clone(2).
    let clone3 = Rules::from([(libc::SYS_clone3, Vec::new())]);
    install(&compile(clone3, libc::ENOSYS)?)?;
    Ok(number)
}

fn rules(uring: bool, xdp: bool, modes: bool) -> Result<Rules, seccompiler::BackendError> {
    let mut lists = vec![EXEC, DEBUG, MOUNT, KERNEL, IDENTITY, PROCESSOR];
    if !uring {
        lists.push(URING);
    }
    if modes {
        lists.extend([MODES, OLD_MODES]);
    }
    let mut rules: Rules = lists.concat().into_iter().map(|call| (call, Vec::new())).collect();
    let mut families = FAMILIES.to_vec();
    if xdp {
        families.push(libc::AF_XDP);
    } else {
        rules.insert(libc::SYS_bpf, Vec::new());
    }
    // All conditions of a rule have to hold, and one rule of a call.
    let others =
        families.into_iter().map(|family| first_argument(SeccompCmpOp::Ne, family)).collect::<Result<_, _>>()?;
    rules.insert(libc::SYS_socket, vec![SeccompRule::new(others)?]);
    let namespaces = NAMESPACES
        .iter()
        .map(|&flag| {
            let flag_is_set = SeccompCmpOp::MaskedEq(u64::from(flag as u32));
            SeccompRule::new(vec![first_argument(flag_is_set, flag)?])
        })
        .collect::<Result<_, _>>()?;
    rules.insert(libc::SYS_clone, namespaces);
    Ok(rules)
}

fn first_argument(operator: SeccompCmpOp, value: i32) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(0, SeccompCmpArgLen::Dword, operator, u64::from(value as u32))
}

fn compile(rules: Rules, number: i32) -> io::Result<BpfProgram> {
    let processor = TargetArch::try_from(std::env::consts::ARCH).map_err(io::Error::other)?;
    SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(number as u32), processor)
        .and_then(BpfProgram::try_from)
        .map_err(io::Error::other)
}

/// Return instructions that refuse every call of the x32 ABI, which has numbers of its own for the
/// same calls. They stand before a filter.
fn refuse_x32() -> [sock_filter; 3] {
    let instruction = |code: u32, jf, k| sock_filter { code: code as u16, jt: 0, jf, k };
    [
        // The number of the call is the first word of struct seccomp_data.
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        // asm/unistd.h: __X32_SYSCALL_BIT
        instruction(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 1, 0x4000_0000),
        instruction(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ERRNO | EPERM as u32),
    ]
}

/// Install a filter. Unlike seccompiler's own function, leave the processor's speculation as it is:
/// before Linux 5.16 a filter switched it off otherwise, for the threads that move packets too.
fn install(program: &BpfProgram) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(io::Error::other)?,
        filter: program.as_ptr().cast_mut().cast(),
    };
    // SAFETY: the kernel copies the program, whose instructions have the layout of linux/filter.h
    // in both crates, and writes nothing.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
            &raw const program,
        )
    };
    if result == 0 {
        return Ok(());
    }
    let refusal = io::Error::last_os_error();
    if !matches!(refusal.raw_os_error(), Some(EPERM | libc::ENOSYS)) {
        return Err(refusal);
    }
    // The filter of our systemd unit has prctl(2), which does the same without the flag, and not
    // always seccomp(2): systemd 252 doesn't list it among the calls of services.
    // SAFETY: as above.
    let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    if result == 0 { Ok(()) } else { Err(refusal) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_fits_into_the_kernels_limit_with_every_option() {
        for (uring, xdp) in [(false, false), (true, false), (false, true), (true, true)] {
            let rules = rules(uring, xdp, true).unwrap();
            assert_eq!(rules.contains_key(&libc::SYS_bpf), !xdp);
            assert_eq!(rules.contains_key(&libc::SYS_io_uring_setup), !uring);
            let program = compile(rules, EPERM).unwrap();
            assert!(program.len() + refuse_x32().len() <= 4096);
        }
    }

    #[test]
    fn no_call_is_listed_twice() {
        let listed = [EXEC, DEBUG, MOUNT, KERNEL, IDENTITY, PROCESSOR, URING, MODES, OLD_MODES].concat();
        let all: std::collections::BTreeSet<_> = listed.iter().collect();
        assert_eq!(all.len(), listed.len());
    }
}
