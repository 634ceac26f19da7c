/* Sorts 100,000 random 32-bit numbers with a recursive quicksort, WORK times with new numbers.
 * results[0]: neighbours in wrong order, which are none. Checksum: all numbers, in order. */
#include "common.h"
#ifndef WORK
#define WORK 50
#endif

#define COUNT 100000

static uint32_t numbers[COUNT];

static void sort(uint32_t *first, uint32_t *last) {
    if (first >= last)
        return;
    uint32_t pivot = first[(last - first) / 2];
    uint32_t *left = first, *right = last;
    while (left <= right) {
        while (*left < pivot)
            left++;
        while (*right > pivot)
            right--;
        if (left <= right) {
            uint32_t other = *left;
            *left++ = *right;
            *right-- = other;
        }
    }
    sort(first, right);
    sort(left, last);
}

uint64_t program(void) {
    uint64_t random = 2, checksum = 0;
    for (int round = 0; round < WORK; round++) {
        for (int i = 0; i < COUNT; i++)
            numbers[i] = next_random(&random) >> 32;
        sort(numbers, numbers + COUNT - 1);
        for (int i = 0; i < COUNT; i++) {
            results[0] += i > 0 && numbers[i - 1] > numbers[i];
            checksum = mix(checksum, numbers[i]);
        }
    }
    return checksum;
}
