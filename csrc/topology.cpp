#include "topology.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

namespace openwork {

namespace {

// Which numbers of a range are there.
class Table {
public:
    // Of the range of ids[n]; false where it is longer than `span`.
    bool cover(const int64_t* ids, int64_t n, int64_t span) {
        if (n == 0) return true;
        int64_t least = ids[0], greatest = ids[0];
        for (int64_t i = 1; i < n; ++i) {
            least = std::min(least, ids[i]);
            greatest = std::max(greatest, ids[i]);
        }
        least_ = static_cast<uint64_t>(least);
        const uint64_t last = static_cast<uint64_t>(greatest) - least_;
        if (span < 1 || last >= static_cast<uint64_t>(span)) return false;
        length_ = last + 1;
        words_.assign((length_ + 63) / 64, 0);
        return true;
    }

    void set(int64_t id) { words_[place(id) / 64] |= uint64_t{1} << (place(id) % 64); }

    void clear(int64_t id) {
        if (holds(id)) words_[place(id) / 64] &= ~(uint64_t{1} << (place(id) % 64));
    }

    bool has(int64_t id) const { return holds(id) && (words_[place(id) / 64] >> (place(id) % 64) & 1); }

    // Writes those that are there, ascending, and says how many; there must be room for one more.
    int64_t list(int64_t* out) const {
        int64_t count = 0;
        for (size_t k = 0; k < words_.size(); ++k) {
            uint64_t word = words_[k];
            const uint64_t first = least_ + 64 * k;
            // Most words hold few numbers, how many is as good as random: the first two are written whether they are there or not.
            for (int i = 0; i < 2; ++i) {
                out[count] = static_cast<int64_t>(first + __builtin_ctzll(word | uint64_t{1} << 63));
                count += word != 0;
                word &= word - 1;
            }
            for (; word != 0; word &= word - 1) out[count++] = static_cast<int64_t>(first + __builtin_ctzll(word));
        }
        return count;
    }

private:
    uint64_t place(int64_t id) const { return static_cast<uint64_t>(id) - least_; }
    bool holds(int64_t id) const { return place(id) < length_; }

