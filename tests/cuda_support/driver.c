// A CUDA driver in host memory, for tests of everything around the kernels.
//
// Each stream has a queue, and its work is done as late as the driver's contract allows: when that
// stream or an event in it is waited for, by the host or by another stream's work, or an allocation is
// freed. A copy out of memory that was overwritten too early, a result that is read too soon, or work of
// one stream that relies on another's order, shows. Launches call back into the test with the arguments
// that the PTX declares. FAKE_FAIL names a function that fails.
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct launch {
    const char *name, *ptx;
    const unsigned *grid;
    unsigned threads, shared;
    const uint64_t *args;
    const unsigned char *sizes;
    unsigned count;
};
typedef int (*launch_fn)(const struct launch *);

enum { COPY, FILL, MARK, WAIT, LAUNCH };

struct function {
    char name[64];
    const char *ptx;
    unsigned count;
    unsigned char size[32];
};

struct stream;

struct op {
    int kind;
    void *to;
    const void *from;
    size_t bytes;
    int value;
    // Of a mark: which record of its event. Of a wait: the record that is waited for, and its stream.
    long record;
    struct stream *in;
    struct function *function;
    unsigned grid[3], threads, shared;
    uint64_t args[32];
    struct op *next;
};

// A queue. Queues and events are kept when their handles are gone: queued work still names them.
struct stream {
    struct op *head, *tail;
    struct stream *next;
};
// The default stream, and all others.
static struct stream null_stream;
static struct stream *streams = &null_stream;

// Records so far, and the last one that was reached; the stream of the newest.
struct event {
    long recorded, done;
    struct stream *in;
};

struct module {
    char *ptx;
};

struct allocation {
    uint64_t address;
    size_t bytes;
    struct allocation *next;
};
static struct allocation *allocations;

static launch_fn on_launch;
static int version = 13000, devices = 1, arch = 90, free_bytes = 12345, fail_code, failed;
static char fail_call[64];
static long live;

void fake_set(const char *what, int value) {
    if (!strcmp(what, "version")) version = value;
    if (!strcmp(what, "devices")) devices = value;
    if (!strcmp(what, "arch")) arch = value;
    if (!strcmp(what, "free")) free_bytes = value;
}
void fake_fail(const char *call, int code) {
    snprintf(fail_call, sizeof fail_call, "%s", call);
    fail_code = code;
}
void fake_on_launch(launch_fn callback) { on_launch = callback; }
long fake_live(void) { return live; }
// The allocation that an address is in; 0 if none.
size_t fake_allocation(uint64_t address, uint64_t *start) {
    for (struct allocation *a = allocations; a; a = a->next)
        if (address >= a->address && address - a->address < a->bytes) {
            *start = a->address;
            return a->bytes;
        }
    return 0;
}

static int fails(const char *call) { return !strcmp(fail_call, call) ? fail_code : 0; }
#define CHECK() do { int code = fails(__func__); if (code) return code; } while (0)

static struct stream *of(void *s) { return s ? s : &null_stream; }

static struct op *push(void *s, int kind) {
    struct stream *stream = of(s);
    struct op *op = calloc(1, sizeof *op);
    op->kind = kind;
    if (stream->tail) stream->tail->next = op; else stream->head = op;
    stream->tail = op;
    return op;
}

static void step(struct stream *stream) {
    struct op *op = stream->head;
    stream->head = op->next;
    if (!stream->head) stream->tail = NULL;
    struct event *event = op->to;
    if (op->kind == COPY) memcpy(op->to, op->from, op->bytes);
    if (op->kind == FILL) memset(op->to, op->value, op->bytes);
    if (op->kind == MARK && event->done < op->record) event->done = op->record;
    if (op->kind == WAIT)
        while (event->done < op->record && op->in->head) step(op->in);
    if (op->kind == LAUNCH && on_launch && !failed) {
        struct launch launch = {op->function->name, op->function->ptx, op->grid, op->threads,
                                op->shared, op->args, op->function->size, op->function->count};
        failed = on_launch(&launch);
    }
    free(op);
}

