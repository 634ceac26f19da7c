/* Looks for WORK patterns of 2 to 9 letters in 64 KiB of text of four letters, byte by byte.
 * results[0]: matches in all. Checksum: the places of all matches. */
#include "common.h"
#ifndef WORK
#define WORK 1000
#endif

#define LENGTH 65536

static char text[LENGTH], pattern[16];

static uint64_t search(int length, uint64_t checksum) {
    for (int start = 0; start + length <= LENGTH; start++) {
        int same = 0;
        while (same < length && text[start + same] == pattern[same])
            same++;
        if (same == length) {
            results[0]++;
            checksum = mix(checksum, start);
        }
    }
    return checksum;
}

uint64_t program(void) {
    uint64_t random = 5, checksum = 0;
    for (int i = 0; i < LENGTH; i++)
        text[i] = 'a' + (next_random(&random) >> 62);
    for (int round = 0; round < WORK; round++) {
        int length = 2 + round % 8;
        for (int i = 0; i < length; i++)
            pattern[i] = 'a' + (next_random(&random) >> 62);
        checksum = search(length, checksum);
    }
    return checksum;
}
