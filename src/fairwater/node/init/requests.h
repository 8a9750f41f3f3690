/* What the agent asks of PID 1, taken in and done.
 *
 * One message at a time; whatever can wait or fail in a strange way happens in a child (`spawn.h`, `task.h`). */
#ifndef FAIRWATER_REQUESTS_H
#define FAIRWATER_REQUESTS_H

#include "connections.h"

static union {
    struct request request;
    char bytes[MESSAGE_MAX + 1];
} message;
static struct command command;

/* Begins a command; false, and the client is told, when it cannot be. */
static bool begin(struct connection *connection, enum request_kind kind, const int streams[]) {
    struct spawned spawned;
    int under_way = 0;
    for (int i = 0; i < CONNECTIONS_MAX; i++)
        under_way += connections[i].pid > 0;
    if (under_way >= COMMANDS_MAX && kind == EXEC) {
        answer_error(connection->socket, EAGAIN, AT_BUSY);
        return false;
    }
    struct outcome outcome = spawn(kind == TASK ? keep_command : run_command, &command, streams, &spawned);
    if (outcome.error) {
        answer_error(connection->socket, outcome.error, outcome.where);
        return false;
    }
    connection->pid = spawned.pid;
    connection->outcome = spawned.outcome;
    connection->master = spawned.master;
    connection->kind = kind;
    connection->terminal = command.terminal && kind == EXEC;
    if (kind == TASK)
        close_descriptor(&connection->master); /* its keeper has it */
    return true;
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
            if (begin(connection, LAUNCH, streams))
                state = LAUNCHING;
            return;
        }
        state = IS_LAUNCHED;
        reply = (struct reply){.kind = LAUNCHED, .run = run};
    }
    answer(connection->socket, reply, -1);
}

/* Starts a task unless that number was started before. */
static void start_task(struct connection *connection, int number, const int files[]) {
    struct task *task = &tasks[number];
    if (task->state == IS_STARTED) {
        answer(connection->socket, (struct reply){.kind = ALREADY, .pid = task->keeper}, -1);
        return;
    }
    if (task->state == IS_STARTING) {
        answer_error(connection->socket, EAGAIN, AT_BUSY);
        return;
    }
    int status = fcntl(files[STATUS], F_DUPFD_CLOEXEC, 0);
    if (status < 0) {
        answer_error(connection->socket, errno, AT_FORK);
    } else if (begin(connection, TASK, files)) {
        connection->task = number;
        *task = (struct task){.state = IS_STARTING, .keeper = connection->pid, .status = status};
    } else {
        close(status);
    }
}

/* Does what a LAUNCH, an EXEC or a TASK asks for; false when it is malformed. */
static bool obey_command(struct connection *connection, size_t size, const int streams[], int stream_count) {
    const struct request *request = &message.request;
    if (read_command(request, message.bytes + sizeof *request, message.bytes + size, &command))
        return false;
    if (request->kind == LAUNCH) {
        if (!request->run || command.terminal || stream_count != STREAMS)
            return false;
        launch(connection, request->run, streams);
        return true;
    }
    if (!command.arguments[0])
        return false;
    if (request->kind == TASK) {
        if (request->number < 0 || request->number >= TASKS_MAX || !command.terminal || stream_count != TASK_FILES)
            return false;
        start_task(connection, request->number, streams);
        return true;
    }
    if (stream_count != (command.terminal ? 0 : STREAMS))
        return false;
    begin(connection, EXEC, streams);
    return true;
}

/* Does what a request asks for; false when it is malformed. */
static bool obey(struct connection *connection, size_t size, const int streams[], int stream_count) {
    struct request *request = &message.request;
    if (size < sizeof *request || size > MESSAGE_MAX)
        return false;
    bool starts = request->kind == LAUNCH || request->kind == EXEC || request->kind == TASK;
    if (request->kind == SIGNAL && size == sizeof *request && !stream_count && request->number > 0 &&
        request->number < NSIG) {
        if (connection->pid && !is_lasting(connection))
            kill(-connection->pid, request->number);
        return true; /* a command that has just ended gets none */
    }
    if (!is_idle(connection) || (!starts && (size != sizeof *request || stream_count)))
        return false;
    if (starts)
        return obey_command(connection, size, streams, stream_count);
    struct reply reply = {.kind = DONE};
    if (request->kind == HELLO) {
        reply = (struct reply){.kind = IS_HELLO, .where = state, .pid = first_process};
        reply.value = request->number < 1 ? 1 : request->number < PROTOCOL_VERSION ? request->number : PROTOCOL_VERSION;
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

#endif
