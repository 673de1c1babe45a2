// Addresses come as integers, checked by openwork/compiled.py; no index inside what they point to is trusted.
#include "bind_topology.hpp"

#include "bind.hpp"
#include "topology.hpp"

#include <limits>

namespace nb = nanobind;

namespace openwork {

namespace {

constexpr int64_t kMost = std::numeric_limits<int32_t>::max();

void check_sizes(int64_t n, int64_t m) {
    if (n < 0 || m < 0) throw nb::value_error("a size is negative");
}

void check_matrix(int64_t groups, int64_t width, int64_t stored) {
    if (groups < 0 || width < 1 || groups > kMost || width > kMost) throw nb::value_error("a size of the matrix is negative or too large");
    if (stored < 0 || stored > kMost) throw nb::value_error("the number of columns is negative or too large");
}

}  // namespace

void bind_topology(nb::module_& m) {
    m.def("absent", [](Address ids, int64_t n, Address others, int64_t size, int64_t span, Address out, int threads) {
        check_sizes(n, size);
        return unlocked([=] { return absent(at<const int64_t>(ids), n, at<const int64_t>(others), size, span, at<int64_t>(out), team(threads)); });
    });
    m.def("member", [](Address ids, int64_t n, Address others, int64_t size, int64_t span, Address found) {
        check_sizes(n, size);
        return unlocked([=] { return member(at<const int64_t>(ids), n, at<const int64_t>(others), size, span, at<uint8_t>(found)); });
    });
    m.def("draw_even", [](uint64_t seed, int64_t size, int64_t n, Address found, int threads) {
        check_sizes(n, 0);
        if (size < 1 || size > int64_t{1} << 53) throw nb::value_error("the size to draw from is not positive or too large");
        unlocked([=] { draw_even(seed, size, n, at<int64_t>(found), team(threads)); });
    });
    m.def("draw_weighted", [](uint64_t seed, Address sums, int64_t size, int64_t last, int64_t n, Address found, int threads) {
        check_sizes(n, size);
        if (size < 1 || size > kMost || last < 0 || last >= size) throw nb::value_error("there are no sums, too many, or no such last one");
        unlocked([=] { draw_weighted(seed, at<const double>(sums), size, last, n, at<int64_t>(found), team(threads)); });
    });
    m.def("without", [](Address items, int64_t width, int64_t n, Address indices, int64_t size, Address out) {
        check_sizes(n, size);
        if (size > n || width < 1) throw nb::value_error("there are more indices than items");
        check(unlocked([=] { return without(at<const char>(items), width, n, at<const int64_t>(indices), size, at<char>(out)); }));
    });
    m.def("unlisted", [](Address offsets, Address columns, int64_t groups, int64_t stored, int64_t width, Address flat, int64_t n, Address out,
                         int threads) {
        check_matrix(groups, width, stored);
        check_sizes(n, 0);
        const Index active{at<const int32_t>(offsets), at<const int32_t>(columns), groups, stored};
        return unlocked([=] { return unlisted(active, width, at<const int64_t>(flat), n, at<int64_t>(out), team(threads)); });
    });
    m.def("split", [](Address ids, int64_t n, int64_t groups, int64_t width, Address offsets, Address columns) {
        check_matrix(groups, width, n);
        check(unlocked([=] { return split(at<const int64_t>(ids), n, groups, width, at<int32_t>(offsets), at<int32_t>(columns)); }));
    });
    m.def("join", [](Address offsets, Address columns, int64_t groups, int64_t stored, int64_t width, Address ids) {
        check_matrix(groups, width, stored);
        const Index index{at<const int32_t>(offsets), at<const int32_t>(columns), groups, stored};
        check(unlocked([=] { return join(index, width, at<int64_t>(ids)); }));
    });
    m.def("exchange", [](int64_t groups, int64_t width, Address offsets, Address columns, int64_t stored, Address gone, int64_t n_gone,
                         Address fresh, int64_t n_fresh, Address new_offsets, Address new_columns, Address origin, Address new_at,
                         int threads) {
        check_matrix(groups, width, stored);
        check_sizes(n_gone, n_fresh);
        if (n_gone > stored) throw nb::value_error("more columns go than there are");
        check_matrix(groups, width, stored - n_gone + n_fresh);
        const Index before{at<const int32_t>(offsets), at<const int32_t>(columns), groups, stored};
        Exchange out{at<int32_t>(new_offsets), at<int32_t>(new_columns), at<int64_t>(origin), at<int64_t>(new_at), false, false};
        check(unlocked([&] {
            return exchange(before, width, at<const int64_t>(gone), n_gone, at<const int64_t>(fresh), n_fresh, out, team(threads));
        }));
        return nb::make_tuple(out.in_order, out.distinct);
    });
    m.def("carry", [](int64_t groups, int64_t width, Address offsets, Address columns, int64_t stored, Address new_offsets,
                      Address new_columns, int64_t new_stored, Address source, Address target, int threads) {
        check_matrix(groups, width, stored);
        check_matrix(groups, width, new_stored);
        const Index before{at<const int32_t>(offsets), at<const int32_t>(columns), groups, stored};
        const Index after{at<const int32_t>(new_offsets), at<const int32_t>(new_columns), groups, new_stored};
        int64_t count = -1;
        check(unlocked([&] { return carry(before, after, width, at<int64_t>(source), at<int64_t>(target), count, team(threads)); }));
        return count;
    });
}

}  // namespace openwork
