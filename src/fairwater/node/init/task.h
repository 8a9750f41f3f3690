/* Tasks: commands in a terminal which live on when the agent is gone, and whose output is there to be read afterwards.
 *
 * Each has a keeper, a child of PID 1: it holds the terminal, copies what that shows into the log, and in the end writes
 * how the command ended into the status file (in decimal, a newline behind it; 128 + n for signal n). The log is bounded:
 * at LOG_MAX its last LOG_KEPT bytes are moved to the front, so that the end is always there. A log or status that cannot
 * be written to stops no task. The keeper runs as the container's root, cannot be looked into, and has of its
 * privileges only that of signalling; should it be killed all the same, the terminal hangs up and PID 1 writes the status.
 * TERMINATE reaches a keeper as SIGTERM, and its command as SIGHUP, as when a terminal is closed. */
#ifndef FAIRWATER_TASK_H
#define FAIRWATER_TASK_H

#include <poll.h>
#include <stdio.h>
#include <sys/signalfd.h>
#include <sys/wait.h>

#include "protocol.h"
#include "spawn.h"

enum {
    LOG_MAX = 8 << 20,
    LOG_KEPT = 4 << 20,
    COPIED_AT_ONCE = 64 * 1024,
    LAST_WORDS_MAX = 1 << 20, /* of a command's output that are read before its status is written */
    RETRY_MS = 1000, /* of what may go better the next time */
    HANG_UPS = 3,
};

enum task_state { NOT_STARTED, IS_STARTING, IS_STARTED };

/* What PID 1 knows of a task. */
struct task {
    enum task_state state;
    pid_t keeper; /* 0: it has ended */
    int status;   /* while there is a keeper */
};

/* What a keeper has open. */
enum { LOG, STATUS, REPORT, MASTER, SLAVE, SIGNALS };

struct keeper {
    pid_t command; /* 0: it has ended */
    int exit_status;
    off_t size; /* of the log; -1: there is none to write to */
    bool open;  /* the terminal, by anyone but the keeper */
    bool status_due;
    int hang_ups; /* still to be sent */
};

static struct task tasks[TASKS_MAX];
static char copied[COPIED_AT_ONCE];

