#include "topology.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

namespace openwork {

namespace {

// Fewer ids or columns than this are one thread's work.
constexpr int64_t kAlone = 16384;

int team(int64_t work, int threads) { return work > kAlone ? threads : 1; }

// What thread `t` of `threads` does of `n` things: those from share(n, t, threads) to share(n, t + 1, threads).
int64_t share(int64_t n, int t, int threads) { return n * t / threads; }

// Which numbers of a range are there, a bit for each.
class Table {
public:
    // Of the range of ids[n]; false where it is longer than `span`.
    bool cover(const int64_t* ids, int64_t n, int64_t span, int threads) {
        if (n == 0) return true;
        int64_t least = ids[0], greatest = ids[0];
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1) reduction(min : least) reduction(max : greatest)
        for (int64_t i = 1; i < n; ++i) {
            least = std::min(least, ids[i]);
            greatest = std::max(greatest, ids[i]);
        }
        least_ = static_cast<uint64_t>(least);
        const uint64_t last = static_cast<uint64_t>(greatest) - least_;
        if (span < 1 || last >= static_cast<uint64_t>(span)) return false;
        length_ = last + 1;
        bits_.assign((length_ + 63) / 64, 0);
        return true;
    }

    // Of 0 .. length - 1.
    void cover(int64_t length) {
        length_ = static_cast<uint64_t>(length);
        bits_.assign((length_ + 63) / 64, 0);
    }

    // Clears a number of the range.
    void clear(int64_t id) {
        const uint64_t place = static_cast<uint64_t>(id) - least_;
        bits_[place / 64] &= ~(uint64_t{1} << (place % 64));
    }

    int64_t words() const { return static_cast<int64_t>(bits_.size()); }

    bool has(int64_t id) const {
        const uint64_t place = static_cast<uint64_t>(id) - least_;
        return place < length_ && (bits_[place / 64] >> (place % 64) & 1);
    }

    // Sets or clears those of ids[n] that lie in the words first .. last - 1.
    template <bool there>
    void write(const int64_t* ids, int64_t n, int64_t first, int64_t last) {
        const uint64_t begin = static_cast<uint64_t>(first), size = static_cast<uint64_t>(last - first);
        uint64_t elsewhere = 0;  // in no order, a branch would be wrong every other time
        for (int64_t i = 0; i < n; ++i) {
            const uint64_t place = static_cast<uint64_t>(ids[i]) - least_, bit = uint64_t{1} << (place % 64);
            uint64_t& word = place / 64 - begin < size ? bits_[place / 64] : elsewhere;
            word = there ? word | bit : word & ~bit;
        }
    }

    // Writes the numbers in the words first .. last - 1, ascending, and says how many; there must be room for one more.
    int64_t list(int64_t first, int64_t last, int64_t* out) const {
        int64_t count = 0;
        for (int64_t k = first; k < last; ++k) {
            uint64_t word = bits_[k];
            const uint64_t start = least_ + 64 * static_cast<uint64_t>(k);
            // Most words hold few numbers, how many is as good as random: the first two are written whether they are there or not.
            for (int i = 0; i < 2; ++i) {
                out[count] = static_cast<int64_t>(start + __builtin_ctzll(word | uint64_t{1} << 63));
                count += word != 0;
                word &= word - 1;
            }
            for (; word != 0; word &= word - 1) out[count++] = static_cast<int64_t>(start + __builtin_ctzll(word));
        }
        return count;
    }

private:
    std::vector<uint64_t> bits_;
    uint64_t least_ = 0, length_ = 0;
};

double random_number(uint64_t seed, int64_t i) {
    uint64_t z = seed + static_cast<uint64_t>(i) * 0x9E3779B97F4A7C15;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return static_cast<double>(static_cast<int64_t>((z ^ (z >> 31)) >> 11)) * 0x1p-53;
}

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

// Sets the bits of ids[n], has `clear(first, last)` clear some in the words first .. last - 1, and lists what remains in out[n + 1].
template <typename Clear>
int64_t remaining(Table& table, const int64_t* ids, int64_t n, int64_t* out, int threads, Clear clear) {
    // Every thread has words of its own, and all but the first a list of its own.
    std::vector<std::unique_ptr<int64_t[]>> lists(static_cast<size_t>(threads));
    for (int t = 1; t < threads; ++t) lists[t].reset(new int64_t[static_cast<size_t>(n) + 1]);
    std::vector<int64_t> counts(static_cast<size_t>(threads));
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int t = 0; t < threads; ++t) {
        const int64_t first = share(table.words(), t, threads), last = share(table.words(), t + 1, threads);
        table.write<true>(ids, n, first, last);
        clear(first, last);
        counts[t] = table.list(first, last, t == 0 ? out : lists[t].get());
    }
    int64_t count = counts[0];
    for (int t = 1; t < threads; ++t) {
        std::copy(lists[t].get(), lists[t].get() + counts[t], out + count);
        count += counts[t];
    }
    return count;
}

}  // namespace

