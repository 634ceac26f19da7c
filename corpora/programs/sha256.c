/* SHA-256 (FIPS 180-4) of a message of WORK times the same MiB of random bytes.
 * results[0..4]: the digest as big-endian words. Checksum: the first of them. */
#include "common.h"
#ifndef WORK
#define WORK 64
#endif

#define WORDS (1 << 17)

static uint64_t data[WORDS];
static uint32_t hash[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                           0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
static const uint32_t constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t rotate_right(uint32_t value, unsigned count) {
    return value >> count | value << (32 - count);
}

static uint32_t big_endian(const uint8_t *bytes) {
    return (uint32_t)bytes[0] << 24 | bytes[1] << 16 | bytes[2] << 8 | bytes[3];
}

static void block(const uint8_t *bytes) {
    uint32_t w[64];
    for (int t = 0; t < 16; t++)
        w[t] = big_endian(bytes + 4 * t);
    for (int t = 16; t < 64; t++) {
        uint32_t x = w[t - 15], y = w[t - 2];
        uint32_t low = rotate_right(x, 7) ^ rotate_right(x, 18) ^ x >> 3;
        uint32_t high = rotate_right(y, 17) ^ rotate_right(y, 19) ^ y >> 10;
        w[t] = w[t - 16] + low + w[t - 7] + high;
    }
    uint32_t a = hash[0], b = hash[1], c = hash[2], d = hash[3];
    uint32_t e = hash[4], f = hash[5], g = hash[6], h = hash[7];
    for (int t = 0; t < 64; t++) {
        uint32_t sum = rotate_right(e, 6) ^ rotate_right(e, 11) ^ rotate_right(e, 25);
        uint32_t first = h + sum + ((e & f) ^ (~e & g)) + constants[t] + w[t];
        sum = rotate_right(a, 2) ^ rotate_right(a, 13) ^ rotate_right(a, 22);
        uint32_t second = sum + ((a & b) ^ (a & c) ^ (b & c));
        h = g, g = f, f = e, e = d + first, d = c, c = b, b = a, a = first + second;
    }
    hash[0] += a, hash[1] += b, hash[2] += c, hash[3] += d;
    hash[4] += e, hash[5] += f, hash[6] += g, hash[7] += h;
}

uint64_t program(void) {
    uint64_t random = 1, bits = (uint64_t)WORK * sizeof data * 8;
    for (int i = 0; i < WORDS; i++)
        data[i] = next_random(&random);
    for (int round = 0; round < WORK; round++)
        for (size_t i = 0; i < sizeof data; i += 64)
            block((const uint8_t *)data + i);
    uint8_t last[64] = {0x80};
    for (int i = 0; i < 8; i++)
        last[56 + i] = bits >> (56 - 8 * i);
    block(last);
    for (int i = 0; i < 4; i++)
        results[i] = (uint64_t)hash[2 * i] << 32 | hash[2 * i + 1];
    return results[0];
}
