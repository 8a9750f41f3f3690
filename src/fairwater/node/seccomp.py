"""The system calls that a workspace may make: a list of what is allowed; all else fails.

Calls that the list does not know fail with ENOSYS, so that programs fall back to older ones; calls that are known
and kept out fail with EPERM. Kept out: what reaches the kernel's own configuration, other namespaces, mounts, keys,
tracing of the kernel, and `io_uring`, `userfaultfd` and BPF, which the kernel's holes favour.
"""

from __future__ import annotations

from typing import Any

ENOSYS, EPERM = 38, 1
_CLONE_NAMESPACES = 0x7E020000
"""CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET"""
_LOW_32_BITS = 0xFFFFFFFF
_SOCKET_FAMILIES = (1, 2, 10, 16)
"""AF_UNIX, AF_INET, AF_INET6, AF_NETLINK. Above all not AF_VSOCK, which reaches the hypervisor's host past every rule
of the network, nor AF_ALG."""

_FILES = """access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2
fadvise64 fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync
fgetxattr flistxattr flock fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64
futimesat getcwd getdents getdents64 getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch
fanotify_mark ioctl lchown lchown32 lgetxattr link linkat listxattr listxattrat llistxattr lremovexattr lseek _llseek
lsetxattr lstat lstat64 mkdir mkdirat mknod mknodat newfstatat open openat openat2 pipe pipe2 pread64 preadv preadv2
pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv removexattr removexattrat rename renameat renameat2
rmdir sendfile sendfile64 setxattr setxattrat splice stat stat64 statfs statfs64 statx symlink symlinkat sync
sync_file_range syncfs tee truncate truncate64 umask unlink unlinkat ustat utime utimensat utimensat_time64 utimes
vmsplice write writev cachestat file_getattr file_setattr name_to_handle_at chroot"""
_MEMORY = """brk madvise map_shadow_stack membarrier memfd_create mincore mlock mlock2 mlockall mmap mmap2 mprotect
mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect process_madvise remap_file_pages
memfd_secret get_mempolicy mbind set_mempolicy set_mempolicy_home_node"""
_PROCESSES = """capget capset execve execveat exit exit_group fork getegid getegid32 geteuid geteuid32 getgid getgid32
getgroups getgroups32 getpgid getpgrp getpid getppid getpriority getresgid getresgid32 getresuid getresuid32 getrlimit
getrusage getsid gettid getuid getuid32 ioprio_get ioprio_set kill landlock_add_rule landlock_create_ruleset
landlock_restrict_self pidfd_getfd pidfd_open pidfd_send_signal prctl arch_prctl prlimit64 process_mrelease
process_vm_readv process_vm_writev ptrace rseq sched_get_priority_max sched_get_priority_min sched_getaffinity
sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity
sched_setattr sched_setparam sched_setscheduler sched_yield seccomp set_robust_list get_robust_list set_tid_address
setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setpgid setpriority setregid setregid32
setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid setuid setuid32 tgkill tkill uname
vfork wait4 waitid waitpid getcpu kcmp"""
_SIGNALS = """pause restart_syscall rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn
rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaltstack signalfd signalfd4 sigreturn"""
_TIME = """alarm clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64
getitimer gettimeofday nanosleep setitimer time timer_create timer_delete timer_getoverrun timer_gettime
timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime
timerfd_settime64 times adjtimex clock_adjtime clock_adjtime64"""
_WAITING = """epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old
eventfd eventfd2 futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake poll ppoll ppoll_time64 pselect6
pselect6_time64 select _newselect io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup
io_submit"""
_SOCKETS = """accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg
recvmmsg_time64 recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketpair"""
_IPC = """ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64
mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget"""
_MACHINE = """getrandom sysinfo modify_ldt set_thread_area get_thread_area lsm_get_self_attr lsm_list_modules sysfs"""

_REFUSED = """acct add_key bpf clock_settime clock_settime64 create_module delete_module fanotify_init finit_module
fsconfig fsmount fsopen fspick get_kernel_syms init_module io_uring_enter io_uring_register io_uring_setup ioperm iopl
kexec_file_load kexec_load keyctl lookup_dcookie mount mount_setattr move_mount move_pages migrate_pages nfsservctl
open_by_handle_at open_tree open_tree_attr perf_event_open pivot_root query_module quotactl quotactl_fd reboot
request_key setdomainname sethostname setns settimeofday stime swapoff swapon syslog umount umount2 unshare
userfaultfd uselib vhangup vm86 vm86old"""

REFUSED = sorted(_REFUSED.split())

ALLOWED = sorted(
    set(" ".join((_FILES, _MEMORY, _PROCESSES, _SIGNALS, _TIME, _WAITING, _SOCKETS, _IPC, _MACHINE)).split())
)


_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0x40000, 0xFFFFFFFF)
"""Those that programs really ask for: native, 32 bits, no address randomisation, and the question what is set."""


def profile() -> dict[str, Any]:
    """The profile as `linux.seccomp` of an OCI runtime configuration."""
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": ENOSYS,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
        "syscalls": [
            {"names": ALLOWED, "action": "SCMP_ACT_ALLOW"},
            {"names": REFUSED, "action": "SCMP_ACT_ERRNO", "errnoRet": EPERM},
            # A new process, but no new namespace. clone3 hides its flags behind a pointer, so it is not there at all
            # and the C library falls back to clone.
            _allow("clone", 0, "SCMP_CMP_MASKED_EQ", _CLONE_NAMESPACES, 0),
            # Compared in 32 bits, as the kernel reads it: with a higher bit set, a family would pass for another.
            *(_allow("socket", 0, "SCMP_CMP_MASKED_EQ", _LOW_32_BITS, family) for family in _SOCKET_FAMILIES),
            *(_allow("personality", 0, "SCMP_CMP_EQ", value) for value in _PERSONALITIES),
        ],
    }


def _allow(name: str, index: int, op: str, value: int, value_two: int = 0) -> dict[str, Any]:
    argument = {"index": index, "value": value, "valueTwo": value_two, "op": op}
    return {"names": [name], "action": "SCMP_ACT_ALLOW", "args": [argument]}
