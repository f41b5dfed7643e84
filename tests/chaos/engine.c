/* A model server whose answers are known beforehand: OpenAI's chat completions as a
 * stream over a unix socket, a word at a time, each made of the last message's text
 * and its number. Two requests share no word, so that a mixed, lost or repeated one
 * shows. A single static program: it is all there is in its image.
 *
 * As a job of its own it reads the number of words and, after a blank, the message from
 * standard input, and writes the same answer.
 *
 * Usage: engine SOCKET PAUSE_MS
 *        engine job PAUSE_MS
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { REQUEST_BYTES = 65536, PIECE_BYTES = 512 };

static long pause_ms;

static void leave(int signal) {
    (void)signal;
    _exit(0);
}

/* Writes all of it; false when nobody reads any more. */
static int say(int client, const char *text, size_t length) {
    while (length > 0) {
        ssize_t written = write(client, text, length);
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) return 0;
        text += written;
        length -= (size_t)written;
    }
    return 1;
}

/* Writes one chunk of a chunked body. */
static int say_chunk(int client, const char *format, ...) {
    char piece[PIECE_BYTES], chunk[PIECE_BYTES + 32];
    va_list values;
    va_start(values, format);
    int length = vsnprintf(piece, sizeof piece, format, values);
    va_end(values);
    int whole = snprintf(chunk, sizeof chunk, "%x\r\n%s\r\n", (unsigned)length, piece);
    return say(client, chunk, (size_t)whole);
}

static uint64_t mix(uint64_t hash, const char *text, size_t length) {
    for (size_t at = 0; at < length; at++) {
        hash ^= (unsigned char)text[at];
        hash *= UINT64_C(1099511628211);
    }
    return hash;
}

/* The hash of what the last message says. */
static uint64_t hash_of(const char *body) {
    const char *found = NULL, *next = body;
    while ((next = strstr(next, "\"content\":\"")) != NULL) found = next += 11;
    const char *end = found ? strchr(found, '"') : NULL;
    return mix(UINT64_C(14695981039346656037), found ? found : "", end ? (size_t)(end - found) : 0);
}

static void rest(void) {
    struct timespec pause = {pause_ms / 1000, pause_ms % 1000 * 1000000};
    nanosleep(&pause, NULL);
}

/* The word of an answer with this number. */
static uint32_t word_of(uint64_t hash, long index) {
    char number[24];
    int digits = snprintf(number, sizeof number, "%ld", index);
    return (uint32_t)(mix(hash, number, (size_t)digits) >> 16);
}

static int job(void) {
    static char input[REQUEST_BYTES];
    size_t length = fread(input, 1, sizeof input - 1, stdin);
    char *message;
    long words = strtol(input, &message, 10);
    message += *message == ' ';
    uint64_t hash = mix(UINT64_C(14695981039346656037), message, length - (size_t)(message - input));
    for (long index = 0; index < words; index++) {
        rest();
        printf("%08" PRIx32 "-%ld ", word_of(hash, index), index);
        fflush(stdout);
    }
    return 0;
}

static int answer(int client, const char *body) {
    const char *limit = strstr(body, "\"max_tokens\":");
    long tokens = limit ? strtol(limit + 13, NULL, 10) : 16;
    uint64_t hash = hash_of(body);
    static const char head[] = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
                               "transfer-encoding: chunked\r\nconnection: close\r\n\r\n";
    if (!say(client, head, sizeof head - 1)) return 0;
    for (long index = 0; index < tokens; index++) {
        rest();
        if (!say_chunk(client,
                       "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"%08" PRIx32
                       "-%ld \"},\"finish_reason\":null}]}\n\n",
                       word_of(hash, index), index))
            return 0;
    }
    return say_chunk(client, "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n") &&
           say_chunk(client,
                     "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":8,\"completion_tokens\":%ld,"
                     "\"total_tokens\":%ld}}\n\ndata: [DONE]\n\n",
                     tokens, tokens + 8) &&
           say(client, "0\r\n\r\n", 5);
}

static void *serve(void *argument) {
    int client = (int)(intptr_t)argument;
    char *request = malloc(REQUEST_BYTES);
    size_t length = 0, wanted = 0;
    char *body = NULL;
    while (request && length < REQUEST_BYTES - 1) {
        ssize_t got = read(client, request + length, REQUEST_BYTES - 1 - length);
        if (got <= 0) break;
        length += (size_t)got;
        request[length] = '\0';
        if (!body) {
            char *end = strstr(request, "\r\n\r\n");
            if (!end) continue;
            body = end + 4;
            char *given = strcasestr(request, "content-length:");
            wanted = given && given < body ? strtoul(given + 15, NULL, 10) : 0;
        }
        if (length - (size_t)(body - request) < wanted) continue;
        if (strncmp(request, "POST ", 5) == 0) {
            answer(client, body);
        } else {
            static const char well[] = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";
            say(client, well, sizeof well - 1);
        }
        break;
    }
    free(request);
    close(client);
    return NULL;
}

int main(int count, char **arguments) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (count != 3 || strlen(arguments[1]) >= sizeof address.sun_path) {
        fprintf(stderr, "usage: engine SOCKET PAUSE_MS\n");
        return 2;
    }
    pause_ms = strtol(arguments[2], NULL, 10);
    if (strcmp(arguments[1], "job") == 0) return job();
    strcpy(address.sun_path, arguments[1]);
    signal(SIGPIPE, SIG_IGN);
    /* The first process of a container has no default for this one. */
    signal(SIGTERM, leave);
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) != 0 ||
        chmod(arguments[1], 0666) != 0 || listen(listener, 64) != 0) {
        perror(arguments[1]);
        return 1;
    }
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 65536);
    pthread_attr_setdetachstate(&small, PTHREAD_CREATE_DETACHED);
    for (;;) {
        int client = accept(listener, NULL, NULL);
        if (client < 0) continue;
        pthread_t thread;
        if (pthread_create(&thread, &small, serve, (void *)(intptr_t)client) != 0) close(client);
    }
}
