/* The product of two 256 by 256 matrices of floats with AVX2 intrinsics, WORK times; one element of
 * the left matrix changes each time. Rounding depends on whether the compiler fuses.
 * results[0]: bits of the last product's first two elements. Checksum: all bits of all products. */
#include "common.h"
#include <immintrin.h>
#ifndef WORK
#define WORK 200
#endif

#define SIZE 256

static float left[SIZE][SIZE], product[SIZE][SIZE];
static float right[SIZE][SIZE] __attribute__((aligned(32)));

static float random_float(uint64_t *random) {
    return (float)(int32_t)(next_random(random) >> 32) / 2147483648.0f;
}

static void multiply(void) {
    for (int i = 0; i < SIZE; i++)
        for (int j = 0; j < SIZE; j += 16) {
            __m256 low = _mm256_setzero_ps(), high = low;
            for (int k = 0; k < SIZE; k++) {
                __m256 factor = _mm256_broadcast_ss(&left[i][k]);
                __m256 *row = (__m256 *)&right[k][j];
                low = _mm256_add_ps(low, _mm256_mul_ps(factor, row[0]));
                high = _mm256_add_ps(high, _mm256_mul_ps(factor, row[1]));
            }
            _mm256_storeu_ps(&product[i][j], low);
            _mm256_storeu_ps(&product[i][j + 8], high);
        }
}

uint64_t program(void) {
    uint64_t random = 3, checksum = 0;
    for (int i = 0; i < SIZE; i++)
        for (int j = 0; j < SIZE; j++) {
            left[i][j] = random_float(&random);
            right[i][j] = random_float(&random);
        }
    const uint64_t *bits = (const uint64_t *)product;
    for (int round = 0; round < WORK; round++) {
        left[round % SIZE][round * 7 % SIZE] += 0.625f;
        multiply();
        for (int i = 0; i < SIZE * SIZE / 2; i++)
            checksum = mix(checksum, bits[i]);
    }
    results[0] = bits[0];
    return checksum;
}
