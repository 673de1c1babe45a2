// The orders in which convolutions have sorted a pattern's columns, kept between calls by whoever owns the pattern.
#pragma once

#include "api.hpp"

namespace openwork {

struct SortingKey {
    int64_t groups, stored, taps, taps_in_line, windows, by;
};

// Entries are added, never changed or dropped, so that what has been found stays where it is.  Nothing outside writes to them: an
// order is a permutation of the stored columns, and its starts ascend.
class Sortings {
public:
    struct Order {
        const int32_t *starts, *order;  // null: not known
    };

    Sortings();
    ~Sortings();
    Sortings(const Sortings&) = delete;
    Sortings& operator=(const Sortings&) = delete;

    Order find(const SortingKey& key) const;
    // Copies starts[n_starts] and order[key.stored], unless there are enough entries.
    void keep(const SortingKey& key, const int32_t* starts, int64_t n_starts, const int32_t* order);
    int64_t bytes() const;

private:
    struct Entries;
    Entries* entries_;
};

}  // namespace openwork
