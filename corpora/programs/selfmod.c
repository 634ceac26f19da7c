/* A loop of WORK rounds that writes over its own instructions, each of them in a page that also holds
 * data, since the linker puts everything in one segment: the number of an instruction behind the
 * store, the number of the very next instruction, the operation of an instruction before it, and a
 * jump's distance. Checksum: what the loop computed. */
#include "common.h"
#ifndef WORK
#define WORK 300000
#endif

/* In rdi: the value so far; in rsi: random bits. Returns the new value. */
uint64_t round_of(uint64_t value, uint64_t bits);

__asm__(".text\n"
        ".globl round_of\n"
        "round_of:\n"
        "  movq %rdi, %rax\n"
        "operation:\n"
        "  .byte 0x48, 0x01, 0xf0\n" /* add rax, rsi; or sub, xor, and its like */
        /* The number of the very next instruction. */
        "  movl %esi, next + 2(%rip)\n"
        "next:\n"
        "  .byte 0x48, 0x05, 0, 0, 0, 0\n" /* add rax, number */
        /* The number of an instruction further on, one byte of it. */
        "  movq %rsi, %rcx\n"
        "  shrq $32, %rcx\n"
        "  movb %cl, turn + 3(%rip)\n"
        /* What the first instruction will be the next time: add, sub, xor or or. */
        "  shrq $8, %rcx\n"
        "  andl $3, %ecx\n"
        "  leaq operations(%rip), %rdx\n"
        "  movb (%rdx,%rcx), %cl\n"
        "  movb %cl, operation + 1(%rip)\n"
        /* Whether the jump leaves out the instruction behind it. */
        "  movq %rsi, %rcx\n"
        "  shrq $42, %rcx\n"
        "  andl $1, %ecx\n"
        "  leal (%rcx,%rcx,2), %ecx\n"
        "  movb %cl, jump + 1(%rip)\n"
        "jump:\n"
        "  .byte 0xeb, 0\n"
        "  incq %rax\n"
        "turn:\n"
        "  .byte 0x48, 0xc1, 0xc0, 0\n" /* rol rax, number */
        "  incl rounds(%rip)\n"
        "  ret\n"
        "operations:\n"
        "  .byte 0x01, 0x29, 0x31, 0x09\n" /* add, sub, xor, or */
        "rounds:\n"
        "  .long 0\n");

uint64_t program(void) {
    uint64_t random = 10, value = 0;
    for (int i = 0; i < WORK; i++)
        value = round_of(value, next_random(&random));
    return value;
}
