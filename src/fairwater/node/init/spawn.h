/* How PID 1 begins a command: a fork that gives up every privilege it does not need, and says where it failed.
 *
 * What can block (changing the folder, opening the program) happens in the child: PID 1 only waits in poll for the
 * end of a pipe that the exec closes. */
#ifndef FAIRWATER_SPAWN_H
#define FAIRWATER_SPAWN_H

#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <termios.h>
#include <unistd.h>

#include "protocol.h"

/* A failure on the way to the command's first instruction. `error` 0 means none. */
struct outcome {
    int32_t error;
    uint32_t where;
};

struct spawned {
    pid_t pid;
    int outcome; /* the pipe: an `outcome`, or its end when the program was executed */
    int master;  /* of the terminal, or -1 */
};

/* What a child begins with: the terminal's two sides, where there is one, and the pipe for its outcome. */
struct start {
    struct command *command;
    const int *streams;
    int master, slave, report;
};

static int pts_folder = -1, dev_folder = -1; /* opened before any foreign process runs */

static void close_descriptor(int *descriptor) {
    if (*descriptor >= 0)
        close(*descriptor);
    *descriptor = -1;
}

static bool is_ptmx(int descriptor) {
    struct stat status;
    return !fstat(descriptor, &status) && S_ISCHR(status.st_mode) && status.st_rdev == makedev(5, 2);
}

/* Opens a terminal of the container's own devpts; 0 or an errno.
 * devpts has a `ptmx` that nobody can replace. /dev/ptmx could be replaced by root in the container, so it is
 * opened without waiting (it may be a FIFO) and looked at before it is used. The other side is had by ioctl: no path. */
static int open_terminal(const struct command *command, int *master, int *slave) {
    int flags = O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK, unlocked = 0;
    struct winsize size = {.ws_row = command->rows, .ws_col = command->columns};
    *master = openat(pts_folder, "ptmx", flags);
    if (*master < 0)
        *master = openat(dev_folder, "ptmx", flags);
    if (*master < 0)
        return errno;
    int error = is_ptmx(*master) ? 0 : ENODEV;
    if (!error && (ioctl(*master, TIOCSPTLCK, &unlocked) || ioctl(*master, TIOCSWINSZ, &size)))
        error = errno;
    if (!error && (*slave = ioctl(*master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC)) < 0)
        error = errno;
    if (error)
        close_descriptor(master);
    return error;
}

/* In the child: stdin, stdout and stderr, and `report` as the only other descriptor; 0 or an errno. */
static int take_streams(const struct command *command, const int streams[STREAMS], int slave, int *report) {
    if (command->terminal && command->uid && fchown(slave, command->uid, (gid_t)-1))
        return errno; /* else what opens the terminal by its name (`tmux`, `gpg`) would be refused */
    if (command->terminal && ioctl(slave, TIOCSCTTY, 0))
        return errno;
    for (int i = 0; i < STREAMS; i++)
        if (dup2(command->terminal ? slave : streams[i], i) < 0)
            return errno;
    if (*report != STREAMS && (dup2(*report, STREAMS) < 0))
        return errno;
    *report = STREAMS;
    if (syscall(SYS_close_range, STREAMS + 1, ~0U, 0)) /* older than Linux 5.9 */
        for (int i = STREAMS + 1; i < 4096; i++)
            close(i);
    return fcntl(*report, F_SETFD, FD_CLOEXEC) ? errno : 0;
}

/* In the child. With the memory limit reached, the kernel should take a command before it takes PID 1.
 * A process that is not dumpable may not write its own score. Nothing of PID 1's is open here any more, so for this
 * moment it may be looked at by root of the same container, whose process it is going to be. */
static void offer_to_oom_killer(void) {
    prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
    int file = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
    if (file >= 0) {
        ssize_t written = write(file, "300", 3);
        (void)written; /* refused where the score is higher already */
        close(file);
    }
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
}

/* In the child: becomes the user, and checks that it did; 0 or an errno. */
static int become_user(const struct command *command) {
    uid_t uids[3];
    gid_t gids[3];
    if (setgroups(command->group_count, command->groups) ||
        setresgid(command->gid, command->gid, command->gid) || setresuid(command->uid, command->uid, command->uid) ||
        getresuid(&uids[0], &uids[1], &uids[2]) || getresgid(&gids[0], &gids[1], &gids[2]))
        return errno;
    for (int i = 0; i < 3; i++)
        if (uids[i] != command->uid || gids[i] != command->gid)
            return EPERM;
    if (getgroups(0, NULL) != (int)command->group_count)
        return EPERM;
    if (command->uid) { /* what setresuid has cleared, and the inheritable set, which it has not */
        struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
        struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {{0}};
        if (syscall(SYS_capset, &header, none))
            return errno;
    }
    return 0;
}

/* In the child: becomes the command. */
static _Noreturn void run_command(struct start start) {
    struct outcome outcome = {.where = AT_TERMINAL};
    struct command *command = start.command;
    sigset_t none;
    sigemptyset(&none);
    setsid();
    outcome.error = take_streams(command, start.streams, start.slave, &start.report);
    if (!outcome.error) {
        offer_to_oom_killer();
        outcome.where = AT_USER;
        outcome.error = become_user(command);
    }
    if (!outcome.error) { /* as the user: whether the folder may be entered is the user's matter */
        outcome.where = AT_CHDIR;
        outcome.error = chdir(command->folder) ? errno : 0;
    }
    if (!outcome.error) {
        sigprocmask(SIG_SETMASK, &none, NULL);
        environ = command->variables; /* execvpe searches the PATH of this one */
        execvpe(command->arguments[0], command->arguments, command->variables);
        outcome.where = AT_EXEC;
        outcome.error = errno;
    }
    ssize_t written = write(start.report, &outcome, sizeof outcome);
    (void)written;
    _exit(127);
}

/* Forks a child that runs `body`; its terminal stays the caller's, too. */
static struct outcome fork_child(void (*body)(struct start), struct start start, struct spawned *spawned) {
    struct outcome outcome = {.where = AT_FORK};
    int ends[2];
    *spawned = (struct spawned){.outcome = -1, .master = start.master};
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK)) {
        outcome.error = errno;
        return outcome;
    }
    start.report = ends[1];
    spawned->pid = fork();
    if (spawned->pid == 0) {
        body(start);
        _exit(127);
    }
    outcome.error = spawned->pid < 0 ? errno : 0;
    close(ends[1]);
    spawned->outcome = ends[0];
    if (outcome.error)
        close_descriptor(&spawned->outcome);
    return outcome;
}

/* Begins a command: `body` becomes it, or keeps it. `streams` stay open and are the caller's. */
static struct outcome spawn(void (*body)(struct start), struct command *command, const int streams[],
                            struct spawned *spawned) {
    struct outcome outcome = {.where = AT_TERMINAL};
    struct start start = {.command = command, .streams = streams, .master = -1, .slave = -1};
    if (command->terminal)
        outcome.error = open_terminal(command, &start.master, &start.slave);
    if (outcome.error)
        return outcome;
    outcome = fork_child(body, start, spawned);
    close_descriptor(&start.slave);
    if (outcome.error)
        close_descriptor(&spawned->master);
    return outcome;
}

#endif
