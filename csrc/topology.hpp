// Passes over the ids and scores of a topology update.  The results are those of openwork/scores.py, openwork/pattern.py and
// the layouts, bit for bit, whatever the number of threads.
#pragma once

#include "api.hpp"

namespace openwork {

// Ids are int64 of any value in any order.  A table of bits, one for each number from the least to the greatest, says which are
// there; `span` is the longest such table.

// out[n + 1]: the distinct ids[n] that are not among others[m], ascending; how many, or -1 where the table would be too long.
int64_t absent(const int64_t* ids, int64_t n, const int64_t* others, int64_t m, int64_t span, int64_t* out, int threads);

// found[n]: whether each of ids[n] is among others[m]; false where the table would be too long.
bool member(const int64_t* ids, int64_t n, const int64_t* others, int64_t m, int64_t span, uint8_t* found);

// The random numbers i = 1 .. n of the sequence that `seed` begins (SplitMix64), as multiples of 2^-53 below 1, turned into
// found[n]: the number times `size`, cut off, at most size - 1; 0 < size <= 2^53.
void draw_even(uint64_t seed, int64_t size, int64_t n, int64_t* found, int threads);
// The number times the last of ascending sums[size], and the first of them that exceeds it, at most `last` < size.
void draw_weighted(uint64_t seed, const double* sums, int64_t size, int64_t last, int64_t n, int64_t* found, int threads);

// out[n - m]: items of `width` bytes without those at the strictly ascending indices at[m], m <= n.
Failure without(const char* items, int64_t width, int64_t n, const int64_t* at, int64_t m, char* out);

// The columns of a pattern, group by group.
struct Index {
    const int32_t* offsets;  // [groups + 1]
    const int32_t* columns;  // [stored]
    int64_t groups, stored;
};

// The distinct of flat[n] that no column of `active` stands for, ids as in `join`: ascending, with room for one more; how many, or
// -1 where an id lies outside the matrix or the offsets of the pattern do not ascend.
int64_t unlisted(const Index& active, int64_t width, const int64_t* flat, int64_t n, int64_t* out, int threads);

// offsets[groups + 1], columns[n]: of ids group * width + column, which ascend.
Failure split(const int64_t* ids, int64_t n, int64_t groups, int64_t width, int32_t* offsets, int32_t* columns);

// ids[stored]: group * width + column, as they are stored.
Failure join(const Index&, int64_t width, int64_t* ids);

// The pattern of all columns but those stored at the indices gone[n_gone], and of fresh[n_fresh], ids as in `join`: new offsets
// [groups + 1] and columns [stored - n_gone + n_fresh].  False where that would not be in order: where indices, ids or the
// columns of a group do not ascend strictly or lie outside, or what is fresh stands among what stays.  origin[stored - n_gone +
// n_fresh] says where each column was stored, 0 for fresh ones, and new_at[n_fresh] where those are stored now.  `distinct`:
// nothing fresh was among what went.
struct Exchange {
    int32_t *offsets, *columns;
    int64_t *origin, *new_at;
    bool in_order, distinct;
};
Failure exchange(const Index& before, int64_t width, const int64_t* gone, int64_t n_gone, const int64_t* fresh, int64_t n_fresh,
                 Exchange& out, int threads);

// source, target: where each column that both hold is stored in either, as they are stored in `after`, of whose columns both
// have room for all.  `count` is -1 where the columns of a group of `after` do not ascend strictly.
Failure carry(const Index& before, const Index& after, int64_t width, int64_t* source, int64_t* target, int64_t& count, int threads);

}  // namespace openwork
