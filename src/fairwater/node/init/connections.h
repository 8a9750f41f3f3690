/* The agent's connections to PID 1, and what is done for each.
 *
 * A fixed table: nothing a client does makes it grow. The order of answers on one connection is the protocol's. */
#ifndef FAIRWATER_CONNECTIONS_H
#define FAIRWATER_CONNECTIONS_H

#include <sys/socket.h>

#include "protocol.h"
#include "spawn.h"
#include "task.h"

struct connection {
    int socket;  /* -1: the client has left */
    int outcome; /* of a command being started, else -1 */
    int master;  /* of its terminal until it is handed over, else -1 */
    pid_t pid;   /* of the command under way, else 0 */
    enum request_kind kind; /* LAUNCH or TASK while that is being started, else EXEC */
    int task;               /* its number */
    bool terminal;          /* the command runs in one */
    uint64_t born;
};

static struct connection connections[CONNECTIONS_MAX];
static enum launch_state state = PARKED;
static uint64_t launched_run, births;
static pid_t first_process;

static bool is_free(const struct connection *connection) {
    return connection->socket < 0 && connection->outcome < 0 && !connection->pid;
}

static bool is_idle(const struct connection *connection) {
    return connection->socket >= 0 && connection->outcome < 0 && !connection->pid;
}

/* Sends a reply, with a descriptor unless it is -1. A client whose buffer is full after three replies has gone wrong. */
static void answer(int socket, struct reply reply, int descriptor) {
    union {
        struct cmsghdr head;
        char space[CMSG_SPACE(sizeof(int))];
    } control = {{0}};
    struct iovec part = {.iov_base = &reply, .iov_len = sizeof reply};
    struct msghdr packet = {.msg_iov = &part, .msg_iovlen = 1};
    if (descriptor >= 0) {
        packet.msg_control = &control;
        packet.msg_controllen = sizeof control;
        control.head.cmsg_level = SOL_SOCKET;
        control.head.cmsg_type = SCM_RIGHTS;
        control.head.cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(&control.head), &descriptor, sizeof descriptor);
    }
    if (socket >= 0)
        sendmsg(socket, &packet, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void answer_error(int socket, int error, enum where where) {
    answer(socket, (struct reply){.kind = ERROR, .where = where, .value = error}, -1);
}

/* What lives on without its client. */
static bool is_lasting(const struct connection *connection) {
    return connection->kind == LAUNCH || connection->kind == TASK;
}

/* Ends a connection. A command of an EXEC is hung up; one being launched, and a task, goes on without its client. */
static void leave(struct connection *connection) {
    close_descriptor(&connection->socket);
    if (is_lasting(connection) && connection->outcome >= 0)
        return;
    if (connection->pid) {
        kill(-connection->pid, SIGHUP);
        if (connection->outcome >= 0)
            kill(connection->pid, SIGHUP); /* it may not lead its group yet */
        kill(-connection->pid, SIGCONT);
    }
    close_descriptor(&connection->outcome);
    close_descriptor(&connection->master);
    connection->pid = 0;
}

/* Remembers how the start of a LAUNCH or a TASK went. */
static void remember(const struct connection *connection, bool failed) {
    if (connection->kind == LAUNCH) {
        state = failed ? PARKED : IS_LAUNCHED;
        first_process = failed ? 0 : connection->pid;
    } else if (connection->kind == TASK) {
        struct task *task = &tasks[connection->task];
        task->state = failed ? NOT_STARTED : IS_STARTED;
        if (failed)
            close_descriptor(&task->status);
    }
}

/* Tells the client how the start of a command went, once that is known. */
static void settle(struct connection *connection) {
    struct outcome outcome = {0};
    ssize_t size = read(connection->outcome, &outcome, sizeof outcome);
    if (size < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    bool failed = size != 0, lasting = is_lasting(connection);
    close_descriptor(&connection->outcome);
    remember(connection, failed);
    if (failed) {
        answer_error(connection->socket, outcome.error ? outcome.error : EIO, outcome.where);
        connection->pid = 0;
        leave(connection);
    } else {
        struct reply reply = {.kind = connection->kind == LAUNCH ? LAUNCHED : STARTED, .pid = connection->pid};
        reply.run = connection->kind == LAUNCH ? launched_run : 0;
        answer(connection->socket, reply, connection->kind == EXEC ? connection->master : -1);
        if (lasting)
            connection->pid = 0; /* its end is nobody's matter here: it lives on without the client */
    }
    connection->kind = EXEC;
    close_descriptor(&connection->master);
}

/* Asks every process of the container but this one to end. A shell at its prompt ignores SIGTERM and ends at SIGHUP, as
 * when its terminal closes; what has no terminal gets no SIGHUP, which would end a program that is saving its work. */
static void terminate_all(void) {
    kill(-1, SIGTERM);
    for (size_t i = 0; i < CONNECTIONS_MAX; i++)
        if (connections[i].pid && connections[i].terminal) /* a task's keeper sees to it itself */
            kill(-connections[i].pid, SIGHUP);
    kill(-1, SIGCONT);
}

/* A place for a connection: a free one, else that of the client which has waited longest with nothing under way. */
static struct connection *find_place(void) {
    struct connection *oldest = NULL;
    for (struct connection *one = connections; one < connections + CONNECTIONS_MAX; one++) {
        if (is_free(one))
            return one;
        if (is_idle(one) && (!oldest || one->born < oldest->born))
            oldest = one;
    }
    if (oldest) {
        answer_error(oldest->socket, EAGAIN, AT_BUSY);
        leave(oldest);
    }
    return oldest;
}

#endif
