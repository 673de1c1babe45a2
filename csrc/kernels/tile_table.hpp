// How large the register tiles are, by the registers that there are and the height of the row groups.
#pragma once

#include "vec.hpp"

namespace openwork {
namespace OPENWORK_ISA_NAMESPACE {

struct Tile {
    int rows, vectors;
};

struct Tiles {
    int64_t height;  // of a group at least
    Tile gather, scatter;
    int64_t piece;   // vectors of a convolution's line that are computed between two fetches of what is read next: a few tiles at most
};

// Columns that are multiplied with four rows, with two or with one at a time, and vectors of a single row that registers hold meanwhile.
struct DotTiles {
    int of_four, of_two, of_one, vectors_of_one;
};

// As many sums as leave room for what they are made of, and never fewer than eight: two additions begin in every cycle and each takes
// four.
#if defined(__AVX512F__) || defined(__aarch64__)  // 32 registers
#ifdef __AVX512F__
constexpr Tile kHigh{8, 3};
#else
constexpr Tile kHigh{8, 2};  // the weights of eight rows take a register each
#endif
constexpr Tiles kTiles[] = {{8, kHigh, kHigh, 6}, {4, {4, 4}, {4, 4}, 4}, {1, {2, 8}, {2, 8}, 8}};
constexpr DotTiles kDotTiles{6, 8, 16, 8};
#else  // 16
#ifdef __FMA__
constexpr Tile kGathered{4, 3};
#else
constexpr Tile kGathered{4, 2};  // a product takes a register before it is added
#endif
constexpr Tiles kTiles[] = {{4, kGathered, {4, 3}, 6}, {2, {2, 4}, {2, 4}, 4}, {1, {1, 12}, {1, 6}, 12}};
constexpr DotTiles kDotTiles{3, 6, 8, 4};
#endif

// Columns and samples of a tile of outer products; a single column where dot products are taken instead.
struct OuterTiles {
    int columns, samples;
};
#ifdef __AVX512F__
constexpr OuterTiles kOuter{12, 8};
#else
constexpr OuterTiles kOuter{1, 1};
#endif

// Rows of a tile that is a single vector wide.
#ifdef __AVX512F__
constexpr int kLoneRows = 16;
#else
constexpr int kLoneRows = 8;
#endif

constexpr int kHeights = sizeof kTiles / sizeof kTiles[0];
constexpr int64_t kTilesPerGroup = 4;  // of a linear layer's panel that share one pass over a group's weights
constexpr int64_t kDotColumns = 24;    // whole tiles, whose strips and those of sixteen rows stay in L1 or nearly so

constexpr const Tiles& tiles_of(int64_t height) {
    int i = 0;
    while (i + 1 < kHeights && height < kTiles[i].height) ++i;
    return kTiles[i];
}

// Single rows have one tile a piece: a short line is cut evenly, 16 vectors not into 12 and 4.
OW_INLINE int64_t piece_of(int64_t height, int64_t vectors) {
    const int64_t piece = tiles_of(height).piece, pieces = most<int64_t>(1, (vectors + piece - 1) / piece);
    return height > 1 ? piece : least(piece, up((vectors + pieces - 1) / pieces, 4));
}

// What is left of a strip after its whole tiles is computed in tiles of this width.
constexpr int narrower(int vectors) { return vectors > 8 ? 8 : vectors > 4 ? 4 : vectors - 1; }

}  // namespace OPENWORK_ISA_NAMESPACE
}  // namespace openwork
