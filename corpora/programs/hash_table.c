/* A hash table with linear probing and 65,536 places: WORK random additions, look-ups and removals of
 * 32,768 keys. results[0]: keys at the end. results[1]: keys found by look-ups. Checksum: what
 * look-ups found, in order, and the sum over all keys and values at the end. */
#include "common.h"
#ifndef WORK
#define WORK 10000000
#endif

#define PLACES 65536

static struct {
    /* Zero in a free place. */
    uint64_t key, value;
} table[PLACES];

static uint32_t home(uint64_t key) {
    return (key * 0x9e3779b97f4a7c15) >> 48;
}

static uint32_t find(uint64_t key) {
    uint32_t place = home(key);
    while (table[place].key != 0 && table[place].key != key)
        place = (place + 1) % PLACES;
    return place;
}

/* Closes the gap, so that no search ends too early. */
static void take_out(uint32_t gap) {
    for (uint32_t place = (gap + 1) % PLACES; table[place].key != 0; place = (place + 1) % PLACES) {
        uint32_t distance = (place - home(table[place].key)) % PLACES;
        if (distance >= (place - gap) % PLACES) {
            table[gap] = table[place];
            gap = place;
        }
    }
    table[gap].key = table[gap].value = 0;
}

uint64_t program(void) {
    uint64_t random = 6, checksum = 0, sum = 0;
    for (int i = 0; i < WORK; i++) {
        uint64_t bits = next_random(&random), key = 1 + (bits >> 49);
        uint32_t place = find(key);
        int present = table[place].key == key;
        if (bits & 1) {
            table[place].key = key;
            table[place].value += bits;
        } else if (bits & 2) {
            results[1] += present;
            checksum = mix(checksum, table[place].value);
        } else if (present) {
            take_out(place);
        }
    }
    for (int place = 0; place < PLACES; place++) {
        results[0] += table[place].key != 0;
        sum += table[place].key * table[place].value;
    }
    return mix(checksum, sum);
}