static int run(struct stream *stream) {
    while (stream->head) step(stream);
    return failed;
}
static int run_all(void) {
    for (struct stream *s = streams; s; s = s->next) run(s);
    return failed;
}

int cuInit(unsigned flags) { (void)flags; CHECK(); return devices ? 0 : 100; }
int cuDriverGetVersion(int *v) { CHECK(); *v = version; return 0; }
int cuGetErrorName(int code, const char **name) {
    *name = code == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : code == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS" : NULL;
    return *name ? 0 : 1;
}
int cuDeviceGetCount(int *n) { CHECK(); *n = devices; return 0; }
int cuDeviceGet(int *d, int i) { CHECK(); *d = i; return 0; }
int cuDeviceGetName(char *name, int n, int d) { CHECK(); snprintf(name, n, "Fake %d", d); return 0; }
int cuDeviceTotalMem_v2(size_t *n, int d) { (void)d; CHECK(); *n = 1 << 30; return 0; }
int cuDeviceGetAttribute(int *v, int a, int d) {
    (void)d;
    CHECK();
    *v = a == 75 ? arch / 10 : a == 76 ? arch % 10 : a == 16 ? 4 : a == 97 ? 227 * 1024 : 65536;
    return 0;
}
int cuDevicePrimaryCtxRetain(void **c, int d) { CHECK(); *c = (void *)(intptr_t)(d + 1); live++; return 0; }
int cuDevicePrimaryCtxRelease_v2(int d) { (void)d; live--; return 0; }
int cuCtxSetCurrent(void *c) { (void)c; CHECK(); return 0; }
int cuStreamCreate(void **s, unsigned f) {
    (void)f;
    CHECK();
    struct stream *stream = calloc(1, sizeof *stream);
    stream->next = streams;
    streams = *s = stream;
    live++;
    return 0;
}
// What is queued still runs.
int cuStreamDestroy_v2(void *s) { (void)s; live--; return 0; }
int cuStreamSynchronize(void *s) { CHECK(); return run(of(s)); }
int cuStreamWaitEvent(void *s, void *e, unsigned f) {
    (void)f;
    CHECK();
    struct event *event = e;
    if (!event->recorded) return 0;
    struct op *op = push(s, WAIT);
    op->to = e;
    op->record = event->recorded;
    op->in = event->in;
    return 0;
}
int cuEventCreate(void **e, unsigned f) { (void)f; CHECK(); *e = calloc(1, sizeof(struct event)); live++; return 0; }
int cuEventDestroy_v2(void *e) { (void)e; live--; return 0; }
int cuEventRecord(void *e, void *s) {
    struct event *event = e;
    CHECK();
    struct op *op = push(s, MARK);
    op->to = e;
    op->record = ++event->recorded;
    event->in = of(s);
    return 0;
}
int cuEventQuery(void *e) {
    struct event *event = e;
    CHECK();
    if (event->done < event->recorded && event->in->head) step(event->in);
    return event->done < event->recorded ? 600 : 0;
}
int cuEventSynchronize(void *e) {
    struct event *event = e;
    CHECK();
    while (event->done < event->recorded && event->in->head) step(event->in);
    return failed;
}
int cuEventElapsedTime(float *ms, void *a, void *b) { (void)a; (void)b; CHECK(); *ms = 1.5f; return 0; }
int cuMemGetInfo_v2(size_t *f, size_t *t) { CHECK(); *f = free_bytes; *t = 1 << 30; return 0; }
int cuMemAlloc_v2(uint64_t *p, size_t n) {
    CHECK();
    void *m = aligned_alloc(256, (n + 255) / 256 * 256);
    // Device memory is not initialised.
    memset(m, 0xa5, n);
    *p = (uint64_t)(uintptr_t)m;
    struct allocation *a = malloc(sizeof *a);
    a->address = *p;
    a->bytes = n;
    a->next = allocations;
    allocations = a;
    live++;
    return 0;
}
int cuMemFree_v2(uint64_t p) {
    run_all();
    for (struct allocation **a = &allocations; *a; a = &(*a)->next)
        if ((*a)->address == p) {
            struct allocation *gone = *a;
            *a = gone->next;
            free(gone);
            break;
        }
    free((void *)(uintptr_t)p);
    live--;
    return 0;
}
int cuMemHostAlloc(void **p, size_t n, unsigned f) { (void)f; CHECK(); *p = malloc(n); live++; return 0; }
int cuMemFreeHost(void *p) { free(p); live--; return 0; }
static int copy(void *to, const void *from, size_t n, void *s) {
    struct op *op = push(s, COPY);
    op->to = to;
    op->from = from;
    op->bytes = n;
    return 0;
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t n, void *s) {
    CHECK();
    return copy((void *)(uintptr_t)to, from, n, s);
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t n, void *s) {
    CHECK();
    return copy(to, (void *)(uintptr_t)from, n, s);
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t n, void *s) {
    CHECK();
    return copy((void *)(uintptr_t)to, (void *)(uintptr_t)from, n, s);
}
int cuMemsetD8Async(uint64_t to, unsigned char value, size_t n, void *s) {
    CHECK();
    struct op *op = push(s, FILL);
    op->to = (void *)(uintptr_t)to;
    op->value = value;
    op->bytes = n;
    return 0;
}
int cuModuleLoadData(void **m, const void *image) {
    CHECK();
    struct module *module = malloc(sizeof *module);
    module->ptx = strdup(image);
    *m = module;
    live++;
    return 0;
}
int cuModuleUnload(void *m) { (void)m; live--; return 0; }
int cuModuleGetFunction(void **f, void *m, const char *name) {
    CHECK();
    char entry[96];
    snprintf(entry, sizeof entry, ".entry %s(", name);
    const char *at = strstr(((struct module *)m)->ptx, entry);
    if (!at) return 500;
    struct function *function = calloc(1, sizeof *function);
    snprintf(function->name, sizeof function->name, "%s", name);
    function->ptx = ((struct module *)m)->ptx;
    const char *end = strchr(at, ')');
    while ((at = strstr(at, ".param ")) && at < end) {
        at += 7;
        function->size[function->count++] = strncmp(at + 2, "64", 2) ? 4 : 8;
    }
    *f = function;
    return 0;
}
int cuModuleGetGlobal_v2(uint64_t *p, size_t *n, void *m, const char *name) {
    CHECK();
    char global[96];
    snprintf(global, sizeof global, " %s", name);
    const char *at = ((struct module *)m)->ptx;
    size_t len = strlen(global);
    while ((at = strstr(at, global)) && at[len] != ' ' && at[len] != ';') at++;
    if (!at) return 500;
    unsigned *value = malloc(sizeof *value);
    *value = at[len] == ' ' ? (unsigned)strtoul(at + len + 3, NULL, 10) : 0;
    *p = (uint64_t)(uintptr_t)value;
    *n = sizeof *value;
    return 0;
}
int cuFuncSetAttribute(void *f, int a, int v) { (void)f; (void)a; CHECK(); return v > 227 * 1024 ? 1 : 0; }
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *n, void *f, int t, size_t s) {
    (void)f; (void)t; (void)s;
    CHECK();
    *n = 2;
    return 0;
}
int cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void *s, void **params, void **extra) {
    (void)by; (void)bz; (void)extra;
    CHECK();
    struct op *op = push(s, LAUNCH);
    op->function = f;
    op->grid[0] = gx;
    op->grid[1] = gy;
    op->grid[2] = gz;
    op->threads = bx;
    op->shared = shared;
    for (unsigned i = 0; i < op->function->count; ++i)
        memcpy(&op->args[i], params[i], op->function->size[i]);
    return 0;
}
