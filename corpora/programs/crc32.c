/* CRC-32 (ISO-HDLC, reflected, polynomial 0xedb88320) of a message of WORK times the same 64 KiB of
 * random bytes, a byte at a time by a table. Checksum: the CRC. */
#include "common.h"
#ifndef WORK
#define WORK 2000
#endif

#define WORDS 8192

static uint64_t data[WORDS];
static uint32_t table[256];

uint64_t program(void) {
    uint64_t random = 4;
    for (int i = 0; i < WORDS; i++)
        data[i] = next_random(&random);
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t value = byte;
        for (int bit = 0; bit < 8; bit++)
            value = value >> 1 ^ (value & 1 ? 0xedb88320 : 0);
        table[byte] = value;
    }
    const uint8_t *bytes = (const uint8_t *)data;
    uint32_t crc = ~0u;
    for (int round = 0; round < WORK; round++)
        for (size_t i = 0; i < sizeof data; i++)
            crc = crc >> 8 ^ table[(crc ^ bytes[i]) & 0xff];
    return ~crc;
}
