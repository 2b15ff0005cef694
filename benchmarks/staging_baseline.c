/*
 * What staging is measured against: one tree to all ranks, by tar at both ends and MPI_Bcast of 1 GiB chunks in between.
 *
 *     mpiexec -n N staging_baseline SOURCE DESTINATION     (rank R writes into DESTINATION.R)
 *
 * Nothing overlaps: a chunk is read, then broadcast, then written. Nothing is hashed.
 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK = 1 << 30, COMMAND = 8192 };

static FILE *start(const char *mode, const char *format, const char *path, int rank) {
    char command[COMMAND];
    snprintf(command, sizeof command, format, path, rank, path, rank);
    FILE *pipe = popen(command, mode);
    if (!pipe) MPI_Abort(MPI_COMM_WORLD, 1);
    return pipe;
}

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    int rank, size, code = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    char *chunk = malloc(CHUNK);
    if (argc != 3 || !chunk) MPI_Abort(MPI_COMM_WORLD, 2);
    FILE *reader = rank ? NULL : start("r", "tar -C '%s' -cf - .", argv[1], 0);
    FILE *writer = start("w", "mkdir -p '%s.%d' && tar -xf - -C '%s.%d'", argv[2], rank);
    double begin = MPI_Wtime(), total = 0, seconds, slowest;
    for (;;) {
        size = reader ? (int)fread(chunk, 1, CHUNK, reader) : 0;
        MPI_Bcast(&size, 1, MPI_INT, 0, MPI_COMM_WORLD);
        if (!size) break;
        MPI_Bcast(chunk, size, MPI_BYTE, 0, MPI_COMM_WORLD);
        if (fwrite(chunk, 1, (size_t)size, writer) != (size_t)size) code = 1;
        total += size;
    }
    if (reader && pclose(reader)) code = 1;
    if (pclose(writer)) code = 1;
    seconds = MPI_Wtime() - begin;
    MPI_Reduce(&seconds, &slowest, 1, MPI_DOUBLE, MPI_MAX, 0, MPI_COMM_WORLD);
    if (!rank) printf("%.3f s, %.3f GB/s\n", slowest, total / slowest / 1e9);
    free(chunk);
    MPI_Finalize();
    return code;
}
