/*
 * bcast: copies trees of files from a shared file system to all nodes that need them, over MPI.
 *
 *     mpiexec -ppn 1 bcast LIST [--readers N] [--window N] [--threads N] [--piece BYTES] [--rate MIB] [--tree chain|binary]
 *                               [--stall SECONDS] [--ranks N] [--verify | --clean] [--dest-suffix-rank]
 *
 * LIST is made by aegis/staging/listing.py, which says what stands in it. One rank runs on each node.
 *
 * What an item still lacks anywhere is cut into units (messages): a piece of a large file, or many small files. The units
 * are dealt out to lanes, each a contiguous range. A lane has a reader, and a chain (or binary tree) of all nodes that need
 * the item, which starts at the reader; every node is the start of at most a few lanes, so that all links are busy and each
 * node sends and receives every byte once. The main thread does all MPI calls; workers read, hash and write. A lane has a
 * few slots, and a slot is free again when its unit was passed on and written: that is the whole flow control.
 *
 * Each message begins with a CRC-32 for each of its segments, made by the reader and compared by every node while it writes.
 * A node that cannot write goes on passing on, so the others get theirs. A source that cannot be read, or is not what the
 * list says, ends the item everywhere: the reader's words take the place of the data.
 *
 * Exit code: 0 every node has what it needs; 1 some node has not; 2 usage, or the list.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <mpi.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#define MAGIC "AEGIS-STAGE 1"
#define PART ".aegis-part"
#define LOG ".aegis-blocks"
#define MANIFEST ".aegis-manifest"
#define LOCK ".aegis-lock"
#define OLD ".aegis-old"
#define ADOPTED ".aegis-adopted"

enum {
    BLOCK = 8 << 20,       /* bytes that are hashed and resumed as one; listing.BLOCK */
    SEGMENTS = 1000,       /* at most, in a unit */
    HEADER = 4096,         /* bytes before the data of a slot; holds status and SEGMENTS hashes, and keeps the data aligned */
    ERROR = 640,           /* bytes of a message to the user */
    HOST = 128,            /* bytes of a host's name */
    ARITY = 2,             /* children of a node in a lane, at most */
    SMALL_FILE = 16 << 10, /* bytes that a file costs besides its own, when work is dealt out */
    BLOCKS = 1 << 30,      /* of an item, at most: 8 PiB */
    TAG_PROGRESS = 1 << 14,
};

static struct {
    const char *list;
    int readers, window, threads, piece;
    double rate;  /* MiB/s of one reader; 0: no limit */
    double stall; /* seconds without any movement, until all is given up; shared file systems may pause for minutes */
    int arity;   /* of lanes; 0: the cheaper of both */
    int ranks;   /* that there should be; 0: not said */
    bool verify, clean, suffix;
} options = {.readers = 8, .window = 4, .piece = 1 << 20, .stall = 600};

static int rank, ranks;
static char host[HOST];
static char (*hosts)[HOST]; /* of all ranks */
static mode_t umask_then;
static double started;

/* ---- Errors ---------------------------------------------------------------------------------------------------------- */

typedef struct {
    atomic_bool set;
    char text[ERROR];
} Failure;

static pthread_mutex_t failure_lock = PTHREAD_MUTEX_INITIALIZER;

/* Notes what went wrong; the first counts, for the others follow from it. Returns false, so that callers can return it. */
__attribute__((format(printf, 2, 3))) static bool fail(Failure *failure, const char *format, ...) {
    pthread_mutex_lock(&failure_lock);
    if (!failure->set) {
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(failure->text, ERROR, format, arguments);
        va_end(arguments);
        failure->set = true;
    }
    pthread_mutex_unlock(&failure_lock);
    return false;
}

/* A launcher that hears of the end drops what it has not read yet of the ranks' words: they get the time to come through,
   and the other ranks that saw the same get to say theirs. */
_Noreturn static void end_all(void) {
    nanosleep(&(struct timespec){0, 500000000}, NULL);
    MPI_Abort(MPI_COMM_WORLD, 1);
    abort();
}

/* What no node can go on without: memory and threads. */
static void die(const char *what) {
    fprintf(stderr, "bcast: %s: %s: %s\n", host, what, strerror(errno));
    end_all();
}

static void *allocate(size_t count, size_t size) {
    void *memory = calloc(count ? count : 1, size ? size : 1);
    if (!memory) die("no memory");
    return memory;
}

__attribute__((format(printf, 1, 2))) static char *text(const char *format, ...) {
    char *made = NULL;
    va_list arguments;
    va_start(arguments, format);
    if (vasprintf(&made, format, arguments) < 0) die("no memory");
    va_end(arguments);
    return made;
}

/* ---- CRC-32, as zlib's ----------------------------------------------------------------------------------------------- */

enum { POLYNOMIAL = (int)0xedb88320 };
static uint32_t crc_table[8][256];

static void crc_prepare(void) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? (uint32_t)POLYNOMIAL : 0);
        crc_table[0][i] = crc;
    }
    for (int row = 1; row < 8; row++)
        for (int i = 0; i < 256; i++)
            crc_table[row][i] = crc_table[row - 1][i] >> 8 ^ crc_table[0][crc_table[row - 1][i] & 255];
}

/* Slicing by 8. `crc` is neither inverted at the start nor at the end. */
static uint32_t crc_plain(uint32_t crc, const unsigned char *data, size_t length) {
    for (; length >= 8; data += 8, length -= 8) {
        uint32_t low = crc ^ (data[0] | (uint32_t)data[1] << 8 | (uint32_t)data[2] << 16 | (uint32_t)data[3] << 24);
        crc = crc_table[7][low & 255] ^ crc_table[6][low >> 8 & 255] ^ crc_table[5][low >> 16 & 255] ^
              crc_table[4][low >> 24] ^ crc_table[3][data[4]] ^ crc_table[2][data[5]] ^ crc_table[1][data[6]] ^
              crc_table[0][data[7]];
    }
    while (length--) crc = crc >> 8 ^ crc_table[0][(crc ^ *data++) & 255];
    return crc;
}

