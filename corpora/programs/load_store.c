/* Adds a number to each of 4096 words of memory, one at a time, WORK times: load, add, store.
 * Checksum: all words. */
#include "common.h"
#ifndef WORK
#define WORK 100000
#endif

#define WORDS 4096

static uint64_t words[WORDS];

uint64_t program(void) {
    uint64_t checksum = 0;
    for (uint64_t round = 0; round < WORK; round++)
        for (int i = 0; i < WORDS; i++) {
            uint64_t word = words[i] + round;
            OPAQUE(word);
            words[i] = word;
        }
    for (int i = 0; i < WORDS; i++)
        checksum = mix(checksum, words[i] + i);
    return checksum;
}