    std::vector<uint64_t> words_;
    uint64_t least_ = 0, length_ = 0;
};

Failure check(const Index& index) {
    if (index.offsets[0] != 0 || index.offsets[index.groups] != index.stored) return "the pattern's offsets do not run from 0 to the number of columns";
    for (int64_t g = 0; g < index.groups; ++g) {
        if (index.offsets[g + 1] < index.offsets[g]) return "the pattern's offsets descend";
    }
    return nullptr;
}

// Whether the ids ascend strictly and all lie in 0 .. limit - 1.
bool ascend_below(const int64_t* ids, int64_t n, int64_t limit) {
    bool falls = n > 0 && (ids[0] < 0 || ids[n - 1] >= limit);
    for (int64_t i = 1; i < n; ++i) falls |= ids[i] <= ids[i - 1];
    return !falls;
}

}  // namespace

int64_t absent(const int64_t* ids, int64_t n, const int64_t* others, int64_t m, int64_t span, int64_t* out) {
    Table table;
    if (!table.cover(ids, n, span)) return -1;
    for (int64_t i = 0; i < n; ++i) table.set(ids[i]);
    for (int64_t j = 0; j < m; ++j) table.clear(others[j]);
    return table.list(out);
}

bool member(const int64_t* ids, int64_t n, const int64_t* others, int64_t m, int64_t span, uint8_t* found) {
    Table table;
    if (!table.cover(others, m, span)) return false;
    for (int64_t j = 0; j < m; ++j) table.set(others[j]);
    for (int64_t i = 0; i < n; ++i) found[i] = table.has(ids[i]);
    return true;
}

void first_above(const double* sums, int64_t size, const double* at, int64_t n, int64_t* found, int threads) {
    // The range is cut in even cells; from where a cell begins among the sums it is a step to most places, and none is missed:
    // what rounding or numbers out of order put wrong, the steps put right or end at the edge.
    const int64_t cells = 8 * size;
    const double width = sums[size - 1] / static_cast<double>(cells), per_width = 1.0 / width;
    std::vector<int64_t> begins(static_cast<size_t>(cells));
    for (int64_t cell = 0, k = 0; cell < cells; ++cell) {
        while (k < size && sums[k] <= static_cast<double>(cell) * width) ++k;
        begins[cell] = k;
    }
#pragma omp parallel for schedule(static) num_threads(threads) if (n > 16384)
    for (int64_t i = 0; i < n; ++i) {
        const double place = at[i] * per_width;
        int64_t k = begins[place > 0 ? (place < static_cast<double>(cells) ? static_cast<int64_t>(place) : cells - 1) : 0];
        while (k < size && !(sums[k] > at[i])) ++k;
        while (k > 0 && sums[k - 1] > at[i]) --k;
        found[i] = k;
    }
}

Failure without(const char* items, int64_t width, int64_t n, const int64_t* at, int64_t m, char* out) {
    int64_t next = 0;  // the first item not dealt with
    for (int64_t k = 0; k <= m; ++k) {
        const int64_t gap = k < m ? at[k] : n;
        // The indices that are left need room too, or the items would not fit the output.
        if (gap < next || gap > n - (m - k)) return "the indices do not ascend or leave the array";
        const size_t bytes = static_cast<size_t>((gap - next) * width);
        if (bytes > 0) std::memcpy(out, items + next * width, bytes);
        out += bytes;
        next = gap + 1;
    }
    return nullptr;
}

Failure split(const int64_t* ids, int64_t n, int64_t groups, int64_t width, int32_t* offsets, int32_t* columns) {
    if (n > 0 && (ids[0] < 0 || ids[n - 1] >= groups * width)) return "an id lies outside the matrix";
    bool falls = false;
    for (int64_t k = 1; k < n; ++k) falls |= ids[k] < ids[k - 1];
    if (falls) return "the ids do not ascend";
    offsets[0] = 0;
    int64_t k = 0;
    for (int64_t g = 0; g < groups; ++g) {
        const int64_t start = g * width;
        for (; k < n && ids[k] < start + width; ++k) columns[k] = static_cast<int32_t>(ids[k] - start);
        offsets[g + 1] = static_cast<int32_t>(k);
    }
    return nullptr;
}

Failure join(const Index& index, int64_t width, int64_t* ids) {
    if (Failure wrong = check(index)) return wrong;
    for (int64_t g = 0; g < index.groups; ++g) {
        for (int64_t k = index.offsets[g]; k < index.offsets[g + 1]; ++k) ids[k] = g * width + index.columns[k];
    }
    return nullptr;
}

Failure exchange(const Index& before, int64_t width, const int64_t* gone, int64_t n_gone, const int64_t* fresh, int64_t n_fresh,
                 int32_t* offsets, int32_t* columns, bool& in_order) {
    if (Failure wrong = check(before)) return wrong;
    in_order = ascend_below(gone, n_gone, before.stored) && ascend_below(fresh, n_fresh, before.groups * width);
    if (!in_order) return nullptr;
    int64_t next_gone = 0, next = 0, count = 0;
    bool wrong = false;
    offsets[0] = 0;
    for (int64_t g = 0; g < before.groups; ++g) {
        const int64_t start = g * width;
        int64_t last = -1, coming = next < n_fresh ? fresh[next] - start : width;
        for (int64_t k = before.offsets[g]; k < before.offsets[g + 1]; ++k) {
            const int64_t column = before.columns[k];
            wrong |= column <= last || column >= width;
            last = column;
            while (coming < std::min(column, width)) {
                columns[count++] = static_cast<int32_t>(coming);
                coming = ++next < n_fresh ? fresh[next] - start : width;
            }
            const bool goes = next_gone < n_gone && gone[next_gone] == k;
            wrong |= coming == column && !goes;
            columns[count] = static_cast<int32_t>(column);
            count += !goes;
            next_gone += goes;
        }
        while (coming < width) {
            columns[count++] = static_cast<int32_t>(coming);
            coming = ++next < n_fresh ? fresh[next] - start : width;
        }
        offsets[g + 1] = static_cast<int32_t>(count);
    }
    in_order = !wrong;
    return nullptr;
}

Failure carry(const Index& before, const Index& after, int64_t width, int64_t* source, int64_t* target, int64_t& count) {
    if (Failure wrong = check(before)) return wrong;
    if (Failure wrong = check(after)) return wrong;
    const uint32_t limit = static_cast<uint32_t>(width);
    const int64_t room = std::min(before.stored, after.stored);
    // Where a column was last stored: in this group, or so early that it was in another.
    std::vector<int32_t> last(static_cast<size_t>(width), -1);
    bool falls = false;
    count = 0;
    for (int64_t g = 0; g < before.groups; ++g) {
        const int32_t start = before.offsets[g];
        for (int32_t k = start; k < before.offsets[g + 1]; ++k) {
            const uint32_t column = static_cast<uint32_t>(before.columns[k]);
            if (column >= limit) return "the pattern's columns are out of range";
            last[column] = k;
        }
        for (int32_t k = after.offsets[g]; k < after.offsets[g + 1]; ++k) {
            const uint32_t column = static_cast<uint32_t>(after.columns[k]);
            if (column >= limit) return "the pattern's columns are out of range";
            falls |= k > after.offsets[g] && after.columns[k] <= after.columns[k - 1];
            const int64_t at = std::min(count, room);  // a column that stands twice may be found more often than there is room for
            source[at] = last[column];
            target[at] = k;
            count += last[column] >= start;
        }
    }
    if (falls) count = -1;
    return nullptr;
}

}  // namespace openwork
