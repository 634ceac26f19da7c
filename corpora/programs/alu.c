/* WORK rounds of simple integer instructions on registers only: shift, exclusive or, add, rotate.
 * Checksum: what is in the registers at last. */
#include "common.h"
#ifndef WORK
#define WORK 80000000
#endif

uint64_t program(void) {
    uint64_t a = 1, b = 2, c = 3;
    for (uint64_t i = 0; i < WORK; i++) {
        a ^= a << 13;
        a ^= a >> 7;
        b = rotate_left(b + a, 5);
        c ^= b + i;
        a += c >> 3;
    }
    return mix(mix(a, b), c);
}
