/* WORK steps of the sun and four planets (the n-body program of the Computer Language Benchmarks
 * Game) in extended precision, which is x87 arithmetic.
 * results[0..2]: significands of the energy before and after. Checksum: all positions. */
#include "common.h"
#ifndef WORK
#define WORK 400000
#endif

#define BODIES 5
#define SOLAR_MASS 39.478417604357434475L
#define DAYS 365.24L

typedef struct {
    long double place[3], velocity[3], mass;
} Body;

static Body bodies[BODIES] = {
    {{0, 0, 0}, {0, 0, 0}, SOLAR_MASS},
    {{4.84143144246472090L, -1.16032004402742839L, -1.03622044471123109e-1L},
     {1.66007664274403694e-3L * DAYS, 7.69901118419740425e-3L * DAYS, -6.90460016972063023e-5L * DAYS},
     9.54791938424326609e-4L * SOLAR_MASS},
    {{8.34336671824457987L, 4.12479856412430479L, -4.03523417114321381e-1L},
     {-2.76742510726411e-3L * DAYS, 4.99852801234917238e-3L * DAYS, 2.30417297573763929e-5L * DAYS},
     2.85885980666130812e-4L * SOLAR_MASS},
    {{1.28943695621391310e1L, -1.51111514016986312e1L, -2.23307578892655734e-1L},
     {2.96460137564761618e-3L * DAYS, 2.37847173959480950e-3L * DAYS, -2.96589568540237556e-5L * DAYS},
     4.36624404335156298e-5L * SOLAR_MASS},
    {{1.53796971148509165e1L, -2.59193146099879641e1L, 1.79258772950371181e-1L},
     {2.68067772490389322e-3L * DAYS, 1.62824170038242295e-3L * DAYS, -9.51592254519715870e-5L * DAYS},
     5.15138902046611451e-5L * SOLAR_MASS}};

static long double square_root(long double value) {
    __asm__("fsqrt" : "+t"(value));
    return value;
}

static long double distance(const Body *a, const Body *b, long double difference[3]) {
    long double square = 0;
    for (int i = 0; i < 3; i++) {
        difference[i] = a->place[i] - b->place[i];
        square += difference[i] * difference[i];
    }
    return square_root(square);
}

static long double energy(void) {
    long double sum = 0, difference[3];
    for (int a = 0; a < BODIES; a++) {
        for (int i = 0; i < 3; i++)
            sum += bodies[a].mass * bodies[a].velocity[i] * bodies[a].velocity[i] / 2;
        for (int b = a + 1; b < BODIES; b++)
            sum -= bodies[a].mass * bodies[b].mass / distance(&bodies[a], &bodies[b], difference);
    }
    return sum;
}

static void step(long double time) {
    for (int a = 0; a < BODIES; a++)
        for (int b = a + 1; b < BODIES; b++) {
            long double difference[3], far = distance(&bodies[a], &bodies[b], difference);
            long double magnitude = time / (far * far * far);
            for (int i = 0; i < 3; i++) {
                bodies[a].velocity[i] -= difference[i] * bodies[b].mass * magnitude;
                bodies[b].velocity[i] += difference[i] * bodies[a].mass * magnitude;
            }
        }
    for (int a = 0; a < BODIES; a++)
        for (int i = 0; i < 3; i++)
            bodies[a].place[i] += time * bodies[a].velocity[i];
}

static uint64_t significand(long double value) {
    return *(const uint64_t *)&value;
}

uint64_t program(void) {
    uint64_t checksum = 0;
    results[0] = significand(energy());
    for (int i = 0; i < WORK; i++)
        step(0.01L);
    results[1] = significand(energy());
    for (int a = 0; a < BODIES; a++)
        for (int i = 0; i < 3; i++)
            checksum = mix(checksum, significand(bodies[a].place[i]));
    return checksum;
}
