/* Calls through function pointers of 1024 objects of four kinds in random order, WORK times each.
 * Checksum: the values of all objects at the end. */
#include "common.h"
#ifndef WORK
#define WORK 50000
#endif

#define OBJECTS 1024

typedef struct Object {
    uint64_t (*const *methods)(struct Object *, uint64_t);
    uint64_t value;
} Object;

static uint64_t adding(Object *object, uint64_t argument) {
    return object->value += argument;
}

static uint64_t turning(Object *object, uint64_t argument) {
    return object->value = rotate_left(object->value, 7) ^ argument;
}

static uint64_t multiplying(Object *object, uint64_t argument) {
    return object->value = object->value * 0x2545f4914f6cdd1d + argument;
}

static uint64_t counting(Object *object, uint64_t argument) {
    object->value++;
    return argument;
}

static uint64_t inverting(Object *object, uint64_t argument) {
    return object->value = ~object->value - argument;
}

typedef uint64_t (*Method)(Object *, uint64_t);

static const Method kinds[4][2] = {
    {adding, turning}, {turning, multiplying}, {multiplying, counting}, {counting, inverting}};

static Object objects[OBJECTS];

uint64_t program(void) {
    uint64_t random = 9, argument = 1, checksum = 0;
    for (int i = 0; i < OBJECTS; i++)
        objects[i].methods = kinds[next_random(&random) >> 62];
    for (int round = 0; round < WORK; round++)
        for (int i = 0; i < OBJECTS; i++)
            argument = objects[i].methods[round & 1](&objects[i], argument);
    for (int i = 0; i < OBJECTS; i++)
        checksum = mix(checksum, objects[i].value);
    return mix(checksum, argument);
}
