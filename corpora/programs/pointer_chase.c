/* Follows WORK pointers round a ring of 16,384 nodes, 64 bytes each, in random order. The pointers are
 * real addresses, so memory, but no result, depends on where the program lies.
 * Checksum: the node at the end, and the sum of the numbers of all nodes that were passed. */
#include "common.h"
#ifndef WORK
#define WORK 10000000
#endif

#define NODES 16384

typedef struct Node {
    struct Node *next;
    uint64_t number, unused[6];
} Node;

static Node nodes[NODES];

uint64_t program(void) {
    static uint32_t order[NODES];
    uint64_t random = 7, sum = 0;
    for (uint32_t i = 0; i < NODES; i++) {
        uint32_t other = (next_random(&random) >> 32) % (i + 1);
        order[i] = order[other];
        order[other] = i;
    }
    for (uint32_t i = 0; i < NODES; i++) {
        nodes[order[i]].next = &nodes[order[(i + 1) % NODES]];
        nodes[i].number = i;
    }
    const Node *node = &nodes[0];
    for (uint64_t i = 0; i < WORK; i++) {
        node = node->next;
        sum += node->number;
    }
    return mix(node->number, sum);
}
