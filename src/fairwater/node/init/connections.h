/* The agent's connections to PID 1, and what is done for each.
 *
 * A fixed table: nothing a client does makes it grow. The order of answers on one connection is the protocol's. */
#ifndef FAIRWATER_CONNECTIONS_H
#define FAIRWATER_CONNECTIONS_H

#include <sys/socket.h>

#include "protocol.h"
#include "spawn.h"

struct connection {
    int socket;  /* -1: the client has left */
    int outcome; /* of a command being started, else -1 */
    int master;  /* of its terminal until it is handed over, else -1 */
    pid_t pid;   /* of the command under way, else 0 */
    bool launch;
    bool terminal; /* the command runs in one */
    uint64_t born;
};

static struct connection connections[CONNECTIONS_MAX];
static union {
    struct request request;
    char bytes[MESSAGE_MAX + 1];
} message;
static struct command command;
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

/* Ends a connection. A command of an EXEC is hung up; one being launched goes on without its client. */
static void leave(struct connection *connection) {
    close_descriptor(&connection->socket);
    if (connection->launch && connection->outcome >= 0)
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

/* Tells the client how the start of a command went, once that is known. */
static void settle(struct connection *connection) {
    struct outcome outcome = {0};
    ssize_t size = read(connection->outcome, &outcome, sizeof outcome);
    if (size < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    bool failed = size != 0;
    close_descriptor(&connection->outcome);
    if (connection->launch) {
        state = failed ? PARKED : IS_LAUNCHED;
        first_process = failed ? 0 : connection->pid;
    }
    if (failed) {
        answer_error(connection->socket, outcome.error ? outcome.error : EIO, outcome.where);
        connection->pid = 0;
        leave(connection);
    } else {
        struct reply reply = {.kind = connection->launch ? LAUNCHED : STARTED, .pid = connection->pid};
        reply.run = connection->launch ? launched_run : 0;
        answer(connection->socket, reply, connection->master);
        if (connection->launch)
            connection->pid = 0; /* its end is nobody's matter: the workspace lives on without it */
    }
    connection->launch = false;
    close_descriptor(&connection->master);
}

/* Asks every process of the container but this one to end. A shell at its prompt ignores SIGTERM and ends at SIGHUP, as
 * when its terminal closes; what has no terminal gets no SIGHUP, which would end a program that is saving its work. */
static void terminate_all(void) {
    kill(-1, SIGTERM);
    for (size_t i = 0; i < CONNECTIONS_MAX; i++)
        if (connections[i].pid && connections[i].terminal)
            kill(-connections[i].pid, SIGHUP);
    kill(-1, SIGCONT);
}

/* Begins the command of a LAUNCH or an EXEC. */
static void begin(struct connection *connection, bool launch, const int streams[STREAMS]) {
    struct spawned spawned;
    int under_way = 0;
    for (int i = 0; i < CONNECTIONS_MAX; i++)
        under_way += connections[i].pid > 0;
    if (under_way >= COMMANDS_MAX && !launch) {
        answer_error(connection->socket, EAGAIN, AT_BUSY);
        return;
    }
    struct outcome outcome = spawn(&command, streams, &spawned);
    if (outcome.error) {
        answer_error(connection->socket, outcome.error, outcome.where);
        return;
    }
    connection->pid = spawned.pid;
    connection->outcome = spawned.outcome;
    connection->master = spawned.master;
    connection->launch = launch;
    connection->terminal = command.terminal;
    if (launch)
        state = LAUNCHING;
}

static void launch(struct connection *connection, uint64_t run, const int streams[STREAMS]) {
    struct reply reply = {.kind = ALREADY, .run = launched_run, .pid = first_process};
    if (state != PARKED && run != launched_run) {
        reply.kind = OTHER_RUN;
    } else if (state == LAUNCHING) {
        answer_error(connection->socket, EAGAIN, AT_BUSY);
        return;
    } else if (state == PARKED) {
        launched_run = run;
        if (command.arguments[0]) {
            begin(connection, true, streams);
            return;
        }
        state = IS_LAUNCHED;
        reply = (struct reply){.kind = LAUNCHED, .run = run};
    }
    answer(connection->socket, reply, -1);
}

/* Does what a request asks for; false when it is malformed. */
static bool obey(struct connection *connection, size_t size, const int streams[STREAMS], int stream_count) {
    struct request *request = &message.request;
    if (size < sizeof *request || size > MESSAGE_MAX)
        return false;
    bool starts = request->kind == LAUNCH || request->kind == EXEC, busy = !is_idle(connection);
    if (request->kind == SIGNAL && !stream_count && request->number > 0 && request->number < NSIG) {
        if (connection->pid && !connection->launch)
            kill(-connection->pid, request->number);
        return true; /* a command that has just ended gets none */
    }
    if (busy || (!starts && (size != sizeof *request || stream_count)))
        return false;
    if (starts) {
        bool terminal = request->kind == EXEC && (request->flags & WITH_TERMINAL);
        if (read_command(request, message.bytes + sizeof *request, message.bytes + size, &command) ||
            stream_count != (terminal ? 0 : STREAMS) || (request->kind == LAUNCH && (!request->run || command.terminal)))
            return false;
        if (request->kind == LAUNCH)
            launch(connection, request->run, streams);
        else if (command.arguments[0])
            begin(connection, false, streams);
        return request->kind == LAUNCH || command.arguments[0];
    }
    struct reply reply = {.kind = DONE};
    if (request->kind == HELLO) {
        reply = (struct reply){.kind = IS_HELLO, .value = PROTOCOL_VERSION, .where = state, .pid = first_process};
        reply.run = state == PARKED ? 0 : launched_run;
    } else if (request->kind == TERMINATE) {
        terminate_all();
    } else {
        return false;
    }
    answer(connection->socket, reply, -1);
    return true;
}

/* Takes one message from a client. */
static void receive(struct connection *connection) {
    union {
        struct cmsghdr head;
        char space[CMSG_SPACE(STREAMS * sizeof(int))];
    } control;
    int streams[STREAMS] = {-1, -1, -1}, count = 0;
    struct iovec part = {.iov_base = &message, .iov_len = sizeof message.bytes};
    struct msghdr packet = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control};
    packet.msg_controllen = CMSG_LEN(STREAMS * sizeof(int)); /* CMSG_SPACE would have room for a fourth */
    ssize_t size = recvmsg(connection->socket, &packet, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (size < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (size <= 0) {
        leave(connection);
        return;
    }
    for (struct cmsghdr *head = CMSG_FIRSTHDR(&packet); head; head = CMSG_NXTHDR(&packet, head))
        if (head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS) {
            count = (int)((head->cmsg_len - CMSG_LEN(0)) / sizeof(int));
            memcpy(streams, CMSG_DATA(head), (size_t)count * sizeof(int));
        }
    bool whole = !(packet.msg_flags & (MSG_TRUNC | MSG_CTRUNC));
    if (!whole || !obey(connection, (size_t)size, streams, count)) {
        answer_error(connection->socket, size > MESSAGE_MAX ? EMSGSIZE : EINVAL, AT_PROTOCOL);
        leave(connection);
    }
    for (int i = 0; i < STREAMS; i++)
        close_descriptor(&streams[i]);
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
