/* The WORK-th Fibonacci number by two calls for each but the first two: calls and returns.
 * results[0]: the number of calls. Checksum: the number. */
#include "common.h"
#ifndef WORK
#define WORK 38
#endif

static uint64_t calls;

__attribute__((noinline)) static uint64_t fibonacci(uint64_t n) {
    calls++;
    if (n < 2)
        return n;
    uint64_t before = fibonacci(n - 2);
    /* Without this the second call becomes a loop. */
    OPAQUE(before);
    uint64_t last = fibonacci(n - 1);
    OPAQUE(last);
    return before + last;
}

uint64_t program(void) {
    uint64_t number = fibonacci(WORK);
    results[0] = calls;
    return number;
}
