#include "sortings.hpp"

#include <list>
#include <mutex>
#include <vector>

namespace openwork {
namespace {

struct Entry {
    SortingKey key;
    std::vector<int32_t> ids, order, starts;
    std::vector<uint16_t> places;

    Sortings::Order view() const { return {ids.data(), order.data(), starts.data(), places.data()}; }
};

template <typename T>
std::vector<T> copy(const T* from, int64_t n) { return from == nullptr ? std::vector<T>() : std::vector<T>(from, from + n); }

bool same(const SortingKey& a, const SortingKey& b) {
    return a.n_columns == b.n_columns && a.groups == b.groups && a.stored == b.stored && a.taps == b.taps &&
           a.taps_in_line == b.taps_in_line && a.windows == b.windows && a.by == b.by;
}

}  // namespace

struct Sortings::Entries {
    const int64_t most;
    mutable std::mutex mutex;
    std::list<Entry> all{};

    Order find(const SortingKey& key) const {
        for (const Entry& entry : all) {
            if (same(entry.key, key)) return entry.view();
        }
        return {nullptr, nullptr, nullptr, nullptr};
    }
};

Sortings::Sortings(int64_t most) : entries_(new Entries{most}) {}
Sortings::~Sortings() { delete entries_; }

Sortings::Order Sortings::find(const SortingKey& key) const {
    std::lock_guard<std::mutex> guard(entries_->mutex);
    return entries_->find(key);
}

void Sortings::keep(const SortingKey& key, const Order& order, int64_t n_starts) {
    std::lock_guard<std::mutex> guard(entries_->mutex);
    if (static_cast<int64_t>(entries_->all.size()) >= entries_->most || entries_->find(key).starts != nullptr) return;
    entries_->all.push_back({key, copy(order.ids, key.stored), copy(order.order, key.stored), copy(order.starts, n_starts),
                             copy(order.places, key.stored)});
}

int64_t Sortings::bytes() const {
    std::lock_guard<std::mutex> guard(entries_->mutex);
    size_t bytes = 0;
    for (const Entry& entry : entries_->all) {
        bytes += (entry.ids.size() + entry.order.size() + entry.starts.size()) * sizeof(int32_t) + entry.places.size() * sizeof(uint16_t);
    }
    return static_cast<int64_t>(bytes);
}

}  // namespace openwork
