/* Attempts one thing that a sandbox must prevent. Exits 0 when it succeeded, 1 when it
 * was refused (and says why), 2 when it was called wrongly. Linked statically, it is the
 * only file of its image. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

static int refused(const char *what) {
    printf("refused: %s: %s\n", what, strerror(errno));
    return 1;
}

static int done(const char *what) {
    printf("succeeded: %s\n", what);
    return 0;
}

/* Connects to an address and a port. */
static int net(const char *address, const char *port) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    struct timeval limit = {.tv_sec = 5};
    int sock = socket(AF_INET, SOCK_STREAM, 0);
    if (sock < 0) return refused("socket");
    setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    if (inet_pton(AF_INET, address, &to.sin_addr) != 1) return 2;
    if (connect(sock, (struct sockaddr *)&to, sizeof to) != 0) return refused("connect");
    return done("connect");
}

/* Connects to a unix socket. */
static int local(const char *path) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    int sock = socket(AF_UNIX, SOCK_STREAM, 0);
    strncpy(to.sun_path, path, sizeof to.sun_path - 1);
    socklen_t length = sizeof to;
    if (*path == '@') {
        /* An abstract name: no file, but a zero and as many bytes as the name has. */
        to.sun_path[0] = 0;
        length = offsetof(struct sockaddr_un, sun_path) + strlen(path);
    }
    if (connect(sock, (struct sockaddr *)&to, length) != 0) return refused("connect");
    return done("connect");
}

static int write_file(const char *path) {
    int file = open(path, O_WRONLY | O_CREAT, 0600);
    if (file < 0) return refused("open");
    if (write(file, "x", 1) != 1) return refused("write");
    return done("write");
}

static int own(const char *path) {
    int file = open(path, O_WRONLY | O_CREAT, 0600);
    if (file < 0) return refused("open");
    if (fchown(file, 1234, 1234) != 0) return refused("chown");
    return done("chown");
}

/* Runs the file in memory itself: what was written there must not be executable. */
static int execute_written(const char *path) {
    char buffer[65536];
    ssize_t length;
    int from = open("/proc/self/exe", O_RDONLY), to = open(path, O_WRONLY | O_CREAT, 0700);
    if (from < 0 || to < 0) return refused("open");
    while ((length = read(from, buffer, sizeof buffer)) > 0)
        if (write(to, buffer, length) != length) return refused("write");
    close(to);
    execl(path, path, "nothing", (char *)NULL);
    return refused("execute");
}

static int capabilities(void) {
    char line[256];
    unsigned long long set, all = 0;
    FILE *status = fopen("/proc/self/status", "r");
    if (!status) return 2;
    while (fgets(line, sizeof line, status))
        if (sscanf(line, "Cap%*3s: %llx", &set) == 1) all |= set;
    printf("capabilities: %llx\n", all);
    return all ? 0 : 1;
}

/* Takes this much memory and writes to all of it. */
static int memory(const char *megabytes) {
    for (long taken = 0; taken < atol(megabytes); taken++) {
        char *block = malloc(1 << 20);
        if (!block) return refused("malloc");
        memset(block, (int)taken + 1, 1 << 20);
    }
    return done("memory");
}

/* Starts this many processes that live at the same time. They end with this one, which
 * is the first of its namespace. */
static int processes(const char *count) {
    for (int started = 0; started < atoi(count); started++) {
        pid_t child = fork();
        if (child < 0) return refused("fork");
        if (child == 0) {
            pause();
            _exit(0);
        }
    }
    return done("fork");
}

/* Fills a directory with this much. */
static int fill(const char *directory, const char *megabytes) {
    static char block[1 << 20];
    char path[256];
    snprintf(path, sizeof path, "%s/filler", directory);
    int file = open(path, O_WRONLY | O_CREAT, 0600);
    if (file < 0) return refused("open");
    for (int written = 0; written < atoi(megabytes); written++)
        if (write(file, block, sizeof block) != (ssize_t)sizeof block) return refused("write");
    return done("fill");
}

/* Writes this much to standard output. */
static int flood(const char *megabytes) {
    static char block[1 << 20];
    memset(block, 'x', sizeof block);
    for (size_t at = 99; at < sizeof block; at += 100) block[at] = '\n';
    for (int written = 0; written < atoi(megabytes); written++)
        for (size_t at = 0; at < sizeof block;) {
            ssize_t length = write(1, block + at, sizeof block - at);
            if (length < 0) return refused("write");
            at += length;
        }
    return 0;
}

/* Refuses to end when it is asked to, and has children that do as well. */
static int stubborn(void) {
    for (int number = 1; number < 32; number++) signal(number, SIG_IGN);
    for (int child = 0; child < 3; child++)
        if (fork() == 0) {
            setsid();
            break;
        }
    for (;;) pause();
}

int main(int count, char **words) {
    setvbuf(stdout, NULL, _IONBF, 0);
    const char *what = count > 1 ? words[1] : "";
    const char *one = count > 2 ? words[2] : "", *two = count > 3 ? words[3] : "";
    if (!strcmp(what, "nothing")) return 0;
    if (!strcmp(what, "net")) return net(one, two);
    if (!strcmp(what, "local")) return local(one);
    if (!strcmp(what, "write")) return write_file(one);
    if (!strcmp(what, "chown")) return own(one);
    if (!strcmp(what, "execute")) return execute_written(one);
    if (!strcmp(what, "capabilities")) return capabilities();
    if (!strcmp(what, "memory")) return memory(one);
    if (!strcmp(what, "flood")) return flood(one);
    if (!strcmp(what, "stubborn")) return stubborn();
    if (!strcmp(what, "raw"))
        return socket(AF_INET, SOCK_RAW, IPPROTO_ICMP) < 0 ? refused("socket") : done("socket");
    if (!strcmp(what, "process"))
        return kill(atoi(one), 0) ? refused("signal") : done("signal");
    if (!strcmp(what, "processes")) return processes(one);
    if (!strcmp(what, "fill")) return fill(one, two);
    if (!strcmp(what, "environment")) return getenv(one) && *getenv(one) ? 0 : 1;
    if (!strcmp(what, "user")) {
        printf("user: %u\n", geteuid());
        return geteuid() == 0 ? 0 : 1;
    }
    if (!strcmp(what, "mount"))
        return mount("none", one, "tmpfs", 0, "") ? refused("mount") : done("mount");
    if (!strcmp(what, "mknod"))
        return mknod(one, S_IFCHR | 0666, makedev(1, 3)) ? refused("mknod") : done("mknod");
    if (!strcmp(what, "namespace"))
        return unshare(CLONE_NEWUSER) ? refused("unshare") : done("unshare");
    if (!strcmp(what, "open")) return open(one, O_RDONLY) < 0 ? refused("open") : done("open");
    if (!strcmp(what, "open-to-write"))
        return open(one, O_WRONLY) < 0 ? refused("open") : done("open");
    if (!strcmp(what, "sleep")) return sleep(atoi(one));
    return 2;
}
