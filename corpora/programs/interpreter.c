/* A bytecode interpreter with computed gotos: eight registers, programs of 32-bit words. Its program
 * adds up how many steps each number from 1 to WORK takes down to 1 by halving and 3 n + 1.
 * results[0]: bytecode instructions executed. Checksum: the sum. */
#include "common.h"
#ifndef WORK
#define WORK 300000
#endif

enum { SET, MOVE, ADD, ADD_NUMBER, TRIPLE, HALVE, IF_ODD, IF_LESS, IF_ONE, GO, STOP };

#define OP(operation, a, b) (operation | (a) << 8 | (uint32_t)(uint16_t)(b) << 16)

/* r0: the sum; r1: the number; r2: what has become of it; r3: one more than the last number. A
 * jump's target is an index into this table. */
static const uint32_t code[] = {
    /* 0 */ OP(SET, 1, 1),
    /* 1 */ OP(MOVE, 2, 1),
    /* 2 */ OP(IF_ONE, 2, 9),
    /* 3 */ OP(ADD_NUMBER, 0, 1),
    /* 4 */ OP(IF_ODD, 2, 7),
    /* 5 */ OP(HALVE, 2, 0),
    /* 6 */ OP(GO, 0, 2),
    /* 7 */ OP(TRIPLE, 2, 0),
    /* 8 */ OP(GO, 0, 3),
    /* 9 */ OP(ADD_NUMBER, 1, 1),
    /* 10 */ OP(IF_LESS, 1, 1),
    /* 11 */ OP(ADD, 4, 0),
    /* 12 */ OP(STOP, 4, 0),
};

static uint64_t registers[8];

/* GCC would make one jump of all, and the others do not know these options. */
#if defined(__GNUC__) && !defined(__clang__)
#define JUMPS_STAY_APART __attribute__((optimize("no-gcse", "no-crossjumping")))
#else
#define JUMPS_STAY_APART
#endif

JUMPS_STAY_APART static uint64_t run(const uint32_t *program) {
    static const void *const labels[] = {&&set,    &&move,    &&add,    &&add_number, &&triple, &&halve,
                                         &&if_odd, &&if_less, &&if_one, &&go,         &&stop};
    const uint32_t *next = program;
    uint64_t executed = 0;
    uint32_t word;
#define A registers[word >> 8 & 7]
#define B (word >> 16)
#define DISPATCH                                                                                       \
    do {                                                                                               \
        word = *next++;                                                                                \
        executed++;                                                                                    \
        goto *labels[word & 0xff];                                                                     \
    } while (0)
    DISPATCH;
set:
    A = B;
    DISPATCH;
move:
    A = registers[B & 7];
    DISPATCH;
add:
    A += registers[B & 7];
    DISPATCH;
add_number:
    A += B;
    DISPATCH;
triple:
    A = 3 * A + 1;
    DISPATCH;
halve:
    A >>= 1;
    DISPATCH;
if_odd:
    if (A & 1)
        next = program + B;
    DISPATCH;
if_less:
    if (A < registers[3])
        next = program + B;
    DISPATCH;
if_one:
    if (A == 1)
        next = program + B;
    DISPATCH;
go:
    next = program + B;
    DISPATCH;
stop:
    results[0] = executed;
    return A;
}

uint64_t program(void) {
    registers[3] = (uint64_t)WORK + 1;
    return run(code);
}
