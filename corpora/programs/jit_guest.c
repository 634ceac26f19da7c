/* A small code generator: WORK functions of random length, each written over what was there before, in
 * memory that may be read, written and executed, and called three times.
 * results[0]: bytes of code written. Checksum: what the last function returned at last. */
#include "common.h"
#ifndef WORK
#define WORK 100000
#endif

#define SIZE 16384

extern uint8_t code[SIZE];

__asm__(".section .jit, \"awx\", @nobits\n"
        ".balign 4096\n"
        ".globl code\n"
        "code:\n"
        "  .zero 16384\n"
        ".text\n");

static uint8_t *emit(uint8_t *to, const char *bytes, int length) {
    for (int i = 0; i < length; i++)
        *to++ = bytes[i];
    return to;
}

static uint8_t *emit_number(uint8_t *to, uint32_t number) {
    *(uint32_t *)to = number;
    return to + 4;
}

static uint8_t *emit_instruction(uint8_t *to, uint64_t bits) {
    uint32_t number = bits >> 32;
    switch (bits & 7) {
    case 0: /* add rax, number */
        return emit_number(emit(to, "\x48\x05", 2), number);
    case 1: /* sub rax, number */
        return emit_number(emit(to, "\x48\x2d", 2), number);
    case 2: /* xor rax, number */
        return emit_number(emit(to, "\x48\x35", 2), number);
    case 3: /* imul rax, rax, number */
        return emit_number(emit(to, "\x48\x69\xc0", 3), number | 1);
    case 4: /* rol rax, 11 */
        return emit(to, "\x48\xc1\xc0\x0b", 4);
    case 5: /* test al, 1; jz over the next */
        return emit(to, "\xa8\x01\x74\x03\x48\xff\xc0", 7);
    case 6: /* add rax, rdi */
        return emit(to, "\x48\x01\xf8", 3);
    default: /* not rax */
        return emit(to, "\x48\xf7\xd0", 3);
    }
}

uint64_t program(void) {
    uint64_t random = 11, value = 0;
    for (int round = 0; round < WORK; round++) {
        uint64_t bits = next_random(&random);
        uint8_t *start = code + (bits >> 8) % (SIZE - 512), *to = emit(start, "\x48\x89\xf8", 3);
        for (int count = 1 + bits % 32; count > 0; count--)
            to = emit_instruction(to, next_random(&random));
        to = emit(to, "\xc3", 1);
        results[0] += to - start;
        MEMORY_BARRIER();
        for (int call = 0; call < 3; call++)
            value = ((uint64_t(*)(uint64_t))start)(value + call);
    }
    return value;
}
