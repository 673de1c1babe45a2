// The orders in which convolutions have sorted a pattern's columns, kept between calls by whoever owns the pattern.
#pragma once

#include "api.hpp"

namespace openwork {

struct SortingKey {
    int64_t n_columns, groups, stored, taps, taps_in_line, windows, by;
};

// Entries are added, never changed or dropped, so that what has been found stays where it is.  Nobody else writes to them: what they
// hold was checked when they were made.
class Sortings {
public:
    struct Order {
        const int32_t *ids, *order;  // [stored]: the columns, and where their values are; null: not known, or of single rows
        const int32_t* starts;       // as in Sorted
        const uint16_t* places;      // [stored]: of single rows instead, for they have many: where a row's columns stood in it
    };

    explicit Sortings(int64_t most);
    ~Sortings();
    Sortings(const Sortings&) = delete;
    Sortings& operator=(const Sortings&) = delete;

    Order find(const SortingKey& key) const;
    // Copies an order, unless there are enough.
    void keep(const SortingKey& key, const Order& order, int64_t n_starts);
    int64_t bytes() const;

private:
    struct Entries;
    Entries* entries_;
};

}  // namespace openwork
