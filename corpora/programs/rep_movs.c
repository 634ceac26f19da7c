/* Repeated string instructions, WORK rounds: copies and fills of random places and lengths, overlapping
 * and backwards too, searches and comparisons. results[0..3]: bytes copied, bytes passed by searches,
 * bytes passed by comparisons. Checksum: the buffer at the end, and what was passed. */
#include "common.h"
#ifndef WORK
#define WORK 2000000
#endif

#define SIZE 65536
#define MOST 8192

static uint64_t data[SIZE / 8];

static void copy_bytes(uint8_t *to, const uint8_t *from, uint64_t count) {
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
}

static void copy_words(uint8_t *to, const uint8_t *from, uint64_t count) {
    __asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
}

static void copy_backwards(uint8_t *to, const uint8_t *from, uint64_t count) {
    __asm__ volatile("std\n rep movsw\n cld" : "+D"(to), "+S"(from), "+c"(count) : : "memory", "cc");
}

static void fill_words(uint8_t *to, uint64_t word, uint64_t count) {
    __asm__ volatile("rep stosq" : "+D"(to), "+c"(count) : "a"(word) : "memory");
}

static uint64_t find_byte(const uint8_t *in, uint8_t byte, uint64_t count) {
    uint64_t left = count;
    __asm__ volatile("repne scasb" : "+D"(in), "+c"(left) : "a"(byte) : "memory", "cc");
    return count - left;
}

static uint64_t same_words(const uint8_t *a, const uint8_t *b, uint64_t count) {
    uint64_t left = count;
    __asm__ volatile("repe cmpsl" : "+D"(a), "+S"(b), "+c"(left) : : "memory", "cc");
    return count - left;
}

uint64_t program(void) {
    uint64_t random = 8, checksum = 0;
    uint8_t *bytes = (uint8_t *)data;
    for (int i = 0; i < SIZE / 8; i++)
        data[i] = next_random(&random);
    for (int round = 0; round < WORK; round++) {
        uint64_t bits = next_random(&random), count = bits % (MOST / 8);
        uint8_t *to = bytes + (bits >> 16) % (SIZE - MOST), *from = bytes + (bits >> 40) % (SIZE - MOST);
        switch (bits >> 61) {
        case 0:
        case 1:
            copy_bytes(to, from, count);
            results[0] += count;
            break;
        case 2:
            copy_words(to, from, count);
            results[0] += 8 * count;
            break;
        case 3:
            copy_backwards(to + MOST - 2, from + MOST - 2, count);
            results[0] += 2 * count;
            break;
        case 4:
            fill_words(to, bits, count / 8);
            break;
        case 5:
            /* A copy one byte further on repeats its first byte. */
            copy_bytes(to + 1, to, count / 8);
            results[0] += count / 8;
            break;
        case 6:
            results[1] += find_byte(to, (uint8_t)bits, count);
            break;
        default:
            copy_bytes(to, from, count);
            results[2] += 4 * same_words(to, from, MOST / 4);
        }
    }
    for (int i = 0; i < SIZE / 8; i++)
        checksum = mix(checksum, data[i]);
    return mix(mix(mix(checksum, results[0]), results[1]), results[2]);
}