#ifdef __x86_64__
__attribute__((target("pclmul,sse2"))) static inline __m128i crc_fold(__m128i state, __m128i by, __m128i next) {
    __m128i low = _mm_clmulepi64_si128(state, by, 0x00), high = _mm_clmulepi64_si128(state, by, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

/* Folds 64 bytes a step with carry-less products (Gopal et al., "Fast CRC Computation Using PCLMULQDQ", Intel 2009), for
 * at least 64 bytes. The constants are x^(512+32), x^(512-32), x^(128+32), x^(128-32) modulo the polynomial, reflected.
 * What is left of the state is 16 bytes with the same remainder, so the plain way ends it. */
__attribute__((target("pclmul,sse2"))) static uint32_t crc_folded(uint32_t crc, const unsigned char *data, size_t length) {
    const __m128i by64 = _mm_set_epi64x(0x1c6e41596, 0x154442bd4), by16 = _mm_set_epi64x(0x0ccaa009e, 0x1751997d0);
    const __m128i *at = (const __m128i *)data;
    __m128i a = _mm_xor_si128(_mm_loadu_si128(at), _mm_cvtsi32_si128((int)crc));
    __m128i b = _mm_loadu_si128(at + 1), c = _mm_loadu_si128(at + 2), d = _mm_loadu_si128(at + 3);
    for (at += 4, length -= 64; length >= 64; at += 4, length -= 64) {
        a = crc_fold(a, by64, _mm_loadu_si128(at));
        b = crc_fold(b, by64, _mm_loadu_si128(at + 1));
        c = crc_fold(c, by64, _mm_loadu_si128(at + 2));
        d = crc_fold(d, by64, _mm_loadu_si128(at + 3));
    }
    a = crc_fold(crc_fold(crc_fold(a, by16, b), by16, c), by16, d);
    for (; length >= 16; at++, length -= 16) a = crc_fold(a, by16, _mm_loadu_si128(at));
    unsigned char state[16];
    _mm_storeu_si128((__m128i *)state, a);
    return crc_plain(crc_plain(0, state, sizeof state), (const unsigned char *)at, length);
}
#endif

static uint32_t crc32_of(const void *data, size_t length) {
#ifdef __x86_64__
    if (length >= 64 && __builtin_cpu_supports("pclmul")) return ~crc_folded(~0u, data, length);
#endif
    return ~crc_plain(~0u, data, length);
}

/* The product of two polynomials modulo the CRC's; `a` is not 0. */
static uint32_t crc_product(uint32_t a, uint32_t b) {
    uint32_t product = 0;
    for (uint32_t bit = 1u << 31;; bit >>= 1) {
        if (a & bit) {
            product ^= b;
            if (!(a & (bit - 1))) return product;
        }
        b = b >> 1 ^ (b & 1 ? (uint32_t)POLYNOMIAL : 0);
    }
}

/* The CRC of two texts one after the other, from the CRC of each; `length` is the second one's. */
static uint32_t crc_joined(uint32_t first, uint32_t second, uint64_t length) {
    uint32_t shift = 1u << 31, square = 1u << 23; /* x^0, x^8 */
    for (; length; length >>= 1, square = crc_product(square, square))
        if (length & 1) shift = crc_product(square, shift);
    return crc_product(shift, first) ^ second;
}

/* ---- The list -------------------------------------------------------------------------------------------------------- */

typedef struct {
    const char *path, *source;
    uint64_t size;
    int64_t mtime; /* ns */
    mode_t mode;
    uint32_t first_block, blocks;
} File;

typedef struct {
    const char *path;
    mode_t mode;
} Directory;

typedef struct {
    const char *path, *target;
} Link;

typedef struct {
    uint32_t file, index; /* which block of which file */
    uint32_t crc;
    bool have;            /* on this node */
    uint32_t segments, first_segment;
    atomic_uint left; /* segments not written yet */
} Block;

typedef struct {
    const char *source, *destination;
    const char **hosts;
    File *files;
    Directory *directories;
    Link *links;
    Block *blocks;
    uint32_t host_count, file_count, directory_count, link_count, block_count;
    uint64_t size;
    char *records; /* of the list, without the hosts: what a manifest begins with */
    size_t records_length;
    bool single; /* a file, not a directory */
} Item;

static Item *items;
static uint32_t item_count;

typedef struct {
    const char *at, *end;
} Fields;

static const char *list_error; /* what is wrong with the list */

static const char *field(Fields *fields) {
    if (fields->at >= fields->end) {
        list_error = "it ends within a record";
        return "";
    }
    const char *found = fields->at;
    fields->at += strlen(found) + 1;
    return found;
}

static int64_t number(Fields *fields, int base) {
    const char *digits = field(fields);
    char *end;
    errno = 0;
    int64_t value = strtoll(digits, &end, base);
    if (end == digits || *end || errno) list_error = "a number is none";
    return value;
}

/* A path below the destination: one that leads elsewhere would write there. */
static const char *inner_path(Fields *fields) {
    const char *path = field(fields);
    size_t length = strlen(path);
    bool up = !strcmp(path, "..") || !strncmp(path, "../", 3) || strstr(path, "/../") ||
              (length > 2 && !strcmp(path + length - 3, "/.."));
    if (!*path || *path == '/' || up) list_error = "a path leads out of its destination";
    return path;
}

/* Makes room for one more element: capacities are powers of two. */
static void *grown(void *array, uint32_t count, size_t size) {
    if (count & (count - 1)) return array;
    array = realloc(array, (count ? 2 * (size_t)count : 1) * size);
    if (!array) die("no memory");
    return array;
}
#define APPEND(array, count) ((array) = grown(array, count, sizeof *(array)), &(array)[(count)++])

static void parse_record(Fields *fields) {
    const char *begin = fields->at, *kind = field(fields);
    if (*kind == 'I') {
        Item *item = APPEND(items, item_count);
        *item = (Item){.source = field(fields)};
        item->destination = field(fields);
        if (*item->destination != '/') list_error = "a destination is not absolute";
    } else if (!item_count) {
        list_error = "it does not begin with an item";
        return;
    }
    Item *item = &items[item_count - 1];
    if (*kind == 'R') {
        *APPEND(item->hosts, item->host_count) = field(fields);
    } else if (*kind == 'D') {
        Directory *directory = APPEND(item->directories, item->directory_count);
        directory->path = inner_path(fields);
        directory->mode = (mode_t)number(fields, 8) & 07777;
    } else if (*kind == 'L') {
        Link *link = APPEND(item->links, item->link_count);
        link->path = inner_path(fields);
        link->target = field(fields);
    } else if (*kind == 'F') {
        File *file = APPEND(item->files, item->file_count);
        file->path = inner_path(fields);
        int64_t size = number(fields, 10);
        if (size < 0 || size / BLOCK >= BLOCKS - (int64_t)item->block_count) {
            list_error = "a file is too large, or smaller than nothing";
            return;
        }
        file->size = (uint64_t)size;
        file->mtime = number(fields, 10);
        file->mode = (mode_t)number(fields, 8) & 07777;
        file->source = field(fields);
        file->first_block = item->block_count;
        file->blocks = (uint32_t)((file->size + BLOCK - 1) / BLOCK);
        item->block_count += file->blocks;
        item->size += file->size;
        item->single |= !strcmp(file->path, ".");
    } else if (*kind != 'I') {
        list_error = "a record is of no known kind";
    }
    if (*kind != 'R' && !list_error) {
        size_t length = (size_t)(fields->at - begin);
        item->records = realloc(item->records, item->records_length + length);
        if (!item->records) die("no memory");
        memcpy(item->records + item->records_length, begin, length);
        item->records_length += length;
    }
}

static void number_blocks(Item *item) {
    item->blocks = allocate(item->block_count, sizeof *item->blocks);
    for (uint32_t f = 0; f < item->file_count; f++)
        for (uint32_t i = 0; i < item->files[f].blocks; i++) {
            Block *block = &item->blocks[item->files[f].first_block + i];
            block->file = f, block->index = i;
        }
}

static uint32_t block_length(const Item *item, const Block *block) {
    uint64_t rest = item->files[block->file].size - (uint64_t)block->index * BLOCK;
    return rest < BLOCK ? (uint32_t)rest : BLOCK;
}

/* One rank reads the list: ten thousand nodes that do are a load on the shared file system. */
static char *load_list(size_t *length) {
    char *content = NULL;
    int64_t size = -1;
    FILE *stream = rank ? NULL : fopen(options.list, "rb");
    struct stat stat;
    if (stream && !fstat(fileno(stream), &stat)) {
        content = allocate((size_t)stat.st_size + 1, 1);
        errno = EIO; /* a file that became shorter sets none */
        size = (int64_t)fread(content, 1, (size_t)stat.st_size, stream);
        if (size != stat.st_size) size = -1;
    }
    if (stream) fclose(stream);
    if (!rank && size < 0) fprintf(stderr, "bcast: %s: %s\n", options.list, strerror(errno));
    MPI_Bcast(&size, 1, MPI_INT64_T, 0, MPI_COMM_WORLD);
    if (size < 0) return NULL;
    if (rank) content = allocate((size_t)size + 1, 1);
    for (int64_t at = 0; at < size; at += 1 << 30) {
        int part = (int)(size - at < 1 << 30 ? size - at : 1 << 30);
        MPI_Bcast(content + at, part, MPI_BYTE, 0, MPI_COMM_WORLD);
    }
    *length = (size_t)size;
    return content;
}

static bool parse_list(const char *content, size_t length) {
    Fields fields = {content, content + length};
    uint32_t record = 0;
    if (length && content[length - 1]) list_error = "its end is missing";
    else if (strcmp(field(&fields), MAGIC)) list_error = "it is no list of aegis stage, or of another version";
    while (!list_error && fields.at < fields.end) parse_record(&fields), record++;
    for (uint32_t i = 0; i < item_count && !list_error; i++) {
        number_blocks(&items[i]);
        if (items[i].single && (items[i].file_count != 1 || items[i].directory_count || items[i].link_count))
            list_error = "an item is both a file and a directory";
    }
    if (list_error && !rank) fprintf(stderr, "bcast: %s: record %" PRIu32 ": %s\n", options.list, record, list_error);
    return !list_error;
}

/* Sites tell of nodes with and without their domain. */
static bool same_host(const char *one, const char *other) {
    size_t length = strcspn(one, ".");
    return length == strcspn(other, ".") && !strncasecmp(one, other, length);
}

static bool needed_here(const Item *item) {
    for (uint32_t i = 0; i < item->host_count; i++)
        if (same_host(item->hosts[i], host)) return true;
    return !item->host_count;
}

/* ---- The tree on this node ------------------------------------------------------------------------------------------- */

/* A descriptor that several workers share, while there are segments that need it. */
typedef struct {
    int fd;
    uint32_t total, left;
} Handle;

typedef struct {
    Item *item;
    char *destination, *part, *log, *manifest, *part_manifest;
    int source_dir, part_dir, log_fd, lock_fd; /* -1: none */
    int source_error;                          /* why the source has none */
    bool complete, replaces, finished;         /* there already; another version is there; all but the last rename is done */
    uint64_t missing;                          /* bytes */
    Handle *sources, *targets;
    Failure failure;
} Tree;

static Failure source_failure; /* of the item in work; the same on all nodes */

static void tree_open(Tree *tree, Item *item) {
    char suffix[16] = "";
    if (options.suffix) snprintf(suffix, sizeof suffix, ".%d", rank);
    *tree = (Tree){.item = item, .source_dir = -1, .part_dir = -1, .log_fd = -1, .lock_fd = -1};
    size_t length = strlen(item->destination);
    while (length > 1 && item->destination[length - 1] == '/') length--;
    tree->destination = text("%.*s%s", (int)length, item->destination, suffix);
    tree->part = text("%s" PART, tree->destination);
    tree->log = item->single ? text("%s.blocks", tree->part) : text("%s/" LOG, tree->part);
    tree->manifest = text(item->single ? "%s" MANIFEST : "%s/" MANIFEST, tree->destination);
    tree->part_manifest = item->single ? text("%s.manifest", tree->part) : text("%s/" MANIFEST, tree->part);
}

static void close_all(Handle *handles, uint32_t count) {
    for (uint32_t i = 0; handles && i < count; i++)
        if (handles[i].fd >= 0) close(handles[i].fd);
    free(handles);
}

static void tree_close(Tree *tree) {
    close_all(tree->sources, tree->item->file_count);
    close_all(tree->targets, tree->item->file_count);
    if (tree->source_dir >= 0) close(tree->source_dir);
    if (tree->part_dir >= 0) close(tree->part_dir);
    if (tree->log_fd >= 0) close(tree->log_fd);
    if (tree->lock_fd >= 0) {
        char *path = text("%s" LOCK, tree->destination);
        unlink(path); /* who waits for it sees that, and makes a new one */
        free(path);
        close(tree->lock_fd);
    }
    free(tree->destination), free(tree->part), free(tree->log), free(tree->manifest), free(tree->part_manifest);
}

static int remove_one(const char *path, const struct stat *stat, int kind, struct FTW *walk) {
    (void)stat, (void)kind, (void)walk;
    return remove(path);
}

static int open_up(const char *path, const struct stat *stat, int kind, struct FTW *walk) {
    (void)walk;
    return kind == FTW_D && (stat->st_mode & 0700) != 0700 ? chmod(path, stat->st_mode | 0700) : 0;
}

static bool remove_tree(Tree *tree, const char *path) {
    struct stat stat;
    if (lstat(path, &stat) && (errno == ENOENT || errno == ENOTDIR)) return true;
    nftw(path, open_up, 32, FTW_PHYS);
    if (!nftw(path, remove_one, 32, FTW_PHYS | FTW_DEPTH)) return true;
    return fail(&tree->failure, "cannot remove %s: %s", path, strerror(errno));
}

static bool make_parents(Tree *tree, const char *path) {
    char *copy = text("%s", path);
    bool made = true;
    for (char *slash = strchr(copy + 1, '/'); slash && made; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        if (mkdir(copy, 0777 & ~umask_then) && errno != EEXIST && errno != EISDIR) {
            struct stat stat; /* read-only file systems say so before they say that it exists */
            int why = errno;
            if (lstat(copy, &stat)) made = fail(&tree->failure, "cannot create %s: %s", copy, strerror(why));
        }
        *slash = '/';
    }
    free(copy);
    return made;
}

static char *read_whole(const char *path, size_t *length) {
    FILE *stream = fopen(path, "rb");
    if (!stream) return NULL;
    struct stat stat;
    char *content = NULL;
    if (!fstat(fileno(stream), &stat) && S_ISREG(stat.st_mode)) {
        content = allocate((size_t)stat.st_size + 1, 1);
        *length = fread(content, 1, (size_t)stat.st_size, stream);
    }
    fclose(stream);
    return content;
}

/* Whether a manifest is of exactly this item. With `read_hashes`, the blocks get theirs. */
static bool manifest_matches(Item *item, const char *path, bool read_hashes) {
    size_t length = 0;
    char *content = read_whole(path, &length);
    bool same = content && length >= item->records_length && !memcmp(content, item->records, item->records_length);
    if (same && read_hashes) {
        const char *at = content + item->records_length, *end = content + length;
        same = length && !content[length - 1]; /* else its writer was killed within a hash */
        for (uint32_t i = 0; i < item->block_count && same; i++) {
            const char *word[4];
            for (int w = 0; w < 4; w++) {
                word[w] = at < end ? at : "";
                at += at < end ? strlen(at) + 1 : 0;
            }
            const Block *block = &item->blocks[i];
            same = !strcmp(word[0], "C") && strtoul(word[1], NULL, 10) == block->file &&
                   strtoul(word[2], NULL, 10) == block->index && *word[3];
            item->blocks[i].crc = (uint32_t)strtoul(word[3], NULL, 16);
        }
        same = same && at == end;
    }
    free(content);
    return same;
}

/* The first line of the log: of which list its blocks are. */
static char *digest(const Item *item) {
    return text("%08" PRIx32 " %zu\n", crc32_of(item->records, item->records_length), item->records_length);
}

/* Marks the blocks that an earlier run wrote. Returns whether the log is of this item. */
static bool read_log(Tree *tree) {
    Item *item = tree->item;
    for (uint32_t i = 0; i < item->block_count; i++) item->blocks[i].have = false;
    size_t length = 0;
    char *content = read_whole(tree->log, &length), *first = digest(item);
    bool same = content && !strncmp(content, first, strlen(first));
    for (char *line = same ? content + strlen(first) : NULL; line && *line;) {
        char *end = strchr(line, '\n');
        if (!end) break; /* its writer was killed */
        uint32_t file, index, crc;
        if (sscanf(line, "%" SCNu32 " %" SCNu32 " %" SCNx32, &file, &index, &crc) == 3 && file < item->file_count &&
            index < item->files[file].blocks) {
            Block *block = &item->blocks[item->files[file].first_block + index];
            block->have = true, block->crc = crc;
        }
        line = end + 1;
    }
    free(content), free(first);
    return same;
}

static uint64_t missing_bytes(const Item *item) {
    uint64_t missing = 0;
    for (uint32_t i = 0; i < item->block_count; i++)
        if (!item->blocks[i].have) missing += block_length(item, &item->blocks[i]);
    return missing;
}

/* Whether what is at the destination may be replaced: a tree that was adopted where it lay is somebody's own. */
static bool is_ours(const Tree *tree) {
    char *adopted = text("%s/" ADOPTED, tree->destination);
    bool ours = !access(tree->manifest, F_OK) && access(adopted, F_OK);
    free(adopted);
    return ours;
}

/* Finds what is there and what is missing; changes nothing. */
static bool inspect(Tree *tree) {
    Item *item = tree->item;
    struct stat stat;
    bool exists = !lstat(tree->destination, &stat), ours = is_ours(tree);
    tree->complete = exists && manifest_matches(item, tree->manifest, false);
    if (tree->complete && item->single) { /* its manifest lies beside it, so it may be older than the file */
        int64_t mtime = (int64_t)stat.st_mtim.tv_sec * 1000000000 + stat.st_mtim.tv_nsec;
        tree->complete = (uint64_t)stat.st_size == item->files[0].size && mtime == item->files[0].mtime;
    }
    tree->missing = 0;
    if (tree->complete) return true;
    if (exists && !ours) return fail(&tree->failure, "%s exists and was not staged by aegis", tree->destination);
    tree->replaces = exists;
    tree->finished = manifest_matches(item, tree->part_manifest, true) && !access(tree->part, F_OK);
    if (tree->finished) {
        for (uint32_t i = 0; i < item->block_count; i++) item->blocks[i].have = true;
        return true;
    }
    read_log(tree);
    tree->missing = missing_bytes(item);
    return true;
}

/* ---- Threads that share a loop --------------------------------------------------------------------------------------- */

typedef struct {
    void (*body)(Tree *tree, uint32_t index);
    Tree *tree;
    uint32_t count;
    atomic_uint next;
} Loop;

static void *loop_run(void *argument) {
    Loop *loop = argument;
    for (uint32_t i; (i = atomic_fetch_add(&loop->next, 1)) < loop->count;) loop->body(loop->tree, i);
    return NULL;
}

static void for_each(Tree *tree, uint32_t count, void (*body)(Tree *, uint32_t)) {
    Loop loop = {.body = body, .tree = tree, .count = count};
    pthread_t *threads = allocate((size_t)options.threads, sizeof *threads);
    for (int i = 0; i < options.threads; i++)
        if (pthread_create(&threads[i], NULL, loop_run, &loop)) die("no thread");
    for (int i = 0; i < options.threads; i++) pthread_join(threads[i], NULL);
    free(threads);
}

/* Reads a block back and compares it with the hash that is known of it. */
static bool block_is_sound(int directory, const char *path, const Item *item, const Block *block) {
    uint32_t length = block_length(item, block), got = 0;
    char *data = malloc(length);
    int fd = openat(directory, path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    while (fd >= 0 && data && got < length) {
        ssize_t n = pread(fd, data + got, length - got, (off_t)block->index * BLOCK + got);
        if (n <= 0) break;
        got += (uint32_t)n;
    }
    bool sound = fd >= 0 && data && got == length && crc32_of(data, length) == block->crc;
    if (fd >= 0) close(fd);
    free(data);
    return sound;
}

/* What a killed run left is believed only after a look: the machine may have died, not only the process. */
static void check_resumed(Tree *tree, uint32_t index) {
    Block *block = &tree->item->blocks[index];
    if (!block->have) return;
    const char *path = tree->item->single ? tree->part : tree->item->files[block->file].path;
    struct stat stat; /* a hard link to the source, as a stager on one machine makes them, is never written */
    bool own = !fstatat(tree->part_dir, path, &stat, AT_SYMLINK_NOFOLLOW) && stat.st_nlink == 1;
    block->have = own && block_is_sound(tree->part_dir, path, tree->item, block);
}

static void check_staged(Tree *tree, uint32_t index) {
    Block *block = &tree->item->blocks[index];
    const char *path = tree->item->single ? tree->destination : tree->item->files[block->file].path;
    if (!tree->failure.set && !block_is_sound(tree->part_dir, path, tree->item, block))
        fail(&tree->failure, "%s: block %" PRIu32 " of %s is not what was staged", tree->destination, block->index,
             tree->item->files[block->file].path);
}

/* ---- Begin and end of a tree ----------------------------------------------------------------------------------------- */

static const char *part_path(const Tree *tree, const char *path) { return tree->item->single ? tree->part : path; }

static bool set_times_and_mode(int fd, const File *file) {
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {file->mtime / 1000000000, file->mtime % 1000000000}};
    if (times[1].tv_nsec < 0) times[1].tv_sec--, times[1].tv_nsec += 1000000000; /* before 1970 */
    return !fchmod(fd, file->mode) && !futimens(fd, times);
}

static int open_target(Tree *tree, const File *file) {
    const char *path = part_path(tree, file->path);
    int flags = O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, fd = openat(tree->part_dir, path, flags, 0600);
    if (fd < 0 && errno == EACCES) { /* an earlier run has finished it, and read-only files are staged, too */
        fchmodat(tree->part_dir, path, 0600, 0);
        fd = openat(tree->part_dir, path, flags, 0600);
    }
    struct stat stat;
    if (fd >= 0 && !fstat(fd, &stat) && stat.st_nlink > 1) { /* see check_resumed */
        close(fd);
        fd = unlinkat(tree->part_dir, path, 0) ? -1 : openat(tree->part_dir, path, flags | O_EXCL, 0600);
    }
    if (fd < 0) fail(&tree->failure, "cannot create %s in %s: %s", file->path, tree->part, strerror(errno));
    return fd;
}

/* Files without blocks, and files whose blocks are all there from an earlier run: no worker comes by to end them. */
static bool finish_without_blocks(Tree *tree, const File *file) {
    int fd = open_target(tree, file);
    if (fd < 0) return false;
    bool done = set_times_and_mode(fd, file);
    if (!done) fail(&tree->failure, "cannot finish %s in %s: %s", file->path, tree->part, strerror(errno));
    close(fd);
    return done;
}

static bool make_directories(Tree *tree) {
    for (uint32_t i = 0; i < tree->item->directory_count; i++) {
        const Directory *directory = &tree->item->directories[i];
        if (mkdirat(tree->part_dir, directory->path, directory->mode | 0700) && errno != EEXIST)
            return fail(&tree->failure, "cannot create %s in %s: %s", directory->path, tree->part, strerror(errno));
    }
    return true;
}

static bool open_part(Tree *tree) {
    Item *item = tree->item;
    char *folder = item->single ? text("%s", tree->part) : tree->part;
    if (item->single) *strrchr(folder, '/') = 0;
    else if (mkdir(folder, 0700) && errno != EEXIST)
        return fail(&tree->failure, "cannot create %s: %s", folder, strerror(errno));
    tree->part_dir = open(*folder ? folder : "/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (tree->part_dir < 0) fail(&tree->failure, "cannot open %s: %s", folder, strerror(errno));
    if (item->single) free(folder);
    return tree->part_dir >= 0;
}

/* Opens the log to add to it, without a last line that its writer could not end. */
static bool open_log(Tree *tree, bool resumes) {
    size_t length = 0;
    char *content = resumes ? read_whole(tree->log, &length) : NULL, *first = digest(tree->item);
    while (content && length && content[length - 1] != '\n') length--;
    tree->log_fd = open(tree->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    bool good = tree->log_fd >= 0 && !ftruncate(tree->log_fd, (off_t)length) &&
                (resumes || write(tree->log_fd, first, strlen(first)) == (ssize_t)strlen(first));
    if (!good) fail(&tree->failure, "cannot write %s: %s", tree->log, strerror(errno));
    free(content), free(first);
    return good;
}

/* Makes the tree ready for writers: what an earlier run left of the same item is kept, anything else goes. */
static bool begin_tree(Tree *tree) {
    Item *item = tree->item;
    bool resumes = read_log(tree);
    if (!resumes && !(remove_tree(tree, tree->part) && remove_tree(tree, tree->log))) return false;
    remove_tree(tree, tree->part_manifest);
    if (!open_part(tree)) return false;
    if (resumes) for_each(tree, item->block_count, check_resumed);
    tree->missing = missing_bytes(item);
    if (!open_log(tree, resumes) || !make_directories(tree)) return false;
    for (uint32_t f = 0; f < item->file_count; f++) {
        bool whole = true;
        for (uint32_t i = 0; i < item->files[f].blocks; i++) whole &= item->blocks[item->files[f].first_block + i].have;
        if (whole && !finish_without_blocks(tree, &item->files[f])) return false;
    }
    return true;
}

static bool write_manifest(Tree *tree) {
    const Item *item = tree->item;
    FILE *stream = fopen(tree->part_manifest, "wb");
    if (!stream) return fail(&tree->failure, "cannot write %s: %s", tree->part_manifest, strerror(errno));
    fchmod(fileno(stream), 0644 & ~umask_then);
    fwrite(item->records, 1, item->records_length, stream);
    for (uint32_t i = 0; i < item->block_count; i++) {
        const Block *block = &item->blocks[i];
        fprintf(stream, "C%c%" PRIu32 "%c%" PRIu32 "%c%08" PRIx32 "%c", 0, block->file, 0, block->index, 0, block->crc, 0);
    }
    bool written = !ferror(stream);
    if (fclose(stream) || !written) return fail(&tree->failure, "cannot write %s: %s", tree->part_manifest, strerror(errno));
    return true;
}

static bool make_links(Tree *tree) {
    for (uint32_t i = 0; i < tree->item->link_count; i++) {
        const Link *link = &tree->item->links[i];
        unlinkat(tree->part_dir, link->path, 0);
        if (symlinkat(link->target, tree->part_dir, link->path))
            return fail(&tree->failure, "cannot link %s in %s: %s", link->path, tree->part, strerror(errno));
    }
    return true;
}

static bool set_directory_modes(Tree *tree) {
    for (uint32_t i = tree->item->directory_count; i-- > 0;) {
        const Directory *directory = &tree->item->directories[i];
        if (fchmodat(tree->part_dir, directory->path, directory->mode, 0))
            return fail(&tree->failure, "cannot set the mode of %s in %s: %s", directory->path, tree->part, strerror(errno));
    }
    return true;
}

/* One rename, and the destination is there, whole. An older version goes first to a name beside it. */
static bool publish(Tree *tree) {
    char *old = text("%s" OLD, tree->destination);
    struct stat stat;
    bool done = remove_tree(tree, old);
    if (done && !tree->replaces && !lstat(tree->destination, &stat))
        done = fail(&tree->failure, "%s exists and was not staged by aegis", tree->destination);
    if (done && tree->item->single && rename(tree->part_manifest, tree->manifest))
        done = fail(&tree->failure, "cannot rename %s: %s", tree->part_manifest, strerror(errno));
    if (done && tree->replaces && !tree->item->single && rename(tree->destination, old))
        done = fail(&tree->failure, "cannot rename %s: %s", tree->destination, strerror(errno));
    if (done && rename(tree->part, tree->destination))
        done = fail(&tree->failure, "cannot rename %s to %s: %s", tree->part, tree->destination, strerror(errno));
    if (done) remove_tree(tree, old);
    free(old);
    return done;
}

/* With its manifest a tree is complete, whenever we are killed; the modes come last, for they may close its folders. */
static bool finish_tree(Tree *tree) {
    if (source_failure.set) return fail(&tree->failure, "%s", source_failure.text);
    if (tree->failure.set) return false;
    for (uint32_t i = 0; i < tree->item->block_count; i++)
        if (!tree->item->blocks[i].have) return fail(&tree->failure, "%s: a block never came", tree->destination);
    if (tree->finished ? !open_part(tree) : !make_links(tree) || !write_manifest(tree)) return false;
    unlink(tree->log);
    return set_directory_modes(tree) && publish(tree);
}

/* ---- The plan of an item: segments, units, lanes --------------------------------------------------------------------- */

typedef struct {
    uint32_t block, offset, length, crc;
} Segment;

typedef struct {
    uint32_t first, count, bytes; /* segments, and what they hold */
} Unit;

typedef struct Slot Slot;

typedef struct {
    int root, position, parent; /* the reader's rank; where this rank stands; -1: nowhere, or no parent */
    int children[ARITY], child_count;
    uint32_t first, count;                  /* units */
    uint32_t next_fill, next_send, next_done; /* of the lane's own: the slots of [next_done, next_fill) are in use */
    uint32_t given, taken;                    /* to workers, by workers */
    int workers;                              /* busy with it */
    Slot *slots;
} Lane;

struct Slot {
    char *buffer; /* HEADER bytes and options.piece bytes */
    const Unit *unit;
    Lane *lane;
    int length; /* of the message */
    MPI_Request receive, sends[ARITY];
    atomic_bool filled, written;
};

static Segment *segments;
static Unit *units;
static uint32_t segment_count, unit_count;
static Lane *lanes;
static int lane_count;
static Tree *current; /* the tree in work */
static bool writes;   /* this node needs the item (a reader may not) */

/* Cuts the blocks that somebody lacks into segments, and packs these into units in their order. */
static void plan_units(Item *item, const unsigned char *wanted) {
    segment_count = unit_count = 0;
    for (uint32_t b = 0; b < item->block_count; b++) {
        Block *block = &item->blocks[b];
        block->segments = 0, block->first_segment = segment_count;
        uint32_t length = block_length(item, block), piece = (uint32_t)options.piece;
        if (!(wanted[b / 8] >> b % 8 & 1)) continue;
        for (uint32_t at = 0; at < length; at += piece) {
            Unit *unit = unit_count ? &units[unit_count - 1] : NULL;
            uint32_t part = length - at < piece ? length - at : piece;
            if (!unit || unit->bytes + part > piece || unit->count == SEGMENTS) {
                unit = APPEND(units, unit_count);
                *unit = (Unit){.first = segment_count};
            }
            *APPEND(segments, segment_count) = (Segment){.block = b, .offset = at, .length = part};
            unit->count++, unit->bytes += part, block->segments++;
        }
        block->left = block->segments;
    }
}

static uint64_t weight(const Unit *unit) { return unit->bytes + (uint64_t)unit->count * SMALL_FILE; }

/* Gives each lane a contiguous range of about the same weight: so lanes are in different files most of the time. */
static void deal_units(void) {
    uint64_t total = 0, sum = 0;
    for (uint32_t u = 0; u < unit_count; u++) total += weight(&units[u]);
    uint32_t u = 0;
    for (int i = 0; i < lane_count; i++) {
        lanes[i].first = u;
        uint64_t limit = total / (uint64_t)lane_count * (uint64_t)(i + 1);
        while (u < unit_count && (sum < limit || i == lane_count - 1)) sum += weight(&units[u++]);
        lanes[i].count = u - lanes[i].first;
    }
}

/* A chain takes (bytes + members x piece) / rate, a binary tree twice the bytes and only log2(members) pieces. */
static int choose_arity(int members) {
    uint64_t bytes = 0;
    int levels = 1;
    for (uint32_t u = 0; u < unit_count; u++) bytes += units[u].bytes;
    while (members >> levels) levels++;
    uint64_t piece = (uint64_t)options.piece;
    if (options.arity) return options.arity;
    return bytes + (uint64_t)members * piece <= 2 * bytes + 2 * (uint64_t)levels * piece ? 1 : 2;
}

/* The members of a lane stand in a ring by rank, and the lane starts at its reader; a reader that does not need the item
 * itself stands before all of them. */
static int rank_at(const Lane *lane, const int *needy, int count, int start, int position) {
    if (start >= 0) return needy[(start + position) % count];
    return position ? needy[position - 1] : lane->root;
}

static void place_in_lane(Lane *lane, const int *needy, int count) {
    int start = -1;
    for (int i = 0; i < count; i++)
        if (needy[i] == lane->root) start = i;
    int members = count + (start < 0), arity = choose_arity(members);
    lane->position = lane->parent = -1;
    lane->child_count = 0;
    for (int p = 0; p < members && lane->position < 0; p++)
        if (rank_at(lane, needy, count, start, p) == rank) lane->position = p;
    if (lane->position < 0) return;
    if (lane->position) lane->parent = rank_at(lane, needy, count, start, (lane->position - 1) / arity);
    for (int c = arity * lane->position + 1; c <= arity * (lane->position + 1) && c < members; c++)
        lane->children[lane->child_count++] = rank_at(lane, needy, count, start, c);
}

/* ---- Workers: read, hash, write -------------------------------------------------------------------------------------- */

static struct {
    pthread_mutex_t lock;
    pthread_cond_t more, done;
    uint32_t finished; /* steps, ever: the main thread sees by it that it has something to do */
    bool closed;
} queue = {.lock = PTHREAD_MUTEX_INITIALIZER, .more = PTHREAD_COND_INITIALIZER, .done = PTHREAD_COND_INITIALIZER};

static pthread_mutex_t handle_lock = PTHREAD_MUTEX_INITIALIZER;
static atomic_ullong bytes_read;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static int handle_get(Handle *handle, int (*open_it)(Tree *, const File *), const File *file) {
    if (handle->total == 1) return open_it(current, file); /* nobody to share it with, so no lock */
    pthread_mutex_lock(&handle_lock);
    if (handle->fd < 0) handle->fd = open_it(current, file);
    int fd = handle->fd;
    pthread_mutex_unlock(&handle_lock);
    return fd;
}

/* Whether this was the last use: then the caller ends the file and closes it. */
static bool handle_was_last(Handle *handle) {
    if (handle->total == 1) return true;
    pthread_mutex_lock(&handle_lock);
    bool last = !--handle->left;
    if (last) handle->fd = -1;
    pthread_mutex_unlock(&handle_lock);
    return last;
}

/* A file that is not as it was listed makes a mixture of two versions. */
static bool source_unchanged(int fd, const File *file) {
    struct stat stat;
    if (fstat(fd, &stat)) return fail(&source_failure, "cannot read %s: %s", file->source, strerror(errno));
    int64_t mtime = (int64_t)stat.st_mtim.tv_sec * 1000000000 + stat.st_mtim.tv_nsec;
    if ((uint64_t)stat.st_size == file->size && mtime == file->mtime) return true;
    return fail(&source_failure, "%s/%s changed while it was staged: it had %" PRIu64 " bytes when listed and has %" PRIu64
                " now (%s)", current->item->source, file->source, file->size, (uint64_t)stat.st_size, host);
}

static int open_source(Tree *tree, const File *file) {
    const int flags = O_RDONLY | O_CLOEXEC;
    int fd = tree->item->single ? open(tree->item->source, flags) : openat(tree->source_dir, file->source, flags);
    if (fd < 0)
        fail(&source_failure, "cannot read %s/%s on %s: %s", tree->item->source, file->source, host,
             strerror(tree->source_error ? tree->source_error : errno));
    else if (!source_unchanged(fd, file)) close(fd), fd = -1;
    return fd;
}

static bool read_segment(const Segment *segment, char *data) {
    const Block *block = &current->item->blocks[segment->block];
    const File *file = &current->item->files[block->file];
    Handle *handle = &current->sources[block->file];
    int fd = handle_get(handle, open_source, file);
    if (fd < 0) return false;
    off_t offset = (off_t)block->index * BLOCK + segment->offset;
    if (!segment->offset && handle->total > 1) posix_fadvise(fd, offset, BLOCK, POSIX_FADV_WILLNEED);
    bool good = true;
    for (uint32_t got = 0; got < segment->length && good;) {
        ssize_t n = pread(fd, data + got, segment->length - got, offset + got);
        if (n > 0) got += (uint32_t)n;
        else if (n < 0 && errno == EINTR) continue;
        else good = fail(&source_failure, "cannot read %s/%s on %s: %s", current->item->source, file->source, host,
                         n ? strerror(errno) : "it shrank while it was staged");
    }
    if (handle_was_last(handle)) {
        good = source_unchanged(fd, file) && good;
        close(fd);
    }
    return good;
}

static size_t header_length(const Unit *unit) { return sizeof(uint32_t) * (1 + unit->count); }
static char *data_of(const Slot *slot) { return slot->buffer + HEADER; }

/* The message stands right before the data: a status (0, or 1 and the reader's words), the hashes, the data. */
static uint32_t *message_of(const Slot *slot) { return (uint32_t *)(void *)(data_of(slot) - header_length(slot->unit)); }

static void hold_rate(void) {
    if (options.rate <= 0) return;
    static _Thread_local double next;
    double each = (double)options.piece * options.threads / (options.rate * 1048576), time = now();
    next = (next > time ? next : time) + each;
    double wait = next - time;
    nanosleep(&(struct timespec){(time_t)wait, (long)(1e9 * (wait - (double)(time_t)wait))}, NULL);
}

static void read_unit(Slot *slot) {
    uint32_t *message = message_of(slot);
    char *data = data_of(slot);
    bool good = !source_failure.set;
    if (good) hold_rate();
    for (uint32_t i = 0; i < slot->unit->count && good; i++) {
        Segment *segment = &segments[slot->unit->first + i];
        good = read_segment(segment, data);
        if (good) segment->crc = message[1 + i] = crc32_of(data, segment->length);
        data += segment->length;
    }
    message[0] = !good;
    slot->length = (int)(header_length(slot->unit) + slot->unit->bytes);
    if (good) {
        bytes_read += slot->unit->bytes;
    } else {
        memcpy(&message[1], source_failure.text, ERROR);
        slot->length = (int)sizeof *message + ERROR;
    }
}

static void block_written(Block *block, char *lines, size_t *length) {
    const Segment *segment = &segments[block->first_segment];
    uint32_t crc = segment->crc;
    for (uint32_t i = 1; i < block->segments; i++) crc = crc_joined(crc, segment[i].crc, segment[i].length);
    block->crc = crc;
    block->have = true;
    *length += (size_t)sprintf(lines + *length, "%" PRIu32 " %" PRIu32 " %08" PRIx32 "\n", block->file, block->index, crc);
}

static bool write_segment(const Segment *segment, const char *data) {
    const Block *block = &current->item->blocks[segment->block];
    const File *file = &current->item->files[block->file];
    Handle *handle = &current->targets[block->file];
    int fd = handle_get(handle, open_target, file);
    if (fd < 0) return false;
    off_t offset = (off_t)block->index * BLOCK + segment->offset;
    for (uint32_t put = 0; put < segment->length;) {
        ssize_t n = pwrite(fd, data + put, segment->length - put, offset + put);
        if (n >= 0) put += (uint32_t)n;
        else if (errno != EINTR) {
            fail(&current->failure, "cannot write %s in %s: %s", file->path, current->part, strerror(errno));
            if (handle->total == 1) close(fd); /* else it is closed with the tree */
            return false;
        }
    }
    if (handle_was_last(handle)) {
        if (!set_times_and_mode(fd, file)) fail(&current->failure, "cannot finish %s: %s", file->path, strerror(errno));
        if (close(fd)) fail(&current->failure, "cannot write %s in %s: %s", file->path, current->part, strerror(errno));
    }
    return true;
}

static void write_unit(Slot *slot) {
    const uint32_t *message = message_of(slot);
    if (message[0]) {
        if (slot->lane->position) fail(&source_failure, "%.*s", ERROR - 1, (const char *)&message[1]);
        return;
    }
    if (!writes) return;
    char lines[SEGMENTS * 32], *data = data_of(slot);
    size_t length = 0;
    for (uint32_t i = 0; i < slot->unit->count && !current->failure.set; i++) {
        Segment *segment = &segments[slot->unit->first + i];
        const char *at = data;
        data += segment->length;
        Block *block = &current->item->blocks[segment->block];
        if (block->have) continue;
        if (slot->lane->position && (segment->crc = crc32_of(at, segment->length)) != message[1 + i]) {
            fail(&current->failure, "%s did not arrive as it was sent", current->item->files[block->file].path);
            break;
        }
        if (!write_segment(segment, at)) break;
        if (atomic_fetch_sub(&block->left, 1) == 1) block_written(block, lines, &length);
    }
    if (length && write(current->log_fd, lines, length) != (ssize_t)length)
        fail(&current->failure, "cannot write %s: %s", current->log, strerror(errno));
}

static void step_done(atomic_bool *step) {
    *step = true;
    pthread_mutex_lock(&queue.lock);
    queue.finished++;
    pthread_cond_signal(&queue.done);
    pthread_mutex_unlock(&queue.lock);
}

/* The next unit for a worker, of the lane with the fewest: lanes are in different files, and writers of one file wait for
 * each other. Of equal lanes, the one after the last that was served. */
static Slot *take_slot(void) {
    static int last;
    Lane *best = NULL;
    for (int i = 1; i <= lane_count; i++) {
        Lane *lane = &lanes[(last + i) % lane_count];
        if (lane->taken < lane->given && (!best || lane->workers < best->workers)) best = lane;
    }
    if (!best) return NULL;
    last = (int)(best - lanes);
    best->workers++;
    return &best->slots[best->taken++ % (uint32_t)options.window];
}

static void *work(void *unused) {
    (void)unused;
    pthread_mutex_lock(&queue.lock);
    for (;;) {
        Slot *slot = take_slot();
        if (!slot) {
            if (queue.closed) break;
            pthread_cond_wait(&queue.more, &queue.lock);
            continue;
        }
        pthread_mutex_unlock(&queue.lock);
        Lane *lane = slot->lane;
        if (!lane->position) { /* writes what it read while that is in its cache and under way to the others */
            read_unit(slot);
            step_done(&slot->filled);
        }
        write_unit(slot);
        step_done(&slot->written);
        pthread_mutex_lock(&queue.lock);
        lane->workers--;
    }
    pthread_mutex_unlock(&queue.lock);
    return NULL;
}

static void give_to_worker(Lane *lane) {
    pthread_mutex_lock(&queue.lock);
    lane->given++;
    pthread_cond_signal(&queue.more);
    pthread_mutex_unlock(&queue.lock);
}

/* ---- The pipeline: the main thread ----------------------------------------------------------------------------------- */

static void fill_slot(Lane *lane, int tag) {
    Slot *slot = &lane->slots[lane->next_fill % (uint32_t)options.window];
    slot->unit = &units[lane->first + lane->next_fill++];
    slot->lane = lane;
    slot->filled = slot->written = false;
    if (!lane->position) {
        give_to_worker(lane);
        return;
    }
    size_t length = header_length(slot->unit) + slot->unit->bytes, least = sizeof(uint32_t) + ERROR;
    MPI_Irecv(message_of(slot), (int)(length > least ? length : least), MPI_BYTE, lane->parent, tag, MPI_COMM_WORLD,
              &slot->receive);
}

static bool slot_is_filled(Slot *slot) {
    if (slot->filled || !slot->lane->position) return slot->filled;
    int arrived;
    MPI_Status status;
    MPI_Test(&slot->receive, &arrived, &status);
    if (!arrived) return false;
    MPI_Get_count(&status, MPI_BYTE, &slot->length);
    slot->filled = true;
    give_to_worker(slot->lane);
    return true;
}

/* Moves a lane on as far as it goes without waiting. Returns whether it moved. */
static bool advance(Lane *lane, int tag) {
    uint32_t before = lane->next_fill + lane->next_send + lane->next_done;
    while (lane->next_send < lane->next_fill) {
        Slot *slot = &lane->slots[lane->next_send % (uint32_t)options.window];
        if (!slot_is_filled(slot)) break;
        for (int c = 0; c < lane->child_count; c++)
            MPI_Isend(message_of(slot), slot->length, MPI_BYTE, lane->children[c], tag, MPI_COMM_WORLD, &slot->sends[c]);
        lane->next_send++;
    }
    while (lane->next_done < lane->next_send) {
        Slot *slot = &lane->slots[lane->next_done % (uint32_t)options.window];
        int sent = 1;
        MPI_Status statuses[ARITY];
        if (lane->child_count) MPI_Testall(lane->child_count, slot->sends, &sent, statuses);
        if (!sent || !slot->written) break;
        lane->next_done++;
    }
    if (lane->next_fill < lane->count && lane->next_fill - lane->next_done < (uint32_t)options.window) fill_slot(lane, tag);
    return lane->next_fill + lane->next_send + lane->next_done != before;
}

/* How far the readers are, as rank 0 hears of it. */
static struct {
    uint64_t *of_rank; /* bytes that it read, ever; the highest bit: it has read all of this item */
    uint64_t outgoing, total, before;
    MPI_Request request;
    double next, next_line;
    bool moved; /* since somebody looked */
    uint32_t item;
    int nodes, nodes_done;
} progress = {.request = MPI_REQUEST_NULL};
#define FINISHED ((uint64_t)1 << 63)

static bool is_reader(int which) {
    for (int i = 0; i < lane_count; i++)
        if (lanes[i].root == which) return true;
    return false;
}

static uint64_t bytes_heard(void) {
    uint64_t sum = 0;
    for (int r = 0; r < ranks; r++) sum += progress.of_rank[r] & ~FINISHED;
    return sum;
}

static void tell_progress(bool finished) {
    int free_again;
    MPI_Test(&progress.request, &free_again, MPI_STATUS_IGNORE);
    if (!finished && (!free_again || now() < progress.next)) return;
    MPI_Wait(&progress.request, MPI_STATUS_IGNORE);
    progress.next = now() + 0.5;
    progress.outgoing = bytes_read | (finished ? FINISHED : 0);
    if (!rank) progress.of_rank[0] = progress.outgoing;
    else MPI_Isend(&progress.outgoing, 1, MPI_UINT64_T, 0, TAG_PROGRESS, MPI_COMM_WORLD, &progress.request);
}

/* On rank 0: whether all readers have read all. */
static bool hear_progress(void) {
    int waiting;
    MPI_Status status;
    for (MPI_Iprobe(MPI_ANY_SOURCE, TAG_PROGRESS, MPI_COMM_WORLD, &waiting, &status); waiting;
         MPI_Iprobe(MPI_ANY_SOURCE, TAG_PROGRESS, MPI_COMM_WORLD, &waiting, &status)) {
        uint64_t *bytes = &progress.of_rank[status.MPI_SOURCE], before = *bytes;
        MPI_Recv(bytes, 1, MPI_UINT64_T, status.MPI_SOURCE, TAG_PROGRESS, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        progress.moved |= *bytes != before;
    }
    if (now() >= progress.next_line) {
        progress.next_line = now() + 1;
        printf("{\"event\":\"progress\",\"item\":%" PRIu32 ",\"bytes\":%" PRIu64 ",\"total\":%" PRIu64
               ",\"nodes_done\":%d,\"nodes\":%d,\"seconds\":%.3f}\n",
               progress.item, bytes_heard() - progress.before, progress.total, progress.nodes_done, progress.nodes,
               now() - started);
        fflush(stdout);
    }
    for (int i = 0; i < lane_count; i++)
        if (!(progress.of_rank[lanes[i].root] & FINISHED)) return false;
    return true;
}

/* Waits for a worker a moment, but not longer: MPI cannot wake this thread, and other ranks may share its CPU. */
static void idle(uint32_t *seen, uint32_t times) {
    if (times < 64) {
        sched_yield();
        return;
    }
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += times < 1024 ? 20000 : 200000;
    if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
    pthread_mutex_lock(&queue.lock);
    if (queue.finished == *seen) pthread_cond_timedwait(&queue.done, &queue.lock, &until);
    *seen = queue.finished;
    pthread_mutex_unlock(&queue.lock);
}

/* What a lane waits for. */
static const char *awaited(const Lane *lane) {
    Slot *slot = &lane->slots[lane->next_done % (uint32_t)options.window];
    if (lane->next_send == lane->next_done) return lane->position ? hosts[lane->parent] : "its own reading of the source";
    if (!slot->written) return "its own writing";
    for (int c = 0; c < lane->child_count; c++) {
        int sent;
        MPI_Test(&slot->sends[c], &sent, MPI_STATUS_IGNORE);
        if (!sent) return hosts[lane->children[c]];
    }
    return "the others";
}

/* A node that was cut off, or hangs, says nothing, and MPI may wait for it for ever. Its neighbours stop first, and so name
 * it first. The ranks that are left end, and what they have is kept for the next run. */
static void give_up(void) {
    const char *what = "the readers";
    for (int i = 0; i < lane_count; i++)
        if (lanes[i].position >= 0 && lanes[i].next_done < lanes[i].count) what = awaited(&lanes[i]);
    for (int i = 0; i < 2; i++) /* on standard output, too: who started us hears that even if its launcher hangs then */
        fprintf(i ? stderr : stdout, "bcast: %s: nothing has moved for %.0f s; it waits for %s\n", host, options.stall, what);
    fflush(stdout);
    end_all();
}

static void pump(void) {
    bool reads = is_reader(rank), told = false, heard = rank != 0;
    uint32_t idle_times = 0, seen = 0;
    double since = now();
    for (bool open = true; open || !heard || (reads && !told);) {
        bool moved = open = false;
        for (int i = 0; i < lane_count; i++) {
            if (lanes[i].position < 0) continue;
            moved |= advance(&lanes[i], i);
            open |= lanes[i].next_done < lanes[i].count;
        }
        if (reads && !told) tell_progress(told = !open);
        if (!rank) heard = hear_progress();
        if (moved || progress.moved) since = now();
        else if (now() - since > options.stall) give_up();
        progress.moved = false;
        if (moved) idle_times = 0;
        else idle(&seen, idle_times++);
    }
    MPI_Wait(&progress.request, MPI_STATUS_IGNORE);
}

/* ---- Results --------------------------------------------------------------------------------------------------------- */

typedef struct {
    int32_t final, ok, skipped; /* final: this is to be told now */
    uint64_t bytes;
    char error[ERROR];
} Result;

static int failures, finals; /* told so far; on rank 0 */

/* How many bytes a UTF-8 character has; 0: it is none. Paths may hold any byte, and JSON may not. */
static int utf8_length(const unsigned char *at) {
    int length = *at < 0x80 ? 1 : *at < 0xc2 ? 0 : *at < 0xe0 ? 2 : *at < 0xf0 ? 3 : *at < 0xf5 ? 4 : 0;
    for (int i = 1; i < length; i++)
        if ((at[i] & 0xc0) != 0x80) return 0;
    bool overlong = (*at == 0xe0 && at[1] < 0xa0) || (*at == 0xf0 && at[1] < 0x90);
    bool outside = (*at == 0xed && at[1] > 0x9f) || (*at == 0xf4 && at[1] > 0x8f);
    return overlong || outside ? 0 : length;
}

static void print_json_string(const char *string) {
    putchar('"');
    for (const unsigned char *at = (const unsigned char *)string; *at;) {
        int length = utf8_length(at);
        if (!length) printf("\\\\x%02x", *at);
        else if (*at < 32) printf("\\u%04x", *at);
        else printf("%s%.*s", *at == '"' || *at == '\\' ? "\\" : "", length, (const char *)at);
        at += length ? length : 1;
    }
    putchar('"');
}

static void print_result(uint32_t item, int who, const Result *result) {
    printf("{\"event\":\"node\",\"item\":%" PRIu32 ",\"host\":", item);
    print_json_string(hosts[who]);
    printf(",\"ok\":%s,\"skipped\":%s,\"bytes\":%" PRIu64 ",\"error\":", result->ok ? "true" : "false",
           result->skipped ? "true" : "false", result->bytes);
    if (result->ok) printf("null");
    else print_json_string(result->error);
    printf("}\n");
}

/* Tells of all ranks whose result is final. All ranks call it. */
static void report(uint32_t item, const Result *mine) {
    int any = mine->final, total;
    MPI_Allreduce(&any, &total, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    if (!total) return;
    Result *all = rank ? NULL : allocate((size_t)ranks, sizeof *all);
    MPI_Gather(mine, sizeof *mine, MPI_BYTE, all, sizeof *mine, MPI_BYTE, 0, MPI_COMM_WORLD);
    for (int r = 0; !rank && r < ranks; r++) {
        if (!all[r].final) continue;
        print_result(item, r, &all[r]);
        failures += !all[r].ok;
        finals++;
    }
    if (!rank) fflush(stdout);
    free(all);
}

static void settle(Result *result, const Tree *tree, bool skipped, uint64_t bytes) {
    *result = (Result){.final = 1, .ok = !tree->failure.set, .skipped = skipped, .bytes = bytes};
    memcpy(result->error, tree->failure.text, ERROR);
}

/* ---- Before a byte moves --------------------------------------------------------------------------------------------- */

/* What items before this one will take of each file system. */
typedef struct {
    dev_t device;
    uint64_t bytes;
} Claim;

static bool check_space(Tree *tree, Claim *claims, uint32_t *claim_count) {
    char *folder = text("%s", tree->destination);
    struct statvfs space;
    struct stat stat;
    *strrchr(folder, '/') = 0;
    const char *path = *folder ? folder : "/";
    bool good = !statvfs(path, &space) && !lstat(path, &stat);
    if (!good) fail(&tree->failure, "cannot look at %s: %s", path, strerror(errno));
    else if (access(path, W_OK | X_OK)) good = fail(&tree->failure, "cannot write into %s: %s", path, strerror(errno));
    uint64_t need = tree->missing + 4096ull * (tree->item->file_count + tree->item->directory_count), taken = 0;
    Claim *claim = NULL;
    for (uint32_t i = 0; good && i < *claim_count; i++)
        if (claims[i].device == stat.st_dev) claim = &claims[i], taken = claim->bytes;
    if (good) {
        uint64_t free_bytes = (uint64_t)space.f_bavail * space.f_frsize, left = free_bytes > taken ? free_bytes - taken : 0;
        uint64_t inodes = tree->item->file_count + tree->item->directory_count + tree->item->link_count;
        if (need > left)
            good = fail(&tree->failure, "%s has %.2f GiB free%s and needs %.2f GiB for %s", path, (double)left / (1 << 30),
                        taken ? " beside the other items" : "", (double)need / (1 << 30), tree->destination);
        else if (space.f_files && space.f_favail < inodes && tree->missing == tree->item->size)
            good = fail(&tree->failure, "%s has %" PRIu64 " inodes free and needs %" PRIu64, path, (uint64_t)space.f_favail, inodes);
    }
    if (good && !claim) claim = &claims[(*claim_count)++], *claim = (Claim){.device = stat.st_dev};
    if (good) claim->bytes += need;
    free(folder);
    return good;
}

/* Looks at every item's destination, and tells at once of those that are there and those that cannot be. */
static void survey(char *pending) {
    Claim *claims = allocate(item_count, sizeof *claims);
    uint32_t claim_count = 0;
    for (uint32_t i = 0; i < item_count; i++) {
        Result result = {0};
        if (needed_here(&items[i])) {
            Tree tree;
            tree_open(&tree, &items[i]);
            if (make_parents(&tree, tree.destination) && inspect(&tree) && !tree.complete) check_space(&tree, claims, &claim_count);
            pending[i] = !tree.failure.set && !tree.complete;
            if (!pending[i]) settle(&result, &tree, tree.complete, 0);
            tree_close(&tree);
        }
        report(i, &result);
    }
    free(claims);
}

/* ---- An item --------------------------------------------------------------------------------------------------------- */

/* Two jobs may stage the same destination: the second waits. Nobody waits while holding a lock, so they cannot block
 * each other over several nodes. */
static bool lock_destination(Tree *tree) {
    char *path = text("%s" LOCK, tree->destination);
    struct stat held, there;
    int fd = open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    bool locked = fd >= 0 && !flock(fd, LOCK_EX | LOCK_NB);
    if (!locked && errno != EWOULDBLOCK) fail(&tree->failure, "cannot lock %s: %s", path, strerror(errno));
    if (locked) /* its last holder has removed it, and who waited for it holds the lock of nothing: the next round tries anew */
        locked = !fstat(fd, &held) && !stat(path, &there) && held.st_ino == there.st_ino;
    if (locked) tree->lock_fd = fd;
    else if (fd >= 0) close(fd);
    free(path);
    return locked;
}

/* Candidates for reading are spread over the nodes; all nodes asking the shared file system at once would be a load. */
static bool is_candidate(const int *needy, int count) {
    int most = 2 * options.readers;
    for (int i = 0; i < count && i < most; i++)
        if (needy[count <= most ? i : (int)((int64_t)i * count / most)] == rank) return true;
    return !rank;
}

static bool can_read(const Item *item) {
    const File *file = item->file_count ? &item->files[0] : NULL;
    struct stat stat;
    bool whole = file && *file->source == '/';
    char *path = !file || item->single ? text("%s", item->source)
                                       : text("%s%s%s", whole ? "" : item->source, whole ? "" : "/", file->source);
    bool can = !lstat(path, &stat) && !access(path, R_OK);
    free(path);
    return can;
}

static void choose_readers(const Item *item, const int *needy, int count) {
    char mine = is_candidate(needy, count) && can_read(item), *can = allocate((size_t)ranks, 1);
    MPI_Allgather(&mine, 1, MPI_CHAR, can, 1, MPI_CHAR, MPI_COMM_WORLD);
    int *able = allocate((size_t)ranks, sizeof *able), able_count = 0;
    for (int i = 0; i < count; i++)
        if (can[needy[i]]) able[able_count++] = needy[i];
    if (!able_count) able[able_count++] = 0; /* rank 0 reads for the others, or says why it cannot */
    for (int i = 0; i < lane_count; i++)
        lanes[i].root = able_count <= lane_count ? able[i % able_count] : able[(int64_t)i * able_count / lane_count];
    free(can), free(able);
}

/* No block is read of empty files, so nobody would notice that they are gone, or empty no more. */
static void check_empty_files(Tree *tree) {
    const Item *item = tree->item;
    if (rank == lanes[0].root)
        for (uint32_t f = 0; f < item->file_count && !source_failure.set; f++) {
            int fd = item->files[f].size ? -1 : open_source(tree, &item->files[f]);
            if (fd >= 0) close(fd);
        }
    char said[ERROR] = "";
    if (source_failure.set) memcpy(said, source_failure.text, ERROR);
    MPI_Bcast(said, ERROR, MPI_CHAR, lanes[0].root, MPI_COMM_WORLD);
    if (*said) fail(&source_failure, "%s", said);
}

static void count_handles(Tree *tree) {
    Item *item = tree->item;
    tree->sources = allocate(item->file_count, sizeof *tree->sources);
    tree->targets = allocate(item->file_count, sizeof *tree->targets);
    for (uint32_t f = 0; f < item->file_count; f++) tree->sources[f].fd = tree->targets[f].fd = -1;
    for (int i = 0; i < lane_count; i++)
        for (uint32_t u = lanes[i].first; u < lanes[i].first + lanes[i].count; u++)
            for (uint32_t s = units[u].first; s < units[u].first + units[u].count; s++) {
                const Block *block = &item->blocks[segments[s].block];
                if (!lanes[i].position) tree->sources[block->file].total++;
                if (!block->have) tree->targets[block->file].total++;
            }
    for (uint32_t f = 0; f < item->file_count; f++) {
        tree->sources[f].left = tree->sources[f].total;
        tree->targets[f].left = tree->targets[f].total;
    }
}

/* Sends what the nodes in `needy` lack. All ranks call it; most may have nothing to do. */
static void stream(Tree *tree, const int *needy, int count) {
    Item *item = tree->item;
    int bytes = (int)((item->block_count + 7) / 8);
    unsigned char *lacking = allocate((size_t)bytes, 1), *wanted = allocate((size_t)bytes, 1);
    for (uint32_t b = 0; writes && b < item->block_count; b++)
        if (!item->blocks[b].have) lacking[b / 8] |= (unsigned char)(1 << b % 8);
    MPI_Allreduce(lacking, wanted, bytes, MPI_BYTE, MPI_BOR, MPI_COMM_WORLD);
    plan_units(item, wanted);
    free(lacking), free(wanted);
    choose_readers(item, needy, count);
    deal_units();
    pthread_mutex_lock(&queue.lock); /* a worker may still come back from its last slot, and look for another */
    for (int i = 0; i < lane_count; i++) {
        lanes[i].next_fill = lanes[i].next_send = lanes[i].next_done = lanes[i].given = lanes[i].taken = 0;
        place_in_lane(&lanes[i], needy, count);
    }
    pthread_mutex_unlock(&queue.lock);
    count_handles(tree);
    current = tree;
    if (is_reader(rank) && !item->single) {
        tree->source_dir = open(item->source, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        tree->source_error = tree->source_dir < 0 ? errno : 0;
    }
    check_empty_files(tree);
    for (int r = 0; !rank && r < ranks; r++) progress.of_rank[r] &= ~FINISHED;
    progress.total = 0;
    for (uint32_t u = 0; u < unit_count; u++) progress.total += units[u].bytes;
    if (unit_count) pump();
}

enum { IDLE, WAITS, STREAMS };

/* One round: those who hold their lock are served together. Returns whether others still wait for theirs. */
static bool stage_round(uint32_t index, char *pending) {
    Tree tree;
    Result result = {0};
    char state = IDLE, *states = allocate((size_t)ranks, 1);
    tree_open(&tree, &items[index]);
    if (*pending) {
        bool locked = lock_destination(&tree);
        if (locked && inspect(&tree) && !tree.complete && !tree.finished) begin_tree(&tree);
        state = tree.failure.set || tree.complete ? IDLE : locked ? STREAMS : WAITS;
        *pending = state == WAITS;
        if (state == IDLE) settle(&result, &tree, tree.complete, 0);
    }
    MPI_Allgather(&state, 1, MPI_CHAR, states, 1, MPI_CHAR, MPI_COMM_WORLD);
    report(index, &result);
    int *needy = allocate((size_t)ranks, sizeof *needy), count = 0;
    bool waiting = false;
    for (int r = 0; r < ranks; r++) {
        if (states[r] == STREAMS) needy[count++] = r;
        waiting |= states[r] == WAITS;
    }
    source_failure.set = false;
    writes = state == STREAMS;
    uint64_t lacked = tree.missing;
    if (count) stream(&tree, needy, count);
    result = (Result){0};
    if (writes) {
        finish_tree(&tree);
        settle(&result, &tree, false, lacked);
    }
    if (count) report(index, &result);
    tree_close(&tree);
    free(states), free(needy);
    if (waiting && !count) nanosleep(&(struct timespec){0, 200000000}, NULL);
    return waiting;
}

static void start_workers(pthread_t *threads) {
    lanes = allocate((size_t)options.readers, sizeof *lanes);
    lane_count = options.readers;
    for (int i = 0; i < options.readers; i++) {
        lanes[i].slots = allocate((size_t)options.window, sizeof(Slot));
        for (int s = 0; s < options.window; s++)
            if (posix_memalign((void **)&lanes[i].slots[s].buffer, 4096, HEADER + (size_t)options.piece + ERROR)) die("no memory");
    }
    for (int i = 0; i < options.threads; i++)
        if (pthread_create(&threads[i], NULL, work, NULL)) die("no thread");
}

static void stop_workers(pthread_t *threads) {
    pthread_mutex_lock(&queue.lock);
    queue.closed = true;
    pthread_cond_broadcast(&queue.more);
    pthread_mutex_unlock(&queue.lock);
    for (int i = 0; i < options.threads; i++) pthread_join(threads[i], NULL);
}

static void stage(void) {
    char *pending = allocate(item_count, 1);
    pthread_t *threads = allocate((size_t)options.threads, sizeof *threads);
    survey(pending);
    start_workers(threads);
    for (uint32_t i = 0; i < item_count; i++) {
        int here = needed_here(&items[i]);
        MPI_Reduce(&here, &progress.nodes, 1, MPI_INT, MPI_SUM, 0, MPI_COMM_WORLD);
        here = here && !pending[i];
        MPI_Reduce(&here, &progress.nodes_done, 1, MPI_INT, MPI_SUM, 0, MPI_COMM_WORLD);
        progress.item = i;
        progress.before = rank ? 0 : bytes_heard();
        while (stage_round(i, &pending[i])) {}
    }
    stop_workers(threads);
    free(threads), free(pending);
}

/* ---- Verify and clean ------------------------------------------------------------------------------------------------ */

static bool check_links_and_sizes(Tree *tree) {
    Item *item = tree->item;
    struct stat stat;
    for (uint32_t i = 0; i < item->file_count; i++) {
        const char *path = item->single ? tree->destination : item->files[i].path;
        if (fstatat(tree->part_dir, path, &stat, AT_SYMLINK_NOFOLLOW))
            return fail(&tree->failure, "%s: %s: %s", tree->destination, item->files[i].path, strerror(errno));
        if (!S_ISREG(stat.st_mode) || (uint64_t)stat.st_size != item->files[i].size)
            return fail(&tree->failure, "%s: %s has another size than staged", tree->destination, item->files[i].path);
    }
    for (uint32_t i = 0; i < item->link_count; i++) {
        size_t length = strlen(item->links[i].target);
        char *target = allocate(length + 2, 1);
        ssize_t read = readlinkat(tree->part_dir, item->links[i].path, target, length + 2);
        bool same = read == (ssize_t)length && !strcmp(target, item->links[i].target);
        free(target);
        if (!same) return fail(&tree->failure, "%s: the link %s is not as staged", tree->destination, item->links[i].path);
    }
    return true;
}

static void verify_tree(Tree *tree) {
    Item *item = tree->item;
    struct stat stat;
    if (lstat(tree->destination, &stat)) fail(&tree->failure, "%s is not there", tree->destination);
    else if (access(tree->manifest, F_OK)) fail(&tree->failure, "%s was not staged by aegis", tree->destination);
    else if (!manifest_matches(item, tree->manifest, true)) fail(&tree->failure, "%s is another version", tree->destination);
    if (tree->failure.set) return;
    tree->part_dir = item->single ? AT_FDCWD : open(tree->destination, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (check_links_and_sizes(tree)) for_each(tree, item->block_count, check_staged);
}

static void clean_tree(Tree *tree) {
    char *old = text("%s" OLD, tree->destination);
    const char *ours[] = {tree->destination, tree->manifest, tree->part, tree->log, tree->part_manifest, old};
    struct stat stat;
    char *parent = text("%s", tree->destination);
    *strrchr(parent, '/') = 0;
    if (!lstat(*parent ? parent : "/", &stat)) {
        if (!lock_destination(tree)) fail(&tree->failure, "%s is being staged", tree->destination);
        else if (!lstat(tree->destination, &stat) && !is_ours(tree))
            fail(&tree->failure, "%s was not staged by aegis: left alone", tree->destination);
        for (size_t i = 0; i < sizeof ours / sizeof *ours && !tree->failure.set; i++) remove_tree(tree, ours[i]);
    }
    free(old), free(parent);
}

static void look_or_clean(uint32_t index) {
    Result result = {0};
    if (needed_here(&items[index])) {
        Tree tree;
        tree_open(&tree, &items[index]);
        if (options.clean) clean_tree(&tree);
        else verify_tree(&tree);
        settle(&result, &tree, false, options.verify ? items[index].size : 0);
        tree_close(&tree);
    }
    report(index, &result);
}

/* ---- The command line ------------------------------------------------------------------------------------------------ */

static int positive(const char *word, int most) {
    char *end;
    long value = word ? strtol(word, &end, 10) : 0;
    return word && *word && !*end && value > 0 && value <= most ? (int)value : -1;
}

static bool parse_options(int argc, char **argv) {
    bool good = true;
    for (int i = 1; i < argc && good; i++) {
        const char *word = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (!strcmp(word, "--verify")) options.verify = true;
        else if (!strcmp(word, "--clean")) options.clean = true;
        else if (!strcmp(word, "--dest-suffix-rank")) options.suffix = true;
        else if (!strcmp(word, "--readers")) good = (options.readers = positive(value, 64)) > 0, i++;
        else if (!strcmp(word, "--window")) good = (options.window = positive(value, 256)) > 0, i++;
        else if (!strcmp(word, "--threads")) good = (options.threads = positive(value, 256)) > 0, i++;
        else if (!strcmp(word, "--piece")) good = (options.piece = positive(value, BLOCK)) > 0, i++;
        else if (!strcmp(word, "--rate")) good = (options.rate = positive(value, 1 << 30)) > 0, i++;
        else if (!strcmp(word, "--ranks")) good = (options.ranks = positive(value, 1 << 30)) > 0, i++;
        else if (!strcmp(word, "--stall")) good = (options.stall = positive(value, 1 << 30)) > 0, i++;
        else if (!strcmp(word, "--tree")) {
            options.arity = !value ? 0 : !strcmp(value, "chain") ? 1 : !strcmp(value, "binary") ? 2 : 0;
            good = options.arity > 0, i++;
        } else if (*word != '-' && !options.list) options.list = word;
        else good = false;
    }
    return good && options.list && !(options.verify && options.clean);
}

static void prepare(void) {
    int length;
    char name[MPI_MAX_PROCESSOR_NAME];
    MPI_Get_processor_name(name, &length);
    snprintf(host, HOST, "%s", name);
    if (options.suffix) snprintf(host, HOST, "rank%d", rank);
    hosts = allocate((size_t)ranks, HOST);
    MPI_Allgather(host, HOST, MPI_CHAR, hosts, HOST, MPI_CHAR, MPI_COMM_WORLD);
    progress.of_rank = allocate(rank ? 1 : (size_t)ranks, sizeof *progress.of_rank);
    cpu_set_t cpus;
    int count = sched_getaffinity(0, sizeof cpus, &cpus) ? 1 : CPU_COUNT(&cpus);
    if (!options.threads) options.threads = count < 2 ? 2 : count > 8 ? 8 : count;
    signal(SIGXFSZ, SIG_IGN); /* a limit on the size of files is an error of this node, not the end of all */
    umask_then = umask(0);
    crc_prepare();
}

int main(int argc, char **argv) {
    int provided, code = 0;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    started = now();
    if (!parse_options(argc, argv)) {
        if (!rank)
            fprintf(stderr, "usage: bcast LIST [--readers N] [--window N] [--threads N] [--piece BYTES] [--rate MIB] "
                            "[--tree chain|binary] [--stall SECONDS] [--ranks N] [--verify | --clean] [--dest-suffix-rank]\n");
        MPI_Finalize();
        return 2;
    }
    if (options.ranks && options.ranks != ranks) { /* a launcher that knows nothing of this MPI starts many worlds of one */
        fprintf(stderr, "bcast: %d nodes were asked for, and the launcher started a world of %d\n", options.ranks, ranks);
        MPI_Finalize();
        return 2;
    }
    prepare();
    size_t length = 0;
    char *content = load_list(&length);
    if (!content || !parse_list(content, length)) {
        MPI_Finalize();
        return 2;
    }
    if (options.verify || options.clean)
        for (uint32_t i = 0; i < item_count; i++) look_or_clean(i);
    else stage();
    if (!rank) {
        double seconds = now() - started;
        uint64_t bytes = bytes_heard();
        printf("{\"event\":\"done\",\"seconds\":%.3f,\"bytes_read\":%" PRIu64 ",\"rate\":%.0f}\n", seconds, bytes,
               (double)bytes / seconds);
        fflush(stdout);
    }
    code = failures > 0;
    MPI_Bcast(&code, 1, MPI_INT, 0, MPI_COMM_WORLD);
    MPI_Finalize();
    return code;
}