int64_t absent(const int64_t* ids, int64_t n, const int64_t* others, int64_t m, int64_t span, int64_t* out, int threads) {
    Table table;
    threads = team(n, threads);
    if (!table.cover(ids, n, span, threads)) return -1;
    return remaining(table, ids, n, out, threads, [&](int64_t first, int64_t last) { table.write<false>(others, m, first, last); });
}

int64_t unlisted(const Index& active, int64_t width, const int64_t* flat, int64_t n, int64_t* out, int threads) {
    const int64_t length = active.groups * width;
    if (check(active) != nullptr) return -1;
    threads = team(n, threads);
    bool outside = false;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1) reduction(|| : outside)
    for (int64_t i = 0; i < n; ++i) outside |= flat[i] < 0 || flat[i] >= length;
    if (outside) return -1;
    Table table;
    table.cover(length);
    return remaining(table, flat, n, out, threads, [&](int64_t first, int64_t last) {
        // Groups at either end may share their words with another thread.
        const int64_t from = 64 * first, to = std::min(64 * last, length);
        for (int64_t g = from / width; g * width < to; ++g) {
            for (int64_t k = active.offsets[g]; k < active.offsets[g + 1]; ++k) {
                const int64_t id = g * width + active.columns[k];
                if (id >= from && id < to) table.clear(id);
            }
        }
    });
}

bool member(const int64_t* ids, int64_t n, const int64_t* others, int64_t m, int64_t span, uint8_t* found) {
    Table table;
    if (!table.cover(others, m, span, 1)) return false;
    table.write<true>(others, m, 0, table.words());
    for (int64_t i = 0; i < n; ++i) found[i] = table.has(ids[i]);
    return true;
}

void draw_even(uint64_t seed, int64_t size, int64_t n, int64_t* found, int threads) {
#pragma omp parallel for schedule(static) num_threads(team(n, threads))
    for (int64_t i = 0; i < n; ++i) found[i] = std::min(static_cast<int64_t>(random_number(seed, i + 1) * static_cast<double>(size)), size - 1);
}

