/* The limits of the machine that speed is compared with, as one line of JSON: how fast all threads together read
 * memory, and how fast they multiply out of registers, in f32 and, where the processor has the instructions, in bf16
 * and int8. Each figure is a median of several passes.
 *
 *     cc -O3 -march=native -fopenmp limits.c -o limits
 *     limits read|peak|all [THREADS] [MIB]
 *
 * Vectors are those of the compiler (GCC or Clang), as wide as the target's.
 */
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#if defined(__AVX512F__)
#include <immintrin.h>
enum { VECTOR_BYTES = 64 };
#elif defined(__AVX__)
enum { VECTOR_BYTES = 32 };
#else
enum { VECTOR_BYTES = 16 };
#endif
typedef float vector __attribute__((vector_size(VECTOR_BYTES)));
enum {
    LANES = VECTOR_BYTES / sizeof(float),
    /* Sums in flight: above latency times throughput of an addition or FMA (4 cycles, two a cycle), and with two
     * operands in the 16 registers of AVX2. */
    SUMS = 12,
    PASSES = 7,
    /* How far ahead of the sum memory is asked for. */
    AHEAD_BYTES = 4096,
    LINE_BYTES = 64,
};

/* Keeps the compiler from leaving out what makes a result. */
static volatile float sink;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values) {
    qsort(values, PASSES, sizeof *values, ascending);
    return values[PASSES / 2];
}

static float total(const vector *sums) {
    float all = 0;
    for (int i = 0; i < SUMS; i++)
        for (int lane = 0; lane < LANES; lane++)
            all += sums[i][lane];
    return all;
}

static float sum_plain(const vector *data, size_t count) {
    vector sums[SUMS] = {0};
    for (size_t i = 0; i + SUMS <= count; i += SUMS)
        for (int k = 0; k < SUMS; k++)
            sums[k] += data[i + k];
    return total(sums);
}

static float sum_prefetching(const vector *data, size_t count) {
    vector sums[SUMS] = {0};
    for (size_t i = 0; i + SUMS <= count; i += SUMS) {
        for (int line = 0; line < SUMS * VECTOR_BYTES / LINE_BYTES; line++)
            __builtin_prefetch((const char *)(data + i) + AHEAD_BYTES + line * LINE_BYTES);
        for (int k = 0; k < SUMS; k++)
            sums[k] += data[i + k];
    }
    return total(sums);
}

/* GB/s that `threads` threads read, each its own part of the buffer. */
static double read_pass(const vector *data, size_t count, int threads, float (*sum)(const vector *, size_t)) {
    float all = 0;
    double start = now();
#pragma omp parallel num_threads(threads) reduction(+ : all)
    {
        size_t part = count / (size_t)threads;
        all += sum(data + part * (size_t)omp_get_thread_num(), part);
    }
    double seconds = now() - start;
    sink = all;
    return (double)(count * sizeof(vector)) / seconds / 1e9;
}

/* The better of two ways to read, so that the limit is the machine's and not one loop's. */
static void print_read(size_t mib, int threads) {
    size_t bytes = mib << 20, count = bytes / sizeof(vector);
    vector *data = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) {
        perror("limits");
        exit(1);
    }
#ifdef MADV_HUGEPAGE
    /* Fewer page walks; only a wish, so that its failure does not matter. */
    (void)madvise(data, bytes, MADV_HUGEPAGE);
#endif
    /* Each thread touches first what it reads later, which puts it into the memory next to that thread. */
#pragma omp parallel num_threads(threads)
    {
        size_t part = count / (size_t)threads;
        memset(data + part * (size_t)omp_get_thread_num(), 1, part * sizeof(vector));
    }
    double plain[PASSES], prefetching[PASSES];
    for (int pass = 0; pass < PASSES; pass++) {
        plain[pass] = read_pass(data, count, threads, sum_plain);
        prefetching[pass] = read_pass(data, count, threads, sum_prefetching);
    }
    double a = median(plain), b = median(prefetching);
    const double *best = a > b ? plain : prefetching;
    printf(", \"read_gb_s\": %.2f, \"read_gb_s_min\": %.2f, \"read_gb_s_max\": %.2f, \"read_mib\": %zu",
           a > b ? a : b, best[0], best[PASSES - 1], mib);
    munmap(data, bytes);
}

