/*
 * The limit of staging on one machine: the files of a tree copied to N destinations by as many threads as are named, read
 * and written 1 MiB at a time, as dd does. Nothing is sent, hashed or noted.
 *
 *     staging_copy SOURCE DESTINATION N THREADS     (copies go to DESTINATION.0 .. DESTINATION.N-1)
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <ftw.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PIECE = 1 << 20, FILES = 1 << 20, PATH = 4096 };

static const char *source, *destination;
static char *files[FILES]; /* below the source */
static int file_count, copies;
static atomic_int next;

static int look(const char *path, const struct stat *stat, int kind, struct FTW *walk) {
    (void)stat, (void)walk;
    char there[PATH];
    for (int copy = 0; kind == FTW_D && copy < copies; copy++) {
        snprintf(there, PATH, "%s.%d%s", destination, copy, path + strlen(source));
        mkdir(there, 0755);
    }
    if (kind == FTW_F && file_count < FILES) files[file_count++] = strdup(path + strlen(source));
    return 0;
}

static void *work(void *unused) {
    char *data = malloc(PIECE), path[PATH];
    for (int i; data && (i = atomic_fetch_add(&next, 1)) < file_count * copies;) {
        snprintf(path, PATH, "%s%s", source, files[i / copies]);
        int from = open(path, O_RDONLY);
        snprintf(path, PATH, "%s.%d%s", destination, i % copies, files[i / copies]);
        int to = open(path, O_WRONLY | O_CREAT, 0644);
        ssize_t n;
        while ((n = read(from, data, PIECE)) > 0)
            if (write(to, data, (size_t)n) != n) abort();
        if (n < 0) abort();
        close(from), close(to);
    }
    free(data);
    return unused;
}

int main(int argc, char **argv) {
    pthread_t threads[256];
    if (argc != 5) return 2;
    source = argv[1], destination = argv[2], copies = atoi(argv[3]);
    int thread_count = atoi(argv[4]);
    if (nftw(source, look, 32, FTW_PHYS) || thread_count > 256) return 1;
    for (int i = 0; i < thread_count; i++)
        if (pthread_create(&threads[i], NULL, work, NULL)) return 1;
    for (int i = 0; i < thread_count; i++) pthread_join(threads[i], NULL);
    return 0;
}
