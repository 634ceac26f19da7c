/* What every program begins with: the entry point, the results, and what a compiler may call without
 * being asked to. A program defines `program`, whose value is its checksum; at the final `hlt` it is
 * in rax, and rdi points to `results`. Nothing here or there depends on an address. With PROCESS it is
 * one of Linux instead: it writes the checksum to its standard output, eight bytes, and exits. */
#include <stddef.h>
#include <stdint.h>

/* What a program found, beside its checksum; each program says what is where. */
uint64_t results[16];

uint64_t program(void);

__asm__(".text\n"
        ".globl _start\n"
        "_start:\n"
        "  xorl %ebp, %ebp\n"
        "  andq $-16, %rsp\n"
        "  call program\n"
#ifdef PROCESS
        "  pushq %rax\n"
        "  movl $1, %eax\n" /* write */
        "  movl $1, %edi\n"
        "  movq %rsp, %rsi\n"
        "  movl $8, %edx\n"
        "  syscall\n"
        "  movl $60, %eax\n" /* exit */
        "  xorl %edi, %edi\n"
        "  syscall\n"
#endif
        "  leaq results(%rip), %rdi\n"
        "  hlt\n");

__attribute__((used)) void *memcpy(void *to, const void *from, size_t size) {
    void *next = to;
    __asm__ volatile("rep movsb" : "+D"(next), "+S"(from), "+c"(size) : : "memory");
    return to;
}

__attribute__((used)) void *memset(void *to, int byte, size_t size) {
    void *next = to;
    __asm__ volatile("rep stosb" : "+D"(next), "+c"(size) : "a"(byte) : "memory");
    return to;
}

/* The generator of all input data (xorshift64*); the state must not be zero. */
static inline uint64_t next_random(uint64_t *state) {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 0x2545f4914f6cdd1d;
}

/* Adds a value to a checksum; the order of values matters. */
static inline uint64_t mix(uint64_t checksum, uint64_t value) {
    checksum = (checksum ^ value) * 0x9e3779b97f4a7c15;
    return checksum ^ checksum >> 32;
}

static inline uint64_t rotate_left(uint64_t value, unsigned count) {
    return value << count | value >> (64 - count);
}

/* Makes the compiler believe that a value or memory was touched, so that a loop stays a loop. */
#define OPAQUE(value) __asm__ volatile("" : "+r"(value))
#define MEMORY_BARRIER() __asm__ volatile("" : : : "memory")
