/* git's credential helper in a workspace: passes git's question on to the agent's service, and its answer back.
 *
 * Holds no secret and keeps none. When the agent is away, or knows nothing of the host, git goes on without it. */
#ifndef FAIRWATER_CREDENTIAL_H
#define FAIRWATER_CREDENTIAL_H

#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#define GIT_CREDENTIAL "git-credential-fairwater"
#define CREDENTIAL_SOCKET "/run/fairwater/service/credential"

enum { CREDENTIAL_MAX = 16 * 1024, CREDENTIAL_WITHIN_S = 10 };

static bool is_git_credential(const char *name) {
    const char *slash = strrchr(name, '/');
    return !strcmp(slash ? slash + 1 : name, GIT_CREDENTIAL);
}

/* Reads to the end, or to `max` bytes; -1 and errno, EMSGSIZE where there is more. */
static ssize_t read_all(int from, char *bytes, size_t max) {
    size_t sum = 0;
    for (;;) {
        ssize_t size = read(from, bytes + sum, max - sum);
        if (size < 0 && errno == EINTR)
            continue;
        if (size <= 0)
            return size < 0 ? -1 : (ssize_t)sum;
        sum += (size_t)size;
        if (sum == max) {
            errno = EMSGSIZE;
            return -1;
        }
    }
}

static bool write_all(int to, const char *bytes, size_t count) {
    while (count) {
        ssize_t size = write(to, bytes, count);
        if (size < 0 && errno == EINTR)
            continue;
        if (size <= 0)
            return false;
        bytes += size;
        count -= (size_t)size;
    }
    return true;
}

/* Puts the question in `bytes` to the service, and the answer in its place; -1 and errno. */
static ssize_t ask_service(char *bytes, size_t count) {
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = CREDENTIAL_SOCKET};
    struct timeval within = {.tv_sec = CREDENTIAL_WITHIN_S};
    int service = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (service < 0 || setsockopt(service, SOL_SOCKET, SO_RCVTIMEO, &within, sizeof within) ||
        setsockopt(service, SOL_SOCKET, SO_SNDTIMEO, &within, sizeof within) ||
        connect(service, (struct sockaddr *)&address, sizeof address) || !write_all(service, bytes, count) ||
        shutdown(service, SHUT_WR))
        return -1;
    ssize_t size = read_all(service, bytes, CREDENTIAL_MAX);
    /* An answer ends with an empty line: what was broken off half-way is none. */
    if (size > 0 && (size < 2 || memcmp(bytes + size - 2, "\n\n", 2))) {
        errno = EPIPE;
        return -1;
    }
    return size;
}

/* What git calls: with `get` to ask; `store` and `erase` change nothing here. */
static int serve_git(int argc, char **argv) {
    static char bytes[CREDENTIAL_MAX];
    if (argc != 2 || strcmp(argv[1], "get"))
        return argc == 2 ? 0 : 2;
    signal(SIGPIPE, SIG_IGN); /* a service that has just gone away is no reason to die silently */
    ssize_t size = read_all(0, bytes, sizeof bytes);
    if (size >= 0)
        size = ask_service(bytes, (size_t)size);
    if (size < 0)
        fprintf(stderr, GIT_CREDENTIAL ": the workspace's agent does not answer (%s): git goes on without it\n",
                strerror(errno == EAGAIN ? ETIMEDOUT : errno));
    else
        write_all(1, bytes, (size_t)size);
    return 0;
}

#endif