void draw_weighted(uint64_t seed, const double* sums, int64_t size, int64_t last, int64_t n, int64_t* found, int threads) {
    // The range is cut in even cells; from where a cell begins among the sums it is a step to most places, and none is missed:
    // what rounding or numbers out of order put wrong, the steps put right or end at the edge.
    const int64_t cells = 2 * size;
    const double total = sums[size - 1], width = total / static_cast<double>(cells), per_width = 1.0 / width;
    std::vector<int32_t> begins(static_cast<size_t>(cells));
    // Behind the last sum there are two more that nothing exceeds.
    std::vector<double> padded(static_cast<size_t>(size) + 2, std::numeric_limits<double>::infinity());
    std::copy(sums, sums + size, padded.begin());
    const double* sum = padded.data();
    for (int64_t cell = 0, k = 0; cell < cells; ++cell) {
        while (k < size && sums[k] <= static_cast<double>(cell) * width) ++k;
        begins[cell] = static_cast<int32_t>(k);
    }
#pragma omp parallel for schedule(static) num_threads(team(n, threads))
    for (int64_t i = 0; i < n; ++i) {
        const double at = random_number(seed, i + 1) * total, place = at * per_width;
        int64_t k = begins[place > 0 ? (place < static_cast<double>(cells) ? static_cast<int64_t>(place) : cells - 1) : 0];
        // Whether there is a first or a second step is as good as random, and a wrong guess takes longer than the step.
        k += !(sum[k] > at);
        k += !(sum[k] > at);
        while (k < size && !(sum[k] > at)) ++k;
        while (k > 0 && sum[k - 1] > at) --k;
        found[i] = std::min(k, last);
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
                 Exchange& out, int threads) {
    if (Failure wrong = check(before)) return wrong;
    out.in_order = ascend_below(gone, n_gone, before.stored) && ascend_below(fresh, n_fresh, before.groups * width);
    if (!out.in_order) return nullptr;
    threads = team(before.stored, threads);
    bool wrong = false, again = false;
    int32_t *offsets = out.offsets, *columns = out.columns;
    int64_t *origin = out.origin, *new_at = out.new_at;
    offsets[0] = 0;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1) reduction(|| : wrong, again)
    for (int t = 0; t < threads; ++t) {
        const int64_t first = share(before.groups, t, threads), end = share(before.groups, t + 1, threads);
        int64_t next_gone = std::lower_bound(gone, gone + n_gone, before.offsets[first]) - gone;
        int64_t next = std::lower_bound(fresh, fresh + n_fresh, first * width) - fresh;
        int64_t count = before.offsets[first] - next_gone + next;
        for (int64_t g = first; g < end; ++g) {
            const int64_t start = g * width;
            int64_t last = -1, coming = next < n_fresh ? fresh[next] - start : width;
            const auto come = [&] {
                new_at[next] = count;
                origin[count] = 0;
                columns[count++] = static_cast<int32_t>(coming);
                coming = ++next < n_fresh ? fresh[next] - start : width;
            };
            for (int64_t k = before.offsets[g]; k < before.offsets[g + 1]; ++k) {
                const int64_t column = before.columns[k];
                wrong = wrong || column <= last || column >= width;
                last = column;
                while (coming < std::min(column, width)) come();
                const bool goes = next_gone < n_gone && gone[next_gone] == k;
                wrong = wrong || (coming == column && !goes);
                again = again || coming == column;
                if (!goes) {
                    columns[count] = static_cast<int32_t>(column);
                    origin[count++] = k;
                }
                next_gone += goes;
            }
            while (coming < width) come();
            offsets[g + 1] = static_cast<int32_t>(count);
        }
    }
    out.in_order = !wrong;
    out.distinct = !again;
    return nullptr;
}

Failure carry(const Index& before, const Index& after, int64_t width, int64_t* source, int64_t* target, int64_t& count, int threads) {
    if (Failure wrong = check(before)) return wrong;
    if (Failure wrong = check(after)) return wrong;
    const uint32_t limit = static_cast<uint32_t>(width);
    threads = team(before.stored, threads);
    bool falls = false, outside = false;
    std::vector<int64_t> counts(static_cast<size_t>(threads));
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1) reduction(|| : falls, outside)
    for (int t = 0; t < threads; ++t) {
        // Where a column was last stored: in this group, or so early that it was in another.
        std::vector<int32_t> last(static_cast<size_t>(width), -1);
        const int64_t first = share(before.groups, t, threads), end = share(before.groups, t + 1, threads);
        // What is found is written where the group begins in `after`, so that every thread has room of its own.
        int64_t at = after.offsets[first];
        for (int64_t g = first; g < end; ++g) {
            const int32_t start = before.offsets[g];
            for (int32_t k = start; k < before.offsets[g + 1]; ++k) {
                const uint32_t column = static_cast<uint32_t>(before.columns[k]);
                outside = outside || column >= limit;
                last[column < limit ? column : 0] = k;
            }
            for (int32_t k = after.offsets[g]; k < after.offsets[g + 1]; ++k) {
                const uint32_t column = static_cast<uint32_t>(after.columns[k]);
                outside = outside || column >= limit;
                falls = falls || (k > after.offsets[g] && after.columns[k] <= after.columns[k - 1]);
                const int32_t stored = last[column < limit ? column : 0];
                source[at] = stored;
                target[at] = k;
                at += stored >= start;
            }
        }
        counts[t] = at - after.offsets[first];
    }
    if (outside) return "the pattern's columns are out of range";
    count = counts[0];
    for (int t = 1; t < threads; ++t) {
        const int64_t from = after.offsets[share(before.groups, t, threads)];
        std::copy(source + from, source + from + counts[t], source + count);
        std::copy(target + from, target + from + counts[t], target + count);
        count += counts[t];
    }
    if (falls) count = -1;
    return nullptr;
}

}  // namespace openwork