static int shell_status(int status) {
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

/* False when there is no room for it now. Always at the front: what was half written is written over. */
static bool write_status(int file, int status) {
    char text[16];
    int size = snprintf(text, sizeof text, "%d\n", status);
    return pwrite(file, text, (size_t)size, 0) == size || (errno != ENOSPC && errno != EDQUOT);
}

/* Moves the log's end to its front; false when that fails, for want of room. Where it is broken off, what is to be moved
 * is as it was: the two halves do not overlap. */
static bool shorten_log(struct keeper *keeper) {
    off_t from = keeper->size - LOG_KEPT;
    for (off_t at = 0; at < LOG_KEPT;) {
        static char moved[COPIED_AT_ONCE];
        ssize_t size = pread(LOG, moved, sizeof moved, from + at);
        if (size <= 0 || pwrite(LOG, moved, (size_t)size, at) != size)
            return false;
        at += size;
    }
    if (ftruncate(LOG, LOG_KEPT))
        return false;
    keeper->size = LOG_KEPT;
    return true;
}

static void append_to_log(struct keeper *keeper, const char *bytes, size_t count) {
    while (count && keeper->size >= 0) {
        if (keeper->size >= LOG_MAX && !shorten_log(keeper))
            return; /* full: dropped */
        size_t room = (size_t)(LOG_MAX - keeper->size);
        ssize_t written = pwrite(LOG, bytes, count < room ? count : room, keeper->size);
        if (written <= 0)
            return;
        keeper->size += written;
        bytes += written;
        count -= (size_t)written;
    }
}

/* Copies what the terminal has shown; 0 when there is nothing now, or nothing more. */
static size_t copy_output(struct keeper *keeper) {
    ssize_t size = read(MASTER, copied, sizeof copied);
    if (size > 0) {
        append_to_log(keeper, copied, (size_t)size);
        return (size_t)size;
    }
    if (size == 0 || (errno != EAGAIN && errno != EINTR))
        keeper->open = false; /* EIO: nobody has it open any more */
    return 0;
}

/* SIGHUP to the session's leader and to whatever is in the terminal's foreground. More than once: a shell that is just
 * about to wait at its prompt takes note of the first, and waits all the same. */
static void hang_up(struct keeper *keeper) {
    if (!keeper->command) { /* the kernel has told the others */
        keeper->hang_ups = 0;
        return;
    }
    keeper->hang_ups--;
    pid_t foreground = tcgetpgrp(MASTER);
    kill(-keeper->command, SIGHUP);
    if (foreground > 0 && foreground != keeper->command)
        kill(-foreground, SIGHUP);
    kill(-keeper->command, SIGCONT);
    if (foreground > 0 && foreground != keeper->command)
        kill(-foreground, SIGCONT);
}

/* Reads what the command has printed before it ended, so that the log is whole when the status is there. */
static void end_command(struct keeper *keeper, int status) {
    keeper->command = 0;
    keeper->exit_status = shell_status(status);
    for (size_t size, sum = 0; sum < LAST_WORDS_MAX && (size = copy_output(keeper)); sum += size)
        ;
    close(SLAVE); /* from now on the terminal ends with the last that has it open */
    keeper->status_due = !write_status(STATUS, keeper->exit_status);
}

static void take_keepers_signals(struct keeper *keeper) {
    struct signalfd_siginfo got[4];
    ssize_t size = read(SIGNALS, got, sizeof got);
    for (ssize_t i = 0; i < size / (ssize_t)sizeof got[0]; i++)
        if (got[i].ssi_signo == SIGTERM) {
            keeper->hang_ups = HANG_UPS;
            hang_up(keeper);
            if (!keeper->command)
                keeper->status_due = false; /* it has waited for room long enough */
        }
    int status;
    if (keeper->command && waitpid(keeper->command, &status, WNOHANG) == keeper->command)
        end_command(keeper, status);
}

/* Until the command has ended, its status is written, and nobody has the terminal open any more. */
static void serve_terminal(struct keeper *keeper) {
    while (keeper->command || keeper->open || keeper->status_due) {
        struct pollfd watched[] = {{.fd = SIGNALS, .events = POLLIN}, {.fd = keeper->open ? MASTER : -1, .events = POLLIN}};
        int ready = poll(watched, 2, keeper->status_due || keeper->hang_ups ? RETRY_MS : -1);
        if (watched[0].revents)
            take_keepers_signals(keeper);
        if (watched[1].revents)
            copy_output(keeper);
        if (ready == 0 && keeper->hang_ups)
            hang_up(keeper);
        if (keeper->status_due)
            keeper->status_due = !write_status(STATUS, keeper->exit_status);
    }
}

/* Of PID 1's descriptors, those above; 0 or an errno. None of those given is as low: PID 1 has its own there. */
static int take_files(const struct start *start) {
    const int given[] = {start->streams[LOG], start->streams[STATUS], start->report, start->master, start->slave};
    sigset_t waited;
    for (int i = LOG; i <= SLAVE; i++)
        if (dup2(given[i], i) < 0)
            return errno;
    if (syscall(SYS_close_range, SIGNALS, ~0U, 0))
        for (int i = SIGNALS; i < 4096; i++)
            close(i);
    sigemptyset(&waited);
    sigaddset(&waited, SIGCHLD);
    sigaddset(&waited, SIGTERM);
    return signalfd(-1, &waited, SFD_CLOEXEC | SFD_NONBLOCK) == SIGNALS ? 0 : errno;
}

/* In the keeper: starts the command, and waits until that is known to have gone well. */
static struct outcome start_command(struct start start, struct keeper *keeper) {
    struct outcome failure = {.where = AT_TERMINAL, .error = take_files(&start)};
    struct spawned spawned;
    start.master = MASTER;
    start.slave = SLAVE;
    if (!failure.error)
        failure = fork_child(run_command, start, &spawned);
    if (failure.error)
        return failure;
    struct pollfd told = {.fd = spawned.outcome, .events = POLLIN};
    while (poll(&told, 1, -1) < 0 && errno == EINTR)
        ;
    struct outcome outcome = {0};
    if (read(spawned.outcome, &outcome, sizeof outcome) < 0)
        outcome = (struct outcome){.error = errno, .where = AT_FORK};
    close(spawned.outcome);
    keeper->command = spawned.pid;
    return outcome;
}

/* The body of a keeper. */
static void keep_command(struct start start) {
    struct keeper keeper = {.open = true, .size = -1};
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct kept[_LINUX_CAPABILITY_U32S_3] = {
        {.effective = 1U << CAP_KILL, .permitted = 1U << CAP_KILL}};
    struct stat status;
    setsid();
    prctl(PR_SET_NAME, "fairwater-task", 0, 0, 0);
    struct outcome outcome = start_command(start, &keeper);
    if (outcome.error) {
        ssize_t written = write(REPORT, &outcome, sizeof outcome);
        (void)written;
        _exit(1);
    }
    close(REPORT);
    syscall(SYS_capset, &header, kept);
    if (!fstat(LOG, &status) && S_ISREG(status.st_mode)) {
        fcntl(LOG, F_SETFL, 0); /* an appending write would not go where it is told to */
        keeper.size = status.st_size;
    }
    serve_terminal(&keeper);
    _exit(0);
}

/* In PID 1: a keeper has ended. One that was killed has left it to PID 1 to say so. */
static void end_keeper(pid_t pid, int status) {
    struct stat file;
    for (struct task *task = tasks; task < tasks + TASKS_MAX; task++) {
        if (task->state == NOT_STARTED || task->keeper != pid)
            continue;
        if (WIFSIGNALED(status) && !fstat(task->status, &file) && file.st_size == 0)
            write_status(task->status, shell_status(status));
        close_descriptor(&task->status);
        task->keeper = 0;
    }
}

#endif
