/* PID 1 of every workspace: reaps, and begins what the node agent asks for. It decides nothing.
 *
 * Built with: cc -O2 -static -std=c11 -Wall -Wextra -Werror -o fairwater-init init.c
 * It runs inside the container, parked ahead of need, as the container's root, and holds as descriptor 3 a listening
 * socket that the agent bound on the host, where nothing inside the container can reach its path. `protocol.h` says
 * what travels on it. The agent may die and connect again at any time; PID 1 never exits by itself.
 *
 * Processes of the container are its enemies: it cannot be traced (not dumpable), allocates nothing, waits only in
 * poll, opens no path that they could replace by something that blocks, and answers nobody of its own PID namespace.
 * Install it with mode 0711, owned by the machine's root: a program that the container may not read belongs, as a
 * process, to the user namespace above it, and then not even CAP_SYS_PTRACE in the container opens /proc/1.
 *
 * The same program, called by the name of git's credential helper, is that: `credential.h`. */
#define _GNU_SOURCE
#include <poll.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>

#include "credential.h"
#include "requests.h"

enum { LISTENER = 3, REAPED_AT_ONCE = 512, PAUSE_MS = 100 };

/* As the kernel has it; all zero is "the default". */
struct kernel_action {
    unsigned long words[4];
};

static struct pollfd polled[2 + 2 * CONNECTIONS_MAX];

/* Accepts one client; false when the kernel has no descriptor for it. */
static bool welcome(void) {
    struct ucred peer = {.pid = -1};
    socklen_t size = sizeof peer;
    int socket = accept4(LISTENER, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (socket < 0)
        return errno == EAGAIN || errno == EINTR || errno == ECONNABORTED;
    /* A process of another PID namespace has no number in this one; one of the container has. */
    bool inside = getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) || peer.pid != 0;
    struct connection *place = inside ? NULL : find_place();
    if (place)
        *place = (struct connection){.socket = socket, .outcome = -1, .master = -1, .kind = EXEC, .born = ++births};
    else
        close(socket);
    return true;
}

/* Collects the dead; true when there may be more of them, left for later so that nobody is kept waiting. */
static bool reap(void) {
    for (int count = 0; count < REAPED_AT_ONCE; count++) {
        int status;
        pid_t pid = waitpid(-1, &status, WNOHANG);
        if (pid <= 0)
            return false;
        for (struct connection *one = connections; one < connections + CONNECTIONS_MAX; one++) {
            if (one->pid == pid && one->outcome >= 0)
                settle(one); /* the pipe ended before the process did */
            if (one->pid == pid) {
                answer(one->socket, (struct reply){.kind = EXITED, .value = status, .pid = pid}, -1);
                one->pid = 0;
            }
        }
        end_keeper(pid, status);
        if (pid == first_process)
            first_process = 0;
    }
    return true;
}

/* Takes signals in; true when somebody died. Terminal signals are dropped, SIGTERM is passed on. */
static bool take_signals(int signals) {
    struct signalfd_siginfo got[16];
    bool died = false, asked_to_end = false;
    ssize_t size = read(signals, got, sizeof got);
    for (ssize_t i = 0; i < size / (ssize_t)sizeof got[0]; i++) {
        died |= got[i].ssi_signo == SIGCHLD;
        asked_to_end |= got[i].ssi_signo == SIGTERM;
    }
    if (asked_to_end)
        terminate_all();
    return died;
}

/* Fills `polled`: the signals, the listener, then for each connection its socket and its command's outcome. */
static nfds_t watch_all(int signals, bool listening) {
    nfds_t count = 2;
    polled[0] = (struct pollfd){.fd = signals, .events = POLLIN};
    polled[1] = (struct pollfd){.fd = listening ? LISTENER : -1, .events = POLLIN};
    for (int i = 0; i < CONNECTIONS_MAX; i++) {
        polled[2 + 2 * i] = (struct pollfd){.fd = connections[i].socket, .events = POLLIN};
        polled[3 + 2 * i] = (struct pollfd){.fd = connections[i].outcome, .events = POLLIN};
        if (!is_free(&connections[i]))
            count = (nfds_t)(4 + 2 * i);
    }
    return count;
}

/* The one loop. Waits without a time limit while there is nothing to do. */
static _Noreturn void serve(int signals) {
    bool more_dead = false, listening = true;
    for (;;) {
        nfds_t count = watch_all(signals, listening);
        int ready = poll(polled, count, more_dead ? 0 : listening ? -1 : PAUSE_MS);
        listening = true;
        if (ready < 0) { /* root in the container may lower this process's limits: no reason to spin or to leave zombies */
            poll(NULL, 0, PAUSE_MS);
            more_dead = reap();
            continue;
        }
        for (nfds_t i = 2; i < count; i += 2) {
            struct connection *connection = &connections[(i - 2) / 2];
            if (polled[i + 1].revents && connection->outcome == polled[i + 1].fd)
                settle(connection);
            if (polled[i].revents && connection->socket == polled[i].fd)
                receive(connection);
        }
        if (polled[0].revents)
            more_dead |= take_signals(signals);
        if (more_dead)
            more_dead = reap();
        if (polled[1].revents)
            listening = welcome();
    }
}

/* Nothing of what this process was started with goes on to a command, and nothing of a command comes to it. */
static int prepare(void) {
    sigset_t all;
    struct stat status;
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        return -1;
    if (fstat(LISTENER, &status) || !S_ISSOCK(status.st_mode) || fcntl(LISTENER, F_SETFD, FD_CLOEXEC) ||
        fcntl(LISTENER, F_SETFL, O_NONBLOCK))
        return -1;
    while (fcntl(0, F_GETFD) < 0 || fcntl(1, F_GETFD) < 0 || fcntl(2, F_GETFD) < 0)
        if (open("/dev/null", O_RDWR) < 0) /* so that no later descriptor is taken for a stream */
            return -1;
    if (syscall(SYS_close_range, LISTENER + 1, ~0U, 0))
        for (int i = LISTENER + 1; i < 4096; i++)
            close(i);
    dev_folder = open("/dev", O_PATH | O_DIRECTORY | O_CLOEXEC);
    pts_folder = open("/dev/pts", O_PATH | O_DIRECTORY | O_CLOEXEC);
    for (int i = 1; i < NSIG; i++) /* not by signal(), which leaves out two that the C library keeps for itself */
        syscall(SYS_rt_sigaction, i, &(struct kernel_action){0}, NULL, 8);
    umask(022);
    for (int i = 0; i < CONNECTIONS_MAX; i++)
        connections[i] = (struct connection){.socket = -1, .outcome = -1, .master = -1, .kind = EXEC};
    for (int i = 0; i < TASKS_MAX; i++)
        tasks[i].status = -1;
    sigfillset(&all);
    if (sigprocmask(SIG_SETMASK, &all, NULL))
        return -1;
    return signalfd(-1, &all, SFD_CLOEXEC | SFD_NONBLOCK);
}

int main(int argc, char **argv) {
    if (argc > 0 && is_git_credential(argv[0]))
        return serve_git(argc, argv);
    if (getpid() != 1) { /* its kill(-1) would reach the whole machine */
        fputs("fairwater-init: runs only as PID 1 of a container\n", stderr);
        return 2;
    }
    int signals = prepare();
    if (signals < 0) {
        perror("fairwater-init: cannot prepare itself; is descriptor 3 a listening socket?");
        return 1;
    }
    serve(signals);
}