/* Each kernel does `rounds` times SUMS independent operations on whole vectors. The sums start at different values:
 * equal ones the compiler would compute once. */
static void f32_fma(long rounds) {
    vector sums[SUMS] = {0}, x = {0}, y = {0};
    for (int i = 0; i < SUMS; i++)
        sums[i] += (float)i;
    x += 0.999f;
    y += 0.5f;
    for (long round = 0; round < rounds; round++) {
        for (int i = 0; i < SUMS; i++)
            sums[i] = sums[i] * x + y;
    }
    sink = total(sums);
}

#if defined(__AVX512BF16__)
#define HAS_BF16_DOT
static void bf16_dot(long rounds) {
    __m512 sums[SUMS];
    for (int i = 0; i < SUMS; i++)
        sums[i] = _mm512_set1_ps((float)i);
    __m512bh one = (__m512bh)_mm512_set1_epi16(0x3f80);
    for (long round = 0; round < rounds; round++) {
        for (int i = 0; i < SUMS; i++)
            sums[i] = _mm512_dpbf16_ps(sums[i], one, one);
    }
    sink = total((const vector *)sums);
}
#endif

#if defined(__AVX512VNNI__)
#define HAS_INT8_DOT
static void int8_dot(long rounds) {
    __m512i sums[SUMS], three = _mm512_set1_epi8(3);
    for (int i = 0; i < SUMS; i++)
        sums[i] = _mm512_set1_epi32(i);
    for (long round = 0; round < rounds; round++) {
        for (int i = 0; i < SUMS; i++)
            sums[i] = _mm512_dpbusd_epi32(sums[i], three, three);
    }
    __m512i all = sums[0];
    for (int i = 1; i < SUMS; i++)
        all = _mm512_add_epi32(all, sums[i]);
    sink = (float)_mm512_reduce_add_epi32(all);
}
#endif

/* `per_vector`: additions and multiplications of one operation on a whole vector. */
static void print_peak(const char *name, void (*kernel)(long), double per_vector, int threads) {
    const long rounds = 3000000;
    double rates[PASSES];
    for (int pass = 0; pass < PASSES; pass++) {
        double start = now();
#pragma omp parallel num_threads(threads)
        kernel(rounds);
        rates[pass] = (double)threads * (double)rounds * SUMS * per_vector / (now() - start) / 1e9;
    }
    double rate = median(rates);
    printf(", \"%s\": %.1f, \"%s_min\": %.1f, \"%s_max\": %.1f", name, rate, name, rates[0], name, rates[PASSES - 1]);
}

int main(int count, char **arguments) {
    const char *what = count > 1 ? arguments[1] : "all";
    int threads = count > 2 ? atoi(arguments[2]) : omp_get_max_threads();
    long mib = count > 3 ? atol(arguments[3]) : 1024;
    int reads = !strcmp(what, "read"), peaks = !strcmp(what, "peak"), all = !strcmp(what, "all");
    if (!(reads || peaks || all) || threads < 1 || mib < 1) {
        fprintf(stderr, "usage: limits read|peak|all [THREADS] [MIB]\n");
        return 2;
    }
    omp_set_dynamic(0);
    printf("{\"threads\": %d, \"vector_bits\": %d", threads, VECTOR_BYTES * 8);
    if (reads || all)
        print_read((size_t)mib, threads);
    if (peaks || all) {
        print_peak("f32_fma_gflop_s", f32_fma, 2.0 * LANES, threads);
#ifdef HAS_BF16_DOT
        print_peak("bf16_dot_gflop_s", bf16_dot, 4.0 * LANES, threads);
#endif
#ifdef HAS_INT8_DOT
        print_peak("int8_dot_gop_s", int8_dot, 8.0 * LANES, threads);
#endif
    }
    printf("}\n");
    return 0;
}
