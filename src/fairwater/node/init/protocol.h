/* What travels between the node agent and a workspace's PID 1, and how a request is taken apart.
 *
 * One SOCK_SEQPACKET connection is one command; every message is one packet in the machine's byte order.
 * A request is a `struct request`, for LAUNCH, EXEC and TASK followed by `groups` numbers of 32 bits and then strings,
 * each ended by a NUL: the working directory, `arguments` arguments, `variables` variables (`NAME=value`); nothing
 * behind.
 *
 *   HELLO {number: version}    -> HELLO {value: version, where: launch state, run, pid of the first process or 0}
 *   LAUNCH {run} + 3 streams   -> LAUNCHED {run, pid}   the first process runs; pid 0 where none was asked for
 *                                 ALREADY {run, pid}    that run was launched before
 *                                 OTHER_RUN {run}       another run was launched here: refused
 *                                 ERROR                 nothing was launched; it may be tried again
 *   EXEC + 3 streams           -> STARTED {pid}         and EXITED {value: wait status} when it ends, or ERROR
 *   EXEC with TERMINAL         -> STARTED {pid} + the terminal's master, which is the client's to resize
 *   TASK {number} + 2 files    -> STARTED {pid}         the command runs in a terminal that a keeper holds, `task.h`
 *    with TERMINAL                ALREADY {pid}         that number was started before; pid 0 where its keeper has ended
 *                                 ERROR                 nothing was started; it may be tried again
 *   SIGNAL {number}            (on an EXEC's connection) to the command's process group; not answered
 *   TERMINATE                  -> DONE                  SIGTERM and SIGCONT to all but PID 1, SIGHUP where a terminal is
 *
 * Descriptors come by SCM_RIGHTS; the two files of a TASK are its log, to be read and written, and its exit status.
 * Closing the connection of an EXEC sends SIGHUP, then SIGCONT, to its process group; closing that of a LAUNCH or a TASK
 * does nothing. An agent says in HELLO which version it speaks (the first one says 0), and is answered the lower of both;
 * version 2 brought TASK. Whatever is malformed is answered by ERROR {where: PROTOCOL} and a closed
 * connection. */
#ifndef FAIRWATER_PROTOCOL_H
#define FAIRWATER_PROTOCOL_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>

enum {
    PROTOCOL_VERSION = 2,
    MESSAGE_MAX = 128 * 1024, /* bytes of a request */
    CONNECTIONS_MAX = 256,
    COMMANDS_MAX = 224, /* commands under way: some connections always stay free for HELLO and TERMINATE */
    STREAMS = 3,
    TASK_FILES = 2,
    TASKS_MAX = 64, /* tasks of a workspace, numbered from 0 */
    GROUPS_MAX = 32,
    ARGUMENTS_MAX = 8192,
    VARIABLES_MAX = 4096,
};

enum request_kind { HELLO = 1, LAUNCH, EXEC, SIGNAL, TERMINATE, TASK };
enum reply_kind { IS_HELLO = 1, LAUNCHED, ALREADY, OTHER_RUN, STARTED, EXITED, DONE, ERROR };
enum where { AT_EXEC = 1, AT_CHDIR, AT_USER, AT_FORK, AT_TERMINAL, AT_PROTOCOL, AT_BUSY };
enum launch_state { PARKED, LAUNCHING, IS_LAUNCHED };
enum flag { WITH_TERMINAL = 1 };

struct request {
    uint32_t kind;
    uint32_t flags;
    uint64_t run;
    int32_t number; /* of a signal, a task, or a version */
    uint32_t uid, gid;
    uint32_t groups, arguments, variables; /* how many of each follow */
    uint16_t rows, columns;
    uint32_t reserved; /* zero */
};

struct reply {
    uint32_t kind;
    uint32_t where;
    int32_t value;
    int32_t pid;
    uint64_t run;
};

/* A command, as pointers into the message that it came in. */
struct command {
    uid_t uid;
    gid_t gid;
    gid_t groups[GROUPS_MAX];
    size_t group_count;
    const char *folder;
    char *arguments[ARGUMENTS_MAX + 1];
    char *variables[VARIABLES_MAX + 1];
    bool terminal;
    uint16_t rows, columns;
};

/* The next string of a message, or NULL when there is none. */
static char *take_string(char **at, char *end) {
    char *string = *at, *stop = string < end ? memchr(string, '\0', (size_t)(end - string)) : NULL;
    if (!stop)
        return NULL;
    *at = stop + 1;
    return string;
}

/* Takes the message of a LAUNCH, EXEC or TASK apart; 0, or the errno of what is wrong with it. */
static int read_command(const struct request *request, char *at, char *end, struct command *command) {
    if (request->groups > GROUPS_MAX || request->arguments > ARGUMENTS_MAX || request->variables > VARIABLES_MAX)
        return E2BIG;
    if ((request->flags & ~(uint32_t)WITH_TERMINAL) || request->reserved || request->uid == UINT32_MAX ||
        request->gid == UINT32_MAX)
        return EINVAL;
    command->uid = request->uid;
    command->gid = request->gid;
    command->group_count = request->groups;
    command->terminal = request->flags & WITH_TERMINAL;
    command->rows = request->rows;
    command->columns = request->columns;
    size_t size = request->groups * sizeof(gid_t);
    if ((size_t)(end - at) < size)
        return EINVAL;
    memcpy(command->groups, at, size);
    at += size;
    if (!(command->folder = take_string(&at, end)))
        return EINVAL;
    for (uint32_t i = 0; i < request->arguments; i++)
        if (!(command->arguments[i] = take_string(&at, end)))
            return EINVAL;
    command->arguments[request->arguments] = NULL;
    for (uint32_t i = 0; i < request->variables; i++)
        if (!(command->variables[i] = take_string(&at, end)))
            return EINVAL;
    command->variables[request->variables] = NULL;
    return at == end ? 0 : EINVAL;
}

#endif
